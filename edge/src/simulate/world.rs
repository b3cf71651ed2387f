//! Edges, shields and the origin in virtual time. What is added to the code that decides is what `flight` and `tier` add
//! in production: actions are carried out, answers come back, objects are kept.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use super::audience::{Answer, Audience, Viewers};
use super::measure::Seconds;
use super::names::{Classes, Name};
use super::source::{Said, Source};
use super::{Outcome, Rule, Scenario};
use crate::coalesce::{Action, Failure, FetchId, Flight, Rules};
use crate::freshness::{Freshness, State};
use crate::handover::{Joined, Permit, Table, Waiting};
use crate::pace::Pace;

/// Nothing in this world is without an end; what goes on after the last viewer has asked is bounded by give-up times.
const MAX_NAMES: usize = usize::MAX;

/// How many events happen between two looks at whether to stop: some milliseconds.
const STEPS_BETWEEN_STOPS: usize = 4096;

pub(super) struct World<'a> {
    scenario: &'a Scenario,
    zero: Instant,
    now_us: u64,
    end_us: u64,
    /// What else happens, by time and in the order in which it was said.
    agenda: BTreeMap<(u64, u64), Event>,
    number: u64,
    /// Who asks when; those who are alike are one.
    asks: BTreeMap<(u64, Viewers), u64>,
    /// The deadlines of the flights.
    timers: BTreeSet<(u64, u64)>,
    flights: BTreeMap<u64, InFlight>,
    /// The edges, then the shields.
    nodes: Vec<Node>,
    /// Of the edges and of the shields.
    classes: [Classes; 2],
    source: Source,
    audience: Audience,
    edge_fetches: u64,
    above_edges: Seconds,
    origin: Seconds,
}

enum Event {
    /// The request of a fetch arrives at the tier above.
    Arrives { flight: u64, fetch: FetchId, from: u64, shield: Option<usize> },
    /// Something of its answer is back.
    Reply { flight: u64, fetch: FetchId, reply: Reply },
    /// Those who wait for a flight have waited as long as a [`Rule::Flood`] lets them.
    Impatient { flight: u64, waiter: u64 },
}

#[derive(Debug, Clone, Copy)]
enum Reply {
    /// How old it is already.
    Headers {
        answer: Answer,
        age: Duration,
    },
    /// The body is there up to this part.
    Bytes(u64),
    End,
    Fail(Failure),
}

/// A cache.
struct Node {
    table: Table<Verdict>,
    shelf: BTreeMap<Name, Stored>,
    /// The flights in the table.
    names: BTreeMap<Name, u64>,
    paces: BTreeMap<String, Pace>,
    is_shield: bool,
}

/// An object that is kept.
#[derive(Debug, Clone, Copy)]
struct Stored {
    answer: Answer,
    received: Instant,
    freshness: Freshness,
    grace_until: Option<Instant>,
}

impl Stored {
    fn state(&self, now: Instant) -> State {
        self.freshness.state(self.received, self.grace_until, now)
    }
}

/// What those who wait are told.
type Verdict = Stored;

/// Whoever asks a cache for something.
#[derive(Debug, Clone, Copy)]
enum Asker {
    /// Those of a viewer's kind.
    Viewers(Viewers),
    /// A flight of an edge asks a shield; the rest of a body from this part on.
    Fetch { flight: u64, fetch: FetchId, from: u64 },
}

struct Waiter {
    asker: Asker,
    count: u64,
    since_us: u64,
    /// `None`: it is not shared.
    waiting: Option<Waiting<Verdict>>,
}

