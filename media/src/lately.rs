//! What something took lately: the last so many times, and how they are spread.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

/// Times that are remembered: some seconds of a ladder, so that what is shown is what is.
pub const MAX_TIMES: usize = 1024;

/// The latest times, microseconds.
#[derive(Debug, Default)]
pub struct Lately(VecDeque<u32>);

/// How times are spread, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// How many times that is of.
    pub passages: usize,
    /// Half of them were no longer.
    pub p50_us: u32,
    /// Nineteen of twenty were no longer.
    pub p95_us: u32,
    /// The longest.
    pub max_us: u32,
}

impl Lately {
    /// Something took so many microseconds; the oldest of [`MAX_TIMES`] is forgotten. Clocks may be set: what would be negative
    /// took no time.
    pub fn note(&mut self, us: i64) {
        if self.0.len() >= MAX_TIMES {
            self.0.pop_front();
        }
        self.0.push_back(us.clamp(0, u32::MAX.into()) as u32);
    }

    /// `None` if nothing was noted yet.
    pub fn spread(&self) -> Option<Spread> {
        let mut sorted: Vec<u32> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: usize| sorted[(sorted.len() * share / 100).min(sorted.len() - 1)];
        let max_us = *sorted.last()?;
        Some(Spread { passages: sorted.len(), p50_us: at(50), p95_us: at(95), max_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_spread() {
        let mut lately = Lately::default();
        assert_eq!(lately.spread(), None);
        for us in (0..3000).chain([-5, i64::MAX]) {
            lately.note(us);
        }
        // 0, 1978 to 2999, and the longest.
        let spread = Spread { passages: MAX_TIMES, p50_us: 2489, p95_us: 2949, max_us: u32::MAX };
        assert_eq!(lately.spread(), Some(spread));
    }
}
