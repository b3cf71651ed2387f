//! FLV tags: what ingest relays and the origin reads. (Adobe Flash Video File Format Specification 10.1, annex E;
//! Enhanced RTMP v2, "Enhanced Audio" and "Enhanced Video", for the headers with a FourCC.)
//!
//! A message may carry several tracks of a kind. The one that is read here is track 0, which Enhanced RTMP recommends for
//! the one of highest priority, and which is what messages without track numbers carry; the others are only named
//! ([`Tag::other_tracks`]).
#![deny(clippy::disallowed_methods)]

mod body;
mod decoder;
mod error;
mod tracks;

use bytes::{BufMut, Bytes, BytesMut};

pub use body::{Audio, Video};
pub use decoder::Decoder;
pub use error::Error;

/// Largest tag body accepted: an uncompressed-looking 4K keyframe is below 4 MiB, so 8 MiB leaves room without
/// letting one peer hold much.
pub const MAX_TAG_BYTES: usize = 8 << 20;

/// The nine bytes every FLV begins with, audio and video announced, and the zero "previous tag size" behind them.
pub const HEADER: [u8; 13] = [b'F', b'L', b'V', 1, 0b101, 0, 0, 0, 9, 0, 0, 0, 0];

/// What is told of the time at which a tag was received: 24 bits of milliseconds, four and a half hours.
const RECEIVED_MODULUS: u64 = 1 << 24;

/// What a tag carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagKind {
    /// Tag type 8.
    Audio,
    /// Tag type 9.
    Video,
    /// Tag type 18: AMF0 data such as `onMetaData`.
    Script,
}

/// One FLV tag, as RTMP messages of the same types carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Audio, video or script.
    pub kind: TagKind,
    /// Milliseconds; 32 bits that wrap.
    pub timestamp_ms: u32,
    /// The body, codec header included.
    pub data: Bytes,
}

impl Tag {
    /// Appends the tag and its "previous tag size" to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        self.write(0, out);
    }

    /// The same for who wants to know when the tag was received (milliseconds since 1970): the lower bits are where FLV has a
    /// stream's number, which is always 0 in files and of no meaning to readers. See [`Decoder::received_unix_ms`].
    pub fn encode_received(&self, unix_ms: u64, out: &mut BytesMut) {
        self.write((unix_ms % RECEIVED_MODULUS).max(1), out);
    }

    fn write(&self, stream_id: u64, out: &mut BytesMut) {
        let len = self.data.len();
        out.reserve(len + 15);
        out.put_u8(match self.kind {
            TagKind::Audio => 8,
            TagKind::Video => 9,
            TagKind::Script => 18,
        });
        out.put_uint(len as u64, 3);
        out.put_uint(u64::from(self.timestamp_ms & 0xFF_FFFF), 3);
        out.put_u8((self.timestamp_ms >> 24) as u8);
        out.put_uint(stream_id, 3);
        out.put_slice(&self.data);
        out.put_u32(len as u32 + 11);
    }

    /// A video tag with which decoding can start.
    pub fn is_keyframe(&self) -> bool {
        self.kind == TagKind::Video && self.shape() == Shape::Frame { key: true }
    }

    /// A coded frame of either track: what has a time of its own.
    pub fn is_frame(&self) -> bool {
        matches!(self.shape(), Shape::Frame { .. })
    }

    /// A sequence header (codec configuration) of either track.
    pub fn is_config(&self) -> bool {
        self.shape() == Shape::Config
    }

    /// A data message that says something of a moment, such as `onCuePoint`, and not of the stream, as `onMetaData` does.
    pub fn is_event(&self) -> bool {
        let of_the_stream =
            |name: &str| matches!(name, "onMetaData" | "|RtmpSampleAccess") || name.starts_with('@');
        self.kind == TagKind::Script && message_name(&self.data).is_some_and(|name| !of_the_stream(name))
    }

    /// The same as [`Tag::video`] and [`Tag::audio`] say. Asked several times of each tag, so it looks at the two bytes that
    /// tell in the tags that are common.
    fn shape(&self) -> Shape {
        match (self.kind, &self.data[..]) {
            (TagKind::Video, [first, packet_type, _, _, _, ..]) if matches!(first & 0x8F, 7 | 12) => {
                match (packet_type, first >> 4) {
                    (0, _) => Shape::Config,
                    (1, 5) => Shape::Nothing,
                    (1, frame_type) => Shape::Frame { key: frame_type == 1 },
                    _ => Shape::Nothing,
                }
            }
            (TagKind::Video, _) => match self.video() {
                Ok(Video::Config { .. }) => Shape::Config,
                Ok(Video::Frame { key, .. }) => Shape::Frame { key },
                Ok(Video::Nothing) | Err(_) => Shape::Nothing,
            },
            (TagKind::Audio, [first, packet_type, ..]) if first >> 4 == 10 => match packet_type {
                0 => Shape::Config,
                _ => Shape::Frame { key: true },
            },
            (TagKind::Audio, _) => match self.audio() {
                Ok(Audio::Config { .. }) => Shape::Config,
                Ok(Audio::Frame { .. }) => Shape::Frame { key: true },
                Ok(Audio::Nothing) | Err(_) => Shape::Nothing,
            },
            (TagKind::Script, _) => Shape::Nothing,
        }
    }
}

/// The name of a data message: the string (AMF0) that it begins with.
pub fn message_name(script: &[u8]) -> Option<&str> {
    let [2, high, low, rest @ ..] = script else { return None };
    std::str::from_utf8(rest.get(..usize::from(*high) << 8 | usize::from(*low))?).ok()
}

/// What a tag means, without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Config,
    Frame { key: bool },
    Nothing,
}

#[cfg(test)]
mod tests;
