//! Cuts the samples of one rendition into parts and segments.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::time::{Ticks, Timescale};
use media::{Sample, SegmentNumber};

/// Samples a part may hold whatever their durations claim: a second of the fastest rate.
const MAX_PART_SAMPLES: usize = 240;

/// Cuts that are remembered: more than audio and encoders are ever behind.
const MAX_CUTS: usize = 128;

/// What was cut, in order: `Open`, `Part`s, `Close`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A segment begins.
    Open {
        /// Its number.
        number: SegmentNumber,
        /// Presentation time of its first sample.
        start: Ticks,
    },
    /// The next part of the open segment.
    Part(Part),
    /// The open segment is complete.
    Close,
    /// A segment for which nothing came.
    Gap {
        /// Its number.
        number: SegmentNumber,
    },
}

/// One part: the samples of one CMAF chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// In decoding order, never empty.
    pub samples: Vec<Sample>,
    /// The sum of their durations.
    pub duration: Ticks,
    /// Whether decoding can start with it.
    pub independent: bool,
    /// Whether it begins its segment.
    pub first: bool,
}

/// Cuts one rendition of one run. Segment `first_number + k` holds what begins in
/// `start + k * segment_duration ..`, all in the track's timescale.
#[derive(Debug)]
pub struct Segmenter {
    timescale: Timescale,
    start: Ticks,
    segment_duration: Ticks,
    part_target: Ticks,
    early: Ticks,
    first_number: SegmentNumber,
    /// Where segments begin, if the source says so: places and indices, oldest first, at most [`MAX_CUTS`].
    given: Option<VecDeque<(Ticks, i64)>>,
    index: Option<i64>,
    part: Vec<Sample>,
    part_duration: Ticks,
    first_part: bool,
    /// A sample whose duration only the next one tells.
    pending: Option<Sample>,
    /// Segments up to this one were given up: what still comes for them is too late.
    given_up: Option<i64>,
    /// Samples that came too late.
    late: u64,
    events: VecDeque<Event>,
}

impl Segmenter {
    /// `start`, `segment_duration` and `part_target` are given in 90 kHz ticks and converted to `timescale`. A sample
    /// that begins at most `early` (in `timescale`) before a boundary counts as on it: half a frame for audio, whose
    /// frames do not meet boundaries, else zero.
    pub fn new(
        timescale: Timescale,
        start: Ticks,
        segment_duration: Ticks,
        part_target: Ticks,
        early: Ticks,
        first_number: SegmentNumber,
    ) -> Self {
        let ticks = |video: Ticks| Timescale::VIDEO.rescale(video, timescale);
        Self {
            timescale,
            start: ticks(start),
            segment_duration: ticks(segment_duration),
            part_target: ticks(part_target),
            early,
            first_number,
            given: None,
            index: None,
            part: Vec::new(),
            part_duration: 0,
            first_part: true,
            pending: None,
            given_up: None,
            late: 0,
            events: VecDeque::new(),
        }
    }

    /// Segments begin where [`Segmenter::cut`] says, instead of every `segment_duration`.
    #[must_use]
    pub fn with_given_cuts(mut self) -> Self {
        self.given = Some(VecDeque::new());
        self
    }

    /// Segment `index`, counted from the run's first, begins at `place` (90 kHz). The next one is not yet known.
    pub fn cut(&mut self, index: i64, place: Ticks) {
        let place = Timescale::VIDEO.rescale(place, self.timescale);
        if let Some(given) = &mut self.given {
            if given.len() >= MAX_CUTS {
                given.pop_front();
            }
            given.push_back((place, index));
        }
    }

    /// Ticks per second of its samples.
    pub fn timescale(&self) -> Timescale {
        self.timescale
    }

    /// The newest segment that was opened or given up, counted from the run's first.
    pub fn newest_index(&self) -> Option<i64> {
        self.index.max(self.given_up)
    }

