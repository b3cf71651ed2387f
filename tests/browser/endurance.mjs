// Players side by side in one real browser, each in a tab of its own, as their makers set them up, for a test that says when to
// look.
//
//   node endurance.mjs --url http://127.0.0.1:8080/live/demo/ --players hls-low,dash-plain
//
//   --url URL      what `index.m3u8` and `manifest.mpd` are below
//   --players LIST hls, dash, shaka-hls or shaka-dash, then -low (low-latency) or -plain
//   --patience N   seconds that anything that is waited for may take (default 60)
//
// Prints a line of JSON on stdout once all play, `{"playing": {player: milliseconds}}`, then for each line on stdin:
//
//   `look`          `{"look": {player: report}}` of the time since the last look
//   `playing`       waits until all play on, for three seconds and without standing still; then the same
//   `showing WxH`   waits until all show pictures of this size, too; then the same
//
// At the end of stdin it ends. Exits with 1, and says why on stderr, if a player does not do it in time. CHROMIUM names the
// browser.

import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-renderer-backgrounding', '--disable-background-timer-throttling', '--disable-backgrounding-occluded-windows', '--autoplay-policy=no-user-gesture-required'];

const { values } = parseArgs({
  options: { url: { type: 'string' }, players: { type: 'string' }, patience: { type: 'string', default: '60' } },
});
const names = values.players.split(',');
for (const name of names) if (!/^(hls|dash|shaka-hls|shaka-dash)-(low|plain)$/.test(name)) throw new Error(`--players ${name} is not known`);
const patience = Number(values.patience) * 1000;

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => browser.close().finally(() => process.exit(1)));
try {
  const pages = new Map();
  for (const name of names) pages.set(name, await open(name));
  await each(pages, (page, name) => until(page, name, () => seen.started !== null));
  say({ playing: await each(pages, (page) => page.evaluate(() => Math.round(seen.started))) });
  for await (const line of createInterface({ input: process.stdin })) {
    const [what, size] = line.trim().split(' ');
    if (what === 'playing') await each(pages, (page, name) => until(page, name, () => seen.moves() > 3));
    else if (what === 'showing') await each(pages, (page, name) => until(page, name, (size) => seen.moves() > 3 && seen.size() === size, size));
    else if (what !== 'look') throw new Error(`not understood: ${line}`);
    say({ look: await each(pages, (page) => page.evaluate(() => seen.look())) });
  }
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
} finally {
  await browser.close();
  // Who gives the orders may wait for an answer, and would not close it.
  process.stdin.destroy();
}

async function each(pages, ask) {
  return Object.fromEntries(await Promise.all([...pages].map(async ([name, page]) => [name, await ask(page, name)])));
}

async function until(page, name, condition, argument) {
  try {
    await page.waitForFunction(condition, argument, { timeout: patience, polling: 100 });
  } catch (error) {
    const state = await page.evaluate(() => JSON.stringify(seen.look())).catch(() => 'none');
    throw new Error(`${name} does not do it (${error.name}; ${condition} ${argument ?? ''}): ${state}`);
  }
}

function say(what) {
  process.stdout.write(`${JSON.stringify(what)}\n`);
}

async function open(name) {
  const page = await browser.newPage({ viewport: { width: 320, height: 240 } });
  // A page of the same origin that does nothing.
  await page.goto(new URL('/watch/assets/licences.txt', values.url).href);
  const [kind] = name.match(/hls|dash/);
  if (name.startsWith('shaka')) await page.addScriptTag({ path: createRequire(import.meta.url).resolve(`shaka-player/dist/shaka-player.${kind}.js`) });
  else await page.addScriptTag({ url: `/watch/assets/${kind}.min.js` });
  const url = new URL(kind === 'dash' ? 'manifest.mpd' : 'index.m3u8', values.url).href;
  await page.evaluate(start, { library: name.replace(/-(low|plain)$/, ''), low: name.endsWith('-low'), url });
  return page;
}

