//! What the origin answers: relays from POPs, objects and manifests to edges.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use cluster::claim::Refusal;
use cluster::token::Claims;
use http::header::{
    ACCEPT_RANGES, ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER,
};
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use media::object::{End, Reader};
use media::range::{self, Asked, Step};
use media::{Epoch, Object, RenditionId, SegmentNumber, StreamName};
use net::trace::Span;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span};

use crate::Shared;
use crate::dvr::Start;
use crate::hls::Directives;
use crate::live::{Found, Live, Picture, State};
use crate::mirror;
use crate::path::{self, Target};
use crate::push::{self, Told};
use crate::recording;
use crate::relay;
use crate::succession::Heir;

/// A body that an answer may have.
pub(crate) enum Body {
    Full(Bytes),
    Object(Reader),
    Lines(mpsc::Receiver<Bytes>),
    Push(Box<Told>),
}

/// Why there is no answer where one was waited for.
const LATE: &str = "the media did not come in time";

/// Longest session identifier taken, in bytes.
const MAX_SESSION_BYTES: usize = 64;

/// Media never changes: its name holds the epoch.
pub(crate) const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// What is no media is not immutable: another origin may know better.
const GAP_CONTROL: &str = "max-age=10";

pub(crate) const MULTIVARIANT_CONTROL: &str = "max-age=2";
pub(crate) const MPD_CONTROL: &str = "max-age=1";
/// Not longer than the shortest time between two.
const PICTURE_CONTROL: &str = "max-age=1";
pub(crate) const JPEG_TYPE: &str = "image/jpeg";
pub(crate) const HLS_TYPE: &str = "application/vnd.apple.mpegurl";
pub(crate) const DASH_TYPE: &str = "application/dash+xml";

/// Who has a stream that is asked for at the wrong origin.
const OWNER: http::HeaderName = http::HeaderName::from_static("rooftop-owner");

/// The origins that a POP has just lost, so that what they had may be taken over at once.
const LOST: http::HeaderName = http::HeaderName::from_static("rooftop-lost");

/// Names taken of that header.
const MAX_LOST: usize = 16;

/// RFC 9218: what an answer's `Priority` says counts in place of the request's.
const PRIORITY: http::HeaderName = http::HeaderName::from_static("priority");

pub(crate) async fn handle(shared: Arc<Shared>, request: http::Request<Incoming>) -> Response<Body> {
    // A relay's span lasts as long as its session.
    let mut span = match request.uri().path().starts_with("/relay/") {
        true => Span::default(),
        false => shared.tracer.continued("origin", request.headers()),
    };
    if let Some(span) = span.sampled() {
        span.set("http.request.method", request.method().as_str()).set("url.path", request.uri().path());
    }
    let response = answer(shared, request).await;
    if let Some(span) = span.sampled() {
        span.set("http.response.status_code", response.status().as_u16());
    }
    response
}

