import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { lint } from './mpd-lint.mjs';

const GOOD = readFileSync(new URL('../../origin/testdata/two_periods.mpd', import.meta.url), 'utf8');
/** As it is when a third run has begun. */
const LATER = GOOD.replace('22:13:41.000Z" minimum', '22:14:00.000Z" minimum')
  .replace('<Period id="6" start="PT21S">', '<Period id="6" start="PT21S" duration="PT10S">')
  .replace(/ {2}<Period id="6"[\s\S]*<\/Period>\n/, (period) => period + period
    .replace('id="6" start="PT21S" duration="PT10S"', 'id="7" start="PT35S"').replaceAll('"1890000"', '"3150000"').replaceAll('6/$', '7/$')
    .replace('6/thumbnails', '7/thumbnails').replace('startNumber="2"', 'startNumber="3"').replace('t="1800000"', 't="2700000"')
    .replace('startNumber="1013"', 'startNumber="1023"').replace('22:13:40.000Z', '22:13:54.000Z').replace('value="5"', 'value="6"'));

test('what the origin renders is as it must be', () => {
  assert.deepEqual(lint([GOOD, GOOD, LATER]), []);
});

/** Two sheets that reach to 40 s, and the same once a cut at `end` is told, where there is only the first of them. */
const cutAt = (end) => [
  GOOD.replace('22:13:41.000Z', '22:13:52.000Z').replace('d="900000"/>', 'd="900000" r="1"/>'),
  GOOD.replace('22:13:41.000Z', '22:13:53.000Z').replace('start="PT21S"', `start="PT21S" duration="PT${end - 21}S"`),
];

test('sheets behind a cut are the next Period\'s', () => {
  assert.deepEqual(lint(cutAt(30)), []);
});

for (const [what, texts, problem] of [
  ['no XML', [GOOD.replace('</MPD>', '')], /not XML|mpd-parser/],
  ['another first clock', [GOOD.replaceAll('http-xsdate', 'direct')], /the first UTCTiming/],
  ['overlapping Periods', [GOOD.replace('PT12.5S', 'PT20.5S')], /Period 5: reaches into 6/],
  ['a Period without an end before another', [GOOD.replace(' duration="PT12.5S"', '')], /duration is not told/],
  ['two sets of one id', [GOOD.replace('<AdaptationSet id="1"', '<AdaptationSet id="0"')], /AdaptationSet@id is not unique/],
  ['chunks that are no chunks', [GOOD.replace('dT="9600"', 'dT="96000"')], /set 1: Resync/],
  ['an offset that is not of the chunk', [GOOD.replace('availabilityTimeOffset="0.800"', 'availabilityTimeOffset="0.500"')], /availabilityTimeOffset 0.5/],
  ['media that are elsewhere', [GOOD.replaceAll('TimeOffset="90000"', 'TimeOffset="180000"')], /presentationTimeOffset 2 s/],
  ['a reference time that is off', [GOOD.replace('wallClockTime="2023-11-14T22:13:20', 'wallClockTime="2023-11-14T22:13:21')], /1000 ms off/],
  ['a connection to nothing', [GOOD.replace('value="5"', 'value="4"')], /no Period 4 before/],
  ['a change without a date', [GOOD, GOOD.replace('PT30S', 'PT31S')], /publishTime says nothing/],
  ['a date that goes back', [LATER, GOOD], /publishTime went back/],
  ['another beginning', [GOOD, LATER.replace('22:13:19.000Z', '22:13:18.000Z')], /availabilityStartTime changed/],
  ['a Period that moves', [GOOD, LATER.replace('start="PT21S"', 'start="PT20S"')], /start went from 21 to 20/],
  ['a Period that lasts longer', [GOOD, LATER.replace('PT12.5S', 'PT12.6S')], /duration went from 12.5 to 12.6/],
  ['another bandwidth', [GOOD, LATER.replace('3000000', '3000001')], /Period 5: went from/],
  ['a Period gone from the middle', [LATER, LATER.replace('22:14:00', '22:14:01').replace(/ {2}<Period id="6"[\s\S]*?<\/Period>\n/, '')], /not the oldest/],
  ['numbers that return', [GOOD, LATER.replace('"1023"', '"1022"')], /begins with a number that 6 has/],
  ['tiles that do not fill their sheet', [GOOD.replace('"5x1"', '"3x1"')], /set 2: 3x1 tiles of 800x90/],
  ['a sheet of another period', [GOOD.replace('t="1800000"', 't="900000"').replace('startNumber="2"', 'startNumber="1"')], /set 2: the first sheet ends/],
  ['a sheet off the grid', [GOOD.replace('t="1800000"', 't="1890000"')], /set 2: sheet 2 begins at 21/],
  ['a sheet of the future', [GOOD.replace('d="900000"', 'd="900000" r="3"')], /set 2: the last sheet begins/],
  ['sheets that return', [LATER.replace('t="2700000" d', 't="2700000" r="1" d'), LATER.replace('PT30S', 'PT31S').replace('22:14:00', '22:14:01')], /its sheets went from/],
  ['a sheet gone before a cut', cutAt(31), /its sheets went from 2,3 to 2,2/],
  ['a change after the end', [GOOD.replace('"dynamic"', '"static"'), LATER], /it was static/],
]) {
  test(`${what} is found`, () => {
    const problems = lint(texts);
    assert.ok(problems.some((text) => problem.test(text)), `${problem} in\n${problems.join('\n')}`);
  });
}
