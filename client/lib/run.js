// The headers of a call, strictly: what cannot be read is refused, never guessed.
'use strict';

class Malformed extends Error {}

/** By name, a header's text; undefined if there is none. Takes the headers of node:http and koa, and Headers of fetch. */
function headerOf(headers) {
  return name => {
    const value = typeof headers.get === 'function' ? headers.get(name) : headers[name];
    return typeof value === 'string' && value !== '' ? value : undefined;
  };
}

/** A string of RFC 8941. */
function parseKey(text) {
  if (text.length > 1024 || !/^"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+"$/.test(text)) return undefined;
  return text.slice(1, -1).replace(/\\(.)/g, '$1');
}

function parseDate(text) {
  if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/.test(text)) return undefined;
  const date = new Date(text.replace(/(\.\d{3})\d+/, '$1'));
  return Number.isNaN(date.getTime()) ? undefined : date;
}

function parseNumber(text) {
  const number = /^(0|[1-9][0-9]{0,15})$/.test(text) ? Number(text) : NaN;
  return Number.isSafeInteger(number) ? number : undefined;
}

const parseAttempt = text => parseNumber(text) || undefined;

const parseType = text => (/^io\.cabloy\.([a-z]+)$/.exec(text) || [])[1];

const parseSource = text => (/^\/cabloy\/([^/]+\/[^/]+)$/.exec(text) || [])[1];

const parseTrace = text => (/^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(text) ? text : undefined);

/** The run that a call is of. Throws `Malformed`. */
function parseRun(header, body) {
  const read = (name, parse, what) => {
    const text = header(name);
    if (text === undefined) throw new Malformed(`the header ${name} is missing`);
    const value = parse(text);
    if (value === undefined) throw new Malformed(`the header ${name} is not ${what}`);
    return value;
  };
  const optional = (name, parse, what) => (header(name) === undefined ? undefined : read(name, parse, what));
  const kind = read('ce-type', parseType, 'io.cabloy.schedule or io.cabloy.startup');
  const time = read('ce-time', parseDate, 'a time as RFC 3339 has it');
  const run = {
    key: read('idempotency-key', parseKey, 'a text in quotes'),
    kind,
    name: read('ce-subject', text => text, 'a name'),
    cluster: read('ce-source', parseSource, '/cabloy/<namespace>/<cluster>'),
    // Of a startup task it is no more than when the attempt began.
    tick: kind === 'schedule' ? time : undefined,
    attempt: read('attempt', parseAttempt, 'a number from 1'),
    deadline: read('deadline', parseDate, 'a time as RFC 3339 has it'),
    token: optional('fencing-token', parseNumber, 'a number below 2^53'),
    scope: read('fencing-scope', text => text, 'a text'),
    traceparent: parseTrace(header('traceparent') || ''),
    body,
    data: undefined,
  };
  if (body.length > 0 && /^application\/json\b/i.test(header('content-type') || '')) {
    try {
      run.data = JSON.parse(body.toString());
    } catch (_) {
      throw new Malformed('the body is not JSON');
    }
  }
  return run;
}

module.exports = { Malformed, headerOf, parseRun };
