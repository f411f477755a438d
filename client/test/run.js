// node test/run.js [REDIS_PORT MODULES…]: with a Redis server that may be filled, and folders with ioredis or koa in them.
'use strict';

const assert = require('assert');
const childProcess = require('child_process');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');

const { Failure, accepted, createGuard, createMemoryStore, createRedisStore } = require('..');
const { KEY, OTHER_KEY, headers, listen, send } = require('./call');

const [redisPort, ...modules] = process.argv.slice(2);
const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cabloy-client-'));
const keyFile = path.join(dir, 'key');
const tests = [];
const test = (name, run) => tests.push({ name, run });
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));
const silent = () => undefined;
const BODY = '{"word":"Übermut"}';

/** In one go, as kubelet does. */
function writeKeys(text) {
  fs.writeFileSync(`${keyFile}.new`, text);
  fs.renameSync(`${keyFile}.new`, keyFile);
}

function guardWith(options) {
  return createGuard(Object.assign({ keyFile, onError: error => { throw error; } }, options));
}

/** Enters, and tells the status of a refusal with what it says, or 'run'. */
async function entered(guard, callHeaders, body = '') {
  const entry = await guard.enter(callHeaders, Buffer.from(body));
  if (!entry.answer) return 'run';
  const { message, token } = JSON.parse(entry.answer.body || '{}');
  return message === undefined ? [entry.answer.status, token] : [entry.answer.status, message];
}

const errors = [];
const noting = { onError: error => errors.push(error.message) };

// ---- Signatures ----

test('a signed call is let in, and told as a run', async () => {
  const guard = guardWith({});
  const call = headers({ body: BODY, attempt: 2 });
  const { run } = await guard.enter(call, Buffer.from(BODY));
  assert.deepStrictEqual(run, {
    key: 'prod/shop/nightly@2026-11-23T03:00:00Z', kind: 'schedule', name: 'nightly', cluster: 'prod/shop',
    tick: new Date('2026-11-23T03:00:00.123Z'), attempt: 2, deadline: new Date(call.deadline), token: 7,
    scope: 'prod/shop/nightly@2026-11-23T03:00:00Z', traceparent: call.traceparent, body: Buffer.from(BODY),
    data: { word: 'Übermut' },
  });
  const startup = { 'ce-type': 'io.cabloy.startup', 'fencing-token': undefined, traceparent: 'x' };
  const { run: task } = await guard.enter(headers({ id: 'prod/shop/migrate@5' }, startup), Buffer.alloc(0));
  assert.deepStrictEqual([task.kind, task.tick, task.token, task.traceparent, task.data], ['startup', undefined, undefined, undefined, undefined]);
});

test('the example of Standard Webhooks is verified', async () => {
  const body = Buffer.from('{"email":"test@example.com","username":"test_user"}');
  const example = {
    'webhook-id': 'msg_27UH4WbU6Z5A5EzD8u03UvzRbpk', 'webhook-timestamp': '1649367553',
    'webhook-signature': 'v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=',
  };
  const patient = guardWith({ toleranceMs: 100 * 365 * 24 * 3600 * 1000 });
  assert.strictEqual(await patient.authenticate(example, body), undefined);
  assert.strictEqual(await patient.authenticate(new Map(Object.entries(example)), body), undefined, 'as fetch has headers');
  assert.strictEqual((await patient.authenticate(example, Buffer.concat([body, Buffer.from(' ')]))).status, 401);
  assert.strictEqual((await guardWith({}).authenticate(example, body)).status, 401, 'of 2022');
  // The bytes of a header, as Node.js has them.
  const id = 'prod/shop/übermut@1';
  const bytes = headers({ id }, { 'webhook-id': Buffer.from(id).toString('latin1') });
  assert.strictEqual(await patient.authenticate(bytes, Buffer.alloc(0)), undefined);
});

test('what is not signed as it must be is refused', async () => {
  const guard = guardWith({});
  const minutes = 60 * 1000;
  for (const [call, body, message] of [
    [headers({}, { 'webhook-id': undefined }), '', 'the call is not signed'],
    [headers({}, { 'webhook-timestamp': undefined }), '', 'the call is not signed'],
    [headers({}, { 'webhook-signature': undefined }), '', 'the call is not signed'],
    [headers({}, { 'webhook-signature': '' }), '', 'the call is not signed'],
    [headers({}, { 'webhook-signature': ['v1,x'] }), '', 'the call is not signed'],
    [{}, '', 'the call is not signed'],
    [headers({}, { 'webhook-timestamp': '17e8' }), '', 'webhook-timestamp is no number of seconds'],
    [headers({}, { 'webhook-timestamp': '-1' }), '', 'webhook-timestamp is no number of seconds'],
    [headers({ at: Date.now() - 6 * minutes }), '', 'webhook-timestamp is too far from the time of now'],
    [headers({ at: Date.now() + 6 * minutes }), '', 'webhook-timestamp is too far from the time of now'],
    [headers({ keys: [OTHER_KEY] }), '', 'no signature is by a key of this app'],
    [headers({ body: BODY }), BODY.replace('b', 'c'), 'no signature is by a key of this app'],
    [headers({}, { 'webhook-id': 'another' }), '', 'no signature is by a key of this app'],
    [headers({}, { 'webhook-signature': 'v1,' }), '', 'no signature is by a key of this app'],
    [headers({}, { 'webhook-signature': 'v1,AAAA v2 \u00ff\u00ff' }), '', 'no signature is by a key of this app'],
    [headers({}, { 'webhook-signature': headers()['webhook-signature'].replace('v1,', 'v1a,') }), '', 'no signature is by a key of this app'],
    [headers({}, { 'idempotency-key': '"another"' }), '', 'the signature is of another run than Idempotency-Key'],
  ]) {
    assert.deepStrictEqual(await entered(guard, call, body), [401, message]);
  }
  for (const at of [Date.now() - 4 * minutes, Date.now() + 4 * minutes]) {
    assert.strictEqual(await entered(guard, headers({ id: `a@${at}`, at })), 'run');
  }
});

