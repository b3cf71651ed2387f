// The console: one page of each kind, shown by the part of the address behind the #, kept up to date while it is looked at.

import * as api from './api.js';
import { h } from './dom.js';
import { may, mustSignIn, named } from './roles.js';
import { Samples } from './series.js';
import signIn from './signin.js';
import audit from './pages/audit.js';
import cache from './pages/cache.js';
import fleet from './pages/fleet.js';
import policy from './pages/policy.js';
import stream from './pages/stream.js';
import streams from './pages/streams.js';
import whatIf from './pages/whatif.js';

const REFRESH_MS = 2000;

/** What pages share. */
const samples = new Samples();
const history = async () => {
  samples.add((await api.read(`/admin/history?after=${samples.newest}`)).value);
  return samples;
};

const main = document.getElementById('main');
const trouble = document.getElementById('trouble');
const signOut = document.getElementById('sign-out');
const pages = { fleet, streams, cache, policy, 'what-if': whatIf, audit };

let shown = null;
let timer = 0;
let who = null;

/** What the address asks for: a page, made anew; or the way in. */
function open() {
  if (who === null) return;
  if (mustSignIn(who)) {
    askToSignIn();
    return;
  }
  const [name, ...rest] = location.hash.replace(/^#\/?/, '').split('/');
  const argument = decodeURIComponent(rest.join('/'));
  const make = name === 'streams' && argument ? stream : (pages[name] ?? fleet);
  for (const link of document.querySelectorAll('nav a')) {
    const current = link.hash === `#/${name in pages ? name : 'fleet'}`;
    if (current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const page = make({ api, history, argument, say, may: (role) => may(who, role), role: who.role });
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
    if (page === shown && error.status === 401) {
      // The session is over, or its token is gone.
      await begin();
      return;
    }
    if (page === shown) say(error instanceof api.Refused ? error.problems.join('; ') : `This node does not answer: ${error.message}`);
  }
  if (page === shown && !document.hidden) timer = setTimeout(refresh, REFRESH_MS);
}

/** Says what went wrong, or with `null` that nothing does. */
function say(problem) {
  trouble.textContent = problem ?? '';
  trouble.hidden = !problem;
}

/** Asks who one is, and shows what that one may see. */
async function begin() {
  try {
    enter(await api.who());
  } catch (error) {
    say(error instanceof api.Refused ? error.problems.join('; ') : `This node does not answer: ${error.message}`);
    clearTimeout(timer);
    timer = setTimeout(begin, REFRESH_MS);
  }
}

function enter(found) {
  who = found;
  say(null);
  document.getElementById('who').textContent = named(who);
  signOut.hidden = !who.sign_in || who.name === null;
  open();
  if (!mustSignIn(who)) name();
}

function askToSignIn() {
  clearTimeout(timer);
  shown = null;
  document.title = 'Sign in · Rooftop console';
  const form = signIn(api, enter);
  main.replaceChildren(h('h1', {}, 'Sign in'), form.element);
  form.focus();
}

/** Says which node this is. */
async function name() {
  const found = await api.read('/admin/status').catch(() => null);
  if (found) document.getElementById('node').textContent = `${found.value.node} · ${found.value.version}`;
}

signOut.addEventListener('click', async () => {
  try {
    enter(await api.signOut());
  } catch (error) {
    say(`Still signed in: ${error.message}`);
  }
});
addEventListener('hashchange', () => {
  open();
  main.focus();
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && shown) refresh();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', open);
begin();
