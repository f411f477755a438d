const fs = require('fs');

module.exports = app => {
  class Schedule extends app.meta.BeanBase {
    // Fails for the instances that the file <FX_EVENTS>.fail names, a line each.
    async execute(context) {
      const { data, job, agentRun } = context;
      const file = `${process.env.FX_EVENTS}.fail`;
      const failing = fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];
      const failed = failing.includes(data.subdomain);
      app.bean.fxProbe.note('report', {
        subdomain: this.ctx.subdomain, instance: this.ctx.instance && this.ctx.instance.name, data, failed,
        job: { id: job.id, name: job.name, repeat: job.data.jobOptions.repeat },
        run: agentRun && { key: agentRun.key, token: agentRun.token, attempt: agentRun.attempt },
      });
      if (failed) throw new Error('the report has no paper');
    }
  }
  return Schedule;
};
