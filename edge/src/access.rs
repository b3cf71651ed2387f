//! Who may watch: playback tokens, checked here and never passed on.
//!
//! A token comes in the path (`/t/{token}/live/demo/index.m3u8`), as `Authorization: Bearer {token}` or in the query
//! (`?token={token}`); the first of these counts. The path form is the one for players: the relative addresses in a playlist
//! or MPD keep it, so that media is asked for with the token and no player has to know of it. What is under `/t/{token}/`
//! is otherwise the same object under the same name, kept once for all viewers.
//!
//! Where tokens are wanted a path must be in its plain form, without dot segments or needless escapes: an upstream that
//! tidies paths up must not be led from one that is open, or that a token opens, to another.
#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cluster::playback::Grant;
use cluster::token::{Keys, MAX_TOKEN_BYTES, TokenError};
use http::StatusCode;
use http::header::{self, HeaderMap};

use crate::policy::glob;

/// What a path with a token begins with.
const PREFIX: &str = "/t/";

/// Tokens that are known to be good are remembered, so many per shard and generation at most. Whoever has more than that
/// at once (4096 to 8192 viewers with a token each) has them checked again: about 10 µs each, where
/// a remembered one takes 1.
const SHARDS: usize = 16;
const REMEMBERED: usize = 256;

/// Which paths need a token, and what makes it good.
pub struct Access {
    keys: Arc<Keys>,
    paths: Vec<String>,
    known: [Mutex<Known>; SHARDS],
    hasher: RandomState,
}

/// Two generations: when the younger one is full the older one is forgotten.
#[derive(Default)]
struct Known {
    young: HashMap<Box<str>, Arc<Grant>>,
    old: HashMap<Box<str>, Arc<Grant>>,
    /// Of the keys that found them good.
    generation: u64,
}

/// Why a request is refused. The messages never contain the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It needs a token and has none.
    #[error("this needs a playback token: /t/TOKEN/..., ?token=TOKEN or Authorization: Bearer TOKEN")]
    Missing,
    /// It has one that is not good, or not any more.
    #[error("the playback {0}")]
    Bad(TokenError),
    /// It has a good one for something else.
    #[error("the playback token does not open this path")]
    OtherPath,
    /// The path is not in its plain form.
    #[error(
        "the path has empty or dot segments, escapes that it does not need, or a token that is not followed by a path"
    )]
    Tangled,
}

impl Refused {
    /// What it is answered with.
    pub fn status(&self) -> StatusCode {
        match self {
            Refused::Missing | Refused::Bad(_) => StatusCode::UNAUTHORIZED,
            Refused::OtherPath => StatusCode::FORBIDDEN,
            Refused::Tangled => StatusCode::BAD_REQUEST,
        }
    }
}

/// Takes the token off a path (with or without its query): the token, and what is left.
pub fn split(target: &str) -> (Option<&str>, &str) {
    let split = target.strip_prefix(PREFIX).and_then(|rest| {
        let (path, _) = rest.split_once('?').unwrap_or((rest, ""));
        let slash = path.find('/')?;
        Some((&rest[..slash], &rest[slash..]))
    });
    split.map_or((None, target), |(token, rest)| (Some(token), rest))
}

impl Access {
    /// `paths` are patterns in which `*` stands for any characters.
    pub fn new(keys: Arc<Keys>, paths: Vec<String>) -> Access {
        Access { keys, paths, known: Default::default(), hasher: RandomState::new() }
    }

