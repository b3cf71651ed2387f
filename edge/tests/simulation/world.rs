//! A tier in virtual time: the real flights, the real table of names and real growing objects, between viewers and
//! upstreams that are made up. What the world adds is what the shell adds: it carries actions out and events back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edge::coalesce::{Action, Cause, Failure, FetchId, Flight, Rules};
use edge::handover::{Joined, Permit, Table, Waiting};
use media::Object;
use media::object::{End, Writer};
use prometheus_client::metrics::gauge::Gauge;

/// How often a viewer tries again after a flight that was lost, as `Tier::find` does.
const ATTEMPTS: u32 = 2;

/// How long failures are remembered, in milliseconds.
const NEGATIVE_TTL: u64 = 500;

/// The bytes of every object.
pub(crate) fn whole() -> Bytes {
    (0..4000_u32).map(|n| (n % 251) as u8).collect::<Vec<u8>>().into()
}

/// A request to an upstream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// How many came before it.
    pub(crate) nth: u32,
    /// Of the body that is there, when the rest is asked for.
    pub(crate) from: Option<usize>,
}

/// What an upstream does, each at so many milliseconds after the request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// `ttl` in milliseconds; 0: `no-store`. `tagged`: with a strong validator.
    Headers {
        status: u16,
        tagged: bool,
        ttl: u64,
    },
    Bytes(Range<usize>),
    End,
    Fail(Failure),
}

pub(crate) type Upstream = Box<dyn FnMut(Asked) -> Vec<(u64, Reply)>>;

/// What happens from outside.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Arrive {
        name: u32,
    },
    /// A viewer loses patience.
    Leave {
        viewer: usize,
    },
    /// The push that promised the name is lost, and it promises no more.
    PushLost {
        name: u32,
    },
    /// A push brings the name, or seizes it and is lost before it says anything.
    Pushed {
        name: u32,
        whole: bool,
    },
    Purge,
    Reply {
        flight: u64,
        fetch: FetchId,
        reply: Reply,
    },
}

/// What a viewer was given.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) status: u16,
    pub(crate) body: Object,
    fresh_until: u64,
}

pub(crate) struct Viewer {
    name: u32,
    pub(crate) arrived: u64,
    /// When it joined the flight that it waits for, or waited for last.
    joined: u64,
    attempts: u32,
    waiting: Option<Waiting<Verdict>>,
    waker: Waker,
    polls: u32,
    pub(crate) left: bool,
    /// When it was answered, and with what; `None`: its flights were lost.
    pub(crate) answered: Option<(u64, Option<Verdict>)>,
}

struct Woken(Arc<Mutex<Vec<usize>>>, usize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.lock().unwrap().push(self.1);
    }
}

struct Shell {
    name: u32,
    flight: Flight,
    permit: Permit<Verdict>,
    open: BTreeMap<FetchId, bool>,
    source: Option<FetchId>,
    body: Option<(Writer, Verdict, u64)>,
    /// Requests that were not for walking on.
    fetches: u32,
}

pub(crate) struct World {
    zero: Instant,
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    rules: Rules,
    candidates: usize,
    upstream: Upstream,
    /// Names that a push has promised.
    pub(crate) promised: Vec<u32>,
    table: Table<Verdict>,
    pub(crate) names: Gauge,
    shelf: BTreeMap<u32, Verdict>,
    flights: BTreeMap<u64, Shell>,
    pub(crate) viewers: Vec<Viewer>,
    woken: Arc<Mutex<Vec<usize>>>,
    /// Requests to upstreams, in all.
    pub(crate) fetches: u32,
    pub(crate) most_at_once: usize,
    whole: Bytes,
}

impl World {
    pub(crate) fn new(rules: Rules, candidates: usize, upstream: Upstream) -> World {
        let names = Gauge::default();
        World {
            zero: Instant::now(),
            now: 0,
            events: BTreeMap::new(),
            number: 0,
            rules,
            candidates,
            upstream,
            promised: Vec::new(),
            table: Table::new(100, names.clone()),
            names,
            shelf: BTreeMap::new(),
            flights: BTreeMap::new(),
            viewers: Vec::new(),
            woken: Arc::default(),
            fetches: 0,
            most_at_once: 0,
            whole: whole(),
        }
    }

    pub(crate) fn at(&mut self, ms: u64, event: Event) {
        self.number += 1;
        self.events.insert((ms, self.number), event);
    }

    /// Lets everything happen.
    pub(crate) fn run(&mut self) {
        loop {
            let timer = self
                .flights
                .iter()
                .filter_map(|(id, shell)| Some((shell.flight.poll_timeout()?, *id)))
                .min()
                .map(|(at, id)| ((at - self.zero).as_millis() as u64, id));
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            match (timer, event) {
                (Some((at, id)), event) if event.is_none_or(|event| at < event) => {
                    assert!(at >= self.now, "a deadline in the past");
                    self.now = at;
                    let now = self.instant();
                    self.flights.get_mut(&id).unwrap().flight.handle_timeout(now);
                    self.act(id);
                }
                (_, Some(at)) => {
                    self.now = at;
                    let (_, event) = self.events.pop_first().unwrap();
                    self.happen(event);
                }
                _ => break,
            }
            self.wake();
        }
        assert!(self.flights.is_empty(), "flights without an end");
        assert_eq!(self.names.get(), 0, "names without a flight");
    }

