//! When frames passed the stations of the origin: what in-band reference times say, and how long each took.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use media::time::{Ticks, Timescale};
use transcode::cmaf::ReferenceTime;

/// Frames remembered on their way from the encoders' entrance into a part: more than any pipeline delays.
pub const MAX_FRAMES: usize = 512;

/// Passages of each hop that a stream remembers: some seconds of a ladder, so that what is shown is what is.
pub const MAX_PASSAGES: usize = 1024;

/// A station of the way, counted from when a frame came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Decoded, scaled and encoded for one rung.
    Encoded,
    /// The part that begins with it is complete and can be had: that takes as long as the part lasts, at least.
    Published,
}

impl Hop {
    /// All, in the order in which they are passed.
    pub const ALL: [Hop; 2] = [Hop::Encoded, Hop::Published];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Hop::Encoded => "encoded",
            Hop::Published => "published",
        }
    }
}

/// What one stream's frames took lately.
#[derive(Debug, Default)]
pub struct Board(Mutex<[VecDeque<u32>; Hop::ALL.len()]>);

/// What frames took to one hop, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// The hop.
    pub hop: Hop,
    /// How many passages that is of.
    pub passages: usize,
    /// Half of them took no longer.
    pub p50_us: u32,
    /// Nineteen of twenty took no longer.
    pub p95_us: u32,
    /// The longest.
    pub max_us: u32,
}

impl Board {
    /// A frame has passed `hop`, so long after it came in. Clocks may be set: what would be negative took no time.
    pub fn note(&self, hop: Hop, us: i64) {
        let us = us.clamp(0, u32::MAX.into()) as u32;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passages = &mut all[hop as usize];
        if passages.len() >= MAX_PASSAGES {
            passages.pop_front();
        }
        passages.push_back(us);
    }

    /// Each hop that anything passed.
    pub fn took(&self) -> Vec<Took> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let took = |hop: Hop| {
            let mut sorted: Vec<u32> = all[hop as usize].iter().copied().collect();
            sorted.sort_unstable();
            let at = |share: usize| sorted[(sorted.len() * share / 100).min(sorted.len() - 1)];
            let max_us = *sorted.last()?;
            Some(Took { hop, passages: sorted.len(), p50_us: at(50), p95_us: at(95), max_us })
        };
        Hop::ALL.into_iter().filter_map(took).collect()
    }
}

/// When the frames of one track went into the encoder, or into the packager where they are copied.
#[derive(Debug, Default)]
pub struct Taken {
    /// Presentation time (90 kHz) and microseconds since 1970.
    frames: BTreeMap<Ticks, i64>,
}

impl Taken {
    /// A frame went in.
    pub fn took(&mut self, pts: Ticks, unix_us: i64) {
        self.frames.insert(pts, unix_us);
        if self.frames.len() > MAX_FRAMES {
            self.frames.pop_first();
        }
    }

    /// When the frame went in from which one that is shown at `pts` of `timescale` was made: that very one, or where encoding
    /// has moved it, the last before.
    pub fn at(&self, pts: Ticks, timescale: Timescale) -> Option<ReferenceTime> {
        let place = timescale.rescale(pts, Timescale::VIDEO);
        let (_, unix_us) = self.frames.range(..=place).next_back()?;
        Some(ReferenceTime { unix_us: *unix_us, media_time: pts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_shows_the_latest() {
        let board = Board::default();
        assert_eq!(board.took(), []);
        for us in (0..3000).chain([-5, i64::MAX]) {
            board.note(Hop::Published, us);
        }
        let took = board.took();
        assert_eq!(took.len(), 1);
        let Took { hop, passages, p50_us, p95_us, max_us } = took[0];
        assert_eq!((hop, passages, max_us), (Hop::Published, MAX_PASSAGES, u32::MAX));
        // 0, 1978 to 2999, and the longest.
        assert_eq!((p50_us, p95_us), (2489, 2949));
    }

    #[test]
    fn a_frame_is_found_by_its_place_and_the_oldest_are_forgotten() {
        let mut taken = Taken::default();
        assert_eq!(taken.at(0, Timescale::VIDEO), None);
        for frame in 0..600 {
            taken.took(frame * 3000, 1_000_000 + frame * 33_333);
        }
        let unix_us = |pts, timescale| taken.at(pts, timescale).map(|reference| reference.unix_us);
        assert_eq!(unix_us(599 * 3000, Timescale::VIDEO), Some(1_000_000 + 599 * 33_333));
        assert_eq!(unix_us(300 * 3000 + 10, Timescale::VIDEO), Some(1_000_000 + 300 * 33_333));
        assert_eq!(unix_us(300 * 1600, Timescale::OPUS), Some(1_000_000 + 300 * 33_333));
        assert_eq!(unix_us(87 * 3000, Timescale::VIDEO), None, "forgotten");
        assert_eq!(unix_us(88 * 3000, Timescale::VIDEO), Some(1_000_000 + 88 * 33_333));
    }
}
