//! The console: pages on the admin listener below `/console/`, and what they show that no other part of it answers:
//! `/admin/streams`, `/admin/streams/{name}`, its `thumbnail.jpg`, and `/admin/history`. They only read; changes go the ways that the command
//! line goes.

mod history;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cluster::Member;
use cluster::record::{self, STREAMS, StreamRecord};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use media::StreamName;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use crate::adapters::{self, CONSOLE};
use crate::streams::Streams;
use crate::viewers::Viewers;
use history::History;

/// Streams that one answer lists.
const MAX_LISTED: usize = 500;

/// What a stream's picture is called, below the stream.
const PICTURE: &str = "/thumbnail.jpg";

/// Nothing but what this listener serves; no page of others may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Failure = (StatusCode, String);

/// What the console shows.
pub(crate) struct Console {
    member: Member,
    streams: Streams,
    viewers: Viewers,
    history: Mutex<History>,
}

impl Console {
    pub(crate) fn new(member: Member, streams: Streams, viewers: Viewers) -> Console {
        Console { member, streams, viewers, history: Mutex::default() }
    }

    /// Whether a path is answered here.
    pub(crate) fn has(path: &str) -> bool {
        matches!(path, "/" | "/console" | "/admin/history" | "/admin/streams")
            || path.starts_with("/console/")
            || path.starts_with("/admin/streams/")
    }

    /// Answers a request for such a path.
    pub(crate) async fn answer(&self, head: &http::request::Parts) -> Response<Full<Bytes>> {
        let path = head.uri.path();
        let answered = match path {
            _ if !matches!(head.method, Method::GET | Method::HEAD) => {
                Err((StatusCode::METHOD_NOT_ALLOWED, "read with GET".into()))
            }
            "/" | "/console" => return moved("/console/"),
            "/admin/streams" => self.list().await,
            "/admin/history" => self.since(head.uri.query().unwrap_or_default()),
            _ if path.ends_with(PICTURE) && path.starts_with("/admin/streams/") => match self.picture(path) {
                Ok(picture) => return picture,
                Err(failure) => Err(failure),
            },
            _ => match (path.strip_prefix("/console/"), path.strip_prefix("/admin/streams/")) {
                (Some(name), _) => return page(name, &head.headers),
                (None, name) => self.one(name.unwrap_or_default()).await,
            },
        };
        let (status, body) = match answered {
            Ok(body) => (StatusCode::OK, body),
            Err((status, problem)) => (status, json!({ "problems": [problem] })),
        };
        let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    /// Takes samples for the charts, for ever.
    pub(crate) async fn sample(&self, registry: &Registry) {
        let mut every = tokio::time::interval(history::INTERVAL);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let mut text = String::new();
            if prometheus_client::encoding::text::encode(&mut text, registry).is_ok() {
                self.lock().sample(since_1970().as_secs(), &text);
            }
        }
    }

    fn since(&self, query: &str) -> Result<Value, Failure> {
        let after = match query {
            "" => Some(0),
            query => query.strip_prefix("after=").and_then(|after| after.parse().ok()),
        };
        let after = after.ok_or((
            StatusCode::UNPROCESSABLE_ENTITY,
            "the query may be after=SECONDS, counted from 1970".to_owned(),
        ))?;
        Ok(self.lock().since(after))
    }

    /// Streams of the whole fleet, by name.
    async fn list(&self) -> Result<Value, Failure> {
        let store = self.member.store();
        let listing = store.list(STREAMS).await.map_err(unreachable)?;
        let total = listing.entries.len();
        let streams = listing.entries.into_iter().take(MAX_LISTED);
        let streams = streams.filter_map(|entry| {
            let name = entry.key.strip_prefix(STREAMS)?;
            let record: StreamRecord = record::read(&entry.key, &entry.value).ok()?;
            Some(self.stream(name, &record))
        });
        let mut answer = json!({ "total": total, "streams": streams.collect::<Vec<_>>() });
        self.viewers.mark(&mut answer);
        Ok(answer)
    }

