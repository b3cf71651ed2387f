//! What of a live broadcast has left memory: listed before the window for those who ask to begin earlier.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::fmt;

use archive::index::{Entry, Index, Rendition, Run};
use media::event::Event;
use media::time::{Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};

use crate::dash::Period;
use crate::timeline::Anchor;
use crate::vod;

/// Segments listed before the window at most, the newest: a day of one-second segments.
pub const MAX_EARLIER: usize = 86_400;

/// Where a viewer wants to begin: the parameter `start` of a manifest's query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// So many seconds before the live edge.
    Back(u32),
    /// At a time, seconds since 1970.
    At(u32),
}

/// A `start` that says no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("start: needs seconds before the live edge, such as -600, or seconds since 1970")]
pub struct BadStart;

impl Start {
    /// Reads a query; other parameters are ignored.
    pub fn parse(query: &str) -> Result<Option<Self>, BadStart> {
        let Some(value) = query.split('&').find_map(|pair| pair.strip_prefix("start=")) else {
            return Ok(None);
        };
        let (digits, back) = value.strip_prefix('-').map_or((value, false), |digits| (digits, true));
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let seconds = if plain { digits.parse().ok() } else { None }.ok_or(BadStart)?;
        Ok(Some(if back { Start::Back(seconds) } else { Start::At(seconds) }))
    }

    /// The place on the timeline of a broadcast that has come to `end`, not farther back than `most` (all 90 kHz).
    pub fn place(self, anchor: Anchor, end: Ticks, most: Ticks) -> Ticks {
        let wanted = match self {
            Start::Back(seconds) => end - Ticks::from(seconds) * 90_000,
            Start::At(seconds) => anchor.at(i64::from(seconds) * 1000),
        };
        wanted.clamp(end - most, end)
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Back(seconds) => write!(f, "-{seconds}"),
            Start::At(seconds) => write!(f, "{seconds}"),
        }
    }
}

/// A segment that is listed before the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// Its number.
    pub number: SegmentNumber,
    /// The run it belongs to.
    pub epoch: Epoch,
    /// Presentation time of its first sample, in ticks of the rendition.
    pub start: Ticks,
    /// In ticks of the rendition.
    pub duration: Ticks,
    /// Whether the timeline breaks before it.
    pub discontinuity: bool,
    /// Whether its media is missing.
    pub gap: bool,
    /// Breaks of the broadcast up to the beginning of its run.
    pub breaks: u64,
    /// Bytes up to the end of its first keyframe; 0 if unknown.
    pub lead: u64,
}

/// One rendition as far as it is kept, from where a viewer wants to begin. Numbers are consecutive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    segments: VecDeque<Earlier>,
    /// What happened, in order of time.
    events: Vec<Event>,
    /// Where what follows the run of the last one begins, and how long a gap is, in ticks of the rendition.
    gaps: (Ticks, Ticks),
}

impl Past {
    /// All that ends after `from` (90 kHz).
    pub fn new(index: &Index, id: &RenditionId, from: Ticks) -> Self {
        let mut past = Past::default();
        let renditions = index.renditions();
        let Some(rendition) = renditions.iter().find(|rendition| rendition.id == *id) else { return past };
        let ticks = |ticks| Timescale::VIDEO.rescale(ticks, rendition.timescale);
        past.events = index.events().collect();
        let from = ticks(from);
        let spans = index.spans();
        let mut run: Option<&Run> = None;
        for entry in index.entries(id, SegmentNumber(0)) {
            let mut earlier = Earlier::from(entry);
            if run.is_none_or(|run| run.epoch != earlier.epoch) {
                let next = index.run(earlier.epoch);
                // The segment that would have said so may be missing, or the first of an origin that has no past.
                let broke = run.zip(next).is_some_and(|(before, next)| next.breaks > before.breaks);
                earlier.discontinuity |= broke;
                run = next;
                past.fill(earlier.number);
                let span = spans.iter().find(|span| span.epoch == earlier.epoch);
                let end = span.and_then(|span| index.extent(*span)).map_or(0, |extent| extent.end);
                past.gaps = (ticks(end), ticks(run.map_or(0, |run| run.segment_duration)));
            }
            earlier.breaks = run.map_or(0, |run| run.breaks);
            if earlier.start + earlier.duration > from {
                past.push(earlier);
            }
        }
        past
    }

