// What an MPD of a live stream must say (ISO/IEC 23009-1, DASH-IF's low-latency rules and timing model), and what it may
// never change from one version to the next.
//
//   node mpd-lint.mjs < versions.json
//
// `versions.json` is an array of texts, in the order in which they were published. Prints `{"versions", "largest", "problems"}`; each
// version is read by mpd-parser, too.

import { pathToFileURL } from 'node:url';

import { DOMParser } from '@xmldom/xmldom';
import { parse } from 'mpd-parser';

const PROFILE = 'http://www.dashif.org/guidelines/low-latency-live-v5';
const CLOCKS = ['http-xsdate', 'http-iso'].map((scheme) => `urn:mpeg:dash:utc:${scheme}:2014`);
/** Times are written to the microsecond. */
const EXACT = 2e-6;

/** All that is wrong with these versions, as texts that name version and element. */
export function lint(texts) {
  const problems = [];
  const versions = texts.map((text, index) => {
    const say = (what) => problems.push(`version ${index}: ${what}`);
    try {
      parse(text, { manifestUri: 'http://localhost/live/x/manifest.mpd' });
    } catch (error) {
      say(`mpd-parser: ${error.message}`);
    }
    const mpd = read(text, say);
    if (mpd) alone(mpd, say);
    return { text, mpd, say };
  });
  for (let i = 1; i < versions.length; i += 1) {
    if (versions[i].mpd && versions[i - 1].mpd) follows(versions[i - 1], versions[i], versions[i].say);
  }
  return problems;
}

function alone(mpd, say) {
  const expect = (condition, what) => condition || say(what);
  const { attributes: root } = mpd;
  expect(root.profiles?.split(',').includes(PROFILE), 'profiles: no low-latency profile');
  const live = root.type === 'dynamic';
  const needed = live ? ['availabilityStartTime', 'publishTime', 'minimumUpdatePeriod', 'timeShiftBufferDepth'] : ['mediaPresentationDuration'];
  for (const name of [...needed, 'minBufferTime', 'maxSegmentDuration']) expect(root[name], `${name} is missing`);
  const forbidden = live ? ['mediaPresentationDuration'] : ['minimumUpdatePeriod', 'availabilityStartTime', 'timeShiftBufferDepth'];
  for (const name of forbidden) expect(!root[name], `${name} is there, though it is ${root.type}`);
  expect(CLOCKS.includes(mpd.clocks[0]?.schemeIdUri), `the first UTCTiming is ${mpd.clocks[0]?.schemeIdUri}`);
  const { target, min, max, referenceId } = mpd.latency ?? {};
  expect(Number(min) <= Number(target) && Number(target) <= Number(max), `Latency: ${min} <= ${target} <= ${max}`);
  expect(mpd.rate && Number(mpd.rate.min) < 1 && Number(mpd.rate.max) > 1, 'PlaybackRate is missing');
  expect(mpd.periods.length > 0, 'no Period');
  unique(mpd.periods.map(({ id }) => id), 'Period@id', say);
  mpd.periods.forEach((period, index) => {
    const next = mpd.periods[index + 1];
    const at = `Period ${period.id}`;
    if (next) {
      expect(period.duration !== null, `${at}: another follows, but its duration is not told`);
      expect(period.start + (period.duration ?? 0) <= next.start + EXACT, `${at}: reaches into ${next.id}`);
    }
    expect(period.duration === null || period.duration > 0, `${at}: lasts ${period.duration} s`);
    if (!live) expect(period.duration !== null, `${at}: static, but its duration is not told`);
    expect(period.sets.length > 0, `${at}: no AdaptationSet`);
    unique(period.sets.map(({ id }) => id), `${at}: AdaptationSet@id`, say);
    unique(period.sets.flatMap(({ representations }) => representations.map(({ id }) => id)), `${at}: Representation@id`, say);
    for (const set of period.sets) {
      const check = set.contentType === 'image' ? images : adaptationSet;
      check(mpd, period, set, live, (what) => say(`${at}, set ${set.id}: ${what}`));
    }
    if (live) expect(period.sets.some(({ reference }) => reference?.id === referenceId), `${at}: no reference time ${referenceId}, of which Latency speaks`);
  });
}

