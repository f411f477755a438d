export * from './controller/agent.ts';
