import assert from 'node:assert/strict';
import test from 'node:test';

import { whose } from '../console/viewers.js';

test('a count says whose viewers it leaves out', () => {
  const said = (here, elsewhere) => whose({ viewers_at: here, viewers_not_at: elsewhere });
  assert.equal(said(['pop-1'], ['pop-2', 'pop-3']), 'Viewers are those who asked pop-1 for something in the last half minute, without those of pop-2, pop-3.');
  assert.match(said(['pop-1'], []), /half minute\.$/);
  assert.match(said([], ['pop-2']), /ask pop-2/);
  assert.match(said([], []), /this node is none/);
});
