// What the modules of Vona import from each other, as far as queues and broadcasts need it; app.mjs puts it in their place.
const none = () => () => {};

export class BeanBase {
  constructor() {
    this.app = globalThis.app;
    this.bean = this.app.bean;
    this.scope = this.app.scope;
    this.$scope = this.app.scopes;
  }
}
export class BeanSimple {}
export class BeanScopeBase {}
export { none as BeanInfo, none as Service, none as Scope, none as Startup, none as Hmr, none as createBeanDecorator };

export const uuidv4 = () => crypto.randomUUID();
export const deepExtend = (...parts) => Object.assign(...parts.map(part => part ?? {}));
export const isNil = value => value === undefined || value === null;
export const instanceDesp = name => (isNil(name) ? '~' : name || '-');
export const beanFullNameFromOnionName = (name, scene) => name.replace(':', `.${scene}.`);
export const getRedisClientKeyPrefix = (client, app) => `${client}_${app.config.meta.app.name}:`;
