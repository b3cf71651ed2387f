//! Tokens carry limits, can be taken back in the middle of a broadcast, and a newer session takes a stream over.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::kit::*;

const TINY: Recipe = Recipe { size: "160x96", rate: "10", seconds: 5, extra: &["-g", "20", "-b:v", "50k"] };

/// POST to the admin listener; the status line and the body.
fn post(node: &Node, path: &str, json: &str) -> String {
    let mut socket = TcpStream::connect(node.addr("admin")).unwrap();
    let head = "HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json";
    write!(socket, "POST {path} {head}\r\ncontent-length: {}\r\n\r\n{json}", json.len()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

fn ingest(node: &Node) -> serde_json::Value {
    serde_json::from_str(&get(&format!("http://{}/admin/ingest?stream=show", node.addr("admin"))).text())
        .unwrap()
}

fn token(node: &Node, arguments: &[&str]) -> String {
    let output = rooftop().arg("token").args(arguments).arg("--config").arg(node.config()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn tokens_limit_are_revoked_and_the_newest_session_wins() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("tokens", TINY);
    let folder = Folder::new("tokens");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let url = |token: &str| format!("rtmps://{}/live/show?token={token}", node.addr("rtmps"));

    // Its limits are what the origin sees in the stream.
    let narrow = token(&node, &["make", "show", "--max-height", "90"]);
    let (sent, _) = Broadcaster::send(&clip, &url(&narrow), -1).wait();
    assert!(!sent);
    node.logged("why=\"video of 160x96: the token allows 90 lines\"");
    let slow = token(&node, &["make", "show", "--max-bitrate", "20000"]);
    let (sent, _) = Broadcaster::send(&clip, &url(&slow), -1).wait();
    assert!(!sent);
    node.logged("exceed 20000");

    let wide = token(&node, &["make", "show", "--max-height", "96", "--max-bitrate", "2000000"]);
    let claims: serde_json::Value = serde_json::from_str(&token(&node, &["check", &wide])).unwrap();
    assert_eq!((&claims["sub"], &claims["max_height"]), (&"show".into(), &96.into()));
    let first = Broadcaster::send(&clip, &url(&wide), -1);
    live(&node, "show");
    let report = eventually("figures of the broadcast", || {
        let report = ingest(&node)["listed"][0].clone();
        (report["bitrate_bps"].as_u64()? > 50_000).then_some(report)
    });
    assert_eq!(report["stream"], "show");
    assert!(report["fps"].as_f64().unwrap() > 5.0 && report["warnings"].is_array(), "{report}");

    // A second broadcaster with a valid token has it at once.
    let plain = token(&node, &["make", "show"]);
    let second = Broadcaster::send(&clip, &url(&plain), -1);
    let (sent, _) = first.wait();
    assert!(!sent);
    node.logged("why=\"taken over by a newer session\"");
    eventually("the second session", || (node.metric("origin_sessions") == 1.0).then_some(()));

    let id =
        serde_json::from_str::<serde_json::Value>(&token(&node, &["check", &plain])).unwrap()["jti"].clone();
    for (json, status) in [("{}", 422), ("{\"stream\":\"a b\"}", 422), ("[", 422), ("{\"id\":\"\"}", 422)] {
        let answer = post(&node, "/admin/revoke", json);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{json}: {answer}");
    }
    let began = std::time::Instant::now();
    let answer = post(&node, "/admin/revoke", &format!("{{\"id\":{id}}}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (sent, _) = second.wait();
    println!("revoked: ended after {:?}", began.elapsed());
    assert!(!sent);
    node.logged("why=\"the token was revoked\"");
    let (sent, _) = Broadcaster::send(&clip, &url(&plain), -1).wait();
    assert!(!sent, "nor does it open the stream again");
    node.logged("broadcaster refused");
    assert_eq!(node.metric("origin_relays_refused_total"), 1.0);
    assert_eq!(ingest(&node)["sessions"], 0);
    // The other token of the stream is still good, until all are taken back.
    let third = Broadcaster::send(&clip, &url(&wide), -1);
    eventually("the third session", || (node.metric("origin_sessions") == 1.0).then_some(()));
    assert!(post(&node, "/admin/revoke", "{\"stream\":\"show\"}").starts_with("HTTP/1.1 200"));
    assert!(!third.wait().0);
}
