//! When which event is sent to one receiver: those of one broadcast one after the other, those of several side by side,
//! each again and again until it is taken.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

/// Events on their way to one receiver at once.
pub(crate) const MAX_PARALLEL: usize = 4;

/// Before the second attempt, in milliseconds; each wait after is twice the one before.
const FIRST_WAIT_MS: u64 = 1000;

/// What waits for one receiver. Times are milliseconds of any clock that only grows.
#[derive(Debug)]
pub(crate) struct Schedule {
    backoff_max_ms: u64,
    lanes: BTreeMap<String, Lane>,
    busy: usize,
}

/// The events of one broadcast.
#[derive(Debug, Default)]
struct Lane {
    keys: BTreeSet<String>,
    /// The first is being sent.
    busy: bool,
    /// Attempts that failed since the last event was taken.
    failures: u32,
    not_before_ms: u64,
}

impl Schedule {
    pub(crate) fn new(backoff_max_ms: u64) -> Schedule {
        Schedule { backoff_max_ms, lanes: BTreeMap::new(), busy: 0 }
    }

    /// Sets what waits, by broadcast and key: events are sent in the order of their keys.
    pub(crate) fn set<'a>(&mut self, waiting: impl Iterator<Item = (&'a str, &'a str)>) {
        for lane in self.lanes.values_mut() {
            lane.keys.clear();
        }
        for (broadcast, key) in waiting {
            self.lanes.entry(broadcast.to_owned()).or_default().keys.insert(key.to_owned());
        }
        self.lanes.retain(|_, lane| lane.busy || !lane.keys.is_empty());
    }

    /// The next to be sent, and its broadcast, for which [`Schedule::taken`] or [`Schedule::failed`] is to be called.
    pub(crate) fn poll(&mut self, now_ms: u64) -> Option<(String, String)> {
        if self.busy >= MAX_PARALLEL {
            return None;
        }
        let ready = |lane: &Lane| !lane.busy && lane.not_before_ms <= now_ms;
        let (broadcast, lane) = self
            .lanes
            .iter_mut()
            .filter(|(_, lane)| ready(lane) && !lane.keys.is_empty())
            // Who waits for the longest: one broadcast whose events are many holds up no other.
            .min_by_key(|(_, lane)| lane.not_before_ms)?;
        let key = lane.keys.first()?.clone();
        lane.busy = true;
        self.busy += 1;
        Some((broadcast.clone(), key))
    }

    /// When to poll again, if nothing changes before.
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        if self.busy >= MAX_PARALLEL {
            return None;
        }
        let idle = self.lanes.values().filter(|lane| !lane.busy && !lane.keys.is_empty());
        idle.map(|lane| lane.not_before_ms).min()
    }

    /// The event was taken, or given up: the next one's turn.
    pub(crate) fn taken(&mut self, broadcast: &str, key: &str, now_ms: u64) {
        if let Some(lane) = self.finished(broadcast) {
            lane.keys.remove(key);
            (lane.failures, lane.not_before_ms) = (0, now_ms);
        }
    }

    /// It was not: it is sent again after a while that grows, no sooner than in `retry_after_ms`. `jitter` is 0 to 1, by
    /// which up to half of the wait is left out.
    pub(crate) fn failed(&mut self, broadcast: &str, now_ms: u64, retry_after_ms: u64, jitter: f64) {
        let most = self.backoff_max_ms;
        if let Some(lane) = self.finished(broadcast) {
            let wait = FIRST_WAIT_MS.saturating_mul(1 << lane.failures.min(30)).min(most);
            let wait = wait - (wait as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as u64;
            lane.failures = lane.failures.saturating_add(1);
            lane.not_before_ms = now_ms.saturating_add(wait.max(retry_after_ms.min(most)));
        }
    }

    fn finished(&mut self, broadcast: &str) -> Option<&mut Lane> {
        let lane = self.lanes.get_mut(broadcast).filter(|lane| lane.busy)?;
        lane.busy = false;
        self.busy -= 1;
        Some(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(waiting: &[(&str, &str)]) -> Schedule {
        let mut schedule = Schedule::new(10_000);
        schedule.set(waiting.iter().copied());
        schedule
    }

    fn next(schedule: &mut Schedule, now: u64) -> Option<String> {
        schedule.poll(now).map(|(_, key)| key)
    }

    #[test]
    fn the_events_of_one_broadcast_stay_in_order() {
        let mut schedule = schedule(&[("a", "a2"), ("a", "a1"), ("b", "b1")]);
        assert_eq!(next(&mut schedule, 0).as_deref(), Some("a1"));
        assert_eq!(next(&mut schedule, 0).as_deref(), Some("b1"), "another broadcast need not wait");
        assert_eq!(next(&mut schedule, 0), None);
        schedule.failed("a", 0, 0, 0.0);
        assert_eq!(schedule.poll_timeout(), Some(1000));
        assert_eq!(next(&mut schedule, 999), None);
        assert_eq!(next(&mut schedule, 1000).as_deref(), Some("a1"), "the one that failed, not the next");
        schedule.taken("a", "a1", 1000);
        assert_eq!(next(&mut schedule, 1000).as_deref(), Some("a2"));
    }

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let mut schedule = schedule(&[("a", "a1"), ("a", "a2")]);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..6 {
            assert!(next(&mut schedule, now).is_some());
            schedule.failed("a", now, 0, 0.0);
            let at = schedule.poll_timeout().unwrap();
            waits.push(at - now);
            now = at;
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 10_000, 10_000]);
        assert!(next(&mut schedule, now).is_some());
        schedule.taken("a", "a1", now);
        assert!(next(&mut schedule, now).is_some());
        schedule.failed("a", now, 0, 1.0);
        assert_eq!(schedule.poll_timeout(), Some(now + 500), "jitter");
        assert!(next(&mut schedule, now + 500).is_some());
        schedule.failed("a", now, 7000, 1.0);
        assert_eq!(schedule.poll_timeout(), Some(now + 7000), "what the receiver asks for");
        assert!(next(&mut schedule, now + 7000).is_some());
        schedule.failed("a", now, u64::MAX, 1.0);
        assert_eq!(schedule.poll_timeout(), Some(now + 10_000), "within the bound");
    }

    #[test]
    fn a_slow_receiver_is_sent_a_few_at_once() {
        let names: Vec<_> = (0..10).map(|n| (format!("b{n}"), format!("k{n}"))).collect();
        let mut schedule = Schedule::new(10_000);
        schedule.set(names.iter().map(|(a, b)| (a.as_str(), b.as_str())));
        let sent = std::iter::from_fn(|| schedule.poll(0)).count();
        assert_eq!((sent, schedule.poll_timeout()), (MAX_PARALLEL, None));
        // What is on its way leaves when it comes back, though it is listed no more.
        schedule.set(std::iter::empty());
        schedule.taken("b0", "k0", 0);
        assert_eq!(schedule.poll(0), None);
        schedule.set(names.iter().map(|(a, b)| (a.as_str(), b.as_str())));
        assert!(schedule.poll(0).is_some());
        schedule.taken("nothing", "k", 0);
        assert_eq!(schedule.busy, MAX_PARALLEL);
    }
}