/** Runs in the page. */
function start({ library, low, url }) {
  /** A player that stands still for longer has stalled. */
  const STALL_MS = 500;
  const asked = performance.now();
  const video = document.body.appendChild(document.createElement('video'));
  video.muted = true;
  video.width = 160;
  let [stalls, latencies, errors, fatal, sizes] = [[], [], {}, [], []];
  let [last, moved, still, since, frames, dropped] = [0, 0, false, asked, 0, 0];
  let latency = () => null;
  const seen = { started: null };
  window.seen = seen;
  const failed = (what) => { errors[what] = (errors[what] ?? 0) + 1; };
  video.addEventListener('resize', () => sizes.push(seen.size()));
  video.addEventListener('error', () => fatal.push(video.error.message));
  if (library === 'hls') {
    // As docs/ladder.md advises: else a rendition that had a gap is never chosen again.
    const player = new Hls({ lowLatencyMode: low, errorPenaltyExpireMs: 30_000 });
    player.on(Hls.Events.ERROR, (_, { details, fatal: ends }) => (ends ? fatal.push(details) : failed(details)));
    player.on(Hls.Events.MANIFEST_PARSED, () => video.play());
    player.loadSource(url);
    player.attachMedia(video);
    latency = () => player.playingDate && (Date.now() - player.playingDate) / 1000;
  } else if (library === 'dash') {
    const player = dashjs.MediaPlayer().create();
    player.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE } });
    if (!low) player.updateSettings({ streaming: { applyServiceDescription: false, delay: { liveDelay: 4 }, liveCatchup: { enabled: false } } });
    player.on(dashjs.MediaPlayer.events.ERROR, ({ error }) => failed(`${error.code} ${error.message.slice(0, 60)}`));
    player.initialize(video, url, true);
    latency = () => player.getCurrentLiveLatency();
  } else {
    const player = new shaka.Player();
    player.configure({ streaming: { lowLatencyMode: low } });
    player.addEventListener('error', ({ detail }) => {
      // A gap in all renditions is critical, it says, and goes on behind it by itself.
      if (detail.severity === 2 && detail.code !== shaka.util.Error.Code.SEGMENT_MISSING) fatal.push(String(detail.code));
      else failed(`${detail.code ?? detail.message} ${detail.data?.[1] ?? ''}`);
      // Its own: a seek while it fetches leaves it without an iterator (5.2.12), and it fetches no more until it is told to.
      if (detail.code === undefined) player.retryStreaming();
    });
    player.attach(video).then(() => player.load(url)).then(() => video.play()).catch((error) => fatal.push(`load: ${error.code ?? error}`));
    latency = () => (Date.now() - player.getPlayheadTimeAsDate()) / 1000;
  }
  setInterval(() => {
    const [now, at] = [performance.now(), video.currentTime];
    const moves = at !== last;
    last = at;
    if (seen.started === null) {
      if (moves && !video.paused && at > 0 && video.readyState > 2) [seen.started, moved, since] = [now - asked, now, now];
    } else if (moves) {
      if (still) [stalls, since] = [[...stalls, Math.round(now - moved)], now];
      [still, moved] = [false, now];
      const behind = latency();
      if (Number.isFinite(behind)) latencies.push(behind);
    } else if (now - moved > STALL_MS) {
      still = true;
    }
  }, 100);
  seen.size = () => `${video.videoWidth}x${video.videoHeight}`;
  /** Seconds for which it has played without standing still. */
  seen.moves = () => (still || performance.now() - moved > STALL_MS ? 0 : (performance.now() - since) / 1000);
  seen.look = () => {
    const sorted = latencies.sort((a, b) => a - b);
    const share = (part) => sorted[Math.min(Math.floor(sorted.length * part), sorted.length - 1)] ?? null;
    const quality = video.getVideoPlaybackQuality();
    const report = {
      stalls,
      still_ms: still ? Math.round(performance.now() - moved) : 0,
      latency: { p50: share(0.5), p95: share(0.95) },
      size: seen.size(),
      sizes,
      frames: quality.totalVideoFrames - frames,
      dropped: quality.droppedVideoFrames - dropped,
      errors,
      fatal,
    };
    [stalls, latencies, errors, sizes] = [[], [], {}, []];
    // A player that makes its buffers anew may count anew.
    [frames, dropped] = [quality.totalVideoFrames, quality.droppedVideoFrames];
    return report;
  };
}
