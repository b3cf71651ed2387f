//! What of a broadcast is kept, as all journals together say. Indexes are merged in any order, any number of times, with
//! the same result: so nothing that writes, merges or deletes journals has to be atomic with anything else.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};

use bytes::Bytes;
use media::captions::Service;
use media::event::{Event, What};
use media::time::{FrameRate, Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use crate::name::{BroadcastId, Digest};

/// One segment of a rendition that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The run it belongs to.
    pub epoch: Epoch,
    /// Its number.
    pub number: SegmentNumber,
    /// Presentation time of its first sample, in ticks of the rendition.
    pub start: Ticks,
    /// In ticks of the rendition.
    pub duration: Ticks,
    /// Whether the timeline breaks before it.
    pub discontinuity: bool,
    /// So many of its first bytes are a keyframe that can be shown alone; 0 if that is not known.
    pub lead: u64,
    /// Its length.
    pub bytes: u64,
    /// Of its bytes.
    pub sha256: Digest,
}

/// Why a number has no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// No media came for it, or the run did not have the rendition: live viewers had a gap there too.
    Gap,
    /// The store was away or slow for so long that the queue was full.
    Overflow,
    /// No journal says anything of it: its writer was stopped before it could.
    Lost,
}

impl Why {
    /// As metrics and reports say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::Gap => "gap",
            Why::Overflow => "overflow",
            Why::Lost => "lost",
        }
    }
}

/// Numbers of one run and rendition without segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// The first.
    pub first: SegmentNumber,
    /// The last.
    pub last: SegmentNumber,
    /// Why.
    pub why: Why,
}

/// One place of a rendition's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry<'a> {
    /// It is kept.
    Segment(&'a Segment),
    /// It is not. Times are those that it would have had, in ticks of the rendition.
    Missing {
        /// The run that should have had it.
        epoch: Epoch,
        /// Its number.
        number: SegmentNumber,
        /// Where it would begin.
        start: Ticks,
        /// How long it would be.
        duration: Ticks,
        /// Why it is not there.
        why: Why,
    },
}

impl Entry<'_> {
    /// Its number.
    pub fn number(&self) -> SegmentNumber {
        match self {
            Entry::Segment(segment) => segment.number,
            Entry::Missing { number, .. } => *number,
        }
    }
}

/// A broadcast's timeline and the wall clock: `ticks` (90 kHz) was `unix_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// 90 kHz.
    pub ticks: Ticks,
}

/// One uninterrupted run: an HLS discontinuity sequence, a DASH period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its epoch.
    pub epoch: Epoch,
    /// Number of its first segment.
    pub first: SegmentNumber,
    /// Where it begins, 90 kHz.
    pub start: Ticks,
    /// How its timeline lies on the wall clock.
    pub anchor: Anchor,
    /// Nominal length of a segment, 90 kHz.
    pub segment_duration: Ticks,
    /// What playlists promised of parts, 90 kHz.
    pub part_target: Ticks,
    /// Discontinuities of the broadcast up to the beginning of this run.
    pub breaks: u64,
    /// Largest first, audio last.
    pub renditions: Vec<Rendition>,
    /// Closed captions in the video, as far as they were known when that was written last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captions: Vec<Service>,
    /// Its sheets of thumbnails, which are kept as segments of [`THUMBNAILS`], if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<Tiles>,
}

/// Stands for a rendition where sheets of thumbnails are kept; no rendition has this name. A sheet's number is counted from the
/// beginning of the timeline, in durations of a sheet.
pub const THUMBNAILS: &str = "thumbnails";

/// What is on a run's sheets of thumbnails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// From one to the next, 90 kHz.
    pub interval: Ticks,
    /// Side by side.
    pub columns: u32,
    /// One below the other.
    pub rows: u32,
    /// Width of one, in pixels.
    pub width: u32,
    /// Height of one, in pixels.
    pub height: u32,
}

/// A rendition of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendition {
    /// Its name.
    pub id: RenditionId,
    /// RFC 6381.
    pub codec: String,
    /// As configured.
    pub bitrate_bps: u64,
    /// Ticks per second of its segments.
    #[serde(with = "text::timescale")]
    pub timescale: Timescale,
    /// What kind of track it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Its init segment.
    #[serde(with = "text::bytes")]
    pub init: Bytes,
}

