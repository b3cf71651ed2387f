// The cache tiers over the last hour.

import { Chart } from '../chart.js';
import { h, table } from '../dom.js';
import { bits, bytes, milliseconds, percent, ratio } from '../series.js';

/** What the table looks back on. */
const MINUTE = 60;

/** Answers that needed no fetch of their own. */
const CHEAP = ['hit', 'stale', 'coalesced', 'pushed', 'revalidated'];

export default function page({ history }) {
  const choice = h('select', { 'aria-label': 'Tier', change: () => draw() });
  const figures = h('div', { class: 'cards' });
  const classes = h('div');
  const whole = (value) => (value >= 10 ? Math.round(value).toString() : Number(value.toFixed(2)).toString());
  const charts = {
    hits: new Chart('Answered without a fetch of their own', percent),
    leak: new Chart('Leak: requests upstream per request', percent),
    results: new Chart('Requests a second, by how they were answered', whole),
    waiting: new Chart('Waiting requests, and names in flight', whole),
    fetches: new Chart('Fetches and promotions a second', whole),
    served: new Chart('Served', bits),
  };
  let samples = null;
  const draw = () => {
    const tiers = samples.values('edge_requests_total', 'tier');
    if (tiers.join() !== [...choice.options].map(({ value }) => value).join()) {
      choice.replaceChildren(...tiers.map((tier) => h('option', { value: tier }, tier)));
    }
    const tier = choice.value;
    if (!tier) {
      classes.replaceChildren(h('p', { class: 'quiet' }, 'No request has come to a cache tier of this node yet.'));
      return;
    }
    figures.replaceChildren(...summary(samples, tier));
    classes.replaceChildren(byClass(samples, tier));
    plot(charts, samples, tier);
  };
  return {
    title: 'Cache',
    element: h(
      'div',
      {},
      h('p', {}, h('label', {}, 'Tier ', choice)),
      figures,
      h('h2', {}, 'By class, over the last minute'),
      classes,
      h('h2', {}, 'The last hour'),
      h('div', { class: 'cards wide' }, Object.values(charts).map(({ element }) => element)),
    ),
    async update() {
      samples = await history();
      draw();
    },
  };
}

/** How a class, or all of a tier, did over the last minute. */
export function lately(samples, labels) {
  const grew = (result) => samples.growth('edge_class_requests_total', result ? { ...labels, result } : labels, MINUTE);
  const asked = grew(null);
  const fetches = samples.growth('edge_fetches_total', labels, MINUTE);
  const cheap = CHEAP.reduce((sum, result) => sum + grew(result), 0);
  return {
    asked: asked / samples.span(MINUTE),
    hits: ratio(cheap, asked),
    leak: ratio(fetches, asked),
    coalesced: grew('coalesced') / samples.span(MINUTE),
    promoted: samples.growth('edge_promotions_total', labels, MINUTE),
    stale: grew('stale'),
    errors: grew('error'),
    waitMs: 1000 * (samples.quantile('edge_wait_seconds', labels, 0.95, MINUTE) ?? NaN),
  };
}

function summary(samples, tier) {
  const now = lately(samples, { tier });
  const gauge = (family) => samples.sum(family, { tier }).at(-1) ?? 0;
  const figures = [
    ['Requests a second', now.asked.toFixed(1)],
    ['Without a fetch', percent(now.hits)],
    ['Leak', percent(now.leak)],
    ['Waiting', gauge('edge_waiters')],
    ['Promoted in a minute', now.promoted],
    ['Kept', bytes(gauge('edge_cache_bytes'))],
  ];
  return figures.map(([title, value]) => h('div', { class: 'card' }, h('div', { class: 'quiet small' }, title), h('div', { class: 'figure' }, String(value))));
}

function byClass(samples, tier) {
  const columns = ['Requests/s', 'Without a fetch', 'Leak', 'Coalesced/s', 'Promoted', 'Stale', 'Errors', 'Wait, 95 %'];
  const row = (name) => {
    const now = lately(samples, { tier, class: name });
    const wait = Number.isNaN(now.waitMs) ? '–' : now.waitMs === Infinity ? 'longer' : `≤ ${milliseconds(now.waitMs)}`;
    return [name, now.asked.toFixed(1), percent(now.hits), percent(now.leak), now.coalesced.toFixed(1), String(now.promoted), String(now.stale), String(now.errors), wait];
  };
  const names = samples.values('edge_class_requests_total', 'class', { tier });
  return table([['Class'], ...columns.map((title) => [title, 'number'])], names.map(row), 'Nothing was asked for yet.');
}

function plot(charts, samples, tier) {
  const { times } = samples;
  const classes = samples.values('edge_class_requests_total', 'class', { tier });
  const share = (part, all) => part.map((value, at) => ratio(value, all[at]));
  const asked = (labels) => samples.rate('edge_class_requests_total', { tier, ...labels });
  charts.hits.show(times, classes.map((name) => [name, share(asked({ class: name, result: (result) => CHEAP.includes(result) }), asked({ class: name }))]));
  charts.leak.show(times, [['all classes', share(samples.rate('edge_fetches_total', { tier }), asked({}))]]);
  const results = samples.values('edge_class_requests_total', 'result', { tier });
  charts.results.show(times, results.map((result) => [result, asked({ result })]));
  charts.waiting.show(times, [
    ['waiting', samples.sum('edge_waiters', { tier })],
    ['in flight', samples.sum('edge_inflight_names', { tier })],
  ]);
  charts.fetches.show(times, [
    ['fetches', samples.rate('edge_fetches_total', { tier })],
    ['promotions', samples.rate('edge_promotions_total', { tier })],
  ]);
  charts.served.show(times, [['body bytes', samples.rate('edge_served_bytes_total', { tier }).map((value) => (value === null ? null : value * 8))]]);
}
