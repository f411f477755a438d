// For apps that cabloy-agent calls: verifies a call, and has each run happen once. README.md says how to use it. Without
// dependencies, for Node.js 12 and later.
'use strict';

const { Accepted, Failure, answerTo, answerToError, json, kept, refusal, replayed } = require('./lib/answer');
const { checkFunction, checkNames, checkNumber, refuse } = require('./lib/check');
const { createMemoryStore } = require('./lib/memory');
const { answerToParts, inTurns, runPart } = require('./lib/parts');
const { createRedisStore } = require('./lib/redis');
const { Malformed, headerOf, parseRun } = require('./lib/run');
const { readKeys, wrongSignature } = require('./lib/signature');

const OPTIONS = ['keyFile', 'toleranceMs', 'marginMs', 'bodyLimit', 'store', 'onError'];

/** Where the operator mounts the key. */
const KEY_FILE = '/etc/cabloy/signing/key';

/** The longest time that anything is remembered, whatever a deadline says: the header is not signed. */
const KEEP_LIMIT_MS = 31 * 24 * 3600 * 1000;

class Guard {
  constructor({ keyFile, toleranceMs, marginMs, bodyLimit, store, onError }) {
    Object.assign(this, { keyFile, toleranceMs, marginMs, bodyLimit, store });
    this.report = error => {
      try {
        onError(error);
      } catch (_) { /* a call is not lost by what reports errors */ }
    };
  }

  /**
   * What to answer a request with that is not by the agent; nothing for one that is. All that a question after a 202
   * needs.
   */
  async authenticate(headers, body) {
    if (this.keyFile === false) return undefined;
    let keys;
    try {
      keys = await readKeys(this.keyFile);
    } catch (error) {
      // The app's own fault, and no reason to give up the run.
      this.report(error);
      return refusal(503, 'the app has no key to verify the call with', { 'retry-after': '5' });
    }
    const wrong = wrongSignature(headerOf(headers), body, keys, this.toleranceMs, Date.now());
    return wrong === undefined ? undefined : refusal(401, wrong);
  }

  /**
   * Either {answer}, to be given as it is, or {run, done, failed}: then the run is this caller's, who calls one of the
   * two when it is over. Never rejects.
   */
  async enter(headers, body) {
    try {
      return await this.tryEnter(headers, body);
    } catch (error) {
      if (error instanceof Malformed) return { answer: refusal(400, error.message) };
      // Whether the run is done or runs is not known: it must not begin.
      this.report(error);
      return { answer: refusal(503, 'the app cannot tell whether it has done this already', { 'retry-after': '5' }) };
    }
  }

  async tryEnter(headers, body) {
    const refused = await this.authenticate(headers, body);
    if (refused) return { answer: refused };
    const header = headerOf(headers);
    const run = parseRun(header, body);
    // The id is signed, the key is not.
    if (this.keyFile !== false && header('webhook-id') !== run.key) {
      return { answer: refusal(401, 'the signature is of another run than Idempotency-Key') };
    }
    const late = () => Date.now() >= run.deadline.getTime();
    const tooLate = refusal(504, 'the deadline of the attempt has passed');
    if (late()) return { answer: tooLate };
    const keepMs = this.keepMs(run);
    const { key, attempt, token, scope } = run;
    const call = { scope, token, key, attempt, keepMs };
    const claim = header('only-if-known') === '?1' ? await this.look(call) : await this.store.claim(call);
    switch (claim.state) {
      case 'claimed': break;
      case 'done': return { answer: replayed(claim.answer) };
      case 'unknown': return { answer: refusal(404, 'this app does not know what became of the run') };
      case 'running': return { answer: refusal(409, 'it runs already', { 'retry-after': '1' }) };
      case 'stale': return { answer: json(412, { token: claim.highest }) };
      case 'full': return { answer: refusal(503, 'too many runs at once', { 'retry-after': '5' }) };
      default: throw new Error(`the store answers with the state ${String(claim.state)}, which there is not`);
    }
    const finish = async (answer, hasFailed) => {
      try {
        await claim.finish(answer && kept(answer), keepMs, hasFailed);
      } catch (error) {
        // What happened has happened, and the agent is to know.
        this.report(error);
      }
    };
    // The store may have taken its time.
    if (late()) {
      await finish();
      return { answer: tooLate };
    }
    return { run, done: answer => finish(answer, false), failed: answer => finish(answer, true) };
  }

