// A module of the app's own, as Vona's builder compiles one: startups, and the schedules of FX_SCHEDULES, which are an object
// of options by name. It tells what it does in the file FX_EVENTS, a line of JSON each.
import fs from 'node:fs';
import http from 'node:http';
import { __decorate } from 'tslib';
import { BeanBase, BeanInfo } from 'vona';
import { BeanQueueBase, Queue } from 'vona-module-a-queue';
import { Schedule } from 'vona-module-a-schedule';
import { Startup } from 'vona-module-a-startup';

const { FX_EVENTS, FX_SCHEDULES, FX_PORT, FX_FAIL } = process.env;
const info = BeanInfo({ module: 'shop-rota' });
const tell = (kind, more) => fs.appendFileSync(FX_EVENTS, `${JSON.stringify({ t: Date.now(), kind, pid: process.pid, ...more })}\n`);

const StartupOnce = __decorate([Startup({ debounce: true }), info], class StartupOnce extends BeanBase {
  async execute() {
    tell('startup.once');
    // The first time that it is run where FX_FAIL is a file that is not there yet.
    if (FX_FAIL && !fs.existsSync(FX_FAIL)) {
      fs.writeFileSync(FX_FAIL, '');
      throw new Error('startup.once fails');
    }
  }
});

const StartupInst = __decorate([Startup({ instance: true, debounce: true, after: true }), info], class StartupInst extends BeanBase {
  async execute() {
    tell('startup.inst');
  }
});

/** In the place of a-web: as there, nothing listens before the startups that come first have been come through. */
const StartupListen = __decorate([Startup({ after: true }), info], class StartupListen extends BeanBase {
  async execute() {
    const server = http.createServer((_, response) => response.end());
    await new Promise(resolve => server.listen(Number(FX_PORT), '127.0.0.1', resolve));
  }
});

/** For schedules that ask for a queue of their own. */
const QueueOwn = __decorate([Queue({ concurrency: true }), info], class QueueOwn extends BeanQueueBase {
  async execute(data, _options, job) {
    await this.$scope.schedule.service.schedule.execute(data.scheduleName, job);
  }
});

function schedule(name, options) {
  // A bean goes by the name of its class.
  const { [name]: type } = {
    [name]: class extends BeanBase {
      async execute(job) {
        tell('schedule', { job: job.id, repeat: job.data.options.jobOptions.repeat });
      }
    },
  };
  return __decorate([Schedule(options), info], type);
}

export const beans = { QueueOwn, StartupOnce, StartupInst, StartupListen };
for (const [name, options] of Object.entries(JSON.parse(FX_SCHEDULES))) {
  const type = `Schedule${name[0].toUpperCase()}${name.slice(1)}`;
  beans[type] = schedule(type, options);
}
