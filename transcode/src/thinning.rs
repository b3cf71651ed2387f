//! A rung with a lower frame rate than the source: which frames it leaves out. Every one that begins a segment is there, so
//! that all rungs are cut at the same instants; each lasts until the next one that is there.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::time::{FrameRate, Ticks, Timescale};

use crate::timeline::Showing;

/// Frames of a rung that is capped are at least so far apart, 90 kHz. A tenth less than asked for: rates are rounded, and
/// 33 frames a second where 30 are wanted are better than 16.
fn least_apart(max_fps: u32) -> Ticks {
    900_000 / (11 * Ticks::from(max_fps.max(1)))
}

/// Of how many frames of a source one is there.
pub(crate) fn every(rate: FrameRate, max_fps: u32) -> u32 {
    let apart = least_apart(max_fps);
    // Rates are at most 240.
    let enough = |frames: &u32| rate.frame_start(i64::from(*frames), Timescale::VIDEO) >= apart;
    (1..=240).find(enough).unwrap_or(240)
}

/// Every so manieth frame of a rate.
pub(crate) fn thinned(rate: FrameRate, every: u32) -> FrameRate {
    match rate.num.is_multiple_of(every) {
        true => FrameRate { num: rate.num / every, den: rate.den },
        false => FrameRate { num: rate.num, den: rate.den * every },
    }
}

/// Decides for one rung.
#[derive(Debug)]
pub(crate) struct Thinning {
    /// Zero where every frame is taken.
    apart: Ticks,
    /// When the last frame was that is there.
    taken: Option<Ticks>,
    /// How long it lasts as far as that is known, until it is told.
    open: Option<Ticks>,
    /// What frames last that are there and were not asked for yet.
    durations: VecDeque<Ticks>,
}

impl Thinning {
    pub(crate) fn new(max_fps: Option<u32>) -> Self {
        let apart = max_fps.map_or(0, least_apart);
        Self { apart, taken: None, open: None, durations: VecDeque::new() }
    }

    /// Whether the next frame, in order of presentation, is there.
    pub(crate) fn takes(&mut self, showing: Showing) -> bool {
        let Showing { pts, duration, key } = showing;
        // A tick less: times on a grid are rounded.
        let takes = key || self.taken.is_none_or(|taken| pts - taken + 1 >= self.apart);
        if takes {
            self.end();
            (self.taken, self.open) = (Some(pts), Some(0));
        }
        if let (Some(taken), Some(open)) = (self.taken, &mut self.open) {
            *open = if duration > 0 { pts + duration - taken } else { 0 };
            // The next frame is there; or nobody knows when it comes, and that tells how long this one lasts.
            if *open == 0 || *open + 1 >= self.apart {
                self.end();
            }
        }
        takes
    }

    /// Nothing follows the frames so far, or nothing for now.
    pub(crate) fn end(&mut self) {
        self.durations.extend(self.open.take());
    }

    /// Whether the next frame whose turn it is has its duration.
    pub(crate) fn is_known(&self) -> bool {
        !self.durations.is_empty()
    }

    /// What that is, zero where only the next one tells; each is told once.
    pub(crate) fn duration(&mut self) -> Option<Ticks> {
        self.durations.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(num: u32, den: u32) -> FrameRate {
        FrameRate { num, den }
    }

    #[test]
    fn rates_are_whole_fractions() {
        for (of, max_fps, fraction, thin) in [
            (rate(60, 1), 30, 2, rate(30, 1)),
            (rate(60_000, 1001), 30, 2, rate(30_000, 1001)),
            (rate(50, 1), 30, 2, rate(25, 1)),
            (rate(50, 1), 25, 2, rate(25, 1)),
            (rate(30, 1), 30, 1, rate(30, 1)),
            (rate(30_000, 1001), 30, 1, rate(30_000, 1001)),
            (rate(25, 1), 24, 1, rate(25, 1)),
            (rate(30, 1), 25, 2, rate(15, 1)),
            (rate(25, 1), 15, 2, rate(25, 2)),
            (rate(120, 1), 30, 4, rate(30, 1)),
            (rate(240, 1), 5, 44, rate(240, 44)),
        ] {
            assert_eq!(every(of, max_fps), fraction, "{of:?} {max_fps}");
            assert_eq!(thinned(of, fraction).fps(), thin.fps(), "{of:?} {max_fps}");
        }
    }

    /// Frames that are there with what they last.
    fn there(max_fps: Option<u32>, frames: impl IntoIterator<Item = Showing>) -> Vec<(Ticks, Ticks)> {
        let mut thinning = Thinning::new(max_fps);
        let (mut taken, mut durations) = (Vec::new(), Vec::new());
        for showing in frames {
            if thinning.takes(showing) {
                taken.push(showing.pts);
            }
            durations.extend(std::iter::from_fn(|| thinning.duration()));
            assert!(taken.len() - durations.len() <= 1, "known with the last frame that is left out");
        }
        thinning.end();
        durations.extend(std::iter::from_fn(|| thinning.duration()));
        assert_eq!(taken.len(), durations.len());
        taken.into_iter().zip(durations).collect()
    }

    #[test]
    fn every_second_frame_is_there_and_each_that_begins_a_segment() {
        // 59.94: most segments have 60 frames, the others 59.
        let grid = rate(60_000, 1001);
        let at = |index| grid.frame_start(index, Timescale::VIDEO);
        let frames = (0..3000).map(|index| {
            let (pts, key) = (at(index), index == 0 || at(index) / 90_000 > at(index - 1) / 90_000);
            Showing { pts, duration: at(index + 1) - pts, key }
        });
        let shown = there(Some(30), frames.clone());
        assert!(shown.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "they tile the time");
        let keys = frames.clone().filter(|showing| showing.key);
        assert!(keys.clone().all(|key| shown.iter().any(|(pts, _)| *pts == key.pts)));
        let single = shown.iter().filter(|(_, duration)| *duration < 2000).count();
        assert!(single <= keys.count() && single > 0, "{single}");
        assert!((1500..1530).contains(&shown.len()), "{}", shown.len());
        // Without a cap nothing is left out.
        assert_eq!(there(None, frames.clone()).len(), 3000);
        assert_eq!(there(Some(60), frames).len(), 3000);
    }

    #[test]
    fn times_that_are_irregular() {
        let frame = |pts, duration, key| Showing { pts, duration, key };
        // Durations that nobody knows; rounded to milliseconds.
        let unknown = [0, 1530, 2970, 4500, 6030, 7470].map(|pts| frame(pts, 0, pts == 0));
        assert_eq!(there(Some(30), unknown), [(0, 0), (2970, 0), (6030, 0)]);
        // A hole belongs to the frame before; a segment that begins early ends it.
        let hole = [frame(0, 1500, true), frame(7500, 1500, false), frame(9000, 1500, false)];
        assert_eq!(there(Some(30), hole), [(0, 1500), (7500, 3000)]);
        let early = [frame(0, 1500, true), frame(1500, 1500, true), frame(3000, 1500, false)];
        assert_eq!(there(Some(30), early), [(0, 1500), (1500, 3000)]);
    }
}
