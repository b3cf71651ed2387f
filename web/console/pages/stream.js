// One stream: its ladder, what its broadcaster sends, and how long each hop takes.

import { Chart } from '../chart.js';
import { h, state, table } from '../dom.js';
import { bits, bytes, milliseconds } from '../series.js';
import { Thumbnails } from '../thumbnail.js';
import { whose } from '../viewers.js';
import { KIND, health } from './streams.js';

/** Samples of the latency chart: five minutes at one every two seconds. */
const MOST = 150;

export default function page({ api, argument: name }) {
  const top = h('div');
  const thumbnails = new Thumbnails();
  const hops = h('div');
  const chart = new Chart('Latency by hop, at the 95th percentile', milliseconds);
  const times = [];
  const lines = new Map();
  const ladder = h('div');
  return {
    title: name,
    element: h('div', {}, top, h('h2', {}, 'Ladder'), ladder, h('h2', {}, 'Latency'), hops, chart.element),
    async update() {
      const { value: stream } = await api.read(`/admin/streams/${encodeURIComponent(name)}`);
      top.replaceChildren(standing(stream), thumbnails.of(stream) ?? '', viewers(stream), ingest(stream.ingest));
      ladder.replaceChildren(rungs(stream));
      // Only the owner of a live stream has measured it.
      const took = await api.read(`/admin/latency?stream=${encodeURIComponent(name)}`).catch(() => null);
      const passed = took?.value.hops.filter(({ passages }) => passages > 0) ?? [];
      hops.replaceChildren(
        table(
          [['Hop'], ['Median', 'number'], ['95th percentile', 'number'], ['Longest', 'number']],
          passed.map((hop) => [hop.hop, milliseconds(hop.p50_ms), milliseconds(hop.p95_ms), milliseconds(hop.max_ms)]),
          stream.ladder === null ? `Measured at ${stream.owner}.` : 'Nothing has passed lately.',
        ),
      );
      note(passed);
    },
  };

  function note(passed) {
    times.push(Date.now() / 1000);
    for (const { hop } of passed) if (!lines.has(hop)) lines.set(hop, Array(times.length - 1).fill(null));
    for (const [hop, values] of lines) values.push(passed.find((one) => one.hop === hop)?.p95_ms ?? null);
    if (times.length > MOST) {
      times.shift();
      for (const values of lines.values()) values.shift();
    }
    if (lines.size > 0) chart.show(times, [...lines]);
  }
}

function standing(stream) {
  return h(
    'p',
    {},
    state(stream.state, KIND[stream.state] ?? ''),
    h('span', { class: 'quiet' }, ` owned by ${stream.owner} (${stream.address}), epoch ${stream.epoch}, since ${new Date(stream.updated_unix_ms).toLocaleString()}`),
  );
}

function viewers(stream) {
  const count = stream.viewers === null ? '' : h('span', {}, h('b', { class: 'viewers' }, stream.viewers.toLocaleString()), stream.viewers === 1 ? ' viewer. ' : ' viewers. ');
  return h('p', {}, count, h('span', { class: 'quiet' }, whose(stream)));
}

function ingest(entry) {
  if (!entry) return h('p', { class: 'quiet' }, 'Its broadcaster is at another node.');
  const figures = [
    ['From', entry.peer],
    ['Received', bits(entry.bitrate_bps)],
    ['Frames', `${entry.fps.toFixed(2)} a second`],
    ['Keyframes', entry.keyframe_interval_ms === null ? '–' : `each ${milliseconds(entry.keyframe_interval_ms)}`],
    ['Jitter', milliseconds(entry.jitter_ms)],
    ['Behind the clock', milliseconds(entry.lag_ms)],
    ['Waiting for an origin', bytes(entry.queue_bytes)],
    ['Health', health(entry)],
  ];
  return h('div', { class: 'cards' }, figures.map(([title, value]) => h('div', { class: 'card' }, h('div', { class: 'quiet small' }, title), h('div', {}, value))));
}

function rungs(stream) {
  if (stream.ladder === null) return h('p', { class: 'quiet' }, `Known at its owner, ${stream.owner}.`);
  const row = (rung) => [
    rung.name,
    rung.height ? `${rung.width}x${rung.height}` : `${rung.channels} channels, ${rung.sample_rate} Hz`,
    rung.codec,
    rung.fps ? String(Number(rung.fps.toFixed(3))) : '–',
    bits(rung.bitrate_bps),
    rung.newest_segment === null ? '–' : String(rung.newest_segment),
    rung.gap ? state('gap', 'bad') : stream.state === 'live' ? milliseconds(rung.lag_ms) : '–',
  ];
  const columns = [['Rendition'], ['Form'], ['Codec'], ['Frames a second', 'number'], ['Bit rate', 'number'], ['Segment', 'number'], ['Behind the clock', 'number']];
  return table(columns, stream.ladder.map(row), 'No run has begun.');
}
