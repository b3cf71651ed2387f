//! Classes of objects, and the names under which objects are kept. How long: [`crate::freshness`].
#![deny(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pace::Adaptive;

/// Query parameters that say who asks or how playback goes, not what is asked for.
const NOT_IN_KEY: [&str; 2] = ["token", "CMCD"];

/// Longest name that is accepted, in bytes of path and canonical query: names are kept in tables.
pub const MAX_KEY_BYTES: usize = 2048;

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
    /// The cache-blocking timeout: no headers, or no further bytes of a body that can be resumed, for that long, and one
    /// more fetch is started. At least 10ms.
    #[serde(with = "humantime_serde")]
    pub blocking_timeout: Duration,
    /// Makes the cache-blocking timeout follow the upstream: a multiple of what it took for 99 of the last 100 or so fetches
    /// of the class. Default: it is what `blocking_timeout` says, which also holds until enough is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
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
            adaptive: None,
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
        if let Some(adaptive) = &self.adaptive {
            problems.extend(adaptive.problems(&format!("{path}.adaptive")));
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
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn problems_name_the_key() {
        let bad = Class {
            name: String::new(),
            paths: Vec::new(),
            max_fetches: 0,
            adaptive: Some(Adaptive { factor: 0, least: Duration::MAX, most: Duration::MAX }),
            give_up: Duration::ZERO,
            negative_ttl: Duration::from_secs(3600),
            ..Class::default()
        };
        let problems = bad.problems("edge.classes[2]");
        for key in
            ["name", "paths", "max_fetches", "adaptive.factor", "adaptive.least", "give_up", "negative_ttl"]
        {
            assert!(
                problems.iter().any(|p| p.starts_with(&format!("edge.classes[2].{key}: "))),
                "{key}: {problems:?}"
            );
        }
    }
}
