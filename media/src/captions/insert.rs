//! Captions written into what an encoder made without them.
#![deny(clippy::disallowed_methods)]

use bytes::{BufMut, Bytes, BytesMut};

use super::{ATSC, AVC_SEI, HEVC_SEI, ITUT_T35, METADATA, REGISTERED, is_frame, is_slice, nals, obu};
use crate::codec::VideoCodec;

/// Bytes of a construct of caption data (`cc_data_pkt`).
pub const TRIPLET_BYTES: usize = 3;

/// Most of them that one picture can have: a count of five bits.
pub const MAX_TRIPLETS: usize = 31;

/// What a NAL unit header takes, the type and the size of its one message, the message, and the bit that ends it.
const MAX_BODY: usize = 2 + 2 + ATSC.len() + 2 + MAX_TRIPLETS * TRIPLET_BYTES + 1 + 1;

// The size of an SEI message, and that of an OBU (leb128), are one byte.
const _: () = assert!(MAX_BODY < 128);

/// The access unit (NAL units behind lengths of 4 bytes, or OBUs with sizes) with caption data for its picture: in H.264 and HEVC
/// as an SEI message before the first slice (ITU-T H.264, D.1.6; H.265, D.2.6), in AV1 as a metadata OBU before the first frame
/// (5.8.2), behind all that introduces the picture. Of `triplets` whole ones count, and not more than [`MAX_TRIPLETS`].
///
/// `None` where there is no picture in it, or of a codec that has no place for captions.
pub fn inserted(codec: VideoCodec, access_unit: &[u8], triplets: &[u8]) -> Option<Bytes> {
    let count = (triplets.len() / TRIPLET_BYTES).min(MAX_TRIPLETS);
    let triplets = &triplets[..count * TRIPLET_BYTES];
    // Caption data is there and nothing else is; both bytes that are reserved have ones.
    let flags = [0xC0 | count as u8, 0xFF];
    let t35 = [&ATSC[..], &flags, triplets, &[0xFF]].concat();
    let (at, unit) = match codec {
        VideoCodec::Avc | VideoCodec::Hevc => {
            let (at, slice) = nals(access_unit).find(|(_, nal)| is_slice(codec, nal))?;
            let mut nal = match codec {
                VideoCodec::Avc => vec![AVC_SEI],
                // Its layer and temporal sub-layer are the picture's (H.265, 7.4.2.2).
                _ => vec![HEVC_SEI << 1 | slice[0] & 1, *slice.get(1)?],
            };
            escape(&[&[REGISTERED, t35.len() as u8], &t35[..], &[0x80]].concat(), &mut nal);
            (at, [&(nal.len() as u32).to_be_bytes()[..], &nal].concat())
        }
        VideoCodec::Av1 => {
            let body = [&[ITUT_T35], &t35[..], &[0x80]].concat();
            // Its type, and that it has a size.
            let head = [METADATA << 3 | 2, body.len() as u8];
            (first_frame(access_unit)?, [&head[..], &body].concat())
        }
        VideoCodec::Vp9 => return None,
    };
    let (before, picture) = access_unit.split_at(at);
    let mut out = BytesMut::with_capacity(access_unit.len() + unit.len());
    out.put_slice(before);
    out.put_slice(&unit);
    out.put_slice(picture);
    Some(out.freeze())
}

/// Where the first frame of AV1 is.
fn first_frame(access_unit: &[u8]) -> Option<usize> {
    let mut rest = access_unit;
    loop {
        let at = access_unit.len() - rest.len();
        let (kind, _, behind) = obu(rest)?;
        if is_frame(kind) {
            return Some(at);
        }
        rest = behind;
    }
}

