// None of these is there: whoever finds no fault with them does not see the types of Vona.
import type { VonaApplication } from 'vona';
import type {} from 'vona-module-a-executor';
import type {} from 'vona-module-a-instance';
import type {} from 'vona-module-a-redis';

export const beans = (app: VonaApplication) => [
  app.bean.executor.newContext,
  app.bean.instance.lists,
  app.bean.redis.get('nobody'),
];
