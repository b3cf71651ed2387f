// What-if: what TTLs and cache-blocking timeouts will do to an audience that arrives at once, before it comes.

import { h, table } from '../dom.js';
import { percent } from '../series.js';
import { around, duration, lines, list, pairs } from '../whatif.js';
import { Curves } from '../curves.js';

/** Values that the policy editor is to be filled with, until it has read them. */
export const CHOSEN = 'rooftop-what-if-chosen';

const whole = (count) => Math.round(count).toLocaleString('en');
const time = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Columns of figures: title, of a run, how it reads. */
const FIGURES = [
  ['leak', (run) => run.leak_ratio, percent],
  ['origin, worst second', (run) => run.origin.peak, whole],
  ['wait, 99 %', (run) => run.wait_ms.p99, time],
  ['stalls', (run) => run.stalls, whole],
];

/** What was asked last, as the fields said it, and the answer: it costs seconds, and is still there after a look at another page. */
let last = null;

export default function page({ api, may, role }) {
  const field = (name, label, attributes = {}) => h('label', {}, label, h('input', { name, autocomplete: 'off', spellcheck: 'false', required: true, ...attributes }));
  const classes = h('select', { name: 'class' });
  const measured = h('p', { class: 'quiet measured' });
  const problems = h('div', { role: 'alert' });
  const said = h('span', { class: 'quiet', role: 'status' });
  const mayRun = may('operate');
  const start = h('button', { type: 'submit', form: 'what-if', class: 'main', disabled: !mayRun }, 'Run');
  const answer = h('div');
  const form = h(
    'form',
    { id: 'what-if', class: 'class', submit },
    field('viewers', 'Viewers', { inputmode: 'numeric', value: '1000000' }),
    field('edges', 'Edges', { inputmode: 'numeric', value: '50' }),
    field('shields', 'Shields', { inputmode: 'numeric' }),
    field('arrival', 'All arrive within', { value: '2s' }),
    h('label', {}, 'Players', h('select', { name: 'players' }, h('option', { value: 'blocking' }, 'low-latency HLS'), h('option', { value: 'polling' }, 'plain HLS'))),
    field('latency', 'Upstream takes', { required: false }),
    field('latency_p99', '99 of 100 take', { required: false, placeholder: 'the same' }),
    field('capacity', 'Origin answers, a second', { inputmode: 'numeric', required: false, placeholder: 'any number' }),
    field('ttl', 'TTLs of live playlists'),
    field('blocking_timeout', 'Cache-blocking timeouts'),
    h('label', {}, 'Whose timeouts', classes),
  );
  let known = null;
  let policies = null;

  return {
    title: 'What if',
    element: h(
      'div',
      {},
      h('p', { class: 'quiet' }, 'The code that decides in production, in virtual time, for an audience that arrives at once. “Flood” is the rule of other caches: at the timeout everyone who waits goes upstream.'),
      mayRun ? null : h('p', { class: 'warn' }, `Your role, ${role}, may not run it, since it costs this node seconds: operate is needed.`),
      h('section', { class: 'card' }, form, measured, h('div', { class: 'run' }, start, said), problems),
      answer,
    ),
    async update() {
      if (known === null) await load();
    },
  };

  async function load() {
    [known, policies] = (await Promise.all([api.read('/admin/what-if'), api.read('/admin/policy')])).map(({ value }) => value);
    const tier = Object.keys(known.playlist_class)[0];
    const there = policies[tier]?.classes ?? [];
    const playlist = there.find((one) => one.name === known.playlist_class[tier]);
    classes.replaceChildren(h('option', { value: '' }, 'all classes'), ...there.map((one) => h('option', { value: one.name }, one.name)));
    classes.value = playlist?.name ?? '';
    form.elements.shields.value = known.shields;
    form.elements.ttl.value = around(playlist?.ttl, [1, 2]);
    form.elements.blocking_timeout.value = around(playlist?.blocking_timeout, [0.25, 0.5, 1, 2]);
    if (known.measured) {
      form.elements.latency.placeholder = `measured: ${known.measured.p50_ms} ms`;
      form.elements.latency_p99.placeholder = `measured: ${known.measured.p99_ms} ms`;
      measured.textContent = `The upstream’s times are those of the last ${whole(known.measured.fetches)} fetches of this node’s ${known.measured.tier} that the origin does not hold, unless others are given.`;
    } else {
      form.elements.latency.value = '50ms';
      measured.textContent = `This node has fetched fewer than ${known.limits.fetches} playlists: what its upstream takes has to be given.`;
    }
    if (last === null) return;
    for (const [name, value] of Object.entries(last.fields)) form.elements[name].value = value;
    show(last.asked, last.value);
  }

  async function submit(event) {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(form));
    const given = Object.fromEntries([...new FormData(form)].filter(([, value]) => value.trim() !== ''));
    for (const name of ['viewers', 'edges', 'shields', 'capacity']) if (/^\d+$/.test(given[name] ?? '')) given[name] = Number(given[name]);
    const asked = { ...given, ttl: list(given.ttl), blocking_timeout: list(given.blocking_timeout), class: given.class ? [given.class] : [] };
    start.disabled = true;
    problems.replaceChildren();
    said.textContent = `At most ${known.limits.seconds} s …`;
    try {
      const { value } = await api.post('/admin/what-if', asked);
      said.textContent = value.left_out > 0 ? `The time ran out: ${value.left_out} of ${value.left_out + value.cells.length} runs are missing. Ask for fewer edges or values.` : '';
      last = { fields, asked, value };
      show(asked, value);
    } catch (error) {
      said.textContent = '';
      problems.replaceChildren(h('ul', { class: 'problems' }, (error.problems ?? [error.message]).map((problem) => h('li', {}, problem))));
    } finally {
      start.disabled = false;
    }
  }

  function show(asked, value) {
    const rows = pairs(value.cells);
    const columns = [['', ''], ['TTL', 'number'], ['timeout', 'number'], ...FIGURES.flatMap(([title]) => [[title, 'number'], ['flood', 'number']])];
    const cells = rows.map((row) => [
      h('button', { type: 'button', click: () => use(asked, row) }, 'Use these values'),
      duration(row.ttl),
      duration(row.timeout),
      ...FIGURES.flatMap(([, figure, reads]) => [h('b', {}, reads(figure(row.promote))), reads(figure(row.flood))]),
    ]);
    const charts = FIGURES.map(([title, figure, reads]) => {
      const curves = new Curves(title, reads);
      curves.show(...lines(rows, figure));
      return curves.element;
    });
    answer.replaceChildren(
      h('h2', {}, `${whole(value.viewers)} viewers, ${value.seconds} s`),
      h('p', { class: 'quiet' }, `The origin takes ${time(value.latency_ms.p50)}, 99 of 100 at most ${time(value.latency_ms.p99)}. Leak: fetches of the edges for each request of a viewer.`),
      table(columns, cells, 'Nothing was simulated in time.'),
      rows.length > 0 && h('div', { class: 'cards wide what-if' }, charts),
    );
  }

  /** Takes a row to the policy editor. */
  function use(asked, row) {
    const chosen = { ttl: duration(row.ttl), timeout: duration(row.timeout), classes: asked.class, playlist: known.playlist_class };
    sessionStorage.setItem(CHOSEN, JSON.stringify(chosen));
    location.hash = '#/policy';
  }
}
