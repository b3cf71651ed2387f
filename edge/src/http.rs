//! The server side: what a request asks for, and the answer that an entry makes.
//!
//! A hit is answered on the spot, without waiting and without a future of its own; all else goes the long way.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use media::Object;
use media::object::{End, Progress};
use media::push::PATH_PREFIX;
use net::trace::Span;
use tracing::debug;

use crate::access;
use crate::body::Body;
use crate::cache::{Content, Entry};
use crate::cmcd::Said;
use crate::conditions;
use crate::encoding;
use crate::fetch::{self, CDN_LOOP};
use crate::form::{CACHE_STATUS, Head};
use crate::metrics::{Answered, Overload};
use crate::policy::{self, MAX_KEY_BYTES};
use crate::push;
use crate::range::{self, Asked, Step};
use crate::sent::{Mark, Passing};
use crate::tier::{Denied, Tier};
use crate::upstream;
use crate::viewers::Asker;

const METHODS: &str = "GET, HEAD, OPTIONS";

/// Members of `CDN-Loop` that are passed on, the latest ones, and their bytes: viewers can send any. A circle that is longer
/// than this is not found by the node where it began but ends at a bound all the same.
const LOOP_MEMBERS: usize = 15;
const LOOP_BYTES: usize = 1024;

/// An answer on its way. Dropping it leaves the fetch alone.
pub(crate) enum Serving {
    Done(Option<Response<Body>>),
    Waiting(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Future for Serving {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        match &mut *self {
            Serving::Done(response) => response.take().map_or(Poll::Pending, Poll::Ready),
            Serving::Waiting(future) => future.as_mut().poll(cx),
        }
    }
}

type Answer = (Response<Body>, Answered);

/// Answers one request, and counts it.
pub(crate) fn serve(tier: &Arc<Tier>, request: Request<Incoming>, peer: SocketAddr) -> Serving {
    let began = Instant::now();
    let (head, _) = request.into_parts();
    let span = tier.span(&head.headers);
    match route(tier, &head, peer, began) {
        Route::Done(answer) => Serving::Done(Some(finish(tier, &head, peer, began, span, answer))),
        Route::Find(key) => {
            let (tier, key) = (tier.clone(), key.into_owned());
            Serving::Waiting(Box::pin(async move {
                let answer = match tier.find(&key, &span, || loop_value(&head.headers, &tier.node_id)).await {
                    Ok((entry, answered)) => {
                        used(&tier, &key, &entry, &head, peer, began);
                        entry.counts.answered(answered);
                        respond(&tier, &entry, answered, &head).await
                    }
                    Err(denied) => denial(&tier, denied),
                };
                finish(&tier, &head, peer, began, span, answer)
            }))
        }
        Route::Push(prefix) => {
            let (tier, prefix) = (tier.clone(), prefix.to_owned());
            Serving::Waiting(Box::pin(async move {
                let cdn_loop = || loop_value(&head.headers, &tier.node_id);
                let answer = match push::serve(&tier, &head.method, &prefix, cdn_loop).await {
                    Ok(response) => (response, Answered::Local),
                    Err((status, why)) => (own(&tier, status, why), Answered::Refused),
                };
                finish(&tier, &head, peer, began, span, answer)
            }))
        }
    }
}

fn finish(
    tier: &Tier,
    head: &Parts,
    peer: SocketAddr,
    began: Instant,
    mut span: Span,
    answer: Answer,
) -> Response<Body> {
    let (mut response, answered) = answer;
    if head.method == Method::HEAD {
        without_body(&mut response);
    }
    tier.metrics.answered(answered);
    // Tokens are in the query, or taken off the path.
    if let Some(span) = span.sampled() {
        let status = response.status();
        span.set("http.request.method", head.method.as_str())
            .set("url.path", plain_path(tier, head.uri.path()));
        span.set("http.response.status_code", status.as_u16()).set("rooftop.result", answered.as_str());
        if status.is_server_error() {
            span.fail(status.as_str());
        }
    }
    debug!(
        tier = tier.name,
        %peer,
        method = %head.method,
        path = plain_path(tier, head.uri.path()),
        status = response.status().as_u16(),
        result = answered.as_str(),
        waited_ms = began.elapsed().as_millis() as u64,
        "request"
    );
    response
}

enum Route<'a> {
    Done(Answer),
    /// To be found under this name.
    Find(std::borrow::Cow<'a, str>),
    /// What begins with this is to be pushed.
    Push(&'a str),
}

fn route<'a>(tier: &Arc<Tier>, head: &'a Parts, peer: SocketAddr, now: Instant) -> Route<'a> {
    let refused = |status, why| Route::Done((own(tier, status, why), Answered::Refused));
    if head.method != Method::GET && head.method != Method::HEAD {
        if head.method == Method::OPTIONS {
            return Route::Done((preflight(), Answered::Local));
        }
        let mut response = own(tier, StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return Route::Done((response, Answered::Refused));
    }
    let Some(target) = head.uri.path_and_query().filter(|_| head.uri.path().starts_with('/')) else {
        return refused(StatusCode::BAD_REQUEST, "the path must begin with /");
    };
    let (mut target, mut path, query) = (target.as_str(), target.path(), target.query());
    if let Some(access) = &tier.access {
        let token;
        (token, path) = access::split(path);
        if let Err(why) = access.check(token, path, query, &head.headers, SystemTime::now()) {
            return Route::Done((forbidden(tier, &why), Answered::Forbidden));
        }
        (_, target) = access::split(target);
    }
    if let Some(page) = tier.pages.as_ref().and_then(|pages| pages.page(path, &head.headers)) {
        return Route::Done((local(tier, page), Answered::Local));
    }
    let came_round = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains(&tier.node_id));
    if head.headers.get_all(CDN_LOOP).iter().any(came_round) {
        let response = own(tier, StatusCode::LOOP_DETECTED, "this request has been here before");
        return Route::Done((response, Answered::Loop));
    }
    let key = policy::key(target, path, query);
    if key.len() > MAX_KEY_BYTES {
        return refused(StatusCode::URI_TOO_LONG, "the path and query are too long");
    }
    if let Some(prefix) = path.strip_prefix(PATH_PREFIX).filter(|prefix| prefix.starts_with('/')) {
        return Route::Push(prefix);
    }
    if let Some((entry, answered)) = tier.fresh(&key, now)
        && let Content::Whole(bytes) = &entry.body
        && let Some(response) = whole(tier, &entry, bytes, answered, head, now)
    {
        used(tier, &key, &entry, head, peer, now);
        entry.counts.answered(answered);
        return Route::Done((response, answered));
    }
    Route::Find(key)
}

