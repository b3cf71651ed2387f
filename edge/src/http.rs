//! The server side: what a request asks for, and the answer that an entry makes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use media::Object;
use media::object::{End, Progress};
use tracing::debug;

use crate::body::Body;
use crate::cache::{Content, Entry};
use crate::fetch::{self, CDN_LOOP};
use crate::metrics::Answered;
use crate::policy::{self, MAX_KEY_BYTES};
use crate::range::{self, Asked, Step};
use crate::tier::{Denied, Tier};

/// RFC 9211.
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

const METHODS: &str = "GET, HEAD, OPTIONS";

/// Members of `CDN-Loop` that are passed on, the latest ones, and their bytes: viewers can send any. A circle that is longer
/// than this is not found by the node where it began but ends at a bound all the same.
const LOOP_MEMBERS: usize = 15;
const LOOP_BYTES: usize = 1024;

/// Answers one request, and counts it.
pub(crate) async fn serve(tier: Arc<Tier>, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
    let began = Instant::now();
    let (head, _) = request.into_parts();
    let (mut response, answered) = answer(&tier, &head).await;
    if head.method == Method::HEAD {
        without_body(&mut response);
    }
    tier.metrics.answered(answered);
    // The path alone: tokens are in the query.
    debug!(
        tier = tier.name,
        %peer,
        method = %head.method,
        path = head.uri.path(),
        status = response.status().as_u16(),
        result = answered.as_str(),
        waited_ms = began.elapsed().as_millis() as u64,
        "request"
    );
    response
}

async fn answer(tier: &Arc<Tier>, head: &http::request::Parts) -> (Response<Body>, Answered) {
    if head.method == Method::OPTIONS {
        return (preflight(), Answered::Local);
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        let mut response = own(tier, StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return (response, Answered::Refused);
    }
    let path = head.uri.path();
    if let Some(page) = tier.pages.as_ref().and_then(|pages| pages.page(path, &head.headers)) {
        return (local(tier, page), Answered::Local);
    }
    let came_round = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains(&tier.node_id));
    if head.headers.get_all(CDN_LOOP).iter().any(came_round) {
        return (own(tier, StatusCode::LOOP_DETECTED, "this request has been here before"), Answered::Loop);
    }
    let Some(target) = head.uri.path_and_query().filter(|_| path.starts_with('/')) else {
        return (own(tier, StatusCode::BAD_REQUEST, "the path must begin with /"), Answered::Refused);
    };
    let key = policy::key(target.as_str(), path, target.query());
    if key.len() > MAX_KEY_BYTES {
        return (own(tier, StatusCode::URI_TOO_LONG, "the path and query are too long"), Answered::Refused);
    }
    match tier.find(&key, || loop_value(&head.headers, &tier.node_id)).await {
        Ok((entry, answered)) => respond(tier, &entry, answered, head).await,
        Err(denied) => denial(tier, denied),
    }
}

