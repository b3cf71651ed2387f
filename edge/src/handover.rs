//! Who may fetch a name, who waits for what comes of it, and how both change hands.
//!
//! A [`Table`] has a slot per name in flight. Whoever joins a name that nobody fetches gets the [`Permit`]; the others get
//! a place to wait. The permit is a value: it tells those who wait, leaves the table, or is dropped, even by a panic, and
//! then they are woken with nothing so that one of them may try again. It can be seized: those who wait stay where they
//! are, and what the new permit says is what they hear.
//!
//! Waiters are woken by the verdict itself, all at once and with no lock held; each costs one waker. Locks are taken in one
//! order, the table's before a slot's. `tests/handover.rs` tries the interleavings out.
#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};

use prometheus_client::metrics::gauge::Gauge;

use crate::sync::{Arc, Mutex, MutexGuard};

/// A name: path and canonical query.
pub type Key = std::sync::Arc<str>;

/// The names in flight; `V` is what those who wait are told. Cloning is cheap.
#[derive(Debug)]
pub struct Table<V>(Arc<Names<V>>);

#[derive(Debug)]
struct Names<V> {
    slots: Mutex<HashMap<Key, Arc<Slot<V>>>>,
    max: usize,
    count: Gauge,
}

/// What [`Table::join`] found.
#[derive(Debug)]
pub enum Joined<V, T> {
    /// What the caller was looking for is there by now.
    There(T),
    /// Someone fetches it.
    Waiting(Waiting<V>),
    /// Nobody does: it is for the caller to.
    Yours(Permit<V>, Waiting<V>),
    /// Too many names are in flight.
    Full,
}

#[derive(Debug)]
struct Slot<V>(Mutex<State<V>>);

#[derive(Debug)]
struct State<V> {
    /// The number of the permit that is good: it grows when the name is seized.
    owner: u32,
    verdict: Option<V>,
    /// The good permit went without a word.
    lost: bool,
    purged: bool,
    /// Whoever holds the good permit and wants to know when it is no longer that.
    holder: Option<Waker>,
    /// Those who wait. Places of those who left are used again.
    waiting: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl<V: Clone> Table<V> {
    /// At most `max` names; `count` shows how many there are.
    pub fn new(max: usize, count: Gauge) -> Table<V> {
        Table(Arc::new(Names { slots: Mutex::new(HashMap::new()), max, count }))
    }

    /// Waits with those who wait for `key`, or begins. A flight whose verdict is not `usable` is not joined but replaced.
    /// `there` is asked before a flight begins, with the table locked: a flight that ended a moment ago put its object
    /// there before it left the table.
    pub fn join<T>(
        &self,
        key: &str,
        usable: impl FnOnce(&V) -> bool,
        there: impl FnOnce() -> Option<T>,
    ) -> Joined<V, T> {
        let mut slots = self.0.lock();
        let slot = slots.get(key);
        if let Some(slot) = slot
            && slot.lock().verdict.as_ref().is_none_or(usable)
        {
            return Joined::Waiting(Waiting::at(slot));
        }
        if let Some(there) = there() {
            return Joined::There(there);
        }
        if slot.is_none() && slots.len() >= self.0.max {
            return Joined::Full;
        }
        let permit = Names::begin(&self.0, &mut slots, key);
        let waiting = Waiting::at(&permit.slot);
        Joined::Yours(permit, waiting)
    }

    /// Takes a name over: from now on this permit tells those who wait for it, and the one before is no good. `None`: its
    /// flight has told them already, or too many names are in flight.
    pub fn seize(&self, key: &str) -> Option<Permit<V>> {
        let mut slots = self.0.lock();
        let Some((key, slot)) = slots.get_key_value(key) else {
            return (slots.len() < self.0.max).then(|| Names::begin(&self.0, &mut slots, key));
        };
        let (owner, before) = {
            let mut state = slot.lock();
            if state.verdict.is_some() {
                return None;
            }
            state.owner += 1;
            (state.owner, state.holder.take())
        };
        let permit = Permit { names: self.0.clone(), slot: slot.clone(), key: key.clone(), owner };
        drop(slots);
        if let Some(before) = before {
            before.wake();
        }
        Some(permit)
    }

    /// Forgets all names that `doomed` picks; returns how many. Those who wait are told all the same, and
    /// [`Permit::purged`] says that it is not to be kept.
    pub fn purge(&self, doomed: impl Fn(&str) -> bool) -> usize {
        let mut slots = self.0.lock();
        let before = slots.len();
        slots.retain(|key, slot| {
            let purged = doomed(key);
            if purged {
                slot.lock().purged = true;
            }
            !purged
        });
        self.0.count.set(slots.len() as i64);
        before - slots.len()
    }
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Table(self.0.clone())
    }
}

