//! What may be kept, under which name and for how long: classes of objects, the cache key, and freshness by RFC 9111.
//!
//! Deliberate simplifications, all safe because requests to the upstream carry nothing of the viewer's (no cookies, no
//! credentials, no accept-encoding): a viewer's own `Cache-Control` does not reach the origin; `Vary` other than `*` needs
//! no second variant; `Set-Cookie` and `private` answers go to those who were waiting and are not kept.
#![deny(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};

/// Query parameters that say who asks or how playback goes, not what is asked for.
const NOT_IN_KEY: [&str; 2] = ["token", "CMCD"];

/// Longest name that is accepted, in bytes of path and canonical query: names are kept in tables.
pub const MAX_KEY_BYTES: usize = 2048;

/// RFC 9111 section 1.2.2: larger numbers of seconds mean this.
const MAX_DELTA_SECONDS: u64 = 1 << 31;

/// A class of objects: which names belong to it and how they are fetched and kept. The first class that matches counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Class {
    /// Its name in metrics and logs.
    pub name: String,
    /// Patterns of the whole path; `*` stands for any characters, also none and `/`.
    pub paths: Vec<String>,
    /// A query parameter that must be there, such as `_HLS_msn`; without it any query matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// How long a success stays fresh, in place of what the upstream's headers say; `no-store` and `private` are obeyed
    /// all the same. Default: RFC 9111, so an answer that does not say how long is not kept.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// How long a 4xx (at most: shorter if its headers say so) or an upstream failure is remembered. 0 to 60s: a long
    /// memory of a failure outlives the failure.
    #[serde(with = "humantime_serde")]
    pub negative_ttl: Duration,
    /// For how long past its freshness an object is served at once while it is fetched anew, unless the upstream says
    /// otherwise (RFC 5861).
    #[serde(with = "humantime_serde")]
    pub stale_while_revalidate: Duration,
    /// For how long past its freshness an object is served when the upstream fails, unless the upstream says otherwise.
    #[serde(with = "humantime_serde")]
    pub stale_if_error: Duration,
    /// The cache-blocking timeout: no headers for that long, and one more fetch is started. At least 10ms.
    #[serde(with = "humantime_serde")]
    pub blocking_timeout: Duration,
    /// No headers for that long since the first fetch began: those who wait get a stale copy or 503. Also the longest
    /// silence within a body before it counts as broken. At least 10ms.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// Fetches of one name that may be started because earlier ones were slow, the first included. 1 to 8.
    pub max_fetches: u32,
}

impl Default for Class {
    fn default() -> Self {
        Self {
            name: "other".into(),
            paths: vec!["*".into()],
            query: None,
            ttl: None,
            negative_ttl: Duration::from_millis(500),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            blocking_timeout: Duration::from_secs(2),
            give_up: Duration::from_secs(10),
            max_fetches: 2,
        }
    }
}

impl Class {
    /// The classes of HLS and DASH.
    pub fn defaults() -> Vec<Class> {
        let class = |name: &str, path: &str| Class {
            name: name.into(),
            paths: vec![path.into()],
            ..Class::default()
        };
        let ms = Duration::from_millis;
        vec![
            // An origin may hold such a request for two segments and then some before it has the playlist.
            Class {
                query: Some("_HLS_msn".into()),
                blocking_timeout: ms(3000),
                give_up: ms(8000),
                ..class("blocking-playlist", "*.m3u8")
            },
            // Half a target duration (RFC 8216bis, appendix B.1) has no whole number of seconds to be said in a header.
            Class {
                ttl: Some(ms(500)),
                stale_if_error: ms(3000),
                blocking_timeout: ms(1000),
                give_up: ms(4000),
                ..class("playlist", "*.m3u8")
            },
            Class {
                stale_if_error: ms(3000),
                blocking_timeout: ms(1000),
                give_up: ms(4000),
                ..class("mpd", "*.mpd")
            },
            // A segment that is asked for a little early must not stay missing.
            Class {
                negative_ttl: ms(200),
                stale_if_error: ms(60_000),
                give_up: ms(8000),
                ..class("media", "*.m4s")
            },
            Class {
                stale_if_error: ms(60_000),
                blocking_timeout: ms(1000),
                give_up: ms(5000),
                ..class("init", "*.mp4")
            },
            Class::default(),
        ]
    }

    /// Whether a name belongs to the class.
    pub fn matches(&self, path: &str, query: &str) -> bool {
        let required = self.query.as_deref();
        required.is_none_or(|key| parameters(query).any(|parameter| name_of(parameter) == key))
            && self.paths.iter().any(|pattern| glob(pattern, path))
    }

