// Beans, run as CabloyJS itself runs them (egg-born-backend, lib/module/schedule.js and startup.js).
'use strict';

const { wrong } = require('./call.js');

const isObject = value => value !== null && typeof value === 'object' && !Array.isArray(value);

/** What a schedule's bean finds in `context.job`: of a BullMQ job the fields that say what it is. */
function jobOf(schedule, subdomain, data, run) {
  const { module, name, config } = schedule;
  const jobName = `${subdomain}.${module}.${name}`;
  return {
    id: run.key,
    name: jobName,
    timestamp: run.tick ? run.tick.getTime() : Date.now(),
    attemptsMade: run.attempt - 1,
    data: {
      subdomain,
      module: 'a-base',
      queueName: 'schedule',
      queueNameSub: `${module}.${name}`,
      jobName,
      jobOptions: { repeat: config.repeat },
      data,
      dbLevel: 1,
    },
  };
}

function createRunner(app) {
  /** The schedule or startup of the app's configuration that has this bean. */
  const declared = (list, scene, beanFullName) =>
    Object.values(list || {}).find(({ bean }) => `${bean.module}.${scene}.${bean.name}` === beanFullName);

  return {
    /** Throws a Failure if this version of the app has no such bean, or not for these instances. */
    find({ module, name, data, instances }) {
      const fullName = `${module}.${name}`;
      if (!app.meta.beans[fullName]) throw wrong(`this version of the app has no bean ${fullName}`);
      const schedule = declared(app.meta.schedules, 'schedule', fullName);
      const startup = declared(app.meta.startups, 'startup', fullName);
      if (schedule && data !== null && !isObject(data)) throw wrong(`data of ${fullName} is no object, as a schedule has it`);
      // It is about the app, and would run once for each.
      if (startup && !startup.config.instance && instances !== 'Default') {
        throw wrong(`${fullName} is a startup of the app as a whole: remove instances`);
      }
      return { module, fullName, schedule, startup };
    },

    /** Resolves when the bean has come to its end. */
    run({ module, fullName, schedule, startup }, { subdomain, data, run }) {
      const call = { subdomain, instance: true, beanModule: module, beanFullName: fullName };
      if (schedule) {
        const given = Object.assign({}, data, { subdomain, module: schedule.module, name: schedule.name });
        call.transaction = schedule.config.transaction;
        call.context = { job: jobOf(schedule, subdomain, given, run), data: given, queueNameSub: `${schedule.module}.${schedule.name}` };
      } else if (startup) {
        call.transaction = startup.config.transaction;
        call.context = { data };
        if (startup.config.instance) call.context.options = { force: true, instanceBase: null };
        else Object.assign(call, { subdomain: undefined, instance: false });
      } else {
        call.context = { data };
      }
      call.context.agentRun = run;
      return app.meta.util.executeBean(call);
    },
  };
}

module.exports = { createRunner };
