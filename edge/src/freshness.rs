//! For how long an answer may be used: RFC 9111, and what a class of objects says instead.
//!
//! Deliberate simplifications, all safe because requests to the upstream carry nothing of the viewer's (no cookies, no
//! credentials, no accept-encoding): a viewer's own `Cache-Control` does not reach the origin; `Vary` other than `*` needs
//! no second variant; `Set-Cookie` and `private` answers go to those who were waiting and are not kept.
//!
//! Nothing is guessed: an answer that says neither how long it is fresh nor when it expires is not fresh at all (section
//! 4.2.2 allows a guess from `Last-Modified`; in a live stream it does harm). Nor is the difference between `Date` and the
//! clock here part of the age (the apparent age of section 4.2.3): an origin whose clock is a few seconds slow would make
//! every answer with a `max-age` of a second stale on arrival.
#![deny(clippy::disallowed_methods)]

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::policy::Class;

/// RFC 9111 section 1.2.2: larger numbers of seconds mean this.
const MAX_DELTA_SECONDS: u64 = 1 << 31;

/// An object with a validator is kept for so long after it is of no other use: a conditional request is cheaper than the
/// object. Memory is no reason against it, since what is used least leaves first.
const CONFIRM: Duration = Duration::from_secs(600);

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
    /// Past that, how long it is kept all the same, so that the upstream may say that it is still good.
    pub confirm: Duration,
}

/// What may be done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Serve it.
    Fresh,
    /// Serve it; the upstream is left alone for now.
    Grace,
    /// Serve it, and fetch it anew meanwhile.
    Revalidate,
    /// Fetch it; it will do if that fails.
    IfError,
    /// Fetch it.
    Gone,
}

impl Freshness {
    /// How long it is worth keeping.
    pub fn keep(&self) -> Duration {
        self.fresh + self.while_revalidate.max(self.if_error).max(self.confirm)
    }

    /// What may be done at `now` with what came at `received`. `grace_until`: the upstream has failed, and is not asked
    /// again before that.
    pub fn state(&self, received: Instant, grace_until: Option<Instant>, now: Instant) -> State {
        let past = now.saturating_duration_since(received + self.fresh);
        if now < received + self.fresh {
            State::Fresh
        } else if grace_until.is_some_and(|until| now < until) {
            State::Grace
        } else if past < self.while_revalidate {
            State::Revalidate
        } else if past < self.if_error {
            State::IfError
        } else {
            State::Gone
        }
    }
}

/// RFC 9111 section 4.2 for an answer with these headers that arrived at `now`. All zero: not to be kept.
///
/// The response delay is not added to the age (section 4.2.3): an origin holds blocking requests on purpose, and what it
/// then says is new.
pub fn freshness(class: &Class, status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Freshness {
    let control = Control::parse(headers);
    let age = age(headers);
    let zero = Duration::ZERO;
    let none = Freshness { age, fresh: zero, while_revalidate: zero, if_error: zero, confirm: zero };
    let varies_by_all = headers.get_all(header::VARY).iter().any(|value| value.as_bytes().contains(&b'*'));
    // Section 5.2.2.3.
    let understood = !control.must_understand || understood(status);
    let no_store = control.no_store && !(control.must_understand && understood);
    if no_store || control.private || !understood || varies_by_all || headers.contains_key(header::SET_COOKIE)
    {
        return none;
    }
    let has_validator = headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED);
    let confirm = if status == StatusCode::OK && has_validator { CONFIRM } else { zero };
    let none = Freshness { confirm, ..none };
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
        confirm,
    }
}

/// RFC 9111 section 5.1: of a list the first member counts, and what is no number is ignored.
fn age(headers: &HeaderMap) -> Duration {
    let value = headers.get(header::AGE).and_then(|value| value.to_str().ok());
    let first = value.and_then(|value| value.split(',').next());
    first.and_then(|first| delta_seconds(first.trim())).unwrap_or(Duration::ZERO)
}

/// The statuses whose meaning for caches is known here (RFC 9111 section 3).
fn understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300..=303 | 307 | 308 | 404 | 405 | 410 | 414)
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
    no_store: bool,
    private: bool,
    must_understand: bool,
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
                    "no-store" => control.no_store = true,
                    "private" => control.private = true,
                    "must-understand" => control.must_understand = true,
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
        check(&plain, 200, &[("cache-control", "max-age=60"), ("age", "50, 3")], (10, 0, 0));
        check(&plain, 200, &[("cache-control", "max-age=60"), ("age", "x, 30")], (60, 0, 0));
        check(&plain, 200, &cc("max-age=60, no-store, must-understand"), (60, 0, 0));
        check(&plain, 299, &cc("max-age=60, no-store, must-understand"), (0, 0, 0));
        check(&plain, 299, &cc("max-age=60, must-understand"), (0, 0, 0));
        check(&plain, 299, &cc("max-age=60"), (60, 0, 0));
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
}
