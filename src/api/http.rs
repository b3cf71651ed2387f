//! The Live API's requests and answers.

use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use bytes::Bytes;
use cluster::store::{Error, Outcome, Txn};
use cluster::token::{Keys, Terms};
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use ingest::health::Board;
use media::StreamName;
use net::Current;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::broadcast::{Broadcast, Step, Token};
use super::create::{self, Create, Page};
use super::events::{EndedBy, State};
use super::metrics::{Metrics, Status};
use super::outbox::{Outbox, Stepped};
use super::problem::{Problem, Wrong};
use super::recordings::MAX_REMOVALS;
use super::records::{self, Records, Removal};
use super::urls::Urls;
use crate::secrets;

/// The document that describes this API (OpenAPI 3.1).
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// Where it is served.
const DOCUMENT_PATH: &str = "/v1/openapi.json";

/// Largest request body, in bytes: `metadata` at its largest, escaped.
const MAX_BODY_BYTES: usize = 64 << 10;

/// For a request body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// For the store to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a change is tried again when the broadcast changes meanwhile.
const ATTEMPTS: usize = 8;

/// Longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_BYTES: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a request is answered from.
pub(crate) struct Api {
    pub(crate) records: Arc<Records>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) urls: Current<Urls>,
    pub(crate) keys: Arc<Keys>,
    /// How the broadcasts come in, where this node takes them.
    pub(crate) board: Option<Board>,
    pub(crate) max_broadcasts: usize,
    pub(crate) metrics: Metrics,
}

/// What an idempotency key stands for.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    broadcast: String,
    /// Hash of what was asked.
    request: String,
}

type Answer = Result<Response<Full<Bytes>>, Problem>;

impl Api {
    /// Whether a path is answered here.
    pub(crate) fn has(path: &str) -> bool {
        path == "/v1" || path.starts_with("/v1/")
    }

