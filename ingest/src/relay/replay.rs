//! What is kept until an origin has published it, and sent again if that origin is lost.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use media::flv::{self, Tag, TagKind, Video};

use super::answer::Until;
use super::budget::Budget;

/// Charged per tag beside its body, so that a stream of empty tags is bounded too: an entry, the queue's slack and what an
/// allocation costs.
const TAG_OVERHEAD_BYTES: usize = 128;

/// What a few frames take.
const OUT_BYTES: usize = 8 << 10;

/// Audio alone (or after a camera was switched off for [`VIDEO_GAP_MS`]) can begin anywhere: once a second is fine enough
/// to forget what is published.
const AUDIO_POINT_MS: u32 = 1000;

/// Screen shares may send a frame every few seconds: only after so long without one is a stream taken for audio only.
const VIDEO_GAP_MS: u32 = 10_000;

/// Timestamps that go back, or ahead by more than this from one point to the next, begin a new run.
const RUN_GAP_MS: i32 = 60_000;

/// Audio that is this much older than the point from which on nothing is published may still be unpublished: origins
/// time it by its samples, and segments of audio end beside those of video.
const AUDIO_SLACK_MS: i32 = 250;

/// An origin's clock may end this much after the last timestamp it got: a frame's duration, a second of silence.
const RUN_SLACK_MS: i32 = 5_000;

/// How much a [`Replay`] may hold.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Bytes, the tag that is being added apart.
    pub bytes: usize,
    /// Between the arrivals of the oldest and the newest tag.
    pub duration: Duration,
    /// Published segments that are kept all the same: viewers who have not fetched them yet find them at the next origin.
    pub history: u64,
    /// What all streams may hold together.
    pub budget: Arc<Budget>,
}

/// Tags in the order in which they came, from some segments before the last acknowledged point on. A *point* is where
/// decoding can begin: a keyframe, or any second of audio when there is no video.
#[derive(Debug)]
pub struct Replay {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// Entries that are gone from the front.
    gone: u64,
    bytes: usize,
    /// Index of the next entry to send.
    cursor: usize,
    /// Tags of the body that is being sent.
    sent: u64,
    /// Where pieces are written. Once they are sent its memory is used again.
    out: BytesMut,
    /// What the receiver needs to be told before `entries[cursor]`.
    preamble: Preamble,
    /// Metadata and codec configuration in force where `entries` begins.
    in_force: Preamble,
    header_due: bool,
    /// Video is held back up to the next keyframe: what it refers to is gone.
    await_key: bool,
    /// Video is held back up to this entry, counted from the first ever: only audio is wanted from before.
    video_from: u64,
    last_video_ms: Option<u32>,
    last_point_ms: Option<u32>,
    /// The last point from which on something is not published, counted from the first entry ever.
    acknowledged: u64,
    /// Where bodies may begin, oldest first; the last is the newest acknowledgement.
    marks: VecDeque<Mark>,
    dropped_gops: u64,
}

/// An acknowledgement.
#[derive(Debug)]
struct Mark {
    segment: u64,
    /// The first entry to send, counted from the first ever.
    entry: u64,
    /// The first with video.
    point: u64,
    next: Arc<str>,
}

#[derive(Debug)]
struct Entry {
    tag: Tag,
    received_ms: u64,
    arrived: Duration,
    /// Which tag of the body that is being sent it was; 0 if it was not.
    sent: u64,
    /// When it is shown, for points; else when it is decoded.
    time_ms: u32,
    kind: EntryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    /// Metadata or codec configuration.
    Setup,
    Point,
    Media,
}

#[derive(Debug, Default)]
struct Preamble {
    script: Option<Tag>,
    video: Option<Tag>,
    audio: Option<Tag>,
}

impl Replay {
    /// An empty buffer.
    pub fn new(bounds: Bounds) -> Self {
        bounds.budget.join();
        Self {
            bounds,
            entries: VecDeque::new(),
            gone: 0,
            bytes: 0,
            cursor: 0,
            sent: 0,
            out: BytesMut::with_capacity(OUT_BYTES),
            preamble: Preamble::default(),
            in_force: Preamble::default(),
            header_due: true,
            await_key: false,
            video_from: 0,
            last_video_ms: None,
            last_point_ms: None,
            acknowledged: 0,
            marks: VecDeque::new(),
            dropped_gops: 0,
        }
    }

