// What the samples of /admin/history say. Pure: no page, no clock.

/** A series' name as the metrics' text has it: `family{label="value",…}`. */
export function parse(name) {
  const brace = name.indexOf('{');
  if (brace < 0) return { family: name, labels: {} };
  const labels = {};
  for (const [, key, value] of name.slice(brace).matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) {
    labels[key] = value.replace(/\\(.)/g, (_, char) => (char === 'n' ? '\n' : char));
  }
  return { family: name.slice(0, brace), labels };
}

/** The samples so far, added to by answers of /admin/history. At most an hour of them. */
export class Samples {
  times = [];
  series = new Map();
  #interval = 1;
  #most = Infinity;

  /** Adds what came after the last sample. */
  add({ interval_s, times, series }) {
    this.#interval = interval_s;
    this.#most = 3600 / interval_s;
    const before = this.times.length;
    this.times.push(...times);
    for (const [name, values] of Object.entries(series)) {
      const known = this.series.get(name);
      if (known) known.values.push(...values);
      else this.series.set(name, { ...parse(name), values: [...Array(before).fill(0), ...values] });
    }
    for (const known of this.series.values()) {
      while (known.values.length < this.times.length) known.values.push(known.values.at(-1) ?? 0);
    }
    const old = this.times.length - this.#most;
    if (old > 0) {
      this.times.splice(0, old);
      for (const known of this.series.values()) known.values.splice(0, old);
    }
  }

  /** The newest sample's time, seconds since 1970; 0 if there is none. */
  get newest() {
    return this.times.at(-1) ?? 0;
  }

  /** The series of a family whose labels are as `wanted` says: a value, or a test of it. */
  of(family, wanted = {}) {
    const fits = (labels) =>
      Object.entries(wanted).every(([key, value]) => (typeof value === 'function' ? value(labels[key]) : labels[key] === value));
    return [...this.series.values()].filter((one) => one.family === family && fits(one.labels));
  }

  /** The values of a label in a family, sorted. */
  values(family, label, wanted = {}) {
    return [...new Set(this.of(family, wanted).map(({ labels }) => labels[label]))].sort();
  }

  /** Sum of gauges at each time. */
  sum(family, wanted) {
    const found = this.of(family, wanted);
    return this.times.map((_, at) => found.reduce((sum, { values }) => sum + values[at], 0));
  }

  /** Sum of counters, per second since the sample before; `null` at the first, and where a process began anew. */
  rate(family, wanted) {
    const sums = this.sum(family, wanted);
    return sums.map((value, at) => {
      const took = this.times[at] - this.times[at - 1];
      const more = value - sums[at - 1];
      return at === 0 || took <= 0 || more < 0 ? null : more / took;
    });
  }

  /** How much of the last `seconds` there are samples of; at least the time between two. */
  span(seconds) {
    const from = this.times.find((time) => time >= this.newest - seconds) ?? this.newest;
    return Math.max(this.#interval, this.newest - from);
  }

  /** How much counters grew over the last `seconds`. */
  growth(family, wanted, seconds) {
    const sums = this.sum(family, wanted);
    const from = this.times.findIndex((time) => time >= this.newest - seconds);
    return from < 0 ? 0 : Math.max(0, sums.at(-1) - sums[from]);
  }

  /** The value below which a share of what a histogram counted over the last `seconds` lies; its bucket's upper bound. */
  quantile(family, wanted, share, seconds) {
    const bounds = this.values(`${family}_bucket`, 'le', wanted);
    const bound = (le) => (le === '+Inf' ? Infinity : Number(le));
    const counted = bounds
      .map((le) => [bound(le), this.growth(`${family}_bucket`, { ...wanted, le }, seconds)])
      .sort(([a], [b]) => a - b);
    const all = counted.at(-1)?.[1] ?? 0;
    return all === 0 ? null : counted.find(([, count]) => count >= share * all)[0];
  }
}

/** `a / b`, or `null` where there is nothing to divide by. */
export function ratio(a, b) {
  return a === null || !b ? null : a / b;
}

export function bytes(value) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

export function bits(value) {
  return `${bytes(value).replace('B', 'bit')}/s`;
}

export function percent(value) {
  return value === null ? '–' : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 2 : 1)} %`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return '–';
  return value >= 10_000 ? `${Math.round(value / 1000)} s` : `${value >= 100 ? Math.round(value) : Number(value.toFixed(1))} ms`;
}