    /// What is wrong with it, each with the key path that `path` begins.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.is_empty() || self.name.len() > 64 {
            problems.push(format!("{path}.name: must have 1 to 64 characters"));
        }
        if self.paths.is_empty() {
            problems.push(format!("{path}.paths: needs at least one pattern, such as \"*.m4s\""));
        }
        if self.negative_ttl > Duration::from_secs(60) {
            problems.push(format!("{path}.negative_ttl: must be 0s to 60s"));
        }
        for (key, value) in [("blocking_timeout", self.blocking_timeout), ("give_up", self.give_up)] {
            if !(Duration::from_millis(10)..=Duration::from_secs(300)).contains(&value) {
                problems.push(format!("{path}.{key}: must be 10ms to 300s"));
            }
        }
        if !(1..=8).contains(&self.max_fetches) {
            problems.push(format!("{path}.max_fetches: must be 1 to 8"));
        }
        problems
    }
}

/// The name under which an object is kept and fetched: the path and the canonical query, which has its parameters in
/// order and none that says nothing about the object. Borrowed where nothing had to change.
pub fn key<'a>(path_and_query: &'a str, path: &str, query: Option<&str>) -> Cow<'a, str> {
    let Some(query) = query else {
        return Cow::Borrowed(path_and_query);
    };
    let mut kept: Vec<&str> =
        parameters(query).filter(|parameter| !NOT_IN_KEY.contains(&name_of(parameter))).collect();
    // Stable, by name only: the order of equal names may mean something.
    kept.sort_by_key(|parameter| name_of(parameter));
    if kept.is_empty() {
        return Cow::Owned(path.into());
    }
    let canonical = kept.join("&");
    if canonical == query { Cow::Borrowed(path_and_query) } else { Cow::Owned(format!("{path}?{canonical}")) }
}

fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split('&').filter(|parameter| !parameter.is_empty())
}

fn name_of(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

/// Whether `*` in `pattern` can be filled so that it equals `text`. Linear in practice: each piece is searched once.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*').filter(|piece| !piece.is_empty()) {
        let Some(at) = text.find(piece) else {
            return false;
        };
        text = &text[at + piece.len()..];
    }
    text.ends_with(last)
}

/// How long an answer may be used from when it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How old it was on arrival (`Age`).
    pub age: Duration,
    /// How much longer it is fresh.
    pub fresh: Duration,
    /// Past that, how long it may be served while it is fetched anew.
    pub while_revalidate: Duration,
    /// Past that, how long it may be served when the upstream fails.
    pub if_error: Duration,
}

impl Freshness {
    /// How long it is worth keeping.
    pub fn keep(&self) -> Duration {
        self.fresh + self.while_revalidate.max(self.if_error)
    }
}

/// RFC 9111 section 4.2 for an answer with these headers that arrived at `now`. All zero: not to be kept.
///
/// The response delay is not added to the age (section 4.2.3): an origin holds blocking requests on purpose, and what it
/// then says is new.
pub fn freshness(class: &Class, status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Freshness {
    let control = Control::parse(headers);
    let age = headers
        .get(header::AGE)
        .and_then(|value| value.to_str().ok())
        .and_then(delta_seconds)
        .unwrap_or(Duration::ZERO);
    let none =
        Freshness { age, fresh: Duration::ZERO, while_revalidate: Duration::ZERO, if_error: Duration::ZERO };
    let varies_by_all = headers.get_all(header::VARY).iter().any(|value| value.as_bytes().contains(&b'*'));
    if control.no_store || varies_by_all || headers.contains_key(header::SET_COOKIE) {
        return none;
    }
    let told = control.max_age.or_else(|| expires(headers, now));
    let success = status.is_success() || status.is_redirection();
    let lifetime = match (success, class.ttl) {
        (true, Some(ttl)) => ttl,
        (true, None) if control.no_cache => Duration::ZERO,
        (true, None) => told.unwrap_or(Duration::ZERO),
        (false, _) if control.no_cache => Duration::ZERO,
        (false, _) => told.unwrap_or(class.negative_ttl).min(class.negative_ttl),
    };
    if !success || control.no_cache || control.must_revalidate {
        return Freshness { fresh: lifetime.saturating_sub(age), ..none };
    }
    let past = age.saturating_sub(lifetime);
    let window = |told: Option<Duration>, class: Duration| told.unwrap_or(class).saturating_sub(past);
    // An answer that never said it was fresh is no candidate for being stale.
    if lifetime.is_zero() {
        return none;
    }
    Freshness {
        age,
        fresh: lifetime.saturating_sub(age),
        while_revalidate: window(control.while_revalidate, class.stale_while_revalidate),
        if_error: window(control.if_error, class.stale_if_error),
    }
}

/// RFC 9111 section 5.3: an invalid date, such as `0`, is in the past.
fn expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |name| headers.get(name)?.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok());
    let expires = headers.get(header::EXPIRES)?;
    let Some(at) = expires.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok()) else {
        return Some(Duration::ZERO);
    };
    Some(at.duration_since(date(header::DATE).unwrap_or(now)).unwrap_or(Duration::ZERO))
}

