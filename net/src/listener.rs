//! Accepts connections within limits, hands each to a task, and drains them at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::InvalidMessage;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::guard::Visit;
use crate::{Current, Error, Guard, Refusal, Stream, sockets};

/// Pending connections the kernel may queue: a herd arrives within one scheduling delay.
const BACKLOG: i32 = 1024;

/// Pause after `accept` failed for want of file descriptors: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener lets in. Another value counts for connections that come after it; those that are open stay.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections; one more is closed at once.
    pub max_connections: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
}

/// A bound port that does not accept yet.
pub struct Listener {
    socket: Arc<TcpListener>,
    addr: SocketAddr,
    limits: Current<Limits>,
    guard: Guard,
}

impl Listener {
    /// Binds `addr`; port 0 lets the system choose.
    pub async fn bind(addr: SocketAddr, limits: impl Into<Current<Limits>>) -> Result<Listener, Error> {
        let bind = || -> std::io::Result<TcpListener> {
            let socket = socket2::Socket::new(
                socket2::Domain::for_address(addr),
                socket2::Type::STREAM.nonblocking(),
                None,
            )?;
            // A restart must not wait for connections of the process before to time out.
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        };
        let socket = bind().map_err(|source| Error::Bind { addr, source })?;
        let addr = socket.local_addr().map_err(|source| Error::Bind { addr, source })?;
        Ok(Listener { socket: Arc::new(socket), addr, limits: limits.into(), guard: Guard::default() })
    }

    /// The same for a listener that the next process of a node can go on with, and that goes on with what the process before
    /// left under this name for this address ([`sockets`]).
    pub async fn named(
        name: &'static str,
        addr: SocketAddr,
        limits: impl Into<Current<Limits>>,
    ) -> Result<Listener, Error> {
        let wrong = |source| Error::Bind { addr, source };
        let listener = match sockets::take(name, addr) {
            Some(socket) => {
                socket.set_nonblocking(true).map_err(wrong)?;
                let addr = socket.local_addr().map_err(wrong)?;
                let socket = Arc::new(TcpListener::from_std(socket).map_err(wrong)?);
                Listener { socket, addr, limits: limits.into(), guard: Guard::default() }
            }
            None => Listener::bind(addr, limits).await?,
        };
        sockets::register(name, addr, &listener.socket);
        Ok(listener)
    }

    /// Protected by `guard`, which the listeners of a role share.
    pub fn guarded(self, guard: Guard) -> Listener {
        Listener { guard, ..self }
    }

    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until `shutdown`, each connection in a task of its own, after its TLS handshake if `tls` is given.
    /// Then waits for the tasks for at most `drain` and aborts the rest. A handler that panics ends its own
    /// connection only. If this future is dropped, all connections are.
    pub async fn run<H, F>(
        self,
        tls: Option<Arc<rustls::ServerConfig>>,
        shutdown: CancellationToken,
        drain: Duration,
        handler: H,
    ) where
        H: Fn(Stream, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let handler = move |stream, peer, visit: Visit| {
            let handled = handler(stream, peer);
            async move {
                handled.await;
                drop(visit);
            }
        };
        self.run_visits(tls, shutdown, drain, handler).await;
    }

