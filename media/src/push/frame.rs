//! Frames of a push: a kind, a number, a length, a payload; integers are big-endian.
//!
//! The decoder takes input as it comes and hands the bytes of bodies on at once, without copying them; of anything else it
//! holds at most one payload, which grows only as input arrives.
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before each payload: kind (1), number (4), length (4).
pub const HEADER_BYTES: usize = 9;

/// Longest payload of a DATA frame, in bytes: so that a long body does not hold up the short ones behind it.
pub const MAX_DATA_BYTES: usize = 64 << 10;

/// Longest payload of any other frame, in bytes.
pub const MAX_CONTROL_BYTES: usize = 32 << 10;

/// Names of one object. Parts that became known together share one playlist; more than these are fetched.
pub const MAX_NAMES: usize = 16;

/// Names promised in one slot.
pub const MAX_PROMISED: usize = 64;

/// Header fields of one object.
pub const MAX_FIELDS: usize = 64;

/// Kinds from here on may be ignored by those who do not know them.
const FIRST_OPTIONAL: u8 = 0x80;

const BEGIN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const FAIL: u8 = 4;
const PROMISE: u8 = 5;
const PURGE: u8 = 6;
const PING: u8 = 7;
const GONE: u8 = 8;

/// May be ignored.
const TIME: u8 = FIRST_OPTIONAL;

/// `Name::live` on the wire.
const LIVE: u8 = 1;

/// The length of a body that is not known yet.
const UNKNOWN_LENGTH: u64 = u64::MAX;

/// What one tier tells the next. `id` is an object's for as long as its body is on the way; then it may be used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An object begins.
    Begin { id: u32, head: Head },
    /// More of its body: a whole frame when encoded, any piece of one when decoded.
    Data { id: u32, bytes: Bytes },
    /// Its body is whole.
    End { id: u32 },
    /// The rest of its body will not come.
    Fail { id: u32 },
    /// These names, and no others that this slot promised before, will be pushed soon: wait rather than ask.
    Promise { slot: u32, keys: Vec<Box<str>> },
    /// Forget all names that begin with this.
    Purge { prefix: Box<str> },
    /// The newest part of all that was told before begins with a frame that came in at its POP at this time, microseconds
    /// since 1970.
    Time { unix_us: u64 },
    /// The publisher is still there.
    Ping,
    /// The stream is over: nothing more will be pushed, and what was is an object like any other.
    Gone,
}

/// What is known of an object when it begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// What it is one of, such as "the playlists of 720p"; chosen by the publisher.
    pub slot: u32,
    /// Of the objects of a slot the newest so many are given to new subscribers. At least 1.
    pub keep: u8,
    /// HTTP status.
    pub status: u16,
    /// Bytes of the body, if that is known.
    pub length: Option<u64>,
    /// What it is called: 1 to [`MAX_NAMES`].
    pub names: Vec<Name>,
    /// End-to-end header fields other than `cache-control`; names in lower case.
    pub fields: Vec<(Box<str>, Bytes)>,
}

/// One name of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Path and canonical query.
    pub key: Box<str>,
    /// `Cache-Control` of the object under this name.
    pub control: Box<str>,
    /// Current for as long as the push lasts, or until the name is pushed again, whatever `control` says.
    pub live: bool,
}

