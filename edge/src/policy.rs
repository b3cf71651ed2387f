//! What operators turn while it runs: classes of objects, and how streams are delivered; and the names under which
//! objects are kept. How long: [`crate::freshness`].
#![deny(clippy::disallowed_methods)]

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::freshness::{self, Freshness};
use crate::pace::Adaptive;

/// Query parameters that say who asks or how playback goes, not what is asked for.
const NOT_IN_KEY: [&str; 2] = ["token", "CMCD"];

/// Longest name that is accepted, in bytes of path and canonical query: names are kept in tables.
pub const MAX_KEY_BYTES: usize = 2048;

/// Most classes of a policy.
pub const MAX_CLASSES: usize = 64;

/// Most patterns of a class.
const MAX_PATTERNS: usize = 64;

/// Most prefixes with a delivery of their own: they are tried one after the other.
pub const MAX_DELIVERIES: usize = 256;

/// Longest of the times that only say how long something may be used.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// All that operators may change without a restart. A request goes by the one that is in force when it comes, a fetch by
/// the one in force when it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The first that matches a name counts. Names that match none are of class "other" with its defaults.
    pub classes: Vec<Arc<Class>>,
    /// The first whose prefix begins a path counts. Paths that none begins are pushed.
    pub delivery: Vec<Delivery>,
}

/// How the objects below a path come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// What the path begins with, such as `/live/demo/`.
    pub prefix: String,
    /// How they come.
    pub mode: Mode,
}

/// How objects come from the tier above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As they grow, over one request per stream, where the tier above offers it; else as with `pull`.
    #[default]
    Push,
    /// Each by a request of its own, when a viewer asks.
    Pull,
}

impl Policy {
    /// The class of a name.
    pub fn class(&self, path: &str, query: &str) -> &Arc<Class> {
        static OTHER: LazyLock<Arc<Class>> = LazyLock::new(Arc::default);
        self.classes.iter().find(|class| class.matches(path, query)).unwrap_or(&OTHER)
    }

    /// How objects below `path` come.
    pub fn delivery(&self, path: &str) -> Mode {
        let found = self.delivery.iter().find(|delivery| path.starts_with(&delivery.prefix));
        found.map_or(Mode::default(), |delivery| delivery.mode)
    }

    /// What is wrong with it, each with the key path that `path` begins.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.classes.len() > MAX_CLASSES {
            problems.push(format!("{path}.classes: at most {MAX_CLASSES} classes"));
        }
        for (index, class) in self.classes.iter().enumerate().take(MAX_CLASSES) {
            problems.extend(class.problems(&format!("{path}.classes[{index}]")));
        }
        if self.delivery.len() > MAX_DELIVERIES {
            problems.push(format!("{path}.delivery: at most {MAX_DELIVERIES} prefixes"));
        }
        for (index, delivery) in self.delivery.iter().enumerate().take(MAX_DELIVERIES) {
            if !delivery.prefix.starts_with('/') || delivery.prefix.len() > MAX_KEY_BYTES {
                let rule = format!("must begin with / and have at most {MAX_KEY_BYTES} bytes");
                problems.push(format!("{path}.delivery[{index}].prefix: {rule}"));
            }
        }
        problems
    }
}

