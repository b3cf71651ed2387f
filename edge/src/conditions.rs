//! Conditional requests (RFC 9110 section 13): whether the client has it already, and whether a range is of the version that
//! it has begun with.
//!
//! `If-Match` and `If-Unmodified-Since` are ignored, as section 13.1.1 allows a cache: they guard changes, and nothing is
//! changed through here.
#![deny(clippy::disallowed_methods)]

use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderValue};

/// Whether the client has it already: `If-None-Match` by weak comparison, else `If-Modified-Since` (sections 13.1.2 and
/// 13.1.3). Without `Last-Modified` the answer's `Date` stands for it (RFC 9111 section 4.3.2).
pub fn not_modified(asked: &HeaderMap, ours: &HeaderMap) -> bool {
    if asked.contains_key(header::IF_NONE_MATCH) {
        let tag = ours.get(header::ETAG).and_then(opaque);
        return asked.get_all(header::IF_NONE_MATCH).iter().any(|list| lists(list, tag));
    }
    let Some(since) = asked.get(header::IF_MODIFIED_SINCE).and_then(date) else {
        return false;
    };
    let modified = ours.get(header::LAST_MODIFIED).or_else(|| ours.get(header::DATE)).and_then(date);
    modified.is_some_and(|modified| modified <= since)
}

/// Whether `If-Range` lets a range be minded (section 13.1.5): it names exactly this version by a strong validator.
pub fn if_range(condition: &HeaderValue, ours: &HeaderMap) -> bool {
    let same = |name| ours.get(name).is_some_and(|value| value == condition);
    if condition.as_bytes().starts_with(b"\"") {
        return same(header::ETAG);
    }
    // Section 8.8.2.2: a date is strong if the version was a second old when the origin spoke.
    let of = |name| ours.get(name).and_then(date);
    let strong = match (of(header::LAST_MODIFIED), of(header::DATE)) {
        (Some(modified), Some(said)) => {
            said.duration_since(modified).is_ok_and(|old| old >= Duration::from_secs(1))
        }
        _ => false,
    };
    strong && same(header::LAST_MODIFIED)
}

/// The time that a header says (section 5.6.7).
pub fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// Whether a list of entity tags has `tag`, or is `*`. Tags may hold commas, so they are read one after the other.
fn lists(list: &HeaderValue, tag: Option<&[u8]>) -> bool {
    let mut rest = list.as_bytes().trim_ascii();
    if rest == b"*" {
        return true;
    }
    while let Some(start) = rest.iter().position(|&byte| byte == b'"') {
        let Some(length) = rest[start + 1..].iter().position(|&byte| byte == b'"') else {
            return false;
        };
        let end = start + 1 + length;
        if tag == Some(&rest[start..=end]) {
            return true;
        }
        rest = &rest[end + 1..];
    }
    false
}

/// A tag without its mark of weakness, quotes included.
fn opaque(tag: &HeaderValue) -> Option<&[u8]> {
    let tag = tag.as_bytes().trim_ascii();
    let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
    (tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"")).then_some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEXT: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn who_has_it_already() {
        let ours = headers(&[("etag", "\"a,b\""), ("last-modified", DAY)]);
        for (name, value, expected) in [
            ("if-none-match", "\"a,b\"", true),
            ("if-none-match", "W/\"a,b\"", true),
            ("if-none-match", "\"b\", W/\"x\" , \"a,b\"", true),
            ("if-none-match", "*", true),
            ("if-none-match", " * ", true),
            ("if-none-match", "\"b\"", false),
            ("if-none-match", "\"a", false),
            ("if-none-match", "a,b", false),
            ("if-none-match", "\"x\"a,b\"y\"", false),
            ("if-none-match", "", false),
            ("if-modified-since", DAY, true),
            ("if-modified-since", NEXT, true),
            ("if-modified-since", "Sunday, 06-Nov-94 08:49:38 GMT", true),
            ("if-modified-since", "Sun Nov  6 08:49:38 1994", true),
            ("if-modified-since", BEFORE, false),
            ("if-modified-since", "yesterday", false),
            ("if-match", "\"b\"", false),
            ("if-unmodified-since", BEFORE, false),
            ("range", "bytes=0-1", false),
        ] {
            assert_eq!(not_modified(&headers(&[(name, value)]), &ours), expected, "{name}: {value}");
        }
        let lines = [("if-none-match", "\"b\""), ("if-none-match", "\"a,b\"")];
        assert!(not_modified(&headers(&lines), &ours), "several lines are one list");
        let both = [("if-none-match", "\"b\""), ("if-modified-since", DAY)];
        assert!(!not_modified(&headers(&both), &ours), "If-None-Match outranks If-Modified-Since");
        let weak = headers(&[("etag", "W/\"a\"")]);
        assert!(not_modified(&headers(&[("if-none-match", "\"a\"")]), &weak));
        assert!(!not_modified(&headers(&[("if-none-match", "\"a\"")]), &HeaderMap::new()));
        let dated = headers(&[("date", DAY)]);
        assert!(not_modified(&headers(&[("if-modified-since", DAY)]), &dated), "its Date stands in");
    }

    #[test]
    fn ranges_of_one_version() {
        let check = |condition: &str, ours: &[(&'static str, &str)], expected: bool| {
            assert_eq!(
                if_range(&condition.parse().unwrap(), &headers(ours)),
                expected,
                "{condition} {ours:?}"
            );
        };
        let ours = [("etag", "\"a\""), ("last-modified", DAY), ("date", NEXT)];
        check("\"a\"", &ours, true);
        check("W/\"a\"", &ours, false);
        check("\"b\"", &ours, false);
        check(DAY, &ours, true);
        check(NEXT, &ours, false);
        check(BEFORE, &ours, false);
        check(DAY, &[("last-modified", DAY), ("date", DAY)], false);
        check(DAY, &[("last-modified", DAY)], false);
        check("W/\"a\"", &[("etag", "W/\"a\"")], false);
        check("", &[], false);
    }
}