    /// Adds a tag that was received at unix time `received_ms`, `arrived` after the first. When the buffer is full the
    /// oldest group of pictures goes, sent or not.
    pub fn push(&mut self, tag: Tag, received_ms: u64, arrived: Duration) {
        let (kind, time_ms) = self.classify(&tag);
        self.bytes += cost(&tag);
        self.bounds.budget.add(cost(&tag));
        self.entries.push_back(Entry { tag, received_ms, arrived, sent: 0, time_ms, kind });
        while self.entries.len() > 1 && self.is_full(arrived) {
            self.drop_oldest();
        }
    }

    /// Begins the body of a new attempt: the header, what is in force, then everything from a point on. For the origin
    /// that had the stream (`same`) that is the newest acknowledged one, for others the oldest that is kept. Returns what
    /// that origin is to be told; `None` if nothing was acknowledged.
    pub fn rewind(&mut self, same: bool) -> Option<Arc<str>> {
        let mark = if same { self.marks.back() } else { self.marks.front() };
        self.header_due = true;
        self.cursor = mark.map_or(0, |mark| self.index(mark.entry));
        self.video_from = mark.map_or(0, |mark| mark.point);
        self.sent = 0;
        let next = mark.map(|mark| mark.next.clone());
        self.preamble = Preamble::default();
        let (before, behind) = (0..self.cursor, self.cursor..self.entries.len());
        let first = self.entries.range(behind).find(|entry| entry.kind != EntryKind::Setup);
        // Their own timestamps may lie hours back and would look like a jump.
        let time = first.map(|entry| entry.tag.timestamp_ms);
        let setups = self.entries.range(before).filter(|entry| entry.kind == EntryKind::Setup);
        let in_force = [&self.in_force.script, &self.in_force.video, &self.in_force.audio];
        for tag in in_force.into_iter().flatten().chain(setups.map(|entry| &entry.tag)) {
            let timestamp_ms = time.unwrap_or(tag.timestamp_ms);
            self.preamble.put(Tag { timestamp_ms, ..tag.clone() });
        }
        self.await_key = self.preamble.video.is_some() && self.starts_in_the_middle();
        for entry in &mut self.entries {
            entry.sent = 0;
        }
        next
    }

    /// When the first media tag that waits to be sent was received, in unix milliseconds.
    pub fn received_ms(&self) -> Option<u64> {
        let mut unsent = self.entries.iter().skip(self.cursor);
        unsent.find(|entry| entry.kind != EntryKind::Setup).map(|entry| entry.received_ms)
    }

    /// Whether [`Replay::take`] has something to give.
    pub fn has_unsent(&self) -> bool {
        self.header_due || self.cursor < self.entries.len() || self.preamble.any()
    }

    /// The next piece of the body: whole tags, about `max_bytes` of them or one larger one. `None`: nothing waits.
    pub fn take(&mut self, max_bytes: usize) -> Option<Bytes> {
        let out = &mut self.out;
        if std::mem::take(&mut self.header_due) {
            out.extend_from_slice(&flv::HEADER);
        }
        for tag in self.preamble.drain() {
            self.sent += 1;
            tag.encode(out);
        }
        while let Some(entry) = self.entries.get_mut(self.cursor) {
            if !out.is_empty() && out.len() + entry.tag.data.len() > max_bytes {
                break;
            }
            self.cursor += 1;
            if entry.tag.kind == TagKind::Video && entry.kind != EntryKind::Setup {
                let number = self.gone + self.cursor as u64 - 1;
                if number < self.video_from || self.await_key && entry.kind != EntryKind::Point {
                    continue;
                }
                self.await_key = false;
            }
            self.sent += 1;
            entry.sent = self.sent;
            entry.tag.encode_received(entry.received_ms, out);
        }
        let piece = (!out.is_empty()).then(|| out.split().freeze())?;
        if piece.len() > max_bytes {
            // One large tag: it does not come again so soon.
            *out = BytesMut::with_capacity(OUT_BYTES);
        }
        Some(piece)
    }

