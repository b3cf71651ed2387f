//! What encoders give, as MP4 has it: start codes become length prefixes, parameter sets become records.
#![deny(clippy::disallowed_methods)]

use bytes::{BufMut, Bytes, BytesMut};
use media::codec::{VideoCodec, av1, hevc};

/// NAL unit types, ITU-T H.264 table 7-1.
const SEI: u8 = 6;
const SPS: u8 = 7;
const PPS: u8 = 8;
const DELIMITER: u8 = 9;
const FILLER: u8 = 12;

/// SEI payload type 5, user_data_unregistered: x264 signs its work with one.
const UNREGISTERED: u8 = 5;

/// The same in HEVC, ITU-T H.265 table 7-1: parameter sets and the delimiter, and filler. SEI has a header of 2 bytes.
const HEVC_SETS: std::ops::RangeInclusive<u8> = hevc::VPS..=35;
const HEVC_FILLER: u8 = 38;
const HEVC_SEI: u8 = 39;

/// An access unit as its codec's samples are in MP4: H.264 and HEVC as length-prefixed (4 bytes) NAL units, without parameter
/// sets, delimiters, filler and the encoder's signature; captions and other SEI stay. AV1 without temporal delimiters.
pub(crate) fn to_sample(codec: VideoCodec, coded: &[u8]) -> Bytes {
    if !matches!(codec, VideoCodec::Avc | VideoCodec::Hevc) {
        return crate::copy::stripped(codec, &Bytes::copy_from_slice(coded));
    }
    // A start code of three bytes grows by one.
    let mut out = BytesMut::with_capacity(coded.len() + 16);
    for nal in units(coded) {
        let keep = match codec {
            VideoCodec::Avc => match nal[0] & 0x1f {
                SPS | PPS | DELIMITER | FILLER => false,
                SEI => nal.get(1) != Some(&UNREGISTERED),
                _ => true,
            },
            _ => match nal[0] >> 1 & 0x3f {
                kind if HEVC_SETS.contains(&kind) => false,
                HEVC_FILLER => false,
                HEVC_SEI => nal.get(2) != Some(&UNREGISTERED),
                _ => true,
            },
        };
        if keep {
            out.put_u32(nal.len() as u32);
            out.put_slice(nal);
        }
    }
    out.freeze()
}

/// The configuration record of an encoder: from its parameter sets as a byte stream, or its first OBUs. `None` if they are
/// not all there. 8-bit 4:2:0 is assumed.
pub(crate) fn record(codec: VideoCodec, headers: &[u8]) -> Option<Bytes> {
    match codec {
        VideoCodec::Avc => configuration_record(headers),
        VideoCodec::Hevc => {
            let of = |kind: u8| -> Vec<&[u8]> {
                units(headers).filter(|nal| nal[0] >> 1 & 0x3f == kind).collect()
            };
            hevc::record(&of(hevc::VPS), &of(hevc::SPS), &of(hevc::PPS))
        }
        // Some encoders give the record itself.
        VideoCodec::Av1 if headers.first() == Some(&0x81) => Some(Bytes::copy_from_slice(headers)),
        VideoCodec::Av1 => av1::record(headers),
        VideoCodec::Vp9 => None,
    }
}

/// The AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section 5.3.3.1) for an encoder's parameter sets;
/// `None` if either kind is missing or too large. 8-bit 4:2:0 is assumed.
fn configuration_record(annex_b: &[u8]) -> Option<Bytes> {
    let of = |kind: u8| -> Vec<&[u8]> { units(annex_b).filter(|nal| nal[0] & 0x1f == kind).collect() };
    let (sps, pps) = (of(SPS), of(PPS));
    let [_, profile, compatibility, level, ..] = **sps.first()? else { return None };
    if pps.is_empty() || sps.len() > 31 || pps.len() > 255 {
        return None;
    }
    let mut out = BytesMut::with_capacity(annex_b.len() + 16);
    // Version, then lengths of 4 bytes.
    out.put_slice(&[1, profile, compatibility, level, 0xfc | 3]);
    out.put_u8(0xe0 | sps.len() as u8);
    put_sets(&mut out, &sps)?;
    out.put_u8(pps.len() as u8);
    put_sets(&mut out, &pps)?;
    if matches!(profile, 100 | 110 | 122 | 144) {
        // chroma_format_idc 4:2:0, bit depths 8, no SPS extensions; the other bits are reserved ones.
        out.put_slice(&[0xfc | 1, 0xf8, 0xf8, 0]);
    }
    Some(out.freeze())
}

fn put_sets(out: &mut BytesMut, sets: &[&[u8]]) -> Option<()> {
    for set in sets {
        out.put_u16(u16::try_from(set.len()).ok()?);
        out.put_slice(set);
    }
    Some(())
}

/// The non-empty NAL units of an Annex B byte stream (ITU-T H.264 annex B), without start codes and
/// trailing zeros.
fn units(annex_b: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = after_start_code(annex_b);
    std::iter::from_fn(move || {
        loop {
            let current = rest?;
            let end = find_start_code(current).unwrap_or(current.len());
            rest = after_start_code(&current[end..]);
            let length = current[..end].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            if length > 0 {
                return Some(&current[..length]);
            }
        }
    })
}

