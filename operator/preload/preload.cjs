// Gives an app of CabloyJS (v4) or Vona its Redis configuration at boot. The operator puts this file into the boot
// ConfigMap, and NODE_OPTIONS="--require …/preload.cjs" runs it in every Node.js process of the container. docs/preload.md
// says what it does. Dependency-free, for Node.js 12 and later; it writes no file.
'use strict';

const fs = require('fs');
const Module = require('module');
const path = require('path');
const { isMainThread } = require('worker_threads');

/** EX_CONFIG of sysexits.h: something was found in an unconfigured or misconfigured state. */
const EX_CONFIG = 78;

/** The first egg-core that reads EGG_APP_CONFIG. */
const EGG_CORE_MIN = [4, 19];

/** What any Vona can be told: the variables that its own build declares. */
const VONA_ENV = ['REDIS_DEFAULT_HOST', 'REDIS_DEFAULT_PORT', 'REDIS_DEFAULT_PASSWORD', 'REDIS_DEFAULT_DB'];

/** What a Vona can be told besides whose build declares this variable, and whose config.ts merges it. */
const VONA_CONFIG = 'CABLOY_APP_CONFIG';

/** Answered for REDIS_DEFAULT_HOST then: an app that does not merge its configuration after all finds no Redis, rather than a wrong one. */
const NOT_MERGED = 'cabloy-app-config-is-not-merged.invalid';

/** Clients of Vona whose keys have the client's name and the app's before them. */
const VONA_PREFIXED = ['default', 'cache', 'io', 'summer', 'model', 'worker'];

/** The environment as it is: `process.env` itself may be made to answer more. */
const ENV = process.env;

/**
 * The value of each key of a client that decides where it connects to and as whom, where the role's file does not have
 * it. Egg merges deeply, so what is not named here could be left over from the image: a sentinel, a TLS, a password.
 * egg-redis asserts `password !== undefined`, so null is good; ioredis takes null as absent. But `role` must not be
 * null: ioredis compares it with the role that a server behind a sentinel says it has. `family` is not here: ioredis'
 * own default is 4 and null would change it.
 */
const CLIENT = {
  host: null, port: null, path: null, username: null, password: null, db: 0, tls: null, Connector: null,
  sentinels: null, name: null, role: 'master', preferredSlaves: null, natMap: null,
  sentinelUsername: null, sentinelPassword: null, sentinelTLS: null, enableTLSForSentinelMode: false,
  cluster: false, nodes: null, redisOptions: null, readOnly: false,
};

/**
 * For each of several independent masters of the lock. CabloyJS' redlock waits for an answer or an error of every one,
 * and its clients never give up by themselves: a single dead master would hang each lock. So these give up soon.
 * weakDependent: egg-redis does not make the boot wait for it.
 */
const FAIL_FAST = {
  maxRetriesPerRequest: 0, enableOfflineQueue: false, commandTimeout: 500, connectTimeout: 500, weakDependent: true,
};

/** While this file is there, the pod is about to end. The agent makes it as soon as kubelet says so, long before SIGTERM. */
const DRAINING = path.join(ENV.CABLOY_STATE_DIR || '/etc/cabloy/state', 'draining');

/** How often processes look for it, in milliseconds. (Watches of files are scarce: a node has few for all its pods.) */
const LOOK = 250;

/** After so many milliseconds Redis answers a worker of BullMQ that asks for a job no more: it should after 5,000. */
const QUESTION = 10000;

/** How long egg gives its workers to close, in milliseconds. */
const CLOSE = 5000;

/** Why the app must not start: where it is wrong, what is wrong, and what to do. Never has a value that was read. */
class Refusal extends Error {
  constructor(where, what, remedy) {
    super(`cabloy: start refused: ${where}: ${what}; ${remedy}`);
  }
}

/** Runs `f`; ends the process where it refuses. */
function orExit(f) {
  try {
    return f();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    try {
      // process.stderr can be asynchronous (worker threads), and would be lost
      fs.writeSync(2, `${error.message}\n`);
    } catch (_) { /* nobody listens */ }
    return process.exit(EX_CONFIG);
  }
}

// ---- Reading ----

const SEE_STATUS = 'see the conditions of the CabloyCluster (kubectl describe cabloycluster)';

const isObject = value => value !== null && typeof value === 'object' && !Array.isArray(value);

function readText(file, remedy) {
  try {
    return fs.readFileSync(file, 'utf8').replace(/^\uFEFF/, '');
  } catch (error) {
    throw new Refusal(file, error.code === 'ENOENT' ? 'is missing' : `cannot be read (${error.code})`, remedy);
  }
}