    /// Answers a request for such a path, of whoever may ask.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answered = match tokio::time::timeout(BODY_TIMEOUT + STORE_TIMEOUT, self.act(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Problem::unavailable("the store did not answer in time")),
        };
        let response = answered.unwrap_or_else(Problem::response);
        self.count(response.status());
        response
    }

    /// The answer to a request that may not be made.
    pub(crate) fn refuse(&self, status: StatusCode, why: String) -> Response<Full<Bytes>> {
        self.count(status);
        Problem::new(status, why).response()
    }

    pub(crate) fn count(&self, status: StatusCode) {
        self.metrics.requests.get_or_create(&Status { status: status.as_u16() }).inc();
    }

    async fn act(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if path == DOCUMENT_PATH {
            return match head.method {
                Method::GET | Method::HEAD => Ok(document()),
                _ => Err(Problem::method("GET, HEAD")),
            };
        }
        let rest = path.strip_prefix("/v1/broadcasts").ok_or_else(nowhere)?;
        if !matches!(rest.bytes().next(), None | Some(b'/')) {
            return Err(nowhere());
        }
        let steps: Vec<&str> = rest.split('/').skip(1).collect();
        match (steps.as_slice(), &head.method) {
            ([], &Method::GET | &Method::HEAD) => self.known()?.list(head.uri.query().unwrap_or_default()),
            ([], &Method::POST) => {
                let body = json_body(&head.headers, body).await?;
                self.known()?.create(&head.headers, body).await
            }
            ([], _) => Err(Problem::method("GET, HEAD, POST")),
            ([id], &Method::GET | &Method::HEAD) => {
                no_query(&head)?;
                self.known()?.show(id, &head.headers)
            }
            ([id], &Method::DELETE) => {
                let with_recording = with_recording(head.uri.query().unwrap_or_default())?;
                self.known()?.delete(id, &head.headers, with_recording).await
            }
            ([_], _) => Err(Problem::method("GET, HEAD, DELETE")),
            ([id, "end"], &Method::POST) => {
                no_query(&head)?;
                let body = json_body(&head.headers, body).await?;
                if !body.as_object().is_some_and(serde_json::Map::is_empty) {
                    return Err(Problem::fields(vec![Wrong::body("", "the body must be {} or empty")]));
                }
                self.known()?.end(id, &head.headers).await
            }
            ([_, "end"], _) => Err(Problem::method("POST")),
            _ => Err(nowhere()),
        }
    }

    /// Itself, once it knows what is there.
    fn known(&self) -> Result<&Api, Problem> {
        if self.records.known() {
            Ok(self)
        } else {
            Err(Problem::unavailable("the store was not reached yet"))
        }
    }

    fn list(&self, query: &str) -> Answer {
        let page = Page::read(query).map_err(Problem::fields)?;
        let copy = self.records.copy();
        // Newest first.
        let before = page.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let all = copy.broadcasts.range::<str, _>((Bound::Unbounded, before));
        let wanted = |broadcast: &Broadcast| {
            page.state.is_none_or(|state| broadcast.state == state)
                && page.stream.as_ref().is_none_or(|stream| broadcast.stream == *stream)
        };
        let mut found = all.rev().filter(|(_, (_, broadcast))| wanted(broadcast));
        let listed: Vec<_> = found.by_ref().take(page.limit).collect();
        let mut answer =
            json!({ "broadcasts": listed.iter().map(|(_, (_, one))| one.view()).collect::<Vec<_>>() });
        if let Some((last, _)) = listed.last()
            && found.next().is_some()
        {
            answer["next"] = json!(last);
        }
        Ok(json_answer(StatusCode::OK, &answer))
    }

    fn find(&self, id: &str) -> Result<(u64, Arc<Broadcast>), Problem> {
        let found = create::is_id(id).then(|| self.records.copy().broadcasts.get(id).cloned()).flatten();
        found.ok_or_else(|| Problem::not_found("there is no such broadcast"))
    }

    fn show(&self, id: &str, headers: &HeaderMap) -> Answer {
        let (revision, broadcast) = self.find(id)?;
        let mut view = self.details(&broadcast, None);
        let health = self.health(&broadcast);
        // Health changes with every frame, and tokens of recordings with time: answers with them are never the same.
        let passing =
            health.is_some() || (self.urls.get().playback.is_some() && !broadcast.recordings.is_empty());
        if !passing && matches_tag(headers, &IF_NONE_MATCH, revision) {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().insert(ETAG, tag(revision));
            return Ok(response);
        }
        if let Some(health) = health {
            view["health"] = health;
        }
        let mut response = json_answer(StatusCode::OK, &view);
        response.headers_mut().insert(ETAG, tag(revision));
        Ok(response)
    }

    fn details(&self, broadcast: &Broadcast, region: Option<&str>) -> Value {
        let mut view = broadcast.view();
        view["ingest"] = self.urls.get().ingest(region, None);
        view["playback"] = self.urls.get().playback(broadcast, SystemTime::now());
        view
    }

    /// How the media comes in, if it comes in here.
    fn health(&self, broadcast: &Broadcast) -> Option<Value> {
        if broadcast.state != State::Live {
            return None;
        }
        let (listed, _) = self.board.as_ref()?.list(Some(broadcast.stream.as_str()));
        listed.into_iter().next().map(|(_, entry)| json!(entry.report))
    }

    async fn create(&self, headers: &HeaderMap, body: Value) -> Answer {
        let request = hash(body.to_string().as_bytes());
        let create = Create::read(body).map_err(Problem::fields)?;
        let key = match headers.get(IDEMPOTENCY_KEY) {
            None => None,
            Some(key) => Some(idempotency_key(key)?),
        };
        for _ in 0..ATTEMPTS {
            if let Some(key) = &key
                && let Some(made) = self.records.get(key).await.map_err(away)?
            {
                return self.made_before(&made.value, &request, &create).await;
            }
            let broadcast = new_broadcast(&create, key.as_deref())?;
            let id = &broadcast.id;
            let broadcast_key = records::broadcast_key(id);
            let stream_key = records::stream_key(broadcast.stream.as_str());
            // Before anything is kept: a node may have the public half of a key only.
            self.sign(&broadcast)?;
            let value = serde_json::to_string(&broadcast).expect("a record is JSON");
            let mut txn = Txn::new().if_absent(&broadcast_key).if_absent(&stream_key);
            txn = txn.put(&broadcast_key, value, None).put(&stream_key, id, None);
            if let Some(key) = &key {
                let made = Made { broadcast: id.clone(), request: request.clone() };
                let made = serde_json::to_string(&made).expect("a record is JSON");
                txn = txn.if_absent(key).put(key, made, None);
            }
            let txn = self.make_room(txn)?;
            match self.records.commit(txn).await.map_err(away)? {
                Outcome::Done(revision) => {
                    tracing::info!(broadcast = id, stream = %broadcast.stream, "broadcast created");
                    return self.created(&broadcast, revision, create.region.as_deref());
                }
                Outcome::Differs(there) => {
                    let made_meanwhile = key.is_some() && there.get(2).is_some_and(Option::is_some);
                    if let Some(Some(other)) = there.get(1)
                        && !made_meanwhile
                    {
                        let other = &other.value;
                        let why =
                            format!("stream {} has a broadcast that is not over, {other}", broadcast.stream);
                        return Err(Problem::conflict(Wrong::body("/stream", why)));
                    }
                }
            }
        }
        Err(Problem::unavailable("other requests of the same kind came in between"))
    }

    /// The answer that the first request with this key got.
    async fn made_before(&self, made: &str, request: &str, create: &Create) -> Answer {
        let made: Made = serde_json::from_str(made)
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        if made.request != request {
            let why = "was used for another request";
            return Err(Problem::fields(vec![Wrong::header("Idempotency-Key", why)]));
        }
        // Past the copy: another node may have made it a moment ago.
        let found = self.records.get(&records::broadcast_key(&made.broadcast)).await.map_err(away)?;
        let found = found.ok_or_else(|| Problem::not_found("the broadcast that it made is gone"))?;
        let revision = found.revision;
        let broadcast: Broadcast = serde_json::from_str(&found.value)
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        self.created(&broadcast, revision, create.region.as_deref())
    }

    /// Lets the oldest broadcast that is over go if there are too many.
    fn make_room(&self, txn: Txn) -> Result<Txn, Problem> {
        let copy = self.records.copy();
        if copy.broadcasts.len() < self.max_broadcasts {
            return Ok(txn);
        }
        match copy.broadcasts.values().find(|(_, broadcast)| !broadcast.open()) {
            Some((revision, oldest)) => {
                tracing::info!(
                    broadcast = oldest.id,
                    "the oldest broadcast that is over is forgotten for a new one"
                );
                Ok(forget(txn, *revision, oldest))
            }
            None => {
                let why = format!("all {} broadcasts are open: api.max_broadcasts", copy.broadcasts.len());
                Err(Problem::unavailable(why))
            }
        }
    }

    /// The one answer with the token in it: signed anew, since it is not kept, from what it says it is the same each time.
    fn created(&self, broadcast: &Broadcast, revision: u64, region: Option<&str>) -> Answer {
        let token = self.sign(broadcast)?;
        let key = format!("{}?token={token}", broadcast.stream);
        let mut view = self.details(broadcast, region);
        view["ingest"] = self.urls.get().ingest(region, Some(&key));
        view["token"]["value"] = token.into();
        view["stream_key"] = key.into();
        let mut response = json_answer(StatusCode::CREATED, &view);
        let headers = response.headers_mut();
        headers.insert(ETAG, tag(revision));
        headers.extend(
            HeaderValue::try_from(format!("/v1/broadcasts/{}", broadcast.id)).map(|at| (LOCATION, at)),
        );
        Ok(response)
    }

    fn sign(&self, broadcast: &Broadcast) -> Result<String, Problem> {
        let Token { id, issued, expires, max_bitrate_bps, max_height } = &broadcast.token;
        let terms = Terms { id: Some(id.clone()), max_bitrate: *max_bitrate_bps, max_height: *max_height };
        let issued_at = SystemTime::UNIX_EPOCH + Duration::from_secs(*issued);
        let ttl = Duration::from_secs(expires.saturating_sub(*issued));
        let token = self.keys.issue_on(broadcast.stream.as_str(), ttl, terms, issued_at);
        token.map_err(|error| Problem::unavailable(error.to_string()))
    }

    async fn end(&self, id: &str, headers: &HeaderMap) -> Answer {
        for _ in 0..ATTEMPTS {
            let (revision, broadcast) = self.find(id)?;
            if_match(headers, revision)?;
            if !broadcast.open() {
                return Ok(self.ended(&broadcast, revision));
            }
            let step = Step::End { at_ms: unix_ms(), by: EndedBy::Request };
            if let Stepped::Done(broadcast, revision) =
                self.outbox.step(revision, &broadcast, &step).await.map_err(away)?
            {
                return Ok(self.ended(&broadcast, revision));
            }
        }
        Err(Problem::unavailable("the broadcast changes all the time"))
    }

    fn ended(&self, broadcast: &Broadcast, revision: u64) -> Response<Full<Bytes>> {
        let mut response = json_answer(StatusCode::OK, &self.details(broadcast, None));
        response.headers_mut().insert(ETAG, tag(revision));
        response
    }

    async fn delete(&self, id: &str, headers: &HeaderMap, with_recording: bool) -> Answer {
        for _ in 0..ATTEMPTS {
            let (revision, broadcast) = self.find(id)?;
            if_match(headers, revision)?;
            if broadcast.open() {
                let why = format!("the broadcast is {}: end it first", broadcast.state.as_str());
                return Err(Problem::new(StatusCode::CONFLICT, why));
            }
            let txn = forget(Txn::new(), revision, &broadcast);
            let remove = with_recording && !broadcast.archives.is_empty();
            let txn = if remove { self.remove_recording(txn, &broadcast)? } else { txn };
            if let Outcome::Done(_) = self.records.commit(txn).await.map_err(away)? {
                tracing::info!(broadcast = id, with_recording, "broadcast deleted");
                let mut response = Response::new(Full::default());
                *response.status_mut() = if remove { StatusCode::ACCEPTED } else { StatusCode::NO_CONTENT };
                return Ok(response);
            }
        }
        Err(Problem::unavailable("the broadcast changes all the time"))
    }

    /// Has whoever keeps the recording of a broadcast remove it.
    fn remove_recording(&self, mut txn: Txn, broadcast: &Broadcast) -> Result<Txn, Problem> {
        let conflict = |why: String| Problem::new(StatusCode::CONFLICT, why);
        if broadcast.state != State::Archived {
            let why = "the recording is still being written: delete it once the broadcast is archived";
            return Err(conflict(why.into()));
        }
        let copy = self.records.copy();
        let mut others = copy.broadcasts.values().filter(|(_, other)| other.id != broadcast.id);
        let shares = |other: &Broadcast| other.archives.iter().any(|name| broadcast.archives.contains(name));
        if let Some((_, other)) = others.find(|(_, other)| shares(other)) {
            let why = format!("the recording is also that of broadcast {}: delete that first", other.id);
            return Err(conflict(why));
        }
        if copy.removals.len() + broadcast.archives.len() > MAX_REMOVALS {
            return Err(Problem::unavailable(format!(
                "{} recordings wait to be removed",
                copy.removals.len()
            )));
        }
        let removal = Removal { at_ms: unix_ms() };
        let value = serde_json::to_string(&removal).expect("a record is JSON");
        for recording in &broadcast.archives {
            txn = txn.put(records::removal_key(recording), &value, None);
        }
        Ok(txn)
    }
}

