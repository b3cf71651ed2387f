//! What becomes of one name from the first request for it until its body ends: one fetch, many waiters.
//!
//! A [`Flight`] decides when to start a fetch, on which of the upstream candidates, when to promote one more because the
//! first is slow, whose answer counts, how a body that broke or fell silent goes on, and when to give up. It belongs to
//! the object: viewers come and go without touching it. However many wait, the upstream sees at most `max_fetches` of them
//! at once and one more in all, besides candidates that said "not mine" (421).
//!
//! Driving rule: one `handle_*` call, then drain [`Flight::poll`], then wait for the next event or [`Flight::poll_timeout`].
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use http::StatusCode;

/// Names a fetch within its flight.
pub type FetchId = u32;

/// Fetches that may be started because an earlier one failed, per flight.
const RETRIES: u32 = 1;

/// The times and bounds of a flight; see [`crate::policy::Class`].
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// No headers, or no further bytes, for that long: promote one more fetch.
    pub blocking_timeout: Duration,
    /// No headers for that long since the start, or no bytes for that long within a body: end it.
    pub give_up: Duration,
    /// Fetches that may be open at once, and be started for slowness, the first included.
    pub max_fetches: u32,
}

/// Why a fetch is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The first request for the name.
    First,
    /// Those before are slow.
    Promoted,
    /// One before failed.
    Retry,
    /// One before said that the name is not its own.
    Walk,
}

/// How a fetch failed. Of several failures the last in this order is the one that viewers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// 421: ask another.
    NotMine,
    /// No connection, or it broke, or the answer makes no sense.
    Broken,
    /// A timeout on the way: 504, or no connection in time.
    TimedOut,
    /// What came cannot follow what is there: it is another version, or too much. Nobody else is asked for the rest.
    Unfit,
    /// Another 5xx.
    Erred,
    /// 503: it asks for patience.
    Unavailable,
}

/// What viewers are told when there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are no upstreams, or none says anything.
    NoUpstream,
    /// The give-up time has passed.
    GaveUp,
    /// All fetches failed; this says most.
    Failed(Failure),
}

impl Refusal {
    /// As an HTTP status. No upstream that knows the name means 404.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::NoUpstream | Refusal::GaveUp | Refusal::Failed(Failure::Unavailable) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Failed(Failure::NotMine) => StatusCode::NOT_FOUND,
            Refusal::Failed(Failure::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Failed(Failure::Broken | Failure::Unfit | Failure::Erred) => StatusCode::BAD_GATEWAY,
        }
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the candidate with this index for the object.
    Start { fetch: FetchId, candidate: usize, cause: Cause },
    /// Ask the candidate with this index for what comes after the bytes that are there.
    Resume { fetch: FetchId, candidate: usize, cause: Cause },
    /// End this fetch; nothing more is wanted from it.
    Cancel { fetch: FetchId },
    /// Its headers are the answer: wake all who wait, and read its body on.
    Serve { fetch: FetchId },
    /// Its bytes go on where those of the one before ended.
    Switch { fetch: FetchId },
    /// It says that what was there is still good: wake all who wait with that. The flight is over.
    Freshen { fetch: FetchId },
    /// Wake all who wait with this, or with a stale copy. The flight is over.
    Refuse(Refusal),
    /// The body is whole. The flight is over.
    Complete,
    /// The body is broken. The flight is over.
    Break,
}

/// The state of one name in flight.
#[derive(Debug)]
pub struct Flight {
    rules: Rules,
    candidates: Vec<Candidate>,
    /// From whom something is still to come, and on which candidate.
    open: BTreeMap<FetchId, usize>,
    started: FetchId,
    /// First and promoted ones.
    launched: u32,
    retries: u32,
    worst: Option<Failure>,
    phase: Phase,
    actions: VecDeque<Action>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Candidate {
    tried: u32,
    open: u32,
    not_mine: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Waiting { give_up: Instant, promote: Instant },
    Body(Body),
    Over,
}

/// The second half of a flight: there is an answer, and its body comes.
#[derive(Debug, Clone, Copy)]
struct Body {
    /// Whose bytes come, until it breaks.
    source: Option<FetchId>,
    /// The candidate that knows the object.
    home: usize,
    /// Whether the rest can be had from another fetch.
    resumable: bool,
    promote: Instant,
    silent_until: Instant,
}

impl Flight {
    /// Begins with the first fetch, on candidate 0 of `candidates`.
    pub fn new(now: Instant, rules: Rules, candidates: usize) -> Flight {
        let mut flight = Flight::promised(now, rules, candidates);
        flight.handle_push_lost(now);
        flight
    }

