//! What a session says: answers to commands, statuses, pings and acknowledgements, as bytes to send. rml_rtmp writes them.
#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;

use bytes::BytesMut;
use media::codec::{AudioCodec, VideoCodec};
use rml_rtmp::chunk_io::ChunkSerializer;
use rml_rtmp::messages::{MessagePayload, PeerBandwidthLimitType, RtmpMessage, UserControlEventType};
use rml_rtmp::rml_amf0::Amf0Value;
use rml_rtmp::time::RtmpTimestamp;

use crate::Error;

/// Chunk size of our answers, which are all smaller.
pub(super) const CHUNK_BYTES: u32 = 4096;

/// How often the peer shall acknowledge what we send, and the bandwidth we name: what other servers say.
const WINDOW_BYTES: u32 = 2_500_000;

/// `CapsExMask` of Enhanced RTMP v2: knows the request to reconnect, modifiers, and offsets in nanoseconds. Several tracks
/// (2) are read but only the first is taken, so that nobody should be encouraged to send more.
pub(super) const CAPS_RECONNECT: u32 = 1;
const CAPS_MOD_EX: u32 = 4;
const CAPS_NANO_OFFSET: u32 = 8;

/// `FourCcInfoMask` of Enhanced RTMP v2: what we do with a codec is to decode it.
const CAN_DECODE: u32 = 1;

/// Longest description in an answer, so that each answer fits one chunk.
const MAX_DESCRIPTION_CHARS: usize = 400;

/// The way to the peer.
pub(super) struct Answers {
    /// What waits to be sent.
    pub(super) bytes: BytesMut,
    serializer: ChunkSerializer,
}

impl Answers {
    pub(super) fn new() -> Answers {
        Answers { bytes: BytesMut::new(), serializer: ChunkSerializer::new() }
    }

    /// The answer to `connect` (7.2.1.1), and what is said before it.
    pub(super) fn connected(&mut self, transaction: f64, enhanced: bool) -> Result<(), Error> {
        let now = RtmpTimestamp::new(0);
        let packet = self
            .serializer
            .set_max_chunk_size(CHUNK_BYTES, now)
            .map_err(|error| Error::Answer(error.to_string()))?;
        self.bytes.extend_from_slice(&packet.bytes);
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

    /// The request to connect anew (Enhanced RTMP v2, "Reconnect Request").
    pub(super) fn reconnect(&mut self, tc_url: Option<&str>, description: &str) -> Result<(), Error> {
        let mut info = status("status", "NetConnection.Connect.ReconnectRequest", description);
        if let Some(tc_url) = tc_url {
            info.insert("tcUrl".to_string(), Amf0Value::Utf8String(tc_url.into()));
        }
        self.reply(0, "onStatus", 0.0, Amf0Value::Null, vec![Amf0Value::Object(info)])
    }

    pub(super) fn user_control(
        &mut self,
        event_type: UserControlEventType,
        stream_id: Option<u32>,
        timestamp: Option<RtmpTimestamp>,
    ) -> Result<(), Error> {
        self.send(0, RtmpMessage::UserControl { event_type, stream_id, buffer_length: None, timestamp })
    }

    pub(super) fn status(
        &mut self,
        stream_id: u32,
        level: &str,
        code: &str,
        description: &str,
    ) -> Result<(), Error> {
        self.notify(stream_id, "onStatus", level, code, description)
    }

    pub(super) fn notify(
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

    pub(super) fn result(&mut self, transaction: f64, values: Vec<Amf0Value>) -> Result<(), Error> {
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
    pub(super) fn send(&mut self, stream_id: u32, message: RtmpMessage) -> Result<(), Error> {
        let payload = MessagePayload::from_rtmp_message(message, RtmpTimestamp::new(0), stream_id)
            .map_err(|error| Error::Answer(error.to_string()))?;
        let packet = self
            .serializer
            .serialize(&payload, true, false)
            .map_err(|error| Error::Answer(error.to_string()))?;
        self.bytes.extend_from_slice(&packet.bytes);
        Ok(())
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

fn status(level: &str, code: &str, description: &str) -> HashMap<String, Amf0Value> {
    let text = |text: &str| Amf0Value::Utf8String(text.chars().take(MAX_DESCRIPTION_CHARS).collect());
    HashMap::from([
        ("level".to_string(), text(level)),
        ("code".to_string(), text(code)),
        ("description".to_string(), text(description)),
    ])
}
