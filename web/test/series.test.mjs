import assert from 'node:assert/strict';
import test from 'node:test';

import { Samples, bits, bytes, milliseconds, parse, percent, ratio } from '../console/series.js';

test('names are taken apart', () => {
  assert.deepEqual(parse('process_tasks'), { family: 'process_tasks', labels: {} });
  assert.deepEqual(parse('a_total{tier="edge",class="x\\"y\\\\z"}'), { family: 'a_total', labels: { tier: 'edge', class: 'x"y\\z' } });
});

const hits = 'edge_class_requests_total{tier="edge",class="media",result="hit"}';
const misses = 'edge_class_requests_total{tier="edge",class="media",result="miss"}';

test('samples are added to, and what comes late began at nothing', () => {
  const samples = new Samples();
  samples.add({ interval_s: 10, times: [10, 20], series: { [hits]: [0, 50] } });
  samples.add({ interval_s: 10, times: [30], series: { [hits]: [90], [misses]: [10] } });
  assert.deepEqual(samples.sum('edge_class_requests_total', { tier: 'edge' }), [0, 50, 100]);
  assert.deepEqual(samples.rate('edge_class_requests_total', { result: 'hit' }), [null, 5, 4]);
  assert.deepEqual(samples.rate('edge_class_requests_total', { result: (result) => result !== 'hit' }), [null, 0, 1]);
  assert.deepEqual(samples.values('edge_class_requests_total', 'result'), ['hit', 'miss']);
  assert.equal(samples.growth('edge_class_requests_total', { result: 'hit' }, 10), 40);
  assert.equal(samples.newest, 30);
  assert.deepEqual([samples.span(60), samples.span(15), samples.span(0)], [20, 10, 10]);
  // A process that began anew counts from nothing.
  samples.add({ interval_s: 10, times: [40], series: { [hits]: [2], [misses]: [0] } });
  assert.equal(samples.rate('edge_class_requests_total', { tier: 'edge' })[3], null);
});

test('no more than an hour is kept', () => {
  const samples = new Samples();
  for (let time = 1; time <= 500; time += 1) samples.add({ interval_s: 10, times: [time], series: { [hits]: [time] } });
  assert.equal(samples.times.length, 360);
  assert.equal(samples.sum('edge_class_requests_total')[0], 141);
});

test('quantiles of what was counted lately', () => {
  const samples = new Samples();
  const bucket = (le) => `edge_wait_seconds_bucket{tier="edge",class="media",le="${le}"}`;
  const counted = { 0.1: [5, 5], 1.0: [5, 13], '+Inf': [5, 15] };
  samples.add({ interval_s: 10, times: [10, 20], series: Object.fromEntries(Object.entries(counted).map(([le, values]) => [bucket(le), values])) });
  assert.equal(samples.quantile('edge_wait_seconds', { tier: 'edge' }, 0.5, 60), 1);
  assert.equal(samples.quantile('edge_wait_seconds', { tier: 'edge' }, 0.95, 60), Infinity);
  assert.equal(samples.quantile('edge_wait_seconds', { tier: 'shield' }, 0.5, 60), null);
});

test('figures read well', () => {
  assert.deepEqual([0, 999, 1500, 123_456_789].map(bytes), ['0 B', '999 B', '1.5 kB', '123 MB']);
  assert.equal(bits(2_500_000), '2.5 Mbit/s');
  assert.deepEqual([null, 0, 0.0123, 0.987].map(percent), ['–', '0.0 %', '1.23 %', '98.7 %']);
  assert.deepEqual([null, 3.456, 250.4, 12_000].map(milliseconds), ['–', '3.5 ms', '250 ms', '12 s']);
  assert.deepEqual([ratio(1, 2), ratio(1, 0), ratio(null, 2)], [0.5, null, null]);
});
