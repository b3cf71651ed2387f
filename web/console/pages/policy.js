// The policy editor: the knobs of each class with what they do right now beside them, and the way back.

import { h } from '../dom.js';
import { KNOBS, changes, edited, shown } from '../policy.js';
import { milliseconds, percent } from '../series.js';
import { filled } from '../whatif.js';
import { lately } from './cache.js';
import { CHOSEN } from './whatif.js';

/** Policies that were in force before changes made here, the newest last; kept for as long as the tab is open. */
const BEFORE = 'rooftop-policies-before';
const MOST_BEFORE = 20;

export default function page({ api, history, may, role }) {
  const mayChange = may('operate');
  const choice = h('select', { 'aria-label': 'Tier', change: () => draw() });
  const forms = h('div');
  const problems = h('div', { role: 'alert' });
  const said = h('span', { class: 'quiet', role: 'status' });
  const apply = h('button', { type: 'button', class: 'main', hidden: !mayChange, click: () => change(drafts()) }, 'Apply');
  const back = h('button', { type: 'button', hidden: !mayChange, click: () => goBack() }, 'Take the last change back');
  const discard = h('button', { type: 'button', click: () => readAgain() }, 'Read again');
  let inForce = null;
  let etag = null;
  let effects = [];
  let chosen = JSON.parse(sessionStorage.getItem(CHOSEN) ?? 'null');
  sessionStorage.removeItem(CHOSEN);

  return {
    title: 'Policy',
    element: h(
      'div',
      {},
      h('p', {}, h('label', {}, 'Tier ', choice)),
      mayChange ? null : h('p', { class: 'warn' }, `Your role, ${role}, may look at the policy; to change it, operate is needed.`),
      h('p', { class: 'quiet' }, 'The next request goes by what is applied. Durations are written as 500ms, 2s or 1m 30s. Patterns and deliveries are changed with “rooftop policy set”.'),
      forms,
      problems,
      h('div', { class: 'buttons' }, apply, back, discard, said),
    ),
    async update() {
      if (inForce === null) await load();
      const samples = await history();
      for (const show of effects) show(samples);
    },
  };

  async function load() {
    const answer = await api.read('/admin/policy');
    [inForce, etag] = [answer.value, answer.etag];
    problems.replaceChildren();
    const tiers = Object.keys(inForce);
    const chosen = choice.value;
    choice.replaceChildren(...tiers.map((tier) => h('option', { value: tier }, tier)));
    choice.value = tiers.includes(chosen) ? chosen : (tiers[0] ?? '');
    draw();
  }

  function draw() {
    const tier = choice.value;
    effects = [];
    const classes = inForce[tier]?.classes ?? [];
    forms.replaceChildren(...classes.map((one) => form(tier, one)));
    if (chosen) fill(tier, classes);
    if (classes.length === 0) forms.replaceChildren(h('p', { class: 'quiet' }, 'This node has no classes to change.'));
    apply.disabled = classes.length === 0;
    back.disabled = before().length === 0;
  }

  /** Puts what was chosen in “What if” into the fields; nothing is in force before it is applied. */
  function fill(tier, classes) {
    const wanted = filled(classes, { ...chosen, playlist: chosen.playlist[tier] });
    const inputs = wanted.flatMap((one, at) => ['ttl', 'blocking_timeout'].map((key) => [forms.children[at].querySelector(`input[name="${key}"]`), shown(one[key])]));
    const others = inputs.filter(([input, value]) => input.value !== value);
    for (const [input, value] of others) {
      input.value = value;
      input.classList.add('changed');
    }
    if (others.length === 0) return;
    said.textContent = `Filled in from “What if”: TTL ${chosen.ttl}, timeout ${chosen.timeout}.`;
  }

  function readAgain() {
    chosen = null;
    said.textContent = '';
    return load();
  }

  function form(tier, one) {
    const field = (knob) => {
      const input = h('input', {
        name: knob.key,
        value: shown(one[knob.key]),
        placeholder: knob.may ?? '',
        autocomplete: 'off',
        spellcheck: 'false',
        disabled: !mayChange,
        input: () => input.classList.toggle('changed', input.value !== shown(one[knob.key])),
      });
      return h('label', {}, knob.key, input);
    };
    const effect = h('div', { class: 'effect' });
    effects.push((samples) => {
      const now = lately(samples, { tier, class: one.name });
      const wait = Number.isNaN(now.waitMs) ? '–' : now.waitMs === Infinity ? 'longer' : `≤ ${milliseconds(now.waitMs)}`;
      const figures = [['requests/s', now.asked.toFixed(1)], ['without a fetch', percent(now.hits)], ['leak', percent(now.leak)], ['promoted', now.promoted], ['stale', now.stale], ['wait, 95 %', wait]];
      effect.replaceChildren(...figures.map(([title, value]) => h('span', {}, `${title} `, h('b', {}, String(value)))));
    });
    const submit = (event) => {
      event.preventDefault();
      change(drafts());
    };
    return h('section', { class: 'card', 'data-class': one.name }, h('h3', {}, one.name), h('div', { class: 'quiet small' }, one.paths.join('  ')), h('form', { class: 'class', submit }, KNOBS.map(field), h('button', { hidden: true }, 'Apply')), effect);
  }

  /** The policies as the fields say. */
  function drafts() {
    const tier = choice.value;
    const classes = inForce[tier].classes.map((one, at) => edited(one, Object.fromEntries(new FormData(forms.children[at].querySelector('form')))));
    return { ...inForce, [tier]: { ...inForce[tier], classes } };
  }

  async function change(wanted) {
    const lines = Object.keys(wanted).flatMap((tier) => changes(inForce[tier], wanted[tier]).map((line) => `${tier}: ${line}`));
    if (lines.length === 0) {
      said.textContent = 'Nothing was changed.';
      return;
    }
    const was = inForce;
    if (await putInForce(wanted)) {
      remember([...before(), was]);
      said.textContent = `Applied: ${lines.join(', ')}`;
      back.disabled = false;
    }
  }

  async function goBack() {
    chosen = null;
    const earlier = before();
    const last = earlier.pop();
    if (last && (await putInForce(last))) {
      remember(earlier);
      said.textContent = 'The last change was taken back.';
      back.disabled = earlier.length === 0;
    }
  }

  async function putInForce(wanted) {
    try {
      await api.put('/admin/policy', wanted, etag);
      await load();
      return true;
    } catch (error) {
      problems.replaceChildren(h('ul', { class: 'problems' }, (error.problems ?? [error.message]).map((problem) => h('li', {}, problem))));
      said.textContent = 'Nothing has changed.';
      return false;
    }
  }

  function before() {
    return JSON.parse(sessionStorage.getItem(BEFORE) ?? '[]');
  }

  function remember(policies) {
    sessionStorage.setItem(BEFORE, JSON.stringify(policies.slice(-MOST_BEFORE)));
  }
}
