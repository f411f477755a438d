// Calls as the agent makes them.
'use strict';

const crypto = require('crypto');
const http = require('http');

const KEY = 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD';
const OTHER_KEY = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';

function signature(key, id, timestamp, body) {
  const secret = Buffer.from(key.slice('whsec_'.length), 'base64');
  return `v1,${crypto.createHmac('sha256', secret).update(`${id}.${timestamp}.`).update(body).digest('base64')}`;
}

/** The headers of a call; `own` replaces some, undefined takes one away. */
function headers({ id = 'prod/shop/nightly@2026-11-23T03:00:00Z', keys = [KEY], body = '', at = Date.now(), attempt = 1,
  token = 7, inMs = 60000 } = {}, own = {}) {
  const timestamp = String(Math.floor(at / 1000));
  const all = Object.assign({
    'ce-specversion': '1.0',
    'ce-id': `${id}#${attempt}`,
    'ce-source': '/cabloy/prod/shop',
    'ce-type': 'io.cabloy.schedule',
    'ce-subject': 'nightly',
    'ce-time': '2026-11-23T03:00:00.123456789Z',
    'idempotency-key': `"${id}"`,
    'fencing-scope': id,
    'fencing-token': String(token),
    attempt: String(attempt),
    deadline: new Date(Date.now() + inMs).toISOString(),
    traceparent: '00-0123456789abcdef0123456789abcdef-0123456789abcdef-01',
    'webhook-id': id,
    'webhook-timestamp': timestamp,
    'webhook-signature': keys.map(key => signature(key, id, timestamp, body)).join(' '),
  }, body ? { 'content-type': 'application/json' } : {}, own);
  for (const name of Object.keys(all)) {
    if (all[name] === undefined) delete all[name];
  }
  return all;
}

/** Makes a request: {status, headers, body}. */
function send(port, path, requestHeaders, body = '', method = 'POST') {
  return new Promise((resolve, reject) => {
    const options = { host: '127.0.0.1', port, path, method, headers: requestHeaders, agent: false };
    const req = http.request(options, res => {
      let text = '';
      res.setEncoding('utf8').on('data', part => { text += part; });
      res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, body: text }));
      res.on('aborted', () => reject(new Error('aborted')));
    });
    req.on('error', reject);
    req.end(body);
  });
}

function listen(listener) {
  return new Promise(resolve => {
    const server = http.createServer(listener).listen(0, '127.0.0.1', () => resolve(server));
  });
}

module.exports = { KEY, OTHER_KEY, headers, listen, send };
