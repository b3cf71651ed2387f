//! H.264: the `AVCDecoderConfigurationRecord` (ISO/IEC 14496-15, 5.3.3.1) and what its first SPS says
//! (ITU-T H.264, 7.3.2.1.1 and annex E).
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use super::bits::Bits;
use super::{Invalid, MAX_SIDE, MIN_SIDE};
use crate::time::FrameRate;

/// A parsed `AVCDecoderConfigurationRecord`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvcConfig {
    /// The record as it came.
    pub record: Bytes,
    /// Width of the cropped picture, in samples.
    pub width: u32,
    /// Height of the cropped picture, in samples.
    pub height: u32,
    /// Sample aspect ratio; 1:1 where unspecified.
    pub sar: (u32, u32),
    /// From the VUI timing, where it is there and sensible.
    pub frame_rate: Option<FrameRate>,
}

impl AvcConfig {
    /// Reads a record. Four-byte NAL lengths are the only ones encoders send; others are refused.
    pub fn parse(record: Bytes) -> Result<Self, Invalid> {
        let invalid = |problem: String| Invalid { record: "AVC configuration record", problem };
        if record.len() < 7 {
            return Err(invalid(format!("{} bytes are too few", record.len())));
        }
        if record[0] != 1 {
            return Err(invalid(format!("version is {}, not 1", record[0])));
        }
        let length_bytes = (record[4] & 3) + 1;
        if length_bytes != 4 {
            return Err(invalid(format!("NAL lengths of {length_bytes} bytes are not supported")));
        }
        let sps = first_sps(&record).ok_or_else(|| invalid("has no SPS".into()))?;
        let sps =
            Sps::parse(&unescape(sps)).ok_or_else(|| invalid("its SPS is cut short or damaged".into()))?;
        let sides = MIN_SIDE..=MAX_SIDE;
        if !sides.contains(&sps.width) || !sides.contains(&sps.height) {
            return Err(invalid(format!(
                "picture of {}x{} is outside {MIN_SIDE} to {MAX_SIDE} a side",
                sps.width, sps.height
            )));
        }
        Ok(Self { width: sps.width, height: sps.height, sar: sps.sar, frame_rate: sps.frame_rate, record })
    }

    /// Such as `avc1.64001f` (RFC 6381, 3.3).
    pub fn codec_string(&self) -> String {
        format!("avc1.{:02x}{:02x}{:02x}", self.record[1], self.record[2], self.record[3])
    }
}

fn first_sps(record: &[u8]) -> Option<&[u8]> {
    if record[5] & 0x1F == 0 {
        return None;
    }
    let (len, rest) = record.get(6..)?.split_first_chunk::<2>()?;
    let sps = rest.get(..usize::from(u16::from_be_bytes(*len)))?;
    (sps.len() >= 4 && sps[0] & 0x1F == 7).then_some(sps)
}

