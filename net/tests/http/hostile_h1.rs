//! Peers on HTTP/1.1 that ask too much, too slowly, or take too little.

use std::time::Duration;

use net::http::Options;
use net::{PerAddress, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::{LONG, Server, closed, h1_answer};

const GET: &[u8] = b"GET /10 HTTP/1.1\r\nhost: x\r\n\r\n";

fn patient() -> Options {
    Options { header_timeout: LONG, send_timeout: LONG, viewers: true, ..Options::default() }
}

async fn asked(server: &Server) -> (TcpStream, Option<u16>) {
    let mut socket = server.connect().await;
    let _ = socket.write_all(GET).await;
    let answer = h1_answer(&mut socket).await;
    (socket, answer.map(|(status, ..)| status))
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let rules = PerAddress { connections: 2, ..PerAddress::default() };
    let mut server = Server::start(patient(), rules.clone()).await;
    let first = asked(&server).await;
    let second = asked(&server).await;
    assert_eq!((first.1, second.1), (Some(200), Some(200)));
    assert_eq!(asked(&server).await.1, None, "the third is closed");
    assert_eq!(server.refusals(), [Refusal::AddressFull]);
    drop(first);
    // The server notices in its own time; until then it refuses.
    while asked(&server).await.1.is_none() {}
    drop(second);

    let exempt = PerAddress { exempt: vec!["127.0.0.0/8".parse().unwrap()], ..rules };
    let mut server = Server::start(patient(), exempt).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(asked(&server).await);
    }
    assert!(all.iter().all(|(_, status)| *status == Some(200)));
    assert_eq!(server.refusals(), []);
}

#[tokio::test]
async fn too_many_requests_are_told_when_to_come_back() {
    let rules = PerAddress { requests_per_second: 1, burst: 20, ..PerAddress::default() };
    let mut server = Server::start(patient(), rules).await;
    let mut socket = server.connect().await;
    let mut statuses = Vec::new();
    for _ in 0..200 {
        socket.write_all(GET).await.unwrap();
        let (status, _, head) = h1_answer(&mut socket).await.expect("the connection stays");
        if status == 429 {
            let wait = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
            assert!((1..=20).contains(&wait.parse::<u32>().unwrap()), "{head}");
        }
        statuses.push(status);
    }
    assert!(statuses[..10].iter().all(|status| *status == 200), "{statuses:?}");
    assert!(statuses.contains(&429), "{statuses:?}");
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!(server.refusals(), vec![Refusal::RequestRate; refused]);
    // A connection costs ten, and there are less.
    while asked(&server).await.1.is_some() {}
    assert_eq!(server.refusal().await, Refusal::AddressRate);
}

#[tokio::test]
async fn who_takes_nothing_is_cut_off() {
    let options = Options { send_timeout: Duration::from_secs(1), ..patient() };
    let mut server = Server::start(options, PerAddress::default()).await;
    let mut socket = server.connect().await;
    // More than the kernel's buffers hold.
    socket.write_all(b"GET /100000000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(server.refusal().await, Refusal::SlowReader);
    closed(&mut socket).await;
}

#[tokio::test]
async fn a_header_must_come_to_its_end() {
    let options = Options { header_timeout: Duration::from_secs(1), ..patient() };
    let mut server = Server::start(options, PerAddress::default()).await;
    let mut silent = server.connect().await;
    closed(&mut silent).await;
    assert_eq!(server.refusal().await, Refusal::Silent);
    for first in [&b""[..], GET] {
        let mut socket = server.connect().await;
        socket.write_all(first).await.unwrap();
        if !first.is_empty() {
            h1_answer(&mut socket).await.unwrap();
        }
        socket.write_all(b"GET /10 HTTP/1.1\r\nhost: x\r\nx-more: ").await.unwrap();
        closed(&mut socket).await;
        assert_eq!(server.refusal().await, Refusal::HeaderTimeout);
    }
    // Who asked before and is idle now is let go without a word.
    let (mut socket, status) = asked(&server).await;
    assert_eq!(status, Some(200));
    closed(&mut socket).await;
    assert_eq!(server.refusals(), []);
}

#[tokio::test]
async fn headers_and_bodies_are_bounded() {
    let mut server = Server::start(patient(), PerAddress::default()).await;
    let mut socket = server.connect().await;
    let header = format!("GET /10 HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(100_000));
    let _ = socket.write_all(header.as_bytes()).await;
    closed(&mut socket).await;
    assert_eq!(server.refusal().await, Refusal::HeaderSize);

    let mut socket = server.connect().await;
    let _ = socket.write_all(b"this is no HTTP\r\n\r\n").await;
    closed(&mut socket).await;
    assert_eq!(server.refusal().await, Refusal::Protocol);

    // A body that nobody asked for: the answer comes, then the connection ends instead of reading on.
    let mut socket = server.connect().await;
    socket.write_all(b"GET /10 HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n").await.unwrap();
    let piece = vec![0; 64 << 10];
    let mut sent = 0;
    while socket.write_all(&piece).await.is_ok() {
        sent += piece.len();
        assert!(sent < 64 << 20, "it reads on and on");
    }
    let _ = socket.read(&mut [0]).await;
}
