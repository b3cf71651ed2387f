//! Closed captions that travel in video: which services (CEA-608 channels, CEA-708 services) an access unit has data of. They
//! are in SEI messages or metadata OBUs as ATSC A/53 part 4 (6.2.3) and ANSI/SCTE 128-1 (8.1) have it.
#![deny(clippy::disallowed_methods)]

mod insert;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::codec::VideoCodec;

pub use insert::{MAX_TRIPLETS, TRIPLET_BYTES, inserted};

/// SEI messages are looked at up to here, in bytes of one NAL unit or OBU: caption data has at most 31 triplets.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// SEI payload type user_data_registered_itu_t_t35 (ITU-T H.264, D.1.1; H.265, D.2.1).
const REGISTERED: u8 = 4;

/// Type of a prefix SEI message's NAL unit (H.264, table 7-1; H.265, table 7-1), of a metadata OBU (AV1, 6.2.2), and of what is in
/// it (AV1, 6.7.1).
const AVC_SEI: u8 = 6;
const HEVC_SEI: u8 = 39;
const METADATA: u8 = 5;
const ITUT_T35: u8 = 4;

/// What introduces caption data: the country USA, the provider ATSC, its identifier, cc_data.
const ATSC: [u8; 8] = [0xB5, 0x00, 0x31, b'G', b'A', b'9', b'4', 0x03];

/// One way of captions through a stream, as HLS names it (INSTREAM-ID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// A channel of CEA-608: `CC1` to `CC4`.
    Line21(u8),
    /// A service of CEA-708: `SERVICE1` to `SERVICE63`.
    Digital(u8),
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Line21(number) => write!(f, "CC{number}"),
            Channel::Digital(number) => write!(f, "SERVICE{number}"),
        }
    }
}

/// A channel of captions and its language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Service {
    /// Where the captions are.
    pub channel: Channel,
    /// A language tag (BCP 47) such as `en`, if it is known.
    pub language: Option<Box<str>>,
}

/// Text that names no service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no caption service: needs CC1 to CC4 or SERVICE1 to SERVICE63, and behind a colon perhaps a language such as en"
)]
pub struct NoService(String);

impl FromStr for Service {
    type Err = NoService;

    fn from_str(text: &str) -> Result<Self, NoService> {
        let no_service = || NoService(text.chars().take(64).collect());
        let (channel, language) = text.split_once(':').map_or((text, None), |(c, l)| (c, Some(l)));
        let number = |digits: &str, most: u8| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse().ok().filter(|number| plain && (1..=most).contains(number))
        };
        let channel = match (channel.strip_prefix("CC"), channel.strip_prefix("SERVICE")) {
            (Some(digits), _) => number(digits, 4).map(Channel::Line21),
            (_, Some(digits)) => number(digits, 63).map(Channel::Digital),
            _ => None,
        };
        let tag = |tag: &str| {
            (2..=35).contains(&tag.len())
                && tag
                    .split('-')
                    .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
        };
        match (channel, language) {
            (Some(channel), None) => Ok(Self { channel, language: None }),
            (Some(channel), Some(language)) if tag(language) => {
                Ok(Self { channel, language: Some(language.into()) })
            }
            _ => Err(no_service()),
        }
    }
}

impl TryFrom<String> for Service {
    type Error = NoService;

    fn try_from(text: String) -> Result<Self, NoService> {
        text.parse()
    }
}

impl From<Service> for String {
    fn from(service: Service) -> String {
        service.to_string()
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.channel.fmt(f)?;
        self.language.iter().try_for_each(|language| write!(f, ":{language}"))
    }
}

/// What was seen of captions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Captions {
    /// There was caption data, if only of silence.
    carried: bool,
    /// CC1 to CC4 from the lowest bit on.
    line21: u8,
    /// The bit of a service's number.
    digital: u64,
}