/// A stream that someone has had something of is one to be pushed, and has a viewer.
fn used(tier: &Arc<Tier>, key: &str, entry: &Entry, head: &Parts, peer: SocketAddr, now: Instant) {
    // Only names that exist are streams to be counted.
    if !entry.status.is_success() {
        return;
    }
    push::used(tier, key, now, || loop_value(&head.headers, &tier.node_id));
    let (Some(players), Some(viewers)) = (&tier.players, &tier.viewers) else { return };
    let Some(stream) = upstream::prefix(key, tier.config.upstream.key_segments) else { return };
    let said = Said::of(head.uri.query(), &head.headers);
    if let Some(said) = &said {
        players.note(stream, said, now);
    }
    // Who is shown pictures of it does not watch it.
    let is_picture =
        entry.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"image/"));
    if head.method == Method::GET && !is_picture {
        let session = said.and_then(|said| said.session);
        viewers.note(stream, &Asker { peer, headers: &head.headers, session }, now);
    }
}

/// A path as it may be seen: without the token that it may have.
fn plain_path<'a>(tier: &Tier, path: &'a str) -> &'a str {
    if tier.access.is_some() { access::split(path).1 } else { path }
}

/// 401, 403 or 400. RFC 6750 section 3 wants the challenge.
fn forbidden(tier: &Tier, why: &access::Refused) -> Response<Body> {
    let mut response = own(tier, why.status(), &why.to_string());
    let challenge = match why {
        access::Refused::Missing => "Bearer",
        access::Refused::Bad(_) => "Bearer error=\"invalid_token\"",
        access::Refused::OtherPath => "Bearer error=\"insufficient_scope\"",
        access::Refused::Tangled => return response,
    };
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

fn denial(tier: &Tier, denied: Denied) -> Answer {
    let (why, answered) = match denied {
        Denied::Overloaded(overload) => {
            tier.metrics.overloaded(overload);
            let why = match overload {
                Overload::Names | Overload::Flights => "too many names are being fetched",
                Overload::Memory => "too many bytes are on their way",
                Overload::Waiters => "too many requests are waiting",
            };
            (why, Answered::Overloaded)
        }
        Denied::Lost => ("the fetch was lost", Answered::Error),
    };
    let mut response = own(tier, StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    (response, answered)
}

/// The answer of a complete object: whole or zipped, a range, or "not modified" (RFC 9110 section 13.2.2). `None`: its gzip
/// form must be made first.
fn whole(
    tier: &Tier,
    entry: &Entry,
    bytes: &Bytes,
    answered: Answered,
    asked: &Parts,
    now: Instant,
) -> Option<Response<Body>> {
    let head = Head { tier: tier.name, entry, answered, now };
    let served = &tier.metrics.served_bytes;
    let plain = entry.forms.plain(entry, bytes);
    if entry.status != StatusCode::OK {
        return Some(plain.answer(head, served));
    }
    let range = wanted_range(asked, &plain.headers);
    let mut form = plain;
    if plain.may_zip && range.is_none() && encoding::wants_gzip(&asked.headers) {
        form = entry.forms.gzip(entry, bytes)?.unwrap_or(plain);
    }
    if conditions::not_modified(&asked.headers, &form.headers) {
        return Some(unmodified(form.headers(head)));
    }
    let Some(range) = range else {
        return Some(form.answer(head, served));
    };
    let progress = Progress { len: bytes.len() as u64, end: End::Complete };
    Some(match range::resolve(range, progress, None) {
        Step::Part { range, total } => {
            let body = Body::whole(bytes.slice(range.start as usize..range.end as usize), served);
            part(plain.headers(head), range, total, body)
        }
        Step::Unsatisfiable(total) => unsatisfiable(plain.headers(head), total),
        // It waits for nothing and streams nothing.
        Step::Whole | Step::Stream { .. } | Step::Wait(_) | Step::Broken => plain.answer(head, served),
    })
}

/// The answer that `entry` makes to a request, however far it has come.
async fn respond(tier: &Tier, entry: &Entry, answered: Answered, asked: &Parts) -> Answer {
    match &entry.body {
        Content::Whole(bytes) => {
            let answer = || whole(tier, entry, bytes, answered, asked, Instant::now());
            let response = match answer() {
                Some(response) => response,
                None => {
                    zip(entry, bytes.clone()).await;
                    answer().unwrap_or_else(|| own(tier, StatusCode::INTERNAL_SERVER_ERROR, "no gzip"))
                }
            };
            (response, answered)
        }
        Content::Growing { object, length, mark } => {
            let growing = Growing { object, length: *length, mark: mark.as_ref() };
            growing.answer(tier, entry, answered, asked).await
        }
    }
}

/// Makes the gzip form, once. Dropped midway, the next who wants it makes it.
async fn zip(entry: &Entry, bytes: Bytes) {
    let make = || async {
        // A few milliseconds for the largest: not on a thread that others wait for.
        tokio::task::spawn_blocking(move || encoding::gzip(&bytes)).await.unwrap_or(None)
    };
    entry.forms.zipped.get_or_init(make).await;
}

/// The body of an entry that is on its way.
struct Growing<'a> {
    object: &'a Object,
    length: Option<u64>,
    mark: Option<&'a Arc<Mark>>,
}

impl Growing<'_> {
    async fn answer(self, tier: &Tier, entry: &Entry, answered: Answered, asked: &Parts) -> Answer {
        let Growing { object, length, mark } = self;
        let passing = |from, to_the_end| mark.map(|mark| Box::new(Passing::new(mark, from, to_the_end)));
        let broke_off = || (own(tier, StatusCode::BAD_GATEWAY, "the upstream broke off"), Answered::Error);
        let headers =
            || growing_headers(entry, Head { tier: tier.name, entry, answered, now: Instant::now() });
        let served = &tier.metrics.served_bytes;
        let ok = entry.status == StatusCode::OK;
        if ok && conditions::not_modified(&asked.headers, &entry.headers) {
            return (unmodified(headers()), answered);
        }
        let range = if ok { wanted_range(asked, &entry.headers) } else { None };
        // Small texts are worth a short wait; their length is known, so that they do come to an end.
        let zips = range.is_none()
            && length.is_some_and(|length| {
                (encoding::MIN_BYTES..=encoding::MAX_BYTES).contains(&(length as usize))
            })
            && encoding::may_have(entry.status, &entry.headers)
            && encoding::wants_gzip(&asked.headers);
        if zips {
            let _waiter = match tier.waiter() {
                Ok(waiter) => waiter,
                Err(denied) => return denial(tier, denied),
            };
            if object.wait_for(u64::MAX).await.end == End::Failed {
                return broke_off();
            }
            if entry.forms.zipped.get().is_none()
                && let Some(bytes) = object.to_bytes()
            {
                zip(entry, bytes).await;
            }
            if let Some(Some(zipped)) = entry.forms.zipped.get() {
                let mut headers = headers();
                encoding::mark(&mut headers);
                headers.insert(header::CONTENT_LENGTH, zipped.len().into());
                let mut response = Response::new(Body::whole(zipped.clone(), served));
                *response.headers_mut() = headers;
                return (response, answered);
            }
        }
        let (step, _waiter) = match range {
            None if object.progress().end == End::Failed => (Step::Broken, None),
            None => (Step::Whole, None),
            Some(range) => match tier.waiter() {
                Ok(waiter) => (settle(range, object, length).await, Some(waiter)),
                Err(denied) => return denial(tier, denied),
            },
        };
        let response = match step {
            Step::Whole => {
                let Progress { len, end } = object.progress();
                let length = if end == End::Complete { Some(len) } else { length };
                let mut response =
                    Response::new(Body::growing(object.read(0..u64::MAX), length, passing(0, true), served));
                *response.status_mut() = entry.status;
                *response.headers_mut() = headers();
                if let Some(length) = length.filter(|_| entry.status != StatusCode::NO_CONTENT) {
                    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
                }
                response
            }
            Step::Part { range, total } => {
                let (reader, length) = (object.read(range.clone()), Some(range.end - range.start));
                let body = Body::growing(reader, length, passing(range.start, false), served);
                part(headers(), range, total, body)
            }
            Step::Stream { first, last } => {
                let mut response = Response::new(Body::growing(
                    object.read(first..u64::MAX),
                    None,
                    passing(first, true),
                    served,
                ));
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                *response.headers_mut() = headers();
                with_content_range(response, &format!("bytes {first}-{last}/*"))
            }
            Step::Unsatisfiable(total) => unsatisfiable(headers(), total),
            Step::Broken | Step::Wait(_) => return broke_off(),
        };
        (response, answered)
    }
}

