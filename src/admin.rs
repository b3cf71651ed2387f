//! The operators' listener: `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// Operators and their scrapers, nobody else.
const LIMITS: net::Limits = net::Limits { max_connections: 256, handshake_timeout: Duration::from_secs(10) };

/// A scrape takes milliseconds.
const DRAIN: Duration = Duration::from_secs(1);

pub(crate) struct Admin {
    listener: net::Listener,
    registry: Arc<Registry>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    pub(crate) async fn bind(
        addr: SocketAddr,
        registry: Registry,
        ready: Arc<AtomicBool>,
    ) -> Result<Self, net::Error> {
        Ok(Self { listener: net::Listener::bind(addr, LIMITS).await?, registry: Arc::new(registry), ready })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Admin { listener, registry, ready } = self;
        let service = move |request: http::Request<Incoming>, _peer| {
            let answer = answer(&request, &registry, ready.load(Ordering::Relaxed));
            async move { answer }
        };
        net::http::serve(listener, None, net::http::Options::default(), shutdown, DRAIN, service).await;
    }
}

fn answer(request: &http::Request<Incoming>, registry: &Registry, ready: bool) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "read with GET\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" if ready => text(StatusCode::OK, "ready\n".into()),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
        "/metrics" => metrics(registry),
        _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".into()),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut out = String::new();
    match prometheus_client::encoding::text::encode(&mut out, registry) {
        Ok(()) => {
            let mut response = text(StatusCode::OK, out);
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(open_metrics));
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
