// One face for three players: hls.js, dash.js and the browser's own HLS.
//
// `open(kind, video, urls, on)` resolves to {kind, destroy, soften, jump, renditions, select, snapshot}:
//   soften(kind)   the gentle cure for a 'network', 'media', 'stuck' or 'other' trouble
//   jump()         to the live edge
//   renditions()   [{id, name, width, height, fps, kbps}], best first; empty while unknown
//   select(id)     one rendition, or null: let the player choose
//   snapshot()     {latency, pdtLatency, target, rendition, edge}, null where unknown; seconds
// `on.error({kind, fatal, message})` reports errors, `on.renditions()` a changed list. Times of the day come from this
// machine's clock.

/** Latency from which a jump to the live edge is worth the jolt, in seconds beyond the target. */
const FAR_BEHIND = 3;

/** How near the end or the beginning of a Period is there, in seconds. */
const AT_END = 0.5;

const FILES = { hls: ['hls.min.js', 'Hls'], dash: ['dash.min.js', 'dashjs'] };

/** Which players this browser can run. */
export function supported(video) {
  const mse = 'MediaSource' in window || 'ManagedMediaSource' in window;
  return { hls: mse, dash: mse, native: video.canPlayType('application/vnd.apple.mpegurl') !== '' };
}

export async function open(kind, video, urls, on) {
  if (kind === 'native') return openNative(video, urls.hls, on);
  const library = await load(...FILES[kind]);
  return kind === 'dash' ? openDash(library, video, urls.dash, on) : openHls(library, video, urls.hls, on);
}

const loading = new Map();

/** Loads a player's script once. */
function load(file, name) {
  if (!loading.has(file)) {
    const script = document.createElement('script');
    script.src = new URL(file, import.meta.url).href;
    const loaded = new Promise((resolve, reject) => {
      script.onload = () => resolve(window[name]);
      script.onerror = () => {
        loading.delete(file);
        script.remove();
        reject(new Error(`${file} could not be loaded`));
      };
    });
    loading.set(file, loaded);
    document.head.append(script);
  }
  return loading.get(file);
}

function openHls(Hls, video, url, on) {
  // Patience for what a live stream does in good health: a broadcaster away for some seconds answers a blocking reload
  // with 503, and the next try may well succeed.
  const patient = (policy, maxNumRetry) => ({
    default: { ...policy.default, errorRetry: { maxNumRetry, retryDelayMs: 500, maxRetryDelayMs: 2000, backoff: 'linear' } },
  });
  const hls = new Hls({
    lowLatencyMode: true,
    backBufferLength: 30,
    maxLiveSyncPlaybackRate: 1.1,
    // A rendition with a gap (it is shed for a while) is chosen again after so long; by default never.
    errorPenaltyExpireMs: 30_000,
    manifestLoadPolicy: patient(Hls.DefaultConfig.manifestLoadPolicy, 2),
    playlistLoadPolicy: patient(Hls.DefaultConfig.playlistLoadPolicy, 10),
    fragLoadPolicy: patient(Hls.DefaultConfig.fragLoadPolicy, 10),
  });
  const describe = (level) => ({
    id: String(hls.levels.indexOf(level)),
    name: level.name || stem(level.uri ?? level.url?.[0] ?? ''),
    width: level.width || null,
    height: level.height || null,
    fps: level.frameRate || null,
    kbps: Math.round(level.bitrate / 1000),
  });
  hls.on(Hls.Events.ERROR, (_, { type, details, fatal, response, error }) => {
    const kind = { networkError: 'network', mediaError: 'media' }[type] ?? 'other';
    const status = response?.code ? ` (HTTP ${response.code})` : '';
    on.error({ kind, fatal, message: `${details}${status}${error?.message ? `: ${error.message}` : ''}` });
  });
  hls.on(Hls.Events.MANIFEST_PARSED, () => {
    on.renditions();
    play(video);
  });
  hls.on(Hls.Events.LEVELS_UPDATED, () => on.renditions());
  hls.loadSource(url);
  hls.attachMedia(video);

  return {
    kind: 'hls',
    destroy: () => hls.destroy(),
    soften(kind) {
      if (kind === 'media') {
        hls.recoverMediaError();
      } else if (!hls.levels.length) {
        hls.loadSource(url);
      } else {
        hls.stopLoad();
        hls.startLoad(-1);
        if (hls.liveSyncPosition !== null) video.currentTime = hls.liveSyncPosition;
      }
      play(video);
    },
    jump() {
      const target = hls.liveSyncPosition;
      if (target !== null && target - video.currentTime > FAR_BEHIND) video.currentTime = target;
    },
    renditions: () => hls.levels.map(describe).reverse(),
    select(id) {
      hls.nextLevel = id === null ? -1 : Number(id);
    },
    snapshot() {
      const level = hls.levels[hls.currentLevel];
      const date = hls.playingDate;
      return {
        latency: hls.latency || null,
        pdtLatency: date ? (Date.now() - date.getTime()) / 1000 : null,
        target: hls.targetLatency,
        rendition: level ? describe(level) : null,
      };
    },
  };
}