/** Never passes on the parser's own message: it quotes the text, which can have passwords. */
function parseJson(text, where, remedy) {
  try {
    return JSON.parse(text);
  } catch (error) {
    const found = /position (\d+)/.exec(error.message);
    let at = '';
    if (found) {
      const before = text.slice(0, Number(found[1])).split('\n');
      at = ` (line ${before.length}, column ${before[before.length - 1].length + 1})`;
    }
    throw new Refusal(where, `is not valid JSON${at}`, remedy);
  }
}

const readJson = (file, remedy) => parseJson(readText(file, remedy), file, remedy);

function expectObject(value, where, remedy) {
  if (!isObject(value)) throw new Refusal(where, 'is not a JSON object', remedy);
  return value;
}

/** A copy of `value` where every {"$file": path} is the file's trimmed text. Adds the keys that got one to `secrets`. */
function withFiles(value, where, secrets, field = '', key = '') {
  if (Array.isArray(value)) return value.map((item, i) => withFiles(item, where, secrets, `${field}[${i}]`, key));
  if (!isObject(value)) return value;
  if ('$file' in value) {
    const file = value.$file;
    if (typeof file !== 'string' || !path.isAbsolute(file) || Object.keys(value).length !== 1) {
      throw new Refusal(where, `${field || 'the top'}: $file must be an absolute path, and alone in its object`, 'correct it');
    }
    const remedy = `create the Secret's key that ${field || 'the top'} of ${where} asks for, or name another one in the CabloyCluster`;
    const text = readText(file, remedy).trim();
    if (text === '') throw new Refusal(file, 'is empty', remedy);
    secrets.add(key);
    return text;
  }
  const copy = {};
  for (const name of Object.keys(value)) {
    if (name !== '__proto__') copy[name] = withFiles(value[name], where, secrets, field ? `${field}.${name}` : name, name);
  }
  return copy;
}

/** As egg merges configurations: objects deeply, everything else, arrays too, is replaced. */
function merge(target, source) {
  for (const key of Object.keys(source)) {
    target[key] = isObject(target[key]) && isObject(source[key]) ? merge(target[key], source[key]) : source[key];
  }
  return target;
}

function readBoot() {
  const dir = ENV.CABLOY_BOOT_DIR || __dirname;
  const file = path.join(dir, 'boot.json');
  const boot = expectObject(readJson(file, SEE_STATUS), file, SEE_STATUS);
  const strings = list => Array.isArray(list) && list.every(item => typeof item === 'string' && item !== '');
  const refuse = (field, what) => {
    throw new Refusal(file, `${field} ${what}`, SEE_STATUS);
  };
  if (!strings([boot.app])) refuse('app', 'is not a name');
  if (!['v4', 'vona', 'generic'].includes(boot.generation)) refuse('generation', 'is none of v4, vona, generic');
  if (!strings(boot.roles)) refuse('roles', 'is not a list of names');
  if (boot.configFrom !== undefined && !strings(boot.configFrom)) refuse('configFrom', 'is not a list of folders');
  for (const field of ['mergesConfig', 'guardsStartups']) {
    if (boot[field] !== undefined && typeof boot[field] !== 'boolean') refuse(field, 'is neither true nor false');
  }
  if (boot.takesOver !== undefined && !strings(boot.takesOver)) refuse('takesOver', 'is not a list of schedules');
  const { app, generation, roles, configFrom = [], mergesConfig = false, guardsStartups = false, takesOver = [] } = boot;
  return { dir, app, generation, roles, configFrom, mergesConfig, guardsStartups, takesOver };
}

/** The roles' files as they stand, less that secrets are filled in: name → {file, client}, or {file, masters} for redlock. */
function readRoles(boot, secrets) {
  const roles = new Map();
  for (const role of boot.roles) {
    const file = path.join(boot.dir, `${role}.json`);
    const value = withFiles(readJson(file, SEE_STATUS), file, secrets);
    if (role === 'redlock') {
      if (!Array.isArray(value) || value.length === 0) throw new Refusal(file, 'is not a list of masters', SEE_STATUS);
      value.forEach((master, i) => checkClient(master, file, `[${i}]`));
      roles.set(role, { file, masters: value });
    } else {
      checkClient(value, file, '');
      roles.set(role, { file, client: value });
    }
  }
  return roles;
}

