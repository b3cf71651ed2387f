// What a role may do, for what is shown: the server refuses what it may not. Pure: no page.

/** Each may do what those before it may (docs/admin.md). */
const ROLES = ['view', 'operate', 'admin'];

/** Whether someone (an answer of /admin/session) has a role, or one that may do more. */
export function may(who, role) {
  return who?.name !== null && who?.name !== undefined && ROLES.indexOf(who.role) >= ROLES.indexOf(role);
}

/** Whether someone has to sign in before anything can be shown. */
export function mustSignIn(who) {
  return who.sign_in && who.name === null;
}

/** Who someone is, in words. */
export function named(who) {
  return who.name === null ? '' : `${who.name} (${who.role})`;
}