    /// `segment` is published, `until` says with what. Forgets up to the last point at or before the segments that are
    /// kept; `next` is for the next origin. Where the broadcaster's timestamps jumped, the earliest stretch behind what
    /// was acknowledged that a time fits is meant.
    pub fn acknowledge(&mut self, segment: u64, until: Until, next: Arc<str>) {
        let known = self.index(self.acknowledged);
        let entry = match until {
            Until::Shown(resume_ms) => {
                let point = self.last_point_before(resume_ms, known).unwrap_or(known);
                self.acknowledged = self.gone + point as u64;
                // Audio that was sent ahead of its time may not be published yet, nor may events.
                let late = |entry: &Entry| {
                    entry.kind == EntryKind::Media
                        && entry.tag.kind != TagKind::Video
                        && (-AUDIO_SLACK_MS..RUN_GAP_MS).contains(&since(entry.time_ms, resume_ms))
                };
                known + self.entries.range(known..point).position(late).unwrap_or(point - known)
            }
            Until::Tags(tags) => {
                let passed = |entry: &Entry| (1..=tags).contains(&entry.sent);
                let behind = self.entries.iter().rposition(passed).map_or(known, |last| last + 1);
                self.acknowledged = self.gone + behind.max(known) as u64;
                // What was before is of another clock, and so are its acknowledgements.
                self.marks.clear();
                behind.max(known)
            }
        };
        let (entry, point) = (self.gone + entry as u64, self.acknowledged);
        self.marks.push_back(Mark { segment, entry, point, next });
        while self
            .marks
            .get(1)
            .is_some_and(|mark| mark.segment.saturating_add(self.bounds.history) <= segment)
        {
            self.marks.pop_front();
        }
        let keep = self.marks.iter().map(|mark| mark.entry).min().unwrap_or(self.gone);
        self.drop_front(self.index(keep));
    }

    /// Bytes held, an overhead per tag included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Groups of pictures that were dropped because the buffer was full.
    pub fn dropped_gops(&self) -> u64 {
        self.dropped_gops
    }

    /// Bytes that no origin has acknowledged, an overhead per tag included.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.entries.range(self.index(self.acknowledged)..).map(|entry| cost(&entry.tag)).sum()
    }

    /// Index of an entry that is counted from the first ever; the first that is left for those that are gone.
    fn index(&self, entry: u64) -> usize {
        (entry.saturating_sub(self.gone) as usize).min(self.entries.len())
    }

    fn is_full(&self, now: Duration) -> bool {
        let oldest = self.entries.front().map_or(now, |entry| entry.arrived);
        self.bytes > self.bounds.bytes
            || now.saturating_sub(oldest) > self.bounds.duration
            || self.bounds.budget.wants_back(self.bytes)
    }

    fn classify(&mut self, tag: &Tag) -> (EntryKind, u32) {
        let time_ms = tag.timestamp_ms;
        let point = match tag.kind {
            TagKind::Script if tag.is_event() => return (EntryKind::Media, time_ms),
            TagKind::Script => return (EntryKind::Setup, time_ms),
            _ if tag.is_config() => return (EntryKind::Setup, time_ms),
            TagKind::Video => {
                self.last_video_ms = Some(time_ms);
                match tag.is_keyframe().then(|| tag.video()) {
                    Some(Ok(Video::Frame { composition_ms, .. })) => {
                        Some(time_ms.wrapping_add_signed(composition_ms))
                    }
                    _ => None,
                }
            }
            TagKind::Audio => {
                let far = |last: Option<u32>, gap: u32| {
                    last.is_none_or(|last| since(time_ms, last).unsigned_abs() >= gap)
                };
                (far(self.last_video_ms, VIDEO_GAP_MS) && far(self.last_point_ms, AUDIO_POINT_MS))
                    .then_some(time_ms)
            }
        };
        let Some(shown_ms) = point else {
            return (EntryKind::Media, time_ms);
        };
        self.last_point_ms = Some(time_ms);
        (EntryKind::Point, shown_ms)
    }

    fn last_point_before(&self, resume_ms: u32, from: usize) -> Option<usize> {
        let mut run: Option<Run> = None;
        for (index, entry) in self.entries.iter().enumerate().skip(from) {
            if entry.kind == EntryKind::Setup {
                continue;
            }
            let jumped = |last: u32| !(0..RUN_GAP_MS).contains(&since(entry.time_ms, last));
            if entry.kind == EntryKind::Point {
                match &mut run {
                    Some(run) if !jumped(run.last_point_ms) => {}
                    Some(run) if run.holds(resume_ms) => break,
                    _ => run = Some(Run::begin(entry.time_ms)),
                }
            }
            let Some(run) = &mut run else {
                continue;
            };
            run.reach_ms = run.reach_ms.max(since(entry.time_ms, run.start_ms));
            if entry.kind == EntryKind::Point {
                run.last_point_ms = entry.time_ms;
                if since(resume_ms, entry.time_ms) >= 0 {
                    run.found = Some(index);
                }
            }
        }
        run.filter(|run| run.holds(resume_ms))?.found
    }

    fn drop_oldest(&mut self) {
        let next = self.entries.iter().enumerate().skip(1).find(|(_, entry)| entry.kind == EntryKind::Point);
        let index = next.map_or(self.entries.len() - 1, |(index, _)| index);
        // Of what is published nothing is lost.
        self.dropped_gops += u64::from(index > self.index(self.acknowledged));
        if next.is_none() {
            // One endless group of pictures: all of it goes, but the newest tag, and nothing can begin before the next
            // point.
            self.await_key |= self.cursor < self.entries.len() - 1 && self.last_video_ms.is_some();
        }
        self.drop_front(index);
        while self.marks.len() > 1 && self.marks[0].entry < self.gone {
            self.marks.pop_front();
        }
    }

    /// Drops the entries before `index`.
    fn drop_front(&mut self, index: usize) {
        for (position, entry) in self.entries.drain(..index).enumerate() {
            self.bytes -= cost(&entry.tag);
            self.bounds.budget.give_back(cost(&entry.tag));
            if entry.kind == EntryKind::Setup {
                if position >= self.cursor {
                    self.preamble.put(entry.tag.clone());
                }
                self.in_force.put(entry.tag);
            }
        }
        self.cursor = self.cursor.saturating_sub(index);
        self.gone += index as u64;
        self.acknowledged = self.acknowledged.max(self.gone);
    }

    fn starts_in_the_middle(&self) -> bool {
        let mut unsent = self.entries.range(self.cursor.max(self.index(self.video_from))..);
        let video = unsent.find(|e| e.tag.kind == TagKind::Video && e.kind != EntryKind::Setup);
        video.is_some_and(|entry| entry.kind != EntryKind::Point)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.bounds.budget.give_back(self.bytes);
        self.bounds.budget.leave();
    }
}

