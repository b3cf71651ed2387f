//! Ties a broadcast's timeline to the wall clock.
#![deny(clippy::disallowed_methods)]

use std::time::{Duration, SystemTime};

use media::time::{Ticks, Timescale};
use serde::{Deserialize, Serialize};

/// Where timelines begin (90 kHz): a second in, so that audio which begins a few milliseconds before the first video
/// frame has no negative time.
pub const FIRST_TICK: Ticks = 90_000;

/// One moment on both clocks: `ticks` (90 kHz) was `unix_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Milliseconds since 1970 at which the first frame came.
    pub unix_ms: i64,
    /// That frame's place on the timeline.
    pub ticks: Ticks,
}

impl Anchor {
    /// Wall clock of a moment on the timeline, RFC 3339 with milliseconds.
    pub fn wall(&self, at: Ticks, timescale: Timescale) -> impl std::fmt::Display + use<> {
        let since = timescale.rescale(at, Timescale::VIDEO) - self.ticks;
        rfc3339(self.unix_ms + Timescale::VIDEO.rescale(since, Timescale::MILLIS))
    }

    /// Milliseconds since 1970 at which the timeline was, or would have been, at zero.
    pub fn zero_unix_ms(&self) -> i64 {
        self.unix_ms - Timescale::VIDEO.rescale(self.ticks, Timescale::MILLIS)
    }

    /// The place on the timeline of a wall clock time.
    pub fn at(&self, unix_ms: i64) -> Ticks {
        self.ticks + (unix_ms - self.unix_ms) * 90
    }
}

/// RFC 3339 with milliseconds, UTC.
pub fn rfc3339(unix_ms: i64) -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.max(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_and_timeline_agree() {
        let anchor = Anchor { unix_ms: 1_700_000_000_250, ticks: FIRST_TICK };
        assert_eq!(
            anchor.wall(FIRST_TICK + 90_000, Timescale::VIDEO).to_string(),
            "2023-11-14T22:13:21.250Z"
        );
        let audio = Timescale::new(48_000).unwrap();
        assert_eq!(anchor.wall(48_000, audio).to_string(), "2023-11-14T22:13:20.250Z");
        assert_eq!(anchor.at(1_700_000_001_250), FIRST_TICK + 90_000);
    }
}
