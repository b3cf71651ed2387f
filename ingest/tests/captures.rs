//! Sessions as real encoders sent them (`testdata/`, named after who sent them, written down by `examples/capture.rs`), and
//! some that no encoder at hand sends yet, replayed byte for byte, however the network cuts them.

use std::collections::HashMap;
use std::path::Path;

use ingest::Error;
use ingest::rtmp::{Event, Session};
use media::codec::VideoCodec;
use media::flv::{Audio, Tag, TagKind, Video};
use rml_rtmp::rml_amf0::{Amf0Value, serialize};

/// What a session came to.
#[derive(Debug, Default)]
struct Replayed {
    key: String,
    tags: Vec<Tag>,
    ended: bool,
    failed: Option<Error>,
}

fn replay(bytes: &[u8], step: usize) -> Replayed {
    let (mut session, mut replayed) = (Session::new(8 << 20), Replayed::default());
    for piece in bytes.chunks(step) {
        session.input().extend_from_slice(piece);
        while let Some(event) = session.poll() {
            match event {
                Event::Publish(key) => {
                    replayed.key = format!("{} {}", key.stream, key.token);
                    session.accept().unwrap();
                }
                Event::Tag(tag) => replayed.tags.push(tag),
                Event::Ended => replayed.ended = true,
                Event::Failed(error) => replayed.failed = Some(error),
            }
        }
        session.output().clear();
        assert!(session.held_bytes() < 1 << 20, "{} bytes held", session.held_bytes());
    }
    replayed
}

/// Video frames, keyframes among them, audio frames.
fn count(tags: &[Tag]) -> (usize, usize, usize) {
    let video = tags
        .iter()
        .filter(|tag| matches!(tag.video(), Ok(Video::Frame { .. }) if tag.kind == TagKind::Video));
    let audio = tags
        .iter()
        .filter(|tag| matches!(tag.audio(), Ok(Audio::Frame { .. }) if tag.kind == TagKind::Audio));
    (
        video.count(),
        tags.iter().filter(|tag| tag.kind == TagKind::Video && tag.is_keyframe()).count(),
        audio.count(),
    )
}

#[test]
fn real_encoders() {
    for (name, video, audio, first_ms) in [
        ("ffmpeg_51_h264_bframes", 50, 88, 0),
        ("ffmpeg_51_near_24bit", 50, 88, 16_776_477),
        // ffmpeg keeps the sign bit zero: it wraps at 2^31.
        ("ffmpeg_51_near_31bit", 50, 88, 2_147_482_829),
        ("gstreamer_122_rtmp2sink", 50, 86, 0),
        ("gstreamer_122_librtmp", 50, 86, 0),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/{name}.bin"));
        let bytes = std::fs::read(path).unwrap();
        let whole = replay(&bytes, bytes.len());
        assert!(whole.failed.is_none() && whole.ended, "{name}: {:?}", whole.failed);
        assert_eq!(whole.key, "demo x", "{name}");
        assert_eq!(count(&whole.tags), (video, 2, audio), "{name}");
        let metadata = whole.tags.iter().filter(|tag| tag.kind == TagKind::Script).count();
        assert!(metadata >= 1, "{name}: no metadata");
        let first = whole.tags.iter().find(|tag| tag.is_frame()).unwrap().timestamp_ms;
        assert!(first.abs_diff(first_ms) < 30, "{name}: begins at {first}");
        // Two seconds, whatever was crossed on the way.
        let last = whole.tags.iter().rfind(|tag| tag.is_frame()).unwrap().timestamp_ms;
        assert!((1900..2100).contains(&last.wrapping_sub(first)), "{name}: {first} to {last}");
        for step in [1, 13, 1459] {
            assert_eq!(replay(&bytes, step).tags, whole.tags, "{name} in steps of {step}");
        }
    }
}

/// Builds a session as an encoder would send it.
struct Script {
    bytes: Vec<u8>,
    chunk_bytes: usize,
}

impl Script {
    /// Up to and including `publish`.
    fn publishing(properties: Vec<(&str, Amf0Value)>) -> Script {
        let mut script = Script { bytes: vec![3], chunk_bytes: 128 };
        script.bytes.extend([0; 2 * 1536]);
        let mut object: HashMap<_, _> = [("app".to_string(), text("live"))].into();
        object.extend(properties.into_iter().map(|(key, value)| (key.to_string(), value)));
        script.command(&[text("connect"), Amf0Value::Number(1.0), Amf0Value::Object(object)]);
        script.command(&[text("releaseStream"), Amf0Value::Number(2.0), Amf0Value::Null, text("demo")]);
        script.command(&[text("FCPublish"), Amf0Value::Number(3.0), Amf0Value::Null, text("demo")]);
        script.command(&[text("createStream"), Amf0Value::Number(4.0), Amf0Value::Null]);
        script.command(&[text("_checkbw"), Amf0Value::Number(5.0), Amf0Value::Null]);
        let publish =
            [text("publish"), Amf0Value::Number(0.0), Amf0Value::Null, text("demo?token=x"), text("live")];
        script.command(&publish);
        script
    }

    fn command(&mut self, values: &[Amf0Value]) {
        self.message(3, 20, 0, &serialize(&values.to_vec()).unwrap());
    }

    fn message(&mut self, csid: u8, kind: u8, time: u32, body: &[u8]) {
        for chunk in self.chunks(csid, kind, time, body) {
            self.bytes.extend(chunk);
        }
    }

