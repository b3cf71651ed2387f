// Asks the server whether a stream is on: one or two small requests, no player.

/** How long an answer may take. Manifests asked for without directives are answered at once. */
const TIMEOUT_MS = 5000;

/**
 * Resolves to {status, marker}. `status`: 'live', 'ended' (the manifest says that nothing will follow), 'absent' or
 * 'unreachable'. `marker`: a string that differs whenever the live edge moved, or null if that cannot be told.
 * Never rejects.
 */
export async function probe(kind, urls) {
  const manifest = await text(kind === 'dash' ? urls.dash : urls.hls);
  if (manifest.status !== 'live') return { status: manifest.status, marker: null };
  if (kind === 'dash') {
    if (/<MPD\b[^>]*\btype\s*=\s*["']static["']/.test(manifest.body)) return { status: 'ended', marker: null };
    // An MPD with numbered segments stays the same while the stream grows; the HLS playlists know.
    const playlist = await media(await text(urls.hls), urls.hls);
    return { status: 'live', marker: playlist.status === 'live' ? edge(playlist.body) : null };
  }
  const playlist = await media(manifest, urls.hls);
  if (playlist.status !== 'live') return { status: playlist.status, marker: null };
  return { status: /^#EXT-X-ENDLIST/m.test(playlist.body) ? 'ended' : 'live', marker: edge(playlist.body) };
}

/** The first media playlist of a multivariant playlist (which may be a media playlist itself). */
async function media(multivariant, base) {
  if (multivariant.status !== 'live' || /^#EXTINF/m.test(multivariant.body)) return multivariant;
  const uri = multivariant.body.split('\n').find((line) => line.trim() && !line.startsWith('#'));
  return uri ? text(new URL(uri.trim(), new URL(base, location.href)).href) : { status: 'unreachable' };
}

/** What changes in a media playlist when media is added. */
export function edge(playlist) {
  const lines = playlist.split('\n').map((line) => line.trim());
  const sequence = lines.find((line) => line.startsWith('#EXT-X-MEDIA-SEQUENCE:')) ?? '';
  const part = lines.findLast((line) => line.startsWith('#EXT-X-PART:')) ?? '';
  const segments = lines.filter((line) => line && !line.startsWith('#'));
  return [sequence, segments.length, segments.at(-1) ?? '', part].join(' ');
}

async function text(url) {
  try {
    const response = await fetch(url, { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (response.status === 404 || response.status === 410) return { status: 'absent' };
    if (!response.ok) return { status: 'unreachable' };
    return { status: 'live', body: await response.text() };
  } catch {
    return { status: 'unreachable' };
  }
}