test('keys are replaced while the app runs', async () => {
  const guard = guardWith(noting);
  let count = 0;
  const by = async (...keys) => {
    count += 1;
    const seen = await entered(guard, headers({ id: `rotated@${count}`, keys }));
    return seen === 'run' ? seen : seen[0];
  };
  assert.deepStrictEqual([await by(KEY), await by(OTHER_KEY), await by(OTHER_KEY, KEY)], ['run', 401, 'run']);
  writeKeys(`${OTHER_KEY}\n ${KEY}\n`);
  assert.deepStrictEqual([await by(KEY), await by(OTHER_KEY)], ['run', 'run']);
  // A bad key keeps no other from its work.
  writeKeys(`plain whsec_%%% ${KEY}! whsec_c2hvcnQ= ${OTHER_KEY}`);
  assert.deepStrictEqual([await by(KEY), await by(OTHER_KEY)], [401, 'run']);
  errors.length = 0;
  writeKeys('whsec_c2hvcnQ= secret-word\n');
  assert.strictEqual(await by(KEY), 503, 'so that it is tried again');
  fs.unlinkSync(keyFile);
  assert.strictEqual(await by(KEY), 503);
  assert.deepStrictEqual(errors, [
    `keyFile ${keyFile} has no key: whsec_ and the base64 of 24 to 64 bytes`, `keyFile ${keyFile} cannot be read (ENOENT)`,
  ]);
  writeKeys(KEY);
  assert.strictEqual(await by(KEY), 'run');
});

test('an app may take calls that are not signed', async () => {
  const unsigned = { 'webhook-id': undefined, 'webhook-timestamp': undefined, 'webhook-signature': undefined };
  const guard = guardWith({ keyFile: false });
  assert.strictEqual(await entered(guard, headers({}, unsigned)), 'run');
  assert.strictEqual((await entered(guard, headers({}, unsigned)))[0], 409);
});

// ---- Headers ----

test('headers that cannot be read are refused by name', async () => {
  const guard = guardWith({ keyFile: false });
  for (const [name, text, what] of [
    ['idempotency-key', undefined, 'is missing'],
    ['idempotency-key', 'bare', 'is not a text in quotes'],
    ['idempotency-key', '"a"b"', 'is not a text in quotes'],
    ['idempotency-key', '""', 'is not a text in quotes'],
    ['idempotency-key', `"${'a'.repeat(2000)}"`, 'is not a text in quotes'],
    ['attempt', undefined, 'is missing'],
    ['attempt', '0', 'is not a number from 1'],
    ['attempt', '1.5', 'is not a number from 1'],
    ['deadline', undefined, 'is missing'],
    ['deadline', 'tomorrow', 'is not a time as RFC 3339 has it'],
    ['deadline', '2026-13-45T00:00:00Z', 'is not a time as RFC 3339 has it'],
    ['fencing-scope', undefined, 'is missing'],
    ['fencing-token', '-1', 'is not a number below 2^53'],
    ['fencing-token', '07', 'is not a number below 2^53'],
    ['fencing-token', '1e3', 'is not a number below 2^53'],
    ['fencing-token', ' 7', 'is not a number below 2^53'],
    ['fencing-token', '7, 8', 'is not a number below 2^53'],
    ['fencing-token', '9007199254740992', 'is not a number below 2^53'],
    ['ce-type', 'com.example', 'is not io.cabloy.schedule or io.cabloy.startup'],
    ['ce-subject', undefined, 'is missing'],
    ['ce-source', '/elsewhere', 'is not /cabloy/<namespace>/<cluster>'],
    ['ce-time', 'noon', 'is not a time as RFC 3339 has it'],
  ]) {
    assert.deepStrictEqual(await entered(guard, headers({}, { [name]: text })), [400, `the header ${name} ${what}`]);
  }
  assert.deepStrictEqual(await entered(guard, headers({ body: '{' }), '{'), [400, 'the body is not JSON']);
  const largest = await guard.enter(headers({}, { 'fencing-token': '9007199254740991' }), Buffer.alloc(0));
  assert.strictEqual(largest.run.token, Number.MAX_SAFE_INTEGER);
  const escaped = await guard.enter(headers({}, { 'idempotency-key': '"a\\"b\\\\c"', 'fencing-scope': 'x' }), Buffer.alloc(0));
  assert.strictEqual(escaped.run.key, 'a"b\\c');
});

