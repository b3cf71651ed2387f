//! The second half of a body from another answer: when it may be asked for, and when what comes is it.
//!
//! Two answers belong together if both carry the same strong validator (RFC 9110 section 8.8.1): a strong `ETag`, or a
//! `Last-Modified` that was old when it was said, and then the same length too.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};
use media::range::ABSURD;

/// A `Last-Modified` is strong if the answer's own `Date` is so much later (RFC 9110 section 8.8.2.2): nobody's clock is
/// that wrong, and what changes twice within that time is no file.
const OLD_ENOUGH: Duration = Duration::from_secs(60);

/// What identifies the version that a body is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// `etag` or `last-modified`.
    name: HeaderName,
    value: HeaderValue,
    /// The whole length, if the upstream said it.
    length: Option<u64>,
}

/// What is missing of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// So many bytes are there.
    pub from: u64,
    /// Of this version.
    pub version: Version,
}

/// What an answer to a request for the rest of a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its body, less the first `skip` bytes, is what comes next, up to here.
    Body { skip: u64, until: Until },
    /// Nothing is missing.
    Nothing,
}

/// Where a resumed body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Where the object has so many bytes.
    Total(u64),
    /// Where it ends, which the upstream does not know yet.
    End,
    /// Somewhere before the end of the object: more must be asked for.
    Part,
}

impl Version {
    /// The version of a whole answer; `None`: it cannot be resumed.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Option<Version> {
        if status != StatusCode::OK {
            return None;
        }
        let length = number(headers, &header::CONTENT_LENGTH);
        if let Some(tag) = headers.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) {
            return Some(Version { name: header::ETAG, value: tag.clone(), length });
        }
        let date = |name: &HeaderName| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
        let (said, modified) = (date(&header::DATE)?, date(&header::LAST_MODIFIED)?);
        if said.duration_since(modified).ok()? < OLD_ENOUGH || length.is_none() {
            return None;
        }
        Some(Version {
            name: header::LAST_MODIFIED,
            value: headers.get(header::LAST_MODIFIED)?.clone(),
            length,
        })
    }

    fn is_tag(&self) -> bool {
        self.name == header::ETAG
    }
}

impl Rest {
    /// Asks for it: `Range` and `If-Range` (RFC 9110 section 13.1.5). From the first byte on it is asked for whole, since
    /// not everyone who has the object knows ranges.
    pub fn ask(&self, headers: &mut HeaderMap) {
        if self.from == 0 {
            return;
        }
        if let Ok(range) = HeaderValue::try_from(format!("bytes={}-", self.from)) {
            headers.insert(header::RANGE, range);
            headers.insert(header::IF_RANGE, self.version.value.clone());
        }
    }

    /// Judges the answer; an error says why what it brings is not the rest.
    pub fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Result<Found, String> {
        let Rest { from, version } = self;
        if headers.get(&version.name) != Some(&version.value) {
            return Err(format!("{status} of another version"));
        }
        let same = |total: u64| version.length.is_none_or(|length| length == total) && total >= *from;
        match status {
            StatusCode::PARTIAL_CONTENT => {
                let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let text = text.unwrap_or("");
                match content_range(text) {
                    Some(Partial { first, total: Some(total), .. }) if first == *from && same(total) => {
                        Ok(Found::Body { skip: 0, until: Until::Total(total) })
                    }
                    Some(Partial { first, last, total: None }) if first == *from => {
                        let until = if last >= ABSURD { Until::End } else { Until::Part };
                        Ok(Found::Body { skip: 0, until: version.length.map_or(until, Until::Total) })
                    }
                    _ => Err(format!("206 with content-range {text:?} instead of {from}-")),
                }
            }
            // It knows no ranges, or was asked for the whole.
            StatusCode::OK if version.is_tag() || *from == 0 => {
                match number(headers, &header::CONTENT_LENGTH) {
                    Some(total) if same(total) => Ok(Found::Body { skip: *from, until: Until::Total(total) }),
                    Some(total) => Err(format!("200 with {total} bytes")),
                    None => Ok(Found::Body {
                        skip: *from,
                        until: version.length.map_or(Until::End, Until::Total),
                    }),
                }
            }
            // The first answer broke off behind its last byte.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let total = text.and_then(|text| text.strip_prefix("bytes */")?.parse::<u64>().ok());
                match total {
                    Some(total) if total == *from && same(total) => Ok(Found::Nothing),
                    _ => Err(format!("416 behind {from} bytes")),
                }
            }
            _ => Err(format!("status {status}")),
        }
    }
}