/// Whether a deletion is to take the recording along.
fn with_recording(query: &str) -> Result<bool, Problem> {
    match query {
        "" | "with_recording=false" => Ok(false),
        "with_recording=true" => Ok(true),
        _ => {
            let why = "there is with_recording here, true or false";
            Err(Problem::fields(vec![Wrong::parameter(parameter(query), why)]))
        }
    }
}

/// Takes a broadcast that is over away, and what its idempotency key stands for. What is still to be delivered of it stays.
fn forget(txn: Txn, revision: u64, broadcast: &Broadcast) -> Txn {
    let key = records::broadcast_key(&broadcast.id);
    let txn = txn.if_revision(&key, revision).delete(key);
    match &broadcast.idempotency {
        Some(key) => txn.delete(key),
        None => txn,
    }
}

fn new_broadcast(create: &Create, idempotency: Option<&str>) -> Result<Broadcast, Problem> {
    let now_ms = unix_ms();
    let random = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the system has no randomness");
    let id = format!("{now_ms:011x}{}", &secrets::random_id().map_err(random)?[..10]);
    let stream = match &create.stream {
        Some(stream) => stream.clone(),
        None => id
            .parse::<StreamName>()
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?,
    };
    let issued = now_ms / 1000;
    let token = Token {
        id: secrets::random_id().map_err(random)?,
        issued,
        expires: issued + create.token_ttl_seconds,
        max_bitrate_bps: create.max_bitrate_bps,
        max_height: create.max_height,
    };
    Ok(Broadcast {
        id,
        stream,
        title: create.title.clone(),
        metadata: create.metadata.clone(),
        token,
        idempotency: idempotency.map(str::to_owned),
        state: State::Created,
        created_ms: now_ms,
        started_ms: None,
        interrupted_ms: None,
        ended_ms: None,
        ended_by: None,
        owner: None,
        epoch: None,
        archives: Vec::new(),
        archived_ms: None,
        recordings: Vec::new(),
        events: 0,
    })
}