    fn instant(&self) -> Instant {
        self.zero + Duration::from_millis(self.now)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { name } => {
                let viewer = self.viewers.len();
                self.viewers.push(Viewer {
                    name,
                    arrived: self.now,
                    joined: self.now,
                    attempts: 0,
                    waiting: None,
                    waker: Waker::from(Arc::new(Woken(self.woken.clone(), viewer))),
                    polls: 0,
                    left: false,
                    answered: None,
                });
                self.find(viewer);
            }
            Event::Leave { viewer } => {
                if let Some(viewer) = self.viewers.get_mut(viewer).filter(|viewer| viewer.answered.is_none())
                {
                    viewer.waiting = None;
                    viewer.left = true;
                }
            }
            Event::PushLost { name } => {
                self.promised.retain(|promised| *promised != name);
                let now = self.instant();
                let theirs = self.flights.iter().filter(|(_, shell)| shell.name == name);
                for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.flights.get_mut(&id).unwrap().flight.handle_push_lost(now);
                    self.act(id);
                }
            }
            Event::Pushed { name, whole } => self.pushed(name, whole),
            Event::Purge => {
                self.table.purge(|_| true);
                self.shelf.clear();
            }
            Event::Reply { flight, fetch, reply } => self.reply(flight, fetch, reply),
        }
    }

    /// What `Tier::find` does, up to where it waits.
    fn find(&mut self, viewer: usize) {
        let (now, name) = (self.now, self.viewers[viewer].name);
        let fresh = |verdict: &Verdict| now < verdict.fresh_until;
        if self.viewers[viewer].attempts == ATTEMPTS {
            self.viewers[viewer].answered = Some((now, None));
            return;
        }
        self.viewers[viewer].attempts += 1;
        self.viewers[viewer].joined = now;
        let there = self.shelf.get(&name).filter(|verdict| fresh(verdict)).cloned();
        let waiting = match self.table.join(&format!("/{name}"), fresh, || there) {
            Joined::There(verdict) => {
                self.viewers[viewer].answered = Some((now, Some(verdict)));
                return;
            }
            Joined::Waiting(waiting) => waiting,
            Joined::Yours(permit, waiting) => {
                let promised = self.promised.contains(&name);
                let begin = if promised { Flight::promised } else { Flight::new };
                let flight = begin(self.instant(), self.rules, self.candidates);
                self.number += 1;
                let id = self.number;
                let (open, fetches) = (BTreeMap::new(), 0);
                self.flights
                    .insert(id, Shell { name, flight, permit, open, source: None, body: None, fetches });
                self.act(id);
                waiting
            }
            Joined::Full => panic!("there are not so many names"),
        };
        self.viewers[viewer].waiting = Some(waiting);
        self.listen(viewer);
    }

    /// Polls what a viewer waits for.
    fn listen(&mut self, index: usize) {
        let viewer = &mut self.viewers[index];
        let Some(waiting) = &mut viewer.waiting else {
            return;
        };
        viewer.polls += 1;
        let mut cx = Context::from_waker(&viewer.waker);
        match Pin::new(waiting).poll(&mut cx) {
            Poll::Pending => {}
            Poll::Ready(Some(verdict)) => {
                viewer.waiting = None;
                viewer.answered = Some((self.now, Some(verdict)));
                assert!(viewer.polls <= 2 * viewer.attempts, "woken for nothing");
                let waited = self.now - viewer.joined;
                assert!(waited <= self.rules.give_up.as_millis() as u64, "waited {waited} ms");
            }
            Poll::Ready(None) => {
                viewer.waiting = None;
                self.find(index);
            }
        }
    }

    fn wake(&mut self) {
        loop {
            let woken = std::mem::take(&mut *self.woken.lock().unwrap());
            if woken.is_empty() {
                return;
            }
            for viewer in woken {
                self.listen(viewer);
            }
        }
    }

    fn pushed(&mut self, name: u32, whole: bool) {
        let Some(permit) = self.table.seize(&format!("/{name}")) else {
            return;
        };
        if whole {
            let verdict = self.verdict(200, Object::complete(self.whole.clone()), 1000);
            assert!(permit.tell(verdict.clone()));
            self.shelf.insert(name, verdict);
        }
        drop(permit);
        // The flight that lost the name hears of it.
        let mut cx = Context::from_waker(Waker::noop());
        let theirs = self.flights.iter().filter(|(_, shell)| shell.permit.poll_seized(&mut cx).is_ready());
        for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.flights.get_mut(&id).unwrap().flight.handle_superseded();
            self.act(id);
        }
    }

    fn verdict(&self, status: u16, body: Object, ttl: u64) -> Verdict {
        Verdict { status, body, fresh_until: self.now + ttl }
    }

    fn reply(&mut self, id: u64, fetch: FetchId, reply: Reply) {
        let now = self.instant();
        let Some(shell) = self.flights.get_mut(&id).filter(|shell| shell.open.contains_key(&fetch)) else {
            return;
        };
        match reply {
            Reply::Headers { status, tagged, ttl } => {
                let (writer, body) = Object::growing();
                let fresh_until = self.now + ttl;
                shell.body = Some((writer, Verdict { status, body, fresh_until }, ttl));
                shell.flight.handle_headers(now, fetch, tagged && status == 200);
            }
            Reply::Bytes(range) => {
                if shell.source != Some(fetch) {
                    shell.flight.handle_resumed(now, fetch);
                    self.act(id);
                }
                let shell = self.flights.get_mut(&id).unwrap();
                let (writer, _, _) = shell.body.as_mut().unwrap();
                assert_eq!(writer.object().progress().len, range.start as u64, "bytes at the wrong place");
                writer.push(self.whole.slice(range));
                shell.flight.handle_bytes(now, fetch);
            }
            Reply::End => shell.flight.handle_end(fetch),
            Reply::Fail(failure) => {
                shell.open.remove(&fetch);
                shell.flight.handle_failure(now, fetch, failure);
            }
        }
        self.act(id);
    }

    /// Does what a flight says.
    fn act(&mut self, id: u64) {
        loop {
            let shell = self.flights.get_mut(&id).unwrap();
            let Some(action) = shell.flight.poll() else {
                break;
            };
            match action {
                Action::Start { fetch, cause, .. } => self.ask(id, fetch, None, cause),
                Action::Resume { fetch, cause, .. } => {
                    let from = shell.body.as_ref().unwrap().0.object().progress().len as usize;
                    self.ask(id, fetch, Some(from), cause);
                }
                Action::Cancel { fetch } => {
                    assert!(shell.open.remove(&fetch).is_some(), "it was not open");
                }
                Action::Serve { fetch } => {
                    shell.source = Some(fetch);
                    let (_, verdict, ttl) = shell.body.as_ref().unwrap();
                    if *ttl == 0 {
                        shell.permit.leave();
                    }
                    if !shell.permit.tell(verdict.clone()) {
                        shell.flight.handle_superseded();
                    }
                }
                Action::Switch { fetch } => shell.source = Some(fetch),
                Action::Freshen { .. } => panic!("nothing was there"),
                Action::Refuse(refusal) => {
                    assert!(shell.open.is_empty(), "fetches left open");
                    let status = refusal.status().as_u16();
                    let name = shell.name;
                    let verdict = self.verdict(status, Object::complete(Bytes::new()), NEGATIVE_TTL);
                    let shell = &self.flights[&id];
                    if shell.permit.tell(verdict.clone()) && !shell.permit.purged() {
                        self.shelf.insert(name, verdict);
                    }
                }
                Action::Complete => {
                    let (writer, verdict, ttl) = shell.body.take().unwrap();
                    shell.open.clear();
                    writer.finish();
                    if ttl > 0 && !shell.permit.purged() {
                        self.shelf.insert(shell.name, verdict);
                    }
                }
                // The writer goes unfinished.
                Action::Break => shell.body = None,
            }
        }
        let shell = &self.flights[&id];
        if shell.flight.poll_timeout().is_none() {
            assert!(shell.open.is_empty(), "fetches left open");
            self.flights.remove(&id);
        }
    }

    fn ask(&mut self, id: u64, fetch: FetchId, from: Option<usize>, cause: Cause) {
        let shell = self.flights.get_mut(&id).unwrap();
        shell.open.insert(fetch, true);
        shell.fetches += u32::from(cause != Cause::Walk);
        let most = self.rules.max_fetches;
        assert!(shell.open.len() <= most as usize, "{} at once", shell.open.len());
        assert!(shell.fetches <= most + 1, "{} for one flight", shell.fetches);
        // One flight of a name at most has told nobody yet.
        let at_once = self.flights.values().map(|shell| shell.open.len()).sum();
        self.most_at_once = self.most_at_once.max(at_once);
        let replies = (self.upstream)(Asked { nth: self.fetches, from });
        self.fetches += 1;
        for (after, reply) in replies {
            self.at(self.now + after, Event::Reply { flight: id, fetch, reply });
        }
    }

    /// How many got the whole object, a broken one, and each status; nobody is left out.
    pub(crate) fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut outcomes = BTreeMap::new();
        for viewer in &self.viewers {
            let outcome = match &viewer.answered {
                _ if viewer.left => "left".to_owned(),
                Some((_, None)) => "lost".to_owned(),
                Some((_, Some(Verdict { status: 200, body, .. }))) => match body.progress().end {
                    End::Complete if body.to_bytes().unwrap() == self.whole => "whole".to_owned(),
                    End::Failed => "broken".to_owned(),
                    _ => panic!("a short body that passes for a whole one"),
                },
                Some((_, Some(Verdict { status, .. }))) => status.to_string(),
                None => panic!("a viewer of {} that nobody told", viewer.arrived),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }
}
