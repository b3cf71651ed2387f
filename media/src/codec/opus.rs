//! Opus: the identification header (RFC 7845, 5.1), which Enhanced RTMP sends as configuration, and how long a packet
//! lasts (RFC 6716, 3.1).
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use super::Invalid;
use crate::time::Timescale;

/// Opus is timed in samples of 48 kHz, whatever rate it was made from (RFC 7845, 4).
pub const TIMESCALE: Timescale = Timescale::OPUS;

/// Longest packet: 120 ms (RFC 6716, 3.2.5).
pub const MAX_PACKET_SAMPLES: u32 = 5760;

/// Longest header: 21 bytes and a mapping of 255 channels.
const MAX_BYTES: usize = 21 + 255;

/// A parsed identification header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpusConfig {
    /// The record as it came.
    pub record: Bytes,
    /// Channels, 1 to 8.
    pub channels: u32,
    /// Samples at 48 kHz that the decoder gives first and that are not to be heard.
    pub pre_skip: u32,
}

impl OpusConfig {
    /// Reads a record.
    pub fn parse(record: Bytes) -> Result<Self, Invalid> {
        let invalid = |problem: String| Err(Invalid { record: "Opus identification header", problem });
        if record.len() > MAX_BYTES {
            return invalid(format!("{} bytes exceed {MAX_BYTES}", record.len()));
        }
        if record.len() < 19 {
            return invalid(format!("{} bytes are too few", record.len()));
        }
        if &record[..8] != b"OpusHead" {
            return invalid("does not begin with OpusHead".into());
        }
        if record[8] >> 4 != 0 {
            return invalid(format!("version {} is not understood", record[8]));
        }
        let (channels, family) = (u32::from(record[9]), record[18]);
        match (family, channels) {
            (0, 1..=2) => {}
            (1, 1..=8) if record.len() >= 21 + channels as usize => {}
            (0 | 1, _) => return invalid(format!("{channels} channels in mapping family {family}")),
            _ => return invalid(format!("mapping family {family} is neither 0 nor 1")),
        }
        let pre_skip = u32::from(u16::from_le_bytes([record[10], record[11]]));
        Ok(Self { record, channels, pre_skip })
    }
}

/// Samples at 48 kHz that a packet lasts; `None` if it is empty or longer than 120 ms.
pub fn packet_samples(packet: &[u8]) -> Option<u32> {
    let toc = *packet.first()?;
    // RFC 6716, table 2: SILK, hybrid and CELT configurations.
    let frame = match toc >> 3 {
        config @ 0..=11 => [480, 960, 1920, 2880][usize::from(config & 3)],
        config @ 12..=15 => [480, 960][usize::from(config & 1)],
        config => [120, 240, 480, 960][usize::from(config & 3)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3F),
    };
    let samples = frame * frames;
    (1..=MAX_PACKET_SAMPLES).contains(&samples).then_some(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(channels: u8, family: u8, mapping: &[u8]) -> Bytes {
        let mut bytes = b"OpusHead\x01".to_vec();
        bytes.push(channels);
        bytes.extend(312u16.to_le_bytes());
        bytes.extend(48_000u32.to_le_bytes());
        bytes.extend([0, 0, family]);
        bytes.extend(mapping);
        bytes.into()
    }

    #[test]
    fn headers_are_understood_or_named() {
        let stereo = OpusConfig::parse(head(2, 0, &[])).unwrap();
        assert_eq!((stereo.channels, stereo.pre_skip), (2, 312));
        let surround = head(6, 1, &[4, 2, 0, 4, 1, 2, 3, 5]);
        assert_eq!(OpusConfig::parse(surround).unwrap().channels, 6);
        for (bytes, problem) in [
            (head(3, 0, &[]), "3 channels in mapping family 0"),
            (head(6, 1, &[4, 2]), "6 channels in mapping family 1"),
            (head(2, 255, &[]), "mapping family 255 is neither 0 nor 1"),
            (head(2, 0, &[]).slice(..18), "18 bytes are too few"),
            (head(2, 0, &[0; 300]), "319 bytes exceed 276"),
            (Bytes::from_static(&[b'x'; 19]), "does not begin with OpusHead"),
        ] {
            let error = OpusConfig::parse(bytes).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn packets_last_as_long_as_they_say() {
        for (packet, samples) in [
            (&[0xFC][..], Some(960)),
            (&[0x80], Some(120)),
            (&[0x18], Some(2880)),
            (&[0x78], Some(960)),
            (&[0xFD], Some(1920)),
            (&[0xFF, 3], Some(2880)),
            (&[0xFF, 0], None),
            (&[0x1B, 3], None),
            (&[0xFF], None),
            (&[], None),
        ] {
            assert_eq!(packet_samples(packet), samples, "{packet:02x?}");
        }
    }
}
