mod claimed;

use super::*;
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use cluster::member::Contact;
use cluster::store::{self, Embedded, Pending, Store};
use http_body::Frame as BodyFrame;
use media::flv::Tag;
use prometheus_client::registry::Registry;

/// A relay that brings these bytes and then ends, or breaks, or brings nothing more.
struct Relay(VecDeque<Option<Result<Bytes, &'static str>>>);

impl Body for Relay {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, &'static str>>> {
        match self.0.pop_front() {
            Some(Some(next)) => Poll::Ready(Some(next.map(BodyFrame::data))),
            Some(None) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// Milliseconds of AAC frame `index` at 44.1 kHz, as FLV has them.
fn audio_ms(index: u32) -> u32 {
    index * 1024 * 1000 / 44_100
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Ends,
    Breaks,
    Pauses,
}

/// The clock shows 0 at frame `zero`.
fn audio_relay(frames: std::ops::Range<u32>, zero: u32, then: Then) -> Relay {
    let mut flv = BytesMut::from(&flv::HEADER[..]);
    let mut tag = |timestamp_ms, data: Vec<u8>| {
        Tag { kind: TagKind::Audio, timestamp_ms, data: data.into() }.encode(&mut flv);
    };
    tag(0, vec![0xAF, 0, 0x12, 0x10]);
    for index in frames {
        tag(audio_ms(index) - audio_ms(zero), vec![0xAF, 1, 1, 2, (index >> 8) as u8, index as u8]);
    }
    let then = match then {
        Then::Ends => None,
        Then::Breaks => Some(Some(Err("connection lost"))),
        Then::Pauses => Some(None),
    };
    Relay([Some(Ok(flv.freeze()))].into_iter().chain(then).collect())
}

fn shared() -> Arc<Shared> {
    shared_by(cluster::Member::default())
}

fn shared_by(store: cluster::Member) -> Arc<Shared> {
    shared_of(store, crate::Config::default(), transcode::Config::default())
}

pub(super) fn shared_of(
    store: cluster::Member,
    config: crate::Config,
    transcode: transcode::Config,
) -> Arc<Shared> {
    let mut registry = Registry::default();
    Arc::new(Shared {
        tracer: net::trace::Tracer::default(),
        limits: crate::Limits::of(&config).into(),
        config,
        transcode: transcode.into(),
        keys: Arc::new(cluster::token::Keys::new(&[vec![0; 32]]).unwrap()),
        archive: archive::Sink::default(),
        kept: None,
        store,
        metrics: crate::Metrics::register(&mut registry),
        transcode_metrics: transcode::Metrics::register(&mut registry),
        streams: Mutex::new(HashMap::new()),
        hubs: std::sync::Mutex::default(),
        mirrors: crate::mirror::Mirrors::new(crate::mirror::plan::Members::new(
            "a".into(),
            cluster::Ring::new(Vec::new()),
        )),
        tasks: tokio_util::task::TaskTracker::new(),
        shutdown: CancellationToken::new(),
        milli_cpus: std::sync::atomic::AtomicU64::new(0),
        instance: 1,
        news: Arc::default(),
    })
}

pub(super) fn request(session: &str) -> Request {
    Request { claims: Claims::default(), session: session.into(), received_unix_ms: unix_ms(), next: None }
}

/// The numbers of all audio frames that are listed, and the epochs they lie in.
fn published(live: &Live) -> (Vec<u32>, Vec<u64>, String) {
    let crate::live::Found::Ready(playlist) =
        live.playlist(&"audio".parse().unwrap(), crate::hls::Directives::default(), None).unwrap()
    else {
        panic!("nothing was published")
    };
    let (mut came, mut epochs) = (Vec::new(), Vec::new());
    for uri in playlist.lines().filter(|line| !line.starts_with('#')) {
        let (_, target) = crate::path::parse(&format!("/live/demo/{uri}")).unwrap();
        let crate::path::Target::Segment(epoch, id, number) = target else { panic!("{uri}") };
        let crate::live::Found::Ready(object) = live.segment(epoch, &id, number) else { panic!("{uri}") };
        let bytes = object.to_bytes().unwrap();
        // Each frame of these tests is 1, 2 and its own number.
        let mut rest = &bytes[..];
        while let Some(at) = rest.windows(4).position(|name| name == b"mdat") {
            let len = u32::from_be_bytes(rest[at - 4..at].try_into().unwrap()) as usize - 8;
            let (frames, behind) = rest[at + 4..].split_at(len);
            came.extend(frames.chunks(4).map(|f| u32::from(f[2]) << 8 | u32::from(f[3])));
            rest = behind;
        }
        epochs.push(epoch.0);
    }
    epochs.dedup();
    (came, epochs, playlist)
}

#[tokio::test]
async fn a_relay_that_comes_back_loses_and_doubles_no_audio_frame() {
    let shared = shared();
    let name = "demo".parse().unwrap();
    let live = shared.stream_for_publishing(&name).unwrap();
    for (frames, then) in [(0..200, Then::Breaks), (150..333, Then::Breaks), (300..500, Then::Ends)] {
        let right = Right::Claimed(shared.store.claim("demo", "s1", Vec::new()).await.unwrap());
        let (lines, _answer) = mpsc::channel(LINE_QUEUE);
        let (body, shutdown) = (audio_relay(frames, 0, then), shared.shutdown.clone());
        session(shared.clone(), live.clone(), right, request("s1"), body, lines, shutdown).await;
    }
    let (came, _, playlist) = published(&live);
    assert_eq!(came, (0..500).collect::<Vec<_>>());
    assert!(!playlist.contains("#EXT-X-DISCONTINUITY\n"), "nothing breaks: {playlist}");
}

/// What the second of two sessions brings, and on which clock; what becomes of it all.
struct Succeeds {
    frames: std::ops::Range<u32>,
    zero: u32,
    first: Then,
    expected: Vec<u32>,
    one_run: bool,
    breaks: bool,
}

async fn succeeds(story: Succeeds) {
    let shared = shared();
    let live = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
    let (lines, mut answer) = mpsc::channel(LINE_QUEUE);
    let right = Right::Claimed(shared.store.claim("demo", "s1", Vec::new()).await.unwrap());
    let (body, shutdown) = (audio_relay(0..333, 0, story.first), shared.shutdown.clone());
    let first = session(shared.clone(), live.clone(), right, request("s1"), body, lines, shutdown);
    let first = tokio::spawn(first);
    let mut changes = live.succession.changes();
    // One for the writer, one for each frame.
    changes.wait_for(|changes| *changes >= 334).await.unwrap();
    if story.first != Then::Pauses {
        first.await.unwrap();
        assert!(Heir::new(&live, "s2").is_none(), "nobody publishes");
    }
    let right = match Heir::new(&live, "s2") {
        Some(heir) => Right::Heir(heir),
        None => Right::Claimed(shared.store.claim("demo", "s2", Vec::new()).await.unwrap()),
    };
    let (lines, mut second) = mpsc::channel(LINE_QUEUE);
    let body = audio_relay(story.frames, story.zero, Then::Ends);
    session(shared.clone(), live.clone(), right, request("s2"), body, lines, shared.shutdown.clone()).await;
    let mut told = String::new();
    while let Some(line) = answer.recv().await {
        told.push_str(std::str::from_utf8(&line).unwrap());
    }
    assert_eq!(told.contains("taken over by a newer session"), story.first == Then::Pauses, "{told}");
    let mut told = String::new();
    while let Some(line) = second.recv().await {
        told.push_str(std::str::from_utf8(&line).unwrap());
    }
    assert!(told.contains("published") && told.ends_with("{\"end\":true}\n"), "{told}");
    let (came, epochs, playlist) = published(&live);
    assert_eq!(came, story.expected);
    assert_eq!(epochs.len() == 1, story.one_run, "{playlist}");
    assert_eq!(playlist.contains("#EXT-X-DISCONTINUITY\n"), story.breaks, "{playlist}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_overlaps_the_one_before_goes_on_with_its_run() {
    for zero in [0, 290] {
        let expected = (0..500).collect();
        let (frames, first) = (290..500, Then::Pauses);
        succeeds(Succeeds { frames, zero, first, expected, one_run: true, breaks: false }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_follows_the_one_before_goes_on_with_its_run() {
    let expected = (0..500).collect();
    let (frames, zero, first) = (333..500, 0, Then::Pauses);
    succeeds(Succeeds { frames, zero, first, expected, one_run: true, breaks: false }).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_comes_after_the_end_joins_where_that_was() {
    for (frames, zero) in [(300..500, 0), (300..500, 300), (333..500, 0)] {
        for first in [Then::Ends, Then::Breaks] {
            let (expected, frames) = ((0..500).collect(), frames.clone());
            succeeds(Succeeds { frames, zero, first, expected, one_run: false, breaks: false }).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_of_another_beginning_breaks_the_timeline() {
    for first in [Then::Ends, Then::Pauses] {
        let expected = (0..333).chain(600..700).collect();
        let (frames, zero) = (600..700, 600);
        succeeds(Succeeds { frames, zero, first, expected, one_run: false, breaks: true }).await;
    }
}
/// A node of a fleet that shares `store`.
fn member(store: Arc<dyn Store>, name: &str) -> cluster::Member {
    let options = cluster::member::Options {
        name: name.into(),
        instance: 1,
        lease_ttl: Duration::from_secs(10),
        revocations_kept: Duration::from_secs(60),
        resume_within: Duration::from_secs(60),
        follow_nodes: true,
    };
    let ring = || cluster::Ring::new(Vec::new());
    cluster::Member::new(store, options, ring(), ring(), cluster::Metrics::unread())
}

/// A store that never answers.
struct Silent;

impl Store for Silent {
    fn get<'a>(&'a self, _: &'a str) -> Pending<'a, Option<store::Entry>> {
        Box::pin(std::future::pending())
    }
    fn list<'a>(&'a self, _: &'a str) -> Pending<'a, store::Listing> {
        Box::pin(std::future::pending())
    }
    fn txn(&self, _: store::Txn) -> Pending<'_, store::Outcome> {
        Box::pin(std::future::pending())
    }
    fn watch<'a>(&'a self, _: &'a str, _: u64) -> Pending<'a, Box<dyn store::Watch>> {
        Box::pin(std::future::pending())
    }
    fn grant(&self, _: Duration) -> Pending<'_, store::LeaseId> {
        Box::pin(std::future::pending())
    }
    fn keep_alive(&self, _: store::LeaseId) -> Pending<'_, bool> {
        Box::pin(std::future::pending())
    }
    fn revoke(&self, _: store::LeaseId) -> Pending<'_, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_pop_that_hangs_up_while_the_store_is_asked_leaves_no_stream_behind() {
    let shared = shared_by(member(Arc::new(Silent), "a"));
    let token = shared.keys.issue("demo", Duration::from_secs(60), SystemTime::now()).unwrap();
    let request = http::Request::post("/relay/demo")
        .header("authorization", format!("Bearer {token}"))
        .header("rooftop-session", "s1")
        .header("rooftop-received", "0")
        .body(audio_relay(0..10, 0, Then::Pauses))
        .unwrap();
    let asked = crate::http::relay(shared.clone(), "demo".parse().unwrap(), request);
    assert!(tokio::time::timeout(Duration::from_millis(500), asked).await.is_err(), "it hangs up");
    shared.tasks.close();
    shared.tasks.wait().await;
    assert_eq!(shared.streams().len(), 0, "its place is free");
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_session_had_no_turn_is_given_back() {
    let shared = shared();
    let live = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
    let grant = shared.store.claim("demo", "s1", Vec::new()).await.unwrap();
    let busy = live.writer.clone().lock_owned().await;
    let (lines, _answer) = mpsc::channel(LINE_QUEUE);
    let (body, shutdown) = (audio_relay(0..10, 0, Then::Ends), shared.shutdown.clone());
    let right = Right::Claimed(grant.clone());
    session(shared.clone(), live.clone(), right, request("s1"), body, lines, shutdown).await;
    assert!(shared.store.holds(&grant));
    drop(busy);
    shared.tasks.close();
    shared.tasks.wait().await;
    assert!(!shared.store.holds(&grant) && shared.streams().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_left_for_a_session_whose_claim_is_refused_is_completed() {
    let store: Arc<dyn Store> = Arc::new(Embedded::default());
    let (shared, other) = (shared_by(member(store.clone(), "a")), member(store, "b"));
    other.announce(cluster::record::Role::Origin, "b:1", 1);
    let serving = CancellationToken::new();
    for member in [shared.store.clone(), other.clone()] {
        let serving = serving.clone();
        tokio::spawn(async move { member.serve(serving).await });
    }
    for member in [&shared.store, &other] {
        member.contact().wait_for(|contact| *contact == Contact::Up).await.unwrap();
    }
    let live = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
    let right = Right::Claimed(shared.store.claim("demo", "s1", Vec::new()).await.unwrap());
    let (lines, _answer) = mpsc::channel(LINE_QUEUE);
    let (body, shutdown) = (audio_relay(0..333, 0, Then::Pauses), shared.shutdown.clone());
    let first =
        tokio::spawn(session(shared.clone(), live.clone(), right, request("s1"), body, lines, shutdown));
    live.succession.changes().wait_for(|changes| *changes >= 334).await.unwrap();
    // The next session is about to claim the stream when another origin has taken it.
    let heir = Heir::new(&live, "s2").unwrap();
    let turn = heir.turn();
    other.claim("demo", "s3", vec!["a".into()]).await.unwrap();
    first.await.unwrap();
    assert_eq!(live.state(), State::Live, "the run waits for it");
    let (lines, _answer) = mpsc::channel(LINE_QUEUE);
    let (body, shutdown) = (audio_relay(300..500, 0, Then::Ends), shared.shutdown.clone());
    let second =
        session(shared.clone(), live.clone(), Right::Heir(heir), request("s2"), body, lines, shutdown);
    let ((), ()) = tokio::join!(second, async { drop(turn) });
    let mut versions = live.versions();
    let over = versions.wait_for(|_| matches!(live.state(), State::Interrupted(_)));
    tokio::time::timeout(HANDOVER_TIMEOUT, over).await.expect("the run is completed").unwrap();
    assert_eq!(published(&live).0, (0..333).collect::<Vec<_>>());
    serving.cancel();
}

#[test]
fn a_broadcast_on_record_goes_on_behind_what_is_kept_of_it() {
    let line = record::Line { anchor_unix_ms: unix_ms() - 60_000, anchor_ticks: 90_000, breaks: 2 };
    let clock = (unix_ms() / 1000) as u64;
    let by_clock = on_record(line, 90_000, None);
    assert_eq!((by_clock.start, by_clock.breaks), (90_000, 3));
    assert!((clock + 1..clock + 60).contains(&by_clock.first.0));
    let behind = on_record(line, 90_000, Some((SegmentNumber(clock - 20), 41 * 90_000)));
    assert!((clock + 1..clock + 60).contains(&behind.first.0));
    // The broadcaster's clock was faster than ours.
    let ahead = on_record(line, 90_000, Some((SegmentNumber(clock + 1000), 70 * 90_000)));
    assert_eq!((ahead.first.0, ahead.start), (clock + 1001 + UNSAID, 70 * 90_000));
}