test('a call past its deadline does not begin', async () => {
  const guard = guardWith({});
  assert.deepStrictEqual(await entered(guard, headers({ inMs: -1 })), [504, 'the deadline of the attempt has passed']);
  const untouched = guardWith({ store: { claim: () => assert.fail('the store was asked') } });
  assert.strictEqual((await entered(untouched, headers({ inMs: -1 })))[0], 504);
  const inner = createMemoryStore();
  const slow = guardWith({ store: { claim: async call => { await pause(60); return inner.claim(call); } } });
  assert.strictEqual((await entered(slow, headers({ inMs: 50 })))[0], 504, 'the store took too long');
  assert.strictEqual(await entered(slow, headers()), 'run', 'and what it claimed was let go');
});

// ---- What stores must do, each of them ----

const stores = [{ name: 'in memory', create: () => createMemoryStore() }];

function testStore(name, run) {
  test(name, async () => {
    for (const { name: store, create } of stores) {
      try {
        await run(guardWith({ store: create() }), create);
      } catch (error) {
        error.message = `${store}: ${error.message}`;
        throw error;
      }
    }
  });
}

const none = Buffer.alloc(0);
let ids = 0;
const fresh = () => `prod/shop/nightly@${process.pid}-${(ids += 1)}`;
const given = { status: 200, headers: { 'content-type': 'x/y' }, body: 'kept' };

testStore('a lower token is refused with the highest, in its scope', async guard => {
  const [id, other] = [fresh(), fresh()];
  const first = await guard.enter(headers({ id, token: 10 }), none);
  await first.failed();
  assert.deepStrictEqual(await entered(guard, headers({ id, token: 9 })), [412, 10]);
  assert.deepStrictEqual(await entered(guard, headers({ id }, { 'fencing-token': undefined })), [412, 10]);
  assert.strictEqual(await entered(guard, headers({ id: other, token: 8 })), 'run');
  const big = 9007199254740990;
  assert.strictEqual(await entered(guard, headers({ id, token: big })), 'run', 'while it was let go');
  assert.strictEqual((await entered(guard, headers({ id, token: big })))[0], 409);
  assert.strictEqual((await entered(guard, headers({ id, token: big + 1 })))[0], 409, 'it runs, and still counts');
  assert.deepStrictEqual(await entered(guard, headers({ id, token: big })), [412, big + 1], 'to the last digit');
});

/** As it is given to whoever comes later. */
const replayed = answer => Object.assign({}, answer, { headers: Object.assign({}, answer.headers, { 'idempotent-replayed': 'true' }) });

testStore('two calls at once with one key run once', async guard => {
  const id = fresh();
  const entries = await Promise.all(Array.from({ length: 20 }, () => guard.enter(headers({ id }), none)));
  const running = entries.filter(entry => entry.run);
  assert.strictEqual(running.length, 1);
  for (const { answer } of entries.filter(entry => entry.answer)) {
    assert.deepStrictEqual([answer.status, answer.headers['retry-after']], [409, '1']);
  }
  await running[0].done(given);
  for (const attempt of [1, 2]) {
    assert.deepStrictEqual((await guard.enter(headers({ id, attempt, token: 8 }), none)).answer, replayed(given));
  }
});

testStore('what failed may be tried again', async guard => {
  const id = fresh();
  await (await guard.enter(headers({ id }), none)).failed();
  const again = await guard.enter(headers({ id, attempt: 2 }), none);
  assert.strictEqual(again.run.attempt, 2);
});

testStore('a question tells what became of a run, and begins nothing', async guard => {
  const ask = async (id, call = {}) => {
    const { answer, run } = await guard.enter(headers(Object.assign({ id }, call), { 'only-if-known': '?1' }), none);
    assert.strictEqual(run, undefined);
    const { status, body, headers: { 'idempotent-replayed': again, 'retry-after': after } } = answer;
    return [status, again === undefined ? after : again, body];
  };
  const nothing = [404, undefined, '{"message":"this app does not know what became of the run"}'];
  const [ended, failed, unsaid] = [fresh(), fresh(), fresh()];
  assert.deepStrictEqual(await ask(ended), nothing);
  const first = await guard.enter(headers({ id: ended }), none);
  assert.ok(first.run, 'the question has not taken the run');
  assert.deepStrictEqual((await ask(ended)).slice(0, 2), [409, '1']);
  await first.done(given);
  assert.deepStrictEqual(await ask(ended), [200, 'true', 'kept']);
  assert.deepStrictEqual(await ask(ended, { token: 6 }), [412, undefined, '{"token":7}']);

  const answer = { status: 503, headers: {}, body: 'no' };
  await (await guard.enter(headers({ id: failed, attempt: 2 }), none)).failed(answer);
  assert.deepStrictEqual(await ask(failed, { attempt: 2 }), [503, 'true', 'no']);
  assert.deepStrictEqual(await ask(failed, { attempt: 1 }), nothing, 'of that attempt nothing is known');
  const again = await guard.enter(headers({ id: failed, attempt: 2 }), none);
  assert.ok(again.run, 'what failed may be tried again by whoever does not only ask');
  assert.strictEqual((await ask(failed, { attempt: 2 }))[0], 409);
  await again.failed();
  await (await guard.enter(headers({ id: unsaid }), none)).failed();
  assert.deepStrictEqual(await ask(unsaid), nothing);
});

