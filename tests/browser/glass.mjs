// Plays a live stream in a real browser and reads the clock that its pictures show: how old they are when the browser shows
// them. One JSON object on stdout.
//
//   node glass.mjs --url http://127.0.0.1:8080/live/demo/ --player dash-low --seconds 30
//
//   --url URL         what `index.m3u8` and `manifest.mpd` are below
//   --player NAME     one of dash-low, hls-low, hls-plain, shaka-dash-low, shaka-hls-low: as the player has it, but that it may catch up
//   --seconds N       how long to look (default 30), once it has settled
//   --settle N        seconds of playback before that (default 5)
//   --start-timeout N seconds until it must play (default 30)
//
// The clock is two rows of twenty black or white cells over the lowest 64 of 360 lines, most significant bit first: 32 bits of the
// milliseconds since 1970, then their four bytes added up, modulo 256. Pictures are read when the browser hands them to its
// compositor, and count as shown when it expects to show them. CHROMIUM names the browser.

import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--autoplay-policy=no-user-gesture-required'];
const PLAYERS = ['dash-low', 'hls-low', 'hls-plain', 'shaka-dash-low', 'shaka-hls-low'];

const { values } = parseArgs({
  options: {
    url: { type: 'string' },
    player: { type: 'string' },
    seconds: { type: 'string', default: '30' },
    settle: { type: 'string', default: '5' },
    'start-timeout': { type: 'string', default: '30' },
  },
});
if (!PLAYERS.includes(values.player)) throw new Error(`--player ${values.player} is not one of ${PLAYERS.join(', ')}`);
const number = (name) => {
  const value = Number(values[name]);
  if (!(value >= 0)) throw new Error(`--${name} must be a number`);
  return value * 1000;
};
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: FLAGS });
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => browser.close().finally(() => process.exit(1)));
try {
  const page = await browser.newPage({ viewport: { width: 700, height: 400 } });
  // A page of the same origin that does nothing.
  await page.goto(new URL('/watch/assets/licences.txt', values.url).href);
  const kind = values.player.split('-').find((word) => word === 'dash' || word === 'hls');
  if (!values.player.startsWith('shaka')) await page.addScriptTag({ url: `/watch/assets/${kind}.min.js` });
  else await page.addScriptTag({ path: createRequire(import.meta.url).resolve(`shaka-player/dist/shaka-player.${kind}.js`) });
  const url = new URL(kind === 'dash' ? 'manifest.mpd' : 'index.m3u8', values.url).href;
  await page.evaluate(open, { player: values.player, url });
  try {
    await page.waitForFunction(() => window.glass.started !== null, null, { timeout: number('start-timeout'), polling: 100 });
  } catch {
    throw new Error(`${values.player} did not start: ${await page.evaluate(() => JSON.stringify(window.glass.problems))}`);
  }
  await page.waitForTimeout(number('settle'));
  await page.evaluate(() => window.glass.begin());
  await page.waitForTimeout(number('seconds'));
  process.stdout.write(`${JSON.stringify(await page.evaluate(() => window.glass.report()))}\n`);
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
} finally {
  await browser.close();
}

/** Runs in the page. */
function open({ player: name, url }) {
  const [COLUMNS, ROWS, CELL] = [20, 2, 8];
  const video = document.body.appendChild(document.createElement('video'));
  video.muted = true;
  video.width = 640;
  const asked = performance.now();
  const glass = { started: null, problems: [] };
  let [ages, told, unreadable, stalls, sizes] = [[], [], 0, 0, new Set()];
  let age = () => null;
  window.glass = glass;
  const problem = (what) => glass.problems.length < 20 && glass.problems.push(`${what} at ${video.currentTime.toFixed(2)}`);
  video.addEventListener('playing', () => { glass.started ??= performance.now() - asked; });
  video.addEventListener('waiting', () => { if (glass.started !== null) stalls += 1; });
  video.addEventListener('error', () => problem(video.error.message));
  if (name === 'dash-low') {
    const player = dashjs.MediaPlayer().create();
    player.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE } });
    player.on(dashjs.MediaPlayer.events.ERROR, ({ error }) => problem(`${error.code} ${error.message}`));
    player.initialize(video, url, true);
    age = () => player.getCurrentLiveLatency();
  } else if (name.startsWith('hls')) {
    // Without a rate to catch up at it stays where it began.
    const player = new Hls(name === 'hls-low' ? { lowLatencyMode: true, maxLiveSyncPlaybackRate: 1.1 } : { lowLatencyMode: false });
    player.on(Hls.Events.ERROR, (_, { details }) => problem(details));
    player.on(Hls.Events.MANIFEST_PARSED, () => video.play());
    player.loadSource(url);
    player.attachMedia(video);
    age = () => player.latency;
  } else {
    const player = new shaka.Player();
    // The same; it takes the latency from the manifest.
    player.configure({ streaming: { lowLatencyMode: true, liveSync: { enabled: true } } });
    player.addEventListener('error', ({ detail }) => problem(`${detail.code} ${detail.data?.[0] ?? ''}`));
    player.attach(video).then(() => player.load(url)).then(() => video.play()).catch((error) => problem(String(error.code ?? error)));
    age = () => (Date.now() - player.getPlayheadTimeAsDate()) / 1000;
  }

  const canvas = new OffscreenCanvas(COLUMNS * CELL, ROWS * CELL);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const read = () => {
    const scale = video.videoHeight / 360;
    context.drawImage(video, 0, 296 * scale, video.videoWidth, 64 * scale, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const bytes = [0, 0, 0, 0, 0];
    for (let bit = 0; bit < COLUMNS * ROWS; bit += 1) {
      const [x, y] = [(bit % COLUMNS) * CELL + CELL / 2, Math.floor(bit / COLUMNS) * CELL + CELL / 2];
      if (data[(y * canvas.width + x) * 4 + 1] > 127) bytes[bit >> 3] |= 0x80 >> (bit & 7);
    }
    const sum = (bytes[0] + bytes[1] + bytes[2] + bytes[3]) & 0xff;
    return sum === bytes[4] ? ((bytes[0] << 24) | (bytes[1] << 16) | (bytes[2] << 8) | bytes[3]) >>> 0 : null;
  };
  const shown = (_, { expectedDisplayTime }) => {
    video.requestVideoFrameCallback(shown);
    const now = Math.max(performance.now(), expectedDisplayTime) + performance.timeOrigin;
    const clock = read();
    if (clock === null) {
      unreadable += 1;
      return;
    }
    // 32 bits go round every seven weeks.
    ages.push((Math.round(now) - clock + 2 ** 32) % 2 ** 32);
    told.push(1000 * (age() ?? NaN));
    sizes.add(`${video.videoWidth}x${video.videoHeight}`);
  };
  video.requestVideoFrameCallback(shown);
  const spread = (values) => {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    const at = (share) => sorted[Math.min(Math.floor(sorted.length * share), sorted.length - 1)] ?? null;
    return { p50: at(0.5), p95: at(0.95), max: at(1) };
  };
  glass.begin = () => { [ages, told, unreadable, stalls, sizes] = [[], [], 0, 0, new Set()]; };
  glass.report = () => ({
    start_ms: Math.round(glass.started),
    // Milliseconds: what is read off the pictures, and what the player thinks.
    glass: spread(ages),
    player: spread(told),
    frames: ages.length,
    unreadable,
    stalls,
    sizes: [...sizes],
    problems: glass.problems,
  });
}
