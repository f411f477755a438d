// Uses each of the app's Redis clients, and then says what it sees. Takes a lock at each SIGHUP, and says how many
// milliseconds that took.
'use strict';

const fs = require('fs');
const Redlock = require('redlock');
const facts = require('./facts');

module.exports = app => {
  const { redis, queue } = app.config;
  app.beforeStart(async () => {
    for (const name of Object.keys(redis.clients)) {
      // the boot does not wait for these
      if (!redis.clients[name].weakDependent) await app.redis.get(name).set(`used-as-${name}`, redis.clients[name].db);
    }
    facts('worker', app.config);
  });

  // as lib/module/redis.js and lib/module/util.js of egg-born-backend 7.1 do
  const lock = async fn => {
    const redlock = new Redlock(queue.redlock.clients.map(name => app.redis.get(name)), queue.redlock.options);
    const held = await redlock.lock(`redlock_${app.name}:-:test`, queue.redlock.options.lockTTL);
    try {
      return await fn();
    } finally {
      await held.unlock();
    }
  };
  process.on('SIGHUP', async () => {
    const start = Date.now();
    await lock(() => {});
    fs.writeSync(1, `LOCKED ${Date.now() - start}\n`);
  });
};
