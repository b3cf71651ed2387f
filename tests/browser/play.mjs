// Opens the watch page in a real browser and tells what it saw, as one JSON object on stdout.
//
//   node play.mjs --url http://127.0.0.1:8080/watch/demo --player hls --seconds 30
//
//   --url URL            the watch page; with --recording a manifest
//   --recording          play a manifest that has an end, without the watch page: to the end, then seek
//   --once               with --recording: no more than to the end
//   --player hls|dash|native
//   --seconds N          how long to look, counted from the start of playback (default 30)
//   --start-timeout N    seconds until playback must have started (default 30)
//   --wait-offline       wait for the page to say that the stream is offline before waiting for playback
//   --until-restart      stop early, once playback has paused by itself and gone on again for five seconds
//   --quality ID|lowest|highest   pick this rendition after the start
//   --shots DIR          screenshots: offline.png, start.png, end.png, each with the player's name in front
//   --width N, --dark    viewport width and colour scheme
//   --insecure           accept any certificate
//
// Exits with 0 if the page has played; else says why on stderr and exits with 1 (2 for wrong arguments). What counts as
// good is the caller's affair. Lines of the form `event: NAME` on stderr (offline, playing, gap, resumed) let the caller
// act at the right moment. CHROMIUM names the browser.

import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const SAMPLE_MS = 250;
/** Playback that stands still for longer than this has paused by itself. */
const GAP_MS = 1500;
/** How long playback must go on after a gap. */
const RESUMED_MS = 5000;

const FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--autoplay-policy=no-user-gesture-required',
];

const options = arguments_();
const seen = { console_errors: [], page_errors: [], foreign_requests: [], manifest_404s: 0 };
const profile = await mkdtemp(join(tmpdir(), 'rooftop-browser-'));
let context = null;
let code = 0;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => finish().finally(() => process.exit(1)));
}
try {
  const report = await look();
  process.stdout.write(`${JSON.stringify(report)}\n`);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  code = 1;
} finally {
  await finish();
}
process.exit(code);

async function look() {
  context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: FLAGS,
    headless: true,
    viewport: { width: options.width, height: 900 },
    colorScheme: options.dark ? 'dark' : 'light',
    ignoreHTTPSErrors: options.insecure,
    timeout: 60_000,
  });
  const page = context.pages()[0] ?? (await context.newPage());
  listen(page);
  if (options.recording) return recording(page);

  const url = new URL(options.url);
  url.searchParams.set('player', options.player);
  const opened = Date.now();
  await page.goto(url.href, { waitUntil: 'domcontentloaded' });
  await until(page, () => Boolean(window.rooftop), 15_000, 'the page did not run its script');

  let sawOffline = false;
  if (options.waitOffline) {
    await until(page, () => window.rooftop.state().offline, options.startTimeout, 'the page never said that the stream is offline');
    sawOffline = true;
    await shot(page, 'offline');
    event('offline');
  }
  const waited = Date.now();
  await until(page, () => window.rooftop.state().playing, options.startTimeout, 'playback did not start');
  const started = Date.now();
  event('playing');
  if (options.quality) await chooseQuality(page, options.quality);

  const { samples, gap } = await sample(page, started);
  const last = await page.evaluate(() => window.rooftop.state());
  await shot(page, 'end');
  const first = samples[0];
  const end = samples.at(-1);
  return {
    url: url.href,
    player: last.player,
    saw_offline: sawOffline,
    started_ms: started - (options.waitOffline ? waited : opened),
    wall: round(end.wall - first.wall),
    advanced: round(played(samples)),
    stalls: last.stalls,
    stalled_seconds: round(last.stalledSeconds),
    stall_log: last.stallLog.map(({ at, seconds }) => ({ wall: round((at - started) / 1000), seconds })),
    recoveries: last.recoveries,
    latency: spread(samples.map(({ latency }) => latency)),
    pdt_latency: spread(samples.map(({ pdtLatency }) => pdtLatency)),
    buffer: spread(samples.map(({ buffer }) => buffer)),
    renditions: [...new Set(samples.map(({ rendition }) => rendition).filter(Boolean))],
    last_rendition: last.rendition,
    dropped: last.dropped,
    gap,
    errors: last.errors,
    ...seen,
    samples: samples.map(({ wall, currentTime, phase }) => [wall, currentTime, phase]),
  };
}

