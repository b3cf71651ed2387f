//! An HTTP server over a [`Listener`]: h1, or h2 when ALPN or the client's preface says so.
//!
//! Read `connection` next: how one connection is served, put away while it is idle, and cut off when it misbehaves.

mod body;
mod connection;
mod cork;
mod io;
mod patience;
mod priority;
mod streams;
mod turns;

pub use cork::Corked;

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use tokio_util::sync::CancellationToken;

use crate::guard::Visit;
use crate::{Current, Listener, Stream};

/// Bounds of what a client may send and hold. Another value counts for connections that come after it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From the connection's begin to its first request; then (h1) from the answer before to the end of the next
    /// request's header.
    pub header_timeout: Duration,
    /// Largest request header, in bytes.
    pub max_header_bytes: u32,
    /// Requests at once on one h2 connection.
    pub h2_max_streams: u32,
    /// Flow-control window of a request body (h2), in bytes; matters to relays only.
    pub h2_stream_window: u32,
    /// The same of all request bodies of a connection together: with room for all of them one that is not read holds up
    /// no other.
    pub h2_connection_window: u32,
    /// A connection, or an h2 stream, that takes less than `min_send_rate` for so long while there is something for it to
    /// take is ended.
    pub send_timeout: Duration,
    /// In bytes per second; 0: a single byte within `send_timeout` will do.
    pub min_send_rate: u64,
    /// Whether the peers are viewers: an h2 connection without a request for `header_timeout` is closed as on h1, one that
    /// cancels far more than it lets be answered is cut off, and so is one that sends far more bytes than its requests
    /// and window updates need, for viewers send no bodies.
    pub viewers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 16 << 10,
            h2_max_streams: 256,
            h2_stream_window: 1 << 20,
            h2_connection_window: 16 << 20,
            send_timeout: Duration::from_secs(60),
            min_send_rate: 0,
            viewers: false,
        }
    }
}

/// Serves until `shutdown`, then lets running requests finish for at most `drain`. A service future is dropped when
/// its client goes away.
pub async fn serve<S, F, B>(
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    options: impl Into<Current<Options>>,
    shutdown: CancellationToken,
    drain: Duration,
    service: S,
) where
    S: Fn(http::Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = http::Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let hosts = connection::Hosts::new(options.into(), shutdown.clone(), service);
    let handler =
        move |stream: Stream, peer: SocketAddr, visit: Visit| hosts.host().serve(stream, peer, visit);
    listener.run_visits(tls, shutdown, drain, handler).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn who_never_asks_is_let_go_and_who_asks_may_wait() {
        let limits = crate::Limits { max_connections: 8, handshake_timeout: Duration::from_secs(5) };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), limits).await.unwrap();
        let addr = listener.local_addr();
        let shutdown = CancellationToken::new();
        let options = Options { header_timeout: Duration::from_secs(1), ..Options::default() };
        let go = CancellationToken::new();
        let service = {
            let go = go.clone();
            move |_request, _peer| {
                let go = go.clone();
                async move {
                    go.cancelled().await;
                    http::Response::new(String::from("late"))
                }
            }
        };
        let drain = Duration::from_secs(5);
        let serving = tokio::spawn(serve(listener, None, options, shutdown.clone(), drain, service));
        let mut asks = TcpStream::connect(addr).await.unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut half = TcpStream::connect(addr).await.unwrap();
        half.write_all(b"PRI * HT").await.unwrap();
        for mut silent in [TcpStream::connect(addr).await.unwrap(), half] {
            let closed = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut [0])).await;
            assert_eq!(closed.expect("is closed").unwrap_or(0), 0);
        }
        go.cancel();
        let mut answer = String::new();
        asks.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("late"), "{answer}");
        shutdown.cancel();
        serving.await.unwrap();
    }
}