testStore('an accepted run is told of again, and begun anew by the next attempt', async guard => {
  const id = fresh();
  const answer = { status: 202, headers: { location: '/jobs/1' }, body: '' };
  await (await guard.enter(headers({ id }), none)).done(answer);
  assert.deepStrictEqual((await guard.enter(headers({ id }), none)).answer, replayed(answer));
  const again = await guard.enter(headers({ id, attempt: 2 }), none);
  assert.strictEqual(again.run.attempt, 2);
  assert.strictEqual((await entered(guard, headers({ id, attempt: 2 })))[0], 409);
  await again.done(answer);
  assert.deepStrictEqual((await guard.enter(headers({ id, attempt: 2 }), none)).answer, replayed(answer));
});

testStore('what is over is forgotten after the deadline and the margin', async (_, create) => {
  const guard = guardWith({ store: create(), marginMs: 1000 });
  const id = fresh();
  await (await guard.enter(headers({ id, token: 9, inMs: 1000 }), none)).done(given);
  await pause(1100);
  assert.strictEqual((await entered(guard, headers({ id, token: 8 })))[0], 412, 'within the margin');
  await pause(1100);
  assert.strictEqual(await entered(guard, headers({ id, token: 8 })), 'run', 'after');
});

testStore('a long body is not kept', async guard => {
  const id = fresh();
  await (await guard.enter(headers({ id }), none)).done({ status: 200, headers: {}, body: 'x'.repeat(5000) });
  assert.deepStrictEqual((await guard.enter(headers({ id }), none)).answer, replayed({ status: 200, headers: {}, body: '' }));
});

test('the store in memory is bounded', async () => {
  const guard = guardWith({ store: createMemoryStore({ maxEntries: 2 }) });
  const call = id => headers({ id });
  for (const id of ['a', 'b', 'c']) await (await guard.enter(call(id), none)).done(given);
  assert.strictEqual((await guard.enter(call('c'), none)).answer.status, 200);
  const a = await guard.enter(call('a'), none);
  assert.ok(a.run, 'the first that ended has been forgotten');
  const d = await guard.enter(call('d'), none);
  assert.deepStrictEqual(await entered(guard, call('e')), [503, 'too many runs at once'], 'what runs is not forgotten');
  await a.done(given);
  await d.failed();
  assert.strictEqual(await entered(guard, call('e')), 'run');
});

test('without a store that answers nothing runs', async () => {
  errors.length = 0;
  const broken = guardWith(Object.assign({ store: { claim: async () => { throw new Error('down'); } } }, noting));
  assert.strictEqual((await entered(broken, headers()))[0], 503);
  const forgetful = { claim: async () => ({ state: 'claimed', finish: async () => { throw new Error('gone'); } }) };
  const entry = await guardWith(Object.assign({ store: forgetful }, noting)).enter(headers(), none);
  await entry.done(given);
  assert.deepStrictEqual(errors, ['down', 'gone']);
});

// ---- Runs in parts ----

/** Makes an attempt at a run of these parts: the status, what its answer says, and the parts that `work` was called for. */
async function attemptAt(guard, call, names, work = () => undefined, options = undefined) {
  const begun = [];
  const entry = await guard.enter(call, none);
  if (entry.answer) return [entry.answer.status, JSON.parse(entry.answer.body || '{}'), begun];
  const answer = await guard.parts(entry.run, names, name => { begun.push(name); return work(name); }, options);
  await (answer.status < 300 ? entry.done(answer) : entry.failed());
  return [answer.status, JSON.parse(answer.body), begun];
}

testStore('of a run in parts only what failed is begun again', async (_, create) => {
  errors.length = 0;
  const guard = guardWith(Object.assign({ store: create() }, noting));
  const id = fresh();
  const names = ['', 'north', 'south'];
  const broken = name => { if (name === 'north') throw new Error('no database'); };
  const first = await attemptAt(guard, headers({ id }), names, broken);
  assert.deepStrictEqual(first, [500, {
    message: 'north: no database', failed: [{ name: 'north', message: 'no database' }], done: ['', 'south'],
  }, names]);
  assert.deepStrictEqual(errors, ['no database']);
  assert.deepStrictEqual(await attemptAt(guard, headers({ id, attempt: 2 }), names), [200, { data: { done: names } }, ['north']]);
  assert.deepStrictEqual(await attemptAt(guard, headers({ id, attempt: 3 }), names), [200, { data: { done: names } }, []]);
  assert.deepStrictEqual((await attemptAt(guard, headers({ id: fresh() }), names))[2], names, 'another run begins anew');
});

testStore('the status of a run in parts is that of its failures, and one that may be mended has it tried again', async (_, create) => {
  const guard = guardWith(Object.assign({ store: create() }, noting));
  const gone = () => { throw new Failure(423, 'locked'); };
  const mixed = name => { if (name === 'a') gone(); throw new Error('no database'); };
  const [locked, said] = await attemptAt(guard, headers({ id: fresh() }), ['a', 'b'], gone);
  assert.deepStrictEqual([locked, said.message], [423, 'a: locked; b: locked']);
  const [status, both] = await attemptAt(guard, headers({ id: fresh() }), ['a', 'b'], mixed);
  assert.deepStrictEqual([status, both.message], [500, 'a: locked; b: no database']);
});

