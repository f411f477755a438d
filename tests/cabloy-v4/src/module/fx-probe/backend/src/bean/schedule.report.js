const fs = require('fs');

// The instances that a test names in the file <FX_EVENTS>.<what>, a line each.
function named(what) {
  const file = `${process.env.FX_EVENTS}.${what}`;
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];
}

module.exports = app => {
  class Schedule extends app.meta.BeanBase {
    async execute(context) {
      const { data, job, agentRun } = context;
      const failed = named('fail').includes(data.subdomain);
      app.bean.fxProbe.note('report', {
        subdomain: this.ctx.subdomain, instance: this.ctx.instance && this.ctx.instance.name, data, failed,
        job: { id: job.id, name: job.name, repeat: job.data.jobOptions.repeat },
        run: agentRun && { key: agentRun.key, token: agentRun.token, attempt: agentRun.attempt },
      });
      while (named('hold').includes(data.subdomain)) await new Promise(r => setTimeout(r, 20));
      if (failed) throw new Error('the report has no paper');
    }
  }
  return Schedule;
};
