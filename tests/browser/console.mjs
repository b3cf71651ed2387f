// The console in a real browser, as an operator uses it: every page, wide and narrow, a policy changed, refused and taken
// back; and at a node with tokens, what those with a role may. One JSON object on stdout: what was seen. Exits with 1 at the
// first thing that is not as it should be.
//
//   node console.mjs --admin http://127.0.0.1:9090 --stream demo --class media-playlist
//     --guarded https://localhost:9091 --viewer TOKEN --operator TOKEN [--shots FOLDER]
//
// CHROMIUM names the browser.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const SIZES = [
  { width: 1280, height: 900 },
  { width: 390, height: 844 },
];

/** What somebody may say who wants it to be run. */
const EVIL = '/<img src=x onerror="document.title=1">';

const { values: options } = parseArgs({
  options: Object.fromEntries(
    ['admin', 'stream', 'class', 'guarded', 'viewer', 'operator', 'shots'].map((name) => [name, { type: 'string' }]),
  ),
});
const profile = await mkdtemp(join(tmpdir(), 'rooftop-console-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'],
  headless: true,
  // The other node has a certificate of its development CA.
  ignoreHTTPSErrors: true,
  timeout: 60_000,
});
let code = 0;
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => finish().finally(() => process.exit(1)));
try {
  process.stdout.write(`${JSON.stringify(await use())}\n`);
} catch (error) {
  process.stderr.write(`${error.stack}\n`);
  code = 1;
} finally {
  await finish();
}
process.exit(code);

async function use() {
  const page = context.pages()[0] ?? (await context.newPage());
  const complaints = [];
  page.on('console', (message) => {
    // That something was refused is no fault of the page, though the browser notes it.
    const refused = [[422, '/admin/policy'], [422, '/admin/what-if'], [403, '/admin/policy'], [401, '/admin/session']].some(
      ([status, path]) => message.text().includes(`status of ${status}`) && message.location().url.endsWith(path),
    );
    if (['error', 'warning'].includes(message.type()) && !refused) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(error.message));
  const seen = { pages: [], complaints };
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const size of SIZES) {
      await page.setViewportSize(size);
      for (const [name, sign] of pages()) {
        await page.goto(`${options.admin}/console/#/${name}`);
        await page.reload();
        await page.locator(sign).first().waitFor({ timeout: 20_000 });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        if (name.startsWith('streams')) {
          await page.waitForFunction(() => document.querySelector('img.thumbnail')?.naturalWidth === 320, null, { timeout: 20_000 });
        }
        assert.ok(wide <= 0, `${name} is ${wide} px too wide at ${size.width} px`);
        assert.ok(await page.locator('#trouble').isHidden(), `${name}: ${await page.locator('#trouble').textContent()}`);
        if (options.shots) {
          await page.screenshot({ path: join(options.shots, `${name.replace('/', '-')}-${size.width}-${colorScheme}.png`), fullPage: true });
        }
        seen.pages.push(`${name} ${size.width} ${colorScheme}`);
      }
    }
  }
  seen.viewers = await watched(page);
  seen.policy = await turn(page);
  seen.whatIf = await simulate(page);
  seen.keyboard = await byKeyboard(page);
  seen.roles = await withRoles(page);
  assert.deepEqual(complaints, []);
  return seen;
}

/** Names of pages, and what is there when they have loaded. */
function pages() {
  return [
    ['fleet', '.figure'],
    ['streams', `a[href="#/streams/${options.stream}"]`],
    [`streams/${options.stream}`, '.uplot'],
    ['cache', '.uplot'],
    ['policy', `[data-class="${options.class}"] .effect b`],
    ['what-if', '.measured:not(:empty)'],
  ];
}

/** How many watch the stream, by its page and in the list, and whose viewers those are. */
async function watched(page) {
  await page.goto(`${options.admin}/console/#/streams/${options.stream}`);
  await page.locator('b.viewers').waitFor();
  const said = await page.locator('p', { has: page.locator('b.viewers') }).textContent();
  await page.goto(`${options.admin}/console/#/streams`);
  const row = page.locator('tr', { has: page.locator(`a[href="#/streams/${options.stream}"]`) });
  await row.waitFor();
  const column = await page.locator('th').allTextContents().then((titles) => titles.indexOf('Viewers'));
  return { said, listed: await row.locator('td').nth(column).textContent() };
}

/** Changes a TTL, has a bad one refused, takes the change back; what was in force each time. */
async function turn(page) {
  const inForce = () => page.evaluate(async (name) => {
    const policy = await (await fetch('/admin/policy')).json();
    return policy.edge.classes.find((one) => one.name === name).stale_if_error;
  }, options.class);
  const field = page.locator(`[data-class="${options.class}"] input[name="stale_if_error"]`);
  await page.goto(`${options.admin}/console/#/policy`);
  const before = await inForce();
  await field.fill('7s');
  await page.getByRole('button', { name: 'Apply' }).last().click();
  await page.getByText('Applied:').waitFor();
  const changed = await inForce();
  await field.fill('7 parsecs');
  await field.press('Enter');
  const problem = await page.locator('.problems li').first().textContent();
  const refused = await inForce();
  await page.getByRole('button', { name: 'Take the last change back' }).click();
  await page.getByText('was taken back').waitFor();
  return { before, changed, problem, refused, back: await inForce() };
}