testStore('parts wait for their turn, and none begins after the deadline or below a newer token', async guard => {
  const waiting = [];
  let most = 0;
  // Each waits for another one that runs beside it.
  const work = () => new Promise(resolve => {
    waiting.push(resolve);
    most = Math.max(most, waiting.length);
    if (waiting.length === 2) setImmediate(() => waiting.splice(0).forEach(go => go()));
  });
  const names = ['a', 'b', 'c', 'd'];
  assert.strictEqual((await attemptAt(guard, headers({ id: fresh() }), names, work, { concurrency: 2 }))[0], 200);
  assert.strictEqual(most, 2);

  const { run } = await guard.enter(headers({ id: fresh() }), none);
  const begun = [];
  const late = await guard.parts(run, ['a', 'b'], name => { begun.push(name); run.deadline = new Date(); });
  const { message, done } = JSON.parse(late.body);
  assert.deepStrictEqual([late.status, begun, done], [504, ['a'], ['a']]);
  assert.strictEqual(message, 'b: not begun: the deadline came first');

  const id = fresh();
  const newer = async () => { assert.strictEqual((await entered(guard, headers({ id, token: 9 })))[0], 409); };
  const stale = await attemptAt(guard, headers({ id, token: 8 }), ['a', 'b'], newer);
  assert.deepStrictEqual(stale, [412, { token: 9 }, ['a']]);
});

testStore('a part that still runs elsewhere is waited for', async (_, create) => {
  const [guard, other] = [create(), create()].map(store => guardWith({ store }));
  // What is in memory is of one store.
  const shared = guard.store.client ? other : guard;
  const { run } = await guard.enter(headers({ id: fresh() }), none);
  let end;
  const first = guard.parts(run, ['a'], () => new Promise(resolve => { end = resolve; }));
  while (!end) await new Promise(setImmediate);
  const second = await shared.parts(run, ['a', 'b'], () => undefined);
  assert.deepStrictEqual([second.status, second.headers['retry-after']], [409, '1']);
  end();
  assert.strictEqual((await first).status, 200);
  assert.deepStrictEqual(JSON.parse((await shared.parts(run, ['a', 'b'], assert.fail)).body), { data: { done: ['a', 'b'] } });
});

test('without a store that answers no part begins', async () => {
  errors.length = 0;
  const broken = guardWith(Object.assign({ store: { claim: async () => { throw new Error('down'); } } }, noting));
  const run = { key: 'k', scope: 'k', token: 1, attempt: 1, deadline: new Date(Date.now() + 60000) };
  const answer = await broken.parts(run, ['a'], assert.fail);
  assert.deepStrictEqual([answer.status, errors], [503, ['down']]);
  for (const [names, fn, options] of [['a', silent], [['a', 'a'], silent], [[1], silent], [['a']], [['a'], silent, { concurrency: 0 }], [['a'], silent, { at: 1 }]]) {
    await assert.rejects(() => broken.parts(run, names, fn, options), TypeError);
  }
});

// ---- Adapters ----

async function serving(listener, use) {
  const server = await listen(listener);
  try {
    return await use(server.address().port);
  } finally {
    server.close();
  }
}

test('a handler answers what its function comes to, once', async () => {
  let count = 0;
  const guard = guardWith({ onError: silent, bodyLimit: 100 });
  const behaviours = {
    nothing: () => undefined,
    value: run => ({ count, sent: run.data }),
    code: () => ({ code: 5 }),
    job: () => accepted('/jobs/1'),
    throws: () => { throw new Error('no'); },
    fails: () => { throw new Failure(429, 'later', 30); },
    axios: () => { throw Object.assign(new Error('upstream'), { status: 404 }); },
    elsewhere: () => accepted('http://example.com/'),
    circular: () => { const value = {}; value.value = value; return value; },
  };
  let behaviour;
  const handler = guard.handler(async run => { count += 1; return behaviours[behaviour](run); });
  await serving(handler, async port => {
    const twice = async name => {
      behaviour = name;
      count = 0;
      const call = headers({ id: fresh(), body: BODY });
      const [one, two] = [await send(port, '/', call, BODY), await send(port, '/', call, BODY)];
      assert.deepStrictEqual([two.status, two.body], [one.status, one.body]);
      return [one.status, one.body, count, one.headers.location || one.headers['retry-after']];
    };
    assert.deepStrictEqual(await twice('nothing'), [204, '', 1, undefined]);
    assert.deepStrictEqual(await twice('value'), [200, '{"data":{"count":1,"sent":{"word":"Übermut"}}}', 1, undefined]);
    assert.deepStrictEqual(await twice('code'), [200, '{"data":{"code":5}}', 1, undefined], 'no failure to the agent');
    assert.deepStrictEqual(await twice('job'), [202, '', 1, '/jobs/1']);
    assert.deepStrictEqual(await twice('throws'), [500, '{"message":"no"}', 2, undefined]);
    assert.deepStrictEqual(await twice('fails'), [429, '{"message":"later"}', 2, '30']);
    assert.deepStrictEqual((await twice('axios')).slice(0, 3), [500, '{"message":"upstream"}', 2], 'another server said that');
    assert.strictEqual((await twice('elsewhere'))[0], 500);
    assert.strictEqual((await twice('circular'))[0], 500);
    assert.strictEqual((await send(port, '/', headers(), BODY)).status, 401);
    const long = 'x'.repeat(101);
    const { status, body } = await send(port, '/', headers({ body: long }), long);
    assert.deepStrictEqual([status, body], [413, '{"message":"the body is longer than 100 bytes"}']);
  });
});

