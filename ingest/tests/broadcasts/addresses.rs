//! What one address may use, and what comes to the wrong port: counted by its name, and nothing to anyone else.

use std::net::SocketAddr;
use std::time::Duration;

use crate::kit::{Encoder, Plan, World};
use ingest::metrics::{Reason, Why};
use ingest::{Config, Metrics};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// With limits that apply to loopback as well, which is exempt by default.
async fn strict(change: impl FnOnce(&mut Config)) -> World {
    World::with([Plan::Serve, Plan::Serve], |config| {
        config.exempt_addresses.clear();
        change(config);
    })
    .await
}

/// Whether a connection to `addr` from `host` gets an answer to its handshake; if so, the connection.
async fn let_in(addr: SocketAddr, host: &str) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{host}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(addr).await.unwrap();
    // It may be closed before.
    let _ = stream.write_all(&[3; 1537]).await;
    let answered = stream.read_exact(&mut [0; 1537]).await.is_ok();
    answered.then_some(stream)
}

fn refused(metrics: &Metrics, reason: Why) -> u64 {
    metrics.refused.get_or_create(&Reason { reason }).get()
}

/// Closes `stream` and waits until that has been noticed.
async fn leave(mut stream: TcpStream) {
    stream.shutdown().await.unwrap();
    while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_connections() {
    let mut world = strict(|config| config.connections_per_address = 3).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    let second = let_in(world.rtmp, "127.0.0.1").await.expect("a second");
    let third = let_in(world.rtmp, "127.0.0.1").await.expect("a third");
    for _ in 0..5 {
        assert!(let_in(world.rtmp, "127.0.0.1").await.is_none(), "a fourth");
    }
    // The other listener is the same house; another address is another.
    assert!(let_in(world.rtmps, "127.0.0.1").await.is_none());
    let other = let_in(world.rtmp, "127.0.0.2").await.expect("another address");
    assert_eq!(refused(&world.metrics, Why::AddressFull), 6);
    drop((second, other));
    leave(third).await;
    // The place is given back when the server has noticed, which it does by itself.
    let rtmp = world.rtmp;
    let again = async {
        loop {
            if let Some(stream) = let_in(rtmp, "127.0.0.1").await {
                return stream;
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(60), again).await.expect("a place is free");
    drop(again);
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    encoder.stop().await;
    world.clean_end().await;
    world.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_connects_so_often() {
    let mut world = strict(|config| {
        config.connects_per_address = 1;
        config.connect_burst_per_address = 6;
    })
    .await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    let mut taken = Vec::new();
    while let Some(stream) = let_in(world.rtmp, "127.0.0.1").await {
        taken.push(stream);
        // One more for each second that has passed meanwhile.
        assert!(taken.len() < 60, "no end of them");
    }
    assert!(taken.len() >= 5, "{}", taken.len());
    assert_eq!(refused(&world.metrics, Why::AddressRate), 1);
    assert!(let_in(world.rtmp, "127.0.0.2").await.is_some(), "another address");
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    encoder.stop().await;
    world.clean_end().await;
    world.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_comes_with_so_many_bad_tokens() {
    let mut world = strict(|config| config.bad_tokens_per_address = 1).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    let mut guesser = Encoder::connect(world.rtmp).await;
    guesser.request_publish("demo?token=a.b.c").await;
    assert_eq!(guesser.status().await.0, "NetStream.Publish.Rejected");
    assert!(guesser.closed().await);
    // It is forgiven after a minute.
    assert!(let_in(world.rtmp, "127.0.0.1").await.is_none());
    assert_eq!(refused(&world.metrics, Why::AddressTokens), 1);
    assert!(let_in(world.rtmp, "127.0.0.2").await.is_some(), "another address");
    // Who is in stays.
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    encoder.stop().await;
    world.clean_end().await;
    let metrics = world.metrics.clone();
    world.shut_down().await;
    assert_eq!(refused(&metrics, Why::Token), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_the_tls_port_without_tls_is_counted_as_such() {
    let mut world = World::with([Plan::Serve, Plan::Serve], |config| {
        config.handshake_timeout = Duration::from_secs(1);
    })
    .await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    let rtmp = [&[3][..], &[0; 1536]].concat();
    let half_a_hello = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..];
    let damaged = [&[0x16, 3, 1, 0, 8][..], &[0xFF; 8]].concat();
    for bytes in [&rtmp[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", half_a_hello, &damaged, b""] {
        let mut stranger = TcpStream::connect(world.rtmps).await.unwrap();
        stranger.write_all(bytes).await.unwrap();
        // An alert, a reset, or just the end.
        let _ = stranger.read_to_end(&mut Vec::new()).await;
    }
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    encoder.stop().await;
    world.clean_end().await;
    let metrics = world.metrics.clone();
    world.shut_down().await;
    let counted = [Why::NotTls, Why::TlsHandshake, Why::Timeout].map(|why| refused(&metrics, why));
    assert_eq!(counted, [2, 1, 2]);
}
