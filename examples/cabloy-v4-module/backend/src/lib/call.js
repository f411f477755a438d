// What the agent asks for.
'use strict';

const { Failure } = require('../../client');

/** For good: another attempt would say the same. */
const wrong = message => new Failure(422, message);

const isName = text => typeof text === 'string' && /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(text);

const isSubdomain = text => text === '' || isName(text);

/** {module, name, data, instances} of a body. Throws a Failure that says which of them is wrong. */
function parseCall(body) {
  if (body === null || typeof body !== 'object') throw wrong('the body is no JSON object');
  const { module, name, data = null, instances = 'Default' } = body;
  if (!isName(module)) throw wrong('module is no name of a module, such as shop-report');
  if (!isName(name)) throw wrong('name is no name of a bean, such as schedule.nightly');
  const isList = Array.isArray(instances) && instances.length > 0 && instances.every(isSubdomain);
  if (instances !== 'Default' && instances !== 'All' && !isList) {
    throw wrong('instances is neither Default, nor All, nor a list of subdomains');
  }
  return { module, name, data, instances };
}

/** By subdomain, whether an instance is disabled: those of the app's configuration, and of the table aInstance. */
async function knownInstances(ctx) {
  const known = new Map();
  for (const { subdomain } of ctx.app.config.instances || [{ subdomain: '' }]) known.set(subdomain, false);
  for (const { name, disabled } of await ctx.bean.instance.list({ where: {} })) known.set(name, Boolean(disabled));
  return known;
}

/**
 * The subdomains that a bean is to be run for, and for some of them why it cannot be. `All` leaves disabled instances out;
 * who names one is told. 423 is what CabloyJS itself answers for either.
 */
async function pickInstances(ctx, instances) {
  const known = await knownInstances(ctx);
  if (instances === 'All') {
    return { names: [...known.keys()].filter(subdomain => !known.get(subdomain)), refused: new Map() };
  }
  const names = instances === 'Default' ? [''] : [...new Set(instances)];
  const refused = new Map();
  for (const subdomain of names) {
    if (!known.has(subdomain)) {
      refused.set(subdomain, new Failure(423, 'there is no such instance: config.instances and the table aInstance lack it'));
    } else if (known.get(subdomain)) {
      refused.set(subdomain, new Failure(423, 'the instance is disabled'));
    }
  }
  return { names, refused };
}

module.exports = { parseCall, pickInstances, wrong };