test('a caller that goes away before its body is there leaves nothing behind', async () => {
  const guard = guardWith({});
  let over;
  const served = new Promise(resolve => { over = resolve; });
  const handler = guard.handler(() => assert.fail('it ran'));
  await serving((req, res) => handler(req, res).then(over), async port => {
    const req = http.request({ port, host: '127.0.0.1', method: 'POST', headers: { 'content-length': 10 } });
    req.on('error', silent);
    req.write('x');
    await pause(50);
    req.destroy();
    await served;
  });
});

test('a body that was read before is found, or the mistake is named', async () => {
  const seen = [];
  const guard = guardWith({ onError: error => seen.push(error.message) });
  const handler = guard.handler(run => run.data);
  for (const [keep, status] of [['body', 200], ['rawBody', 200], ['parsed', 500]]) {
    await serving((req, res) => {
      const parts = [];
      req.on('data', part => parts.push(part)).on('end', () => setImmediate(() => {
        req[keep] = Buffer.concat(parts);
        handler(req, res);
      }));
    }, async port => {
      assert.strictEqual((await send(port, '/', headers({ id: fresh(), body: BODY }), BODY)).status, status);
    });
  }
  assert.deepStrictEqual(seen, ['the body has been read before the guard saw it; put the guard before what parses bodies']);
});

test('a question after a 202 is verified too', async () => {
  const guard = guardWith({ onError: silent });
  const poll = guard.poll(req => {
    if (req.url === '/jobs/lost') throw new Failure(404, 'no such job');
    return req.url === '/jobs/1' ? accepted(req.url) : undefined;
  });
  await serving(poll, async port => {
    const signed = headers();
    const ask = { 'webhook-id': signed['webhook-id'], 'webhook-timestamp': signed['webhook-timestamp'], 'webhook-signature': signed['webhook-signature'] };
    const status = async (url, its) => (await send(port, url, its, '', 'GET')).status;
    assert.deepStrictEqual([await status('/jobs/1', ask), await status('/jobs/2', ask), await status('/jobs/lost', ask)], [202, 204, 404]);
    assert.strictEqual(await status('/jobs/1', {}), 401);
  });
});

function testKoa(folder) {
  test(`koa with koa-bodyparser of ${path.basename(path.dirname(folder))}`, async () => {
    const Koa = require(`${folder}/koa`);
    const bodyParser = require(`${folder}/koa-bodyparser`);
    for (const parses of [true, false]) {
      const app = new Koa();
      app.silent = true;
      const guarded = guardWith({}).koa();
      let count = 0;
      if (parses) app.use(bodyParser());
      app.use(ctx => guarded(ctx, async () => {
        count += 1;
        const { name, data } = ctx.state.agentRun;
        if (ctx.path === '/success') ctx.body = { code: 0, message: 'Success', data: [name, data] };
        if (ctx.path === '/fail') ctx.body = { code: 1001, message: 'no' };
        if (ctx.path === '/throw') throw new Error('no');
        if (ctx.path === '/later') throw new Failure(503, 'later', 30);
        if (ctx.path === '/job') Object.assign(ctx, { status: 202, body: '' }).set('location', '/jobs/1');
        if (ctx.path === '/nothing') ctx.status = 204;
      }));
      await serving(app.callback(), async port => {
        const twice = async (url, body = BODY) => {
          count = 0;
          const call = headers({ id: fresh(), body });
          const [one, two] = [await send(port, url, call, body), await send(port, url, call, body)];
          assert.deepStrictEqual([two.status, two.body, two.headers.location], [one.status, one.body, one.headers.location]);
          assert.strictEqual(two.headers['content-type'], one.headers['content-type']);
          // Who asks hears the same once more, though it has failed.
          const asked = await send(port, url, Object.assign({ 'only-if-known': '?1' }, call), body);
          const seen = ({ status, headers: { location, 'retry-after': after } }) => [status, location, after];
          assert.deepStrictEqual([...seen(asked), asked.headers['idempotent-replayed']], [...seen(one), 'true']);
          return [one.status, one.body, count].concat(one.headers['retry-after'] || []);
        };
        assert.deepStrictEqual(await twice('/success'), [200, '{"code":0,"message":"Success","data":["nightly",{"word":"Übermut"}]}', 1]);
        assert.deepStrictEqual(await twice('/fail'), [200, '{"code":1001,"message":"no"}', 2]);
        assert.deepStrictEqual(await twice('/throw'), [500, 'Internal Server Error', 2]);
        assert.deepStrictEqual(await twice('/later'), [503, 'later', 2, '30']);
        assert.deepStrictEqual(await twice('/job'), [202, '', 1]);
        assert.deepStrictEqual(await twice('/nothing', ''), [204, '', 1]);
        assert.deepStrictEqual(await twice('/none'), [404, 'Not Found', 2]);
        count = 0;
        assert.strictEqual((await send(port, '/success', headers({ body: BODY }), '{}')).status, 401);
        const stale = headers({ id: fresh(), token: 9, body: BODY });
        await send(port, '/success', stale, BODY);
        const { status, body } = await send(port, '/success', Object.assign(stale, { 'fencing-token': '8' }), BODY);
        assert.deepStrictEqual([status, body, count], [412, '{"token":9}', 1]);
      });
    }
  });
}

