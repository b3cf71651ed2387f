//! Byte ranges of growing and complete objects.

use crate::kit::{Tier, Upstream, body, header, is_pending, next, patient, until};

const FRESH: [(&str, &str); 2] = [("cache-control", "max-age=600"), ("etag", "\"v1\"")];

#[tokio::test]
async fn a_closed_range_is_held_until_it_is_whole() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let follower = tier.ask(1, "GET", "/s", &[]);
    let chunks = upstream.asked().await.begin(200, &FRESH);
    let mut follower = follower.await.unwrap();
    let mut held = tier.ask(1, "GET", "/s", &[("range", "bytes=4-9")]);
    tier.until_waiting(1).await;
    chunks.send(b"01234567");
    assert_eq!(next(&mut follower).await.unwrap(), "01234567");
    assert!(is_pending(&mut held).await, "two bytes are missing");
    chunks.send(b"89ab");
    let held = held.await.unwrap();
    assert_eq!(held.status(), 206);
    assert_eq!(header(&held, "content-range"), "bytes 4-9/*");
    assert_eq!(header(&held, "content-length"), "6");
    assert_eq!(header(&held, "etag"), "\"v1\"");
    assert_eq!(body(held).await.unwrap(), "456789");
    // What is there already is answered at once, though the object grows on.
    assert_eq!(body(tier.get("/s", &[("range", "bytes=0-3")]).await).await.unwrap(), "0123");
    // Past the end: known when it ends.
    let past = tier.ask(0, "GET", "/s", &[("range", "bytes=10-99")]);
    let beyond = tier.ask(0, "GET", "/s", &[("range", "bytes=50-99")]);
    let suffix = tier.ask(0, "GET", "/s", &[("range", "bytes=-3")]);
    tier.until_waiting(3).await;
    chunks.end();
    let past = past.await.unwrap();
    assert_eq!((past.status().as_u16(), header(&past, "content-range")), (206, "bytes 10-11/12".into()));
    assert_eq!(body(past).await.unwrap(), "ab");
    let beyond = beyond.await.unwrap();
    assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */12".into()));
    let suffix = suffix.await.unwrap();
    assert_eq!((suffix.status().as_u16(), header(&suffix, "content-range")), (206, "bytes 9-11/12".into()));
    assert_eq!(body(suffix).await.unwrap(), "9ab");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn open_and_absurd_ranges_stream() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let cold = tier.ask(1, "GET", "/s", &[("range", "bytes=2-9007199254740991")]);
    let asked = upstream.asked().await;
    assert!(asked.headers.get("range").is_none(), "the whole object is fetched");
    let chunks = asked.begin(200, &FRESH);
    chunks.send(b"0123");
    let mut cold = cold.await.unwrap();
    assert_eq!(header(&cold, "content-range"), "bytes 2-9007199254740991/*");
    assert_eq!(header(&cold, "content-length"), "");
    assert_eq!(next(&mut cold).await.unwrap(), "23");
    let mut open = tier.get("/s", &[("range", "bytes=3-")]).await;
    assert_eq!(
        (open.status().as_u16(), header(&open, "content-range")),
        (206, "bytes 3-9007199254740991/*".into())
    );
    assert_eq!(next(&mut open).await.unwrap(), "3");
    let from_zero = tier.get("/s", &[("range", "bytes=0-")]).await;
    assert_eq!((from_zero.status().as_u16(), header(&from_zero, "content-range")), (200, String::new()));
    let ahead = tier.ask(0, "GET", "/s", &[("range", "bytes=6-")]);
    tier.until_waiting(1).await;
    chunks.send(b"4567");
    assert_eq!(next(&mut cold).await.unwrap(), "4567");
    assert_eq!(next(&mut open).await.unwrap(), "4567");
    let ahead = ahead.await.unwrap();
    assert_eq!(header(&ahead, "content-range"), "bytes 6-9007199254740991/*");
    chunks.end();
    assert_eq!(next(&mut cold).await, None);
    assert_eq!(body(ahead).await.unwrap(), "67");
    assert_eq!(body(from_zero).await.unwrap(), "01234567");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let whole = tier.get("/s", &[("range", "bytes=2-9007199254740991")]).await;
    assert_eq!(header(&whole, "content-range"), "bytes 2-7/8");
    assert_eq!(body(whole).await.unwrap(), "234567");
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn an_announced_length_needs_no_waiting() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let ranged = tier.ask(1, "GET", "/s", &[("range", "bytes=2-5")]);
    let chunks =
        upstream.asked().await.begin(200, &[("cache-control", "max-age=600"), ("content-length", "8")]);
    let mut ranged = ranged.await.unwrap();
    assert_eq!(header(&ranged, "content-range"), "bytes 2-5/8");
    assert_eq!(header(&ranged, "content-length"), "4");
    chunks.send(b"0123");
    assert_eq!(next(&mut ranged).await.unwrap(), "23");
    let suffix = tier.get("/s", &[("range", "bytes=-2")]).await;
    assert_eq!(header(&suffix, "content-range"), "bytes 6-7/8");
    let head = tier.ask(1, "HEAD", "/s", &[]).await.unwrap();
    assert_eq!(header(&head, "content-length"), "8");
    chunks.send(b"4567");
    assert_eq!(body(suffix).await.unwrap(), "67");
    assert_eq!(body(ranged).await.unwrap(), "45");
}

#[tokio::test]
async fn a_held_range_of_a_body_that_breaks_has_a_clear_status() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let follower = tier.ask(0, "GET", "/s", &[]);
    let chunks = upstream.asked().await.begin(200, &FRESH[..1]);
    chunks.send(b"012345");
    assert_eq!(next(&mut follower.await.unwrap()).await.unwrap(), "012345");
    let held = tier.ask(0, "GET", "/s", &[("range", "bytes=4-9")]);
    tier.until_waiting(1).await;
    chunks.cut();
    assert_eq!(held.await.unwrap().status(), 502);
    assert_eq!(tier.metric("edge_broken_bodies_total{tier=\"edge\",class=\"other\"}"), 1);
}
