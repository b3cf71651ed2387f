//! Connections that are put away while they are idle work as if they were not.

use std::sync::Arc;

use net::PerAddress;
use net::http::Options;
use net::tls::{self, Clients};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::kit::{LONG, Server, h1_answer};

/// More than a listener keeps ready, so that each is put away as soon as it has nothing to do.
const CONNECTIONS: usize = 400;

fn patient() -> Options {
    Options { header_timeout: LONG, send_timeout: LONG, viewers: true, ..Options::default() }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut connections: Vec<S>) {
    let one = "GET /100 HTTP/1.1\r\nhost: x\r\n\r\n";
    let two = format!("{one}GET /200000 HTTP/1.1\r\nhost: x\r\n\r\n");
    for _ in 0..2 {
        // One request, two at once, and two cut in the middle of the second.
        for pieces in [vec![one], vec![&two], vec![&two[..40], &two[40..]], vec![&two[..3], &two[3..]]] {
            for connection in &mut connections {
                for piece in &pieces {
                    connection.write_all(piece.as_bytes()).await.unwrap();
                    connection.flush().await.unwrap();
                    // The server gets to see it.
                    tokio::task::yield_now().await;
                }
            }
            for connection in &mut connections {
                assert_eq!(h1_answer(connection).await.unwrap().1, 100);
                if pieces.concat().len() > one.len() {
                    assert_eq!(h1_answer(connection).await.unwrap().1, 200_000);
                }
            }
        }
    }
}

#[tokio::test]
async fn plain() {
    let mut server = Server::start(patient(), PerAddress::default()).await;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(server.connect().await);
    }
    converse(connections).await;
    assert_eq!(server.refusals(), []);
}

#[tokio::test]
async fn tls() {
    let folder = std::env::temp_dir().join(format!("rooftop-parked-{}", std::process::id()));
    let files = tls::development_files(&folder, "edge", &[]).unwrap();
    let server_tls = tls::server_config(&files, Clients::Anyone, &[b"h2", b"http/1.1"]).unwrap();
    let client_tls = tls::client_config(&files).unwrap();
    let mut server = Server::start_tls(patient(), PerAddress::default(), Some(server_tls)).await;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&client_tls));
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = server.connect().await;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        connections.push(connector.connect(name, socket).await.unwrap());
    }
    converse(connections).await;
    assert_eq!(server.refusals(), []);
    std::fs::remove_dir_all(folder).unwrap();
}