    /// What happened, in order of time.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// What is to be listed before segment `first`, with gaps for what nobody knows.
    pub fn before(mut self, first: SegmentNumber) -> VecDeque<Earlier> {
        while self.segments.back().is_some_and(|last| last.number >= first) {
            self.segments.pop_back();
        }
        self.fill(first);
        self.segments
    }

    /// Gaps up to segment `next`, as live viewers had them: the broadcaster was away, or the archive is behind.
    fn fill(&mut self, next: SegmentNumber) {
        let Some(last) = self.segments.back().copied() else { return };
        let (end, duration) = self.gaps;
        let place = |number: u64| end + (number - last.number.0 - 1) as Ticks * duration;
        // Of a hole that is longer than what is listed, only the end would be.
        let begin = (last.number.0 + 1).max(next.0.saturating_sub(MAX_EARLIER as u64));
        if begin > last.number.0 + 1 {
            self.segments.clear();
        }
        for number in begin..next.0 {
            let (number, start) = (SegmentNumber(number), place(number));
            self.push(Earlier { number, start, duration, discontinuity: false, gap: true, lead: 0, ..last });
        }
    }

    fn push(&mut self, earlier: Earlier) {
        if self.segments.len() >= MAX_EARLIER {
            self.segments.pop_front();
        }
        self.segments.push_back(earlier);
    }
}

impl From<Entry<'_>> for Earlier {
    fn from(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Segment(segment) => Earlier {
                number: segment.number,
                epoch: segment.epoch,
                start: segment.start,
                duration: segment.duration,
                discontinuity: segment.discontinuity,
                gap: false,
                breaks: 0,
                lead: segment.lead,
            },
            Entry::Missing { epoch, number, start, duration, .. } => Earlier {
                number,
                epoch,
                start,
                duration,
                discontinuity: false,
                gap: true,
                breaks: 0,
                lead: 0,
            },
        }
    }
}

/// What an MPD says of runs that have left memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PastRuns {
    /// Where the viewer wants to begin, 90 kHz.
    pub from: Ticks,
    /// The segment there.
    pub first: Option<SegmentNumber>,
    /// Those that reach beyond `from`, oldest first.
    pub periods: Vec<Period>,
}

impl PastRuns {
    /// All that ends after `from` (90 kHz).
    pub fn new(index: &Index, from: Ticks) -> Self {
        let mut past = PastRuns { from, ..PastRuns::default() };
        for span in index.spans() {
            let (Some(run), Some(extent)) = (index.run(span.epoch), index.extent(span)) else { continue };
            if extent.end <= from {
                continue;
            }
            if past.first.is_none() {
                let gone = (from - run.start).max(0) / run.segment_duration.max(1);
                past.first = Some(SegmentNumber(run.first.0 + gone as u64));
            }
            // As in the live MPD: the last frame may reach beyond its segment, and must not promise another.
            let segments = (span.last.0 + 1 - run.first.0) as Ticks;
            let end = extent.end.min(run.start + segments * run.segment_duration);
            let variant = |rendition: &Rendition| vod::variant(rendition, vod::measured(index, rendition));
            past.periods.push(Period {
                epoch: run.epoch,
                start: run.start,
                end: Some(end),
                first: run.first,
                variants: run.renditions.iter().map(variant).collect(),
                connected: None,
                resumes: None,
                cuts: Vec::new(),
                trimmed: false,
                captions: run.captions.clone(),
                captions_found: run.captions.clone(),
                thumbnails: None,
            });
        }
        past
    }
}
