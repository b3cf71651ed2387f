//! Streams that are pushed: what waits is answered by the push, and pull is there when it is not.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use edge::Config;
use edge::Policy;
use edge::config::Push;
use edge::policy::{Delivery, Mode};
use media::push::{Frame, Head, MEDIA_TYPE, Name};

use crate::kit::{Asked, Chunks, Tier, Upstream, body, config, header, next, patient, until, within};

const PLAYLIST: &str = "/live/a/v.m3u8";
const BLOCKING: &str = "/live/a/v.m3u8?_HLS_msn=7&_HLS_part=0";
const SEGMENT: &str = "/live/a/7.m4s";

fn pushed() -> Config {
    Config { delivery: Vec::new(), ..config(patient()) }
}

async fn over(upstreams: &[&Upstream], config: Config) -> Tier {
    Tier::start(config, upstreams.iter().map(|upstream| upstream.node.clone()).collect(), |_| {}).await
}

fn live(key: &str) -> Name {
    Name { key: key.into(), control: "max-age=0".into(), live: true }
}

fn fixed(key: &str) -> Name {
    Name { key: key.into(), control: "max-age=600".into(), live: false }
}

fn begin(id: u32, names: &[Name]) -> Frame {
    let fields = vec![
        ("content-type".into(), Bytes::from_static(b"x/y")),
        ("etag".into(), Bytes::from(format!("\"{id}\""))),
    ];
    let head = Head { slot: 1, keep: 1, status: 200, length: None, names: names.to_vec(), fields };
    Frame::Begin { id, head }
}

fn data(id: u32, bytes: &'static str) -> Frame {
    Frame::Data { id, bytes: Bytes::from_static(bytes.as_bytes()) }
}

fn promise(keys: &[&str]) -> Frame {
    Frame::Promise { slot: 1, keys: keys.iter().map(|key| (*key).into()).collect() }
}

fn say(push: &Chunks, frames: &[Frame]) {
    let mut wire = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut wire).unwrap());
    push.send(&wire);
}

fn objects(tier: &Tier) -> i64 {
    tier.metric("edge_push_objects_total{tier=\"edge\"}")
}

/// Answers the next request, which must be for a push.
async fn pushes(upstream: &mut Upstream) -> Chunks {
    let asked = upstream.asked().await;
    assert_eq!(asked.target, "/push/live/a");
    assert_eq!(asked.headers["accept"], MEDIA_TYPE);
    asked.begin(200, &[("content-type", MEDIA_TYPE)])
}

/// The next request for `target`; what is asked for meanwhile, such as pushes, is answered with `status`.
async fn asked_for(upstream: &mut Upstream, target: &str, status: u16) -> Asked {
    loop {
        let asked = upstream.asked().await;
        if asked.target == target {
            return asked;
        }
        asked.answer(status, &[], b"not here");
    }
}

/// A first viewer, and the push that he causes, which has promised the next playlist and segment.
async fn begun(tier: &Tier, upstream: &mut Upstream) -> Chunks {
    let viewer = tier.ask(1, "GET", "/live/a/index.m3u8", &[]);
    upstream.asked().await.answer(200, &[("cache-control", "max-age=600")], b"index");
    viewer.await.unwrap();
    let push = pushes(upstream).await;
    let next =
        [promise(&[BLOCKING, SEGMENT]), begin(1, &[live(PLAYLIST)]), data(1, "one"), Frame::End { id: 1 }];
    say(&push, &next);
    let before = objects(tier);
    until("the first object", || objects(tier) > before).await;
    push
}

