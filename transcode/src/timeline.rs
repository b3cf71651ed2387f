//! Which pictures are encoded, when, and which of them begin a segment: decided once, before the rungs, so
//! that all rungs agree.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use media::Ticks;

/// The segment that a picture belongs to, counted from 0 at `start`: segment `k` begins with the first
/// picture whose `pts >= start + k * segment_duration`. Negative before `start`. All arguments share one
/// timescale; a `segment_duration` below 1 counts as 1.
///
/// This is the one rule of where segments begin: the encoders force a keyframe where the index grows, the
/// packager cuts there.
pub fn segment_index(start: Ticks, segment_duration: Ticks, pts: Ticks) -> i64 {
    let elapsed = i128::from(pts) - i128::from(start);
    // An i64 difference needs 65 bits, which division by at least 2 brings back; the clamp is for a divisor
    // of 1.
    let index = elapsed.div_euclid(segment_duration.max(1).into());
    index.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// When one encoded picture is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Showing {
    /// Presentation time of the source frame.
    pub(crate) pts: Ticks,
    /// Duration of the source frame.
    pub(crate) duration: Ticks,
    /// Whether it begins a segment and so must be a keyframe.
    pub(crate) key: bool,
}

/// What to do about one source frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The picture that was just decoded.
    Show(Showing),
    /// This frame did not come out of the decoder: show its predecessor once more (or, at the very
    /// beginning, its successor).
    Repeat(Showing),
    /// The source has nothing here: show what came before once more.
    Fill(Showing),
    /// This frame did not come out of the decoder and no other ever did, or its turn was over before it came.
    Lost,
}

/// Most frames inside the decoder at once: an H.264 decoder holds at most 16 for reordering (ITU-T H.264
/// A.3.1), fields in access units of their own double that; beyond it the oldest will not come any more.
const MAX_PENDING: usize = 40;

/// Most repetitions of one picture between two frames: half a minute of the shortest parts. A longer hole stays one.
const MAX_FILLED: Ticks = 600;

/// Matches what comes out of the decoder with what went in, so that every source frame is accounted for
/// exactly once.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Ticks,
    segment_duration: Ticks,
    /// No picture is shown longer than this without a repetition.
    longest_showing: Ticks,
    /// The source says with which frames segments begin: presentation times of those that are not shown yet.
    given: Option<BTreeSet<Ticks>>,
    /// Frames inside the decoder: presentation time to duration.
    pending: BTreeMap<Ticks, Ticks>,
    /// Everything up to here has been decided.
    decided: Option<Ticks>,
    /// The segment of the last picture shown.
    segment: Option<i64>,
    /// What was shown last: when, and for how long as far as that is known.
    shown: Option<(Ticks, Ticks)>,
    /// Whether there is a picture that could stand in for another.
    has_picture: bool,
    steps: VecDeque<Step>,
}

impl Timeline {
    /// Frames before `start` are decoded and not shown. Where frames are farther apart than `longest_showing`, or not there
    /// at all where a segment begins, the picture before is shown again.
    pub(crate) fn new(start: Ticks, segment_duration: Ticks, longest_showing: Ticks) -> Self {
        Self {
            start,
            segment_duration,
            longest_showing: longest_showing.max(1),
            given: None,
            pending: BTreeMap::new(),
            decided: None,
            segment: None,
            shown: None,
            has_picture: false,
            steps: VecDeque::new(),
        }
    }

    /// Segments begin with the frames that are told by [`Timeline::cut`], and with no others.
    pub(crate) fn with_given_cuts(mut self) -> Self {
        self.given = Some(BTreeSet::new());
        self
    }

    /// A segment begins with the frame of this presentation time, which is about to be pushed.
    pub(crate) fn cut(&mut self, pts: Ticks) {
        if let Some(given) = &mut self.given {
            given.insert(pts);
        }
    }

    /// An access unit went into the decoder. A second one for the same time, or one for a time that has
    /// passed, is lost.
    pub(crate) fn push(&mut self, pts: Ticks, duration: Ticks) {
        let late = self.decided.is_some_and(|decided| pts <= decided);
        if late || self.pending.insert(pts, duration).is_some() {
            self.steps.push_back(Step::Lost);
        }
        if self.pending.len() > MAX_PENDING
            && let Some((pts, duration)) = self.pending.pop_first()
        {
            self.missing(pts, duration);
        }
    }

    /// A picture came out. Frames that should have come before it will not come any more. A picture whose
    /// turn is over is ignored: its time was given to another.
    pub(crate) fn decoded(&mut self, pts: Ticks) {
        if !self.pending.contains_key(&pts) {
            return;
        }
        self.has_picture = true;
        while let Some((first, duration)) = self.pending.pop_first() {
            if first == pts {
                self.show(pts, duration, Step::Show);
                return;
            }
            self.missing(first, duration);
        }
    }

