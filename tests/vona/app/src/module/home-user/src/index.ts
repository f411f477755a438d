export * from './service/passportAdapter.ts';
export * from './service/userAdapter.ts';
