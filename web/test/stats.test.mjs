import assert from 'node:assert/strict';
import test from 'node:test';

import { edge } from '../watch/probe.js';
import { Running, Stalls, bitrate, bufferAhead, label, picture, seconds, sparkline } from '../watch/stats.js';

const ranges = (...pairs) => ({ length: pairs.length, start: (i) => pairs[i][0], end: (i) => pairs[i][1] });

test('stalls are counted once each, and only after the start', () => {
  const stalls = new Stalls();
  stalls.handleWaiting(0, true);
  assert.equal(stalls.count, 0);
  stalls.handlePlaying(1000);
  stalls.handleWaiting(2000, false);
  assert.equal(stalls.count, 0);
  stalls.handleWaiting(3000, true);
  stalls.handleWaiting(3100, true);
  stalls.handlePlaying(3500);
  assert.deepEqual([stalls.count, stalls.seconds, stalls.log], [1, 0.5, [{ at: 3000, seconds: 0.5 }]]);
});

test('a running count survives resets', () => {
  const count = new Running();
  assert.deepEqual([0, 3, 5, 1, 2, 0, 4].map((value) => count.update(value)), [0, 3, 5, 6, 7, 7, 11]);
});

test('the buffer ends at the first hole', () => {
  assert.equal(bufferAhead(ranges(), 5), 0);
  assert.equal(bufferAhead(ranges([0, 10]), 4), 6);
  assert.equal(bufferAhead(ranges([0, 10], [10.05, 12]), 4), 8);
  assert.equal(bufferAhead(ranges([0, 10], [11, 12]), 4), 6);
  assert.equal(bufferAhead(ranges([5, 10]), 4), 0);
});

test('numbers in words', () => {
  assert.equal(seconds(1.234), '1.23 s');
  assert.equal(seconds(null), '–');
  assert.equal(bitrate(850), '850 kbit/s');
  assert.equal(bitrate(2900), '2.9 Mbit/s');
  assert.equal(picture({ width: 1280, height: 720, fps: 29.97003 }), '1280×720 @\u00a029.97\u00a0fps');
  assert.equal(label({ name: 'v0', height: 720, fps: 60, kbps: 2900 }), '720p60 · 2.9 Mbit/s');
  assert.equal(label({ name: 'audio', height: null, fps: null, kbps: 128 }), 'audio · 128 kbit/s');
  assert.equal(sparkline([1, null, 1], 3, 100, 11), '0.0,1.0 100.0,1.0');
});

test('a playlist\'s edge moves with its media and with nothing else', () => {
  const playlist = (sequence, parts, segments, report) =>
    [`#EXT-X-MEDIA-SEQUENCE:${sequence}`, ...segments, ...parts.map((part) => `#EXT-X-PART:URI="${part}"`), `#EXT-X-RENDITION-REPORT:${report}`].join('\n');
  const before = edge(playlist(1, ['a'], ['1.m4s'], 'x'));
  assert.equal(edge(playlist(1, ['a'], ['1.m4s'], 'y')), before);
  assert.notEqual(edge(playlist(1, ['a', 'b'], ['1.m4s'], 'x')), before);
  assert.notEqual(edge(playlist(1, ['a'], ['1.m4s', '2.m4s'], 'x')), before);
  assert.notEqual(edge(playlist(2, ['a'], ['1.m4s'], 'x')), before);
});
