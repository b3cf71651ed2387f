//! The account of a tier's memory for bodies and names: what is on the shelf, what is on its way, and what has left the
//! shelf while viewers still read it. Nothing is taken that is not on the account first, and the account has an end.
//!
//! Not on it: what connections have read or written but not handed over (bounded by their windows and buffers), at most
//! one chunk per fetch that is weighed before it is kept, and the tables themselves.
#![deny(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

/// What the bytes of a [`Charge`] are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A complete object that can be found by its name.
    Shelf,
    /// A body that still comes.
    Growing,
    /// Neither: it is being copied, or someone still reads what was evicted, purged, or never to be kept.
    Held,
}

/// One gauge per [`Place`], in bytes. They are the account, not a copy of it.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Bytes in [`Place::Shelf`].
    pub shelf: Gauge,
    /// Bytes in [`Place::Growing`].
    pub growing: Gauge,
    /// Bytes in [`Place::Held`].
    pub held: Gauge,
}

/// The account of one tier. Its total never exceeds what the shelf and the growing bodies may have together: bytes that
/// slow readers hold come off the shelf's share.
#[derive(Debug)]
pub struct Budget {
    gauges: Gauges,
    total: AtomicU64,
    max_shelf: u64,
    max_growing: u64,
}

/// Bytes on an account, for as long as it lives.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    state: Mutex<(Place, u64)>,
}

impl Budget {
    /// With bounds in bytes.
    pub fn new(max_shelf: u64, max_growing: u64, gauges: Gauges) -> Arc<Budget> {
        Arc::new(Budget { gauges, total: AtomicU64::new(0), max_shelf, max_growing })
    }

    /// Bytes on the account.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The most that [`Budget::total`] can be.
    pub fn max_total(&self) -> u64 {
        self.max_shelf.saturating_add(self.max_growing)
    }

    /// The most that the shelf may have.
    pub fn max_shelf(&self) -> u64 {
        self.max_shelf
    }

    /// Bytes in one place.
    pub fn bytes(&self, place: Place) -> u64 {
        self.gauge(place).get().try_into().unwrap_or(0)
    }

    /// Puts bytes on the account; `None` if they do not fit.
    pub fn charge(self: &Arc<Self>, place: Place, bytes: u64) -> Option<Charge> {
        let charge = Charge { budget: self.clone(), state: Mutex::new((place, 0)) };
        charge.grow(bytes).is_ok().then_some(charge)
    }

    fn gauge(&self, place: Place) -> &Gauge {
        match place {
            Place::Shelf => &self.gauges.shelf,
            Place::Growing => &self.gauges.growing,
            Place::Held => &self.gauges.held,
        }
    }

    fn take(&self, place: Place, bytes: u64) -> Result<(), Full> {
        let within = |max: u64| move |now: u64| now.checked_add(bytes).filter(|sum| *sum <= max);
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within(self.max_total()))
            .map_err(|_| Full::Total)?;
        let gauge = self.gauge(place);
        if place != Place::Growing {
            gauge.inc_by(bytes as i64);
            return Ok(());
        }
        let within = within(self.max_growing);
        let step = |now: i64| within(now.try_into().ok()?).and_then(|sum| sum.try_into().ok());
        if gauge.inner().fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_err() {
            self.total.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Full::Growing);
        }
        Ok(())
    }
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// [`Budget::max_total`]: there is room once the shelf gives way.
    Total,
    /// That of the growing bodies.
    Growing,
}

impl Charge {
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.lock().1
    }

    /// Puts more bytes on the account, or changes nothing.
    pub fn grow(&self, bytes: u64) -> Result<(), Full> {
        let mut state = self.lock();
        self.budget.take(state.0, bytes)?;
        state.1 += bytes;
        Ok(())
    }

    /// Moves the bytes; the total stays. Keeping the shelf within its bound is up to the shelf.
    pub fn move_to(&self, place: Place) {
        let mut state = self.lock();
        let (before, bytes) = (state.0, state.1 as i64);
        if before != place {
            self.budget.gauge(before).dec_by(bytes);
            self.budget.gauge(place).inc_by(bytes);
            state.0 = place;
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Place, u64)> {
        // Two plain numbers: never half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The charge of a body that still comes. When this is dropped the body is over: its bytes stay on the account as
/// [`Place::Held`] until its last reader has gone.
#[derive(Debug)]
pub struct Growing(Arc<Charge>);

impl Growing {
    /// With nothing on it yet.
    pub fn new(budget: &Arc<Budget>) -> Growing {
        Growing(Arc::new(Charge { budget: budget.clone(), state: Mutex::new((Place::Growing, 0)) }))
    }

    /// What is to go with the body.
    pub fn charge(&self) -> &Arc<Charge> {
        &self.0
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.0.move_to(Place::Held);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let (place, bytes) = *self.lock();
        self.budget.gauge(place).dec_by(bytes as i64);
        self.budget.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes with the charge for them, which goes when the last handle on the bytes has gone.
struct Charged {
    bytes: Vec<u8>,
    _charge: Arc<Charge>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `bytes` that stay on the account for as long as anyone has any part of them.
pub fn charged(bytes: Vec<u8>, charge: Arc<Charge>) -> bytes::Bytes {
    bytes::Bytes::from_owner(Charged { bytes, _charge: charge })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let budget = Budget::new(100, 50, Gauges::default());
        let growing = budget.charge(Place::Growing, 40).unwrap();
        assert_eq!(growing.grow(11), Err(Full::Growing));
        assert_eq!(growing.grow(u64::MAX), Err(Full::Total));
        assert_eq!((budget.total(), budget.bytes(Place::Growing)), (40, 40));
        let held = budget.charge(Place::Held, 110).unwrap();
        assert_eq!(growing.grow(1), Err(Full::Total));
        held.move_to(Place::Shelf);
        held.move_to(Place::Shelf);
        assert_eq!((budget.bytes(Place::Shelf), budget.bytes(Place::Held), budget.total()), (110, 0, 150));
        drop(held);
        growing.move_to(Place::Held);
        assert_eq!((budget.bytes(Place::Growing), budget.bytes(Place::Held)), (0, 40));
        drop(growing);
        assert_eq!((budget.total(), budget.bytes(Place::Held)), (0, 0));
    }

    #[test]
    fn bytes_are_counted_until_the_last_slice_has_gone() {
        let budget = Budget::new(100, 50, Gauges::default());
        let charge = Arc::new(budget.charge(Place::Shelf, 10).unwrap());
        let bytes = charged(vec![1; 10], charge.clone());
        let slice = bytes.slice(3..5);
        charge.move_to(Place::Held);
        drop((bytes, charge));
        assert_eq!(budget.bytes(Place::Held), 10);
        drop(slice);
        assert_eq!(budget.total(), 0);
    }

    #[test]
    fn many_at_once_never_exceed_it() {
        let budget = Budget::new(600, 400, Gauges::default());
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut charges = Vec::new();
                    for turn in 0..20_000u64 {
                        let place = if turn % 2 == 0 { Place::Growing } else { Place::Held };
                        charges.extend(budget.charge(place, 1 + (turn * 7 + thread) % 90));
                        assert!(budget.total() <= 1000 && budget.bytes(Place::Growing) <= 400);
                        if turn % 3 == 0 {
                            charges.pop();
                        }
                        charges.truncate(8);
                    }
                });
            }
        });
        assert_eq!((budget.total(), budget.bytes(Place::Growing), budget.bytes(Place::Held)), (0, 0, 0));
    }
}
