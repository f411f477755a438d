// node load.js KIND EGG-CORE: loads the app's configuration by the real egg-core of that name and says what it is.
// `master` loads none; it forks `agent`, which forks `worker`, as processes of egg do.
'use strict';

const path = require('path');
const { fork } = require('child_process');

const [kind, core] = process.argv.slice(2);
const child = { master: 'agent', agent: 'worker' }[kind];

if (kind !== 'master') {
  const { EggCore, EggLoader } = require(core);
  const facts = require('./app/src/backend/facts');
  const framework = path.join(__dirname, 'app/framework');
  class Loader extends EggLoader {
    getAppname() {
      return require(path.join(process.cwd(), 'package.json')).name;
    }
  }
  class App extends EggCore {
    get [Symbol.for('egg#eggPath')]() {
      return framework;
    }
    get [Symbol.for('egg#loader')]() {
      return Loader;
    }
  }
  const baseDir = path.join(__dirname, 'app/src/backend');
  const app = new App({ baseDir, type: kind === 'agent' ? 'agent' : 'application' });
  app.loader.loadPlugin();
  app.loader.loadConfig();
  facts(kind, app.loader.config);
  app.close();
}

if (child) fork(__filename, [child, core]).on('exit', code => process.exit(code));
