//! One broadcaster's RTMP session: bytes in; events, and bytes to send, out. (Adobe RTMP 1.0; Enhanced RTMP v2 for what
//! both sides say of themselves in `connect`, and for the request to reconnect. Its tags pass through as they are.)
//!
//! rml_rtmp does the handshake and writes the answers; chunks and AMF0 are read by [`super::chunk`] and [`super::amf`],
//! because its readers trust the peer.
#![deny(clippy::disallowed_methods)]

mod aggregate;
mod answers;
mod clock;
mod handshake;

use std::borrow::Cow;

use bytes::{Buf, BytesMut};
use media::flv::{Tag, TagKind};
use rml_rtmp::messages::{RtmpMessage, UserControlEventType};
use rml_rtmp::rml_amf0::Amf0Value;
use rml_rtmp::time::RtmpTimestamp;

use crate::Error;
use crate::rtmp::amf;
use crate::rtmp::chunk::{ChunkReader, Message};
use crate::stream_key::StreamKey;

use aggregate::Aggregate;
use answers::{Answers, CAPS_RECONNECT};
use clock::Clock;
use handshake::{HANDSHAKE_BYTES, Handshaking};

/// What a connection may have us hold of its messages before it publishes: until then anyone may have sent them.
const MAX_UNPUBLISHED_BYTES: u32 = 64 << 10;

/// Commands and metadata: a `connect` has about 300 bytes, an `onMetaData` with cue points a few thousand.
const MAX_COMMAND_BYTES: usize = 64 << 10;

/// `createStream` calls: one is enough to publish.
const MAX_STREAMS: u32 = 8;

/// Media messages may be cut by others, but only one of them is large: unfinished messages together hold at most the
/// largest message and this.
const PARTIAL_SLACK_BYTES: usize = 1 << 20;

/// What the broadcaster did.
#[derive(Debug)]
pub enum Event {
    /// It wants to publish: answer with [`Session::accept`] or [`Session::refuse`]. Comes at most once.
    Publish(StreamKey),
    /// Audio, video or metadata, from the publish request on.
    Tag(Tag),
    /// It ended the broadcast in an orderly way. Nothing follows.
    Ended,
    /// The session cannot go on. Nothing follows, but the peer should still get what waits to be sent.
    Failed(Error),
}

/// The state of one session.
pub struct Session {
    input: BytesMut,
    answers: Answers,
    /// While it lasts.
    handshake: Option<Handshaking>,
    chunks: ChunkReader,
    /// What is left of the last message, if that is many in one.
    aggregate: Option<Aggregate>,
    max_message_bytes: u32,
    ack: AckWindow,
    clock: Clock,
    app: Option<App>,
    streams: u32,
    publishing: Option<u32>,
    over: bool,
}

/// When to acknowledge what was received (5.4.3).
#[derive(Default)]
struct AckWindow {
    size: Option<u32>,
    acknowledged: u64,
}

struct App {
    name: String,
    tc_url: String,
    /// What the client says of itself (`CapsExMask`).
    caps_ex: u32,
}

impl Session {
    /// A session that waits for the handshake and refuses messages above `max_message_bytes`; above 64 KiB in all before it
    /// publishes.
    pub fn new(max_message_bytes: u32) -> Session {
        Session {
            input: BytesMut::new(),
            answers: Answers::new(),
            handshake: Some(Handshaking::new()),
            chunks: ChunkReader::new(max_message_bytes.min(MAX_UNPUBLISHED_BYTES), 0),
            aggregate: None,
            max_message_bytes,
            ack: AckWindow::default(),
            clock: Clock::default(),
            app: None,
            streams: 0,
            publishing: None,
            over: false,
        }
    }