#[tokio::test]
async fn requests_wait_for_the_push_and_cause_none_upstream() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "one");

    // However the query is written.
    let ways = [BLOCKING, "/live/a/v.m3u8?_HLS_part=0&token=secret&_HLS_msn=7", SEGMENT];
    let viewers: Vec<_> = (0..60).map(|viewer| tier.ask(viewer, "GET", ways[viewer % 3], &[])).collect();
    tier.until_waiting(60).await;
    say(
        &push,
        &[
            promise(&[BLOCKING, SEGMENT, "/live/a/8.m4s"]),
            begin(2, &[fixed(SEGMENT)]),
            data(2, "seg"),
            begin(3, &[live(PLAYLIST), fixed(BLOCKING)]),
            data(3, "two"),
            Frame::End { id: 3 },
        ],
    );
    let mut answers = Vec::new();
    for (viewer, answer) in viewers.into_iter().enumerate() {
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let status = header(&answer, "cache-status");
        assert!(
            status.starts_with("rooftop-edge; hit; ttl=") && status.ends_with("; detail=pushed"),
            "{status}"
        );
        assert_eq!(header(&answer, "content-type"), "x/y");
        if viewer % 3 == 2 {
            assert_eq!(next(&mut answer).await.unwrap(), "seg", "the bytes so far, at once");
            answers.push(answer);
        } else {
            assert_eq!(header(&answer, "cache-control"), "max-age=600");
            assert_eq!(body(answer).await.unwrap(), "two");
        }
    }
    // One who comes late gets what is there and then what comes, as the others do.
    let mut late = tier.get(SEGMENT, &[]).await;
    assert_eq!(next(&mut late).await.unwrap(), "seg");
    answers.push(late);
    say(&push, &[data(2, "ment"), Frame::End { id: 2 }]);
    for answer in answers {
        assert_eq!(body(answer).await.unwrap(), "ment");
    }
    let hit = tier.get(PLAYLIST, &[]).await;
    assert!(header(&hit, "cache-status").starts_with("rooftop-edge; hit"));
    assert_eq!((header(&hit, "age").as_str(), header(&hit, "cache-control").as_str()), ("0", "max-age=0"));
    assert_eq!(body(hit).await.unwrap(), "two", "replaced by the newer one");
    assert_eq!(upstream.requests(), 2, "the first answer and the push");
    assert_eq!(tier.metric("edge_push_promises_kept_total{tier=\"edge\"}"), 2);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"pushed\"}"), 61);
}

#[tokio::test]
async fn what_a_lost_push_leaves_is_fetched_at_once_and_the_push_comes_back() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    say(&push, &[begin(2, &[fixed("/live/a/6.m4s")]), data(2, "half")]);
    until("the segment", || objects(&tier) == 2).await;
    let mut follower = tier.get("/live/a/6.m4s", &[]).await;
    assert_eq!(next(&mut follower).await.unwrap(), "half");
    let waiting = tier.ask(1, "GET", BLOCKING, &[]);
    tier.until_waiting(1).await;
    assert_eq!(upstream.requests(), 2);

    push.cut();
    let mut asked = BTreeMap::<String, Asked>::new();
    for _ in 0..3 {
        let next = upstream.asked().await;
        asked.insert(next.target.clone(), next);
    }
    let rest = asked.remove("/live/a/6.m4s").unwrap();
    assert_eq!(
        (&rest.headers["range"], &rest.headers["if-range"]),
        (&"bytes=4-".parse().unwrap(), &"\"2\"".parse().unwrap())
    );
    rest.answer(206, &[("content-range", "bytes 4-8/9"), ("etag", "\"2\"")], b"whole");
    assert_eq!(body(follower).await.unwrap(), "whole", "its reader notices nothing");
    asked.remove(BLOCKING).unwrap().answer(200, &[("cache-control", "max-age=6")], b"by pull");
    assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "by pull");
    // A manifest that was current by the push alone is not any more.
    let viewer = tier.ask(1, "GET", PLAYLIST, &[]);
    upstream.asked().await.answer(200, &[("cache-control", "no-store")], b"fetched");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "fetched");
    assert_eq!(tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"broken\"}"), 1);
    assert_eq!(tier.metric("edge_push_promises_missed_total{tier=\"edge\"}"), 1);

    let push = asked.remove("/push/live/a").unwrap().begin(200, &[("content-type", MEDIA_TYPE)]);
    say(&push, &[begin(9, &[live(PLAYLIST)]), data(9, "again"), Frame::End { id: 9 }]);
    until("the push", || objects(&tier) == 3).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "again");
    assert_eq!(body(tier.get("/live/a/6.m4s", &[]).await).await.unwrap(), "halfwhole", "kept whole");
}

