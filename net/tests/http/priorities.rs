//! What is urgent overtakes what is not, on one h2 connection with the smallest of windows.

use net::PerAddress;
use net::http::Options;

use crate::kit::{H2, LONG, Server, frame};

const SEGMENT: &str = "/1000000";

/// Asks for eight segments of 1 MB, reads `ahead` bytes of them, asks for a playlist of 20 KB. Streams in the order in
/// which they ended, and how much of other streams came between the request for the playlist and its end.
async fn conversation(priorities: [Option<&str>; 2], playlist: &str, ahead: usize) -> (Vec<u32>, usize) {
    let options = Options { header_timeout: LONG, send_timeout: LONG, viewers: true, ..Options::default() };
    let server = Server::start(options, PerAddress::default()).await;
    // The connection's window is what RFC 9113 gives: 65,535 bytes.
    let mut h2 = H2::begin(server.connect().await, &[]).await;
    for stream in (1..17).step_by(2) {
        assert!(h2.get(stream, SEGMENT, priorities[0]).await);
    }
    let (mut ended, mut before, mut between) = (Vec::new(), 0, 0);
    let mut asked = false;
    while ended.len() < 9 {
        if !asked && before >= ahead {
            asked = true;
            assert!(h2.get(17, playlist, priorities[1]).await);
        }
        let frame = h2.next().await.expect("the connection stays");
        if frame.kind != frame::DATA {
            continue;
        }
        let bytes = frame.payload.len();
        if !asked {
            before += bytes;
        } else if frame.stream != 17 && !ended.contains(&17) {
            between += bytes;
        }
        if frame.flags & frame::END_STREAM != 0 {
            ended.push(frame.stream);
        }
        if bytes > 0 {
            for stream in [0, frame.stream] {
                assert!(h2.send(frame::WINDOW_UPDATE, 0, stream, &(bytes as u32).to_be_bytes()).await);
            }
        }
    }
    (ended, between)
}

#[tokio::test]
async fn a_playlist_overtakes_segments_which_come_in_order() {
    let in_order = [17, 1, 3, 5, 7, 9, 11, 13, 15];
    // The client says so, the server says so.
    for (priorities, playlist) in [([Some("u=3"), Some("u=1")], "/20000"), ([None, None], "/20000/u1")] {
        let (ended, between) = conversation(priorities, playlist, 300_000).await;
        assert_eq!(ended, in_order, "{priorities:?}");
        // What was in the h2 layer's hands, in the socket's and on its way.
        assert!(between < 400_000, "{between} bytes of segments came first");
    }
    // Nobody says so: the last one asked for is among the last. With a window this small two or three take part at once,
    // because each waits for the window while the next already has its turn.
    let (ended, _) = conversation([None, None], "/20000", 300_000).await;
    assert!(ended.iter().position(|stream| *stream == 17) >= Some(5), "{ended:?}");
    assert!(ended.iter().filter(|stream| **stream < 8).is_sorted(), "{ended:?}");
}

#[tokio::test]
async fn incremental_bodies_share() {
    let (ended, _) = conversation([Some("u=3, i"), Some("u=3, i")], "/20000", 300_000).await;
    assert_eq!(ended[0], 17, "a short one among long ones: {ended:?}");
}