/** Simulates an audience, takes the first row to the policy editor; what was there, and what is in the editor. */
async function simulate(page) {
  await page.goto(`${options.admin}/console/#/what-if`);
  const field = (name) => page.locator(`input[name="${name}"]`);
  await page.locator('.measured:not(:empty)').waitFor();
  const begun = { ttl: await field('ttl').inputValue(), timeouts: await field('blocking_timeout').inputValue() };
  await field('viewers').fill('many');
  await page.getByRole('button', { name: 'Run' }).click();
  const problem = await page.locator('.problems li').first().textContent();
  for (const [name, value] of [['viewers', '20000'], ['edges', '4'], ['latency', '600ms'], ['ttl', '500ms'], ['blocking_timeout', '250ms, 1s']]) await field(name).fill(value);
  await page.getByRole('button', { name: 'Run' }).click();
  await page.locator('.what-if .uplot').first().waitFor({ timeout: 60_000 });
  const rows = await page.locator('.scroll tbody tr').evaluateAll((found) => found.map((row) => [...row.cells].map((cell) => cell.textContent)));
  for (const size of SIZES) {
    await page.setViewportSize(size);
    // Charts follow a moment after their cards.
    await page.waitForFunction(() => document.documentElement.scrollWidth <= innerWidth);
    if (!options.shots) continue;
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      await page.locator('.what-if .uplot').first().waitFor();
      await page.screenshot({ path: join(options.shots, `what-if-answer-${size.width}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.getByRole('button', { name: 'Use these values' }).first().click();
  await page.getByText('Filled in from').waitFor();
  const filled = page.locator(`[data-class="${options.class}"] input.changed`);
  const changed = await filled.evaluateAll((inputs) => inputs.map((input) => [input.name, input.value]));
  await page.getByRole('button', { name: 'Read again' }).click();
  await filled.first().waitFor({ state: 'detached' });
  return { begun, problem, rows, changed };
}

/** Where the first keys lead. */
async function byKeyboard(page) {
  await page.goto(`${options.admin}/console/#/fleet`);
  await page.reload();
  await page.locator('.figure').first().waitFor();
  const focused = [];
  for (let press = 0; press < 3; press += 1) {
    await page.keyboard.press('Tab');
    focused.push(await page.evaluate(() => document.activeElement.textContent));
  }
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { level: 1, name: 'Streams' }).waitFor();
  return focused;
}

/** A node with tokens: what one sees without, with a wrong one, as a viewer and as an operator. */
async function withRoles(page) {
  const at = (name) => page.goto(`${options.guarded}/console/#/${name}`);
  const token = page.getByLabel('Token', { exact: true });
  const signIn = async (text) => {
    await token.fill(text);
    await token.press('Enter');
  };
  const ask = (method, path, body) =>
    page.evaluate(async ([method, path, body]) => {
      const headers = { 'content-type': 'application/json' };
      return (await fetch(path, { method, headers, body })).status;
    }, [method, path, JSON.stringify(body)]);
  const shot = async (name) => {
    if (options.shots) await page.screenshot({ path: join(options.shots, `${name}.png`), fullPage: true });
  };
  await at('fleet');
  await token.waitFor();
  await shot('signin');
  await signIn('wrong'.repeat(8));
  const wrong = await page.locator('.signin [role=alert]', { hasText: 'token' }).textContent();

  await signIn(options.viewer);
  await page.locator('.figure').first().waitFor();
  const viewer = await page.locator('#who').textContent();
  await at('policy');
  await page.locator(`[data-class="${options.class}"] .effect b`).first().waitFor();
  const mayType = await page.locator('form.class input:enabled').count();
  const mayApply = await page.getByRole('button', { name: 'Apply' }).count();
  const refused = await ask('PUT', '/admin/policy', {});
  const kept = await page.evaluate(() => document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage));
  await page.reload();
  await page.locator('.effect b').first().waitFor();
  await page.getByRole('button', { name: 'Sign out' }).click();
  await token.waitFor();

  await signIn(options.operator);
  await page.locator('.effect b').first().waitFor();
  const allowed = await ask('POST', '/admin/purge', { prefix: EVIL });
  await at('audit');
  await page.getByText(EVIL).first().waitFor();
  await shot('audit');
  const injected = await page.locator('main img').count();
  return { wrong, viewer, mayType, mayApply, refused, kept, allowed, injected, title: await page.title() };
}

async function finish() {
  await context?.close().catch(() => {});
  await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
}
