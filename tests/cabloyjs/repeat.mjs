// Repeatable jobs of a queue by the BullMQ of CabloyJS 4 itself. Says what it did as a line of JSON on stdout.
//   NODE_PATH=… node repeat.mjs PORT add NAME REPEAT | remove KEY | list | pause | work
import { createRequire } from 'node:module';
import path from 'node:path';

const [port, command, ...args] = process.argv.slice(2);
const require = createRequire(path.join(process.env.NODE_PATH, 'from-here.js'));
const { Queue, Worker } = createRequire(require.resolve('egg-born-backend/package.json'))('bullmq');

const name = '-||a-base||schedule';
const options = { prefix: 'bull_shop:queue', connection: { host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null } };
const tell = line => process.stdout.write(JSON.stringify(line ?? null) + '\n');

const queue = new Queue(name, options);
const commands = {
  add: (job, repeat) => queue.add(job, { about: job }, { repeat: JSON.parse(repeat) }).then(({ id }) => id),
  remove: key => queue.removeRepeatableByKey(key),
  list: () => queue.getRepeatableJobs(),
  pause: () => queue.pause(),
};
if (command === 'work') {
  new Worker(name, async job => tell({ job: job.id, data: job.data, at: Date.now() }), options);
} else {
  tell(await commands[command](...args));
  await queue.close();
}
