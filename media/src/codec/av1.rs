//! AV1: the configuration record (AV1 Codec ISO Media File Format Binding, 2.3) and the sequence header in it or in a
//! keyframe (AV1 bitstream specification, 5.5).
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use super::bits::Bits;
use super::{Invalid, Picture};
use crate::time::FrameRate;

/// Longest record: a sequence header has some twenty bytes, metadata OBUs may follow it.
const MAX_BYTES: usize = 64 << 10;

/// OBU type of a sequence header (6.2.2).
const SEQUENCE_HEADER: u8 = 1;

/// Reads a configuration record; `None` if it holds no sequence header.
pub(super) fn picture(record: &[u8]) -> Result<Option<Picture>, Invalid> {
    let invalid = |problem: String| Invalid { record: "AV1 configuration record", problem };
    let Some((head, obus)) = record.split_first_chunk::<4>() else {
        return Err(invalid(format!("{} bytes are too few", record.len())));
    };
    if record.len() > MAX_BYTES {
        return Err(invalid(format!("{} bytes exceed {MAX_BYTES}", record.len())));
    }
    if head[0] != 0x81 {
        return Err(invalid(format!("begins with {:#04x}, not with marker and version 0x81", head[0])));
    }
    if obus.is_empty() {
        return Ok(None);
    }
    sequence_header(obus)
        .map(Some)
        .ok_or_else(|| invalid("its sequence header is cut short or damaged".into()))
}

/// The record of an encoder whose first OBUs these are, a sequence header among them (2.3): 4:2:0 of 8 bits. `None` without
/// one.
pub fn record(obus: &[u8]) -> Option<Bytes> {
    let (obu, body) = find_sequence_header(obus)?;
    let mut bits = Bits::new(body);
    let profile = bits.take(3)?;
    let (level, tier) = level(&mut bits)?;
    // Marker and version, both subsamplings and an unknown place of colour samples; nothing about delay.
    let head = [0x81, (profile << 5 | level) as u8, u8::from(tier) << 7 | 0x0C, 0];
    Some([&head[..], obu].concat().into())
}

/// Level and tier of the first operating point, behind the profile.
fn level(bits: &mut Bits<'_>) -> Option<(u32, bool)> {
    bits.take(1)?;
    if bits.flag()? {
        return Some((bits.take(5)?, false));
    }
    if bits.flag()? {
        bits.take(32)?;
        bits.take(32)?;
        if bits.flag()? {
            bits.unsigned()?;
        }
        if bits.flag()? {
            bits.take(32)?;
            bits.take(15)?;
        }
    }
    bits.take(1)?;
    bits.take(5)?;
    bits.take(12)?;
    let level = bits.take(5)?;
    Some((level, level > 7 && bits.flag()?))
}

/// The first sequence header among OBUs that have sizes.
pub(super) fn sequence_header(obus: &[u8]) -> Option<Picture> {
    find_sequence_header(obus).and_then(|(_, body)| parse(&mut Bits::new(body)))
}

/// The same with its header and size, and without.
fn find_sequence_header(mut obus: &[u8]) -> Option<(&[u8], &[u8])> {
    loop {
        let all = obus;
        let (&header, rest) = obus.split_first()?;
        let (kind, extended, sized) = (header >> 3 & 15, header & 4 != 0, header & 2 != 0);
        let rest = if extended { rest.get(1..)? } else { rest };
        let (len, rest) = if sized { leb128(rest)? } else { (rest.len(), rest) };
        let body = rest.get(..len)?;
        if kind == SEQUENCE_HEADER {
            return Some((&all[..all.len() - (rest.len() - len)], body));
        }
        obus = &rest[len..];
    }
}

fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(8) {
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((usize::try_from(value).ok()?, &bytes[index + 1..]));
        }
    }
    None
}

/// 5.5.1
fn parse(bits: &mut Bits<'_>) -> Option<Picture> {
    bits.take(3)?;
    bits.take(1)?;
    let mut frame_rate = None;
    if bits.flag()? {
        // A still picture.
        bits.take(5)?;
    } else {
        let mut delay_bits = None;
        if bits.flag()? {
            let (units, scale) = (bits.take(32)?, bits.take(32)?);
            if bits.flag()? {
                let ticks = f64::from(bits.unsigned()?) + 1.0;
                frame_rate = FrameRate::from_fps(f64::from(scale) / (f64::from(units) * ticks));
            }
            if bits.flag()? {
                delay_bits = Some(bits.take(5)? + 1);
                bits.take(32)?;
                bits.take(10)?;
            }
        }
        let display_delay = bits.flag()?;
        for _ in 0..=bits.take(5)? {
            bits.take(12)?;
            if bits.take(5)? > 7 {
                bits.take(1)?;
            }
            if let Some(delay_bits) = delay_bits
                && bits.flag()?
            {
                bits.take(delay_bits)?;
                bits.take(delay_bits)?;
                bits.take(1)?;
            }
            if display_delay && bits.flag()? {
                bits.take(4)?;
            }
        }
    }
    let (width_bits, height_bits) = (bits.take(4)? + 1, bits.take(4)? + 1);
    let (width, height) = (bits.take(width_bits)? + 1, bits.take(height_bits)? + 1);
    Some(Picture { width, height, sar: (1, 1), frame_rate })
}
