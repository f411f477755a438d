import fs from 'node:fs';

/** A line for each event, so that a test can read which process did it. */
export function note(kind: string, more: object = {}) {
  const line = { t: Date.now(), kind, pid: process.pid, ...more };
  fs.appendFileSync(process.env.FX_EVENTS!, `${JSON.stringify(line)}\n`);
}

/** The instances that a test names in that file: a line each. */
export function named(what: 'fail' | 'hold'): string[] {
  const file = `${process.env.FX_EVENTS}.${what}`;
  return fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];
}

/** What a bean may know of the run that it is called for. */
export const ofRun = (run?: { key: string; token?: number; attempt: number }) =>
  run && { key: run.key, token: run.token, attempt: run.attempt };