function checkClient(client, file, prefix) {
  const refuse = (field, what) => {
    throw new Refusal(file, `${[prefix, field].filter(Boolean).join('.') || 'the file'} ${what}`, SEE_STATUS);
  };
  if (!isObject(client)) refuse('', 'is not a JSON object');
  const checkPlace = (place, field) => {
    if (!isObject(place) || typeof place.host !== 'string' || place.host === '') refuse(`${field}host`, 'is not a host name');
    if (!Number.isInteger(place.port) || place.port < 1 || place.port > 65535) refuse(`${field}port`, 'is not a port number');
  };
  const checkPlaces = field => {
    if (!Array.isArray(client[field]) || client[field].length === 0) refuse(field, 'is not a list of servers');
    client[field].forEach((place, i) => checkPlace(place, `${field}[${i}].`));
  };
  if (client.cluster || client.nodes) {
    checkPlaces('nodes');
  } else if (client.sentinels) {
    checkPlaces('sentinels');
    if (typeof client.name !== 'string' || client.name === '') refuse('name', "is not a master's name");
  } else {
    checkPlace(client, '');
  }
  if (client.db !== undefined && !(Number.isInteger(client.db) && client.db >= 0)) refuse('db', 'is not the number of a database');
  for (const field of ['username', 'password', 'keyPrefix', 'sentinelUsername', 'sentinelPassword']) {
    if (client[field] !== undefined && typeof client[field] !== 'string') refuse(field, 'is not a text');
  }
}

// ---- What the app is told ----

/** What the user says: the variable of the manifest, and then the files of `configFrom`. */
function userConfig(boot, variable, secrets) {
  const config = {};
  const add = (value, where, remedy) => merge(config, withFiles(expectObject(value, where, remedy), where, secrets));
  if (ENV[variable]) {
    const where = `environment variable ${variable}`;
    const remedy = 'correct it in the pod template';
    add(parseJson(ENV[variable], where, remedy), where, remedy);
  }
  for (const folder of boot.configFrom) {
    const remedy = 'create the Secret that spec.app.configFrom names, with a JSON object under each of its keys';
    for (const file of regularFiles(folder, remedy)) add(readJson(file, remedy), file, remedy);
  }
  return config;
}

/** A client as ioredis takes it, with no room for what the image says of its topology. */
function clientOf(spec, extra) {
  const client = Object.assign({}, CLIENT, extra, spec);
  if (client.cluster || client.nodes) {
    client.cluster = true;
    // ioredis takes what all nodes share from redisOptions alone, and puts what a node says above it; the asserts of
    // egg-redis 2.4 want a password and a db in each node.
    const shared = { username: client.username, password: client.password, tls: client.tls };
    client.redisOptions = Object.assign(shared, client.redisOptions);
    client.nodes = client.nodes.map(node => Object.assign({}, client.redisOptions, { db: 0 }, node));
  } else if (client.sentinels && client.tls && spec.enableTLSForSentinelMode === undefined) {
    // without it ioredis ignores `tls`, and speaks plainly to the master
    client.enableTLSForSentinelMode = true;
  }
  return client;
}

/** The files of a mounted Secret, in the order of their names. Kubelet's own entries begin with "..". */
function regularFiles(folder, remedy) {
  let names;
  try {
    names = fs.readdirSync(folder);
  } catch (error) {
    throw new Refusal(folder, error.code === 'ENOENT' ? 'is missing' : `cannot be read (${error.code})`, remedy);
  }
  const files = names.filter(name => !name.startsWith('..')).sort().map(name => path.join(folder, name))
    .filter(file => { try { return fs.statSync(file).isFile(); } catch (_) { return false; } });
  if (files.length === 0) throw new Refusal(folder, 'has no file', remedy);
  return files;
}

// ---- CabloyJS v4 ----

/** What is to be merged into the app's own configuration: {config, clients, secrets}. */
function eggConfig(boot) {
  const secrets = new Set();
  const config = userConfig(boot, 'EGG_APP_CONFIG', secrets);
  const roles = readRoles(boot, secrets);
  const clients = {};
  for (const [role, { file, client, masters }] of roles) {
    if (client) {
      clients[role] = clientOf(client);
      continue;
    }
    const names = masters.map((_, i) => (i === 0 ? 'redlock' : `redlock${i + 1}`));
    const taken = names.slice(1).find(name => roles.has(name));
    if (taken) throw new Refusal(file, `its masters need the client ${taken}, which is a role too`, 'rename that role in the CabloyCluster');
    masters.forEach((master, i) => { clients[names[i]] = clientOf(master, masters.length > 1 ? FAIL_FAST : {}); });
    merge(config, { queue: { redlock: { clients: names } } });
  }
  if (roles.size > 0) merge(config, { redis: { clients } });
  return { config, clients, secrets, takesOver: boot.takesOver };
}

