//! Methods, conditions, headers, pages.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};

use crate::kit::{Tier, Upstream, body, config, header, patient, until};

const FRESH: [(&str, &str); 4] = [
    ("cache-control", "max-age=600"),
    ("etag", "\"v1\""),
    ("content-type", "video/mp4"),
    ("set-cookie", "who=you"),
];

#[tokio::test]
async fn headers_of_a_hit() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let cold = tier.ask(
        1,
        "GET",
        "/x",
        &[("cookie", "who=me"), ("authorization", "Bearer x"), ("range", "bytes=0-")],
    );
    let asked = upstream.asked().await;
    for name in ["cookie", "authorization", "range", "if-none-match"] {
        assert!(!asked.headers.contains_key(name), "{name} is the viewer's own");
    }
    assert_eq!(asked.headers["accept-encoding"], "identity");
    assert_eq!(asked.headers["via"], "1.1 rooftop-edge");
    let sent =
        [("cache-control", "max-age=600"), ("etag", "\"v1\""), ("age", "7"), ("cache-status", "up; hit")];
    asked.answer(200, &sent, b"bytes");
    cold.await.unwrap();
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let hit = tier.get("/x", &[]).await;
    for (name, expected) in [
        ("age", "7"),
        ("etag", "\"v1\""),
        ("cache-control", "max-age=600"),
        ("content-length", "5"),
        ("accept-ranges", "bytes"),
        ("via", "1.1 rooftop-edge"),
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "age, date, content-length, content-range, etag, cache-status"),
    ] {
        assert_eq!(header(&hit, name), expected, "{name}");
    }
    assert!(header(&hit, "cache-status").starts_with("up; hit, rooftop-edge; hit; ttl=59"), "{hit:?}");
    assert!(hit.headers().contains_key("date"));
    let same = tier.get("/x", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!(same.status(), 304);
    assert_eq!(header(&same, "etag"), "\"v1\"");
    assert_eq!(header(&same, "content-length"), "");
    assert_eq!(body(same).await.unwrap(), "");
    let other = tier.get("/x", &[("if-none-match", "\"v2\"")]).await;
    assert_eq!((other.status().as_u16(), body(other).await.unwrap()), (200, Bytes::from_static(b"bytes")));
    let changed = tier.get("/x", &[("range", "bytes=1-2"), ("if-range", "\"v2\"")]).await;
    assert_eq!(changed.status(), 200);
    let unchanged = tier.get("/x", &[("range", "bytes=1-2"), ("if-range", "\"v1\"")]).await;
    assert_eq!(
        (unchanged.status().as_u16(), body(unchanged).await.unwrap()),
        (206, Bytes::from_static(b"yt"))
    );
    for viewer in [0, 1] {
        let head = tier.ask(viewer, "HEAD", "/x", &[]).await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "5".into()));
        assert_eq!(body(head).await.unwrap(), "");
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn cookies_are_neither_kept_nor_passed_on() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for _ in 0..2 {
        let answer = tier.ask(1, "GET", "/x", &[]);
        upstream.asked().await.answer(200, &FRESH, b"bytes");
        assert_eq!(header(&answer.await.unwrap(), "set-cookie"), "");
    }
}

#[tokio::test]
async fn other_methods() {
    let upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let asking = [("origin", "https://a"), ("access-control-request-method", "GET")];
    let preflight = tier.ask(1, "OPTIONS", "/x", &asking).await.unwrap();
    assert_eq!(preflight.status(), 204);
    assert_eq!(header(&preflight, "access-control-allow-methods"), "GET, HEAD, OPTIONS");
    assert_eq!(header(&preflight, "access-control-allow-origin"), "*");
    let post = tier.ask(1, "POST", "/x", &[]).await.unwrap();
    assert_eq!((post.status().as_u16(), header(&post, "allow")), (405, "GET, HEAD, OPTIONS".into()));
    let long = format!("/{}", "x".repeat(3000));
    assert_eq!(tier.get(&long, &[]).await.status(), 414);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"refused\"}"), 2);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_request_that_comes_round_is_stopped() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let answer = tier.ask(1, "GET", "/x", &[("cdn-loop", "other")]);
    let asked = upstream.asked().await;
    let cdn_loop = asked.headers["cdn-loop"].to_str().unwrap().to_owned();
    assert!(cdn_loop.starts_with("other, rooftop; node=edge-"), "{cdn_loop}");
    let round = tier.get("/x", &[("cdn-loop", &cdn_loop)]).await;
    assert_eq!(round.status(), 508);
    asked.answer(200, &FRESH, b"bytes");
    assert_eq!(answer.await.unwrap().status(), 200);
}

struct Watch;

impl edge::Pages for Watch {
    fn page(&self, path: &str, _: &HeaderMap) -> Option<Response<Bytes>> {
        (path == "/watch").then(|| Response::new(Bytes::from_static(b"<html>")))
    }
}

#[tokio::test]
async fn pages_come_first() {
    let mut upstream = Upstream::start("a").await;
    let nodes = vec![upstream.node.clone()];
    let tier = Tier::start(config(patient()), nodes, |deps| deps.pages = Some(Arc::new(Watch))).await;
    let page = tier.get("/watch", &[]).await;
    assert_eq!(header(&page, "access-control-allow-origin"), "*");
    assert_eq!(body(page).await.unwrap(), "<html>");
    let head = tier.ask(1, "HEAD", "/watch", &[]).await.unwrap();
    assert_eq!(header(&head, "content-length"), "6");
    let other = tier.ask(1, "GET", "/watched", &[]);
    upstream.asked().await.answer(200, &[], b"x");
    assert_eq!(other.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_purge_forgets() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for expected in [b"old", b"new"] {
        let answer = tier.ask(1, "GET", "/live/s/x", &[]);
        upstream.asked().await.answer(200, &[("cache-control", "max-age=600")], expected);
        assert_eq!(body(answer.await.unwrap()).await.unwrap(), &expected[..]);
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        assert_eq!(tier.control.purge("/live/other/"), 0);
        assert_eq!(body(tier.get("/live/s/x", &[]).await).await.unwrap(), &expected[..]);
        assert_eq!(tier.control.purge("/live/s/"), 1);
    }
}
