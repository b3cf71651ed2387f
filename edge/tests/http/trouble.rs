//! Upstreams that are slow, fail, or are not there.

use std::time::Duration;

use bytesize::ByteSize;
use cluster::{Node, Ring};
use edge::pace::Adaptive;
use edge::{Class, Config};

use crate::kit::{Tier, Upstream, body, config, header, next, patient, until};

const FRESH: [(&str, &str); 1] = [("cache-control", "max-age=600")];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn impatient() -> Class {
    Class { blocking_timeout: ms(20), ..patient() }
}

#[tokio::test]
async fn a_stalled_fetch_promotes_one_on_the_next_candidate() {
    let (mut a, mut b) = (Upstream::start("a").await, Upstream::start("b").await);
    if Ring::new(vec![a.node.clone(), b.node.clone()]).candidates("s")[0].name == "b" {
        std::mem::swap(&mut a, &mut b);
    }
    let tier = Tier::over(&[&a, &b], impatient()).await;
    let viewers: Vec<_> = (0..50).map(|n| tier.ask(n, "GET", "/live/s/x", &[])).collect();
    tier.until_waiting(50).await;
    let (asked_a, asked_b) = (a.asked().await, b.asked().await);
    asked_b.answer(200, &FRESH, b"from b");
    for viewer in viewers {
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "from b");
    }
    asked_a.gone().await;
    assert_eq!((a.requests(), b.requests()), (1, 1));
    assert_eq!(tier.metric("edge_promotions_total{tier=\"edge\",class=\"other\"}"), 1);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"promoted\"}"), 1);
    assert_eq!(tier.metric("edge_fetches_total{tier=\"edge\",class=\"other\",outcome=\"cancelled\"}"), 1);
}

#[tokio::test]
async fn an_adaptive_timeout_follows_the_upstream() {
    let mut a = Upstream::start("a").await;
    let adaptive = Some(Adaptive { factor: 1, least: ms(10), most: ms(20_000) });
    // Fixed, it would be as long as the test's own patience.
    let tier = Tier::over(&[&a], Class { adaptive, ..patient() }).await;
    for n in 0..32 {
        let viewer = tier.ask(1, "GET", &format!("/{n}"), &[]);
        a.asked().await.answer(200, &FRESH, b"quick");
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
    let viewer = tier.ask(1, "GET", "/slow", &[]);
    let (_silent, promoted) = (a.asked().await, a.asked().await);
    promoted.answer(200, &FRESH, b"promoted");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "promoted");
}

#[tokio::test]
async fn the_slow_one_may_win_after_all() {
    let (mut a, mut b) = (Upstream::start("a").await, Upstream::start("b").await);
    let tier = Tier::over(&[&a, &b], impatient()).await;
    let viewer = tier.ask(1, "GET", "/live/s/x", &[]);
    let (asked_a, asked_b) = (a.asked().await, b.asked().await);
    // Whichever of them came first.
    asked_a.answer(200, &FRESH, b"from a");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "from a");
    asked_b.gone().await;
}

#[tokio::test]
async fn max_fetches_and_give_up_bound_it_all() {
    let mut a = Upstream::start("a").await;
    let class = Class { blocking_timeout: ms(10), give_up: ms(1500), max_fetches: 3, ..patient() };
    let tier = Tier::over(&[&a], class).await;
    let viewers: Vec<_> = (0..50).map(|n| tier.ask(n, "GET", "/x", &[])).collect();
    let asked = [a.asked().await, a.asked().await, a.asked().await];
    for viewer in viewers {
        let response = viewer.await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, "1".into()));
    }
    for asked in asked {
        asked.gone().await;
    }
    assert_eq!(tier.get("/x", &[]).await.status(), 503, "remembered");
    assert_eq!(a.requests(), 3);
}

#[tokio::test]
async fn errors_reach_all_at_once_and_are_remembered() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    for (upstream, expected) in [(500, 502), (502, 502), (503, 503), (504, 504), (206, 502)] {
        let (target, before) = (format!("/{upstream}"), a.requests());
        let viewers: Vec<_> = (0..100).map(|n| tier.ask(n % 20 / 19, "GET", &target, &[])).collect();
        tier.until_waiting(100).await;
        a.asked().await.answer(upstream, &FRESH, b"no");
        a.asked().await.answer(upstream, &FRESH, b"no");
        for viewer in viewers {
            assert_eq!(viewer.await.unwrap().status(), expected, "upstream said {upstream}");
        }
        assert_eq!(tier.get(&target, &[]).await.status(), expected, "remembered");
        assert_eq!(a.requests() - before, 2, "the first and one retry");
    }
}

