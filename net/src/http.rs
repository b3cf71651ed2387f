//! An HTTP server over a [`Listener`]: h1, or h2 when ALPN or the client's preface says so.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::cork::Corked;
use crate::error::chain;
use crate::{Listener, Stream};

/// Bounds of what a client may send and hold.
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 16 << 10,
            h2_max_streams: 256,
            h2_stream_window: 1 << 20,
        }
    }
}

/// Serves until `shutdown`, then lets running requests finish for at most `drain`. A service future is dropped when
/// its client goes away.
pub async fn serve<S, F, B>(
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    options: Options,
    shutdown: CancellationToken,
    drain: Duration,
    service: S,
) where
    S: Fn(http::Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = http::Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let builder = Arc::new(builder(options));
    let stop = shutdown.clone();
    let handler = move |stream: Stream, peer: SocketAddr| {
        let (builder, service, stop) = (builder.clone(), service.clone(), stop.clone());
        async move {
            let asked = Arc::new(AtomicBool::new(false));
            let silent = {
                let asked = asked.clone();
                async move {
                    tokio::time::sleep(options.header_timeout).await;
                    if asked.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let service = service_fn(move |request| {
                asked.store(true, Ordering::Relaxed);
                let answer = service(request, peer);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let cork = Corked::new(stream);
            let connection = builder.serve_connection(TokioIo::new(cork.clone()), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                biased;
                ended = cork.drive(connection.as_mut()) => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    cork.drive(connection.as_mut()).await
                }
                // hyper's own timeout begins once it knows the protocol: who says nothing would stay for ever.
                () = silent => {
                    debug!(%peer, "HTTP connection closed: no request came");
                    return;
                }
            };
            if let Err(error) = ended {
                debug!(%peer, error = %chain(error.as_ref()), "HTTP connection ended early");
            }
        }
    };
    listener.run(tls, shutdown, drain, handler).await;
}

fn builder(options: Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(options.max_header_bytes.max(8 << 10) as usize)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.h2_max_streams)
        .max_header_list_size(options.max_header_bytes)
        .initial_stream_window_size(options.h2_stream_window)
        .initial_connection_window_size(options.h2_stream_window.saturating_mul(16).min(1 << 30))
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Some(Duration::from_secs(15)))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
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
