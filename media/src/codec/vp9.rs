//! VP9: the configuration record (VP Codec ISO Media File Format Binding, `vpcC`) and the size in a keyframe's header
//! (VP9 bitstream specification, 6.2).
#![deny(clippy::disallowed_methods)]

use super::bits::Bits;
use super::{Invalid, Picture};

/// The record's eight bytes, with the four of a full box in front where the sender keeps them, and room for more.
const LENGTHS: std::ops::RangeInclusive<usize> = 8..=256;

/// Whether it can be a configuration record. Decoders do not need it: keyframes say all.
pub(super) fn check(record: &[u8]) -> Result<(), Invalid> {
    if LENGTHS.contains(&record.len()) {
        return Ok(());
    }
    let problem = format!("{} bytes are not within {LENGTHS:?}", record.len());
    Err(Invalid { record: "VP9 configuration record", problem })
}

/// What a keyframe's uncompressed header says; `None` if it has none.
pub(super) fn frame_size(frame: &[u8]) -> Option<Picture> {
    let mut bits = Bits::new(frame);
    if bits.take(2)? != 2 {
        return None;
    }
    let profile = bits.take(1)? + 2 * bits.take(1)?;
    if profile == 3 {
        bits.take(1)?;
    }
    let (shows_existing, inter) = (bits.flag()?, bits.flag()?);
    bits.take(2)?;
    if shows_existing || inter || bits.take(24)? != 0x49_8342 {
        return None;
    }
    if profile >= 2 {
        bits.take(1)?;
    }
    // Profiles 1 and 3 name their subsampling.
    let named = profile & 1 == 1;
    match bits.take(3)? {
        7 if named => drop(bits.take(1)?),
        7 => return None,
        _ => drop(bits.take(if named { 4 } else { 1 })?),
    }
    let (width, height) = (bits.take(16)? + 1, bits.take(16)? + 1);
    Some(Picture { width, height, sar: (1, 1), frame_rate: None })
}
