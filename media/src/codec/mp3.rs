//! MP3: what the header of a frame says (ISO/IEC 11172-3, 2.4.2.3; ISO/IEC 13818-3; "MPEG-2.5" as everybody reads it). There
//! is no configuration record; the header of any frame does for one.
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use super::Invalid;
use crate::time::Timescale;

/// What is the same in all frames of a track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mp3Config {
    /// A frame's header with what differs from frame to frame left out.
    pub record: Bytes,
    /// Samples per second.
    pub sample_rate: u32,
    /// 1 or 2.
    pub channels: u32,
}

/// One frame's header.
struct Header {
    sample_rate: u32,
    /// Samples of the frame.
    samples: u32,
    /// Bytes of the frame with its header.
    len: usize,
}

impl Mp3Config {
    /// Reads a record as [`record`] makes it, or the beginning of a frame.
    pub fn parse(bytes: Bytes) -> Result<Self, Invalid> {
        let invalid = || Invalid {
            record: "MP3 frame",
            problem: "it does not begin with a header of layer III".into(),
        };
        let record = record(&bytes).ok_or_else(invalid)?;
        let header = Header::read(&record).ok_or_else(invalid)?;
        let channels = if record[3] == 0xC0 { 1 } else { 2 };
        Ok(Self { record, sample_rate: header.sample_rate, channels })
    }

    /// Its sample rate, in which its frames are timed without drift.
    pub fn timescale(&self) -> Timescale {
        Timescale::new(self.sample_rate).expect("no rate of the table is zero")
    }
}

/// The record of the track that a frame is of: its header, without bit rate, padding and the like. `None` if it has no header.
pub fn record(frame: &[u8]) -> Option<Bytes> {
    let [first, second, third, fourth] = *frame.first_chunk()?;
    Header::read(&[first, second, third, fourth])?;
    let mono = if fourth & 0xC0 == 0xC0 { 0xC0 } else { 0 };
    Some(Bytes::copy_from_slice(&[first, second | 1, third & 0x0C | 0x10, mono]))
}

/// Samples of the frames of a packet: mostly one. 0 without a header.
pub fn packet_samples(mut packet: &[u8]) -> u32 {
    let mut samples = 0;
    while let Some(header) = Header::read(packet) {
        samples += header.samples;
        packet = packet.get(header.len..).unwrap_or_default();
    }
    samples
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        const FIRST: [u32; 14] = [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
        const LATER: [u32; 14] = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
        let [first, second, third, _] = *bytes.first_chunk()?;
        if first != 0xFF || second & 0xE0 != 0xE0 || second & 0x06 != 0x02 {
            return None;
        }
        // Version 1, 2 or what is called 2.5: each halves the rates.
        let halvings = match second >> 3 & 3 {
            3 => 0,
            2 => 1,
            0 => 2,
            _ => return None,
        };
        let sample_rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? >> halvings;
        let kbps = if halvings == 0 { FIRST } else { LATER };
        let kbps = kbps.get(usize::from(third >> 4).checked_sub(1)?)?;
        let samples = if halvings == 0 { 1152 } else { 576 };
        let len = samples / 8 * kbps * 1000 / sample_rate + u32::from(third >> 1 & 1);
        Some(Self { sample_rate, samples, len: len as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_a_track_is() {
        for (header, sample_rate, channels, samples, len) in [
            ([0xFF, 0xFB, 0x90, 0x64], 44_100, 2, 1152, 417),
            ([0xFF, 0xFA, 0x92, 0xC4], 44_100, 1, 1152, 418),
            ([0xFF, 0xFB, 0xE4, 0x00], 48_000, 2, 1152, 960),
            ([0xFF, 0xF3, 0x80, 0xC4], 22_050, 1, 576, 208),
            ([0xFF, 0xE3, 0x18, 0xC4], 8_000, 1, 576, 72),
            ([0xFF, 0xE3, 0x10, 0x00], 11_025, 2, 576, 52),
        ] {
            let config = Mp3Config::parse(Bytes::copy_from_slice(&header)).unwrap();
            assert_eq!((config.sample_rate, config.channels), (sample_rate, channels), "{header:02x?}");
            assert_eq!(packet_samples(&header), samples);
            assert_eq!(Header::read(&header).unwrap().len, len);
            // A record is its own record; bit rate, padding and joint stereo are no other track.
            assert_eq!(record(&config.record), Some(config.record.clone()));
            let mut other = header;
            other[2] = (other[2] & 0x0C) | 0x52;
            assert_eq!(record(&other), Some(config.record));
        }
        let mut two = vec![0; 834];
        two[..4].copy_from_slice(&[0xFF, 0xFB, 0x90, 0x64]);
        two[417..421].copy_from_slice(&[0xFF, 0xFB, 0x90, 0x64]);
        assert_eq!(packet_samples(&two), 2304);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            &[][..],
            &[0xFF, 0xFB, 0x90],
            // No sync; a reserved version; layer II; no bit rate; a bad one; a reserved rate.
            &[0xFF, 0x1B, 0x90, 0],
            &[0xFF, 0xEB, 0x90, 0],
            &[0xFF, 0xFD, 0x90, 0],
            &[0xFF, 0xFB, 0x00, 0],
            &[0xFF, 0xFB, 0xF0, 0],
            &[0xFF, 0xFB, 0x9C, 0],
        ] {
            assert_eq!((record(bad), packet_samples(bad)), (None, 0), "{bad:02x?}");
            assert!(Mp3Config::parse(Bytes::copy_from_slice(bad)).is_err());
        }
    }
}
