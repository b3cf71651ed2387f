//! One broadcaster's RTMP session: bytes in; events, and bytes to send, out. (Adobe RTMP 1.0; Enhanced RTMP v2 for what
//! both sides say of themselves in `connect`, and for the request to reconnect. Its tags pass through as they are.)
//!
//! rml_rtmp does the handshake and writes the answers; chunks and AMF0 are read by [`super::chunk`] and [`super::amf`],
//! because its readers trust the peer.
#![deny(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::{Buf, BytesMut};
use media::codec::{AudioCodec, VideoCodec};
use media::flv::{Tag, TagKind};
use rml_rtmp::chunk_io::ChunkSerializer;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::messages::{MessagePayload, PeerBandwidthLimitType, RtmpMessage, UserControlEventType};
use rml_rtmp::rml_amf0::Amf0Value;
use rml_rtmp::time::RtmpTimestamp;

use crate::Error;
use crate::rtmp::amf;
use crate::rtmp::chunk::{ChunkReader, Message};
use crate::stream_key::StreamKey;

/// C0, C1 and C2 (5.2).
const HANDSHAKE_BYTES: usize = 1 + 1536 + 1536;

/// Chunk size of our answers, which are all smaller.
const CHUNK_BYTES: u32 = 4096;

/// How often the peer shall acknowledge what we send, and the bandwidth we name: what other servers say.
const WINDOW_BYTES: u32 = 2_500_000;

/// What a connection may have us hold of its messages before it publishes: until then anyone may have sent them.
const MAX_UNPUBLISHED_BYTES: u32 = 64 << 10;

/// Commands and metadata: a `connect` has about 300 bytes, an `onMetaData` with cue points a few thousand.
const MAX_COMMAND_BYTES: usize = 64 << 10;

/// `createStream` calls: one is enough to publish.
const MAX_STREAMS: u32 = 8;

/// `CapsExMask` of Enhanced RTMP v2: knows the request to reconnect, modifiers, and offsets in nanoseconds. Several tracks
/// (2) are read but only the first is taken, so that nobody should be encouraged to send more.
const CAPS_RECONNECT: u32 = 1;
const CAPS_MOD_EX: u32 = 4;
const CAPS_NANO_OFFSET: u32 = 8;

/// `FourCcInfoMask` of Enhanced RTMP v2: what we do with a codec is to decode it.
const CAN_DECODE: u32 = 1;

/// Longest description in an answer, so that each answer fits one chunk.
const MAX_DESCRIPTION_CHARS: usize = 400;

/// Media messages may be cut by others, but only one of them is large: unfinished messages together hold at most the
/// largest message and this.
const PARTIAL_SLACK_BYTES: usize = 1 << 20;

/// How far around the half of 32 bits a step may be that is a wrap at 31 bits: frames of two tracks, and a pause.
const WRAP_SLACK_MS: u32 = 20_000;

/// Longest beginning of a foreign request that is shown.
const MAX_SHOWN_BYTES: usize = 80;

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
    output: BytesMut,
    /// Bytes of the handshake that are still to come, while it lasts.
    handshake: Option<(Box<Handshake>, usize)>,
    chunks: ChunkReader,
    serializer: ChunkSerializer,
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

/// FLV calls its timestamps signed, and some muxers (ffmpeg's is one) keep the sign bit zero: theirs wrap at 2^31 instead of
/// 2^32, after 24.8 days. What leaves here wraps at 2^32 only: POP and origin must speak of the same time.
#[derive(Default)]
struct Clock {
    last: Option<u32>,
    /// Zero, or 2^31 after every second wrap.
    offset: u32,
    wraps: u64,
}