    /// Samples that were left out because they came too late.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Gives up waiting: completes the open segment, and what is missing up to segment `index` is a gap.
    pub fn give_up(&mut self, index: i64) {
        let next = self.newest_index().map_or(0, |newest| newest + 1);
        if next > index {
            return;
        }
        self.close();
        self.index = None;
        for missing in next..=index {
            self.events.push_back(Event::Gap { number: self.number(missing) });
        }
        self.given_up = Some(index);
    }

    /// Nothing comes before segment `index`: completes the open one, and what is missing up to there is a gap. Unlike what
    /// was given up, `index` itself may still come.
    pub fn skip_to(&mut self, index: i64) {
        let next = self.newest_index().map_or(0, |newest| newest + 1);
        self.flush();
        self.close();
        self.index = None;
        for missing in next..index {
            self.events.push_back(Event::Gap { number: self.number(missing) });
        }
        self.given_up = Some(index.max(next) - 1);
    }

    /// The segment, counted from the run's first, that a sample beginning at `pts` falls into by time alone.
    pub fn index_at(&self, pts: Ticks) -> i64 {
        let pts = pts + self.early;
        match &self.given {
            None => transcode::segment_index(self.start, self.segment_duration, pts),
            Some(given) => match given.iter().rev().find(|(place, _)| *place <= pts) {
                Some((_, index)) => *index,
                None => given.front().map_or(-1, |(_, index)| index - 1),
            },
        }
    }

    /// Takes the next sample. With `may_open`, it begins a new segment if its time says so; else it stays in the open
    /// one. Samples of duration zero wait for the next to tell theirs.
    pub fn push(&mut self, sample: Sample, may_open: bool) {
        if let Some(mut pending) = self.pending.take() {
            pending.duration = (sample.dts - pending.dts).max(1);
            self.place(pending, true);
        }
        if sample.duration > 0 {
            self.place(sample, may_open);
        } else {
            self.pending = Some(sample);
        }
    }

    /// The run is over: what is open is completed as it is.
    pub fn finish(&mut self) {
        self.flush();
        self.close();
    }

    /// The run is over for now: what came is cut as a part, the segment stays open.
    pub fn suspend(&mut self) {
        self.flush();
        if !self.part.is_empty() {
            self.end_part();
        }
    }

    /// The next event, in order.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Places a sample whose duration nobody will tell.
    fn flush(&mut self) {
        if let Some(mut pending) = self.pending.take() {
            pending.duration = self.part.last().map_or(self.part_target, |last| last.duration).max(1);
            self.place(pending, true);
        }
    }

    /// The number of a segment that is counted from the run's first.
    pub fn number(&self, index: i64) -> SegmentNumber {
        SegmentNumber(self.first_number.0 + index.max(0) as u64)
    }

    fn place(&mut self, sample: Sample, may_open: bool) {
        if self.given_up.is_some_and(|given_up| self.index_at(sample.pts) <= given_up) {
            self.late += 1;
            return;
        }
        let index = if sample.key { self.index_at(sample.pts) } else { i64::MIN };
        let opens = match self.index {
            None => true,
            Some(open) => may_open && index > open,
        };
        if opens {
            self.close();
            let index = index.max(0);
            self.index = Some(index);
            self.first_part = true;
            let number = self.number(index);
            self.events.push_back(Event::Open { number, start: sample.pts });
        }
        self.close_gap(sample.dts);
        let duration = sample.duration;
        if !self.part.is_empty() && self.part_duration + duration > self.part_target {
            self.end_part();
        }
        self.part.push(sample);
        self.part_duration += duration;
        // A part that cannot take another sample like this one is complete now, not when the next one comes.
        if self.part_duration + duration > self.part_target || self.part.len() >= MAX_PART_SAMPLES {
            self.end_part();
        }
    }

    /// A chunk knows durations only: where frames are missing, the one before lasts longer, or a new part tells the time.
    fn close_gap(&mut self, dts: Ticks) {
        let Some(last) = self.part.last_mut() else { return };
        let gap = dts - (last.dts + last.duration);
        if gap > 0 && self.part_duration + gap <= self.part_target {
            last.duration += gap;
            self.part_duration += gap;
        } else if gap > 0 {
            self.end_part();
        }
    }

