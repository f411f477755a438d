export * from './.metadata/index.ts';
