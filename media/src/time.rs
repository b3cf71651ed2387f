//! What the media says about time: integer ticks of a timescale, never floating seconds.
#![deny(clippy::disallowed_methods)]

use serde::{Deserialize, Serialize};

/// A moment or a length on a media timeline, in units of 1 / [`Timescale`] seconds.
pub type Ticks = i64;

/// Ticks per second of a track; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timescale(u32);

impl Timescale {
    /// Video and FLV-derived times: 90 kHz divides by every usual frame rate, 1001-based ones included.
    pub const VIDEO: Timescale = Timescale(90_000);
    /// Opus, whatever rate it was made from (RFC 7845, 4).
    pub const OPUS: Timescale = Timescale(48_000);
    /// RTMP and FLV timestamps.
    pub const MILLIS: Timescale = Timescale(1_000);

    /// `None` if `per_second` is zero.
    pub const fn new(per_second: u32) -> Option<Self> {
        if per_second == 0 { None } else { Some(Self(per_second)) }
    }

    /// Ticks per second.
    pub const fn per_second(self) -> u32 {
        self.0
    }

    /// The same moment in another timescale, rounded to the nearest tick (halves up).
    pub fn rescale(self, ticks: Ticks, to: Timescale) -> Ticks {
        let (from, to) = (i128::from(self.0), i128::from(to.0));
        let scaled = (i128::from(ticks) * to * 2 + from).div_euclid(from * 2);
        scaled.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as Ticks
    }

    /// For printing only: arithmetic stays in ticks.
    pub fn seconds(self, ticks: Ticks) -> f64 {
        ticks as f64 / f64::from(self.0)
    }
}

/// A frame rate as a fraction of frames per second, such as 30000/1001.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameRate {
    /// Frames...
    pub num: u32,
    /// ...in this many seconds; never zero.
    pub den: u32,
}

impl FrameRate {
    /// The usual rate that lies within 0.1 % of `fps`, else a multiple of 1/1000 frame per second.
    /// `None` outside 1 to 240 frames per second.
    pub fn from_fps(fps: f64) -> Option<Self> {
        if !(1.0..=240.0).contains(&fps) {
            return None;
        }
        let whole = fps.round();
        if (fps - whole).abs() < 0.002 {
            return Some(Self { num: whole as u32, den: 1 });
        }
        let ntsc = (fps * 1.001).round();
        if (fps - ntsc / 1.001).abs() < 0.005 {
            return Some(Self { num: ntsc as u32 * 1000, den: 1001 });
        }
        Some(Self { num: (fps * 1000.0).round() as u32, den: 1000 })
    }

    /// Frames per second, for printing.
    pub fn fps(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }

    /// When frame `index` begins, rounded from the exact value so that errors never add up.
    pub fn frame_start(self, index: i64, timescale: Timescale) -> Ticks {
        let num = i128::from(self.num);
        let exact = i128::from(index) * i128::from(self.den) * i128::from(timescale.0) * 2 + num;
        exact.div_euclid(num * 2) as Ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescale_rounds_to_the_nearest_tick() {
        let ms = Timescale::MILLIS;
        assert_eq!(ms.rescale(1, Timescale::VIDEO), 90);
        assert_eq!(Timescale::VIDEO.rescale(44, ms), 0);
        assert_eq!(Timescale::VIDEO.rescale(45, ms), 1);
        assert_eq!(Timescale::VIDEO.rescale(-46, ms), -1);
        assert_eq!(Timescale::VIDEO.rescale(i64::MAX, Timescale::MILLIS), 102_481_911_520_608_620);
    }

    #[test]
    fn ntsc_rates_do_not_drift() {
        let rate = FrameRate::from_fps(59.94).unwrap();
        assert_eq!(rate, FrameRate { num: 60000, den: 1001 });
        assert_eq!([0, 1, 2, 3].map(|i| rate.frame_start(i, Timescale::VIDEO)), [0, 1502, 3003, 4505]);
        // A day of frames, to the tick.
        assert_eq!(rate.frame_start(60000 * 86, Timescale::VIDEO), 1001 * 86 * 90_000);
    }

    #[test]
    fn frame_rates_are_recognised() {
        for (fps, num, den) in [
            (30.0, 30, 1),
            (29.97, 30000, 1001),
            (29.97003, 30000, 1001),
            (23.976, 24000, 1001),
            (12.5, 12500, 1000),
        ] {
            assert_eq!(FrameRate::from_fps(fps), Some(FrameRate { num, den }), "{fps}");
        }
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1000.0] {
            assert_eq!(FrameRate::from_fps(fps), None, "{fps}");
        }
    }
}
