'use strict';

const { checkNames, checkNumber } = require('./check');
const { isAccepted } = require('./answer');

/** Milliseconds that no change of the clock moves. */
const now = () => Number(process.hrtime.bigint() / BigInt(1e6));

/** A map whose entries end, and which holds so many of them at most: the one that was set first goes first. */
class Expiring {
  constructor(limit) {
    this.limit = limit;
    this.entries = new Map();
  }

  get(key) {
    const entry = this.entries.get(key);
    return entry && entry.until > now() ? entry : undefined;
  }

  set(key, entry) {
    this.entries.delete(key);
    for (const [first, { until }] of this.entries) {
      if (until > now() && this.entries.size < this.limit) break;
      this.entries.delete(first);
    }
    this.entries.set(key, entry);
  }

  delete(key) {
    this.entries.delete(key);
  }
}

/** What one process remembers of runs. */
class MemoryStore {
  constructor(maxEntries) {
    this.maxEntries = maxEntries;
    this.tokens = new Expiring(maxEntries);
    this.done = new Expiring(maxEntries);
    this.failed = new Expiring(maxEntries);
    // These end when their handler does, and never before.
    this.running = new Set();
  }

  async claim({ scope, token, key, attempt, keepMs }) {
    const highest = this.tokens.get(scope);
    if (highest && (token === undefined || token < highest.token)) return { state: 'stale', highest: highest.token };
    if (token !== undefined) {
      this.tokens.set(scope, { token, until: Math.max(highest ? highest.until : 0, now() + keepMs) });
    }
    if (this.running.has(key)) return { state: 'running' };
    const done = this.done.get(key);
    if (done && !(isAccepted(done.answer) && attempt > done.attempt)) return { state: 'done', answer: done.answer };
    if (this.running.size >= this.maxEntries) return { state: 'full' };
    this.done.delete(key);
    this.running.add(key);
    this.failed.delete(key);
    const finish = async (answer, answerKeepMs, failed = false) => {
      this.running.delete(key);
      if (answer) (failed ? this.failed : this.done).set(key, { answer, attempt, until: now() + answerKeepMs });
    };
    return { state: 'claimed', finish };
  }

  async look({ scope, token, key, attempt }) {
    const highest = this.tokens.get(scope);
    if (highest && (token === undefined || token < highest.token)) return { state: 'stale', highest: highest.token };
    if (this.running.has(key)) return { state: 'running' };
    const done = this.done.get(key);
    if (done) return { state: 'done', answer: done.answer };
    const failed = this.failed.get(key);
    return failed && failed.attempt === attempt ? { state: 'done', answer: failed.answer } : { state: 'unknown' };
  }
}

/** A store for an app that is one process. */
function createMemoryStore(options = {}) {
  const where = 'createMemoryStore';
  checkNames(where, options, ['maxEntries']);
  const { maxEntries = 10000 } = options;
  checkNumber(where, 'maxEntries', maxEntries, 1, 'how many runs to remember at most, such as 10000');
  return new MemoryStore(maxEntries);
}

module.exports = { createMemoryStore };
