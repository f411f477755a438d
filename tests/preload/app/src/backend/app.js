// Uses each of the app's Redis clients, and then says what it sees.
'use strict';

const facts = require('./facts');

module.exports = app => {
  app.beforeStart(async () => {
    for (const name of Object.keys(app.config.redis.clients)) await app.redis.get(name).set(`used-as-${name}`, app.config.redis.clients[name].db);
    facts('worker', app.config);
  });
};
