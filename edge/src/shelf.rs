//! The shelf of complete objects: found by name, kept by bytes, each with its own end.
//!
//! Two queues in the manner of S3-FIFO. What is new stands in *probation*: it is always admitted, since in live media
//! every object is new once. When room is needed, the oldest of probation either has been asked for since it came and
//! moves on to *protected*, or leaves. Protected is a clock: its oldest gets another turn if it was asked for since the
//! last one. A scan of cold names therefore passes through probation alone, however long it is. The hashes of those
//! that left probation unasked are remembered for a while: who comes back soon goes to protected at once.
//!
//! A hit takes the read lock of one shard and sets a flag. Everything else takes one lock for the order, makes room
//! first, and only then puts something there: the account ([`crate::budget`]) is within its bounds at every moment.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use hashbrown::HashTable;
use prometheus_client::metrics::counter::Counter;

use crate::budget::{Budget, Charge, Place};

/// Readers of different names rarely meet in one of so many; a power of two.
const SHARDS: usize = 64;

/// Probation keeps at least this share of the shelf, as a divisor: below it, protected gives way.
const PROBATION_SHARE: u64 = 10;

/// Names that are remembered after they left probation; their hashes take less than 1 MiB.
const MAX_GHOSTS: usize = 32 << 10;

/// Objects that are over and leave whenever something comes: enough to keep up, little enough for nobody to wait.
const SWEPT_PER_INSERT: usize = 32;

/// Complete objects of one tier.
pub struct Shelf<T> {
    hasher: RandomState,
    shards: [RwLock<HashTable<Arc<Slot<T>>>>; SHARDS],
    order: Mutex<Order<T>>,
    budget: Arc<Budget>,
    counters: Counters,
}

/// How objects leave, other than replaced by a newer one.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// To make room.
    pub evicted: Counter,
    /// Past their end.
    pub expired: Counter,
    /// Because an operator said so.
    pub purged: Counter,
}

struct Slot<T> {
    hash: u64,
    key: Arc<str>,
    value: Arc<T>,
    charge: Arc<Charge>,
    until: Instant,
    /// Asked for since it came, or since its last turn.
    asked: AtomicBool,
    node: u32,
}