/** The app's name as CabloyJS reads it. */
function checkEggName(boot) {
  const file = path.join(process.cwd(), 'package.json');
  const remedy = `start the app from the project's root, or make a CabloyCluster with the right spec.app.name`;
  const { name } = expectObject(readJson(file, remedy), file, remedy);
  if (name !== boot.app) {
    throw new Refusal(file, `name is ${JSON.stringify(name)}, but the configuration is for the app "${boot.app}"`, remedy);
  }
}

const tooOld = (where, version) => new Refusal(where, `egg-core ${version} ignores EGG_APP_CONFIG`,
  `update egg-core to ${EGG_CORE_MIN.join('.')}.0 or later (renew the lock file and rebuild the image)`);

/** Looks where the app would find egg-core. What it does not find, the hook in egg-core itself sees later. */
function checkEggCore() {
  let dir = process.cwd();
  const follow = name => {
    try {
      const file = require.resolve(`${name}/package.json`, { paths: [dir] });
      dir = path.dirname(file);
      return file;
    } catch (_) {
      return undefined;
    }
  };
  follow('egg-born-backend');
  follow('@zhennann/egg') || follow('egg');
  const file = follow('egg-core');
  if (!file) return;
  const version = String(readJson(file, 'install the app again').version);
  const [major, minor] = version.split('.').map(Number);
  if (major < EGG_CORE_MIN[0] || (major === EGG_CORE_MIN[0] && minor < EGG_CORE_MIN[1])) throw tooOld(path.dirname(file), version);
}

/**
 * Has egg-core's own loader read the configuration: wherever it is loaded, in whatever process, and never through the
 * environment, which child processes inherit and /proc shows.
 */
function hookEggCore(readBootV4, drain) {
  let hooked = false;
  const original = Module._extensions['.js'];
  Module._extensions['.js'] = function cabloyLoad(module, filename) {
    const result = original.apply(this, arguments);
    // by its place in the package, not by the package's name: package managers and forks have others
    if (/[\\/]lib[\\/]loader[\\/]mixin[\\/]config\.js$/.test(filename) && typeof module.exports.loadConfig === 'function') {
      hooked = true;
      hookLoader(module.exports, filename, readBootV4, drain);
    } else if (/[\\/]lib[\\/]module[\\/](startup|schedule)\.js$/.test(filename) && typeof module.exports === 'function') {
      const load = module.exports;
      const hook = /startup\.js$/.test(filename) ? hookStartups : leaveSchedules;
      module.exports = function cabloyLoadModule(loader) {
        load.apply(this, arguments);
        const boot = orExit(readBootV4);
        if (boot) hook(loader.app, boot);
      };
    } else if (drain && /bullmq[\\/]dist[\\/]cjs[\\/]classes[\\/]worker\.js$/.test(filename)) {
      hookQueues(module.exports.Worker, drain);
    } else if (/egg-cluster[\\/]lib[\\/]master\.js$/.test(filename)) {
      // Kubelet says when it is enough: a worker that has let go of its work closes within egg's own time.
      if (!ENV.EGG_APP_CLOSE_TIMEOUT && !ENV.EGG_MASTER_CLOSE_TIMEOUT) ENV.EGG_APP_CLOSE_TIMEOUT = String(24 * 60 * 60 * 1000);
    } else if (/egg-cluster[\\/]lib[\\/](agent|app)_worker\.js$/.test(filename) && !hooked) {
      // its code makes the app before it returns
      orExit(() => {
        if (readBootV4()) throw new Refusal(filename, 'the app was made without the known loader of egg-core', 'do not bundle egg-core');
      });
    }
    return result;
  };
}

function hookLoader(loader, filename, readBootV4, drain) {
  const { loadConfig, _loadConfigFromEnv: loadConfigFromEnv } = loader;
  const read = () => orExit(() => {
    const boot = readBootV4();
    if (!boot) return undefined;
    if (typeof loadConfigFromEnv !== 'function') {
      const root = path.resolve(path.dirname(filename), '../../..');
      throw tooOld(root, readJson(path.join(root, 'package.json'), 'install the app again').version);
    }
    checkEggName(boot);
    return eggConfig(boot);
  });

  let wanted;
  loader.loadConfig = function cabloyLoadConfig() {
    wanted = read();
    const result = loadConfig.apply(this, arguments);
    if (wanted) {
      finish(this.config, wanted);
      if (wanted.takesOver.length > 0) checkSchedules(this.app, filename);
    }
    if (wanted && drain) hookClose(this.app, drain);
    wanted = undefined;
    return result;
  };
  if (typeof loadConfigFromEnv !== 'function') return;
  loader._loadConfigFromEnv = function cabloyLoadConfigFromEnv() {
    if (!wanted) return loadConfigFromEnv.apply(this, arguments);
    // egg-core reads the variable here and nowhere else; nothing can be started in between
    const own = process.env.EGG_APP_CONFIG;
    process.env.EGG_APP_CONFIG = JSON.stringify(wanted.config);
    try {
      return loadConfigFromEnv.apply(this, arguments);
    } finally {
      if (own === undefined) delete process.env.EGG_APP_CONFIG;
      else process.env.EGG_APP_CONFIG = own;
    }
  };
}

