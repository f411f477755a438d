'use strict';

const facts = require('./facts');

module.exports = agent => facts('agent', agent.config);
