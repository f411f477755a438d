// Answers, as the agent understands them: {status, headers, body}, the body a text.
'use strict';

const JSON_TYPE = 'application/json; charset=utf-8';

/** The longest body that is kept with the answer of a run; the agent reads none of it but the code. */
const KEPT_BODY = 4096;

/** What a handler throws to have an answer of its own. Every other error is a 500, which the agent tries again. */
class Failure extends Error {
  /**
   * @param status 400 to 599; docs/agent.md says what the agent makes of each
   * @param message for the status of the cluster
   * @param retryAfterS after how many seconds the agent may try again
   */
  constructor(status, message, retryAfterS) {
    super(message);
    this.name = 'Failure';
    if (!Number.isInteger(status) || status < 400 || status > 599) {
      throw new TypeError(`new Failure: status is ${String(status)}; write a number from 400 to 599`);
    }
    if (retryAfterS !== undefined && (!Number.isSafeInteger(retryAfterS) || retryAfterS < 0)) {
      throw new TypeError('new Failure: retryAfterS is no whole number of seconds; write one such as 30');
    }
    // By these names koa takes them too.
    this.status = status;
    this.expose = true;
    this.headers = retryAfterS === undefined ? {} : { 'retry-after': String(retryAfterS) };
  }
}

/** What a handler returns for work that it has begun and that goes on. */
class Accepted {
  constructor(location) {
    // The agent asks nobody but its app.
    if (typeof location !== 'string' || !/^\/[\x21-\x7e]*$/.test(location)) {
      throw new TypeError('accepted: location is no path; write where to ask for the run, such as "/jobs/1"');
    }
    this.location = location;
  }
}

function json(status, value, headers) {
  return { status, headers: Object.assign({ 'content-type': JSON_TYPE }, headers), body: JSON.stringify(value) };
}

function refusal(status, message, headers) {
  return json(status, { message }, headers);
}

/** The answer to what a handler returned. Never has a `code`: of a CabloyJS app the agent would take it for a failure. */
function answerTo(value) {
  if (value instanceof Accepted) return { status: 202, headers: { location: value.location }, body: '' };
  if (value === undefined) return { status: 204, headers: {}, body: '' };
  return json(200, { data: value });
}

/** The answer to what a handler threw. */
function answerToError(error) {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof Failure)) return refusal(500, message);
  return refusal(error.status, message, error.headers);
}

/** As it is kept: without a body that is long. */
function kept(answer) {
  return Buffer.byteLength(answer.body) <= KEPT_BODY ? answer : Object.assign({}, answer, { body: '' });
}

/** As it was given before. */
const replayed = answer => Object.assign({}, answer, { headers: Object.assign({}, answer.headers, { 'idempotent-replayed': 'true' }) });

/** Whether the run goes on, and the agent has been told where to ask for it. */
const isAccepted = answer => answer.status === 202 && answer.headers.location !== undefined;

module.exports = { Accepted, Failure, answerTo, answerToError, isAccepted, json, kept, refusal, replayed };
