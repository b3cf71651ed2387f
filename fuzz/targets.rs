// What the fuzzer and the replay of its corpus (`tests/corpus.rs`) both run: each takes any bytes and panics only if the
// code under it does, or if it holds more than it may. Included by both, so that neither can drift.

use std::alloc::System;

use bytes::{Bytes, BytesMut};
use cap::Cap;
use ingest::rtmp::chunk::ChunkReader;
use ingest::rtmp::{Event, Session, amf};
use media::codec::{AacConfig, AudioCodec, AudioConfig, VideoCodec, VideoConfig};
use media::flv::{Decoder, Tag, TagKind};

#[path = "script.rs"]
mod script;

/// Counts what is allocated, and refuses (which ends the process) what a target must not need.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// What a session may allocate beyond its input, whatever it is told: 4096 AMF0 values of the largest kind, and a first
/// buffer for each of 32 chunk streams. One message that is believed when it announces itself takes more.
const MAX_ALLOCATED_BYTES: usize = 3 << 20;

/// Runs `work` with so much memory on top of what is in use.
fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    MEMORY.set_limit(MEMORY.allocated() + bytes).expect("more than is in use");
    let done = work();
    MEMORY.set_limit(usize::MAX).expect("there is no more");
    done
}

/// What a session may be told at most in one message here.
const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// What a session may hold: the largest message, unfinished ones beside it, doubled by growth; and what it has to say.
const MAX_HELD_BYTES: usize = 2 * ((1 << 20) + (1 << 20)) + (512 << 10);

/// The same before it publishes: 64 KiB of messages, doubled by growth, a first buffer and what is to be said.
const MAX_UNPUBLISHED_BYTES: usize = 2 * (64 << 10) + (128 << 10);

/// A whole connection. A byte of its C1 says how the network cuts it.
pub(crate) fn session(data: &[u8]) {
    let step = data.get(9).copied().unwrap_or_default();
    converse(data, 1 + usize::from(step) * 16);
}

/// A connection that gets as far as `publish` and is hostile from there on. However the network cuts it, the same comes out.
pub(crate) fn broadcast(data: &[u8]) {
    let bytes = script::script(data);
    let whole = converse(&bytes, bytes.len());
    let step = 1 + usize::from(data.last().copied().unwrap_or_default());
    assert_eq!(converse(&bytes, step), whole, "cut every {step} bytes");
}

/// What came out of a session: its tags, and how it ended if it did.
type Outcome = (Vec<Tag>, Option<String>);

fn converse(data: &[u8], step: usize) -> Outcome {
    let (mut tags, mut end) = (Vec::new(), None);
    // What comes is held by the session, by its tags here, and once more where those were copied or a buffer has grown.
    within(MAX_ALLOCATED_BYTES + 8 * data.len(), || {
        let mut session = Session::new(MAX_MESSAGE_BYTES);
        let mut published = false;
        for piece in data.chunks(step) {
            session.input().extend_from_slice(piece);
            while let Some(event) = session.poll() {
                assert!(end.is_none(), "nothing follows the end");
                match event {
                    Event::Publish(_) => {
                        assert!(!published, "it publishes once");
                        published = true;
                        session.accept().expect("our answers can be written");
                    }
                    Event::Tag(tag) => {
                        assert!(published, "media belongs to a broadcast");
                        understand(&tag);
                        tags.push(tag);
                    }
                    Event::Ended => end = Some("ended".to_owned()),
                    Event::Failed(error) => end = Some(error.to_string()),
                }
            }
            let most = if published { MAX_HELD_BYTES } else { MAX_UNPUBLISHED_BYTES + 2 * step };
            assert!(session.held_bytes() <= most, "{} bytes held, {most} allowed", session.held_bytes());
            session.output().clear();
        }
        let _ = session.request_reconnect(None, "bye");
    });
    (tags, end)
}

/// The chunk layer alone, from its first chunk on.
pub(crate) fn chunk(data: &[u8]) {
    let (mut reader, mut input) = (ChunkReader::new(MAX_MESSAGE_BYTES, 1 << 20), BytesMut::from(data));
    while let Ok(Some(message)) = reader.read(&mut input) {
        assert!(message.data.len() <= data.len(), "a message cannot be longer than what came");
    }
    // At most doubled, and a first allocation for each of 32 chunk streams.
    assert!(reader.held_bytes() <= 2 * data.len() + 32 * (16 << 10), "{} bytes held", reader.held_bytes());
}

/// AMF0.
pub(crate) fn amf(data: &[u8]) {
    let _ = (amf::read(data), amf::leading_string(data));
}

/// An FLV stream and its tags. Its last byte says how the network cuts it.
pub(crate) fn flv(data: &[u8]) {
    let Some(step) = data.last() else { return };
    let mut decoder = Decoder::new();
    for piece in data.chunks(1 + usize::from(*step) * 4) {
        decoder.push(piece);
        while let Ok(Some(tag)) = decoder.poll() {
            understand(&tag);
        }
    }
    // As bodies, which is what most of the code is about.
    for kind in [TagKind::Audio, TagKind::Video] {
        understand(&Tag { kind, timestamp_ms: 0, data: Bytes::copy_from_slice(data) });
    }
}

/// Codec configuration records. The first byte says whose.
pub(crate) fn records(data: &[u8]) {
    let Some((codec, data)) = data.split_first() else { return };
    let record = Bytes::copy_from_slice(data);
    match codec % 6 {
        4 => drop(AacConfig::parse(record)),
        5 => {
            if let Ok(config) = AudioConfig::parse(AudioCodec::Opus, record) {
                assert!(config.frame_samples(data) <= 5760);
            }
        }
        video => {
            let codec = VideoCodec::ALL[usize::from(video)];
            let _ = VideoConfig::from_keyframe(codec, record.clone(), data);
            if let Ok(Some(config)) = VideoConfig::parse(codec, record) {
                assert!(config.width >= 16 && config.height >= 16 && config.sar.0 > 0 && config.sar.1 > 0);
            }
        }
    }
}

fn understand(tag: &Tag) {
    let _ = (tag.video(), tag.audio(), tag.is_config(), tag.is_frame());
    let others = tag.other_tracks();
    assert!(others.len() < 256 && !others.contains(&0));
}
