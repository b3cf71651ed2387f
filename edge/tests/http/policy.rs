//! The policy while it is turned, what shows its effect, and memory.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use edge::policy::{Class, Policy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::*;

const KEPT: [(&str, &str); 1] = [("cache-control", "max-age=600")];

fn of(class: Class) -> Policy {
    Policy { classes: vec![Arc::new(class)], delivery: Vec::new() }
}

/// Until no name is in flight, so that what was fetched is kept.
async fn settled(tier: &Tier) {
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
}

#[tokio::test]
async fn a_change_applies_to_the_next_request_and_drops_nobody() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    // A viewer in the middle of a body, on h1 and on h2, and one that keeps its connection.
    let mut followers = Vec::new();
    let mut chunks = Vec::new();
    for viewer in 0..2 {
        let follower = tier.ask(viewer, "GET", &format!("/follow/{viewer}"), &[]);
        let sender = upstream.asked().await.begin(200, &KEPT);
        sender.send(b"before ");
        let mut follower = follower.await.unwrap();
        assert_eq!(next(&mut follower).await.unwrap(), "before ");
        followers.push(follower);
        chunks.push(sender);
    }
    let mut idle = TcpStream::connect(tier.url.trim_start_matches("http://")).await.unwrap();
    let mut ask = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: edge\r\n\r\n");
        idle.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let mut len = 0;
        while !answer[..len].windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let read = within("an answer", idle.read(&mut answer[len..])).await.unwrap();
            assert_ne!(read, 0, "the connection was closed");
            len += read;
        }
        String::from_utf8_lossy(&answer[..len]).into_owned()
    };
    let first = tier.ask(1, "GET", "/kept", &[]);
    upstream.asked().await.answer(200, &KEPT, b"");
    first.await.unwrap();
    until("it is kept", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 2).await;
    assert!(ask("/kept").await.contains("rooftop-edge; hit"));

    // From now on nothing is kept.
    let forgetful = Class { ttl: Some(Duration::ZERO), ..patient() };
    assert_eq!(tier.control.set_policy(of(forgetful.clone())), Ok(1), "what is kept gets less time");
    assert_eq!(*tier.control.policy(), of(forgetful));

    let anew = async { upstream.asked().await.answer(200, &KEPT, b"") };
    let (answer, ()) = tokio::join!(ask("/kept"), anew);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fwd="), "{answer}");
    for (follower, chunks) in followers.iter_mut().zip(chunks) {
        chunks.send(b"after");
        assert_eq!(next(follower).await.unwrap(), "after");
        chunks.end();
        assert!(next(follower).await.is_none(), "a whole body");
    }
}

#[tokio::test]
async fn a_fetch_keeps_the_rules_it_began_with() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let old = tier.ask(1, "GET", "/old", &[]);
    let slow = upstream.asked().await;
    let hasty = Class {
        blocking_timeout: Duration::from_millis(10),
        give_up: Duration::from_millis(20),
        max_fetches: 1,
        ..patient()
    };
    tier.control.set_policy(of(hasty)).unwrap();
    let new = tier.ask(2, "GET", "/new", &[]);
    let forgotten = upstream.asked().await;
    assert_eq!(new.await.unwrap().status(), 503, "it went by the new rules");
    forgotten.gone().await;
    slow.answer(200, &KEPT, b"late");
    assert_eq!(body(old.await.unwrap()).await.unwrap(), "late");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn a_policy_with_problems_changes_nothing() {
    let upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let before = tier.control.policy();
    let bad = Class { max_fetches: 9, paths: Vec::new(), ..patient() };
    let problems = tier.control.set_policy(of(bad)).unwrap_err();
    let has = |key: &str| problems.iter().any(|problem| problem.starts_with(key));
    assert!(has("edge.classes[0].max_fetches: ") && has("edge.classes[0].paths: "), "{problems:?}");
    assert_eq!(tier.control.policy(), before);
}

#[tokio::test]
async fn a_purge_can_spare_what_still_runs() {
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    for path in ["/live/s/1/v/1.m4s", "/live/s/2/v/1.m4s", "/live/s/index.m3u8", "/live/t/1/v/1.m4s"] {
        let cold = tier.ask(1, "GET", path, &[]);
        upstream.asked().await.answer(200, &KEPT, b"x");
        cold.await.unwrap();
        settled(&tier).await;
    }
    assert_eq!(tier.control.purge_but("/live/s/", Some("/live/s/2/")), 2);
    assert_eq!(tier.metric("edge_left_objects_total{tier=\"edge\",reason=\"purged\"}"), 2);
    for path in ["/live/s/2/v/1.m4s", "/live/t/1/v/1.m4s"] {
        tier.get(path, &[]).await;
    }
    assert_eq!(upstream.requests(), 4, "those are still there");
    assert_eq!(tier.control.purge("/"), 2);
    assert_eq!(tier.metric("edge_cache_bytes{tier=\"edge\"}"), 0);
}

