//! What the origin answers: relays from POPs, objects and manifests to edges.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, RETRY_AFTER,
};
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use media::object::Reader;
use media::{Object, SegmentNumber, StreamName};
use tokio::sync::mpsc;
use tracing::{Instrument, info, info_span};

use crate::Shared;
use crate::hls::Directives;
use crate::live::{Found, Live, State};
use crate::path::{self, Target};
use crate::relay;

/// A body that an answer may have.
pub(crate) enum Body {
    Full(Bytes),
    Object(Reader),
    Lines(mpsc::Receiver<Bytes>),
}

/// Longest session identifier taken, in bytes.
const MAX_SESSION_BYTES: usize = 64;

/// Media never changes: its name holds the epoch.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

pub(crate) async fn handle(shared: Arc<Shared>, request: http::Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if let Some(stream) = path.strip_prefix("/relay/") {
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "a relay is a POST");
        }
        let stream = stream.parse::<StreamName>();
        return match stream {
            Ok(stream) => relay(shared, stream, request),
            Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "objects are read with GET or HEAD");
    }
    shared.metrics.requests.inc();
    let Some((stream, target)) = path::parse(path) else {
        return not_found("no such path");
    };
    let Some(live) = shared.stream(&stream).filter(|live| live.state() != State::Offline) else {
        // Another origin may own it (RFC 9110, 15.5.20).
        return text(StatusCode::MISDIRECTED_REQUEST, "this origin does not have the stream");
    };
    object(&shared, &live, target, request.uri().query().unwrap_or("")).await
}

fn relay(shared: Arc<Shared>, stream: StreamName, request: http::Request<Incoming>) -> Response<Body> {
    let headers = request.headers();
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.unwrap_or("");
    // A replay belongs to a session that was let in: that its token has expired since does not end it.
    let verified = if headers.contains_key("rooftop-resume") {
        shared.keys.verify_running(token, stream.as_str())
    } else {
        shared.keys.verify(token, stream.as_str(), SystemTime::now())
    };
    if let Err(error) = verified {
        shared.metrics.relays_refused.inc();
        info!(%stream, %error, "relay refused");
        return text(StatusCode::UNAUTHORIZED, &error.to_string());
    }
    let relay_request = match relay_request(headers) {
        Ok(relay_request) => relay_request,
        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
    };
    if shared.shutdown.is_cancelled() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this origin is draining");
    }
    let Some(live) = shared.stream_for_publishing(&stream) else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this origin is full");
    };
    let grant = shared.store.claim(stream.as_str(), &relay_request.session);
    let (lines, answer) = mpsc::channel(relay::LINE_QUEUE);
    let span = info_span!("relay", %stream, session = %relay_request.session);
    let (body, shutdown) = (request.into_body(), shared.shutdown.clone());
    let session = {
        let (shared, live) = (shared.clone(), live.clone());
        async move {
            relay::session(shared.clone(), live.clone(), grant, relay_request, body, lines, shutdown).await;
            // A session that published nothing leaves nothing behind.
            shared.forget_if(&live, |state| state == State::Offline);
        }
    };
    shared.tasks.spawn(session.instrument(span));
    let mut response = Response::new(Body::Lines(answer));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn relay_request(headers: &HeaderMap) -> Result<relay::Request, &'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let session = text("rooftop-session")
        .filter(|id| {
            !id.is_empty() && id.len() <= MAX_SESSION_BYTES && id.bytes().all(|b| b.is_ascii_graphic())
        })
        .ok_or("rooftop-session: needs 1 to 64 printable characters")?;
    let received_unix_ms = text("rooftop-received")
        .and_then(|value| value.parse().ok())
        .ok_or("rooftop-received: needs milliseconds since 1970")?;
    let resume_ms = text("rooftop-resume").map(str::parse).transpose();
    let published = text("rooftop-published").map(str::parse).transpose();
    Ok(relay::Request {
        session: session.to_owned(),
        received_unix_ms,
        resume_ms: resume_ms.map_err(|_| "rooftop-resume: is not a 32-bit number of milliseconds")?,
        published: published.map_err(|_| "rooftop-published: is not a segment number")?.map(SegmentNumber),
    })
}

async fn object(shared: &Shared, live: &Live, target: Target, query: &str) -> Response<Body> {
    match target {
        Target::Multivariant => match live.multivariant() {
            Some(playlist) => manifest("application/vnd.apple.mpegurl", "max-age=2", playlist),
            None => not_found("the stream has not begun"),
        },
        Target::Mpd => {
            let latency_ms = shared.config.dash_latency.as_millis() as u64;
            match live.mpd(latency_ms, relay::unix_ms(), &shared.config.time_url) {
                Some(mpd) => manifest("application/dash+xml", "max-age=1", mpd),
                None => not_found("the stream has not begun"),
            }
        }
        Target::Playlist(id) => {
            let directives = match Directives::parse(query) {
                Ok(directives) => directives,
                Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
            };
            let found = wait(shared, live, || live.playlist(&id, directives)).await;
            match found {
                Ok(Found::Ready(playlist)) => {
                    // Appendix B.1: six target durations when blocking; half of one else, which has no whole number of
                    // seconds: caches of ours have that as their own rule.
                    let target = live.targets().map_or(1, crate::hls::Targets::target_duration);
                    let max_age = if directives.msn.is_some() { target * 6 } else { (target / 2).max(1) };
                    manifest("application/vnd.apple.mpegurl", &format!("max-age={max_age}"), playlist)
                }
                Ok(Found::Later) => retry_later(),
                Ok(Found::Never) => not_found("no such rendition"),
                Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
            }
        }
        Target::Init(epoch, id) => match live.init(epoch, &id) {
            Some(init) => {
                media(Object::complete(init), live.media_type(&id), &format!("\"{epoch}-{id}-init\""))
            }
            None => not_found("no such init segment"),
        },
        Target::Segment(epoch, id, number) => {
            let found =
                wait(shared, live, || Ok::<_, std::convert::Infallible>(live.segment(epoch, &id, number)))
                    .await;
            match found {
                Ok(Found::Ready(object)) => {
                    media(object, live.media_type(&id), &format!("\"{epoch}-{id}-{number}\""))
                }
                Ok(Found::Later) => retry_later(),
                Ok(Found::Never) => not_found("no such segment"),
            }
        }
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

fn manifest(content_type: &'static str, cache_control: &str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::Full(text.into()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, header(cache_control));
    response
}

fn media(object: Object, media_type: &'static str, etag: &str) -> Response<Body> {
    let mut response = Response::new(Body::Object(object.read(0..u64::MAX)));
    let headers = response.headers_mut();
    if object.progress().end == media::object::End::Complete {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(object.progress().len));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(IMMUTABLE));
    headers.insert(ETAG, header(etag));
    response
}

fn not_found(why: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::NOT_FOUND, why);
    // What is missing now may be there in a moment: a failover, a stream about to begin.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
    response
}

fn retry_later() -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "the media did not come in time");
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn text(status: StatusCode, why: &str) -> Response<Body> {
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_empty(),
            Body::Object(reader) => reader.is_end_stream(),
            Body::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Object(reader) => reader.size_hint(),
            Body::Lines(_) => SizeHint::default(),
        }
    }
}