/// Video or audio, with what manifests say of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A picture.
    Video {
        /// Samples a row.
        width: u32,
        /// Rows.
        height: u32,
        /// Where it is known.
        #[serde(with = "text::frame_rate", default)]
        frame_rate: Option<FrameRate>,
    },
    /// Sound.
    Audio {
        /// Of it.
        channels: u32,
        /// Of the core codec.
        sample_rate: u32,
    },
}

/// A broadcast is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its last run, as far as the writer knew.
    pub epoch: Epoch,
    /// When it ended, milliseconds since 1970.
    pub unix_ms: i64,
    /// Nobody said so: its writer was gone.
    pub abandoned: bool,
}

/// Segments of one run at most: four months of one-second segments. It bounds what a wrong number in a store can cost.
const MAX_RUN_SEGMENTS: u64 = 10_000_000;

/// Events of one broadcast: a cue each minute for a month.
const MAX_EVENTS: usize = 50_000;

type Segments = BTreeMap<(SegmentNumber, Epoch), Segment>;

/// All of one broadcast.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    broadcast: BroadcastId,
    runs: BTreeMap<Epoch, Run>,
    segments: BTreeMap<RenditionId, Segments>,
    holes: BTreeMap<(RenditionId, Epoch), Vec<Hole>>,
    events: BTreeSet<(Ticks, What)>,
    ended: Option<Ended>,
}

/// The numbers for which a run is the one to be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The run.
    pub epoch: Epoch,
    /// Its first number.
    pub first: SegmentNumber,
    /// Its last.
    pub last: SegmentNumber,
}

/// What a listing says of a broadcast.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its name.
    pub broadcast: BroadcastId,
    /// Of the media that is there to be played, from the first frame to the last, without what is between runs.
    pub duration_ms: i64,
    /// Of all objects, thumbnails and those that another run replaced included.
    pub bytes: u64,
    /// Objects: segments, and sheets of thumbnails.
    pub segments: usize,
    /// Numbers that should be there and are not, all renditions together; gaps that live viewers had too do not count.
    pub missing: u64,
    /// Of the newest run.
    pub renditions: Vec<RenditionId>,
    /// Runs that are played.
    pub runs: usize,
    /// When it ended, milliseconds since 1970; `None` while it may go on.
    pub ended_unix_ms: Option<i64>,
}

