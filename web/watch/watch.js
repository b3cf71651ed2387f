// The watch page: joins the rules (session.js), the players (players.js) and the document.
//
// `?player=hls|dash|native` chooses the player, `?muted=0` asks for sound, `?token=` is a playback token. Tests read `window.rooftop.state()`.

import { open, supported } from './players.js';
import { probe } from './probe.js';
import { Session } from './session.js';
import { Running, Stalls, bitrate, bufferAhead, label, picture, seconds, sparkline } from './stats.js';

/** How often the media element is looked at, and how many looks make one update of the panel. */
const LOOK_MS = 250;
const LOOKS_PER_UPDATE = 2;
/** A clock that shows the same time twice, this long apart, stands still. Timers may come in bursts on a busy machine. */
const STILL_MS = 200;
/** A minute of latency in the small curve. */
const SPARK_VALUES = 120;
/** Errors kept for `state()`. */
const MAX_ERRORS = 100;
/** Behind the live edge by more than this, the page offers the way back. */
const BEHIND_SECONDS = 6;

const NOTICES = {
  checking: ['Checking', 'Looking for the stream …'],
  offline: ['Offline', 'This stream is offline. It will start here by itself as soon as it begins.'],
  ended: ['Ended', 'The broadcast has ended. The next one will start here by itself.'],
  unreachable: ['No answer', 'The server does not answer at the moment. Trying again …'],
  starting: ['Starting', ''],
  playing: ['Live', ''],
  paused: ['Paused', ''],
  recovering: ['Recovering', 'Playback was interrupted. Recovering …'],
  waiting: ['Waiting', 'The broadcaster is away. Playback goes on when they return.'],
  unsupported: ['Unsupported', 'This browser can play neither HLS nor DASH.'],
};

const $ = (id) => document.getElementById(id);
const video = $('video');
const stream = decodeURIComponent(location.pathname.split('/').filter(Boolean).at(-1) ?? '');
const query = new URLSearchParams(location.search);
// In the path, so that everything the playlists name is asked for with it.
const token = query.get('token');
const base = `${token ? `/t/${encodeURIComponent(token)}` : ''}/live/${encodeURIComponent(stream)}`;
const urls = { hls: `${base}/index.m3u8`, dash: `${base}/manifest.mpd` };
const able = supported(video);

const session = new Session(Date.now());
const stalls = new Stalls();
const dropped = new Running();
const errors = [];
const spark = [];
let kind = choose(query.get('player'));
let player = null;
/** Grows with every player made or ended, so that a player that arrives late is turned away. */
let generation = 0;
let timer = null;
let looks = 0;
let lastTime = 0;
let lastMoveAt = null;
let shown = null;

window.rooftop = { state };
start();

function start() {
  $('stream').textContent = stream;
  document.title = `${stream} · Rooftop`;
  for (const [name, url] of Object.entries(urls)) {
    const link = $(`link-${name}`);
    link.href = url;
    link.textContent = new URL(url, location.href).href;
  }
  video.muted = query.get('muted') !== '0';
  listen();
  if (kind === null) {
    show('unsupported');
    return;
  }
  drain();
  setInterval(look, LOOK_MS);
}

/** The wanted player if this browser has it, else the best that it has, else null. */
function choose(wanted) {
  return [wanted, 'hls', 'native'].find((name) => able[name]) ?? null;
}

/** Does what the session asks for, then sets the timer for when it wants to be called again. */
function drain() {
  for (let action; (action = session.poll()); ) {
    if (action.do === 'probe') {
      probe(kind, urls).then(({ status, marker }) => mutate((now) => session.handleManifest(now, status, marker)));
    } else if (action.do === 'create') {
      create();
    } else if (action.do === 'destroy') {
      destroy();
    } else if (action.do === 'soften') {
      player?.soften(action.kind);
    } else if (action.do === 'jump') {
      player?.jump();
    }
  }
  clearTimeout(timer);
  const due = session.pollTimeout();
  if (due !== null) timer = setTimeout(() => mutate((now) => session.handleTimeout(now)), Math.max(due - Date.now(), 10));
  show(session.phase === 'playing' && video.paused ? 'paused' : session.phase);
}

function mutate(change) {
  change(Date.now());
  drain();
}

async function create() {
  generation += 1;
  const mine = generation;
  const on = {
    error: (error) => mine === generation && fault(error),
    renditions: () => mine === generation && player && listQualities(),
  };
  try {
    const opened = await open(kind, video, urls, on);
    if (mine !== generation) {
      opened.destroy();
      return;
    }
    player = opened;
    listQualities();
  } catch (error) {
    if (mine === generation) fault({ kind: 'other', fatal: true, message: error.message });
  }
}

function destroy() {
  generation += 1;
  player?.destroy();
  player = null;
  listQualities();
}

function fault({ kind, fatal, message }) {
  errors.push({ at: Date.now(), kind, fatal, message });
  if (errors.length > MAX_ERRORS) errors.shift();
  if (fatal) mutate((now) => session.handleError(now, kind));
}