    /// Where received bytes go: append, then drain [`Session::poll`], which leaves less than a chunk header in it.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Bytes to send; take them from the front.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.answers.bytes
    }

    /// Both at once, for a shell that reads and writes at the same time.
    pub fn buffers(&mut self) -> (&mut BytesMut, &mut BytesMut) {
        (&mut self.input, &mut self.answers.bytes)
    }

    /// Bytes of memory that this session holds for its peer's sake: what came and is not understood yet, and answers that
    /// were not read yet.
    pub fn held_bytes(&self) -> usize {
        let aggregate = self.aggregate.as_ref().map_or(0, Aggregate::held_bytes);
        self.input.capacity() + self.answers.bytes.capacity() + self.chunks.held_bytes() + aggregate
    }

    /// Asks the broadcaster for a sign of life (7.1.7); `time_ms` comes back in its answer.
    pub fn ping(&mut self, time_ms: u32) -> Result<(), Error> {
        let time = RtmpTimestamp::new(time_ms);
        self.answers.user_control(UserControlEventType::PingRequest, None, Some(time))
    }

    /// The next event, `None` when more bytes are needed.
    pub fn poll(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = self.advance().unwrap_or_else(|error| Some(Event::Failed(error)));
        if matches!(event, Some(Event::Failed(_) | Event::Ended)) {
            self.over = true;
            self.input.clear();
            self.aggregate = None;
        }
        event
    }

    /// Answers the publish request with NetStream.Publish.Start (7.2.2.6).
    pub fn accept(&mut self) -> Result<(), Error> {
        let stream_id = self.publishing.unwrap_or_default();
        self.answers.user_control(UserControlEventType::StreamBegin, Some(stream_id), None)?;
        self.answers.status(stream_id, "status", "NetStream.Publish.Start", "publishing")
    }

    /// Answers the publish request, or ends the broadcast, with an error status. Nothing follows.
    pub fn refuse(&mut self, code: &str, description: &str) -> Result<(), Error> {
        self.over = true;
        self.input.clear();
        self.answers.status(self.publishing.unwrap_or_default(), "error", code, description)
    }

    /// How often timestamps wrapped at 31 bits, which was repaired.
    pub fn clock_wraps(&self) -> u64 {
        self.clock.wraps
    }

    /// Whether the broadcaster said in `connect` that it reconnects when it is asked to.
    pub fn can_reconnect(&self) -> bool {
        self.app.as_ref().is_some_and(|app| app.caps_ex & CAPS_RECONNECT != 0)
    }

    /// Asks the broadcaster to connect anew, to `tc_url` or, if that is `None`, to the same URL (Enhanced RTMP v2,
    /// "Reconnect Request"). It goes on sending until its next keyframe, then comes over another connection; this one
    /// stays open until then. `false` if it did not say that it understands this: nothing is sent then.
    pub fn request_reconnect(&mut self, tc_url: Option<&str>, description: &str) -> Result<bool, Error> {
        if !self.can_reconnect() || self.over {
            return Ok(false);
        }
        self.answers.reconnect(tc_url, description)?;
        Ok(true)
    }

    fn advance(&mut self) -> Result<Option<Event>, Error> {
        if let Some(handshake) = &mut self.handshake {
            if !handshake.advance(&mut self.input, &mut self.answers.bytes)? {
                return Ok(None);
            }
            self.handshake = None;
        }
        loop {
            if let Some(aggregate) = &mut self.aggregate {
                match aggregate.next()? {
                    None => self.aggregate = None,
                    Some(message) => {
                        if let Some(event) = self.media(message)? {
                            return Ok(Some(event));
                        }
                    }
                }
            } else if let Some(message) = self.chunks.read(&mut self.input)? {
                if let Some(event) = self.message(message)? {
                    return Ok(Some(event));
                }
            } else {
                break;
            }
        }
        self.acknowledge()?;
        Ok(None)
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>, Error> {
        match message.kind {
            4 => self.user_control_received(&message.data)?,
            5 => self.ack.size = message.data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            17 | 20 => return self.command(&message),
            22 => self.aggregate = Some(Aggregate::new(message)),
            // 3 and 6 speak of what we send, which is next to nothing.
            _ => return self.media(message),
        }
        Ok(None)
    }

    /// What may also stand in an aggregate; everything else is unknown and harmless.
    fn media(&mut self, message: Message) -> Result<Option<Event>, Error> {
        match message.kind {
            8 => Ok(self.tag(TagKind::Audio, message)),
            9 => Ok(self.tag(TagKind::Video, message)),
            15 | 18 => self.script(message),
            _ => Ok(None),
        }
    }

    fn tag(&mut self, kind: TagKind, message: Message) -> Option<Event> {
        // An empty message says nothing (librtmp sends them); media before a publish request belongs to no stream.
        if self.publishing.is_none() || message.data.is_empty() {
            return None;
        }
        let mut tag = Tag { kind, timestamp_ms: message.timestamp_ms, data: message.data };
        // Configuration is often stamped zero whatever the time, and the end of a sequence with what the muxer likes.
        if tag.is_frame() {
            tag.timestamp_ms = self.clock.extend(tag.timestamp_ms);
        } else if tag.is_event() {
            tag.timestamp_ms = self.clock.moment(tag.timestamp_ms);
        }
        Some(Event::Tag(tag))
    }

    /// Metadata passes as it came, without the `@setDataFrame` that tells servers to keep it.
    fn script(&mut self, mut message: Message) -> Result<Option<Event>, Error> {
        if self.publishing.is_none() {
            return Ok(None);
        }
        let error = |problem| Error::Amf { what: "metadata", problem };
        strip_amf3(&mut message);
        if message.data.len() > MAX_COMMAND_BYTES {
            return Err(error(format!("{} bytes exceed {MAX_COMMAND_BYTES}", message.data.len())));
        }
        match amf::leading_string(&message.data) {
            Some((name, len)) if name == "@setDataFrame" => message.data.advance(len),
            Some((name, _)) if !name.starts_with('@') => {}
            _ => return Ok(None),
        }
        amf::read(&message.data).map_err(error)?;
        Ok(self.tag(TagKind::Script, message))
    }

    fn command(&mut self, message: &Message) -> Result<Option<Event>, Error> {
        let mut message = message.clone();
        strip_amf3(&mut message);
        let len = message.data.len();
        if len > MAX_COMMAND_BYTES {
            let problem = format!("{len} bytes exceed {MAX_COMMAND_BYTES}");
            return Err(Error::Amf { what: "a command", problem });
        }
        let values = amf::read(&message.data).map_err(|problem| Error::Amf { what: "a command", problem })?;
        let mut values = values.into_iter();
        let Some(Amf0Value::Utf8String(name)) = values.next() else {
            return Err(Error::Amf { what: "a command", problem: "it does not begin with its name".into() });
        };
        let transaction = values.next().and_then(Amf0Value::get_number).unwrap_or_default();
        let object = values.next();
        let argument = values.next();
        if self.app.is_none() && name != "connect" {
            return Err(Error::Order { command: short(&name), missing: "connect" });
        }
        match name.as_str() {
            "connect" => self.connect(transaction, object)?,
            "releaseStream" => self.answers.result(transaction, vec![Amf0Value::Undefined])?,
            "FCPublish" => {
                self.answers.result(transaction, vec![Amf0Value::Undefined])?;
                self.answers.notify(0, "onFCPublish", "status", "NetStream.Publish.Start", "")?;
            }
            "createStream" => self.create_stream(transaction)?,
            "publish" => return self.publish(message.stream_id, argument),
            "play" | "play2" => {
                self.answers.status(
                    message.stream_id,
                    "error",
                    "NetStream.Play.Failed",
                    &Error::Play.to_string(),
                )?;
                return Err(Error::Play);
            }
            "FCUnpublish" | "deleteStream" | "closeStream" if self.publishing.is_some() => {
                let stream_id = self.publishing.unwrap_or_default();
                self.answers.status(stream_id, "status", "NetStream.Unpublish.Success", "unpublished")?;
                return Ok(Some(Event::Ended));
            }
            _ => {}
        }
        Ok(None)
    }

    /// 7.2.1.1
    fn connect(&mut self, transaction: f64, object: Option<Amf0Value>) -> Result<(), Error> {
        let Some(Amf0Value::Object(mut object)) = object else {
            return Err(Error::Amf { what: "connect", problem: "it has no command object".into() });
        };
        let enhanced = ["fourCcList", "videoFourCcInfoMap", "audioFourCcInfoMap", "capsEx"]
            .iter()
            .any(|property| object.contains_key(*property));
        let caps_ex = object.remove("capsEx").and_then(Amf0Value::get_number).unwrap_or_default();
        let mut text = |key| object.remove(key).and_then(Amf0Value::get_string).unwrap_or_default();
        // A float beyond 32 bits saturates, what is no number becomes zero.
        let app = App { name: text("app"), tc_url: text("tcUrl"), caps_ex: caps_ex as u32 };
        if self.app.replace(app).is_some() {
            return Err(Error::Unsupported("a second connect command"));
        }
        self.answers.connected(transaction, enhanced)
    }

    /// 7.2.1.3
    fn create_stream(&mut self, transaction: f64) -> Result<(), Error> {
        if self.streams == MAX_STREAMS {
            return Err(Error::Unsupported("more than 8 createStream commands"));
        }
        self.streams += 1;
        self.answers.result(transaction, vec![Amf0Value::Number(f64::from(self.streams))])
    }

    /// 7.2.2.6
    fn publish(&mut self, stream_id: u32, name: Option<Amf0Value>) -> Result<Option<Event>, Error> {
        if self.publishing.is_some() {
            return Err(Error::Unsupported("a second publish command on one connection"));
        }
        if self.streams == 0 {
            return Err(Error::Order { command: "publish".into(), missing: "createStream" });
        }
        self.publishing = Some(stream_id);
        let name = name.and_then(Amf0Value::get_string).unwrap_or_default();
        let (app, tc_url) = self.app.as_ref().map_or(("", ""), |app| (&app.name, &app.tc_url));
        match StreamKey::parse(&publish_name(&name, app), app, tc_url) {
            Ok(key) => {
                self.chunks.allow(self.max_message_bytes, PARTIAL_SLACK_BYTES);
                Ok(Some(Event::Publish(key)))
            }
            Err(error) => {
                self.refuse("NetStream.Publish.BadName", &error.to_string())?;
                Err(error.into())
            }
        }
    }

    /// 7.1.7: a ping wants its time back.
    fn user_control_received(&mut self, data: &[u8]) -> Result<(), Error> {
        if let Some([0, 6, time @ ..]) = data.first_chunk::<6>() {
            let time = RtmpTimestamp::new(u32::from_be_bytes(*time));
            self.answers.user_control(UserControlEventType::PingResponse, None, Some(time))?;
        }
        Ok(())
    }

    /// At most once per [`Session::poll`] that runs dry, however small a window the peer names.
    fn acknowledge(&mut self) -> Result<(), Error> {
        let received = self.chunks.offset() + HANDSHAKE_BYTES as u64;
        if self.ack.size.is_some_and(|size| received - self.ack.acknowledged >= u64::from(size.max(1))) {
            self.ack.acknowledged = received;
            // 32 bits that wrap.
            self.answers.send(0, RtmpMessage::Acknowledgement { sequence_number: received as u32 })?;
        }
        Ok(())
    }
}

/// Encoders with one field for the whole URL may leave the stream's name in the app, as in `live/NAME?token=TOKEN`, or
/// begin it with a slash.
fn publish_name<'a>(name: &'a str, app: &str) -> Cow<'a, str> {
    let name = name.trim_start_matches('/');
    let path = app.split('?').next().unwrap_or_default().trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((_, last)) if name.is_empty() || name.starts_with(['?', '&']) => {
            Cow::Owned(format!("{last}{name}"))
        }
        _ => Cow::Borrowed(name),
    }
}

/// Messages of types 15 and 17 are marked as AMF3; what encoders send in them is a zero, then AMF0.
fn strip_amf3(message: &mut Message) {
    if matches!(message.kind, 15 | 17) && message.data.first() == Some(&0) {
        message.data.advance(1);
    }
}

fn short(name: &str) -> String {
    name.chars().take(32).collect()
}

#[cfg(test)]
mod tests;
