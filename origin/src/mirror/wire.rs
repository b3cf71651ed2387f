//! What one origin tells another, in frames of a push (`docs/push.md`): each thing an object with one name that says its
//! kind, what is known of it as JSON in one header field, and bytes behind it.
#![deny(clippy::disallowed_methods)]

use bytes::{Bytes, BytesMut};
use media::push::frame::{Fault, MAX_DATA_BYTES, data_header};
use media::push::{Bad, Decoder, Frame, Head, Name};
use media::time::Ticks;
use media::{Epoch, RenditionId, SegmentNumber, StreamName};
use serde::{Deserialize, Serialize};

use super::copy::Snapshot;

/// Longest body, in bytes: ten seconds at 50 Mbit/s.
pub const MAX_BODY_BYTES: usize = 64 << 20;

/// The one object that is ever on its way.
const ID: u32 = 0;

/// The header field that says what is known of an object.
const FIELD: &str = "rooftop-mirror";

/// One thing that is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// All streams of an origin, in place of what it said before.
    Streams(Vec<Listed>),
    /// How a stream stands, its media apart.
    Snapshot(Box<Snapshot>),
    /// An init segment.
    Init(InitOf, Bytes),
    /// A sheet of thumbnails.
    Sheet(SheetOf, Bytes),
    /// The newest picture by itself.
    Picture(PictureOf, Bytes),
    /// A segment, or more of it.
    Piece(Piece, Vec<Bytes>),
    /// All that there is has been told.
    Whole,
    /// Nothing more will come: the stream is over.
    Gone,
    /// The other side is there.
    Ping,
}

/// A stream in an origin's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its name.
    pub name: StreamName,
    /// Its newest run.
    pub epoch: Epoch,
    /// A session writes it.
    pub live: bool,
}

/// Whose init segment it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitOf {
    /// The rendition.
    pub rendition: RenditionId,
    /// The run.
    pub epoch: Epoch,
}

/// Which sheet of thumbnails it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SheetOf {
    /// The run.
    pub epoch: Epoch,
    /// Its number.
    pub number: SegmentNumber,
}

/// Which picture it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureOf {
    /// The run.
    pub epoch: Epoch,
    /// When it is shown, 90 kHz.
    pub pts: Ticks,
}

/// Parts of a segment that are new, as many as there are, and whether they are the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The rendition.
    pub rendition: RenditionId,
    /// The run that the segment belongs to.
    pub epoch: Epoch,
    /// Its number.
    pub number: SegmentNumber,
    /// Presentation time of its first sample, in ticks of the rendition.
    pub start: Ticks,
    /// Whether the timeline breaks before it.
    pub discontinuity: bool,
    /// Of a gap: how long it is, in ticks of the rendition.
    pub gap: Option<Ticks>,
    /// New parts: bytes, duration in ticks of the rendition, whether decoding can start with it.
    pub parts: Vec<(u64, Ticks, bool)>,
    /// Nothing more will come of it.
    pub closed: bool,
    /// The owner's clock when it told so, milliseconds since 1970.
    pub told_unix_ms: i64,
}

/// The other side said what makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Nonsense {
    /// Not a push.
    #[error(transparent)]
    Push(#[from] Bad),
    /// A frame that has no place here.
    #[error("frame out of turn: {0}")]
    OutOfTurn(&'static str),
    /// A body longer than its bound.
    #[error("{name}: more than {MAX_BODY_BYTES} bytes")]
    TooLong { name: Box<str> },
    /// What is known of it is not JSON of its kind.
    #[error("{name}: {error}")]
    Json { name: Box<str>, error: serde_json::Error },
    /// Its numbers cannot be counted with, or do not fit what was told before.
    #[error("{0}")]
    Insane(&'static str),
}

impl Message {
    /// As frames, in pieces that need not be copied.
    pub fn encode(&self) -> Result<Vec<Bytes>, Fault> {
        let json = |what: &dyn erased::Json| Bytes::from(what.json());
        let (name, field, body) = match self {
            Message::Streams(list) => ("/streams", None, vec![json(list)]),
            Message::Snapshot(snapshot) => ("/snapshot", None, vec![json(&**snapshot)]),
            Message::Init(of, init) => ("/init", Some(json(of)), vec![init.clone()]),
            Message::Sheet(of, jpeg) => ("/sheet", Some(json(of)), vec![jpeg.clone()]),
            Message::Picture(of, jpeg) => ("/picture", Some(json(of)), vec![jpeg.clone()]),
            Message::Piece(piece, bytes) => ("/piece", Some(json(piece)), bytes.clone()),
            Message::Whole => ("/whole", None, Vec::new()),
            Message::Gone => return frame(&Frame::Gone).map(|gone| vec![gone]),
            Message::Ping => return frame(&Frame::Ping).map(|ping| vec![ping]),
        };
        let head = Head {
            slot: 0,
            keep: 1,
            status: 200,
            length: Some(body.iter().map(|bytes| bytes.len() as u64).sum()),
            names: vec![Name { key: name.into(), control: "no-store".into(), live: false }],
            fields: field.map(|field| (FIELD.into(), field)).into_iter().collect(),
        };
        let mut out = vec![frame(&Frame::Begin { id: ID, head })?];
        for mut bytes in body {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(MAX_DATA_BYTES));
                let mut header = BytesMut::new();
                data_header(&mut header, ID, piece.len());
                out.extend([header.freeze(), piece]);
            }
        }
        out.push(frame(&Frame::End { id: ID })?);
        Ok(out)
    }
}