#[tokio::test]
async fn a_promise_that_is_withdrawn_is_fetched() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    let waiting = tier.ask(1, "GET", BLOCKING, &[]);
    tier.until_waiting(1).await;
    say(&push, &[promise(&[SEGMENT])]);
    let asked = upstream.asked().await;
    assert_eq!(asked.target, BLOCKING);
    asked.answer(200, &[], b"fetched");
    assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "fetched");
}

#[tokio::test]
async fn a_fetch_that_waits_is_overtaken_by_the_push() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    let waiting = tier.ask(1, "GET", "/live/a/x.m3u8?_HLS_msn=9", &[]);
    let asked = upstream.asked().await;
    say(&push, &[begin(2, &[fixed("/live/a/x.m3u8?_HLS_msn=9")]), data(2, "pushed"), Frame::End { id: 2 }]);
    assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "pushed");
    asked.gone().await;
}

#[tokio::test]
async fn a_push_ends_after_the_last_viewer() {
    let mut upstream = Upstream::start("origin").await;
    let push = Push { idle: Duration::ZERO, ..Push::default() };
    let tier = over(&[&upstream], Config { push, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    push.gone().await;
    until("its end", || tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"unused\"}") == 1).await;
    assert_eq!(tier.metric("edge_pushes{tier=\"edge\"}"), 0);
    // The next viewer begins anew.
    let viewer = tier.ask(1, "GET", PLAYLIST, &[]);
    upstream.asked().await.answer(200, &[], b"fetched");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "fetched");
    pushes(&mut upstream).await;
}

#[tokio::test]
async fn a_push_that_is_never_granted_is_not_asked_for_without_viewers() {
    let mut upstream = Upstream::start("origin").await;
    let push = Push { idle: Duration::ZERO, backoff_max: Duration::from_secs(1), ..Push::default() };
    let tier = over(&[&upstream], Config { push, ..pushed() }).await;
    let viewer = tier.ask(1, "GET", "/live/a/index.m3u8", &[]);
    upstream.asked().await.answer(200, &[], b"index");
    viewer.await.unwrap();
    let mut attempts = 0;
    while let Ok(asked) = tokio::time::timeout(Duration::from_secs(2), upstream.asked()).await {
        attempts += 1;
        assert!(attempts < 10);
        asked.answer(404, &[], b"not pushed");
    }
    assert!(attempts > 0);
}

#[tokio::test]
async fn a_silent_push_is_lost() {
    let mut upstream = Upstream::start("origin").await;
    let push = Push { silence: Duration::from_millis(50), ..Push::default() };
    let tier = over(&[&upstream], Config { push, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    push.gone().await;
    assert_eq!(tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"silent\"}"), 1);
    pushes(&mut upstream).await;
}

#[tokio::test]
async fn hostile_pushes_end_alone() {
    let long = [&[1_u8, 0, 0, 0, 1][..], &u32::MAX.to_be_bytes()].concat();
    let mut foreign = BytesMut::new();
    begin(5, &[fixed("/live/b/secret")]).encode(&mut foreign).unwrap();
    let mut unknown = BytesMut::new();
    data(77, "x").encode(&mut unknown).unwrap();
    let mut twice = BytesMut::new();
    begin(5, &[fixed("/live/a/5")]).encode(&mut twice).unwrap();
    begin(5, &[fixed("/live/a/5")]).encode(&mut twice).unwrap();
    for (what, wire) in [
        ("garbage", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("a long frame", &long),
        ("another stream's name", &foreign),
        ("an object that has not begun", &unknown),
        ("an object that begins twice", &twice),
    ] {
        let mut upstream = Upstream::start("origin").await;
        let tier = over(&[&upstream], pushed()).await;
        let push = begun(&tier, &mut upstream).await;
        let waiting = tier.ask(1, "GET", BLOCKING, &[]);
        tier.until_waiting(1).await;
        push.send(wire);
        let asked = within(what, upstream.asked()).await;
        assert_eq!(asked.target, BLOCKING, "{what}");
        asked.answer(200, &[], b"by pull");
        assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "by pull", "{what}");
        push.gone().await;
        assert_eq!(tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"bad\"}"), 1, "{what}");
        let viewer = tier.ask(1, "GET", "/live/b/secret", &[]);
        asked_for(&mut upstream, "/live/b/secret", 404).await.answer(404, &[], b"");
        assert_eq!(viewer.await.unwrap().status(), 404, "{what}: nothing of it was taken");
    }
}

