// The newest pictures of streams.

import { h } from './dom.js';

/** One element for each stream, so that the picture before stays until the next one has come. */
export class Thumbnails {
  #shown = new Map();

  /** The picture of a stream, as the node's answer has it; `null` where this node has none. */
  of({ name, thumbnail }) {
    if (!thumbnail) return null;
    if (!this.#shown.has(name)) this.#shown.set(name, h('img', { class: 'thumbnail', alt: `What ${name} shows` }));
    const image = this.#shown.get(name);
    const source = `/admin/streams/${encodeURIComponent(name)}/thumbnail.jpg?of=${thumbnail}`;
    if (image.getAttribute('src') !== source) image.setAttribute('src', source);
    return image;
  }
}
