// An image that says more of its Redis than any sane one: each topology, with everything that could be left over.
'use strict';

module.exports = appInfo => {
  const base = { host: 'image-redis', port: 6379, password: 'image-password', db: 7 };
  const sentinel = Object.assign({}, base, {
    sentinels: [{ host: 'image-sentinel', port: 26379 }], name: 'image-master', role: 'slave', preferredSlaves: [{ ip: '1.2.3.4', port: '1' }],
    natMap: { '10.0.0.1:6379': { host: 'image-nat', port: 1 } }, sentinelUsername: 'image-user', sentinelPassword: 'image-password',
    sentinelTLS: { ca: 'image-ca' }, enableTLSForSentinelMode: true, tls: { ca: 'image-ca' },
  });
  const tls = Object.assign({}, base, {
    username: 'image-user',
    tls: { ca: 'image-ca', servername: 'image', rejectUnauthorized: false, checkServerIdentity() {} },
  });
  const cluster = {
    cluster: true, nodes: [Object.assign({}, base)], redisOptions: { password: 'image-password', tls: { ca: 'image-ca' } }, scaleReads: 'master',
  };
  return {
    redis: {
      clients: {
        redlock: sentinel,
        limiter: tls,
        queue: sentinel,
        broadcast: cluster,
        cache: Object.assign({}, tls, { keyPrefix: `cache_${appInfo.name}:` }),
        io: Object.assign({ path: '/image.sock' }, base, { keyPrefix: `io_${appInfo.name}:` }),
      },
    },
    queue: {
      redlock: {
        clients: ['redlock', 'image-redlock'],
        options: { driftFactor: 0.01, retryCount: -1, retryDelay: 200, retryJitter: 100, lockTTL: 30000 },
      },
    },
    mysql: { clients: { __ebdb: { host: 'image-mysql', password: 'image-password' } } },
    list: ['image', 'image'],
  };
};
