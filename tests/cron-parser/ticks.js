// The next ticks of each case by a version of cron-parser.
//   node ticks.js PACKAGE COUNT <CASES >TICKS
// A case is a line: expression, time zone and start (milliseconds), between tabs. So is its answer: the ticks of one
// iterator, and those of a new expression for each tick, as BullMQ asks; where there are none (any more), the error.
'use strict';
const { IANAZone } = require('luxon');

const [name, count] = process.argv.slice(2);
const library = require(name);
const parse = library.parseExpression ?? library.CronExpressionParser.parse.bind(library.CronExpressionParser);

// Most time goes into offsets; on most days they do not change.
const DAY = 86_400_000;
const offset = IANAZone.prototype.offset;
IANAZone.prototype.offset = function (time) {
  const days = this.days ??= new Map();
  const day = Math.floor(time / DAY);
  let known = days.get(day);
  if (known === undefined) {
    const [start, end] = [day * DAY, (day + 1) * DAY].map(at => offset.call(this, at));
    days.set(day, known = start === end ? start : null);
  }
  return known ?? offset.call(this, time);
};

const ticks = (start, next) => {
  const found = [];
  try {
    for (let at = start; found.length < count;) found.push(at = next(at));
  } catch (error) {
    found.push(`error: ${error.message}`.replace(/\s+/g, ' '));
  }
  return found.join(' ');
};

const answer = ([expression, tz, start]) => {
  const at = time => parse(expression, { currentDate: new Date(time), tz });
  try {
    const iterator = at(Number(start));
    // All that an iterator remembers from one tick to the next: without, a new expression comes to the same.
    let remembers = false;
    const one = ticks(Number(start), () => {
      const tick = iterator.next();
      remembers ||= [iterator._dstStart, iterator._dstEnd, tick.dstStart, tick.dstEnd].some(kept => kept != null);
      return tick.getTime();
    });
    return `${one}\t${remembers ? ticks(Number(start), time => at(time).next().getTime()) : one}`;
  } catch (error) {
    return `refused: ${error.message}`.replace(/\s+/g, ' ');
  }
};

const cases = require('node:fs').readFileSync(0, 'utf8').trimEnd().split('\n');
process.stdout.write(cases.map(line => answer(line.split('\t')) + '\n').join(''));
