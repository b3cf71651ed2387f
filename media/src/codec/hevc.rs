//! HEVC: the `HEVCDecoderConfigurationRecord` (ISO/IEC 14496-15, 8.3.3.1) and what its first SPS says (ITU-T H.265,
//! 7.3.2.2 and annex E).
#![deny(clippy::disallowed_methods)]

use bytes::{BufMut, Bytes, BytesMut};

use super::avc::{sample_aspect_ratio, unescape};
use super::bits::Bits;
use super::{Invalid, Picture};
use crate::time::FrameRate;

/// Longest record: parameter sets of real encoders have below a kilobyte.
const MAX_BYTES: usize = 64 << 10;

/// NAL unit types of parameter sets (table 7-1).
pub const VPS: u8 = 32;
/// Sequence parameter set.
pub const SPS: u8 = 33;
/// Picture parameter set.
pub const PPS: u8 = 34;

/// Reads a configuration record.
pub(super) fn picture(record: &[u8]) -> Result<Picture, Invalid> {
    let invalid = |problem: String| Invalid { record: "HEVC configuration record", problem };
    if record.len() > MAX_BYTES {
        return Err(invalid(format!("{} bytes exceed {MAX_BYTES}", record.len())));
    }
    if record.len() < 23 {
        return Err(invalid(format!("{} bytes are too few", record.len())));
    }
    // Some encoders write 0 while they follow the final record in all else.
    if record[0] > 1 {
        return Err(invalid(format!("version is {}, not 1", record[0])));
    }
    let sps = first_sps(record).ok_or_else(|| invalid("has no SPS".into()))?;
    parse(&unescape(sps)).ok_or_else(|| invalid("its SPS is cut short or damaged".into()))
}

/// The record of an encoder's parameter sets, NAL units without start codes (ISO/IEC 14496-15, 8.3.3.1): 4:2:0 of 8 bits,
/// lengths of 4 bytes, and all sets are in it. `None` if a kind is missing, or a set is cut short.
pub fn record(vps: &[&[u8]], sps: &[&[u8]], pps: &[&[u8]]) -> Option<Bytes> {
    if vps.is_empty() || pps.is_empty() {
        return None;
    }
    let first = unescape(sps.first()?);
    // Behind the header: 4 bits of VPS id, 3 of layers, 1 of nesting; then 88 bits of profile, and 8 of level.
    let (layers, profile_level) = (*first.get(2)?, first.get(3..15)?);
    let mut out = BytesMut::with_capacity(128);
    out.put_u8(1);
    out.put_slice(profile_level);
    // No spatial segmentation or parallelism is claimed; 4:2:0, 8 bits twice, frame rate not said. Reserved bits are ones.
    out.put_slice(&[0xF0, 0, 0xFC, 0xFC | 1, 0xF8, 0xF8, 0, 0]);
    out.put_u8((((layers >> 1) & 7) + 1) << 3 | (layers & 1) << 2 | 3);
    out.put_u8(3);
    for (kind, sets) in [(VPS, vps), (SPS, sps), (PPS, pps)] {
        out.put_u8(0x80 | kind);
        out.put_u16(u16::try_from(sets.len()).ok()?);
        for set in sets {
            out.put_u16(u16::try_from(set.len()).ok()?);
            out.put_slice(set);
        }
    }
    Some(out.freeze())
}

fn first_sps(record: &[u8]) -> Option<&[u8]> {
    let (arrays, mut rest) = record.get(22..)?.split_first()?;
    for _ in 0..*arrays {
        let (head, after) = rest.split_first_chunk::<3>()?;
        rest = after;
        for _ in 0..u16::from_be_bytes([head[1], head[2]]) {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let nal = after.get(..usize::from(u16::from_be_bytes(*len)))?;
            if head[0] & 0x3F == SPS {
                return Some(nal);
            }
            rest = &after[nal.len()..];
        }
    }
    None
}

