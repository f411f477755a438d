// node clients.js EGG-REDIS CONFIG: has the real egg-redis make its clients from a JSON of `redis.clients`, without a
// connection, and says which kind of client each is and what ioredis made of its options.
'use strict';

const path = require('path');
const Redis = require('ioredis');
const plugin = path.dirname(require.resolve(`${process.argv[2]}/package.json`));
const clients = JSON.parse(process.argv[3]);

const logger = { info() {}, error() {} };
const app = {
  config: { redis: {} },
  coreLogger: logger,
  beforeStart() {},
  addSingleton(_, create) {
    this.create = create;
  },
};
require(path.join(plugin, 'lib/redis.js'))(app);

const made = {};
for (const name of Object.keys(clients)) {
  const client = app.create(Object.assign({ lazyConnect: true }, clients[name]), app);
  const { host, port, db, username, password, tls, role } = client.options;
  made[name] = client instanceof Redis.Cluster
    ? { kind: 'Cluster', nodes: client.startupNodes, redisOptions: client.options.redisOptions }
    : { kind: client.connector.constructor.name, host, port, db, username, password, tls, role };
  client.disconnect();
}
process.stdout.write(JSON.stringify(made));
