//! Splice information (ANSI/SCTE 35): as much of a `splice_info_section` as says where a break begins and ends.
#![deny(clippy::disallowed_methods)]

use crate::time::Ticks;

/// Longest section, in bytes: its length field has 12 bits, of which the standard allows up to 4093.
pub const MAX_SECTION_BYTES: usize = 3 + 4093;

/// Bytes before the splice command.
const HEADER_BYTES: usize = 14;

/// Bytes of the check sum at the end.
const CRC_BYTES: usize = 4;

/// What a section says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splice {
    /// What happens.
    pub what: What,
    /// Tells one break from another: `splice_event_id`, or the first `segmentation_event_id`.
    pub event: Option<u32>,
    /// How long the break is, 90 kHz, if that is said.
    pub duration: Option<Ticks>,
}

/// What happens to the programme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A break begins: out of the network.
    Out,
    /// It ends: back into the network.
    In,
    /// Anything else.
    Other,
}

/// Bytes that are no splice information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Another table, or cut short.
    #[error("not a splice_info_section of the length that it says")]
    Length,
    /// Damaged.
    #[error("the check sum of the splice_info_section does not match")]
    Checksum,
}

/// Reads a whole section. One that is encrypted, or of which the command cannot be read, says [`What::Other`].
pub fn parse(section: &[u8]) -> Result<Splice, Invalid> {
    let [0xFC, high, low, ..] = *section else { return Err(Invalid::Length) };
    let len = 3 + (usize::from(high & 0x0F) << 8 | usize::from(low));
    if len != section.len() || len < HEADER_BYTES + 2 + CRC_BYTES {
        return Err(Invalid::Length);
    }
    if crc32(section) != 0 {
        return Err(Invalid::Checksum);
    }
    let other = Splice { what: What::Other, event: None, duration: None };
    let encrypted = section[4] & 0x80 != 0;
    let body = &section[HEADER_BYTES..len - CRC_BYTES];
    let splice = match section[HEADER_BYTES - 1] {
        _ if encrypted => None,
        5 => insert(body),
        6 => signal(body),
        _ => None,
    };
    Ok(splice.unwrap_or(other))
}

/// splice_insert (9.7.3).
fn insert(body: &[u8]) -> Option<Splice> {
    let mut bytes = Reader(body);
    let event = bytes.u32()?;
    let cancelled = bytes.u8()? & 0x80 != 0;
    if cancelled {
        return Some(Splice { what: What::Other, event: Some(event), duration: None });
    }
    let flags = bytes.u8()?;
    let (out, program, lasts, immediate) =
        (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x20 != 0, flags & 0x10 != 0);
    let components = if program { 1 } else { bytes.u8()? };
    for _ in 0..components {
        if !program {
            bytes.u8()?;
        }
        if !immediate {
            splice_time(&mut bytes)?;
        }
    }
    let duration = if lasts { Some(bytes.u40()? & MASK_33) } else { None };
    let what = if out { What::Out } else { What::In };
    Some(Splice { what, event: Some(event), duration: duration.filter(|_| out).map(|ticks| ticks as Ticks) })
}

/// time_signal (9.7.4): what it means is in its first segmentation descriptor (10.3.3).
fn signal(body: &[u8]) -> Option<Splice> {
    let mut bytes = Reader(body);
    splice_time(&mut bytes)?;
    let loop_length = usize::from(bytes.u16()?);
    let mut bytes = Reader(bytes.take(loop_length)?);
    while let Some(tag) = bytes.u8() {
        let len = usize::from(bytes.u8()?);
        let mut descriptor = Reader(bytes.take(len)?);
        if tag != 2 || descriptor.u32()? != u32::from_be_bytes(*b"CUEI") {
            continue;
        }
        let event = descriptor.u32()?;
        let other = Splice { what: What::Other, event: Some(event), duration: None };
        if descriptor.u8()? & 0x80 != 0 {
            return Some(other);
        }
        let flags = descriptor.u8()?;
        if flags & 0x80 == 0 {
            let components = descriptor.u8()?;
            descriptor.take(6 * usize::from(components))?;
        }
        let duration = if flags & 0x40 != 0 { Some(descriptor.u40()? as Ticks) } else { None };
        descriptor.u8()?;
        let name_length = usize::from(descriptor.u8()?);
        descriptor.take(name_length)?;
        // Table 23: a break; advertisements and opportunities for them, of provider and distributor; blocks of them.
        return Some(match descriptor.u8()? {
            0x22 | 0x30 | 0x32 | 0x34 | 0x36 | 0x44 | 0x46 => Splice { what: What::Out, duration, ..other },
            0x23 | 0x31 | 0x33 | 0x35 | 0x37 | 0x45 | 0x47 => Splice { what: What::In, ..other },
            _ => other,
        });
    }
    None
}

