import assert from 'node:assert/strict';
import test from 'node:test';

import { changes, edited, shown } from '../console/policy.js';

const before = { name: 'media', paths: ['*.m4s'], ttl: '1h', blocking_timeout: '1s', max_fetches: 3 };

test('fields say what a class becomes, and what is empty is left out', () => {
  const after = edited(before, { ttl: ' 2s ', blocking_timeout: '', max_fetches: '4', negative_ttl: '' });
  assert.deepEqual(after, { name: 'media', paths: ['*.m4s'], ttl: '2s', max_fetches: 4 });
  // What is no number goes to the server as it is, which says what is wrong with it.
  assert.equal(edited(before, { max_fetches: 'two' }).max_fetches, 'two');
  assert.deepEqual([shown(undefined), shown('1s'), shown(3)], ['', '1s', '3']);
});

test('changes are told one by one', () => {
  const policy = (one) => ({ classes: [one], delivery: [] });
  assert.deepEqual(changes(policy(before), policy({ ...before, ttl: '2s', max_fetches: undefined })), ['media.ttl: "1h" → "2s"', 'media.max_fetches: 3 → none']);
  assert.deepEqual(changes(policy(before), policy(before)), []);
});
