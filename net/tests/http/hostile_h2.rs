//! Peers on HTTP/2 that flood, reset, or keep their windows closed.

use std::time::Duration;

use net::http::Options;
use net::{PerAddress, Refusal};
use tokio::io::AsyncWriteExt;

use crate::kit::{H2, LONG, Server, closed, encoded, frame, get_block};

/// SETTINGS_INITIAL_WINDOW_SIZE.
const WINDOW: u16 = 4;

fn patient() -> Options {
    Options { header_timeout: LONG, send_timeout: LONG, viewers: true, ..Options::default() }
}

/// Looks after a connection four times within this.
fn quick() -> Options {
    Options { send_timeout: Duration::from_secs(1), ..patient() }
}

/// Reads to the end; whether GOAWAY was said before, and with which error.
async fn ended(h2: &mut H2) -> Option<u32> {
    let mut said = None;
    while let Some(frame) = h2.next().await {
        if frame.kind == frame::GOAWAY {
            said = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
        }
    }
    said
}

#[tokio::test]
async fn a_stream_whose_window_stays_closed_is_reset_alone() {
    let mut server = Server::start(quick(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[(WINDOW, 1000)]).await;
    assert!(h2.get(1, "/1000000", None).await);
    assert_eq!(server.refusal().await, Refusal::SlowStream);
    let mut bytes = 0;
    loop {
        let frame = h2.next().await.expect("the connection stays");
        match frame.kind {
            frame::DATA => bytes += frame.payload.len(),
            frame::RST_STREAM => break assert_eq!(frame.stream, 1),
            _ => {}
        }
    }
    assert_eq!(bytes, 1000);
    assert!(h2.get(3, "/500", None).await);
    loop {
        let frame = h2.next().await.expect("the connection stays");
        if frame.kind == frame::DATA && frame.flags & frame::END_STREAM != 0 {
            break assert_eq!((frame.stream, frame.payload.len()), (3, 500));
        }
    }
}

#[tokio::test]
async fn streams_that_stand_still_do_not_hold_up_the_others() {
    let server = Server::start(patient(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[(WINDOW, 1000)]).await;
    for stream in (1..17).step_by(2) {
        assert!(h2.get(stream, "/1000000", None).await);
    }
    let mut bytes = 0;
    while bytes < 2000 {
        let frame = h2.next().await.expect("the connection stays");
        bytes += if frame.kind == frame::DATA { frame.payload.len() } else { 0 };
    }
    assert!(h2.get(17, "/500", None).await);
    loop {
        let frame = h2.next().await.expect("the connection stays");
        if frame.stream == 17 && frame.flags & frame::END_STREAM != 0 {
            break assert_eq!(frame.payload.len(), 500);
        }
    }
}

#[tokio::test]
async fn the_end_of_an_answer_must_be_taken_too() {
    let mut server = Server::start(quick(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[(WINDOW, 10)]).await;
    assert!(h2.get(1, "/500", None).await);
    assert_eq!(server.refusal().await, Refusal::SlowStream);
    ended(&mut h2).await;
}

#[tokio::test]
async fn who_takes_nothing_at_all_is_cut_off() {
    let mut server = Server::start(quick(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[(WINDOW, (1 << 31) - 1)]).await;
    assert!(h2.send(frame::WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()).await);
    assert!(h2.get(1, "/100000000", None).await);
    assert_eq!(server.refusal().await, Refusal::SlowReader);
}

#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    // As fast as it can, so that streams are reset before they are looked at.
    let mut server = Server::start(patient(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    let mut burst = Vec::new();
    for stream in (1..4001).step_by(2) {
        let end = frame::END_HEADERS | frame::END_STREAM;
        burst.extend(encoded(frame::HEADERS, end, stream, &get_block("/never", None)));
        burst.extend(encoded(frame::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let _ = h2.0.write_all(&burst).await;
    let why = server.refusal().await;
    assert!(matches!(why, Refusal::Flood | Refusal::Resets), "{why:?}");

    // One after the other, each looked at first: a ping's answer says that the server has seen what came before.
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    let mut asked = 0;
    for stream in (1..4001).step_by(2) {
        asked += 1;
        let there = h2.get(stream, "/never", None).await
            && h2.send(frame::RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await
            && ping(&mut h2).await;
        if !there {
            break;
        }
    }
    assert_eq!(server.refusal().await, Refusal::Resets);
    assert!(asked < 400, "{asked}");

    // Who lets answers finish may cancel as many.
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    for stream in (1..4001).step_by(4) {
        assert!(h2.get(stream, "/never", None).await);
        assert!(h2.send(frame::RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await);
        assert!(h2.get(stream + 2, "/0", None).await);
        loop {
            let frame = h2.next().await.expect("the connection stays");
            if frame.stream == stream + 2 && frame.flags & frame::END_STREAM != 0 {
                break;
            }
        }
    }
    assert_eq!(server.refusals(), []);
}

/// Whether the server answers a ping.
async fn ping(h2: &mut H2) -> bool {
    use tokio::io::AsyncReadExt;
    if !h2.send(frame::PING, 0, 0, &[7; 8]).await {
        return false;
    }
    loop {
        let mut head = [0; 9];
        if h2.0.read_exact(&mut head).await.is_err() {
            return false;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if h2.0.read_exact(&mut payload).await.is_err() {
            return false;
        }
        if head[3] == frame::PING && head[4] & frame::ACK != 0 {
            return true;
        }
    }
}

#[tokio::test]
async fn a_continuation_flood_ends_the_connection() {
    let mut server = Server::start(patient(), PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    assert!(h2.send(frame::HEADERS, frame::END_STREAM, 1, &get_block("/10", None)).await);
    let mut sent = 0;
    while sent < 100_000 && h2.send(frame::CONTINUATION, 0, 1, &[]).await {
        sent += 1;
    }
    assert_eq!(server.refusal().await, Refusal::Flood);
    assert!(sent < 100_000);

    // A header of more than the limit, in one piece after the other.
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    assert!(h2.send(frame::HEADERS, frame::END_STREAM, 1, &get_block("/10", None)).await);
    let mut literal = vec![0, 1, b'x', 0x7f, 0x81, 0x7f];
    literal.resize(16_000, b'y');
    let mut sent = 0;
    while sent < 10_000 && h2.send(frame::CONTINUATION, 0, 1, &literal).await {
        sent += 1;
    }
    assert!(sent < 10_000, "160 MB of header");
    let why = server.refusal().await;
    assert!(matches!(why, Refusal::Flood | Refusal::Protocol), "{why:?}");
}

#[tokio::test]
async fn ping_and_settings_floods_end_the_connection() {
    for (kind, payload) in [(frame::PING, &[0; 8][..]), (frame::SETTINGS, &[])] {
        let mut server = Server::start(quick(), PerAddress::default()).await;
        let h2 = H2::begin(server.connect().await, &[]).await;
        let (mut reader, mut writer) = h2.0.into_split();
        // It reads the answers, so that only their number is at fault.
        let reading = tokio::spawn(async move {
            let mut sink = tokio::io::sink();
            let _ = tokio::io::copy(&mut reader, &mut sink).await;
        });
        let burst = encoded(kind, 0, 0, payload).repeat(1000);
        while writer.write_all(&burst).await.is_ok() {}
        assert_eq!(server.refusal().await, Refusal::Chatter);
        reading.await.unwrap();
    }
}

#[tokio::test]
async fn headers_that_never_end_and_idle_connections_are_let_go() {
    let options = Options { header_timeout: Duration::from_secs(1), ..patient() };
    let mut server = Server::start(options, PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    assert!(h2.send(frame::HEADERS, frame::END_STREAM, 1, &get_block("/10", None)).await);
    closed(&mut h2.0).await;
    assert_eq!(server.refusal().await, Refusal::Silent);

    let mut h2 = H2::begin(server.connect().await, &[]).await;
    assert!(h2.get(1, "/10", None).await);
    assert_eq!(ended(&mut h2).await, Some(0), "told to go, with no error");
    assert_eq!(server.refusals(), []);

    // The fleet's connections stay.
    let options = Options { viewers: false, ..options };
    let server = Server::start(options, PerAddress::default()).await;
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    for stream in [1, 3] {
        assert!(h2.get(stream, "/10", None).await);
        while h2.next().await.expect("the connection stays").flags & frame::END_STREAM == 0 {}
        if stream == 1 {
            let idle = tokio::time::timeout(options.header_timeout * 3, h2.next()).await;
            assert!(idle.is_err(), "{idle:?}");
        }
    }
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused_one_by_one() {
    let rules = PerAddress { requests_per_second: 1, burst: 12, ..PerAddress::default() };
    let mut server = Server::start(patient(), rules).await;
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    for stream in (1..201).step_by(2) {
        assert!(h2.get(stream, "/10", None).await);
        while h2.next().await.expect("the connection stays").flags & frame::END_STREAM == 0 {}
    }
    let refusals = server.refusals();
    assert!(refusals.len() > 10 && refusals.iter().all(|why| *why == Refusal::RequestRate), "{refusals:?}");
}
