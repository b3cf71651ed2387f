//! What is there: complete objects on the [`Shelf`], and the table of names in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use media::Object;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::budget::{self, Budget, Charge, Full, Growing};
use crate::encoding;
use crate::form::Forms;
use crate::freshness::Freshness;
pub(crate) use crate::freshness::State;
use crate::handover::{self, Table};
use crate::metrics::ClassMetrics;
use crate::push::Lease;
use crate::sent::Mark;
use crate::shelf::{self, Shelf};

/// What an entry costs besides its body, its name and its headers, in bytes: table slots, allocations.
const ENTRY_BYTES: u64 = 1536;

/// How long an entry is kept that is current for as long as its push lasts: some are pushed once and never again.
const LEASED_KEEP: Duration = Duration::from_secs(3600);

/// What a header costs besides its text, each time it is there: its place in a table that is up to half empty, and the
/// allocation of its value. With this, 50,000 objects of 1.5 KB with ten headers took no more by the system's count than
/// by ours (8.8 KB each).
const HEADER_BYTES: u64 = 256;

/// Objects past their end that leave at once; some microseconds each.
const SWEPT_AT_ONCE: usize = 1000;

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
    /// Those of its class when it was fetched.
    pub(crate) counts: Arc<ClassMetrics>,
    /// Its body and headers, ready to be sent.
    pub(crate) forms: Forms,
    /// Current for as long as the push lasts that brought it: until its name is pushed again.
    pub(crate) lease: Option<Lease>,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// In one piece.
    Whole(Bytes),
    /// On its way, with its length if the upstream announced it, and where its parts end if that is known.
    Growing { object: Object, length: Option<u64>, mark: Option<Arc<Mark>> },
}

impl Entry {
    pub(crate) fn state(&self, now: Instant) -> State {
        if self.is_leased() {
            return State::Fresh;
        }
        self.freshness.state(self.received, self.grace_until, now)
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::holds)
    }

    /// When it is of no more use.
    fn until(&self) -> Instant {
        let keep = if self.lease.is_some() { LEASED_KEEP } else { self.freshness.keep() };
        self.received + keep
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
    shelf: Shelf<Entry>,
    budget: Arc<Budget>,
    unkept: Counter,
    flights: Table<Verdict>,
}

impl Store {
    /// Within `budget` and a bound on names, and what counts them.
    pub(crate) fn new(
        budget: Arc<Budget>,
        left: shelf::Counters,
        unkept: Counter,
        max_flights: usize,
        names: Gauge,
    ) -> Store {
        let flights = Table::new(max_flights, names);
        Store { shelf: Shelf::new(budget.clone(), left), budget, unkept, flights }
    }

    /// The complete object, however stale.
    pub(crate) fn get(&self, key: &str, now: Instant) -> Option<Arc<Entry>> {
        self.shelf.get(key, now)
    }

    /// Joins the flight of `key`, or begins one. A flight whose answer is no longer fresh is not joined but replaced.
    pub(crate) fn join(&self, key: &str, now: Instant) -> Joined {
        let is_fresh = |entry: &Entry| entry.state(now) == State::Fresh;
        let complete = || self.get(key, now).filter(|entry| is_fresh(entry));
        self.flights.join(key, |verdict| is_fresh(&verdict.entry), complete)
    }

    /// Takes a name over from a flight that has told nobody yet: those who wait hear what this permit says. `None`: the
    /// flight has an answer, or too many names are in flight.
    pub(crate) fn seize(&self, key: &str) -> Option<Permit> {
        self.flights.seize(key)
    }

    /// Keeps an object whose body is whole, unless its name was purged since its flight began, a newer one is there, or
    /// readers of others hold all memory. Returns the entry to use from now on.
    pub(crate) fn keep(&self, permit: &Permit, entry: Entry) -> Arc<Entry> {
        let now = Instant::now();
        let Some((entry, charge)) = self.own(&permit.key, &entry, now) else {
            self.unkept.inc();
            if entry.is_leased() {
                // The one before, which its push calls current, is that no more.
                self.forget(&permit.key);
            }
            return Arc::new(entry);
        };
        let until = entry.until();
        let entry = Arc::new(entry);
        if !permit.purged() {
            let replaces = |other: &Entry| other.received <= entry.received;
            self.shelf.insert(permit.key.clone(), entry.clone(), charge, until, now, replaces);
            // A purge that came in between has marked the flight before it looked here.
            if permit.purged() {
                self.shelf.take_away(&permit.key);
            }
        }
        entry
    }