impl Captions {
    /// What an access unit shows of them: NAL units behind lengths of 4 bytes, or OBUs. Bytes that make no sense show nothing.
    pub fn seen_in(codec: VideoCodec, access_unit: &[u8]) -> Captions {
        let mut captions = Captions::default();
        each_triplet(codec, access_unit, |triplet| captions.take(triplet));
        captions
    }

    /// What was seen of both.
    pub fn union(self, other: Captions) -> Captions {
        Captions {
            carried: self.carried | other.carried,
            line21: self.line21 | other.line21,
            digital: self.digital | other.digital,
        }
    }

    /// What players are to be told: `configured` for all video that carries captions; without such, what was seen, and CC1
    /// where nothing was written yet.
    pub fn services(self, configured: &[Service]) -> Vec<Service> {
        if !self.carried {
            return Vec::new();
        }
        if !configured.is_empty() {
            return configured.to_vec();
        }
        let line21 = (1..=4).filter(|n| self.line21 >> (n - 1) & 1 == 1).map(Channel::Line21);
        let digital = (1..=63).filter(|n| self.digital >> n & 1 == 1).map(Channel::Digital);
        let mut channels: Vec<_> = line21.chain(digital).collect();
        if channels.is_empty() {
            channels.push(Channel::Line21(1));
        }
        channels.into_iter().map(|channel| Service { channel, language: None }).collect()
    }

    fn take(&mut self, [head, first, second]: [u8; 3]) {
        self.carried = true;
        let (valid, kind) = (head & 4 != 0, head & 3);
        match kind {
            _ if !valid => {}
            // The two fields of line 21 (CEA-608, 8.4): codes that choose a caption mode name the channel; text and XDS do
            // not count. Some encoders write those of field 1 in field 2, too.
            0 | 1 => {
                let (code, mode) = (first & 0x7F, second & 0x7F);
                if matches!(code, 0x14 | 0x15 | 0x1C | 0x1D) && matches!(mode, 0x20 | 0x25..=0x27 | 0x29) {
                    self.line21 |= 1 << (2 * kind + (code >> 3 & 1));
                }
            }
            // A packet of CEA-708 begins: behind its header that of a service block (6.2). Service 7 with a size stands for
            // an extended number, which the next triplet has.
            3 => {
                let (service, size) = (second >> 5, second & 0x1F);
                if (1..7).contains(&service) && size > 0 {
                    self.digital |= 1 << service;
                }
            }
            _ => {}
        }
    }
}

/// Gives each construct of caption data (`cc_data_pkt`, 3 bytes) of an access unit, in order.
pub fn each_triplet(codec: VideoCodec, access_unit: &[u8], mut give: impl FnMut([u8; 3])) {
    match codec {
        VideoCodec::Avc | VideoCodec::Hevc => {
            for (_, nal) in nals(access_unit) {
                if is_slice(codec, nal) {
                    return;
                }
                // Their headers are of one byte, and of two.
                let payload = match codec {
                    VideoCodec::Avc if nal[0] & 0x1F == AVC_SEI => nal.get(1..),
                    VideoCodec::Hevc if nal[0] >> 1 & 0x3F == HEVC_SEI => nal.get(2..),
                    _ => None,
                };
                if let Some(payload) = payload {
                    sei_messages(&unescaped(payload), &mut give);
                }
            }
        }
        // AV1 bitstream specification, 5.8.1: a metadata OBU of type ITUT_T35.
        VideoCodec::Av1 => {
            let mut rest = access_unit;
            while let Some((kind, body, behind)) = obu(rest) {
                rest = behind;
                match (kind, body) {
                    (kind, _) if is_frame(kind) => return,
                    (METADATA, [ITUT_T35, t35 @ ..]) => {
                        cc_data(&t35[..t35.len().min(MAX_MESSAGE_BYTES)], &mut give);
                    }
                    _ => {}
                }
            }
        }
        VideoCodec::Vp9 => {}
    }
}

