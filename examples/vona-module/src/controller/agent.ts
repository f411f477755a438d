import type { Guard, KoaContext, Run } from 'cabloy-agent-client';
import type { IDecoratorControllerOptions } from 'vona-module-a-web';
import { createGuard, createRedisStore } from 'cabloy-agent-client';
// For the type of `this.bean.redis`.
import type {} from 'vona-module-a-redis';
import { BeanBase } from 'vona';
import { Passport } from 'vona-module-a-user';
import { Controller, Web } from 'vona-module-a-web';
import { parseCall, pickInstances } from '../lib/call.ts';
import { findBean, runBean } from '../lib/runner.ts';

export interface IControllerOptionsAgent extends IDecoratorControllerOptions {}

/** One a process: it is made at the first call, for the Redis clients of the app are not there before. */
let guard: Guard | undefined;

@Controller<IControllerOptionsAgent>('')
export class ControllerAgent extends BeanBase {
  private get guard(): Guard {
    const { keyFile, redis } = this.scope.config;
    guard ??= createGuard({
      keyFile,
      // Vona's own client waits for a Redis that is away; a call is to be answered before.
      store: createRedisStore({ client: this.bean.redis.get(redis).duplicate({ maxRetriesPerRequest: 1 }) }),
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
      const { concurrency } = this.scope.config;
      const { status, headers, body } = await guard.parts(run, names, work, { concurrency });
      ctx.body = body;
      ctx.status = status;
      ctx.set(headers);
    });
  }
}