function finish(config, { clients, secrets }) {
  // The merge was deep: inside `tls` and `redisOptions` the image's own keys could be left.
  for (const name of Object.keys(clients)) Object.assign(config.redis.clients[name], clients[name]);
  // egg writes its configuration into the folder `run`, less these
  const ignore = config.dump && config.dump.ignore;
  if (ignore instanceof Set) secrets.forEach(key => ignore.add(key));
}

/**
 * Has CabloyJS skip a startup with `debounce` only if somebody has come through it. CabloyJS sets the flag by which it is skipped before
 * the startup runs, and leaves it there if that fails or its process dies. Here who has come through writes 1 over CabloyJS' own
 * `true`, which is as good to it. All of this is under the lock that CabloyJS takes for the startup: who holds it and finds
 * `true` knows that the one before has failed or died, and removes the flag.
 */
function hookStartups(app, { guardsStartups }) {
  if (!guardsStartups) return;
  const { util } = app.meta;
  const { lock } = util;
  util.lock = function cabloyLock(options) {
    const [, kind, key] = /^(startup|instanceStartup)\.(.+)$/.exec(options.resource) || [];
    const startup = app.meta.startups[key];
    if (!startup) return lock.apply(this, arguments);
    const withFlags = use => util.executeBean({
      subdomain: options.subdomain,
      beanModule: 'a-base',
      fn: ({ ctx }) => {
        const instance = kind === 'instanceStartup' ? `:${ctx.instance.id}` : '';
        return use(ctx.cache.db.module('a-base'), `startupDebounce:${key}${instance}`);
      },
    });
    const { debounce } = startup.config;
    const forMs = typeof debounce === 'number' ? debounce : app.config.queue.startup.debounce;
    const fn = async () => {
      await withFlags(async (flags, name) => {
        if (await flags.get(name) === true) await flags.remove(name);
      });
      const begun = Date.now();
      const result = await options.fn();
      await withFlags(async (flags, name) => {
        const left = begun + forMs - Date.now();
        // One that was forced has no flag.
        if (left > 0 && await flags.get(name) === true) await flags.set(name, 1, left);
      });
      return result;
    };
    return lock.call(this, Object.assign({}, options, { fn }));
  };
}

// ---- Schedules of CabloyJS v4 that the agents run ----

/** What the job of a tick returns that is left to the agents. They know these words. */
const LEFT = 'left to the agents of cabloy-operator';

/** What the name of a worker of Vona begins with, before the schedules that its app leaves to the agents. They know these words. */
const LEAVES = 'cabloy-agent/leaves/';

/** The apps of this process whose schedules are looked after. */
const looked = new WeakSet();

/**
 * Has the app not run the schedules that the agents run in their place: it adds none of them. Nothing is said of those that it
 * does not have, for CabloyJS takes an entry of the configuration for a schedule, and does not boot with one that has no bean.
 * The app still takes ticks of them while there are pods that do, and leaves each to the agents: if it deleted the schedule at
 * its first tick, as it does with one that is disabled, nobody would know what the ticks after that would have been, and a
 * pod that still runs them would lack them.
 */
function leaveSchedules(app, { takesOver }) {
  const names = new Set(takesOver);
  const { schedules, _runSchedule: runSchedule } = app.meta;
  if (!schedules || typeof runSchedule !== 'function') return;
  for (const name of names) if (schedules[name]) schedules[name].config.disable = true;
  app.meta._runSchedule = async function cabloyRunSchedule(context) {
    const name = `${context.data.module}.${context.data.name}`;
    return names.has(name) ? leaveTick(name, context.job) : runSchedule.apply(this, arguments);
  };
  looked.add(app);
}

/**
 * Notes where the tick is, and then has its job say by what it returns that it was left. That is one step with the job's
 * end: whoever takes the job once more, for this process died, runs it or leaves it, and only the last of them counts.
 */