function openDash(dashjs, video, url, on) {
  const player = dashjs.MediaPlayer().create();
  player.updateSettings({
    debug: { logLevel: dashjs.Debug.LOG_LEVEL_NONE },
    streaming: {
      // The MPD's ServiceDescription sets the latency; without one, its suggestedPresentationDelay.
      applyServiceDescription: true,
      delay: { useSuggestedPresentationDelay: true },
      // dash.js would slow down and speed up by half, which anyone can hear.
      liveCatchup: { enabled: true, playbackRate: { min: -0.05, max: 0.1 } },
      gaps: { jumpGaps: true, jumpLargeGaps: true },
      buffer: { bufferToKeep: 30 },
      // In low-latency mode dash.js divides intervals by 10 and multiplies attempts by 5: half a second, half a minute.
      // Past the last attempt it would give up on the stream for good.
      retryIntervals: { MediaSegment: 5000, InitializationSegment: 5000, MPD: 5000 },
      retryAttempts: { MediaSegment: 12, InitializationSegment: 12, MPD: 12 },
      // Nothing about viewers is kept in the browser.
      lastBitrateCachingInfo: { enabled: false },
      lastMediaSettingsCachingInfo: { enabled: false },
    },
  });
  player.initialize(video, null, true);
  // Without UTCTiming in the MPD, this machine's clock; never a server elsewhere.
  player.clearDefaultUTCTimingSources();

  let availabilityStart = null;
  let periods = [];
  // dash.js lets a gap between Periods take as long as it is before it jumps; whoever waits for a broadcaster who is back waits
  // that long once more.
  const leap = () => {
    const to = video.readyState > 2 ? null : behindGap(periods, video.currentTime, video.buffered);
    if (to !== null) video.currentTime = to;
  };
  const describe = (rep) => ({
    id: rep.id,
    name: rep.id,
    width: rep.width || null,
    height: rep.height || null,
    fps: fraction(rep.frameRate),
    kbps: Math.round(rep.bitrateInKbit),
  });
  const guarded = (read, otherwise) => {
    // dash.js throws where it has nothing to say yet.
    try {
      return read() ?? otherwise;
    } catch {
      return otherwise;
    }
  };
  const events = dashjs.MediaPlayer.events;
  player.on(events.MANIFEST_LOADED, ({ data }) => {
    const start = data?.availabilityStartTime;
    availabilityStart = start ? new Date(start).getTime() / 1000 : null;
    periods = data?.Period ?? [];
  });
  player.on(events.BUFFER_LEVEL_UPDATED, leap);
  player.on(events.STREAM_INITIALIZED, () => {
    on.renditions();
    play(video);
  });
  player.on(events.ERROR, ({ error }) => {
    // MPD (10, 11, 25, 31, 32) and segment (17, 27, 28) errors come after the last attempt. A time server (16) that does
    // not answer is no end.
    const network = [10, 11, 17, 25, 27, 28, 31, 32].includes(error?.code);
    const media = [20, 23, 35].includes(error?.code);
    const kind = network ? 'network' : media ? 'media' : 'other';
    on.error({ kind, fatal: network || media, message: `${error?.message ?? 'error'} (dash.js ${error?.code})` });
  });
  player.on(events.PLAYBACK_ERROR, ({ error }) => {
    on.error({ kind: 'media', fatal: true, message: error?.message || `media error ${error?.code}` });
  });
  player.attachSource(url);

  return {
    kind: 'dash',
    destroy() {
      // dash.js 5.2 leaves listeners for `canplay` behind that fail once it is gone; now they still can run and go.
      video.dispatchEvent(new Event('canplay'));
      player.destroy();
      video.playbackRate = 1;
    },
    soften(kind) {
      if (kind === 'stuck') player.seekToOriginalLive();
      else player.attachSource(url);
      play(video);
    },
    jump() {
      const behind = guarded(() => player.getCurrentLiveLatency() - player.getTargetLiveDelay(), 0);
      if (behind > FAR_BEHIND) player.seekToOriginalLive();
    },
    renditions: () =>
      guarded(() => player.getRepresentationsByType('video'), [])
        .map(describe)
        .sort((a, b) => b.kbps - a.kbps),
    select(id) {
      player.updateSettings({ streaming: { abr: { autoSwitchBitrate: { video: id === null } } } });
      if (id !== null) player.setRepresentationForTypeById('video', id, false);
    },
    snapshot() {
      const current = (type) => guarded(() => player.getCurrentRepresentationForType(type), null);
      const rep = current('video') ?? current('audio');
      const latency = guarded(() => player.getCurrentLiveLatency(), null);
      return {
        latency: Number.isFinite(latency) && latency > 0 ? latency : null,
        pdtLatency: availabilityStart !== null && video.currentTime > 0 ? Date.now() / 1000 - availabilityStart - video.currentTime : null,
        target: guarded(() => player.getTargetLiveDelay(), null),
        rendition: rep ? describe(rep) : null,
      };
    },
  };
}

