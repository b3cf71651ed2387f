//! What viewers ask for: names of one stream, and what the origin says of each.
#![deny(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::freshness::{self, Freshness};
use crate::policy::{Class, Policy};

/// A rendition: those of video by number, then audio.
pub(super) type Track = u8;

/// An object of the stream. Parts are counted from the beginning of the stream, not of their segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Multivariant,
    Playlist(Track),
    /// The playlist, once this part is in it.
    Reload(Track, u64),
    Init(Track),
    Segment(Track, u64),
}

/// Kinds of names: each belongs to one class.
const KINDS: usize = 5;

impl Name {
    /// As caches know it.
    pub(super) fn key(self, parts: u64) -> String {
        match self {
            Name::Multivariant => "/live/show/index.m3u8".into(),
            Name::Playlist(track) => format!("/live/show/{track}.m3u8"),
            Name::Reload(track, part) => {
                let (segment, part) = (part / parts, part % parts);
                format!("/live/show/{track}.m3u8?_HLS_msn={segment}&_HLS_part={part}")
            }
            Name::Init(track) => format!("/live/show/1/{track}/init.mp4"),
            Name::Segment(track, number) => format!("/live/show/1/{track}/{number}.m4s"),
        }
    }

    fn kind(self) -> usize {
        match self {
            Name::Multivariant => 0,
            Name::Playlist(_) => 1,
            Name::Reload(..) => 2,
            Name::Init(_) => 3,
            Name::Segment(..) => 4,
        }
    }
}

/// The classes that names belong to by a policy, and how long their answers may be used.
pub(super) struct Classes {
    of: [Arc<Class>; KINDS],
    controls: [String; KINDS],
}

impl Classes {
    /// `segment` is the target duration.
    pub(super) fn new(policy: &Policy, segment: Duration) -> Classes {
        let target = segment.as_secs_f64().ceil().max(1.0) as u64;
        let (plain, blocking) = ((target / 2).max(1), target * 6);
        let immutable = "public, max-age=31536000, immutable".to_owned();
        let samples =
            [Name::Multivariant, Name::Playlist(0), Name::Reload(0, 0), Name::Init(0), Name::Segment(0, 0)];
        let of = samples.map(|name| {
            let key = name.key(1);
            let (path, query) = key.split_once('?').unwrap_or((&key, ""));
            policy.class(path, query).clone()
        });
        let controls = [
            "max-age=2".to_owned(),
            format!("max-age={plain}"),
            format!("max-age={blocking}"),
            immutable.clone(),
            immutable,
        ];
        Classes { of, controls }
    }

    pub(super) fn class(&self, name: Name) -> &Arc<Class> {
        &self.of[name.kind()]
    }

    /// Of an answer of the origin that is so old when it comes: how long it may be used.
    pub(super) fn freshness(&self, name: Name, age: Duration) -> Freshness {
        let mut headers = HeaderMap::new();
        headers.extend(
            HeaderValue::from_str(&self.controls[name.kind()]).map(|value| (header::CACHE_CONTROL, value)),
        );
        headers.insert(header::AGE, age.as_secs().into());
        freshness::freshness(self.class(name), StatusCode::OK, &headers, SystemTime::UNIX_EPOCH)
    }
}
