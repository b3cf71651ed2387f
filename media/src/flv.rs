//! FLV tags: what ingest relays and the origin reads. (Adobe Flash Video File Format Specification 10.1, annex E;
//! Enhanced RTMP v2 for the FourCC headers that are recognised and named.)
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest tag body accepted: an uncompressed-looking 4K keyframe is below 4 MiB, so 8 MiB leaves room without
/// letting one peer hold much.
pub const MAX_TAG_BYTES: usize = 8 << 20;

/// The nine bytes every FLV begins with, audio and video announced, and the zero "previous tag size" behind them.
pub const HEADER: [u8; 13] = [b'F', b'L', b'V', 1, 0b101, 0, 0, 0, 9, 0, 0, 0, 0];

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

/// Why a byte stream is not FLV, or a tag not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stream does not begin with an FLV header.
    #[error("no FLV header: stream begins with {0:02x?}")]
    NoHeader([u8; 4]),
    /// A tag type other than 8, 9 and 18.
    #[error("tag type {kind} at byte {offset} is none of audio (8), video (9), script (18)")]
    UnknownTag {
        /// The type found.
        kind: u8,
        /// Where, from the start of the stream.
        offset: u64,
    },
    /// A tag body above [`MAX_TAG_BYTES`].
    #[error("tag of {len} bytes at byte {offset} exceeds {MAX_TAG_BYTES}")]
    TooLarge {
        /// Announced length.
        len: usize,
        /// Where, from the start of the stream.
        offset: u64,
    },
    /// A body that ends inside its codec header.
    #[error("{what} of {len} bytes is cut short")]
    Short {
        /// Which header.
        what: &'static str,
        /// How long the body is.
        len: usize,
    },
    /// A codec that Rooftop does not take.
    #[error("unsupported {track} codec {codec}")]
    UnsupportedCodec {
        /// "video" or "audio".
        track: &'static str,
        /// Its name, or its number when it has none.
        codec: String,
    },
}

impl Tag {
    /// Appends the tag and its "previous tag size" to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
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
        out.put_uint(0, 3);
        out.put_slice(&self.data);
        out.put_u32(len as u32 + 11);
    }

    /// A video tag with which decoding can start.
    pub fn is_keyframe(&self) -> bool {
        matches!(self.video(), Ok(Video::Frame { key: true, .. }))
    }

    /// A sequence header (codec configuration) of either track.
    pub fn is_config(&self) -> bool {
        match self.kind {
            TagKind::Video => matches!(self.video(), Ok(Video::Config(_))),
            TagKind::Audio => matches!(self.audio(), Ok(Audio::Config(_))),
            TagKind::Script => false,
        }
    }

    /// Reads a video body.
    pub fn video(&self) -> Result<Video, Error> {
        let mut body = self.data.clone();
        let len = body.len();
        let short = Error::Short { what: "video tag", len };
        if len == 0 {
            return Err(short);
        }
        let first = body.get_u8();
        if first & 0x80 != 0 {
            // Enhanced RTMP: low nibble = packet type, then a FourCC.
            let fourcc = if len >= 5 { body.split_to(4) } else { return Err(short) };
            return Err(Error::UnsupportedCodec { track: "video", codec: printable(&fourcc) });
        }
        let frame_type = first >> 4;
        if first & 0x0F != 7 {
            return Err(Error::UnsupportedCodec { track: "video", codec: video_codec_name(first & 0x0F) });
        }
        if body.len() < 4 {
            return Err(short);
        }
        let packet_type = body.get_u8();
        let composition_ms = sign_extend_24(body.get_uint(3) as u32);
        match (packet_type, frame_type) {
            (0, _) => Ok(Video::Config(body)),
            (1, 5) => Ok(Video::Nothing),
            (1, _) => Ok(Video::Frame { key: frame_type == 1, composition_ms, data: body }),
            _ => Ok(Video::Nothing),
        }
    }

    /// Reads an audio body.
    pub fn audio(&self) -> Result<Audio, Error> {
        let mut body = self.data.clone();
        let len = body.len();
        if len == 0 {
            return Err(Error::Short { what: "audio tag", len });
        }
        let format = body.get_u8() >> 4;
        match format {
            10 if body.is_empty() => Err(Error::Short { what: "AAC tag", len }),
            10 => match body.get_u8() {
                0 => Ok(Audio::Config(body)),
                _ => Ok(Audio::Frame(body)),
            },
            9 if len >= 5 => Err(Error::UnsupportedCodec { track: "audio", codec: printable(&body[..4]) }),
            _ => Err(Error::UnsupportedCodec { track: "audio", codec: audio_codec_name(format) }),
        }
    }
}