/// The NAL units of an access unit that are not empty, and where their lengths of 4 bytes are. Ends where they do not add up.
fn nals(access_unit: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let (len, behind) = access_unit.get(at..)?.split_first_chunk::<4>()?;
            let nal = behind.get(..u32::from_be_bytes(*len) as usize)?;
            let place = at;
            at += 4 + nal.len();
            if !nal.is_empty() {
                return Some((place, nal));
            }
        }
    })
}

/// Whether a NAL unit has a piece of the picture (ITU-T H.264, table 7-1; H.265, table 7-1). Behind it no SEI message of this
/// kind comes.
fn is_slice(codec: VideoCodec, nal: &[u8]) -> bool {
    match codec {
        VideoCodec::Avc => (1..=5).contains(&(nal[0] & 0x1F)),
        _ => nal[0] >> 1 & 0x3F < 32,
    }
}

/// Whether an OBU of this type begins a frame: frame header, frame (AV1 bitstream specification, 6.2.2).
fn is_frame(kind: u8) -> bool {
    matches!(kind, 3 | 6)
}

/// Type, body and what follows of an OBU (AV1 bitstream specification, 5.3).
fn obu(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&header, rest) = bytes.split_first()?;
    let rest = if header & 4 != 0 { rest.get(1..)? } else { rest };
    let kind = header >> 3 & 15;
    if header & 2 == 0 {
        return Some((kind, rest, &[]));
    }
    let mut len = 0u64;
    for (index, byte) in rest.iter().enumerate().take(8) {
        len |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            let (body, behind) = rest[index + 1..].split_at_checked(usize::try_from(len).ok()?)?;
            return Some((kind, body, behind));
        }
    }
    None
}

