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

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hmac::{self, HMAC_SHA256};

    /// What both ends sign with, and what follows it where one signs for the other's signature.
    const SERVER: &[u8] = b"Genuine Adobe Flash Media Server 001";
    const CLIENT: &[u8] = b"Genuine Adobe Flash Player 001";
    const AND_SO_ON: [u8; 32] = [
        0xF0, 0xEE, 0xC2, 0x4A, 0x80, 0x68, 0xBE, 0xE8, 0x2E, 0x00, 0xD0, 0xD1, 0x02, 0x9E, 0x7E, 0x57, 0x6E,
        0xEC, 0x5D, 0x2D, 0x29, 0x80, 0x6F, 0xAB, 0x93, 0xB8, 0xE6, 0x36, 0xCF, 0xEB, 0x31, 0xAE,
    ];

    fn sign(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(HMAC_SHA256, key), &parts.concat()).as_ref().to_vec()
    }

    /// Where a packet of 1536 bytes has its digest, in the scheme whose pointer is at `base`.
    fn place(packet: &[u8], base: usize) -> usize {
        base + 4 + packet[base..base + 4].iter().map(|byte| usize::from(*byte)).sum::<usize>() % 728
    }

    fn digest(packet: &[u8], base: usize, key: &[u8]) -> Vec<u8> {
        let at = place(packet, base);
        sign(key, &[&packet[..at], &packet[at + 32..]])
    }

    /// S0, S1 and S2, however the request is cut.
    fn answer(c1: &[u8], step: usize) -> BytesMut {
        let (mut handshaking, mut output) = (Handshaking::new(), BytesMut::new());
        for piece in [&[3], c1].concat().chunks(step) {
            let mut input = BytesMut::from(piece);
            assert!(!handshaking.advance(&mut input, &mut output).unwrap() && input.is_empty());
        }
        assert_eq!(output.len(), HANDSHAKE_BYTES);
        // C2 and the first byte behind it, which is not the handshake's.
        let mut input = BytesMut::from(&[7; 1537][..]);
        assert!(handshaking.advance(&mut input, &mut BytesMut::new()).unwrap() && input.len() == 1);
        output
    }

    #[test]
    fn digests_are_answered_with_digests() {
        for base in [8, 772] {
            let mut c1: Vec<u8> = (0..1536).map(|index| (index * 7) as u8).collect();
            c1[..8].copy_from_slice(&[0, 0, 0, 0, 9, 0, 124, 2]);
            let at = place(&c1, base);
            let signed = digest(&c1, base, CLIENT);
            c1[at..at + 32].copy_from_slice(&signed);
            for step in [1, 700, 1537] {
                let answer = answer(&c1, step);
                let (s1, s2) = answer[1..].split_at(1536);
                let is_signed = |base| digest(s1, base, SERVER) == s1[place(s1, base)..][..32];
                assert!(is_signed(8) || is_signed(772), "clients look in both places");
                let key = sign(&[SERVER, &AND_SO_ON].concat(), &[&signed]);
                assert_eq!(sign(&key, &[&s2[..1504]]), s2[1504..], "it has seen our digest");
            }
        }
    }

    #[test]
    fn the_plain_handshake_is_echoed() {
        for version in [[0; 4], [9, 0, 124, 2]] {
            let mut c1 = [5; 1536];
            c1[4..8].copy_from_slice(&version);
            assert_eq!(answer(&c1, 1000)[1537..], c1);
        }
    }
}
