//! A server on loopback, and an h2 client that writes what it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use net::http::Options;
use net::{Guard, Limits, Listener, Observe, PerAddress, Refusal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than the tests that are not about it take.
pub(crate) const LONG: Duration = Duration::from_secs(600);

struct Sender(mpsc::UnboundedSender<Refusal>);

impl Observe for Sender {
    fn refused(&self, why: Refusal) {
        let _ = self.0.send(why);
    }
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    refusals: mpsc::UnboundedReceiver<Refusal>,
    _stop: DropGuard,
}

impl Server {
    /// Answers `/{bytes}` and `/{bytes}/u{urgency}` with so many bytes, the latter with a `Priority` header; anything else
    /// never.
    pub(crate) async fn start(options: Options, rules: PerAddress) -> Server {
        Self::start_tls(options, rules, None).await
    }

    pub(crate) async fn start_tls(
        options: Options,
        rules: PerAddress,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Server {
        let limits = Limits { max_connections: 2000, handshake_timeout: PATIENCE };
        let (sender, refusals) = mpsc::unbounded_channel();
        let guard = Guard::new(rules, Arc::new(Sender(sender)));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), limits).await.unwrap().guarded(guard);
        let addr = listener.local_addr();
        let stop = CancellationToken::new();
        let serve = net::http::serve(listener, tls, options, stop.clone(), Duration::ZERO, answer);
        tokio::spawn(serve);
        Server { addr, refusals, _stop: stop.drop_guard() }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// The next refusal that was counted.
    pub(crate) async fn refusal(&mut self) -> Refusal {
        let next = tokio::time::timeout(PATIENCE, self.refusals.recv()).await;
        next.expect("something is refused").unwrap()
    }

    /// Those counted so far.
    pub(crate) fn refusals(&mut self) -> Vec<Refusal> {
        std::iter::from_fn(|| self.refusals.try_recv().ok()).collect()
    }
}

async fn answer(request: http::Request<Incoming>, _peer: SocketAddr) -> http::Response<Full<Bytes>> {
    let mut words = request.uri().path().split('/').skip(1);
    let Some(bytes) = words.next().and_then(|word| word.parse().ok()) else {
        return std::future::pending().await;
    };
    let mut response = http::Response::new(Full::new(vec![b'x'; bytes].into()));
    if let Some(urgency) = words.next().and_then(|word| word.strip_prefix('u')) {
        response.headers_mut().insert("priority", format!("u={urgency}").parse().unwrap());
    }
    response
}

/// Reads the whole of one h1 answer with a length: its status and body.
pub(crate) async fn h1_answer(socket: &mut (impl AsyncRead + Unpin)) -> Option<(u16, usize, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, socket.read_u8()).await.expect("an answer").ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head[9..12].parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).await.ok()?;
    Some((status, body.len(), head))
}

/// Reads until the connection is closed or reset.
pub(crate) async fn closed(socket: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 64 << 10];
    let until = async { while socket.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {} };
    tokio::time::timeout(PATIENCE, until).await.expect("is closed");
}

pub(crate) mod frame {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// One frame that came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// An h2 client with no will of its own.
pub(crate) struct H2<S = TcpStream>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> H2<S> {
    /// Says the preface and the settings: `(identifier, value)`.
    pub(crate) async fn begin(socket: S, settings: &[(u16, u32)]) -> H2<S> {
        let mut h2 = H2(socket);
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend_from_slice(&identifier.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        h2.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        assert!(h2.send(frame::SETTINGS, 0, 0, &payload).await);
        h2
    }

    /// Whether it could be sent.
    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.0.write_all(&encoded(kind, flags, stream, payload)).await.is_ok()
    }

    pub(crate) async fn get(&mut self, stream: u32, path: &str, priority: Option<&str>) -> bool {
        let block = get_block(path, priority);
        self.send(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &block).await
    }

    /// The next frame; `None`: the connection has ended. Settings and pings are acknowledged.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.read()).await.expect("a frame or the end")?;
            match frame.kind {
                frame::SETTINGS if frame.flags & frame::ACK == 0 => {
                    self.send(frame::SETTINGS, frame::ACK, 0, &[]).await;
                }
                frame::PING if frame.flags & frame::ACK == 0 => {
                    self.send(frame::PING, frame::ACK, 0, &frame.payload).await;
                }
                frame::SETTINGS | frame::PING | frame::WINDOW_UPDATE => {}
                _ => return Some(frame),
            }
        }
    }

    async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }
}

pub(crate) fn encoded(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// HPACK (RFC 7541) by the static table and literals without indexing.
pub(crate) fn get_block(path: &str, priority: Option<&str>) -> Vec<u8> {
    // :method GET, :scheme http, :authority x
    let mut block = vec![0x82, 0x86, 0x01, 1, b'x', 0x04, path.len() as u8];
    block.extend_from_slice(path.as_bytes());
    if let Some(priority) = priority {
        block.extend_from_slice(&[0, 8]);
        block.extend_from_slice(b"priority");
        block.push(priority.len() as u8);
        block.extend_from_slice(priority.as_bytes());
    }
    block
}