/// What is wrong with what was received, or too large to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer speaks another language.
    #[error("unknown kind of frame {kind}")]
    Kind { kind: u8 },
    /// A payload beyond its bound.
    #[error("frame of kind {kind} has {len} bytes, more than {limit}")]
    TooLong { kind: u8, len: usize, limit: usize },
    /// More entries than allowed, or none where there must be one.
    #[error("{count} {what}, not within 1 to {limit}")]
    Count { what: &'static str, count: usize, limit: usize },
    /// The payload ends within this.
    #[error("payload ends within {what}")]
    Short { what: &'static str },
    /// The payload goes on behind its last field.
    #[error("{left} bytes behind the end of the payload")]
    Trailing { left: usize },
    /// Not UTF-8.
    #[error("{what} is not text")]
    Text { what: &'static str },
}

/// A [`Fault`] and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{fault} (frame at byte {at})")]
pub struct Bad {
    /// Offset of the frame's first byte in the push.
    pub at: u64,
    /// What is wrong.
    pub fault: Fault,
}

impl Frame {
    /// Appends the frame; a DATA frame is written with [`data_header`] instead where its bytes should not be copied.
    /// An error leaves `out` as it was.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), Fault> {
        let (kind, number, limit) = match self {
            Frame::Begin { id, .. } => (BEGIN, *id, MAX_CONTROL_BYTES),
            Frame::Data { id, .. } => (DATA, *id, MAX_DATA_BYTES),
            Frame::End { id } => (END, *id, MAX_CONTROL_BYTES),
            Frame::Fail { id } => (FAIL, *id, MAX_CONTROL_BYTES),
            Frame::Promise { slot, .. } => (PROMISE, *slot, MAX_CONTROL_BYTES),
            Frame::Purge { .. } => (PURGE, 0, MAX_CONTROL_BYTES),
            Frame::Time { .. } => (TIME, 0, MAX_CONTROL_BYTES),
            Frame::Ping => (PING, 0, MAX_CONTROL_BYTES),
            Frame::Gone => (GONE, 0, MAX_CONTROL_BYTES),
        };
        let begin = out.len();
        header(out, kind, number, 0);
        let payload = match self {
            Frame::Begin { head, .. } => head.encode(out),
            Frame::Promise { keys, .. } => promise(out, keys),
            Frame::Data { bytes, .. } => {
                out.put_slice(bytes);
                Ok(())
            }
            Frame::Purge { prefix } => text(out, "prefix", prefix),
            Frame::Time { unix_us } => {
                out.put_u64(*unix_us);
                Ok(())
            }
            Frame::End { .. } | Frame::Fail { .. } | Frame::Ping | Frame::Gone => Ok(()),
        };
        let len = out.len() - begin - HEADER_BYTES;
        let fits = if len > limit { Err(Fault::TooLong { kind, len, limit }) } else { Ok(()) };
        if let Err(fault) = payload.and(fits) {
            out.truncate(begin);
            return Err(fault);
        }
        out[begin + 5..begin + HEADER_BYTES].copy_from_slice(&(len as u32).to_be_bytes());
        Ok(())
    }
}

/// What goes before `len` bytes of a body, at most [`MAX_DATA_BYTES`].
pub fn data_header(out: &mut BytesMut, id: u32, len: usize) {
    debug_assert!(len <= MAX_DATA_BYTES);
    header(out, DATA, id, len as u32);
}

fn header(out: &mut BytesMut, kind: u8, number: u32, len: u32) {
    out.put_u8(kind);
    out.put_u32(number);
    out.put_u32(len);
}

fn text(out: &mut BytesMut, what: &'static str, text: &str) -> Result<(), Fault> {
    bytes(out, what, text.as_bytes())
}

fn bytes(out: &mut BytesMut, what: &'static str, bytes: &[u8]) -> Result<(), Fault> {
    let count = bytes.len();
    let len = u16::try_from(count).map_err(|_| Fault::Count { what, count, limit: u16::MAX.into() })?;
    out.put_u16(len);
    out.put_slice(bytes);
    Ok(())
}

fn promise(out: &mut BytesMut, keys: &[Box<str>]) -> Result<(), Fault> {
    if keys.len() > MAX_PROMISED {
        return Err(Fault::Count { what: "promised names", count: keys.len(), limit: MAX_PROMISED });
    }
    out.put_u16(keys.len() as u16);
    keys.iter().try_for_each(|key| text(out, "promised name", key))
}

impl Head {
    fn encode(&self, out: &mut BytesMut) -> Result<(), Fault> {
        count("names", self.names.len(), 1, MAX_NAMES)?;
        count("header fields", self.fields.len(), 0, MAX_FIELDS)?;
        out.put_u32(self.slot);
        out.put_u8(self.keep);
        out.put_u16(self.status);
        out.put_u64(self.length.unwrap_or(UNKNOWN_LENGTH));
        out.put_u8(self.names.len() as u8);
        for name in &self.names {
            out.put_u8(if name.live { LIVE } else { 0 });
            text(out, "name", &name.key)?;
            text(out, "cache-control", &name.control)?;
        }
        out.put_u8(self.fields.len() as u8);
        for (name, value) in &self.fields {
            text(out, "name of a header field", name)?;
            bytes(out, "header field", value)?;
        }
        Ok(())
    }

    fn decode(payload: &mut Payload) -> Result<Head, Fault> {
        let slot = payload.u32("slot")?;
        let keep = payload.u8("keep")?;
        let status = payload.u16("status")?;
        let length = Some(payload.u64("length")?).filter(|&length| length != UNKNOWN_LENGTH);
        let names = usize::from(payload.u8("number of names")?);
        count("names", names, 1, MAX_NAMES)?;
        let names = (0..names).map(|_| {
            let live = payload.u8("flags of a name")? & LIVE != 0;
            let (key, control) = (payload.text("name")?, payload.text("cache-control")?);
            Ok(Name { key, control, live })
        });
        let names = names.collect::<Result<_, Fault>>()?;
        let fields = usize::from(payload.u8("number of header fields")?);
        count("header fields", fields, 0, MAX_FIELDS)?;
        let fields = (0..fields)
            .map(|_| Ok((payload.text("name of a header field")?, payload.bytes("header field")?)));
        let fields = fields.collect::<Result<_, Fault>>()?;
        Ok(Head { slot, keep, status, length, names, fields })
    }
}

fn count(what: &'static str, count: usize, least: usize, limit: usize) -> Result<(), Fault> {
    if (least..=limit).contains(&count) { Ok(()) } else { Err(Fault::Count { what, count, limit }) }
}

/// Reads frames out of chunks as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The header, then the payload, of a frame that is not a DATA frame, as far as it has come.
    held: BytesMut,
    now: Now,
    /// Bytes taken in, and the first one of this frame.
    taken: u64,
    at: u64,
}