/// A stretch of entries whose timestamps run on.
struct Run {
    start_ms: u32,
    /// From the start to the latest timestamp.
    reach_ms: i32,
    last_point_ms: u32,
    found: Option<usize>,
}

impl Run {
    fn begin(start_ms: u32) -> Self {
        Self { start_ms, reach_ms: 0, last_point_ms: start_ms, found: None }
    }

    fn holds(&self, resume_ms: u32) -> bool {
        (0..=self.reach_ms.saturating_add(RUN_SLACK_MS)).contains(&since(resume_ms, self.start_ms))
    }
}

impl Preamble {
    fn put(&mut self, tag: Tag) {
        match tag.kind {
            TagKind::Script => self.script = Some(tag),
            TagKind::Video => self.video = Some(tag),
            TagKind::Audio => self.audio = Some(tag),
        }
    }

    fn any(&self) -> bool {
        self.script.is_some() || self.video.is_some() || self.audio.is_some()
    }

    fn drain(&mut self) -> impl Iterator<Item = Tag> + use<> {
        [self.script.take(), self.video.take(), self.audio.take()].into_iter().flatten()
    }
}

fn cost(tag: &Tag) -> usize {
    tag.data.len() + TAG_OVERHEAD_BYTES
}

/// From `earlier` to `later`, both of 32 bits that wrap; negative if it is the other way round.
fn since(later: u32, earlier: u32) -> i32 {
    later.wrapping_sub(earlier) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::gauge::Gauge;

    const VIDEO_CONFIG: &[u8] = &[0x17, 0, 0, 0, 0, 1];
    const AUDIO_CONFIG: &[u8] = &[0xAF, 0, 0x12, 0x10];

    fn video(dts: u32, key: bool, composition: u8, id: u32) -> Tag {
        let mut data = vec![if key { 0x17 } else { 0x27 }, 1, 0, 0, composition];
        data.extend(id.to_be_bytes());
        Tag { kind: TagKind::Video, timestamp_ms: dts, data: data.into() }
    }

    fn audio(ms: u32, id: u32) -> Tag {
        let mut data = vec![0xAF, 1, 0, 0, 0];
        data.extend(id.to_be_bytes());
        Tag { kind: TagKind::Audio, timestamp_ms: ms, data: data.into() }
    }

    fn setup(kind: TagKind, ms: u32, data: &'static [u8]) -> Tag {
        Tag { kind, timestamp_ms: ms, data: Bytes::from_static(data) }
    }

    fn shown(tag: &Tag) -> u32 {
        tag.timestamp_ms.wrapping_add(if tag.kind == TagKind::Video { u32::from(tag.data[4]) } else { 0 })
    }

    /// Room for some forty frames.
    const SMALL: usize = 41 * (9 + TAG_OVERHEAD_BYTES);

    /// Everything that waits to be sent, read back.
    fn drain(replay: &mut Replay, decoder: &mut flv::Decoder) -> Vec<Tag> {
        while let Some(bytes) = replay.take(500) {
            decoder.push(&bytes);
        }
        std::iter::from_fn(|| decoder.poll().unwrap()).collect()
    }

    fn empty(bytes: usize) -> Replay {
        let budget = Arc::new(Budget::new(1 << 40, Gauge::default()));
        Replay::new(Bounds { bytes, duration: Duration::MAX, history: 0, budget })
    }

    /// The origin acknowledges a segment, whichever.
    fn acknowledge(replay: &mut Replay, resume_ms: u32) {
        replay.acknowledge(0, Until::Shown(resume_ms), "".into());
    }

    fn times(tags: &[Tag]) -> Vec<u32> {
        tags.iter().map(|tag| tag.timestamp_ms).collect()
    }

    #[test]
    fn events_are_sent_again_and_metadata_stays_in_force() {
        let message = |ms, name: &str| {
            let data = [&[2, 0, name.len() as u8][..], name.as_bytes(), &[5]].concat();
            Tag { kind: TagKind::Script, timestamp_ms: ms, data: data.into() }
        };
        let mut replay = empty(1 << 20);
        let tags = [
            message(0, "onMetaData"),
            setup(TagKind::Video, 0, VIDEO_CONFIG),
            video(0, true, 0, 0),
            message(500, "onTextData"),
            video(960, false, 0, 1),
            // Just before the keyframe that begins the next segment.
            message(1000, "onCuePoint"),
            video(1000, true, 0, 2),
        ];
        for tag in &tags {
            replay.push(tag.clone(), 0, Duration::ZERO);
        }
        let mut decoder = flv::Decoder::new();
        assert_eq!(drain(&mut replay, &mut decoder).len(), tags.len());
        acknowledge(&mut replay, 1000);
        replay.rewind(true);
        let sent = drain(&mut replay, &mut flv::Decoder::new());
        let name = |tag: &Tag| flv::message_name(&tag.data).map(str::to_owned);
        let names: Vec<_> = sent.iter().filter_map(name).collect();
        assert_eq!(names, ["onMetaData", "onCuePoint"]);
        let times: Vec<_> = sent.iter().filter(|tag| tag.is_event()).map(|tag| tag.timestamp_ms).collect();
        assert_eq!(times, [1000]);
    }

    #[test]
    fn whatever_is_lost_everything_unpublished_is_sent_again_once_and_in_order() {
        for seed in 1..60u64 {
            let mut state = seed;
            let mut random = |below: u32| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32 % below
            };
            // Some streams cross the wrap of the timestamps.
            let base = if seed % 2 == 0 { 0 } else { u32::MAX - 20_000 };
            let mut replay = empty(1 << 20);
            let mut decoder = flv::Decoder::new();
            let mut pushed: Vec<Tag> = Vec::new();
            let mut received: Vec<Tag> = Vec::new();
            let mut resume = base;
            let (mut dts, mut next_key, mut audio_ms) = (0, 0, 0);
            replay.push(setup(TagKind::Video, base, VIDEO_CONFIG), 0, Duration::ZERO);
            replay.push(setup(TagKind::Audio, base, AUDIO_CONFIG), 0, Duration::ZERO);
            for id in 0..1500 {
                let tag = if random(3) == 0 {
                    // Up to 300 ms before or after the video beside it.
                    audio_ms = audio_ms.max((dts + random(600)).saturating_sub(300)) + 1;
                    audio(base.wrapping_add(audio_ms), id)
                } else {
                    dts += 40;
                    let key = dts >= next_key;
                    if key {
                        next_key = dts + 40 * (1 + random(50));
                    }
                    video(base.wrapping_add(dts), key, if key { 40 } else { 40 * random(2) as u8 }, id)
                };
                pushed.push(tag.clone());
                replay.push(tag, u64::from(id), Duration::ZERO);
                match random(20) {
                    0..8 => received.extend(drain(&mut replay, &mut decoder)),
                    8 => {
                        let keys: Vec<&Tag> = received.iter().filter(|tag| tag.is_keyframe()).collect();
                        if !keys.is_empty() {
                            let ack = shown(keys[random(keys.len() as u32) as usize]);
                            if since(ack, resume) > 0 {
                                resume = ack;
                                acknowledge(&mut replay, resume);
                            }
                        }
                    }
                    9 if random(4) == 0 => {
                        replay.rewind(false);
                        (decoder, received) = (flv::Decoder::new(), Vec::new());
                    }
                    _ => {}
                }
            }
            replay.rewind(false);
            let mut got = drain(&mut replay, &mut flv::Decoder::new());
            assert!(got[0].data == VIDEO_CONFIG && got[1].data == AUDIO_CONFIG, "seed {seed}");
            assert_eq!(got[0].timestamp_ms, got[2].timestamp_ms);
            got.retain(|tag| !tag.is_config());
            assert!(got.iter().find(|tag| tag.kind == TagKind::Video).unwrap().is_keyframe(), "seed {seed}");
            let mut expected = pushed.iter().filter(|tag| since(shown(tag), resume) >= 0);
            let unpublished: Vec<&Tag> = got.iter().filter(|tag| since(shown(tag), resume) >= 0).collect();
            assert!(unpublished.iter().all(|tag| expected.next() == Some(tag)), "seed {seed}");
            assert_eq!(expected.next(), None, "seed {seed}");
            // And little more than that: from the last keyframe before it.
            let before = got.iter().filter(|tag| tag.is_keyframe() && since(shown(tag), resume) < 0).count();
            assert_eq!(before, 0, "seed {seed}: the resume point is a keyframe");
        }
    }

    #[test]
    fn a_full_buffer_drops_whole_groups_and_says_so() {
        let mut replay = empty(SMALL);
        replay.push(setup(TagKind::Video, 0, VIDEO_CONFIG), 0, Duration::ZERO);
        for id in 0..200u32 {
            replay.push(video(id * 40, id % 10 == 0, 0, id), 0, Duration::ZERO);
            assert!(replay.bytes() <= SMALL);
        }
        assert_eq!(replay.dropped_gops(), 17);
        replay.rewind(false);
        let got = drain(&mut replay, &mut flv::Decoder::new());
        assert!(got[0].is_config() && got[1].is_keyframe());
        assert_eq!(times(&got[1..]), (160..200).map(|id| id * 40).collect::<Vec<_>>()[..got.len() - 1]);
        assert_eq!(got.last().unwrap().timestamp_ms, 199 * 40);
    }

    #[test]
    fn an_endless_group_passes_live_but_is_not_replayed_from_its_middle() {
        let mut replay = empty(SMALL);
        let mut decoder = flv::Decoder::new();
        replay.push(setup(TagKind::Video, 0, VIDEO_CONFIG), 0, Duration::ZERO);
        let mut live = 0;
        for id in 0..200 {
            replay.push(video(id * 40, id == 0, 0, id), 0, Duration::ZERO);
            live += drain(&mut replay, &mut decoder).len();
        }
        assert_eq!(live, 201, "what was sent in time is not touched by the bound");
        assert!(replay.bytes() <= SMALL && replay.dropped_gops() > 0);
        replay.rewind(false);
        let mut decoder = flv::Decoder::new();
        assert_eq!(drain(&mut replay, &mut decoder).len(), 1, "the configuration only");
        replay.push(audio(8000, 200), 0, Duration::ZERO);
        replay.push(video(8000, true, 0, 201), 0, Duration::ZERO);
        replay.push(video(8040, false, 0, 202), 0, Duration::ZERO);
        assert_eq!(times(&drain(&mut replay, &mut decoder)), [8000, 8000, 8040]);
    }

    #[test]
    fn a_stalled_sender_skips_to_a_keyframe() {
        let mut replay = empty(SMALL);
        let mut decoder = flv::Decoder::new();
        for id in 0..100 {
            replay.push(video(id * 40, id == 0, 0, id), 0, Duration::ZERO);
        }
        assert_eq!(drain(&mut replay, &mut decoder), []);
        replay.push(video(4000, true, 0, 100), 0, Duration::ZERO);
        assert_eq!(times(&drain(&mut replay, &mut decoder)), [4000]);
    }

    #[test]
    fn audio_alone_is_forgotten_second_by_second() {
        let mut replay = empty(1 << 20);
        replay.push(setup(TagKind::Audio, 0, AUDIO_CONFIG), 0, Duration::ZERO);
        for id in 0..500 {
            replay.push(audio(id * 20, id), u64::from(1000 + id), Duration::ZERO);
        }
        assert_eq!(replay.received_ms(), Some(1000));
        acknowledge(&mut replay, 7_500);
        replay.rewind(false);
        let got = drain(&mut replay, &mut flv::Decoder::new());
        assert_eq!(times(&got), [7000].into_iter().chain((350..500).map(|id| id * 20)).collect::<Vec<_>>());
        // A camera that was switched off does not keep the audio behind it forever.
        let mut replay = empty(1 << 20);
        replay.push(video(0, true, 0, 0), 0, Duration::ZERO);
        for id in 0..2000 {
            replay.push(audio(id * 20, id), 0, Duration::ZERO);
        }
        acknowledge(&mut replay, 30_000);
        replay.rewind(false);
        // A little more than that: audio is not cut where it was acknowledged.
        assert_eq!(drain(&mut replay, &mut flv::Decoder::new())[0].timestamp_ms, 29_760);
    }

    #[test]
    fn acknowledgements_mean_the_stretch_they_fit() {
        let jump = || {
            let mut replay = empty(1 << 20);
            for (id, ms) in [90_000, 91_000, 92_000, 0, 1000, 2000].into_iter().enumerate() {
                replay.push(video(ms, true, 0, id as u32), 0, Duration::ZERO);
                replay.push(video(ms + 500, false, 0, id as u32), 0, Duration::ZERO);
            }
            replay
        };
        for (resume, first) in [
            (91_000, 91_000),
            (92_400, 92_000),
            (93_000, 92_000),
            (500, 0),
            (1500, 1000),
            (80_000, 90_000),
            (1 << 31, 90_000),
        ] {
            let mut replay = jump();
            acknowledge(&mut replay, resume);
            replay.rewind(false);
            let got = drain(&mut replay, &mut flv::Decoder::new());
            assert_eq!(got[0].timestamp_ms, first, "{resume}");
        }
    }

    #[test]
    fn configurations_change_where_they_changed() {
        let later: &[u8] = &[0x17, 0, 0, 0, 0, 2];
        let mut replay = empty(1 << 20);
        replay.push(setup(TagKind::Video, 0, VIDEO_CONFIG), 0, Duration::ZERO);
        replay.push(video(0, true, 0, 0), 0, Duration::ZERO);
        replay.push(setup(TagKind::Video, 1000, later), 0, Duration::ZERO);
        replay.push(video(1000, true, 0, 1), 0, Duration::ZERO);
        let bodies = |replay: &mut Replay| -> Vec<(u32, u8)> {
            replay.rewind(false);
            let got = drain(replay, &mut flv::Decoder::new());
            got.iter().map(|tag| (tag.timestamp_ms, *tag.data.last().unwrap())).collect()
        };
        assert_eq!(bodies(&mut replay), [(0, 1), (0, 0), (1000, 2), (1000, 1)]);
        acknowledge(&mut replay, 1000);
        assert_eq!(bodies(&mut replay), [(1000, 2), (1000, 1)]);
        // Skipped before it was sent, a configuration is still sent.
        replay.push(setup(TagKind::Video, 2000, VIDEO_CONFIG), 0, Duration::ZERO);
        replay.push(video(2000, true, 0, 2), 0, Duration::ZERO);
        acknowledge(&mut replay, 2000);
        let mut decoder = flv::Decoder::new();
        decoder.push(&flv::HEADER);
        assert_eq!(drain(&mut replay, &mut decoder).len(), 2);
    }

    /// Seconds of video, each with a keyframe, acknowledged but for the last.
    fn seconds(bounds: Bounds, n: u64) -> Replay {
        let mut replay = Replay::new(bounds);
        replay.push(setup(TagKind::Video, 0, VIDEO_CONFIG), 0, Duration::ZERO);
        for second in 0..n {
            for frame in 0..10 {
                let ms = (second * 1000 + frame * 100) as u32;
                replay.push(video(ms, frame == 0, 0, ms), ms.into(), Duration::from_millis(ms.into()));
            }
            if second > 0 {
                let next = second.to_string().into();
                replay.acknowledge(second - 1, Until::Shown(second as u32 * 1000), next);
            }
        }
        replay
    }

    fn bounds(bytes: usize, history: u64, budget: &Arc<Budget>) -> Bounds {
        Bounds { bytes, duration: Duration::from_secs(60), history, budget: budget.clone() }
    }

    /// What the next origin is told, and where its body begins.
    fn body(replay: &mut Replay, same: bool) -> (Option<String>, u32) {
        let next = replay.rewind(same).map(|next| next.to_string());
        (next, drain(replay, &mut flv::Decoder::new())[1].timestamp_ms)
    }

    #[test]
    fn the_next_origin_gets_some_segments_that_are_published() {
        let budget = Arc::new(Budget::new(1 << 40, Gauge::default()));
        let mut replay = seconds(bounds(1 << 20, 3, &budget), 10);
        assert_eq!(body(&mut replay, true), (Some("9".into()), 9000));
        assert_eq!(body(&mut replay, false), (Some("6".into()), 6000), "three segments: 6, 7, 8");
        assert_eq!(replay.unacknowledged_bytes(), 10 * (9 + TAG_OVERHEAD_BYTES));
        assert_eq!(body(&mut seconds(bounds(1 << 20, 0, &budget), 10), false), (Some("9".into()), 9000));
        // They go first, and nobody has lost anything by that.
        let bytes = 25 * (9 + TAG_OVERHEAD_BYTES);
        let mut replay = seconds(bounds(bytes, 5, &budget), 10);
        assert_eq!((body(&mut replay, false), replay.dropped_gops()), ((Some("8".into()), 8000), 0));
        for frame in 0..30 {
            replay.push(video(10_000 + frame * 100, frame % 10 == 0, 0, frame), 0, Duration::from_secs(10));
        }
        assert_eq!((body(&mut replay, false), replay.dropped_gops()), ((Some("9".into()), 11_000), 2));
        let held = budget.used();
        let bytes = replay.bytes() as u64;
        drop(replay);
        assert_eq!(budget.used(), held - bytes, "all is given back");
    }

    #[test]
    fn a_break_of_the_broadcasters_clock_is_passed_by_counting() {
        let budget = Arc::new(Budget::new(1 << 40, Gauge::default()));
        let mut replay = seconds(bounds(1 << 20, 3, &budget), 4);
        replay.rewind(true);
        let sent = drain(&mut replay, &mut flv::Decoder::new()).len() as u64;
        assert_eq!(sent, 11, "the configuration, and the second that is not acknowledged");
        // Its clock begins anew and comes by the same times again.
        for frame in 0..40 {
            replay.push(video(frame * 100, frame % 10 == 0, 0, 7), 0, Duration::from_secs(4));
        }
        assert_eq!(replay.take(1000).map(|bytes| bytes.is_empty()), Some(false));
        replay.acknowledge(3, Until::Tags(sent), "clock".into());
        assert_eq!(body(&mut replay, false), (Some("clock".into()), 0), "no segment of the old clock");
        replay.acknowledge(4, Until::Shown(2000), "4".into());
        assert_eq!(body(&mut replay, true), (Some("4".into()), 2000));
        assert_eq!(body(&mut replay, false), (Some("clock".into()), 0));
    }

    #[test]
    fn age_and_the_common_budget_are_bounds_too() {
        let budget = Arc::new(Budget::new(SMALL as u64, Gauge::default()));
        let mut replay =
            Replay::new(Bounds { duration: Duration::from_secs(5), ..bounds(1 << 20, 0, &budget) });
        for id in 0..30u32 {
            replay.push(video(id * 1000, true, 0, id), 0, Duration::from_secs(id.into()));
            assert!(replay.entries.len() <= 6);
        }
        assert_eq!(replay.dropped_gops(), 24);
        let mut greedy = Replay::new(bounds(1 << 20, 0, &budget));
        for id in 0..200u32 {
            greedy.push(video(id * 100, true, 0, id), 0, Duration::ZERO);
            assert!(budget.used() <= SMALL as u64);
        }
        assert_eq!((replay.entries.len(), replay.dropped_gops()), (6, 24), "who has little keeps it");
        assert!(greedy.dropped_gops() > 150);
    }
}
