export * from './bean/schedule.report.ts';
export * from './bean/schedule.tally.ts';
export * from './bean/startup.once.ts';
export * from './bean/startup.tenant.ts';
export * from './controller/probe.ts';
