// An app for a real agent: node app.js PORT KEY_FILE. At /calls it tells what it was asked and did; what
// `held` began goes on until /release is asked for.
'use strict';

const http = require('http');

const { accepted, createGuard, createMemoryStore } = require('..');

const [port, keyFile] = process.argv.slice(2);
const ran = {};
const calls = [];
const polled = new Set();
let release;

const memory = createMemoryStore();
const ahead = new Set();
const store = {
  /** Of a run of `fenced` it has seen a higher token before the first call. */
  async claim(call) {
    if (call.key.startsWith('prod/shop/fenced@') && !ahead.has(call.key)) {
      ahead.add(call.key);
      const other = await memory.claim(Object.assign({}, call, { token: call.token + 1000 }));
      await other.finish();
    }
    return memory.claim(call);
  },
  look: call => memory.look(call),
};

const guard = createGuard({ keyFile, store });

const run = guard.handler(async ({ key, name, data, token }) => {
  ran[key] = (ran[key] || 0) + 1;
  if (name === 'held') await new Promise(resolve => { release = resolve; });
  if (name === 'slow') await new Promise(resolve => setTimeout(resolve, 1000));
  return name === 'accepted' ? accepted(`/jobs/${encodeURIComponent(key)}`) : { data, token };
});

const poll = guard.poll(({ url }) => {
  // It goes on when it is asked for the first time.
  if (polled.has(url)) return undefined;
  polled.add(url);
  return accepted(url);
});

http.createServer((req, res) => {
  if (req.url === '/calls') return res.end(JSON.stringify({ ran, calls }));
  if (req.url === '/release') {
    release();
    return res.end();
  }
  const { attempt, 'idempotency-key': key = '', 'fencing-token': token, 'only-if-known': asks } = req.headers;
  const end = res.end;
  res.end = body => {
    const { statusCode: status } = res;
    calls.push({ path: req.url, key, attempt: Number(attempt || 0), token: Number(token || 0), asks: asks === '?1', status });
    // The answer to a first attempt is lost on the way.
    return req.url === '/lost' && attempt === '1' ? req.socket.destroy() : end.call(res, body);
  };
  return req.url.startsWith('/jobs/') ? poll(req, res) : run(req, res);
}).listen(Number(port), '127.0.0.1');