impl<T> Shelf<T> {
    /// An empty one, with the share of `budget` that it says.
    pub fn new(budget: Arc<Budget>, counters: Counters) -> Shelf<T> {
        Shelf {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| RwLock::default()),
            order: Mutex::new(Order::default()),
            budget,
            counters,
        }
    }

    /// The object of a name, unless its end has come.
    pub fn get(&self, key: &str, now: Instant) -> Option<Arc<T>> {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        let slot = shard.find(hash, |slot| *slot.key == *key).filter(|slot| now < slot.until)?;
        // Written once per turn: a hot name's line stays shared between the CPUs.
        if !slot.asked.load(Ordering::Relaxed) {
            slot.asked.store(true, Ordering::Relaxed);
        }
        Some(slot.value.clone())
    }

    /// Puts the bytes of an object that is about to be made on the account, in [`Place::Held`], and lets others go for
    /// them if need be. `None`: it is larger than the shelf, or readers and growing bodies have everything.
    pub fn reserve(&self, bytes: u64, now: Instant) -> Option<Arc<Charge>> {
        if bytes > self.budget.max_shelf() {
            return None;
        }
        loop {
            if let Some(charge) = self.budget.charge(Place::Held, bytes) {
                return Some(Arc::new(charge));
            }
            if !self.give_way(now) {
                return None;
            }
        }
    }

    /// Lets one object go; `false` if there is none. Its bytes are free once nobody reads them.
    pub fn give_way(&self, now: Instant) -> bool {
        // Its memory is given back when nobody waits for the lock any more.
        let gone = self.drop_one(&mut self.order(), now);
        gone.is_some()
    }

    /// Puts an object there, in place of one that `replaces` agrees to replace. Its bytes must be on the account
    /// already; they move to [`Place::Shelf`]. `false`: it is not there, because of its size, its end, or `replaces`.
    pub fn insert(
        &self,
        key: Arc<str>,
        value: Arc<T>,
        charge: Arc<Charge>,
        until: Instant,
        now: Instant,
        replaces: impl FnOnce(&T) -> bool,
    ) -> bool {
        let hash = self.hasher.hash_one(&*key);
        // Given back behind the lock.
        let mut gone = Vec::new();
        let mut order = self.order();
        if let Some(old) = self.find(hash, &key) {
            if !replaces(&old.value) {
                return false;
            }
            gone.extend(self.remove(&mut order, &old));
        }
        gone.extend((0..SWEPT_PER_INSERT).map_while(|_| self.drop_expired(&mut order, now)));
        let bytes = charge.bytes();
        if now >= until || bytes > self.budget.max_shelf() {
            return false;
        }
        while self.budget.bytes(Place::Shelf) + bytes > self.budget.max_shelf() {
            match self.drop_one(&mut order, now) {
                Some(slot) => gone.push(slot),
                None => return false,
            }
        }
        let node = order.reserve();
        let asked = AtomicBool::new(false);
        charge.move_to(Place::Shelf);
        let slot = Arc::new(Slot { hash, key, value, charge, until, asked, node });
        order.admit(slot.clone(), bytes);
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert_unique(hash, slot, |slot| slot.hash);
        true
    }

    /// Takes an object away.
    pub fn take_away(&self, key: &str) -> bool {
        let found = self.find(self.hasher.hash_one(key), key);
        let gone = found.and_then(|slot| self.remove(&mut self.order(), &slot));
        gone.is_some()
    }

    /// Takes all objects away whose name `doomed` picks, and returns how many. All that were there when it began are gone
    /// when it returns.
    pub fn purge(&self, doomed: impl Fn(&str) -> bool) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            let found: Vec<_> = {
                let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
                shard.iter().filter(|slot| doomed(&slot.key)).cloned().collect()
            };
            let mut order = self.order();
            let gone: Vec<_> = found.iter().filter_map(|slot| self.remove(&mut order, slot)).collect();
            drop(order);
            count += gone.len();
        }
        self.counters.purged.inc_by(count as u64);
        count
    }

    /// Puts another value and end in place of those of the objects that `revised` gives one for. Their bytes stay what
    /// they are on the account. Returns how many.
    pub fn revise(&self, revised: impl Fn(&str, &T, Instant) -> Option<(T, Instant)>) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            // One shard at a time, so that nobody waits for all of them.
            let mut order = self.order();
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            for slot in shard.iter_mut() {
                let Some((value, until)) = revised(&slot.key, &slot.value, slot.until) else {
                    continue;
                };
                let asked = AtomicBool::new(slot.asked.load(Ordering::Relaxed));
                let (key, charge) = (slot.key.clone(), slot.charge.clone());
                let Slot { hash, node, .. } = **slot;
                let value = Arc::new(value);
                let new = Arc::new(Slot { hash, key, value, charge, until, asked, node });
                order.replace(slot, new.clone());
                *slot = new;
                count += 1;
            }
        }
        count
    }

    /// Takes away what is past its end, up to `at_most`; returns how many.
    pub fn sweep(&self, now: Instant, at_most: usize) -> usize {
        let mut order = self.order();
        let gone: Vec<_> = (0..at_most).map_while(|_| self.drop_expired(&mut order, now)).collect();
        drop(order);
        gone.len()
    }

    /// How many there are, those past their end that have not left yet included.
    pub fn len(&self) -> usize {
        self.order().expiry.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn drop_one(&self, order: &mut Order<T>, now: Instant) -> Option<Arc<Slot<T>>> {
        if let Some(gone) = self.drop_expired(order, now) {
            return Some(gone);
        }
        let slot = order.victim(self.budget.max_shelf() / PROBATION_SHARE)?;
        self.counters.evicted.inc();
        self.remove(order, &slot)
    }

    fn drop_expired(&self, order: &mut Order<T>, now: Instant) -> Option<Arc<Slot<T>>> {
        let slot = order.expired(now)?;
        self.counters.expired.inc();
        self.remove(order, &slot)
    }

    /// Takes this very slot out of the table and the order, if it is still there. Its bytes are free when it is dropped,
    /// which is for the caller to do once the order is unlocked.
    fn remove(&self, order: &mut Order<T>, slot: &Arc<Slot<T>>) -> Option<Arc<Slot<T>>> {
        let mut shard = self.shard(slot.hash).write().unwrap_or_else(PoisonError::into_inner);
        // Revised slots have another address, but keep their node.
        let found = shard.find_entry(slot.hash, |other| other.node == slot.node && other.key == slot.key);
        let (slot, _) = found.ok()?.remove();
        drop(shard);
        order.leave(&slot);
        slot.charge.move_to(Place::Held);
        Some(slot)
    }

    fn find(&self, hash: u64, key: &str) -> Option<Arc<Slot<T>>> {
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |slot| *slot.key == *key).cloned()
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Arc<Slot<T>>>> {
        // The table itself goes by the lowest and the seven highest bits.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    fn order(&self) -> MutexGuard<'_, Order<T>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No node.
const NONE: u32 = u32::MAX;

/// In which order objects leave. Always locked before a shard.
struct Order<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    probation: Queue,
    protected: Queue,
    expiry: BTreeSet<(Instant, u32)>,
    ghosts: Ghosts,
}

struct Node<T> {
    slot: Option<Arc<Slot<T>>>,
    protected: bool,
    bytes: u64,
    before: u32,
    after: u32,
}

/// A queue through the nodes: whoever has waited longest is at the front.
struct Queue {
    front: u32,
    back: u32,
    bytes: u64,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        let queue = || Queue { front: NONE, back: NONE, bytes: 0 };
        Order {
            nodes: Vec::new(),
            free: Vec::new(),
            probation: queue(),
            protected: queue(),
            expiry: BTreeSet::new(),
            ghosts: Ghosts::default(),
        }
    }
}