/// A name that is being fetched.
struct InFlight {
    node: usize,
    name: Name,
    flight: Flight,
    /// `None`: what it brings is for those alone who asked.
    permit: Option<Permit<Verdict>>,
    /// How many requests each of its fetches stands for.
    weight: u64,
    patience: Duration,
    waiters: BTreeMap<u64, Waiter>,
    /// When each was sent.
    open: BTreeMap<FetchId, u64>,
    /// The headers that have just come.
    headers: Option<(Answer, Duration)>,
    source: Option<FetchId>,
    told: Option<Stored>,
    /// Up to which part the body is there.
    through: Option<u64>,
    /// Those who have headers and want more of the body.
    readers: Vec<(Asker, u64, u64)>,
    stale: Option<Stored>,
    deadline: Option<u64>,
}

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario, zero: Instant) -> World<'a> {
        let source = Source::new(scenario);
        let (edges, shields) = (usize::from(scenario.edges), usize::from(scenario.shields));
        let node = |index| Node {
            table: Table::new(MAX_NAMES, Gauge::default()),
            shelf: BTreeMap::new(),
            names: BTreeMap::new(),
            paces: BTreeMap::new(),
            is_shield: index >= edges,
        };
        let classes = [&scenario.edge, &scenario.shield].map(|policy| Classes::new(policy, scenario.segment));
        let arrivals = Audience::arrivals(scenario);
        World {
            scenario,
            zero,
            now_us: 0,
            end_us: scenario.length.as_micros() as u64,
            agenda: BTreeMap::new(),
            number: 0,
            asks: arrivals.into_iter().map(|(at, viewers, count)| ((at, viewers), count)).collect(),
            timers: BTreeSet::new(),
            flights: BTreeMap::new(),
            nodes: (0..edges + shields).map(node).collect(),
            classes,
            audience: Audience::new(scenario, &source),
            source,
            edge_fetches: 0,
            above_edges: Seconds::default(),
            origin: Seconds::default(),
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        while self.step() {}
        self.outcome()
    }

    pub(super) fn run_until(mut self, stop: &dyn Fn() -> bool) -> Option<Outcome> {
        while !stop() {
            for _ in 0..STEPS_BETWEEN_STOPS {
                if !self.step() {
                    return Some(self.outcome());
                }
            }
        }
        None
    }

    /// Lets the next thing happen; `false`: nothing is left to happen.
    fn step(&mut self) -> bool {
        let event = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let ask = self.asks.first_key_value().map(|((at, _), _)| *at);
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some(next) = [event, ask, timer].into_iter().flatten().min() else {
            return false;
        };
        self.now_us = next;
        if event == Some(next) {
            if let Some((_, event)) = self.agenda.pop_first() {
                self.happen(event);
            }
        } else if ask == Some(next) {
            if let Some(((_, viewers), count)) = self.asks.pop_first() {
                let (name, _) = self.audience.wants(&viewers, &self.source);
                self.find(viewers.edge.into(), name, Asker::Viewers(viewers), count);
            }
        } else if let Some((_, id)) = self.timers.pop_first() {
            let now = self.instant();
            if let Some(shell) = self.flights.get_mut(&id) {
                shell.deadline = None;
                shell.flight.handle_timeout(now);
            }
            self.act(id);
        }
        true
    }

    fn outcome(self) -> Outcome {
        let Audience { requests, waits, startups, stalls, stalled_us, failed, .. } = self.audience;
        Outcome {
            requests,
            edge_fetches: self.edge_fetches,
            origin_requests: self.origin.all,
            leak_ratio: self.edge_fetches as f64 / requests.max(1) as f64,
            above_edges: self.above_edges.load(self.end_us),
            origin: self.origin.load(self.end_us),
            wait_ms: waits.spread(),
            startup_ms: startups.spread(),
            stalls,
            stalled_s: stalled_us as f64 / 1e6,
            failed,
        }
    }

    fn instant(&self) -> Instant {
        self.zero + Duration::from_micros(self.now_us)
    }

    fn at(&mut self, us: u64, event: Event) {
        self.number += 1;
        self.agenda.insert((us, self.number), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives { flight, fetch, from, shield } => {
                let Some(shell) = self.flights.get(&flight) else {
                    return;
                };
                let (name, weight) = (shell.name, shell.weight);
                match shield {
                    Some(shield) => self.find(shield, name, Asker::Fetch { flight, fetch, from }, weight),
                    None => {
                        self.origin.push(self.now_us, weight);
                        let Said { headers_us, newest, bytes, end_us } =
                            self.source.answer(self.now_us, name, from, weight);
                        let mut say = |at, reply| self.at(at, Event::Reply { flight, fetch, reply });
                        let answer = Answer { good: true, newest };
                        say(headers_us, Reply::Headers { answer, age: Duration::ZERO });
                        for (part, at_us) in bytes {
                            say(at_us, Reply::Bytes(part));
                        }
                        say(end_us, Reply::End);
                    }
                }
            }
            Event::Reply { flight, fetch, reply } => self.reply(flight, fetch, reply),
            Event::Impatient { flight, waiter } => {
                let Some(shell) = self.flights.get_mut(&flight) else {
                    return;
                };
                if shell.told.is_none()
                    && let Some(waiter) = shell.waiters.remove(&waiter)
                {
                    let (node, name) = (shell.node, shell.name);
                    let alone = Waiter { waiting: None, ..waiter };
                    self.begin(node, name, None, None, alone.count, [alone].into());
                }
            }
        }
    }

    /// What `Tier::find` does, up to where it waits.
    fn find(&mut self, node: usize, name: Name, asker: Asker, count: u64) {
        let now = self.instant();
        let there = self.nodes[node].shelf.get(&name).copied();
        let state = there.map(|stored| stored.state(now));
        if let (Some(stored), Some(State::Fresh | State::Grace | State::Revalidate)) = (there, state) {
            self.whole(name, stored, asker, count, self.now_us);
            if state == Some(State::Revalidate) {
                self.join(node, name, there, None, 0);
            }
            return;
        }
        self.join(node, name, there, Some(asker), count);
    }

    fn join(&mut self, node: usize, name: Name, stale: Option<Stored>, asker: Option<Asker>, count: u64) {
        let now = self.instant();
        let key = name.key(self.source.parts);
        let usable = |verdict: &Verdict| verdict.state(now) == State::Fresh;
        let joined = self.nodes[node].table.join(&key, usable, || None::<()>);
        let waiter = |waiting| {
            asker.map(|asker| Waiter { asker, count, since_us: self.now_us, waiting: Some(waiting) })
        };
        match joined {
            Joined::Yours(permit, waiting) => {
                let waiters = waiter(waiting).into_iter().collect();
                let id = self.begin(node, name, Some(permit), stale, 1, waiters);
                // One that is over already has left the table, too.
                if self.flights.contains_key(&id) {
                    self.nodes[node].names.insert(name, id);
                }
            }
            Joined::Waiting(waiting) => {
                let (Some(waiter), Some(&id)) = (waiter(waiting), self.nodes[node].names.get(&name)) else {
                    return;
                };
                let Some(shell) = self.flights.get_mut(&id) else {
                    return;
                };
                if let Some(told) = shell.told {
                    return self.hear(id, told, waiter);
                }
                self.number += 1;
                let number = self.number;
                shell.waiters.insert(number, waiter);
                if self.scenario.rule == Rule::Flood {
                    let at = self.now_us + shell.patience.as_micros() as u64;
                    self.at(at, Event::Impatient { flight: id, waiter: number });
                }
            }
            // Neither is looked for nor bounded here.
            Joined::There(()) | Joined::Full => {}
        }
    }

    fn begin(
        &mut self,
        node: usize,
        name: Name,
        permit: Option<Permit<Verdict>>,
        stale: Option<Stored>,
        weight: u64,
        waiters: Vec<Waiter>,
    ) -> u64 {
        let is_shield = self.nodes[node].is_shield;
        let class = self.classes[usize::from(is_shield)].class(name);
        let adapted =
            class.adaptive.and_then(|adaptive| adaptive.timeout(self.nodes[node].paces.get(&class.name)?));
        let patience = adapted.unwrap_or(class.blocking_timeout);
        let max_fetches = if self.scenario.rule == Rule::Promote { class.max_fetches } else { 1 };
        let rules = Rules { blocking_timeout: patience, give_up: class.give_up, max_fetches };
        let candidates = if is_shield { 1 } else { usize::from(self.scenario.shields).max(1) };
        let flight = Flight::new(self.instant(), rules, candidates);
        self.number += 1;
        let id = self.number;
        let mut shell = InFlight {
            node,
            name,
            flight,
            permit,
            weight,
            patience,
            waiters: BTreeMap::new(),
            open: BTreeMap::new(),
            headers: None,
            source: None,
            told: None,
            through: None,
            readers: Vec::new(),
            stale,
            deadline: None,
        };
        for waiter in waiters {
            self.number += 1;
            shell.waiters.insert(self.number, waiter);
        }
        self.flights.insert(id, shell);
        self.act(id);
        id
    }

    /// Does what a flight says.
    fn act(&mut self, id: u64) {
        while let Some(shell) = self.flights.get_mut(&id) {
            let Some(action) = shell.flight.poll() else {
                break;
            };
            match action {
                Action::Start { fetch, candidate, .. } => self.send(id, fetch, candidate, 0),
                Action::Resume { fetch, candidate, .. } => {
                    let from = shell.through.map_or(0, |through| through + 1);
                    self.send(id, fetch, candidate, from);
                }
                Action::Cancel { fetch } => self.ended(id, fetch, true),
                Action::Serve { fetch } => {
                    shell.source = Some(fetch);
                    self.serve(id);
                }
                Action::Switch { fetch } => shell.source = Some(fetch),
                // Whether it is asked conditionally makes no difference to how often.
                Action::Freshen { .. } => {}
                Action::Refuse(_) => self.refuse(id),
                Action::Complete => self.complete(id),
                Action::Break => self.broke(id),
            }
        }
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let deadline = shell.flight.poll_timeout().map(|at| (at - self.zero).as_micros() as u64);
        if let Some(before) = shell.deadline.filter(|before| Some(*before) != deadline) {
            self.timers.remove(&(before, id));
        }
        shell.deadline = deadline;
        match deadline {
            Some(at) => {
                self.timers.insert((at, id));
            }
            None => {
                let (node, name) = (shell.node, shell.name);
                self.flights.remove(&id);
                let names = &mut self.nodes[node].names;
                if names.get(&name) == Some(&id) {
                    names.remove(&name);
                }
            }
        }
    }

    fn send(&mut self, id: u64, fetch: FetchId, candidate: usize, from: u64) {
        let now_us = self.now_us;
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        shell.open.insert(fetch, now_us);
        let (weight, is_shield) = (shell.weight, self.nodes[shell.node].is_shield);
        if !is_shield {
            self.edge_fetches += weight;
            self.above_edges.push(now_us, weight);
        }
        // An origin's own distance is in its latency.
        let (shield, hop_us) = match !is_shield && self.scenario.shields > 0 {
            true => (Some(usize::from(self.scenario.edges) + candidate), self.half_hop()),
            false => (None, 0),
        };
        self.at(now_us + hop_us, Event::Arrives { flight: id, fetch, from, shield });
    }

    fn half_hop(&self) -> u64 {
        self.scenario.hop.as_micros() as u64 / 2
    }

    /// A fetch has its first byte, or ends without one.
    fn ended(&mut self, id: u64, fetch: FetchId, cancelled: bool) {
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let sent_us = match cancelled {
            true => shell.open.remove(&fetch),
            false => shell.open.get(&fetch).copied(),
        };
        let Some(sent_us) = sent_us.filter(|_| shell.source != Some(fetch)) else {
            return;
        };
        let took = Duration::from_micros(self.now_us - sent_us);
        let (node, name, patience) = (shell.node, shell.name, shell.patience);
        let class = self.classes[usize::from(self.nodes[node].is_shield)].class(name);
        if class.adaptive.is_some() && (!cancelled || took >= patience) {
            self.nodes[node].paces.entry(class.name.clone()).or_default().push(took);
        }
    }

    fn reply(&mut self, id: u64, fetch: FetchId, reply: Reply) {
        let now = self.instant();
        let Some(shell) = self.flights.get_mut(&id).filter(|shell| shell.open.contains_key(&fetch)) else {
            return;
        };
        match reply {
            Reply::Headers { answer, age } if shell.told.is_none() => {
                shell.headers = Some((answer, age));
                self.ended(id, fetch, false);
                if let Some(shell) = self.flights.get_mut(&id) {
                    shell.flight.handle_headers(now, fetch, true);
                }
            }
            // Of one that resumes: its bytes say when it is there.
            Reply::Headers { .. } => {}
            Reply::Bytes(through) if shell.through.is_none_or(|there| through > there) => {
                if shell.source == Some(fetch) {
                    shell.flight.handle_bytes(now, fetch);
                } else {
                    shell.flight.handle_resumed(now, fetch);
                }
                shell.through = Some(through);
                self.read(id);
            }
            Reply::Bytes(_) => {}
            Reply::End => {
                shell.open.remove(&fetch);
                shell.flight.handle_end(fetch);
            }
            Reply::Fail(failure) => {
                shell.open.remove(&fetch);
                shell.flight.handle_failure(now, fetch, failure);
            }
        }
        self.act(id);
    }

    /// The answer has come: everyone who waits is told.
    fn serve(&mut self, id: u64) {
        let now = self.instant();
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let Some((answer, age)) = shell.headers.take() else {
            return;
        };
        let classes = &self.classes[usize::from(self.nodes[shell.node].is_shield)];
        let freshness = classes.freshness(shell.name, age);
        self.tell(id, Stored { answer, received: now, freshness, grace_until: None });
    }

    fn tell(&mut self, id: u64, verdict: Stored) {
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        shell.told = Some(verdict);
        if let Some(permit) = &shell.permit {
            if verdict.freshness.keep().is_zero() {
                permit.leave();
            }
            permit.tell(verdict);
        }
        for (_, waiter) in std::mem::take(&mut shell.waiters) {
            self.hear(id, verdict, waiter);
        }
    }

    /// One who waited hears the verdict: what the table says, if it is shared.
    fn hear(&mut self, id: u64, told: Stored, waiter: Waiter) {
        let Waiter { asker, count, since_us, waiting } = waiter;
        let mut cx = Context::from_waker(Waker::noop());
        let heard = match waiting.map(|mut waiting| Pin::new(&mut waiting).poll(&mut cx)) {
            Some(Poll::Ready(Some(verdict))) => verdict,
            Some(_) | None => told,
        };
        if !heard.answer.good {
            return self.refused(asker, count, since_us);
        }
        if let Asker::Fetch { flight, fetch, .. } = asker {
            let age = self.instant().saturating_duration_since(heard.received);
            self.say(flight, fetch, Reply::Headers { answer: heard.answer, age });
        }
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        shell.readers.push((asker, count, since_us));
        self.read(id);
    }

    /// Readers of a body get what they want of it, or what there is.
    fn read(&mut self, id: u64) {
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let (name, through) = (shell.name, shell.through);
        let Some(answer) = shell.told.map(|told| told.answer) else {
            return;
        };
        for (asker, count, since_us) in std::mem::take(&mut shell.readers) {
            match asker {
                Asker::Viewers(viewers) => {
                    let (_, wanted) = self.audience.wants(&viewers, &self.source);
                    let is_there = through.is_some_and(|through| through >= wanted);
                    if is_there || !matches!(name, Name::Segment(..)) {
                        self.answered(viewers, count, since_us, answer);
                        continue;
                    }
                }
                Asker::Fetch { flight, fetch, from } => {
                    if let Some(through) = through.filter(|through| *through >= from) {
                        self.say(flight, fetch, Reply::Bytes(through));
                    }
                }
            }
            if let Some(shell) = self.flights.get_mut(&id) {
                shell.readers.push((asker, count, since_us));
            }
        }
    }

    /// A complete object is there for one who asks.
    fn whole(&mut self, name: Name, stored: Stored, asker: Asker, count: u64, since_us: u64) {
        match asker {
            _ if !stored.answer.good => self.refused(asker, count, since_us),
            Asker::Viewers(viewers) => self.answered(viewers, count, since_us, stored.answer),
            Asker::Fetch { flight, fetch, .. } => {
                let age = self.instant().saturating_duration_since(stored.received);
                self.say(flight, fetch, Reply::Headers { answer: stored.answer, age });
                if let Name::Segment(_, number) = name {
                    self.say(flight, fetch, Reply::Bytes(self.source.last_part(number)));
                }
                self.say(flight, fetch, Reply::End);
            }
        }
    }

    /// To a flight of an edge.
    fn say(&mut self, flight: u64, fetch: FetchId, reply: Reply) {
        self.at(self.now_us + self.half_hop(), Event::Reply { flight, fetch, reply });
    }

    fn answered(&mut self, viewers: Viewers, count: u64, since_us: u64, answer: Answer) {
        let next = self.audience.answered(self.now_us, since_us, viewers, count, answer, &self.source);
        for (at_us, viewers) in next {
            self.ask(at_us, viewers, count);
        }
    }

    fn ask(&mut self, at_us: u64, viewers: Viewers, count: u64) {
        if at_us < self.end_us {
            *self.asks.entry((at_us, viewers)).or_default() += count;
        }
    }

    fn refused(&mut self, asker: Asker, count: u64, since_us: u64) {
        match asker {
            Asker::Viewers(viewers) => {
                self.answered(viewers, count, since_us, Answer { good: false, newest: 0 });
            }
            Asker::Fetch { flight, fetch, .. } => self.say(flight, fetch, Reply::Fail(Failure::Unavailable)),
        }
    }

    /// No answer: a stale copy, or the error, which is remembered for a while.
    fn refuse(&mut self, id: u64) {
        let now = self.instant();
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let (node, name, is_shared) = (shell.node, shell.name, shell.permit.is_some());
        let negative_ttl = self.classes[usize::from(self.nodes[node].is_shield)].class(name).negative_ttl;
        let verdict = match shell.stale.take().filter(|stale| stale.state(now) != State::Gone) {
            Some(stale) => Stored { grace_until: Some(now + negative_ttl), ..stale },
            None => {
                let zero = Duration::ZERO;
                let freshness = Freshness {
                    age: zero,
                    fresh: negative_ttl,
                    while_revalidate: zero,
                    if_error: zero,
                    confirm: zero,
                };
                let answer = Answer { good: false, newest: 0 };
                Stored { answer, received: now, freshness, grace_until: None }
            }
        };
        let last = match name {
            Name::Segment(_, number) => Some(self.source.last_part(number)),
            _ => None,
        };
        shell.through = last.filter(|_| verdict.answer.good);
        self.tell(id, verdict);
        if verdict.answer.good {
            self.read_to_the_end(id);
        }
        if is_shared && (verdict.answer.good || !negative_ttl.is_zero()) {
            self.nodes[node].shelf.insert(name, verdict);
        }
    }

    fn complete(&mut self, id: u64) {
        let now = self.instant();
        self.read_to_the_end(id);
        let Some(shell) = self.flights.get_mut(&id) else {
            return;
        };
        let (node, name) = (shell.node, shell.name);
        let kept =
            shell.told.filter(|told| shell.permit.is_some() && now < told.received + told.freshness.keep());
        if let Some(kept) = kept {
            self.nodes[node].shelf.insert(name, kept);
        }
    }

    fn read_to_the_end(&mut self, id: u64) {
        self.read(id);
        let readers = self.flights.get_mut(&id).map(|shell| std::mem::take(&mut shell.readers));
        for (asker, count, _) in readers.into_iter().flatten() {
            match asker {
                Asker::Fetch { flight, fetch, .. } => self.say(flight, fetch, Reply::End),
                Asker::Viewers(viewers) => self.broken(viewers, count),
            }
        }
    }

    /// The body broke: its readers notice.
    fn broke(&mut self, id: u64) {
        let readers = self.flights.get_mut(&id).map(|shell| std::mem::take(&mut shell.readers));
        for (asker, count, _) in readers.into_iter().flatten() {
            match asker {
                Asker::Fetch { flight, fetch, .. } => self.say(flight, fetch, Reply::Fail(Failure::Broken)),
                Asker::Viewers(viewers) => self.broken(viewers, count),
            }
        }
    }

    fn broken(&mut self, viewers: Viewers, count: u64) {
        let (at_us, viewers) = self.audience.broken(self.now_us, viewers, count);
        self.ask(at_us, viewers, count);
    }
}
