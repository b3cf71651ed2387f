//! Being pushed a stream, and pushing it on.
//!
//! A tier that has answered a request for a stream asks the tier above to push it: one long-lived request over which
//! manifests and growing segments arrive as they are made, so that the next request finds them here or waits for them
//! without going upstream. What is pushed is kept in the same store as what is fetched; when a push is lost, fetches
//! take its place at once, and it is asked for again a little later.
//!
//! [`session`] has the rules (pure), `receive` does what they say, `serve` pushes on to the tier below. The frames and
//! the hub that feeds subscribers are in `media::push`; `docs/push.md` has the wire format.

pub mod metrics;
mod receive;
mod serve;
pub mod session;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use media::lately::{Lately, Spread};
use media::push::Hub;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Push;
use crate::policy::Mode;
use crate::sent::Sent;
use crate::tier::Tier;
use crate::upstream;
use metrics::TierMetrics;

pub(crate) use serve::{Told, serve};

/// A subscription that was used this lately is not dropped for another one.
const BUSY: Duration = Duration::from_secs(1);

/// The pushes of one tier, by the leading segments of the names that they bring.
#[derive(Debug)]
pub(crate) struct Pushes {
    config: Push,
    key_segments: usize,
    /// Whether others may be pushed what comes here.
    pub(crate) serves: bool,
    table: RwLock<HashMap<Box<str>, Arc<Subscription>>>,
    /// Origin of `used_ms`.
    began: Instant,
    closed: AtomicBool,
    pub(crate) metrics: TierMetrics,
}

/// What is to be pushed here: one stream.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Such as `/live/demo`, without a `/` at its end.
    prefix: Box<str>,
    /// When a request last needed it.
    used_ms: AtomicU64,
    promises: Mutex<HashMap<Box<str>, Promise>>,
    status: watch::Sender<Status>,
    stop: CancellationToken,
    /// Of the request that it began with.
    cdn_loop: HeaderValue,
    /// What parts took lately, from their first frame's coming in to being here with what lists them.
    lately: Mutex<Lately>,
    /// The same to their leaving for viewers.
    sent: Arc<Sent>,
}

#[derive(Debug, Clone)]
enum Status {
    /// It is being asked for.
    Asking,
    /// It comes, and goes on from here.
    On(Hub),
    /// It was refused or lost, and will be asked for again.
    Off,
}

#[derive(Debug, Default)]
struct Promise {
    lost: CancellationToken,
    awaited: bool,
}

/// Holds for as long as the push lasts that brought an entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lease(Arc<AtomicBool>);

impl Lease {
    pub(crate) fn holds(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Pushes {
    pub(crate) fn new(config: Push, key_segments: usize, serves: bool, metrics: TierMetrics) -> Pushes {
        let (table, closed) = Default::default();
        Pushes { config, key_segments, serves, table, began: Instant::now(), closed, metrics }
    }

    /// What parts of the stream below `prefix` took lately to be here, by the clocks of their POP and this node. `None`: it is
    /// not pushed here, or nothing came yet.
    pub(crate) fn took(&self, prefix: &str) -> Option<Spread> {
        self.read().get(prefix)?.lately.lock().unwrap_or_else(PoisonError::into_inner).spread()
    }

    /// The same of their leaving for who asked here while they came.
    pub(crate) fn sent(&self, prefix: &str) -> Option<Spread> {
        self.read().get(prefix)?.sent.spread()
    }

    /// A push has promised `key`: fires when it will not come that way after all.
    pub(crate) fn promised(&self, key: &str) -> Option<CancellationToken> {
        let prefix = upstream::prefix(key, self.key_segments)?;
        let table = self.read();
        let mut promises = table.get(prefix)?.promises();
        let promise = promises.get_mut(key)?;
        promise.awaited = true;
        Some(promise.lost.clone())
    }

    /// Has the tier below forget all names that begin with `prefix`, as far as it is pushed their streams.
    pub(crate) fn purge(&self, prefix: &str) {
        for subscription in self.read().values() {
            let stream = format!("{}/", subscription.prefix);
            let purged = if stream.starts_with(prefix) { &stream } else { prefix };
            if purged.starts_with(&stream)
                && let Status::On(hub) = &*subscription.status.borrow()
                && let Err(error) = hub.purge(purged)
            {
                debug!(prefix, %error, "purge not pushed on");
            }
        }
    }

    /// No more pushes to the tier below; those under way end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for subscription in self.read().values() {
            if let Status::On(hub) = &*subscription.status.borrow() {
                hub.end();
            }
        }
    }

