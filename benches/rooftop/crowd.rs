//! Many viewers from one process: h1 over TCP or TLS, a connection each, with no more around it than reading the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections being made at once: fewer than a server's queue of new connections holds.
const CONNECTING: usize = 64;

/// Longest header of an answer, in bytes.
const MAX_HEADER: usize = 16 << 10;

/// One connection.
pub(crate) enum Viewer {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What came of a request.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    /// When its first bytes came.
    pub(crate) begun: Instant,
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// What there is of the body.
    pub(crate) body: Vec<u8>,
    /// The body did not end as its header said: it was cut.
    pub(crate) cut: bool,
}

impl Viewer {
    /// Connects; over TLS if a configuration is given. Each comes as a stranger: no session is resumed.
    pub(crate) async fn connect(addr: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Viewer> {
        let socket = TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        let Some(tls) = tls else {
            return Ok(Viewer::Plain(socket));
        };
        let name = ServerName::IpAddress(addr.ip().into());
        let stream = TlsConnector::from(tls.clone()).connect(name, socket).await?;
        Ok(Viewer::Tls(Box::new(stream)))
    }

    /// So many connections to one address.
    pub(crate) async fn connect_all(
        count: usize,
        addr: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
    ) -> anyhow::Result<Vec<Viewer>> {
        let (mut viewers, mut connecting) = (Vec::with_capacity(count), JoinSet::new());
        for _ in 0..count {
            if connecting.len() == CONNECTING
                && let Some(viewer) = connecting.join_next().await
            {
                viewers.push(viewer??);
            }
            let tls = tls.cloned();
            connecting.spawn(async move { Viewer::connect(addr, tls.as_ref()).await });
        }
        while let Some(viewer) = connecting.join_next().await {
            viewers.push(viewer??);
        }
        Ok(viewers)
    }

    /// Sends a GET.
    pub(crate) async fn ask(&mut self, path: &str) -> anyhow::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        match self {
            Viewer::Plain(socket) => socket.write_all(request.as_bytes()).await?,
            Viewer::Tls(stream) => {
                stream.write_all(request.as_bytes()).await?;
                stream.flush().await?;
            }
        }
        Ok(())
    }

    /// Reads the answer to its end. An error: there was not even a header.
    pub(crate) async fn answer(&mut self) -> anyhow::Result<Got> {
        match self {
            Viewer::Plain(socket) => read(socket).await,
            Viewer::Tls(stream) => read(stream).await,
        }
    }

    /// Both.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Got> {
        self.ask(path).await?;
        self.answer().await
    }
}

/// One request on a connection of its own, over plain HTTP.
pub(crate) async fn get(http: SocketAddr, path: &str) -> anyhow::Result<Got> {
    Viewer::connect(http, None).await?.get(path).await
}

/// How the end of a body is known (RFC 9112 section 6.3).
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> anyhow::Result<Got> {
    let (mut bytes, mut begun) = (Vec::with_capacity(8 << 10), None);
    let head_len = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if bytes.len() > MAX_HEADER {
            bail!("a header of more than {MAX_HEADER} bytes");
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("closed before an answer");
        }
        begun.get_or_insert_with(Instant::now);
    };
    let rest = bytes.split_off(head_len);
    let (status, headers) = parse_head(&bytes).context("not an HTTP answer")?;
    let header =
        |name: &str| headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str());
    let framing = match (header("transfer-encoding"), header("content-length")) {
        (Some("chunked"), _) => Framing::Chunked,
        (_, Some(length)) => Framing::Length(length.parse()?),
        _ => Framing::Close,
    };
    let (body, cut) = match framing {
        Framing::Length(length) => {
            let mut body = rest;
            body.reserve(length.saturating_sub(body.len()));
            while body.len() < length && matches!(stream.read_buf(&mut body).await, Ok(read) if read > 0) {}
            let cut = body.len() < length;
            (body, cut)
        }
        Framing::Chunked => {
            let mut chunks = Chunks::default();
            let mut ended = chunks.push(&rest)?;
            let mut buffer = vec![0; 16 << 10];
            while !ended && let Ok(read @ 1..) = stream.read(&mut buffer).await {
                ended = chunks.push(&buffer[..read])?;
            }
            (chunks.body, !ended)
        }
        Framing::Close => {
            let mut body = rest;
            let ended = stream.read_to_end(&mut body).await.is_ok();
            (body, !ended)
        }
    };
    Ok(Got { begun: begun.unwrap_or_else(Instant::now), status, headers, body, cut })
}

fn parse_head(head: &[u8]) -> Option<(u16, Vec<(String, String)>)> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some((status, headers))
}

/// A body in chunks (RFC 9112 section 7.1), as far as it has come.
#[derive(Default)]
struct Chunks {
    body: Vec<u8>,
    /// Not yet understood.
    line: Vec<u8>,
    /// Of the chunk that is being read, its line end included.
    left: usize,
    trailer: bool,
}

impl Chunks {
    /// Whether that was the end.
    fn push(&mut self, mut bytes: &[u8]) -> anyhow::Result<bool> {
        while let Some(&first) = bytes.first() {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                // The last two bytes are not the body's.
                let of_body = self.left.saturating_sub(2).min(taken);
                self.body.extend_from_slice(&bytes[..of_body]);
                self.left -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            bytes = &bytes[1..];
            self.line.push(first);
            if !self.line.ends_with(b"\r\n") {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = std::str::from_utf8(&line)?.trim_end();
            if self.trailer {
                if line.is_empty() {
                    return Ok(true);
                }
                continue;
            }
            let size = line.split(';').next().unwrap_or_default();
            match usize::from_str_radix(size, 16)
                .with_context(|| format!("{line:?} is not a chunk's size"))?
            {
                0 => self.trailer = true,
                size => self.left = size + 2,
            }
        }
        Ok(false)
    }
}
