import assert from 'node:assert/strict';
import { test } from 'node:test';

import { around, duration, filled, lines, list, pairs, parsed } from '../console/whatif.js';

test('durations read as the configuration writes them', () => {
  for (const [text, ms] of [['500ms', 500], ['2s', 2000], ['1m 30s', 90_000], ['1s500ms', 1500], ['', null], ['7 parsecs', null], ['5', null], ['1s x', null]]) {
    assert.equal(parsed(text), ms, text);
  }
  for (const ms of [0, 250, 1000, 1500, 90_000]) assert.equal(parsed(duration(ms)), ms);
  assert.deepEqual(list('250ms, 1s 500ms,'), ['250ms', '1s 500ms']);
  assert.equal(around('1s', [0.25, 1, 2]), '250ms, 1s, 2s');
  assert.equal(around(undefined, [1]), '500ms');
});

const cell = (ttl_ms, blocking_timeout_ms, rule, edge_fetches) => ({ ttl_ms, blocking_timeout_ms, rule, edge_fetches });

test('a row has both rules, or is left out', () => {
  const rows = pairs([cell(500, 250, 'promote', 3), cell(500, 250, 'flood', 9), cell(500, 1000, 'promote', 2)]);
  assert.deepEqual(rows.map(({ ttl, timeout, promote, flood }) => [ttl, timeout, promote.edge_fetches, flood.edge_fetches]), [[500, 250, 3, 9]]);
});

test('a chart has a line for each TTL and rule over the timeouts', () => {
  const cells = [[500, 1000], [500, 250], [250, 250]].flatMap(([ttl, timeout]) => [cell(ttl, timeout, 'promote', ttl), cell(ttl, timeout, 'flood', timeout)]);
  assert.deepEqual(lines(pairs(cells), (one) => one.edge_fetches), [
    [250, 1000],
    [['Rooftop, TTL 250ms', [250, null]], ['flood, TTL 250ms', [250, null]], ['Rooftop, TTL 500ms', [500, 500]], ['flood, TTL 500ms', [250, 1000]]],
  ]);
});

test('chosen values go where they were tried', () => {
  const classes = [{ name: 'playlist', ttl: '500ms', blocking_timeout: '1s' }, { name: 'media', blocking_timeout: '2s' }];
  const draft = { ttl: '250ms', timeout: '3s', playlist: 'playlist', classes: ['media'] };
  assert.deepEqual(filled(classes, draft), [{ name: 'playlist', ttl: '250ms', blocking_timeout: '1s' }, { name: 'media', blocking_timeout: '3s' }]);
  assert.deepEqual(filled(classes, { ...draft, classes: [] }).map((one) => one.blocking_timeout), ['3s', '3s']);
});
