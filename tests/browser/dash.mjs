// Plays a live MPD by dash.js and Shaka in one real browser, each low-latency and plain, with their own settings and without
// the watch page's cures.
//
//   node dash.mjs --url http://127.0.0.1:8080/live/demo/manifest.mpd
//
// Prints a JSON object per line on stdout: `{"playing": {player: milliseconds to start}}` once all play. Then it reads lines
// from stdin. `past N`: waits until all play beyond N seconds of the MPD's timeline, and prints `{"past": N, "players": {player:
// {seconds, latency, stalls, errors}}}`, where `seconds` is how long that took. `thumbnail N`: what players show of that moment,
// `{"thumbnail": N, "players": {player: {path, place, sheet}}}`: the path of a sheet, left, top, width and height of the tile on it, and
// width and height of the sheet; `null` where there is none. At the end of stdin it ends. Exits with 1, and says why on
// stderr, if a player does not do it within a minute. CHROMIUM names the browser.

import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const PATIENCE_MS = 60_000;
const PLAYERS = ['dash', 'dash-plain', 'shaka', 'shaka-plain'];
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--autoplay-policy=no-user-gesture-required'];

const { values } = parseArgs({ options: { url: { type: 'string' } } });
const manifest = new URL(values.url);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => browser.close().finally(() => process.exit(1)));
}
try {
  const pages = new Map();
  for (const name of PLAYERS) pages.set(name, await open(name));
  const started = Date.now();
  await Promise.all([...pages].map(([name, page]) => until(page, name, () => video.currentTime > 0 && video.readyState > 2)));
  say({ playing: Object.fromEntries(await all(pages, (page) => page.evaluate(() => Math.round(seen.started)))) });
  for await (const line of createInterface({ input: process.stdin })) {
    const [what, at] = line.split(' ');
    if (what === 'thumbnail') {
      const players = await all(pages, (page) => page.evaluate((at) => thumbnail(at), Number(at)));
      say({ thumbnail: Number(at), players: Object.fromEntries(players) });
      continue;
    }
    if (what !== 'past' || !Number.isFinite(Number(at))) throw new Error(`not understood: ${line}`);
    const asked = Date.now();
    const players = await all(pages, async (page, name) => {
      await until(page, name, (at) => video.currentTime > at && !video.seeking && video.readyState > 2, Number(at));
      const seconds = (Date.now() - asked) / 1000;
      return { seconds, ...(await page.evaluate(() => ({ latency: live(), stalls: seen.stalls, errors: seen.errors }))) };
    });
    say({ past: Number(at), wall: (Date.now() - started) / 1000, players: Object.fromEntries(players) });
  }
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
} finally {
  await browser.close();
}

async function all(pages, ask) {
  return Promise.all([...pages].map(async ([name, page]) => [name, await ask(page, name)]));
}

async function until(page, name, condition, argument) {
  try {
    await page.waitForFunction(condition, argument, { timeout: PATIENCE_MS, polling: 100 });
  } catch (error) {
    const state = await page.evaluate(() => ({ currentTime: video.currentTime, ended: video.ended, readyState: video.readyState, ...seen }));
    throw new Error(`${name} did not come to ${argument ?? 'playback'} (${error.name}): ${JSON.stringify(state)}`);
  }
}

async function open(name) {
  const [library, plain] = name.split('-');
  const page = await browser.newPage();
  await page.goto(new URL('/watch/assets/licences.txt', manifest).href);
  if (library === 'dash') await page.addScriptTag({ url: '/watch/assets/dash.min.js' });
  else await page.addScriptTag({ path: createRequire(import.meta.url).resolve('shaka-player/dist/shaka-player.dash.js') });
  await page.evaluate(
    ({ library, plain, url }) => {
      const opened = performance.now();
      const video = document.body.appendChild(document.createElement('video'));
      video.muted = true;
      const seen = { started: null, stalls: 0, errors: [] };
      const failed = (what) => seen.errors.length < 20 && seen.errors.push(`${what} at ${video.currentTime.toFixed(2)}`);
      video.addEventListener('playing', () => { seen.started ??= performance.now() - opened; });
      video.addEventListener('waiting', () => { if (seen.started !== null) seen.stalls += 1; });
      video.addEventListener('error', () => failed(video.error.message));
      Object.assign(window, { video, seen });
      if (library === 'dash') {
        const player = dashjs.MediaPlayer().create();
        player.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE } });
        if (plain) player.updateSettings({ streaming: { applyServiceDescription: false, delay: { liveDelay: 4 }, liveCatchup: { enabled: false } } });
        player.on(dashjs.MediaPlayer.events.ERROR, ({ error }) => failed(`${error.code} ${error.message}`));
        player.on(dashjs.MediaPlayer.events.PLAYBACK_ENDED, ({ isLast }) => isLast && failed('took it for ended'));
        player.initialize(video, url, true);
        window.live = () => player.getCurrentLiveLatency();
        window.tile = (at) => new Promise((resolve) => player.provideThumbnail(at - player.getDvrWindow().start, resolve));
      } else {
        const player = new shaka.Player();
        player.addEventListener('error', ({ detail }) => failed(`${detail.code} ${detail.data?.[1] ?? ''}`));
        player.configure({ streaming: { lowLatencyMode: !plain } });
        player.attach(video).then(() => player.load(url)).then(() => video.play()).catch((error) => failed(String(error.code ?? error)));
        window.live = () => (Date.now() - player.getPresentationStartTimeAsDate()) / 1000 - video.currentTime;
        window.tile = async (at) => {
          const found = await player.getThumbnails(player.getImageTracks()[0]?.id, at);
          return found && { ...found, url: found.uris[0], x: found.positionX, y: found.positionY };
        };
      }
      window.thumbnail = async (at) => {
        const found = await tile(at);
        if (!found) return null;
        const sheet = new Image();
        sheet.src = found.url;
        await sheet.decode();
        const { x, y, width, height } = found;
        return { path: new URL(found.url).pathname, place: [x, y, width, height], sheet: [sheet.naturalWidth, sheet.naturalHeight] };
      };
    },
    { library, plain: Boolean(plain), url: manifest.href },
  );
  return page;
}

function say(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}
