// Options as they must be. What is wrong is said in full: which option, what is wrong, what to write instead.
'use strict';

/** What a value is, in few words, and never a secret: only values that are no texts are shown. */
function shown(value) {
  if (typeof value === 'number' || typeof value === 'boolean' || value === null) return String(value);
  if (Array.isArray(value)) return 'a list';
  const names = { undefined: 'missing', string: 'a text', function: 'a function', object: 'an object' };
  return names[typeof value] || `a ${typeof value}`;
}

function refuse(where, option, value, instead) {
  throw new TypeError(`${where}: ${option} is ${shown(value)}; write ${instead}`);
}

/** Refuses options that there are not, which are mistyped most of the time. */
function checkNames(where, options, names) {
  if (options === null || typeof options !== 'object' || Array.isArray(options)) {
    refuse(where, 'the argument', options, `an object with ${names.join(', ')}`);
  }
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) {
      throw new TypeError(`${where}: there is no option ${name}; write one of ${names.join(', ')}`);
    }
  }
}

function checkNumber(where, option, value, least, instead) {
  if (!Number.isSafeInteger(value) || value < least) refuse(where, option, value, instead);
}

function checkFunction(where, option, value, instead) {
  if (typeof value !== 'function') refuse(where, option, value, instead);
}

module.exports = { checkFunction, checkNames, checkNumber, refuse };
