//! The operators' listener: `/healthz`, `/readyz`, `/metrics`, how the node stands at `/admin/status` and its end at
//! `/admin/drain` ([`crate::status`]), the cache policy at `/admin/policy`, purges at `/admin/purge`; broadcasts are for
//! [`crate::streams`] and, under `/v1/`, for [`crate::api`], pages for [`crate::console`].
//!
//! It is plain HTTP on a loopback address, so whoever may log in here may use it; a web page that happens to be open here
//! may not, but for the console's own. Changes must say that they are JSON, which no form of another page can without being
//! asked first; requests that a page of another origin caused are refused; and the host must be this machine's own name for
//! itself, so that no name of someone else's that resolves to it will do.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::member::Contact;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::console::Console;
use crate::operator::{self, Operator, Refusal};
use crate::status::Status;
use crate::streams::Streams;

/// Operators and their scrapers, nobody else.
const LIMITS: net::Limits = net::Limits { max_connections: 256, handshake_timeout: Duration::from_secs(10) };

/// A scrape takes milliseconds.
const DRAIN: Duration = Duration::from_secs(1);

/// Largest request body, in bytes: 64 classes and 256 prefixes of ordinary length have some 60 KiB.
const MAX_BODY_BYTES: usize = 256 << 10;

/// For a request body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(crate) struct Admin {
    listener: net::Listener,
    state: Arc<State>,
}

struct State {
    registry: Registry,
    ready: Arc<AtomicBool>,
    operator: Operator,
    streams: Streams,
    store: watch::Receiver<Contact>,
    archive: archive::Sink,
    api: Arc<Api>,
    status: Status,
    console: Console,
}

/// What the admin listener shows and serves of other parts of the node.
pub(crate) struct Parts {
    /// Whether the cluster's store can be reached.
    pub(crate) store: watch::Receiver<Contact>,
    /// How the archive fares.
    pub(crate) archive: archive::Sink,
    /// The Live API.
    pub(crate) api: Arc<Api>,
    /// How the node stands.
    pub(crate) status: Status,
    /// The pages for operators.
    pub(crate) console: Console,
}

impl Admin {
    pub(crate) async fn bind(
        addr: SocketAddr,
        registry: Registry,
        ready: Arc<AtomicBool>,
        operator: Operator,
        streams: Streams,
        parts: Parts,
    ) -> Result<Self, net::Error> {
        let Parts { store, archive, api, status, console } = parts;
        let state =
            Arc::new(State { registry, ready, operator, streams, store, archive, api, status, console });
        Ok(Self { listener: net::Listener::bind(addr, LIMITS).await?, state })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Admin { listener, state } = self;
        let sampled = state.clone();
        let sampling = async move { sampled.console.sample(&sampled.registry).await };
        let service = move |request, _peer| {
            let state = state.clone();
            async move { answer(&state, request).await }
        };
        tokio::select! {
            () = net::http::serve(listener, None, net::http::Options::default(), shutdown, DRAIN, service) => {}
            () = sampling => {}
        }
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if Streams::has(&path) {
        let (head, body) = request.into_parts();
        return match from_here(&head) {
            Ok(()) => state.streams.answer(Request::from_parts(head, body)).await,
            Err(failure) => failure.response(),
        };
    }
    if Api::has(&path) {
        let (head, body) = request.into_parts();
        return match from_here(&head) {
            Ok(()) => state.api.answer(Request::from_parts(head, body)).await,
            Err(Failure(status, why)) => state.api.refuse(status, why.join("; ")),
        };
    }
    if Console::has(&path) {
        let (head, _) = request.into_parts();
        return match from_here(&head) {
            Ok(()) => state.console.answer(&head).await,
            Err(failure) => failure.response(),
        };
    }
    if let Some(rest) = path.strip_prefix("/admin/") {
        return administer(state, rest, request).await.unwrap_or_else(Failure::response);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "read with GET\n".into());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path.as_str() {
        "/healthz" => text(StatusCode::OK, health(&state.archive)),
        "/readyz" if state.ready.load(Ordering::Relaxed) => match &*state.store.borrow() {
            // One that was there once is missed by new streams only: what runs goes on.
            Contact::Never(why) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("the store was never reached: {why}\n"))
            }
            Contact::Up | Contact::Lost(_) => text(StatusCode::OK, "ready\n".into()),
        },
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
        "/metrics" => metrics(&state.registry),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /console/, /healthz, /readyz, /metrics, /admin/status, /admin/streams, /admin/policy, /admin/purge, \
             /admin/drain and /v1/broadcasts\n"
                .into(),
        ),
    }
}

/// Live goes on whatever the archive does: it is said, and the node is healthy.
fn health(archive: &archive::Sink) -> String {
    match archive.health().and_then(|health| health.failing) {
        None => "ok\n".into(),
        Some((cause, times)) => format!("ok\narchive: cannot be written ({times} attempts): {cause}\n"),
    }
}

/// Why a request was not done: its status, and all reasons.
struct Failure(StatusCode, Vec<String>);

impl Failure {
    fn new(status: StatusCode, why: impl Into<String>) -> Failure {
        Failure(status, vec![why.into()])
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = json_of(self.0, &json!({ "problems": self.1 }));
        if self.0 == StatusCode::METHOD_NOT_ALLOWED {
            let allowed = self.1.iter().flat_map(|why| why.split(": ").skip(1)).next().unwrap_or_default();
            response.headers_mut().extend(HeaderValue::from_str(allowed).map(|v| (header::ALLOW, v)));
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::Problems(problems) => Failure(StatusCode::UNPROCESSABLE_ENTITY, problems),
            Refusal::NoTier(why) => Failure::new(StatusCode::NOT_FOUND, why),
            Refusal::Changed => Failure::new(
                StatusCode::PRECONDITION_FAILED,
                "the policy has changed since: read it again, and send its ETag as If-Match",
            ),
        }
    }
}

