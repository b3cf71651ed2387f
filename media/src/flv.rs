//! FLV tags: what ingest relays and the origin reads. (Adobe Flash Video File Format Specification 10.1, annex E;
//! Enhanced RTMP v2, "Enhanced Audio" and "Enhanced Video", for the headers with a FourCC.)
//!
//! A message may carry several tracks of a kind. The one that is read here is track 0, which Enhanced RTMP recommends for
//! the one of highest priority, and which is what messages without track numbers carry; the others are only named
//! ([`Tag::other_tracks`]).
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{AudioCodec, VideoCodec};

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
    #[error("unsupported {track} codec {codec}: {taken} are taken", taken = taken(track))]
    UnsupportedCodec {
        /// "video" or "audio".
        track: &'static str,
        /// Its name, or its number when it has none.
        codec: String,
    },
    /// A kind of multitrack message that Enhanced RTMP v2 does not know.
    #[error("{track} message with tracks of unknown kind {kind}")]
    UnknownMultitrack {
        /// "video" or "audio".
        track: &'static str,
        /// The `AvMultitrackType` found, or the packet type that may not stand inside.
        kind: u8,
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

    /// A coded frame of either track: what has a time of its own.
    pub fn is_frame(&self) -> bool {
        match self.kind {
            TagKind::Video => matches!(self.video(), Ok(Video::Frame { .. })),
            TagKind::Audio => matches!(self.audio(), Ok(Audio::Frame { .. })),
            TagKind::Script => false,
        }
    }

    /// A sequence header (codec configuration) of either track.
    pub fn is_config(&self) -> bool {
        match self.kind {
            TagKind::Video => matches!(self.video(), Ok(Video::Config { .. })),
            TagKind::Audio => matches!(self.audio(), Ok(Audio::Config { .. })),
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
            return self.enhanced_video(first);
        }
        let frame_type = first >> 4;
        let codec = match first & 0x0F {
            7 => VideoCodec::Avc,
            // Not in any specification, but what encoders sent for HEVC before there was Enhanced RTMP.
            12 => VideoCodec::Hevc,
            id => return Err(Error::UnsupportedCodec { track: "video", codec: video_codec_name(id) }),
        };
        if body.len() < 4 {
            return Err(short);
        }
        let packet_type = body.get_u8();
        let composition_ms = sign_extend_24(body.get_uint(3) as u32);
        match (packet_type, frame_type) {
            (0, _) => Ok(Video::Config { codec, record: body }),
            (1, 5) => Ok(Video::Nothing),
            (1, _) => {
                let key = frame_type == 1;
                Ok(Video::Frame { codec, key, composition_ms, nanos: 0, data: body })
            }
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
        let codec = AudioCodec::Aac;
        let format = body.get_u8() >> 4;
        match format {
            9 => self.enhanced_audio(),
            10 if body.is_empty() => Err(Error::Short { what: "AAC tag", len }),
            10 => match body.get_u8() {
                0 => Ok(Audio::Config { codec, record: body }),
                _ => Ok(Audio::Frame { codec, data: body }),
            },
            _ => Err(Error::UnsupportedCodec { track: "audio", codec: audio_codec_name(format) }),
        }
    }

    /// The numbers of the tracks that an Enhanced RTMP message carries besides the one that is read, without doubles.
    /// Empty for all others, and for what cannot be read.
    pub fn other_tracks(&self) -> Vec<u8> {
        let mut others = Vec::new();
        let first = self.data.first().copied().unwrap_or_default();
        let enhanced = match self.kind {
            TagKind::Video => first & 0x80 != 0,
            TagKind::Audio => first >> 4 == 9,
            TagKind::Script => false,
        };
        if enhanced && let Ok(Header { tracks: Some(mut tracks), .. }) = Header::read(self) {
            while let Ok(Some(track)) = tracks.next() {
                if track.id != 0 && !others.contains(&track.id) {
                    others.push(track.id);
                }
            }
        }
        others
    }

    /// ExVideoTagHeader and ExVideoTagBody.
    fn enhanced_video(&self, first: u8) -> Result<Video, Error> {
        const COMMAND: u8 = 5;
        let header = Header::read(self)?;
        let frame_type = first >> 4 & 7;
        if frame_type == COMMAND && header.packet_type != 4 {
            return Ok(Video::Nothing);
        }
        let Some(Packet { packet_type, fourcc, mut body }) = header.first_track()? else {
            return Ok(Video::Nothing);
        };
        if !matches!(packet_type, 0 | 1 | 3) {
            // End of sequence, colour metadata, and what later versions may add.
            return Ok(Video::Nothing);
        }
        let codec = VideoCodec::from_fourcc(&fourcc)
            .ok_or_else(|| Error::UnsupportedCodec { track: "video", codec: fourcc_name(&fourcc) })?;
        let mut composition_ms = 0;
        match packet_type {
            0 => return Ok(Video::Config { codec, record: body }),
            // CodedFrames: these two reorder, so their frames say when they are shown.
            1 if matches!(codec, VideoCodec::Avc | VideoCodec::Hevc) => {
                if body.len() < 3 {
                    return Err(Error::Short { what: "video tag", len: self.data.len() });
                }
                composition_ms = sign_extend_24(body.get_uint(3) as u32);
            }
            _ => {}
        }
        Ok(Video::Frame { codec, key: frame_type == 1, composition_ms, nanos: header.nanos, data: body })
    }

    /// ExAudioTagHeader and ExAudioTagBody.
    fn enhanced_audio(&self) -> Result<Audio, Error> {
        let Some(Packet { packet_type, fourcc, body }) = Header::read(self)?.first_track()? else {
            return Ok(Audio::Nothing);
        };
        if !matches!(packet_type, 0 | 1) {
            // End of sequence, channel layout, and what later versions may add.
            return Ok(Audio::Nothing);
        }
        let codec = AudioCodec::from_fourcc(&fourcc)
            .ok_or_else(|| Error::UnsupportedCodec { track: "audio", codec: fourcc_name(&fourcc) })?;
        Ok(match packet_type {
            0 => Audio::Config { codec, record: body },
            _ => Audio::Frame { codec, data: body },
        })
    }
}

/// What a video tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Video {
    /// A codec's configuration record, such as an `AVCDecoderConfigurationRecord`.
    Config {
        /// Whose.
        codec: VideoCodec,
        /// The record.
        record: Bytes,
    },
    /// One access unit: length-prefixed NAL units, or a temporal unit of OBUs, or a VP9 frame.
    Frame {
        /// What it is coded in.
        codec: VideoCodec,
        /// Decoding can start here.
        key: bool,
        /// Presentation minus decoding time; negative offsets occur in the wild.
        composition_ms: i32,
        /// What presentation is later than the milliseconds say (Enhanced RTMP, `TimestampOffsetNano`), below 1000000.
        nanos: u32,
        /// The access unit.
        data: Bytes,
    },
    /// End of sequence, a command, metadata, or other tracks only: nothing to decode.
    Nothing,
}

