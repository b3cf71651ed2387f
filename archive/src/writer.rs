//! Writes behind: takes work from the queue, a bounded number of pieces at a time, and tells it what came of each.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use media::event::Event;
use media::{Epoch, RenditionId, SegmentNumber, StreamName};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::index::{Ended, Run, Segment};
use crate::journal;
use crate::metrics::{Metrics, Reason};
use crate::name::{BroadcastId, Digest, media_path};
use crate::queue::{NewSegment, Offered, Queue, Ticket, Work};
use crate::reader::Reader;
use crate::upkeep::{self, Janitor, Limits};

/// Between two looks at what may be removed.
const ROUND_EVERY: Duration = Duration::from_secs(60);

/// Between two log lines about a store that fails.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Where an origin puts what it has published. Nothing here waits. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Sink(Option<Arc<Shared>>);

#[derive(Debug)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
    metrics: Metrics,
}

/// How the store does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Bytes that wait.
    pub queued_bytes: u64,
    /// Why the last attempt to write failed, and how many did so one after the other.
    pub failing: Option<(String, u32)>,
}

impl Sink {
    /// A run begins, or goes on at this origin after another. The same run twice is one.
    pub fn run(&self, broadcast: &BroadcastId, run: Run) {
        self.offer("a run", |queue| queue.run(now(), broadcast, run));
    }

    /// Something happened in the run `epoch`. The same event twice is one; those of a run that was not announced are left out.
    pub fn event(&self, broadcast: &BroadcastId, epoch: Epoch, event: Event) {
        self.offer("an event", |queue| queue.event(broadcast, epoch, event));
    }

    /// A segment is complete. The same segment twice is one; for one of a run that was not announced, or that finds the queue
    /// full, a hole is noted.
    pub fn segment(&self, segment: NewSegment) {
        self.offer("a segment", |queue| queue.segment(segment));
    }

    /// No media came for a number.
    pub fn gap(&self, broadcast: &BroadcastId, epoch: Epoch, rendition: &RenditionId, number: SegmentNumber) {
        let Some(shared) = &self.0 else { return };
        shared.queue().gap(broadcast, epoch, rendition, number);
        shared.metrics.holes.get_or_create(&Reason { reason: "gap" }).inc();
        shared.changed.notify_one();
    }

    /// The broadcast is over, `epoch` its last run.
    pub fn ended(&self, broadcast: &BroadcastId, epoch: Epoch) {
        let Some(shared) = &self.0 else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let unix_ms = now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        shared.queue().ended(broadcast, Ended { epoch, unix_ms, abandoned: false });
        shared.changed.notify_one();
    }

    /// The writer of `stream` up to `epoch` has lost it: nothing more is taken from it.
    pub fn fence(&self, stream: &StreamName, epoch: Epoch) {
        let Some(shared) = &self.0 else { return };
        shared.queue().fence(stream, epoch);
        shared.changed.notify_one();
    }

    /// Whether nothing is kept.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// How the store does; `None` if nothing is kept.
    pub fn health(&self) -> Option<Health> {
        let queue = self.0.as_ref()?.queue();
        let failing = queue.failing().map(|failing| (failing.cause.clone(), failing.times));
        Some(Health { queued_bytes: queue.bytes(), failing })
    }

