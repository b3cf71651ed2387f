// What hls.js (of whole segments) and dash.js show of captions and events of a live stream, as one JSON object on stdout.
//
//   node timed.mjs --url http://127.0.0.1:8080/live/demo/ --seconds 20
//
// Ends as soon as each has shown all that it can, after so many seconds at the latest. CHROMIUM names the browser.

import { parseArgs } from 'node:util';

import { chromium } from 'playwright-core';

const { values: options } = parseArgs({ options: { url: { type: 'string' }, seconds: { type: 'string', default: '20' } } });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--autoplay-policy=no-user-gesture-required'],
  timeout: 60_000,
});
try {
  const page = await browser.newPage();
  await page.goto(new URL('/watch/assets/licences.txt', options.url).href);
  await page.addScriptTag({ url: '/watch/assets/hls.min.js' });
  await page.addScriptTag({ url: '/watch/assets/dash.min.js' });
  await page.evaluate(open, options.url);
  const all = () => Object.values(window.seen).every((kinds) => Object.values(kinds).every((seen) => seen.length > 0));
  await page.waitForFunction(all, null, { timeout: Number(options.seconds) * 1000, polling: 200 }).catch(() => {});
  process.stdout.write(`${JSON.stringify(await page.evaluate(() => window.seen))}\n`);
} finally {
  await browser.close();
}

/** Runs in the page. */
function open(url) {
  const seen = { hls: { announced: [], captions: [], id3: [], ranges: [] }, dash: { id3: [], scte35: [] } };
  window.seen = seen;
  const add = (list, text) => list.includes(text) || list.push(text);
  const bytes = (data) => Array.from(data, (byte) => String.fromCharCode(byte)).join('');
  const video = () => {
    const element = document.body.appendChild(document.createElement('video'));
    element.muted = true;
    return element;
  };

  const first = video();
  // hls.js 1.7 forgets at each part what of a caption came before (its timeline controller compares `sn` with the last one's
  // successor, which the next part of the same segment never is): lines that span parts are shown of whole segments only.
  const hls = new Hls({ lowLatencyMode: false });
  hls.on(Hls.Events.MANIFEST_PARSED, (_, { levels }) => {
    for (const { attrs } of levels) add(seen.hls.announced, attrs['CLOSED-CAPTIONS']);
    first.play();
  });
  hls.on(Hls.Events.LEVEL_UPDATED, (_, { details }) => {
    for (const { id, attr } of Object.values(details.dateRanges)) add(seen.hls.ranges, `${id} ${attr['SCTE35-OUT'] ?? attr['X-DATA']}`);
  });
  hls.loadSource(`${url}index.m3u8`);
  hls.attachMedia(first);
  setInterval(() => {
    for (const track of first.textTracks) {
      if (track.mode === 'disabled') track.mode = 'hidden';
      for (const cue of track.cues ?? []) {
        if (track.kind === 'captions' && cue.text.trim()) add(seen.hls.captions, cue.text.trim());
        if (track.kind === 'metadata' && cue.value?.key === 'TXXX') add(seen.hls.id3, `${cue.value.info} ${cue.value.data}`);
      }
    }
  }, 200);

  const second = video();
  const dash = dashjs.MediaPlayer().create();
  dash.updateSettings({ debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE } });
  dash.on('https://aomedia.org/emsg/ID3', ({ event }) => add(seen.dash.id3, bytes(event.messageData)));
  dash.on('urn:scte:scte35:2013:bin', ({ event }) => add(seen.dash.scte35, bytes(event.messageData)));
  dash.initialize(second, `${url}manifest.mpd`, true);
}