#[derive(Debug, Default, Clone, Copy)]
enum Now {
    #[default]
    Header,
    Control {
        kind: u8,
        number: u32,
        len: usize,
    },
    Data {
        id: u32,
        left: usize,
    },
    Skip {
        left: usize,
    },
}

impl Decoder {
    /// Takes from the front of `input` up to and including the next frame; `None` when all of it is taken. After an error
    /// the rest makes no sense. An empty DATA frame is none.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, Bad> {
        let before = input.len();
        let next = self.step(input);
        self.taken += (before - input.len()) as u64;
        next.map_err(|fault| Bad { at: self.at, fault })
    }

    fn step(&mut self, input: &mut Bytes) -> Result<Option<Frame>, Fault> {
        let before = input.len();
        loop {
            match self.now {
                Now::Header => {
                    if self.held.is_empty() {
                        self.at = self.taken + (before - input.len()) as u64;
                    }
                    if !self.hold(input, HEADER_BYTES) {
                        return Ok(None);
                    }
                    let (kind, number, len) =
                        (self.held.get_u8(), self.held.get_u32(), self.held.get_u32() as usize);
                    self.now = begin(kind, number, len)?;
                }
                Now::Data { left: 0, .. } | Now::Skip { left: 0 } => self.now = Now::Header,
                Now::Data { id, left } => {
                    let bytes = input.split_to(left.min(input.len()));
                    self.now = Now::Data { id, left: left - bytes.len() };
                    return Ok(if bytes.is_empty() { None } else { Some(Frame::Data { id, bytes }) });
                }
                Now::Skip { left } => {
                    let skipped = left.min(input.len());
                    input.advance(skipped);
                    self.now = Now::Skip { left: left - skipped };
                    if skipped < left {
                        return Ok(None);
                    }
                }
                Now::Control { kind, number, len } => {
                    if !self.hold(input, len) {
                        return Ok(None);
                    }
                    self.now = Now::Header;
                    return control(kind, number, self.held.split_to(len).freeze()).map(Some);
                }
            }
        }
    }

    /// Whether `len` bytes are held now.
    fn hold(&mut self, input: &mut Bytes, len: usize) -> bool {
        let missing = len - self.held.len();
        self.held.extend_from_slice(&input.split_to(missing.min(input.len())));
        self.held.len() == len
    }
}

fn begin(kind: u8, number: u32, len: usize) -> Result<Now, Fault> {
    let limit = if kind == DATA { MAX_DATA_BYTES } else { MAX_CONTROL_BYTES };
    if len > limit {
        return Err(Fault::TooLong { kind, len, limit });
    }
    match kind {
        DATA => Ok(Now::Data { id: number, left: len }),
        BEGIN..=GONE | TIME => Ok(Now::Control { kind, number, len }),
        FIRST_OPTIONAL.. => Ok(Now::Skip { left: len }),
        _ => Err(Fault::Kind { kind }),
    }
}

