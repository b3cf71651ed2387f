// Run by `node --test web/test`: the rules of the watch page under a virtual clock.

import assert from 'node:assert/strict';
import test from 'node:test';

import { MAX_BACKOFF_MS, PROBE_MS, SETTLE_MS, STUCK_MS, Session } from '../watch/session.js';

/** A page whose stream answers probes with `stream`, and whose player moves while `moving`. */
class World {
  constructor(stream) {
    this.now = 0;
    this.stream = stream;
    this.edge = 0;
    this.time = 0;
    this.moving = true;
    this.growing = true;
    this.paused = false;
    this.log = [];
    this.session = new Session(0);
    this.#drain();
  }

  run(ms) {
    for (const end = this.now + ms; this.now < end; ) {
      this.now += 250;
      if (this.growing) this.edge += 1;
      if (this.moving && !this.paused) this.time += 0.25;
      this.session.handleProgress(this.now, { time: this.time, paused: this.paused, seeking: false, ended: false });
      this.#drain();
      const due = this.session.pollTimeout();
      if (due !== null && due <= this.now) {
        this.session.handleTimeout(this.now);
        this.#drain();
      }
    }
    return this;
  }

  error(kind) {
    this.session.handleError(this.now, kind);
    this.#drain();
    return this;
  }

  /** What was done since the last call, without probes and repetitions. */
  actions() {
    const names = this.log.splice(0).map((entry) => entry.do).filter((name) => name !== 'probe');
    return names.filter((name, i) => name !== names[i - 1]).join(' ');
  }

  probes() {
    return this.log.splice(0).filter((entry) => entry.do === 'probe').length;
  }

  #drain() {
    for (let action; (action = this.session.poll()); ) {
      this.log.push(action);
      if (action.do === 'probe') this.session.handleManifest(this.now, this.stream, this.stream === 'live' ? String(this.edge) : null);
    }
  }
}

test('a live stream starts at once and is left alone', () => {
  const world = new World('live').run(60_000);
  assert.equal(world.session.phase, 'playing');
  assert.equal(world.session.recoveries, 0);
  assert.deepEqual(world.log.map((entry) => entry.do), ['probe', 'create']);
});

test('an offline stream is looked for every two seconds and starts by itself', () => {
  const world = new World('absent').run(20_000);
  assert.equal(world.session.phase, 'offline');
  assert.equal(world.probes(), 1 + 20_000 / PROBE_MS);
  world.stream = 'live';
  assert.equal(world.run(PROBE_MS + 1000).actions(), 'create');
  assert.equal(world.session.phase, 'playing');
});

test('ended and unreachable are told apart from offline', () => {
  assert.equal(new World('ended').session.phase, 'ended');
  assert.equal(new World('unreachable').session.phase, 'unreachable');
});

test('a stuck player of a stream that goes on is softened, then replaced', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.moving = false;
  assert.equal(world.run(STUCK_MS - 500).actions(), '');
  assert.equal(world.run(1000).actions(), 'soften');
  assert.equal(world.run(2 * PROBE_MS).actions(), 'destroy create');
  assert.equal(world.session.recoveries, 2);
  world.moving = true;
  world.run(1000);
  assert.equal(world.session.phase, 'playing');
});

test('a softened player that moves again jumps to the live edge and stays', () => {
  const world = new World('live').run(5000);
  world.moving = false;
  world.run(STUCK_MS + 500);
  world.moving = true;
  world.actions();
  assert.equal(world.run(10_000).actions(), 'jump');
  assert.equal(world.session.phase, 'playing');
  assert.equal(world.session.recoveries, 1);
});

test('a broadcaster who is away for long costs no recovery', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.moving = world.growing = false;
  assert.equal(world.run(60_000).actions(), '');
  assert.equal(world.session.phase, 'waiting');
  world.moving = world.growing = true;
  assert.equal(world.run(5000).actions(), 'jump');
  assert.equal(world.session.phase, 'playing');
  assert.equal(world.session.recoveries, 0);
});

test('a player that does not notice that the broadcaster is back is cured', () => {
  const world = new World('live').run(5000);
  world.moving = world.growing = false;
  world.run(30_000);
  world.actions();
  world.growing = true;
  assert.equal(world.run(2 * PROBE_MS + 500).actions(), 'soften');
});

test('a player that gave up while the broadcaster was away is softened, waits, and is replaced afterwards', () => {
  const world = new World('live').run(5000);
  world.moving = world.growing = false;
  world.actions();
  assert.equal(world.error('network').actions(), 'soften');
  assert.equal(world.error('network').run(30_000).actions(), '');
  world.growing = true;
  assert.equal(world.run(PROBE_MS + 250).actions(), 'destroy create');
});

test('a manifest that goes away during trouble means offline', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.moving = false;
  world.stream = 'absent';
  assert.equal(world.run(STUCK_MS + 500).actions(), 'destroy');
  assert.equal(world.session.phase, 'offline');
});

test('players that fail at once are replaced ever less often', () => {
  const world = new World('live');
  world.moving = false;
  let created = 0;
  for (let i = 0; i < 4 * 60; i += 1) {
    world.error('other').run(250);
    created += world.actions().split(' ').filter((name) => name === 'create').length;
  }
  assert.ok(created >= 3 && created <= 8, `${created} players in a minute`);
  const before = world.now;
  while (!world.error('other').run(250).actions().includes('create'));
  assert.ok(world.now - before <= MAX_BACKOFF_MS + PROBE_MS);
});

test('after a standstill the player is brought back to the live edge for a while', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.moving = false;
  world.run(3000);
  world.moving = true;
  world.run(60_000);
  assert.equal(world.log.filter((entry) => entry.do === 'jump').length, 1 + SETTLE_MS / PROBE_MS);
  assert.equal(world.session.recoveries, 0);
});

test('a pause is not a fault', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.paused = true;
  assert.equal(world.run(60_000).actions(), '');
  assert.equal(world.session.phase, 'playing');
});

test('a switch makes a new player at once', () => {
  const world = new World('live').run(5000);
  world.actions();
  world.session.handleSwitch(world.now);
  assert.equal(world.run(1000).actions(), 'destroy create');
});
