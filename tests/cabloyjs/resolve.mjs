// Puts vona.mjs in the place of the parts of Vona that queues and broadcasts import.
const parts = ['vona', 'vona-module-a-bean', 'vona-module-a-redis', 'vona-module-a-startup', 'vona-module-a-hmr', '@cabloy/utils'];

export function resolve(specifier, context, next) {
  if (!parts.includes(specifier)) return next(specifier, context);
  return { url: new URL('./vona.mjs', import.meta.url).href, format: 'module', shortCircuit: true };
}