/// What an audio tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audio {
    /// A codec's configuration record, such as an `AudioSpecificConfig`.
    Config {
        /// Whose.
        codec: AudioCodec,
        /// The record.
        record: Bytes,
    },
    /// One coded frame.
    Frame {
        /// What it is coded in.
        codec: AudioCodec,
        /// The frame.
        data: Bytes,
    },
    /// End of sequence, channel layout, or other tracks only: nothing to decode.
    Nothing,
}

/// The header of an Enhanced RTMP message up to its tracks.
struct Header {
    packet_type: u8,
    nanos: u32,
    /// `None` for a message with one track and no number.
    tracks: Option<Tracks>,
    /// The codec of a message without track numbers, if its body is long enough for one.
    fourcc: Option<[u8; 4]>,
    body: Bytes,
    what: &'static str,
    len: usize,
}

/// The tracks of a multitrack message, one after the other.
#[derive(Clone)]
struct Tracks {
    what: &'static str,
    len: usize,
    layout: u8,
    packet_type: u8,
    /// The codec of all tracks, where they share one.
    fourcc: Option<[u8; 4]>,
    rest: Bytes,
}

struct Track {
    id: u8,
    packet: Packet,
}

struct Packet {
    packet_type: u8,
    fourcc: [u8; 4],
    body: Bytes,
}

/// `AvMultitrackType`: one track, which has no length.
const ONE_TRACK: u8 = 0;
/// `AvMultitrackType`: several, each with a FourCC.
const MANY_CODECS: u8 = 2;

impl Header {
    fn read(tag: &Tag) -> Result<Header, Error> {
        const MOD_EX: u8 = 7;
        const NANO_OFFSET: u8 = 0;
        let (kind, what, multitrack) = match tag.kind {
            TagKind::Video => ("video", "video tag", 6),
            _ => ("audio", "audio tag", 5),
        };
        let len = tag.data.len();
        let short = || Error::Short { what, len };
        let mut body = tag.data.clone();
        let mut packet_type = body.try_get_u8().map_err(|_| short())? & 0x0F;
        let mut nanos = 0;
        while packet_type == MOD_EX {
            let mut size = usize::from(body.try_get_u8().map_err(|_| short())?) + 1;
            if size == 256 {
                size = usize::from(body.try_get_u16().map_err(|_| short())?) + 1;
            }
            if body.len() < size {
                return Err(short());
            }
            let data = body.split_to(size);
            let types = body.try_get_u8().map_err(|_| short())?;
            packet_type = types & 0x0F;
            if types >> 4 == NANO_OFFSET && size >= 3 {
                nanos = u32::from_be_bytes([0, data[0], data[1], data[2]]).min(999_999);
            }
        }
        if packet_type != multitrack {
            // A command has no FourCC; nor does it have anything else that is of interest.
            let fourcc = take_fourcc(&mut body);
            return Ok(Header { packet_type, nanos, tracks: None, fourcc, body, what, len });
        }
        let types = body.try_get_u8().map_err(|_| short())?;
        let (layout, inner) = (types >> 4, types & 0x0F);
        if layout > MANY_CODECS || inner == multitrack {
            let kind_found = if layout > MANY_CODECS { layout } else { inner };
            return Err(Error::UnknownMultitrack { track: kind, kind: kind_found });
        }
        let fourcc = match layout {
            MANY_CODECS => None,
            _ => Some(take_fourcc(&mut body).ok_or_else(short)?),
        };
        let tracks = Tracks { what, len, layout, packet_type: inner, fourcc, rest: body };
        let tracks = Some(tracks);
        Ok(Header { packet_type: inner, nanos, tracks, fourcc: None, body: Bytes::new(), what, len })
    }