/** Plays a recording to its end, then from places before and behind its middle, and from near its end to the end again. */
async function recording(page) {
  const manifest = new URL(options.url);
  await page.goto(new URL('/watch/assets/licences.txt', manifest).href);
  const script = { hls: 'hls.min.js', dash: 'dash.min.js' }[options.player];
  await page.addScriptTag({ url: `/watch/assets/${script}` });
  await page.evaluate(
    ({ player, url }) => {
      const video = document.body.appendChild(document.createElement('video'));
      video.muted = true;
      window.seen = { video, errors: [], warnings: [], ended: [] };
      let last = 0;
      setInterval(() => { last = video.currentTime; }, 20);
      const ended = () => window.seen.ended.push(Math.max(last, video.currentTime));
      video.addEventListener('error', () => window.seen.errors.push(video.error.message));
      if (player === 'hls') {
        video.addEventListener('ended', ended);
        const hls = new Hls();
        hls.on(Hls.Events.ERROR, (_, { details, fatal }) => window.seen[fatal ? 'errors' : 'warnings'].push(`${details} at ${video.currentTime}`));
        hls.on(Hls.Events.MANIFEST_PARSED, () => video.play());
        hls.loadSource(url);
        hls.attachMedia(video);
      } else {
        const player = dashjs.MediaPlayer().create();
        player.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE } });
        player.on(dashjs.MediaPlayer.events.ERROR, ({ error }) => window.seen.errors.push(error.message));
        // It goes by the MPD: where audio reaches a third of a millisecond further, the element has not ended yet.
        player.on(dashjs.MediaPlayer.events.PLAYBACK_ENDED, ({ isLast }) => isLast && ended());
        player.initialize(video, url, true);
      }
    },
    { player: options.player, url: manifest.href },
  );
  const patience = options.startTimeout + options.seconds * 1000;
  const state = () => page.evaluate(() => ({ duration: seen.video.duration, currentTime: seen.video.currentTime, rate: seen.video.playbackRate, buffered: [...Array(seen.video.buffered.length).keys()].map((i) => [seen.video.buffered.start(i), seen.video.buffered.end(i)]), frames: seen.video.getVideoPlaybackQuality().totalVideoFrames, ended: seen.ended, errors: seen.errors, warnings: seen.warnings }));
  const reached = async (condition, argument, reason) => {
    try {
      await page.waitForFunction(condition, argument, { timeout: patience, polling: 100 });
    } catch (error) {
      throw new Error(`${reason} (${error.name}); state: ${JSON.stringify(await state())}`);
    }
  };
  await reached(() => seen.video.currentTime > 0.5, null, 'playback did not start');
  await reached(() => seen.ended.length === 1, null, 'playback did not come to the end');
  const { duration, ended, frames } = await state();
  let seeks = 0;
  for (const share of options.once ? [] : [0.25, 0.6, 0.9]) {
    const to = duration * share;
    await page.evaluate((to) => {
      seen.video.currentTime = to;
      return seen.video.play();
    }, to);
    await reached((to) => seen.video.currentTime > to + 0.5 && seen.video.currentTime < to + 4, to, `playback did not go on at ${to} s`);
    seeks += 1;
  }
  if (!options.once) await reached(() => seen.ended.length === 2, null, 'playback did not come to the end a second time');
  const { errors, warnings } = await state();
  return { url: manifest.href, player: options.player, duration: round(duration), ended_at: round(ended[0]), frames, seeks, errors, warnings, ...seen };
}

/** What the browser itself complains about. Looking for a stream that is offline is not an error. */
function listen(page) {
  const home = new URL(options.url).host;
  page.on('console', (message) => {
    if (message.type() !== 'error') return;
    const from = message.location().url ?? '';
    if (/\b404\b/.test(message.text()) && /\.(m3u8|mpd)$/.test(from.split('?')[0])) seen.manifest_404s += 1;
    else seen.console_errors.push(`${message.text()} ${from}`.trim());
  });
  page.on('pageerror', (error) => seen.page_errors.push(String(error.stack ?? error)));
  page.on('request', (request) => {
    const target = new URL(request.url());
    if (/^(https?|wss?):$/.test(target.protocol) && target.host !== home) seen.foreign_requests.push(request.url());
  });
}

