// In the place of a-orm and a-instance, as far as jobs, startups and schedules ask for them: there is no database and no
// transaction, and the instances are those of the configuration.
import { __decorate } from 'tslib';
import { BeanBase, BeanInfo, BeanScopeBase, BeanSimple } from 'vona';
import { Bean, Scope, Service } from 'vona-module-a-bean';

const info = BeanInfo({ module: 'a-instance' });

export const BeanDatabase = __decorate([Bean(), info], class BeanDatabase extends BeanBase {
  switchDb(fn) {
    return fn();
  }
});

export const BeanInstance = __decorate([Bean(), info], class BeanInstance extends BeanBase {
  async get(name) {
    const id = Object.keys(this.app.config.instance.instances).indexOf(name) + 1;
    return id > 0 ? { id, name } : undefined;
  }
});

export const ServiceInstance = __decorate([Service(), info], class ServiceInstance extends BeanBase {
  getConfig() {
    return this.app.config;
  }

  async checkAppReadyInstance() {
    return true;
  }

  async instanceStartupIsolate(instanceName, options) {
    const { startup } = this.$scope.startup.service;
    const run = () => startup.runStartupInstance(instanceName, options);
    await this.bean.executor.newCtx(run, { dbInfo: { level: 1 }, instanceName });
  }
});

export const ScopeModuleAInstance = __decorate([Scope(), info], class ScopeModuleAInstance extends BeanScopeBase {});

const name = Symbol('instance');

export class Main extends BeanSimple {
  async moduleLoading() {}
  async moduleLoaded() {
    Object.assign(this.app.context, {
      __getInstanceName() { return this[name]; },
      __setInstanceName(value) { this[name] = value; },
      __getLocale() {},
      __getTz() {},
      async commitsDone() {},
    });
  }
  async configLoaded() {}
}