async fn answer(shared: Arc<Shared>, request: http::Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if let Some(stream) = path.strip_prefix("/relay/") {
        if request.method() != Method::POST {
            return not_allowed("POST", "a relay is a POST");
        }
        let stream = stream.parse::<StreamName>();
        return match stream {
            Ok(stream) => relay(shared, stream, request).await,
            Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET, HEAD", "objects are read with GET or HEAD");
    }
    if let Some(prefix) = path.strip_prefix(media::push::PATH_PREFIX)
        && prefix.starts_with('/')
    {
        return subscription(&shared, prefix, request.method()).await;
    }
    if let Some(of) = path.strip_prefix("/mirror") {
        return mirror(&shared, of, request.method());
    }
    shared.metrics.requests.inc();
    let asked = (request.method() == Method::GET).then(|| request.headers());
    if let Some((broadcast, target)) = path::parse_recording(path) {
        return recording::object(&shared, &broadcast, target, asked).await;
    }
    let Some((stream, target)) = path::parse(path) else {
        return not_found("no such path");
    };
    let live = match readable(&shared, &stream).await {
        Ok(live) => live,
        Err(misdirected) => return misdirected,
    };
    let query = request.uri().query().unwrap_or("");
    object(&shared, &live, target, query, asked).await
}

/// The stream as viewers may have it: this origin's own, or one whose owner is lost. What another origin has claimed is read
/// there, whatever is left of it here (RFC 9110, 15.5.20).
async fn readable(shared: &Shared, stream: &StreamName) -> Result<Arc<Live>, Response<Body>> {
    let elsewhere = shared.store.elsewhere(stream.as_str());
    let own = shared.stream(stream).filter(|live| elsewhere.is_none() && live.state() != State::Offline);
    if let Some(live) = own {
        return Ok(live);
    }
    match (shared.mirrors.orphan(stream).await, elsewhere) {
        (Some(live), _) => Ok(live),
        (None, Some((owner, _))) => Err(misdirected(&owner)),
        (None, None) => Err(text(StatusCode::MISDIRECTED_REQUEST, "this origin does not have the stream")),
    }
}

/// Another origin has it.
fn misdirected(owner: &str) -> Response<Body> {
    let mut response = text(StatusCode::MISDIRECTED_REQUEST, &format!("origin {owner} has the stream"));
    response.headers_mut().extend(HeaderValue::from_str(owner).map(|owner| (OWNER, owner)));
    response
}

/// What another origin is told: all streams, or one of them.
fn mirror(shared: &Arc<Shared>, of: &str, method: &Method) -> Response<Body> {
    if method != Method::GET {
        return not_allowed("GET", "a mirror is asked for with GET");
    }
    let (sender, told) = mpsc::channel(mirror::QUEUE);
    if of.is_empty() {
        shared.tasks.spawn(mirror::tell_streams(shared.clone(), sender));
    } else {
        let stream = of.strip_prefix("/live/").and_then(|name| name.parse::<StreamName>().ok());
        let Some(stream) = stream else {
            return not_found("mirrors are of /mirror and /mirror/live/{stream}");
        };
        let live =
            shared.stream(&stream).filter(|live| !matches!(live.state(), State::Offline | State::Ended));
        let Some(live) = live else {
            return text(StatusCode::MISDIRECTED_REQUEST, "this origin does not have the stream");
        };
        shared.tasks.spawn(mirror::tell_stream(shared.clone(), live, sender));
    }
    let mut response = Response::new(Body::Lines(told));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media::push::MEDIA_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A push of all objects whose names begin with `prefix`.
async fn subscription(shared: &Arc<Shared>, prefix: &str, method: &Method) -> Response<Body> {
    let Some(stream) = prefix.strip_prefix("/live/").and_then(|name| name.parse::<StreamName>().ok()) else {
        return not_found("pushes are of /push/live/{stream}");
    };
    if method != Method::GET {
        return not_allowed("GET", "a push is asked for with GET");
    }
    let live = match readable(shared, &stream).await {
        Ok(live) => live,
        Err(misdirected) => return misdirected,
    };
    if live.state() == State::Ended {
        return not_found("the broadcast is over");
    }
    let Some(told) = push::subscribe(shared, &live) else {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "no further push: too many subscribers, or shutting down",
        );
    };
    let mut response = Response::new(Body::Push(Box::new(told)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media::push::MEDIA_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) async fn relay<B>(
    shared: Arc<Shared>,
    stream: StreamName,
    request: http::Request<B>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: std::fmt::Display + Send,
{
    let headers = request.headers();
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.unwrap_or("");
    // A replay belongs to a session that was let in: that its token has expired since does not end it.
    let verified = if headers.contains_key("rooftop-continue") {
        shared.keys.verify_running(token, stream.as_str())
    } else {
        shared.keys.verify(token, stream.as_str(), SystemTime::now())
    };
    let refuse = |error: &dyn std::fmt::Display| {
        shared.metrics.relays_refused.inc();
        info!(%stream, %error, "relay refused");
        text(StatusCode::UNAUTHORIZED, &error.to_string())
    };
    let claims = match verified {
        Ok(claims) if shared.store.revoked().borrow().contains(&claims) => {
            return refuse(&crate::Error::Revoked);
        }
        Ok(claims) => claims,
        Err(error) => return refuse(&error),
    };
    let relay_request = match relay_request(headers, claims) {
        Ok(relay_request) => relay_request,
        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
    };
    if shared.shutdown.is_cancelled() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this origin is draining");
    }
    let Some(live) = shared.stream_for_publishing(&stream) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this origin is full");
    };
    // A session that another one of this stream publishes beside claims it when it knows what it goes on with.
    let heir = relay_request.next.is_none().then(|| Heir::new(&live, &relay_request.session)).flatten();
    let lost = lost(headers);
    let mut traced = shared.tracer.continued("relay", headers);
    if let Some(traced) = traced.sampled() {
        traced.set("rooftop.stream", stream.as_str()).set("rooftop.session", &*relay_request.session);
    }
    let (lines, told) = mpsc::channel(relay::LINE_QUEUE);
    let (claimed, claim) = oneshot::channel();
    let span = info_span!("relay", %stream, session = %relay_request.session);
    let (body, shutdown) = (request.into_body(), shared.shutdown.clone());
    // A POP may hang up while the store is asked: what is claimed then, and the place that the stream takes, are given back
    // by the session all the same.
    let session = {
        let shared = shared.clone();
        async move {
            let _until_it_ends = traced;
            let (right, live) = match heir {
                Some(heir) => (relay::Right::Heir(heir), live),
                None => match shared.store.claim(stream.as_str(), &relay_request.session, lost).await {
                    Ok(grant) => (relay::Right::Claimed(grant), shared.take_over(live)),
                    Err(refusal) => {
                        shared.forget_if(&live, |state| state == State::Offline);
                        info!(%refusal, "relay not taken");
                        let _ = claimed.send(Err(refusal));
                        return;
                    }
                },
            };
            let _ = claimed.send(Ok(()));
            relay::session(shared.clone(), live.clone(), right, relay_request, body, lines, shutdown).await;
            // A session that published nothing leaves nothing behind.
            shared.forget_if(&live, |state| state == State::Offline);
        }
    };
    shared.tasks.spawn(session.instrument(span));
    match claim.await {
        Ok(Ok(())) => {}
        Ok(Err(Refusal::Elsewhere { owner, .. })) => return misdirected(&owner),
        Ok(Err(refusal)) => return text(StatusCode::SERVICE_UNAVAILABLE, &refusal.to_string()),
        Err(_) => return text(StatusCode::SERVICE_UNAVAILABLE, "the session has failed"),
    }
    let mut response = Response::new(Body::Lines(told));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The origins that the POP has just lost.
fn lost(headers: &HeaderMap) -> Vec<String> {
    let names = headers.get(LOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .take(MAX_LOST)
        .map(str::to_owned)
        .collect()
}

fn relay_request(headers: &HeaderMap, claims: Claims) -> Result<relay::Request, &'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let session = text("rooftop-session")
        .filter(|id| {
            !id.is_empty() && id.len() <= MAX_SESSION_BYTES && id.bytes().all(|b| b.is_ascii_graphic())
        })
        .ok_or("rooftop-session: needs 1 to 64 printable characters")?;
    let received_unix_ms = text("rooftop-received")
        .and_then(|value| value.parse().ok())
        .ok_or("rooftop-received: needs milliseconds since 1970")?;
    let next = text("rooftop-continue").map(str::parse).transpose();
    Ok(relay::Request {
        claims,
        session: session.to_owned(),
        received_unix_ms,
        next: next.map_err(|_| "rooftop-continue: is not what an origin said")?,
    })
}

/// `asked` are the headers of a GET: a HEAD has no ranges.
async fn object(
    shared: &Shared,
    live: &Live,
    target: Target,
    query: &str,
    asked: Option<&HeaderMap>,
) -> Response<Body> {
    let start = match Start::parse(query) {
        Ok(start) => start,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match target {
        Target::Multivariant => {
            match live.multivariant(&start.map_or_else(String::new, |s| format!("?start={s}"))) {
                Some(playlist) => manifest(HLS_TYPE, MULTIVARIANT_CONTROL, playlist),
                None => not_found("the stream has not begun"),
            }
        }
        Target::Mpd => {
            let latency_ms = shared.config.dash_latency.as_millis() as u64;
            let past = match start {
                Some(start) => match recording::past_runs(shared, live, start).await {
                    Ok(past) => past,
                    Err(unreadable) => return unreadable.answer(),
                },
                None => None,
            };
            match live.mpd(latency_ms, relay::unix_ms(), &shared.config.time_url, past.as_ref()) {
                Some(mpd) => manifest(DASH_TYPE, MPD_CONTROL, mpd),
                None => not_found("the stream has not begun"),
            }
        }
        Target::Playlist(ref id) | Target::IFrames(ref id) => {
            let directives = match Directives::parse(query) {
                Ok(directives) => directives,
                Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
            };
            let ask = |directives, past| match target {
                Target::IFrames(_) => live.iframes(id, directives, past),
                _ => live.playlist(id, directives, past),
            };
            let mut found = wait(shared, live, || ask(directives, None)).await;
            if let (Ok(Found::Ready(_)), Some(start)) = (&found, start) {
                // Read when the answer is due: what leaves the window while a request waits is in the archive by then.
                let past = match recording::past(shared, live, id, start).await {
                    Ok(past) => past,
                    Err(unreadable) => return unreadable.answer(),
                };
                let query = format!("?start={start}");
                let ready = Directives { msn: None, part: None, ..directives };
                found = ask(ready, past.as_ref().map(|past| (past, query.as_str())));
            }
            match found {
                Ok(Found::Ready(playlist)) => {
                    manifest(HLS_TYPE, &playlist_control(live, directives.msn.is_some()), playlist)
                }
                Ok(Found::Later) => retry_later(LATE),
                Ok(Found::Never) => not_found("no such rendition"),
                Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
            }
        }
        Target::Init(epoch, id) => match live.init(epoch, &id) {
            Some(init) => {
                let etag = init_etag(epoch, &id);
                let media_type = live.media_type(&id);
                let mut response =
                    media(&shared.shutdown, Object::complete(init), media_type, &etag, asked).await;
                response.headers_mut().insert(PRIORITY, HeaderValue::from_static("u=2"));
                response
            }
            None => earlier(shared, live, Target::Init(epoch, id), asked).await,
        },
        Target::Picture => match live.newest_picture() {
            Some(picture) => newest(picture),
            None => not_found("the stream has no picture yet, or its video is only passed through"),
        },
        Target::Sheet(epoch, number) => match live.find_sheet(epoch, number) {
            Some(jpeg) => {
                let etag = sheet_etag(epoch, number);
                media(&shared.shutdown, Object::complete(jpeg), JPEG_TYPE, &etag, asked).await
            }
            None => not_found("no such thumbnails: not yet, or no longer"),
        },
        Target::Segment(epoch, id, number) => {
            let found =
                wait(shared, live, || Ok::<_, std::convert::Infallible>(live.segment(epoch, &id, number)))
                    .await;
            match found {
                Ok(Found::Ready(object)) => {
                    let etag = segment_etag(epoch, &id, number);
                    media(&shared.shutdown, object, live.media_type(&id), &etag, asked).await
                }
                Ok(Found::Later) => retry_later(LATE),
                Ok(Found::Never) if live.is_gap(epoch, &id, number) => gap(live.media_type(&id)),
                Ok(Found::Never) => earlier(shared, live, Target::Segment(epoch, id, number), asked).await,
            }
        }
    }
}

/// The newest picture: another one comes each interval.
fn newest(picture: Picture) -> Response<Body> {
    let etag = format!("\"{}-{}\"", picture.epoch, picture.pts);
    let mut response = Response::new(Body::Full(picture.jpeg));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JPEG_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(PICTURE_CONTROL));
    headers.insert(ETAG, header(&etag));
    response
}

/// A segment of nothing, for players that walk from segment to segment: a 404 has them try again for ever, or give up.
fn gap(media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::Full(transcode::cmaf::empty_segment()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(GAP_CONTROL));
    response
}

/// Media that has left memory.
async fn earlier(shared: &Shared, live: &Live, target: Target, asked: Option<&HeaderMap>) -> Response<Body> {
    match live.broadcast_id() {
        Some(broadcast) => recording::media(shared, &broadcast, target, asked).await,
        None => not_found("no such segment"),
    }
}

/// Asks again with every version, for at most three target durations (RFC 8216bis, 6.2.5.2).
async fn wait<T, E>(
    shared: &Shared,
    live: &Live,
    ask: impl Fn() -> Result<Found<T>, E>,
) -> Result<Found<T>, E> {
    let mut versions = live.versions();
    versions.mark_unchanged();
    let found = ask()?;
    if !matches!(found, Found::Later) {
        return Ok(found);
    }
    shared.metrics.requests_blocked.inc();
    let target =
        live.targets().map_or(shared.config.segment_duration.as_secs(), |t| t.target_duration() as u64);
    let deadline = tokio::time::sleep(std::time::Duration::from_secs(3 * target));
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            biased;
            changed = versions.changed() => {
                let found = ask()?;
                if changed.is_err() || !matches!(found, Found::Later) {
                    return Ok(found);
                }
            }
            () = shared.shutdown.cancelled() => return Ok(Found::Later),
            () = &mut deadline => {
                shared.metrics.requests_timed_out.inc();
                return Ok(Found::Later);
            }
        }
    }
}

/// Appendix B.1: six target durations when blocking; half of one else, which has no whole number of seconds: caches of
/// ours have that as their own rule.
pub(crate) fn playlist_control(live: &Live, blocking: bool) -> String {
    let target = live.targets().map_or(1, crate::hls::Targets::target_duration);
    format!("max-age={}", if blocking { target * 6 } else { (target / 2).max(1) })
}

pub(crate) fn segment_etag(epoch: Epoch, id: &RenditionId, number: SegmentNumber) -> String {
    format!("\"{epoch}-{id}-{number}\"")
}

pub(crate) fn sheet_etag(epoch: Epoch, number: SegmentNumber) -> String {
    format!("\"{epoch}-thumbnails-{number}\"")
}

pub(crate) fn init_etag(epoch: Epoch, id: &RenditionId) -> String {
    format!("\"{epoch}-{id}-init\"")
}

pub(crate) fn manifest(content_type: &'static str, cache_control: &str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::Full(text.into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, header(cache_control));
    // Before init segments, and those before segments: without news of it a player asks for nothing.
    headers.insert(PRIORITY, HeaderValue::from_static("u=1"));
    response
}

/// A segment or init segment, or the range of it that is asked for. A range that is not there yet is waited for.
pub(crate) async fn media(
    shutdown: &CancellationToken,
    object: Object,
    media_type: &'static str,
    etag: &str,
    asked: Option<&HeaderMap>,
) -> Response<Body> {
    let step = match asked.and_then(|headers| wanted_range(headers, etag)) {
        None => Step::Whole,
        Some(asked) => tokio::select! {
            biased;
            step = settle(asked, &object) => step,
            () = shutdown.cancelled() => Step::Broken,
        },
    };
    let progress = object.progress();
    let length = (progress.end == End::Complete).then_some(progress.len);
    let (status, body, length, range) = match step {
        Step::Whole => (StatusCode::OK, Body::Object(object.read(0..u64::MAX)), length, None),
        Step::Part { range, total } => {
            let total = total.map_or("*".to_owned(), |total| total.to_string());
            let text = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            let length = range.end - range.start;
            (StatusCode::PARTIAL_CONTENT, Body::Object(object.read(range)), Some(length), Some(text))
        }
        Step::Stream { first, last } => {
            let text = format!("bytes {first}-{last}/*");
            (StatusCode::PARTIAL_CONTENT, Body::Object(object.read(first..u64::MAX)), None, Some(text))
        }
        Step::Unsatisfiable(total) => {
            let text = format!("bytes */{total}");
            (StatusCode::RANGE_NOT_SATISFIABLE, Body::Full(Bytes::new()), Some(0), Some(text))
        }
        Step::Broken | Step::Wait(_) => return retry_later(LATE),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Some(range) = range {
        headers.insert(CONTENT_RANGE, header(&range));
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    // That a growing object ends before a range is not for ever.
    let control = if status == StatusCode::RANGE_NOT_SATISFIABLE { "no-store" } else { IMMUTABLE };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(control));
    headers.insert(ETAG, header(etag));
    // Said, since browsers ask for everything that a page's script fetches with u=1.
    headers.insert(PRIORITY, HeaderValue::from_static("u=3"));
    response
}

/// A range that is to be minded: of this object, if `If-Range` names one (RFC 9110 section 13.1.5).
fn wanted_range(asked: &HeaderMap, etag: &str) -> Option<Asked> {
    if asked.get(IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag.as_bytes()) {
        return None;
    }
    range::parse(asked.get(RANGE)?.to_str().ok()?)
}

/// Waits until it is clear what a range of a growing object is: at most until its segment ends. Dropping it costs nothing.
async fn settle(asked: Asked, object: &Object) -> Step {
    let mut progress = object.progress();
    loop {
        match range::resolve(asked, progress, None) {
            Step::Wait(len) => progress = object.wait_for(len).await,
            step => return step,
        }
    }
}

pub(crate) fn not_found(why: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::NOT_FOUND, why);
    // What is missing now may be there in a moment: a failover, a stream about to begin.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
    response
}

/// Only these methods may be used here (RFC 9110, 15.5.6).
fn not_allowed(allow: &'static str, why: &str) -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, why);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

pub(crate) fn retry_later(why: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

pub(crate) fn text(status: StatusCode, why: &str) -> Response<Body> {
    let mut response = Response::new(Body::Full(format!("{why}\n").into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names and numbers are valid in headers")
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = media::object::Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Body::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Object(reader) => Pin::new(reader).poll_frame(cx),
            Body::Lines(lines) => lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(line)))),
            Body::Push(told) => told.poll_next(cx).map(|next| next.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_empty(),
            Body::Object(reader) => reader.is_end_stream(),
            Body::Lines(_) | Body::Push(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Object(reader) => reader.size_hint(),
            Body::Lines(_) | Body::Push(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    const ETAG_V1: &str = "\"7-720p-3\"";

    async fn ask(object: &Object, pairs: &[(http::HeaderName, &'static str)]) -> Response<Body> {
        let asked =
            pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        media(&CancellationToken::new(), object.clone(), "video/mp4", ETAG_V1, Some(&asked)).await
    }

    /// Status, `Content-Range`, `Content-Length`.
    fn head(response: &Response<Body>) -> (u16, &str, &str) {
        let text =
            |name| response.headers().get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap());
        (response.status().as_u16(), text(CONTENT_RANGE), text(CONTENT_LENGTH))
    }

    async fn body(response: Response<Body>) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn the_rest_of_a_growing_segment_streams() {
        let (mut writer, object) = Object::growing();
        writer.push(Bytes::from_static(b"0123456"));
        let rest = [(RANGE, "bytes=4-"), (IF_RANGE, ETAG_V1)];
        let streamed = ask(&object, &rest).await;
        assert_eq!(head(&streamed), (206, "bytes 4-9007199254740991/*", ""));
        assert_eq!(streamed.headers()[ETAG], ETAG_V1);
        let there = ask(&object, &[(RANGE, "bytes=2-4")]).await;
        assert_eq!(head(&there), (206, "bytes 2-4/*", "3"));
        let other = ask(&object, &[(RANGE, "bytes=4-"), (IF_RANGE, "\"7-720p-4\"")]).await;
        assert_eq!(head(&other), (200, "", ""));
        let held_headers = [(RANGE, "bytes=6-8")];
        let held = ask(&object, &held_headers);
        let push = async {
            writer.push(Bytes::from_static(b"789"));
            writer.finish();
        };
        let (held, ()) = tokio::join!(held, push);
        assert_eq!(head(&held).0, 206);
        assert_eq!(body(held).await, "678");
        assert_eq!(body(streamed).await, "456789");
        assert_eq!(body(other).await, "0123456789");
        assert_eq!(body(there).await, "234");

        let whole = ask(&object, &rest).await;
        assert_eq!(head(&whole), (206, "bytes 4-9/10", "6"));
        let past = ask(&object, &[(RANGE, "bytes=10-"), (IF_RANGE, ETAG_V1)]).await;
        assert_eq!(head(&past), (416, "bytes */10", "0"));
        assert_eq!(past.headers()[ETAG], ETAG_V1);
    }

    #[tokio::test]
    async fn a_range_that_will_never_be_there_is_not_waited_for() {
        let (mut writer, object) = Object::growing();
        writer.push(Bytes::from_static(b"0123"));
        let held = async { ask(&object, &[(RANGE, "bytes=2-8")]).await };
        let (held, ()) = tokio::join!(held, async { drop(writer) });
        assert_eq!(head(&held).0, 503);
        let (_writer, object) = Object::growing();
        let asked = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=2-8"))]);
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let draining = media(&shutdown, object, "video/mp4", ETAG_V1, Some(&asked)).await;
        assert_eq!(head(&draining).0, 503);
    }
}
