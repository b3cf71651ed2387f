//! Traces: the spans that are sampled go to an OpenTelemetry collector, over OTLP/HTTP.
//!
//! Those who serve put a span that has ended into a queue and never wait ([`net::trace`]); one task sends what is there. What
//! finds the queue full, or the collector away, is counted and gone.

pub mod config;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use net::trace::{Collect, Ended, Kind, Tracer, Value};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::RootCertStore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;

/// Spans of one request to the collector: some 150 KB.
const MAX_BATCH: usize = 512;

/// Between two requests to the collector, while there is something to send.
const GATHER: Duration = Duration::from_secs(1);

/// Largest answer of a collector that is read: it says how many spans it refused, or why.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// How long a connection is kept for the next spans.
const IDLE: Duration = Duration::from_secs(30);

/// Where collectors take traces, below the endpoint (OTLP 1.x, OTLP/HTTP request).
const PATH: &str = "/v1/traces";

/// The task that sends spans.
pub(crate) struct Exporter {
    spans: mpsc::Receiver<Ended>,
    exporter: SpanExporter,
    endpoint: String,
    timeout: Duration,
    metrics: Metrics,
}

/// A tracer for the roles, and what sends its spans; no traces unless the configuration names a collector.
pub(crate) fn open(config: &Config, registry: &mut Registry) -> anyhow::Result<(Tracer, Option<Exporter>)> {
    let traces = &config.traces;
    let Some(endpoint) = &traces.endpoint else { return Ok((Tracer::default(), None)) };
    let metrics = Metrics::register(registry);
    let endpoint = format!("{}{PATH}", endpoint.trim_end_matches('/'));
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Http::new(endpoint.starts_with("https:"))?)
        .with_endpoint(&endpoint)
        .with_timeout(traces.timeout)
        .build()
        .context("traces.endpoint")?;
    let resource = Resource::builder_empty().with_attributes([
        KeyValue::new("service.name", "rooftop"),
        KeyValue::new("service.instance.id", config.node.name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ]);
    exporter.set_resource(&resource.build());
    let (sender, spans) = mpsc::channel(traces.queue);
    let queue = Queue { sender, metrics: metrics.clone() };
    let tracer = Tracer::new(queue, traces.request_ratio, traces.session_ratio);
    Ok((tracer, Some(Exporter { spans, exporter, endpoint, timeout: traces.timeout, metrics })))
}

/// The near end of the queue.
struct Queue {
    sender: mpsc::Sender<Ended>,
    metrics: Metrics,
}

impl Collect for Queue {
    fn collect(&self, span: Ended) {
        if self.sender.try_send(span).is_err() {
            self.metrics.count("full", 1);
        }
    }
}

impl Exporter {
    /// Sends spans until `stop`, then what is left, for one more timeout at the most.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut is_failing = false;
        while !stop.is_cancelled() {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                taken = self.spans.recv_many(&mut batch, MAX_BATCH) => if taken == 0 { break },
            }
            self.send(batch, &mut is_failing).await;
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(GATHER) => {}
            }
        }
        self.spans.close();
        let timeout = self.timeout;
        let rest = async {
            while !is_failing {
                let mut batch = Vec::new();
                if self.spans.recv_many(&mut batch, MAX_BATCH).await == 0 {
                    break;
                }
                self.send(batch, &mut is_failing).await;
            }
        };
        let _ = tokio::time::timeout(timeout, rest).await;
        let mut left = 0;
        while self.spans.try_recv().is_ok() {
            left += 1;
        }
        self.metrics.count("unsent", left);
    }

    /// Sends spans, or counts them as lost. Says when a collector goes away, and when it is back.
    async fn send(&self, batch: Vec<Ended>, is_failing: &mut bool) {
        let count = batch.len() as u64;
        let export = self.exporter.export(batch.into_iter().map(data).collect());
        let sent = match tokio::time::timeout(self.timeout, export).await {
            Ok(sent) => sent.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        };
        let endpoint = &self.endpoint;
        match sent {
            Ok(()) => {
                if std::mem::take(is_failing) {
                    info!(endpoint, "the collector takes spans again");
                }
                self.metrics.count("sent", count);
            }
            Err(why) => {
                if !std::mem::replace(is_failing, true) {
                    warn!(endpoint, why, "the collector takes no spans: they are lost until it does");
                }
                self.metrics.count("unsent", count);
            }
        }
    }
}