    /// Whether a request for `path` and `query` (without the token of the path form, which is `token`) may be answered.
    pub fn check(
        &self,
        token: Option<&str>,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Result<(), Refused> {
        // What still looks like a token would go upstream, into the name and into logs.
        if !is_plain(path) || path.starts_with(PREFIX) {
            return Err(Refused::Tangled);
        }
        if !self.paths.iter().any(|pattern| glob(pattern, path)) {
            return Ok(());
        }
        let token = token.or_else(|| bearer(headers)).or_else(|| in_query(query)).ok_or(Refused::Missing)?;
        let grant = self.grant(token).map_err(Refused::Bad)?;
        grant.check_time(now).map_err(Refused::Bad)?;
        if grant.opens(path) { Ok(()) } else { Err(Refused::OtherPath) }
    }

    fn grant(&self, token: &str) -> Result<Arc<Grant>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong(token.len()));
        }
        let shard = &self.known[self.hasher.hash_one(token) as usize % SHARDS];
        // Asked for first: if the keys change meanwhile, what these find good is checked once more.
        let generation = self.keys.generation();
        if let Some(grant) = shard.lock().unwrap_or_else(PoisonError::into_inner).get(token, generation) {
            return Ok(grant);
        }
        // Bad ones are not remembered: whoever sends them would choose what is forgotten.
        let grant = Arc::new(self.keys.verify_playback(token)?);
        shard.lock().unwrap_or_else(PoisonError::into_inner).put(token.into(), grant.clone(), generation);
        Ok(grant)
    }
}

impl Known {
    fn get(&mut self, token: &str, generation: u64) -> Option<Arc<Grant>> {
        self.forget_before(generation);
        if let Some(grant) = self.young.get(token) {
            return Some(grant.clone());
        }
        let (token, grant) = self.old.remove_entry(token)?;
        self.put(token, grant.clone(), generation);
        Some(grant)
    }

    fn put(&mut self, token: Box<str>, grant: Arc<Grant>, generation: u64) {
        self.forget_before(generation);
        if generation < self.generation {
            return;
        }
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token, grant);
    }

    /// What older keys found good may have been let in by one that is gone.
    fn forget_before(&mut self, generation: u64) {
        if self.generation < generation {
            *self = Known { generation, ..Known::default() };
        }
    }
}

/// RFC 6750 section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn in_query(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|parameter| parameter.strip_prefix("token="))
}

