// What the fuzzer and the replay of its corpus (`tests/corpus.rs`) both run: each takes any bytes and panics only if the
// code under it does, or if it holds more than it may. Included by both, so that neither can drift.

use bytes::{Bytes, BytesMut};
use ingest::rtmp::chunk::ChunkReader;
use ingest::rtmp::{Event, Session, amf};
use media::codec::{AacConfig, AudioCodec, AudioConfig, VideoCodec, VideoConfig};
use media::flv::{Decoder, Tag, TagKind};

/// What a session may be told at most in one message here.
const MAX_MESSAGE_BYTES: u32 = 1 << 20;

/// What a session may hold: the largest message, unfinished ones beside it, doubled by growth; and what it has to say.
const MAX_HELD_BYTES: usize = 2 * ((1 << 20) + (1 << 20)) + (512 << 10);

/// A whole connection. A byte of its C1 says how the network cuts it.
pub(crate) fn session(data: &[u8]) {
    let step = data.get(9).copied().unwrap_or_default();
    let mut session = Session::new(MAX_MESSAGE_BYTES);
    for piece in data.chunks(1 + usize::from(step) * 16) {
        session.input().extend_from_slice(piece);
        while let Some(event) = session.poll() {
            match event {
                Event::Publish(_) => session.accept().expect("our answers can be written"),
                Event::Tag(tag) => understand(&tag),
                Event::Ended | Event::Failed(_) => {}
            }
        }
        assert!(session.held_bytes() <= MAX_HELD_BYTES, "{} bytes held", session.held_bytes());
        session.output().clear();
    }
    let _ = session.request_reconnect(None, "bye");
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