    /// What the message has for track 0.
    fn first_track(&self) -> Result<Option<Packet>, Error> {
        let Some(tracks) = &self.tracks else {
            let fourcc = self.fourcc.ok_or(Error::Short { what: self.what, len: self.len })?;
            return Ok(Some(Packet { packet_type: self.packet_type, fourcc, body: self.body.clone() }));
        };
        let mut tracks = tracks.clone();
        while let Some(track) = tracks.next()? {
            if track.id == 0 {
                return Ok(Some(track.packet));
            }
        }
        Ok(None)
    }
}

impl Tracks {
    fn next(&mut self) -> Result<Option<Track>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let short = Error::Short { what: self.what, len: self.len };
        let Some(fourcc) = self.fourcc.or_else(|| take_fourcc(&mut self.rest)) else { return Err(short) };
        let Ok(id) = self.rest.try_get_u8() else { return Err(short) };
        let size = match self.layout {
            ONE_TRACK => self.rest.len(),
            _ if self.rest.len() < 3 => return Err(short),
            _ => self.rest.get_uint(3) as usize,
        };
        if self.rest.len() < size {
            return Err(short);
        }
        let body = self.rest.split_to(size);
        Ok(Some(Track { id, packet: Packet { packet_type: self.packet_type, fourcc, body } }))
    }
}

fn take_fourcc(body: &mut Bytes) -> Option<[u8; 4]> {
    let fourcc = *body.first_chunk()?;
    body.advance(4);
    Some(fourcc)
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

fn taken(track: &str) -> &'static str {
    if track == "video" { "H.264, HEVC, AV1 and VP9" } else { "AAC and Opus" }
}

fn fourcc_name(fourcc: &[u8; 4]) -> String {
    let name = match fourcc {
        b"vvc1" => "VVC ",
        b"vp08" => "VP8 ",
        b"ac-3" => "AC-3 ",
        b"ec-3" => "E-AC-3 ",
        b".mp3" => "MP3 ",
        b"fLaC" => "FLAC ",
        _ => "",
    };
    if name.is_empty() {
        fourcc.escape_ascii().to_string()
    } else {
        format!("{name}({})", fourcc.escape_ascii())
    }
}

fn video_codec_name(id: u8) -> String {
    match id {
        2 => "Sorenson H.263 (2)".into(),
        3 => "Screen video (3)".into(),
        4 => "VP6 (4)".into(),
        5 => "VP6 with alpha (5)".into(),
        6 => "Screen video 2 (6)".into(),
        13 => "AV1 by number (13)".into(),
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
        let record = Bytes::from_static(&[1]);
        let codec = VideoCodec::Avc;
        assert_eq!(video(&[0x17, 0, 0, 0, 0, 1]), Ok(Video::Config { codec, record: record.clone() }));
        let codec = VideoCodec::Hevc;
        assert_eq!(video(&[0x1C, 0, 0, 0, 0, 1]), Ok(Video::Config { codec, record }));
        assert_eq!(video(&[0x27, 1, 0xFF, 0xFF, 0xF6, 5]), Ok(frame(VideoCodec::Avc, false, -10, 0, &[5])));
        assert_eq!(video(&[0x17, 2, 0, 0, 0]), Ok(Video::Nothing));
        for (data, message) in [
            (&b"\x90vvc1...."[..], "unsupported video codec VVC (vvc1): H.264, HEVC, AV1 and VP9 are taken"),
            (
                b"\x91\xff\0\0x",
                "unsupported video codec \\xff\\x00\\x00x: H.264, HEVC, AV1 and VP9 are taken",
            ),
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
        for (data, message) in [
            (&[0x2F, 1][..], "unsupported audio codec MP3 (2): AAC and Opus are taken"),
            (b"\x91ac-3x", "unsupported audio codec AC-3 (ac-3): AAC and Opus are taken"),
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
        assert_eq!(
            video(b"\x90hvc1rec"),
            Ok(Video::Config { codec: VideoCodec::Hevc, record: record.clone() })
        );
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
    fn damaged_headers_never_panic() {
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
                *first = [*first, 0x96, 0x97, 0x95][usize::from(random() % 4)];
            }
            for kind in [TagKind::Video, TagKind::Audio] {
                let tag = Tag { kind, timestamp_ms: 0, data: data.clone().into() };
                let _ = (tag.video(), tag.audio(), tag.other_tracks(), tag.is_config());
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
}