    /// Begins without a fetch, because a push has promised the object. The first fetch is started when the push is lost
    /// or has brought nothing for `blocking_timeout`.
    pub fn promised(now: Instant, rules: Rules, candidates: usize) -> Flight {
        Flight {
            rules,
            candidates: vec![Candidate::default(); candidates],
            open: BTreeMap::new(),
            started: 0,
            launched: 0,
            retries: 0,
            worst: None,
            phase: Phase::Waiting { give_up: now + rules.give_up, promote: now + rules.blocking_timeout },
            actions: VecDeque::new(),
        }
    }

    /// Begins in the middle of a body that a push has begun and will not end: the rest of it is asked for at once.
    pub fn adopted(now: Instant, rules: Rules, candidates: usize) -> Flight {
        let mut flight = Flight::promised(now, rules, candidates);
        let (promote, silent_until) = flight.body_deadlines(now);
        let body = Body { source: None, home: 0, resumable: true, promote, silent_until };
        flight.phase = Phase::Body(body);
        flight.resume(Cause::First);
        if flight.open.is_empty() {
            flight.end(Action::Break);
        }
        flight
    }

    /// Whether no candidate has been asked yet: until then their order may change.
    pub fn asked_nobody(&self) -> bool {
        self.launched == 0
    }

    /// There are so many candidates now. Only while nobody has been asked.
    pub fn set_candidates(&mut self, candidates: usize) {
        debug_assert!(self.asked_nobody());
        self.candidates = vec![Candidate::default(); candidates];
    }

    /// The push that had promised the object is lost.
    pub fn handle_push_lost(&mut self, now: Instant) {
        if let Phase::Waiting { promote, .. } = &mut self.phase
            && self.launched == 0
        {
            *promote = now + self.rules.blocking_timeout;
            match self.best_candidate() {
                Some(candidate) => self.launch(candidate),
                None => self.refuse(Refusal::NoUpstream),
            }
        }
    }

    /// Someone else has the name now and tells those who wait. The flight is over.
    pub fn handle_superseded(&mut self) {
        self.cancel_all_but(None);
        self.phase = Phase::Over;
    }

    /// Headers that answer the request arrived. The first such headers win. `resumable` says whether the rest of the body
    /// could be had by another fetch and be known to belong to it.
    pub fn handle_headers(&mut self, now: Instant, fetch: FetchId, resumable: bool) {
        if let Phase::Waiting { .. } = self.phase
            && let Some(&home) = self.open.get(&fetch)
        {
            self.actions.push_back(Action::Serve { fetch });
            self.cancel_all_but(Some(fetch));
            let (promote, silent_until) = self.body_deadlines(now);
            self.phase = Phase::Body(Body { source: Some(fetch), home, resumable, promote, silent_until });
        }
    }

    /// The upstream says that what was there before is still good (304).
    pub fn handle_not_modified(&mut self, fetch: FetchId) {
        if matches!(self.phase, Phase::Waiting { .. }) && self.close(fetch).is_some() {
            self.cancel_all_but(None);
            self.end(Action::Freshen { fetch });
        }
    }

    /// Bytes of the body arrived from whom they are read.
    pub fn handle_bytes(&mut self, now: Instant, fetch: FetchId) {
        let (promote, silent_until) = self.body_deadlines(now);
        if let Phase::Body(body) = &mut self.phase
            && body.source == Some(fetch)
        {
            (body.promote, body.silent_until) = (promote, silent_until);
            if self.open.len() > 1 {
                self.cancel_all_but(Some(fetch));
            }
        }
    }

    /// A fetch that was to resume the body has brought the bytes that come next.
    pub fn handle_resumed(&mut self, now: Instant, fetch: FetchId) {
        let (promote, silent_until) = self.body_deadlines(now);
        if let Phase::Body(body) = &mut self.phase
            && let Some(&home) = self.open.get(&fetch)
        {
            *body = Body { source: Some(fetch), home, promote, silent_until, ..*body };
            self.actions.push_back(Action::Switch { fetch });
            self.cancel_all_but(Some(fetch));
        }
    }

