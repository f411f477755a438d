// The part of a project's configuration that this app needs; of Redis it is that of Vona's template.
import type { VonaApplication, VonaConfigOptional } from 'vona';

export default async function (app: VonaApplication) {
  const config: VonaConfigOptional = {};
  const env = app.meta.env;
  config.modules = {};
  config.onions = {};
  config.meta = { flavor: env.META_FLAVOR, mode: env.META_MODE };
  config.server = { keys: [] };
  config.proxy = { enable: false };
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
