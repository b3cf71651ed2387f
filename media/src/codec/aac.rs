//! AAC: the `AudioSpecificConfig` (ISO/IEC 14496-3, 1.6.2.1).
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use super::Invalid;
use super::bits::Bits;
use crate::time::Timescale;

/// Longest `AudioSpecificConfig` taken; real ones have 2 to 20 bytes, and the box that carries it a one-byte length.
const MAX_BYTES: usize = 64;

/// A parsed `AudioSpecificConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AacConfig {
    /// The record as it came.
    pub record: Bytes,
    /// Audio object type: 2 is AAC-LC, 5 HE-AAC, 29 HE-AAC v2.
    pub object_type: u32,
    /// Samples per second of the core codec, in which frames are timed.
    pub sample_rate: u32,
    /// Channels, 1 to 8.
    pub channels: u32,
    /// Samples of the core codec in a frame: 1024, rarely 960.
    pub frame_samples: u32,
}

impl AacConfig {
    /// Reads a record.
    pub fn parse(record: Bytes) -> Result<Self, Invalid> {
        let invalid = |problem: String| Invalid { record: "AAC configuration record", problem };
        if record.len() > MAX_BYTES {
            return Err(invalid(format!("{} bytes exceed {MAX_BYTES}", record.len())));
        }
        let mut bits = Bits::new(&record);
        let fields = (|| {
            let object_type = object_type(&mut bits)?;
            let sample_rate = sample_rate(&mut bits)?;
            let channels = bits.take(4)?;
            // Explicit SBR/PS signalling puts the core's object type behind the extension's rate.
            let core = if matches!(object_type, 5 | 29) {
                crate::codec::aac::sample_rate(&mut bits)?;
                crate::codec::aac::object_type(&mut bits)?
            } else {
                object_type
            };
            let short_frames = matches!(core, 1..=4) && bits.flag()?;
            Some((object_type, sample_rate, channels, if short_frames { 960 } else { 1024 }))
        })();
        let (object_type, sample_rate, channels, frame_samples) =
            fields.ok_or_else(|| invalid(format!("{} bytes are too few", record.len())))?;
        if !matches!(object_type, 2 | 5 | 29) {
            return Err(invalid(format!(
                "audio object type {object_type} is none of AAC-LC (2), HE-AAC (5, 29)"
            )));
        }
        if !(7_350..=96_000).contains(&sample_rate) {
            return Err(invalid(format!("sample rate {sample_rate} is outside 7350 to 96000")));
        }
        let channels = match channels {
            1..=6 => channels,
            7 => 8,
            other => return Err(invalid(format!("channel configuration {other} is none of 1 to 7"))),
        };
        Ok(Self { record, object_type, sample_rate, channels, frame_samples })
    }

    /// Such as `mp4a.40.2` (RFC 6381, 3.3).
    pub fn codec_string(&self) -> String {
        format!("mp4a.40.{}", self.object_type)
    }

    /// Its sample rate, in which its frames are timed without drift.
    pub fn timescale(&self) -> Timescale {
        Timescale::new(self.sample_rate).expect("parse refuses a rate of zero")
    }
}

fn object_type(bits: &mut Bits<'_>) -> Option<u32> {
    match bits.take(5)? {
        31 => Some(32 + bits.take(6)?),
        other => Some(other),
    }
}

fn sample_rate(bits: &mut Bits<'_>) -> Option<u32> {
    const TABLE: [u32; 13] = [
        96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
    ];
    match bits.take(4)? {
        15 => bits.take(24),
        index => Some(TABLE.get(index as usize).copied().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_understood() {
        for (record, sample_rate, channels, codec, frame) in [
            (&[0x12, 0x10][..], 44_100, 2, "mp4a.40.2", 1024),
            (&[0x11, 0x90, 0x56, 0xE5, 0x00][..], 48_000, 2, "mp4a.40.2", 1024),
            (&[0x11, 0x88][..], 48_000, 1, "mp4a.40.2", 1024),
            (&[0x2B, 0x11, 0x88, 0x00][..], 24_000, 2, "mp4a.40.5", 1024),
            (&[0x12, 0x14][..], 44_100, 2, "mp4a.40.2", 960),
        ] {
            let config = AacConfig::parse(Bytes::from_static(record)).unwrap();
            assert_eq!((config.sample_rate, config.channels), (sample_rate, channels), "{record:02x?}");
            assert_eq!((config.codec_string().as_str(), config.frame_samples), (codec, frame));
        }
    }

    #[test]
    fn what_cannot_be_played_is_named() {
        for (record, problem) in [
            (&[][..], "0 bytes are too few"),
            (&[0x12][..], "1 bytes are too few"),
            (&[0x0A, 0x10][..], "audio object type 1 is none"),
            (&[0x16, 0x90][..], "sample rate 0 is outside"),
            (&[0x12, 0x00][..], "channel configuration 0 is none"),
        ] {
            let error = AacConfig::parse(Bytes::from_static(record)).unwrap_err().to_string();
            assert!(error.contains(problem), "{record:02x?}: {error}");
        }
        assert!(AacConfig::parse(Bytes::from_static(&[0x12; 65])).is_err());
    }
}
