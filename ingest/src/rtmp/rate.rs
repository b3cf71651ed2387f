//! How fast a broadcaster may send.
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::time::{Duration, Instant};

/// Bitrates are means over so long: keyframes and a network that catches up come in bursts.
const WINDOW: Duration = Duration::from_secs(10);

/// A bound on the mean bitrate of one connection.
#[derive(Debug)]
pub struct RateLimit {
    /// What the window may hold.
    max_bytes: u64,
    since: Instant,
    /// Bytes of the window under way, and of the one before.
    bytes: u64,
    before: u64,
}

/// More came than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    came_bps: u64,
    max_bps: u64,
}

impl fmt::Display for TooFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooFast { came_bps, max_bps } = self;
        write!(f, "{came_bps} bit/s over {WINDOW:?} exceed {max_bps}")
    }
}

impl RateLimit {
    /// Allows `max_bps` bits per second.
    pub fn new(max_bps: u64, now: Instant) -> RateLimit {
        let max_bytes = max_bps.saturating_mul(WINDOW.as_secs()) / 8;
        RateLimit { max_bytes, since: now, bytes: 0, before: 0 }
    }

    /// Takes note of bytes received. The bytes of the last window count for as much of it as the last ten seconds reach
    /// back into it.
    pub fn push(&mut self, now: Instant, bytes: usize) -> Result<(), TooFast> {
        let mut passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = if passed < 2 * WINDOW { self.bytes } else { 0 };
            self.bytes = 0;
            self.since = if passed < 2 * WINDOW { self.since + WINDOW } else { now };
            passed = now.saturating_duration_since(self.since);
        }
        self.bytes += bytes as u64;
        let left = WINDOW.saturating_sub(passed).as_millis() as u64;
        let recent = self.bytes + self.before * left / WINDOW.as_millis() as u64;
        if recent <= self.max_bytes {
            return Ok(());
        }
        let per_second = |bytes: u64| bytes * 8 / WINDOW.as_secs();
        Err(TooFast { came_bps: per_second(recent), max_bps: per_second(self.max_bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` every 100 ms from `at` on, for so many seconds; the first refusal, and when.
    fn send(
        limit: &mut RateLimit,
        zero: Instant,
        at: u64,
        seconds: u64,
        bytes: usize,
    ) -> Option<(u64, TooFast)> {
        (at * 10..(at + seconds) * 10).find_map(|tenth| {
            let now = zero + Duration::from_millis(100 * tenth);
            limit.push(now, bytes).err().map(|problem| (tenth / 10, problem))
        })
    }

    #[test]
    fn means_count_and_bursts_do_not() {
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
        let zero = Instant::now();
        // 8 Mbit/s: 100 kB each tenth of a second.
        let mut limit = RateLimit::new(8_000_000, zero);
        assert_eq!(send(&mut limit, zero, 0, 60, 95_000), None);
        assert_eq!(limit.push(zero + Duration::from_secs(60), 400_000), Ok(()), "a keyframe");
        assert_eq!(
            send(&mut limit, zero, 90, 5, 190_000),
            None,
            "five seconds at twice the rate, after a pause"
        );
        let (when, problem) = send(&mut limit, zero, 95, 60, 120_000).unwrap();
        assert!((95..102).contains(&when), "{when}");
        assert!(problem.to_string().ends_with(" bit/s over 10s exceed 8000000"), "{problem}");
        let mut limit = RateLimit::new(u64::MAX, zero);
        assert_eq!(limit.push(zero, 1 << 40), Ok(()));
    }
}
