// Figures over the cache-blocking timeout, by uPlot.

import { h } from './dom.js';
import { duration } from './whatif.js';

/** A colour for each TTL; what floods is dashed. */
const COLOURS = ['#2f7ed8', '#d8622f', '#2fa866', '#a05bd1', '#c7a100', '#d14f8f', '#4fb7c7', '#8a8a8a'];

/** A chart of one figure. `reads` says how values read. */
export class Curves {
  #place = h('div');
  #plot = null;
  #reads;

  constructor(title, reads) {
    this.#reads = reads;
    this.element = h('section', { class: 'card chart' }, h('h3', {}, title), this.#place);
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.element);
  }

  /** Shows lines over timeouts in milliseconds; every second line is the flood of the one before it. */
  show(timeouts, lines) {
    const colours = getComputedStyle(document.documentElement);
    const line = { stroke: colours.getPropertyValue('--line'), width: 1 };
    const axis = { stroke: colours.getPropertyValue('--quiet'), grid: line, ticks: line };
    const read = (value) => (value === null || value === undefined ? '–' : this.#reads(value));
    const options = {
      ...this.#size(),
      scales: { x: { time: false }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        { ...axis, splits: () => timeouts, values: (_, ticks) => ticks.map(duration) },
        { ...axis, size: 88, values: (_, ticks) => ticks.map((tick) => this.#reads(tick)) },
      ],
      series: [
        { label: 'timeout', value: (_, value) => (value === null ? '–' : duration(value)) },
        ...lines.map(([label], at) => ({
          label,
          stroke: COLOURS[Math.floor(at / 2) % COLOURS.length],
          dash: at % 2 === 1 ? [6, 5] : [],
          width: 2,
          points: { show: true, size: 6 },
          value: (_, value) => read(value),
        })),
      ],
    };
    this.#plot = new uPlot(options, [timeouts, ...lines.map(([, values]) => values)], this.#place);
  }

  #size() {
    return { width: Math.max(200, this.element.clientWidth - 28), height: 220 };
  }
}