/** Samples inside the page, so that a busy test process does not stretch the intervals. */
async function sample(page, started) {
  await page.evaluate((every) => {
    const samples = [];
    const take = () => {
      const { currentTime, latency, pdtLatency, buffer, rendition, phase } = window.rooftop.state();
      samples.push({ at: Date.now(), currentTime, latency, pdtLatency, buffer, rendition: rendition?.name ?? null, phase });
    };
    take();
    setInterval(take, every);
    window.takeSamples = () => samples.splice(0);
  }, SAMPLE_MS);
  await shot(page, 'start');

  const samples = [];
  const gap = { began: null, seconds: null, resumed: false };
  let movedAt = started;
  let resumedAt = null;
  for (const end = started + options.seconds * 1000; Date.now() < end; ) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(2 * SAMPLE_MS, Math.max(end - Date.now(), 1))));
    for (const { at, ...rest } of await page.evaluate(() => window.takeSamples())) {
      const moved = samples.length > 0 && rest.currentTime !== samples.at(-1).currentTime;
      samples.push({ wall: (at - started) / 1000, ...rest });
      if (!moved) {
        if (at - movedAt > GAP_MS && gap.began === null) {
          gap.began = round((movedAt - started) / 1000);
          event('gap');
        }
        resumedAt = null;
        continue;
      }
      if (gap.began !== null && !gap.resumed) {
        resumedAt ??= at;
        if (at - resumedAt >= RESUMED_MS) {
          gap.resumed = true;
          gap.seconds = round((resumedAt - started) / 1000 - gap.began);
          event('resumed');
        }
      }
      movedAt = at;
    }
    if (options.untilRestart && gap.resumed) break;
  }
  if (samples.length < 2) throw new Error('the page gave no samples');
  return { samples, gap };
}

async function chooseQuality(page, wanted) {
  await page.evaluate((wanted) => {
    const select = document.getElementById('quality');
    const ids = [...select.options].map(({ value }) => value).filter(Boolean);
    const id = { highest: ids[0], lowest: ids.at(-1) }[wanted] ?? wanted;
    select.value = id;
    select.dispatchEvent(new Event('change'));
  }, wanted);
}

async function until(page, condition, timeout, reason) {
  try {
    await page.waitForFunction(condition, null, { timeout, polling: 100 });
  } catch (error) {
    const state = await page.evaluate(() => JSON.stringify(window.rooftop?.state())).catch(() => 'none');
    await shot(page, 'failed');
    const complaints = [...seen.page_errors, ...seen.console_errors].map((text) => `\n${text}`).join('');
    throw new Error(`${reason} within ${timeout / 1000} s (${error.name}); state: ${state}${complaints}`);
  }
}

async function shot(page, name) {
  if (!options.shots) return;
  await mkdir(options.shots, { recursive: true });
  await page.screenshot({ path: join(options.shots, `${options.player}-${name}.png`), fullPage: true }).catch(() => {});
}

async function finish() {
  await context?.close().catch(() => {});
  await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
}

function event(name) {
  process.stderr.write(`event: ${name}\n`);
}

/** Media time that went by, in seconds; jumps, as over a gap or to a new player's clock, are not playback. */
function played(samples) {
  let sum = 0;
  for (let i = 1; i < samples.length; i += 1) {
    const step = samples[i].currentTime - samples[i - 1].currentTime;
    if (step > 0 && step < 2) sum += step;
  }
  return sum;
}

function spread(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const at = (share) => round(sorted[Math.min(Math.floor(sorted.length * share), sorted.length - 1)]);
  return { min: at(0), p50: at(0.5), p95: at(0.95), max: at(1) };
}

function round(value) {
  return Math.round(value * 1000) / 1000;
}

function arguments_() {
  try {
    const { values } = parseArgs({
      options: {
        url: { type: 'string' },
        player: { type: 'string', default: 'hls' },
        seconds: { type: 'string', default: '30' },
        'start-timeout': { type: 'string', default: '30' },
        'wait-offline': { type: 'boolean', default: false },
        'until-restart': { type: 'boolean', default: false },
        quality: { type: 'string' },
        shots: { type: 'string' },
        width: { type: 'string', default: '1280' },
        dark: { type: 'boolean', default: false },
        insecure: { type: 'boolean', default: false },
        recording: { type: 'boolean', default: false },
        once: { type: 'boolean', default: false },
      },
    });
    if (!values.url) throw new Error('--url is missing');
    if (!['hls', 'dash', 'native'].includes(values.player)) throw new Error(`--player ${values.player} is not known`);
    const number = (name) => {
      const value = Number(values[name]);
      if (!(value > 0)) throw new Error(`--${name} must be a number above 0`);
      return value;
    };
    return {
      ...values,
      seconds: number('seconds'),
      startTimeout: number('start-timeout') * 1000,
      width: number('width'),
      waitOffline: values['wait-offline'],
      untilRestart: values['until-restart'],
    };
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    process.exit(2);
  }
}
