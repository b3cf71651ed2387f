// What the page does and when: find out whether the stream is on, start a player, notice that it is stuck, recover.
// Pure: no clock, no network, no document. The caller supplies the time in milliseconds, makes one mutation, drains
// `poll` until it returns null, then waits for `pollTimeout` or for the next event.

/** How often a stream that is not playing is looked for. */
export const PROBE_MS = 2000;
/** A player that stands still for longer than this is stuck. Broadcasters who return sooner cost no recovery. */
export const STUCK_MS = 8000;
/** After this long without trouble, the next trouble begins with the gentle cure again. */
export const WELL_MS = 15000;
/** A standstill longer than this leaves playback behind the live edge. */
export const BEHIND_MS = 1500;
/** For this long after a standstill the player is told, every PROBE_MS, to get back to the live edge if it is far off:
 *  right after it, player and playlist may not know yet how far that is. */
export const SETTLE_MS = 10000;
/** Longest wait before another new player; it doubles from PROBE_MS. */
export const MAX_BACKOFF_MS = 16000;

/**
 * Phases: checking (nothing known yet), offline (no manifest), ended (the manifest says so), unreachable (no answer),
 * starting (a player was made), playing, recovering (the player failed or stands still), waiting (the manifest is
 * there and does not grow: it is the broadcaster who stands still).
 *
 * Actions: probe, create, destroy, soften (the gentle cure: the player keeps its buffers), jump (to the live edge).
 */
export class Session {
  constructor(now) {
    this.phase = 'checking';
    this.recoveries = 0;
    this.actions = [];
    this.hasPlayer = false;
    this.probing = false;
    this.probeAt = null;
    this.marker = null;
    this.attempts = 0;
    this.troubledAt = null;
    this.#fresh(now);
    this.#probe();
  }

  /** A probe's answer: 'live', 'ended', 'absent' or 'unreachable'; `marker` differs whenever the live edge moved. */
  handleManifest(now, status, marker = null) {
    this.probing = false;
    const seenBefore = this.marker;
    this.marker = marker;
    if (status === 'unreachable') {
      if (!this.hasPlayer) this.phase = 'unreachable';
      if (!this.hasPlayer || this.#troubled()) this.probeAt = now + PROBE_MS;
    } else if (status !== 'live') {
      this.#leave(now, status === 'ended' ? 'ended' : 'offline');
    } else if (!this.hasPlayer) {
      this.#create(now);
    } else if (this.#troubled()) {
      this.#cure(now, seenBefore);
    }
  }

  /** The media element as it is now; called some times a second. A pause is the viewer's wish and never a fault. */
  handleProgress(now, { time, paused, seeking, ended }) {
    if (!this.hasPlayer) return;
    const moved = this.time !== null && time !== this.time;
    this.time = time;
    // Whoever seeks knows where to; a pause too is no reason to be taken elsewhere.
    if (seeking || paused) this.jumpUntil = null;
    else if (moved && now - this.movedAt > BEHIND_MS && this.phase !== 'starting') this.#settle(now);
    // The first move may be the player's own seek to its start; the second is playback.
    this.moves = moved ? this.moves + 1 : 0;
    if (moved || paused) this.#moved(now);
    if (ended) this.#trouble(now, 'ended');
    else if (this.moves >= 2 && this.error === null) this.#well(now);
    if (this.jumpUntil !== null && moved && now >= this.jumpAt) {
      this.jumpAt = now + PROBE_MS;
      if (now >= this.jumpUntil) this.jumpUntil = null;
      this.actions.push({ do: 'jump' });
    }
  }

  /** The player gave up (`kind`: 'network', 'media' or 'other'). Errors that it deals with itself do not come here. */
  handleError(now, kind) {
    if (this.hasPlayer) this.#trouble(now, kind);
  }

  /** The viewer chose another player: begin again with that one. */
  handleSwitch(now) {
    if (this.hasPlayer) this.#leave(now, 'checking');
    this.probeAt = null;
    this.#probe();
  }

  handleTimeout(now) {
    if (this.probeAt !== null && now >= this.probeAt) {
      this.probeAt = null;
      this.#probe();
    }
    if (!this.hasPlayer || this.#troubled()) return;
    const still = now - this.movedAt;
    if (still >= STUCK_MS) {
      this.#trouble(now, 'stuck');
    } else if (still >= STUCK_MS - PROBE_MS && !this.suspected) {
      // Two probes, PROBE_MS apart, tell whether the stream itself goes on.
      this.suspected = true;
      this.#probe();
    }
  }

  poll() {
    return this.actions.shift() ?? null;
  }

  /** When to call `handleTimeout`, or null. */
  pollTimeout() {
    const times = [];
    if (this.probeAt !== null) times.push(this.probeAt);
    if (this.hasPlayer && !this.#troubled()) {
      times.push(this.movedAt + (this.suspected ? STUCK_MS : STUCK_MS - PROBE_MS));
    }
    return times.length ? Math.min(...times) : null;
  }

  #troubled() {
    return this.phase === 'recovering' || this.phase === 'waiting';
  }

  #probe() {
    if (this.probing) return;
    this.probing = true;
    this.actions.push({ do: 'probe' });
  }