/// A span as the exporter has it.
fn data(span: Ended) -> SpanData {
    let Ended { name, kind, context, parent, is_parent_remote, began, ended, attributes, failure } = span;
    let (trace, id) = (TraceId::from(context.trace), SpanId::from(context.span));
    let value = |value| match value {
        Value::Text(text) => opentelemetry::Value::from(text),
        Value::Number(number) => number.into(),
    };
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: is_parent_remote,
        span_kind: match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        },
        name: name.into(),
        start_time: began,
        end_time: ended,
        attributes: attributes.into_iter().map(|(key, said)| KeyValue::new(key, value(said))).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: failure.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder("rooftop").build(),
    }
}

/// Our own HTTP client, as the exporter wants one.
#[derive(Debug)]
struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    fn new(tls_is_wanted: bool) -> anyhow::Result<Http> {
        let mut roots = RootCertStore::empty();
        if tls_is_wanted {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                bail!(
                    "traces.endpoint: this system trusts nobody: name a file with the collector's authorities in SSL_CERT_FILE"
                );
            }
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let mut builder = Client::builder(TokioExecutor::new());
        Ok(Http(builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).build(connector)))
    }
}

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let response = self.0.request(request.map(Full::new)).await.map_err(|error| net::chain(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok(http::Response::from_parts(head, body))
    }
}

/// Labels of spans.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    outcome: &'static str,
}

/// What became of spans.
#[derive(Debug, Clone)]
struct Metrics(Arc<HashMap<&'static str, Counter>>);

impl Metrics {
    fn register(registry: &mut Registry) -> Metrics {
        let family = Family::<Fate, Counter>::default();
        let help = "Spans that ended, by what became of them";
        registry.register("traces_spans", help, family.clone());
        let outcomes = ["sent", "full", "unsent"];
        let counter = |outcome| (outcome, family.get_or_create_owned(&Fate { outcome }));
        Metrics(Arc::new(outcomes.into_iter().map(counter).collect()))
    }

    fn count(&self, outcome: &'static str, spans: u64) {
        if let Some(counter) = self.0.get(outcome) {
            counter.inc_by(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    fn config(endpoint: &str) -> Config {
        let mut config = Config::default();
        config.traces.endpoint = Some(endpoint.to_owned());
        config.traces.request_ratio = 1.0;
        config.traces.queue = 16;
        config
    }

    fn counted(metrics: &Metrics) -> [u64; 3] {
        ["sent", "full", "unsent"].map(|outcome| metrics.0[outcome].get())
    }

    #[tokio::test]
    async fn spans_reach_a_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let collector = {
            let asked = asked.clone();
            async move {
                let (stream, _) = listener.accept().await.unwrap();
                let service =
                    hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let asked = asked.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            asked.lock().unwrap().push((head, body));
                            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::new())))
                        }
                    });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        };
        tokio::spawn(collector);
        let (tracer, exporter) = open(&config(&endpoint), &mut Registry::default()).unwrap();
        let exporter = exporter.unwrap();
        let metrics = exporter.metrics.clone();
        let stop = CancellationToken::new();
        tracer
            .request("request")
            .sampled()
            .unwrap()
            .set("url.path", "/live/demo/index.m3u8")
            .set("code", 200);
        stop.cancel();
        exporter.run(stop).await;
        assert_eq!(counted(&metrics), [1, 0, 0]);
        let asked = asked.lock().unwrap();
        let (head, body) = &asked[0];
        assert_eq!(
            (head.uri.path(), head.headers["content-type"].as_bytes()),
            (PATH, &b"application/x-protobuf"[..])
        );
        for text in ["service.name", "rooftop", "request", "url.path", "/live/demo/index.m3u8"] {
            assert!(body.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_or_no_collector_is_counted() {
        // Nobody listens there.
        let (tracer, exporter) = open(&config("http://127.0.0.1:1"), &mut Registry::default()).unwrap();
        let exporter = exporter.unwrap();
        let metrics = exporter.metrics.clone();
        (0..20).for_each(|_| drop(tracer.request("request")));
        assert_eq!(counted(&metrics), [0, 4, 0]);
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run(stop).await;
        assert_eq!(counted(&metrics), [0, 4, 16]);
        drop(tracer.request("request"));
        assert_eq!(counted(&metrics), [0, 5, 16], "nobody takes them any more");
    }

    #[test]
    fn nothing_is_traced_unless_a_collector_is_named() {
        let (tracer, exporter) = open(&Config::default(), &mut Registry::default()).unwrap();
        assert!(exporter.is_none() && tracer.request("request").sampled().is_none());
    }
}