fn control(kind: u8, number: u32, payload: Bytes) -> Result<Frame, Fault> {
    let mut payload = Payload(payload);
    let frame = match kind {
        BEGIN => Frame::Begin { id: number, head: Head::decode(&mut payload)? },
        END => Frame::End { id: number },
        FAIL => Frame::Fail { id: number },
        PROMISE => {
            let keys = usize::from(payload.u16("number of promised names")?);
            count("promised names", keys, 0, MAX_PROMISED)?;
            let keys = (0..keys).map(|_| payload.text("promised name")).collect::<Result<_, Fault>>()?;
            Frame::Promise { slot: number, keys }
        }
        PURGE => Frame::Purge { prefix: payload.text("prefix")? },
        TIME => Frame::Time { unix_us: payload.u64("time")? },
        PING => Frame::Ping,
        _ => Frame::Gone,
    };
    if payload.0.is_empty() { Ok(frame) } else { Err(Fault::Trailing { left: payload.0.len() }) }
}

/// A payload, read from its front.
struct Payload(Bytes);

impl Payload {
    fn take(&mut self, what: &'static str, len: usize) -> Result<Bytes, Fault> {
        if self.0.len() < len { Err(Fault::Short { what }) } else { Ok(self.0.split_to(len)) }
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, Fault> {
        Ok(self.take(what, 1)?.get_u8())
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Fault> {
        Ok(self.take(what, 2)?.get_u16())
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        Ok(self.take(what, 4)?.get_u32())
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        Ok(self.take(what, 8)?.get_u64())
    }

    fn bytes(&mut self, what: &'static str) -> Result<Bytes, Fault> {
        let len = self.u16(what)?;
        self.take(what, len.into())
    }

    fn text(&mut self, what: &'static str) -> Result<Box<str>, Fault> {
        let bytes = self.bytes(what)?;
        std::str::from_utf8(&bytes).map(Into::into).map_err(|_| Fault::Text { what })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn head(slot: u32, keys: &[&str]) -> Head {
        let name = |key: &&str| Name { key: (*key).into(), control: "max-age=6".into(), live: true };
        Head {
            slot,
            keep: 1,
            status: 200,
            length: Some(7),
            names: keys.iter().map(name).collect(),
            fields: vec![("content-type".into(), Bytes::from_static(b"text/plain"))],
        }
    }

    /// All frames of `input`, given in chunks of these sizes over and over; pieces of a body are joined.
    pub(crate) fn decode(input: &[u8], sizes: &[usize]) -> Result<Vec<Frame>, Bad> {
        let (mut decoder, mut frames, mut rest) = (Decoder::default(), Vec::new(), input);
        for size in sizes.iter().cycle() {
            let (chunk, behind) = rest.split_at((*size).min(rest.len()));
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some(frame) = decoder.next(&mut chunk)? {
                match (frames.last_mut(), frame) {
                    (Some(Frame::Data { id, bytes }), Frame::Data { id: more, bytes: piece })
                        if *id == more =>
                    {
                        *bytes = [&**bytes, &piece].concat().into();
                    }
                    (_, frame) => frames.push(frame),
                }
            }
            assert!(chunk.is_empty(), "all of a chunk is taken");
            assert!(decoder.held.len() <= MAX_CONTROL_BYTES);
            if behind.is_empty() {
                return Ok(frames);
            }
            rest = behind;
        }
        unreachable!("the sizes go round");
    }

    fn samples() -> Vec<Frame> {
        let plain = Head { length: None, fields: Vec::new(), keep: 2, ..head(9, &["/live/a/x.m3u8"]) };
        let data = |id, text: &'static str| Frame::Data { id, bytes: Bytes::from_static(text.as_bytes()) };
        vec![
            Frame::Begin { id: 1, head: head(1, &["/live/a/x.m3u8?_HLS_msn=7", "/live/a/x.m3u8"]) },
            data(1, "#EXTM3U"),
            Frame::End { id: 1 },
            Frame::Begin { id: u32::MAX, head: plain },
            Frame::Ping,
            data(u32::MAX, "abc"),
            data(4, "other"),
            Frame::Fail { id: u32::MAX },
            Frame::Promise { slot: 3, keys: vec!["/a?b=1".into(), "/ä".into()] },
            Frame::Promise { slot: 3, keys: Vec::new() },
            Frame::Purge { prefix: "/live/a/3/".into() },
            Frame::Time { unix_us: 1_700_000_000_000_123 },
            Frame::Gone,
        ]
    }

    fn encoded(frames: &[Frame]) -> BytesMut {
        let mut out = BytesMut::new();
        for frame in frames {
            frame.encode(&mut out).unwrap();
        }
        out
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let (frames, wire) = (samples(), encoded(&samples()));
        for sizes in [&[1][..], &[wire.len()], &[2, 3, 5, 7, 11], &[9], &[10, 100]] {
            assert_eq!(decode(&wire, sizes).unwrap(), frames, "{sizes:?}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused_on_both_sides() {
        let mut out = BytesMut::from(&b"before"[..]);
        let many = vec!["/x"; MAX_NAMES + 1];
        let wide = vec![("x".into(), Bytes::from(vec![b'x'; MAX_CONTROL_BYTES]))];
        for frame in [
            Frame::Begin { id: 1, head: head(1, &many) },
            Frame::Begin { id: 1, head: head(1, &[]) },
            Frame::Begin { id: 1, head: Head { fields: wide, ..head(1, &["/x"]) } },
            Frame::Data { id: 1, bytes: vec![0; MAX_DATA_BYTES + 1].into() },
            Frame::Promise { slot: 1, keys: vec!["/x".into(); MAX_PROMISED + 1] },
            Frame::Purge { prefix: "x".repeat(70_000).into() },
        ] {
            frame.encode(&mut out).unwrap_err();
            assert_eq!(&out[..], b"before", "nothing half said");
        }
        let fault = |wire: &[u8]| decode(wire, &[wire.len()]).unwrap_err();
        let long = [&[BEGIN, 0, 0, 0, 1][..], &(MAX_CONTROL_BYTES as u32 + 1).to_be_bytes()].concat();
        assert_eq!(fault(&long).fault, Fault::TooLong { kind: BEGIN, len: 32769, limit: 32768 });
        assert_eq!(fault(&[9, 0, 0, 0, 0, 0, 0, 0, 0]).fault, Fault::Kind { kind: 9 });
        assert_eq!(fault(&[0; 9]).fault, Fault::Kind { kind: 0 });
        let mut wire = encoded(&[Frame::Ping, Frame::Purge { prefix: "ab".into() }]);
        wire[9 + 8] += 1;
        wire.put_u8(0);
        assert_eq!(fault(&wire), Bad { at: 9, fault: Fault::Trailing { left: 1 } });
        assert_eq!(fault(&[PURGE, 0, 0, 0, 0, 0, 0, 0, 1, 0]).fault, Fault::Short { what: "prefix" });
        assert_eq!(fault(&[PURGE, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0xff]).fault, Fault::Text { what: "prefix" });
    }

    #[test]
    fn kinds_to_come_are_skipped() {
        let mut wire = encoded(&[Frame::Ping]);
        wire.put_slice(&[0xff, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
        wire.put_slice(&encoded(&[Frame::Gone]));
        for sizes in [&[1][..], &[100]] {
            assert_eq!(decode(&wire, sizes).unwrap(), [Frame::Ping, Frame::Gone]);
        }
    }

    /// Garbage, and good frames with bytes changed: an end or an error, never a panic, and never more out than in.
    #[test]
    fn garbage_is_survived() {
        let good = encoded(&samples());
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut errors, mut fine) = (0, 0);
        for round in 0..20_000 {
            let mut wire = if round % 2 == 0 {
                let kinds = [10, 256][random(2) as usize];
                (0..random(60)).map(|_| random(kinds) as u8).collect()
            } else {
                good.to_vec()
            };
            for _ in 0..random(4) {
                if let Some(at) =
                    random(wire.len().max(1) as u64).try_into().ok().filter(|&at: &usize| at < wire.len())
                {
                    wire[at] = random(256) as u8;
                }
            }
            let sizes = [1 + random(40) as usize, 1 + random(40) as usize];
            match decode(&wire, &sizes) {
                Ok(frames) => {
                    fine += 1;
                    let said: usize = frames
                        .iter()
                        .map(|frame| {
                            let mut out = BytesMut::new();
                            // Joined pieces may be more than a frame holds.
                            match frame {
                                Frame::Data { bytes, .. } => bytes.len(),
                                frame => frame.encode(&mut out).map_or(0, |()| out.len()),
                            }
                        })
                        .sum();
                    assert!(said <= wire.len(), "{said} bytes out of {}", wire.len());
                }
                Err(_) => errors += 1,
            }
        }
        assert!(errors > 1000 && fine > 1000, "{errors} errors, {fine} fine");
    }
}
