// What the agent asks for.
import type { VonaApplication } from 'vona';
import { Failure } from 'cabloy-agent-client';
// For its types: `app.bean.instance`, `app.config.instance`.
import type {} from 'vona-module-a-instance';

export type Instances = 'Default' | 'All' | string[];

export interface Call {
  module: string;
  /** With its scene: `schedule.nightly`. */
  name: string;
  data: unknown;
  instances: Instances;
}

/** For good: another attempt would say the same. */
export const wrong = (message: string) => new Failure(422, message);

const isName = (text: unknown): text is string => typeof text === 'string' && /^[A-Za-z0-9][\w.-]*$/.test(text);

const isInstanceName = (text: unknown): text is string => text === '' || isName(text);

/** Throws a `Failure` that says which part of the body is wrong. */
export function parseCall(body: unknown): Call {
  if (body === null || typeof body !== 'object') throw wrong('the body is no JSON object');
  const { module, name, data = null, instances = 'Default' } = body as Record<string, unknown>;
  if (!isName(module)) throw wrong('module is no name of a module, such as shop-report');
  if (!isName(name)) throw wrong('name is no name of a bean, such as schedule.nightly');
  if (instances === 'Default' || instances === 'All') return { module, name, data, instances };
  if (Array.isArray(instances) && instances.length > 0 && instances.every(isInstanceName)) {
    return { module, name, data, instances };
  }
  throw wrong('instances is neither Default, nor All, nor a list of names');
}

/** By name, whether an instance is disabled: those of the app's configuration, and of the table of instances. */
async function knownInstances(app: VonaApplication): Promise<Map<string, boolean>> {
  const known = new Map<string, boolean>();
  for (const [name, instance] of Object.entries(app.config.instance.instances)) known.set(name, instance === false);
  const rows = await app.bean.executor.newCtx(async () => await app.bean.instance.list(), { dbInfo: { level: 1 }, instanceName: '' as never });
  for (const { name, disabled } of rows) known.set(name, disabled || known.get(name) === true);
  return known;
}

/**
 * The instances that a bean is to be run for, and for some of them why it cannot be. `All` leaves disabled ones out; who
 * names one is told.
 */
export async function pickInstances(app: VonaApplication, instances: Instances) {
  const known = await knownInstances(app);
  const refused = new Map<string, Error>();
  if (instances === 'All') return { names: [...known.keys()].filter(name => !known.get(name)), refused };
  const names = instances === 'Default' ? [''] : [...new Set(instances)];
  for (const name of names) {
    const disabled = known.get(name);
    if (disabled === undefined) refused.set(name, new Failure(423, 'there is no such instance'));
    else if (disabled) refused.set(name, new Failure(423, 'the instance is disabled'));
  }
  return { names, refused };
}
