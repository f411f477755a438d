// An app that verifies each call with the public library, and tells what it found at /calls. Arguments: its port, the
// folder of the library, and the keys to try.
'use strict';
const http = require('http');

const [port, modules, ...keys] = process.argv.slice(2);
const { Webhook } = require(`${modules}/standardwebhooks`);
const calls = [];

function verifies(key, body, headers) {
  try {
    new Webhook(key).verify(body, headers, { jsonParse: false });
    return true;
  } catch (error) {
    return false;
  }
}

http.createServer((req, res) => {
  let body = '';
  req.on('data', data => { body += data; }).on('end', () => {
    if (req.url === '/calls') return res.end(JSON.stringify(calls));
    const by = (body, headers) => keys.map(key => verifies(key, body, headers));
    calls.push({
      path: req.url, body, id: req.headers['webhook-id'], key: req.headers['idempotency-key'],
      attempt: req.headers.attempt, verified: by(body, req.headers),
      forged: [by(`${body} `, req.headers), by(body, { ...req.headers, 'webhook-id': 'another' })].flat(),
    });
    // The first attempt at a run fails; a run that is accepted is over when it is asked for.
    res.statusCode = req.headers.attempt === '1' ? 500 : req.url === '/accepted' ? 202 : 200;
    if (res.statusCode === 202) res.setHeader('location', '/jobs/1');
    res.end();
  });
}).listen(Number(port), '127.0.0.1');