impl Index {
    /// Nothing yet.
    pub fn new(broadcast: BroadcastId) -> Self {
        let (runs, segments, holes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { broadcast, runs, segments, holes, events: BTreeSet::new(), ended: None }
    }

    // --- filling ---

    pub(crate) fn add_run(&mut self, run: Run) {
        let known =
            self.runs.entry(run.epoch).or_insert_with(|| Run { renditions: Vec::new(), ..run.clone() });
        for rendition in run.renditions {
            if !known.renditions.iter().any(|known| known.id == rendition.id) {
                known.renditions.push(rendition);
            }
        }
        for service in run.captions {
            if !known.captions.contains(&service) {
                known.captions.push(service);
            }
        }
        known.captions.sort_by(|a, b| (a.channel, &a.language).cmp(&(b.channel, &b.language)));
        known.renditions.sort_by(|a, b| (a.order(), &a.id).cmp(&(b.order(), &b.id)));
    }

    pub(crate) fn add_segment(&mut self, rendition: &RenditionId, segment: Segment) {
        let segments = self.segments.entry(rendition.clone()).or_default();
        let known = segments.entry((segment.number, segment.epoch)).or_insert(segment);
        // Two origins may have kept one segment; if they do not agree, the one that saw more of it is right.
        let worth = |s: &Segment| (s.duration, s.bytes, s.sha256, s.lead);
        if worth(&segment) > worth(known) {
            *known = segment;
        }
    }

    pub(crate) fn add_hole(&mut self, rendition: &RenditionId, epoch: Epoch, hole: Hole) {
        let holes = self.holes.entry((rendition.clone(), epoch)).or_default();
        if !holes.contains(&hole) {
            holes.push(hole);
            holes.sort_by_key(|hole| (hole.first, hole.last, hole.why));
        }
    }

    /// As [`Index::add_hole`], but it joins a hole that it follows, and past `max` of them the last one.
    pub(crate) fn grow_hole(&mut self, rendition: &RenditionId, epoch: Epoch, hole: Hole, max: usize) {
        let count: usize = self.holes.values().map(Vec::len).sum();
        let holes = self.holes.entry((rendition.clone(), epoch)).or_default();
        match holes.last_mut() {
            Some(last) if last.why == hole.why && last.last.next() == hole.first => last.last = hole.last,
            Some(last) if count >= max => last.last = last.last.max(hole.last),
            None if count >= max => {}
            _ => holes.push(hole),
        }
    }

    /// Past a bound the event is left out; which one does not depend on the order.
    pub(crate) fn add_event(&mut self, event: Event) {
        self.events.insert((event.at, event.what));
        if self.events.len() > MAX_EVENTS {
            self.events.pop_last();
        }
    }

    pub(crate) fn end(&mut self, ended: Ended) {
        let order = |ended: &Ended| (ended.epoch, !ended.abandoned, ended.unix_ms);
        if self.ended.as_ref().is_none_or(|known| order(&ended) > order(known)) {
            self.ended = Some(ended);
        }
    }

    /// Takes over all that `other` knows of the same broadcast.
    pub fn merge(&mut self, other: &Index) {
        for run in other.runs.values() {
            self.add_run(run.clone());
        }
        for (rendition, segments) in &other.segments {
            for segment in segments.values() {
                self.add_segment(rendition, *segment);
            }
        }
        for ((rendition, epoch), holes) in &other.holes {
            for hole in holes {
                self.add_hole(rendition, *epoch, *hole);
            }
        }
        for event in other.events() {
            self.add_event(event);
        }
        if let Some(ended) = other.ended {
            self.end(ended);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let media = self.runs.is_empty() && self.segments.is_empty() && self.holes.is_empty();
        media && self.events.is_empty() && self.ended.is_none()
    }

    /// Whatever was said of its end, also if it went on.
    pub(crate) fn said_ended(&self) -> Option<Ended> {
        self.ended
    }

    // --- reading ---

    /// Which broadcast.
    pub fn broadcast(&self) -> &BroadcastId {
        &self.broadcast
    }

    /// When it ended, unless it went on afterwards.
    pub fn ended(&self) -> Option<Ended> {
        let newest = self.runs.keys().next_back();
        self.ended.filter(|ended| newest.is_none_or(|newest| ended.epoch >= *newest))
    }

    /// A run.
    pub fn run(&self, epoch: Epoch) -> Option<&Run> {
        self.runs.get(&epoch)
    }

    /// Every run that was announced, oldest first, also those that brought nothing.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// What happened, in order of time.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.events.iter().map(|(at, what)| Event { at: *at, what: what.clone() })
    }

    /// What is played, in order: where two runs have one number, the later run has it, and from its first number on
    /// nothing of the runs before counts. A run that brought nothing replaces nothing.
    pub fn spans(&self) -> Vec<Span> {
        let mut brought: BTreeMap<Epoch, SegmentNumber> = BTreeMap::new();
        for segment in self.media().flat_map(|(_, segments)| segments.values()) {
            let last = brought.entry(segment.epoch).or_insert(segment.number);
            *last = (*last).max(segment.number);
        }
        let mut spans = Vec::new();
        let mut taken = u64::MAX;
        for run in self.runs.values().rev() {
            let Some(last) = brought.get(&run.epoch) else { continue };
            let last = last.0.min(taken.saturating_sub(1)).min(run.first.0.saturating_add(MAX_RUN_SEGMENTS));
            if run.first.0 <= last && run.first.0 < taken {
                spans.push(Span { epoch: run.epoch, first: run.first, last: SegmentNumber(last) });
                taken = run.first.0;
            }
        }
        spans.reverse();
        spans
    }

    /// Every rendition that some run has, largest first, audio last, as its newest run has it.
    pub fn renditions(&self) -> Vec<&Rendition> {
        let mut newest: BTreeMap<&RenditionId, &Rendition> = BTreeMap::new();
        for rendition in self.runs.values().flat_map(|run| &run.renditions) {
            newest.insert(&rendition.id, rendition);
        }
        let mut renditions: Vec<_> = newest.into_values().collect();
        renditions.sort_by_key(|rendition| rendition.order());
        renditions
    }

    /// A rendition's timeline from segment `from` on: every number of every span once, whether it is kept or not.
    pub fn entries(&self, rendition: &RenditionId, from: SegmentNumber) -> impl Iterator<Item = Entry<'_>> {
        let segments = self.segments.get(rendition);
        let timescale = self.renditions().iter().find(|r| r.id == *rendition).map(|r| r.timescale);
        let rendition = rendition.clone();
        self.spans().into_iter().flat_map(move |span| {
            let numbers = span.first.0.max(from.0)..span.last.0.saturating_add(1);
            let rendition = rendition.clone();
            numbers.map(move |number| {
                let number = SegmentNumber(number);
                let found = segments.and_then(|segments| segments.get(&(number, span.epoch)));
                found.map_or_else(|| self.missing(&rendition, timescale, span.epoch, number), Entry::Segment)
            })
        })
    }

