// Starts the app of this folder on Vona's own core and modules. What is ours is what Vona's builder, which is not in the npm
// registry, makes of a project: the list of modules, the variables of `env/.env`, and the configuration's files. What Vona
// patches in zod, which only validates requests, is left out (resolve.mjs). Without a database there is no suite of
// Vona's, no instance (tenant) and no web server.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire, register } from 'node:module';

// The builder writes it into the code.
process.env.META_MODE = 'prod';
register('./resolve.mjs', import.meta.url);
const { bootstrap } = await import('vona');
const require = createRequire(import.meta.url);

// The order matters to the modules, which import each other. Of a-hmr, for development, others need just the code.
const names = [
  'a-bean', 'a-onion', 'a-meta', 'a-event', 'a-aspect', 'a-aspectutils', 'a-executor', 'a-cache', 'a-redis', 'a-redlock',
  'a-election', 'a-worker', 'a-queue', 'a-broadcast',
];

async function modulesMeta() {
  const modules = {};
  await import('vona-module-a-hmr');
  for (const name of names) {
    const info = { relativeName: name, onionsMeta: require(`vona-module-${name}/package.json`).vonaModule };
    modules[name] = { info, resource: await import(`vona-module-${name}`) };
  }
  modules['shop-report'] = { info: { relativeName: 'shop-report' }, resource: await import('./report.mjs') };
  return { modulesMeta: { modules, moduleNames: Object.keys(modules) } };
}

const declared = fs.readFileSync(new URL('env/.env', import.meta.url), 'utf8').matchAll(/^(\w+) *=[ \t]*(.*)$/gm);
const app = await bootstrap({
  modulesMeta,
  locales: async () => ({ localesDefault: {}, localesModules: {} }),
  config: async () => {
    const files = ['./config/config.ts', './config/config.prod.ts'];
    return { default: await Promise.all(files.map(async file => (await import(file)).default)) };
  },
  env: Object.fromEntries([...declared].map(([, name, value]) => [name, value])),
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
