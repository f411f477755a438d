// As Vona's builder generates it.
import type { TypeControllerOptionsActions } from 'vona-module-a-openapi';
/** controller: begin */
export * from '../controller/agent.ts';
import type { IControllerOptionsAgent } from '../controller/agent.ts';
import 'vona-module-a-web';
declare module 'vona-module-a-web' {
  export interface IControllerRecord {
    'cabloy-agent:agent': IControllerOptionsAgent;
  }
}
declare module 'vona-module-cabloy-agent' {
  export interface ControllerAgent {
    /** @internal */
    get scope(): ScopeModuleCabloyAgent;
  }

  export interface ControllerAgent {
    get $beanFullName(): 'cabloy-agent.controller.agent';
    get $onionName(): 'cabloy-agent:agent';
    get $onionOptions(): IControllerOptionsAgent;
  }
}
/** controller: end */
/** controller: begin */
// @ts-ignore ignore
import type { ControllerAgent } from '../controller/agent.ts';
declare module 'vona-module-cabloy-agent' {
  export interface IControllerOptionsAgent {
    actions?: TypeControllerOptionsActions<ControllerAgent>;
  }
}
declare module 'vona-module-a-web' {
  export interface IApiPathPostRecord {
    '/cabloy/agent/run': undefined;
  }
}
/** controller: end */
/** config: begin */
export * from '../config/config.ts';
import type { config } from '../config/config.ts';
/** config: end */
/** scope: begin */
import { BeanScopeBase, type BeanScopeUtil, type TypeModuleConfig } from 'vona';
import { Scope } from 'vona-module-a-bean';

@Scope()
export class ScopeModuleCabloyAgent extends BeanScopeBase {}

export interface ScopeModuleCabloyAgent {
  util: BeanScopeUtil;
  config: TypeModuleConfig<typeof config>;
}

import 'vona';
declare module 'vona' {
  export interface IBeanScopeRecord {
    'cabloy-agent': ScopeModuleCabloyAgent;
  }

  export interface IBeanScopeContainer {
    cabloyAgent: ScopeModuleCabloyAgent;
  }

  export interface IBeanScopeConfig {
    'cabloy-agent': ReturnType<typeof config>;
  }
}
/** scope: end */