function adaptationSet(mpd, period, set, live, say) {
  const expect = (condition, what) => condition || say(what);
  expect(set.id !== undefined, 'no id');
  const { template, reference, resync } = set;
  expect(template?.media?.includes('$Number$'), 'SegmentTemplate@media has no $Number$');
  const scale = Number(template?.timescale);
  const [duration, offset] = [Number(template?.duration) / scale, Number(template?.presentationTimeOffset) / scale];
  expect(duration > 0, `segments of ${duration} s`);
  // Our own: media times are those of the MPD's timeline.
  expect(Math.abs(offset - period.start) <= 1 / scale, `presentationTimeOffset ${offset} s, Period@start ${period.start} s`);
  const chunk = Number(resync?.dT) / scale;
  expect(['0', '1', '2', '3'].includes(resync?.type) && chunk > 0 && chunk <= duration, `Resync type ${resync?.type}, dT ${chunk} s`);
  const early = Number(template?.availabilityTimeOffset);
  if (live) {
    expect(template?.availabilityTimeComplete === 'false', 'availabilityTimeComplete is not false');
    expect(early > 0 && early < duration && Math.abs(duration - chunk - early) < 0.001, `availabilityTimeOffset ${early}, chunks of ${chunk} s`);
    expect(Number(mpd.latency?.target) / 1000 > duration - early, 'the target latency is shorter than a chunk');
    expect(reference?.id === set.id && reference?.inband === 'true' && reference?.type === 'encoder', `reference time ${JSON.stringify(reference)}`);
    expect(mpd.clocks.some((clock) => clock.schemeIdUri === reference?.clock?.schemeIdUri && clock.value === reference?.clock?.value), 'its reference time is of another clock');
    expect(reference?.presentationTime === template?.presentationTimeOffset, `reference time of ${reference?.presentationTime}`);
    const produced = Date.parse(reference?.wallClockTime) - Date.parse(mpd.attributes.availabilityStartTime) - period.start * 1000;
    expect(Math.abs(produced) <= 2, `reference time ${produced} ms off availabilityStartTime`);
  } else {
    expect(Number.isNaN(early), 'availabilityTimeOffset, though it is over');
  }
  for (const [kind, before] of set.connected) {
    const other = mpd.periods.find(({ id }) => id === before);
    const same = other?.sets.find(({ id }) => id === set.id);
    expect(other && other.start < period.start, `${kind}: no Period ${before} before`);
    expect(same && ids(same) === ids(set), `${kind}: Period ${before} has other Representations`);
    if (kind === 'continuity' && other) expect(Math.abs(other.start + other.duration - period.start) < EXACT, `continuity: Period ${before} ends at ${other.start + other.duration}`);
  }
}

/** Sheets of thumbnails (DASH-IF IOP 4.3, 6.2.6), by the rule of ours that they lie on the grid of the MPD's timeline. */
function images(mpd, period, set, _live, say) {
  const expect = (condition, what) => condition || say(what);
  const { template, timeline, representations } = set;
  expect(set.mimeType === 'image/jpeg' && template?.media?.includes('$Number$'), 'no numbered image/jpeg');
  const [scale, first] = [Number(template?.timescale), Number(template?.startNumber)];
  expect(Math.abs(Number(template?.presentationTimeOffset) / scale - period.start) <= 1 / scale, `presentationTimeOffset ${template?.presentationTimeOffset}, Period@start ${period.start} s`);
  expect(timeline.length === 1, `${timeline.length} S elements`);
  const [start, duration, more] = [timeline[0]?.t, timeline[0]?.d, timeline[0]?.r ?? 0].map(Number);
  expect(duration > 0 && start === first * duration, `sheet ${first} begins at ${start / scale} s`);
  expect((start + duration) / scale > period.start, `the first sheet ends at ${(start + duration) / scale} s, before the Period begins`);
  const last = (start + more * duration) / scale;
  // Frames may come a little before their time.
  const now = (Date.parse(mpd.attributes.publishTime) - Date.parse(mpd.attributes.availabilityStartTime)) / 1000 + 0.5;
  const until = period.duration === null ? now : period.start + period.duration;
  expect(more === 0 || last < until + EXACT, `the last sheet begins at ${last} s, not before ${until} s`);
  expect(representations.length === 1 && Number(representations[0].bandwidth) > 0, 'not one Representation');
  const { width, height, properties } = representations[0] ?? {};
  const tiles = properties?.find(({ schemeIdUri }) => schemeIdUri === 'http://dashif.org/guidelines/thumbnail_tile')?.value;
  const [, columns, rows] = tiles?.match(/^([1-9][0-9]*)x([1-9][0-9]*)$/) ?? [];
  expect(width % columns === 0 && height % rows === 0, `${tiles} tiles of ${width}x${height}`);
}

function follows(before, after, say) {
  const expect = (condition, what) => condition || say(what);
  const [old, now] = [before.mpd, after.mpd];
  if (old.attributes.type === 'static') return expect(before.text === after.text, 'it was static, and changed');
  if (now.attributes.type === 'dynamic') {
    const [was, is] = [old, now].map(({ attributes }) => Date.parse(attributes.publishTime));
    expect(is >= was, `publishTime went back from ${old.attributes.publishTime}`);
    expect((is === was) === (before.text === after.text), 'publishTime says nothing of a change, or of one that is none');
    for (const name of ['availabilityStartTime', 'minBufferTime', 'maxSegmentDuration', 'profiles', 'suggestedPresentationDelay']) {
      expect(old.attributes[name] === now.attributes[name], `${name} changed from ${old.attributes[name]}`);
    }
    const kept = old.periods.filter(({ id }) => now.periods.some((period) => period.id === id));
    const first = old.periods.indexOf(kept[0]);
    expect(kept.length > 0 && old.periods.slice(first).every((period, i) => period === kept[i]), 'a Period is gone that is not the oldest');
    expect(kept.every(({ id }, i) => now.periods[i]?.id === id), 'a Period came before one that was there');
    for (const period of kept) stays(period, now.periods.find(({ id }) => id === period.id), say);
  }
  const [last, next] = [old.periods.at(-1), now.periods.find(({ id }) => !old.periods.some((period) => period.id === id))];
  if (next && last && now.attributes.type === 'dynamic') {
    const ended = now.periods.find(({ id }) => id === last.id);
    if (ended) {
      const segment = Number(ended.sets[0].template.duration) / Number(ended.sets[0].template.timescale);
      const segments = Math.ceil(ended.duration / segment - EXACT);
      expect(Number(next.sets[0].template.startNumber) >= Number(ended.sets[0].template.startNumber) + segments, `Period ${next.id} begins with a number that ${last.id} has`);
    }
  }
}