async function leaveTick(name, job) {
  const client = await job.queue.client;
  await client.zadd(`${job.queue.opts.prefix}:cabloy-agent:left`, job.opts.prevMillis || job.timestamp, `${name} ${job.queue.name} ${job.id}`);
  const { moveToCompleted } = job;
  job.opts.removeOnComplete = false;
  job.moveToCompleted = (_, ...rest) => moveToCompleted.call(job, LEFT, ...rest);
}

/** An app that runs what the agents run too must not start. */
function checkSchedules(app, filename) {
  if (app.type !== 'application') return;
  app.ready(() => orExit(() => {
    if (!looked.has(app)) {
      throw new Refusal(filename, 'the app was made without the known loader of schedules in egg-born-backend',
        'take takesOver out of the schedules of the CabloyCluster, and disable them in the app');
    }
  }));
}

// ---- Vona ----

/** The declared variables: name → text. */
function vonaEnv(boot) {
  const name = ENV.APP_NAME;
  if (name && name !== boot.app) {
    throw new Refusal('environment variable APP_NAME', `is "${name}", but the configuration is for the app "${boot.app}"`,
      'make a CabloyCluster with the right spec.app.name');
  }
  if (!boot.mergesConfig) return vonaDefault(boot);
  const env = { [VONA_CONFIG]: JSON.stringify(vonaConfig(boot)) };
  // without role default it is what the clients of no role use
  if (boot.roles.includes('default')) env.REDIS_DEFAULT_HOST = NOT_MERGED;
  return env;
}

const notDeclared = () => new Refusal(`environment variable ${VONA_CONFIG}`, "is not declared in the app's build",
  'declare it in env/.env and merge it in config.ts (docs/preload.md), or take spec.app.mergesConfig out of the CabloyCluster');

/** One connection for all. */
function vonaDefault(boot) {
  const remedy = 'let all roles share one connection of host, port, password and db in the CabloyCluster, for Vona can be told no more, or set spec.app.mergesConfig';
  const roles = readRoles(boot, new Set());
  let base;
  for (const role of ['default'].concat(boot.roles)) {
    if (!roles.has(role)) continue;
    const { file, client, masters } = roles.get(role);
    if (masters && masters.length > 1) throw new Refusal(file, 'has several masters', remedy);
    const spec = client || masters[0];
    const unknown = Object.keys(spec).find(key => !['host', 'port', 'password', 'db'].includes(key));
    if (unknown) throw new Refusal(file, `${unknown} cannot be said in REDIS_DEFAULT_*`, remedy);
    // the empty password overrides what was built in, and asks ioredis for no AUTH
    const env = [spec.host, spec.port, spec.password || '', spec.db || 0].map(String);
    if (!base) base = { file, env };
    const differs = env.findIndex((value, i) => value !== base.env[i]);
    if (differs >= 0) throw new Refusal(file, `${['host', 'port', 'password', 'db'][differs]} differs from that in ${base.file}`, remedy);
  }
  const result = {};
  if (base) VONA_ENV.forEach((key, i) => { result[key] = base.env[i]; });
  return result;
}

/** What config.ts is to merge into its own configuration. */
function vonaConfig(boot) {
  const config = userConfig(boot, VONA_CONFIG, new Set());
  const roles = readRoles(boot, new Set());
  const clients = {};
  for (const [name, { file, client, masters }] of roles) {
    // One master: Vona's redlock gives nothing back of a try that failed, and so with several, once one of them is dead,
    // those who want the same lock keep it from each other.
    clients[name] = clientOf(client || masters[0]);
    if (clients[name].sentinels || clients[name].nodes) {
      // for these a-redis takes nothing from `base`, and `keyPrefix: true` for the prefix "true"
      const keyPrefix = VONA_PREFIXED.includes(name) ? `${name}_${boot.app}:` : undefined;
      clients[name] = Object.assign({ maxRetriesPerRequest: null, enableReadyCheck: false, keyPrefix }, clients[name]);
    }
    if (masters) {
      const { db } = clients[name];
      if (db > 15) throw new Refusal(file, "[0].db is more than 15, and Vona's locks know no more", 'write a lower db for redis.roles.redlock in the CabloyCluster');
      // locks are in the database that is said here, whatever that of the connection is
      merge(config, { modules: { 'a-redlock': { base: { clients: [name], options: { db } } } } });
    }
  }
  if (roles.size > 0) merge(config, { redis: { clients } });
  // for clients that only the image knows
  if (clients.default) merge(config, { redis: { base: Object.assign({}, clients.default, { keyPrefix: undefined }) } });
  merge(config, { onions: leavingSchedules(boot) });
  return config;
}

