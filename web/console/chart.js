// Lines over the last hour, by uPlot.

import { h } from './dom.js';

const COLOURS = ['#2f7ed8', '#d8622f', '#2fa866', '#a05bd1', '#c7a100', '#d14f8f', '#4fb7c7', '#8a8a8a'];

/** A chart that keeps its place when its lines change. `format` says how values read. */
export class Chart {
  #plot = null;
  #lines = '';
  #format;
  #place = h('div');

  constructor(title, format) {
    this.#format = format;
    this.element = h('section', { class: 'card chart' }, h('h3', {}, title), this.#place);
    new ResizeObserver(() => this.#fit()).observe(this.element);
  }

  /** Shows `lines`: title, then values, one for each of `times`. */
  show(times, lines) {
    const data = [times, ...lines.map(([, values]) => values)];
    const titles = JSON.stringify(lines.map(([title]) => title));
    if (this.#plot && titles === this.#lines) {
      this.#plot.setData(data);
      return;
    }
    this.#plot?.destroy();
    this.#lines = titles;
    const colours = getComputedStyle(document.documentElement);
    const axis = {
      stroke: colours.getPropertyValue('--quiet'),
      grid: { stroke: colours.getPropertyValue('--line'), width: 1 },
      ticks: { stroke: colours.getPropertyValue('--line'), width: 1 },
    };
    const read = (value) => (value === null || value === undefined ? '–' : this.#format(value));
    const options = {
      width: this.#width(),
      height: 200,
      // A minute at least, or a chart that has just begun would span years.
      scales: { x: { range: (_, least, most) => [Math.min(least, most - 60), most] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        axis,
        { ...axis, size: 88, values: (_, ticks) => ticks.map((tick) => this.#format(tick)) },
      ],
      series: [
        { label: 'at' },
        ...lines.map(([label], at) => ({
          label,
          stroke: COLOURS[at % COLOURS.length],
          width: 1.5,
          points: { show: times.length < 3 },
          value: (_, value) => read(value),
        })),
      ],
    };
    this.#plot = new uPlot(options, data, this.#place);
  }

  #width() {
    return Math.max(200, this.element.clientWidth - 28);
  }

  #fit() {
    if (this.#plot && this.#plot.width !== this.#width()) this.#plot.setSize({ width: this.#width(), height: 200 });
  }
}