#[tokio::test]
async fn not_found_is_an_answer() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let viewers: Vec<_> = (0..100).map(|n| tier.ask(n % 20 / 19, "GET", "/x", &[])).collect();
    tier.until_waiting(100).await;
    a.asked().await.answer(404, &[], b"nothing here");
    for viewer in viewers {
        let response = viewer.await.unwrap();
        assert_eq!((response.status().as_u16(), body(response).await.unwrap().len()), (404, 12));
    }
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(tier.get("/x", &[]).await.status(), 404);
    assert_eq!(a.requests(), 1);
}

#[tokio::test]
async fn a_body_that_is_cut_is_broken_for_all_and_not_kept() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let long = [("cache-control", "max-age=600"), ("content-length", "100")];
    for (n, headers) in [&FRESH[..], &long[..]].into_iter().enumerate() {
        let target = format!("/{n}");
        let viewers: Vec<_> = (0..100).map(|n| tier.ask(n % 20 / 19, "GET", &target, &[])).collect();
        tier.until_waiting(100).await;
        let chunks = a.asked().await.begin(200, headers);
        chunks.send(b"the first half ");
        let mut answers = Vec::new();
        for viewer in viewers {
            let mut answer = viewer.await.unwrap();
            assert_eq!(next(&mut answer).await.unwrap(), "the first half ");
            answers.push(answer);
        }
        chunks.cut();
        for answer in answers {
            assert_eq!(body(answer).await, None, "a short body must not pass for a whole one");
        }
        until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
        let again = tier.ask(1, "GET", &target, &[]);
        a.asked().await.answer(200, &FRESH, b"the whole");
        assert_eq!(body(again.await.unwrap()).await.unwrap(), "the whole");
    }
    assert_eq!(a.requests(), 4);
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
}

#[tokio::test]
async fn a_body_that_falls_silent_is_broken() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], Class { give_up: ms(500), ..patient() }).await;
    let viewer = tier.ask(1, "GET", "/x", &[]);
    let chunks = a.asked().await.begin(200, &FRESH);
    chunks.send(b"half");
    assert_eq!(body(viewer.await.unwrap()).await, None);
    chunks.gone().await;
}

#[tokio::test]
async fn not_mine_walks_on_and_finds_the_way_again() {
    let mut upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let tier = Tier::over(&upstreams.iter().collect::<Vec<_>>(), patient()).await;
    let nodes = upstreams.iter().map(|upstream| upstream.node.clone()).collect();
    let order: Vec<usize> = Ring::new(nodes)
        .candidates("s")
        .iter()
        .map(|node| upstreams.iter().position(|upstream| upstream.node.name == node.name).unwrap())
        .collect();
    let viewer = tier.ask(1, "GET", "/live/s/1", &[]);
    upstreams[order[0]].asked().await.answer(421, &[], b"");
    upstreams[order[1]].asked().await.answer(421, &[], b"");
    upstreams[order[2]].asked().await.answer(200, &FRESH, b"mine");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "mine");
    // The next object of the same stream goes there at once.
    let viewer = tier.ask(1, "GET", "/live/s/2", &[]);
    upstreams[order[2]].asked().await.answer(200, &FRESH, b"mine too");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "mine too");
    assert_eq!(upstreams.iter().map(Upstream::requests).collect::<Vec<_>>().iter().sum::<usize>(), 4);
    // Nobody's: 404, for a moment.
    let viewer = tier.ask(1, "GET", "/live/s/3", &[]);
    for index in [order[2], order[0], order[1]] {
        upstreams[index].asked().await.answer(421, &[], b"");
    }
    let nobodys = viewer.await.unwrap();
    assert_eq!((nobodys.status().as_u16(), header(&nobodys, "cache-control")), (404, "max-age=1".into()));
}

