//! The operators' listener: `/healthz`, `/readyz`, `/metrics`, how the node stands at `/admin/status` and its end at
//! `/admin/drain` ([`crate::status`]), the configuration read again at `/admin/reload` ([`crate::reload`]), the cache policy at `/admin/policy`, purges at `/admin/purge`; broadcasts are for
//! [`crate::streams`] and, under `/v1/`, for [`crate::api`], pages for [`crate::console`].
//!
//! Every request passes the [`gate`] first: on a loopback address without tokens, whoever may log in here may use it; with
//! tokens, who has one, as far as its role goes ([`roles`]). A web page that happens to be open here may not, but for the
//! console's own: requests that a page of another site caused are refused ([`foreign`]), and changes must say that they are
//! JSON, which no form of another page can without being asked first. Each change goes into the [`audit`].

mod attempts;
mod audit;
pub(crate) mod config;
mod foreign;
mod gate;
mod metrics;
mod roles;
mod sessions;
mod tokens;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::member::Contact;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use net::Identity;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::api::Api;
use crate::console::Console;
use crate::operator::{self, Operator, Refusal};
use crate::reload::{Cause, Reloader};
use crate::status::Status;
use crate::streams::Streams;
use crate::viewers::Viewers;
use crate::whatif::ask::WhatIf;
pub(crate) use audit::Details;
use audit::{Audit, Entry};
use gate::{Caller, Gate, Refused};
pub(crate) use tokens::{Token, Tokens};

/// Operators and their scrapers, nobody else.
const LIMITS: net::Limits = net::Limits { max_connections: 256, handshake_timeout: Duration::from_secs(10) };

/// Connections from one address (IPv6: one /64) where others reach the listener: nobody keeps operators out by holding all.
const MAX_PER_ADDRESS: u32 = 64;

/// A scrape takes milliseconds.
const DRAIN: Duration = Duration::from_secs(1);

/// Largest request body, in bytes: 64 classes and 256 prefixes of ordinary length have some 60 KiB.
const MAX_BODY_BYTES: usize = 256 << 10;

/// For a request body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest body of a request to sign in, in bytes: anyone may send it.
const MAX_SESSION_BYTES: usize = 4096;

/// Changes at once. A change that has begun goes on to its end, and into the audit, also when who asked for it has left.
const MAX_CHANGES: usize = 64;

pub(crate) struct Admin {
    listener: net::Listener,
    state: Arc<State>,
}

struct State {
    access: Access,
    changing: Arc<Semaphore>,
    changes: TaskTracker,
    registry: Registry,
    ready: Arc<AtomicBool>,
    operator: Operator,
    reloader: Reloader,
    streams: Streams,
    store: watch::Receiver<Contact>,
    archive: archive::Sink,
    api: Arc<Api>,
    status: Status,
    console: Console,
    viewers: Viewers,
    whatif: WhatIf,
}

/// Who may ask, and what is noted of it.
pub(crate) struct Access {
    tokens: Arc<Tokens>,
    gate: Gate,
    audit: Audit,
    identity: Option<Identity>,
    tls: Option<Arc<rustls::ServerConfig>>,
    metrics: metrics::Metrics,
}

impl Access {
    /// Reads the tokens and the certificate of a configuration. `ca` is the fleet's.
    pub(crate) fn open(config: &config::Admin, ca: &Path, registry: &mut Registry) -> anyhow::Result<Access> {
        let metrics = metrics::Metrics::register(registry);
        let tokens = Arc::new(Tokens::open(config)?);
        let identity = config.files(ca).map(|files| Identity::load(&files)).transpose()?;
        let serve = |identity: &Identity| identity.server(net::tls::Clients::Anyone, &[b"h2", b"http/1.1"]);
        let tls = identity.as_ref().map(serve).transpose()?;
        let gate = Gate::new(tokens.clone(), tls.is_some(), metrics.clone());
        let audit = Audit::open(config.audit.as_deref(), metrics.clone())?;
        Ok(Access { tokens, gate, audit, identity, tls, metrics })
    }

    /// What its listener shows, if that is HTTPS.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }

    /// The tokens in force.
    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.tokens.clone()
    }
}

/// What the admin listener shows and serves of other parts of the node.
pub(crate) struct Parts {
    /// Who may ask.
    pub(crate) access: Access,
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
    /// How many watch.
    pub(crate) viewers: Viewers,
    /// Reads the configuration again.
    pub(crate) reloader: Reloader,
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
        let Parts { access, store, archive, api, status, console, viewers, reloader } = parts;
        let (changing, changes) = (Arc::new(Semaphore::new(MAX_CHANGES)), TaskTracker::new());
        let state = State {
            access,
            changing,
            changes,
            registry,
            ready,
            operator,
            reloader,
            streams,
            store,
            archive,
            api,
            status,
            console,
            viewers,
            whatif: WhatIf::default(),
        };
        let state = Arc::new(state);
        let connections = if addr.ip().is_loopback() { 0 } else { MAX_PER_ADDRESS };
        let rules = net::PerAddress { connections, ..net::PerAddress::default() };
        let guard = net::Guard::new(rules, Arc::new(state.access.metrics.clone()));
        Ok(Self { listener: net::Listener::named("admin", addr, LIMITS).await?.guarded(guard), state })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Admin { listener, state } = self;
        let sampled = state.clone();
        let sampling = async move { sampled.console.sample(&sampled.registry).await };
        let (tls, changes) = (state.access.tls.clone(), state.changes.clone());
        let service = move |request, peer| {
            let state = state.clone();
            async move { guarded(state, request, peer).await }
        };
        tokio::select! {
            () = net::http::serve(listener, tls, net::http::Options::default(), shutdown, DRAIN, service) => {}
            () = sampling => {}
        }
        changes.close();
        if tokio::time::timeout(DRAIN, changes.wait()).await.is_err() {
            error!(left = changes.len(), "changes that operators asked for were not done in time");
        }
    }
}

