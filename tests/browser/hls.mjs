// Players of HLS side by side in one page of a real browser, without the watch page, and what each of them saw, as one JSON
// object on stdout: player, then report.
//
//   node hls.mjs --url http://127.0.0.1:8080/live/demo/index.m3u8 --players shaka-low,hls-plain --seconds 40
//
//   --url URL         the multivariant playlist
//   --players LIST    shaka or hls, then -low (low-latency) or -plain
//   --seconds N       how long to look, from the start of the last of them
//   --start-timeout N seconds until all must have started (default 30)
//
// `event: playing` on stderr when all play. Exits with 1 if one of them did not start. CHROMIUM names the browser.

import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

/** A player that stands still for longer has stalled. */
const STALL_MS = 500;
const SAMPLE_MS = 100;

const { values: options } = parseArgs({
  options: {
    url: { type: 'string' },
    players: { type: 'string', default: 'shaka-low,shaka-plain' },
    seconds: { type: 'string', default: '30' },
    'start-timeout': { type: 'string', default: '30' },
  },
});
const players = options.players.split(',').map((name) => {
  const [kind, latency] = name.split('-');
  if (!['shaka', 'hls'].includes(kind) || !['low', 'plain'].includes(latency)) throw new Error(`--players ${name} is not known`);
  return { name, kind, low: latency === 'low' };
});
const profile = await mkdtemp(join(tmpdir(), 'rooftop-players-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--autoplay-policy=no-user-gesture-required'],
  headless: true,
  timeout: 60_000,
});
let code = 0;
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => finish().finally(() => process.exit(1)));
try {
  process.stdout.write(`${JSON.stringify(await look())}\n`);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  code = 1;
} finally {
  await finish();
}
process.exit(code);

async function look() {
  const page = context.pages()[0] ?? (await context.newPage());
  // A page of the same origin that does nothing.
  await page.goto(new URL('/watch/assets/licences.txt', options.url).href);
  const script = (name) => createRequire(import.meta.url).resolve(name);
  await page.addScriptTag({ path: script('shaka-player/dist/shaka-player.hls.js') });
  await page.addScriptTag({ url: '/watch/assets/hls.min.js' });
  await page.evaluate(open, { players, url: options.url, sampleMs: SAMPLE_MS, stallMs: STALL_MS });
  try {
    const all = () => Object.values(window.seen).every(({ started }) => started !== null);
    await page.waitForFunction(all, null, { timeout: Number(options['start-timeout']) * 1000, polling: 100 });
  } catch {
    throw new Error(`not all started: ${await page.evaluate(() => JSON.stringify(window.seen))}`);
  }
  process.stderr.write('event: playing\n');
  await new Promise((resolve) => setTimeout(resolve, Number(options.seconds) * 1000));
  return page.evaluate(() => window.report());
}

/** Runs in the page. */
function open({ players, url, sampleMs, stallMs }) {
  window.seen = {};
  const clocks = {};
  for (const { name, kind, low } of players) {
    const video = document.body.appendChild(document.createElement('video'));
    video.muted = true;
    video.width = 160;
    const seen = { asked: performance.now(), started: null, stalls: [], still: null, moved: 0, last: 0, latencies: [], sizes: [], fatal: [], warnings: {}, wall: [] };
    window.seen[name] = seen;
    video.addEventListener('error', () => seen.fatal.push(video.error.message));
    video.addEventListener('resize', () => seen.sizes.push(`${video.videoWidth}x${video.videoHeight}`));
    if (kind === 'hls') {
      const hls = new Hls({ lowLatencyMode: low });
      hls.on(Hls.Events.ERROR, (_, { details, fatal }) => {
        if (fatal) seen.fatal.push(details);
        else seen.warnings[details] = (seen.warnings[details] ?? 0) + 1;
      });
      hls.on(Hls.Events.MANIFEST_PARSED, () => video.play());
      hls.loadSource(url);
      hls.attachMedia(video);
      clocks[name] = { video, date: () => hls.playingDate };
    } else {
      const player = new shaka.Player();
      player.configure({ streaming: { lowLatencyMode: low } });
      player.addEventListener('error', ({ detail }) => {
        const said = `${detail.code ?? detail.message} ${detail.data?.slice(0, 2) ?? ''}`;
        if (detail.severity === 2) seen.fatal.push(said);
        else seen.warnings[said] = (seen.warnings[said] ?? 0) + 1;
      });
      clocks[name] = { video, date: () => player.getPlayheadTimeAsDate() };
      player.attach(video).then(() => player.load(url)).then(() => video.play(), (error) => seen.fatal.push(`load: ${error.code} ${error.message}`));
    }
  }
  setInterval(() => {
    const now = performance.now();
    for (const [name, seen] of Object.entries(window.seen)) {
      const { video, date } = clocks[name];
      const at = video.currentTime;
      const moves = at !== seen.last;
      seen.last = at;
      if (seen.started === null) {
        if (moves && !video.paused && at > 0 && video.readyState > 2) [seen.started, seen.moved] = [now, now];
        continue;
      }
      if (moves) {
        if (seen.still !== null) seen.stalls.push([Math.round(seen.moved - seen.started), Math.round(now - seen.moved)]);
        seen.still = null;
        seen.moved = now;
        const shown = date();
        if (shown) seen.latencies.push((Date.now() - shown.getTime()) / 1000);
      } else if (now - seen.moved > stallMs) {
        seen.still = now;
      }
    }
  }, sampleMs);
  window.report = () => {
    const reports = {};
    for (const [name, seen] of Object.entries(window.seen)) {
      const sorted = [...seen.latencies].sort((a, b) => a - b);
      const share = (part) => sorted[Math.min(Math.floor(sorted.length * part), sorted.length - 1)] ?? null;
      const quality = clocks[name].video.getVideoPlaybackQuality();
      reports[name] = {
        start_ms: Math.round(seen.started - seen.asked),
        // When, since the start, and how long, in milliseconds.
        stalls: seen.stalls,
        still_ms: seen.still === null ? 0 : Math.round(performance.now() - seen.moved),
        latency: { p50: share(0.5), p95: share(0.95), max: share(1) },
        sizes: seen.sizes,
        dropped: quality.droppedVideoFrames,
        frames: quality.totalVideoFrames,
        fatal: seen.fatal,
        warnings: seen.warnings,
      };
    }
    return reports;
  };
}

async function finish() {
  await context?.close().catch(() => {});
  await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
}
