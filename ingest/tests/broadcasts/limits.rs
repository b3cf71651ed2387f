//! Who says nothing, too much or nonsense, and in numbers: connections end with words, memory stays flat, and the stream
//! beside them loses nothing.

use std::time::Duration;

use crate::kit::{Encoder, Plan, World};
use ingest::metrics::{Reason, Why};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Handshake and a chunk size.
fn hello(chunk_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![3];
    bytes.extend([0; 2 * 1536]);
    bytes.extend([2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0]);
    bytes.extend(chunk_bytes.to_be_bytes());
    bytes
}

/// The header of a video message of so many bytes.
fn announce(csid: u8, len: u32) -> Vec<u8> {
    let mut bytes = vec![csid, 0, 0, 0];
    bytes.extend(&len.to_be_bytes()[1..]);
    bytes.extend([9, 1, 0, 0, 0]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_hostile_connections_cost_little_and_the_neighbour_nothing() {
    let mut world = World::with([Plan::Serve, Plan::Serve], |config| {
        config.handshake_timeout = Duration::from_secs(3);
    })
    .await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    let before = resident();

    let nested = [&[3, 0, 0, 0, 0, 0x10, 0, 20, 0, 0, 0, 0][..], &[10, 0, 0, 0, 1].repeat(820)].concat();
    let mut attacks: Vec<(Vec<u8>, usize)> = vec![
        // Silent, and half-open ones that stop in the middle of the handshake.
        (Vec::new(), 250),
        (vec![3; 1000], 250),
        // 16 MB announced; chunk streams that begin and never end; chunk sizes 0 and 2^31; nested AMF; HTTP.
        ([hello(1 << 24), announce(6, 0xFF_FFFF), vec![0; 5000]].concat(), 100),
        (
            [hello(128), (3..40).flat_map(|csid| [announce(csid, 60_000), vec![7; 128]].concat()).collect()]
                .concat(),
            50,
        ),
        (hello(0), 20),
        (hello(1 << 31), 20),
        ([hello(1 << 20), nested].concat(), 20),
        (b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 20),
    ];
    let count: usize = attacks.iter().map(|(_, count)| count).sum();
    let mut sockets = Vec::new();
    for (bytes, count) in attacks.drain(..) {
        for _ in 0..count {
            let mut socket = TcpStream::connect(world.rtmp).await.unwrap();
            // It may be closed on the way.
            let _ = socket.write_all(&bytes).await;
            sockets.push(socket);
        }
    }
    // The neighbour goes on among them.
    encoder.video(40, false).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 40);
    let during = resident();
    // All of them are closed, by what they sent or by the timeout.
    for mut socket in sockets {
        let mut ignored = Vec::new();
        let _ = socket.read_to_end(&mut ignored).await;
    }
    encoder.video(80, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 80);
    // Tasks, TLS-less sockets and 16 KiB of buffers each, the test's own ends included: an eighth of what was announced by
    // one hundred of them alone.
    let cost = during.saturating_sub(before);
    assert!(cost < count * (96 << 10), "{count} connections hold {cost} bytes");

    let metrics = world.metrics.clone();
    encoder.stop().await;
    world.clean_end().await;
    world.shut_down().await;
    let refused = |reason| metrics.refused.get_or_create(&Reason { reason }).get();
    assert_eq!((refused(Why::Timeout), refused(Why::Protocol), refused(Why::NotRtmp)), (500, 210, 20));
    assert_eq!(metrics.connections.get(), 0);
}

/// What took another server to 496 MB: half of sixty messages of 16 MB, each on a chunk stream of its own. Here it ends at
/// the largest message and a little more, also for who may publish.
#[tokio::test(flavor = "multi_thread")]
async fn sixty_chunk_streams_hold_no_more_than_one_message() {
    let mut world = World::new([Plan::Serve, Plan::Serve]).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    // As large as they may be each, so that only their sum can be the offence; then what is announced is too much alone.
    for len in [8 << 20, (1 << 24) - 1] {
        let mut hog = Encoder::publishing(&world, "hog").await;
        let before = resident();
        const CHUNK: usize = 128 << 10;
        hog.raw(&[&[2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0][..], &(CHUNK as u32).to_be_bytes()].concat()).await;
        let mut most = 0;
        'sending: for round in 0..60 {
            // As many chunk streams as a connection may have besides those that it has.
            for csid in 10..38 {
                let mut bytes = if round == 0 { announce(csid, len) } else { vec![0xC0 | csid] };
                bytes.resize(bytes.len() + CHUNK, 7);
                if !hog.try_raw(&bytes).await {
                    break 'sending;
                }
                most = most.max(resident().saturating_sub(before));
            }
        }
        // Some 230 MB were sent: what came after the end was read and dropped.
        assert!(most < 48 << 20, "{most} bytes were held");
        assert!(hog.closed().await);
    }
    encoder.video(40, false).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 40);
    let metrics = world.metrics.clone();
    encoder.stop().await;
    world.shut_down().await;
    assert_eq!(metrics.sessions_ended.get_or_create(&Reason { reason: Why::Protocol }).get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_pauses_is_let_be() {
    let mut world = World::with([Plan::Serve, Plan::Serve], |config| {
        config.idle_timeout = Duration::from_secs(1);
    })
    .await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    encoder.video(0, true).await;
    // For longer than the timeout it says nothing and answers no ping; its host acknowledges them.
    for _ in 0..8 {
        encoder.pinged().await;
    }
    encoder.video(2000, true).await;
    assert_eq!(world.next_tag().await.timestamp_ms, 0);
    assert_eq!(world.next_tag().await.timestamp_ms, 2000);
    encoder.stop().await;
    world.clean_end().await;
    let metrics = world.metrics.clone();
    world.shut_down().await;
    assert_eq!(metrics.sessions_ended.get_or_create(&Reason { reason: Why::Closed }).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_fast_is_told_so() {
    let mut world = World::with([Plan::Serve, Plan::Serve], |config| config.max_bitrate_bps = 100_000).await;
    let mut encoder = Encoder::publishing(&world, "demo").await;
    // 125000 bytes are ten seconds of that.
    for index in 0..130 {
        encoder.padded_video(index * 40, 1000).await;
    }
    let (code, why) = encoder.status().await;
    assert_eq!(code, "NetStream.Publish.Rejected");
    assert!(why.starts_with("bitrate: ") && why.ends_with(" bit/s over 10s exceed 100000"), "{why}");
    world.clean_end().await;
    world.shut_down().await;
}