    async fn one(&self, name: &str) -> Result<Value, Failure> {
        let stream = name.parse::<StreamName>().ok();
        let stream = stream.ok_or((StatusCode::NOT_FOUND, format!("{name:?} is no name of a stream")))?;
        let key = record::stream_key(stream.as_str());
        let entry = self.member.store().get(&key).await.map_err(unreachable)?;
        let entry = entry.ok_or((StatusCode::NOT_FOUND, format!("there is no stream {stream}")))?;
        let found: StreamRecord = record::read(&entry.key, &entry.value)
            .map_err(|problem| (StatusCode::INTERNAL_SERVER_ERROR, problem))?;
        let mut answer = self.stream(stream.as_str(), &found);
        self.viewers.mark(&mut answer);
        Ok(answer)
    }

    /// The newest picture of a stream that this node owns.
    fn picture(&self, path: &str) -> Result<Response<Full<Bytes>>, Failure> {
        let name = path.strip_prefix("/admin/streams/").and_then(|path| path.strip_suffix(PICTURE));
        let stream = name.and_then(|name| name.parse::<StreamName>().ok());
        let found =
            self.streams.origin.as_ref().zip(stream).and_then(|(origin, stream)| origin.picture(&stream));
        let why = "there is no picture of this stream here: its owner has it, if any of it is decoded";
        let picture = found.ok_or((StatusCode::NOT_FOUND, why.to_owned()))?;
        let mut response = Response::new(Full::new(picture.jpeg));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/jpeg"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }

    /// What the store has of a stream, and what this node knows besides.
    fn stream(&self, name: &str, record: &StreamRecord) -> Value {
        let stream: Option<StreamName> = name.parse().ok();
        let origin = self.streams.origin.as_ref().zip(stream.as_ref());
        let now_ms = since_1970().as_millis() as i64;
        let ladder = origin.and_then(|(origin, stream)| origin.ladder(stream)).map(|rungs| {
            let shown = |rung: origin::control::Rung| {
                use origin::hls::Kind;
                let mut shown = json!({
                    "name": rung.id.as_str(),
                    "codec": rung.codec,
                    "bitrate_bps": rung.bitrate_bps,
                    "newest_segment": rung.newest.map(|number| number.0),
                    "gap": rung.is_gap,
                    "lag_ms": rung.until_unix_ms.map(|until| now_ms - until),
                });
                match rung.kind {
                    Kind::Video { width, height, frame_rate } => {
                        shown["width"] = width.into();
                        shown["height"] = height.into();
                        shown["fps"] = frame_rate.map(media::time::FrameRate::fps).into();
                    }
                    Kind::Audio { channels, sample_rate } => {
                        shown["channels"] = channels.into();
                        shown["sample_rate"] = sample_rate.into();
                    }
                }
                shown
            };
            rungs.into_iter().map(shown).collect::<Vec<_>>()
        });
        let picture = origin.and_then(|(origin, stream)| origin.picture(stream));
        let ingest = self.streams.board.as_ref().and_then(|board| {
            let (listed, _) = board.list(Some(name));
            listed.into_iter().next_back().map(|(_, entry)| json!(entry))
        });
        json!({
            "name": name,
            "state": record.state,
            "owner": record.owner,
            "address": record.address,
            "epoch": record.epoch,
            "updated_unix_ms": record.updated,
            "ladder": ladder,
            "thumbnail": picture.map(|picture| format!("{}-{}", picture.epoch, picture.pts)),
            "ingest": ingest,
            "viewers": stream.as_ref().and_then(|stream| self.viewers.of(stream)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreachable(error: cluster::store::Error) -> Failure {
    (StatusCode::SERVICE_UNAVAILABLE, format!("the store does not answer: {error}"))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn moved(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static(to));
    response
}

fn page(name: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let name = if name.is_empty() { "index.html" } else { name };
    let mut response = adapters::asset(CONSOLE, name, headers).map(Full::new);
    let out = response.headers_mut();
    out.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
