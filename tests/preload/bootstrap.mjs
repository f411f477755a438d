// What Vona does with its environment at start, as an ES module like it: of the variables that its build declares, those
// of the process win. Says what came of it, and what others get to see.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { env as imported } from 'node:process';

const declared = {
  REDIS_DEFAULT_HOST: 'image-redis', REDIS_DEFAULT_PORT: '6379', REDIS_DEFAULT_PASSWORD: 'image-password', REDIS_DEFAULT_DB: '7', OTHER: 'image',
};

const prepare = env => {
  const result = { ...declared };
  for (const key of Object.keys(result)) if (env[key] !== undefined) result[key] = env[key];
  return result;
};

const facts = {
  prepared: prepare(process.env),
  imported: prepare(imported),
  has: 'REDIS_DEFAULT_PASSWORD' in process.env && Object.prototype.hasOwnProperty.call(process.env, 'REDIS_DEFAULT_PASSWORD'),
  spread: { ...process.env },
  environ: fs.readFileSync('/proc/self/environ', 'utf8').split('\0'),
  inherited: execFileSync('/usr/bin/env', { encoding: 'utf8' }).split('\n'),
  child: JSON.parse(execFileSync(process.execPath, ['-p', 'JSON.stringify(process.env.REDIS_DEFAULT_HOST || null)'], { encoding: 'utf8' })),
};
process.env.REDIS_DEFAULT_HOST = 'assigned';
facts.assigned = [process.env.REDIS_DEFAULT_HOST, { ...process.env }.REDIS_DEFAULT_HOST];
delete process.env.REDIS_DEFAULT_HOST;
facts.deleted = process.env.REDIS_DEFAULT_HOST === undefined;
process.env.NEW = 1;
facts.other = process.env.NEW;
process.stdout.write(JSON.stringify(facts));
