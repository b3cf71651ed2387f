//! Which origin gets a stream, and when the next one is asked: the rules of the relay, without its sockets.
//!
//! Driven by `push`, `finish`, the `handle_*` functions and time; after each, drain [`Handover::poll`].
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use media::flv::{Tag, TagKind};

use super::REJECTED;
use super::answer::Answer;
use super::budget::Budget;
use super::replay::{Bounds, Replay};
use crate::config;

/// A pause of the broadcaster counts this much of the acknowledgement timeout and no more: an origin cannot publish
/// what has not come.
const MAX_COUNTED_GAP: Duration = Duration::from_secs(1);

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Connect to this candidate and send the request; report by `handle_status` or `handle_lost`.
    Open {
        /// Index into the list of candidates.
        candidate: usize,
        /// Unix milliseconds of the first media tag that the body will have, if there is one yet.
        received_ms: Option<u64>,
        /// What the last origin said about where the stream goes on.
        next: Option<Arc<str>>,
    },
    /// Cut the connection of the last `Open`, its body not ended.
    Abandon {
        /// The origin failed, or could not take the stream: others should not count on it for a while.
        failed: bool,
    },
    /// Tell the broadcaster that it may send.
    Started,
    /// All is done.
    Over(Outcome),
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is published, or nothing was ever taken.
    Ended,
    /// An origin refuses the stream for good.
    Refused {
        /// RTMP status code for the broadcaster.
        code: String,
        /// Why, in words.
        reason: String,
    },
    /// No origin took the stream, or none confirmed its end, in time.
    Lost {
        /// The last thing that went wrong.
        reason: String,
    },
}

/// The relay of one session.
pub struct Handover {
    rules: config::Relay,
    /// In the order in which to ask them.
    candidates: Vec<usize>,
    replay: Replay,
    phase: Phase,
    actions: VecDeque<Action>,
    /// The place of the next attempt's candidate in that order.
    next: usize,
    /// The candidate of the last attempt.
    asked: usize,
    /// The candidate that took the stream last.
    taken_by: Option<usize>,
    /// Since the last acknowledgement the same origin was asked again at once.
    asked_again: bool,
    /// Since an origin took the stream another was asked because it was said to own it.
    followed: bool,
    /// Whom this round has asked: the candidates may change while it lasts.
    round: BTreeSet<usize>,
    /// Rounds in a row that came to nothing.
    rounds: usize,
    /// All of these said that the stream is not for them or that they are full: asking again is of no use.
    declined: usize,
    jitter: u64,
    started: bool,
    /// When the broadcaster is refused, the session given up, or its end no longer waited for.
    deadline: Option<Instant>,
    finishing: bool,
    /// After the broadcaster's end: when an origin that is silent is given up for the next.
    silent_at: Option<Instant>,
    began: Instant,
    last_arrival: Option<Instant>,
    /// How long media has come without an acknowledgement.
    unacknowledged: Duration,
    replays: u64,
    last_error: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// An attempt is under way; it fails at this time.
    Opening(Instant),
    /// An origin takes the stream.
    Open,
    /// All candidates failed in turn; the next round begins at this time.
    Waiting(Instant),
    Over,
}

impl Handover {
    /// Begins with the first of `candidates`. `seed` spreads the pauses of many sessions, which share `budget`.
    pub fn new(
        rules: config::Relay,
        candidates: usize,
        budget: Arc<Budget>,
        seed: u64,
        now: Instant,
    ) -> Handover {
        let replay = Replay::new(Bounds {
            bytes: usize::try_from(rules.buffer.as_u64()).unwrap_or(usize::MAX),
            duration: rules.buffer_duration,
            history: rules.history,
            budget,
        });
        let deadline = Some(now + rules.publish_timeout);
        let mut handover = Handover {
            rules,
            candidates: (0..candidates).collect(),
            replay,
            phase: Phase::Waiting(now),
            actions: VecDeque::new(),
            next: 0,
            asked: 0,
            taken_by: None,
            asked_again: false,
            followed: false,
            round: BTreeSet::new(),
            rounds: 0,
            declined: 0,
            jitter: seed | 1,
            started: false,
            deadline,
            finishing: false,
            silent_at: None,
            began: now,
            last_arrival: None,
            unacknowledged: Duration::ZERO,
            replays: 0,
            last_error: "no answer yet".into(),
        };
        if candidates == 0 {
            handover.over(Outcome::Lost { reason: "no origin is configured".into() });
        } else {
            handover.attempt(now);
        }
        handover
    }

