// The fleet: what this node knows of all, and how it fares itself.

import { h, meter, state, table } from '../dom.js';
import { bits, bytes } from '../series.js';

const ROLES = ['ingest', 'origin', 'shield', 'edge'];
const CALLED = { ingest: 'POPs that take broadcasters', origin: 'Origins', shield: 'Shields', edge: 'POPs that serve viewers' };

export default function page({ api, history }) {
  const element = h('div');
  return {
    title: 'Fleet',
    element,
    async update() {
      const [{ value: fleet }, samples] = await Promise.all([api.read('/admin/status'), history()]);
      element.replaceChildren(store(fleet), here(fleet, samples), ...ROLES.map((role) => tier(fleet, role)));
    },
  };
}

function store(fleet) {
  const alone = fleet.nodes.every(({ name }) => name === fleet.node) ? ' It knows of no other node.' : '';
  const kind = fleet.store.up ? ['up', 'good'] : ['away', 'bad'];
  return h('p', {}, 'Store ', state(...kind), h('span', { class: 'quiet' }, ` ${fleet.store.why ?? ''}${alone}`), fleet.draining ? [' ', state('this node drains', 'warn')] : null);
}

function here(fleet, samples) {
  const last = (values) => values.at(-1) ?? 0;
  const figures = [
    ['Roles', fleet.roles.join(', ')],
    ['Broadcasters', last(samples.sum('ingest_sessions'))],
    ['Streams', last(samples.sum('origin_streams'))],
    ['Viewers', last(samples.sum('edge_viewers')).toLocaleString()],
    ['Received', bits(last(samples.rate('ingest_received_bytes_total')) * 8)],
    ['Served by the edge', bits(last(samples.rate('edge_served_bytes_total', { tier: 'edge' })) * 8)],
    ['Cache', bytes(last(samples.sum('edge_cache_bytes')))],
  ];
  const card = ([title, value]) => h('div', { class: 'card' }, h('div', { class: 'quiet small' }, title), h('div', { class: 'figure' }, value));
  return h('section', {}, h('h2', {}, `This node: ${fleet.node}`), h('div', { class: 'cards' }, figures.map(card)));
}

function tier(fleet, role) {
  const nodes = fleet.nodes.filter((node) => node.role === role);
  if (nodes.length === 0) return h('section');
  const row = (node) => [
    node.name,
    node.address,
    node.draining ? state('draining', 'warn') : state('in service', 'good'),
    node.capacity > 0
      ? h('div', {}, `${(node.load / 10).toFixed(1)} of ${(node.capacity / 10).toFixed(1)} CPUs`, meter(node.load / node.capacity, `Load of ${node.name}`))
      : '–',
  ];
  const columns = [['Name'], ['Address'], ['State'], ['Load']];
  return h('section', {}, h('h2', {}, CALLED[role]), table(columns, nodes.map(row), ''));
}
