//! What is there: complete objects in moka, by bytes, and the table of names in flight.
//!
//! moka evicts by LRU: with its default policy (TinyLFU) an object that nobody has asked for yet is refused by a full
//! cache, and in live media every new object is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use media::Object;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use prometheus_client::metrics::gauge::Gauge;

use crate::form::Forms;
use crate::freshness::Freshness;
use crate::handover::{self, Table};
use crate::push::Lease;

/// What an entry costs besides its body and its name, in bytes: headers, table slots, allocations. Measured roughly.
const ENTRY_BYTES: u64 = 1024;

/// How long an entry is kept that is current for as long as its push lasts: some are pushed once and never again.
const LEASED_KEEP: Duration = Duration::from_secs(3600);

/// An answer that can be given to many.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) status: StatusCode,
    /// As viewers get them, but for `Age`, `Cache-Status` and what a range changes.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Content,
    pub(crate) received: Instant,
    pub(crate) freshness: Freshness,
    /// Made here because the upstream gave no answer.
    pub(crate) failed: bool,
    /// Stale, and to be served all the same until then without asking the upstream, which has just failed.
    pub(crate) grace_until: Option<Instant>,
    /// Its part of the account, once it is complete.
    pub(crate) charge: Option<Arc<Charge>>,
    /// Its body and headers, ready to be sent.
    pub(crate) forms: Forms,
    /// Current for as long as the push lasts that brought it: until its name is pushed again.
    pub(crate) lease: Option<Lease>,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// In one piece.
    Whole(Bytes),
    /// On its way, with its length if the upstream announced it.
    Growing { object: Object, length: Option<u64> },
}

/// What may be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Serve it.
    Fresh,
    /// Serve it; the upstream is left alone for now.
    Grace,
    /// Serve it, and fetch it anew meanwhile.
    Revalidate,
    /// Fetch it; it will do if that fails.
    IfError,
    /// Fetch it.
    Gone,
}

impl Entry {
    pub(crate) fn state(&self, now: Instant) -> State {
        if self.is_leased() {
            return State::Fresh;
        }
        let past = now.saturating_duration_since(self.received + self.freshness.fresh);
        let is_past = now >= self.received + self.freshness.fresh;
        if !is_past {
            State::Fresh
        } else if self.grace_until.is_some_and(|until| now < until) {
            State::Grace
        } else if past < self.freshness.while_revalidate {
            State::Revalidate
        } else if past < self.freshness.if_error {
            State::IfError
        } else {
            State::Gone
        }
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::holds)
    }

    /// RFC 9111 section 4.2.3.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        // The push that lasts says that it is current, as a validation would.
        if self.is_leased() {
            return Duration::ZERO;
        }
        self.freshness.age + now.saturating_duration_since(self.received)
    }
}

/// Bytes on an account for as long as this lives.
#[derive(Debug)]
pub(crate) struct Charge {
    account: Gauge,
    bytes: u64,
}

impl Charge {
    pub(crate) fn new(account: &Gauge, bytes: u64) -> Charge {
        let mut charge = Charge { account: account.clone(), bytes: 0 };
        charge.grow(bytes);
        charge
    }

    pub(crate) fn grow(&mut self, bytes: u64) {
        self.account.inc_by(bytes as i64);
        self.bytes += bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.dec_by(self.bytes as i64);
    }
}

/// What those who wait for a name are told.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) entry: Arc<Entry>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first fetch answered.
    Fetched,
    /// More than one was needed.
    Promoted,
    /// The upstream said that what was there is still good.
    Confirmed,
    /// A push from the tier above brought it.
    Pushed,
    /// No fetch answered, but a stale copy will do.
    Stale,
    /// No fetch answered.
    Failed,
}

pub(crate) type Waiting = handover::Waiting<Verdict>;
pub(crate) type Permit = handover::Permit<Verdict>;
/// What [`Store::join`] found.
pub(crate) type Joined = handover::Joined<Verdict, Arc<Entry>>;

/// Both stores of one tier.
pub(crate) struct Store {
    complete: Cache<Arc<str>, Arc<Entry>>,
    flights: Table<Verdict>,
    max_bytes: u64,
    bytes: Gauge,
}