/// Answers a request that may be made, and notes it if it is a change.
async fn guarded(state: Arc<State>, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reads = roles::reads(&head.method);
    let mut response = match state.access.gate.admit(&head, peer, Instant::now()) {
        Err(refused) => {
            let response = refusal(&state, &head, &refused);
            // Whoever is nobody here could fill the audit at will.
            if let Some(caller) = refused.caller.filter(|_| !reads) {
                state.access.audit.note(Entry::new(&caller, &head), &response).await;
            }
            response
        }
        Ok(_) if gate::is_session(&head.method, head.uri.path()) => session(&state, &head, body, peer).await,
        // It changes nothing, and ends when nobody waits for it any more.
        Ok(_) if head.uri.path() == WhatIf::PATH => answer(&state, Request::from_parts(head, body)).await,
        Ok(Some(caller)) if !reads => change(&state, &caller, Request::from_parts(head, body)).await,
        Ok(_) => answer(&state, Request::from_parts(head, body)).await,
    };
    protect(response.headers_mut());
    response
}

/// In the shape that the rest of the path has.
fn refusal(state: &State, head: &http::request::Parts, refused: &Refused) -> Response<Full<Bytes>> {
    let mut response = match Api::has(head.uri.path()) {
        true => state.api.refuse(refused.status, refused.why.clone()),
        false => Failure::new(refused.status, refused.why.clone()).response(),
    };
    refused.mark(response.headers_mut());
    response
}

/// Makes a change, in a task of its own, so that it comes to its end and into the audit.
async fn change(state: &Arc<State>, caller: &Caller, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Ok(place) = state.changing.clone().try_acquire_owned() else {
        let why = format!("{MAX_CHANGES} changes are being made: try again in a moment");
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, why).response();
    };
    let (head, body) = request.into_parts();
    let entry = Entry::new(caller, &head);
    let (state, tracker) = (state.clone(), state.changes.clone());
    let done = tracker.spawn(async move {
        let _place = place;
        let work = tokio::spawn({
            let state = state.clone();
            async move { answer(&state, Request::from_parts(head, body)).await }
        });
        let failed = |why: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why).response();
        let response = work.await.unwrap_or_else(|error| failed(error.to_string()));
        state.access.audit.note(entry, &response).await;
        response
    });
    done.await
        .unwrap_or_else(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).response())
}

/// What `POST /admin/session` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    token: String,
}

/// Signs in and out, and says who is signed in.
async fn session(
    state: &State,
    head: &http::request::Parts,
    body: Incoming,
    peer: SocketAddr,
) -> Response<Full<Bytes>> {
    let gate = &state.access.gate;
    match head.method {
        Method::POST => {
            let body = match json_body(&head.headers, body, MAX_SESSION_BYTES).await {
                Ok(body) => body,
                Err(failure) => return failure.response(),
            };
            // What it says instead is not repeated: it may be a secret.
            let Ok(SignIn { token }) = serde_json::from_value(body.unwrap_or_default()) else {
                let why = "send {\"token\": \"...\"}";
                return Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why).response();
            };
            match gate.sign_in(head, &token, peer, Instant::now()) {
                Ok((response, caller)) => {
                    state.access.audit.note(Entry::new(&caller, head), &response).await;
                    response
                }
                Err(refused) => refusal(state, head, &refused),
            }
        }
        Method::DELETE => gate.sign_out(head),
        _ => gate.who(head, peer, Instant::now()).unwrap_or_else(|refused| refusal(state, head, &refused)),
    }
}