impl<T> Order<T> {
    /// A node for a slot that is about to be made.
    fn reserve(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node { slot: None, protected: false, bytes: 0, before: NONE, after: NONE });
            self.nodes.len() as u32 - 1
        })
    }

    fn admit(&mut self, slot: Arc<Slot<T>>, bytes: u64) {
        let (index, protected) = (slot.node, self.ghosts.take(slot.hash));
        self.expiry.insert((slot.until, index));
        let node = &mut self.nodes[index as usize];
        (node.slot, node.protected, node.bytes) = (Some(slot), protected, bytes);
        self.push_back(index);
    }

    fn replace(&mut self, old: &Slot<T>, new: Arc<Slot<T>>) {
        self.expiry.remove(&(old.until, old.node));
        self.expiry.insert((new.until, new.node));
        let index = new.node as usize;
        self.nodes[index].slot = Some(new);
    }

    fn leave(&mut self, slot: &Slot<T>) {
        self.unlink(slot.node);
        self.expiry.remove(&(slot.until, slot.node));
        self.nodes[slot.node as usize].slot = None;
        self.free.push(slot.node);
    }

    /// One that is past its end.
    fn expired(&self, now: Instant) -> Option<Arc<Slot<T>>> {
        let (until, index) = self.expiry.first()?;
        if now < *until { None } else { self.nodes[*index as usize].slot.clone() }
    }

    /// The one to go next. Those that were asked for get their turn on the way to it.
    fn victim(&mut self, least_probation: u64) -> Option<Arc<Slot<T>>> {
        // Readers set flags meanwhile: after one round of all nodes nobody is spared.
        let mut chances = self.expiry.len();
        loop {
            let from_probation = self.probation.bytes > least_probation || self.protected.front == NONE;
            let index = if from_probation { self.probation.front } else { self.protected.front };
            let slot = self.nodes.get(index as usize)?.slot.clone()?;
            if chances == 0 || !slot.asked.swap(false, Ordering::Relaxed) {
                if from_probation {
                    self.ghosts.remember(slot.hash, self.expiry.len());
                }
                return Some(slot);
            }
            chances -= 1;
            self.unlink(index);
            self.nodes[index as usize].protected = true;
            self.push_back(index);
        }
    }

    fn push_back(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let queue = if node.protected { &mut self.protected } else { &mut self.probation };
        queue.bytes += node.bytes;
        (node.before, node.after) = (queue.back, NONE);
        let last = std::mem::replace(&mut queue.back, index);
        match self.nodes.get_mut(last as usize) {
            Some(last) => last.after = index,
            None => queue.front = index,
        }
    }

    fn unlink(&mut self, index: u32) {
        let Node { protected, bytes, before, after, .. } = self.nodes[index as usize];
        let queue = if protected { &mut self.protected } else { &mut self.probation };
        queue.bytes -= bytes;
        match self.nodes.get_mut(before as usize) {
            Some(before) => before.after = after,
            None => queue.front = after,
        }
        match self.nodes.get_mut(after as usize) {
            Some(after) => after.before = before,
            None => queue.back = before,
        }
    }
}