/// What a video tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Video {
    /// An `AVCDecoderConfigurationRecord`.
    Config(Bytes),
    /// One access unit of length-prefixed NAL units.
    Frame {
        /// Decoding can start here.
        key: bool,
        /// Presentation minus decoding time; negative offsets occur in the wild.
        composition_ms: i32,
        /// The access unit.
        data: Bytes,
    },
    /// End of sequence, or a command frame: nothing to decode.
    Nothing,
}

/// What an audio tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audio {
    /// An `AudioSpecificConfig`.
    Config(Bytes),
    /// One raw AAC frame.
    Frame(Bytes),
}

/// Cuts a byte stream into tags. Holds at most one tag of [`MAX_TAG_BYTES`] beside what one push brings.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    offset: u64,
    began: bool,
}

impl Decoder {
    /// A decoder that expects the FLV header first.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole tag, `None` if it has not all come yet. After an error the stream cannot be read on.
    pub fn poll(&mut self) -> Result<Option<Tag>, Error> {
        if !self.began {
            if self.buffer.len() < HEADER.len() {
                return Ok(None);
            }
            if &self.buffer[..3] != b"FLV" {
                return Err(Error::NoHeader([0, 1, 2, 3].map(|i| self.buffer[i])));
            }
            self.consume(HEADER.len());
            self.began = true;
        }
        let Some(header) = self.buffer.first_chunk::<11>() else {
            return Ok(None);
        };
        let offset = self.offset;
        // The two upper bits are reserved, the third marks encryption, which nobody sends over RTMP.
        let kind = match header[0] {
            8 => TagKind::Audio,
            9 => TagKind::Video,
            18 => TagKind::Script,
            kind => return Err(Error::UnknownTag { kind, offset }),
        };
        let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
        if len > MAX_TAG_BYTES {
            return Err(Error::TooLarge { len, offset });
        }
        let timestamp_ms = u32::from_be_bytes([header[7], header[4], header[5], header[6]]);
        if self.buffer.len() < 11 + len + 4 {
            return Ok(None);
        }
        self.consume(11);
        let data = self.buffer.split_to(len).freeze();
        self.offset += len as u64;
        self.consume(4);
        Ok(Some(Tag { kind, timestamp_ms, data }))
    }

    fn consume(&mut self, len: usize) {
        self.buffer.advance(len);
        self.offset += len as u64;
    }
}

fn sign_extend_24(value: u32) -> i32 {
    ((value << 8) as i32) >> 8
}

fn printable(fourcc: &[u8]) -> String {
    fourcc.escape_ascii().to_string()
}

fn video_codec_name(id: u8) -> String {
    match id {
        2 => "Sorenson H.263 (2)".into(),
        3 => "Screen video (3)".into(),
        4 => "VP6 (4)".into(),
        5 => "VP6 with alpha (5)".into(),
        6 => "Screen video 2 (6)".into(),
        12 => "HEVC by number (12)".into(),
        id => format!("number {id}"),
    }
}

fn audio_codec_name(id: u8) -> String {
    match id {
        0 | 3 => format!("PCM ({id})"),
        1 => "ADPCM (1)".into(),
        2 | 14 => format!("MP3 ({id})"),
        4..=6 => format!("Nellymoser ({id})"),
        7 | 8 => format!("G.711 ({id})"),
        11 => "Speex (11)".into(),
        id => format!("number {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(video(&[0x17, 0, 0, 0, 0, 1]), Ok(Video::Config(Bytes::from_static(&[1]))));
        assert_eq!(
            video(&[0x27, 1, 0xFF, 0xFF, 0xF6, 5]),
            Ok(Video::Frame { key: false, composition_ms: -10, data: Bytes::from_static(&[5]) })
        );
        assert_eq!(video(&[0x17, 2, 0, 0, 0]), Ok(Video::Nothing));
        for (data, message) in [
            (&b"\x90hvc1...."[..], "unsupported video codec hvc1"),
            (&[0x12, 0][..], "unsupported video codec Sorenson H.263 (2)"),
            (&[][..], "video tag of 0 bytes is cut short"),
            (&[0x17, 1][..], "video tag of 2 bytes is cut short"),
        ] {
            assert_eq!(video(data).unwrap_err().to_string(), message);
        }
        let audio = |data: &'static [u8]| tag(TagKind::Audio, 0, data).audio();
        assert_eq!(audio(&[0xAF, 0, 0x11]), Ok(Audio::Config(Bytes::from_static(&[0x11]))));
        assert_eq!(audio(&[0xAF, 1]), Ok(Audio::Frame(Bytes::new())));
        assert_eq!(audio(&[0x2F, 1]).unwrap_err().to_string(), "unsupported audio codec MP3 (2)");
        assert_eq!(audio(b"\x94Opus").unwrap_err().to_string(), "unsupported audio codec Opus");
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
}
