// A module of the app's own, as Vona's builder compiles one: a queue and a broadcast.
import { __decorate } from 'tslib';
import { BeanInfo } from 'vona';
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
