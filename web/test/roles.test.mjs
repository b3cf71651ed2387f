import assert from 'node:assert/strict';
import test from 'node:test';

import { may, mustSignIn, named } from '../console/roles.js';

test('each role may do what those before it may', () => {
  const who = (role) => ({ sign_in: true, name: 'anna', role });
  assert.deepEqual(['view', 'operate', 'admin'].map((role) => may(who('operate'), role)), [true, true, false]);
  assert.ok(may(who('view'), 'view') && !may(who('view'), 'operate'));
  assert.ok(may({ sign_in: false, name: 'loopback', role: 'admin' }, 'admin'));
  // Nobody, and roles of another version.
  for (const nobody of [null, { sign_in: true, name: null, role: null }, who('root')]) assert.ok(!may(nobody, 'view'));
});

test('who is nobody signs in', () => {
  assert.ok(mustSignIn({ sign_in: true, name: null, role: null }));
  assert.ok(!mustSignIn({ sign_in: true, name: 'anna', role: 'view' }));
  assert.ok(!mustSignIn({ sign_in: false, name: 'loopback', role: 'admin' }));
  assert.equal(named({ sign_in: true, name: 'anna', role: 'view' }), 'anna (view)');
  assert.equal(named({ sign_in: true, name: null, role: null }), '');
});
