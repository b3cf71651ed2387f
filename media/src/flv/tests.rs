use super::*;
use crate::codec::{AudioCodec, VideoCodec};

fn tag(kind: TagKind, timestamp_ms: u32, data: &'static [u8]) -> Tag {
    Tag { kind, timestamp_ms, data: Bytes::from_static(data) }
}

#[test]
fn tags_round_trip_however_they_are_cut() {
    let tags = [
        tag(TagKind::Script, 0, b"\x02\x00\x0aonMetaData"),
        tag(TagKind::Video, 0, &[0x17, 0, 0, 0, 0, 1, 2]),
        tag(TagKind::Audio, 0xFFFF_FFFF, &[0xAF, 1, 9]),
        tag(TagKind::Video, 0x0123_4567, &[0x27, 1, 0xFF, 0xFF, 0xF6, 1]),
    ];
    let mut bytes = BytesMut::from(&HEADER[..]);
    for tag in &tags {
        tag.encode(&mut bytes);
    }
    for step in [1, 2, 7, 1000] {
        let mut decoder = Decoder::new();
        let mut read = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while let Some(tag) = decoder.poll().unwrap() {
                read.push(tag);
            }
        }
        assert_eq!(read, tags, "step {step}");
    }
}

#[test]
fn bodies_are_understood() {
    let video = |data: &'static [u8]| tag(TagKind::Video, 0, data).video();
    let record = Bytes::from_static(&[1]);
    let codec = VideoCodec::Avc;
    assert_eq!(video(&[0x17, 0, 0, 0, 0, 1]), Ok(Video::Config { codec, record: record.clone() }));
    let codec = VideoCodec::Hevc;
    assert_eq!(video(&[0x1C, 0, 0, 0, 0, 1]), Ok(Video::Config { codec, record }));
    assert_eq!(video(&[0x27, 1, 0xFF, 0xFF, 0xF6, 5]), Ok(frame(VideoCodec::Avc, false, -10, 0, &[5])));
    assert_eq!(video(&[0x17, 2, 0, 0, 0]), Ok(Video::Nothing));
    for (data, message) in [
        (&b"\x90vvc1...."[..], "unsupported video codec VVC (vvc1): H.264, HEVC, AV1 and VP9 are taken"),
        (b"\x91\xff\0\0x", "unsupported video codec \\xff\\x00\\x00x: H.264, HEVC, AV1 and VP9 are taken"),
        (&[0x12, 0], "unsupported video codec Sorenson H.263 (2): H.264, HEVC, AV1 and VP9 are taken"),
        (&[][..], "video tag of 0 bytes is cut short"),
        (&[0x17, 1][..], "video tag of 2 bytes is cut short"),
    ] {
        assert_eq!(video(data).unwrap_err().to_string(), message);
    }
    let audio = |data: &'static [u8]| tag(TagKind::Audio, 0, data).audio();
    let codec = AudioCodec::Aac;
    let record = Bytes::from_static(&[0x11]);
    assert_eq!(audio(&[0xAF, 0, 0x11]), Ok(Audio::Config { codec, record: record.clone() }));
    assert_eq!(audio(&[0xAF, 1]), Ok(Audio::Frame { codec, data: Bytes::new() }));
    assert_eq!(audio(b"\x90mp4a\x11"), Ok(Audio::Config { codec, record }));
    let codec = AudioCodec::Opus;
    assert_eq!(audio(b"\x91Opusx"), Ok(Audio::Frame { codec, data: Bytes::from_static(b"x") }));
    assert_eq!(audio(b"\x94Opus\x01\x02"), Ok(Audio::Nothing), "a channel layout");
    let codec = AudioCodec::Mp3;
    for tag in [&b"\x2Fxy"[..], b"\xEExy", b"\x91.mp3xy"] {
        assert_eq!(audio(tag), Ok(Audio::Frame { codec, data: Bytes::from_static(b"xy") }));
    }
    for (data, message) in [
        (&[0x6F, 1][..], "unsupported audio codec Nellymoser (6): AAC, MP3 and Opus are taken"),
        (b"\x91ac-3x", "unsupported audio codec AC-3 (ac-3): AAC, MP3 and Opus are taken"),
        (b"\x91ac", "audio tag of 3 bytes is cut short"),
    ] {
        assert_eq!(audio(data).unwrap_err().to_string(), message);
    }
}

fn frame(codec: VideoCodec, key: bool, composition_ms: i32, nanos: u32, data: &[u8]) -> Video {
    Video::Frame { codec, key, composition_ms, nanos, data: Bytes::copy_from_slice(data) }
}

#[test]
fn enhanced_video_is_understood() {
    let video = |data: &'static [u8]| tag(TagKind::Video, 0, data).video();
    let record = Bytes::from_static(b"rec");
    assert_eq!(video(b"\x90hvc1rec"), Ok(Video::Config { codec: VideoCodec::Hevc, record: record.clone() }));
    assert_eq!(video(b"\x90av01rec"), Ok(Video::Config { codec: VideoCodec::Av1, record }));
    assert_eq!(video(b"\x91hvc1\0\0\x21x"), Ok(frame(VideoCodec::Hevc, true, 33, 0, b"x")));
    assert_eq!(video(b"\xA3avc1x"), Ok(frame(VideoCodec::Avc, false, 0, 0, b"x")), "CodedFramesX");
    assert_eq!(video(b"\xA1av01x"), Ok(frame(VideoCodec::Av1, false, 0, 0, b"x")), "no composition time");
    assert_eq!(video(b"\x92hvc1"), Ok(Video::Nothing), "end of sequence");
    assert_eq!(video(b"\x94hvc1\x02\0\x09colorInfo"), Ok(Video::Nothing), "metadata");
    assert_eq!(video(b"\xD1\0"), Ok(Video::Nothing), "a command");
    // Two modifiers: 0.5 ms, then one that nobody knows.
    assert_eq!(
        video(b"\x97\x02\x07\xA1\x20\x07\x00!\x53hvc1x"),
        Ok(frame(VideoCodec::Hevc, true, 0, 500_000, b"x"))
    );
    // One of 257 bytes, cut short.
    assert!(matches!(video(b"\x97\xFF\x01\x00xyz"), Err(Error::Short { .. })));
}

