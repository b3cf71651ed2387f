//! Bodies that break or fall silent half way and go on all the same.

use std::time::Duration;

use edge::Class;

use crate::kit::{Asked, Tier, Upstream, body, header, is_pending, next, patient, until};

const TAGGED: [(&str, &str); 2] = [("cache-control", "max-age=600"), ("etag", "\"v1\"")];
const WHOLE: &[u8] = b"the first half, the second half";

/// The request for what comes after `half`.
fn check_rest(asked: &Asked, from: usize) {
    assert_eq!(asked.headers["range"], format!("bytes={from}-"));
    assert_eq!(asked.headers["if-range"], "\"v1\"");
}

fn part(from: usize) -> [(&'static str, String); 2] {
    [
        ("etag", "\"v1\"".into()),
        ("content-range", format!("bytes {from}-{}/{}", WHOLE.len() - 1, WHOLE.len())),
    ]
}

fn as_str<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[tokio::test]
async fn viewers_do_not_notice_that_a_body_was_cut() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let length = WHOLE.len().to_string();
    let announced = [TAGGED[0], TAGGED[1], ("content-length", length.as_str())];
    for (n, headers) in [&TAGGED[..], &announced[..]].into_iter().enumerate() {
        let target = format!("/{n}");
        let viewers: Vec<_> = (0..100).map(|n| tier.ask(n % 20 / 19, "GET", &target, &[])).collect();
        tier.until_waiting(100).await;
        let chunks = a.asked().await.begin(200, headers);
        chunks.send(&WHOLE[..16]);
        let mut answers = Vec::new();
        for viewer in viewers {
            let mut answer = viewer.await.unwrap();
            assert_eq!(next(&mut answer).await.unwrap(), &WHOLE[..16]);
            answers.push(answer);
        }
        chunks.cut();
        let rest = a.asked().await;
        check_rest(&rest, 16);
        rest.answer(206, &as_str(&part(16)), &WHOLE[16..]);
        for answer in answers {
            assert_eq!(body(answer).await.unwrap(), &WHOLE[16..]);
        }
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        let hit = tier.get(&target, &[]).await;
        assert!(header(&hit, "cache-status").starts_with("rooftop-edge; hit"), "{hit:?}");
        assert_eq!(body(hit).await.unwrap(), WHOLE);
    }
    assert_eq!(a.requests(), 4);
    assert_eq!(tier.metric("edge_fetches_total{tier=\"edge\",class=\"other\",outcome=\"resumed\"}"), 2);
    assert_eq!(tier.metric("edge_broken_bodies_total{tier=\"edge\",class=\"other\"}"), 0);
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
}

/// A viewer who has the first 16 bytes, and the request for the rest.
async fn cut(tier: &Tier, a: &mut Upstream, target: &str) -> (http::Response<hyper::body::Incoming>, Asked) {
    let viewer = tier.ask(1, "GET", target, &[]);
    let chunks = a.asked().await.begin(200, &TAGGED);
    chunks.send(&WHOLE[..16]);
    let mut answer = viewer.await.unwrap();
    assert_eq!(next(&mut answer).await.unwrap(), &WHOLE[..16]);
    chunks.cut();
    let rest = a.asked().await;
    check_rest(&rest, 16);
    (answer, rest)
}

#[tokio::test]
async fn an_upstream_without_ranges_sends_it_all_again() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let (answer, rest) = cut(&tier, &mut a, "/x").await;
    let chunks = rest.begin(200, &TAGGED);
    chunks.send(&WHOLE[..10]);
    chunks.send(&WHOLE[10..20]);
    chunks.send(&WHOLE[20..]);
    chunks.end();
    assert_eq!(body(answer).await.unwrap(), &WHOLE[16..]);
    // What broke off behind its last byte lacks nothing.
    let (answer, rest) = cut(&tier, &mut a, "/y").await;
    rest.answer(416, &[("etag", "\"v1\""), ("content-range", "bytes */16")], b"");
    assert_eq!(body(answer).await.unwrap(), "");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(body(tier.get("/y", &[]).await).await.unwrap(), &WHOLE[..16]);
}

#[tokio::test]
async fn what_does_not_belong_to_it_is_not_appended() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let rests: [(u16, &[(&str, &str)]); 6] = [
        (206, &[("etag", "\"v2\""), ("content-range", "bytes 16-30/31")]),
        (206, &[("content-range", "bytes 16-30/31")]),
        (206, &[("etag", "\"v1\""), ("content-range", "bytes 15-30/31")]),
        (206, &[("etag", "\"v1\"")]),
        (200, &[("etag", "\"v2\"")]),
        (404, &[]),
    ];
    for (n, (status, headers)) in rests.into_iter().enumerate() {
        let (answer, rest) = cut(&tier, &mut a, &format!("/{n}")).await;
        rest.answer(status, headers, &WHOLE[16..]);
        assert_eq!(body(answer).await, None, "{status} {headers:?}");
    }
    assert_eq!(a.requests(), 12, "nobody is asked a third time");
    until("the flights' end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(tier.metric("edge_broken_bodies_total{tier=\"edge\",class=\"other\"}"), 6);
}

#[tokio::test]
async fn a_body_that_breaks_again_and_again_is_given_up() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let (mut answer, mut rest) = cut(&tier, &mut a, "/x").await;
    for from in [16, 18] {
        check_rest(&rest, from);
        let chunks = rest.begin(206, &as_str(&part(from)));
        chunks.send(&WHOLE[from..from + 2]);
        assert_eq!(next(&mut answer).await.unwrap(), &WHOLE[from..from + 2]);
        chunks.cut();
        if from == 18 {
            break;
        }
        rest = a.asked().await;
    }
    assert_eq!(body(answer).await, None);
    assert_eq!(a.requests(), 3, "max_fetches and one more");
}

#[tokio::test]
async fn beside_a_silent_body_another_is_promoted() {
    let (mut a, mut b) = (Upstream::start("a").await, Upstream::start("b").await);
    let class = Class { blocking_timeout: Duration::from_millis(30), ..patient() };
    let tier = Tier::over(&[&a, &b], class).await;
    let viewer = tier.ask(1, "GET", "/live/s/x", &[]);
    let (first, from_a) = tokio::select! {
        asked = a.asked() => (asked, true),
        asked = b.asked() => (asked, false),
    };
    let silent = first.begin(200, &TAGGED);
    silent.send(&WHOLE[..16]);
    let mut answer = viewer.await.unwrap();
    assert_eq!(next(&mut answer).await.unwrap(), &WHOLE[..16]);
    let other = if from_a { &mut b } else { &mut a };
    // On a slow day there was one beside it before its headers.
    let rest = loop {
        let asked = other.asked().await;
        if asked.headers.contains_key("range") {
            break asked;
        }
    };
    check_rest(&rest, 16);
    let chunks = rest.begin(206, &as_str(&part(16)));
    let mut gone = Box::pin(silent.gone());
    assert!(is_pending(&mut gone).await, "it may still speak first");
    chunks.send(&WHOLE[16..]);
    chunks.end();
    gone.await;
    assert_eq!(body(answer).await.unwrap(), &WHOLE[16..]);
    let (theirs, others) = if from_a { (&a, &b) } else { (&b, &a) };
    assert_eq!(theirs.requests(), 1);
    assert!(others.requests() <= 2, "max_fetches and one more in all");
}