/// The directives of `Cache-Control` that a shared cache minds (RFC 9111 section 5.2.2, RFC 5861).
#[derive(Debug, Default)]
struct Control {
    /// `no-store` or `private`.
    no_store: bool,
    no_cache: bool,
    must_revalidate: bool,
    /// `s-maxage`, else `max-age`; the smallest if it is said twice, zero if it is unreadable.
    max_age: Option<Duration>,
    while_revalidate: Option<Duration>,
    if_error: Option<Duration>,
}

impl Control {
    fn parse(headers: &HeaderMap) -> Control {
        let mut control = Control::default();
        let mut shared = None;
        for value in headers.get_all(header::CACHE_CONTROL) {
            for directive in Directives(&String::from_utf8_lossy(value.as_bytes())) {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                let argument = argument.trim().trim_matches('"');
                let seconds = delta_seconds(argument);
                let strict = seconds.unwrap_or(Duration::ZERO);
                let least = |old: Option<Duration>| Some(old.map_or(strict, |old| old.min(strict)));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" | "private" => control.no_store = true,
                    "no-cache" => control.no_cache = true,
                    "must-revalidate" | "proxy-revalidate" => control.must_revalidate = true,
                    "max-age" => control.max_age = least(control.max_age),
                    // Section 5.2.2.10: it also implies proxy-revalidate.
                    "s-maxage" => {
                        shared = least(shared);
                        control.must_revalidate = true;
                    }
                    "stale-while-revalidate" => control.while_revalidate = least(control.while_revalidate),
                    "stale-if-error" => control.if_error = least(control.if_error),
                    _ => {}
                }
            }
        }
        control.max_age = shared.or(control.max_age);
        control
    }
}

fn delta_seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(MAX_DELTA_SECONDS).min(MAX_DELTA_SECONDS)))
}

/// The members of a comma-separated list whose quoted strings may hold commas.
struct Directives<'a>(&'a str);

