// A process of an app, as far as queues and broadcasts go: the clients of CabloyJS 4 or Vona themselves, in an app that has
// the queue shop-report:render and the broadcast shop-report:refresh. What it does, and the answer to each line of stdin,
// is a line of JSON on stdout.
//   NODE_PATH=… node app.mjs v4|vona PORT [KEY=VALUE of the Redis connection…]
import { createRequire, register } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const [generation, port, ...others] = process.argv.slice(2);
const connection = {
  host: '127.0.0.1', port: Number(port), maxRetriesPerRequest: null, enableReadyCheck: false,
  ...Object.fromEntries(others.map(other => other.split('='))),
};
const name = 'shop';
const [module, queueName, broadcastName] = ['shop-report', 'render', 'refresh'];
const tell = line => process.stdout.write(JSON.stringify(line) + '\n');

// A job whose data has a number as `fails` fails so many times.
const begun = {};
function work(job, seen) {
  begun[job.id] = (begun[job.id] ?? 0) + 1;
  tell({ did: job.id, name: job.name, ...seen });
  if (begun[job.id] <= (seen.data?.fails ?? 0)) throw new Error('as it was told');
  return { rendered: job.id };
}

const require = createRequire(path.join(process.env.NODE_PATH, 'from-here.js'));

const generations = {
  v4: async () => {
    const Redis = require('ioredis-4');
    const redis = new Redis({ ...connection, lazyConnect: true });
    const beans = {
      [`${module}.queue.${queueName}`]: ({ context: { job, data, queueNameSub }, subdomain, ctxParent }) =>
        work(job, { data, subdomain, queueNameSub, dbLevel: ctxParent.dbLevel + 1 }),
      [`${module}.broadcast.${broadcastName}`]: ({ context: { data, sameAsCaller }, subdomain }) =>
        tell({ heard: { data, sameAsCaller, subdomain } }),
    };
    const app = {
      name,
      logger: { error: error => tell({ error: error.message }) },
      config: { queue: { redlock: { options: {} }, worker: { lockDuration: 30000, maxStalledCount: 1000, stalledInterval: 10000 } } },
      redis: { get: () => redis },
      meta: {
        workerId: 'one-of-the-app',
        queues: { [`${module}:${queueName}`]: { config: {}, bean: { module, name: queueName } } },
        broadcasts: { [`${module}:${broadcastName}`]: [{ config: {}, bean: { module, name: broadcastName } }] },
        redlock: { create: () => {} },
        util: {
          subdomainDesp: subdomain => (subdomain === undefined || subdomain === null ? '~' : subdomain || '-'),
          instanceStarted: () => true,
          lock: ({ resource, fn }) => (tell({ locked: resource }), fn()),
          executeBean: async info => beans[info.beanFullName](info),
        },
      },
    };
    const load = file => require(path.join(path.dirname(require.resolve('egg-born-backend/package.json')), file))(app);
    const queues = new (load('lib/module/queue/queueClient.js'))();
    const broadcasts = new (load('lib/module/broadcast/broadcastClient.js'))();
    await new Promise(resolve => broadcasts.sub.once('ready', resolve));
    const info = more => ({ subdomain: '', module, queueName, ...more });
    return {
      queue: subdomain => queues._ensureQueue(info({ subdomain })),
      worker: subdomain => queues._workers[queues._combineQueueKey(info({ subdomain }))].worker,
      info,
      push: what => queues.push(info(what)),
      emit: data => broadcasts.emit({ subdomain: '', module, broadcastName, data }),
      Redis,
    };
  },
  vona: async () => {
    register('./resolve.mjs', import.meta.url);
    const Redis = require('ioredis');
    const beans = {
      [`${module}.queue.${queueName}`]: {
        execute: (data, { queueNameSub, instanceName, dbInfo }, job) => work(job, { data, instanceName, queueNameSub, dbInfo }),
      },
      [`${module}.broadcast.${broadcastName}`]: {
        execute: (data, isEmitter) => tell({ heard: { data, isEmitter, instanceName: beans.instanceName } }),
      },
    };
    const onion = scene => ({
      getOnionOptions: () => ({}),
      getOnionSlice: name => ({ beanOptions: { beanFullName: name.replace(':', `.${scene}.`) } }),
    });
    const lock = (resource, fn) => (tell({ locked: resource }), fn());
    globalThis.app = {
      config: { meta: { app: { name } } },
      meta: { appReady: true },
      handleError: error => tell({ error: error.message }),
      scope: { config: { worker: { lockDuration: 30000, maxStalledCount: 1000, stalledInterval: 10000 } } },
      scopes: { redlock: { config: {}, service: { redlock: { create: () => {}, lock } } } },
      bean: {
        worker: { id: 'one-of-the-app' },
        redis: { get: () => new Redis(connection) },
        onion: { queue: onion('queue'), broadcast: onion('broadcast') },
        executor: { newCtx: (fn, { instanceName }) => ((beans.instanceName = instanceName), fn()) },
        _getBean: name => beans[name],
      },
    };
    const load = file => import(pathToFileURL(require.resolve(file)));
    const queues = new (await load('vona-module-a-queue')).ServiceQueue();
    const broadcasts = new (await load('vona-module-a-broadcast')).ServiceBroadcast();
    broadcasts.__init__();
    await new Promise(resolve => broadcasts.__sub.once('ready', resolve));
    // As `prepareGeneralInfo` makes them where there is no request.
    const options = more => ({ dbInfo: { level: 1 }, instanceName: '', ...more });
    const info = ({ data, ...more }) => ({ queueName: `${module}:${queueName}`, data, options: options(more) });
    const of = subdomain => info({ instanceName: subdomain });
    return {
      queue: subdomain => queues._ensureQueue(of(subdomain)),
      worker: subdomain => queues._workers[queues._combineQueueKey(of(subdomain))].worker,
      info,
      push: what => queues.push(info(what)),
      emit: data => broadcasts.emit({ broadcastName: `${module}:${broadcastName}`, data, options: options() }),
      Redis,
    };
  },
};

const app = await generations[generation]();
const { queue, queueEvents } = app.queue('');
for (const event of ['added', 'waiting', 'active', 'completed', 'failed']) {
  queueEvents.on(event, ({ jobId }) => tell({ event, job: jobId }));
}
await Promise.all([queue.waitUntilReady(), queueEvents.waitUntilReady(), app.worker('').waitUntilReady()]);

// What is published on the app's channel, to the letter.
const ear = new app.Redis(connection);
ear.on('message', (_, text) => tell({ text }));
await ear.subscribe(`broadcast_${name}:`);

const commands = {
  push: info => app.push(info),
  emit: data => app.emit(data),
  // As push does, and answered when the job is there.
  add: ([name, jobOptions]) => queue.add(name, app.info({ data: {}, jobOptions }), jobOptions).then(job => job.id),
  pause: () => queue.pause(),
  resume: () => queue.resume(),
  counts: () => queue.getJobCounts('wait', 'paused', 'active', 'delayed', 'completed', 'failed'),
  state: id => queue.getJobState(id),
  job: async id => {
    const job = await queue.getJob(id);
    return job && { id: job.id, name: job.name, data: job.data, opts: job.opts, timestamp: job.timestamp, returnvalue: job.returnvalue };
  },
};
readline.createInterface({ input: process.stdin }).on('line', async line => {
  const [[command, argument]] = Object.entries(JSON.parse(line));
  try {
    tell({ answer: (await commands[command](argument)) ?? null });
  } catch (error) {
    tell({ answer: null, error: error.message });
  }
}).on('close', () => process.exit(0));
tell({ ready: generation });
