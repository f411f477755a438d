// Starts an app on Vona's own core and modules. What is ours is what Vona's builder, which is not in the npm registry, makes
// of a project: the list of modules, the code of the app's own (hooks.mjs), the variables of `env/.env`, and the
// configuration's files.
import fs from 'node:fs';
import { createRequire, register } from 'node:module';

// The builder writes it into the code.
process.env.META_MODE = 'prod';
register('./hooks.mjs', import.meta.url);
const { bootstrap } = await import('vona');
const require = createRequire(import.meta.url);

/** What every app has, also one without a database. The order matters to the modules, which import each other. */
export const BASE = [
  'a-bean', 'a-onion', 'a-meta', 'a-event', 'a-aspect', 'a-aspectutils', 'a-executor', 'a-cache', 'a-redis', 'a-redlock',
];

/** With `more` of Vona's modules, modules of its `own` (by name, what gives what they export), and more configuration. */
export async function start(more, own, config = {}) {
  const modulesMeta = async () => {
    const modules = {};
    // Of a-hmr, for development, others need just the code.
    await import('vona-module-a-hmr');
    for (const name of [...BASE, ...more]) {
      const file = require(`vona-module-${name}/package.json`);
      const info = { relativeName: name, onionsMeta: file.vonaModule };
      modules[name] = { info, package: file, resource: await import(`vona-module-${name}`) };
    }
    for (const [name, load] of Object.entries(own)) {
      modules[name] = { info: { relativeName: name }, package: {}, resource: await load() };
    }
    return { modulesMeta: { modules, moduleNames: Object.keys(modules) } };
  };
  const declared = fs.readFileSync(new URL('env/.env', import.meta.url), 'utf8').matchAll(/^(\w+) *=[ \t]*(.*)$/gm);
  return await bootstrap({
    modulesMeta,
    locales: async () => ({ localesDefault: {}, localesModules: {} }),
    config: async () => {
      const files = ['./config/config.ts', './config/config.prod.ts'];
      const all = await Promise.all(files.map(async file => (await import(file)).default));
      return { default: [...all, async () => config] };
    },
    env: Object.fromEntries([...declared].map(([, name, value]) => [name, value])),
  });
}
