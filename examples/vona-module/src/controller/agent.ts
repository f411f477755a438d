import type { Guard, KoaContext, Run } from 'cabloy-agent-client';
import { createRequire } from 'node:module';
// For the type of `this.bean.redis`.
import type {} from 'vona-module-a-redis';
import { BeanBase } from 'vona';
import { Passport } from 'vona-module-a-user';
import { Controller, Web } from 'vona-module-a-web';
import { parseCall, pickInstances } from '../lib/call.ts';
import { findBean, runBean } from '../lib/runner.ts';

const { createGuard, createRedisStore }: typeof import('cabloy-agent-client')
  = createRequire(import.meta.url)('cabloy-agent-client');

/** For how many instances a bean is run at the same time. */
const CONCURRENCY = 4;

/** One a process: it is made at the first call, for the Redis clients of the app are not there before. */
let guard: Guard | undefined;

@Controller('')
export class ControllerAgent extends BeanBase {
  private get guard(): Guard {
    // The role's Redis must not evict keys. Vona's own client waits for one that is away; a call is to be answered before.
    guard ??= createGuard({
      store: createRedisStore({ client: this.bean.redis.get('redlock').duplicate({ maxRetriesPerRequest: 1 }) }),
      onError: error => this.$logger.error(error),
    });
    return guard;
  }

  /** Runs a bean for each instance that the call names, and remembers for which of them it is done. */
  @Web.post('run', { bodySchemaWrapper: false })
  // The agent is no user: it is known by its signature.
  @Passport.public()
  async run(): Promise<void> {
    const { ctx, guard } = this;
    await guard.koa()(ctx as unknown as KoaContext, async () => {
      const { agentRun: run } = ctx.state as { agentRun?: Run };
      if (!run) throw new Error('the guard has let in a call without a run');
      const call = parseCall(run.data);
      const bean = findBean(this.app, call);
      const { names, refused } = await pickInstances(this.app, call.instances);
      const work = async (instanceName: string) => {
        const failure = refused.get(instanceName);
        if (failure) throw failure;
        await runBean(this.app, bean, instanceName, call.data, run);
      };
      const { status, headers, body } = await guard.parts(run, names, work, { concurrency: CONCURRENCY });
      ctx.body = body;
      ctx.status = status;
      ctx.set(headers);
    });
  }
}