/// Whether nobody can read a path as another: no empty or dot segments, no escapes of characters that go without or that
/// separate.
fn is_plain(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if (segment.is_empty() && !last) || segment == "." || segment == ".." || segment.contains(['\\', ';'])
        {
            return false;
        }
        let mut pieces = segment.split('%');
        pieces.next();
        for piece in pieces {
            let Some(byte) = piece.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
                return false;
            };
            if byte.is_ascii_alphanumeric() || b"-._~/\\;%".contains(&byte) || byte.is_ascii_control() {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn access() -> (Arc<Keys>, Access) {
        let keys = Arc::new(Keys::new(&[vec![1; 32]]).unwrap());
        (keys.clone(), Access::new(keys, vec!["/live/*".into()]))
    }

    #[test]
    fn tokens_are_taken_off_paths() {
        for (target, token, rest) in [
            ("/t/abc/live/a.m3u8", Some("abc"), "/live/a.m3u8"),
            ("/t/abc/live/a.m3u8?x=/y", Some("abc"), "/live/a.m3u8?x=/y"),
            ("/t/abc/", Some("abc"), "/"),
            ("/t//live/a", Some(""), "/live/a"),
            ("/t/abc", None, "/t/abc"),
            ("/t/abc?x=/y", None, "/t/abc?x=/y"),
            ("/tt/abc/x", None, "/tt/abc/x"),
            ("/live/a", None, "/live/a"),
        ] {
            assert_eq!(split(target), (token, rest), "{target}");
        }
    }

    #[test]
    fn every_way_to_bring_a_token() {
        let (keys, access) = access();
        let token = keys.issue_playback("/live/a", HOUR, at(1000)).unwrap();
        let other = keys.issue_playback("/live/b", HOUR, at(1000)).unwrap();
        let none = HeaderMap::new();
        let path = "/live/a/index.m3u8";
        let with = |value: String| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let query = format!("_HLS_msn=3&token={token}");
        for now in [at(1000), at(4599)] {
            assert_eq!(access.check(Some(&token), path, None, &none, now), Ok(()));
            assert_eq!(access.check(None, path, Some(&query), &none, now), Ok(()));
            assert_eq!(access.check(None, path, None, &with(format!("bearer {token}")), now), Ok(()));
        }
        assert_eq!(access.check(None, path, None, &none, at(1000)), Err(Refused::Missing));
        assert_eq!(access.check(None, path, Some("tokens=1"), &none, at(1000)), Err(Refused::Missing));
        let basic = with(format!("Basic {token}"));
        assert_eq!(access.check(None, path, None, &basic, at(1000)), Err(Refused::Missing));
        assert_eq!(access.check(Some(&other), path, Some(&query), &none, at(1000)), Err(Refused::OtherPath));
        assert_eq!(
            access.check(None, "/watch/a", None, &none, at(1000)),
            Ok(()),
            "not a path that needs one"
        );
        // Also when it is remembered.
        let late = access.check(Some(&token), path, None, &none, at(4612));
        assert_eq!(late, Err(Refused::Bad(TokenError::Expired { seconds: 12 })));
        assert_eq!(late.unwrap_err().to_string(), "the playback token expired 12 s ago");
    }

    #[test]
    fn bad_tokens() {
        let (keys, access) = access();
        let none = HeaderMap::new();
        let refused = |token: &str| access.check(Some(token), "/live/a/x", None, &none, at(0)).unwrap_err();
        assert_eq!(refused(&"x".repeat(100_000)), Refused::Bad(TokenError::TooLong(100_000)));
        for token in ["", "x", "..", "a.b.c", "%2e%2e", &keys.issue("a", HOUR, at(0)).unwrap()] {
            assert!(matches!(refused(token), Refused::Bad(TokenError::Malformed(_))), "{token}");
        }
        let theirs = Keys::new(&[vec![2; 32]]).unwrap().issue_playback("/live/a", HOUR, at(0)).unwrap();
        assert_eq!(refused(&theirs), Refused::Bad(TokenError::Signature));
        assert!(
            access.known.iter().all(|shard| shard.lock().unwrap().young.is_empty()),
            "none is remembered"
        );
    }

    #[test]
    fn tangled_paths_lead_nowhere() {
        let (keys, access) = access();
        let token = keys.issue_playback("/live/a", HOUR, at(0)).unwrap();
        for path in [
            "/live/a/../b/x",
            "/live/a/./x",
            "/live/a/..",
            "/x/../live/b/x",
            "//live/b/x",
            "/live//b",
            "/live/a/%2e%2E/b/x",
            "/live/a/.%2e/b",
            "/%6cive/b/x",
            "/live/a%2f..%2fb",
            "/live/a/..%5cb",
            "/live/a/..\\b",
            "/live/a/..;/b",
            "/live/a/%",
            "/live/a/%zz",
            "/live/a/%252e%252e/b",
            "/live/a/%00",
            "/live/a/%é",
            "live/a",
            "/t/another/live/a/x",
            "/t/another",
            "*",
        ] {
            let refused = access.check(Some(&token), path, None, &HeaderMap::new(), at(0));
            assert_eq!(refused, Err(Refused::Tangled), "{path}");
        }
        for path in ["/live/a/", "/live/a/%C3%A9/x", "/live/a/a%20b.m4s", "/live/a/...m4s"] {
            assert_eq!(access.check(Some(&token), path, None, &HeaderMap::new(), at(0)), Ok(()), "{path}");
        }
    }

    #[test]
    fn few_tokens_are_remembered() {
        let mut known = Known::default();
        let (keys, _) = access();
        let grant = Arc::new(keys.verify_playback(&keys.issue_playback("/", HOUR, at(0)).unwrap()).unwrap());
        known.put("used".into(), grant.clone(), 0);
        for number in 0..10 * REMEMBERED {
            known.put(number.to_string().into(), grant.clone(), 0);
            assert!(known.young.len() <= REMEMBERED && known.old.len() <= REMEMBERED);
            assert!(number % 100 != 0 || known.get("used", 0).is_some(), "what is used stays");
        }
        assert!(known.get("0", 0).is_none());
        // What older keys found good is forgotten, and does not come back.
        assert!(known.get("used", 1).is_none());
        known.put("used".into(), grant.clone(), 0);
        assert!(known.get("used", 1).is_none());
    }
}
