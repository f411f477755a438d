// Beans, run as Vona itself runs them (a-schedule and a-startup).
import type { Run } from 'cabloy-agent-client';
import type { VonaApplication } from 'vona';
import type { IOnionSlice } from 'vona-module-a-onion';
import type {} from 'vona-module-a-executor';
import type {} from 'vona-module-a-schedule';
import type {} from 'vona-module-a-startup';
import type { Call } from './call.ts';
import { wrong } from './call.ts';

interface Options {
  transaction?: boolean;
  instance?: boolean;
}

export interface Found {
  fullName: string;
  scene: string;
  options: Options;
}

interface Bean {
  execute: (context: unknown) => Promise<void>;
}

/** Throws a `Failure` if this version of the app has no such bean, or not for these instances. */
export function findBean(app: VonaApplication, { module, name, instances }: Call): Found {
  const [scene = '', ...rest] = name.split('.');
  const fullName = `${module}.${name}`;
  if (scene !== 'schedule' && scene !== 'startup') {
    throw wrong(`${fullName} is no bean of a schedule or a startup: write its name with the scene, such as schedule.nightly`);
  }
  const onions = app.bean.onion[scene] as unknown as {
    getOnionSlice: (name: string) => IOnionSlice<object, never> | undefined;
    getOnionOptions: (name: string) => Options | undefined;
  };
  const onion = `${module}:${rest.join('.')}`;
  if (!onions.getOnionSlice(onion)) throw wrong(`this version of the app has no bean ${fullName}`);
  const options = onions.getOnionOptions(onion) ?? {};
  // It is about the app, and would run once for each.
  if (scene === 'startup' && !options.instance && instances !== 'Default') {
    throw wrong(`${fullName} is a startup of the app as a whole: remove instances`);
  }
  return { fullName, scene, options };
}

/** Resolves when the bean has come to its end. */
export async function runBean(app: VonaApplication, { fullName, scene, options }: Found, instanceName: string, data: unknown, run: Run) {
  const { transaction = false } = options;
  const ofApp = scene === 'startup' && !options.instance;
  // A schedule's bean gets a job from BullMQ, of which this has what says which run it is; a startup's its options.
  const context = scene === 'schedule'
    ? { id: run.key, name: `${instanceName}.${fullName}`, attemptsMade: run.attempt - 1, data: { data }, agentRun: run }
    : { force: true, data, agentRun: run };
  await app.bean.executor.newCtx(
    async () => await (app.bean._getBean(fullName as never) as Bean).execute(context),
    // null is no instance; without a word it would be that of the request.
    { dbInfo: { level: 1 }, transaction, instance: !ofApp, instanceName: ofApp ? null : instanceName as never },
  );
}
