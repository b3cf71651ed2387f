//! What operators see of broadcasts and do to them, on the admin listener: `GET /admin/ingest`, `GET /admin/latency`,
//! `POST /admin/revoke`.

use std::time::Duration;

use bytes::Bytes;
use cluster::record::Which;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use ingest::health::Board;
use media::StreamName;
use media::lately::Spread;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin::Details;

/// Largest request body: a name or an identifier.
const MAX_BODY_BYTES: usize = 4096;

/// Longest identifier of a token.
const MAX_ID_BYTES: usize = 256;

/// For a request body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What of a node deals with broadcasts.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    pub(crate) origin: Option<origin::Control>,
    pub(crate) board: Option<Board>,
    /// The caches, the upper first.
    pub(crate) tiers: Vec<edge::Control>,
}

/// What `/admin/revoke` takes: one of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    stream: Option<StreamName>,
    id: Option<String>,
}

type Failure = (StatusCode, String);

impl Streams {
    /// Whether a path is answered here.
    pub(crate) fn has(path: &str) -> bool {
        matches!(path, "/admin/ingest" | "/admin/latency" | "/admin/revoke")
    }

    /// Answers a request for such a path.
    pub(crate) async fn answer(&self, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
        let mut details = Vec::new();
        let (status, body) = match self.act(request, &mut details).await {
            Ok(body) => (StatusCode::OK, body),
            Err((status, problem)) => (status, json!({ "problems": [problem] })),
        };
        let mut response = Response::new(Full::new(format!("{body}\n").into()));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.extensions_mut().insert(Details(details));
        response
    }

    /// `details`: what the audit should say of a change.
    async fn act(
        &self,
        request: http::Request<Incoming>,
        details: &mut Vec<String>,
    ) -> Result<Value, Failure> {
        match (request.uri().path(), request.method()) {
            ("/admin/ingest", &Method::GET | &Method::HEAD) => {
                self.ingest(request.uri().query().unwrap_or_default())
            }
            ("/admin/latency", &Method::GET | &Method::HEAD) => {
                self.latency(request.uri().query().unwrap_or_default())
            }
            ("/admin/revoke", &Method::POST) => self.revoke(request, details).await,
            _ => Err((
                StatusCode::METHOD_NOT_ALLOWED,
                "GET /admin/ingest, GET /admin/latency, POST /admin/revoke".into(),
            )),
        }
    }

    fn ingest(&self, query: &str) -> Result<Value, Failure> {
        let Some(board) = &self.board else {
            return Err((StatusCode::NOT_FOUND, "this node has no ingest".into()));
        };
        let stream = match query.split_once('=') {
            None if query.is_empty() => None,
            Some(("stream", name)) => Some(name),
            _ => return Err((StatusCode::UNPROCESSABLE_ENTITY, "the query may be stream=NAME".into())),
        };
        let (listed, sessions) = board.list(stream);
        let listed = listed.into_iter().map(|(session, entry)| {
            let mut entry = json!(entry);
            entry["session"] = session.into();
            entry
        });
        Ok(json!({ "sessions": sessions, "listed": listed.collect::<Vec<_>>() }))
    }

    fn latency(&self, query: &str) -> Result<Value, Failure> {
        let stream = query.strip_prefix("stream=").and_then(|name| name.parse::<StreamName>().ok());
        let stream =
            stream.ok_or((StatusCode::UNPROCESSABLE_ENTITY, "the query has to be stream=NAME".into()))?;
        let hop = |name: &str, took: Spread| {
            let ms = |us: u32| f64::from(us) / 1000.0;
            json!({
                "hop": name,
                "passages": took.passages,
                "p50_ms": ms(took.p50_us),
                "p95_ms": ms(took.p95_us),
                "max_ms": ms(took.max_us),
            })
        };
        let here = self.origin.as_ref().and_then(|origin| origin.took(&stream));
        let published = here.is_some();
        let mut hops: Vec<_> =
            here.into_iter().flatten().map(|(passed, took)| hop(passed.name(), took)).collect();
        let prefix = format!("/live/{stream}");
        hops.extend(self.tiers.iter().filter_map(|tier| Some(hop(tier.tier(), tier.took(&prefix)?))));
        hops.extend(self.tiers.iter().filter_map(|tier| Some(hop("sent", tier.sent(&prefix)?))));
        if !published && hops.is_empty() {
            let why = format!("stream {stream} is neither published here nor pushed to a cache of this node");
            return Err((StatusCode::NOT_FOUND, why));
        }
        Ok(json!({ "stream": stream.as_str(), "hops": hops }))
    }

    async fn revoke(
        &self,
        request: http::Request<Incoming>,
        details: &mut Vec<String>,
    ) -> Result<Value, Failure> {
        let Some(origin) = &self.origin else {
            return Err((StatusCode::NOT_FOUND, "this node has no origin: tokens are revoked there".into()));
        };
        let (head, body) = request.into_parts();
        // No web page can send JSON without asking first; the listener refuses the rest.
        if head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes() != b"application/json") {
            let why = "send Content-Type: application/json";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why.into()));
        }
        let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
        let body = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, error.to_string())),
            Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into())),
        };
        let which = match serde_json::from_slice(&body) {
            Ok(Revoke { stream: Some(stream), id: None }) => Which::Stream(stream.to_string()),
            Ok(Revoke { stream: None, id: Some(id) }) if (1..=MAX_ID_BYTES).contains(&id.len()) => {
                Which::Id(id)
            }
            Ok(_) => {
                let why = "give either stream, a name, or id, the jti of a token";
                return Err((StatusCode::UNPROCESSABLE_ENTITY, why.into()));
            }
            Err(error) => return Err((StatusCode::UNPROCESSABLE_ENTITY, error.to_string())),
        };
        details.push(match &which {
            Which::Stream(stream) => format!("all tokens of stream {stream}"),
            Which::Id(id) => format!("the token with id {id}"),
        });
        origin.revoke(which);
        Ok(json!({ "revoked": true }))
    }
}

/// Broadcasts in trouble, by kind of warning: asked for with each scrape.
#[derive(Debug)]
pub(crate) struct Warnings(pub(crate) Board);

impl Collector for Warnings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Broadcasts with a warning, by its kind";
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let mut family = encoder.encode_descriptor("ingest_warned_sessions", help, None, kind)?;
        for (kind, sessions) in self.0.warnings() {
            ConstGauge::new(sessions).encode(family.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}
