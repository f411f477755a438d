// The part of a project's configuration that this app needs; of Redis it is that of Vona's template.
import os from 'node:os';
import path from 'node:path';
import type { VonaApplication, VonaConfigOptional } from 'vona';

export default async function (app: VonaApplication) {
  const config: VonaConfigOptional = {};
  const env = app.meta.env;
  config.modules = {};
  config.onions = {};
  config.meta = { flavor: env.META_FLAVOR, mode: env.META_MODE };
  config.instance = { instances: { '': {} } };
  config.server = {
    keys: ['key'],
    globalPrefix: '/api',
    // For files that users send.
    publicDir: path.join(os.homedir(), 'public'),
    subdomainOffset: 1,
    workers: Number.parseInt(env.SERVER_WORKERS!),
    listen: { hostname: env.SERVER_LISTEN_HOSTNAME, port: Number.parseInt(env.SERVER_LISTEN_PORT!), disable: false },
    serve: {},
  };
  config.proxy = { enable: false };
  config.database = {
    base: { pool: { min: 0, max: 5 } },
    defaultClient: 'mysql',
    clients: {
      mysql: {
        client: 'mysql2',
        connection: {
          host: env.DATABASE_CLIENT_MYSQL_HOST,
          port: Number.parseInt(env.DATABASE_CLIENT_MYSQL_PORT!),
          user: env.DATABASE_CLIENT_MYSQL_USER,
          password: env.DATABASE_CLIENT_MYSQL_PASSWORD,
          database: env.DATABASE_CLIENT_MYSQL_DATABASE,
        },
      },
    },
  };
  config.logger = {
    base: {},
    clients: {
      default: (_, { format, transports }) => ({
        format: format.combine(format.errors({ stack: true }), format.printf(({ message, stack }) => stack || message)),
        transports: [new transports.Console({ level: 'error' })],
      }),
    },
  };
  config.redis = {
    base: {
      host: env.REDIS_DEFAULT_HOST,
      port: Number.parseInt(env.REDIS_DEFAULT_PORT!),
      password: env.REDIS_DEFAULT_PASSWORD,
      db: Number.parseInt(env.REDIS_DEFAULT_DB!),
      maxRetriesPerRequest: null,
      enableReadyCheck: false,
    },
    clients: {
      default: { keyPrefix: true },
      cache: { keyPrefix: true },
      io: { keyPrefix: true },
      summer: { keyPrefix: true },
      model: { keyPrefix: true },
      worker: { keyPrefix: true },
      redlock: {},
      queue: {},
      broadcast: {},
    },
  };
  return config;
}