fn frame(frame: &Frame) -> Result<Bytes, Fault> {
    let mut out = BytesMut::new();
    frame.encode(&mut out)?;
    Ok(out.freeze())
}

mod erased {
    /// What can be written as JSON.
    pub(super) trait Json {
        fn json(&self) -> Vec<u8>;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> Vec<u8> {
            serde_json::to_vec(self).expect("it is plain data")
        }
    }
}

/// Reads messages out of chunks as they come; holds at most one body.
#[derive(Debug, Default)]
pub struct Reader {
    decoder: Decoder,
    open: Option<(Box<str>, Bytes, Vec<Bytes>, usize)>,
}

impl Reader {
    /// Takes from the front of `input` up to and including the next message; `None` when all of it is taken. After an error
    /// the rest makes no sense.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Message>, Nonsense> {
        while let Some(frame) = self.decoder.next(input)? {
            match (frame, &mut self.open) {
                (Frame::Begin { id: ID, head }, None) => {
                    let name = head.names.into_iter().next().map(|name| name.key).unwrap_or_default();
                    let field = head.fields.into_iter().find(|(name, _)| &**name == FIELD);
                    let field = field.map(|(_, value)| value).unwrap_or_default();
                    self.open = Some((name, field, Vec::new(), 0));
                }
                (Frame::Data { id: ID, bytes }, Some((name, _, body, len))) => {
                    *len += bytes.len();
                    if *len > MAX_BODY_BYTES {
                        return Err(Nonsense::TooLong { name: name.clone() });
                    }
                    body.push(bytes);
                }
                (Frame::End { id: ID }, open) => match open.take() {
                    Some((name, field, body, _)) => return message(name, &field, body).map(Some),
                    None => return Err(Nonsense::OutOfTurn("end")),
                },
                (Frame::Ping, _) => return Ok(Some(Message::Ping)),
                (Frame::Gone, None) => return Ok(Some(Message::Gone)),
                (Frame::Begin { .. }, _) => return Err(Nonsense::OutOfTurn("begin")),
                (Frame::Data { .. }, _) => return Err(Nonsense::OutOfTurn("data")),
                _ => return Err(Nonsense::OutOfTurn("not of a mirror")),
            }
        }
        Ok(None)
    }
}

fn message(name: Box<str>, field: &[u8], body: Vec<Bytes>) -> Result<Message, Nonsense> {
    let insane = |error| Nonsense::Json { name: name.clone(), error };
    Ok(match &*name {
        "/streams" => Message::Streams(serde_json::from_slice(&body.concat()).map_err(insane)?),
        "/snapshot" => Message::Snapshot(serde_json::from_slice(&body.concat()).map_err(insane)?),
        "/init" => Message::Init(serde_json::from_slice(field).map_err(insane)?, body.concat().into()),
        "/sheet" => Message::Sheet(serde_json::from_slice(field).map_err(insane)?, body.concat().into()),
        "/picture" => Message::Picture(serde_json::from_slice(field).map_err(insane)?, body.concat().into()),
        "/piece" => Message::Piece(serde_json::from_slice(field).map_err(insane)?, body),
        "/whole" => Message::Whole,
        _ => return Err(Nonsense::OutOfTurn("object of an unknown kind")),
    })
}