/// What `/admin/purge` takes, in the query or as JSON.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Purge {
    prefix: Option<String>,
    except: Option<String>,
    tier: Option<String>,
}

async fn administer(
    state: &State,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Failure> {
    let operator = &state.operator;
    let (head, body) = request.into_parts();
    from_here(&head)?;
    let (what, tier) = match path.split_once('/') {
        Some((what, tier)) if what == "policy" && !tier.is_empty() => (what, Some(tier)),
        Some(_) => ("", None),
        None => (path, None),
    };
    match (what, &head.method) {
        ("policy", &Method::GET | &Method::HEAD) => Ok(policy(&operator.policy(tier)?)),
        ("policy", &Method::PUT) => {
            let wanted = json_body(&head.headers, body).await?;
            let tag = head.headers.get(header::IF_MATCH).map(|tag| String::from_utf8_lossy(tag.as_bytes()));
            let (operator, tier) = (operator.clone(), tier.map(str::to_owned));
            let tag = tag.map(std::borrow::Cow::into_owned);
            let change = move || {
                operator.set_policy(tier.as_deref(), wanted.unwrap_or_default(), tag.as_deref())?;
                operator.policy(tier.as_deref())
            };
            Ok(policy(&aside(change).await?))
        }
        ("purge", &Method::POST) => {
            let purge = match json_body(&head.headers, body).await? {
                Some(value) => serde_json::from_value(value)
                    .map_err(|error| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?,
                None => purge_of(head.uri.query().unwrap_or_default())?,
            };
            let Purge { prefix, except, tier } = purge;
            let Some(prefix) = prefix else {
                let why = "prefix: is missing; say ?prefix=/live/demo/ or {\"prefix\": \"/live/demo/\"}";
                return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why));
            };
            let operator = operator.clone();
            let purge = move || operator.purge(tier.as_deref(), &prefix, except.as_deref());
            let counts = aside(purge).await?;
            Ok(json_of(StatusCode::OK, &json!({ "purged": counts })))
        }
        ("status", &Method::GET | &Method::HEAD) => Ok(json_of(StatusCode::OK, &state.status.show())),
        ("drain", &Method::POST) => {
            json_body(&head.headers, body).await?;
            Ok(json_of(StatusCode::ACCEPTED, &state.status.drain()))
        }
        ("playback", &Method::GET | &Method::HEAD) => match operator.playing() {
            Some(streams) => Ok(json_of(StatusCode::OK, &json!({ "streams": streams }))),
            None => Err(Failure::new(StatusCode::NOT_FOUND, "this node has no edge: no players come here")),
        },
        ("playback", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("status", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("drain", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST")),
        ("policy", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD, PUT")),
        ("purge", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST")),
        _ => {
            let there = "there are /admin/status, /admin/policy, /admin/policy/{tier}, /admin/purge, /admin/drain, \
                 /admin/playback, /admin/ingest, /admin/latency and /admin/revoke";
            Err(Failure::new(StatusCode::NOT_FOUND, there))
        }
    }
}

/// Does what goes through all names that are kept, not on the threads that serve.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??)
}

/// Refuses what a web page may have caused.
fn from_here(head: &http::request::Parts) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::new(StatusCode::FORBIDDEN, why));
    let named = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = head.uri.authority().map(http::uri::Authority::as_str).or(named).unwrap_or_default();
    if !is_this_machine(host) {
        return refuse(format!("host {host:?} is not this machine: use 127.0.0.1, [::1] or localhost"));
    }
    if let Some(origin) = head.headers.get(header::ORIGIN) {
        // The console's own pages say where they are from when they change something.
        let own = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|of| of == host);
        if !own {
            return refuse("requests of other sites' pages (by Origin) are refused".into());
        }
    }
    let site = head.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| site != b"none" && site != b"same-origin") {
        return refuse("requests of other sites (by Sec-Fetch-Site) are refused".into());
    }
    Ok(())
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// The body of a change; `None`: it is empty.
async fn json_body(headers: &HeaderMap, body: Incoming) -> Result<Option<Value>, Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let why = "send Content-Type: application/json, also with an empty body";
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let too_large =
        || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds {MAX_BODY_BYTES} bytes"));
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => return Err(Failure::new(StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => return Err(Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let value = serde_json::from_slice(&body);
    value.map(Some).map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("not JSON: {error}")))
}

/// `prefix=/live/demo/&tier=edge`. Nothing is decoded: names are matched as they stand in requests.
fn purge_of(query: &str) -> Result<Purge, Failure> {
    let mut purge = Purge::default();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let field = match name {
            "prefix" => &mut purge.prefix,
            "except" => &mut purge.except,
            "tier" => &mut purge.tier,
            _ => {
                let why = format!("{name}: there are prefix, except and tier");
                return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why));
            }
        };
        *field = Some(value.to_owned());
    }
    Ok(purge)
}

fn policy(value: &Value) -> Response<Full<Bytes>> {
    let mut response = json_of(StatusCode::OK, value);
    response
        .headers_mut()
        .extend(HeaderValue::try_from(operator::tag_of(value)).map(|tag| (header::ETAG, tag)));
    response
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, registry) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, out);
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(open_metrics));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn json_of(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(status, format!("{value:#}\n"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for host in ["127.0.0.1", "127.0.0.1:9090", "localhost:9090", "LocalHost", "[::1]:9090", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["", "example.com", "localhost.example.com:9090", "10.0.0.1:9090", "127.0.0.1.example.com"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
