// What the what-if panel asks and shows. Pure: no page.

const UNITS = { ms: 1, s: 1000, m: 60_000, min: 60_000, h: 3_600_000 };

/** Milliseconds of a duration as the configuration writes it, such as 1m 30s; `null`: it is none. */
export function parsed(text) {
  const parts = [...text.trim().matchAll(/(\d+)\s*(ms|min|s|m|h)\s*/g)];
  if (parts.length === 0 || parts.map(([part]) => part).join('') !== text.trim()) return null;
  return parts.reduce((sum, [, count, unit]) => sum + Number(count) * UNITS[unit], 0);
}

/** The other way. */
export function duration(ms) {
  const [whole, rest] = [Math.floor(ms / 1000), ms % 1000];
  return [whole > 0 && `${whole}s`, (rest > 0 || whole === 0) && `${rest}ms`].filter(Boolean).join(' ');
}

/** Durations separated by commas. */
export function list(text) {
  return text.split(',').map((one) => one.trim()).filter((one) => one !== '');
}

/** What to try around a value in force, shortest first. */
export function around(text, factors) {
  const ms = parsed(text ?? '') ?? 500;
  return [...new Set(factors.map((factor) => Math.round(ms * factor)))].map(duration).join(', ');
}

/** One row for each TTL and timeout: what comes of it with Rooftop's rule and with the one that other caches go by. */
export function pairs(cells) {
  const rows = new Map();
  for (const cell of cells) {
    const key = `${cell.ttl_ms}/${cell.blocking_timeout_ms}`;
    const row = rows.get(key) ?? { ttl: cell.ttl_ms, timeout: cell.blocking_timeout_ms };
    rows.set(key, { ...row, [cell.rule]: cell });
  }
  // The time may have run out between the two.
  return [...rows.values()].filter((row) => row.promote && row.flood);
}

/** Lines of a figure over the timeouts, one for each TTL and rule: `[timeouts, [[title, values], …]]`. */
export function lines(rows, figure) {
  const timeouts = [...new Set(rows.map((row) => row.timeout))].sort((a, b) => a - b);
  const ttls = [...new Set(rows.map((row) => row.ttl))].sort((a, b) => a - b);
  const line = (ttl, rule) => timeouts.map((timeout) => {
    const row = rows.find((one) => one.ttl === ttl && one.timeout === timeout);
    return row ? figure(row[rule]) : null;
  });
  return [timeouts, ttls.flatMap((ttl) => [['promote', 'Rooftop'], ['flood', 'flood']].map(([rule, title]) => [`${title}, TTL ${duration(ttl)}`, line(ttl, rule)]))];
}

/** A tier's classes with the values that were chosen. `draft`: `ttl` and `timeout` as texts, `playlist` the class that has the
 *  TTL, `classes` those that have the timeout, none: all. */
export function filled(classes, draft) {
  return classes.map((one) => {
    const timeout = draft.classes.length === 0 || draft.classes.includes(one.name) ? { blocking_timeout: draft.timeout } : {};
    return { ...one, ...timeout, ...(one.name === draft.playlist ? { ttl: draft.ttl } : {}) };
  });
}
