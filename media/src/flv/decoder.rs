//! A byte stream cut into tags.
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, BytesMut};

use super::{Error, HEADER, MAX_TAG_BYTES, RECEIVED_MODULUS, Tag, TagKind};

/// Cuts a byte stream into tags. Holds at most one tag of [`MAX_TAG_BYTES`] beside what one push brings.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    offset: u64,
    began: bool,
    /// Of the last tag; 0: unknown.
    received: u32,
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

    /// When the tag that was polled last was received, if its sender says so ([`Tag::encode_received`]): milliseconds since
    /// 1970, the moment nearest to `now`.
    pub fn received_unix_ms(&self, now: i64) -> Option<i64> {
        let modulus = RECEIVED_MODULUS as i64;
        let ago = (now - i64::from(self.received)).rem_euclid(modulus);
        let ago = if ago > modulus / 2 { ago - modulus } else { ago };
        (self.received != 0).then_some(now - ago)
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
        let received = u32::from_be_bytes([0, header[8], header[9], header[10]]);
        if self.buffer.len() < 11 + len + 4 {
            return Ok(None);
        }
        self.received = received;
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