#[tokio::test]
async fn an_object_that_is_too_large_breaks_and_the_push_goes_on() {
    let mut upstream = Upstream::start("origin").await;
    let max_object = bytesize::ByteSize::kib(1);
    let tier = over(&[&upstream], Config { max_object, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    let waiting = tier.ask(1, "GET", SEGMENT, &[]);
    tier.until_waiting(1).await;
    let piece = Frame::Data { id: 2, bytes: vec![0; 600].into() };
    say(&push, &[begin(2, &[fixed(SEGMENT)]), piece.clone(), piece]);
    let answer = waiting.await.unwrap();
    assert!(answer.status() == 502 || body(answer).await.is_none(), "never a short 200");
    say(
        &push,
        &[
            data(2, "more"),
            Frame::End { id: 2 },
            begin(3, &[live(PLAYLIST)]),
            data(3, "ok"),
            Frame::End { id: 3 },
        ],
    );
    until("the next object", || objects(&tier) == 3).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "ok");
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn memory_for_what_is_on_its_way_is_bounded() {
    let mut upstream = Upstream::start("origin").await;
    let inflight_size = bytesize::ByteSize::kib(64);
    let tier = over(&[&upstream], Config { inflight_size, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    let piece = |id| Frame::Data { id, bytes: vec![0; 40 << 10].into() };
    say(&push, &[begin(2, &[fixed("/live/a/6.m4s")]), piece(2), begin(3, &[fixed(SEGMENT)]), piece(3)]);
    push.gone().await;
    assert_eq!(tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"overloaded\"}"), 1);
}

#[tokio::test]
async fn a_body_that_found_no_room_goes_on_behind_its_last_byte() {
    let mut upstream = Upstream::start("origin").await;
    let inflight_size = bytesize::ByteSize::kib(64);
    let tier = over(&[&upstream], Config { inflight_size, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    let piece = |id, bytes| Frame::Data { id, bytes: vec![b'p'; bytes].into() };
    say(&push, &[begin(2, &[fixed(SEGMENT)]), piece(2, 4000)]);
    until("the segment", || objects(&tier) == 2).await;
    let follower = tier.get(SEGMENT, &[]).await;
    say(&push, &[piece(2, 60_000), piece(2, 10_000)]);
    let rest = asked_for(&mut upstream, SEGMENT, 404).await;
    let from: usize = rest.headers["range"].to_str().unwrap()[6..].trim_end_matches('-').parse().unwrap();
    let (range, bytes) = (format!("bytes {from}-64009/64010"), vec![b'f'; 64_010 - from]);
    rest.answer(206, &[("content-range", &range), ("etag", "\"2\"")], &bytes);
    let body = body(follower).await.unwrap();
    assert_eq!(body.iter().position(|byte| *byte == b'f'), Some(from), "no hole where it was taken over");
    assert_eq!(body.len(), 64_010);
}

#[tokio::test]
async fn a_promised_object_that_is_announced_too_large_is_left_to_pull_at_once() {
    let mut upstream = Upstream::start("origin").await;
    let max_object = bytesize::ByteSize::kib(1);
    // Or it would be lost in the end, and with it what it promised.
    let push = Push { silence: Duration::from_secs(600), ..Push::default() };
    let tier = over(&[&upstream], Config { max_object, push, ..pushed() }).await;
    let push = begun(&tier, &mut upstream).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "one");
    let waiting = tier.ask(1, "GET", SEGMENT, &[]);
    tier.until_waiting(1).await;
    let Frame::Begin { id, head } = begin(2, &[fixed(SEGMENT), live(PLAYLIST)]) else { unreachable!() };
    say(&push, &[Frame::Begin { id, head: Head { length: Some(2000), ..head } }]);
    asked_for(&mut upstream, SEGMENT, 404).await.answer(200, &[], b"fetched");
    assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "fetched");
    // What it was to replace is not current either.
    let viewer = tier.ask(1, "GET", PLAYLIST, &[]);
    asked_for(&mut upstream, PLAYLIST, 404).await.answer(200, &[], b"newer");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "newer");
    assert_eq!(tier.metric("edge_push_promises_missed_total{tier=\"edge\"}"), 1);
}

#[tokio::test]
async fn more_than_was_announced_breaks() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    let Frame::Begin { id, head } = begin(2, &[fixed(SEGMENT)]) else { unreachable!() };
    say(&push, &[Frame::Begin { id, head: Head { length: Some(3), ..head } }, data(2, "ab")]);
    until("the segment", || objects(&tier) == 2).await;
    let reader = tier.get(SEGMENT, &[]).await;
    say(&push, &[data(2, "cd"), Frame::End { id: 2 }]);
    assert_eq!(body(reader).await, None);
}

#[tokio::test]
async fn a_body_that_falls_silent_breaks_though_the_push_is_alive() {
    let mut upstream = Upstream::start("origin").await;
    let mut config = pushed();
    config.classes[0].give_up = Duration::from_secs(2);
    config.push.silence = Duration::from_secs(600);
    let tier = over(&[&upstream], config).await;
    let push = begun(&tier, &mut upstream).await;
    say(&push, &[begin(2, &[fixed(SEGMENT)]), data(2, "half")]);
    until("the segment", || objects(&tier) == 2).await;
    let reader = tier.get(SEGMENT, &[]).await;
    assert_eq!(body(reader).await, None);
    say(&push, &[data(2, "more"), Frame::End { id: 2 }, begin(3, &[live(PLAYLIST)]), data(3, "two")]);
    say(&push, &[Frame::End { id: 3 }]);
    until("the playlist", || objects(&tier) == 3).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "two");
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
}