impl<V> Names<V> {
    /// A slot of its own for `key`, in the place of any other.
    fn begin(names: &Arc<Self>, slots: &mut HashMap<Key, Arc<Slot<V>>>, key: &str) -> Permit<V> {
        let state = State {
            owner: 0,
            verdict: None,
            lost: false,
            purged: false,
            holder: None,
            waiting: Vec::new(),
            free: Vec::new(),
        };
        let (key, slot) = (Key::from(key), Arc::new(Slot(Mutex::new(state))));
        slots.insert(key.clone(), slot.clone());
        names.count.set(slots.len() as i64);
        Permit { names: names.clone(), slot, key, owner: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Slot<V>>>> {
        // Every change under the lock is a single insertion or removal.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V> Slot<V> {
    fn lock(&self) -> MutexGuard<'_, State<V>> {
        // No change under the lock can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right and the duty to fetch one name. Dropped, even by a panic, it ends the flight; if there was no verdict, those
/// who wait are woken, and one of them may try again.
#[derive(Debug)]
pub struct Permit<V> {
    names: Arc<Names<V>>,
    slot: Arc<Slot<V>>,
    /// The name.
    pub key: Key,
    owner: u32,
}

impl<V> Permit<V> {
    /// Tells those who wait now and those who join later. The first verdict stands; `false`: it is not this one, or the
    /// name was seized.
    pub fn tell(&self, verdict: V) -> bool {
        let waiting = {
            let mut state = self.slot.lock();
            if state.owner != self.owner || state.verdict.is_some() {
                return false;
            }
            state.verdict = Some(verdict);
            std::mem::take(&mut state.waiting)
        };
        wake(waiting);
        true
    }

    /// Takes the name out of the table: nobody joins this flight from now on. Those who wait go on waiting.
    pub fn leave(&self) {
        self.remove(&mut self.names.lock());
    }

    /// Whether the name was purged since its flight began.
    pub fn purged(&self) -> bool {
        self.slot.lock().purged
    }

    /// Ready when the permit was seized and is no good any more. One task at a time may wait for it.
    pub fn poll_seized(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.slot.lock();
        if state.owner != self.owner {
            return Poll::Ready(());
        }
        match &mut state.holder {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn remove(&self, slots: &mut HashMap<Key, Arc<Slot<V>>>) {
        let same = slots.get(&self.key).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot));
        if same && self.slot.lock().owner == self.owner {
            slots.remove(&self.key);
            self.names.count.set(slots.len() as i64);
        }
    }
}

impl<V> Drop for Permit<V> {
    fn drop(&mut self) {
        let waiting = {
            // Both under the table's lock: nobody may seize a name that is being let go.
            let mut slots = self.names.lock();
            self.remove(&mut slots);
            let mut state = self.slot.lock();
            if state.owner != self.owner || state.verdict.is_some() {
                return;
            }
            state.lost = true;
            std::mem::take(&mut state.waiting)
        };
        wake(waiting);
    }
}

fn wake(waiting: Vec<Option<Waker>>) {
    for waker in waiting.into_iter().flatten() {
        waker.wake();
    }
}

/// A place among those who wait for a name: a future of what they are told, `None` if the permit went without a word.
/// Dropping it costs nothing.
#[derive(Debug)]
pub struct Waiting<V> {
    slot: Arc<Slot<V>>,
    /// Where its waker is, if it has one there.
    place: Option<usize>,
}

impl<V> Waiting<V> {
    fn at(slot: &Arc<Slot<V>>) -> Waiting<V> {
        Waiting { slot: slot.clone(), place: None }
    }
}

impl<V: Clone> Future for Waiting<V> {
    type Output = Option<V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<V>> {
        let this = &mut *self;
        let mut guard = this.slot.lock();
        let state = &mut *guard;
        if state.verdict.is_some() || state.lost {
            this.place = None;
            return Poll::Ready(state.verdict.clone());
        }
        let place = match this.place.or_else(|| state.free.pop()) {
            Some(place) => place,
            None => {
                state.waiting.push(None);
                state.waiting.len() - 1
            }
        };
        this.place = Some(place);
        match &mut state.waiting[place] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<V> Drop for Waiting<V> {
    fn drop(&mut self) {
        let Some(place) = self.place else {
            return;
        };
        let mut state = self.slot.lock();
        // Once they were woken the places are gone.
        let waker = state.waiting.get_mut(place).map(Option::take);
        if waker.is_some() {
            state.free.push(place);
        }
        drop(state);
    }
}