    fn offer(&self, what: &str, offer: impl FnOnce(&mut Queue) -> Offered) {
        let Some(shared) = &self.0 else { return };
        let (offered, bytes) = {
            let mut queue = shared.queue();
            (offer(&mut queue), queue.bytes())
        };
        shared.metrics.queued_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        match offered {
            Offered::Queued => shared.changed.notify_one(),
            Offered::Known => {}
            Offered::Overflow => {
                shared.metrics.holes.get_or_create(&Reason { reason: "overflow" }).inc();
                shared.changed.notify_one();
            }
            Offered::Fenced => {
                shared.metrics.refused_segments.inc();
                tracing::debug!(what, "not archived: its writer has lost the stream");
            }
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing that runs under the lock can leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task behind a [`Sink`].
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    reader: Reader,
    limits: Limits,
    drain: Duration,
    /// Tells this process' journals from others'.
    id: u64,
    /// Held while nobody else may write there.
    lock: Option<Arc<File>>,
}

/// What came of a piece of work.
enum Outcome {
    Written(Ticket, Option<Segment>, u64),
    Failed(Ticket, object_store::Error),
}

impl Writer {
    pub(crate) fn new(reader: Reader, config: &crate::Config, id: u64, lock: Option<Arc<File>>) -> Self {
        let queue = Queue::new(config.queue.as_u64(), config.parallel, id);
        let metrics = reader.metrics().clone();
        let shared = Shared { queue: Mutex::new(queue), changed: Notify::new(), metrics };
        let limits = Limits { max_age: config.max_age, max_bytes: config.max_size.as_u64() };
        Self { shared: Arc::new(shared), reader, limits, drain: config.drain, id, lock }
    }

    /// Where to put segments.
    pub fn sink(&self) -> Sink {
        Sink(Some(self.shared.clone()))
    }

    /// Writes until `shutdown`, then what waits, for [`crate::Config::drain`] at most.
    pub async fn serve(self, shutdown: CancellationToken) {
        let upkeep = CancellationToken::new();
        let (finished, finish) = tokio::sync::mpsc::unbounded_channel();
        let writing = async {
            self.write(&shutdown, finished).await;
            upkeep.cancel();
        };
        tokio::join!(writing, self.keep_up(finish, &upkeep));
    }

    async fn write(&self, shutdown: &CancellationToken, upkeep: tokio::sync::mpsc::UnboundedSender<Work>) {
        let mut at_work: JoinSet<Outcome> = JoinSet::new();
        let mut reminded: Option<Instant> = None;
        let mut deadline: Option<tokio::time::Instant> = None;
        loop {
            let wake = {
                let mut queue = self.shared.queue();
                while let Some(work) = queue.poll(now()) {
                    let store = self.reader.store().clone();
                    match work {
                        Work::Media(ticket, segment) => {
                            at_work.spawn(async move { put_media(&*store, ticket, segment).await });
                        }
                        Work::Journal(ticket, name, index) => {
                            let path = name.path(index.broadcast());
                            at_work.spawn(async move {
                                let payload = PutPayload::from(journal::encode(&index));
                                match store.put(&path, payload).await {
                                    Ok(_) => Outcome::Written(ticket, None, 0),
                                    Err(error) => Outcome::Failed(ticket, error),
                                }
                            });
                        }
                        // Its reader lives as long as this does.
                        work => drop(upkeep.send(work)),
                    }
                }
                if deadline.is_some() && queue.is_empty() {
                    return;
                }
                queue.poll_timeout()
            };
            let wake = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let end = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if deadline.is_none() => {
                    deadline = Some(tokio::time::Instant::now() + self.drain);
                }
                () = end => {
                    let bytes = self.shared.queue().bytes();
                    warn!(bytes, "the archive did not take all that was published before the shutdown");
                    return;
                }
                Some(outcome) = at_work.join_next(), if !at_work.is_empty() => {
                    // A panic is ours; the piece of work it was about is lost.
                    match outcome {
                        Ok(outcome) => self.note(outcome, &mut reminded),
                        Err(error) => tracing::error!(%error, "a task of the archive failed"),
                    }
                }
                () = self.shared.changed.notified() => {}
                () = wake => {}
            }
        }
    }

    fn note(&self, outcome: Outcome, reminded: &mut Option<Instant>) {
        let metrics = &self.shared.metrics;
        let mut queue = self.shared.queue();
        match outcome {
            Outcome::Written(ticket, segment, bytes) => {
                let was = queue.failing().map(|failing| failing.times);
                queue.done(ticket, segment);
                drop(queue);
                if segment.is_some() {
                    metrics.segments.inc();
                    metrics.written_bytes.inc_by(bytes);
                } else {
                    metrics.journals.inc();
                }
                if let Some(times) = was {
                    *reminded = None;
                    metrics.failing.set(0);
                    info!(attempts = times, "the archive can be written again");
                }
            }
            Outcome::Failed(ticket, error) => {
                let (now, cause) = (now(), cause(&error));
                queue.failed(now, ticket, cause.clone(), jitter());
                let bytes = queue.bytes();
                drop(queue);
                metrics.failures.inc();
                metrics.failing.set(1);
                if reminded.is_none_or(|at| now.duration_since(at) >= REMIND_EVERY) {
                    *reminded = Some(now);
                    warn!(%cause, queued_bytes = bytes, "the archive cannot be written; live goes on, and it is tried again");
                }
            }
        }
        let bytes = self.shared.queue().bytes();
        metrics.queued_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// One piece of upkeep after the other.
    async fn keep_up(&self, mut works: tokio::sync::mpsc::UnboundedReceiver<Work>, end: &CancellationToken) {
        let mut janitor = Janitor::default();
        let mut rounds = tokio::time::interval(ROUND_EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let step = async {
                tokio::select! {
                    biased;
                    Some(work) = works.recv() => self.upkeep(work).await,
                    _ = rounds.tick() => {
                        let open = |broadcast: &BroadcastId| self.shared.queue().is_open(broadcast);
                        let round = janitor.round(&self.reader, self.limits, self.id, &open, self.lock.is_some());
                        round.await.map_err(|error| ("looking after it", error))
                    }
                }
            };
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                done = step => {
                    if let Err((what, error)) = done {
                        // It is done again at the next round.
                        warn!(cause = %error, what, "upkeep of the archive failed");
                    }
                }
            }
        }
    }

    async fn upkeep(&self, work: Work) -> Result<(), (&'static str, crate::Error)> {
        match work {
            Work::Compact(broadcast, names, to) => {
                upkeep::compact(&self.reader, &broadcast, &names, to)
                    .await
                    .map_err(|error| ("joining journals", error))?;
                self.shared.queue().compacted(&broadcast, to);
                Ok(())
            }
            Work::Finish(broadcast) => {
                let done = upkeep::finish(&self.reader, &broadcast, self.id, None).await;
                done.map_err(|error| ("closing a broadcast", error))?;
                info!(%broadcast, "the broadcast is archived");
                Ok(())
            }
            Work::Media(..) | Work::Journal(..) => Ok(()),
        }
    }
}

async fn put_media(store: &dyn ObjectStore, ticket: Ticket, segment: NewSegment) -> Outcome {
    let NewSegment { broadcast, epoch, rendition, number, start, duration, discontinuity, lead, object } =
        segment;
    // A megabyte takes a millisecond or two: not on the threads that serve viewers.
    let hashed = tokio::task::spawn_blocking(move || {
        let bytes = object.to_bytes().unwrap_or_default();
        (Digest::of(&bytes), bytes)
    });
    let Ok((sha256, body)) = hashed.await else {
        let source = "hashing was interrupted".into();
        return Outcome::Failed(ticket, object_store::Error::Generic { store: "archive", source });
    };
    let bytes = body.len() as u64;
    let written = Segment { epoch, number, start, duration, discontinuity, lead, bytes, sha256 };
    let path = media_path(&broadcast, &rendition, &written);
    match store.put(&path, PutPayload::from_bytes(body)).await {
        Ok(_) => Outcome::Written(ticket, Some(written), bytes),
        Err(error) => Outcome::Failed(ticket, error),
    }
}

/// The error and what it came from, in one line.
fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text.chars().take(500).collect()
}

/// The runtime's clock, so that tests may turn it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Between 0 and 1, another each time.
fn jitter() -> f64 {
    let mut byte = [0_u8; 1];
    // Without randomness origins retry in step, no more.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
