// The app that the preload is tested with: it uses each client, and tells what it has found.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { start } from './start.mjs';

const app = await start(['a-election', 'a-worker', 'a-queue', 'a-broadcast'], {
  'a-instance': () => import('./instance.mjs'),
  'shop-report': () => import('./report.mjs'),
});

// Each client is used, by the module of Vona that it is for.
const { redlock } = app.scope('a-redlock').service;
const report = await import('./report.mjs');
for (const name of Object.keys(app.config.redis.clients)) {
  if (!/^(redlock\d*|queue|broadcast)$/.test(name)) await app.bean.redis.get(name).set(`used-as-${name}`, '');
}
await new Promise(resolve => redlock.lock('held', () => (resolve(), new Promise(() => {}))));
const rendered = await app.bean._getBean('shop-report.queue.render').pushAsync({ pages: 2 });
const heard = report.heard();
// whoever subscribes is answered first
await app.bean._getBean('a-broadcast.service.broadcast').__sub.ping();
app.bean._getBean('shop-report.broadcast.refresh').emit({ shelf: 7 });

const facts = {
  pid: process.pid,
  rendered,
  heard: await heard,
  redis: app.config.redis,
  redlock: app.scope('a-redlock').config,
  list: app.config.list,
  environ: fs.readFileSync('/proc/self/environ', 'utf8').split('\0'),
  inherited: execFileSync('/usr/bin/env', { encoding: 'utf8' }).split('\n'),
};
fs.writeSync(1, `FACTS ${JSON.stringify(facts)}\n`);

process.on('SIGHUP', async () => {
  const start = Date.now();
  await redlock.lock('test', () => {});
  fs.writeSync(1, `LOCKED ${Date.now() - start}\n`);
});
