//! A reader at one hop: asks for segment after segment before they exist and notes when which byte came.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An HTTP/2 connection to one server.
#[derive(Clone)]
pub(crate) struct Connection {
    addr: SocketAddr,
    requests: SendRequest<Empty<Bytes>>,
}

/// What came of one object.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) body: Bytes,
    /// When the first so many bytes were there, in order.
    times: Vec<(usize, Instant)>,
}

impl Arrival {
    /// When the first `len` bytes were there.
    pub(crate) fn time_of(&self, len: usize) -> Option<Instant> {
        let index = self.times.partition_point(|&(there, _)| there < len);
        self.times.get(index).map(|&(_, time)| time)
    }
}

impl Connection {
    /// Connects; the connection ends when the last clone is dropped.
    pub(crate) async fn open(addr: SocketAddr, tls: &ClientConfig) -> anyhow::Result<Connection> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(addr.ip().into());
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, socket).await?;
        let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // Ends by itself once nobody can send requests any more.
        tokio::spawn(connection);
        Ok(Connection { addr, requests })
    }

    /// The whole object and when its bytes came; `None` where there is none. `began` is told of the first bytes.
    pub(crate) async fn get(
        &mut self,
        path: &str,
        began: Option<tokio::sync::oneshot::Sender<()>>,
    ) -> anyhow::Result<Option<Arrival>> {
        let uri: Uri = format!("https://{}{path}", self.addr).parse()?;
        self.requests.ready().await?;
        let response = self.requests.send_request(Request::get(uri).body(Empty::new())?).await?;
        if response.status() == StatusCode::NOT_FOUND || response.status() == StatusCode::MISDIRECTED_REQUEST
        {
            return Ok(None);
        }
        ensure!(response.status() == StatusCode::OK, "{path} at {}: {}", self.addr, response.status());
        let (mut bytes, mut times, mut began) = (BytesMut::new(), Vec::new(), began);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let time = Instant::now();
            let frame = frame.with_context(|| format!("{path} at {}", self.addr))?;
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
                times.push((bytes.len(), time));
                if let Some(began) = began.take() {
                    // Nobody may be interested.
                    let _ = began.send(());
                }
            }
        }
        Ok(Some(Arrival { body: bytes.freeze(), times }))
    }
}
