'use strict';

// as egg-born-backend 7.1 has it
exports.redis = { app: true, agent: true, default: { maxRetriesPerRequest: null, enableReadyCheck: false } };
