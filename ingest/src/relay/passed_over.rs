//! Which origins were full, draining or dead a moment ago: new sessions ask them last, so that not each of them pays for
//! finding out.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Node;

/// How long an origin is asked last after its first failure; doubles with each that follows.
const FIRST: Duration = Duration::from_secs(2);

/// Longest time that an origin is asked last. When it comes back it waits no longer for its streams.
const LONGEST: Duration = Duration::from_secs(30);

/// The origins that are asked last. As many at most as there have been origins within a minute.
#[derive(Debug, Default)]
pub struct PassedOver {
    failing: BTreeMap<String, Failing>,
}

#[derive(Debug)]
struct Failing {
    until: Instant,
    pause: Duration,
}

impl PassedOver {
    /// The candidates of a stream in the order in which to ask them: ring order, but who failed lately last.
    pub fn order(&self, now: Instant, mut candidates: Vec<Arc<Node>>) -> Vec<Arc<Node>> {
        // Stable: ring order within each group.
        candidates.sort_by_key(|node| self.is_failing(now, &node.name));
        candidates
    }

    /// `node` takes streams.
    pub fn handle_answer(&mut self, node: &str) {
        self.failing.remove(node);
    }

    /// `node` is full, draining, silent or cannot be reached. Failures that are noticed within the same pause count once.
    pub fn handle_failure(&mut self, now: Instant, node: &str) {
        // Origins come and go: those that failed long ago are forgotten.
        self.failing.retain(|name, failing| name == node || now < failing.until + LONGEST);
        let failing = self.failing.entry(node.into()).or_insert(Failing { until: now, pause: FIRST / 2 });
        if failing.until <= now {
            failing.pause = (failing.pause * 2).min(LONGEST);
            failing.until = now + failing.pause;
        }
    }

    fn is_failing(&self, now: Instant, node: &str) -> bool {
        self.failing.get(node).is_some_and(|failing| now < failing.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn who_failed_is_asked_last_for_a_while() {
        let mut now = Instant::now();
        let mut passed_over = PassedOver::default();
        let order = |passed_over: &PassedOver, now| {
            let node = |name: &str| Arc::new(Node { name: name.into(), address: String::new() });
            let nodes = passed_over.order(now, ["a", "b", "c"].map(node).into());
            nodes.iter().map(|node| node.name.as_str()).collect::<String>()
        };
        assert_eq!(order(&passed_over, now), "abc");
        passed_over.handle_failure(now, "a");
        passed_over.handle_failure(now, "a");
        assert_eq!(order(&passed_over, now), "bca");
        assert_eq!(order(&passed_over, now + FIRST), "abc");
        now += FIRST;
        passed_over.handle_failure(now, "a");
        assert_eq!(order(&passed_over, now + FIRST), "bca", "longer, the second time");
        passed_over.handle_answer("a");
        assert_eq!(order(&passed_over, now), "abc", "it is back");
        for _ in 0..20 {
            passed_over.handle_failure(now, "b");
            now += LONGEST;
        }
        passed_over.handle_failure(now, "b");
        assert_eq!(order(&passed_over, now + LONGEST), "abc", "never longer than this");
    }
}
