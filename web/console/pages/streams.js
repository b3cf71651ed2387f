// All streams of the fleet.

import { h, state, table } from '../dom.js';
import { bits, milliseconds } from '../series.js';
import { Thumbnails } from '../thumbnail.js';
import { whose } from '../viewers.js';

export const KIND = { live: 'good', interrupted: 'warn', ended: '' };

export default function page({ api }) {
  const list = h('div');
  const thumbnails = new Thumbnails();
  const filter = h('input', { type: 'search', placeholder: 'Part of a name', 'aria-label': 'Show streams with this in their name', input: () => draw() });
  const covered = h('p', { class: 'quiet' });
  let found = { total: 0, streams: [] };
  const draw = () => {
    const wanted = found.streams.filter(({ name }) => name.includes(filter.value.trim()));
    const more = found.total > found.streams.length ? `The first ${found.streams.length} of ${found.total} are listed.` : '';
    list.replaceChildren(table(COLUMNS, wanted.map((stream) => row(stream, thumbnails)), 'There is no such stream.'), h('p', { class: 'quiet' }, more));
  };
  return {
    title: 'Streams',
    element: h('div', {}, h('p', {}, filter), list, covered),
    async update() {
      found = (await api.read('/admin/streams')).value;
      covered.textContent = whose(found);
      draw();
    },
  };
}

const COLUMNS = [['Stream'], ['State'], ['Owner'], ['Epoch', 'number'], ['Viewers', 'number'], ['Ladder'], ['Lag', 'number'], ['Received', 'number'], ['Ingest health']];

function row(stream, thumbnails) {
  const video = (stream.ladder ?? []).filter(({ height }) => height);
  const lags = (stream.ladder ?? []).map(({ lag_ms }) => lag_ms).filter((lag) => lag !== null);
  return [
    h('a', { href: `#/streams/${encodeURIComponent(stream.name)}` }, thumbnails.of(stream), stream.name),
    state(stream.state, KIND[stream.state] ?? ''),
    stream.owner,
    String(stream.epoch),
    stream.viewers === null ? '–' : stream.viewers.toLocaleString(),
    stream.ladder === null ? h('span', { class: 'quiet' }, 'elsewhere') : video.map(({ name }) => name).join(' ') || 'audio only',
    stream.state === 'live' && lags.length > 0 ? milliseconds(Math.max(...lags)) : '–',
    stream.ingest ? bits(stream.ingest.bitrate_bps) : '–',
    health(stream.ingest),
  ];
}

/** What is wrong with what a broadcaster sends, in words. */
export function health(ingest) {
  if (!ingest) return h('span', { class: 'quiet' }, 'not at this node');
  if (ingest.warnings.length === 0) return h('span', { class: 'good' }, 'good');
  return ingest.warnings.map(({ says }) => h('div', { class: 'warn' }, says));
}
