module.exports = () => {
  const config = {};
  // Where the operator mounts the key that calls are signed with.
  config.keyFile = '/etc/cabloy/signing/key';
  // The client of config.redis.clients whose Redis remembers runs, for all processes of the app. It must not evict keys.
  config.redis = 'redlock';
  // For how many instances a bean is run at the same time.
  config.concurrency = 4;
  return config;
};