impl Store {
    /// With bounds in bytes and names, and the gauges that show them.
    pub(crate) fn new(max_bytes: u64, max_flights: usize, bytes: Gauge, names: Gauge) -> Store {
        let complete = Cache::builder()
            .max_capacity(max_bytes)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|key: &Arc<str>, entry: &Arc<Entry>| weight(key, entry).try_into().unwrap_or(u32::MAX))
            .expire_after(Expiry)
            .build();
        Store { complete, flights: Table::new(max_flights, names), max_bytes, bytes }
    }

    /// The complete object, however stale.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.complete.get(key)
    }

    /// Joins the flight of `key`, or begins one. A flight whose answer is no longer fresh is not joined but replaced.
    pub(crate) fn join(&self, key: &str, now: Instant) -> Joined {
        let is_fresh = |entry: &Entry| entry.state(now) == State::Fresh;
        let complete = || self.complete.get(key).filter(|entry| is_fresh(entry));
        self.flights.join(key, |verdict| is_fresh(&verdict.entry), complete)
    }

    /// Takes a name over from a flight that has told nobody yet: those who wait hear what this permit says. `None`: the
    /// flight has an answer, or too many names are in flight.
    pub(crate) fn seize(&self, key: &str) -> Option<Permit> {
        self.flights.seize(key)
    }

    /// Keeps a complete object, unless its name was purged since its flight began or a newer one is there.
    pub(crate) fn keep(&self, permit: &Permit, mut entry: Entry) -> Arc<Entry> {
        entry.charge = Some(Arc::new(Charge::new(&self.bytes, weight(&permit.key, &entry))));
        let entry = Arc::new(entry);
        let newer = self.complete.get(&permit.key).is_some_and(|other| other.received > entry.received);
        if !newer && !permit.purged() {
            self.complete.insert(permit.key.clone(), entry.clone());
            // A purge that came in between has marked the flight before it looked here.
            if permit.purged() {
                self.complete.invalidate(&permit.key);
            }
        }
        // moka evicts now and then; a burst must not wait for that.
        if self.bytes.get() > self.max_bytes as i64 {
            self.complete.run_pending_tasks();
        }
        entry
    }

    /// Forgets all names that begin with `prefix`; answers under way reach those who wait for them and are not kept.
    pub(crate) fn purge(&self, prefix: &str) -> usize {
        let mut count = self.flights.purge(prefix);
        for (key, _) in self.complete.iter().filter(|(key, _)| key.starts_with(prefix)) {
            self.complete.invalidate(key.as_ref());
            count += 1;
        }
        count
    }
}

fn weight(key: &str, entry: &Entry) -> u64 {
    let body = match &entry.body {
        Content::Whole(bytes) => bytes.len() as u64,
        Content::Growing { object, .. } => object.progress().len,
    };
    ENTRY_BYTES + 2 * key.len() as u64 + body
}

/// Entries leave when they are of no more use.
struct Expiry;

impl moka::Expiry<Arc<str>, Arc<Entry>> for Expiry {
    fn expire_after_create(&self, _: &Arc<str>, entry: &Arc<Entry>, now: Instant) -> Option<Duration> {
        Some(left(entry, now))
    }

    fn expire_after_update(
        &self,
        _: &Arc<str>,
        entry: &Arc<Entry>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(left(entry, now))
    }
}

