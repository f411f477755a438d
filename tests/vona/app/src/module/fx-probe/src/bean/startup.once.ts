import { BeanBase } from 'vona';
import { Startup } from 'vona-module-a-startup';
import { note, ofRun } from '../lib/note.ts';

@Startup({ debounce: true })
export class StartupOnce extends BeanBase {
  async execute(options?) {
    const { force, data, agentRun } = options ?? {};
    note('startup.once', { instance: this.ctx.instanceName ?? null, force, data, run: ofRun(agentRun) });
  }
}
