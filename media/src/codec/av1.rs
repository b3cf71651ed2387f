//! AV1: the configuration record (AV1 Codec ISO Media File Format Binding, 2.3) and the sequence header in it or in a
//! keyframe (AV1 bitstream specification, 5.5).
#![deny(clippy::disallowed_methods)]

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

/// The first sequence header among OBUs that have sizes.
pub(super) fn sequence_header(mut obus: &[u8]) -> Option<Picture> {
    loop {
        let (&header, rest) = obus.split_first()?;
        let (kind, extended, sized) = (header >> 3 & 15, header & 4 != 0, header & 2 != 0);
        let rest = if extended { rest.get(1..)? } else { rest };
        let (len, rest) = if sized { leb128(rest)? } else { (rest.len(), rest) };
        let body = rest.get(..len)?;
        if kind == SEQUENCE_HEADER {
            return parse(&mut Bits::new(body));
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
