// The app of the chaos runs. Each call adds its own element to a set in the register that all apps share: it reads the
// set, thinks, and writes all of it back. Calls to one app take turns; what keeps apps apart is the register's own check
// of the fencing token, or nothing.
'use strict';
const fs = require('fs');
const http = require('http');

const { PORT, REGISTER, READY } = process.env;

/** Asks the register; resolves to its status and answer. */
function ask(path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath: REGISTER, path, method: 'POST', headers: { 'content-type': 'application/json' } }, response => {
      const parts = [];
      response.on('data', part => parts.push(part)).on('error', reject)
        .on('end', () => resolve({ status: response.statusCode, body: JSON.parse(Buffer.concat(parts).toString()) }));
    });
    request.on('error', reject).end(JSON.stringify(body));
  });
}

const think = () => new Promise(resolve => setTimeout(resolve, Math.random() * 60));

async function add(call) {
  const read = await ask('/read', call);
  if (read.status !== 200) return read;
  await think();
  return ask('/write', { call, set: [...read.body, `${call.tick}#${call.attempt}`] });
}

let last = Promise.resolve();

const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', part => parts.push(part)).on('end', () => {
    const { headers } = request;
    const call = {
      agent: JSON.parse(Buffer.concat(parts).toString()).agent,
      key: headers['idempotency-key'], tick: headers['ce-time'], attempt: Number(headers.attempt),
      token: Number(headers['fencing-token']), deadline: Date.parse(headers.deadline),
    };
    last = last.then(() => add(call)).catch(error => ({ status: 500, body: String(error) })).then(({ status, body }) => {
      response.statusCode = status;
      response.end(JSON.stringify(body));
    });
  });
});
server.listen(Number(PORT), '127.0.0.1', () => fs.writeFileSync(READY, ''));