  /** What is known of a run that is not to begin: an agent that was started again asks what became of it. */
  async look(call) {
    // A store of the app's own need not know.
    return typeof this.store.look === 'function' ? this.store.look(call) : { state: 'unknown' };
  }

  /** For how long a run is to be remembered. */
  keepMs(run) {
    return Math.min(Math.max(run.deadline.getTime() - Date.now(), 0) + this.marginMs, KEEP_LIMIT_MS);
  }

  /**
   * Does a run that was let in part by part, and gives the answer for the whole. `fn` is called with each name whose part
   * no attempt has done yet. Never rejects once its arguments are sound.
   */
  async parts(run, names, fn, options = {}) {
    const where = 'guard.parts';
    if (!Array.isArray(names) || names.some(name => typeof name !== 'string') || new Set(names).size < names.length) {
      refuse(where, 'the list of names', names, 'a list of texts that are all different');
    }
    checkFunction(where, 'the third argument', fn, 'a function that is given a name');
    checkNames(where, options, ['concurrency']);
    const { concurrency = 1 } = options;
    checkNumber(where, 'concurrency', concurrency, 1, 'how many parts run at the same time, such as 4');
    const means = { store: this.store, report: this.report, keepMs: this.keepMs(run) };
    return answerToParts(await inTurns(names, concurrency, name => runPart(means, run, name, fn)));
  }

  /** For node:http, and for Express. */
  handler(fn) {
    checkFunction('guard.handler', 'the argument', fn, 'a function that is given the run');
    return this.serve(async (headers, body) => {
      const { answer, run, done, failed } = await this.enter(headers, body);
      if (answer) return answer;
      try {
        const given = answerTo(await fn(run));
        await done(given);
        return given;
      } catch (error) {
        this.report(error);
        const given = answerToError(error);
        await failed(given);
        return given;
      }
    });
  }

  /** For where the agent asks after an accepted run, as `handler`. */
  poll(fn) {
    checkFunction('guard.poll', 'the argument', fn, 'a function that is given the request');
    return this.serve(async (headers, body, req) => {
      const refused = await this.authenticate(headers, body);
      if (refused) return refused;
      try {
        return answerTo(await fn(req));
      } catch (error) {
        this.report(error);
        return answerToError(error);
      }
    });
  }

  serve(respond) {
    return async (req, res) => {
      let answer;
      try {
        answer = await respond(req.headers, await readBody(req, this.bodyLimit), req);
      } catch (error) {
        if (error instanceof Gone) return;
        if (!(error instanceof Failure)) this.report(error);
        answer = answerToError(error);
        // There may be a body left that nobody reads.
        answer.headers.connection = 'close';
      }
      const { status, headers, body } = answer;
      res.statusCode = status;
      for (const name of Object.keys(headers)) res.setHeader(name, headers[name]);
      res.end(body);
    };
  }

  /** For koa, egg and CabloyJS: a middleware, or around what a controller does. The run is in `ctx.state.agentRun`. */
  koa() {
    return async (ctx, next) => {
      let body;
      try {
        body = await readKoaBody(ctx, this.bodyLimit);
      } catch (error) {
        if (error instanceof Gone) return;
        if (!(error instanceof Failure)) this.report(error);
        return giveKoa(ctx, answerToError(error));
      }
      const { answer, run, done, failed } = await this.enter(ctx.req.headers, body);
      if (answer) return giveKoa(ctx, answer);
      ctx.state.agentRun = run;
      let given;
      try {
        await next();
        given = koaAnswer(ctx);
      } catch (error) {
        await failed(koaAnswerToError(error));
        throw error;
      }
      await (isDone(ctx) ? done(given) : failed(given));
    };
  }
}

/** Who asked has gone. */
class Gone extends Error {}

