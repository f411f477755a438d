// A module of the app's own, as Vona's builder compiles one: a queue and a broadcast.
import { __decorate } from 'tslib';
import { BeanBase, BeanInfo, BeanSimple } from 'vona';
import { Bean } from 'vona-module-a-bean';
import { BeanBroadcastBase, Broadcast } from 'vona-module-a-broadcast';
import { BeanQueueBase, Queue } from 'vona-module-a-queue';

const info = BeanInfo({ module: 'shop-report' });

export const QueueRender = __decorate([Queue(), info], class QueueRender extends BeanQueueBase {
  async execute(data) {
    return { rendered: data };
  }
});

let listener;
/** What the broadcast brings next. */
export const heard = () => new Promise(resolve => { listener = resolve; });

export const BroadcastRefresh = __decorate([Broadcast({ instance: false }), info], class BroadcastRefresh extends BeanBroadcastBase {
  async execute(data) {
    listener(data);
  }
});

/** In the place of a-orm: jobs are done in the context of a database, and here is none. */
export const BeanDatabase = __decorate([Bean(), info], class BeanDatabase extends BeanBase {
  switchDb(fn) {
    return fn();
  }
});

/** In the place of a-instance and a-orm, as far as a job's context asks for them: there is no instance and no transaction. */
export class Main extends BeanSimple {
  async moduleLoading() {}
  async moduleLoaded() {
    Object.assign(this.app.context, { __getInstanceName() {}, __setInstanceName() {}, async commitsDone() {} });
  }
  async configLoaded() {}
}
