//! What a ladder costs, before it runs: an estimate by which streams are spread over origins.
#![deny(clippy::disallowed_methods)]

use media::time::FrameRate;

use crate::VideoSource;
use crate::ladder::{Rung, USUAL_FRAME_RATE};

/// Thousandths of a CPU for a stream that is only packaged.
const PACKAGING: u64 = 10;

/// Thousandths of a CPU for a million pixels a second: decoded, and encoded by `superfast`. Real pictures on the servers of
/// 2026; only their proportion matters much.
const DECODED: u64 = 6;
const ENCODED: u64 = 15;

/// Thousandths of a CPU that a source takes whose rungs these are; the first of them is not encoded if it is `copied`.
pub fn milli_cpus(source: &VideoSource, rungs: &[Rung], copied: bool) -> u64 {
    let encoded = &rungs[usize::from(copied).min(rungs.len())..];
    if encoded.is_empty() {
        return PACKAGING;
    }
    // In units of a pixel and a second; rates are at most 240.
    let pixels = |width: u32, height: u32, rate: Option<FrameRate>| {
        let rate = rate.unwrap_or(USUAL_FRAME_RATE);
        u64::from(width) * u64::from(height) * u64::from(rate.num) / u64::from(rate.den.max(1))
    };
    let encoding = encoded.iter().map(|rung| {
        pixels(rung.width, rung.height, rung.frame_rate) * ENCODED * rung.encoder.percent(&rung.preset) / 100
    });
    let decoding = pixels(source.width, source.height, source.frame_rate) * DECODED;
    PACKAGING + (decoding + encoding.sum::<u64>()) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ladder::derive;

    #[test]
    fn ladders_cost_what_their_pixels_do() {
        let cost = |height: u32, fps: u32, preset: &str, copied: usize| {
            let config = Config { preset: preset.into(), ..Config::default() };
            let source = VideoSource {
                codec: media::codec::VideoCodec::Avc,
                record: bytes::Bytes::new(),
                width: height * 16 / 9,
                height,
                sar: (1, 1),
                frame_rate: Some(FrameRate { num: fps, den: 1 }),
            };
            let mut rungs = derive(&config, &source);
            if copied == 2 {
                rungs.truncate(1);
            }
            milli_cpus(&source, &rungs, copied > 0)
        };
        // Measured: 0.55 on patterns, 1.1 on real pictures.
        assert_eq!(cost(720, 30, "superfast", 0), 924);
        assert_eq!(cost(720, 60, "superfast", 0), 1839);
        assert!(cost(720, 30, "slow", 0) > 4000 && cost(720, 30, "ultrafast", 0) < 700);
        assert!(cost(720, 30, "superfast", 1) < 600, "the largest rung is passed through");
        assert_eq!(cost(720, 30, "superfast", 2), PACKAGING, "nothing is encoded");
    }
}