/// 7.3.2.2.1
fn parse(nal: &[u8]) -> Option<Picture> {
    let mut bits = Bits::new(nal.get(2..)?);
    bits.take(4)?;
    let sub_layers = bits.take(3)?;
    bits.take(1)?;
    skip_profile(&mut bits, sub_layers)?;
    bits.unsigned()?;
    let chroma_format = bits.unsigned()?;
    let monochrome = chroma_format == 0 || (chroma_format == 3 && bits.flag()?);
    let (mut width, mut height) = (bits.unsigned()?, bits.unsigned()?);
    if bits.flag()? {
        let crop_x = if monochrome || chroma_format == 3 { 1 } else { 2 };
        let crop_y = if monochrome || chroma_format != 1 { 1 } else { 2 };
        let (left, right) = (bits.unsigned()?, bits.unsigned()?);
        let (top, bottom) = (bits.unsigned()?, bits.unsigned()?);
        width = width.checked_sub(left.checked_add(right)?.checked_mul(crop_x)?)?;
        height = height.checked_sub(top.checked_add(bottom)?.checked_mul(crop_y)?)?;
    }
    // What follows only adds to that: a picture whose rest is not understood is still a picture.
    let (sar, frame_rate) = rest(&mut bits, sub_layers).unwrap_or(((1, 1), None));
    Some(Picture { width, height, sar, frame_rate })
}

/// 7.3.3
fn skip_profile(bits: &mut Bits<'_>, sub_layers: u32) -> Option<()> {
    bits.skip(96)?;
    if sub_layers == 0 {
        return Some(());
    }
    let mut present = Vec::new();
    for layer in 0..8 {
        let flags = bits.take(2)?;
        if layer < sub_layers {
            present.push(flags);
        }
    }
    for flags in present {
        bits.skip(if flags & 2 != 0 { 88 } else { 0 } + if flags & 1 != 0 { 8 } else { 0 })?;
    }
    Some(())
}

fn rest(bits: &mut Bits<'_>, sub_layers: u32) -> Option<((u32, u32), Option<FrameRate>)> {
    // Bit depths.
    bits.unsigned()?;
    bits.unsigned()?;
    let poc_bits = bits.unsigned()?.checked_add(4).filter(|bits| *bits <= 16)?;
    let all_layers = bits.flag()?;
    for _ in 0..=if all_layers { sub_layers } else { 0 } {
        for _ in 0..3 {
            bits.unsigned()?;
        }
    }
    // Block sizes and depths of the transform tree.
    for _ in 0..6 {
        bits.unsigned()?;
    }
    if bits.flag()? && bits.flag()? {
        skip_scaling_lists(bits)?;
    }
    bits.take(2)?;
    if bits.flag()? {
        bits.take(8)?;
        bits.unsigned()?;
        bits.unsigned()?;
        bits.take(1)?;
    }
    skip_reference_sets(bits)?;
    if bits.flag()? {
        for _ in 0..bits.unsigned().filter(|pictures| *pictures <= 32)? {
            bits.take(poc_bits + 1)?;
        }
    }
    bits.take(2)?;
    if bits.flag()? { vui(bits) } else { Some(((1, 1), None)) }
}

/// 7.3.4
fn skip_scaling_lists(bits: &mut Bits<'_>) -> Option<()> {
    for size in 0..4u32 {
        for _ in 0..if size == 3 { 2 } else { 6 } {
            if !bits.flag()? {
                bits.unsigned()?;
                continue;
            }
            let values = 64.min(1 << (4 + 2 * size)) + u32::from(size > 1);
            for _ in 0..values {
                bits.signed()?;
            }
        }
    }
    Some(())
}

/// 7.3.7, for each set of the SPS.
fn skip_reference_sets(bits: &mut Bits<'_>) -> Option<()> {
    let sets = bits.unsigned().filter(|sets| *sets <= 64)?;
    let mut pictures = 0;
    for set in 0..sets {
        if set > 0 && bits.flag()? {
            // Derived from the set before.
            bits.take(1)?;
            bits.unsigned()?;
            let mut derived = 0;
            for _ in 0..=pictures {
                let used = bits.flag()? || bits.flag()?;
                derived += u32::from(used);
            }
            pictures = derived;
        } else {
            let (negative, positive) = (bits.unsigned()?, bits.unsigned()?);
            pictures = negative.checked_add(positive).filter(|pictures| *pictures <= 32)?;
            for _ in 0..pictures {
                bits.unsigned()?;
                bits.take(1)?;
            }
        }
    }
    Some(())
}

/// E.2.1, up to the timing.
fn vui(bits: &mut Bits<'_>) -> Option<((u32, u32), Option<FrameRate>)> {
    let sar = if bits.flag()? { sample_aspect_ratio(bits)? } else { (1, 1) };
    if bits.flag()? {
        bits.take(1)?;
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
    bits.take(3)?;
    if bits.flag()? {
        for _ in 0..4 {
            bits.unsigned()?;
        }
    }
    let mut frame_rate = None;
    if bits.flag()? {
        let (units, scale) = (bits.take(32)?, bits.take(32)?);
        frame_rate = FrameRate::from_fps(f64::from(scale) / f64::from(units));
    }
    Some((sar, frame_rate))
}
