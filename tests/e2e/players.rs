//! Viewers as far as servers see them: LL-HLS with blocking reload and parts as byte ranges, on connections of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Pause of a player that was refused, or whose connection broke.
const PAUSE: Duration = Duration::from_millis(200);

/// How a player connects.
#[derive(Clone)]
pub enum Access {
    /// A connection of h1 for each rendition.
    Plain(SocketAddr),
    /// One connection of h2 for all.
    Tls(SocketAddr, Arc<ClientConfig>),
}

/// What players have got.
#[derive(Debug, Default, Clone)]
pub struct Watched {
    pub playlists: u64,
    pub parts: u64,
    pub bytes: u64,
    /// What should not have happened, and how often it did.
    pub failures: BTreeMap<String, u64>,
}

impl Watched {
    fn failed(&mut self, what: String) {
        *self.failures.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: Watched) {
        self.playlists += other.playlists;
        self.parts += other.parts;
        self.bytes += other.bytes;
        for (what, count) in other.failures {
            *self.failures.entry(what).or_default() += count;
        }
    }
}

/// Plays these renditions of a stream at its live edge until `stop`; what came of each.
pub async fn watch(
    access: Access,
    stream: &str,
    renditions: &[String],
    stop: CancellationToken,
) -> Vec<Watched> {
    let shared = match &access {
        Access::Plain(_) => None,
        Access::Tls(addr, tls) => h2(*addr, tls).await.ok(),
    };
    let mut playing = JoinSet::new();
    for rendition in renditions {
        let connection = shared.clone().map(Connection::H2);
        let (access, stop) = (access.clone(), stop.clone());
        let folder = format!("/live/{stream}");
        let rendition = rendition.clone();
        playing.spawn(async move {
            let mut player =
                Player { connection, access, folder, rendition, watched: Watched::default(), last: None };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = player.play() => {}
            }
            player.watched
        });
    }
    playing.join_all().await
}

struct Player {
    /// `None`: broken, or never there.
    connection: Option<Connection>,
    access: Access,
    folder: String,
    rendition: String,
    watched: Watched,
    /// The last part that was fetched, or passed by when it began.
    last: Option<(u64, u64)>,
}

impl Player {
    /// Never ends by itself.
    async fn play(&mut self) {
        let playlist = format!("{}/{}.m3u8", self.folder, self.rendition);
        let mut query = String::new();
        loop {
            let Some(text) = self.get(&format!("{playlist}{query}"), None).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            self.watched.playlists += 1;
            let Some(listed) = Listed::parse(&String::from_utf8_lossy(&text)) else {
                self.watched.failed(format!("{playlist}: cannot be read"));
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (msn, part) = listed.next;
            query = format!("?_HLS_msn={msn}&_HLS_part={part}");
            let last = *self.last.get_or_insert_with(|| listed.parts.last().map_or((0, 0), |part| part.at));
            for part in listed.parts.into_iter().filter(|part| part.at > last) {
                self.last = Some(part.at);
                let path = format!("{}/{}", self.folder, part.uri);
                if let Some(bytes) = self.get(&path, Some((part.offset, part.length))).await {
                    self.watched.parts += 1;
                    self.watched.bytes += bytes.len() as u64;
                }
            }
        }
    }

    /// The body; a failure is counted.
    async fn get(&mut self, path: &str, range: Option<(u64, u64)>) -> Option<Bytes> {
        if self.connection.is_none() {
            match Connection::open(&self.access).await {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => self.watched.failed(format!("connect: {error}")),
            }
        }
        let (Access::Plain(addr) | Access::Tls(addr, _)) = self.access;
        let connection = self.connection.as_mut()?;
        let expected = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        match connection.get(addr, path, range).await {
            Ok((status, body)) if status == expected => {
                if range.is_some_and(|(_, length)| body.len() as u64 != length) {
                    self.watched.failed(format!("{} bytes of {range:?}", body.len()));
                    return None;
                }
                Some(body)
            }
            Ok((status, _)) => {
                let what = if range.is_some() { "part" } else { "playlist" };
                self.watched.failed(format!("{what}: status {status}"));
                None
            }
            Err(error) => {
                self.watched.failed(format!("connection: {error}"));
                self.connection = None;
                None
            }
        }
    }
}

/// What a media playlist lists.
struct Listed {
    parts: Vec<Part>,
    /// Media sequence number and part that come next.
    next: (u64, u64),
}

struct Part {
    at: (u64, u64),
    uri: String,
    offset: u64,
    length: u64,
}

impl Listed {
    fn parse(text: &str) -> Option<Listed> {
        let (mut segment, mut index) = (crate::kit::tag(text, "#EXT-X-MEDIA-SEQUENCE")?.parse().ok()?, 0);
        let mut parts = Vec::new();
        for line in text.lines() {
            if let Some(attributes) = line.strip_prefix("#EXT-X-PART:") {
                let value = |name: &str| attributes.split_once(&format!("{name}=\""))?.1.split('"').next();
                let (length, offset) = value("BYTERANGE")?.split_once('@')?;
                let uri = value("URI")?.to_owned();
                let (offset, length) = (offset.parse().ok()?, length.parse().ok()?);
                parts.push(Part { at: (segment, index), uri, offset, length });
                index += 1;
            } else if line.starts_with("#EXTINF") {
                (segment, index) = (segment + 1, 0);
            }
        }
        Some(Listed { parts, next: (segment, index) })
    }
}

enum Connection {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl Connection {
    async fn open(access: &Access) -> anyhow::Result<Connection> {
        match access {
            Access::Plain(addr) => {
                let socket = TcpStream::connect(addr).await?;
                socket.set_nodelay(true)?;
                let (requests, connection) = http1::handshake(TokioIo::new(socket)).await?;
                // It ends when nobody can send requests any more.
                tokio::spawn(connection);
                Ok(Connection::H1(requests))
            }
            Access::Tls(addr, tls) => Ok(Connection::H2(h2(*addr, tls).await?)),
        }
    }

    async fn get(
        &mut self,
        addr: SocketAddr,
        path: &str,
        range: Option<(u64, u64)>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = match self {
            Connection::H1(_) => Request::get(path).header("host", addr.to_string()),
            Connection::H2(_) => Request::get(format!("https://{addr}{path}")),
        };
        let request = match range {
            Some((offset, length)) => {
                request.header("range", format!("bytes={offset}-{}", offset + length - 1))
            }
            None => request,
        };
        let request = request.body(Empty::new())?;
        let response = match self {
            Connection::H1(requests) => {
                requests.ready().await?;
                requests.send_request(request).await?
            }
            Connection::H2(requests) => {
                requests.ready().await?;
                requests.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok((head.status, body.collect().await?.to_bytes()))
    }
}

async fn h2(addr: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<http2::SendRequest<Empty<Bytes>>> {
    let socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::IpAddress(addr.ip().into());
    let stream = TlsConnector::from(tls.clone()).connect(name, socket).await?;
    let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(requests)
}
