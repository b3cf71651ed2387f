//! How long a connection may take: for its first request, for a header, between requests, and to take what is sent to it.

#![deny(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

/// A connection at work is looked at this often, or four times per `send_timeout` if that is more often.
const TICK: Duration = Duration::from_secs(1);

/// What a connection may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// From the begin, or from the answer before, to the end of the next request's header.
    pub(crate) header_timeout: Duration,
    /// Without a request for so long, the HTTP machinery around it is put away. `None`: it never is.
    pub(crate) park_after: Option<Duration>,
    pub(crate) reading: Floor,
}

/// What a peer must take of what there is to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    pub(crate) timeout: Duration,
    /// Within that time, 1 or more.
    pub(crate) bytes: u64,
}

/// What can be seen of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Signs {
    /// A request is under way, or its answer is.
    pub(crate) busy: bool,
    /// Requests so far.
    pub(crate) requests: u64,
    /// The socket takes no more for now.
    pub(crate) blocked: bool,
    /// Bytes that the socket took so far.
    pub(crate) taken: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing until then.
    Wait(Instant),
    /// Put the HTTP machinery away until bytes come.
    Park,
    /// Nothing was asked for in time.
    Idle,
    /// The peer does not take what is sent.
    Slow,
}

/// The timers of one connection.
#[derive(Debug)]
pub(crate) struct Patience {
    rules: Rules,
    idle_since: Option<Instant>,
    requests: u64,
    pace: Pace,
}

impl Patience {
    pub(crate) fn new(rules: Rules, now: Instant) -> Patience {
        Patience { rules, idle_since: Some(now), requests: 0, pace: Pace::default() }
    }

    /// After whatever may have changed something; `now` is asked only if it did.
    pub(crate) fn handle(&mut self, signs: Signs, now: impl FnOnce() -> Instant) {
        if signs.busy {
            self.idle_since = None;
        } else if self.idle_since.is_none() || signs.requests != self.requests {
            self.idle_since = Some(now());
        }
        self.requests = signs.requests;
    }

    /// To be called at the time that the verdict before said, or at any other.
    pub(crate) fn handle_timeout(&mut self, now: Instant, signs: Signs) -> Verdict {
        self.handle(signs, || now);
        if self.pace.handle(now, self.rules.reading, signs.busy && signs.blocked, signs.taken) {
            return Verdict::Slow;
        }
        let tick = now + TICK.min(self.rules.reading.timeout / 4);
        let Some(since) = self.idle_since else { return Verdict::Wait(tick) };
        let end = since + self.rules.header_timeout;
        let park = self.rules.park_after.map_or(end, |time| since + time);
        if end <= now {
            Verdict::Idle
        } else if park <= now {
            Verdict::Park
        } else {
            Verdict::Wait(tick.min(park).min(end))
        }
    }

    /// When to end a connection on which nothing is under way.
    pub(crate) fn idle_until(&self, now: Instant) -> Instant {
        self.idle_since.unwrap_or(now) + self.rules.header_timeout
    }
}

/// Whether a peer takes what there is for it, looked at from time to time.
#[derive(Debug, Default)]
pub(crate) struct Pace(Option<(Instant, u64)>);

impl Pace {
    /// `waits`: there is something it could take; `taken`: bytes it took so far. True: it is too slow.
    pub(crate) fn handle(&mut self, now: Instant, floor: Floor, waits: bool, taken: u64) -> bool {
        if !waits {
            self.0 = None;
            return false;
        }
        let (since, before) = *self.0.get_or_insert((now, taken));
        if now.saturating_duration_since(since) < floor.timeout {
            return false;
        }
        self.0 = Some((now, taken));
        taken - before < floor.bytes.max(1)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        header_timeout: Duration::from_secs(60),
        park_after: Some(Duration::from_secs(2)),
        reading: Floor { timeout: Duration::from_secs(20), bytes: 1000 },
    };

    const BUSY: Signs = Signs { busy: true, requests: 1, blocked: false, taken: 0 };
    const IDLE: Signs = Signs { busy: false, ..BUSY };

    #[test]
    fn idle_connections_are_parked_then_ended() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut patience = Patience::new(RULES, begin);
        assert_eq!(patience.idle_until(begin), at(60_000));
        patience.handle(BUSY, || at(100));
        assert_eq!(patience.handle_timeout(at(1000), BUSY), Verdict::Wait(at(2000)));
        assert_eq!(
            patience.handle_timeout(at(100_000), BUSY),
            Verdict::Wait(at(101_000)),
            "an answer may last"
        );
        patience.handle(IDLE, || at(100_500));
        patience.handle(IDLE, || panic!("nothing changed"));
        assert_eq!(patience.handle_timeout(at(101_000), IDLE), Verdict::Wait(at(102_000)));
        assert_eq!(patience.handle_timeout(at(102_000), IDLE), Verdict::Wait(at(102_500)));
        assert_eq!(patience.handle_timeout(at(102_500), IDLE), Verdict::Park);
        assert_eq!(patience.idle_until(begin), at(160_500));
        assert_eq!(patience.handle_timeout(at(160_500), IDLE), Verdict::Idle);
        // A whole request between two looks.
        patience.handle(Signs { requests: 2, ..IDLE }, || at(161_000));
        assert_eq!(patience.idle_until(begin), at(221_000));
        let mut kept = Patience::new(Rules { park_after: None, ..RULES }, begin);
        assert_eq!(kept.handle_timeout(at(59_500), IDLE), Verdict::Wait(at(60_500)));
    }

    /// The second at which a reader that takes `rate` bytes a second is found too slow.
    fn cut_after(rate: u64, blocked: impl Fn(u64) -> bool) -> Option<u64> {
        let begin = Instant::now();
        let mut patience = Patience::new(RULES, begin);
        (0..300).find(|&second| {
            let signs = Signs { blocked: blocked(second), taken: second * rate, ..BUSY };
            patience.handle_timeout(begin + Duration::from_secs(second), signs) == Verdict::Slow
        })
    }

    #[test]
    fn readers_below_the_floor_are_cut_off() {
        assert_eq!(cut_after(0, |_| true), Some(20));
        assert_eq!(cut_after(49, |_| true), Some(20));
        assert_eq!(cut_after(50, |_| true), None);
        assert_eq!(cut_after(0, |_| false), None, "nothing to send");
        assert_eq!(cut_after(0, |second| second % 15 != 0), None, "it catches up");
        assert_eq!(cut_after(0, |second| second > 100), Some(121));
    }
}