    /// An entry that holds no memory but what is on the account: bodies and headers as they came may be pieces of
    /// connections' buffers. A body that was kept before stays as it is.
    fn own(&self, key: &str, entry: &Entry, now: Instant) -> Option<(Entry, Arc<Charge>)> {
        let weight = weight(key, entry);
        let copied = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
        let headers = entry.headers.iter().filter_map(|(name, value)| Some((name.clone(), copied(value)?)));
        let headers = headers.collect();
        if let Some(charge) = entry.charge.as_ref().filter(|charge| charge.bytes() >= weight) {
            return Some((Entry { headers, ..entry.clone() }, charge.clone()));
        }
        let charge = self.shelf.reserve(weight, now)?;
        let body = match &entry.body {
            Content::Whole(bytes) => bytes.to_vec(),
            Content::Growing { object, .. } => object.to_vec()?,
        };
        let body = Content::Whole(budget::charged(body, charge.clone()));
        Some((Entry { headers, body, charge: Some(charge.clone()), ..entry.clone() }, charge))
    }

    /// An account for a body that is about to come.
    pub(crate) fn growing(&self) -> Growing {
        Growing::new(&self.budget)
    }

    /// Puts bytes of a growing body on the account; complete objects give way to it. `false`: there is no room.
    pub(crate) fn grow(&self, body: &Growing, bytes: u64) -> bool {
        loop {
            match body.charge().grow(bytes) {
                Ok(()) => return true,
                Err(Full::Growing) => return false,
                Err(Full::Total) if self.shelf.give_way(Instant::now()) => {}
                Err(Full::Total) => return false,
            }
        }
    }

    /// Forgets all names that begin with `prefix`, but for those that begin with `except`; answers under way reach those
    /// who wait for them and are not kept.
    pub(crate) fn purge(&self, prefix: &str, except: Option<&str>) -> usize {
        let doomed =
            |key: &str| key.starts_with(prefix) && except.is_none_or(|except| !key.starts_with(except));
        let count = self.flights.purge(doomed);
        count + self.shelf.purge(doomed)
    }

    /// Takes one object away; a flight of its name goes on.
    pub(crate) fn forget(&self, key: &str) {
        self.shelf.take_away(key);
    }

    /// Gives kept objects another freshness where `revised` has one; returns how many. Those that come meanwhile may be
    /// left out.
    pub(crate) fn revise(&self, revised: impl Fn(&str, &Entry) -> Option<Freshness>) -> usize {
        self.shelf.revise(|key, entry, _| {
            let entry = Entry { freshness: revised(key, entry)?, ..entry.clone() };
            let until = entry.until();
            Some((entry, until))
        })
    }

    /// Lets objects go that are past their end: a bounded number, so that nobody waits for it.
    pub(crate) fn sweep(&self, now: Instant) {
        self.shelf.sweep(now, SWEPT_AT_ONCE);
    }
}

