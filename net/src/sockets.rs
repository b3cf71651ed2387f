//! Listening sockets that outlive a process. Those that are open are known by name, so that the next process of a node can
//! be given them: both accept from one queue then, and a connection that waits in it is lost by neither.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::net::TcpListener;

/// A listening socket.
pub struct Open {
    /// What it is for, once in a process.
    pub name: String,
    /// The address that was asked for; its port may be 0.
    pub asked: SocketAddr,
    /// The socket itself, which stays open for as long as this does.
    pub socket: Arc<TcpListener>,
}

static OPEN: Mutex<BTreeMap<&'static str, (SocketAddr, Weak<TcpListener>)>> = Mutex::new(BTreeMap::new());

static INHERITED: Mutex<BTreeMap<String, (SocketAddr, std::net::TcpListener)>> = Mutex::new(BTreeMap::new());

/// What this process listens on and has a name.
pub fn open() -> Vec<Open> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let alive = |(name, (asked, socket)): (&&str, &(SocketAddr, Weak<TcpListener>))| {
        Some(Open { name: (*name).to_owned(), asked: *asked, socket: socket.upgrade()? })
    };
    open.iter().filter_map(alive).collect()
}

/// A socket of the process before, for the listener of that name that asks for the same address.
pub fn inherit(name: String, asked: SocketAddr, socket: std::net::TcpListener) {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (asked, socket));
}

/// Closes what nobody has asked for; its names.
pub fn close_untaken() -> Vec<String> {
    let untaken = std::mem::take(&mut *INHERITED.lock().unwrap_or_else(PoisonError::into_inner));
    untaken.into_keys().collect()
}

pub(crate) fn take(name: &str, asked: SocketAddr) -> Option<std::net::TcpListener> {
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    if inherited.get(name).is_none_or(|(of, _)| *of != asked) {
        return None;
    }
    inherited.remove(name).map(|(_, socket)| socket)
}

pub(crate) fn register(name: &'static str, asked: SocketAddr, socket: &Arc<TcpListener>) {
    let entry = (asked, Arc::downgrade(socket));
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).insert(name, entry);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Listener};
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;
    use tokio_util::sync::CancellationToken;

    #[tokio::test]
    async fn the_next_process_accepts_what_waits() {
        let limits = Limits { max_connections: 8, handshake_timeout: Duration::from_secs(5) };
        let asked = "127.0.0.1:0".parse().unwrap();
        let first = Listener::named("test", asked, limits).await.unwrap();
        let addr = first.local_addr();
        let mut waits = TcpStream::connect(addr).await.unwrap();
        let given = open().into_iter().find(|open| open.name == "test").unwrap();
        let std = given.socket.as_ref();
        let copy = socket2::SockRef::from(std).try_clone().unwrap();
        inherit("test".into(), asked, copy.into());
        let other = "127.0.0.2:0".parse().unwrap();
        assert!(take("test", other).is_none(), "another address was asked for");
        let second = Listener::named("test", asked, limits).await.unwrap();
        assert_eq!(second.local_addr(), addr);
        drop((given, first));
        let (stop, drain) = (CancellationToken::new(), Duration::from_secs(60));
        let running = tokio::spawn(second.run(None, stop.clone(), drain, |stream, _| async { drop(stream) }));
        assert_eq!(waits.read(&mut [0]).await.unwrap(), 0, "it is accepted, and closed in good order");
        stop.cancel();
        running.await.unwrap();
        assert!(TcpStream::connect(addr).await.is_err());
        assert!(!open().iter().any(|open| open.name == "test"), "nothing keeps it open");
    }
}
