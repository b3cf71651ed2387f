// The admin listener's answers.

const SESSION = '/admin/session';

/** An answer that is not what was asked for; `problems` says why, one line each. */
export class Refused extends Error {
  constructor(status, problems) {
    super(problems.join('; '));
    this.status = status;
    this.problems = problems;
  }
}

/** The JSON of a path, and the answer's ETag. */
export async function read(path) {
  return answer(await fetch(path, { cache: 'no-store' }));
}

/** Puts JSON at a path, if it still has `etag`. */
export async function put(path, value, etag) {
  const headers = { 'content-type': 'application/json', 'if-match': etag };
  return answer(await fetch(path, { method: 'PUT', headers, body: JSON.stringify(value) }));
}

/** Who one is here: `{ sign_in, name, role }`; `name` is `null` where one has to sign in first. */
export async function who() {
  return (await read(SESSION)).value;
}

/** Signs in with a token; who that is. */
export async function signIn(token) {
  const headers = { 'content-type': 'application/json' };
  return (await answer(await fetch(SESSION, { method: 'POST', headers, body: JSON.stringify({ token }) }))).value;
}

/** Ends the session. */
export async function signOut() {
  return (await answer(await fetch(SESSION, { method: 'DELETE' }))).value;
}

/** Asks with JSON. */
export async function post(path, value) {
  const headers = { 'content-type': 'application/json' };
  return answer(await fetch(path, { method: 'POST', headers, body: JSON.stringify(value) }));
}

async function answer(response) {
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // A refusal may be plain text.
  }
  if (!response.ok) throw new Refused(response.status, value?.problems ?? [text.trim() || `status ${response.status}`]);
  return { value, etag: response.headers.get('etag') };
}
