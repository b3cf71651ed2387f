// The console: one page of each kind, shown by the part of the address behind the #, kept up to date while it is looked at.

import * as api from './api.js';
import { h } from './dom.js';
import { Samples } from './series.js';
import cache from './pages/cache.js';
import fleet from './pages/fleet.js';
import policy from './pages/policy.js';
import stream from './pages/stream.js';
import streams from './pages/streams.js';

const REFRESH_MS = 2000;

/** What pages share. */
const samples = new Samples();
const history = async () => {
  samples.add((await api.read(`/admin/history?after=${samples.newest}`)).value);
  return samples;
};

const main = document.getElementById('main');
const trouble = document.getElementById('trouble');
const pages = { fleet, streams, cache, policy };

let shown = null;
let timer = 0;

/** What the address asks for: a page, made anew. */
function open() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, '').split('/');
  const argument = decodeURIComponent(rest.join('/'));
  const make = name === 'streams' && argument ? stream : (pages[name] ?? fleet);
  for (const link of document.querySelectorAll('nav a')) {
    const current = link.hash === `#/${name in pages ? name : 'fleet'}`;
    if (current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const page = make({ api, history, argument, say });
  shown = page;
  document.title = `${page.title} · Rooftop console`;
  main.replaceChildren(h('h1', {}, page.title), page.element);
  refresh();
}

/** Brings the page up to date, and again later. One at a time: a slow answer delays the next question. */
async function refresh() {
  clearTimeout(timer);
  const page = shown;
  try {
    await page.update();
    if (page === shown) say(null);
  } catch (error) {
    if (page === shown) say(error instanceof api.Refused ? error.problems.join('; ') : `This node does not answer: ${error.message}`);
  }
  if (page === shown && !document.hidden) timer = setTimeout(refresh, REFRESH_MS);
}

/** Says what went wrong, or with `null` that nothing does. */
function say(problem) {
  trouble.textContent = problem ?? '';
  trouble.hidden = !problem;
}

addEventListener('hashchange', () => {
  open();
  main.focus();
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) refresh();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', open);
api
  .read('/admin/status')
  .then(({ value }) => {
    document.getElementById('node').textContent = `${value.node} · ${value.version}`;
  })
  .catch(() => {});
open();