#[tokio::test]
async fn a_stale_copy_stands_in() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    // An answer that is as old as it may be on arrival is stale at once: no need to wait for that.
    let stale = [("cache-control", "max-age=5, stale-if-error=600"), ("age", "5")];
    let first = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(200, &stale, b"old");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "old");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    let second = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(500, &[], b"");
    a.asked().await.answer(500, &[], b"");
    let second = second.await.unwrap();
    assert_eq!(header(&second, "cache-status"), "rooftop-edge; hit; ttl=0; detail=stale");
    assert_eq!(body(second).await.unwrap(), "old");
    // While the failure is remembered the upstream is left alone.
    assert_eq!(body(tier.get("/x", &[]).await).await.unwrap(), "old");
    assert_eq!(a.requests(), 3);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"stale\"}"), 2);
}

#[tokio::test]
async fn a_stale_copy_is_served_while_it_is_fetched_anew() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let stale = [("cache-control", "max-age=5, stale-while-revalidate=600"), ("age", "5")];
    let first = tier.ask(1, "GET", "/x", &[]);
    a.asked().await.answer(200, &stale, b"old");
    assert_eq!(body(first.await.unwrap()).await.unwrap(), "old");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    for _ in 0..3 {
        assert_eq!(body(tier.get("/x", &[]).await).await.unwrap(), "old");
    }
    a.asked().await.answer(200, &FRESH, b"new");
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(body(tier.get("/x", &[]).await).await.unwrap(), "new");
    assert_eq!(a.requests(), 2);
}