    /// As [`Listener::run`]; the handler also gets what the guard knows of its connection.
    pub(crate) async fn run_visits<H, F>(
        self,
        tls: Option<Arc<rustls::ServerConfig>>,
        shutdown: CancellationToken,
        drain: Duration,
        handler: H,
    ) where
        H: Fn(Stream, SocketAddr, Visit) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let open = Arc::new(AtomicUsize::new(0));
        let handler = Arc::new(handler);
        let tls = tls.map(TlsAcceptor::from);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    report(ended);
                    continue;
                }
                accepted = self.socket.accept() => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(addr = %self.addr, %error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let limits = *self.limits.get();
            if open.load(Ordering::Relaxed) >= limits.max_connections {
                self.guard.refused(Refusal::Full);
                debug!(%peer, limit = limits.max_connections, "connection refused: too many");
                continue;
            }
            let place = Place::take(&open);
            let visit = match self.guard.admit(peer) {
                Ok(visit) => visit,
                Err(why) => {
                    debug!(%peer, why = why.as_str(), "connection refused");
                    continue;
                }
            };
            let (handler, tls, timeout) = (handler.clone(), tls.clone(), limits.handshake_timeout);
            connections.spawn(async move {
                let _place = place;
                // Boxed: the handshake is larger than what a connection needs afterwards.
                match Box::pin(establish(socket, peer, tls, timeout)).await {
                    Ok(stream) => handler(stream, peer, visit).await,
                    Err(why) => why.into_iter().for_each(|why| visit.refused(why)),
                }
            });
        }
        drop(self.socket);
        let drained = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(drain, drained).await.is_err() {
            debug!(addr = %self.addr, left = connections.len(), "drain time is over: closing the rest");
            connections.shutdown().await;
        }
    }
}

/// One of the connections that are open. Only the task that accepts takes any, so that none is taken twice.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Place {
        open.fetch_add(1, Ordering::Relaxed);
        Place(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The connection ready for its handler; or why not, where that counts as a refusal.
async fn establish(
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    timeout: Duration,
) -> Result<Stream, Option<Refusal>> {
    // Media leaves in chunks as it is made: waiting to fill a packet only adds delay.
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%peer, %error, "connection lost");
        return Err(None);
    }
    let Some(tls) = tls else {
        return Ok(Stream::Plain(socket));
    };
    match tokio::time::timeout(timeout, tls.accept(socket)).await {
        Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            debug!(%peer, %error, "TLS handshake failed");
            let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            Err(Some(match tls {
                Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Refusal::NotTls,
                _ => Refusal::Handshake,
            }))
        }
        Err(_) => {
            debug!(%peer, ?timeout, "TLS handshake timed out");
            Err(Some(Refusal::HandshakeTimeout))
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection task panicked; its connection is closed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn limits_drain_and_panics_stay_within_one_connection() {
        let limits = |max_connections| Limits { max_connections, handshake_timeout: Duration::from_secs(5) };
        let current = Current::from(limits(2));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), current.clone()).await.unwrap();
        let addr = listener.local_addr();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(listener.run(
            None,
            shutdown.clone(),
            Duration::from_secs(60),
            |mut stream: Stream, _| async move {
                let mut byte = [0];
                while stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
                    assert_ne!(byte[0], b'!', "panics on purpose");
                    stream.write_all(&byte).await.unwrap();
                }
            },
        ));
        let echo = |mut socket: TcpStream, byte: u8| async move {
            socket.write_all(&[byte]).await.unwrap();
            let mut answer = [0];
            let got = socket.read(&mut answer).await.unwrap_or(0);
            (socket, (got == 1).then_some(answer[0]))
        };
        let (first, answer) = echo(TcpStream::connect(addr).await.unwrap(), b'a').await;
        assert_eq!(answer, Some(b'a'));
        let (second, answer) = echo(TcpStream::connect(addr).await.unwrap(), b'b').await;
        assert_eq!(answer, Some(b'b'));
        let mut third = TcpStream::connect(addr).await.unwrap();
        assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0, "the third is closed at once");
        current.set(limits(3));
        let (late, answer) = echo(TcpStream::connect(addr).await.unwrap(), b'd').await;
        assert_eq!(answer, Some(b'd'), "there is room for a third now");
        drop(late);
        let (_, answer) = echo(second, b'!').await;
        assert_eq!(answer, None, "its handler panicked");
        shutdown.cancel();
        let (first, answer) = echo(first, b'c').await;
        assert_eq!(answer, Some(b'c'), "open connections are drained, not cut");
        drop(first);
        running.await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