    /// The decoder has given all it had.
    pub(crate) fn finish(&mut self) {
        while let Some((pts, duration)) = self.pending.pop_first() {
            self.missing(pts, duration);
        }
    }

    /// What to do next, in order of presentation.
    pub(crate) fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    fn missing(&mut self, pts: Ticks, duration: Ticks) {
        if self.has_picture {
            self.show(pts, duration, Step::Repeat);
        } else {
            self.decided = Some(pts);
            self.steps.push_back(Step::Lost);
        }
    }

    fn show(&mut self, pts: Ticks, duration: Ticks, step: fn(Showing) -> Step) {
        self.decided = Some(pts);
        if pts < self.start {
            return;
        }
        self.fill(pts);
        self.shown = Some((pts, duration));
        self.put(pts, duration, step);
    }

    /// Repeats the picture before from where it ends to `until`, in equal pieces that no boundary cuts.
    fn fill(&mut self, until: Ticks) {
        let Some((pts, duration)) = self.shown else { return };
        let end = pts + duration.max(0);
        let hole = until - end;
        if hole <= self.longest_showing || hole / self.longest_showing > MAX_FILLED {
            return;
        }
        if self.given.is_some() {
            // Whoever gives the cuts has frames where they are.
            return;
        }
        let mut at = end;
        while at < until {
            let next = segment_index(self.start, self.segment_duration, at).saturating_add(1);
            let boundary = next.saturating_mul(self.segment_duration).saturating_add(self.start);
            let stretch = boundary.min(until) - at;
            let pieces = (stretch + self.longest_showing - 1) / self.longest_showing;
            for piece in 0..pieces {
                let (from, to) = (at + stretch * piece / pieces, at + stretch * (piece + 1) / pieces);
                // How long it lasts is not known of the frame itself: it is what is left of it.
                if from > pts {
                    self.put(from, to - from, Step::Fill);
                }
            }
            at += stretch;
        }
    }