#[tokio::test]
async fn a_newer_version_may_begin_before_the_older_one_has_ended() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    // As a subscriber is told that was busy when both were published.
    say(
        &push,
        &[
            begin(2, &[live(PLAYLIST)]),
            begin(3, &[live(PLAYLIST)]),
            data(2, "two"),
            Frame::End { id: 2 },
            data(3, "three"),
            Frame::End { id: 3 },
            begin(4, &[fixed(SEGMENT)]),
        ],
    );
    until("all of it", || objects(&tier) == 4).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "three");
}

#[tokio::test]
async fn a_push_that_is_granted_during_shutdown_does_not_hold_it_up() {
    let mut upstream = Upstream::start("origin").await;
    let drain = Duration::from_secs(3600);
    let shield = Tier::start(Config { drain, ..pushed() }, vec![upstream.node.clone()], |deps| {
        (deps.tier, deps.pushes_on) = ("shield", true);
    })
    .await;
    let address = shield.url.strip_prefix("http://").unwrap().to_owned();
    let subscriber = shield.ask(2, "GET", "/push/live/a", &[]);
    let asked = upstream.asked().await;
    let ended = shield.stop();
    until("the port is closed", || std::net::TcpStream::connect(&address).is_err()).await;
    let _push = asked.begin(200, &[("content-type", MEDIA_TYPE)]);
    assert_eq!(subscriber.await.unwrap().status(), 503);
    within("the shield's end", ended).await.unwrap();
}

#[tokio::test]
async fn upstreams_that_do_not_push_are_asked_again_later_and_fetched_from_meanwhile() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    for status in [404, 405, 501, 503] {
        let viewer = tier.ask(1, "GET", &format!("/live/a/{status}"), &[]);
        // The push is asked for behind the first answer, and then again and again.
        asked_for(&mut upstream, &format!("/live/a/{status}"), status).await.answer(200, &[], b"fetched");
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "fetched");
    }
    pushes(&mut upstream).await;
    assert!(tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"refused\"}") >= 1);
}

#[tokio::test]
async fn the_owner_is_found_behind_those_that_do_not_have_the_stream() {
    let mut upstreams = [Upstream::start("one").await, Upstream::start("two").await];
    let [one, two] = &upstreams;
    let ring = cluster::Ring::new(vec![one.node.clone(), two.node.clone()]);
    let tier = over(&[one, two], pushed()).await;
    let first = usize::from(ring.candidates("a")[0].name == "two");
    let viewer = tier.ask(1, "GET", "/live/a/index.m3u8", &[]);
    upstreams[first].asked().await.answer(200, &[], b"index");
    viewer.await.unwrap();
    let asked = upstreams[first].asked().await;
    assert_eq!(asked.target, "/push/live/a");
    asked.answer(421, &[], b"not mine");
    let push = pushes(&mut upstreams[1 - first]).await;
    say(&push, &[begin(1, &[live(PLAYLIST)]), data(1, "found"), Frame::End { id: 1 }]);
    until("the push", || objects(&tier) == 1).await;
    assert_eq!(body(tier.get(PLAYLIST, &[]).await).await.unwrap(), "found");
}