#[test]
fn the_first_of_many_tracks_is_read_and_the_others_are_named() {
    let of = |kind, data: &'static [u8]| tag(kind, 0, data);
    let check = |data, expected, others: &[u8]| {
        let tag = of(TagKind::Video, data);
        assert_eq!((tag.video(), tag.other_tracks()), (expected, others.to_vec()));
    };
    let av1 = |data| Ok(frame(VideoCodec::Av1, true, 0, 0, data));
    check(b"\x96\x01av01\x00xy", av1(b"xy"), &[]);
    check(b"\x96\x01av01\x05xy", Ok(Video::Nothing), &[5]);
    check(b"\x96\x11av01\x02\0\0\x01a\x00\0\0\x02bc\x02\0\0\0", av1(b"bc"), &[2]);
    // Each with a codec: those that are not taken do not matter beside the first.
    check(b"\x96\x21vvc1\x01\0\0\x01aav01\x00\0\0\x01b", av1(b"b"), &[1]);
    check(b"\x91hvc1\0\0\0x", Ok(frame(VideoCodec::Hevc, true, 0, 0, b"x")), &[]);
    let config = of(TagKind::Video, b"\x96\x10hvc1\x01\0\0\x01a");
    assert!(!config.is_config(), "of another track");
    for (data, message) in [
        (&b"\x96\x11av01\x00\0\0\x09a"[..], "video tag of 11 bytes is cut short"),
        (b"\x96\x31av01\x00", "video message with tracks of unknown kind 3"),
        (b"\x96\x06av01\x00", "video message with tracks of unknown kind 6"),
        (b"\x96", "video tag of 1 bytes is cut short"),
    ] {
        assert_eq!(of(TagKind::Video, data).video().unwrap_err().to_string(), message);
    }
    let audio = of(TagKind::Audio, b"\x95\x01Opus\x01x");
    assert_eq!((audio.audio(), audio.other_tracks()), (Ok(Audio::Nothing), vec![1]));
}

#[test]
fn damaged_headers_never_panic_and_are_read_alike() {
    let mut seed = 5u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    for _ in 0..50_000 {
        let len = usize::from(random() % 24);
        let mut data: Vec<u8> = (0..len).map(|_| random()).collect();
        if let Some(first) = data.first_mut() {
            // Mostly enhanced ones, with modifiers and tracks.
            *first = [*first, 0x96, 0x97, 0x95, 0x17, 0x57, 0x2C, 0xAF][usize::from(random() % 8)];
        }
        if let [0x17 | 0x57 | 0x2C | 0xAF, second, ..] = &mut data[..] {
            *second %= 4;
        }
        for kind in [TagKind::Video, TagKind::Audio] {
            let tag = Tag { kind, timestamp_ms: 0, data: data.clone().into() };
            let (video, audio, _) = (tag.video(), tag.audio(), tag.other_tracks());
            let (config, frame, key) = match kind {
                TagKind::Video => (
                    matches!(video, Ok(Video::Config { .. })),
                    matches!(video, Ok(Video::Frame { .. })),
                    matches!(video, Ok(Video::Frame { key: true, .. })),
                ),
                _ => (
                    matches!(audio, Ok(Audio::Config { .. })),
                    matches!(audio, Ok(Audio::Frame { .. })),
                    false,
                ),
            };
            assert_eq!((tag.is_config(), tag.is_frame(), tag.is_keyframe()), (config, frame, key), "{tag:?}");
        }
    }
}

#[test]
fn what_is_not_flv_is_named() {
    let mut decoder = Decoder::new();
    decoder.push(b"GET / HTTP/1.1\r\n");
    assert!(matches!(decoder.poll(), Err(Error::NoHeader(_))));
    let mut decoder = Decoder::new();
    decoder.push(&HEADER);
    decoder.push(&[9, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(decoder.poll(), Err(Error::TooLarge { len: 0xFF_FFFF, offset: 13 }));
    let mut decoder = Decoder::new();
    decoder.push(&HEADER);
    decoder.push(&[7; 11]);
    assert_eq!(decoder.poll(), Err(Error::UnknownTag { kind: 7, offset: 13 }));
}

#[test]
fn when_a_tag_was_received_is_told_beside_it() {
    let tag = tag(TagKind::Audio, 7, b"\xAF\x01x");
    let now = 1_700_000_000_000_i64;
    let told = |received: i64| {
        let mut bytes = BytesMut::from(&HEADER[..]);
        tag.encode_received(received as u64, &mut bytes);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.poll().unwrap().as_ref(), Some(&tag));
        decoder.received_unix_ms(now)
    };
    // Also by a clock that is ahead, and far apart.
    for ago in [0, 1, 250, -40, 3_600_000, -3_600_000] {
        assert_eq!(told(now - ago), Some(now - ago), "{ago}");
    }
    let mut bytes = BytesMut::from(&HEADER[..]);
    tag.encode(&mut bytes);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    decoder.poll().unwrap();
    assert_eq!(decoder.received_unix_ms(now), None);
}
