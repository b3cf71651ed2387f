import assert from 'node:assert/strict';
import { test } from 'node:test';

import { behindGap } from '../watch/players.js';

const PERIODS = [{ start: 1, duration: 8 }, { start: 9, duration: 2.6 }, { start: 20 }];

function ranges(...list) {
  return { length: list.length, start: (i) => list[i][0], end: (i) => list[i][1] };
}

for (const [what, time, buffered, expected] of [
  ['at the end, and the next is there', 11.58, ranges([5, 11.58], [20.02, 21]), 20.02],
  ['at the end, and the next is not there', 11.58, ranges([5, 11.58]), null],
  ['at the end, and only later media is there', 11.58, ranges([5, 11.58], [23, 24]), null],
  ['in the gap', 15, ranges([5, 11.58], [20, 21]), 20],
  ['before the end', 10, ranges([5, 8], [20, 21]), null],
  ['at a border without a gap', 8.9, ranges([5, 8.9], [9.1, 11]), 9.1],
  ['in the newest', 20.1, ranges([20, 21]), null],
  ['nothing is known', 5, ranges(), null],
]) {
  test(what, () => assert.equal(behindGap(PERIODS, time, buffered), expected));
}
