import type { VonaApplication } from 'vona';
import type { IRedisClientRecord } from 'vona-module-a-redis';

export function config(_app: VonaApplication) {
  return {
    /** Where the operator puts the key that calls of the agent are signed with. */
    keyFile: '/etc/cabloy/signing/key',
    /** The client whose Redis remembers runs; it must not evict keys. */
    redis: 'redlock' as keyof IRedisClientRecord,
    /** For how many instances a bean is run at the same time. */
    concurrency: 4,
  };
}