/// Without emulation prevention (ITU-T H.264, 7.4.1).
fn unescaped(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nal.len().min(MAX_MESSAGE_BYTES));
    let mut zeros = 0;
    for &byte in nal.iter().take(MAX_MESSAGE_BYTES) {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

/// sei_rbsp (ITU-T H.264, 7.3.2.3).
fn sei_messages(mut rbsp: &[u8], give: &mut impl FnMut([u8; 3])) {
    while rbsp.len() > 2 {
        let (Some(kind), Some(size)) = (number(&mut rbsp), number(&mut rbsp)) else { return };
        let Some((payload, behind)) = rbsp.split_at_checked(size) else { return };
        if kind == usize::from(REGISTERED) {
            cc_data(payload, give);
        }
        rbsp = behind;
    }
}

/// A number as sums of bytes, of which all but the last are 255.
fn number(bytes: &mut &[u8]) -> Option<usize> {
    let mut sum = 0;
    loop {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        sum += usize::from(byte);
        if byte != 255 {
            return Some(sum);
        }
    }
}

/// user_data_registered_itu_t_t35 with ATSC's cc_data in it.
fn cc_data(t35: &[u8], give: &mut impl FnMut([u8; 3])) {
    let Some([flags, _, triplets @ ..]) = t35.strip_prefix(&ATSC) else { return };
    if flags & 0x40 == 0 {
        return;
    }
    triplets.chunks_exact(3).take(usize::from(flags & 0x1F)).for_each(|t| give([t[0], t[1], t[2]]));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// user_data_registered_itu_t_t35
    fn t35(triplets: &[[u8; 3]]) -> Vec<u8> {
        let head = [0xC0 | triplets.len() as u8, 0xFF];
        [&ATSC[..], &head, &triplets.concat(), &[0xFF]].concat()
    }

    fn nal(header: &[u8], rbsp: &[u8]) -> Vec<u8> {
        let mut body = header.to_vec();
        let mut zeros = 0;
        for &byte in rbsp {
            if zeros >= 2 && byte <= 3 {
                body.push(3);
                zeros = 0;
            }
            zeros = if byte == 0 { zeros + 1 } else { 0 };
            body.push(byte);
        }
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    fn sei(payload: &[u8]) -> Vec<u8> {
        [&[1, 1, 9, 4, payload.len() as u8][..], payload, &[0x80]].concat()
    }

    fn names(captions: Captions) -> String {
        captions.services(&[]).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn captions_are_found_in_all_codecs() {
        // Padding, a mode in channel 1, zeros that must be escaped, and service 2.
        let triplets =
            [[0xFC, 0x80, 0x80], [0xFC, 0x94, 0x20], [0xFA, 0, 0], [0xFB, 0, 0], [0xFF, 0x02, 0x41]];
        let sei = sei(&t35(&triplets));
        let slice = nal(&[0x65], b"slice");
        let avc = [nal(&[9], &[0xF0]), nal(&[6], &sei), slice.clone()].concat();
        let hevc =
            [nal(&[35 << 1, 1], &[0x50]), nal(&[39 << 1, 1], &sei), nal(&[19 << 1, 1], b"slice")].concat();
        let body = [&[4][..], &t35(&triplets), &[0x80]].concat();
        let av1 = [&[0x12, 0, 0x2A, body.len() as u8][..], &body, &[0x32, 1, 0x10]].concat();
        for (codec, unit) in [(VideoCodec::Avc, &avc), (VideoCodec::Hevc, &hevc), (VideoCodec::Av1, &av1)] {
            let mut found = Vec::new();
            each_triplet(codec, unit, |triplet| found.push(triplet));
            assert_eq!(found, triplets, "{codec}");
            assert_eq!(names(Captions::seen_in(codec, unit)), "CC1 SERVICE2", "{codec}");
        }
        let behind = [slice, nal(&[6], &sei)].concat();
        assert_eq!(Captions::seen_in(VideoCodec::Avc, &behind), Captions::default());
        assert_eq!(names(Captions::seen_in(VideoCodec::Vp9, &avc)), "");
    }

    #[test]
    fn channels_are_told_by_their_modes() {
        let seen = |triplets: &[[u8; 3]]| {
            let mut captions = Captions::default();
            triplets.iter().for_each(|triplet| captions.take(*triplet));
            names(captions)
        };
        for (triplet, expected) in [
            ([0xFC, 0x94, 0x25], "CC1"),
            ([0xFC, 0x1C, 0x29], "CC2"),
            ([0xFD, 0x15, 0xA7], "CC3"),
            ([0xFD, 0x9D, 0x20], "CC4"),
            // Text, XDS, letters, nothing: captions are there, and nobody knows where.
            ([0xFC, 0x94, 0x2A], "CC1"),
            ([0xFD, 0x01, 0x20], "CC1"),
            ([0xFD, 0x80, 0x80], "CC1"),
            ([0xFF, 0x02, 0x21], "SERVICE1"),
            ([0xFF, 0x02, 0xE1], "CC1"),
            // Not valid.
            ([0xF9, 0x15, 0xA7], "CC1"),
        ] {
            assert_eq!(seen(&[triplet]), expected, "{triplet:02x?}");
        }
        assert_eq!(seen(&[]), "");
        let configured: Vec<Service> = ["CC1:en", "CC3:es-419"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(Captions::default().services(&configured), []);
        assert_eq!(Captions { carried: true, ..Captions::default() }.services(&configured), configured);
    }

    #[test]
    fn services_have_names() {
        for text in ["CC1", "CC4:en", "SERVICE1:pt-BR", "SERVICE63"] {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "CC",
            "CC0",
            "CC5",
            "CC01",
            "cc1",
            "SERVICE64",
            "SERVICE+1",
            "CC1:",
            "CC1:e",
            "CC1:e\"n",
            "CC1:en-",
        ] {
            assert!(text.parse::<Service>().is_err(), "{text}");
        }
    }

    #[test]
    fn whatever_comes_is_survived() {
        let whole = [nal(&[6], &sei(&t35(&[[0xFC, 0x94, 0x20]; 20]))), nal(&[0x65], b"slice")].concat();
        let mut seed = 9u64;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 50) as u8;
            }
            bytes.truncate((seed >> 40) as usize % (bytes.len() + 1));
            for codec in VideoCodec::ALL {
                Captions::seen_in(codec, &bytes);
            }
        }
    }
}