fn left(entry: &Entry, now: Instant) -> Duration {
    let keep = if entry.lease.is_some() { LEASED_KEEP } else { entry.freshness.keep() };
    (entry.received + keep).saturating_duration_since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(received: Instant, fresh_ms: u64, body: usize) -> Entry {
        let ms = Duration::from_millis;
        Entry {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Content::Whole(vec![0; body].into()),
            received,
            freshness: Freshness {
                age: ms(500),
                fresh: ms(fresh_ms),
                while_revalidate: ms(100),
                if_error: ms(1000),
                confirm: ms(0),
            },
            failed: false,
            grace_until: None,
            charge: None,
            forms: Forms::default(),
            lease: None,
        }
    }

    fn store(max_bytes: u64) -> Arc<Store> {
        Arc::new(Store::new(max_bytes, 2, Gauge::default(), Gauge::default()))
    }

    fn permit(store: &Arc<Store>, key: &str) -> (Permit, Waiting) {
        match store.join(key, Instant::now()) {
            Joined::Yours(permit, waiting) => (permit, waiting),
            _ => panic!("{key} is not ours to fetch"),
        }
    }

    #[test]
    fn an_entry_ages() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut entry = entry(zero, 2000, 0);
        for (ms, expected) in [
            (0, State::Fresh),
            (1999, State::Fresh),
            (2000, State::Revalidate),
            (2100, State::IfError),
            (3000, State::Gone),
        ] {
            assert_eq!(entry.state(at(ms)), expected, "at {ms} ms");
        }
        assert_eq!(entry.age(at(1700)), Duration::from_millis(2200));
        entry.grace_until = Some(at(2500));
        assert_eq!(entry.state(at(2499)), State::Grace);
        assert_eq!(entry.state(at(2500)), State::IfError);
        entry.freshness.fresh = Duration::ZERO;
        entry.grace_until = None;
        assert_eq!(entry.state(zero), State::Revalidate, "never fresh, not even at once");
    }

    #[test]
    fn one_permit_per_name_and_a_bound_on_names() {
        let names = Gauge::default();
        let store = Arc::new(Store::new(1 << 20, 2, Gauge::default(), names.clone()));
        let (first, _) = permit(&store, "/a");
        assert!(matches!(store.join("/a", Instant::now()), Joined::Waiting(_)));
        let (second, _) = permit(&store, "/b");
        assert!(matches!(store.join("/c", Instant::now()), Joined::Full));
        assert_eq!(names.get(), 2);
        first.leave();
        first.leave();
        assert_eq!(names.get(), 1);
        let (again, _) = permit(&store, "/a");
        first.leave();
        assert!(
            matches!(store.join("/a", Instant::now()), Joined::Waiting(_)),
            "an old flight ends no new one"
        );
        drop(again);
        drop(second);
        assert_eq!(names.get(), 0);
    }

    #[test]
    fn a_stale_flight_is_replaced() {
        let store = store(1 << 20);
        let (slow, _) = permit(&store, "/a");
        let old = Arc::new(entry(Instant::now() - Duration::from_secs(9), 1000, 1));
        slow.tell(Verdict { entry: old, kind: Kind::Fetched });
        let (fresh, _) = permit(&store, "/a");
        let newer = store.keep(&fresh, entry(Instant::now(), 1000, 2));
        fresh.leave();
        store.keep(&slow, entry(newer.received - Duration::from_millis(1), 60_000, 1));
        assert!(Arc::ptr_eq(&store.get("/a").unwrap(), &newer), "the newer one stays");
    }

    #[test]
    fn a_purge_reaches_flights_and_objects() {
        let names = Gauge::default();
        let store = Arc::new(Store::new(1 << 20, 2, Gauge::default(), names.clone()));
        let (late, _) = permit(&store, "/live/a/2");
        let (other, _) = permit(&store, "/live/b/1");
        store.keep(&other, entry(Instant::now(), 60_000, 1));
        assert_eq!(store.purge("/live/a/"), 1);
        store.keep(&late, entry(Instant::now(), 60_000, 1));
        assert!(store.get("/live/a/2").is_none(), "purged while in flight");
        assert!(store.get("/live/b/1").is_some());
        assert_eq!(store.purge("/live/"), 2);
        assert!(store.get("/live/b/1").is_none());
        assert_eq!(names.get(), 0);
    }

    #[test]
    fn memory_stays_within_bounds_and_new_objects_get_in() {
        let store = store(4 << 20);
        let mut peak = 0;
        for number in 0..2000 {
            let key = format!("/{number}");
            let (permit, _) = permit(&store, &key);
            store.keep(&permit, entry(Instant::now(), 60_000, 64 << 10));
            permit.leave();
            assert!(store.get(&key).is_some(), "{key} was refused");
            peak = peak.max(store.bytes.get());
        }
        // moka frees what it evicts a little later (by epochs, a few dozen entries per thread at a time).
        assert!(peak < (4 << 20) + 256 * (65 << 10), "{peak} bytes at worst");
    }

    #[tokio::test]
    async fn a_seized_name_is_told_by_who_seized_it() {
        let store = store(1 << 20);
        let (slow, waiting) = permit(&store, "/a");
        let pushed = store.seize("/a").unwrap();
        std::future::poll_fn(|cx| slow.poll_seized(cx)).await;
        let verdict = |kind| Verdict { entry: Arc::new(entry(Instant::now(), 1000, 1)), kind };
        assert!(!slow.tell(verdict(Kind::Fetched)));
        drop(slow);
        assert!(pushed.tell(verdict(Kind::Pushed)));
        assert_eq!(waiting.await.unwrap().kind, Kind::Pushed);
        assert!(store.seize("/a").is_none(), "it has its answer");
        drop(pushed);
        assert!(matches!(store.join("/a", Instant::now()), Joined::Yours(..)));
    }

    #[tokio::test]
    async fn a_lost_permit_wakes_those_who_wait() {
        let store = store(1 << 20);
        let (permit, waiting) = permit(&store, "/a");
        drop(permit);
        assert!(waiting.await.is_none());
    }
}
