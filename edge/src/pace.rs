//! How long upstreams take: what the adaptive cache-blocking timeout of a class goes by.
//!
//! The times to the first byte of the last fetches are kept, of those that were ended for slowness the time until then:
//! left out, they would make the upstream look quicker the slower it becomes.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Fetches that count: enough for a 99th percentile, few enough to follow an upstream that changes.
const SAMPLES: usize = 128;

/// Fewer say nothing about the slowest of a hundred.
const ENOUGH: usize = 32;

/// A timeout that follows the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    /// How many times as long as the slowest of a hundred recent answers took. 1 to 20.
    pub factor: u32,
    /// Never less than this, 10ms to 300s.
    #[serde(with = "humantime_serde")]
    pub least: Duration,
    /// Never more than this, from `least` to 300s.
    #[serde(with = "humantime_serde")]
    pub most: Duration,
}

impl Adaptive {
    /// The timeout at this pace; `None` as long as too little is known.
    pub fn timeout(&self, pace: &Pace) -> Option<Duration> {
        Some(pace.p99()?.saturating_mul(self.factor).clamp(self.least, self.most))
    }

    /// What is wrong with it, each with the key path that `path` begins.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=20).contains(&self.factor) {
            problems.push(format!("{path}.factor: must be 1 to 20"));
        }
        let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(300));
        if !(shortest..=longest).contains(&self.least) {
            problems.push(format!("{path}.least: must be 10ms to 300s"));
        } else if !(self.least..=longest).contains(&self.most) {
            problems.push(format!("{path}.most: must be at least `least`, and at most 300s"));
        }
        problems
    }
}

/// The pace of the upstreams for one class.
#[derive(Debug, Default)]
pub struct Pace {
    /// The latest, in a ring.
    samples: Vec<Duration>,
    next: usize,
}

impl Pace {
    /// A fetch had its first byte after `took`, or was ended without one.
    pub fn push(&mut self, took: Duration) {
        if self.samples.len() < SAMPLES {
            self.samples.push(took);
        } else {
            self.samples[self.next] = took;
            self.next = (self.next + 1) % SAMPLES;
        }
    }

    /// What 99 of 100 fetches took at most.
    fn p99(&self) -> Option<Duration> {
        if self.samples.len() < ENOUGH {
            return None;
        }
        let mut sorted = self.samples.clone();
        let rank = (sorted.len() * 99).div_ceil(100) - 1;
        Some(*sorted.select_nth_unstable(rank).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_follows_the_upstream_within_its_bounds() {
        let adaptive = Adaptive { factor: 3, least: ms(100), most: ms(3000) };
        let mut pace = Pace::default();
        let push = |pace: &mut Pace, count: usize, took| (0..count).for_each(|_| pace.push(ms(took)));
        push(&mut pace, ENOUGH - 1, 10);
        assert_eq!(adaptive.timeout(&pace), None);
        push(&mut pace, 1, 10);
        assert_eq!(adaptive.timeout(&pace), Some(ms(100)));
        push(&mut pace, SAMPLES, 50);
        assert_eq!(adaptive.timeout(&pace), Some(ms(150)));
        push(&mut pace, 1, 60_000);
        assert_eq!(adaptive.timeout(&pace), Some(ms(150)), "one in a hundred may be slow");
        push(&mut pace, 1, 400);
        assert_eq!(adaptive.timeout(&pace), Some(ms(1200)));
        push(&mut pace, 1, 60_000);
        assert_eq!(adaptive.timeout(&pace), Some(ms(3000)));
        push(&mut pace, SAMPLES, 50);
        assert_eq!(adaptive.timeout(&pace), Some(ms(150)), "forgotten");
        assert_eq!(pace.samples.len(), SAMPLES);
    }

    #[test]
    fn problems_name_the_key() {
        let check = |factor, least, most, expected: &[&str]| {
            let problems = Adaptive { factor, least: ms(least), most: ms(most) }.problems("a");
            let keys: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
            assert_eq!(keys, expected, "{factor} {least} {most}");
        };
        check(3, 100, 3000, &[]);
        check(0, 100, 100, &["a.factor"]);
        check(21, 1, 0, &["a.factor", "a.least"]);
        check(1, 100, 99, &["a.most"]);
        check(1, 100, 300_001, &["a.most"]);
    }
}
