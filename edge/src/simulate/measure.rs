//! What is counted while viewers are numbers.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// All are at most this.
    pub max: u64,
}

/// Requests in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Over all of the time.
    pub mean: f64,
    /// In the worst second.
    pub peak: u64,
}

/// Times of many, by milliseconds rounded up.
#[derive(Debug, Default)]
pub(super) struct Times(BTreeMap<u64, u64>);

impl Times {
    /// So many took so long.
    pub(super) fn push(&mut self, us: u64, count: u64) {
        *self.0.entry(us.div_ceil(1000)).or_default() += count;
    }

    pub(super) fn spread(&self) -> Spread {
        let all: u64 = self.0.values().sum();
        let at = |share: f64| {
            let rank = ((all as f64 * share).ceil() as u64).max(1);
            let mut passed = 0;
            let found = self.0.iter().find(|(_, count)| {
                passed += **count;
                passed >= rank
            });
            found.map_or(0, |(ms, _)| *ms)
        };
        Spread { p50: at(0.5), p99: at(0.99), max: self.0.last_key_value().map_or(0, |(ms, _)| *ms) }
    }
}

/// Requests by the second in which they came.
#[derive(Debug, Default)]
pub(super) struct Seconds {
    counts: Vec<u64>,
    pub(super) all: u64,
}

impl Seconds {
    /// So many more, at this time from the beginning.
    pub(super) fn push(&mut self, us: u64, count: u64) {
        let second = (us / 1_000_000) as usize;
        if self.counts.len() <= second {
            self.counts.resize(second + 1, 0);
        }
        self.counts[second] += count;
        self.all += count;
    }

    /// Over so many microseconds.
    pub(super) fn load(&self, us: u64) -> Load {
        Load {
            mean: self.all as f64 * 1e6 / us.max(1) as f64,
            peak: self.counts.iter().copied().max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_many() {
        let mut times = Times::default();
        assert_eq!(times.spread(), Spread::default());
        times.push(0, 980);
        times.push(1, 10);
        times.push(20_000, 9);
        times.push(5_000_000, 1);
        assert_eq!(times.spread(), Spread { p50: 0, p99: 1, max: 5000 });
        times.push(20_000, 1);
        assert_eq!(times.spread().p99, 20);
    }

    #[test]
    fn seconds_of_many() {
        let mut seconds = Seconds::default();
        seconds.push(10, 3);
        seconds.push(2_999_999, 5);
        seconds.push(2_000_000, 1);
        assert_eq!(seconds.load(3_000_000), Load { mean: 3.0, peak: 6 });
    }
}