    fn end_part(&mut self) {
        let samples = std::mem::take(&mut self.part);
        let independent = samples.first().is_some_and(|sample| sample.key);
        let duration = std::mem::take(&mut self.part_duration);
        let first = std::mem::take(&mut self.first_part);
        self.events.push_back(Event::Part(Part { samples, duration, independent, first }));
    }

    fn close(&mut self) {
        if !self.part.is_empty() {
            self.end_part();
        }
        if self.index.is_some() {
            self.events.push_back(Event::Close);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn sample(pts: Ticks, duration: Ticks, key: bool) -> Sample {
        Sample { dts: pts, pts, duration, key, data: Bytes::new() }
    }

    /// Events in short: `O7@start`, `samples*duration`, `C`.
    fn drain(segmenter: &mut Segmenter) -> Vec<String> {
        std::iter::from_fn(|| segmenter.poll())
            .map(|event| match event {
                Event::Open { number, start } => format!("O{number}@{start}"),
                Event::Part(part) => format!("{}*{}", part.samples.len(), part.duration),
                Event::Close => "C".into(),
                Event::Gap { number } => format!("G{number}"),
            })
            .collect()
    }

    #[test]
    fn parts_are_complete_with_their_last_sample() {
        let mut cut = Segmenter::new(Timescale::VIDEO, 0, 90_000, 18_000, 0, SegmentNumber(7));
        for frame in 0..6 {
            cut.push(sample(frame * 3000, 3000, frame == 0), true);
        }
        assert_eq!(drain(&mut cut), ["O7@0", "6*18000"], "no need to wait for the seventh frame");
        for frame in 6..31 {
            cut.push(sample(frame * 3000, 3000, frame % 30 == 0), true);
        }
        assert_eq!(drain(&mut cut), ["6*18000", "6*18000", "6*18000", "6*18000", "C", "O8@90000"]);
        cut.finish();
        assert_eq!(drain(&mut cut), ["1*3000", "C"]);
    }

    #[test]
    fn parts_tile_segments_and_stay_within_the_target() {
        for (frame_ticks, target) in
            [(3003, 18_018), (3754, 18_770), (1502, 18_018), (45_000, 18_000), (1920, 18_000)]
        {
            let mut cut = Segmenter::new(Timescale::VIDEO, 900_000, 90_000, target, 0, SegmentNumber(0));
            let (mut open, mut next, mut parts) = (0i64, 900_000, 0);
            for frame in 0..3000 {
                let pts = 900_000 + frame * frame_ticks;
                let key = cut.index_at(pts) > open || frame == 0;
                open = cut.index_at(pts);
                cut.push(sample(pts, frame_ticks, key), true);
                while let Some(event) = cut.poll() {
                    match event {
                        Event::Open { number, start } => {
                            assert_eq!(start, next);
                            assert!(start >= 900_000 + number.0 as i64 * 90_000);
                        }
                        Event::Part(part) => {
                            assert!(
                                part.duration <= target.max(frame_ticks),
                                "{frame_ticks}: {}",
                                part.duration
                            );
                            next += part.duration;
                            parts += 1;
                        }
                        Event::Close => {}
                        Event::Gap { number } => panic!("{number} was not given up"),
                    }
                }
            }
            assert!(parts > 100);
        }
    }

    #[test]
    fn an_unknown_duration_waits_for_the_next_sample() {
        let mut cut = Segmenter::new(Timescale::VIDEO, 0, 90_000, 18_000, 0, SegmentNumber(0));
        cut.push(sample(0, 0, true), true);
        assert_eq!(drain(&mut cut), [""; 0]);
        cut.push(sample(10_000, 0, false), true);
        assert_eq!(drain(&mut cut), ["O0@0", "1*10000"]);
        cut.push(sample(90_000, 0, true), true);
        cut.finish();
        assert_eq!(drain(&mut cut), ["1*80000", "C", "O1@90000", "1*18000", "C"]);
    }

    #[test]
    fn missing_frames_move_nothing_behind_them() {
        let mut cut = Segmenter::new(Timescale::VIDEO, 0, 90_000, 18_000, 0, SegmentNumber(0));
        for frame in [0, 1, 3, 4, 12, 13, 20] {
            cut.push(sample(frame * 3000, 3000, frame == 0), true);
        }
        cut.finish();
        let parts: Vec<_> = std::iter::from_fn(|| cut.poll())
            .filter_map(|event| match event {
                Event::Part(part) => Some(part.samples),
                _ => None,
            })
            .collect();
        for samples in &parts {
            let mut dts = samples[0].dts;
            for sample in samples {
                assert_eq!(sample.dts, dts);
                dts += sample.duration;
            }
            assert!(dts - samples[0].dts <= 18_000);
        }
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [4, 2, 1]);
    }

    #[test]
    fn given_cuts_are_where_they_are_said_to_be() {
        let rate = Timescale::new(48_000).unwrap();
        let mut cut = Segmenter::new(rate, 0, 90_000, 18_000, 512, SegmentNumber(3)).with_given_cuts();
        assert_eq!(cut.index_at(0), -1);
        for (index, place) in [(0, 0), (1, 93_000), (2, 180_000)] {
            cut.cut(index, place);
        }
        let indices = [-600, -512, 49_087, 49_088, 95_487, 95_488, 900_000].map(|pts| cut.index_at(pts));
        assert_eq!(indices, [-1, 0, 0, 1, 1, 2, 2]);
        for frame in 0..96 {
            cut.push(sample(frame * 1024, 1024, true), true);
        }
        cut.finish();
        let opened: Vec<_> = drain(&mut cut).into_iter().filter(|event| event.starts_with('O')).collect();
        assert_eq!(opened, ["O3@0", "O4@49152", "O5@96256"]);
    }

    #[test]
    fn what_is_given_up_is_a_gap_and_stays_one() {
        let mut cut = Segmenter::new(Timescale::VIDEO, 0, 90_000, 18_000, 0, SegmentNumber(5));
        cut.give_up(1);
        assert_eq!(drain(&mut cut), ["G5", "G6"]);
        cut.push(sample(170_000, 3000, true), true);
        cut.push(sample(190_000, 18_000, true), true);
        assert_eq!((drain(&mut cut), cut.late()), (vec!["O7@190000".into(), "1*18000".into()], 1));
        cut.give_up(3);
        cut.give_up(3);
        assert_eq!(drain(&mut cut), ["C", "G8"]);
        cut.finish();
        assert_eq!(drain(&mut cut), [""; 0]);
    }

    #[test]
    fn segments_are_skipped_up_to_one_that_comes() {
        let mut cut = Segmenter::new(Timescale::VIDEO, 0, 90_000, 18_000, 0, SegmentNumber(5));
        cut.push(sample(0, 18_000, true), true);
        cut.skip_to(1);
        assert_eq!(drain(&mut cut), ["O5@0", "1*18000", "C"]);
        cut.skip_to(2);
        cut.skip_to(2);
        assert_eq!(drain(&mut cut), ["G6"]);
        cut.skip_to(3);
        cut.push(sample(270_000, 18_000, true), true);
        cut.finish();
        assert_eq!(drain(&mut cut), ["G7", "O8@270000", "1*18000", "C"]);
        assert_eq!(cut.late(), 0);
    }

    #[test]
    fn a_sample_that_may_not_open_stays() {
        let rate = Timescale::new(48_000).unwrap();
        let mut cut = Segmenter::new(rate, 0, 90_000, 18_000, 0, SegmentNumber(0));
        for frame in 0..47 {
            cut.push(sample(frame * 1024, 1024, true), false);
        }
        cut.finish();
        let events = drain(&mut cut);
        assert_eq!((events[0].as_str(), events.len()), ("O0@0", 8), "{events:?}");
    }
}
