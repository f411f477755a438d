const { createGuard, createRedisStore } = require('../../client');

const { parseCall, pickInstances } = require('../lib/call.js');
const { createRunner } = require('../lib/runner.js');

module.exports = app => {
  const config = app.meta.configs['cabloy-agent'];
  const runner = createRunner(app);

  /** Made at the first call: the Redis clients of the app are not there before. */
  let guard;
  function guardOf() {
    if (guard) return guard;
    // The app's own client waits for a Redis that is away for as long as that takes; a call is to be answered before.
    const client = app.redis.get(config.redis).duplicate({ maxRetriesPerRequest: 1 });
    client.on('error', error => app.logger.error(error));
    app.beforeClose(() => client.disconnect());
    const store = createRedisStore({ client });
    guard = createGuard({ keyFile: config.keyFile, store, onError: error => app.logger.error(error) });
    return guard;
  }

  class AgentController extends app.meta.BeanBase {
    /** Runs a bean for each instance that the call names, and remembers for which of them it is done. */
    async run() {
      const { ctx } = this;
      const guard = guardOf();
      await guard.koa()(ctx, async () => {
        const run = ctx.state.agentRun;
        const call = parseCall(run.data);
        const bean = runner.find(call);
        const { names, refused } = await pickInstances(ctx, call.instances);
        const { status, headers, body } = await guard.parts(run, names, subdomain => {
          const failure = refused.get(subdomain);
          if (failure) throw failure;
          return runner.run(bean, { subdomain, data: call.data, run });
        }, { concurrency: config.concurrency });
        ctx.body = body;
        ctx.status = status;
        ctx.set(headers);
      });
    }
  }
  return AgentController;
};
