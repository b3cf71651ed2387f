//! Names: of broadcasts, and of what the store holds of them.
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::str::FromStr;

use media::time::Ticks;
use media::{Epoch, RenditionId, SegmentNumber, StreamName};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::index::Segment;

/// One timeline of a stream: `{stream}-{milliseconds since 1970 of its first frame}`. Every origin that writes it names
/// it alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BroadcastId {
    stream: StreamName,
    unix_ms: u64,
}

/// A text that is not the name of a broadcast.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a broadcast: those are STREAM-MILLISECONDS")]
pub struct NotABroadcast(pub String);

impl BroadcastId {
    /// The broadcast of `stream` whose timeline is tied to the wall clock at `unix_ms`.
    pub fn new(stream: StreamName, unix_ms: i64) -> Self {
        Self { stream, unix_ms: u64::try_from(unix_ms).unwrap_or(0) }
    }

    /// Its stream.
    pub fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// When it began, milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    pub(crate) fn journals(&self) -> Path {
        Path::from(format!("{self}/journal"))
    }

    pub(crate) fn media(&self) -> Path {
        Path::from(format!("{self}/media"))
    }

    /// It is being removed: whoever finds this goes on removing.
    pub(crate) fn removed(&self) -> Path {
        Path::from(format!("{self}/removed"))
    }
}

impl fmt::Display for BroadcastId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.stream, self.unix_ms)
    }
}

impl FromStr for BroadcastId {
    type Err = NotABroadcast;

    fn from_str(text: &str) -> Result<Self, NotABroadcast> {
        let parsed = || {
            let (stream, unix_ms) = text.rsplit_once('-')?;
            Some(Self { stream: stream.parse().ok()?, unix_ms: number(unix_ms)? })
        };
        parsed().ok_or_else(|| NotABroadcast(text.chars().take(200).collect()))
    }
}

impl TryFrom<String> for BroadcastId {
    type Error = NotABroadcast;

    fn try_from(text: String) -> Result<Self, NotABroadcast> {
        text.parse()
    }
}

impl From<BroadcastId> for String {
    fn from(id: BroadcastId) -> String {
        id.to_string()
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a SHA-256 in hexadecimal digits")]
pub struct NotADigest;

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The first 16 digits: enough to tell the contents of one name apart.
    fn short(&self) -> String {
        hex(&self.0[..8])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        unhex(text).and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(NotADigest)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// A journal object. Those of level 0 are written as media comes; a higher level stands for many below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JournalName {
    pub(crate) level: u8,
    /// Who wrote it: drawn at random by each process.
    pub(crate) writer: u64,
    pub(crate) sequence: u64,
}

impl JournalName {
    pub(crate) fn path(&self, broadcast: &BroadcastId) -> Path {
        let JournalName { level, writer, sequence } = self;
        Path::from(format!("{broadcast}/journal/{level}-{writer:016x}-{sequence:010}.json"))
    }

    pub(crate) fn parse(path: &Path) -> Option<Self> {
        let mut parts = path.filename()?.strip_suffix(".json")?.split('-');
        let (level, writer, sequence) = (parts.next()?, parts.next()?, parts.next()?);
        let writer = u64::from_str_radix(writer, 16).ok()?;
        let name = Self { level: level.parse().ok()?, writer, sequence: sequence.parse().ok()? };
        parts.next().is_none().then_some(name)
    }
}

/// A media object. Its name says all that a journal does, so that one whose journal never came is found again; and it
/// depends on the contents, so that no two writers ever write different bytes under one name.
pub(crate) fn media_path(broadcast: &BroadcastId, rendition: &RenditionId, segment: &Segment) -> Path {
    let Segment { epoch, number, start, duration, discontinuity, sha256, .. } = segment;
    let kind = if *discontinuity { 'd' } else { 'c' };
    let sum = sha256.short();
    Path::from(format!("{broadcast}/media/{epoch}/{rendition}/{number}.{start}.{duration}.{kind}.{sum}.m4s"))
}

/// What a media object's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MediaName {
    pub(crate) rendition: RenditionId,
    pub(crate) epoch: Epoch,
    pub(crate) number: SegmentNumber,
    pub(crate) start: Ticks,
    pub(crate) duration: Ticks,
    pub(crate) discontinuity: bool,
}

impl MediaName {
    pub(crate) fn parse(path: &Path) -> Option<Self> {
        let mut parts = path.as_ref().rsplit('/');
        let (file, rendition, epoch) = (parts.next()?, parts.next()?, parts.next()?);
        let mut fields = file.strip_suffix(".m4s")?.split('.');
        let name = Self {
            rendition: rendition.parse().ok()?,
            epoch: Epoch(number(epoch)?),
            number: SegmentNumber(number(fields.next()?)?),
            start: fields.next()?.parse().ok()?,
            duration: fields.next()?.parse().ok()?,
            discontinuity: match fields.next()? {
                "c" => false,
                "d" => true,
                _ => return None,
            },
        };
        (fields.next()?.len() == 16 && fields.next().is_none()).then_some(name)
    }

    /// What a journal would have said.
    pub(crate) fn segment(&self, bytes: u64, sha256: Digest) -> Segment {
        Segment {
            epoch: self.epoch,
            number: self.number,
            start: self.start,
            duration: self.duration,
            discontinuity: self.discontinuity,
            lead: 0,
            bytes,
            sha256,
        }
    }
}

/// Decimal digits without sign or leading zero, so that everything has one name.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_have_one_name() {
        let id = BroadcastId::new("a-b.c".parse().unwrap(), 1_700_000_000_123);
        assert_eq!(id.to_string(), "a-b.c-1700000000123");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "demo", "demo-", "demo-01", "demo-+1", "-1", "a/b-1", "demo-99999999999999999999"] {
            assert!(bad.parse::<BroadcastId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_say_what_they_name() {
        let id: BroadcastId = "demo-5".parse().unwrap();
        let rendition: RenditionId = "a.b-c".parse().unwrap();
        for discontinuity in [false, true] {
            let segment = Segment {
                epoch: Epoch(7),
                number: SegmentNumber(12),
                start: -5,
                duration: 90_000,
                discontinuity,
                lead: 0,
                bytes: 3,
                sha256: Digest::of(b"abc"),
            };
            let path = media_path(&id, &rendition, &segment);
            let name = MediaName::parse(&path).unwrap();
            assert_eq!(name.rendition, rendition);
            assert_eq!(name.segment(3, segment.sha256), segment, "{path}");
        }
        for bad in ["demo-5/media/7/r/1.2.3.c.0.m4s", "demo-5/media/7/r/1.2.3.x.0123456789abcdef.m4s", "x"] {
            assert_eq!(MediaName::parse(&Path::from(bad)), None, "{bad}");
        }
        let journal = JournalName { level: 2, writer: u64::MAX, sequence: 9 };
        assert_eq!(JournalName::parse(&journal.path(&id)), Some(journal));
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "ba", "BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"] {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest), "{bad}");
        }
    }
}
