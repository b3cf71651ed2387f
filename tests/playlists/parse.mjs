// Reads playlists with parsers by others and tells what each understood, as one JSON object on stdout: file, then parser.
//
//   node parse.mjs FOLDER
//
// What a parser refuses or warns of is its `problem`.

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

import HLS from 'hls-parser';
import { Parser } from 'm3u8-parser';

const [folder] = process.argv.slice(2);
if (!folder) {
  process.stderr.write('a folder is missing\n');
  process.exit(2);
}

// It counts segments where the draft counts target durations (6.2.2): parts of a fourth segment are within three of them. And
// it does not see that the newest part may be the last of a segment that is not complete (4.4.4.9). Our own lint minds both.
const ITS_OWN = /^Invalid Playlist : (Remove EXT-X-PART tags|All Partial Segments except the last part)/;

// hls-parser says on the console what breaks a rule, and goes on.
const complaints = [];
console.error = (message) => complaints.push(message);

const understood = {};
for (const file of (await readdir(folder)).sort()) {
  if (!file.endsWith('.m3u8')) continue;
  const text = await readFile(join(folder, file), 'utf8');
  understood[file] = { 'hls-parser': told(() => strict(text)), 'm3u8-parser': told(() => lenient(text)) };
}
process.stdout.write(`${JSON.stringify(understood)}\n`);

function told(read) {
  try {
    return read();
  } catch (error) {
    return { problem: String(error.message) };
  }
}

function strict(text) {
  complaints.length = 0;
  const playlist = HLS.parse(text);
  const problems = complaints.filter((message) => !ITS_OWN.test(message));
  if (problems.length) return { problem: problems.join('; ') };
  if (playlist.isMasterPlaylist) {
    const { variants } = playlist;
    return { variants: variants.filter(({ isIFrameOnly }) => !isIFrameOnly).length, iframes: variants.filter(({ isIFrameOnly }) => isIFrameOnly).length };
  }
  // The segment that still grows is its last one, without a URI.
  const segments = playlist.segments.filter(({ uri }) => uri);
  return {
    segments: segments.length,
    media_sequence: playlist.mediaSequenceBase,
    discontinuity_sequence: playlist.discontinuitySequenceBase,
    seconds: sum(segments),
    parts: playlist.segments.reduce((count, { parts }) => count + parts.filter(({ hint }) => !hint).length, 0),
    gaps: segments.filter(({ gap }) => gap).length,
    ended: playlist.endlist,
  };
}

function lenient(text) {
  const parser = new Parser();
  const warnings = [];
  parser.on('warn', ({ message }) => warnings.push(message));
  parser.push(text);
  parser.end();
  const { manifest } = parser;
  // It wants LAST-PART of every other rendition where this one has parts; the draft only of those that have some (4.4.5.4).
  const problems = warnings.filter((message) => !/^#EXT-X-RENDITION-REPORT #\d+ lacks required attribute\(s\): LAST-PART$/.test(message));
  if (problems.length) return { problem: problems.join('; ') };
  if (manifest.playlists) return { variants: manifest.playlists.length, iframes: (manifest.iFramePlaylists ?? []).length };
  const segments = manifest.segments.filter(({ uri }) => uri);
  const open = manifest.preloadSegment?.parts ?? [];
  return {
    segments: segments.length,
    media_sequence: manifest.mediaSequence,
    discontinuity_sequence: manifest.discontinuitySequence,
    seconds: sum(segments),
    parts: segments.reduce((count, { parts }) => count + (parts ?? []).length, 0) + open.length,
    ended: Boolean(manifest.endList),
  };
}

function sum(segments) {
  return segments.reduce((seconds, { duration }) => seconds + duration, 0);
}