function openNative(video, url, on) {
  const failed = () => {
    const code = video.error?.code;
    on.error({ kind: code === 2 ? 'network' : 'media', fatal: true, message: video.error?.message || `media error ${code}` });
  };
  video.addEventListener('error', failed);
  video.src = url;
  play(video);
  const edge = () => (video.seekable.length ? video.seekable.end(video.seekable.length - 1) : null);

  return {
    kind: 'native',
    destroy() {
      video.removeEventListener('error', failed);
      video.removeAttribute('src');
      video.load();
    },
    soften() {
      video.load();
      play(video);
    },
    jump() {
      if (edge() !== null && edge() - video.currentTime > FAR_BEHIND) video.currentTime = edge();
    },
    renditions: () => [],
    select() {},
    snapshot() {
      const start = video.getStartDate?.().getTime() / 1000;
      return {
        latency: edge() === null ? null : Math.max(edge() - video.currentTime, 0),
        pdtLatency: Number.isFinite(start) ? Date.now() / 1000 - start - video.currentTime : null,
        target: null,
        rendition: video.videoWidth
          ? { id: '', name: '', width: video.videoWidth, height: video.videoHeight, fps: null, kbps: null }
          : null,
      };
    },
  };
}

/** Where media goes on, if `time` stands at the end of a Period behind which there is a gap, and the next one's beginning is
 *  buffered; else null. */
export function behindGap(periods, time, buffered) {
  for (const [index, next] of periods.entries()) {
    const before = periods[index - 1];
    if (!before || !(time >= before.start + before.duration - AT_END) || time >= next.start) continue;
    for (let i = 0; i < buffered.length; i += 1) {
      const start = buffered.start(i);
      // Audio may begin a frame before or behind the pictures.
      if (start > time && Math.abs(start - next.start) < AT_END) return start;
    }
  }
  return null;
}

/** Plays, muted if the browser allows no other way, and leaves it to the viewer where it allows none. */
async function play(video) {
  try {
    await video.play();
  } catch (error) {
    if (error.name !== 'NotAllowedError' || video.muted) return;
    video.muted = true;
    await video.play().catch(() => {});
  }
}

/** `/live/demo/720p.m3u8?x` → `720p` */
function stem(url) {
  return url.split(/[?#]/)[0].split('/').pop().replace(/\.[^.]*$/, '');
}

/** `30`, `'30000/1001'` → frames per second */
function fraction(rate) {
  const [above, below = 1] = String(rate ?? '').split('/').map(Number);
  return above > 0 && below > 0 ? above / below : null;
}
