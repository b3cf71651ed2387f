//! Overload: when the encoders fall behind, the most expensive rung is shed; when they have time to spare for long enough,
//! it comes back.
//!
//! An encoder that is too slow makes everything before it wait, up to the broadcaster. So what counts is how long access
//! units wait for the decoder, and whether media goes through as fast as it is sent: a burst, such as a replay after a relay
//! was lost, waits too, but is faster than that.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use media::Ticks;

/// What is looked at together.
const WINDOW: Duration = Duration::from_secs(1);

/// An access unit waits this long in a window that is behind, every one of it. The queue holds about a second.
const BEHIND: Duration = Duration::from_millis(300);

/// None waits longer in a window that is at ease.
const AT_EASE: Duration = Duration::from_millis(50);

/// Windows behind, one after the other, before a rung is shed: a spike passes by itself.
const SHED_AFTER: u32 = 3;

/// At ease for so long, a rung comes back.
const RESTORE_AFTER: Duration = Duration::from_secs(30);

/// The same after it had to be shed again and again.
const MAX_RESTORE_AFTER: Duration = Duration::from_secs(600);

/// A rung that is shed again within this time came back too early: the next time takes twice as long.
const PROBATION: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One rung more is not encoded.
    Shed,
    /// One rung more is encoded again.
    Restored,
    /// Nothing is left to shed, and it is still too much.
    Exhausted,
}

/// How many of the largest rungs are not encoded. Times are since some moment, the same for all calls.
#[derive(Debug)]
pub struct Shedding {
    most: usize,
    shed: usize,
    window: Option<Window>,
    behind: u32,
    at_ease_since: Option<Duration>,
    restore_after: Duration,
    restored: Option<Duration>,
    exhausted: bool,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    first: Ticks,
    least: Duration,
    most: Duration,
}

impl Shedding {
    /// For `rungs` of which the smallest is never shed, and `shed` are from the beginning.
    pub fn new(rungs: usize, shed: usize) -> Self {
        let most = rungs.saturating_sub(1);
        Self {
            most,
            shed: shed.min(most),
            window: None,
            behind: 0,
            at_ease_since: None,
            restore_after: RESTORE_AFTER,
            restored: None,
            exhausted: false,
        }
    }

    /// How many of the largest rungs are not to be encoded.
    pub fn shed(&self) -> usize {
        self.shed
    }

    /// Whether anything is shed, or about to be: what nobody needs is not to be done now.
    pub fn is_strained(&self) -> bool {
        self.shed > 0 || self.behind > 0
    }

    /// An access unit, decoded at `at` of the media (90 kHz), is taken at `now`, having waited so long.
    pub fn observe(&mut self, now: Duration, waited: Duration, at: Ticks) -> Option<Change> {
        let window = self.window.get_or_insert(Window { began: now, first: at, least: waited, most: waited });
        window.least = window.least.min(waited);
        window.most = window.most.max(waited);
        let elapsed = now.saturating_sub(window.began);
        if elapsed < WINDOW {
            return None;
        }
        let media = Duration::from_micros((at - window.first).max(0) as u64 * 100 / 9);
        // As fast as it is sent, and no more: what waits will wait for ever.
        let gains = media > elapsed + elapsed / 50;
        let (behind, at_ease) = (window.least >= BEHIND && !gains, window.most <= AT_EASE);
        self.window = None;
        self.behind = if behind { self.behind + 1 } else { 0 };
        if self.behind >= SHED_AFTER {
            (self.behind, self.at_ease_since) = (0, None);
            return self.shed_one(now);
        }
        if !at_ease {
            self.at_ease_since = None;
            return None;
        }
        let since = *self.at_ease_since.get_or_insert(now);
        let long = now.saturating_sub(since) >= self.restore_after;
        (self.shed > 0 && long).then(|| self.restore_one(now))
    }

    fn shed_one(&mut self, now: Duration) -> Option<Change> {
        if self.shed >= self.most {
            return (!std::mem::replace(&mut self.exhausted, true)).then_some(Change::Exhausted);
        }
        self.shed += 1;
        self.restore_after = match self.restored.take() {
            Some(restored) if now.saturating_sub(restored) <= PROBATION => {
                (self.restore_after * 2).min(MAX_RESTORE_AFTER)
            }
            Some(_) => RESTORE_AFTER,
            None => self.restore_after,
        };
        Some(Change::Shed)
    }