/**
 * Has the app not run the schedules that the agents run in their place. Of those that it does not have nothing is read.
 * - It adds none of them: BullMQ adds nothing whose limit is none. What was there before under its name would be removed first,
 *   and that is looked for in another queue, which every app with instances has.
 * - It takes ticks of them while there are pods that do, and leaves each, for the one that was added has another time zone. If it
 *   deleted the schedule then, as it does with one that is disabled, a pod that still runs it would lack the ticks after that.
 * - The job of each tick has the name of the worker that took it last, and so says whether the tick was left. It has one also where
 *   nothing is left: that of a pod which died would stay otherwise.
 */
function leavingSchedules({ takesOver }) {
  const schedule = {};
  for (const name of takesOver) {
    schedule[name.replace('.', ':')] = { queue: 'a-orm:doubleDelete', repeat: { limit: 0, tz: LEFT } };
  }
  return { schedule, queue: { 'a-schedule:schedule': { options: { worker: { name: `${LEAVES}${takesOver.join(',')}` } } } } };
}

/**
 * Has `process.env` answer the declared variables by `read`, once asked. They cannot be enumerated, and so child
 * processes do not inherit them; each of those has a preload of its own.
 */
function hookEnv(read, checkDeclared) {
  const hidden = new Set(VONA_ENV.concat(VONA_CONFIG));
  const asked = new Set();
  let values;
  const valueOf = key => {
    if (!values) values = orExit(read) || {};
    return values[key];
  };
  const isOurs = key => hidden.has(key) && valueOf(key) !== undefined;
  const ask = key => {
    // Vona asks for all variables that its build declares at once
    if (checkDeclared && hidden.has(key) && asked.size === 0 && valueOf(VONA_CONFIG) !== undefined) {
      process.nextTick(() => orExit(() => { if (!asked.has(VONA_CONFIG)) throw notDeclared(); }));
    }
    if (hidden.has(key)) asked.add(key);
  };
  process.env = new Proxy(process.env, {
    get: (env, key) => {
      ask(key);
      return isOurs(key) ? valueOf(key) : env[key];
    },
    has: (env, key) => isOurs(key) || key in env,
    ownKeys: env => Reflect.ownKeys(env).filter(key => !hidden.has(key)),
    getOwnPropertyDescriptor: (env, key) => {
      if (isOurs(key)) return { value: valueOf(key), writable: true, enumerable: false, configurable: true };
      return Object.getOwnPropertyDescriptor(env, key);
    },
    // what the program sets itself counts from then on. (Without these two traps the real object would be asked to
    // define a property, which it refuses.)
    set: (env, key, value) => {
      hidden.delete(key);
      env[key] = value;
      return true;
    },
    deleteProperty: (env, key) => {
      hidden.delete(key);
      return delete env[key];
    },
  });
}

// ---- Worker processes ----

/**
 * What this process has begun and not ended, and whether it should begin more: not while the pod is about to end, and not
 * once the process itself is.
 */
class Drain {
  constructor() {
    this.draining = false;
    this.ending = false;
    this.responses = new Set();
    this.jobs = 0;
    this.questions = 0;
    setInterval(() => this.look(), LOOK).unref();
  }

  look() {
    const before = this.draining;
    this.draining = this.ending || fs.existsSync(DRAINING);
    if (this.draining && !before) this.responses.forEach(lastOfConnection);
  }

  /** Takes note of a request; while draining, the client is told to make its next one elsewhere. */
  request(response) {
    this.responses.add(response);
    const done = () => this.responses.delete(response);
    response.once('finish', done);
    response.once('close', done);
    if (this.draining) lastOfConnection(response);
  }

  /** Takes note of what is done for a job (`jobs`) or to get one (`questions`), until that has ended. */
  async count(what, work) {
    this[what] += 1;
    try {
      return await work();
    } finally {
      this[what] -= 1;
    }
  }

  /** Resolves once this process has nothing left to do. Kubelet sees to it that this does not take for ever. */
  async end() {
    this.ending = true;
    this.look();
    const unanswered = Date.now() + QUESTION;
    // What follows upon an end, such as a job that was just handed out, begins before the next look.
    do await new Promise(resolve => setTimeout(resolve, LOOK));
    while (this.responses.size > 0 || this.jobs > 0 || (this.questions > 0 && Date.now() < unanswered));
  }
}

/** Has a connection end with this response, if its head is still to be sent. */
function lastOfConnection(response) {
  response.shouldKeepAlive = false;
}

/**
 * Sees the requests of this process. A worker process of egg, whose name is given, says who it is where the agent of the
 * pod asks: connections go to one worker or another, and only so can the agent know that each of them has answered.
 */