#[tokio::test]
async fn what_happens_is_counted_by_class_and_by_name() {
    let mut upstream = Upstream::start("a").await;
    let class = |name: &str, path: &str| Class { name: name.into(), paths: vec![path.into()], ..patient() };
    let mut config = config(class("media", "*.m4s"));
    config.classes.push(class("other", "*"));
    config.max_waiters = 3;
    let tier = Tier::start(config, vec![upstream.node.clone()], |_| {}).await;
    let viewers: Vec<_> = (0..3).map(|viewer| tier.ask(viewer, "GET", "/a.m4s", &[])).collect();
    let asked = upstream.asked().await;
    tier.until_waiting(3).await;
    assert_eq!(tier.get("/a.m4s", &[]).await.status(), 503, "one more than may wait");
    asked.answer(200, &KEPT, b"x");
    for viewer in viewers {
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
    settled(&tier).await;
    tier.get("/a.m4s", &[]).await;
    let other = tier.ask(1, "GET", "/b", &[]);
    upstream.asked().await.answer(404, &[], b"");
    other.await.unwrap();
    settled(&tier).await;
    let media = |result| {
        tier.metric(&format!(
            "edge_class_requests_total{{tier=\"edge\",class=\"media\",result=\"{result}\"}}"
        ))
    };
    assert_eq!(["hit", "miss", "coalesced"].map(media), [1, 1, 2]);
    assert_eq!(tier.metric("edge_wait_seconds_count{tier=\"edge\",class=\"media\"}"), 3);
    assert_eq!(tier.metric("edge_wait_seconds_count{tier=\"edge\",class=\"other\"}"), 1);
    assert_eq!(tier.metric("edge_fetches_per_name_bucket{le=\"1.0\",tier=\"edge\"}"), 2);
    assert_eq!(tier.metric("edge_fetches_per_name_count{tier=\"edge\"}"), 2);
    let overloads =
        |reason| tier.metric(&format!("edge_overloads_total{{tier=\"edge\",reason=\"{reason}\"}}"));
    let reasons = ["names", "flights", "memory", "waiters"].map(overloads);
    assert_eq!(reasons, [0, 0, 0, 1]);
    let all = tier.metric("edge_requests_total{tier=\"edge\",result=\"overloaded\"}");
    assert_eq!(reasons.iter().sum::<i64>(), all, "the sum of its reasons");
}

/// More than the cache holds, while viewers that do not read hold on to what has left it.
#[tokio::test]
async fn memory_is_bounded_with_readers_that_stand_still() {
    let mut upstream = Upstream::start("a").await;
    let mut config = config(patient());
    (config.cache_size, config.inflight_size) = (ByteSize::mib(2), ByteSize::mib(2));
    config.max_object = ByteSize::mib(1);
    let tier = Tier::start(config, vec![upstream.node.clone()], |_| {}).await;
    let bytes = |what: &str| tier.metric(&format!("edge_{what}_bytes{{tier=\"edge\"}}"));
    let bounded = || {
        let (cache, inflight) = (bytes("cache"), bytes("inflight"));
        assert!(cache <= 2 << 20 && inflight <= 2 << 20, "{cache}, {inflight}");
        assert!(cache + inflight + bytes("held") <= 4 << 20, "{cache}, {inflight}, {}", bytes("held"));
    };
    let large = vec![7; 400 << 10];
    let mut standing = Vec::new();
    for number in 0..30 {
        let path = format!("/{number}");
        let cold = tier.ask(1, "GET", &path, &[]);
        upstream.asked().await.answer(200, &KEPT, &large);
        let response = cold.await.unwrap();
        bounded();
        if number < 4 {
            // Its headers are read, its body never is.
            standing.push(response);
        } else {
            assert_eq!(body(response).await.unwrap(), large);
        }
        settled(&tier).await;
        bounded();
    }
    assert!(bytes("cache") > 0);
    drop(standing);
    until("what was held is free", || bytes("held") == 0).await;
    assert_eq!(upstream.requests(), 30);
}
