//! An upstream that a test plays by hand, a tier over it, and viewers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Node, Ring};
use edge::policy::{Delivery, Mode};
use edge::{Class, Config, Control, Deps, Edge, Metrics};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than any test should last: a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("nothing came of it: {what}"))
}

/// Looks again and again, giving way to others, until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Whether a future is not ready at this moment.
pub(crate) async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending())).await
}

/// An upstream. Dropping it closes its connections.
pub(crate) struct Upstream {
    pub(crate) node: Node,
    asked: mpsc::UnboundedReceiver<Asked>,
    pub(crate) count: Arc<AtomicUsize>,
    probes: Arc<AtomicUsize>,
    _stop: DropGuard,
}

/// A request that waits for the test to answer it.
pub(crate) struct Asked {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    reply: oneshot::Sender<Response<Script>>,
}

/// A body that the test writes.
pub(crate) struct Chunks(mpsc::UnboundedSender<Result<Bytes, std::io::Error>>);

pub(crate) struct Script(mpsc::UnboundedReceiver<Result<Bytes, std::io::Error>>);

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

impl Upstream {
    pub(crate) async fn start(name: &str) -> Upstream {
        Upstream::at(name, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn at(name: &str, addr: SocketAddr) -> Upstream {
        let limits = net::Limits { max_connections: 1000, handshake_timeout: PATIENCE };
        let listener = net::Listener::bind(addr, limits).await.unwrap();
        let node = Node { name: name.into(), address: listener.local_addr().to_string() };
        let (sender, asked) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicUsize::new(0));
        let probes = Arc::new(AtomicUsize::new(0));
        let (counter, probed) = (count.clone(), probes.clone());
        let service = move |request: Request<Incoming>, _| {
            let (sender, counter, probed) = (sender.clone(), counter.clone(), probed.clone());
            async move {
                if request.method() == Method::OPTIONS {
                    probed.fetch_add(1, Ordering::SeqCst);
                    return Response::new(Script(mpsc::unbounded_channel().1));
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let (reply, answer) = oneshot::channel();
                let (target, headers) =
                    (request.uri().path_and_query().unwrap().to_string(), request.headers().clone());
                let _ = sender.send(Asked { target, headers, reply });
                answer.await.unwrap_or_else(|_| {
                    let (_, body) = mpsc::unbounded_channel();
                    let mut response = Response::new(Script(body));
                    *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
                    response
                })
            }
        };
        let stop = CancellationToken::new();
        let options = net::http::Options::default();
        tokio::spawn(net::http::serve(listener, None, options, stop.clone(), Duration::ZERO, service));
        Upstream { node, asked, count, probes, _stop: stop.drop_guard() }
    }

    /// The next request.
    pub(crate) async fn asked(&mut self) -> Asked {
        within("a request upstream", self.asked.recv()).await.unwrap()
    }

    /// How many probes have come; it answers them by itself, and they are no requests.
    pub(crate) fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Asked {
    /// Answers with these headers, and leaves the body to the test.
    pub(crate) fn begin(self, status: u16, headers: &[(&str, &str)]) -> Chunks {
        let (sender, body) = mpsc::unbounded_channel();
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.reply.send(response.body(Script(body)).unwrap());
        Chunks(sender)
    }

    pub(crate) fn answer(self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let chunks = self.begin(status, headers);
        chunks.send(body);
        chunks.end();
    }

    /// Returns when the one who asked has gone.
    pub(crate) async fn gone(mut self) {
        within("a cancelled request", self.reply.closed()).await;
    }
}

impl Chunks {
    pub(crate) fn send(&self, bytes: &[u8]) {
        let _ = self.0.send(Ok(Bytes::copy_from_slice(bytes)));
    }

    pub(crate) fn end(self) {}

    pub(crate) fn cut(self) {
        let _ = self.0.send(Err(std::io::Error::other("cut")));
    }

    /// Returns when the one who reads has gone.
    pub(crate) async fn gone(self) {
        within("a cancelled body", self.0.closed()).await;
    }
}

/// A tier, with two kinds of viewers.
pub(crate) struct Tier {
    pub(crate) url: String,
    pub(crate) control: Control,
    registry: Registry,
    h1: Client<HttpConnector, Empty<Bytes>>,
    h2: Client<HttpConnector, Empty<Bytes>>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

/// One class, so patient that nothing happens by itself.
pub(crate) fn patient() -> Class {
    Class { blocking_timeout: PATIENCE, give_up: PATIENCE * 2, negative_ttl: PATIENCE, ..Class::default() }
}

pub(crate) fn config(class: Class) -> Config {
    // Nothing is asked for that a test does not ask for.
    let delivery = vec![Delivery { prefix: "/".into(), mode: Mode::Pull }];
    Config {
        http: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        classes: vec![class],
        delivery,
        ..Config::default()
    }
}

/// A tier's dependencies over plain upstreams.
pub(crate) fn deps(registry: &mut Registry, nodes: Vec<Node>) -> Deps {
    Deps {
        tracer: net::trace::Tracer::default(),
        tier: "edge",
        upstreams: Ring::new(nodes),
        client_tls: None,
        server_tls: None,
        pages: None,
        playback_keys: None,
        pushes_on: false,
        metrics: Metrics::register(registry),
    }
}

impl Tier {
    pub(crate) async fn over(upstreams: &[&Upstream], class: Class) -> Tier {
        Tier::start(config(class), upstreams.iter().map(|upstream| upstream.node.clone()).collect(), |_| {})
            .await
    }

    pub(crate) async fn start(config: Config, nodes: Vec<Node>, change: impl FnOnce(&mut Deps)) -> Tier {
        let mut registry = Registry::default();
        let mut deps = deps(&mut registry, nodes);
        change(&mut deps);
        let edge = Edge::bind(config, deps).await.unwrap();
        let url = format!("http://{}", edge.http_addr().unwrap());
        let (control, shutdown) = (edge.control(), CancellationToken::new());
        let served = tokio::spawn(edge.serve(shutdown.clone()));
        let h1 = Client::builder(TokioExecutor::new()).build_http();
        let h2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Tier { url, control, registry, h1, h2, shutdown, served }
    }

    /// Sends a request over h1 (odd `viewer`) or h2 (even) in a task of its own.
    pub(crate) fn ask(
        &self,
        viewer: usize,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> JoinHandle<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}{target}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = if viewer.is_multiple_of(2) { &self.h2 } else { &self.h1 };
        let response = client.request(request.body(Empty::new()).unwrap());
        tokio::spawn(async move { within("an answer", response).await.unwrap() })
    }

    /// Sends a GET and returns its answer once its headers are there.
    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        self.ask(1, "GET", target, headers).await.unwrap()
    }

    /// A counter or gauge, with its labels as they are printed.
    pub(crate) fn metric(&self, name: &str) -> i64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub(crate) async fn until_waiting(&self, viewers: usize) {
        until("viewers that wait", || self.metric("edge_waiters{tier=\"edge\"}") == viewers as i64).await;
    }

    /// It as an upstream of another.
    pub(crate) fn node(&self, name: &str) -> Node {
        Node { name: name.into(), address: self.url.trim_start_matches("http://").into() }
    }

    /// Ends it as a crash would.
    pub(crate) async fn kill(self) {
        self.served.abort();
        let _ = self.served.await;
    }

    /// Begins the shutdown; the returned task ends with it.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.shutdown.cancel();
        self.served
    }
}

/// The whole body, or nothing if it broke.
pub(crate) async fn body(response: Response<Incoming>) -> Option<Bytes> {
    within("a body", response.into_body().collect()).await.ok().map(http_body_util::Collected::to_bytes)
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next(response: &mut Response<Incoming>) -> Option<Bytes> {
    loop {
        let frame = within("bytes", response.body_mut().frame()).await?;
        let bytes = frame.unwrap().into_data().unwrap();
        // h2 may say the end in an empty frame of its own.
        if !bytes.is_empty() {
            return Some(bytes);
        }
    }
}

/// A header as text; all of its lines, joined.
pub(crate) fn header(response: &Response<Incoming>, name: &str) -> String {
    let values: Vec<_> =
        response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    values.join(", ")
}