function hookServers(drain, name) {
  const isAgent = ({ headers, socket }) => /^cabloy-agent\//.test(headers['user-agent']) && /^(::ffff:)?127\./.test(socket.remoteAddress);
  for (const { Server } of [require('http'), require('https')]) {
    const { emit } = Server.prototype;
    Server.prototype.emit = function cabloyEmit(event, request, response) {
      if (event === 'request') {
        if (name && isAgent(request)) response.setHeader('cabloy-worker', name);
        drain.request(response);
      }
      return emit.apply(this, arguments);
    };
  }
}

/** The id of this worker process of egg, and how many workers there are to be. */
function workerName() {
  try {
    const { workers } = JSON.parse(process.argv[2]); // as egg-cluster itself reads them
    return Number.isInteger(workers) ? `${process.pid}.${Date.now()}/${workers}` : undefined;
  } catch (_) {
    return undefined; // not started by egg's master
  }
}

/**
 * Has BullMQ's workers take no more jobs while draining. Not by their own `pause` and `close`, which hang up while Redis may
 * be handing out a job: that one would be nobody's until it counts as stalled. A question for a job that has been put is
 * answered within seconds, and what it brings is done.
 */
function hookQueues(Worker, drain) {
  const { getNextJob, processJob } = Worker.prototype;
  Worker.prototype.getNextJob = async function cabloyGetNextJob(token, options) {
    while (drain.draining && !this.closing) {
      if (options && options.block === false) return undefined;
      await new Promise(resolve => setTimeout(resolve, LOOK));
    }
    return drain.count('questions', () => getNextJob.apply(this, arguments));
  };
  Worker.prototype.processJob = function cabloyProcessJob(job, token, fetchNext = () => true) {
    // The end of a job brings the next one along.
    return drain.count('jobs', () => processJob.call(this, job, token, () => !drain.draining && fetchNext()));
  };
}

/** Has a worker process of egg end what it has begun before it closes; egg itself would cut it off. */
function hookClose(app, drain) {
  if (app.type !== 'application') return;
  const { close } = app;
  app.close = async function cabloyClose() {
    await drain.end();
    setTimeout(() => process.exit(1), CLOSE).unref();
    return close.apply(this, arguments);
  };
}

// ---- Start ----

/**
 * Whether this process is the app, or starts it. It only decides how early a mistake is told: a process that is not
 * recognised here is stopped once it reads the configuration, and people's own `node` and `npm` never.
 */
function isApp(generation) {
  if (!isMainThread || process.argv.length < 2) return false;
  let script = process.argv[1];
  try {
    script = fs.realpathSync(script); // node_modules/.bin has links
  } catch (_) { /* without its extension, or no file at all */ }
  const isEgg = /[\\/]start-cluster(\.js)?$/.test(script)
    || /egg-cluster[\\/]lib[\\/](agent|app)_worker\.js$/.test(script)
    || (/[\\/]egg-(born-)?(scripts|bin)(\.js)?$/.test(script) && /^(backend-)?(start|dev|debug)$/.test(process.argv[2]));
  const isVona = /[\\/]bootstrap\.[cm]?js$/.test(script);
  return (generation !== 'vona' && isEgg) || (generation !== 'v4' && isVona);
}

function start() {
  let boot;
  try {
    boot = readBoot();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
  }
  const generation = boot && boot.generation;
  if (generation === 'generic') return;

  // Read again where it is needed: what is wrong is told there, and no password waits in memory.
  const readFor = wanted => () => {
    const now = readBoot();
    return now.generation === wanted ? now : undefined;
  };
  const readV4 = readFor('v4');
  const readVona = readFor('vona');
  const readEnv = () => {
    const now = readVona();
    return now && vonaEnv(now);
  };

  const app = isApp(generation);
  if (app) {
    orExit(() => {
      const v4 = readV4();
      if (v4) {
        checkEggName(v4);
        checkEggCore();
        eggConfig(v4);
      } else {
        readEnv();
      }
    });
  }
  const worker = generation !== 'vona' && /egg-cluster[\\/]lib[\\/]app_worker\.js$/.test(process.argv[1]);
  const drain = worker || (app && generation === 'vona') ? new Drain() : undefined;
  if (drain) hookServers(drain, worker ? workerName() : undefined);
  if (generation !== 'vona') hookEggCore(readV4, drain);
  if (generation !== 'v4' && !(boot && boot.roles.length === 0 && !boot.mergesConfig)) hookEnv(readEnv, app);
}

start();
