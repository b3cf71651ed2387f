//! Samples that are passed through: what a container carries elsewhere is left out, and whether a segment may begin with one.
#![deny(clippy::disallowed_methods)]

use bytes::{BufMut, Bytes, BytesMut};
use media::codec::VideoCodec;

/// Parameter sets, delimiters, end marks and filler: they are in the sample entry (`avc1`, `hvc1`), or of no use in a file.
fn is_left_out(codec: VideoCodec, first: u8) -> bool {
    match codec {
        // ITU-T H.264, table 7-1.
        VideoCodec::Avc => matches!(first & 0x1F, 7..=13),
        // ITU-T H.265, table 7-1.
        VideoCodec::Hevc => matches!(first >> 1 & 0x3F, 32..=38),
        // Temporal delimiter, tile list and padding (AV1 ISO media file format binding, 2.4).
        VideoCodec::Av1 => matches!(first >> 3 & 15, 2 | 8 | 15),
        VideoCodec::Vp9 => false,
    }
}

/// The access unit without those; the same bytes where there are none, or where its units do not add up to it.
pub fn stripped(codec: VideoCodec, data: &Bytes) -> Bytes {
    let whole = |units: &[&[u8]]| units.iter().map(|unit| unit.len()).sum::<usize>() == data.len();
    let units: Vec<_> = units(codec, data).collect();
    let header = header_bytes(codec);
    if !whole(&units) || units.iter().all(|unit| !is_left_out(codec, unit[header])) {
        return data.clone();
    }
    let mut out = BytesMut::with_capacity(data.len());
    for unit in units.iter().filter(|unit| !is_left_out(codec, unit[header])) {
        out.put_slice(unit);
    }
    out.freeze()
}

/// Whether decoding can begin here and nothing that follows is shown before: H.264 and HEVC with an IDR picture (or HEVC's
/// BLA without leading pictures that cannot be decoded), AV1 with a shown key frame behind its sequence header.
pub fn is_closed(codec: VideoCodec, data: &[u8]) -> bool {
    let header = header_bytes(codec);
    let mut units = units(codec, data);
    match codec {
        VideoCodec::Avc => units.any(|unit| unit[header] & 0x1F == 5),
        VideoCodec::Hevc => units.any(|unit| matches!(unit[header] >> 1 & 0x3F, 17..=20)),
        VideoCodec::Av1 => {
            let mut sequence = false;
            for unit in units {
                match unit[0] >> 3 & 15 {
                    1 => sequence = true,
                    // Frame header, frame: not a frame shown again, a key frame, shown (5.9.2).
                    3 | 6 => return sequence && body(unit).is_some_and(|first| first & 0xF0 == 0x10),
                    _ => {}
                }
            }
            false
        }
        VideoCodec::Vp9 => false,
    }
}

/// Where a unit's own header is, behind its length.
fn header_bytes(codec: VideoCodec) -> usize {
    match codec {
        VideoCodec::Avc | VideoCodec::Hevc => 4,
        VideoCodec::Av1 | VideoCodec::Vp9 => 0,
    }
}

/// The units of an access unit with their lengths: NAL units behind 4 bytes of length, or OBUs that say their size. Ends
/// where they do not add up.
fn units(codec: VideoCodec, mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = match codec {
            VideoCodec::Avc | VideoCodec::Hevc => {
                let (len, behind) = rest.split_first_chunk::<4>()?;
                let len = u32::from_be_bytes(*len) as usize;
                (len > 0 && len <= behind.len()).then_some(4 + len)?
            }
            VideoCodec::Av1 => obu_len(rest)?,
            VideoCodec::Vp9 => (!rest.is_empty()).then_some(rest.len())?,
        };
        let (unit, behind) = rest.split_at_checked(len)?;
        rest = behind;
        Some(unit)
    })
}

