//! Stale objects that the upstream confirms.

use crate::kit::{Tier, Upstream, body, header, patient, until};

/// As old on arrival as it may be: stale at once.
const STALE: [(&str, &str); 5] = [
    ("cache-control", "max-age=5"),
    ("age", "5"),
    ("etag", "\"v1\""),
    ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("x-version", "1"),
];

async fn stale(tier: &Tier, a: &mut Upstream, target: &str) {
    let first = tier.ask(1, "GET", target, &[]);
    let asked = a.asked().await;
    assert!(!asked.headers.contains_key("if-none-match"));
    asked.answer(200, &STALE, b"old");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "old");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
}

#[tokio::test]
async fn what_is_confirmed_does_not_come_again() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    stale(&tier, &mut a, "/x").await;
    let viewers: Vec<_> = (0..100).map(|n| tier.ask(n % 20 / 19, "GET", "/x", &[])).collect();
    let knows = tier.ask(1, "GET", "/x", &[("if-none-match", "\"v1\"")]);
    tier.until_waiting(101).await;
    let asked = a.asked().await;
    assert_eq!(asked.headers["if-none-match"], "\"v1\"");
    assert_eq!(asked.headers["if-modified-since"], "Sun, 06 Nov 1994 08:49:37 GMT");
    asked.answer(304, &[("cache-control", "max-age=600"), ("etag", "\"v1\""), ("x-version", "2")], b"");
    for viewer in viewers {
        let answer = viewer.await.unwrap();
        assert_eq!(answer.status(), 200, "nobody is told 304 who did not ask");
        assert_eq!(header(&answer, "x-version"), "2");
        assert_eq!(header(&answer, "last-modified"), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(header(&answer, "age"), "0");
        assert_eq!(body(answer).await.unwrap(), "old");
    }
    assert_eq!(knows.await.unwrap().status(), 304);
    let hit = tier.get("/x", &[]).await;
    assert!(header(&hit, "cache-status").starts_with("rooftop-edge; hit; ttl=59"), "{hit:?}");
    assert_eq!((header(&hit, "x-version"), body(hit).await.unwrap()), ("2".into(), "old".into()));
    assert_eq!(a.requests(), 2);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"revalidated\"}"), 1);
    assert_eq!(tier.metric("edge_fetches_total{tier=\"edge\",class=\"other\",outcome=\"not_modified\"}"), 1);
}

#[tokio::test]
async fn what_has_changed_comes_whole() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    stale(&tier, &mut a, "/x").await;
    let viewer = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(200, &[("cache-control", "max-age=600"), ("etag", "\"v2\"")], b"new");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "new");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(body(tier.get("/x", &[]).await).await.unwrap(), "new");
    assert_eq!(a.requests(), 2);
}

#[tokio::test]
async fn a_304_about_something_else_is_asked_again_without_conditions() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    stale(&tier, &mut a, "/x").await;
    let viewer = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(304, &[("etag", "\"v9\"")], b"");
    let asked = a.asked().await;
    assert!(!asked.headers.contains_key("if-none-match"));
    asked.answer(200, &[("cache-control", "max-age=600")], b"new");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "new");
    // One who did not ask must not be told so either.
    let viewer = tier.ask(1, "GET", "/y", &[]);
    for _ in 0..2 {
        a.asked().await.answer(304, &[], b"");
    }
    assert_eq!(viewer.await.unwrap().status(), 502);
}

#[tokio::test]
async fn what_must_be_confirmed_each_time_is() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let headers = [("cache-control", "no-cache"), ("etag", "\"v1\"")];
    let first = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(200, &headers, b"same");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "same");
    for _ in 0..3 {
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        let viewer = tier.ask(1, "GET", "/x", &[]);
        let asked = a.asked().await;
        assert_eq!(asked.headers["if-none-match"], "\"v1\"");
        asked.answer(304, &headers, b"");
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "same");
    }
}
