// The way in, where tokens are wanted. The token is sent once and kept nowhere: a cookie that scripts cannot read stands for it.

import { h } from './dom.js';

/** `enter(who)` is called with whoever signed in. */
export default function form(api, enter) {
  const token = h('input', { type: 'password', name: 'token', autocomplete: 'current-password', spellcheck: 'false', required: true, id: 'token' });
  const problem = h('p', { class: 'bad', role: 'alert' });
  const button = h('button', { class: 'main' }, 'Sign in');
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const who = await api.signIn(token.value.trim());
      token.value = '';
      enter(who);
    } catch (error) {
      problem.textContent = error.message;
      token.select();
    } finally {
      button.disabled = false;
    }
  };
  const element = h(
    'form',
    { class: 'card signin', submit },
    h('p', {}, 'This node answers those who have one of its tokens. Ask who runs it, or make one with “rooftop token new-admin”.'),
    h('label', { for: 'token' }, 'Token'),
    token,
    problem,
    h('div', { class: 'buttons' }, button),
  );
  return { element, focus: () => token.focus() };
}
