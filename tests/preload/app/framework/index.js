// What CabloyJS' own framework is to egg: it takes the app's name from the project's package.json.
'use strict';

const path = require('path');
const egg = require('@zhennann/egg');

const loaderOf = Loader => class extends Loader {
  getAppname() {
    return require(path.join(process.cwd(), 'package.json')).name;
  }
};
const frameworkOf = (Base, Loader) => class extends Base {
  get [Symbol.for('egg#eggPath')]() {
    return __dirname;
  }
  get [Symbol.for('egg#loader')]() {
    return loaderOf(Loader);
  }
};

module.exports = Object.assign({}, egg, {
  Application: frameworkOf(egg.Application, egg.AppWorkerLoader),
  Agent: frameworkOf(egg.Agent, egg.AgentWorkerLoader),
});