    /// A segment by its full name, also one that another run replaced.
    pub fn segment(&self, epoch: Epoch, rendition: &RenditionId, number: SegmentNumber) -> Option<&Segment> {
        self.segments.get(rendition)?.get(&(number, epoch))
    }

    /// Which of these numbers a run has of a rendition, or of its thumbnails.
    pub fn numbers(
        &self,
        epoch: Epoch,
        rendition: &RenditionId,
        within: RangeInclusive<SegmentNumber>,
    ) -> impl Iterator<Item = SegmentNumber> {
        let segments = self.segments.get(rendition).filter(|_| !within.is_empty());
        let within = (*within.start(), Epoch(0))..=(*within.end(), Epoch(u64::MAX));
        let found = segments.into_iter().flat_map(move |segments| segments.range(within.clone()));
        found.filter(move |((_, of), _)| *of == epoch).map(|((number, _), _)| *number)
    }

    /// Without sheets of thumbnails, which have numbers of their own.
    fn media(&self) -> impl Iterator<Item = (&RenditionId, &Segments)> {
        self.segments.iter().filter(|(id, _)| id.as_str() != THUMBNAILS)
    }

    /// Every object there is, sheets of thumbnails included, also those that another run replaced.
    pub fn objects(&self) -> impl Iterator<Item = (&RenditionId, &Segment)> {
        self.segments.iter().flat_map(|(id, segments)| segments.values().map(move |segment| (id, segment)))
    }

    /// Declared holes.
    pub fn holes(&self) -> impl Iterator<Item = (&RenditionId, Epoch, &Hole)> {
        self.holes.iter().flat_map(|((id, epoch), holes)| holes.iter().map(move |hole| (id, *epoch, hole)))
    }

    /// Peak and average bits per second of a rendition's whole segments, as far as they are played.
    pub fn bitrate(&self, rendition: &RenditionId) -> Option<(u64, u64)> {
        let timescale = self.renditions().iter().find(|r| r.id == *rendition)?.timescale;
        let (mut peak, mut bytes, mut duration) = (0, 0_u128, 0_u128);
        for entry in self.entries(rendition, SegmentNumber(0)) {
            let Entry::Segment(segment) = entry else { continue };
            let ticks = u128::try_from(segment.duration).unwrap_or(0);
            // Short segments at the end of a run say nothing about the rate.
            if ticks * 2 < u128::from(timescale.per_second()) {
                continue;
            }
            peak = peak.max(u128::from(segment.bytes) * 8 * u128::from(timescale.per_second()) / ticks);
            (bytes, duration) = (bytes + u128::from(segment.bytes), duration + ticks);
        }
        let average = (bytes * 8 * u128::from(timescale.per_second())).checked_div(duration)?;
        Some((u64::try_from(peak).ok()?, u64::try_from(average).ok()?))
    }

    /// The most bits per second that a rendition's keyframes alone have, each for as long as its segment, as far as they are
    /// played; `None` if none is known.
    pub fn keyframes_bps(&self, rendition: &RenditionId) -> Option<u64> {
        let timescale = self.renditions().iter().find(|r| r.id == *rendition)?.timescale;
        let bps = |entry| match entry {
            Entry::Segment(Segment { lead, duration, .. }) if *lead > 0 => {
                let bits = u128::from(*lead) * 8 * u128::from(timescale.per_second());
                u64::try_from(bits / u128::try_from(*duration).ok()?.max(1)).ok()
            }
            _ => None,
        };
        self.entries(rendition, SegmentNumber(0)).filter_map(bps).max()
    }