/** The body byte by byte, for it is signed. */
function readBody(req, limit) {
  for (const read of [req.rawBody, req.body]) {
    if (Buffer.isBuffer(read)) return read;
  }
  if (req.readableEnded) {
    throw new Error('the body has been read before the guard saw it; put the guard before what parses bodies');
  }
  return new Promise((resolve, reject) => {
    const parts = [];
    let length = 0;
    const onData = part => {
      length += part.length;
      parts.push(part);
      if (length <= limit) return;
      req.removeListener('data', onData);
      req.pause();
      reject(new Failure(413, `the body is longer than ${limit} bytes`));
    };
    req.on('data', onData);
    req.on('end', () => resolve(Buffer.concat(parts)));
    for (const event of ['aborted', 'close', 'error']) req.on(event, () => reject(new Gone(event)));
  });
}

/** koa-bodyparser, and so egg, keep the text; they leave bodies alone that they do not know. */
async function readKoaBody(ctx, limit) {
  const { rawBody } = ctx.request;
  return typeof rawBody === 'string' ? Buffer.from(rawBody) : readBody(ctx.req, limit);
}

function giveKoa(ctx, { status, headers, body }) {
  ctx.body = status === 204 ? null : body;
  // After the body, which brings a status of its own.
  ctx.status = status;
  for (const name of Object.keys(headers)) ctx.set(name, headers[name]);
}

const isJson = body => body !== null && typeof body === 'object' && !Buffer.isBuffer(body) && typeof body.pipe !== 'function';

/** Whether the agent will take what koa is about to answer for done. `ctx.fail` of CabloyJS is a 200 too. */
function isDone({ status, body }) {
  if (status < 200 || status > 299) return false;
  return !(isJson(body) && body.code !== undefined && body.code !== null && body.code !== 0);
}

/** What koa is about to answer. */
function koaAnswer(ctx) {
  const { status, body } = ctx;
  const headers = {};
  for (const name of ['content-type', 'location', 'retry-after']) {
    const value = ctx.response.get(name);
    if (value) headers[name] = value;
  }
  const text = isJson(body) ? JSON.stringify(body) : typeof body === 'string' || Buffer.isBuffer(body) ? String(body) : '';
  return { status, headers, body: text };
}

/** What koa, or what the app has put before it, will make of an error, as far as the agent looks at it. */
function koaAnswerToError(error) {
  const { status, headers } = answerToError(error);
  const own = error instanceof Error && Number.isInteger(error.status) && error.status >= 400 && error.status <= 599;
  return refusal(own ? error.status : status, error instanceof Error ? error.message : String(error), headers);
}

/** See README.md for the options. */
function createGuard(options = {}) {
  const where = 'createGuard';
  checkNames(where, options, OPTIONS);
  const {
    keyFile = KEY_FILE, toleranceMs = 5 * 60 * 1000, marginMs = 3600 * 1000, bodyLimit = 1024 * 1024,
    store = createMemoryStore(), onError = error => console.error('cabloy-agent-client:', error),
  } = options;
  if (keyFile !== false && (typeof keyFile !== 'string' || keyFile === '')) {
    refuse(where, 'keyFile', keyFile, `the path of the key file, such as "${KEY_FILE}", or false to take calls that are not signed`);
  }
  checkNumber(where, 'toleranceMs', toleranceMs, 1, 'milliseconds, such as 300000');
  checkNumber(where, 'marginMs', marginMs, 0, 'milliseconds, such as 3600000');
  checkNumber(where, 'bodyLimit', bodyLimit, 0, 'a number of bytes, such as 1048576');
  if (store === null || typeof store !== 'object' || typeof store.claim !== 'function') {
    refuse(where, 'store', store, 'what createMemoryStore() or createRedisStore({ client }) returns');
  }
  checkFunction(where, 'onError', onError, 'a function that is given an error');
  return new Guard({ keyFile, toleranceMs, marginMs, bodyLimit, store, onError });
}

const accepted = location => new Accepted(location);

module.exports = { Failure, accepted, createGuard, createMemoryStore, createRedisStore };
