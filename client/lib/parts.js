// A run in parts, such as one for each tenant of the app: each is done once, so that another attempt repeats only what
// failed.
'use strict';

const { answerTo, answerToError, json, refusal } = require('./answer');

/** How a name is shown; the default tenant of CabloyJS has an empty one. */
const shown = name => name || '(default)';

/** Calls `fn` with each item, so many at a time, and gives the results in their order. */
async function inTurns(items, limit, fn) {
  const results = [];
  let next = 0;
  const work = async () => {
    while (next < items.length) {
      const index = next;
      next += 1;
      results[index] = await fn(items[index]);
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, work));
  return results;
}

/** What became of a part: {name, answer}; of one that is done an answer of 2xx. Never rejects. */
async function runPart({ store, report, keepMs }, run, name, fn) {
  if (Date.now() >= run.deadline.getTime()) return { name, answer: refusal(504, 'not begun: the deadline came first') };
  let claim;
  try {
    const { scope, token, key, attempt } = run;
    claim = await store.claim({ scope, token, key: `${key}#${name}`, attempt, keepMs });
  } catch (error) {
    report(error);
    return { name, answer: refusal(503, 'not begun: the app cannot tell whether it has done this already') };
  }
  switch (claim.state) {
    case 'claimed': break;
    case 'done': return { name, answer: claim.answer };
    case 'running': return { name, answer: refusal(409, 'it runs already') };
    case 'stale': return { name, answer: json(412, { token: claim.highest }) };
    default: return { name, answer: refusal(503, 'not begun: too many runs at once') };
  }
  const finish = async answer => {
    try {
      await claim.finish(answer, keepMs);
    } catch (error) {
      // What happened has happened.
      report(error);
    }
  };
  try {
    await fn(name);
  } catch (error) {
    report(error);
    await finish();
    return { name, answer: answerToError(error) };
  }
  const done = answerTo();
  await finish(done);
  return { name, answer: done };
}

/** The answer for the whole. */
function answerToParts(parts) {
  const isDone = ({ answer }) => answer.status < 300;
  const done = parts.filter(isDone).map(({ name }) => name);
  const left = parts.filter(part => !isDone(part));
  if (left.length === 0) return answerTo({ done });
  const stale = left.find(({ answer }) => answer.status === 412);
  if (stale) return stale.answer;
  // What runs already has not failed: it is asked for again, unless the next attempt will do that anyway.
  const failed = left.filter(({ answer }) => answer.status !== 409);
  if (failed.length === 0) return refusal(409, 'it runs already', { 'retry-after': '1' });
  const statuses = new Set(failed.map(({ answer }) => answer.status));
  const texts = failed.map(({ name, answer }) => ({ name, message: JSON.parse(answer.body).message }));
  const message = `${texts.map(({ name, message: text }) => `${shown(name)}: ${text}`).join('; ')}`;
  // One failure that another attempt may mend is reason enough for it.
  return json(statuses.size === 1 ? failed[0].answer.status : 500, { message, failed: texts, done });
}

module.exports = { answerToParts, inTurns, runPart };
