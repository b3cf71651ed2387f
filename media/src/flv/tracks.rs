//! The headers of Enhanced RTMP messages, and the tracks in them.
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, Bytes};

use super::{Error, Tag, TagKind};

impl Tag {
    /// The numbers of the tracks that an Enhanced RTMP message carries besides the one that is read, without doubles.
    /// Empty for all others, and for what cannot be read.
    pub fn other_tracks(&self) -> Vec<u8> {
        let mut others = Vec::new();
        let first = self.data.first().copied().unwrap_or_default();
        let enhanced = match self.kind {
            TagKind::Video => first & 0x80 != 0,
            TagKind::Audio => first >> 4 == 9,
            TagKind::Script => false,
        };
        if enhanced && let Ok(Header { tracks: Some(mut tracks), .. }) = Header::read(self) {
            while let Ok(Some(track)) = tracks.next() {
                if track.id != 0 && !others.contains(&track.id) {
                    others.push(track.id);
                }
            }
        }
        others
    }
}

/// The header of an Enhanced RTMP message up to its tracks.
pub(super) struct Header {
    pub(super) packet_type: u8,
    pub(super) nanos: u32,
    /// `None` for a message with one track and no number.
    tracks: Option<Tracks>,
    /// The codec of a message without track numbers, if its body is long enough for one.
    fourcc: Option<[u8; 4]>,
    body: Bytes,
    what: &'static str,
    len: usize,
}

/// The tracks of a multitrack message, one after the other.
#[derive(Clone)]
struct Tracks {
    what: &'static str,
    len: usize,
    layout: u8,
    packet_type: u8,
    /// The codec of all tracks, where they share one.
    fourcc: Option<[u8; 4]>,
    rest: Bytes,
}

struct Track {
    id: u8,
    packet: Packet,
}

pub(super) struct Packet {
    pub(super) packet_type: u8,
    pub(super) fourcc: [u8; 4],
    pub(super) body: Bytes,
}

/// `AvMultitrackType`: one track, which has no length.
const ONE_TRACK: u8 = 0;
/// `AvMultitrackType`: several, each with a FourCC.
const MANY_CODECS: u8 = 2;

impl Header {
    pub(super) fn read(tag: &Tag) -> Result<Header, Error> {
        const MOD_EX: u8 = 7;
        const NANO_OFFSET: u8 = 0;
        let (kind, what, multitrack) = match tag.kind {
            TagKind::Video => ("video", "video tag", 6),
            _ => ("audio", "audio tag", 5),
        };
        let len = tag.data.len();
        let short = || Error::Short { what, len };
        let mut body = tag.data.clone();
        let mut packet_type = body.try_get_u8().map_err(|_| short())? & 0x0F;
        let mut nanos = 0;
        while packet_type == MOD_EX {
            let mut size = usize::from(body.try_get_u8().map_err(|_| short())?) + 1;
            if size == 256 {
                size = usize::from(body.try_get_u16().map_err(|_| short())?) + 1;
            }
            if body.len() < size {
                return Err(short());
            }
            let data = body.split_to(size);
            let types = body.try_get_u8().map_err(|_| short())?;
            packet_type = types & 0x0F;
            if types >> 4 == NANO_OFFSET && size >= 3 {
                nanos = u32::from_be_bytes([0, data[0], data[1], data[2]]).min(999_999);
            }
        }
        if packet_type != multitrack {
            // A command has no FourCC; nor does it have anything else that is of interest.
            let fourcc = take_fourcc(&mut body);
            return Ok(Header { packet_type, nanos, tracks: None, fourcc, body, what, len });
        }
        let types = body.try_get_u8().map_err(|_| short())?;
        let (layout, inner) = (types >> 4, types & 0x0F);
        if layout > MANY_CODECS || inner == multitrack {
            let kind_found = if layout > MANY_CODECS { layout } else { inner };
            return Err(Error::UnknownMultitrack { track: kind, kind: kind_found });
        }
        let fourcc = match layout {
            MANY_CODECS => None,
            _ => Some(take_fourcc(&mut body).ok_or_else(short)?),
        };
        let tracks = Tracks { what, len, layout, packet_type: inner, fourcc, rest: body };
        let tracks = Some(tracks);
        Ok(Header { packet_type: inner, nanos, tracks, fourcc: None, body: Bytes::new(), what, len })
    }

    /// What the message has for track 0.
    pub(super) fn first_track(&self) -> Result<Option<Packet>, Error> {
        let Some(tracks) = &self.tracks else {
            let fourcc = self.fourcc.ok_or(Error::Short { what: self.what, len: self.len })?;
            return Ok(Some(Packet { packet_type: self.packet_type, fourcc, body: self.body.clone() }));
        };
        let mut tracks = tracks.clone();
        while let Some(track) = tracks.next()? {
            if track.id == 0 {
                return Ok(Some(track.packet));
            }
        }
        Ok(None)
    }
}

impl Tracks {
    fn next(&mut self) -> Result<Option<Track>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let short = Error::Short { what: self.what, len: self.len };
        let Some(fourcc) = self.fourcc.or_else(|| take_fourcc(&mut self.rest)) else { return Err(short) };
        let Ok(id) = self.rest.try_get_u8() else { return Err(short) };
        let size = match self.layout {
            ONE_TRACK => self.rest.len(),
            _ if self.rest.len() < 3 => return Err(short),
            _ => self.rest.get_uint(3) as usize,
        };
        if self.rest.len() < size {
            return Err(short);
        }
        let body = self.rest.split_to(size);
        Ok(Some(Track { id, packet: Packet { packet_type: self.packet_type, fourcc, body } }))
    }
}

fn take_fourcc(body: &mut Bytes) -> Option<[u8; 4]> {
    let fourcc = *body.first_chunk()?;
    body.advance(4);
    Some(fourcc)
}
