//! The archive against a store that stops, fails or is slow at any moment.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use media::time::Timescale;
use media::{Epoch, Object, RenditionId, SegmentNumber};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio_util::sync::CancellationToken;

use crate::index::{Anchor, Entry, Kind, Rendition, Run};
use crate::name::MediaName;
use crate::upkeep::{Janitor, Limits};
use crate::{BroadcastId, Config, Metrics, NewSegment, Reader, Sink, Writer};

/// A store that stops for good after a number of changes, as a process does that is killed: the last one is still made
/// where `last` says so, but nobody hears of it. While `away`, changes fail.
#[derive(Debug)]
struct Mortal {
    inner: Arc<InMemory>,
    left: AtomicU64,
    last: bool,
    stopped: AtomicBool,
    away: AtomicBool,
    /// Of each listing one journal of the lowest level is gone when it is asked for.
    vanishing: AtomicBool,
    vanishes: AtomicBool,
}

impl Mortal {
    fn new(inner: &Arc<InMemory>, changes: u64, last: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            left: AtomicU64::new(changes),
            last,
            stopped: AtomicBool::new(false),
            away: AtomicBool::new(false),
            vanishing: AtomicBool::new(false),
            vanishes: AtomicBool::new(false),
        })
    }

    fn failure() -> object_store::Error {
        object_store::Error::Generic { store: "mortal", source: "No space left on device".into() }
    }

    /// Whether a change may be made, and whether its maker may know.
    fn change(&self) -> Result<bool, object_store::Error> {
        if self.stopped.load(Ordering::SeqCst) || self.away.load(Ordering::SeqCst) {
            return Err(Self::failure());
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.stopped.store(true, Ordering::SeqCst);
            return if self.last { Ok(false) } else { Err(Self::failure()) };
        }
        Ok(true)
    }

    fn look(&self) -> Result<(), object_store::Error> {
        if self.stopped.load(Ordering::SeqCst) { Err(Self::failure()) } else { Ok(()) }
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let known = self.change()?;
        let put = self.inner.put_opts(location, payload, opts).await;
        if known { put } else { Err(Self::failure()) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.look()?;
        let is_lowest = location.filename().is_some_and(|name| name.starts_with("0-"));
        if is_lowest && self.vanishes.swap(false, Ordering::SeqCst) {
            self.inner.delete(location).await?;
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        use futures_util::StreamExt;
        match self.change() {
            Ok(true) => self.inner.delete_stream(locations),
            Ok(false) => self.inner.delete_stream(locations).map(|_| Err(Self::failure())).boxed(),
            Err(_) => futures_util::stream::once(async { Err(Self::failure()) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        use futures_util::StreamExt;
        self.vanishes.store(self.vanishing.load(Ordering::SeqCst), Ordering::SeqCst);
        match self.look() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.look()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn broadcast() -> BroadcastId {
    "demo-1700000000000".parse().unwrap()
}

fn run(epoch: u64, first: u64) -> Run {
    let rendition = |id: &str, timescale, kind| Rendition {
        id: id.parse().unwrap(),
        codec: "x".into(),
        bitrate_bps: 1000,
        timescale,
        kind,
        init: Bytes::from(format!("init of {id}")),
    };
    Run {
        epoch: Epoch(epoch),
        first: SegmentNumber(first),
        start: 90_000 * first as i64,
        anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 90_000 },
        segment_duration: 90_000,
        part_target: 18_000,
        breaks: 0,
        captions: Vec::new(),
        tiles: None,
        renditions: vec![
            rendition("360p", Timescale::VIDEO, Kind::Video { width: 640, height: 360, frame_rate: None }),
            rendition("audio", Timescale::OPUS, Kind::Audio { channels: 2, sample_rate: 48_000 }),
        ],
    }
}

const RENDITIONS: [&str; 2] = ["360p", "audio"];

fn segment(epoch: u64, rendition: &str, number: u64) -> NewSegment {
    let second = if rendition == "audio" { 48_000 } else { 90_000 };
    NewSegment {
        broadcast: broadcast(),
        epoch: Epoch(epoch),
        rendition: rendition.parse().unwrap(),
        number: SegmentNumber(number),
        start: second * number as i64,
        duration: second,
        discontinuity: false,
        lead: number,
        object: Object::complete(Bytes::from(format!("{rendition} {number} of {epoch}").repeat(10))),
    }
}

fn offer(sink: &Sink, epoch: u64, numbers: std::ops::Range<u64>) {
    sink.run(&broadcast(), run(epoch, numbers.start));
    for number in numbers {
        for rendition in RENDITIONS {
            sink.segment(segment(epoch, rendition, number));
        }
    }
}

fn writer(store: Arc<dyn ObjectStore>, id: u64, config: &Config) -> (Writer, Metrics) {
    let metrics = Metrics::default();
    (Writer::new(Reader::new(store, metrics.clone()), config, id, None), metrics)
}

fn reader(store: &Arc<InMemory>) -> Reader {
    Reader::new(store.clone(), Metrics::default())
}

fn at_once() -> Config {
    Config { drain: Duration::ZERO, parallel: 3, ..Config::default() }
}

/// Turns the clock until it is so.
async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

const LIMITS: Limits = Limits { max_age: Duration::from_secs(1 << 40), max_bytes: u64::MAX };

/// What a restart does.
async fn restart(store: &Arc<InMemory>, id: u64) {
    Janitor::default().round(&reader(store), LIMITS, id, &|_| false, true).await.unwrap();
}

/// A broadcast by two origins, of which the second takes over at segment 14; each process is stopped after a number of
/// changes. Returns whether both came to their end.
async fn two_origins(store: &Arc<InMemory>, changes: [u64; 2], last: bool) -> bool {
    let mut whole = true;
    for ((id, epoch, numbers), changes) in [(1, 100, 10..16), (2, 200, 14..18)].into_iter().zip(changes) {
        let mortal = Mortal::new(store, changes, last);
        let (writer, metrics) = writer(mortal.clone(), id, &at_once());
        let sink = writer.sink();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(writer.serve(shutdown.clone()));
        offer(&sink, epoch, numbers.clone());
        // While it is written, not only afterwards.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        sink.run(&broadcast(), run(epoch, numbers.start));
        sink.segment(segment(epoch, "360p", numbers.end));
        sink.segment(segment(epoch, "audio", numbers.end));
        sink.ended(&broadcast(), Epoch(epoch));
        let stopped = || mortal.stopped.load(Ordering::SeqCst);
        until("written or stopped", || stopped() || metrics.finished_broadcasts.get() > 0).await;
        whole &= !stopped();
        shutdown.cancel();
        serving.await.unwrap();
    }
    whole
}

/// What is there to be played: every number once, of the newest run that has it, all bytes as they were offered.
async fn check(store: &Arc<InMemory>, whole: bool, what: &str) {
    let before = journaled(store).await;
    restart(store, 9).await;
    let reader = reader(store);
    let Some(index) = reader.index(&broadcast()).await.unwrap() else {
        assert!(before.is_empty(), "{what}");
        return;
    };
    let report = reader.verify(&broadcast()).await.unwrap();
    assert_eq!(report.findings, [], "{what}");
    assert!(index.ended().is_some(), "{what}: it is over after a restart");
    for (rendition, epoch, number) in before {
        assert!(
            index.segment(epoch, &rendition, number).is_some(),
            "{what}: {rendition}/{number} was journaled"
        );
    }
    // Whatever is in the store is in the index: nothing is left that nobody knows of.
    let listed: Vec<_> = store.list(Some(&broadcast().media())).try_collect().await.unwrap();
    assert_eq!(listed.len(), index.objects().count(), "{what}");
    for meta in listed {
        let MediaName { rendition, epoch, number, .. } = MediaName::parse(&meta.location).unwrap();
        let media = reader.segment(&broadcast(), epoch, &rendition, number, None).await.unwrap().unwrap();
        let offered = segment(epoch.0, rendition.as_str(), number.0).object.to_bytes().unwrap();
        assert_eq!(media.bytes, offered, "{what}");
        let part =
            reader.segment(&broadcast(), epoch, &rendition, number, Some(3..7)).await.unwrap().unwrap();
        assert_eq!(part.bytes, offered.slice(3..7));
    }
    for rendition in RENDITIONS {
        let id: RenditionId = rendition.parse().unwrap();
        let numbers: Vec<_> = index.entries(&id, SegmentNumber(0)).map(|entry| entry.number().0).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{what}: {numbers:?}");
        if whole {
            let kept = index.entries(&id, SegmentNumber(0)).map(|entry| match entry {
                Entry::Segment(segment) => (segment.number.0, segment.epoch.0),
                missing => panic!("{what}: {missing:?}"),
            });
            let expected = (10..14).map(|n| (n, 100)).chain((14..=18).map(|n| (n, 200)));
            assert_eq!(kept.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{what}");
        }
    }
    // A second restart finds nothing to do.
    let names = names(store).await;
    restart(store, 10).await;
    assert_eq!(names, self::names(store).await, "{what}");
    assert_eq!(names.iter().filter(|name| name.contains("/journal/")).count(), 1, "{what}: {names:?}");
}

async fn names(store: &Arc<InMemory>) -> Vec<String> {
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut names: Vec<_> = listed.into_iter().map(|meta| meta.location.to_string()).collect();
    names.sort();
    names
}

async fn journaled(store: &Arc<InMemory>) -> Vec<(RenditionId, Epoch, SegmentNumber)> {
    match reader(store).index(&broadcast()).await.unwrap() {
        Some(index) => {
            index.objects().map(|(id, segment)| (id.clone(), segment.epoch, segment.number)).collect()
        }
        None => Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn whenever_a_writer_is_stopped_what_was_journaled_is_there_and_the_rest_is_found_again() {
    let store = Arc::new(InMemory::new());
    assert!(two_origins(&store, [u64::MAX; 2], false).await);
    check(&store, true, "nobody was stopped").await;
    let mut stops = 0;
    for last in [false, true] {
        for victim in [0, 1] {
            for changes in 0.. {
                let store = Arc::new(InMemory::new());
                let mut left = [u64::MAX; 2];
                left[victim] = changes;
                let whole = two_origins(&store, left, last).await;
                check(&store, whole, &format!("origin {victim} stopped at change {changes}, made: {last}"))
                    .await;
                if whole {
                    break;
                }
                stops += 1;
            }
        }
    }
    assert!(stops > 60, "{stops} places to stop at");
}

#[tokio::test(start_paused = true)]
async fn a_restart_may_be_stopped_too() {
    for last in [false, true] {
        for changes in 0.. {
            let store = Arc::new(InMemory::new());
            two_origins(&store, [12, 9], false).await;
            let mortal = Mortal::new(&store, changes, last);
            let reader = Reader::new(mortal.clone(), Metrics::default());
            let done = Janitor::default().round(&reader, LIMITS, 3, &|_| false, true).await;
            check(&store, false, &format!("the restart was stopped at change {changes}, made: {last}")).await;
            if done.is_ok() {
                assert!(changes > 2);
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_was_stopped_is_gone_on_with() {
    for changes in 0.. {
        let store = Arc::new(InMemory::new());
        two_origins(&store, [u64::MAX; 2], false).await;
        restart(&store, 3).await;
        let mortal = Mortal::new(&store, changes, true);
        let removed = crate::remove(&Reader::new(mortal, Metrics::default()), &broadcast(), false).await;
        let there = reader(&store).index(&broadcast()).await.unwrap();
        assert!(there.is_none(), "change {changes}: half a broadcast is none");
        restart(&store, 4).await;
        assert_eq!(names(&store).await, [""; 0], "change {changes}");
        if removed.is_ok() {
            assert!(changes > 10);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_waited_for_and_what_does_not_fit_is_a_hole() {
    let store = Arc::new(InMemory::new());
    let mortal = Mortal::new(&store, u64::MAX, false);
    let len = segment(1, "360p", 10).object.progress().len + segment(1, "audio", 10).object.progress().len;
    // Room for two segments of each rendition.
    let config = Config { queue: ByteSize::b(2 * len), ..at_once() };
    let (writer, metrics) = writer(mortal.clone(), 1, &config);
    let sink = writer.sink();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(writer.serve(shutdown.clone()));
    mortal.away.store(true, Ordering::SeqCst);
    offer(&sink, 1, 10..15);
    until("it failed three times", || sink.health().unwrap().failing.is_some_and(|(_, times)| times >= 3))
        .await;
    let health = sink.health().unwrap();
    assert_eq!(health.queued_bytes, 2 * len);
    assert!(health.failing.unwrap().0.contains("No space left on device"));
    assert_eq!(metrics.failing.get(), 1);
    mortal.away.store(false, Ordering::SeqCst);
    until("all that waited is written", || sink.health().unwrap().queued_bytes == 0).await;
    for rendition in RENDITIONS {
        sink.segment(segment(1, rendition, 15));
        // Twice is once.
        sink.segment(segment(1, rendition, 15));
    }
    sink.ended(&broadcast(), Epoch(1));
    until("it is finished", || metrics.finished_broadcasts.get() == 1).await;
    shutdown.cancel();
    serving.await.unwrap();
    assert_eq!((metrics.failing.get(), metrics.segments.get()), (0, 6));
    let overflow = crate::metrics::Reason { reason: "overflow" };
    assert_eq!(metrics.holes.get_or_create(&overflow).get(), 6);
    let report = reader(&store).verify(&broadcast()).await.unwrap();
    assert_eq!((report.good, report.findings), (6, vec![]));
    let expected = RENDITIONS.iter().flat_map(|id| (12..15).map(move |n| format!("{id}/{n}: overflow")));
    assert_eq!(report.holes, expected.collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writer_brings_nothing_more() {
    let store = Arc::new(InMemory::new());
    let (writer, metrics) = writer(store.clone(), 1, &at_once());
    let sink = writer.sink();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(writer.serve(shutdown.clone()));
    offer(&sink, 5, 10..12);
    sink.fence(broadcast().stream(), Epoch(5));
    sink.segment(segment(5, "360p", 12));
    sink.run(&broadcast(), run(4, 10));
    sink.ended(&broadcast(), Epoch(5));
    until("what was offered before is written", || metrics.segments.get() == 4).await;
    until("and said", || metrics.finished_broadcasts.get() == 1).await;
    shutdown.cancel();
    serving.await.unwrap();
    assert_eq!(metrics.refused_segments.get(), 2);
    let index = reader(&store).index(&broadcast()).await.unwrap().unwrap();
    assert_eq!((index.objects().count(), index.ended()), (4, None), "its end is the next owner's to tell");
}

#[tokio::test(start_paused = true)]
async fn journals_that_go_one_by_one_while_they_are_read_are_no_error() {
    let store = Arc::new(InMemory::new());
    two_origins(&store, [u64::MAX; 2], false).await;
    restart(&store, 3).await;
    let expected = reader(&store).index(&broadcast()).await.unwrap().unwrap().objects().count();
    let folder = broadcast().journals();
    let journals: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
    let bytes = store.get(&journals[0].location).await.unwrap().bytes().await.unwrap();
    for number in 0..12 {
        let name = folder.clone().join(format!("0-00000000000000aa-{number:010}.json"));
        store.put(&name, bytes.clone().into()).await.unwrap();
    }
    let mortal = Mortal::new(&store, u64::MAX, false);
    mortal.vanishing.store(true, Ordering::SeqCst);
    let reader = Reader::new(mortal, Metrics::default());
    let index = reader.index(&broadcast()).await.unwrap().unwrap();
    assert_eq!(index.objects().count(), expected);
}

#[tokio::test(start_paused = true)]
async fn damage_is_named() {
    let store = Arc::new(InMemory::new());
    two_origins(&store, [u64::MAX; 2], false).await;
    restart(&store, 3).await;
    let listed: Vec<_> = store.list(Some(&broadcast().media())).try_collect().await.unwrap();
    let [first, second, third] = [0, 1, 2].map(|index: usize| listed[index].location.clone());
    store.delete(&first).await.unwrap();
    let mut bytes = store.get(&second).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[7] ^= 1;
    store.put(&second, bytes.clone().into()).await.unwrap();
    store.put(&third, bytes[..5].to_vec().into()).await.unwrap();
    let report = reader(&store).verify(&broadcast()).await.unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| format!("{} {}", f.object, f.problem)).collect();
    let mut expected = [
        format!("{first} missing"),
        format!("{second} damaged: its checksum does not match"),
        format!("{third} damaged: 5 bytes instead of {}", listed[2].size),
    ];
    expected.sort();
    assert_eq!(found, expected);
    // A journal that is damaged is not believed, and named.
    let journals: Vec<_> = store.list(Some(&broadcast().journals())).try_collect().await.unwrap();
    let journal = &journals[0].location;
    let mut bytes = store.get(journal).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(journal, bytes.into()).await.unwrap();
    let report = reader(&store).verify(&broadcast()).await.unwrap();
    assert_eq!(report.findings[0].object, journal.to_string());
    assert_eq!(report.good, 0);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_whole_broadcasts_make_room_and_never_one_that_is_live() {
    let store = Arc::new(InMemory::new());
    let (writer, metrics) = writer(store.clone(), 1, &at_once());
    let sink = writer.sink();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(writer.serve(shutdown.clone()));
    let ids = ["a-1", "b-2", "c-3"].map(|id| id.parse::<BroadcastId>().unwrap());
    for (finished, id) in ids.iter().enumerate() {
        sink.run(id, run(1, 10));
        sink.segment(NewSegment { broadcast: id.clone(), ..segment(1, "360p", 10) });
        sink.ended(id, Epoch(1));
        until("finished", || metrics.finished_broadcasts.get() == finished as u64 + 1).await;
    }
    let live: BroadcastId = "live-0".parse().unwrap();
    sink.run(&live, run(1, 10));
    sink.segment(NewSegment { broadcast: live.clone(), ..segment(1, "360p", 10) });
    until("written", || metrics.segments.get() == 4).await;
    until("said", || metrics.journals.get() >= 8).await;
    shutdown.cancel();
    serving.await.unwrap();
    let reader = reader(&store);
    let len = segment(1, "360p", 10).object.progress().len;
    let mut janitor = Janitor::default();
    let open = |id: &BroadcastId| *id == live;
    let limits = |max_bytes| Limits { max_bytes, ..LIMITS };
    janitor.round(&reader, limits(4 * len), 1, &open, true).await.unwrap();
    assert_eq!(reader.broadcasts().await.unwrap().len(), 4);
    janitor.round(&reader, limits(4 * len - 1), 1, &open, true).await.unwrap();
    let left = reader.broadcasts().await.unwrap();
    assert_eq!(left, [ids[1].clone(), ids[2].clone(), live.clone()], "the oldest is gone");
    janitor.round(&reader, limits(0), 1, &open, true).await.unwrap();
    let left = reader.broadcasts().await.unwrap();
    assert_eq!(left, std::slice::from_ref(&live));
    // It ended at some time, and that is too long ago.
    let old = Limits { max_age: Duration::ZERO, ..LIMITS };
    let mut janitor = Janitor::default();
    janitor.round(&reader, old, 1, &|_| false, false).await.unwrap();
    assert_eq!(reader.broadcasts().await.unwrap(), [live], "another origin may be writing it");
}

/// All journals of a long broadcast in any order, some twice, say the same.
#[test]
fn journals_are_merged_in_any_order() {
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..50 {
        let pieces: Vec<_> = (0..20)
            .map(|_| {
                let mut piece = crate::Index::new(broadcast());
                let (epoch, number) = (next() % 3, 10 + next() % 5);
                match next() % 4 {
                    0 => piece.add_run(run(epoch, 10)),
                    1 | 2 => {
                        let NewSegment { rendition, start, .. } = segment(epoch, "360p", number);
                        let sha256 = crate::Digest::of(&[(next() % 3) as u8]);
                        let (number, epoch) = (SegmentNumber(number), Epoch(epoch));
                        let (duration, discontinuity, bytes) = ((next() % 3) as i64, false, next() % 3);
                        let segment = crate::index::Segment {
                            epoch,
                            number,
                            start,
                            duration,
                            discontinuity,
                            lead: next() % 2,
                            bytes,
                            sha256,
                        };
                        piece.add_segment(&rendition, segment);
                    }
                    _ => piece.end(crate::index::Ended {
                        epoch: Epoch(epoch),
                        unix_ms: (next() % 3) as i64,
                        abandoned: next() % 2 == 0,
                    }),
                }
                piece
            })
            .collect();
        let merge = |order: &[usize]| {
            let mut index = crate::Index::new(broadcast());
            for piece in order {
                let bytes = crate::journal::encode(&pieces[*piece]);
                index.merge(&crate::journal::decode(&broadcast(), &bytes).unwrap());
            }
            index
        };
        let order: Vec<_> = (0..20).collect();
        let index = merge(&order);
        for _ in 0..5 {
            let mut other = order.clone();
            for at in (1..other.len()).rev() {
                other.swap(at, (next() % (at as u64 + 1)) as usize);
            }
            other.push((next() % 20) as usize);
            assert_eq!(merge(&other), index);
        }
        let again = crate::journal::decode(&broadcast(), &crate::journal::encode(&index)).unwrap();
        assert_eq!(again, index);
    }
}

#[test]
fn one_process_at_a_time_writes_a_folder_and_what_it_left_half_written_is_cleared_away() {
    let folder = std::env::temp_dir().join(format!("rooftop-archive-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let open = || crate::open(&Config::default(), FilePath::new(&folder), Metrics::default());
    let half = folder.join("archive/demo-1/media/1/360p/7.0.90000.c.0123456789abcdef.m4s#3");
    std::fs::create_dir_all(half.parent().unwrap()).unwrap();
    std::fs::write(&half, "half").unwrap();
    let first = open().unwrap();
    assert!(!half.exists());
    assert!(matches!(open(), Err(crate::Error::Taken(_))));
    drop(first);
    drop(open().unwrap().expect("free again"));
    std::fs::remove_dir_all(&folder).unwrap();
}
