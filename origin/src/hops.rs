//! When frames passed the stations of the way into the origin and through it: what in-band reference times say, and how long
//! each took.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use media::lately::{Lately, Spread};
use media::time::{Ticks, Timescale};
use transcode::cmaf::ReferenceTime;

/// Frames remembered on their way from the encoders' entrance into a part: more than any pipeline delays.
pub const MAX_FRAMES: usize = 512;

/// A POP's clock that is farther off than this is not believed, microseconds: what a frame may wait in a POP's buffer while
/// there is no origin.
const MAX_ON_THE_WAY_US: i64 = 60_000_000;

/// A station of the way, counted from when a frame came in at its POP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// It came in at the origin, by both clocks.
    Arrived,
    /// Decoded.
    Decoded,
    /// Scaled and encoded for one rung.
    Encoded,
    /// The part that begins with it is complete and can be had: that takes as long as the part lasts, at least.
    Published,
}

impl Hop {
    /// All, in the order in which they are passed.
    pub const ALL: [Hop; 4] = [Hop::Arrived, Hop::Decoded, Hop::Encoded, Hop::Published];

    /// Its label.
    pub fn name(self) -> &'static str {
        match self {
            Hop::Arrived => "arrived",
            Hop::Decoded => "decoded",
            Hop::Encoded => "encoded",
            Hop::Published => "published",
        }
    }
}

/// What one stream's frames took lately, from their POP to each hop.
#[derive(Debug, Default)]
pub struct Board(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    hops: [Lately; Hop::ALL.len()],
    newest_us: Option<i64>,
}

impl Board {
    /// A frame has passed `hop`, so many microseconds after it came in.
    pub fn note(&self, hop: Hop, us: i64) {
        self.lock(|state| state.hops[hop as usize].note(us));
    }

    /// Each hop that anything passed.
    pub fn took(&self) -> Vec<(Hop, Spread)> {
        self.lock(|state| {
            let took = |hop: Hop| Some((hop, state.hops[hop as usize].spread()?));
            Hop::ALL.into_iter().filter_map(took).collect()
        })
    }

    /// The part that is about to be published begins with a frame that came in at this time, microseconds since 1970.
    pub fn publishes(&self, came_us: i64) {
        self.lock(|state| state.newest_us = Some(came_us));
    }

    /// The same of the part that was published last.
    pub fn newest_us(&self) -> Option<i64> {
        self.lock(|state| state.newest_us)
    }

    fn lock<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When a frame came in, microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// At its POP, by whose clock.
    pub pop_us: i64,
    /// At the origin.
    pub origin_us: i64,
}

impl Entered {
    /// At the origin at `origin_us`. Where the POP does not say when it had it, or that cannot be, it had it then.
    pub fn new(pop_us: Option<i64>, origin_us: i64) -> Self {
        let believed = origin_us - MAX_ON_THE_WAY_US..=origin_us;
        Self { pop_us: pop_us.filter(|us| believed.contains(us)).unwrap_or(origin_us), origin_us }
    }
}

/// When the frames of one track came in that are on their way into parts.
#[derive(Debug, Default)]
pub struct Taken {
    /// By presentation time (90 kHz).
    frames: BTreeMap<Ticks, Entered>,
}

impl Taken {
    /// A frame went in.
    pub fn took(&mut self, pts: Ticks, entered: Entered) {
        self.frames.insert(pts, entered);
        if self.frames.len() > MAX_FRAMES {
            self.frames.pop_first();
        }
    }

    /// When the frame came in from which one that is shown at `pts` of `timescale` was made: that very one, or where encoding
    /// has moved it, the last before.
    pub fn at(&self, pts: Ticks, timescale: Timescale) -> Option<Entered> {
        let place = timescale.rescale(pts, Timescale::VIDEO);
        self.frames.range(..=place).next_back().map(|(_, entered)| *entered)
    }

    /// The same as it is told to players: when it went into the encoder, or into the packager where it is copied.
    pub fn reference(&self, pts: Ticks, timescale: Timescale) -> Option<ReferenceTime> {
        let unix_us = self.at(pts, timescale)?.origin_us;
        Some(ReferenceTime { unix_us, media_time: pts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_shows_what_was_passed() {
        let board = Board::default();
        assert_eq!((board.took(), board.newest_us()), (vec![], None));
        board.note(Hop::Published, 7);
        board.note(Hop::Arrived, -1);
        board.publishes(5);
        let spread = |us| Spread { passages: 1, p50_us: us, p95_us: us, max_us: us };
        assert_eq!(board.took(), [(Hop::Arrived, spread(0)), (Hop::Published, spread(7))]);
        assert_eq!(board.newest_us(), Some(5));
    }

    #[test]
    fn a_pops_clock_is_believed_within_bounds() {
        for (pop_us, expected) in [
            (None, 100_000_000),
            (Some(99_000_000), 99_000_000),
            (Some(40_000_000), 40_000_000),
            (Some(39_999_999), 100_000_000),
            (Some(100_000_001), 100_000_000),
        ] {
            assert_eq!(Entered::new(pop_us, 100_000_000).pop_us, expected, "{pop_us:?}");
        }
    }

    #[test]
    fn a_frame_is_found_by_its_place_and_the_oldest_are_forgotten() {
        let mut taken = Taken::default();
        assert_eq!(taken.at(0, Timescale::VIDEO), None);
        for frame in 0..600 {
            taken.took(frame * 3000, Entered::new(None, 1_000_000 + frame * 33_333));
        }
        let unix_us = |pts, timescale| taken.reference(pts, timescale).map(|reference| reference.unix_us);
        assert_eq!(unix_us(599 * 3000, Timescale::VIDEO), Some(1_000_000 + 599 * 33_333));
        assert_eq!(unix_us(300 * 3000 + 10, Timescale::VIDEO), Some(1_000_000 + 300 * 33_333));
        assert_eq!(unix_us(300 * 1600, Timescale::OPUS), Some(1_000_000 + 300 * 33_333));
        assert_eq!(unix_us(87 * 3000, Timescale::VIDEO), None, "forgotten");
        assert_eq!(unix_us(88 * 3000, Timescale::VIDEO), Some(1_000_000 + 88 * 33_333));
    }
}