    /// The candidates have changed, or the order in which to ask them: the next attempt goes to the first that was not asked
    /// last. Those that are there keep their numbers. With none everything stays as it is.
    pub fn set_candidates(&mut self, order: Vec<usize>) {
        if !order.is_empty() {
            self.next = usize::from(order.len() > 1 && order[0] == self.asked);
            self.candidates = order;
        }
    }

    /// A tag from the broadcaster, received at unix time `received_ms`.
    pub fn push(&mut self, now: Instant, received_ms: u64, tag: Tag) {
        let media = tag.kind != TagKind::Script && !tag.is_config();
        self.replay.push(tag, received_ms, now.saturating_duration_since(self.began));
        if !media {
            return;
        }
        let gap = self.last_arrival.replace(now).map_or(Duration::ZERO, |last| now - last);
        if self.phase == Phase::Open {
            self.unacknowledged += gap.min(MAX_COUNTED_GAP);
            if self.unacknowledged >= self.rules.ack_timeout {
                let reason = format!("no acknowledgement for {:?} of media", self.rules.ack_timeout);
                self.failed(now, reason);
            }
        }
    }

    /// The broadcaster has ended: what is left is sent, then the body ends.
    pub fn finish(&mut self, now: Instant) {
        if self.finishing || self.phase == Phase::Over {
            return;
        }
        self.finishing = true;
        if self.started {
            self.expect_end(now);
        } else {
            self.abandon(false);
            self.over(Outcome::Ended);
        }
    }

    /// The origin answered with this status; for all but 200, `text` is the first line of the body, and `owner` the
    /// candidate that it says has the stream.
    pub fn handle_status(&mut self, now: Instant, status: u16, text: &str, owner: Option<usize>) {
        if !matches!(self.phase, Phase::Opening(_)) {
            return;
        }
        match status {
            200 => {
                self.phase = Phase::Open;
                self.taken_by = Some(self.asked);
                self.followed = false;
                self.unacknowledged = Duration::ZERO;
                if self.finishing {
                    self.silent_at = Some(now + self.rules.end_timeout / 2);
                } else {
                    self.deadline = None;
                }
                if std::mem::replace(&mut self.started, true) {
                    self.replays += 1;
                } else {
                    self.actions.push_back(Action::Started);
                }
            }
            401 | 403 => {
                let reason = if text.is_empty() { format!("origin answered {status}") } else { text.into() };
                self.refused(REJECTED.into(), reason);
            }
            421 if owner.is_some_and(|owner| owner != self.asked && self.candidates.contains(&owner))
                && !std::mem::replace(&mut self.followed, true) =>
            {
                self.last_error = format!("origin answered 421 {text}").trim_end().into();
                self.abandon(false);
                self.ask(now, owner.unwrap_or_default());
            }
            _ => {
                self.declined += usize::from(matches!(status, 421 | 503));
                // Below 500 it is the stream or the request that it will not have.
                self.failed_here(
                    now,
                    format!("origin answered {status} {text}").trim_end().into(),
                    status >= 500,
                );
            }
        }
    }

    /// The origin sent a line.
    pub fn handle_answer(&mut self, now: Instant, answer: Answer) {
        if self.phase != Phase::Open {
            return;
        }
        match answer {
            Answer::Published { segment, until, next } => {
                self.replay.acknowledge(segment, until, next.into());
                self.asked_again = false;
                self.unacknowledged = Duration::ZERO;
                (self.round, self.rounds) = (BTreeSet::new(), 0);
                self.declined = 0;
                if self.finishing {
                    self.expect_end(now);
                }
            }
            Answer::Refused { code, reason } => self.refused(code, reason),
            Answer::End if self.body_complete() => self.over(Outcome::Ended),
            Answer::End => self.failed(now, "origin ended the relay before the broadcast ended".into()),
        }
    }