/// splice_time (9.8.1). Its clock is that of a transport stream which nobody has any more.
fn splice_time(bytes: &mut Reader<'_>) -> Option<()> {
    if bytes.u8()? & 0x80 != 0 {
        bytes.take(4)?;
    }
    Some(())
}

const MASK_33: u64 = (1 << 33) - 1;

/// CRC_32 of MPEG-2 systems (ISO/IEC 13818-1, annex A); zero over a section with its own.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte) << 24;
        for _ in 0..8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { crc << 1 ^ 0x04C1_1DB7 };
        }
    }
    crc
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn u8(&mut self) -> Option<u8> {
        self.number(1).map(|number| number as u8)
    }

    fn u16(&mut self) -> Option<u16> {
        self.number(2).map(|number| number as u16)
    }

    fn u32(&mut self) -> Option<u32> {
        self.number(4).map(|number| number as u32)
    }

    fn u40(&mut self) -> Option<u64> {
        self.number(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    /// Examples of the standard (14.1 to 14.4), whose check sums are theirs.
    #[test]
    fn the_standards_examples() {
        let check = |hex: &str, what, event, duration| {
            assert_eq!(parse(&bytes(hex)), Ok(Splice { what, event: Some(event), duration }), "{hex}");
        };
        // A placement opportunity begins, and lasts 307 s.
        check(
            "fc3034000000000000fffff00506fe72bd0050001e021c435545494800008e7fcf0001a599b00808000000002ca0a18a3402009ac9d17e",
            What::Out,
            0x4800_008E,
            Some(0x01A5_99B0),
        );
        // A splice, out for 60.293 s.
        check(
            "fc302f000000000000fffff014054800008f7feffe7369c02efe0052ccf500000000000a0008435545490000013562dba30a",
            What::Out,
            0x4800_008F,
            Some(0x52_CCF5),
        );
        // An opportunity ends.
        check(
            "fc302f000000000000fffff00506fe746290a000190217435545494800008e7f9f0808000000002ca0a18a350200a9cc6758",
            What::In,
            0x4800_008E,
            None,
        );
        // A programme begins.
        check(
            "fc3048000000000000fffff00506fe7a4d88b60032021743554549480000187f9f0808000000002ccbc344110000021743554549480000197f9f0808000000002ca4dba01000009972e343",
            What::Other,
            0x4800_0018,
            None,
        );
    }

    #[test]
    fn what_is_damaged_is_no_cue() {
        let section = bytes(
            "fc302f000000000000fffff014054800008f7feffe7369c02efe0052ccf500000000000a0008435545490000013562dba30a",
        );
        for at in 0..section.len() {
            let mut damaged = section.clone();
            damaged[at] ^= 0x10;
            assert!(parse(&damaged).is_err(), "{at}");
            assert_eq!(parse(&section[..at]), Err(Invalid::Length));
        }
        // A right check sum proves nothing else.
        let mut seed = 3u64;
        for _ in 0..20_000 {
            let mut random = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 40) as u8
            };
            let mut wrong: Vec<u8> = (0..60).map(|_| random()).collect();
            wrong.truncate(20 + usize::from(random() % 40));
            let len = (wrong.len() + 4 - 3) as u8;
            wrong[..3].copy_from_slice(&[0xFC, 0x30, len]);
            wrong[HEADER_BYTES - 1] = 5 + random() % 2;
            let crc = crc32(&wrong);
            wrong.extend(crc.to_be_bytes());
            assert!(parse(&wrong).is_ok());
        }
    }
}