struct Partial {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes first-last/total`, the total being a number or `*` (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<Partial> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(digits(total)?) };
    let (first, last) = (digits(first)?, digits(last)?);
    (first <= last && total.is_none_or(|total| last < total)).then_some(Partial { first, last, total })
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    digits(headers.get(name)?.to_str().ok()?)
}

fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 09:49:37 GMT";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn what_can_be_resumed() {
        let check = |status: u16, pairs: &[(&str, &str)], expected: Option<&str>| {
            let got = Version::of(StatusCode::from_u16(status).unwrap(), &headers(pairs));
            assert_eq!(got.as_ref().map(|version| version.name.as_str()), expected, "{status} {pairs:?}");
        };
        check(200, &[("etag", "\"a\"")], Some("etag"));
        check(200, &[("etag", "W/\"a\"")], None);
        check(404, &[("etag", "\"a\"")], None);
        check(200, &[], None);
        let dated = |date| [("last-modified", OLD), ("date", date), ("content-length", "9")];
        check(200, &dated(LATER), Some("last-modified"));
        check(200, &dated(OLD), None);
        check(200, &dated(LATER)[..2], None);
        check(200, &dated(LATER)[..1], None);
    }

    #[test]
    fn what_is_the_rest() {
        let tagged =
            |length| Version { name: header::ETAG, value: HeaderValue::from_static("\"a\""), length };
        let check =
            |from, version: &Version, status: u16, pairs: &[(&str, &str)], expected: Option<Found>| {
                let mut with = headers(pairs);
                with.entry(header::ETAG).or_insert(HeaderValue::from_static("\"a\""));
                let got = Rest { from, version: version.clone() }
                    .judge(StatusCode::from_u16(status).unwrap(), &with);
                assert_eq!(got.clone().ok(), expected, "{from} {status} {pairs:?}: {got:?}");
            };
        let body = |skip, until| Some(Found::Body { skip, until });
        let (known, unknown) = (&tagged(Some(10)), &tagged(None));
        let range = |text| [("content-range", text)];
        check(4, known, 206, &range("bytes 4-9/10"), body(0, Until::Total(10)));
        check(4, known, 206, &range("bytes 4-9/*"), body(0, Until::Total(10)));
        check(4, unknown, 206, &range("bytes 4-9/10"), body(0, Until::Total(10)));
        check(4, unknown, 206, &range("bytes 4-9/*"), body(0, Until::Part));
        check(4, unknown, 206, &range("bytes 4-9007199254740991/*"), body(0, Until::End));
        for wrong in [
            "bytes 5-9/10",
            "bytes 4-9/11",
            "bytes 4-3/10",
            "bytes 4-10/10",
            "items 4-9/10",
            "bytes */10",
            "",
        ] {
            check(4, known, 206, &range(wrong), None);
        }
        check(4, known, 206, &[], None);
        check(4, known, 206, &[("content-range", "bytes 4-9/10"), ("etag", "\"b\"")], None);
        check(4, known, 206, &[("content-range", "bytes 4-9/10"), ("etag", "W/\"a\"")], None);
        check(4, known, 200, &[("content-length", "10")], body(4, Until::Total(10)));
        check(4, known, 200, &[("content-length", "11")], None);
        check(4, unknown, 200, &[], body(4, Until::End));
        check(4, unknown, 200, &[("content-length", "3")], None);
        check(0, unknown, 200, &[], body(0, Until::End));
        check(4, known, 200, &[("content-length", "10"), ("etag", "\"b\"")], None);
        check(10, unknown, 416, &range("bytes */10"), Some(Found::Nothing));
        check(9, unknown, 416, &range("bytes */10"), None);
        check(4, known, 416, &range("bytes */4"), None);
        check(4, known, 404, &[], None);

        let dated = Version::of(
            StatusCode::OK,
            &headers(&[("last-modified", OLD), ("date", LATER), ("content-length", "10")]),
        );
        let dated = dated.unwrap();
        let same = |pairs: [(&'static str, &'static str); 1]| [pairs[0], ("last-modified", OLD)];
        check(4, &dated, 206, &same(range("bytes 4-9/10")), body(0, Until::Total(10)));
        check(4, &dated, 206, &range("bytes 4-9/10"), None);
        check(4, &dated, 200, &same([("content-length", "10")]), None);
    }

    #[test]
    fn how_it_is_asked_for() {
        let version = Version::of(StatusCode::OK, &headers(&[("etag", "\"a\"")])).unwrap();
        let asked = |from| {
            let mut asked = HeaderMap::new();
            Rest { from, version: version.clone() }.ask(&mut asked);
            asked
        };
        assert_eq!(asked(5), headers(&[("range", "bytes=5-"), ("if-range", "\"a\"")]));
        assert_eq!(asked(0), HeaderMap::new());
    }
}
