use super::*;

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// Reads every request's body to its end, but for those to `/stuck`.
struct Origin {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Connections that have ended.
    ended: mpsc::UnboundedReceiver<()>,
    /// Path of a request, and what came.
    bodies: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    goes_away: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Origin {
    async fn start(tls: Arc<rustls::ServerConfig>) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (ended_tx, ended) = mpsc::unbounded_channel();
        let (body, bodies) = mpsc::unbounded_channel();
        let (goes_away, leaving) = watch::channel(false);
        let counted = connections.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let tls = tokio_rustls::TlsAcceptor::from(tls.clone());
                let (ended, body, mut leaving) = (ended_tx.clone(), body.clone(), leaving.clone());
                open.spawn(async move {
                    let stream = tls.accept(socket).await.unwrap();
                    let mut builder = h2::server::Builder::new();
                    builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
                    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                    let mut reading = JoinSet::new();
                    let mut gone = false;
                    loop {
                        tokio::select! {
                            request = connection.accept() => match request {
                                Some(Ok((request, mut answer))) => {
                                    // Who has reset it gets none.
                                    if let Ok(answer) = answer.send_response(Response::new(()), false) {
                                        reading.spawn(read(request, answer, body.clone()));
                                    }
                                }
                                _ => break,
                            },
                            _ = leaving.wait_for(|gone| *gone), if !gone => {
                                gone = true;
                                connection.graceful_shutdown();
                            }
                        }
                    }
                    let _ = ended.send(());
                });
            }
        });
        Origin { addr, connections, ended, bodies, goes_away, _task: task }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn read(
    request: Request<RecvStream>,
    mut answer: SendStream<Bytes>,
    bodies: mpsc::UnboundedSender<(String, Vec<u8>)>,
) {
    let path = request.uri().path().to_owned();
    if path == "/stuck" {
        return std::future::pending().await;
    }
    let (mut body, mut got) = (request.into_body(), Vec::new());
    while let Some(bytes) = body.data().await {
        let Ok(bytes) = bytes else { return };
        body.flow_control().release_capacity(bytes.len()).unwrap();
        got.extend_from_slice(&bytes);
    }
    let _ = bodies.send((path, got));
    let _ = answer.send_data(Bytes::new(), true);
}

/// A node with connections of at most `streams` relays, and an origin.
async fn world(streams: usize, gather: Duration) -> (Uplinks, Origin) {
    let dir = std::env::temp_dir().join(format!("rooftop-uplink-{}-{:016x}", std::process::id(), {
        u64::from_le_bytes(crate::random())
    }));
    let files = net::tls::development_files(&dir, "node", &[]).unwrap();
    let server = net::tls::server_config(&files, net::tls::Clients::Fleet, &[b"h2"]).unwrap();
    let client = net::tls::client_config(&files).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let rules = config::Relay { streams_per_connection: streams, gather, ..config::Relay::default() };
    (Uplinks::new(&rules, &client), Origin::start(server).await)
}

/// Begins a request. It is reset when both are dropped.
async fn begin(uplink: &Uplink, path: &str) -> Result<(ResponseFuture, SendStream<Bytes>), BoxError> {
    let request = Request::builder().method("POST").uri(format!("https://origin{path}")).body(())?;
    Ok(uplink.sender().await?.send_request(request, false)?)
}

#[tokio::test]
async fn relays_share_a_connection_until_it_is_full() {
    let (uplinks, mut origin) = world(2, Duration::ZERO).await;
    let address = origin.addr.to_string();
    let [a, b, c] = [0; 3].map(|_| uplinks.lease(&address));
    assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&b, &c));
    for uplink in [&a, &b, &c] {
        let _ = begin(uplink, "/x").await.unwrap();
    }
    assert_eq!(origin.connections(), 2);
    drop(b);
    assert!(Arc::ptr_eq(&a, &uplinks.lease(&address)), "there is room again");
    a.retire();
    let d = uplinks.lease(&address);
    assert!(Arc::ptr_eq(&c, &d), "no relay begins on one that is retired");
    let _ = begin(&a, "/x").await.expect("those that are on it go on");
    drop(a);
    origin.ended.recv().await.unwrap();
    assert_eq!(c.why_closed(), None, "the other is not touched");
    drop((c, d));
    origin.ended.recv().await.unwrap();
    let _ = begin(&uplinks.lease(&address), "/x").await.unwrap();
    assert_eq!((origin.connections(), uplinks.known.lock().unwrap().len()), (3, 1));
}

#[tokio::test]
async fn an_origin_that_goes_away_gets_no_more_on_that_connection() {
    let (uplinks, origin) = world(64, Duration::from_millis(1)).await;
    let address = origin.addr.to_string();
    let old = uplinks.lease(&address);
    let (answer, mut body) = begin(&old, "/x").await.unwrap();
    answer.await.unwrap();
    origin.goes_away.send_replace(true);
    // Until what it said has come.
    while old.sender().await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!Arc::ptr_eq(&old, &uplinks.lease(&address)));
    assert!(room(&mut body).await.is_some(), "what is on it goes on");
}

#[tokio::test]
async fn who_cannot_be_reached_says_why() {
    let (uplinks, origin) = world(64, Duration::ZERO).await;
    let address = origin.addr.to_string();
    drop(origin);
    let uplink = uplinks.lease(&address);
    let error = begin(&uplink, "/x").await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    assert_eq!(uplink.why_closed().as_deref(), Some(error.as_str()));
    assert!(!Arc::ptr_eq(&uplink, &uplinks.lease(&address)), "the next one tries anew");
}

#[tokio::test]
async fn bodies_arrive_whole_beside_one_that_is_not_read() {
    let (uplinks, mut origin) = world(64, Duration::from_millis(2)).await;
    let uplink = uplinks.lease(&origin.addr.to_string());
    let (_answer, mut stuck) = begin(&uplink, "/stuck").await.unwrap();
    // Until its window is closed.
    let mut filled = 0;
    while filled < 1 << 20 {
        let piece = room(&mut stuck).await.unwrap().min((1 << 20) - filled);
        stuck.send_data(vec![0; piece].into(), false).unwrap();
        filled += piece;
    }
    let mut tasks = JoinSet::new();
    for stream in 0..20usize {
        let (answer, mut body) = begin(&uplink, &format!("/{stream}")).await.unwrap();
        tasks.spawn(async move {
            for number in 0..200usize {
                room(&mut body).await.unwrap();
                let piece = vec![(stream + number) as u8; 1 + 97 * ((stream * 31 + number * 17) % 100)];
                body.send_data(piece.into(), false).unwrap();
            }
            body.send_data(Bytes::new(), true).unwrap();
            let mut answer = answer.await.unwrap().into_body();
            while let Some(bytes) = answer.data().await {
                assert!(bytes.unwrap().is_empty());
            }
        });
    }
    tasks.join_all().await;
    for _ in 0..20 {
        let (path, got) = origin.bodies.recv().await.unwrap();
        let stream: usize = path[1..].parse().unwrap();
        let expected: Vec<u8> = (0..200usize)
            .flat_map(|number| vec![(stream + number) as u8; 1 + 97 * ((stream * 31 + number * 17) % 100)])
            .collect();
        assert!(got == expected, "stream {stream}: {} of {} bytes", got.len(), expected.len());
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn hosts_of_addresses() {
    for (address, expected) in [("dc1:9000", "dc1"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1")] {
        assert_eq!(host(address), expected);
    }
}
