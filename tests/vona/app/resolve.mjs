// Vona's template patches zod, and two of its packages call what that adds: here they add nothing.
const patched = { '@cabloy/zod-errors-custom': 'setLocaleAdapter', '@cabloy/zod-query': 'setParseAdapter' };

export async function resolve(specifier, context, next) {
  const real = await next(specifier, context);
  const missing = patched[specifier];
  if (!missing || context.parentURL.startsWith('data:')) return real;
  const source = `export * from ${JSON.stringify(real.url)}; export const ${missing} = () => {};`;
  return { url: `data:text/javascript,${encodeURIComponent(source)}`, format: 'module', shortCircuit: true };
}
