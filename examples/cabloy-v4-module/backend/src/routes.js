module.exports = [
  // The agent is no user: it is known by its signature.
  { method: 'post', path: 'run', controller: 'agent', meta: { auth: { enable: false } } },
];