fn growing_headers(entry: &Entry, head: Head<'_>) -> HeaderMap {
    let mut headers = entry.headers.clone();
    if encoding::may_have(entry.status, &headers) {
        encoding::vary(&mut headers);
    }
    headers.insert(header::AGE, head.age());
    headers.append(CACHE_STATUS, head.cache_status());
    headers
}

/// 206 with the bytes of `range`, of a known total or not.
fn part(headers: HeaderMap, range: std::ops::Range<u64>, total: Option<u64>, body: Body) -> Response<Body> {
    let (first, last) = (range.start, range.end - 1);
    let of = match total {
        Some(total) => format!("bytes {first}-{last}/{total}"),
        None => format!("bytes {first}-{last}/*"),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    with_content_range(response, &of)
}

fn unsatisfiable(headers: HeaderMap, total: u64) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    *response.headers_mut() = headers;
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::ETAG, header::LAST_MODIFIED] {
        response.headers_mut().remove(name);
    }
    with_content_range(response, &format!("bytes */{total}"))
}

/// 304, without what describes a body (RFC 9110 section 15.4.5).
fn unmodified(mut headers: HeaderMap) -> Response<Body> {
    for name in
        [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ACCEPT_RANGES]
    {
        headers.remove(name);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = headers;
    response
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

/// A range that is to be minded: of a GET, and of the version that `If-Range` names.
fn wanted_range(asked: &Parts, ours: &HeaderMap) -> Option<Asked> {
    let range = asked.headers.get(header::RANGE).filter(|_| asked.method == Method::GET)?;
    if asked.headers.get(header::IF_RANGE).is_some_and(|condition| !conditions::if_range(condition, ours)) {
        return None;
    }
    range::parse(range.to_str().ok()?)
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

/// Any page may ask for anything with any header, a playback token as bearer among them; cookies play no part.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    fetch::cors(headers);
    headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    // The star does not stand for this one (Fetch, section 4.8).
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
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
    use http::HeaderName;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn ranges_are_of_gets() {
        let ours = headers(&[("etag", "\"a\"")]);
        for (method, condition, minded) in
            [("GET", "\"a\"", true), ("GET", "\"b\"", false), ("HEAD", "\"a\"", false)]
        {
            let request = Request::builder().method(method).header("range", "bytes=0-1");
            let (head, ()) = request.header("if-range", condition).body(()).unwrap().into_parts();
            assert_eq!(wanted_range(&head, &ours).is_some(), minded, "{method} {condition}");
        }
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