    fn restore_one(&mut self, now: Duration) -> Change {
        self.shed -= 1;
        self.exhausted = false;
        self.restored = Some(now);
        self.at_ease_since = Some(now);
        Change::Restored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that does so much work in a second, and a ladder whose rungs cost so much for a second of media; the source
    /// sends 25 frames a second, of which 32 may wait.
    struct Machine {
        costs: Vec<f64>,
        speed: f64,
        now: f64,
        frame: u32,
        shedding: Shedding,
        /// When what.
        changes: Vec<(u32, Change)>,
    }

    impl Machine {
        fn new(costs: &[f64]) -> Self {
            let shedding = Shedding::new(costs.len(), 0);
            Self { costs: costs.to_vec(), speed: 1.0, now: 0.0, frame: 0, shedding, changes: Vec::new() }
        }

        /// The source's own pace, faster by `burst`, for so many seconds of media.
        fn run(&mut self, speed: f64, seconds: u32, burst: f64) -> f64 {
            self.speed = speed;
            let (began, first) = (self.now, self.frame);
            let mut most = 0.0f64;
            for frame in first..first + seconds * 25 {
                let sent = began + f64::from(frame - first) * 0.04 / burst;
                let cost: f64 = self.costs[self.shedding.shed()..].iter().sum::<f64>() * 0.04;
                // The queue is full: the sender waits, and nothing in it is older than what it holds.
                let begins = sent.max(self.now);
                let waited = (begins - sent).min(32.0 * cost.max(0.0) / self.speed);
                most = most.max(waited);
                let at = Ticks::from(frame) * 3600;
                let now = Duration::from_secs_f64(begins);
                if let Some(change) = self.shedding.observe(now, Duration::from_secs_f64(waited), at) {
                    self.changes.push((frame / 25, change));
                }
                self.now = begins + cost / self.speed;
                self.frame = frame + 1;
            }
            most
        }

        fn said(&self) -> String {
            let said = self.changes.iter().map(|(_, change)| match change {
                Change::Shed => '-',
                Change::Restored => '+',
                Change::Exhausted => '!',
            });
            said.collect()
        }
    }

    const LADDER: [f64; 4] = [0.4, 0.2, 0.1, 0.05];

    #[test]
    fn what_can_be_carried_is_left_alone() {
        let mut machine = Machine::new(&LADDER);
        machine.run(1.0, 600, 1.0);
        // A replay of a minute at four times the speed keeps the queue full.
        let waited = machine.run(3.0, 60, 10.0);
        assert!(waited > 0.15);
        // A second of nothing else.
        machine.run(0.5, 1, 1.0);
        machine.run(1.0, 600, 1.0);
        assert_eq!(machine.said(), "");
    }

    #[test]
    fn the_largest_rungs_go_until_the_rest_fits_and_come_back_one_by_one() {
        let mut machine = Machine::new(&LADDER);
        machine.run(0.2, 25, 1.0);
        assert_eq!((machine.said().as_str(), machine.shedding.shed()), ("--", 2));
        assert!(machine.changes[1].0 < 15, "soon: {:?}", machine.changes);
        machine.run(2.0, 100, 1.0);
        assert_eq!((machine.said().as_str(), machine.shedding.shed()), ("--++", 0));
        machine.run(2.0, 600, 1.0);
        assert_eq!(machine.said(), "--++");
    }

    #[test]
    fn a_machine_on_the_edge_does_not_flap() {
        let mut machine = Machine::new(&LADDER);
        // Carries three rungs and no four.
        machine.run(0.5, 3600, 1.0);
        let sheds = machine.said().matches('-').count();
        assert!((5..=12).contains(&sheds), "{}", machine.said());
        let gaps: Vec<_> =
            machine.changes.iter().filter(|(_, c)| *c == Change::Restored).map(|(at, _)| *at).collect();
        assert!(gaps.windows(3).all(|at| at[2] - at[1] + 5 >= at[1] - at[0]), "longer and longer: {gaps:?}");
    }

    #[test]
    fn the_smallest_rung_stays_and_that_is_said_once() {
        let mut machine = Machine::new(&LADDER);
        machine.run(0.01, 120, 1.0);
        assert_eq!((machine.said().as_str(), machine.shedding.shed()), ("---!", 3));
        let mut alone = Machine::new(&[1.0]);
        alone.run(0.5, 120, 1.0);
        assert_eq!((alone.said().as_str(), alone.shedding.shed()), ("!", 0));
        assert_eq!(Shedding::new(3, 9).shed(), 2);
    }
}
