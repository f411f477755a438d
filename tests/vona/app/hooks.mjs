// What happens to code before it runs.
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

// Vona's template patches zod, and two of its packages call what that adds: here they add nothing. zod only validates requests.
const patched = { '@cabloy/zod-errors-custom': 'setLocaleAdapter', '@cabloy/zod-query': 'setParseAdapter' };

export async function resolve(specifier, context, next) {
  const real = await next(specifier, context);
  const missing = patched[specifier];
  if (!missing || context.parentURL.startsWith('data:')) return real;
  const source = `export * from ${JSON.stringify(real.url)}; export const ${missing} = () => {};`;
  return { url: `data:text/javascript,${encodeURIComponent(source)}`, format: 'module', shortCircuit: true };
}

/** Compiles a module of the app's own, as Vona's builder does: each bean is told which module it is of. */
export async function load(url, context, next) {
  const module = /\/src\/module\/([^/]+)\/src\/.*\.ts$/.exec(url)?.[1];
  if (!module) return next(url, context);
  const { default: ts } = await import('typescript');
  const source = await readFile(fileURLToPath(url), 'utf8');
  const { outputText } = ts.transpileModule(source, {
    fileName: url,
    compilerOptions: {
      target: ts.ScriptTarget.ESNext,
      module: ts.ModuleKind.ESNext,
      experimentalDecorators: true,
      emitDecoratorMetadata: true,
      useDefineForClassFields: false,
      inlineSourceMap: true,
    },
    transformers: { before: [withBeanInfo(ts, module)] },
  });
  return { format: 'module', source: outputText, shortCircuit: true };
}

const withBeanInfo = (ts, module) => ({ factory }) => file => {
  let any = false;
  const info = factory.createObjectLiteralExpression([
    factory.createPropertyAssignment('module', factory.createStringLiteral(module)),
  ]);
  const decorate = node => {
    if (!ts.isClassDeclaration(node) || !ts.getDecorators(node)) return node;
    any = true;
    const call = factory.createCallExpression(factory.createIdentifier('BeanInfo'), undefined, [info]);
    const modifiers = [...node.modifiers, factory.createDecorator(call)];
    return factory.updateClassDeclaration(node, modifiers, node.name, node.typeParameters, node.heritageClauses, node.members);
  };
  const statements = file.statements.map(decorate);
  if (!any) return file;
  const specifier = factory.createImportSpecifier(false, undefined, factory.createIdentifier('BeanInfo'));
  const clause = factory.createImportClause(false, undefined, factory.createNamedImports([specifier]));
  const line = factory.createImportDeclaration(undefined, clause, factory.createStringLiteral('vona'));
  return factory.updateSourceFile(file, [line, ...statements]);
};