function testEgg(folder) {
  test('egg of CabloyJS 4', async () => {
    const baseDir = path.join(dir, 'app');
    for (const [file, text] of Object.entries({
      'package.json': '{"name": "guarded"}',
      'config/config.default.js': `module.exports = {
        keys: 'x', security: { csrf: { ignore: '/nightly' } },
        logger: { dir: ${JSON.stringify(path.join(baseDir, 'logs'))}, level: 'NONE', consoleLevel: 'NONE' },
      };`,
      'app/router.js': `
        const { createGuard } = require(${JSON.stringify(path.join(__dirname, '..'))});
        const guard = createGuard({ keyFile: ${JSON.stringify(keyFile)} });
        module.exports = app => app.router.post('/nightly', guard.koa(), async ctx => {
          ctx.body = [ctx.state.agentRun.name, ctx.request.body, Math.random()];
        });`,
    })) {
      fs.mkdirSync(path.dirname(path.join(baseDir, file)), { recursive: true });
      fs.writeFileSync(path.join(baseDir, file), text);
    }
    const app = await require(`${folder}/@zhennann/egg`).start({ baseDir, mode: 'single', env: 'prod' });
    await serving(app.callback(), async port => {
      const call = headers({ id: fresh(), body: BODY });
      const [one, two] = [await send(port, '/nightly', call, BODY), await send(port, '/nightly', call, BODY)];
      assert.deepStrictEqual([one.status, two.status, two.body], [200, 200, one.body]);
      assert.deepStrictEqual(JSON.parse(one.body).slice(0, 2), ['nightly', { word: 'Übermut' }]);
      assert.strictEqual((await send(port, '/nightly', call, '{}')).status, 401);
    });
    await app.close();
  });
}

// ---- Redis ----

function testRedis(folder) {
  const Redis = require(`${folder}/ioredis`);
  const { version } = require(`${folder}/ioredis/package.json`);
  const client = new Redis({ host: '127.0.0.1', port: Number(redisPort), lazyConnect: true, keyPrefix: `v${version}:` });
  stores.push({ name: `Redis by ioredis ${version}`, create: () => createRedisStore({ client }), end: () => client.disconnect() });

  const startWorker = () => new Promise((resolve, reject) => {
    const args = [path.join(__dirname, 'worker.js'), folder, redisPort, keyFile, '2000'];
    const child = childProcess.spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    child.stdout.once('data', text => resolve({ child, port: Number(text) }));
    child.once('exit', code => reject(new Error(`a worker ended with ${code}`)));
  });

  test(`processes that share a Redis run each key once (ioredis ${version})`, async () => {
    const workers = await Promise.all([startWorker(), startWorker(), startWorker()]);
    const plain = new Redis({ host: '127.0.0.1', port: Number(redisPort) });
    const call = (worker, id, ms, attempt = 1) => {
      const body = JSON.stringify({ ms });
      return send(workers[worker].port, '/', headers({ id, body, attempt }), body);
    };
    const ran = async id => Number(await plain.get(`shop:ran:${id}`));
    try {
      // At once, at all of them.
      const id = fresh();
      const answers = await Promise.all(Array.from({ length: 30 }, (_, i) => call(i % 3, id, 300)));
      const [done, ...others] = answers.sort((a, b) => a.status - b.status);
      assert.strictEqual(done.status, 200);
      // On a busy machine some come when it is over.
      for (const other of others) if (other.status !== 409) assert.strictEqual(other.body, done.body);
      for (const worker of [0, 1, 2]) assert.strictEqual((await call(worker, id, 300)).body, done.body);
      assert.strictEqual(await ran(id), 1);

      // Longer than the lease, and the claim is kept.
      const long = fresh();
      const running = call(0, long, 4500);
      await pause(3500);
      assert.strictEqual((await call(1, long, 0)).status, 409);
      assert.strictEqual((await running).status, 200);
      assert.strictEqual((await call(2, long, 0)).body, (await running).body);
      assert.strictEqual(await ran(long), 1);

      // A process that dies leaves its run to the others, after the lease.
      const lost = fresh();
      const broken = call(0, lost, 60000).then(() => assert.fail('it ended'), error => error.message);
      while ((await ran(lost)) === 0) await pause(10);
      workers[0].child.kill('SIGKILL');
      await broken;
      assert.strictEqual((await call(1, lost, 0, 2)).status, 409);
      await pause(2200);
      assert.strictEqual((await call(1, lost, 0, 2)).status, 200);
      assert.strictEqual(await ran(lost), 2);

      // Nothing is left for ever.
      for (const key of await plain.keys('shop:{cabloy-agent}:*')) assert.notStrictEqual(await plain.pttl(key), -1, key);
      assert.ok((await plain.keys('shop:{cabloy-agent}:*')).length > 0);
    } finally {
      for (const { child } of workers) child.kill('SIGKILL');
      plain.disconnect();
    }
  });

  test(`a claim that Redis has forgotten is made again, and nobody else's is ended (ioredis ${version})`, async () => {
    const create = () => createRedisStore({ client, leaseMs: 1000 });
    const [one, other] = [guardWith({ store: create() }), guardWith({ store: create() })];
    const forget = id => client.del(`{cabloy-agent}:run:${id}`, `{cabloy-agent}:token:${id}`);
    const id = fresh();
    const first = await one.enter(headers({ id }), none);
    await forget(id);
    await pause(700);
    assert.strictEqual((await entered(other, headers({ id })))[0], 409);
    let second = {};
    while (!second.run) {
      await forget(id);
      second = await other.enter(headers({ id }), none);
    }
    await first.failed();
    assert.strictEqual((await entered(one, headers({ id })))[0], 409, 'the claim is the other one’s');
    await second.done(given);
    assert.deepStrictEqual((await one.enter(headers({ id }), none)).answer, replayed(given));
  });

  test(`a Redis that is down has calls tried again (ioredis ${version})`, async () => {
    const down = new Redis({ host: '127.0.0.1', port: 1, maxRetriesPerRequest: 0, retryStrategy: () => null });
    down.on('error', silent);
    errors.length = 0;
    const guard = guardWith(Object.assign({ store: createRedisStore({ client: down }) }, noting));
    assert.strictEqual((await entered(guard, headers()))[0], 503);
    assert.strictEqual(errors.length, 1);
    down.disconnect();
  });
}