    /// The body is whole, says the one that is read or one that was to resume it.
    pub fn handle_end(&mut self, fetch: FetchId) {
        if matches!(self.phase, Phase::Body(_)) && self.close(fetch).is_some() {
            self.cancel_all_but(None);
            self.end(Action::Complete);
        }
    }

    /// A fetch failed, before or after its headers.
    pub fn handle_failure(&mut self, now: Instant, fetch: FetchId, failure: Failure) {
        let Some(candidate) = self.close(fetch) else {
            return;
        };
        self.candidates[candidate].not_mine |= failure == Failure::NotMine;
        match self.phase {
            Phase::Waiting { .. } => {
                self.worst = self.worst.max(Some(failure));
                self.go_on(failure);
            }
            Phase::Body(mut body) => {
                body.source = body.source.filter(|source| *source != fetch);
                body.resumable &= failure != Failure::Unfit;
                body.promote = now + self.rules.blocking_timeout;
                self.phase = Phase::Body(body);
                self.go_on_with(body, failure);
            }
            Phase::Over => {}
        }
    }

    /// Acts on deadlines that have passed; see [`Flight::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Instant) {
        let next = now + self.rules.blocking_timeout;
        match &mut self.phase {
            Phase::Waiting { give_up, .. } if *give_up <= now => self.refuse(Refusal::GaveUp),
            Phase::Waiting { promote, .. } if *promote <= now => {
                *promote = next;
                if self.launched < self.rules.max_fetches
                    && let Some(candidate) = self.best_candidate()
                {
                    self.launch(candidate);
                }
            }
            Phase::Body(body) if body.silent_until <= now => {
                self.cancel_all_but(None);
                self.end(Action::Break);
            }
            Phase::Body(body) if body.promote <= now => {
                body.promote = next;
                let body = *body;
                if self.may_promote(body) {
                    self.resume(Cause::Promoted);
                }
            }
            _ => {}
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Flight::handle_timeout`]; `None` once the flight is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { give_up, promote } if self.launched < self.rules.max_fetches => {
                Some(give_up.min(promote))
            }
            Phase::Waiting { give_up, .. } => Some(give_up),
            Phase::Body(body) if self.may_promote(body) => Some(body.silent_until.min(body.promote)),
            Phase::Body(body) => Some(body.silent_until),
            Phase::Over => None,
        }
    }

    /// After a failure without headers: one more fetch if that may help, the end if nothing else is under way.
    fn go_on(&mut self, failure: Failure) {
        if failure == Failure::NotMine {
            if let Some(candidate) = self.best_candidate().filter(|&index| self.candidates[index].tried == 0)
            {
                return self.start(candidate, Cause::Walk);
            }
        } else if self.retries < RETRIES
            && let Some(candidate) = self.best_candidate()
        {
            self.retries += 1;
            return self.start(candidate, Cause::Retry);
        }
        if self.open.is_empty() {
            let failure = self.worst.unwrap_or(failure);
            self.refuse(Refusal::Failed(failure));
        }
    }

    /// After a failure within the body: the rest from elsewhere if that is possible, the end if nothing else is under way.
    fn go_on_with(&mut self, body: Body, failure: Failure) {
        if body.resumable {
            // Whoever has served the first half knows the name: no need to walk past everyone.
            if failure == Failure::NotMine && !self.candidates[body.home].not_mine {
                let fetch = self.open(body.home);
                return self.actions.push_back(Action::Resume {
                    fetch,
                    candidate: body.home,
                    cause: Cause::Walk,
                });
            }
            if self.open.is_empty() && self.budget_left() {
                self.resume(Cause::Retry);
            }
        }
        if self.open.is_empty() {
            self.end(Action::Break);
        }
    }

    /// Whether a silent body may have one more fetch beside it.
    fn may_promote(&self, body: Body) -> bool {
        body.resumable && (self.open.len() as u32) < self.rules.max_fetches && self.budget_left()
    }

    fn budget_left(&self) -> bool {
        self.retries < RETRIES || self.launched < self.rules.max_fetches
    }

    /// Asks for the rest of the body at the best candidate, if there is one.
    fn resume(&mut self, cause: Cause) {
        let Some(candidate) = self.best_candidate() else {
            return;
        };
        let retry = self.launched >= self.rules.max_fetches || cause == Cause::Retry;
        if retry && self.retries < RETRIES {
            self.retries += 1;
        } else {
            self.launched += 1;
        }
        let fetch = self.open(candidate);
        self.actions.push_back(Action::Resume { fetch, candidate, cause });
    }

    fn body_deadlines(&self, now: Instant) -> (Instant, Instant) {
        (now + self.rules.blocking_timeout, now + self.rules.give_up)
    }

    /// Of those that have not said "not mine": the one with the fewest open fetches, then the one least tried, then
    /// the first.
    fn best_candidate(&self) -> Option<usize> {
        let able = self.candidates.iter().enumerate().filter(|(_, candidate)| !candidate.not_mine);
        able.min_by_key(|(_, candidate)| (candidate.open, candidate.tried)).map(|(index, _)| index)
    }

    /// Starts the first fetch, or a promoted one.
    fn launch(&mut self, candidate: usize) {
        self.launched += 1;
        self.start(candidate, if self.launched == 1 { Cause::First } else { Cause::Promoted });
    }

    fn start(&mut self, candidate: usize, cause: Cause) {
        let fetch = self.open(candidate);
        self.actions.push_back(Action::Start { fetch, candidate, cause });
    }

    fn open(&mut self, candidate: usize) -> FetchId {
        let fetch = self.started;
        self.started += 1;
        self.open.insert(fetch, candidate);
        self.candidates[candidate].tried += 1;
        self.candidates[candidate].open += 1;
        fetch
    }

    fn close(&mut self, fetch: FetchId) -> Option<usize> {
        let candidate = self.open.remove(&fetch)?;
        self.candidates[candidate].open -= 1;
        Some(candidate)
    }

    fn cancel_all_but(&mut self, kept: Option<FetchId>) {
        let others: Vec<FetchId> = self.open.keys().copied().filter(|fetch| Some(*fetch) != kept).collect();
        for fetch in others {
            self.close(fetch);
            self.actions.push_back(Action::Cancel { fetch });
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.cancel_all_but(None);
        self.end(Action::Refuse(refusal));
    }

    fn end(&mut self, action: Action) {
        self.actions.push_back(action);
        self.phase = Phase::Over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const RULES: Rules = Rules {
        blocking_timeout: Duration::from_millis(100),
        give_up: Duration::from_millis(1000),
        max_fetches: 2,
    };

    /// A flight under a virtual clock, in milliseconds from its start.
    struct World {
        zero: Instant,
        flight: Flight,
    }

    impl World {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        fn new(rules: Rules, candidates: usize) -> World {
            let zero = Instant::now();
            World { zero, flight: Flight::new(zero, rules, candidates) }
        }

        fn promised(rules: Rules, candidates: usize) -> World {
            let World { zero, .. } = World::new(rules, candidates);
            World { zero, flight: Flight::promised(zero, rules, candidates) }
        }

        fn at(&self, ms: u64) -> Instant {
            self.zero + Duration::from_millis(ms)
        }

        fn headers(&mut self, ms: u64, fetch: FetchId) {
            self.flight.handle_headers(self.at(ms), fetch, false);
        }

        /// Headers of a body that another fetch could resume.
        fn resumable(&mut self, ms: u64, fetch: FetchId) {
            self.flight.handle_headers(self.at(ms), fetch, true);
        }

        fn fail(&mut self, fetch: FetchId, failure: Failure) {
            self.flight.handle_failure(self.zero, fetch, failure);
        }

        /// Lets time pass to the next deadline, which must be `ms`.
        fn pass(&mut self, ms: u64) {
            assert_eq!(self.flight.poll_timeout(), Some(self.at(ms)));
            self.flight.handle_timeout(self.at(ms));
        }

        fn expect(&mut self, actions: &[Action]) {
            let got: Vec<Action> = std::iter::from_fn(|| self.flight.poll()).collect();
            assert_eq!(got, actions);
        }
    }

    fn start(fetch: FetchId, candidate: usize, cause: Cause) -> Action {
        Action::Start { fetch, candidate, cause }
    }

    fn resume(fetch: FetchId, candidate: usize, cause: Cause) -> Action {
        Action::Resume { fetch, candidate, cause }
    }

    #[test]
    fn one_fetch_serves_and_completes() {
        let mut world = World::new(RULES, 3);
        world.expect(&[start(0, 0, Cause::First)]);
        world.headers(50, 0);
        world.expect(&[Action::Serve { fetch: 0 }]);
        world.flight.handle_bytes(world.at(500), 0);
        assert_eq!(world.flight.poll_timeout(), Some(world.at(1500)));
        world.flight.handle_end(0);
        world.expect(&[Action::Complete]);
        assert_eq!(world.flight.poll_timeout(), None);
    }

    #[test]
    fn a_slow_fetch_promotes_one_more_and_the_first_headers_win() {
        let mut world = World::new(RULES, 3);
        world.expect(&[start(0, 0, Cause::First)]);
        world.pass(100);
        world.expect(&[start(1, 1, Cause::Promoted)]);
        world.headers(150, 1);
        world.expect(&[Action::Serve { fetch: 1 }, Action::Cancel { fetch: 0 }]);
        world.headers(160, 0);
        world.fail(0, Failure::Broken);
        world.expect(&[]);
    }

    #[test]
    fn promotions_end_at_max_fetches_and_giving_up_ends_all() {
        let mut world = World::new(Rules { max_fetches: 3, ..RULES }, 2);
        world.expect(&[start(0, 0, Cause::First)]);
        world.pass(100);
        world.expect(&[start(1, 1, Cause::Promoted)]);
        world.pass(200);
        world.expect(&[start(2, 0, Cause::Promoted)]);
        world.pass(1000);
        let cancel = |fetch| Action::Cancel { fetch };
        world.expect(&[cancel(0), cancel(1), cancel(2), Action::Refuse(Refusal::GaveUp)]);
    }

    #[test]
    fn an_error_is_retried_once_on_the_next_candidate() {
        let mut world = World::new(RULES, 2);
        world.expect(&[start(0, 0, Cause::First)]);
        world.fail(0, Failure::Unavailable);
        world.expect(&[start(1, 1, Cause::Retry)]);
        world.fail(1, Failure::Broken);
        world.expect(&[Action::Refuse(Refusal::Failed(Failure::Unavailable))]);
        // With one upstream the retry goes there too.
        let mut world = World::new(RULES, 1);
        world.expect(&[start(0, 0, Cause::First)]);
        world.fail(0, Failure::Erred);
        world.expect(&[start(1, 0, Cause::Retry)]);
        world.headers(10, 1);
        world.expect(&[Action::Serve { fetch: 1 }]);
    }

    #[test]
    fn not_mine_walks_past_everyone_once() {
        let mut world = World::new(RULES, 3);
        world.expect(&[start(0, 0, Cause::First)]);
        world.fail(0, Failure::NotMine);
        world.expect(&[start(1, 1, Cause::Walk)]);
        world.fail(1, Failure::NotMine);
        world.expect(&[start(2, 2, Cause::Walk)]);
        world.fail(2, Failure::NotMine);
        world.expect(&[Action::Refuse(Refusal::Failed(Failure::NotMine))]);
        assert_eq!(Refusal::Failed(Failure::NotMine).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_failed_owner_behind_a_walk_is_retried_where_it_is() {
        let mut world = World::new(RULES, 2);
        world.expect(&[start(0, 0, Cause::First)]);
        world.fail(0, Failure::NotMine);
        world.expect(&[start(1, 1, Cause::Walk)]);
        world.fail(1, Failure::Broken);
        world.expect(&[start(2, 1, Cause::Retry)]);
        world.fail(2, Failure::NotMine);
        world.expect(&[Action::Refuse(Refusal::Failed(Failure::Broken))]);
    }

    #[test]
    fn a_failure_beside_an_open_fetch_is_not_the_end() {
        let mut world = World::new(RULES, 2);
        world.expect(&[start(0, 0, Cause::First)]);
        world.pass(100);
        world.expect(&[start(1, 1, Cause::Promoted)]);
        world.fail(1, Failure::Erred);
        world.expect(&[start(2, 1, Cause::Retry)]);
        world.fail(2, Failure::Erred);
        world.expect(&[]);
        world.headers(500, 0);
        world.expect(&[Action::Serve { fetch: 0 }]);
    }

    #[test]
    fn a_silent_or_broken_body_breaks() {
        let mut world = World::new(RULES, 2);
        world.headers(10, 0);
        world.pass(1010);
        world.expect(&[
            start(0, 0, Cause::First),
            Action::Serve { fetch: 0 },
            Action::Cancel { fetch: 0 },
            Action::Break,
        ]);
        let mut world = World::new(RULES, 2);
        world.headers(10, 0);
        world.fail(0, Failure::Broken);
        world.expect(&[start(0, 0, Cause::First), Action::Serve { fetch: 0 }, Action::Break]);
    }

    #[test]
    fn a_broken_body_is_resumed_within_the_bounds() {
        let mut world = World::new(RULES, 2);
        world.resumable(10, 0);
        world.expect(&[start(0, 0, Cause::First), Action::Serve { fetch: 0 }]);
        world.fail(0, Failure::Broken);
        world.expect(&[resume(1, 1, Cause::Retry)]);
        world.flight.handle_resumed(world.at(20), 1);
        world.expect(&[Action::Switch { fetch: 1 }]);
        world.fail(1, Failure::Broken);
        world.expect(&[resume(2, 0, Cause::Retry)]);
        world.flight.handle_resumed(world.at(30), 2);
        world.fail(2, Failure::Broken);
        world.expect(&[Action::Switch { fetch: 2 }, Action::Break]);
    }

    #[test]
    fn a_silent_body_gets_one_beside_it_and_the_next_byte_decides() {
        let mut world = World::new(RULES, 2);
        world.resumable(0, 0);
        world.expect(&[start(0, 0, Cause::First), Action::Serve { fetch: 0 }]);
        world.pass(100);
        world.expect(&[resume(1, 1, Cause::Promoted)]);
        world.flight.handle_bytes(world.at(150), 0);
        world.expect(&[Action::Cancel { fetch: 1 }]);
        world.pass(250);
        world.expect(&[resume(2, 1, Cause::Promoted)]);
        world.flight.handle_resumed(world.at(260), 2);
        world.expect(&[Action::Switch { fetch: 2 }, Action::Cancel { fetch: 0 }]);
        world.flight.handle_bytes(world.at(261), 0);
        world.pass(1260);
        world.expect(&[Action::Cancel { fetch: 2 }, Action::Break]);
    }

    #[test]
    fn a_resume_that_is_not_theirs_goes_back_home() {
        let mut world = World::new(RULES, 3);
        world.resumable(0, 0);
        world.fail(0, Failure::Broken);
        world.fail(1, Failure::NotMine);
        world.expect(&[
            start(0, 0, Cause::First),
            Action::Serve { fetch: 0 },
            resume(1, 1, Cause::Retry),
            resume(2, 0, Cause::Walk),
        ]);
        world.flight.handle_end(2);
        world.expect(&[Action::Complete]);
    }

    #[test]
    fn another_version_is_no_rest() {
        let mut world = World::new(RULES, 2);
        world.resumable(0, 0);
        world.pass(100);
        world.fail(1, Failure::Unfit);
        world.expect(&[start(0, 0, Cause::First), Action::Serve { fetch: 0 }, resume(1, 1, Cause::Promoted)]);
        world.fail(0, Failure::Broken);
        world.expect(&[Action::Break]);
    }

    #[test]
    fn a_promise_holds_the_first_fetch_back() {
        let mut world = World::promised(RULES, 1);
        world.expect(&[]);
        world.flight.handle_push_lost(world.at(30));
        world.flight.handle_push_lost(world.at(40));
        world.expect(&[start(0, 0, Cause::First)]);
        world.pass(130);
        world.expect(&[start(1, 0, Cause::Promoted)]);
        world.flight.handle_superseded();
        world.expect(&[Action::Cancel { fetch: 0 }, Action::Cancel { fetch: 1 }]);
        assert_eq!(world.flight.poll_timeout(), None);

        let mut world = World::promised(RULES, 1);
        world.pass(100);
        world.expect(&[start(0, 0, Cause::First)]);
        world.pass(200);
        world.expect(&[start(1, 0, Cause::Promoted)]);

        let mut world = World::promised(RULES, 0);
        world.pass(100);
        world.expect(&[]);
        world.flight.handle_push_lost(world.at(120));
        world.expect(&[Action::Refuse(Refusal::NoUpstream)]);
    }

    #[test]
    fn what_is_confirmed_needs_no_body() {
        let mut world = World::new(RULES, 2);
        world.pass(100);
        world.flight.handle_not_modified(0);
        world.expect(&[
            start(0, 0, Cause::First),
            start(1, 1, Cause::Promoted),
            Action::Cancel { fetch: 1 },
            Action::Freshen { fetch: 0 },
        ]);
        assert_eq!(world.flight.poll_timeout(), None);
    }

    #[test]
    fn without_upstreams_the_answer_is_no() {
        World::new(RULES, 0).expect(&[Action::Refuse(Refusal::NoUpstream)]);
    }

    #[test]
    fn the_rest_of_a_pushed_body_is_fetched() {
        let resume = |fetch, candidate, cause| Action::Resume { fetch, candidate, cause };
        let adopted = |candidates| {
            let mut world = World::new(RULES, candidates);
            world.flight = Flight::adopted(world.zero, RULES, candidates);
            world
        };
        let mut world = adopted(2);
        world.expect(&[resume(0, 0, Cause::First)]);
        world.flight.handle_resumed(world.at(10), 0);
        world.flight.handle_end(0);
        world.expect(&[Action::Switch { fetch: 0 }, Action::Complete]);

        let mut world = adopted(2);
        world.flight.handle_failure(world.at(5), 0, Failure::Broken);
        world.expect(&[resume(0, 0, Cause::First), resume(1, 1, Cause::Retry)]);
        world.flight.handle_failure(world.at(6), 1, Failure::Unfit);
        world.expect(&[Action::Break]);
        adopted(0).expect(&[Action::Break]);
    }

    /// Random answers, failures and silences: the bounds hold, the end comes in time, and nothing is left open.
    #[test]
    fn bounds_hold_under_random_schedules() {
        for seed in 1..4000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let rules = Rules { max_fetches: 1 + random(4) as u32, ..RULES };
            let candidates = 1 + random(4) as usize;
            let mut world = World::new(rules, candidates);
            let (mut open, mut ms, mut walks, mut total) = (BTreeSet::new(), 0, 0, 0);
            let (mut served, mut ended) = (None, false);
            loop {
                while let Some(action) = world.flight.poll() {
                    assert!(!ended, "seed {seed}: {action:?} after the end");
                    match action {
                        Action::Start { fetch, candidate, cause } => {
                            assert!(served.is_none() && candidate < candidates, "seed {seed}");
                            assert!(open.insert(fetch), "seed {seed}");
                            total += 1;
                            walks += usize::from(cause == Cause::Walk);
                        }
                        Action::Cancel { fetch } => assert!(open.remove(&fetch), "seed {seed}"),
                        Action::Serve { fetch } => served = Some(fetch),
                        Action::Complete | Action::Break | Action::Refuse(_) => ended = true,
                        other => panic!("seed {seed}: {other:?}"),
                    }
                    let (max, total) = (rules.max_fetches as usize, total as usize);
                    assert!(open.len() <= max, "seed {seed}: {} open", open.len());
                    assert!(walks < candidates && total - walks <= max + 1, "seed {seed}: {total} fetches");
                }
                if ended {
                    break;
                }
                assert!(served.is_some() || ms <= 1000, "seed {seed}: waiting past give-up");
                let deadline = world.flight.poll_timeout().expect("an end in sight");
                let deadline_ms = (deadline - world.zero).as_millis() as u64;
                ms = (ms + random(200)).min(deadline_ms);
                let pick = open.iter().nth(random(open.len().max(1) as u64) as usize).copied();
                match (pick, random(8)) {
                    (Some(fetch), 0) if served.is_none() => world.headers(ms, fetch),
                    (Some(fetch), 1) => world.flight.handle_bytes(world.at(ms), fetch),
                    (Some(fetch), 2) if served == Some(fetch) => {
                        open.remove(&fetch);
                        world.flight.handle_end(fetch);
                    }
                    (Some(fetch), 3) => {
                        open.remove(&fetch);
                        world.fail(fetch, Failure::Erred);
                    }
                    (Some(fetch), 4) if served.is_none() => {
                        open.remove(&fetch);
                        world.fail(fetch, Failure::NotMine);
                    }
                    _ => {
                        ms = deadline_ms;
                        world.flight.handle_timeout(deadline);
                    }
                }
            }
            assert!(open.is_empty(), "seed {seed}: {open:?} left open");
        }
    }
}
