//! When parts leave for viewers: the last hop of their latency that a node can see.
//!
//! A push says when the first frame of its newest part came in at its POP; what is there of an object by then is up to the end
//! of that part. Each answer that is sent while its object grows looks whether it has got past that end, and says so once per
//! part.
#![deny(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use media::lately::{Lately, Spread};
use prometheus_client::metrics::histogram::Histogram;

/// What the parts of one stream took lately to leave for viewers, each once per viewer.
#[derive(Debug)]
pub(crate) struct Sent {
    lately: Mutex<Lately>,
    seconds: Histogram,
}

impl Sent {
    /// `seconds` counts all streams of the tier.
    pub(crate) fn new(seconds: Histogram) -> Self {
        Self { lately: Mutex::default(), seconds }
    }

    /// `None`: no part has left yet.
    pub(crate) fn spread(&self) -> Option<Spread> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner).spread()
    }

    fn note(&self, us: u32) {
        self.seconds.observe(f64::from(us) / 1e6);
        // Who would have to wait for the others leaves it at that: of thousands of viewers these are the latest anyway.
        match self.lately.try_lock() {
            Ok(mut lately) => lately.note(us.into()),
            Err(TryLockError::Poisoned(lately)) => lately.into_inner().note(us.into()),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

/// Where the newest part of a growing object ends, and when its first frame came in.
#[derive(Debug)]
pub(crate) struct Mark {
    stream: Arc<Sent>,
    /// The end in bytes in the upper half, 0 before the first; the lower bits of the time in the other, microseconds since 1970.
    /// Differences are right up to 71 minutes. One word, so that no viewer waits for another.
    newest: AtomicU64,
}

impl Mark {
    /// Of an object of this stream that has no part yet.
    pub(crate) fn new(stream: Arc<Sent>) -> Self {
        Self { stream, newest: AtomicU64::new(0) }
    }

    /// A part is here that ends at `end`, whose first frame came in at `unix_us`; nothing if that is where the last one ended.
    /// Beyond 4 GiB of an object none is told. Called by one at a time.
    pub(crate) fn set(&self, end: u64, unix_us: u64) {
        if end > self.get().0
            && let Ok(end) = u32::try_from(end)
        {
            let word = u64::from(end) << 32 | unix_us & u64::from(u32::MAX);
            self.newest.store(word, Ordering::Relaxed);
        }
    }

    fn get(&self) -> (u64, u32) {
        let word = self.newest.load(Ordering::Relaxed);
        (word >> 32, word as u32)
    }
}

/// One answer's way through a growing object.
#[derive(Debug)]
pub(crate) struct Passing {
    mark: Arc<Mark>,
    /// Up to here bytes were handed over, and those before `left` have gone.
    handed: u64,
    left: u64,
    left_us: u32,
    /// The last end that was told.
    told: u64,
}

impl Passing {
    /// An answer from byte `from` on. If it goes on to the object's end, a part that was there before it is not the answer's
    /// doing; who asks for a range that is there has just been told of it.
    pub(crate) fn new(mark: &Arc<Mark>, from: u64, to_the_end: bool) -> Self {
        let told = if to_the_end { mark.get().0 } else { from };
        Self { mark: mark.clone(), handed: from, left: from, left_us: 0, told }
    }

    /// What was handed over so far has left; `now_us` since 1970 is asked for if that is anything. A part whose end is said only
    /// now, but which had left before, left then.
    pub(crate) fn leave(&mut self, now_us: impl FnOnce() -> u64) {
        self.tell();
        if self.handed > self.left {
            (self.left, self.left_us) = (self.handed, now_us() as u32);
            self.tell();
        }
    }

    /// So many bytes more are handed over.
    pub(crate) fn hand(&mut self, bytes: u64) {
        self.handed += bytes;
    }

    fn tell(&mut self) {
        let (end, came_us) = self.mark.get();
        if end > self.told && end <= self.left {
            self.told = end;
            let us = self.left_us.wrapping_sub(came_us);
            // Clocks may differ: what is half an hour ahead was before.
            self.mark.stream.note(if us > u32::MAX / 2 { 0 } else { us });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 1_795_262_400_000_000;

    fn stream() -> Arc<Sent> {
        Arc::new(Sent::new(Histogram::new([1.0])))
    }

    fn told(stream: &Sent) -> Option<(usize, u32, u32)> {
        stream.spread().map(|spread| (spread.passages, spread.p50_us, spread.max_us))
    }

    /// Hands bytes over that leave at once.
    fn pass(passing: &mut Passing, bytes: u64, now_us: u64) {
        passing.hand(bytes);
        passing.leave(|| now_us);
        passing.leave(|| panic!("nothing was handed over"));
    }

    #[test]
    fn a_part_has_left_when_its_last_byte_has() {
        let stream = stream();
        let mark = Arc::new(Mark::new(stream.clone()));
        let mut viewer = Passing::new(&mark, 0, true);
        mark.set(100, BASE);
        pass(&mut viewer, 60, BASE + 1000);
        assert_eq!(told(&stream), None);
        pass(&mut viewer, 40, BASE + 3000);
        assert_eq!(told(&stream), Some((1, 3000, 3000)));
        // Once, whatever else it is sent; the next when that is there.
        pass(&mut viewer, 50, BASE + 4000);
        assert_eq!(told(&stream), Some((1, 3000, 3000)));
        mark.set(150, BASE + 1500);
        // Of another rendition.
        mark.set(150, BASE + 3500);
        pass(&mut viewer, 1, BASE + 9000);
        assert_eq!(told(&stream), Some((2, 3000, 3000)), "it had left at 4000, before its end was said");
    }

    #[test]
    fn an_answer_that_begins_in_the_middle_is_not_told_what_was_there() {
        let stream = stream();
        let mark = Arc::new(Mark::new(stream.clone()));
        mark.set(100, BASE);
        let mut joins = Passing::new(&mark, 0, true);
        pass(&mut joins, 100, BASE + 900_000);
        assert_eq!(told(&stream), None);
        // A range that is there: its playlist has just listed it.
        let mut asks = Passing::new(&mark, 60, false);
        pass(&mut asks, 40, BASE + 2000);
        assert_eq!(told(&stream), Some((1, 2000, 2000)));
        let mut older = Passing::new(&mark, 0, false);
        pass(&mut older, 60, BASE + 9000);
        assert_eq!(told(&stream), Some((1, 2000, 2000)));
    }

    #[test]
    fn clocks_that_differ_and_objects_that_are_too_large() {
        let stream = stream();
        let mark = Arc::new(Mark::new(stream.clone()));
        mark.set(10, BASE + 5000);
        pass(&mut Passing::new(&mark, 0, false), 10, BASE);
        assert_eq!(told(&stream), Some((1, 0, 0)));
        mark.set(1 << 32, BASE);
        assert_eq!(mark.get().0, 10);
        // The lower bits of the time begin anew.
        let wrap = (BASE >> 32 << 32) + (1 << 32);
        mark.set(20, wrap - 10);
        pass(&mut Passing::new(&mark, 10, false), 10, wrap + 15);
        assert_eq!(told(&stream), Some((2, 25, 25)));
    }
}
