//! The servers that are compared: each a process of its own, on one CPU, with the addresses where it answers.

use std::any::Any;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::node::Node;
use crate::process::Running;

/// One of those that are compared. Dropping it ends it.
pub(crate) struct Server {
    /// Short: the head of a column.
    pub(crate) name: &'static str,
    /// With its version and how it serves.
    pub(crate) title: String,
    pub(crate) pid: u32,
    /// Where it serves HTTPS, if it does.
    pub(crate) https: Option<SocketAddr>,
    /// Where it serves plain HTTP, if it does.
    pub(crate) http: Option<SocketAddr>,
    _process: Box<dyn Any>,
}

/// Rooftop's column.
pub(crate) const ROOFTOP: &str = "Rooftop";

impl Server {
    /// A node whose edge serves both.
    pub(crate) fn rooftop(node: Node) -> anyhow::Result<Server> {
        let (https, http) = (Some(node.addr("https")?), Some(node.addr("http")?));
        let title = format!("{ROOFTOP} {}", env!("CARGO_PKG_VERSION"));
        Ok(Server { name: ROOFTOP, title, pid: node.pid(), https, http, _process: Box::new(node) })
    }

    /// A process that serves at these addresses, as soon as it accepts connections there.
    pub(crate) fn of(
        name: &'static str,
        title: String,
        process: Running,
        https: Option<SocketAddr>,
        http: Option<SocketAddr>,
        folder: &Path,
    ) -> anyhow::Result<Server> {
        for addr in [https, http].into_iter().flatten() {
            until_accepts(addr, name, folder)?;
        }
        Ok(Server { name, title, pid: process.pid(), https, http, _process: Box::new(process) })
    }

    /// Where it speaks this protocol.
    pub(crate) fn addr(&self, tls: bool) -> anyhow::Result<SocketAddr> {
        let addr = if tls { self.https } else { self.http };
        addr.ok_or_else(|| anyhow::anyhow!("{} does not serve that", self.name))
    }
}

/// Waits until `addr` accepts connections; logs are in `folder`.
pub(crate) fn until_accepts(addr: SocketAddr, name: &str, folder: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(addr).is_err() {
        if Instant::now() > deadline {
            bail!("{name} does not accept connections: {}", folder.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// For servers that cannot be given port 0: one that was free a moment ago.
pub(crate) fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