fn after_start_code(bytes: &[u8]) -> Option<&[u8]> {
    find_start_code(bytes).map(|at| &bytes[at + 3..])
}

/// Where `00 00 01` begins.
fn find_start_code(bytes: &[u8]) -> Option<usize> {
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            1 if bytes[at - 2..at] == [0, 0] => return Some(at - 2),
            0 => at += 1,
            // Neither this byte nor, with it in between, the next two can end a start code.
            _ => at += 3,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(annex_b: &[u8], expected: &[&[u8]]) {
        assert_eq!(units(annex_b).collect::<Vec<_>>(), expected, "{annex_b:?}");
    }

    #[test]
    fn start_codes_of_both_lengths() {
        check(&[], &[]);
        check(&[0, 0, 1], &[]);
        check(&[5, 6, 7], &[]);
        check(&[0, 0, 1, 0x65, 2], &[&[0x65, 2]]);
        check(&[0, 0, 0, 1, 0x65, 2, 0, 0, 0, 1, 0x41], &[&[0x65, 2], &[0x41]]);
        check(&[0, 0, 1, 0x65, 0, 0, 1, 0, 0, 1, 0x41, 0, 0, 0], &[&[0x65], &[0x41]]);
        check(&[9, 0, 0, 1, 0x65, 1, 1, 0, 1, 0, 3, 0, 0, 1, 0x41], &[&[0x65, 1, 1, 0, 1, 0, 3], &[0x41]]);
    }

    #[test]
    fn units_match_a_plain_search() {
        let mut seed = 7u64;
        for _ in 0..5000 {
            let mut bytes = Vec::new();
            for _ in 0..(seed >> 33) % 40 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes.push(((seed >> 40) % 4) as u8);
            }
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            let plain = bytes.windows(3).position(|window| window == [0, 0, 1]);
            assert_eq!(find_start_code(&bytes), plain, "{bytes:?}");
            assert!(units(&bytes).map(<[u8]>::len).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn access_units_lose_what_the_container_carries_elsewhere() {
        let annex_b = [
            &[0, 0, 0, 1, 9, 0xf0][..],
            &[0, 0, 0, 1, 0x67, 100],
            &[0, 0, 0, 1, 0x68, 1],
            &[0, 0, 1, 6, 5, 1, 2],
            &[0, 0, 1, 6, 4, 3, 4],
            &[0, 0, 1, 0x65, 7, 8],
        ]
        .concat();
        let sample = to_sample(VideoCodec::Avc, &annex_b);
        assert_eq!(sample, [0, 0, 0, 4, 6, 4, 3, 4, 0, 0, 0, 3, 0x65, 7, 8][..]);
    }

    #[test]
    fn hevc_and_av1_lose_the_same() {
        let annex_b = [
            &[0, 0, 0, 1, 0x46, 1, 0x50][..],
            &[0, 0, 0, 1, 0x40, 1, 2],
            &[0, 0, 0, 1, 0x42, 1, 2],
            &[0, 0, 0, 1, 0x44, 1, 2],
            &[0, 0, 1, 0x4E, 1, 5, 9],
            &[0, 0, 1, 0x4E, 1, 4, 9],
            &[0, 0, 1, 0x26, 1, 7],
        ]
        .concat();
        let sample = to_sample(VideoCodec::Hevc, &annex_b);
        assert_eq!(sample, [0, 0, 0, 4, 0x4E, 1, 4, 9, 0, 0, 0, 3, 0x26, 1, 7][..]);
        let sample = to_sample(VideoCodec::Av1, &[0x12, 0, 0x32, 1, 7]);
        assert_eq!(sample, [0x32, 1, 7][..]);
    }

    #[test]
    fn records_hold_both_parameter_sets() {
        let high = [0, 0, 0, 1, 0x67, 100, 0, 31, 9, 0, 0, 0, 1, 0x68, 8];
        assert_eq!(
            configuration_record(&high).unwrap(),
            [1, 100, 0, 31, 0xff, 0xe1, 0, 5, 0x67, 100, 0, 31, 9, 1, 0, 2, 0x68, 8, 0xfd, 0xf8, 0xf8, 0][..]
        );
        let main = [0, 0, 1, 0x67, 77, 64, 30, 0, 0, 1, 0x68, 8];
        assert_eq!(
            configuration_record(&main).unwrap(),
            [1, 77, 64, 30, 0xff, 0xe1, 0, 4, 0x67, 77, 64, 30, 1, 0, 2, 0x68, 8][..]
        );
        assert_eq!(configuration_record(&[0, 0, 1, 0x67, 77, 64, 30]), None);
        assert_eq!(configuration_record(&[0, 0, 1, 0x67, 77, 0, 0, 1, 0x68]), None);
        assert_eq!(configuration_record(&[]), None);
    }
}
