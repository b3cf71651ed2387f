//! One fetch, many viewers.

use crate::kit::{Tier, Upstream, body, header, next, patient, until};

const FRESH: [(&str, &str); 1] = [("cache-control", "max-age=600")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_viewers_make_one_request() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    // Every tenth has a connection of its own; the descriptors of one process are limited.
    let viewers: Vec<_> =
        (0..500).map(|n| tier.ask(usize::from(n % 10 == 0), "GET", "/live/s/1/v/1.m4s", &[])).collect();
    tier.until_waiting(500).await;
    let expected: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let chunks = upstream.asked().await.begin(200, &FRESH);
    for chunk in expected.chunks(50_000) {
        chunks.send(chunk);
    }
    chunks.end();
    // Read at once: those on one h2 connection share its window.
    let mut readers = tokio::task::JoinSet::new();
    for viewer in viewers {
        readers.spawn(async move {
            let response = viewer.await.unwrap();
            assert_eq!(response.status(), 200);
            body(response).await.unwrap()
        });
    }
    while let Some(read) = readers.join_next().await {
        assert!(read.unwrap() == expected);
    }
    assert_eq!(upstream.requests(), 1);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"miss\"}"), 1);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"coalesced\"}"), 499);
    assert_eq!(tier.metric("edge_waiters{tier=\"edge\"}"), 0);
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let hit = tier.get("/live/s/1/v/1.m4s", &[]).await;
    assert!(header(&hit, "cache-status").starts_with("rooftop-edge; hit; ttl="), "{hit:?}");
    assert_eq!(header(&hit, "content-length"), "300000");
    assert_eq!(body(hit).await.unwrap(), expected);
    assert_eq!(upstream.requests(), 1);
    assert_eq!(tier.metric("edge_served_bytes_total{tier=\"edge\"}"), 501 * 300_000);
    assert!(tier.metric("edge_cache_bytes{tier=\"edge\"}") > 300_000);
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
}

#[tokio::test]
async fn followers_get_what_is_there_and_what_comes() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let first = tier.ask(0, "GET", "/live/s/1.m4s", &[]);
    let chunks = upstream.asked().await.begin(200, &FRESH);
    let mut first = first.await.unwrap();
    assert_eq!(header(&first, "cache-status"), "rooftop-edge; fwd=miss; stored");
    chunks.send(b"one ");
    assert_eq!(next(&mut first).await.unwrap(), "one ");
    let mut second = tier.get("/live/s/1.m4s", &[]).await;
    assert_eq!(header(&second, "cache-status"), "rooftop-edge; fwd=miss; collapsed");
    assert_eq!(next(&mut second).await.unwrap(), "one ");
    chunks.send(b"two");
    assert_eq!(next(&mut first).await.unwrap(), "two");
    assert_eq!(next(&mut second).await.unwrap(), "two");
    chunks.end();
    assert_eq!(next(&mut first).await, None);
    assert_eq!(next(&mut second).await, None);
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn the_first_viewer_may_leave() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let first = tier.ask(1, "GET", "/x", &[]);
    let asked = upstream.asked().await;
    let second = tier.ask(0, "GET", "/x", &[]);
    tier.until_waiting(2).await;
    first.abort();
    tier.until_waiting(1).await;
    asked.answer(200, &FRESH, b"whole");
    assert_eq!(body(second.await.unwrap()).await.unwrap(), "whole");
    assert_eq!(upstream.requests(), 1);
    // Even when all have left, what was fetched is there for the next.
    let only = tier.ask(1, "GET", "/y", &[]);
    let asked = upstream.asked().await;
    only.abort();
    tier.until_waiting(0).await;
    asked.answer(200, &FRESH, b"kept");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(body(tier.get("/y", &[]).await).await.unwrap(), "kept");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn an_answer_that_is_not_to_be_kept_is_shared_by_those_who_wait() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for (n, control) in ["no-store", "private, max-age=60", "max-age=0", "no-cache"].into_iter().enumerate() {
        let target = format!("/{n}");
        let viewers: Vec<_> = (0..20).map(|n| tier.ask(n, "GET", &target, &[])).collect();
        tier.until_waiting(20).await;
        let chunks = upstream.asked().await.begin(200, &[("cache-control", control)]);
        chunks.send(b"first ");
        let mut answers = Vec::new();
        for viewer in viewers {
            answers.push(viewer.await.unwrap());
        }
        // Who comes now asks anew, and is not held up by a body that has not ended.
        let later = tier.ask(1, "GET", &target, &[]);
        upstream.asked().await.answer(200, &[("cache-control", control)], b"second");
        assert_eq!(body(later.await.unwrap()).await.unwrap(), "second", "{control}");
        chunks.send(b"answer");
        chunks.end();
        for answer in answers {
            assert_eq!(header(&answer, "cache-control"), control);
            assert_eq!(body(answer).await.unwrap(), "first answer", "{control}");
        }
        assert_eq!(upstream.requests(), 2 * (n + 1), "{control}");
    }
}

#[tokio::test]
async fn names_that_mean_the_same_are_one() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let targets = [
        "/live/s/v.m3u8?_HLS_msn=3&_HLS_part=1",
        "/live/s/v.m3u8?_HLS_part=1&_HLS_msn=3",
        "/live/s/v.m3u8?_HLS_part=1&token=secret&CMCD=br%3D1&_HLS_msn=3",
    ];
    let viewers: Vec<_> = targets.iter().map(|target| tier.ask(1, "GET", target, &[])).collect();
    tier.until_waiting(3).await;
    let asked = upstream.asked().await;
    assert_eq!(asked.target, "/live/s/v.m3u8?_HLS_msn=3&_HLS_part=1");
    asked.answer(200, &FRESH, b"#EXTM3U");
    for viewer in viewers {
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "#EXTM3U");
    }
    assert_eq!(upstream.requests(), 1);
}