/// How much shorter an answer that was kept for `kept` may be used by the rules of `class` at `now`; `None`: no shorter.
/// Never longer: what was promised to the upstream holds. `failed`: made here because the upstream gave no answer.
pub fn shortened(
    class: &Class,
    status: StatusCode,
    headers: &HeaderMap,
    failed: bool,
    kept: Freshness,
    now: SystemTime,
) -> Option<Freshness> {
    let mut shorter = kept;
    if failed {
        shorter.fresh = kept.fresh.min(class.negative_ttl);
    } else {
        // The age on arrival is not among the headers that were kept.
        let by_rules = freshness::freshness(class, status, headers, now);
        shorter.fresh = kept.fresh.min(by_rules.fresh.saturating_sub(kept.age));
        // Past its freshness already when it came: so much of what may follow it was over.
        let past = kept.age.saturating_sub(by_rules.fresh);
        shorter.while_revalidate = kept.while_revalidate.min(by_rules.while_revalidate.saturating_sub(past));
        shorter.if_error = kept.if_error.min(by_rules.if_error.saturating_sub(past));
        shorter.confirm = kept.confirm.min(by_rules.confirm);
    }
    (shorter != kept).then_some(shorter)
}

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
            // A recording's manifests do not change: as long as the origin says.
            Class {
                paths: vec!["/vod/*.m3u8".into(), "/vod/*.mpd".into()],
                stale_if_error: ms(60_000),
                blocking_timeout: ms(1000),
                give_up: ms(8000),
                ..class("recording", "")
            },
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
            // Thumbnails: nobody waits for them as for media.
            Class {
                stale_if_error: ms(60_000),
                blocking_timeout: ms(1000),
                give_up: ms(4000),
                ..class("image", "*.jpg")
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
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(good) {
            problems.push(format!("{path}.name: must be 1 to 64 of A-Z a-z 0-9 - _ ."));
        }
        if self.paths.is_empty() {
            problems.push(format!("{path}.paths: needs at least one pattern, such as \"*.m4s\""));
        }
        if self.paths.len() > MAX_PATTERNS || self.paths.iter().any(|pattern| pattern.len() > MAX_KEY_BYTES) {
            let rule = format!("at most {MAX_PATTERNS} patterns of {MAX_KEY_BYTES} bytes");
            problems.push(format!("{path}.paths: {rule}"));
        }
        if self.query.as_ref().is_some_and(|query| query.is_empty() || query.len() > MAX_KEY_BYTES) {
            problems.push(format!("{path}.query: must have 1 to {MAX_KEY_BYTES} bytes"));
        }
        if self.negative_ttl > Duration::from_secs(60) {
            problems.push(format!("{path}.negative_ttl: must be 0s to 60s"));
        }
        for (key, value) in [
            ("ttl", self.ttl.unwrap_or_default()),
            ("stale_while_revalidate", self.stale_while_revalidate),
            ("stale_if_error", self.stale_if_error),
        ] {
            if value > MAX_TTL {
                problems.push(format!("{path}.{key}: must be 0s to 366days"));
            }
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
        let classes = Class::defaults().into_iter().map(Arc::new).collect();
        let policy = Policy { classes, delivery: Vec::new() };
        for (path, query, expected) in [
            ("/live/a/v.m3u8", "_HLS_msn=3&_HLS_part=1", "blocking-playlist"),
            ("/live/a/v.m3u8", "start=-600", "playlist"),
            ("/vod/a-17/v.m3u8", "", "recording"),
            ("/vod/a-17/manifest.mpd", "", "recording"),
            ("/vod/a-17/1/v/1.m4s", "", "media"),
            ("/live/a/v.m3u8", "x_HLS_msn=3", "playlist"),
            ("/live/a/manifest.mpd", "", "mpd"),
            ("/live/a/1/v/7.m4s", "", "media"),
            ("/live/a/1/v/init.mp4", "", "init"),
            ("/live/a/thumbnail.jpg", "", "image"),
            ("/x", "_HLS_msn=3", "other"),
        ] {
            assert_eq!(policy.class(path, query).name, expected, "{path}?{query}");
        }
        assert_eq!(policy.problems("edge"), Vec::<String>::new());
        let none = Policy { classes: Vec::new(), delivery: Vec::new() };
        assert_eq!(**none.class("/live/a/v.m3u8", ""), Class::default());
    }

    #[test]
    fn the_first_prefix_says_how_a_stream_comes() {
        let delivery = |prefix: &str, mode| Delivery { prefix: prefix.into(), mode };
        let policy = Policy {
            classes: Vec::new(),
            delivery: vec![
                delivery("/live/demo/", Mode::Push),
                delivery("/live/", Mode::Pull),
                delivery("nowhere", Mode::Pull),
            ],
        };
        assert_eq!(policy.delivery("/live/demo/index.m3u8"), Mode::Push);
        assert_eq!(policy.delivery("/live/demo2/index.m3u8"), Mode::Pull);
        assert_eq!(policy.delivery("/vod/x"), Mode::Push);
        let problems = policy.problems("edge");
        assert!(problems.len() == 1 && problems[0].starts_with("edge.delivery[2].prefix: "), "{problems:?}");
        let too_much = Policy {
            classes: vec![Arc::default(); MAX_CLASSES + 1],
            delivery: vec![delivery("/", Mode::Pull); MAX_DELIVERIES + 1],
        };
        assert_eq!(too_much.problems("edge").len(), 2);
    }

    #[test]
    fn what_is_kept_is_shortened_and_never_prolonged() {
        let seconds = Duration::from_secs;
        let freshness = |fresh, stale| Freshness {
            age: seconds(2),
            fresh: seconds(fresh),
            while_revalidate: seconds(stale),
            if_error: seconds(stale),
            confirm: Duration::ZERO,
        };
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", "max-age=100".parse().unwrap());
        let check = |class: &Class, status, failed, kept, expected| {
            let got = shortened(class, status, &headers, failed, kept, SystemTime::UNIX_EPOCH);
            assert_eq!(got, expected, "{class:?}");
        };
        let class = |ttl: u64, stale| Class {
            ttl: Some(seconds(ttl)),
            stale_while_revalidate: seconds(stale),
            stale_if_error: seconds(stale),
            negative_ttl: seconds(1),
            ..Class::default()
        };
        let ok = StatusCode::OK;
        check(&class(10, 5), ok, false, freshness(98, 5), Some(freshness(8, 5)));
        check(&class(1, 9), ok, false, freshness(98, 5), Some(freshness(0, 5)));
        check(&class(1, 3), ok, false, freshness(98, 5), Some(freshness(0, 2)));
        check(&class(100, 3), ok, false, freshness(98, 5), Some(freshness(98, 3)));
        check(&class(1000, 9), ok, false, freshness(98, 5), None);
        check(&Class::default(), ok, false, freshness(98, 0), None);
        check(&class(9, 9), StatusCode::NOT_FOUND, true, freshness(30, 0), Some(freshness(1, 0)));
        check(&class(9, 9), StatusCode::NOT_FOUND, true, freshness(1, 0), None);
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
            ttl: Some(Duration::MAX),
            query: Some(String::new()),
            ..Class::default()
        };
        let problems = bad.problems("edge.classes[2]");
        let keys = ["name", "paths", "query", "max_fetches", "adaptive.factor", "adaptive.least", "give_up"];
        for key in keys.into_iter().chain(["negative_ttl", "ttl"]) {
            assert!(
                problems.iter().any(|p| p.starts_with(&format!("edge.classes[2].{key}: "))),
                "{key}: {problems:?}"
            );
        }
    }
}
