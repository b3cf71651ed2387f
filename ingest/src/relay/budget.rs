//! What the replay buffers of all streams may hold together.
#![deny(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use prometheus_client::metrics::gauge::Gauge;

/// Bytes of all streams, against a limit. A stream with more than an equal share pays when the limit is passed, so
/// together they hold at most the limit and one tag each.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: u64,
    used: AtomicU64,
    streams: AtomicUsize,
    shown: Gauge,
}

impl Budget {
    /// `shown` is kept at the bytes in use.
    pub fn new(limit_bytes: u64, shown: Gauge) -> Budget {
        Budget { limit_bytes, used: AtomicU64::new(0), streams: AtomicUsize::new(0), shown }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// One stream more.
    pub(super) fn join(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// One stream less, which holds nothing any more.
    pub(super) fn leave(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes as u64, Relaxed);
        self.shown.inc_by(bytes as i64);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes as u64, Relaxed);
        self.shown.dec_by(bytes as i64);
    }

    /// Whether a stream that holds `own` bytes must let go of some.
    pub(super) fn wants_back(&self, own: usize) -> bool {
        let share = self.limit_bytes / self.streams.load(Relaxed).max(1) as u64;
        self.used() > self.limit_bytes && own as u64 > share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_more_than_its_share_pays() {
        let budget = Budget::new(1000, Gauge::default());
        budget.join();
        budget.join();
        budget.add(700);
        assert!(!budget.wants_back(700), "there is room");
        budget.add(400);
        assert!(budget.wants_back(700) && !budget.wants_back(400));
        budget.give_back(200);
        assert!(!budget.wants_back(500));
        budget.leave();
        assert_eq!((budget.used(), budget.shown.get()), (900, 900));
    }
}
