//! The chunk layer of RTMP (Adobe RTMP 1.0, section 5.3): bytes in, whole messages out.
//!
//! Each chunk stream has its own buffer, so that messages may interleave as the specification allows, and nothing is
//! allocated because a peer announced it: buffers grow with what has come.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};

use crate::Error;

/// Chunk size before the peer sets one (5.4.1).
const INITIAL_CHUNK_BYTES: u32 = 128;

/// Encoders use 3 to 6 chunk streams; each costs a header record for as long as the connection lives.
const MAX_CHUNK_STREAMS: usize = 32;

/// First allocation of a message's buffer; it then doubles as bytes arrive. Small while unfinished messages are to hold
/// little, so that many chunk streams cost no more than what came on them.
const FIRST_RESERVE_BYTES: usize = 16 << 10;

/// A 24-bit timestamp of this value means: 32 bits follow (5.3.1.3).
const EXTENDED: u32 = 0xFF_FFFF;

/// One message, put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The chunk stream that carried it.
    pub csid: u32,
    /// Message type id (5.4, 7.1).
    pub kind: u8,
    /// Message stream id: 0 for the connection, else what `createStream` gave.
    pub stream_id: u32,
    /// Milliseconds; 32 bits that wrap.
    pub timestamp_ms: u32,
    /// The payload.
    pub data: Bytes,
}

/// Reads chunks. After an error the connection cannot be read on.
#[derive(Debug)]
pub struct ChunkReader {
    max_message_bytes: u32,
    max_partial_bytes: usize,
    chunk_bytes: u32,
    streams: BTreeMap<u32, ChunkStream>,
    /// The chunk whose payload is being read: its chunk stream and the bytes left.
    open: Option<(u32, usize)>,
    partial_bytes: usize,
    offset: u64,
}

#[derive(Debug, Default)]
struct ChunkStream {
    timestamp_ms: u32,
    delta_ms: u32,
    /// The 32-bit field of the last header, if that had one: type 3 chunks repeat it.
    extended: Option<u32>,
    len: u32,
    kind: u8,
    stream_id: u32,
    data: Vec<u8>,
}

impl ChunkReader {
    /// Refuses messages longer than `max_message_bytes`, and unfinished ones that together hold more than that and
    /// `partial_slack_bytes`.
    pub fn new(max_message_bytes: u32, partial_slack_bytes: usize) -> Self {
        Self {
            max_message_bytes,
            max_partial_bytes: max_message_bytes as usize + partial_slack_bytes,
            chunk_bytes: INITIAL_CHUNK_BYTES,
            streams: BTreeMap::new(),
            open: None,
            partial_bytes: 0,
            offset: 0,
        }
    }

    /// Changes what [`ChunkReader::new`] set.
    pub fn allow(&mut self, max_message_bytes: u32, partial_slack_bytes: usize) {
        self.max_message_bytes = max_message_bytes;
        self.max_partial_bytes = max_message_bytes as usize + partial_slack_bytes;
    }