#[tokio::test]
async fn with_delivery_by_pull_nothing_is_asked_for() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], config(patient())).await;
    for name in ["/live/a/1", "/live/a/2"] {
        let viewer = tier.ask(1, "GET", name, &[]);
        let asked = upstream.asked().await;
        assert_eq!(asked.target, name);
        asked.answer(200, &[], b"fetched");
        viewer.await.unwrap();
    }
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn what_is_pushed_is_pulled_once_the_policy_says_so() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    say(&push, &[begin(2, &[fixed("/live/a/6.m4s")]), data(2, "half")]);
    until("the segment", || objects(&tier) == 2).await;
    let reader = tier.get("/live/a/6.m4s", &[]).await;
    let waiting = tier.ask(1, "GET", BLOCKING, &[]);
    tier.until_waiting(1).await;
    let delivery = vec![Delivery { prefix: "/live/a/".into(), mode: Mode::Pull }];
    tier.control.set_policy(Policy { delivery, ..Policy::clone(&tier.control.policy()) }).unwrap();
    push.gone().await;
    for _ in 0..2 {
        let asked = upstream.asked().await;
        if asked.target == BLOCKING {
            asked.answer(200, &[], b"by pull");
        } else {
            assert_eq!(asked.headers["range"], "bytes=4-");
            asked.answer(206, &[("content-range", "bytes 4-8/9"), ("etag", "\"2\"")], b"whole");
        }
    }
    assert_eq!(body(reader).await.unwrap(), "halfwhole");
    assert_eq!(body(waiting.await.unwrap()).await.unwrap(), "by pull");
    let viewer = tier.ask(1, "GET", PLAYLIST, &[]);
    let asked = upstream.asked().await;
    assert_eq!(asked.target, PLAYLIST, "not current any more, and nobody asks for a push");
    asked.answer(200, &[], b"fetched");
    assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "fetched");
    assert_eq!(tier.metric("edge_pushes{tier=\"edge\"}"), 0);
}

#[tokio::test]
async fn the_end_of_a_stream_leaves_its_objects_to_pull() {
    let mut upstream = Upstream::start("origin").await;
    let tier = over(&[&upstream], pushed()).await;
    let push = begun(&tier, &mut upstream).await;
    say(
        &push,
        &[
            begin(2, &[fixed("/live/a/6.m4s")]),
            data(2, "old"),
            Frame::End { id: 2 },
            Frame::Purge { prefix: "/live/a/6".into() },
            begin(3, &[fixed("/live/a/8.m4s")]),
            data(3, "last"),
            Frame::End { id: 3 },
            Frame::Gone,
        ],
    );
    until("the end", || tier.metric("edge_push_ends_total{tier=\"edge\",reason=\"gone\"}") == 1).await;
    assert_eq!(body(tier.get("/live/a/8.m4s", &[]).await).await.unwrap(), "last");
    for name in [PLAYLIST, "/live/a/6.m4s"] {
        let viewer = tier.ask(1, "GET", name, &[]);
        asked_for(&mut upstream, name, 404).await.answer(200, &[], b"fetched");
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "fetched");
    }
}

