// Schedules of a queue by the BullMQ of CabloyJS 4, or of Vona, itself. Says what it did as a line of JSON on stdout.
//   NODE_PATH=… node repeat.mjs v4|vona PORT add NAME REPEAT [OPTIONS] | remove KEY | list | pause | work [MS [WORKER]]
import { createRequire } from 'node:module';
import path from 'node:path';

const [generation, port, command, ...args] = process.argv.slice(2);
const require = createRequire(path.join(process.env.NODE_PATH, 'from-here.js'));
const v4 = generation === 'v4';
const { Queue, Worker } = v4 ? createRequire(require.resolve('egg-born-backend/package.json'))('bullmq') : require('bullmq');

const name = v4 ? '-||a-base||schedule' : '-||a-schedule.queue.schedule';
const options = { prefix: 'bull_shop:queue', connection: { host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null } };
const tell = line => process.stdout.write(JSON.stringify(line ?? null) + '\n');

const queue = new Queue(name, options);
const repeatable = {
  add: (job, repeat) => queue.add(job, { about: job }, { repeat: JSON.parse(repeat) }).then(({ id }) => id),
  remove: key => queue.removeRepeatableByKey(key),
  list: () => queue.getRepeatableJobs(),
};
const scheduler = {
  // as Vona does
  add: (id, repeat, opts = '{"removeOnFail":100}') => queue.removeJobScheduler(id)
    .then(() => queue.upsertJobScheduler(id, JSON.parse(repeat), { data: { about: id }, opts: JSON.parse(opts) }))
    .then(job => job.id),
  remove: id => queue.removeJobScheduler(id),
  list: () => queue.getJobSchedulers(),
};
const commands = { ...(v4 ? repeatable : scheduler), pause: () => queue.pause() };
if (command === 'work') {
  const worker = new Worker(name, async job => {
    tell({ job: job.id, data: job.data, at: Date.now() });
    await new Promise(resolve => setTimeout(resolve, Number(args[0] || 0)));
  }, { ...options, name: args[1] });
  // it ends what it has begun
  process.once('SIGTERM', () => worker.close().then(() => process.exit()));
} else {
  tell(await commands[command](...args));
  await queue.close();
}
