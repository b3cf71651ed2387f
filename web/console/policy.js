// The policy editor's rules: what a class has to edit, and what its fields say. Pure: no page.

/** The knobs of a class, in the order of docs/policy.md; `may` be left out, where the rest says what then holds. */
export const KNOBS = [
  { key: 'ttl', kind: 'duration', may: 'upstream’s headers' },
  { key: 'negative_ttl', kind: 'duration' },
  { key: 'stale_while_revalidate', kind: 'duration' },
  { key: 'stale_if_error', kind: 'duration' },
  { key: 'blocking_timeout', kind: 'duration' },
  { key: 'give_up', kind: 'duration' },
  { key: 'max_fetches', kind: 'count' },
];

/** What a field holds at first. */
export function shown(value) {
  return value === undefined || value === null ? '' : String(value);
}

/** A class with what its fields say; keys whose field is empty are left out. The server checks the values. */
export function edited(before, fields) {
  const after = { ...before };
  for (const { key, kind } of KNOBS) {
    if (!(key in fields)) continue;
    const text = fields[key].trim();
    if (text === '') delete after[key];
    else after[key] = kind === 'count' && /^\d+$/.test(text) ? Number(text) : text;
  }
  return after;
}

/** What differs between two policies of a tier, one line each. */
export function changes(before, after) {
  const lines = [];
  for (const [at, now] of after.classes.entries()) {
    const old = before.classes[at] ?? {};
    for (const key of new Set([...Object.keys(old), ...Object.keys(now)])) {
      const [was, is] = [old[key], now[key]].map((value) => (value === undefined ? 'none' : JSON.stringify(value)));
      if (was !== is) lines.push(`${now.name}.${key}: ${was} → ${is}`);
    }
  }
  if (JSON.stringify(before.delivery) !== JSON.stringify(after.delivery)) lines.push('delivery changed');
  return lines;
}
