// Signatures as Standard Webhooks 1.0.0 has them.
'use strict';

const crypto = require('crypto');
const fs = require('fs');

const PREFIX = 'whsec_';

/** The bytes of a key; none of what the agent would not take either. */
function parseKey(word) {
  if (!word.startsWith(PREFIX)) return undefined;
  const text = word.slice(PREFIX.length);
  const key = Buffer.from(text, 'base64');
  // What Buffer skips is no base64.
  return key.toString('base64') === text && key.length >= 24 && key.length <= 64 ? key : undefined;
}

/**
 * The keys in the file, as it is now: a few hundred bytes are read faster than a change of theirs is told for certain.
 * Throws if there is none; says nothing of what is in the file.
 */
async function readKeys(file) {
  let text;
  try {
    text = await fs.promises.readFile(file, 'utf8');
  } catch (error) {
    throw new Error(`keyFile ${file} cannot be read (${error.code})`);
  }
  const keys = text.split(/\s+/).filter(Boolean).map(parseKey).filter(Boolean);
  if (keys.length === 0) throw new Error(`keyFile ${file} has no key: whsec_ and the base64 of 24 to 64 bytes`);
  return keys;
}

function equal(one, other) {
  const [a, b] = [Buffer.from(one), Buffer.from(other)];
  return a.length === b.length && crypto.timingSafeEqual(a, b);
}

/**
 * What is wrong with the signature of a request; nothing of a good one.
 * @param header gives a header's text by its name, undefined if there is none
 */
function wrongSignature(header, body, keys, toleranceMs, now) {
  const [id, timestamp, signatures] = ['webhook-id', 'webhook-timestamp', 'webhook-signature'].map(header);
  if (!id || !timestamp || !signatures) return 'the call is not signed';
  if (!/^[0-9]{1,12}$/.test(timestamp)) return 'webhook-timestamp is no number of seconds';
  if (Math.abs(now - Number(timestamp) * 1000) > toleranceMs) return 'webhook-timestamp is too far from the time of now';
  const given = signatures.split(' ');
  const verified = keys.some(key => {
    // Node.js hands over the bytes of a header as Latin-1.
    const head = Buffer.from(`${id}.${timestamp}.`, 'latin1');
    const expected = `v1,${crypto.createHmac('sha256', key).update(head).update(body).digest('base64')}`;
    return given.some(signature => equal(signature, expected));
  });
  return verified ? undefined : 'no signature is by a key of this app';
}

module.exports = { readKeys, wrongSignature };
