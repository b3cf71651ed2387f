//! Aggregate messages (type 22; RTMP 1.0, 7.1.6), in which relays and some hardware encoders pack what they have: FLV tags,
//! one after the other.
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, Bytes};

use crate::Error;
use crate::rtmp::chunk::Message;

/// Type, length, time, and the id of a stream that the aggregate's own stands for.
const HEADER_BYTES: usize = 11;

/// The length of the tag before, behind each tag.
const BACK_POINTER_BYTES: usize = 4;

/// An aggregate that is being taken apart. It is as long as any message may be, and each step takes 11 bytes at least.
pub(super) struct Aggregate {
    whole: Message,
    len: usize,
    /// What turns the times inside into those of the stream: the first one inside is meant to be the aggregate's own.
    offset_ms: Option<u32>,
}

impl Aggregate {
    pub(super) fn new(whole: Message) -> Aggregate {
        Aggregate { len: whole.data.len(), whole, offset_ms: None }
    }

    /// Bytes that it still holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.len
    }

    /// The next message in it. The last back pointer may be missing. Bodies are copied: a small one must not keep all of
    /// the others in memory.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Error> {
        let data = &mut self.whole.data;
        let Some(header) = data.first_chunk::<HEADER_BYTES>() else {
            if data.is_empty() {
                return Ok(None);
            }
            let at = self.len - data.len();
            return Err(Error::Aggregate { problem: format!("header of {} bytes at byte {at}", data.len()) });
        };
        let [kind, len @ .., _, _, _, _, _, _, _] = header;
        let len = u32::from_be_bytes([0, len[0], len[1], len[2]]) as usize;
        let time_ms = u32::from_be_bytes([header[7], header[4], header[5], header[6]]);
        let kind = *kind;
        if len > data.len() - HEADER_BYTES {
            let (at, left) = (self.len - data.len(), data.len() - HEADER_BYTES);
            let problem = format!("message of {len} bytes at byte {at}, where {left} are left");
            return Err(Error::Aggregate { problem });
        }
        data.advance(HEADER_BYTES);
        let body = Bytes::copy_from_slice(&data.split_to(len));
        data.advance(BACK_POINTER_BYTES.min(data.len()));
        let offset = *self.offset_ms.get_or_insert(self.whole.timestamp_ms.wrapping_sub(time_ms));
        let timestamp_ms = time_ms.wrapping_add(offset);
        Ok(Some(Message { kind, timestamp_ms, data: body, ..self.whole.clone() }))
    }
}