    /// Bytes of memory that unfinished messages hold.
    pub fn held_bytes(&self) -> usize {
        self.streams.values().map(|stream| stream.data.capacity()).sum()
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Consumes `input` up to the end of the next message; `None` when more bytes are needed (a cut header stays in
    /// `input`). "Set chunk size" and "abort" act here and are not returned.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Message>, Error> {
        loop {
            let Some((csid, left)) = self.open else {
                if self.read_header(input)? {
                    continue;
                }
                return Ok(None);
            };
            let n = left.min(input.len());
            self.append(csid, &input[..n])?;
            self.consume(input, n);
            if n < left {
                self.open = Some((csid, left - n));
                return Ok(None);
            }
            self.open = None;
            if let Some(message) = self.complete(csid)
                && let Some(message) = self.control(message)?
            {
                return Ok(Some(message));
            }
        }
    }

    /// Opens the next chunk; `false` if its header has not all come yet.
    fn read_header(&mut self, input: &mut BytesMut) -> Result<bool, Error> {
        // 5.3.1.1: one to three bytes.
        let (format, csid, basic) = match input[..] {
            [] => return Ok(false),
            [a, b, ..] if a & 63 == 0 => (a >> 6, 64 + u32::from(b), 2),
            [a, b, c, ..] if a & 63 == 1 => (a >> 6, 64 + u32::from(b) + 256 * u32::from(c), 3),
            [a, ..] if a & 63 > 1 => (a >> 6, u32::from(a & 63), 1),
            _ => return Ok(false),
        };
        // 5.3.1.2: each format leaves out more of what the header before said.
        let fields_len = [11, 7, 3, 0][usize::from(format)];
        let Some(fields) = input.get(basic..basic + fields_len) else {
            return Ok(false);
        };
        let rest = &input[basic + fields_len..];
        let known = self.streams.get(&csid);
        let continues = known.is_some_and(|stream| !stream.data.is_empty());
        let offset = self.offset;
        let error = |problem: String| Err(Error::Chunk { csid, problem, offset });
        match known {
            // librtmp opens chunk stream 2 with format 1; there is nothing in it that format 0 would add but zeros.
            None if format >= 2 => return error("first chunk has no message header".into()),
            None if self.streams.len() == MAX_CHUNK_STREAMS => {
                return error(format!("more than {MAX_CHUNK_STREAMS} chunk streams"));
            }
            Some(stream) if continues && format != 3 => {
                let (have, len) = (stream.data.len(), stream.len);
                return error(format!("new message header after {have} of {len} bytes of a message"));
            }
            _ => {}
        }
        let field = if format == 3 { 0 } else { u24(fields) };
        let (value, extended, extended_len) = if format == 3 {
            let stream = known.expect("checked above");
            match stream.extended {
                None => (stream.delta_ms, None, 0),
                Some(extended) => match repeats(extended, rest) {
                    Some(true) => (stream.delta_ms, Some(extended), 4),
                    Some(false) => (stream.delta_ms, Some(extended), 0),
                    None => return Ok(false),
                },
            }
        } else if field == EXTENDED {
            let Some(bytes) = rest.first_chunk::<4>() else {
                return Ok(false);
            };
            let value = u32::from_be_bytes(*bytes);
            (value, Some(value), 4)
        } else {
            (field, None, 0)
        };
        let (len, kind) = match (format, known) {
            (0 | 1, _) => (u24(&fields[3..]), fields[6]),
            (_, stream) => stream.map_or((0, 0), |stream| (stream.len, stream.kind)),
        };
        if len > self.max_message_bytes {
            return error(format!("message of {len} bytes exceeds {}", self.max_message_bytes));
        }
        let stream_id =
            (format == 0).then(|| u32::from_le_bytes([fields[7], fields[8], fields[9], fields[10]]));

        let stream = self.streams.entry(csid).or_default();
        if !continues {
            stream.timestamp_ms = if format == 0 { value } else { stream.timestamp_ms.wrapping_add(value) };
            // After format 0 a format 3 adds the timestamp itself once more (5.3.1.2.4); encoders that use it start at 0.
            stream.delta_ms = value;
            stream.extended = extended;
            (stream.len, stream.kind) = (len, kind);
            stream.stream_id = stream_id.unwrap_or(stream.stream_id);
        }
        let left = (len as usize - stream.data.len()).min(self.chunk_bytes as usize);
        self.open = Some((csid, left));
        self.consume(input, basic + fields_len + extended_len);
        Ok(true)
    }

    fn append(&mut self, csid: u32, bytes: &[u8]) -> Result<(), Error> {
        self.partial_bytes += bytes.len();
        let limit = self.max_partial_bytes;
        if self.partial_bytes > limit {
            let problem = format!("unfinished messages exceed {limit} bytes together");
            return Err(Error::Chunk { csid, problem, offset: self.offset });
        }
        let stream = self.streams.get_mut(&csid).expect("an open chunk has a chunk stream");
        let (have, need) = (stream.data.len(), stream.data.len() + bytes.len());
        if need > stream.data.capacity() {
            let first = FIRST_RESERVE_BYTES.min(limit / MAX_CHUNK_STREAMS);
            let capacity = need.max(2 * have).max(first).min(stream.len as usize);
            stream.data.reserve_exact(capacity - have);
        }
        stream.data.extend_from_slice(bytes);
        Ok(())
    }

    fn complete(&mut self, csid: u32) -> Option<Message> {
        let stream = self.streams.get_mut(&csid)?;
        if stream.data.len() < stream.len as usize {
            return None;
        }
        self.partial_bytes -= stream.data.len();
        Some(Message {
            csid,
            kind: stream.kind,
            stream_id: stream.stream_id,
            timestamp_ms: stream.timestamp_ms,
            data: std::mem::take(&mut stream.data).into(),
        })
    }

    /// Acts on the two messages that govern the chunk layer itself (5.4.1, 5.4.2).
    fn control(&mut self, message: Message) -> Result<Option<Message>, Error> {
        if !matches!(message.kind, 1 | 2) {
            return Ok(Some(message));
        }
        let (csid, offset) = (message.csid, self.offset);
        let error = |problem: String| Err(Error::Chunk { csid, problem, offset });
        let Some(value) = message.data.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return error(format!("control message {} of {} bytes", message.kind, message.data.len()));
        };
        if message.kind == 2 {
            if let Some(stream) = self.streams.get_mut(&value) {
                self.partial_bytes -= stream.data.len();
                stream.data = Vec::new();
            }
        } else if value == 0 || value > i32::MAX as u32 {
            return error(format!("chunk size {value} is not within 1 to {}", i32::MAX));
        } else {
            // Larger sizes than a message can have mean the same as that (5.4.1).
            self.chunk_bytes = value.min(EXTENDED);
        }
        Ok(None)
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.offset = offset;
    }

