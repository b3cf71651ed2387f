// Who changed what, the newest first.

import { h, state, table } from '../dom.js';

export default function page({ api }) {
  const list = h('div');
  const more = h('p', { class: 'quiet' });
  return {
    title: 'Changes',
    element: h('div', {}, h('p', { class: 'quiet' }, 'What operators changed, or were refused, since this process began. The log has it too, and the file of admin.audit.'), list, more),
    async update() {
      const { value } = await api.read('/admin/audit');
      list.replaceChildren(table(COLUMNS, value.changes.map(row), 'Nothing was changed yet.'));
      more.textContent = value.total > value.changes.length ? `The latest ${value.changes.length} of ${value.total}.` : '';
    },
  };
}

const COLUMNS = [['When'], ['Who'], ['What'], ['Outcome'], ['Details'], ['From']];

function row(change) {
  const done = change.status < 300;
  return [
    new Date(change.unix_ms).toLocaleString(),
    `${change.who} (${change.role})`,
    `${change.method} ${change.path}`,
    state(done ? 'done' : `${change.status >= 500 ? 'failed' : 'refused'}, ${change.status}`, done ? 'good' : 'bad'),
    change.details.map((detail) => h('div', { class: 'detail' }, detail)),
    change.peer,
  ];
}