impl Clock {
    fn extend(&mut self, time_ms: u32) -> u32 {
        const HALF: u32 = 1 << 31;
        let step = self.last.map_or(0, |last| time_ms.wrapping_sub(last) as i32);
        if step.unsigned_abs() >= HALF - WRAP_SLACK_MS {
            self.offset ^= HALF;
            self.wraps += 1;
        }
        self.last = Some(time_ms);
        time_ms.wrapping_add(self.offset)
    }
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
            output: BytesMut::new(),
            handshake: Some((Box::new(Handshake::new(PeerType::Server)), HANDSHAKE_BYTES)),
            chunks: ChunkReader::new(max_message_bytes.min(MAX_UNPUBLISHED_BYTES), 0),
            serializer: ChunkSerializer::new(),
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
        &mut self.output
    }

    /// Both at once, for a shell that reads and writes at the same time.
    pub fn buffers(&mut self) -> (&mut BytesMut, &mut BytesMut) {
        (&mut self.input, &mut self.output)
    }

    /// Bytes of memory that this session holds for its peer's sake: what came and is not understood yet, and answers that
    /// were not read yet.
    pub fn held_bytes(&self) -> usize {
        self.input.capacity() + self.output.capacity() + self.chunks.held_bytes()
    }

    /// Asks the broadcaster for a sign of life (7.1.7); `time_ms` comes back in its answer.
    pub fn ping(&mut self, time_ms: u32) -> Result<(), Error> {
        let time = RtmpTimestamp::new(time_ms);
        self.user_control(UserControlEventType::PingRequest, None, Some(time))
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
        }
        event
    }

    /// Answers the publish request with NetStream.Publish.Start (7.2.2.6).
    pub fn accept(&mut self) -> Result<(), Error> {
        let stream_id = self.publishing.unwrap_or_default();
        self.user_control(UserControlEventType::StreamBegin, Some(stream_id), None)?;
        self.status(stream_id, "status", "NetStream.Publish.Start", "publishing")
    }

    /// Answers the publish request, or ends the broadcast, with an error status. Nothing follows.
    pub fn refuse(&mut self, code: &str, description: &str) -> Result<(), Error> {
        self.over = true;
        self.input.clear();
        self.status(self.publishing.unwrap_or_default(), "error", code, description)
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
        let mut info = status("status", "NetConnection.Connect.ReconnectRequest", description);
        if let Some(tc_url) = tc_url {
            info.insert("tcUrl".to_string(), Amf0Value::Utf8String(tc_url.into()));
        }
        self.reply(0, "onStatus", 0.0, Amf0Value::Null, vec![Amf0Value::Object(info)])?;
        Ok(true)
    }

    fn advance(&mut self) -> Result<Option<Event>, Error> {
        if !self.shake_hands()? {
            return Ok(None);
        }
        while let Some(message) = self.chunks.read(&mut self.input)? {
            if let Some(event) = self.message(message)? {
                return Ok(Some(event));
            }
        }
        self.acknowledge()?;
        Ok(None)
    }

    fn shake_hands(&mut self) -> Result<bool, Error> {
        let Some((handshake, left)) = &mut self.handshake else {
            return Ok(true);
        };
        if *left == HANDSHAKE_BYTES
            && let Some(version) = self.input.first_mut()
        {
            match *version {
                // 5.2.2: old and future versions are answered with ours; 6, 8 and 9 are encrypted.
                0..=5 | 7 => *version = 3,
                _ => {
                    let error = foreign(&self.input);
                    if matches!(error, Error::Http { .. }) {
                        self.output.extend_from_slice(HTTP_ANSWER);
                    }
                    return Err(error);
                }
            }
        }
        // No byte beyond the handshake goes in, so none has to be fetched back.
        let bytes = self.input.split_to(self.input.len().min(*left));
        if bytes.is_empty() {
            return Ok(false);
        }
        *left -= bytes.len();
        match handshake.process_bytes(&bytes).map_err(|error| Error::Handshake(error.to_string()))? {
            HandshakeProcessResult::InProgress { response_bytes } => {
                self.output.extend_from_slice(&response_bytes);
                Ok(false)
            }
            HandshakeProcessResult::Completed { response_bytes, .. } => {
                self.output.extend_from_slice(&response_bytes);
                self.handshake = None;
                Ok(true)
            }
        }
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>, Error> {
        match message.kind {
            4 => self.user_control_received(&message.data)?,
            5 => self.ack.size = message.data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            8 => return Ok(self.tag(TagKind::Audio, message)),
            9 => return Ok(self.tag(TagKind::Video, message)),
            15 | 18 => return self.script(message),
            17 | 20 => return self.command(&message),
            22 => return Err(Error::Unsupported("aggregate messages (type 22) are not supported")),
            // 3 and 6 speak of what we send, which is next to nothing; others are unknown and harmless.
            _ => {}
        }
        Ok(None)
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
            "releaseStream" => self.result(transaction, vec![Amf0Value::Undefined])?,
            "FCPublish" => {
                self.result(transaction, vec![Amf0Value::Undefined])?;
                self.notify(0, "onFCPublish", "status", "NetStream.Publish.Start", "")?;
            }
            "createStream" => self.create_stream(transaction)?,
            "publish" => return self.publish(message.stream_id, argument),
            "play" | "play2" => {
                self.status(message.stream_id, "error", "NetStream.Play.Failed", &Error::Play.to_string())?;
                return Err(Error::Play);
            }
            "FCUnpublish" | "deleteStream" | "closeStream" if self.publishing.is_some() => {
                let stream_id = self.publishing.unwrap_or_default();
                self.status(stream_id, "status", "NetStream.Unpublish.Success", "unpublished")?;
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
        let now = RtmpTimestamp::new(0);
        let packet = self
            .serializer
            .set_max_chunk_size(CHUNK_BYTES, now)
            .map_err(|error| Error::Answer(error.to_string()))?;
        self.output.extend_from_slice(&packet.bytes);
        self.send(0, RtmpMessage::WindowAcknowledgement { size: WINDOW_BYTES })?;
        let limit_type = PeerBandwidthLimitType::Dynamic;
        self.send(0, RtmpMessage::SetPeerBandwidth { size: WINDOW_BYTES, limit_type })?;
        let mut server = HashMap::from([
            ("fmsVer".to_string(), Amf0Value::Utf8String("FMS/3,5,7,7009".into())),
            ("capabilities".to_string(), Amf0Value::Number(31.0)),
        ]);
        if enhanced {
            // Only to who speaks of them: old clients have been seen to stumble over what they do not know.
            server.extend(capabilities());
        }
        let mut status = status("status", "NetConnection.Connect.Success", "connected");
        status.insert("objectEncoding".to_string(), Amf0Value::Number(0.0));
        let values = (Amf0Value::Object(server), vec![Amf0Value::Object(status)]);
        self.reply(0, "_result", transaction, values.0, values.1)
    }

    /// 7.2.1.3
    fn create_stream(&mut self, transaction: f64) -> Result<(), Error> {
        if self.streams == MAX_STREAMS {
            return Err(Error::Unsupported("more than 8 createStream commands"));
        }
        self.streams += 1;
        self.result(transaction, vec![Amf0Value::Number(f64::from(self.streams))])
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
            self.user_control(UserControlEventType::PingResponse, None, Some(time))?;
        }
        Ok(())
    }

    /// At most once per [`Session::poll`] that runs dry, however small a window the peer names.
    fn acknowledge(&mut self) -> Result<(), Error> {
        let received = self.chunks.offset() + HANDSHAKE_BYTES as u64;
        if self.ack.size.is_some_and(|size| received - self.ack.acknowledged >= u64::from(size.max(1))) {
            self.ack.acknowledged = received;
            // 32 bits that wrap.
            self.send(0, RtmpMessage::Acknowledgement { sequence_number: received as u32 })?;
        }
        Ok(())
    }

    fn user_control(
        &mut self,
        event_type: UserControlEventType,
        stream_id: Option<u32>,
        timestamp: Option<RtmpTimestamp>,
    ) -> Result<(), Error> {
        self.send(0, RtmpMessage::UserControl { event_type, stream_id, buffer_length: None, timestamp })
    }

    fn status(&mut self, stream_id: u32, level: &str, code: &str, description: &str) -> Result<(), Error> {
        self.notify(stream_id, "onStatus", level, code, description)
    }

    fn notify(
        &mut self,
        stream_id: u32,
        command: &str,
        level: &str,
        code: &str,
        description: &str,
    ) -> Result<(), Error> {
        let object = Amf0Value::Object(status(level, code, description));
        self.reply(stream_id, command, 0.0, Amf0Value::Null, vec![object])
    }

    fn result(&mut self, transaction: f64, values: Vec<Amf0Value>) -> Result<(), Error> {
        self.reply(0, "_result", transaction, Amf0Value::Null, values)
    }

    fn reply(
        &mut self,
        stream_id: u32,
        command: &str,
        transaction_id: f64,
        command_object: Amf0Value,
        additional_arguments: Vec<Amf0Value>,
    ) -> Result<(), Error> {
        let command_name = command.into();
        let message =
            RtmpMessage::Amf0Command { command_name, transaction_id, command_object, additional_arguments };
        self.send(stream_id, message)
    }

    /// Every answer has a full header: a few bytes more, nothing that a simple reader could get wrong.
    fn send(&mut self, stream_id: u32, message: RtmpMessage) -> Result<(), Error> {
        let payload = MessagePayload::from_rtmp_message(message, RtmpTimestamp::new(0), stream_id)
            .map_err(|error| Error::Answer(error.to_string()))?;
        let packet = self
            .serializer
            .serialize(&payload, true, false)
            .map_err(|error| Error::Answer(error.to_string()))?;
        self.output.extend_from_slice(&packet.bytes);
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

/// What is answered to a client of Enhanced RTMP v2 ("Enhancing NetConnection connect Command").
fn capabilities() -> [(String, Amf0Value); 4] {
    let decode = |fourcc: &str| (fourcc.to_string(), Amf0Value::Number(f64::from(CAN_DECODE)));
    let video = VideoCodec::ALL.map(VideoCodec::fourcc);
    let audio = AudioCodec::ALL.map(AudioCodec::fourcc);
    let all = video.iter().chain(&audio).map(|fourcc| Amf0Value::Utf8String((*fourcc).into())).collect();
    let caps = CAPS_RECONNECT | CAPS_MOD_EX | CAPS_NANO_OFFSET;
    [
        ("fourCcList".to_string(), Amf0Value::StrictArray(all)),
        ("videoFourCcInfoMap".to_string(), Amf0Value::Object(video.map(decode).into())),
        ("audioFourCcInfoMap".to_string(), Amf0Value::Object(audio.map(decode).into())),
        ("capsEx".to_string(), Amf0Value::Number(f64::from(caps))),
    ]
}

/// Told to whoever speaks HTTP to an RTMP port, before it is closed.
const HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n\
    this port speaks RTMP, not HTTP\n";

fn foreign(bytes: &[u8]) -> Error {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"PUT ",
        b"OPTIONS ",
        b"CONNECT ",
        b"DELETE ",
        b"PATCH ",
        b"PRI * HTTP",
    ];
    if METHODS.iter().any(|method| bytes.starts_with(method)) {
        let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n' | b'?')).next().unwrap_or_default();
        let line = &line[..line.len().min(MAX_SHOWN_BYTES)];
        return Error::Http { line: String::from_utf8_lossy(line).into_owned() };
    }
    match bytes {
        [0x16, 0x03, ..] => Error::TlsOnPlain,
        _ => Error::NotRtmp { first: bytes.first().copied().unwrap_or_default() },
    }
}

/// Messages of types 15 and 17 are marked as AMF3; what encoders send in them is a zero, then AMF0.
fn strip_amf3(message: &mut Message) {
    if matches!(message.kind, 15 | 17) && message.data.first() == Some(&0) {
        message.data.advance(1);
    }
}

fn status(level: &str, code: &str, description: &str) -> HashMap<String, Amf0Value> {
    let text = |text: &str| Amf0Value::Utf8String(text.chars().take(MAX_DESCRIPTION_CHARS).collect());
    HashMap::from([
        ("level".to_string(), text(level)),
        ("code".to_string(), text(code)),
        ("description".to_string(), text(description)),
    ])
}

fn short(name: &str) -> String {
    name.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rml_rtmp::sessions::{
        ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
        StreamMetadata,
    };

    const MAX: u32 = 8 << 20;

    /// rml_rtmp's client at one end, our session at the other, memory in between.
    struct Pair {
        client: ClientSession,
        session: Session,
        events: Vec<Event>,
        answers: Vec<ClientSessionEvent>,
        step: usize,
        /// All that was delivered after the handshake.
        sent: Vec<u8>,
    }

    impl Pair {
        fn connected(step: usize, app: &str) -> Pair {
            let mut session = Session::new(MAX);
            shake_hands(&mut session, step);
            let config =
                ClientSessionConfig { tc_url: Some(format!("rtmp://h/{app}")), ..ClientSessionConfig::new() };
            let (client, first) = ClientSession::new(config).unwrap();
            let mut pair =
                Pair { client, session, events: Vec::new(), answers: Vec::new(), step, sent: Vec::new() };
            pair.send(first);
            let connect = pair.client.request_connection(app.into()).unwrap();
            pair.send(vec![connect]);
            assert_eq!(pair.answers.remove(0), ClientSessionEvent::ConnectionRequestAccepted);
            pair
        }

        fn send(&mut self, results: Vec<ClientSessionResult>) {
            for result in results {
                match result {
                    ClientSessionResult::OutboundResponse(packet) => self.deliver(&packet.bytes),
                    ClientSessionResult::RaisedEvent(event) => self.answers.push(event),
                    ClientSessionResult::UnhandleableMessageReceived(_) => {}
                }
            }
        }

        fn deliver(&mut self, bytes: &[u8]) {
            self.sent.extend_from_slice(bytes);
            for piece in bytes.chunks(self.step) {
                self.session.input().extend_from_slice(piece);
                while let Some(event) = self.session.poll() {
                    self.events.push(event);
                }
            }
            self.hear();
        }

        fn hear(&mut self) {
            let output = self.session.output().split();
            let results = self.client.handle_input(&output).unwrap();
            self.send(results);
        }

        fn command(&mut self, name: &str, arguments: Vec<Amf0Value>) {
            let bytes = command(name, arguments);
            self.deliver(&bytes);
        }

        fn publish(&mut self, key: &str) {
            let request = self.client.request_publishing(key.into(), PublishRequestType::Live).unwrap();
            self.send(vec![request]);
        }
    }

    fn shake_hands(session: &mut Session, step: usize) {
        let mut client = Handshake::new(PeerType::Client);
        let mut bytes = client.generate_outbound_p0_and_p1().unwrap();
        while session.handshake.is_some() {
            for piece in bytes.chunks(step) {
                session.input().extend_from_slice(piece);
                assert!(session.poll().is_none());
            }
            let answer = session.output().split();
            if answer.is_empty() {
                break;
            }
            bytes = match client.process_bytes(&answer).unwrap() {
                HandshakeProcessResult::InProgress { response_bytes }
                | HandshakeProcessResult::Completed { response_bytes, .. } => response_bytes,
            };
        }
    }

    /// A command message in one chunk of its own chunk stream.
    fn command(name: &str, arguments: Vec<Amf0Value>) -> Vec<u8> {
        let mut values = vec![Amf0Value::Utf8String(name.into()), Amf0Value::Number(9.0), Amf0Value::Null];
        values.extend(arguments);
        message(20, &rml_rtmp::rml_amf0::serialize(&values).unwrap())
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0, 0];
        bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
        bytes.extend([kind, 1, 0, 0, 0]);
        for (index, chunk) in body.chunks(128).enumerate() {
            if index > 0 {
                bytes.push(0xC8);
            }
            bytes.extend(chunk);
        }
        bytes
    }

    #[test]
    fn a_broadcast_from_connect_to_end() {
        for step in [1, 700, 1 << 20] {
            let mut pair = Pair::connected(step, "live");
            pair.command("releaseStream", vec![Amf0Value::Utf8String("demo".into())]);
            pair.command("FCPublish", vec![Amf0Value::Utf8String("demo".into())]);
            pair.command("_checkbw", vec![]);
            pair.answers.clear();
            pair.publish("demo?token=a.b.c");
            let Some(Event::Publish(key)) = pair.events.pop() else { panic!("{:?}", pair.events) };
            assert_eq!((key.stream.as_str(), key.token.as_str()), ("demo", "a.b.c"));
            assert!(pair.answers.is_empty(), "not before it is accepted: {:?}", pair.answers);
            pair.session.accept().unwrap();
            pair.hear();
            assert!(pair.answers.contains(&ClientSessionEvent::PublishRequestAccepted), "{:?}", pair.answers);

            let metadata = StreamMetadata { video_width: Some(640), ..StreamMetadata::new() };
            let sent = pair.client.publish_metadata(&metadata).unwrap();
            pair.send(vec![sent]);
            let body: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
            let sent =
                pair.client.publish_video_data(body.clone().into(), RtmpTimestamp::new(40), false).unwrap();
            pair.send(vec![sent]);
            let sent =
                pair.client.publish_audio_data(vec![0xAF, 1].into(), RtmpTimestamp::new(41), false).unwrap();
            pair.send(vec![sent]);
            let tags: Vec<Tag> = pair
                .events
                .drain(..)
                .map(|event| match event {
                    Event::Tag(tag) => tag,
                    event => panic!("{event:?}"),
                })
                .collect();
            let kinds: Vec<_> = tags.iter().map(|tag| (tag.kind, tag.timestamp_ms)).collect();
            assert_eq!(kinds[1..], [(TagKind::Video, 40), (TagKind::Audio, 41)]);
            assert_eq!(amf::leading_string(&tags[0].data).unwrap().0, "onMetaData");
            assert_eq!(tags[1].data, body);

            let sent = pair.client.stop_publishing().unwrap();
            pair.send(sent);
            assert!(matches!(pair.events[..], [Event::Ended]), "{:?}", pair.events);
        }
    }

    #[test]
    fn a_refusal_reaches_the_broadcaster() {
        let mut pair = Pair::connected(4096, "live");
        pair.publish("demo?token=x");
        pair.session.refuse(crate::relay::REJECTED, "token expired 12 s ago").unwrap();
        pair.hear();
        let expected =
            ClientSessionEvent::UnhandleableOnStatusCode { code: "NetStream.Publish.Rejected".into() };
        assert_eq!(pair.answers, [expected]);
        assert!(pair.session.poll().is_none());
    }

    #[test]
    fn keys_without_name_or_token_are_refused_at_once() {
        for key in ["demo", "a b?token=x", "?token=x"] {
            let mut pair = Pair::connected(4096, "live");
            pair.publish(key);
            let expected =
                ClientSessionEvent::UnhandleableOnStatusCode { code: "NetStream.Publish.BadName".into() };
            assert_eq!(pair.answers, [expected], "{key}");
            assert!(matches!(pair.events[..], [Event::Failed(Error::Key(_))]), "{:?}", pair.events);
        }
        let mut pair = Pair::connected(4096, "live?token=x");
        pair.publish("demo");
        assert!(matches!(pair.events[..], [Event::Publish(_)]), "the URL may carry it: {:?}", pair.events);
    }

    #[test]
    fn keys_are_found_where_encoders_leave_them() {
        for (name, app, found) in [
            ("", "live/demo?token=x", "demo"),
            ("/demo?token=x", "live", "demo"),
            ("?token=x", "live/demo/", "demo"),
            ("demo", "live/other?token=x", "demo"),
        ] {
            let mut pair = Pair::connected(4096, app);
            pair.publish(name);
            let Some(Event::Publish(key)) = pair.events.pop() else {
                panic!("{name} {app}: {:?}", pair.events)
            };
            assert_eq!((key.stream.as_str(), key.token.as_str()), (found, "x"), "{name} {app}");
        }
    }

    /// The commands in what the session sends, as values.
    fn commands(session: &mut Session) -> Vec<Vec<Amf0Value>> {
        let mut reader = ChunkReader::new(MAX, 0);
        // What the session has said once for all its answers.
        assert_eq!(reader.read(&mut message(1, &CHUNK_BYTES.to_be_bytes())[..].into()).unwrap(), None);
        let mut commands = Vec::new();
        while let Some(message) = reader.read(&mut session.output).unwrap() {
            if message.kind == 20 {
                commands.push(amf::read(&message.data).unwrap());
            }
        }
        commands
    }

    fn connect(properties: Vec<(&str, Amf0Value)>) -> Vec<u8> {
        let text = |text: &str| Amf0Value::Utf8String(text.into());
        let mut object = HashMap::from([("app".to_string(), text("live"))]);
        object.extend(properties.into_iter().map(|(key, value)| (key.to_string(), value)));
        let values = [text("connect"), Amf0Value::Number(1.0), Amf0Value::Object(object)];
        message(20, &rml_rtmp::rml_amf0::serialize(&values.to_vec()).unwrap())
    }

    #[test]
    fn enhanced_clients_learn_what_is_taken_and_can_be_asked_to_reconnect() {
        let mut session = Session::new(MAX);
        shake_hands(&mut session, 4096);
        let list = Amf0Value::StrictArray(vec![Amf0Value::Utf8String("hvc1".into())]);
        let properties = vec![("fourCcList", list), ("capsEx", Amf0Value::Number(1.0))];
        session.input().extend_from_slice(&connect(properties));
        assert!(session.poll().is_none() && session.can_reconnect());
        let result = commands(&mut session).pop().unwrap();
        let Amf0Value::Object(server) = &result[2] else { panic!("{result:?}") };
        assert_eq!(server["capsEx"], Amf0Value::Number(13.0));
        let Amf0Value::Object(video) = &server["videoFourCcInfoMap"] else { panic!("{server:?}") };
        for fourcc in ["avc1", "hvc1", "av01", "vp09"] {
            assert_eq!(video[fourcc], Amf0Value::Number(1.0), "{fourcc}");
        }
        let Amf0Value::Object(audio) = &server["audioFourCcInfoMap"] else { panic!("{server:?}") };
        assert!(audio.len() == 2 && audio.contains_key("Opus") && audio.contains_key("mp4a"), "{audio:?}");
        let Amf0Value::StrictArray(all) = &server["fourCcList"] else { panic!("{server:?}") };
        assert_eq!(all.len(), 6);

        assert!(session.request_reconnect(Some("rtmps://other/live"), "this server goes away").unwrap());
        let status = commands(&mut session).pop().unwrap();
        assert_eq!(
            status[..3],
            [Amf0Value::Utf8String("onStatus".into()), Amf0Value::Number(0.0), Amf0Value::Null]
        );
        let Amf0Value::Object(info) = &status[3] else { panic!("{status:?}") };
        for (key, value) in [
            ("level", "status"),
            ("code", "NetConnection.Connect.ReconnectRequest"),
            ("description", "this server goes away"),
            ("tcUrl", "rtmps://other/live"),
        ] {
            assert_eq!(info[key], Amf0Value::Utf8String(value.into()));
        }
    }

    #[test]
    fn plain_clients_hear_nothing_new() {
        for caps in [None, Some(f64::NAN), Some(-1.0), Some(2.0)] {
            let mut session = Session::new(MAX);
            shake_hands(&mut session, 4096);
            let properties = caps.map(|caps| ("capsEx", Amf0Value::Number(caps)));
            session.input().extend_from_slice(&connect(properties.into_iter().collect()));
            assert!(session.poll().is_none());
            let result = commands(&mut session).pop().unwrap();
            let Amf0Value::Object(server) = &result[2] else { panic!("{result:?}") };
            assert_eq!(server.contains_key("capsEx"), caps.is_some());
            assert!(!session.can_reconnect() && !session.request_reconnect(None, "").unwrap());
            assert!(session.output().is_empty());
        }
    }

    #[test]
    fn other_versions_are_answered_with_ours() {
        for version in [0, 1, 2, 4, 5, 7] {
            let mut session = Session::new(MAX);
            let mut bytes = vec![0; 1537];
            bytes[0] = version;
            session.input().extend_from_slice(&bytes);
            assert!(session.poll().is_none());
            assert_eq!((session.output()[0], session.output().len()), (3, 1 + 1536 + 1536), "{version}");
        }
    }

    #[test]
    fn before_it_publishes_a_peer_makes_us_hold_little() {
        let chunk = |format: u8, csid: u8, len: u32| {
            let mut bytes = vec![format << 6 | csid];
            if format == 0 {
                bytes.extend([0; 3]);
                bytes.extend(&len.to_be_bytes()[1..]);
                bytes.extend([9, 1, 0, 0, 0]);
            }
            bytes.extend([7; 128]);
            bytes
        };
        // One message above the bound, then many below it, none of them ever complete.
        for (streams, len, problem) in [
            (1, 65_537, "message of 65537 bytes exceeds 65536"),
            (28, 65_536, "unfinished messages exceed 65536 bytes together"),
        ] {
            let mut pair = Pair::connected(1 << 20, "live");
            pair.deliver(&message(1, &128u32.to_be_bytes()));
            let mut most = 0;
            'sending: for round in 0..1000 {
                for csid in 0..streams {
                    let format = if round == 0 { 0 } else { 3 };
                    pair.session.input().extend_from_slice(&chunk(format, 4 + csid, len));
                    let event = pair.session.poll();
                    most = most.max(pair.session.held_bytes());
                    match event {
                        None => {}
                        Some(Event::Failed(error)) if error.to_string().contains(problem) => break 'sending,
                        event => panic!("{event:?}"),
                    }
                }
                assert!(round < 999, "{problem}");
            }
            assert!(most < 256 << 10, "{most} bytes were held");
        }
        // What is too much before is welcome after.
        let mut pair = Pair::connected(1 << 20, "live");
        pair.publish("demo?token=x");
        pair.deliver(&message(1, &0x00FF_FFFFu32.to_be_bytes()));
        let mut video = vec![6, 0, 0, 0];
        video.extend(&200_000u32.to_be_bytes()[1..]);
        video.extend([9, 1, 0, 0, 0]);
        video.resize(12 + 200_000, 7);
        pair.deliver(&video);
        assert!(matches!(pair.events.last(), Some(Event::Tag(tag)) if tag.data.len() == 200_000));
    }

    #[test]
    fn a_clock_of_31_bits_goes_on_and_one_of_32_is_left_alone() {
        let extend = |times: &[u32]| {
            let mut clock = Clock::default();
            let extended: Vec<u32> = times.iter().map(|time| clock.extend(*time)).collect();
            (extended, clock.wraps)
        };
        const HALF: u32 = 1 << 31;
        // The second track is a little behind, and says so across the wrap.
        let times = [HALF - 40, HALF - 60, 0, HALF - 20, 40, HALF - 10, HALF - 5, 30];
        let (extended, wraps) = extend(&times);
        let expected = [-40i32, -60, 0, -20, 40, -10, -5, 30].map(|from| HALF.wrapping_add_signed(from));
        assert_eq!((extended, wraps % 2), (expected.to_vec(), 1));
        // Twice around is all the way around.
        let (extended, wraps) = extend(&[HALF - 1, 0, HALF / 2, HALF - 1, 5]);
        assert_eq!((extended.last(), wraps), (Some(&5), 2));
        for times in [&[HALF - 1, HALF, HALF + 1][..], &[u32::MAX, 0], &[90_000, 0], &[HALF, 1 << 30, HALF]] {
            assert_eq!(extend(times), (times.to_vec(), 0));
        }
    }

    #[test]
    fn the_acknowledgement_counter_wraps() {
        let mut pair = Pair::connected(1 << 20, "live");
        pair.deliver(&message(5, &1000u32.to_be_bytes()));
        pair.session.chunks.start_at((1 << 32) - 500);
        pair.session.ack.acknowledged = (1 << 32) - 500 + HANDSHAKE_BYTES as u64;
        pair.answers.clear();
        pair.deliver(&message(9, &[0; 1200]));
        let [ClientSessionEvent::AcknowledgementReceived { bytes_received }] = pair.answers[..] else {
            panic!("{:?}", pair.answers)
        };
        assert!((700..4000).contains(&bytes_received), "{bytes_received}");
    }

    #[test]
    fn what_is_not_rtmp_is_named() {
        for (bytes, message) in [
            (
                &b"GET /live?token=x HTTP/1.1\r\nHost: x\r\n"[..],
                "HTTP request on the RTMP port: \"GET /live\"",
            ),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP request on the RTMP port: \"PRI * HTTP/2.0\""),
            (
                &[0x16, 3, 1, 2, 0],
                "TLS ClientHello on the plain RTMP port: use the RTMPS port, or rtmp:// instead of rtmps://",
            ),
            (&[0xFF, 3], "first byte 0xff: not an RTMP handshake"),
            (&[6], "first byte 0x06: not an RTMP handshake"),
        ] {
            let mut session = Session::new(MAX);
            session.input().extend_from_slice(bytes);
            match session.poll() {
                Some(Event::Failed(error)) => assert_eq!(error.to_string(), message),
                event => panic!("{event:?}"),
            }
            assert!(session.poll().is_none());
            assert_eq!(session.output().starts_with(b"HTTP/1.1 400"), message.starts_with("HTTP"));
        }
    }

    #[test]
    fn wrong_commands_are_named() {
        let play = command("play", vec![Amf0Value::Utf8String("demo".into())]);
        let create = command("createStream", vec![]).repeat(9);
        let publish = command("publish", vec![Amf0Value::Utf8String("demo".into())]);
        for (bytes, expected) in [
            (&play, "play request: this port takes broadcasts, viewers use HLS or DASH"),
            (&create, "more than 8 createStream commands"),
            (&publish, "command \"publish\" before createStream"),
            (&message(20, &[2, 0, 9, b'x']), "a command is not AMF0: 9 bytes wanted, 1 left at byte 3"),
            (&message(20, &[5]), "a command is not AMF0: it does not begin with its name"),
            (
                &message(20, &[0; 70_000]),
                "chunk stream 8: message of 70000 bytes exceeds 65536 (connection byte N)",
            ),
            (&message(22, &[0]), "aggregate messages (type 22) are not supported"),
        ] {
            let mut pair = Pair::connected(1 << 20, "live");
            pair.command("setPeerInfo", vec![]);
            // The client has set a larger chunk size by now.
            pair.deliver(&message(1, &128u32.to_be_bytes()));
            pair.deliver(bytes);
            match &pair.events[..] {
                [Event::Failed(error)] => {
                    let text = error.to_string();
                    let text = match text.split_once("connection byte") {
                        Some((problem, _)) => format!("{problem}connection byte N)"),
                        None => text,
                    };
                    assert_eq!(text, expected);
                }
                events => panic!("{expected}: {events:?}"),
            }
        }
        let mut session = Session::new(MAX);
        shake_hands(&mut session, 4096);
        session.input().extend_from_slice(&publish);
        let failed = session.poll();
        assert!(
            matches!(&failed, Some(Event::Failed(error)) if error.to_string() == "command \"publish\" before connect"),
            "{failed:?}"
        );
    }

    #[test]
    fn pings_are_answered_and_bytes_acknowledged() {
        let mut pair = Pair::connected(1 << 20, "live");
        pair.deliver(&message(5, &1000u32.to_be_bytes()));
        pair.session.output().clear();
        pair.session.input().extend_from_slice(&message(4, &[0, 6, 1, 2, 3, 4]));
        assert!(pair.session.poll().is_none());
        let sent = pair.session.output().split();
        assert!(sent.windows(6).any(|bytes| bytes == [0, 7, 1, 2, 3, 4]), "{sent:?}");
        // A video message before publish is nobody's; it still counts.
        pair.deliver(&message(9, &[0; 1200]));
        assert!(pair.events.is_empty());
        let acknowledged: Vec<_> = pair
            .answers
            .iter()
            .filter_map(|answer| match answer {
                ClientSessionEvent::AcknowledgementReceived { bytes_received } => Some(*bytes_received),
                _ => None,
            })
            .collect();
        let received = pair.session.chunks.offset() as u32 + HANDSHAKE_BYTES as u32;
        assert_eq!(acknowledged.last(), Some(&received), "{acknowledged:?}");
    }

    #[test]
    fn damaged_broadcasts_never_panic() {
        let mut pair = Pair::connected(1 << 20, "live");
        pair.publish("demo?token=x");
        pair.session.accept().unwrap();
        pair.hear();
        let sent = pair.client.publish_metadata(&StreamMetadata::new()).unwrap();
        pair.send(vec![sent]);
        for time in 0..20 {
            let body = vec![0x17; 500].into();
            let sent = pair.client.publish_video_data(body, RtmpTimestamp::new(time), false).unwrap();
            pair.send(vec![sent]);
        }
        pair.command("deleteStream", vec![]);
        assert!(matches!(pair.events.last(), Some(Event::Ended)));
        let mut seed = 3u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..2000 {
            let mut bytes = pair.sent.clone();
            for _ in 0..1 + random(4) {
                let at = if random(2) == 0 { random(bytes.len()) } else { random(600) };
                match random(3) {
                    0 => bytes[at] = random(256) as u8,
                    1 => drop(bytes.drain(at..(at + random(20)).min(bytes.len()))),
                    _ => bytes.insert(at, random(256) as u8),
                }
            }
            let mut session = Session::new(1 << 16);
            session.handshake = None;
            for piece in bytes.chunks(1 + random(2000)) {
                session.input().extend_from_slice(piece);
                while session.poll().is_some() {}
            }
            assert!(session.output().len() < 64 << 10, "answers are in proportion to questions");
        }
    }
}