    /// The chunks of a message, headers included.
    fn chunks(&self, csid: u8, kind: u8, time: u32, body: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        for (index, piece) in body.chunks(self.chunk_bytes).enumerate() {
            let mut chunk = Vec::new();
            if index == 0 {
                chunk.push(csid);
                chunk.extend(&time.min(0xFF_FFFF).to_be_bytes()[1..]);
                chunk.extend(&(body.len() as u32).to_be_bytes()[1..]);
                chunk.extend([kind, 1, 0, 0, 0]);
            } else {
                chunk.push(0xC0 | csid);
            }
            if time >= 0xFF_FFFF {
                chunk.extend(time.to_be_bytes());
            }
            chunk.extend(piece);
            chunks.push(chunk);
        }
        chunks
    }

    /// Messages whose chunks take turns.
    fn interleaved(&mut self, messages: &[(u8, u8, u32, &[u8])]) {
        let mut waiting: Vec<_> = messages
            .iter()
            .map(|(csid, kind, time, body)| self.chunks(*csid, *kind, *time, body).into_iter())
            .collect();
        loop {
            let turn: Vec<_> = waiting.iter_mut().filter_map(Iterator::next).collect();
            if turn.is_empty() {
                return;
            }
            self.bytes.extend(turn.into_iter().flatten());
        }
    }

    fn chunk_size(&mut self, bytes: u32) {
        self.message(2, 1, 0, &bytes.to_be_bytes());
        self.chunk_bytes = bytes as usize;
    }

    fn end(mut self) -> Vec<u8> {
        self.command(&[text("FCUnpublish"), Amf0Value::Number(6.0), Amf0Value::Null, text("demo")]);
        self.bytes
    }
}

fn text(text: &str) -> Amf0Value {
    Amf0Value::Utf8String(text.into())
}

fn body(head: &[u8], fill: u8, len: usize) -> Vec<u8> {
    let mut body = head.to_vec();
    body.resize(head.len() + len, fill);
    body
}

#[test]
fn enhanced_sessions_with_interleaved_chunk_streams() {
    let map = Amf0Value::Object([("*".to_string(), Amf0Value::Number(4.0))].into());
    let mut script =
        Script::publishing(vec![("videoFourCcInfoMap", map), ("capsEx", Amf0Value::Number(15.0))]);
    script.message(4, 9, 0, b"\x90hvc1record");
    script.message(5, 8, 0, b"\x90OpusOpusHead");
    let late = 0x0100_0000;
    let key = body(b"\x91hvc1\x00\x00\x21", 1, 5000);
    let (opus, second) = (body(b"\x91Opus", 2, 300), body(b"\x96\x01av01\x01", 3, 2000));
    script.interleaved(&[(4, 9, late, &key), (5, 8, late + 3, &opus), (6, 9, late + 5, &second)]);
    script.chunk_size(1000);
    let (nano, frame) = (body(b"\xA7\x02\x07\xA1\x20\x03hvc1", 4, 1500), body(b"\xA3av01", 5, 2000));
    script.interleaved(&[(5, 8, late + 23, &opus), (4, 9, late + 33, &nano), (6, 9, late + 66, &frame)]);
    // Begun, then given up; and something that no server knows.
    let given_up = script.chunks(7, 9, late, &body(b"\x91hvc1", 6, 3000)).swap_remove(0);
    script.bytes.extend(given_up);
    script.message(2, 2, 0, &7u32.to_be_bytes());
    script.message(3, 20, 0, &serialize(&vec![text("getSomething"), Amf0Value::Number(7.0)]).unwrap());
    script.message(7, 9, late + 99, b"\x92hvc1");
    let bytes = script.end();
    for step in [1, 7, 129, bytes.len()] {
        let replayed = replay(&bytes, step);
        assert!(replayed.failed.is_none() && replayed.ended, "{:?}", replayed.failed);
        assert_eq!(replayed.key, "demo x");
        let said: Vec<_> = replayed
            .tags
            .iter()
            .map(|tag| {
                let what = match tag.kind {
                    TagKind::Audio => match tag.audio().unwrap() {
                        Audio::Config { codec, record } => format!("{codec:?} config {}", record.len()),
                        Audio::Frame { codec, data } => format!("{codec:?} {}", data.len()),
                        Audio::Nothing => "no audio".into(),
                    },
                    _ => match tag.video().unwrap() {
                        Video::Config { codec, record } => format!("{codec:?} config {}", record.len()),
                        Video::Frame { codec, key, composition_ms, nanos, data } => {
                            let kind = if key { "key" } else { "frame" };
                            format!("{codec:?} {kind} +{composition_ms}.{nanos:06} {}", data.len())
                        }
                        Video::Nothing => format!("no video, others {:?}", tag.other_tracks()),
                    },
                };
                (tag.timestamp_ms.wrapping_sub(late), what)
            })
            .collect();
        let said: Vec<_> = said.iter().map(|(ms, what)| (*ms as i32, what.as_str())).collect();
        assert_eq!(
            said,
            [
                (-0x0100_0000, "Hevc config 6"),
                (-0x0100_0000, "Opus config 8"),
                (3, "Opus 300"),
                (5, "no video, others [1]"),
                (0, "Hevc key +33.000000 5000"),
                (23, "Opus 300"),
                (33, "Hevc frame +0.500000 1500"),
                (66, "Av1 frame +0.000000 2000"),
                (99, "no video, others []"),
            ]
        );
    }
    assert_eq!(VideoCodec::from_fourcc(b"av01"), Some(VideoCodec::Av1));
}