    fn now_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Box<str>, Arc<Subscription>>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Box<str>, Arc<Subscription>>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subscription to `prefix`, and whether it is new. `None`: it is not `wanted`, or there are too many, all of them
    /// in use.
    fn subscription(
        &self,
        prefix: &str,
        now: Instant,
        wanted: impl FnOnce() -> bool,
        cdn_loop: impl FnOnce() -> HeaderValue,
    ) -> Option<(Arc<Subscription>, bool)> {
        let now_ms = self.now_ms(now);
        if let Some(subscription) = self.read().get(prefix) {
            // Written once a millisecond, however many ask.
            if subscription.used_ms.load(Ordering::Relaxed) != now_ms {
                subscription.used_ms.store(now_ms, Ordering::Relaxed);
            }
            return Some((subscription.clone(), false));
        }
        if !wanted() {
            return None;
        }
        let mut table = self.write();
        if let Some(subscription) = table.get(prefix) {
            return Some((subscription.clone(), false));
        }
        if table.len() >= self.config.max_streams {
            let used = |subscription: &Subscription| subscription.used_ms.load(Ordering::Relaxed);
            let oldest = table.values().min_by_key(|subscription| used(subscription))?.clone();
            if used(&oldest) + BUSY.as_millis() as u64 > now_ms || oldest.is_passed_on() {
                self.metrics.ended("full");
                return None;
            }
            table.remove(&oldest.prefix);
            oldest.stop.cancel();
        }
        let subscription = Arc::new(Subscription {
            prefix: prefix.into(),
            used_ms: AtomicU64::new(now_ms),
            promises: Mutex::default(),
            status: watch::Sender::new(Status::Asking),
            stop: CancellationToken::new(),
            cdn_loop: cdn_loop(),
            lately: Mutex::default(),
            sent: Arc::new(Sent::new(self.metrics.sent_seconds.clone())),
        });
        table.insert(prefix.into(), subscription.clone());
        Some((subscription, true))
    }

    /// Forgets a subscription that is over; another may have its place.
    fn forget(&self, subscription: &Arc<Subscription>) {
        let mut table = self.write();
        if table.get(&subscription.prefix).is_some_and(|other| Arc::ptr_eq(other, subscription)) {
            table.remove(&subscription.prefix);
        }
    }
}

impl Subscription {
    /// A part is here whose first frame came in at its POP at `unix_us`.
    fn came(&self, metrics: &TierMetrics, unix_us: u64, now: SystemTime) {
        let now_us = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        // Clocks may differ.
        let us = now_us.saturating_sub(unix_us).min(i64::MAX as u64);
        metrics.part_seconds.observe(us as f64 / 1e6);
        self.lately.lock().unwrap_or_else(PoisonError::into_inner).note(us as i64);
    }

    fn promises(&self) -> MutexGuard<'_, HashMap<Box<str>, Promise>> {
        // Every change under the lock is a single insertion or removal.
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether someone in the tier below is pushed it.
    fn is_passed_on(&self) -> bool {
        matches!(&*self.status.borrow(), Status::On(hub) if hub.subscribers() > 0)
    }
}

/// A request for `key` was answered with something worth having: its stream is one to be pushed.
pub(crate) fn used(tier: &Arc<Tier>, key: &str, now: Instant, cdn_loop: impl FnOnce() -> HeaderValue) {
    if let Some(prefix) = upstream::prefix(key, tier.pushes.key_segments) {
        subscribe(tier, prefix, now, cdn_loop);
    }
}

/// Whether a stream is to be pushed here at all. Asked when a push begins, and now and then while it lasts.
fn wanted(tier: &Tier, prefix: &str) -> bool {
    tier.policy().delivery(&format!("{prefix}/")) == Mode::Push
}

/// `None`: it is to be pulled, or there are too many.
fn subscribe(
    tier: &Arc<Tier>,
    prefix: &str,
    now: Instant,
    cdn_loop: impl FnOnce() -> HeaderValue,
) -> Option<Arc<Subscription>> {
    let wanted = || wanted(tier, prefix);
    let (subscription, is_new) = tier.pushes.subscription(prefix, now, wanted, cdn_loop)?;
    if is_new {
        tier.tasks.spawn(receive::run(tier.clone(), subscription.clone()));
    }
    Some(subscription)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushes(max_streams: usize) -> Pushes {
        let config = Push { max_streams, ..Push::default() };
        Pushes::new(config, 2, true, metrics::Metrics::default().of("edge"))
    }

    fn value() -> HeaderValue {
        HeaderValue::from_static("rooftop")
    }

    #[test]
    fn the_longest_unused_makes_room() {
        let pushes = pushes(2);
        let at = |s| pushes.began + Duration::from_secs(s);
        let (a, _) = pushes.subscription("/live/a", at(0), || true, value).unwrap();
        let (b, is_new) = pushes.subscription("/live/b", at(1), || true, value).unwrap();
        assert!(is_new);
        assert!(!pushes.subscription("/live/a", at(10), || true, value).unwrap().1, "one per stream");
        assert!(pushes.subscription("/live/c", at(11), || true, value).unwrap().1);
        assert!(b.stop.is_cancelled() && !a.stop.is_cancelled());
        assert!(pushes.subscription("/live/d", at(11), || true, value).unwrap().1);
        assert!(a.stop.is_cancelled());
        assert!(pushes.subscription("/live/e", at(11), || true, value).is_none(), "all are in use");
        assert!(pushes.subscription("/live/e", at(99), || false, value).is_none(), "not wanted");
        // What is over leaves the place of another alone.
        pushes.forget(&a);
        pushes.forget(&b);
        assert_eq!(pushes.read().len(), 2);
    }

    #[test]
    fn a_promise_is_found_by_its_name() {
        let pushes = pushes(2);
        let (stream, _) = pushes.subscription("/live/a", pushes.began, || true, value).unwrap();
        stream.promises().insert("/live/a/x.m3u8?_HLS_msn=1".into(), Promise::default());
        assert!(pushes.promised("/live/a/x.m3u8").is_none());
        assert!(pushes.promised("/live/b/x.m3u8?_HLS_msn=1").is_none());
        assert!(pushes.promised("/live").is_none());
        assert!(pushes.promised("/live/a/x.m3u8?_HLS_msn=1").is_some());
        assert!(stream.promises().values().all(|promise| promise.awaited));
    }
}