/// Where it is kept what an `Idempotency-Key` made.
fn idempotency_key(value: &HeaderValue) -> Result<String, Problem> {
    let good = |key: &&[u8]| {
        (1..=MAX_IDEMPOTENCY_BYTES).contains(&key.len())
            && key.iter().all(|byte| (b' '..=b'~').contains(byte))
    };
    let key = Some(value.as_bytes()).filter(good).ok_or_else(|| {
        let why = format!("must be 1 to {MAX_IDEMPOTENCY_BYTES} printable characters");
        Problem::fields(vec![Wrong::header("Idempotency-Key", why)])
    })?;
    Ok(records::idempotency_key(&hash(key)))
}

fn hash(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The body of a change: strictly JSON, so that no web page can send it without being asked first.
async fn json_body(headers: &HeaderMap, body: Incoming) -> Result<Value, Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let wrong = Wrong::header("Content-Type", "must be application/json, also with an empty body");
        let mut problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, wrong.detail.clone());
        problem.errors.push(wrong);
        return Err(problem);
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let why = format!("the body exceeds {MAX_BODY_BYTES} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Ok(Err(error)) => return Err(Problem::new(StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(json!({}));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))
}

fn no_query(head: &Parts) -> Result<(), Problem> {
    match head.uri.query().filter(|query| !query.is_empty()) {
        None => Ok(()),
        Some(query) => {
            Err(Problem::fields(vec![Wrong::parameter(parameter(query), "there are no parameters here")]))
        }
    }
}

/// The name of a query's first parameter, cut to what is safe to repeat.
fn parameter(query: &str) -> String {
    query.split(['=', '&']).next().unwrap_or_default().chars().take(64).collect()
}

/// A change that is meant for the state that its sender saw (RFC 9110, 13.1.1).
fn if_match(headers: &HeaderMap, revision: u64) -> Result<(), Problem> {
    if headers.contains_key(IF_MATCH) && !matches_tag(headers, &IF_MATCH, revision) {
        let why = "the broadcast has changed since: read it again, and send its ETag as If-Match";
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, why));
    }
    Ok(())
}

fn matches_tag(headers: &HeaderMap, name: &HeaderName, revision: u64) -> bool {
    let ours = tag(revision);
    let listed = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    listed
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim().as_bytes() == ours.as_bytes())
}

fn tag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("a number is a header")
}

fn nowhere() -> Problem {
    Problem::not_found(
        "there are /v1/broadcasts, /v1/broadcasts/{id}, /v1/broadcasts/{id}/end and /v1/openapi.json",
    )
}

fn away(error: Error) -> Problem {
    match error {
        Error::Refused(_) => Problem::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
        _ => Problem::unavailable(error.to_string()),
    }
}

fn document() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(DOCUMENT.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
