const agent = require('./controller/agent.js');

module.exports = app => ({ agent });