function listen() {
  video.addEventListener('waiting', () => stalls.handleWaiting(Date.now(), !video.paused && !video.seeking));
  video.addEventListener('volumechange', offerSound);
  $('unmute').addEventListener('click', () => {
    video.muted = false;
    if (video.volume === 0) video.volume = 1;
    video.play().catch(() => {});
    video.focus();
  });
  for (const input of document.querySelectorAll('input[name="player"]')) {
    input.disabled = !able[input.value];
    input.checked = input.value === kind;
    input.addEventListener('change', () => turnTo(input.value));
  }
  $('quality').addEventListener('change', ({ target }) => player?.select(target.value || null));
  $('live').addEventListener('click', () => {
    player?.jump();
    video.play().catch(() => {});
  });
  $('licences').addEventListener('toggle', showLicences, { once: true });
}

function offerSound() {
  $('unmute').hidden = !video.muted || !session.hasPlayer;
}

function turnTo(wanted) {
  kind = wanted;
  query.set('player', wanted);
  history.replaceState(null, '', `?${query}`);
  spark.length = 0;
  mutate((now) => session.handleSwitch(now));
}

function listQualities() {
  const select = $('quality');
  const chosen = select.value;
  const renditions = player?.renditions() ?? [];
  select.replaceChildren(new Option('Auto', ''), ...renditions.map((rendition) => new Option(label(rendition), rendition.id)));
  select.disabled = renditions.length < 2;
  // A new player begins with its own choice; so does the menu.
  select.value = player && renditions.some(({ id }) => id === chosen) ? chosen : '';
}

async function showLicences() {
  try {
    const response = await fetch('/watch/assets/licences.txt');
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    $('licence-text').textContent = await response.text();
  } catch (error) {
    $('licence-text').textContent = `The licences could not be loaded (${error.message}).`;
  }
}

/** Looks at the media element; the only place that decides whether playback moves. */
function look() {
  const now = Date.now();
  const time = video.currentTime;
  const wanted = !video.seeking && !video.paused;
  if (wanted && time > lastTime && time - lastTime < 2) {
    stalls.handlePlaying(now);
    lastMoveAt = now;
  } else if (time === lastTime && now - lastMoveAt >= STILL_MS) {
    // dash.js sets the rate to zero before the buffer runs dry, so that no `waiting` event ever comes.
    stalls.handleWaiting(now, wanted);
  }
  lastTime = time;
  mutate((at) => session.handleProgress(at, { time, paused: video.paused && !video.ended, seeking: video.seeking, ended: video.ended }));
  looks += 1;
  if (looks % LOOKS_PER_UPDATE === 0) update();
}

function state() {
  const snapshot = player?.snapshot() ?? { latency: null, pdtLatency: null, target: null, rendition: null };
  const quality = video.getVideoPlaybackQuality?.();
  return {
    player: kind,
    phase: session.phase,
    offline: session.phase === 'offline' || session.phase === 'ended',
    playing: lastMoveAt !== null && Date.now() - lastMoveAt < 1000 && !video.paused,
    currentTime: video.currentTime,
    rate: video.playbackRate,
    ...snapshot,
    buffer: bufferAhead(video.buffered, video.currentTime),
    dropped: dropped.update(quality?.droppedVideoFrames ?? 0),
    stalls: stalls.count,
    stalledSeconds: stalls.seconds,
    stallLog: stalls.log,
    recoveries: session.recoveries,
    errors,
  };
}

function update() {
  const now = state();
  const here = session.hasPlayer;
  const latency = now.pdtLatency ?? now.latency;
  $('stat-clock').textContent = here ? seconds(latency) : '–';
  $('stat-latency').textContent = here ? seconds(now.latency) : '–';
  $('stat-picture').textContent = (now.rendition && (picture(now.rendition) || now.rendition.name)) || '–';
  $('stat-bitrate').textContent = (now.rendition && bitrate(now.rendition.kbps)) || '–';
  $('stat-buffer').textContent = here ? seconds(now.buffer) : '–';
  $('stat-rate').textContent = here ? `${Number(now.rate.toFixed(2))}×` : '–';
  $('stat-dropped').textContent = String(now.dropped);
  $('stat-stalls').textContent = now.stalls ? `${now.stalls} · ${seconds(now.stalledSeconds, 1)}` : '0';
  $('stat-recoveries').textContent = String(now.recoveries);
  $('live').hidden = !(here && now.latency !== null && now.latency - (now.target ?? 0) > BEHIND_SECONDS);
  $('audio-only').hidden = !(now.playing && video.videoWidth === 0);
  spark.push(here ? latency : null);
  if (spark.length > SPARK_VALUES) spark.shift();
  $('spark').setAttribute('points', sparkline(spark, SPARK_VALUES, 240, 46));
}

function show(phase) {
  if (phase === shown) return;
  shown = phase;
  if (!session.hasPlayer) stalls.handleStop(Date.now());
  offerSound();
  const [title, text] = NOTICES[phase];
  $('status').textContent = title;
  $('status').dataset.phase = phase;
  $('notice').hidden = text === '';
  $('notice').dataset.over = String(session.hasPlayer);
  $('notice-title').textContent = title;
  $('notice-text').textContent = text;
}
