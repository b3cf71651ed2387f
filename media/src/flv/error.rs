//! What can be wrong with FLV, in words.
#![deny(clippy::disallowed_methods)]

use super::MAX_TAG_BYTES;

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

fn taken(track: &str) -> &'static str {
    if track == "video" { "H.264, HEVC, AV1 and VP9" } else { "AAC, MP3 and Opus" }
}

pub(super) fn fourcc_name(fourcc: &[u8; 4]) -> String {
    let name = match fourcc {
        b"vvc1" => "VVC ",
        b"vp08" => "VP8 ",
        b"ac-3" => "AC-3 ",
        b"ec-3" => "E-AC-3 ",
        b"fLaC" => "FLAC ",
        _ => "",
    };
    if name.is_empty() {
        fourcc.escape_ascii().to_string()
    } else {
        format!("{name}({})", fourcc.escape_ascii())
    }
}

pub(super) fn video_codec_name(id: u8) -> String {
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

pub(super) fn audio_codec_name(id: u8) -> String {
    match id {
        0 | 3 => format!("PCM ({id})"),
        1 => "ADPCM (1)".into(),
        4..=6 => format!("Nellymoser ({id})"),
        7 | 8 => format!("G.711 ({id})"),
        11 => "Speex (11)".into(),
        id => format!("number {id}"),
    }
}
