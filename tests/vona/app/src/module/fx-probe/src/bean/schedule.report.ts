import { setTimeout as sleep } from 'node:timers/promises';
import { BeanBase } from 'vona';
import { Schedule } from 'vona-module-a-schedule';
import { named, note, ofRun } from '../lib/note.ts';

// Somebody else ticks it, unless the configuration of a test says otherwise.
@Schedule({ repeat: { pattern: '0 3 * * *' }, enable: false })
export class ScheduleReport extends BeanBase {
  async execute({ agentRun, id, name, attemptsMade, data }) {
    const job = { id, name, attemptsMade, data: { data: data.data } };
    const subdomain = this.ctx.instanceName;
    const failed = named('fail').includes(subdomain);
    note('report', { subdomain, instance: this.ctx.instance.name, job, failed, run: ofRun(agentRun) });
    while (named('hold').includes(subdomain)) await sleep(20);
    if (failed) throw new Error('the report has no paper');
  }
}
