// Elements from plain values. Text is always text: nothing that a server or a broadcaster says is read as HTML.

/** `h('td', { class: 'number' }, 12)`; attributes that are functions listen, `null` and `false` are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'value') element.value = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A table. Columns: title, then `number` for figures; rows: cells. */
export function table(columns, rows, empty) {
  if (rows.length === 0) return h('p', { class: 'quiet' }, empty);
  const kind = (at) => (columns[at][1] ? { class: columns[at][1] } : {});
  const head = h('tr', {}, columns.map(([title], at) => h('th', { scope: 'col', ...kind(at) }, title)));
  const body = rows.map((cells) => h('tr', {}, cells.map((cell, at) => h('td', kind(at), cell))));
  return h('div', { class: 'scroll', tabindex: '0' }, h('table', {}, h('thead', {}, head), h('tbody', {}, body)));
}

/** A state in words, coloured. */
export function state(word, kind) {
  return h('span', { class: `state ${kind}` }, word);
}

/** How much of something is taken, 0 to 1. */
export function meter(share, label) {
  const taken = Math.min(1, Math.max(0, share));
  const bar = h('i');
  bar.style.width = `${(100 * taken).toFixed(1)}%`;
  bar.style.background = taken > 0.9 ? 'var(--bad)' : taken > 0.7 ? 'var(--warn)' : '';
  return h('div', { class: 'meter', role: 'meter', 'aria-label': label, 'aria-valuenow': Math.round(100 * taken), 'aria-valuemin': '0', 'aria-valuemax': '100' }, bar);
}
