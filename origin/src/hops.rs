//! When frames passed the stations of the origin: what in-band reference times say.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::time::{Ticks, Timescale};
use transcode::cmaf::ReferenceTime;

/// Frames remembered on their way from the encoders' entrance into a part: more than any pipeline delays.
pub const MAX_FRAMES: usize = 512;

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