/// With emulation prevention (ITU-T H.264, 7.4.1).
fn escape(rbsp: &[u8], out: &mut Vec<u8>) {
    let mut zeros = 0;
    for &byte in rbsp {
        if zeros >= 2 && byte <= 3 {
            out.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::super::each_triplet;
    use super::*;

    fn units(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter().flat_map(|nal| [&(nal.len() as u32).to_be_bytes()[..], nal].concat()).collect()
    }

    #[test]
    fn a_message_is_before_the_picture_and_behind_what_introduces_it() {
        let triplets = [0xFC, 0x94, 0x20, 0xFD, 0x80, 0x80];
        let message = b"\xB5\0\x31GA94\x03\xC2\xFF\xFC\x94\x20\xFD\x80\x80\xFF";
        let sei = |header: &[u8]| [header, &[4, 17], message, &[0x80]].concat();
        // Delimiter, parameter sets, another message.
        let avc: [&[u8]; 5] = [&[9, 0xF0], &[0x67, 1], &[0x68, 1], &[6, 6, 1, 0x80], &[0x65, 7]];
        let expected = [avc[0], avc[1], avc[2], avc[3], &sei(&[6]), avc[4]];
        assert_eq!(inserted(VideoCodec::Avc, &units(&avc), &triplets).unwrap(), units(&expected));
        // The picture is of the second temporal sub-layer.
        let hevc: [&[u8]; 6] = [&[70, 1], &[64, 1], &[66, 1], &[68, 1], &[2, 2, 9], &[2, 2, 10]];
        let expected = [hevc[0], hevc[1], hevc[2], hevc[3], &sei(&[78, 2]), hevc[4], hevc[5]];
        assert_eq!(inserted(VideoCodec::Hevc, &units(&hevc), &triplets).unwrap(), units(&expected));
        // Temporal delimiter, sequence header, frame.
        let obu = [&[0x2A, 19, 4][..], message, &[0x80]].concat();
        let expected = [&[0x12, 0, 0x0A, 2, 1, 2][..], &obu, &[0x32, 1, 0x10]].concat();
        let av1 = [0x12, 0, 0x0A, 2, 1, 2, 0x32, 1, 0x10];
        assert_eq!(inserted(VideoCodec::Av1, &av1, &triplets).unwrap(), expected);
    }

    #[test]
    fn zeros_are_escaped_and_a_count_ends_the_list() {
        let picture: [(VideoCodec, &[u8]); 3] = [
            (VideoCodec::Avc, &[0, 0, 0, 2, 0x65, 1]),
            (VideoCodec::Hevc, &[0, 0, 0, 3, 38, 1, 1]),
            (VideoCodec::Av1, &[0x32, 1, 0x10]),
        ];
        for (codec, picture) in picture {
            for count in [0, 1, 2, 31, 32, 200] {
                // Zeros behind zeros, which look like start codes without escapes.
                let triplets: Vec<_> =
                    (0..count).map(|n| [[0, 0, 0], [0, 0, 1], [1, 0, 0], [3, 0, 0]][n % 4]).collect();
                let flat = triplets.concat();
                let all = inserted(codec, picture, &flat).unwrap();
                let mut found = Vec::new();
                each_triplet(codec, &all, |triplet| found.push(triplet));
                assert_eq!(found, triplets[..count.min(31)], "{codec}");
                assert!(all.ends_with(picture));
                if codec != VideoCodec::Av1 {
                    let nal = &all[4..all.len() - picture.len()];
                    assert!(!nal.windows(3).any(|three| three[..2] == [0, 0] && three[2] < 3), "{nal:?}");
                }
                // A construct that is cut short does not count.
                assert_eq!(inserted(codec, picture, &[&flat[..], &[0xFC]].concat()).unwrap(), all);
            }
        }
    }

    #[test]
    fn whatever_comes_is_survived() {
        let hevc = units(&[&[64, 1, 0, 0, 3], &[78, 1, 4, 9, 0], &[38, 1, 5, 6, 7]]);
        let av1 = [0x12, 0, 0x0A, 3, 0, 1, 2, 0x32, 4, 0x10, 1, 2, 3];
        let triplets = [0xFC, 0x94, 0x20];
        let (mut seed, mut placed) = (3u64, 0);
        for turn in 0..20_000 {
            let mut bytes = if turn % 2 == 0 { hevc.clone() } else { av1.to_vec() };
            for _ in 0..2 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 50) as u8;
            }
            bytes.truncate((seed >> 40) as usize % (bytes.len() + 1));
            for codec in VideoCodec::ALL {
                if let Some(out) = inserted(codec, &bytes, &triplets) {
                    let mut found = Vec::new();
                    each_triplet(codec, &out, |triplet| found.push(triplet));
                    assert_eq!(found.last(), Some(&triplets), "{codec} {bytes:?}");
                    placed += 1;
                } else {
                    assert!(inserted(codec, &bytes, &[]).is_none());
                }
            }
        }
        assert!(placed > 1000, "{placed}");
    }
}