  #fresh(now) {
    this.time = null;
    this.moves = 0;
    this.error = null;
    this.jumpAt = null;
    this.jumpUntil = null;
    this.#moved(now);
  }

  #settle(now) {
    this.jumpAt = now;
    this.jumpUntil = now + SETTLE_MS;
  }

  #moved(now) {
    this.movedAt = now;
    this.suspected = false;
  }

  #create(now) {
    this.hasPlayer = true;
    this.phase = 'starting';
    this.probeAt = null;
    this.#fresh(now);
    this.actions.push({ do: 'create' });
  }

  #leave(now, phase) {
    if (this.hasPlayer) this.actions.push({ do: 'destroy' });
    this.hasPlayer = false;
    this.phase = phase;
    this.attempts = 0;
    this.troubledAt = null;
    this.#fresh(now);
    this.probeAt = now + PROBE_MS;
  }

  #well(now) {
    if (this.#troubled()) {
      // It moved by itself or the gentle cure helped; either way it may be far behind by now.
      this.#settle(now);
      this.troubledAt = now;
      this.probeAt = null;
    }
    this.phase = 'playing';
  }

  #trouble(now, kind) {
    const error = kind === 'stuck' ? null : kind;
    if (this.#troubled()) {
      this.error ??= error;
      return;
    }
    if (this.troubledAt === null || now - this.troubledAt > WELL_MS) this.attempts = 0;
    this.troubledAt = now;
    this.error = error;
    this.moves = 0;
    this.phase = 'recovering';
    // A new player that fails at once must not be followed by another at once.
    if (this.attempts === 0) this.#probe();
    else this.probeAt = now + Math.min(PROBE_MS * 2 ** (this.attempts - 1), MAX_BACKOFF_MS);
  }

  /** The manifest is there and the player is not well: be gentle once, then begin anew, ever less often. */
  #cure(now, seenBefore) {
    const broken = this.error === 'media' || this.error === 'ended';
    const idle = this.marker !== null && this.marker === seenBefore;
    const returned = this.phase === 'waiting' && !idle;
    if (this.attempts === 0 && this.error !== null && this.error !== 'ended') {
      this.#soften(now);
    } else if (idle && !broken) {
      // A new player would only show the last second again.
      this.phase = 'waiting';
      this.probeAt = now + PROBE_MS;
    } else if (returned && this.error === null) {
      // The broadcaster is back; most likely the player goes on by itself.
      this.phase = 'recovering';
      this.probeAt = now + PROBE_MS;
    } else if (this.attempts === 0 && !broken) {
      this.#soften(now);
    } else {
      this.recoveries += 1;
      this.attempts += 1;
      this.actions.push({ do: 'destroy' });
      this.#create(now);
    }
  }

  #soften(now) {
    this.recoveries += 1;
    this.attempts += 1;
    this.actions.push({ do: 'soften', kind: this.error ?? 'stuck' });
    this.error = null;
    this.moves = 0;
    this.probeAt = now + 2 * PROBE_MS;
  }
}