impl<'a> Iterator for Directives<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let end = self.0.bytes().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b',' if !quoted => return true,
                _ => {}
            }
            false
        });
        let end = end.unwrap_or(self.0.len());
        let member = &self.0[..end];
        self.0 = self.0.get(end + 1..).unwrap_or("");
        Some(member.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{HeaderName, HeaderValue};

    fn key_of(target: &str) -> String {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        key(target, path, query).into_owned()
    }

    #[test]
    fn keys_are_canonical() {
        for (target, expected) in [
            ("/a", "/a"),
            ("/a?", "/a"),
            ("/a?token=x", "/a"),
            ("/a?_HLS_part=1&_HLS_msn=2", "/a?_HLS_msn=2&_HLS_part=1"),
            ("/a?CMCD=br%3D1&_HLS_msn=2&token=abc", "/a?_HLS_msn=2"),
            ("/a?z&b=&a=1&&a=0", "/a?a=1&a=0&b=&z"),
            ("/a?tokens=1", "/a?tokens=1"),
        ] {
            assert_eq!(key_of(target), expected, "{target}");
        }
        assert!(
            matches!(key("/a?b=1", "/a", Some("b=1")), Cow::Borrowed(_)),
            "nothing to change, nothing copied"
        );
    }

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("*", "/x", true),
            ("*.m4s", "/a/1.m4s", true),
            ("*.m4s", "/a/1.m4s.txt", false),
            ("/live/*/init.mp4", "/live/a/b/init.mp4", true),
            ("/live/*/init.mp4", "/live/init.mp4", false),
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("ab*bc", "abc", false),
            ("*a*", "a", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn names_find_their_class() {
        let classes = Class::defaults();
        for (path, query, expected) in [
            ("/live/a/v.m3u8", "_HLS_msn=3&_HLS_part=1", "blocking-playlist"),
            ("/live/a/v.m3u8", "x_HLS_msn=3", "playlist"),
            ("/live/a/manifest.mpd", "", "mpd"),
            ("/live/a/1/v/7.m4s", "", "media"),
            ("/live/a/1/v/init.mp4", "", "init"),
            ("/x", "_HLS_msn=3", "other"),
        ] {
            let class = classes.iter().find(|class| class.matches(path, query)).unwrap();
            assert_eq!(class.name, expected, "{path}?{query}");
        }
        assert!(classes.iter().flat_map(|class| class.problems("c")).next().is_none());
    }

    /// Seconds that an answer is fresh, may be served while revalidating, and on errors.
    fn check(class: &Class, status: u16, headers: &[(&str, &str)], expected: (u64, u64, u64)) {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let got = freshness(class, StatusCode::from_u16(status).unwrap(), &map, now);
        let got = (got.fresh.as_secs(), got.while_revalidate.as_secs(), got.if_error.as_secs());
        assert_eq!(got, expected, "{status} {headers:?}");
    }

    #[test]
    fn freshness_by_rfc_9111() {
        let seconds = Duration::from_secs;
        let plain = Class { negative_ttl: seconds(2), ..Class::default() };
        let cc = |value| [("cache-control", value)];
        check(&plain, 200, &[], (0, 0, 0));
        check(&plain, 200, &cc("max-age=60"), (60, 0, 0));
        check(&plain, 200, &cc("Max-Age=60, s-maxage=\"10\""), (10, 0, 0));
        check(&plain, 200, &cc("max-age=60, max-age=5"), (5, 0, 0));
        check(&plain, 200, &cc("max-age=1e9"), (0, 0, 0));
        check(&plain, 200, &cc("max-age=99999999999999999999999"), (MAX_DELTA_SECONDS, 0, 0));
        check(&plain, 200, &cc("x=\"no-store, max-age=1\", max-age=9"), (9, 0, 0));
        check(&plain, 200, &cc("max-age=60, no-store"), (0, 0, 0));
        check(&plain, 200, &cc("private=\"x\", max-age=60"), (0, 0, 0));
        check(&plain, 200, &cc("no-cache, max-age=60"), (0, 0, 0));
        check(&plain, 200, &cc("max-age=6, stale-while-revalidate=3, stale-if-error=9"), (6, 3, 9));
        check(&plain, 200, &cc("max-age=6, stale-if-error=9, must-revalidate"), (6, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("age", "45")], (15, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("age", "-5")], (60, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("vary", "*")], (0, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("vary", "origin")], (60, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("set-cookie", "a=b")], (0, 0, 0));
        check(&plain, 200, &[("expires", "Sun, 06 Nov 1994 08:49:47 GMT")], (10, 0, 0));
        check(&plain, 200, &[("expires", "0")], (0, 0, 0));
        let shifted =
            [("expires", "Sun, 06 Nov 1994 08:49:47 GMT"), ("date", "Sun, 06 Nov 1994 08:49:40 GMT")];
        check(&plain, 200, &shifted, (7, 0, 0));
    }

    #[test]
    fn classes_override() {
        let seconds = Duration::from_secs;
        let class = Class {
            ttl: Some(seconds(30)),
            negative_ttl: seconds(2),
            stale_while_revalidate: seconds(4),
            stale_if_error: seconds(5),
            ..Class::default()
        };
        let cc = |value| [("cache-control", value)];
        check(&class, 200, &cc("max-age=1"), (30, 4, 5));
        check(&class, 200, &[], (30, 4, 5));
        check(&class, 200, &cc("no-store"), (0, 0, 0));
        check(&class, 404, &[], (2, 0, 0));
        check(&class, 404, &cc("max-age=1"), (1, 0, 0));
        check(&class, 404, &cc("max-age=100"), (2, 0, 0));
        check(&class, 404, &cc("no-store"), (0, 0, 0));
        check(&class, 404, &cc("no-cache"), (0, 0, 0));
        check(&class, 200, &[("age", "31")], (0, 3, 4));
    }

    #[test]
    fn problems_name_the_key() {
        let bad = Class {
            name: String::new(),
            paths: Vec::new(),
            max_fetches: 0,
            give_up: Duration::ZERO,
            negative_ttl: Duration::from_secs(3600),
            ..Class::default()
        };
        let problems = bad.problems("edge.classes[2]");
        for key in ["name", "paths", "max_fetches", "give_up", "negative_ttl"] {
            assert!(
                problems.iter().any(|p| p.starts_with(&format!("edge.classes[2].{key}: "))),
                "{key}: {problems:?}"
            );
        }
    }
}