/// What an entry takes once it is kept: besides what it is, the forms in which viewers get it ([`Forms`]), which may be made
/// at any time.
fn weight(key: &str, entry: &Entry) -> u64 {
    let body = match &entry.body {
        Content::Whole(bytes) => bytes.len() as u64,
        Content::Growing { object, .. } => object.progress().len,
    };
    let zipped = encoding::may_have(entry.status, &entry.headers) && body <= encoding::MAX_BYTES as u64;
    let text = |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().len() + value.len()) as u64;
    let headers: u64 = entry.headers.iter().map(|header| HEADER_BYTES + text(header)).sum();
    // gzip bytes are kept only if they are fewer.
    ENTRY_BYTES
        + 2 * key.len() as u64
        + headers * if zipped { 3 } else { 2 }
        + body * if zipped { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Place;

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
            counts: crate::Metrics::default().of("edge").class("other"),
            forms: Forms::default(),
            lease: None,
        }
    }

    fn store(max_bytes: u64) -> Arc<Store> {
        counted(max_bytes, Gauge::default())
    }

    fn counted(max_bytes: u64, names: Gauge) -> Arc<Store> {
        let budget = Budget::new(max_bytes, 1 << 20, budget::Gauges::default());
        Arc::new(Store::new(budget, shelf::Counters::default(), Counter::default(), 2, names))
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
        let store = counted(1 << 20, names.clone());
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
        assert!(Arc::ptr_eq(&store.get("/a", Instant::now()).unwrap(), &newer), "the newer one stays");
    }

    #[test]
    fn a_purge_reaches_flights_and_objects() {
        let names = Gauge::default();
        let store = counted(1 << 20, names.clone());
        let (late, _) = permit(&store, "/live/a/2");
        let (other, _) = permit(&store, "/live/b/1");
        store.keep(&other, entry(Instant::now(), 60_000, 1));
        assert_eq!(store.purge("/live/a/", None), 1);
        store.keep(&late, entry(Instant::now(), 60_000, 1));
        assert!(store.get("/live/a/2", Instant::now()).is_none(), "purged while in flight");
        assert!(store.get("/live/b/1", Instant::now()).is_some());
        assert_eq!(store.purge("/live/", Some("/live/b/")), 0);
        assert_eq!(store.purge("/live/", None), 2);
        assert!(store.get("/live/b/1", Instant::now()).is_none());
        assert_eq!(names.get(), 0);
    }

    #[test]
    fn what_a_push_calls_current_is_not_when_there_is_no_room_for_the_newer_one() {
        let store = store(1 << 20);
        let leased = |body| Entry { lease: Some(Lease::default()), ..entry(Instant::now(), 0, body) };
        let (permit, _) = permit(&store, "/a");
        store.keep(&permit, leased(1));
        assert!(store.get("/a", Instant::now()).is_some());
        store.keep(&permit, leased(2 << 20));
        assert!(store.get("/a", Instant::now()).is_none());
    }

    #[test]
    fn memory_stays_within_its_bounds_and_new_objects_get_in() {
        let store = store(4 << 20);
        for number in 0..200 {
            let key = format!("/{number}");
            let (permit, _) = permit(&store, &key);
            let body = store.growing();
            let (mut writer, object) = Object::growing_with(body.charge().clone());
            for _ in 0..4 {
                assert!(store.grow(&body, 16 << 10));
                writer.push(vec![0; 16 << 10].into());
            }
            let growing = Content::Growing { object, length: None, mark: None };
            writer.finish();
            let entry = Entry { body: growing, ..entry(Instant::now(), 60_000, 0) };
            let kept = store.keep(&permit, entry.clone());
            assert!(matches!(&kept.body, Content::Whole(bytes) if bytes.len() == 64 << 10));
            let bytes = |place| store.budget.bytes(place);
            assert!(bytes(Place::Shelf) <= 4 << 20 && bytes(Place::Growing) == 64 << 10);
            drop(body);
            assert_eq!(bytes(Place::Held), 64 << 10, "someone may read it");
            drop(entry);
            assert_eq!((bytes(Place::Growing), bytes(Place::Held)), (0, 0));
            permit.leave();
            assert!(store.get(&key, Instant::now()).is_some(), "{key} was refused");
        }
        let body = store.growing();
        assert!(store.grow(&body, 1 << 20));
        assert!(!store.grow(&body, 1), "the bound of what is on its way");
    }

    #[test]
    fn kept_anew_it_weighs_what_it_did() {
        let store = store(1 << 20);
        let (permit, _) = permit(&store, "/a");
        let kept = store.keep(&permit, entry(Instant::now(), 1000, 5000));
        let weight = store.budget.total();
        let again = store.keep(&permit, Entry { grace_until: Some(kept.received), ..Entry::clone(&kept) });
        assert!(store.get("/a", Instant::now()).unwrap().grace_until.is_some());
        drop((kept, again));
        assert_eq!((store.budget.total(), store.budget.bytes(Place::Shelf)), (weight, weight));
        store.purge("/", None);
        assert_eq!(store.budget.total(), 0);
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
