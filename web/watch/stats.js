// Numbers about playback, counted and put into words. No document here.

/** Counts the times that playback stood still by itself, and for how long. Times in milliseconds. */
export class Stalls {
  constructor() {
    this.count = 0;
    this.seconds = 0;
    /** The last 100: {at: Unix milliseconds, seconds}; `seconds` is null while it lasts. */
    this.log = [];
    this.started = false;
    this.since = null;
  }

  /** Playback moves. */
  handlePlaying(now) {
    this.started = true;
    if (this.since === null) return;
    const seconds = (now - this.since) / 1000;
    this.seconds += seconds;
    this.log[this.log.length - 1].seconds = seconds;
    this.since = null;
  }

  /** Playback ran dry. Before the start and while seeking or paused that is no stall. */
  handleWaiting(now, wanted) {
    if (!this.started || !wanted || this.since !== null) return;
    this.since = now;
    this.count += 1;
    this.log.push({ at: now, seconds: null });
    if (this.log.length > 100) this.log.shift();
  }

  /** The stream is over; what comes next starts anew. */
  handleStop(now) {
    if (this.started) this.handlePlaying(now);
    this.started = false;
  }
}

/** A count that its source sets back to zero now and then, as dropped frames are with each new player. */
export class Running {
  #before = 0;
  #last = 0;

  update(value) {
    if (value < this.#last) this.#before += this.#last;
    this.#last = value;
    return this.#before + value;
  }
}

/** Seconds of media ahead of `time` without a hole; holes of up to 0.1 s do not count. */
export function bufferAhead(ranges, time) {
  let end = time;
  for (let i = 0; i < ranges.length; i += 1) {
    if (ranges.start(i) <= end + 0.1 && ranges.end(i) > end) end = ranges.end(i);
  }
  return end - time;
}

export function seconds(value, digits = 2) {
  return Number.isFinite(value) ? `${value.toFixed(digits)} s` : '–';
}

export function bitrate(kbps) {
  if (!Number.isFinite(kbps) || kbps <= 0) return '';
  return kbps < 1000 ? `${kbps} kbit/s` : `${(kbps / 1000).toFixed(1)} Mbit/s`;
}

/** `1280×720 @ 30 fps` */
export function picture({ width, height, fps }) {
  if (!width || !height) return '';
  return `${width}×${height}${fps ? ` @\u00a0${Number(fps.toFixed(2))}\u00a0fps` : ''}`;
}

/** What the quality menu calls a rendition: `720p · 2.9 Mbit/s` */
export function label(rendition) {
  const { name, height, fps } = rendition;
  const size = height ? `${height}p${fps && fps > 31 ? Math.round(fps) : ''}` : name || 'Audio';
  return [size, bitrate(rendition.kbps)].filter(Boolean).join(' · ');
}

/** Points of an SVG polyline for the last `room` values in a box of `width` by `height`; the scale begins at zero. */
export function sparkline(values, room, width, height) {
  const top = Math.max(1, ...values.filter(Number.isFinite)) * 1.1;
  return values
    .map((value, i) => [((room - values.length + i) / (room - 1)) * width, value])
    .filter(([, value]) => Number.isFinite(value))
    .map(([x, value]) => `${x.toFixed(1)},${(height - (Math.max(value, 0) / top) * height).toFixed(1)}`)
    .join(' ');
}