#[tokio::test]
async fn a_shield_needs_one_push_for_any_number_of_pops() {
    let mut upstream = Upstream::start("origin").await;
    let shield = Tier::start(pushed(), vec![upstream.node.clone()], |deps| {
        (deps.tier, deps.pushes_on) = ("shield", true);
    })
    .await;
    let address = shield.url.strip_prefix("http://").unwrap().to_owned();
    let node = cluster::Node { name: "shield-1".into(), address };
    let mut pops = Vec::new();
    for _ in 0..3 {
        pops.push(Tier::start(pushed(), vec![node.clone()], |_| {}).await);
    }
    assert_eq!(pops[0].get("/push/live/a", &[]).await.status(), 404, "viewers are pushed nothing");
    let viewers: Vec<_> = pops.iter().map(|pop| pop.ask(1, "GET", "/live/a/index.m3u8", &[])).collect();
    upstream.asked().await.answer(200, &[("cache-control", "max-age=600")], b"index");
    for viewer in viewers {
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "index");
    }
    let push = pushes(&mut upstream).await;
    let subscribers = || shield.metric("edge_push_subscribers{tier=\"shield\"}");
    until("three subscribers", || subscribers() == 3).await;
    say(&push, &[promise(&[BLOCKING]), begin(1, &[live(PLAYLIST)]), data(1, "one"), Frame::End { id: 1 }]);
    for pop in &pops {
        until("the playlist", || objects(pop) == 1).await;
    }
    let viewers: Vec<_> = pops.iter().map(|pop| pop.ask(1, "GET", BLOCKING, &[])).collect();
    for pop in &pops {
        pop.until_waiting(1).await;
    }
    say(&push, &[begin(2, &[fixed(BLOCKING), live(PLAYLIST)]), data(2, "tw")]);
    let mut answers = Vec::new();
    for viewer in viewers {
        let mut answer = viewer.await.unwrap();
        assert_eq!(next(&mut answer).await.unwrap(), "tw");
        assert_eq!(header(&answer, "via"), "1.1 rooftop-shield, 1.1 rooftop-edge");
        answers.push(answer);
    }
    say(&push, &[data(2, "o"), Frame::End { id: 2 }]);
    for answer in answers {
        assert_eq!(body(answer).await.unwrap(), "o");
    }
    assert_eq!(upstream.requests(), 2, "one fetch and one push for the fleet");

    // What an operator purges at the shield leaves the POPs too.
    let purged = fixed("/live/a/7.m4s");
    say(&push, &[begin(5, &[purged]), data(5, "x"), Frame::End { id: 5 }]);
    for pop in &pops {
        until("the segment", || objects(pop) == 3).await;
        assert_eq!(body(pop.get(SEGMENT, &[]).await).await.unwrap(), "x");
    }
    assert_eq!(shield.control.purge("/live/a/7"), 1);
    say(&push, &[begin(6, &[fixed(BLOCKING), live(PLAYLIST)]), data(6, "two"), Frame::End { id: 6 }]);
    for pop in &pops {
        until("what was said behind the purge", || objects(pop) == 4).await;
    }
    let viewers: Vec<_> = pops.iter().map(|pop| pop.ask(1, "GET", SEGMENT, &[])).collect();
    let asked = upstream.asked().await;
    assert_eq!(asked.target, SEGMENT);
    asked.answer(200, &[("cache-control", "max-age=600")], b"anew");
    for viewer in viewers {
        assert_eq!(body(viewer.await.unwrap()).await.unwrap(), "anew");
    }

    // A POP that comes late is told what there is.
    let late = Tier::start(pushed(), vec![node], |_| {}).await;
    assert_eq!(body(late.get("/live/a/index.m3u8", &[]).await).await.unwrap(), "index");
    until("a snapshot", || objects(&late) == 1).await;
    assert_eq!(body(late.get(PLAYLIST, &[]).await).await.unwrap(), "two");
    let shield_hits = || shield.metric("edge_requests_total{tier=\"shield\",result=\"hit\"}");
    let before = shield_hits();
    assert_eq!(body(late.get(BLOCKING, &[]).await).await.unwrap(), "two");
    assert_eq!(shield_hits(), before);

    // What is lost above is lost below.
    push.cut();
    let again = pushes(&mut upstream).await;
    until("no push", || subscribers() == 4).await;
    say(&again, &[begin(1, &[live(PLAYLIST)]), data(1, "three"), Frame::End { id: 1 }]);
    until("the push", || objects(&late) == 2).await;
    assert_eq!(body(late.get(PLAYLIST, &[]).await).await.unwrap(), "three");
    assert_eq!(upstream.requests(), 4);
    drop(pops);
    // Pushes do not keep a node from shutting down.
    within("the shield's end", shield.stop()).await.unwrap();
}