/// Hashes of names that left probation unasked.
#[derive(Debug, Default)]
struct Ghosts {
    queue: VecDeque<u64>,
    present: HashSet<u64>,
}

impl Ghosts {
    /// Remembers as many as there are objects, so that what comes back had a chance to be kept.
    fn remember(&mut self, hash: u64, objects: usize) {
        if self.present.insert(hash) {
            self.queue.push_back(hash);
        }
        while self.queue.len() > objects.min(MAX_GHOSTS) {
            let oldest = self.queue.pop_front();
            oldest.map(|oldest| self.present.remove(&oldest));
        }
    }

    fn take(&mut self, hash: u64) -> bool {
        // It stays in the queue until it is its turn, which then takes nothing out.
        self.present.remove(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Gauges, charged};
    use bytes::Bytes;
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[derive(Debug)]
    struct Object {
        version: u64,
        body: Bytes,
    }

    fn shelf(max_shelf: u64, max_growing: u64) -> Shelf<Object> {
        Shelf::new(Budget::new(max_shelf, max_growing, Gauges::default()), Counters::default())
    }

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn zero() -> Instant {
        Instant::now()
    }

    /// Puts an object there as the store does: room first, then the bytes.
    fn put(shelf: &Shelf<Object>, key: &str, bytes: usize, until: Instant, now: Instant) -> bool {
        put_version(shelf, key, bytes, 0, until, now)
    }

    fn put_version(
        shelf: &Shelf<Object>,
        key: &str,
        bytes: usize,
        version: u64,
        until: Instant,
        now: Instant,
    ) -> bool {
        let Some(charge) = shelf.reserve(bytes as u64, now) else {
            return false;
        };
        let object = Object { version, body: charged(vec![version as u8; bytes], charge.clone()) };
        shelf.insert(key.into(), Arc::new(object), charge, until, now, |old| old.version <= version)
    }

    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    /// What is on the shelf, by walking it.
    fn sum(shelf: &Shelf<Object>) -> u64 {
        let order = shelf.order();
        let slots: Vec<_> = order.nodes.iter().filter_map(|node| node.slot.as_ref()).collect();
        assert_eq!(slots.len(), order.expiry.len());
        let queued: u64 = slots.iter().map(|slot| slot.charge.bytes()).sum();
        assert_eq!(order.probation.bytes + order.protected.bytes, queued);
        let tables = shelf.shards.iter().map(|shard| shard.read().unwrap().len()).sum::<usize>();
        assert_eq!(tables, slots.len());
        queued
    }

    #[test]
    fn any_order_of_events_keeps_the_account() {
        for seed in 0..40 {
            let mut dice = Dice(seed);
            let (max_shelf, max_growing) = (20_000, 5_000);
            let (shelf, zero) = (shelf(max_shelf, max_growing), zero());
            let budget = shelf.budget.clone();
            // What a map without bounds would hold; readers keep bodies alive after they have left the shelf.
            let mut model: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
            let mut readers: Vec<Bytes> = Vec::new();
            let mut growing: Vec<Charge> = Vec::new();
            for step in 0..3000 {
                let now = zero + Duration::from_millis(step);
                let key = format!("/{}/{}", dice.roll(4), dice.roll(40));
                match dice.roll(12) {
                    0..=4 => {
                        let (bytes, lives) = (dice.roll(3000) as usize, dice.roll(800));
                        let (version, until) = (dice.roll(10), now + Duration::from_millis(lives));
                        let stays = shelf.get(&key, now).is_some_and(|old| old.version > version);
                        let there = put_version(&shelf, &key, bytes, version, until, now);
                        if there {
                            model.insert(key.clone(), (version, until));
                        } else if !stays {
                            // Nothing but the end of its time or readers can keep an object out.
                            let room = max_shelf + max_growing - budget.total();
                            assert!(lives == 0 || bytes as u64 > room || shelf.get(&key, now).is_none());
                        }
                        assert!(!(there && stays), "seed {seed}: an older one replaced a newer one");
                    }
                    5..=8 => {
                        let got = shelf.get(&key, now);
                        if let Some(object) = got {
                            let (version, until) = model[&key];
                            assert_eq!(object.version, version, "seed {seed}, step {step}: {key}");
                            assert!(now < until, "seed {seed}, step {step}: {key} is past its end");
                            assert!(object.body.iter().all(|byte| *byte == version as u8));
                            if dice.roll(3) == 0 {
                                readers.push(object.body.slice(..object.body.len() / 2));
                            }
                        }
                    }
                    9 => match dice.roll(4) {
                        0 => {
                            let prefix = format!("/{}/", dice.roll(4));
                            shelf.purge(|key| key.starts_with(&prefix));
                            model.retain(|key, _| !key.starts_with(&prefix));
                            for key in 0..40 {
                                assert!(shelf.get(&format!("{prefix}{key}"), now).is_none());
                            }
                        }
                        1 => drop(shelf.sweep(now, 1000)),
                        2 => {
                            shelf.take_away(&key);
                            model.remove(&key);
                        }
                        _ => {
                            let until = now + Duration::from_millis(dice.roll(50));
                            shelf.revise(|_, old, end| {
                                let body = old.body.clone();
                                (until < end).then_some((Object { version: old.version, body }, until))
                            });
                            for (_, end) in model.values_mut() {
                                *end = until.min(*end);
                            }
                        }
                    },
                    10 => {
                        growing.extend(budget.charge(Place::Growing, dice.roll(1500)));
                        if dice.roll(2) == 0 {
                            growing.pop();
                        }
                    }
                    _ => {
                        let stay = dice.roll(6) as usize;
                        readers.truncate(stay);
                    }
                }
                let on_shelf = sum(&shelf);
                assert_eq!(on_shelf, budget.bytes(Place::Shelf), "seed {seed}, step {step}");
                assert!(on_shelf <= max_shelf && budget.total() <= max_shelf + max_growing);
                assert!(budget.bytes(Place::Growing) <= max_growing);
                let parts = [Place::Shelf, Place::Growing, Place::Held].map(|place| budget.bytes(place));
                assert_eq!(parts.iter().sum::<u64>(), budget.total(), "seed {seed}, step {step}");
            }
            drop((readers, growing));
            assert_eq!(budget.total(), budget.bytes(Place::Shelf), "seed {seed}: bytes are lost");
            shelf.purge(|_| true);
            assert_eq!((budget.total(), shelf.len()), (0, 0));
        }
    }

    #[test]
    fn a_burst_from_many_threads_stays_within_the_budget() {
        let (max_shelf, max_growing) = (4 << 20, 1 << 20);
        let (shelf, now) = (shelf(max_shelf, max_growing), zero());
        let until = now + Duration::from_secs(60);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let shelf = &shelf;
                scope.spawn(move || {
                    let budget = &shelf.budget;
                    let mut read = None;
                    for number in 0..2000 {
                        let key = format!("/{thread}/{number}");
                        assert!(put(shelf, &key, 64 << 10, until, now), "{key} was refused");
                        assert!(budget.bytes(Place::Shelf) <= max_shelf);
                        assert!(budget.total() <= max_shelf + max_growing);
                        // A reader that is always a little behind.
                        read = shelf.get(&key, now).map(|object| object.body.clone());
                    }
                    drop(read);
                });
            }
        });
        assert_eq!(sum(&shelf), shelf.budget.total());
        assert!(shelf.budget.total() > max_shelf - (128 << 10), "it is full");
    }

    #[test]
    fn hot_names_survive_a_scan_and_new_ones_always_get_in() {
        let (shelf, now) = (shelf(100_000, 10_000), zero());
        let until = now + Duration::from_secs(60);
        let hot: Vec<String> = (0..50).map(|number| format!("/hot/{number}")).collect();
        for key in &hot {
            assert!(put(&shelf, key, 1000, until, now) && shelf.get(key, now).is_some());
        }
        // Twenty times the size of the shelf; each hot name is asked for once while 2,500 cold ones pass.
        for number in 0..20_000 {
            let key = format!("/cold/{number}");
            assert!(put(&shelf, &key, 100, until, now));
            let hash = shelf.hasher.hash_one(&*key);
            assert!(shelf.find(hash, &key).is_some(), "{key} was refused");
            if number % 50 == 0 {
                let name = &hot[number / 50 % hot.len()];
                assert!(shelf.get(name, now).is_some(), "{name} has gone at {number}");
            }
        }
    }

    #[test]
    fn a_live_segment_gets_into_a_cache_that_is_full_of_hot_ones() {
        let (shelf, now) = (shelf(10_000, 1000), zero());
        let until = now + Duration::from_secs(60);
        for number in 0..10 {
            assert!(put(&shelf, &format!("/{number}"), 1000, until, now));
        }
        for live in 0..100 {
            for number in 0..10 {
                shelf.get(&format!("/{number}"), now);
            }
            let key = format!("/live/{live}");
            assert!(put(&shelf, &key, 1000, until, now));
            assert!(shelf.get(&key, now).is_some(), "{key}");
        }
        assert!(put(&shelf, "/all", 10_000, until, now), "one as large as the shelf");
        assert_eq!(shelf.len(), 1);
        assert!(!put(&shelf, "/too-large", 10_001, until, now));
        assert_eq!(shelf.len(), 1, "what can never fit costs nobody a place");
    }

    #[test]
    fn who_comes_back_soon_is_protected() {
        let (shelf, now) = (shelf(10_000, 1000), zero());
        let until = now + Duration::from_secs(60);
        for number in 0..12 {
            assert!(put(&shelf, &format!("/{number}"), 1000, until, now));
        }
        assert!(shelf.get("/0", now).is_none(), "the oldest has gone, as nobody asked for it");
        assert!(put(&shelf, "/0", 1000, until, now));
        for number in 100..200 {
            assert!(put(&shelf, &format!("/{number}"), 1000, until, now));
        }
        assert!(shelf.get("/0", now).is_some());
    }

    #[test]
    fn bytes_that_are_read_come_off_the_shelf() {
        let (shelf, now) = (shelf(10_000, 2_000), zero());
        let until = now + Duration::from_secs(60);
        let mut readers = Vec::new();
        for number in 0..10 {
            let key = format!("/{number}");
            assert!(put(&shelf, &key, 1000, until, now));
            readers.push(shelf.get(&key, now).unwrap().body.clone());
        }
        shelf.purge(|_| true);
        let held = || shelf.budget.bytes(Place::Held);
        assert_eq!(held(), 10_000);
        assert!(put(&shelf, "/a", 1000, until, now) && put(&shelf, "/b", 1000, until, now));
        assert!(put(&shelf, "/c", 1000, until, now), "the oldest gives way");
        assert!(shelf.get("/a", now).is_none() && shelf.get("/c", now).is_some());
        assert!(!put(&shelf, "/d", 3000, until, now), "readers have the rest");
        readers.clear();
        assert_eq!(held(), 0);
        assert!(put(&shelf, "/d", 3000, until, now));
    }

    #[test]
    fn each_has_its_own_end() {
        let (shelf, zero) = (shelf(10_000, 1000), zero());
        let at = |ms| zero + Duration::from_millis(ms);
        assert!(put(&shelf, "/short", 1000, at(10), zero) && put(&shelf, "/long", 1000, at(1000), zero));
        assert!(!put(&shelf, "/over", 1000, at(5), at(5)));
        assert!(shelf.get("/short", at(9)).is_some() && shelf.get("/short", at(10)).is_none());
        assert_eq!(shelf.sweep(at(9), 10), 0);
        assert_eq!(shelf.sweep(at(10), 10), 1);
        assert_eq!((shelf.len(), shelf.counters.expired.get(), shelf.budget.total()), (1, 1, 1000));
        let revised = shelf.revise(|key, old, until| {
            assert_eq!((key, until), ("/long", at(1000)));
            Some((Object { version: 9, body: old.body.clone() }, at(50)))
        });
        assert_eq!((revised, shelf.get("/long", at(49)).unwrap().version), (1, 9));
        assert!(shelf.get("/long", at(50)).is_none());
        assert_eq!(shelf.sweep(at(50), 10), 1);
        assert_eq!(shelf.budget.total(), 0);
    }
}
