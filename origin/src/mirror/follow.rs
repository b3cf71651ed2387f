//! The mirror's side: one connection to each other origin, over which its list of streams comes and those of them that are
//! mirrored here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::Node;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use media::push::MEDIA_TYPE;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info};

use super::Mirror;
use super::copy::take;
use super::wire::{Message, Reader};
use crate::Shared;
use crate::live::Live;
use crate::relay::unix_ms;

/// For a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A peer that says nothing for so long is lost: there is a sign of life every half a second.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a lost peer is left alone, doubled each time.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(4)];

/// What may be on its way to here of one stream, and of all: a second of a ladder each.
const WINDOW: [u32; 2] = [4 << 20, 64 << 20];

/// A task that ends with whoever wanted it.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Requests = SendRequest<Empty<Bytes>>;

/// Why a connection or an answer came to its end.
type Why = Box<dyn std::error::Error + Send + Sync>;

/// Follows all other origins until shutdown.
pub(crate) async fn run(shared: Arc<Shared>, tls: Arc<rustls::ClientConfig>) {
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = Arc::new(tls);
    let follow_all = async {
        let mut changes = shared.mirrors.members().changes();
        let mut followed = BTreeMap::<(String, String), AbortOnDrop>::new();
        loop {
            changes.mark_unchanged();
            followed.retain(|_, task| !task.0.is_finished());
            for node in shared.mirrors.members().peers() {
                for before in moved(followed.keys(), &node) {
                    // Dropped before it finds out: it would say that the new one is lost.
                    followed.remove(&before);
                    shared.mirrors.listed(&shared, &node.name, None);
                    shared.mirrors.lost(&shared, &node.name);
                }
                followed.entry((node.name.clone(), node.address.clone())).or_insert_with(|| {
                    let task = tokio::spawn(follow(shared.clone(), tls.clone(), node));
                    AbortOnDrop(task.abort_handle())
                });
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    shared.shutdown.run_until_cancelled(follow_all).await;
}

/// Where an origin was followed that has been started anew at another address.
fn moved<'a>(followed: impl Iterator<Item = &'a (String, String)>, node: &Node) -> Vec<(String, String)> {
    followed.filter(|(name, address)| *name == node.name && *address != node.address).cloned().collect()
}

/// Stays connected to an origin until it has left the fleet and is gone: one that only the store has lost goes on.
async fn follow(shared: Arc<Shared>, tls: Arc<rustls::ClientConfig>, node: Node) {
    let mut backoff = BACKOFF[0];
    let mut known = false;
    loop {
        let began = Instant::now();
        match tokio::time::timeout(TIMEOUT, connect(&tls, &node)).await {
            Ok(Ok((requests, connection))) => {
                info!(origin = node.name, "following its streams");
                known = true;
                let mut streams = JoinSet::new();
                let why = tokio::select! {
                    ended = list(&shared, &node, requests, &mut streams) => ended.err(),
                    broken = connection => broken.err().map(Why::from),
                };
                // Those that read from it lose it with the connection.
                streams.shutdown().await;
                shared.mirrors.listed(&shared, &node.name, None);
                shared.mirrors.lost(&shared, &node.name);
                let why = why.map_or_else(|| "it ended the connection".into(), |why| why.to_string());
                info!(origin = node.name, why, "origin lost");
            }
            Ok(Err(error)) if known => debug!(origin = node.name, %error, "origin not reached"),
            Err(_) if known => debug!(origin = node.name, "origin not reached in time"),
            _ => {}
        }
        if !shared.mirrors.members().peers().contains(&node) {
            return;
        }
        if began.elapsed() > BACKOFF[1] {
            backoff = BACKOFF[0];
        }
        // Half of it is jitter, from what the clock has below a millisecond.
        let jitter = f64::from(began.elapsed().subsec_nanos() % 1024) / 2048.0;
        tokio::time::sleep(backoff.mul_f64(0.5 + jitter)).await;
        backoff = (backoff * 2).min(BACKOFF[1]);
    }
}

async fn connect(
    tls: &Arc<rustls::ClientConfig>,
    node: &Node,
) -> Result<(Requests, impl Future<Output = hyper::Result<()>> + use<>), Why> {
    let socket = TcpStream::connect(&node.address).await?;
    socket.set_nodelay(true)?;
    let host = node.address.rsplit_once(':').map_or(&*node.address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, socket).await?;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW[0])
        .initial_connection_window_size(WINDOW[1])
        .handshake(TokioIo::new(stream));
    Ok(connection.await?)
}

/// Reads what streams the origin has, and mirrors those that are to be mirrored here.
async fn list(
    shared: &Arc<Shared>,
    node: &Node,
    mut requests: Requests,
    streams: &mut JoinSet<()>,
) -> Result<(), Why> {
    let mut body = ask(&mut requests, node, "/mirror").await?;
    let mut reader = Reader::default();
    let mut changes = shared.mirrors.changes();
    loop {
        let bytes = tokio::select! {
            bytes = next(&mut body) => bytes?,
            _ = changes.changed() => Bytes::new(),
        };
        let mut bytes = bytes;
        while let Some(message) = reader.next(&mut bytes)? {
            if let Message::Streams(list) = message {
                shared.mirrors.listed(shared, &node.name, Some(list));
            }
        }
        for mirror in shared.mirrors.begin(&node.name) {
            streams.spawn(mirrored(shared.clone(), mirror, node.clone(), requests.clone()));
        }
        while streams.try_join_next().is_some() {}
    }
}

/// Mirrors one stream for as long as the connection holds.
async fn mirrored(shared: Arc<Shared>, mirror: Arc<Mirror>, node: Node, mut requests: Requests) {
    let stop = mirror.stop.clone();
    let mut backoff = BACKOFF[0];
    let mirroring = async {
        loop {
            let began = Instant::now();
            match copy(&shared, &mirror, &node, &mut requests).await {
                Ok(()) => {
                    debug!(stream = %mirror.stream, origin = node.name, "mirrored to its end");
                    return shared.mirrors.over(&shared, &mirror);
                }
                Err(why) => {
                    info!(stream = %mirror.stream, origin = node.name, %why, "mirror broke");
                    shared.metrics.mirrors_broken.inc();
                }
            }
            if began.elapsed() > BACKOFF[1] {
                backoff = BACKOFF[0];
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF[1]);
        }
    };
    stop.run_until_cancelled(mirroring).await;
}

/// One attempt, from the request to the end of the stream.
async fn copy(
    shared: &Arc<Shared>,
    mirror: &Mirror,
    node: &Node,
    requests: &mut Requests,
) -> Result<(), Why> {
    let path = format!("/mirror/live/{}", mirror.stream);
    let mut body = match ask(requests, node, &path).await {
        Ok(body) => body,
        Err(why) => {
            mirror.lost(shared);
            return Err(why);
        }
    };
    let mut reader = Reader::default();
    let live = Arc::new(Live::recorded(mirror.stream.clone(), shared.archive.clone(), shared.news.clone()));
    let mut copied = false;
    loop {
        let mut bytes = match next(&mut body).await {
            Ok(bytes) => bytes,
            Err(why) => {
                mirror.lost(shared);
                return Err(why);
            }
        };
        shared.metrics.mirrored_bytes.inc_by(bytes.len() as u64);
        while let Some(message) = reader.next(&mut bytes)? {
            if message == Message::Gone {
                return Ok(());
            }
            if let Message::Piece(piece, _) = &message
                && copied
            {
                shared.metrics.mirror_lag_ms.set((unix_ms() - piece.told_unix_ms).max(0));
            }
            let whole = message == Message::Whole;
            take(&live, message)?;
            if whole {
                info!(stream = %mirror.stream, origin = node.name, "mirrored");
                copied = true;
                mirror.copied(shared, live.clone());
            }
        }
        if copied {
            mirror.heard();
        }
    }
}

async fn ask(requests: &mut Requests, node: &Node, path: &str) -> Result<Incoming, Why> {
    let uri = Uri::builder().scheme("https").authority(node.address.as_str()).path_and_query(path).build()?;
    let request = Request::get(uri).header(header::ACCEPT, MEDIA_TYPE).body(Empty::new())?;
    requests.ready().await?;
    let answer = tokio::time::timeout(TIMEOUT, requests.send_request(request)).await??;
    match answer.status() {
        StatusCode::OK => Ok(answer.into_body()),
        status => Err(format!("status {status}").into()),
    }
}

/// The next bytes; an error when the other side ends, breaks or is silent.
async fn next(body: &mut Incoming) -> Result<Bytes, Why> {
    loop {
        match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(bytes);
                }
            }
            Ok(Some(Err(error))) => return Err(error.into()),
            Ok(None) => return Err("it ended the answer".into()),
            Err(_) => return Err(format!("silent for {SILENCE:?}").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_followed_where_it_is_now() {
        let at = |name: &str, address: &str| (name.to_owned(), address.to_owned());
        let followed = [at("a", "a:1"), at("a", "a:2"), at("b", "b:1")];
        let node = |name: &str, address: &str| Node { name: name.into(), address: address.into() };
        assert_eq!(moved(followed.iter(), &node("a", "a:2")), [at("a", "a:1")]);
        assert_eq!(moved(followed.iter(), &node("b", "b:1")), []);
        assert_eq!(moved(followed.iter(), &node("c", "a:1")), []);
    }
}
