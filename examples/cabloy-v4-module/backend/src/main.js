const config = require('./config/config.js');
const routes = require('./routes.js');

module.exports = app => {
  const controllers = require('./controllers.js')(app);
  return { beans: {}, routes, controllers, services: {}, config, locales: {}, errors: {}, constants: {} };
};
