import { BeanBase } from 'vona';
import { Startup } from 'vona-module-a-startup';
import { note, ofRun } from '../lib/note.ts';

@Startup({ instance: true, debounce: true, transaction: true })
export class StartupTenant extends BeanBase {
  async execute(options?) {
    const { inTransaction } = this.bean.database.current;
    note('startup.tenant', { subdomain: this.ctx.instanceName, inTransaction, run: ofRun(options?.agentRun) });
  }
}
