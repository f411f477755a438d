// A whole app: all of Vona, with a database, instances (tenants) and a web server, and what is in `src/module` as in a project.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { BASE, start } from './start.mjs';

const require = createRequire(import.meta.url);

// For development, for browsers, or of users with passwords.
const leftOut = ['a-hmr', 'a-play', 'a-auth', 'a-authsimple', 'a-captcha', 'a-captchasimple', 'a-mailconfirm'];
const ofVona = Object.keys(require('vona-module-a-vona/package.json').vonaModule.dependencies)
  .filter(name => ![...BASE, ...leftOut, 'a-index'].includes(name));
const root = new URL('src/module/', import.meta.url);
const own = fs.readdirSync(root).map(name => [name, () => import(new URL(`${name}/src/index.ts`, root))]);

// a-index is about the tables of all others.
await start([...ofVona, 'a-index'], Object.fromEntries(own));