fn denial(tier: &Tier, denied: Denied) -> (Response<Body>, Answered) {
    let (why, answered) = match denied {
        Denied::Overloaded => ("too many requests are waiting", Answered::Overloaded),
        Denied::Lost => ("the fetch was lost", Answered::Error),
    };
    let mut response = own(tier, StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    (response, answered)
}

/// The answer that `entry` makes to a request: whole, a range, or "not modified" (RFC 9110 section 13.2.2).
async fn respond(
    tier: &Tier,
    entry: &Entry,
    answered: Answered,
    head: &http::request::Parts,
) -> (Response<Body>, Answered) {
    let asked = if entry.status == StatusCode::OK {
        if not_modified(&head.headers, &entry.headers) {
            return (reply(entry, answered, tier, StatusCode::NOT_MODIFIED, Body::empty()), answered);
        }
        wanted_range(head, &entry.headers)
    } else {
        None
    };
    let served = &tier.metrics.served_bytes;
    let (step, _waiter) = match (asked, &entry.body) {
        (None, Content::Growing { object, .. }) if object.progress().end == End::Failed => {
            (Step::Broken, None)
        }
        (None, _) => (Step::Whole, None),
        (Some(asked), Content::Whole(bytes)) => {
            let progress = Progress { len: bytes.len() as u64, end: End::Complete };
            (range::resolve(asked, progress, None), None)
        }
        (Some(asked), Content::Growing { object, length }) => match tier.waiter() {
            Ok(waiter) => (settle(asked, object, *length).await, Some(waiter)),
            Err(denied) => return denial(tier, denied),
        },
    };
    let part = |range: std::ops::Range<u64>| match &entry.body {
        Content::Whole(bytes) => Body::whole(bytes.slice(range.start as usize..range.end as usize), served),
        Content::Growing { object, .. } => {
            let length = (range.end != u64::MAX).then(|| range.end - range.start);
            Body::growing(object.read(range), length, served)
        }
    };
    let response = match step {
        Step::Whole => {
            let (body, length) = whole(entry, served);
            let mut response = reply(entry, answered, tier, entry.status, body);
            let bodyless = entry.status == StatusCode::NO_CONTENT;
            if let Some(length) = length.filter(|_| !bodyless) {
                response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            }
            response
        }
        Step::Part { range, total } => {
            let (first, last, length) = (range.start, range.end - 1, range.end - range.start);
            let of = match total {
                Some(total) => format!("bytes {first}-{last}/{total}"),
                None => format!("bytes {first}-{last}/*"),
            };
            let mut response = reply(entry, answered, tier, StatusCode::PARTIAL_CONTENT, part(range));
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            with_content_range(response, &of)
        }
        Step::Stream { first, last } => {
            let response = reply(entry, answered, tier, StatusCode::PARTIAL_CONTENT, part(first..u64::MAX));
            with_content_range(response, &format!("bytes {first}-{last}/*"))
        }
        Step::Unsatisfiable(total) => {
            let mut response = reply(entry, answered, tier, StatusCode::RANGE_NOT_SATISFIABLE, Body::empty());
            response.headers_mut().remove(header::CONTENT_TYPE);
            with_content_range(response, &format!("bytes */{total}"))
        }
        Step::Broken | Step::Wait(_) => {
            return (own(tier, StatusCode::BAD_GATEWAY, "the upstream broke off"), Answered::Error);
        }
    };
    (response, answered)
}

/// Waits until it is clear what a range of a growing object is. Dropping the future costs nothing.
async fn settle(asked: Asked, object: &Object, announced: Option<u64>) -> Step {
    let mut progress = object.progress();
    loop {
        match range::resolve(asked, progress, announced) {
            Step::Wait(len) => progress = object.wait_for(len).await,
            step => return step,
        }
    }
}

/// The whole body, with its length as far as it is known.
fn whole(entry: &Entry, served: &prometheus_client::metrics::counter::Counter) -> (Body, Option<u64>) {
    match &entry.body {
        Content::Whole(bytes) => (Body::whole(bytes.clone(), served), Some(bytes.len() as u64)),
        Content::Growing { object, length } => {
            let Progress { len, end } = object.progress();
            let length = if end == End::Complete { Some(len) } else { *length };
            (Body::growing(object.read(0..u64::MAX), length, served), length)
        }
    }
}

/// A range that is to be minded: of a GET, and of the version that `If-Range` names.
fn wanted_range(head: &http::request::Parts, headers: &HeaderMap) -> Option<Asked> {
    let asked = head.headers.get(header::RANGE).filter(|_| head.method == Method::GET)?;
    if let Some(condition) = head.headers.get(header::IF_RANGE) {
        let condition = condition.as_bytes();
        let weak = condition.starts_with(b"W/");
        let same = [header::ETAG, header::LAST_MODIFIED]
            .iter()
            .any(|name| headers.get(name).is_some_and(|value| value.as_bytes() == condition));
        if weak || !same {
            return None;
        }
    }
    range::parse(asked.to_str().ok()?)
}

/// Whether the client has it already: `If-None-Match` by weak comparison, else `If-Modified-Since` by equality, which is
/// what clients send back (RFC 9110 sections 13.1.2 and 13.1.3).
fn not_modified(asked: &HeaderMap, headers: &HeaderMap) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    if asked.contains_key(header::IF_NONE_MATCH) {
        let ours = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(opaque);
        let listed = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        return listed.flat_map(|list| list.split(',')).any(|tag| match tag.trim() {
            "*" => true,
            tag => ours.as_ref().is_some_and(|ours| *ours == opaque(tag)),
        });
    }
    match (asked.get(header::IF_MODIFIED_SINCE), headers.get(header::LAST_MODIFIED)) {
        (Some(since), Some(modified)) => since == modified,
        _ => false,
    }
}

/// An answer with an entry's headers.
fn reply(entry: &Entry, answered: Answered, tier: &Tier, status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let mut headers = entry.headers.clone();
    headers.insert(header::AGE, entry.age(Instant::now()).as_secs().into());
    if let Some(value) = cache_status(entry, answered, tier.name) {
        headers.append(CACHE_STATUS, value);
    }
    *response.headers_mut() = headers;
    response
}

