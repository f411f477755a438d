// One of several processes of an app which share a Redis: node worker.js MODULES REDIS_PORT KEY_FILE LEASE_MS
'use strict';

const { createGuard, createRedisStore } = require('..');
const { listen } = require('./call');

const [modules, redisPort, keyFile, leaseMs] = process.argv.slice(2);
const Redis = require(`${modules}/ioredis`);
const client = new Redis({ host: '127.0.0.1', port: Number(redisPort), keyPrefix: 'shop:' });
const guard = createGuard({ keyFile, store: createRedisStore({ client, leaseMs: Number(leaseMs) }) });

/** The body says how long it takes. */
const handler = guard.handler(async run => {
  await client.incr(`ran:${run.key}`);
  await new Promise(resolve => setTimeout(resolve, run.data.ms));
  return { by: process.pid };
});

// It ends with the test that started it.
process.stdin.on('end', () => process.exit(0)).resume();
listen(handler).then(server => console.log(server.address().port));