#[tokio::test]
async fn upstreams_that_are_not_there() {
    // A listener's port, closed again: nobody answers there.
    let gone = Upstream::start("gone").await.node.clone();
    let mut a = Upstream::start("a").await;
    let tier = Tier::start(config(patient()), vec![gone.clone(), a.node.clone()], |_| {}).await;
    for n in 0..8 {
        let viewer = tier.ask(1, "GET", &format!("/live/s{n}/x"), &[]);
        a.asked().await.answer(200, &FRESH, b"here");
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
    let tier = Tier::start(config(patient()), vec![gone], |_| {}).await;
    assert_eq!(tier.get("/x", &[]).await.status(), 502);
    let tier = Tier::start(config(patient()), Vec::new(), |_| {}).await;
    assert_eq!(tier.get("/x", &[]).await.status(), 503);
    let odd = Node { name: "odd".into(), address: "no address at all".into() };
    let tier = Tier::start(config(patient()), vec![odd], |_| {}).await;
    assert_eq!(tier.get("/x", &[]).await.status(), 502);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_probed_and_comes_back() {
    // A port that is taken, and that nobody listens at.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = Node { name: "gone".into(), address: socket.local_addr().unwrap().to_string() };
    let mut a = Upstream::start("a").await;
    let nodes = vec![gone.clone(), a.node.clone()];
    let ring = Ring::new(nodes.clone());
    let key = (0..).map(|n| format!("s{n}")).find(|key| ring.candidates(key)[0].name == "gone").unwrap();
    let tier = Tier::start(config(patient()), nodes, |_| {}).await;
    let probes = |outcome| tier.metric(&format!("edge_probes_total{{tier=\"edge\",outcome=\"{outcome}\"}}"));
    for n in 0..3 {
        let viewer = tier.ask(1, "GET", &format!("/live/{key}/{n}"), &[]);
        a.asked().await.answer(200, &FRESH, b"from a");
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
    let outcome = |outcome| {
        tier.metric(&format!("edge_fetches_total{{tier=\"edge\",class=\"other\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((outcome("broken"), outcome("answered")), (1, 3), "one viewer's request found out");
    until("a probe that fails", || probes("failed") > 0).await;
    let mut back = Upstream::at("gone", gone.address.parse().unwrap()).await;
    until("a probe that is answered", || probes("answered") == 1).await;
    assert_eq!((back.probes(), back.requests()), (1, 0));
    // The key's memory of who served it last is one of its own; another key of the same node goes there at once.
    let other = (0..).map(|n| format!("t{n}")).find(|key| ring.candidates(key)[0].name == "gone").unwrap();
    let viewer = tier.ask(1, "GET", &format!("/live/{other}/x"), &[]);
    back.asked().await.answer(200, &FRESH, b"from the one that is back");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "from the one that is back");
}

#[tokio::test]
async fn an_upstream_that_hangs_costs_one_name_a_timeout_and_not_all() {
    // It takes connections, and says nothing over them.
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hangs.local_addr().unwrap().to_string();
    let mut a = Upstream::start("a").await;
    let nodes = vec![Node { name: "hangs".into(), address }, a.node.clone()];
    let ring = Ring::new(nodes.clone());
    let mut keys = (0..).map(|n| format!("s{n}")).filter(|key| ring.candidates(key)[0].name == "hangs");
    let quick = Class { name: "quick".into(), paths: vec!["*/quick".into()], ..impatient() };
    let config = Config { classes: vec![quick, patient()], ..config(patient()) };
    let tier = Tier::start(config, nodes, |_| {}).await;
    let viewer = tier.ask(1, "GET", &format!("/live/{}/quick", keys.next().unwrap()), &[]);
    a.asked().await.answer(200, &FRESH, b"promoted");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "promoted");
    assert_eq!(tier.metric("edge_promotions_total{tier=\"edge\",class=\"quick\"}"), 1);
    until("a probe that fails", || tier.metric("edge_probes_total{tier=\"edge\",outcome=\"failed\"}") > 0)
        .await;
    for key in keys.take(5) {
        let viewer = tier.ask(1, "GET", &format!("/live/{key}/x"), &[]);
        // Nobody is promoted in this class: if the one that hangs were asked first, nothing would come.
        a.asked().await.answer(200, &FRESH, b"at once");
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
    assert_eq!(a.probes(), 0, "nobody doubts it");
}

#[tokio::test]
async fn bounds_answer_503() {
    let mut a = Upstream::start("a").await;
    let bounds = Config { max_inflight_names: 2, max_waiters: 3, ..config(patient()) };
    let tier = Tier::start(bounds, vec![a.node.clone()], |_| {}).await;
    let viewers: Vec<_> = ["/1", "/2", "/2"].iter().map(|target| tier.ask(1, "GET", target, &[])).collect();
    tier.until_waiting(3).await;
    assert_eq!(tier.get("/3", &[]).await.status(), 503, "a third name");
    assert_eq!(tier.get("/1", &[]).await.status(), 503, "a fourth who waits");
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"overloaded\"}"), 2);
    for _ in 0..2 {
        a.asked().await.answer(200, &FRESH, b"x");
    }
    for viewer in viewers {
        assert_eq!(viewer.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn objects_are_bounded() {
    let mut a = Upstream::start("a").await;
    let bounds = Config { max_object: ByteSize::kib(1), ..config(patient()) };
    let tier = Tier::start(bounds, vec![a.node.clone()], |_| {}).await;
    let announced = tier.ask(1, "GET", "/1", &[]);
    for _ in 0..2 {
        a.asked().await.answer(200, &[("content-length", "2000")], &[0; 2000]);
    }
    assert_eq!(announced.await.unwrap().status(), 502);
    let creeping = tier.ask(1, "GET", "/2", &[]);
    let chunks = a.asked().await.begin(200, &FRESH);
    chunks.send(&[0; 1000]);
    chunks.send(&[0; 1000]);
    assert_eq!(body(creeping.await.unwrap()).await, None);
    chunks.gone().await;
}

#[tokio::test]
async fn a_shutdown_lets_answers_finish() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let viewer = tier.ask(1, "GET", "/x", &[]);
    let chunks = a.asked().await.begin(200, &FRESH);
    chunks.send(b"begun ");
    let mut viewer = viewer.await.unwrap();
    assert_eq!(next(&mut viewer).await.unwrap(), "begun ");
    let stopped = tier.stop();
    chunks.send(b"and done");
    chunks.end();
    assert_eq!(body(viewer).await.unwrap(), "and done");
    crate::kit::within("the end", stopped).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_fetches_that_nobody_waits_for() {
    let mut a = Upstream::start("a").await;
    let tier = Tier::over(&[&a], patient()).await;
    let viewer = tier.ask(1, "GET", "/x", &[]);
    let asked = a.asked().await;
    viewer.abort();
    tier.until_waiting(0).await;
    let stopped = tier.stop();
    crate::kit::within("the end", stopped).await.unwrap();
    asked.gone().await;
}