    fn put(&mut self, pts: Ticks, duration: Ticks, step: fn(Showing) -> Step) {
        let key = match &mut self.given {
            Some(given) => {
                let later = given.split_off(&(pts + 1));
                // The frame itself, or the first that is shown behind one that was lost.
                !std::mem::replace(given, later).is_empty()
            }
            None => {
                let segment = segment_index(self.start, self.segment_duration, pts);
                self.segment.replace(segment) != Some(segment)
            }
        };
        self.steps.push_back(step(Showing { pts, duration, key }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_begin_at_multiples_of_their_duration() {
        let check = |start, duration, pts, expected| {
            assert_eq!(segment_index(start, duration, pts), expected, "{start} {duration} {pts}");
        };
        check(0, 90_000, 0, 0);
        check(0, 90_000, 89_999, 0);
        check(0, 90_000, 90_000, 1);
        check(1000, 90_000, 90_999, 0);
        check(1000, 90_000, 999, -1);
        check(-1000, 90_000, 89_000, 1);
        check(i64::MIN, 1, i64::MAX, i64::MAX);
        check(i64::MAX, 1, i64::MIN, i64::MIN);
        check(0, 0, 5, 5);
        check(0, -5, 5, 5);
    }

    /// Runs a script over a timeline from 0 with segments of 100: `+n` into the decoder, `n` out of it, `.`
    /// end; returns what to do: `k` key, `r` repeat, `x` lost.
    fn check(script: &str, expected: &str) {
        check_with(Timeline::new(0, 100, 1000), 10, script, expected);
    }

    fn check_with(mut timeline: Timeline, duration: Ticks, script: &str, expected: &str) {
        let mut out = Vec::new();
        for word in script.split(' ') {
            match (word, word.strip_prefix('+')) {
                (".", _) => timeline.finish(),
                (_, Some(pts)) => timeline.push(pts.parse().unwrap(), duration),
                (pts, None) => timeline.decoded(pts.parse().unwrap()),
            }
            while let Some(step) = timeline.poll() {
                out.push(match step {
                    Step::Show(Showing { pts, key, .. }) => format!("{pts}{}", if key { "k" } else { "" }),
                    Step::Repeat(Showing { pts, key, .. }) => format!("{pts}r{}", if key { "k" } else { "" }),
                    Step::Fill(Showing { pts, duration, key }) => {
                        format!("{pts}+{duration}{}", if key { "k" } else { "" })
                    }
                    Step::Lost => "x".to_owned(),
                });
            }
        }
        assert_eq!(out.join(" "), expected, "{script}");
    }

    #[test]
    fn frames_are_matched() {
        check("+0 0 +50 50 +100 100 .", "0k 50 100k");
        // Reordered, and a boundary that no frame hits exactly.
        check("+0 0 +90 +30 30 +60 60 90 +130 130 +199 199 +200 200", "0k 30 60 90 130k 199 200k");
        // Before the start: decoded, not shown.
        check("+-20 -20 +-10 -10 +5 5 .", "5k");
        // A frame in the middle never comes: its predecessor stands in, as a keyframe if need be.
        check("+0 0 +50 +110 +120 110 120 .", "0k 50r 110k 120");
        check("+0 0 +50 +110 +120 120 .", "0k 50r 110rk 120");
        // At the very beginning the successor stands in; at the very end the predecessor.
        check("+0 +10 10 +20 .", "0rk 10 20r");
        // Nothing ever comes.
        check("+0 +10 .", "x x");
        // Too late, twice, unknown.
        check("+0 0 +20 20 +10 10 +30 30 30 77 .", "0k 20 x 30");
        check("+0 +0 0 .", "x 0k");
        // A jump over several segments is one keyframe.
        check("+0 0 +950 950 +960 960", "0k 950k 960");
    }

    #[test]
    fn cuts_that_are_given_are_kept_to() {
        let mut timeline = Timeline::new(0, 100, 1000).with_given_cuts();
        let mut shown = Vec::new();
        for (pts, cut) in [(0, true), (40, false), (110, false), (120, true), (160, false), (230, true)] {
            if cut {
                timeline.cut(pts);
            }
            timeline.push(pts, 10);
            // The frame of the last cut is not decoded: nothing is there to show but the one before.
            if pts != 230 {
                timeline.decoded(pts);
            }
        }
        timeline.finish();
        while let Some(Step::Show(showing) | Step::Repeat(showing)) = timeline.poll() {
            shown.push((showing.pts, showing.key));
        }
        assert_eq!(shown, [(0, true), (40, false), (110, false), (120, true), (160, false), (230, true)]);
    }

    #[test]
    fn holes_are_filled_with_the_picture_before() {
        let timeline = || Timeline::new(0, 100, 50);
        // Slower than a frame a segment, durations unknown: pieces of what is too long, cut at boundaries.
        check_with(timeline(), 0, "+0 0 +150 150 +190 190", "0k 50+50 100+50k 150 190");
        check_with(timeline(), 0, "+0 0 +260 260", "0k 50+50 100+50k 150+50 200+30k 230+30 260");
        check_with(timeline(), 0, "+0 0 +50 50 +100 100", "0k 50 100k");
        // Frames of a known length with a hole behind them.
        check_with(timeline(), 10, "+0 0 +10 10 +130 130", "0k 10 20+40 60+40 100+30k 130");
        check_with(timeline(), 10, "+0 0 +60 60 +130 130", "0k 60 70+30 100+30k 130");
        // A little is missing: the frame before lasts longer.
        check_with(timeline(), 10, "+0 0 +60 60", "0k 60");
        // Beyond measure: it stays a hole.
        check_with(timeline(), 10, "+0 0 +30100 30100", "0k 30100k");
        // What is not shown is not repeated.
        check_with(Timeline::new(0, 100, 50), 10, "+-90 -90 +0 0", "0k");
    }

    #[test]
    fn a_decoder_that_swallows_everything_does_not_make_us_hoard() {
        let mut timeline = Timeline::new(0, 100, 100);
        for pts in 0..1000 {
            timeline.push(pts, 1);
            assert!(timeline.pending.len() <= MAX_PENDING);
        }
        timeline.finish();
        assert_eq!(std::iter::from_fn(|| timeline.poll()).filter(|&step| step == Step::Lost).count(), 1000);
    }

    #[test]
    fn every_frame_is_accounted_for_once_whatever_the_decoder_does() {
        let mut seed = 3u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut timeline = Timeline::new(0, 90, 1000);
            let (mut shown, mut lost, mut filled, mut inside) = (Vec::new(), 0, 0, Vec::new());
            for index in 0..200i64 {
                // Reordered by up to 3 frames.
                let pts = (index ^ random(4) as i64).max(0) * 3;
                timeline.push(pts, 3);
                inside.push(pts);
                for _ in 0..random(3) {
                    let at = random(inside.len() as u64) as usize;
                    if random(10) > 0 {
                        timeline.decoded(inside[at]);
                    }
                }
            }
            timeline.finish();
            while let Some(step) = timeline.poll() {
                match step {
                    Step::Show(showing) | Step::Repeat(showing) => shown.push(showing),
                    Step::Fill(showing) => {
                        filled += 1;
                        shown.push(showing);
                    }
                    Step::Lost => lost += 1,
                }
            }
            assert_eq!(shown.len() + lost, 200 + filled);
            assert!(shown.windows(2).all(|pair| pair[0].pts < pair[1].pts));
            let mut segment = None;
            for showing in &shown {
                let index = segment_index(0, 90, showing.pts);
                assert_eq!(showing.key, segment.replace(index) != Some(index));
            }
        }
    }
}
