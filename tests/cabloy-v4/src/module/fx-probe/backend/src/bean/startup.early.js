module.exports = app => {
  class Startup extends app.meta.BeanBase {
    async execute() {
      app.bean.fxProbe.note('startup.early');
    }
  }
  return Startup;
};