    /// Where the played part of a span lies on the timeline, 90 kHz.
    pub fn extent(&self, span: Span) -> Option<Range<Ticks>> {
        let run = self.runs.get(&span.epoch)?;
        let mut extent: Option<Range<Ticks>> = None;
        for rendition in &run.renditions {
            let Some(segments) = self.segments.get(&rendition.id) else { continue };
            let within = (span.first, Epoch(0))..=(span.last, Epoch(u64::MAX));
            for segment in segments.range(within).map(|(_, s)| s).filter(|s| s.epoch == span.epoch) {
                let at = |ticks| rendition.timescale.rescale(ticks, Timescale::VIDEO);
                let (start, end) = (at(segment.start), at(segment.start.saturating_add(segment.duration)));
                let known = extent.get_or_insert(start..end);
                *known = known.start.min(start)..known.end.max(end);
            }
        }
        extent
    }

    /// The last segment that is played, and where it ends, 90 kHz.
    pub fn newest(&self) -> Option<(SegmentNumber, Ticks)> {
        let span = *self.spans().last()?;
        Some((span.last, self.extent(span)?.end))
    }

    /// What a listing says.
    pub fn summary(&self) -> Summary {
        let spans = self.spans();
        let lengths =
            spans.iter().filter_map(|span| self.extent(*span)).map(|extent| extent.end - extent.start);
        let duration = lengths.sum::<Ticks>();
        let missing = |rendition: &&Rendition| {
            let entries = self.entries(&rendition.id, SegmentNumber(0));
            entries.filter(|e| matches!(e, Entry::Missing { why: Why::Overflow | Why::Lost, .. })).count()
                as u64
        };
        let newest = spans.last().and_then(|span| self.run(span.epoch));
        Summary {
            broadcast: self.broadcast.clone(),
            duration_ms: Timescale::VIDEO.rescale(duration, Timescale::MILLIS),
            bytes: self.objects().map(|(_, segment)| segment.bytes).sum(),
            segments: self.objects().count(),
            missing: self.renditions().iter().map(missing).sum(),
            renditions: newest.iter().flat_map(|run| &run.renditions).map(|r| r.id.clone()).collect(),
            runs: spans.len(),
            ended_unix_ms: self.ended().map(|ended| ended.unix_ms),
        }
    }

    fn missing(
        &self,
        rendition: &RenditionId,
        timescale: Option<Timescale>,
        epoch: Epoch,
        number: SegmentNumber,
    ) -> Entry<'static> {
        let run = &self.runs[&epoch];
        let ticks = |ticks| Timescale::VIDEO.rescale(ticks, timescale.unwrap_or(Timescale::VIDEO));
        let since = i64::try_from(number.0 - run.first.0).unwrap_or(i64::MAX);
        let start = run.start.saturating_add(since.saturating_mul(run.segment_duration));
        let declared = self.holes.get(&(rendition.clone(), epoch)).into_iter().flatten();
        let declared =
            declared.filter(|hole| (hole.first..=hole.last).contains(&number)).map(|hole| hole.why);
        let why = declared.min().unwrap_or_else(|| {
            let has = run.renditions.iter().any(|r| r.id == *rendition);
            if has { Why::Lost } else { Why::Gap }
        });
        let duration = ticks(run.segment_duration);
        Entry::Missing { epoch, number, start: ticks(start), duration, why }
    }
}

impl Rendition {
    fn order(&self) -> (u8, u32) {
        match self.kind {
            Kind::Video { height, .. } => (0, u32::MAX - height),
            Kind::Audio { .. } => (1, 0),
        }
    }
}

/// How what has no text of its own is written.
mod text {
    pub(super) mod bytes {
        use bytes::Bytes;
        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        pub(in super::super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
            to.serialize_str(&crate::name::hex(bytes))
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
            let text = String::deserialize(from)?;
            crate::name::unhex(&text).map(Bytes::from).ok_or_else(|| D::Error::custom("is not hexadecimal"))
        }
    }

    pub(super) mod timescale {
        use media::time::Timescale;
        use serde::{Deserialize, Deserializer, Serializer, de::Error};

        pub(in super::super) fn serialize<S: Serializer>(
            timescale: &Timescale,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            to.serialize_u32(timescale.per_second())
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Timescale, D::Error> {
            Timescale::new(u32::deserialize(from)?).ok_or_else(|| D::Error::custom("a timescale of zero"))
        }
    }

    pub(super) mod frame_rate {
        use media::time::FrameRate;
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            rate: &Option<FrameRate>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            rate.map(|rate| (rate.num, rate.den)).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<FrameRate>, D::Error> {
            let rate = Option::<(u32, u32)>::deserialize(from)?;
            Ok(rate.filter(|(_, den)| *den > 0).map(|(num, den)| FrameRate { num, den }))
        }
    }
}