/// What browsers may do with an answer: nothing but show it to this listener's own pages.
fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if Streams::has(&path) {
        return state.streams.answer(request).await;
    }
    if Api::has(&path) {
        return state.api.answer(request).await;
    }
    if Console::has(&path) {
        return state.console.answer(&request.into_parts().0).await;
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
             /admin/drain, /admin/reload and /v1/broadcasts\n"
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
    let (what, tier) = match path.split_once('/') {
        Some((what, tier)) if what == "policy" && !tier.is_empty() => (what, Some(tier)),
        Some(_) => ("", None),
        None => (path, None),
    };
    match (what, &head.method) {
        ("policy", &Method::GET | &Method::HEAD) => Ok(policy(&operator.policy(tier)?)),
        ("policy", &Method::PUT) => {
            let wanted = json_body(&head.headers, body, MAX_BODY_BYTES).await?;
            let tag = head.headers.get(header::IF_MATCH).map(|tag| String::from_utf8_lossy(tag.as_bytes()));
            let (operator, tier) = (operator.clone(), tier.map(str::to_owned));
            let tag = tag.map(std::borrow::Cow::into_owned);
            let change = move || {
                let changes =
                    operator.set_policy(tier.as_deref(), wanted.unwrap_or_default(), tag.as_deref())?;
                Ok((operator.policy(tier.as_deref())?, changes))
            };
            let (now, changes) = aside(change).await?;
            Ok(noted(policy(&now), changes))
        }
        ("purge", &Method::POST) => {
            let purge = match json_body(&head.headers, body, MAX_BODY_BYTES).await? {
                Some(value) => serde_json::from_value(value)
                    .map_err(|error| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?,
                None => purge_of(head.uri.query().unwrap_or_default())?,
            };
            let Purge { prefix, except, tier } = purge;
            let Some(prefix) = prefix else {
                let why = "prefix: is missing; say ?prefix=/live/demo/ or {\"prefix\": \"/live/demo/\"}";
                return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why));
            };
            let but = except.as_ref().map(|except| format!(" but {except}")).unwrap_or_default();
            let what = format!("{prefix}{but}");
            let operator = operator.clone();
            let purge = move || operator.purge(tier.as_deref(), &prefix, except.as_deref());
            let counts = aside(purge).await?;
            let counted = counts.iter().map(|(tier, count)| format!("{tier}: {count} of {what}")).collect();
            Ok(noted(json_of(StatusCode::OK, &json!({ "purged": counts })), counted))
        }
        ("what-if", &Method::GET | &Method::HEAD) => {
            let known = state.whatif.known(operator, &state.registry);
            Ok(json_of(StatusCode::OK, &known.map_err(|(status, why)| Failure(status, why))?))
        }
        ("what-if", &Method::POST) => {
            let wanted = json_body(&head.headers, body, MAX_BODY_BYTES).await?.unwrap_or_default();
            let answered = state.whatif.answer(operator, &state.registry, wanted).await;
            Ok(json_of(StatusCode::OK, &answered.map_err(|(status, why)| Failure(status, why))?))
        }
        ("what-if", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD, POST")),
        ("status", &Method::GET | &Method::HEAD) => Ok(json_of(StatusCode::OK, &state.status.show())),
        ("drain", &Method::POST) => {
            json_body(&head.headers, body, MAX_BODY_BYTES).await?;
            Ok(json_of(StatusCode::ACCEPTED, &state.status.drain()))
        }
        ("audit", &Method::GET | &Method::HEAD) => {
            let shown = state.access.audit.show(head.uri.query().unwrap_or_default());
            let shown = shown.map_err(|why| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why))?;
            Ok(json_of(StatusCode::OK, &shown))
        }
        ("audit", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("reload", &Method::POST) => {
            json_body(&head.headers, body, MAX_BODY_BYTES).await?;
            let reloader = state.reloader.clone();
            let reload = move || reloader.reload(Cause::Operator).map_err(Refusal::Problems);
            let reloaded = aside(reload).await?;
            Ok(noted(json_of(StatusCode::OK, &reloaded.show()), reloaded.words()))
        }
        ("reload", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST")),
        ("playback", &Method::GET | &Method::HEAD) => match operator.playing() {
            Some(streams) => Ok(json_of(StatusCode::OK, &json!({ "streams": streams }))),
            None => Err(Failure::new(StatusCode::NOT_FOUND, "this node has no edge: no players come here")),
        },
        ("viewers", &Method::GET | &Method::HEAD) => {
            let viewers = state.viewers.clone();
            match aside(move || Ok(viewers.show())).await? {
                Some(answer) => Ok(json_of(StatusCode::OK, &answer)),
                None => {
                    Err(Failure::new(StatusCode::NOT_FOUND, "this node has no edge: no viewers come here"))
                }
            }
        }
        ("viewers", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("playback", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("status", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD")),
        ("drain", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST")),
        ("policy", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: GET, HEAD, PUT")),
        ("purge", _) => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "allowed: POST")),
        _ => {
            let there = "there are /admin/status, /admin/policy, /admin/policy/{tier}, /admin/purge, /admin/drain, \
                 /admin/reload, /admin/playback, /admin/viewers, /admin/what-if, /admin/ingest, /admin/latency, /admin/revoke, /admin/audit and /admin/session";
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

/// With what the audit should say of it.
fn noted(mut response: Response<Full<Bytes>>, details: Vec<String>) -> Response<Full<Bytes>> {
    response.extensions_mut().insert(Details(details));
    response
}

/// The body of a change; `None`: it is empty.
async fn json_body(headers: &HeaderMap, body: Incoming, most: usize) -> Result<Option<Value>, Failure> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let why = "send Content-Type: application/json, also with an empty body";
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    let too_large = || Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds {most} bytes"));
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await;
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
