//! The upstream of the servers that are compared: over h2 with mTLS for Rooftop, over plain h1 for the others.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use net::tls::{self, Clients};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Largest object, in bytes.
const MAX_SIZE: usize = 4 << 20;

/// An upstream that serves over both. It ends when it is dropped.
pub(crate) struct Origin {
    pub(crate) https: SocketAddr,
    pub(crate) http: SocketAddr,
    _shutdown: DropGuard,
}

/// A body that is written while it is read.
pub(crate) struct Script(mpsc::UnboundedReceiver<Result<Bytes, std::io::Error>>);

/// Where it is written.
pub(crate) type Pen = mpsc::UnboundedSender<Result<Bytes, std::io::Error>>;

impl Script {
    pub(crate) fn new() -> (Pen, Script) {
        let (pen, body) = mpsc::unbounded_channel();
        (pen, Script(body))
    }

    pub(crate) fn whole(bytes: Bytes) -> Script {
        let (pen, body) = Script::new();
        // Both ends are here.
        let _ = pen.send(Ok(bytes));
        body
    }
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|next| next.map(|result| result.map(Frame::data)))
    }
}

impl Origin {
    /// Answers as `answer` says. Its certificate is made in `tls_folder`, where the node's will be.
    pub(crate) async fn start<A, F>(tls_folder: &Path, answer: A) -> anyhow::Result<Origin>
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Script>> + Send + 'static,
    {
        let files = tls::development_files(tls_folder, "upstream", &[])?;
        let server_tls = tls::server_config(&files, Clients::Fleet, &[b"h2", b"http/1.1"])?;
        // A cache that leaks sends a herd on.
        let limits = net::Limits { max_connections: 10_000, handshake_timeout: Duration::from_secs(10) };
        let options = net::http::Options { h2_max_streams: 10_000, ..net::http::Options::default() };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (https, http) =
            (net::Listener::bind(any, limits).await?, net::Listener::bind(any, limits).await?);
        let (https_addr, http_addr) = (https.local_addr(), http.local_addr());
        let shutdown = CancellationToken::new();
        for (listener, server_tls) in [(https, Some(server_tls)), (http, None)] {
            let answer = answer.clone();
            let service = move |request: Request<Incoming>, _| answer(request);
            let serve =
                net::http::serve(listener, server_tls, options, shutdown.clone(), Duration::ZERO, service);
            tokio::spawn(serve);
        }
        Ok(Origin { https: https_addr, http: http_addr, _shutdown: shutdown.drop_guard() })
    }

    /// Serves [`path_of`] any size, cacheable for long. The counter says how often it was asked
    /// for objects.
    pub(crate) async fn of_sizes(tls_folder: &Path) -> anyhow::Result<(Origin, Arc<AtomicUsize>)> {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let answer = move |request: Request<Incoming>| {
            // An edge may also ask to be pushed the stream.
            if request.uri().path().starts_with("/live/") {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            std::future::ready(sized(request.uri().path()))
        };
        Ok((Origin::start(tls_folder, answer).await?, requests))
    }
}

/// The name of an object of `size` bytes.
pub(crate) fn path_of(size: usize) -> String {
    format!("/live/bench/1/{size}/1.m4s")
}

/// The bytes of every object of this size.
pub(crate) fn content(size: usize) -> Bytes {
    (0..size).map(|index| (index * 31 % 251) as u8).collect()
}

/// The answer to a request for [`path_of`] some size; 404 to any other.
pub(crate) fn sized(path: &str) -> Response<Script> {
    let size = path.strip_prefix("/live/bench/1/").and_then(|rest| rest.strip_suffix("/1.m4s"));
    match size.and_then(|size| size.parse().ok()).filter(|&size: &usize| size <= MAX_SIZE) {
        Some(size) => cacheable(Script::whole(content(size)), Some(size)),
        None => status(StatusCode::NOT_FOUND),
    }
}

/// A segment that may be kept for an hour, with its length if it is to be said.
pub(crate) fn cacheable(body: Script, length: Option<usize>) -> Response<Script> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600, immutable"));
    if let Some(length) = length {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    response
}

/// A status and a few bytes.
pub(crate) fn status(status: StatusCode) -> Response<Script> {
    let mut response = Response::new(Script::whole(Bytes::from_static(b"no")));
    *response.status_mut() = status;
    response
}