    /// The attempt cannot go on. An origin that had taken the stream is asked once more before the others if the
    /// connection broke (`torn`): it may still have everything. One that ended its answer goes away.
    pub fn handle_lost(&mut self, now: Instant, reason: String, torn: bool) {
        match self.phase {
            Phase::Open if torn && !std::mem::replace(&mut self.asked_again, true) => {
                self.abandon(true);
                self.last_error = reason;
                self.expect_an_origin(now);
                self.ask(now, self.asked);
            }
            Phase::Opening(_) | Phase::Open => self.failed(now, reason),
            Phase::Waiting(_) | Phase::Over => {}
        }
    }

    /// To be called when [`Handover::poll_timeout`] is reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.phase != Phase::Over && self.deadline.is_some_and(|deadline| deadline <= now) {
            let reason = self.lost_reason();
            self.abandon(true);
            return self.over(Outcome::Lost { reason });
        }
        match self.phase {
            Phase::Opening(until) if until <= now => {
                self.failed(now, format!("no answer within {:?}", self.rules.open_timeout));
            }
            Phase::Waiting(until) if until <= now => {
                self.attempt(now);
            }
            Phase::Open if self.silent_at.is_some_and(|at| at <= now) => {
                self.failed(now, "origin is silent after the end of the broadcast".into());
            }
            _ => {}
        }
    }

    /// What to do next.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Handover::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Opening(until) | Phase::Waiting(until) => Some(until),
            Phase::Open => self.silent_at,
            Phase::Over => return None,
        };
        [phase, self.deadline].into_iter().flatten().min()
    }

    /// Whether [`Handover::take`] has something for the body.
    pub fn has_unsent(&self) -> bool {
        self.phase == Phase::Open && self.replay.has_unsent()
    }

    /// The next piece of the body: about `max_bytes`, or one larger tag.
    pub fn take(&mut self, max_bytes: usize) -> Option<Bytes> {
        if self.phase == Phase::Open { self.replay.take(max_bytes) } else { None }
    }

    /// Whether the body is to end now.
    pub fn body_complete(&self) -> bool {
        self.finishing && self.phase == Phase::Open && !self.replay.has_unsent()
    }

    /// The buffer, to look at.
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Whether an origin has taken the stream.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// How often the stream was begun anew after an origin had taken it.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    /// What went wrong last.
    pub fn last_error(&self) -> &str {
        &self.last_error
    }

    /// As long as acknowledgements come the end may take its time.
    fn expect_end(&mut self, now: Instant) {
        self.deadline = Some(now + self.rules.end_timeout);
        self.silent_at = Some(now + self.rules.end_timeout / 2);
    }

    /// Asks the next one that this round has not asked; `false` if there is none.
    fn attempt(&mut self, now: Instant) -> bool {
        let count = self.candidates.len();
        let unasked = |at: &usize| !self.round.contains(&self.candidates[*at]);
        let Some(at) = (self.next..self.next + count).map(|at| at % count).find(unasked) else {
            return false;
        };
        self.next = (at + 1) % count;
        self.ask(now, self.candidates[at]);
        true
    }

    fn ask(&mut self, now: Instant, candidate: usize) {
        self.asked = candidate;
        self.round.insert(candidate);
        let next = self.replay.rewind(self.taken_by == Some(candidate));
        self.phase = Phase::Opening(now + self.rules.open_timeout);
        let received_ms = self.replay.received_ms();
        // Before the first acknowledgement there is nothing to go on from: all of it is sent again.
        self.actions.push_back(Action::Open { candidate, received_ms, next });
    }

    /// A stream that was taken is without an origin: not for ever.
    fn expect_an_origin(&mut self, now: Instant) {
        if self.started && self.deadline.is_none() {
            self.deadline = Some(now + self.rules.give_up);
        }
    }

    fn failed(&mut self, now: Instant, reason: String) {
        self.failed_here(now, reason, true);
    }

    fn failed_here(&mut self, now: Instant, reason: String, blame: bool) {
        self.abandon(blame);
        self.last_error = reason;
        self.expect_an_origin(now);
        if self.attempt(now) {
            return;
        }
        self.round.clear();
        self.rounds += 1;
        if !self.started && std::mem::take(&mut self.declined) >= self.candidates.len() {
            let reason = self.lost_reason();
            return self.over(Outcome::Lost { reason });
        }
        self.declined = 0;
        self.phase = Phase::Waiting(now + self.pause(self.rounds));
    }

    /// Doubles with each round up to the maximum; between half of it and all of it.
    fn pause(&mut self, round: usize) -> Duration {
        let doubled = self.rules.backoff.saturating_mul(1 << round.saturating_sub(1).min(20));
        let pause = doubled.min(self.rules.backoff_max);
        // xorshift64: spread is all that is asked of it.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        pause / 2 + pause.mul_f64((self.jitter >> 11) as f64 / (1u64 << 54) as f64)
    }

    fn lost_reason(&self) -> String {
        if self.finishing {
            let bytes = self.replay.bytes();
            format!("end not confirmed in time, {bytes} bytes unacknowledged: {}", self.last_error)
        } else {
            format!("no origin takes the stream: {}", self.last_error)
        }
    }

    fn refused(&mut self, code: String, reason: String) {
        self.abandon(false);
        self.last_error.clone_from(&reason);
        self.over(Outcome::Refused { code, reason });
    }

    fn abandon(&mut self, failed: bool) {
        if matches!(self.phase, Phase::Opening(_) | Phase::Open) {
            self.actions.push_back(Action::Abandon { failed });
        }
    }

    fn over(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        self.actions.push_back(Action::Over(outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::answer::Until;

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// A handover with its clock.
    struct World {
        handover: Handover,
        now: Instant,
    }

    impl World {
        fn new(candidates: usize) -> World {
            #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
            let now = Instant::now();
            let budget = Arc::new(Budget::new(1 << 40, Default::default()));
            World { handover: Handover::new(config::Relay::default(), candidates, budget, 42, now), now }
        }

        fn started(candidates: usize) -> World {
            let mut world = World::new(candidates);
            world.handover.handle_status(world.now, 200, "", None);
            assert_eq!(world.actions(), ["open 0 -", "started"]);
            world
        }

        fn actions(&mut self) -> Vec<String> {
            let show = |action| match action {
                Action::Open { candidate, next, .. } => {
                    format!("open {candidate} {}", next.as_deref().unwrap_or("-"))
                }
                Action::Abandon { .. } => "abandon".into(),
                Action::Started => "started".into(),
                Action::Over(Outcome::Ended) => "ended".into(),
                Action::Over(Outcome::Refused { code, reason }) => format!("refused {code}: {reason}"),
                Action::Over(Outcome::Lost { reason }) => format!("lost: {reason}"),
            };
            std::iter::from_fn(|| self.handover.poll()).map(show).collect()
        }

        fn status(&mut self, status: u16, text: &str) -> Vec<String> {
            self.handover.handle_status(self.now, status, text, None);
            self.actions()
        }

        fn owned_by(&mut self, owner: usize) -> Vec<String> {
            self.handover.handle_status(self.now, 421, "another has it", Some(owner));
            self.actions()
        }

        fn lost(&mut self) -> Vec<String> {
            self.handover.handle_lost(self.now, "reset".into(), true);
            self.actions()
        }

        fn published(&mut self, resume_ms: u32) {
            let (until, next) = (Until::Shown(resume_ms), resume_ms.to_string());
            self.handover.handle_answer(self.now, Answer::Published { segment: 0, until, next });
        }

        /// Goes to the next timeout.
        fn timeout(&mut self) -> Vec<String> {
            self.now = self.handover.poll_timeout().expect("a timeout is due");
            self.handover.handle_timeout(self.now);
            self.actions()
        }

        fn push(&mut self, ms: u32, key: bool) {
            let data = vec![if key { 0x17 } else { 0x27 }, 1, 0, 0, 0, 9].into();
            self.handover.push(self.now, 0, Tag { kind: TagKind::Video, timestamp_ms: ms, data });
        }
    }

    #[test]
    fn candidates_change_while_it_goes_on() {
        let mut world = World::started(2);
        world.handover.set_candidates(vec![0, 2, 1]);
        assert_eq!(world.lost(), ["abandon", "open 0 -"], "the same once more");
        assert_eq!(world.lost(), ["abandon", "open 2 -"]);
        world.handover.set_candidates(vec![3, 2]);
        assert_eq!(world.owned_by(1), ["abandon", "open 3 -"], "1 has left");
        world.handover.set_candidates(Vec::new());
        assert_eq!(world.owned_by(2), ["abandon", "open 2 -"]);
        world.handover.set_candidates(vec![2]);
        world.status(503, "full");
        assert_eq!(world.timeout(), ["open 2 -"], "the only one that is left");
    }

    #[test]
    fn a_round_asks_everyone_once_however_the_order_changes() {
        let mut world = World::new(3);
        assert_eq!(world.actions(), ["open 0 -"]);
        for expected in ["open 1 -", "open 2 -"] {
            // What loads and owners do to the ring, again and again.
            world.handover.set_candidates(vec![0, 1, 2]);
            assert_eq!(world.status(421, "not mine"), ["abandon", expected]);
        }
        world.handover.set_candidates(vec![0, 1, 2]);
        let lost = "lost: no origin takes the stream: origin answered 421 not mine";
        assert_eq!(world.status(421, "not mine"), ["abandon", lost]);
    }

    #[test]
    fn a_broadcast_is_relayed_acknowledged_and_ended() {
        let mut world = World::started(2);
        assert_eq!(world.handover.poll_timeout(), None, "a broadcast may last");
        world.push(0, true);
        assert!(world.handover.has_unsent());
        assert!(world.handover.take(1000).is_some_and(|bytes| bytes.starts_with(b"FLV")));
        world.published(1000);
        world.handover.finish(world.now);
        assert!(world.handover.body_complete());
        world.handover.handle_answer(world.now, Answer::End);
        assert_eq!(world.actions(), ["ended"]);
        assert_eq!((world.handover.poll_timeout(), world.lost()), (None, vec![]));
    }

    #[test]
    fn candidates_are_asked_in_turn_and_who_declines_is_passed() {
        let mut world = World::new(3);
        assert_eq!(world.actions(), ["open 0 -"]);
        assert_eq!(world.status(421, "not mine"), ["abandon", "open 1 -"]);
        assert_eq!(world.timeout(), ["abandon", "open 2 -"], "it did not answer in time");
        assert_eq!(world.status(200, ""), ["started"]);
        // Then a loss: the walk goes on where it is, wraps, and resumes.
        world.push(0, true);
        world.published(640);
        assert_eq!(world.lost(), ["abandon", "open 2 640"], "perhaps only the connection broke");
        assert_eq!(world.lost(), ["abandon", "open 0 640"]);
        assert_eq!(world.lost(), ["abandon", "open 1 640"]);
        assert_eq!(world.lost(), ["abandon"], "a round is over");
        let pause = world.handover.poll_timeout().unwrap() - world.now;
        assert!((Duration::from_millis(50)..=Duration::from_millis(100)).contains(&pause), "{pause:?}");
        assert_eq!(world.timeout(), ["open 2 640"]);
        assert_eq!(world.status(200, ""), [""; 0], "the broadcaster has been told already");
    }

    #[test]
    fn an_origin_that_goes_away_is_not_asked_again() {
        let mut world = World::started(2);
        world.push(0, true);
        world.published(640);
        world.handover.handle_lost(world.now, "origin ended its answer".into(), false);
        assert_eq!(world.actions(), ["abandon", "open 1 640"]);
        assert_eq!(world.handover.replays(), 0);
        world.status(200, "");
        assert_eq!(world.handover.replays(), 1);
    }

    #[test]
    fn the_owner_that_an_origin_names_is_asked_next_but_not_in_circles() {
        let mut world = World::new(4);
        world.actions();
        assert_eq!(world.owned_by(2), ["abandon", "open 2 -"]);
        assert_eq!(world.owned_by(0), ["abandon", "open 1 -"], "they do not agree: back to the ring");
        assert_eq!(world.owned_by(9), ["abandon", "open 3 -"], "nobody we know, and 2 was asked");
        assert_eq!(world.status(200, ""), ["started"]);
        world.published(640);
        world.lost();
        assert_eq!(world.owned_by(1), ["abandon", "open 1 640"], "it was taken over meanwhile");
    }

    #[test]
    fn refusals_are_final() {
        for (status, text, expected) in [
            (403, "token revoked", "refused NetStream.Publish.Rejected: token revoked"),
            (401, "", "refused NetStream.Publish.Rejected: origin answered 401"),
        ] {
            let mut world = World::new(2);
            world.actions();
            assert_eq!(world.status(status, text), ["abandon", expected]);
        }
        let mut world = World::started(2);
        let (code, reason) = ("NetStream.Publish.BadName".to_string(), "taken over".to_string());
        world.handover.handle_answer(world.now, Answer::Refused { code, reason });
        assert_eq!(world.actions(), ["abandon", "refused NetStream.Publish.BadName: taken over"]);
    }

    #[test]
    fn without_an_origin_the_broadcaster_hears_it_in_time() {
        assert_eq!(World::new(0).actions(), ["lost: no origin is configured"]);
        let mut world = World::new(2);
        world.actions();
        world.status(503, "full");
        let end = ["abandon", "lost: no origin takes the stream: origin answered 503 full"];
        assert_eq!(world.status(503, "full"), end, "asking again is of no use");
        // Origins that cannot be reached may come back: they are asked until the time is over.
        let mut world = World::new(1);
        let began = world.now;
        world.actions();
        let mut rounds = 0;
        loop {
            world.lost();
            let actions = world.timeout();
            if actions != ["open 0 -"] {
                assert_eq!(actions, ["lost: no origin takes the stream: reset"]);
                break;
            }
            rounds += 1;
        }
        assert_eq!(world.now - began, second(5));
        assert!((4..10).contains(&rounds), "{rounds}");
    }

    #[test]
    fn a_silent_origin_is_given_up_when_media_passes_but_not_in_a_pause() {
        let mut world = World::started(2);
        for ms in 0..4 {
            world.push(ms, ms == 0);
            world.now += second(60);
        }
        assert_eq!(world.actions(), [""; 0], "minutes without media are not the origin's fault");
        world.push(4, false);
        world.published(1);
        for ms in 0..99 {
            assert_eq!(world.actions(), [""; 0], "{ms}");
            world.now += Duration::from_millis(100);
            world.push(ms, false);
        }
        world.now += Duration::from_millis(100);
        world.push(99, false);
        assert_eq!(world.actions(), ["abandon", "open 1 1"]);
    }

    #[test]
    fn the_end_is_waited_for_and_replayed_but_not_forever() {
        let mut world = World::started(2);
        world.push(0, true);
        world.handover.take(1000);
        world.handover.finish(world.now);
        assert_eq!(world.timeout(), ["abandon", "open 1 -"], "silent after the end");
        world.status(200, "");
        assert!(world.handover.has_unsent() && !world.handover.body_complete());
        world.handover.take(1000);
        world.now += second(4);
        world.published(0);
        world.now += second(4);
        world.handover.handle_timeout(world.now);
        assert_eq!(world.actions(), [""; 0], "it makes progress");
        let (mut actions, began) = (world.timeout(), world.now);
        while !actions.last().is_some_and(|action| action.starts_with("lost")) {
            assert!(world.now - began < second(10), "{actions:?}");
            actions = world.timeout();
        }
        let lost = "lost: end not confirmed in time, 134 bytes unacknowledged: no answer within 2s";
        assert_eq!(actions, ["abandon", lost]);
        // Who leaves before an origin answered owes nothing, and that origin has not failed.
        let mut world = World::new(1);
        assert_eq!(world.actions(), ["open 0 -"]);
        world.handover.finish(world.now);
        assert_eq!(world.handover.poll(), Some(Action::Abandon { failed: false }));
        assert_eq!(world.actions(), ["ended"]);
    }

    #[test]
    fn a_stream_that_no_origin_takes_for_long_is_given_up() {
        let mut world = World::started(2);
        let began = world.now;
        assert_eq!(world.lost(), ["abandon", "open 0 -"]);
        let mut actions = world.lost();
        while !actions.last().is_some_and(|action| action.starts_with("lost")) {
            actions = if actions.iter().any(|action| action.starts_with("open")) {
                world.lost()
            } else {
                world.timeout()
            };
        }
        assert_eq!(actions, ["lost: no origin takes the stream: reset"]);
        assert_eq!(world.now - began, second(60));
    }
}