/// RFC 9211; `detail` says what its own words cannot.
fn cache_status(entry: &Entry, answered: Answered, tier: &str) -> Option<HeaderValue> {
    let ttl = entry.freshness.fresh.saturating_sub(entry.received.elapsed()).as_secs();
    let text = match answered {
        Answered::Hit => format!("rooftop-{tier}; hit; ttl={ttl}"),
        Answered::Stale => format!("rooftop-{tier}; hit; detail=stale"),
        Answered::Revalidated => format!("rooftop-{tier}; fwd=stale; fwd-status=304"),
        Answered::Pushed => format!("rooftop-{tier}; hit; detail=pushed"),
        Answered::Miss => format!("rooftop-{tier}; fwd=miss; stored"),
        Answered::Coalesced => format!("rooftop-{tier}; fwd=miss; collapsed"),
        Answered::Promoted => format!("rooftop-{tier}; fwd=miss; detail=promoted"),
        _ => format!("rooftop-{tier}; fwd=miss; detail={}", answered.as_str()),
    };
    let text = if answered == Answered::Miss && entry.freshness.keep().is_zero() {
        text.replace("; stored", "")
    } else {
        text
    };
    HeaderValue::try_from(text).ok()
}

/// A page of this process's own.
fn local(tier: &Tier, page: Response<Bytes>) -> Response<Body> {
    let mut response = page.map(|bytes| Body::whole(bytes, &tier.metrics.served_bytes));
    if !response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        fetch::cors(response.headers_mut());
    }
    response
}

/// A refusal of ours, in a line of text.
fn own(tier: &Tier, status: StatusCode, why: &str) -> Response<Body> {
    let text = format!("rooftop-{}: {why}\n", tier.name);
    let mut response = Response::new(Body::whole(text.into(), &tier.metrics.served_bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fetch::cors(headers);
    response
}

/// Any page may ask for anything with any header; credentials play no part.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    fetch::cors(headers);
    headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// As HEAD wants it: the length stays, the bytes do not.
fn without_body(response: &mut Response<Body>) {
    if let Some(length) = response.body().size_hint().exact()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
        && !matches!(response.status(), StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT)
    {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
}

fn with_content_range(mut response: Response<Body>, value: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

/// `CDN-Loop` for the upstream: the latest of what came, and this node.
fn loop_value(headers: &HeaderMap, node_id: &str) -> HeaderValue {
    let came = headers.get_all(CDN_LOOP).iter().filter_map(|value| value.to_str().ok());
    let came: Vec<&str> =
        came.flat_map(|value| value.split(',')).map(str::trim).filter(|m| !m.is_empty()).collect();
    let mut members = vec![format!("rooftop; node={node_id}")];
    let mut bytes = 0;
    for member in came.iter().rev().take(LOOP_MEMBERS) {
        bytes += member.len();
        if bytes > LOOP_BYTES {
            break;
        }
        members.push((*member).to_owned());
    }
    members.reverse();
    HeaderValue::try_from(members.join(", ")).unwrap_or(HeaderValue::from_static("rooftop"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn conditions() {
        let ours = headers(&[("etag", "\"a\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        for (name, value, expected) in [
            ("if-none-match", "\"a\"", true),
            ("if-none-match", "W/\"a\"", true),
            ("if-none-match", "\"b\", \"a\"", true),
            ("if-none-match", "*", true),
            ("if-none-match", "\"b\"", false),
            ("if-none-match", "a", false),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT", false),
            ("range", "bytes=0-1", false),
        ] {
            assert_eq!(not_modified(&headers(&[(name, value)]), &ours), expected, "{name}: {value}");
        }
        let both = [("if-none-match", "\"b\""), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
        assert!(!not_modified(&headers(&both), &ours), "If-None-Match outranks If-Modified-Since");
    }

    #[test]
    fn if_range() {
        let ours = headers(&[("etag", "\"a\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        for (condition, minded) in
            [("\"a\"", true), ("W/\"a\"", false), ("\"b\"", false), ("Sun, 06 Nov 1994 08:49:37 GMT", true)]
        {
            let request = Request::get("/").header("range", "bytes=0-1").header("if-range", condition);
            let (head, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(wanted_range(&head, &ours).is_some(), minded, "{condition}");
        }
        let (head, ()) = Request::head("/").header("range", "bytes=0-1").body(()).unwrap().into_parts();
        assert_eq!(wanted_range(&head, &ours), None, "only GET has ranges");
    }

    #[test]
    fn loop_values_are_bounded() {
        let value = |pairs: &[(&str, &str)]| loop_value(&headers(pairs), "me").to_str().unwrap().to_owned();
        assert_eq!(value(&[]), "rooftop; node=me");
        assert_eq!(value(&[("cdn-loop", "a, b; x=1"), ("cdn-loop", "c")]), "a, b; x=1, c, rooftop; node=me");
        let many = vec!["other"; 1000].join(",");
        assert!(value(&[("cdn-loop", &many)]).len() < 200);
        let long = "x".repeat(5000);
        assert_eq!(value(&[("cdn-loop", &long)]), "rooftop; node=me");
    }
}
