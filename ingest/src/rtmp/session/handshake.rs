//! The beginning of a connection: the handshake (5.2), plain or with digests, or what came in its place.
#![deny(clippy::disallowed_methods)]

use bytes::BytesMut;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};

use crate::Error;

/// C0, C1 and C2 (5.2).
pub(super) const HANDSHAKE_BYTES: usize = 1 + 1536 + 1536;

/// Longest beginning of a foreign request that is shown.
const MAX_SHOWN_BYTES: usize = 80;

/// A handshake under way.
pub(super) struct Handshaking {
    handshake: Box<Handshake>,
    /// Bytes that are still to come.
    left: usize,
}

impl Handshaking {
    pub(super) fn new() -> Handshaking {
        Handshaking { handshake: Box::new(Handshake::new(PeerType::Server)), left: HANDSHAKE_BYTES }
    }

    /// Takes what it needs from `input`, answers to `output`; whether it is over.
    pub(super) fn advance(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<bool, Error> {
        if self.left == HANDSHAKE_BYTES
            && let Some(version) = input.first_mut()
        {
            match *version {
                // 5.2.2: old and future versions are answered with ours; 6, 8 and 9 are encrypted.
                0..=5 | 7 => *version = 3,
                _ => {
                    let error = foreign(input);
                    if matches!(error, Error::Http { .. }) {
                        output.extend_from_slice(HTTP_ANSWER);
                    }
                    return Err(error);
                }
            }
        }
        // No byte beyond the handshake goes in, so none has to be fetched back.
        let bytes = input.split_to(input.len().min(self.left));
        if bytes.is_empty() {
            return Ok(false);
        }
        self.left -= bytes.len();
        match self.handshake.process_bytes(&bytes).map_err(|error| Error::Handshake(error.to_string()))? {
            HandshakeProcessResult::InProgress { response_bytes } => {
                output.extend_from_slice(&response_bytes);
                Ok(false)
            }
            HandshakeProcessResult::Completed { response_bytes, .. } => {
                output.extend_from_slice(&response_bytes);
                Ok(true)
            }
        }
    }
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