/// Bytes of the first OBU with its header (AV1 bitstream specification, 5.3); one without a size takes all.
fn obu_len(bytes: &[u8]) -> Option<usize> {
    let (at, len) = obu_body(bytes)?;
    at.checked_add(len)
}

/// Where the first OBU's payload begins, and how long it is.
fn obu_body(bytes: &[u8]) -> Option<(usize, usize)> {
    let header = *bytes.first()?;
    let mut at = if header & 4 != 0 { 2 } else { 1 };
    if header & 2 == 0 {
        return Some((at, bytes.len().checked_sub(at)?));
    }
    let mut len = 0u64;
    for shift in 0..8 {
        let byte = *bytes.get(at)?;
        at += 1;
        len |= u64::from(byte & 0x7F) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some((at, usize::try_from(len).ok()?));
        }
    }
    None
}

/// The first byte of an OBU's payload.
fn body(obu: &[u8]) -> Option<u8> {
    obu.get(obu_body(obu)?.0).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nals(units: &[&[u8]]) -> Bytes {
        let mut out = BytesMut::new();
        for unit in units {
            out.put_u32(unit.len() as u32);
            out.put_slice(unit);
        }
        out.freeze()
    }

    #[test]
    fn what_the_sample_entry_has_is_left_out() {
        let avc = nals(&[&[9, 0xF0], &[0x67, 1, 2], &[0x68, 1], &[6, 4, 1], &[0x65, 7]]);
        assert_eq!(stripped(VideoCodec::Avc, &avc), nals(&[&[6, 4, 1], &[0x65, 7]]));
        let hevc = nals(&[&[0x40, 1], &[0x42, 1], &[0x44, 1], &[0x26, 1, 5]]);
        assert_eq!(stripped(VideoCodec::Hevc, &hevc), nals(&[&[0x26, 1, 5]]));
        // Temporal delimiter, sequence header, frame.
        let av1 = Bytes::from_static(&[0x12, 0, 0x0A, 2, 1, 2, 0x32, 3, 0x10, 5, 6]);
        assert_eq!(stripped(VideoCodec::Av1, &av1), av1.slice(2..));
        // Nothing to leave out, or not understood: the very bytes.
        for data in [nals(&[&[0x65, 1]]), Bytes::from_static(&[0, 0, 0, 9, 0x67]), Bytes::new()] {
            assert_eq!(stripped(VideoCodec::Avc, &data).as_ptr(), data.as_ptr());
        }
    }

    #[test]
    fn only_closed_keyframes_begin_segments() {
        assert!(is_closed(VideoCodec::Avc, &nals(&[&[6, 1], &[0x65, 1]])));
        assert!(!is_closed(VideoCodec::Avc, &nals(&[&[6, 6], &[0x41, 1]])), "a recovery point");
        assert!(
            is_closed(VideoCodec::Hevc, &nals(&[&[0x26, 1]]))
                && is_closed(VideoCodec::Hevc, &nals(&[&[0x28, 1]]))
        );
        assert!(!is_closed(VideoCodec::Hevc, &nals(&[&[0x2A, 1]])), "CRA: leading pictures may follow");
        assert!(is_closed(VideoCodec::Av1, &[0x0A, 1, 0, 0x32, 1, 0x10]));
        for other in [
            &[0x32, 1, 0x10][..],
            &[0x0A, 1, 0, 0x32, 1, 0x00],
            &[0x0A, 1, 0, 0x32, 1, 0x30],
            &[0x0A, 9],
            &[],
        ] {
            assert!(!is_closed(VideoCodec::Av1, other), "{other:?}");
        }
    }

    #[test]
    fn whatever_comes_is_survived() {
        let mut seed = 5u64;
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..(seed >> 33) % 24 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.push(((seed >> 40) % 12) as u8);
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bytes = Bytes::from(bytes);
            for codec in VideoCodec::ALL {
                is_closed(codec, &bytes);
                assert!(stripped(codec, &bytes).len() <= bytes.len());
            }
        }
    }
}
