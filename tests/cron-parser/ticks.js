// The next ticks of each case by a version of cron-parser.
//   node ticks.js PACKAGE COUNT <CASES >TICKS
// A case is a line: expression, time zone and start (milliseconds), between tabs. So is its answer: the ticks as the
// iterator gives them, and as BullMQ asks, with a new expression for each; or an error in their place.
'use strict';
const [name, count] = process.argv.slice(2);
const library = require(name);
const parse = library.parseExpression ?? library.CronExpressionParser.parse.bind(library.CronExpressionParser);

const ticks = (tz, start, next) => {
  const found = [];
  try {
    for (let at = start; found.length < count;) found.push(at = next(at));
    return found.join(' ');
  } catch (error) {
    return [...found, `error: ${error.message}`].join(' ').replace(/\s+/g, ' ');
  }
};

const answer = ([expression, tz, start]) => {
  const at = currentDate => parse(expression, { currentDate, tz });
  try {
    const iterator = at(new Date(Number(start)));
    return [
      ticks(tz, Number(start), () => iterator.next().getTime()),
      ticks(tz, Number(start), last => at(new Date(last)).next().getTime()),
    ].join('\t');
  } catch (error) {
    return `refused: ${error.message}`.replace(/\s+/g, ' ');
  }
};

const cases = require('node:fs').readFileSync(0, 'utf8').trimEnd().split('\n');
process.stdout.write(cases.map(line => answer(line.split('\t')) + '\n').join(''));