/** What of a Period must not change; its duration may become known, or shorter by a cut that tells the rest apart. */
function stays(was, is, say) {
  const expect = (condition, what) => condition || say(`Period ${was.id}: ${what}`);
  expect(was.start === is.start, `start went from ${was.start} to ${is.start}`);
  if (was.duration !== null) expect(is.duration === was.duration, `duration went from ${was.duration} to ${is.duration}`);
  // Of sheets of thumbnails the list goes on.
  const still = ({ connected, timeline, template, ...set }) => ({ ...set, template: { ...template, startNumber: timeline.length > 0 || template?.startNumber } });
  const rest = ({ sets }) => JSON.stringify(sets.map(still));
  expect(rest(was) === rest(is), `went from ${rest(was)} to ${rest(is)}`);
  // Those behind a cut are the next Period's.
  const end = is.duration === null ? Infinity : is.start + is.duration;
  const sheets = (period) => period.sets.flatMap(({ template, timeline }) => timeline.map(({ d, r }) => {
    const [first, seconds] = [Number(template.startNumber), Number(d) / Number(template.timescale)];
    return [first, Math.max(first, Math.min(first + Number(r ?? 0), Math.ceil(end / seconds - EXACT) - 1))];
  }));
  const [old, now] = [sheets(was), sheets(is)];
  expect(old.every(([first, last], i) => now[i]?.[0] >= first && now[i]?.[1] >= last), `its sheets went from ${old} to ${now}`);
}

function ids(set) {
  return set.representations.map(({ id }) => id).join(' ');
}

function unique(values, what, say) {
  if (new Set(values).size !== values.length) say(`${what} is not unique: ${values}`);
}

function read(text, say) {
  let document;
  try {
    document = new DOMParser({ errorHandler: (level, message) => { throw new Error(`${level}: ${message}`); } }).parseFromString(text, 'application/xml');
  } catch (error) {
    say(`not XML: ${error.message}`);
    return null;
  }
  const root = document.documentElement;
  const attributes = (element) => element && Object.fromEntries(Array.from(element.attributes, ({ name, value }) => [name, value]));
  const children = (element, name) => Array.from(element.childNodes).filter((child) => child.nodeName === name);
  const child = (element, name) => children(element, name)[0];
  const description = child(root, 'ServiceDescription');
  const timeline = (template) => {
    const found = template && child(template, 'SegmentTimeline');
    return found ? children(found, 'S').map(attributes) : [];
  };
  const set = (element) => {
    const reference = child(element, 'ProducerReferenceTime');
    const connected = children(element, 'SupplementalProperty').map(attributes).flatMap(({ schemeIdUri, value }) => {
      const kind = schemeIdUri.match(/^urn:mpeg:dash:period-(\w+):2015$/)?.[1];
      return kind ? [[kind, value]] : [];
    });
    return {
      ...attributes(element),
      template: attributes(child(element, 'SegmentTemplate')),
      timeline: timeline(child(element, 'SegmentTemplate')),
      reference: reference && { ...attributes(reference), clock: attributes(child(reference, 'UTCTiming')) },
      resync: attributes(child(element, 'Resync')),
      representations: children(element, 'Representation').map((one) => {
        const properties = children(one, 'EssentialProperty').map(attributes);
        return properties.length > 0 ? { ...attributes(one), properties } : attributes(one);
      }),
      connected,
    };
  };
  return {
    attributes: attributes(root),
    clocks: children(root, 'UTCTiming').map(attributes),
    latency: description && attributes(child(description, 'Latency')),
    rate: description && attributes(child(description, 'PlaybackRate')),
    periods: children(root, 'Period').map((element) => {
      const { id, start, duration } = attributes(element);
      return { id, start: seconds(start), duration: duration === undefined ? null : seconds(duration), sets: children(element, 'AdaptationSet').map(set) };
    }),
  };
}

/** `PT1.5S`: we write no other form. */
function seconds(text) {
  return Number(text?.match(/^PT([0-9.]+)S$/)?.[1] ?? NaN);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const chunks = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const texts = JSON.parse(Buffer.concat(chunks).toString());
  const largest = Math.max(...texts.map((text) => text.length));
  process.stdout.write(`${JSON.stringify({ versions: texts.length, largest, problems: lint(texts) })}\n`);
}