    fn consume(&mut self, input: &mut BytesMut, n: usize) {
        input.advance(n);
        self.offset += n as u64;
    }
}

/// Whether a type 3 chunk repeats the extended timestamp. The specification says so (5.3.1.3), some encoders do not:
/// the four bytes are payload unless they are the same. `None`: more bytes are needed to tell.
fn repeats(extended: u32, rest: &[u8]) -> Option<bool> {
    let expected = extended.to_be_bytes();
    let n = rest.len().min(4);
    if rest[..n] != expected[..n] {
        return Some(false);
    }
    (n == 4).then_some(true)
}

fn u24(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rml_rtmp::chunk_io::ChunkSerializer;
    use rml_rtmp::messages::MessagePayload;
    use rml_rtmp::time::RtmpTimestamp;

    const MAX: u32 = 1 << 20;
    const SLACK: usize = 1 << 20;

    /// Everything read from `bytes` when they come in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<Message>, Error> {
        let (mut reader, mut input, mut messages) =
            (ChunkReader::new(MAX, SLACK), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            input.extend_from_slice(piece);
            while let Some(message) = reader.read(&mut input)? {
                messages.push(message);
            }
        }
        assert_eq!(reader.offset() as usize + input.len(), bytes.len());
        Ok(messages)
    }

    fn header(format: u8, csid: u8, time: u32, len: usize, kind: u8) -> Vec<u8> {
        let mut out = vec![format << 6 | csid];
        if format < 3 {
            out.extend(&time.min(EXTENDED).to_be_bytes()[1..]);
        }
        if format < 2 {
            out.extend(&(len as u32).to_be_bytes()[1..]);
            out.push(kind);
        }
        if format == 0 {
            out.extend([1, 0, 0, 0]);
        }
        if format < 3 && time >= EXTENDED {
            out.extend(time.to_be_bytes());
        }
        out
    }

    fn summary(messages: &[Message]) -> Vec<(u32, u8, u32, usize)> {
        messages.iter().map(|m| (m.csid, m.kind, m.timestamp_ms, m.data.len())).collect()
    }

    #[test]
    fn what_rml_rtmp_writes_is_read_however_it_is_cut() {
        let mut serializer = ChunkSerializer::new();
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        let mut seed = 7u64;
        for index in 0..200u32 {
            if index % 50 == 20 {
                let packet = serializer.set_max_chunk_size(1 + index * 30, RtmpTimestamp::new(0)).unwrap();
                bytes.extend(packet.bytes);
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let len = 1 + (seed >> 33) as usize % 3000;
            let kind = [8, 9, 18, 20][(seed >> 20) as usize % 4];
            let payload = MessagePayload {
                timestamp: RtmpTimestamp::new(index * 33),
                type_id: kind,
                message_stream_id: 1,
                data: (0..len).map(|i| (i as u32 + index) as u8).collect::<Vec<_>>().into(),
            };
            bytes.extend(serializer.serialize(&payload, false, false).unwrap().bytes);
            expected.push((kind, index * 33, payload.data));
        }
        for step in [1, 3, 100, 4096, bytes.len()] {
            let got: Vec<_> =
                read(&bytes, step).unwrap().into_iter().map(|m| (m.kind, m.timestamp_ms, m.data)).collect();
            assert_eq!(got, expected, "step {step}");
        }
    }

    #[test]
    fn interleaved_messages_come_out_whole() {
        let (video, audio) = ([1u8; 300], [2u8; 200]);
        let mut bytes = header(0, 6, 40, 300, 9);
        bytes.extend(&video[..128]);
        bytes.extend(header(0, 4, 41, 200, 8));
        bytes.extend(&audio[..128]);
        bytes.extend(header(3, 6, 0, 0, 0));
        bytes.extend(&video[128..256]);
        bytes.extend(header(3, 4, 0, 0, 0));
        bytes.extend(&audio[128..]);
        bytes.extend(header(3, 6, 0, 0, 0));
        bytes.extend(&video[256..]);
        for step in [1, 5, 1000] {
            let got = read(&bytes, step).unwrap();
            assert_eq!(summary(&got), [(4, 8, 41, 200), (6, 9, 40, 300)]);
            assert!(got[0].data == audio[..] && got[1].data == video[..]);
        }
    }

    #[test]
    fn timestamps_extend_repeat_and_wrap() {
        let late = 0x0100_0010;
        let body = [7u8; 200];
        // As the specification has it: the type 3 chunk repeats the extended timestamp.
        let mut bytes = header(0, 4, late, 200, 9);
        bytes.extend(&body[..128]);
        bytes.extend(header(3, 4, 0, 0, 0));
        bytes.extend(late.to_be_bytes());
        bytes.extend(&body[128..]);
        // As others have it: it does not. Then a delta, and the same delta again by a bare type 3.
        bytes.extend(header(0, 5, late, 130, 8));
        bytes.extend(&body[..128]);
        bytes.extend(header(3, 5, 0, 0, 0));
        bytes.extend(&body[..2]);
        bytes.extend(header(2, 5, 20, 0, 0));
        bytes.extend(&body[..128]);
        bytes.extend(header(3, 5, 0, 0, 0));
        bytes.extend(&body[..2]);
        bytes.extend(header(3, 5, 0, 0, 0));
        bytes.extend(&body[..128]);
        bytes.extend(header(3, 5, 0, 0, 0));
        bytes.extend(&body[..2]);
        for step in [1, 2, 1000] {
            let got = read(&bytes, step).unwrap();
            let expected =
                [(4, 9, late, 200), (5, 8, late, 130), (5, 8, late + 20, 130), (5, 8, late + 40, 130)];
            assert_eq!(summary(&got), expected, "step {step}");
        }
        let mut bytes = header(0, 4, u32::MAX - 5, 1, 8);
        bytes.push(0);
        bytes.extend(header(2, 4, 10, 0, 0));
        bytes.push(0);
        assert_eq!(summary(&read(&bytes, 1).unwrap())[1], (4, 8, 4, 1));
    }

    #[test]
    fn long_chunk_stream_ids_abort_and_empty_messages() {
        let mut bytes = vec![0, 100 - 64, 0, 0, 1, 0, 0, 2, 8, 1, 0, 0, 0, 1, 2];
        bytes.extend([1, 0xE8 - 64, 3, 0, 0, 2, 0, 0, 0, 9, 1, 0, 0, 0]);
        // Half a message on chunk stream 6, aborted; then a whole one.
        bytes.extend(header(0, 6, 5, 200, 9));
        bytes.extend([0; 128]);
        bytes.extend(header(1, 2, 0, 4, 2));
        bytes.extend(6u32.to_be_bytes());
        bytes.extend(header(0, 6, 9, 1, 9));
        bytes.push(1);
        for step in [1, 1000] {
            let got = summary(&read(&bytes, step).unwrap());
            assert_eq!(got, [(100, 8, 1, 2), (1000, 9, 2, 0), (6, 9, 9, 1)]);
        }
    }

    #[test]
    fn hostile_chunks_are_named() {
        let chunk_size = |size: u32| {
            let mut bytes = header(0, 2, 0, 4, 1);
            bytes.extend(size.to_be_bytes());
            bytes
        };
        let mut header_in_message = header(0, 4, 0, 200, 8);
        header_in_message.extend([0; 128]);
        header_in_message.extend(header(1, 4, 0, 10, 8));
        let mut many = Vec::new();
        for csid in 2..40 {
            many.extend(header(0, csid, 0, 0, 8));
        }
        for (bytes, problem) in [
            (header(3, 4, 0, 0, 0), "chunk stream 4: first chunk has no message header (connection byte 0)"),
            (header(0, 4, 0, MAX as usize + 1, 9), "message of 1048577 bytes exceeds 1048576"),
            (chunk_size(0), "chunk stream 2: chunk size 0 is not within"),
            (chunk_size(1 << 31), "chunk size 2147483648 is not within"),
            (
                header_in_message,
                "new message header after 128 of 200 bytes of a message (connection byte 140)",
            ),
            (many, "chunk stream 34: more than 32 chunk streams"),
            (header(0, 2, 0, 0, 1), "control message 1 of 0 bytes"),
        ] {
            let error = read(&bytes, 1000).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn unfinished_messages_are_bounded_together() {
        let mut reader = ChunkReader::new(MAX, SLACK);
        let mut input = BytesMut::new();
        let mut refused = None;
        for round in 0.. {
            for csid in 3..20 {
                let format = if round == 0 { 0 } else { 3 };
                input.extend_from_slice(&header(format, csid, 0, MAX as usize, 9));
                input.extend_from_slice(&[0; 128]);
            }
            match reader.read(&mut input) {
                Ok(message) => assert_eq!(message, None),
                Err(error) => {
                    refused = Some(error.to_string());
                    break;
                }
            }
            assert!(reader.partial_bytes <= MAX as usize + SLACK);
        }
        assert!(refused.unwrap().contains("unfinished messages exceed 2097152 bytes together"));
    }

    #[test]
    fn noise_never_panics_nor_holds_more_than_it_sent() {
        let mut seed = 1u64;
        for _ in 0..300 {
            let mut noise: Vec<u8> = (0..2000)
                .map(|_| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 56) as u8
                })
                .collect();
            // Mostly valid beginnings get further than pure noise.
            noise.splice(0..0, header(0, 4, 0, 150, 9));
            let (mut reader, mut input) = (ChunkReader::new(MAX, SLACK), BytesMut::from(&noise[..]));
            while let Ok(Some(_)) = reader.read(&mut input) {}
            assert!(reader.held_bytes() <= 2 * noise.len() + MAX_CHUNK_STREAMS * FIRST_RESERVE_BYTES);
        }
    }
}
