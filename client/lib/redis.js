'use strict';

const crypto = require('crypto');

const { checkFunction, checkNames, checkNumber, refuse } = require('./check');
const { isAccepted } = require('./answer');

// A run is a hash of who runs it and in which attempt, and then of the answer; `again` has the next attempt run anew. One that
// has failed has but `attempt` and `failed`: the answer, for those who only ask.

/** KEYS: the scope's token, the run. ARGV: token or '', owner, attempt, lease and keep in milliseconds. */
const CLAIM = `
local highest = redis.call('GET', KEYS[1])
if highest and (ARGV[1] == '' or tonumber(ARGV[1]) < tonumber(highest)) then return {'stale', highest} end
if ARGV[1] ~= '' then
  local keep = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[5]))
  redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', keep))
end
local run = redis.call('HMGET', KEYS[2], 'owner', 'attempt', 'answer', 'again')
if run[3] then
  if not run[4] or tonumber(ARGV[3]) <= tonumber(run[2]) then return {'done', run[3]} end
elseif run[1] and run[1] ~= ARGV[2] then
  return {'running'}
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'owner', ARGV[2], 'attempt', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {'claimed'}`;

/** KEYS: the run. ARGV: owner, attempt, lease. A claim that Redis has lost is made again. */
const RENEW = `
local run = redis.call('HMGET', KEYS[1], 'owner', 'answer')
if run[2] or (run[1] and run[1] ~= ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'attempt', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1`;

/** KEYS: the scope's token, the run. ARGV: token or '', attempt. Changes nothing. */
const LOOK = `
local highest = redis.call('GET', KEYS[1])
if highest and (ARGV[1] == '' or tonumber(ARGV[1]) < tonumber(highest)) then return {'stale', highest} end
local run = redis.call('HMGET', KEYS[2], 'owner', 'attempt', 'answer', 'failed')
if run[3] then return {'done', run[3]} end
if run[1] then return {'running'} end
if run[4] and tonumber(run[2]) == tonumber(ARGV[2]) then return {'done', run[4]} end
return {'unknown'}`;

/** KEYS: the run. ARGV: owner, attempt, answer or '', keep, 'again' for one that the next attempt is to run again, 'failed'. */
const FINISH = `
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[3] ~= '' then
  if ARGV[5] == 'failed' then
    redis.call('HSET', KEYS[1], 'attempt', ARGV[2], 'failed', ARGV[3])
  else
    redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'attempt', ARGV[2], 'answer', ARGV[3])
  end
  if ARGV[5] == 'again' then redis.call('HSET', KEYS[1], 'again', '1') end
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return 1`;

/** What all processes of an app remember of runs. */
class RedisStore {
  constructor(client, prefix, leaseMs) {
    this.client = client;
    this.prefix = prefix;
    this.leaseMs = leaseMs;
  }

  async claim({ scope, token, key, attempt, keepMs }) {
    const owner = crypto.randomBytes(16).toString('hex');
    const run = `${this.prefix}run:${key}`;
    const [state, value] = await this.client.eval(
      CLAIM, 2, `${this.prefix}token:${scope}`, run,
      token === undefined ? '' : String(token), owner, String(attempt), String(this.leaseMs), String(keepMs),
    );
    if (state === 'stale') return { state, highest: Number(value) };
    if (state === 'done') return { state, answer: JSON.parse(value) };
    if (state !== 'claimed') return { state };
    let renewal = Promise.resolve();
    const timer = setInterval(() => {
      // One that fails is followed by the next; three in a row lose the claim.
      const renewed = this.client.eval(RENEW, 1, run, owner, String(attempt), String(this.leaseMs));
      renewal = Promise.resolve(renewed).catch(() => undefined);
    }, this.leaseMs / 3);
    timer.unref();
    const finish = async (answer, answerKeepMs, failed = false) => {
      clearInterval(timer);
      // One on its way would claim the run again after its end.
      await renewal;
      await this.client.eval(
        FINISH, 1, run, owner, String(attempt), answer ? JSON.stringify(answer) : '', String(answerKeepMs),
        failed ? 'failed' : answer && isAccepted(answer) ? 'again' : '',
      );
    };
    return { state, finish };
  }

  async look({ scope, token, key, attempt }) {
    const [state, value] = await this.client.eval(
      LOOK, 2, `${this.prefix}token:${scope}`, `${this.prefix}run:${key}`, token === undefined ? '' : String(token), String(attempt),
    );
    if (state === 'stale') return { state, highest: Number(value) };
    return state === 'done' ? { state, answer: JSON.parse(value) } : { state };
  }
}

/** A store for an app that is several processes. */
function createRedisStore(options) {
  const where = 'createRedisStore';
  checkNames(where, options, ['client', 'prefix', 'leaseMs']);
  const { client, prefix = '{cabloy-agent}:', leaseMs = 30000 } = options;
  if (!client) refuse(where, 'client', client, 'a client of ioredis, such as app.redis.get("cache")');
  checkFunction(where, 'client.eval', client.eval, 'a client of ioredis, such as app.redis.get("cache")');
  if (typeof prefix !== 'string') refuse(where, 'prefix', prefix, 'what all its keys begin with, such as "{shop-runs}:"');
  checkNumber(where, 'leaseMs', leaseMs, 1000, 'milliseconds, 1000 at least, such as 30000');
  return new RedisStore(client, prefix, leaseMs);
}

module.exports = { createRedisStore };
