import { BeanBase } from 'vona';
import { Schedule } from 'vona-module-a-schedule';
import { note } from '../lib/note.ts';

// For tests whose configuration enables it.
@Schedule({ repeat: { pattern: '0 0 1 1 *' }, enable: false })
export class ScheduleTally extends BeanBase {
  async execute() {
    note('tally', { subdomain: this.ctx.instanceName });
  }
}