// ---- Options ----

test('options that cannot be are refused, and what to write is said', () => {
  for (const [make, message] of [
    [() => createGuard({ tolerance: 1 }), 'createGuard: there is no option tolerance; write one of keyFile, toleranceMs, marginMs, bodyLimit, store, onError'],
    [() => createGuard(7), 'createGuard: the argument is 7; write an object with keyFile, toleranceMs, marginMs, bodyLimit, store, onError'],
    [() => createGuard({ keyFile: null }), 'createGuard: keyFile is null; write the path of the key file, such as "/etc/cabloy/signing/key", or false to take calls that are not signed'],
    [() => createGuard({ toleranceMs: '5m' }), 'createGuard: toleranceMs is a text; write milliseconds, such as 300000'],
    [() => createGuard({ toleranceMs: 0 }), 'createGuard: toleranceMs is 0; write milliseconds, such as 300000'],
    [() => createGuard({ marginMs: -1 }), 'createGuard: marginMs is -1; write milliseconds, such as 3600000'],
    [() => createGuard({ bodyLimit: Infinity }), 'createGuard: bodyLimit is Infinity; write a number of bytes, such as 1048576'],
    [() => createGuard({ store: {} }), 'createGuard: store is an object; write what createMemoryStore() or createRedisStore({ client }) returns'],
    [() => createGuard({ onError: true }), 'createGuard: onError is true; write a function that is given an error'],
    [() => createGuard().handler(), 'guard.handler: the argument is missing; write a function that is given the run'],
    [() => createMemoryStore({ maxEntries: 0 }), 'createMemoryStore: maxEntries is 0; write how many runs to remember at most, such as 10000'],
    [() => createRedisStore(), 'createRedisStore: the argument is missing; write an object with client, prefix, leaseMs'],
    [() => createRedisStore({}), 'createRedisStore: client is missing; write a client of ioredis, such as app.redis.get("cache")'],
    [() => createRedisStore({ client: {} }), 'createRedisStore: client.eval is missing; write a client of ioredis, such as app.redis.get("cache")'],
    [() => createRedisStore({ client: { eval() {} }, leaseMs: 10 }), 'createRedisStore: leaseMs is 10; write milliseconds, 1000 at least, such as 30000'],
    [() => accepted(7), 'accepted: location is no path; write where to ask for the run, such as "/jobs/1"'],
    [() => new Failure(200, 'x'), 'new Failure: status is 200; write a number from 400 to 599'],
    [() => new Failure(503, 'x', '30'), 'new Failure: retryAfterS is no whole number of seconds; write one such as 30'],
  ]) {
    assert.throws(make, error => error instanceof TypeError && (assert.strictEqual(error.message, message), true));
  }
});

async function main() {
  const has = name => modules.filter(folder => fs.existsSync(path.join(folder, name)));
  has('koa-bodyparser').forEach(testKoa);
  // Packages of egg itself are newer than Node.js 12.
  if (Number(process.versions.node.split('.')[0]) >= 14) has('@zhennann/egg').forEach(testEgg);
  if (redisPort) has('ioredis').forEach(testRedis);
  for (const { name, run } of tests) {
    writeKeys(`${KEY}\n`);
    try {
      await run();
      console.log(`ok: ${name}`);
    } catch (error) {
      console.log(`FAILED: ${name}\n${error.stack}`);
      process.exitCode = 1;
    }
  }
  console.log(`${tests.length} tests, ${stores.map(store => store.name).join(', ')}`);
  for (const { end } of stores) if (end) end();
  (fs.rmSync || fs.rmdirSync)(dir, { recursive: true });
  // egg leaves timers behind.
  process.exit();
}

setTimeout(() => { console.log('FAILED: it takes for ever'); process.exit(1); }, 180000).unref();
process.on('unhandledRejection', error => { throw error; });
main();