/// Removes emulation prevention bytes (H.264 7.4.1, H.265 7.4.2).
pub(super) fn unescape(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

struct Sps {
    width: u32,
    height: u32,
    sar: (u32, u32),
    frame_rate: Option<FrameRate>,
}

impl Sps {
    fn parse(nal: &[u8]) -> Option<Sps> {
        let mut bits = Bits::new(nal.get(1..)?);
        let profile = bits.take(8)?;
        bits.take(16)?;
        bits.unsigned()?;
        let mut chroma_format = 1;
        let mut separate_planes = false;
        if matches!(profile, 44 | 83 | 86 | 100 | 110 | 118 | 122 | 128 | 134 | 135 | 138 | 139 | 244) {
            chroma_format = bits.unsigned()?;
            if chroma_format == 3 {
                separate_planes = bits.flag()?;
            }
            bits.unsigned()?;
            bits.unsigned()?;
            bits.flag()?;
            if bits.flag()? {
                for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                    if bits.flag()? {
                        skip_scaling_list(&mut bits, if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.unsigned()?;
        match bits.unsigned()? {
            0 => {
                bits.unsigned()?;
            }
            1 => {
                bits.flag()?;
                bits.signed()?;
                bits.signed()?;
                for _ in 0..bits.unsigned()?.min(255) {
                    bits.signed()?;
                }
            }
            _ => {}
        }
        bits.unsigned()?;
        bits.flag()?;
        let width_mbs = bits.unsigned()?.checked_add(1)?;
        let height_units = bits.unsigned()?.checked_add(1)?;
        let frame_mbs_only = bits.flag()?;
        if !frame_mbs_only {
            bits.flag()?;
        }
        bits.flag()?;
        let fields = if frame_mbs_only { 1 } else { 2 };
        let mut width = width_mbs.checked_mul(16)?;
        let mut height = height_units.checked_mul(16)?.checked_mul(fields)?;
        if bits.flag()? {
            let monochrome = chroma_format == 0 || separate_planes;
            let crop_x = if monochrome || chroma_format == 3 { 1 } else { 2 };
            let crop_y = if monochrome || chroma_format != 1 { fields } else { 2 * fields };
            let (left, right, top, bottom) =
                (bits.unsigned()?, bits.unsigned()?, bits.unsigned()?, bits.unsigned()?);
            width = width.checked_sub(left.checked_add(right)?.checked_mul(crop_x)?)?;
            height = height.checked_sub(top.checked_add(bottom)?.checked_mul(crop_y)?)?;
        }
        let (sar, frame_rate) = if bits.flag()? { vui(&mut bits)? } else { ((1, 1), None) };
        Some(Sps { width, height, sar, frame_rate })
    }
}

fn skip_scaling_list(bits: &mut Bits<'_>, size: u32) -> Option<()> {
    let (mut last, mut next) = (8i32, 8i32);
    for _ in 0..size {
        if next != 0 {
            next = last.wrapping_add(bits.signed()?).rem_euclid(256);
        }
        if next != 0 {
            last = next;
        }
    }
    Some(())
}

fn vui(bits: &mut Bits<'_>) -> Option<((u32, u32), Option<FrameRate>)> {
    let sar = if bits.flag()? { sample_aspect_ratio(bits)? } else { (1, 1) };
    if bits.flag()? {
        bits.flag()?;
    }
    if bits.flag()? {
        bits.take(4)?;
        if bits.flag()? {
            bits.take(24)?;
        }
    }
    if bits.flag()? {
        bits.unsigned()?;
        bits.unsigned()?;
    }
    let mut frame_rate = None;
    if bits.flag()? {
        let units = bits.take(32)?;
        let scale = bits.take(32)?;
        if units > 0 {
            // The time scale counts fields, two a frame.
            frame_rate = FrameRate::from_fps(f64::from(scale) / (2.0 * f64::from(units)));
        }
    }
    Some((sar, frame_rate))
}

/// Table E-1 of H.264 and H.265.
pub(super) fn sample_aspect_ratio(bits: &mut Bits<'_>) -> Option<(u32, u32)> {
    const TABLE: [(u32, u32); 17] = [
        (1, 1),
        (1, 1),
        (12, 11),
        (10, 11),
        (16, 11),
        (40, 33),
        (24, 11),
        (20, 11),
        (32, 11),
        (80, 33),
        (18, 11),
        (15, 11),
        (64, 33),
        (160, 99),
        (4, 3),
        (3, 2),
        (2, 1),
    ];
    let sar = match bits.take(8)? {
        255 => (bits.take(16)?, bits.take(16)?),
        idc => *TABLE.get(idc as usize).unwrap_or(&(1, 1)),
    };
    Some(if sar.0 == 0 || sar.1 == 0 { (1, 1) } else { sar })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records written by x264 (`-c:v libx264`), with the sizes and rates they were made for.
    type Expected = (&'static str, u32, u32, &'static str, Option<(u32, u32)>);

    const RECORDS: &[Expected] = &[
        (
            "0164001fffe1001a6764001facd9405005bb0110000003001000000303c0f183196001000668ebe3cb22c0fdf8f800",
            1280,
            720,
            "avc1.64001f",
            Some((30, 1)),
        ),
        (
            "014d401effe10018674d401eeca05017f536022000007d20001d4c01e2c5b2c001000568ebe3cb20",
            638,
            358,
            "avc1.4d401e",
            Some((30000, 1001)),
        ),
        (
            "0142c01effe100196742c01ed900a02ff97011000003000100000300320f162e4801000568cb83cb20",
            640,
            360,
            "avc1.42c01e",
            Some((25, 1)),
        ),
        (
            "0164002affe100196764002aacd940780227e5c04400000fa4000753003c60c65801000668ebe3cb22c0fdf8f800",
            1920,
            1080,
            "avc1.64002a",
            Some((60000, 1001)),
        ),
    ];

    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn records_of_real_encoders() {
        for (text, width, height, codec, rate) in RECORDS {
            let config = AvcConfig::parse(hex(text)).unwrap();
            assert_eq!((config.width, config.height), (*width, *height));
            assert_eq!(config.codec_string(), *codec);
            assert_eq!(config.frame_rate.map(|rate| (rate.num, rate.den)), *rate);
        }
    }

    #[test]
    fn damage_is_an_error_never_a_panic() {
        let good = hex(RECORDS[0].0);
        for cut in 0..good.len() {
            let _ = AvcConfig::parse(good.slice(..cut));
        }
        let mut seed = 1u32;
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 8) as usize % bytes.len();
                bytes[at] = (seed >> 24) as u8;
            }
            let _ = AvcConfig::parse(bytes.into());
        }
        assert!(AvcConfig::parse(Bytes::from_static(&[1; 4])).unwrap_err().to_string().contains("4 bytes"));
    }
}
