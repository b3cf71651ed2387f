//! Connections to origins, HTTP/2 over mTLS, each shared by many relays.
//!
//! What a frame costs is a wake-up, a TLS record and a system call, whatever its size. Here the frames of many streams leave
//! together: what comes within [`config::Relay::gather`] of the last write waits for the next.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong, SendStream};
use net::http::Corked;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::config;

/// A dead peer is noticed after this and as much again, also when there is no media to send.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// About what a relay hands over at once: it fills a TLS record several times and leaves the rest in the replay buffer.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// What one relay may have in the connection's hands.
const MAX_BUFFERED: usize = 4 * PIECE_BYTES;

/// Room that is asked for before it runs out.
const LITTLE_ROOM: usize = 16 << 10;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

type Io = Corked<TlsStream<TcpStream>>;

/// All connections of this node to its origins.
pub(super) struct Uplinks {
    tls: Arc<ClientConfig>,
    streams_per_connection: usize,
    gather: Duration,
    /// By address of the origin.
    known: Mutex<BTreeMap<String, Vec<Weak<Uplink>>>>,
}

/// One connection. It is cut when the last relay that holds it is dropped.
pub(super) struct Uplink {
    state: watch::Receiver<State>,
    /// No relay begins here any more.
    retired: AtomicBool,
    /// Aborted when dropped.
    _task: JoinSet<()>,
}

enum State {
    Connecting,
    Open(SendRequest<Bytes>),
    Closed(Arc<str>),
}

impl Uplinks {
    /// `tls` shows this node's certificate; ALPN is set here.
    pub(super) fn new(rules: &config::Relay, tls: &ClientConfig) -> Uplinks {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Uplinks {
            tls: Arc::new(tls),
            streams_per_connection: rules.streams_per_connection,
            gather: rules.gather,
            known: Mutex::default(),
        }
    }

    /// A connection to the origin at `address`, `host:port`: one that has room, or a new one that is being made.
    pub(super) fn lease(&self, address: &str) -> Arc<Uplink> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uplinks) = known.get(address) {
            // Whoever holds one is a relay, this look at it included.
            let has_room = |uplink: &Arc<Uplink>| {
                uplink.takes_more() && Arc::strong_count(uplink) <= self.streams_per_connection
            };
            if let Some(uplink) = uplinks.iter().filter_map(Weak::upgrade).find(has_room) {
                return uplink;
            }
        }
        let uplink = Arc::new(Uplink::open(address, self.tls.clone(), self.gather));
        known.entry(address.to_owned()).or_default().push(Arc::downgrade(&uplink));
        known.retain(|_, uplinks| {
            uplinks.retain(|uplink| uplink.strong_count() > 0);
            !uplinks.is_empty()
        });
        uplink
    }
}

impl Uplink {
    fn open(address: &str, tls: Arc<ClientConfig>, gather: Duration) -> Uplink {
        let (tell, state) = watch::channel(State::Connecting);
        let mut task = JoinSet::new();
        let address = address.to_owned();
        task.spawn(async move {
            let why = match connect(&address, tls).await {
                Ok((sender, mut connection, io)) => {
                    tell.send_replace(State::Open(sender));
                    let why = drive(&mut connection, &io, gather).await;
                    // Before the connection is dropped: its streams then ask why.
                    tell.send_replace(State::Closed(why.into()));
                    return;
                }
                Err(error) => net::chain(error.as_ref()),
            };
            tell.send_replace(State::Closed(why.into()));
        });
        Uplink { state, retired: AtomicBool::new(false), _task: task }
    }

    /// No relay begins here any more; those that are here go on.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Why it is closed, if it is.
    pub(super) fn why_closed(&self) -> Option<Arc<str>> {
        match &*self.state.borrow() {
            State::Closed(why) => Some(why.clone()),
            State::Connecting | State::Open(_) => None,
        }
    }

    /// What to begin a request with, once there is a connection that takes one.
    pub(super) async fn sender(&self) -> Result<SendRequest<Bytes>, BoxError> {
        let mut state = self.state.clone();
        let sender = loop {
            match &*state.borrow_and_update() {
                State::Connecting => {}
                State::Open(sender) => break sender.clone(),
                State::Closed(why) => return Err(why.to_string().into()),
            }
            state.changed().await?;
        };
        Ok(sender.ready().await?)
    }

    fn takes_more(&self) -> bool {
        let open = match &*self.state.borrow() {
            State::Connecting => true,
            // Its origin may have said that it goes away.
            State::Open(sender) => {
                let ready = sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
                !matches!(ready, Poll::Ready(Err(_)))
            }
            State::Closed(_) => false,
        };
        open && !self.retired.load(Ordering::Relaxed)
    }
}

/// Room for a piece of a request's body, in bytes; `None`: the request is over. May be dropped without loss.
pub(super) async fn room(body: &mut SendStream<Bytes>) -> Option<usize> {
    if body.capacity() < LITTLE_ROOM {
        body.reserve_capacity(PIECE_BYTES);
    }
    poll_fn(|cx| match body.capacity() {
        0 => body.poll_capacity(cx).map(|room| room?.ok()),
        room => Poll::Ready(Some(room)),
    })
    .await
}

type Connected = (SendRequest<Bytes>, Connection<Io, Bytes>, Io);

async fn connect(address: &str, tls: Arc<ClientConfig>) -> Result<Connected, BoxError> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(host(address).to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, socket).await?;
    let io = Corked::new(stream, true);
    let mut builder = h2::client::Builder::new();
    builder.max_send_buffer_size(MAX_BUFFERED).enable_push(false);
    // Writes the preface and waits for nothing.
    let (sender, connection) = builder.handshake(io.clone()).await?;
    Ok((sender, connection, io))
}

/// Until the connection is over. Returns why.
async fn drive(connection: &mut Connection<Io, Bytes>, io: &Io, gather: Duration) -> String {
    let ping = connection.ping_pong();
    let mut connection = pin!(connection);
    let mut due = Instant::now();
    let (mut rest, mut resting) = (pin!(tokio::time::sleep_until(due)), false);
    let paced = poll_fn(|cx: &mut Context<'_>| {
        // The timer is set only when something comes too early: an idle connection has none.
        if Instant::now() < due {
            if !std::mem::replace(&mut resting, true) {
                rest.as_mut().reset(due);
            }
            ready!(rest.as_mut().poll(cx));
        }
        resting = false;
        let polled = io.poll_drive(connection.as_mut(), cx);
        due = Instant::now() + gather;
        polled
    });
    tokio::select! {
        ended = paced => match ended {
            Ok(()) => "the origin closed the connection".into(),
            Err(error) => net::chain(error.as_ref()),
        },
        why = watch_peer(ping) => why,
    }
}

/// Until the peer does not answer. Returns that in words.
async fn watch_peer(ping: Option<PingPong>) -> String {
    let Some(mut ping) = ping else { std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_INTERVAL, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return net::chain(&error),
            Err(_) => return format!("no answer to a ping for {PING_INTERVAL:?}"),
        }
    }
}

/// `host` of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests;
