// A program that locks by one of the Redlock libraries, as it is told on stdin; it answers each line by one.
//   node client.js LIBRARY KEY PORT…
'use strict';
const readline = require('readline');
const Redis = require('ioredis');

const [library, key, ...ports] = process.argv.slice(2);
const clients = ports.map(port => new Redis({ host: '127.0.0.1', port: Number(port) }));

const libraries = {
  'redlock': options => {
    const Redlock = require('redlock');
    const redlock = new Redlock(clients, options);
    return {
      acquire: ttl => redlock.lock(key, ttl),
      extend: (lock, ttl) => lock.extend(ttl),
      release: lock => lock.unlock(),
    };
  },
  '@sesamecare-oss/redlock': options => {
    const { Redlock } = require('@sesamecare-oss/redlock');
    const redlock = new Redlock(clients, options);
    return {
      acquire: ttl => redlock.acquire([key], ttl),
      extend: (lock, ttl) => lock.extend(ttl),
      release: lock => lock.release(),
    };
  },
};

// One try says who has the lock now; many wait for it.
const once = libraries[library]({ retryCount: 0 });
const patient = libraries[library]({ retryCount: 600, retryDelay: 50, retryJitter: 20 });

let lock;
const commands = {
  acquire: async ttl => { lock = await once.acquire(ttl); },
  wait: async ttl => { lock = await patient.acquire(ttl); },
  extend: async ttl => { lock = await once.extend(lock, ttl); },
  release: async () => { await once.release(lock); },
};

readline.createInterface({ input: process.stdin }).on('line', async line => {
  const [command, argument] = line.split(' ');
  try {
    await commands[command](Number(argument));
    console.log('done');
  } catch (error) {
    console.log(`${error.name}: ${error.message}`.split('\n')[0]);
  }
}).on('close', () => process.exit(0));
