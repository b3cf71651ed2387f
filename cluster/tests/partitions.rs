//! Ownership under partitions: the real rules of claims and leases, on a store and a network in virtual time, driven by a
//! seed. At no time do two nodes write one epoch; the epochs that the store holds only grow; and who has lost the owner
//! and reaches the store gets the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use cluster::claim::{Claim, Refusal, Step};
use cluster::lease::{Grant, Me, News, Ownership};
use cluster::record::{self, NodeRecord, Role, StreamRecord, node_key, stream_key};
use cluster::store::tree::Tree;
use cluster::store::{Change, Entry, LeaseId, Outcome, Txn};

const STREAMS: [&str; 2] = ["a", "b"];
const NODES: usize = 3;
const TTL: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a node asked the store for, and has not heard of yet.
struct Asked {
    /// When the store does it, and when the answer comes; a request may be lost before the one and after the other.
    done_at: u64,
    heard_at: u64,
    lost_before: bool,
    lost_after: bool,
    what: What,
    answer: Option<Heard>,
}

enum What {
    Get(String),
    Claim(Txn),
    Write(String, Txn),
}

enum Heard {
    Found(Option<Entry>),
    Outcome(Outcome),
}

struct Claiming {
    claim: Claim,
    stream: &'static str,
    lost: bool,
}

struct Node {
    name: String,
    life: u64,
    ownership: Ownership,
    lease: Option<LeaseId>,
    /// Nothing passes between it and the store until then.
    cut_until: u64,
    /// It does nothing at all until then.
    frozen_until: u64,
    /// The store's changes up to here were heard; they come late.
    heard: u64,
    asked: Vec<Asked>,
    claiming: Option<Claiming>,
    grants: BTreeMap<&'static str, Grant>,
    sessions: u64,
}

struct World {
    random: Random,
    seed: u64,
    began: Instant,
    /// Milliseconds.
    now: u64,
    tree: Tree,
    nodes: Vec<Node>,
    /// Who wrote which epoch of a stream.
    writers: BTreeMap<(&'static str, u64), (String, u64)>,
    highest: BTreeMap<&'static str, u64>,
    granted: u64,
    elsewhere: u64,
    fenced: u64,
    taken_over: u64,
}

fn node(name: &str, life: u64) -> Node {
    let me = Me { name: name.into(), instance: life, address: format!("{name}:1") };
    Node {
        name: name.into(),
        life,
        ownership: Ownership::new(me, Duration::from_secs(60)),
        lease: None,
        cut_until: 0,
        frozen_until: 0,
        heard: 0,
        asked: Vec::new(),
        claiming: None,
        grants: BTreeMap::new(),
        sessions: 0,
    }
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            seed,
            began: Instant::now(),
            now: 0,
            tree: Tree::default(),
            nodes: (0..NODES).map(|n| node(&format!("o{n}"), n as u64 + 1)).collect(),
            writers: BTreeMap::new(),
            highest: BTreeMap::new(),
            granted: 0,
            elsewhere: 0,
            fenced: 0,
            taken_over: 0,
        }
    }

    fn instant(&self) -> Instant {
        self.began + Duration::from_millis(self.now)
    }

    /// Clocks of nodes differ by some seconds.
    fn wall(&self, at: usize) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + self.now + 2000 * at as u64)
    }

    fn step(&mut self) {
        self.now += TICK.as_millis() as u64;
        let instant = self.instant();
        self.tree.handle_timeout(instant);
        for at in 0..self.nodes.len() {
            self.trouble(at);
            self.carry(at);
            if self.nodes[at].frozen_until <= self.now {
                self.attend(at);
                self.publish(at);
            }
        }
        self.check();
    }

    /// Cuts, freezes and kills.
    fn trouble(&mut self, at: usize) {
        let now = self.now;
        if self.random.one_in(200) {
            self.nodes[at].cut_until = now + self.random.below(15_000);
        }
        if self.random.one_in(300) {
            self.nodes[at].frozen_until = now + self.random.below(10_000);
        }
        if self.random.one_in(600) {
            let (name, life) = (self.nodes[at].name.clone(), self.nodes[at].life + NODES as u64);
            self.nodes[at] = node(&name, life);
        }
    }

    /// The store does what reached it.
    fn carry(&mut self, at: usize) {
        let (now, cut) = (self.now, self.nodes[at].cut_until > self.now);
        for asked in &mut self.nodes[at].asked {
            if asked.done_at > now || asked.answer.is_some() || asked.lost_before {
                continue;
            }
            if cut {
                asked.lost_before = true;
                continue;
            }
            asked.answer = Some(match &asked.what {
                What::Get(key) => Heard::Found(self.tree.get(key)),
                What::Claim(txn) | What::Write(_, txn) => Heard::Outcome(self.tree.txn(txn.clone()).unwrap()),
            });
        }
    }

    fn ask(&mut self, at: usize, what: What) {
        let done_at = self.now + self.random.below(400);
        let heard_at = done_at + self.random.below(400);
        let (lost_before, lost_after) = (self.random.one_in(20), self.random.one_in(20));
        self.nodes[at].asked.push(Asked { done_at, heard_at, lost_before, lost_after, what, answer: None });
    }

    /// A node hears answers, its watch and its lease, and writes what it must.
    fn attend(&mut self, at: usize) {
        let cut = self.nodes[at].cut_until > self.now;
        let (heard, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.nodes[at].asked)
            .into_iter()
            .partition(|asked| asked.heard_at <= self.now);
        self.nodes[at].asked = waiting;
        for Asked { what, answer, lost_after, .. } in heard {
            let answer = answer.filter(|_| !lost_after && !cut);
            match (what, answer) {
                (What::Write(stream, txn), answer) => {
                    let outcome = match &answer {
                        Some(Heard::Outcome(outcome)) => Some(outcome),
                        _ => None,
                    };
                    let news = self.nodes[at].ownership.handle_written(&stream, &txn, outcome);
                    self.fenced += u64::from(news == News::Fenced);
                }
                // The claimant hears nothing, and tries again.
                (_, None) => self.nodes[at].claiming = None,
                (_, Some(answer)) => {
                    let Some(mut claiming) = self.nodes[at].claiming.take() else { continue };
                    let wall = self.wall(at);
                    let ownership = &mut self.nodes[at].ownership;
                    let step = match answer {
                        Heard::Found(found) => claiming.claim.handle_found(ownership, found, wall),
                        Heard::Outcome(outcome) => claiming.claim.handle_outcome(ownership, outcome, wall),
                    };
                    self.go_on(at, claiming, step);
                }
            }
        }
        if !cut {
            self.keep_lease(at);
            // News comes late, and all at once.
            if self.random.one_in(6) {
                self.listen(at);
            }
        }
        let wall = self.wall(at);
        if let Some((stream, txn)) = self.nodes[at].ownership.poll_write(wall) {
            self.ask(at, What::Write(stream, txn));
        }
    }

    fn keep_lease(&mut self, at: usize) {
        let instant = self.instant();
        let alive = self.nodes[at].lease.is_some_and(|lease| self.tree.keep_alive(instant, lease));
        if alive {
            return;
        }
        let lease = self.tree.grant(instant, TTL).unwrap();
        let node = &mut self.nodes[at];
        node.lease = Some(lease);
        let record = NodeRecord {
            name: node.name.clone(),
            role: Role::Origin,
            address: String::new(),
            instance: node.life,
            capacity: 0,
            load: 0,
            draining: false,
        };
        self.tree.txn(Txn::new().put(record.key(), record::text(&record), Some(lease))).unwrap();
        let listing = self.tree.list(record::STREAMS);
        let read = |entry: &Entry| {
            let stream = entry.key.strip_prefix(record::STREAMS).unwrap().to_owned();
            (stream, (record::read(&entry.key, &entry.value).unwrap(), entry.revision))
        };
        let node = &mut self.nodes[at];
        let found = listing.entries.iter().map(read).collect();
        self.fenced += node.ownership.reconcile(found, listing.revision).len() as u64;
        node.heard = listing.revision;
    }

    fn listen(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        for change in self.tree.changes(record::STREAMS, node.heard).unwrap() {
            let revision = change.revision();
            let (key, found) = match &change {
                Change::Put(entry) => {
                    (&entry.key, Some((record::read(&entry.key, &entry.value).unwrap(), revision)))
                }
                Change::Delete { key, .. } => (key, None),
            };
            let stream = key.strip_prefix(record::STREAMS).unwrap();
            let news = node.ownership.handle_change(stream, found, revision);
            self.fenced += u64::from(news == News::Fenced);
        }
        node.heard = self.tree.revision();
    }

    /// Broadcasters come, runs begin anew, and everybody who may writes.
    fn publish(&mut self, at: usize) {
        if self.nodes[at].claiming.is_none() && self.random.one_in(30) {
            let stream = STREAMS[self.random.below(2) as usize];
            // A POP that has lost an origin says so; of one in the way nobody knows whether it is there.
            let lost = if self.random.one_in(2) {
                vec![format!("o{}", self.random.below(NODES as u64))]
            } else {
                Vec::new()
            };
            self.begin(at, stream, lost);
        }
        for stream in STREAMS {
            if self.random.one_in(40)
                && let Some(grant) = self.nodes[at].grants.get(stream).cloned()
                && let Some(renewed) = self.nodes[at].ownership.renew(&grant)
            {
                self.nodes[at].grants.insert(stream, renewed);
            }
            if self.random.one_in(400)
                && let Some(grant) = self.nodes[at].grants.remove(stream)
            {
                self.nodes[at].ownership.forget(&grant);
            }
        }
        let node = &self.nodes[at];
        for (stream, grant) in node.grants.iter().filter(|(_, grant)| node.ownership.holds(grant)) {
            let writer = (node.name.clone(), node.life);
            let first = self.writers.entry((*stream, grant.epoch)).or_insert_with(|| writer.clone());
            assert_eq!(
                *first, writer,
                "seed {}: two nodes write epoch {} of {stream}",
                self.seed, grant.epoch
            );
        }
    }

    fn begin(&mut self, at: usize, stream: &'static str, lost: Vec<String>) {
        let node = &mut self.nodes[at];
        node.sessions += 1;
        let session = format!("{}-{}-{}", node.name, node.life, node.sessions);
        let said = !lost.is_empty();
        let mut claim = Claim::new(stream, &session, lost);
        let step = claim.begin(&mut node.ownership);
        self.go_on(at, Claiming { claim, stream, lost: said }, step);
    }

    fn go_on(&mut self, at: usize, claiming: Claiming, step: Step) {
        match step {
            Step::Get(key) => {
                self.nodes[at].claiming = Some(claiming);
                self.ask(at, What::Get(key));
            }
            Step::Txn(txn) => {
                self.nodes[at].claiming = Some(claiming);
                self.ask(at, What::Claim(txn));
            }
            Step::Done(Ok(grant)) => {
                self.granted += 1;
                self.taken_over += u64::from(claiming.lost);
                self.nodes[at].grants.insert(claiming.stream, grant);
            }
            Step::Done(Err(Refusal::Elsewhere { owner, .. })) => {
                self.elsewhere += 1;
                assert_ne!(owner, self.nodes[at].name, "seed {}: a node was sent to itself", self.seed);
            }
            Step::Done(Err(_)) => {}
        }
    }

    fn check(&mut self) {
        for stream in STREAMS {
            let Some(entry) = self.tree.get(&stream_key(stream)) else { continue };
            let record: StreamRecord = record::read(&entry.key, &entry.value).unwrap();
            assert!(record.reserved >= record.epoch, "seed {}: {record:?}", self.seed);
            let highest = self.highest.entry(stream).or_default();
            assert!(
                record.epoch >= *highest,
                "seed {}: {stream} fell from {highest} to {}",
                self.seed,
                record.epoch
            );
            *highest = record.epoch;
        }
    }

    /// All is well from here on: who claims with the word that the owner is lost gets the stream, and all others stop.
    fn settle(&mut self) {
        for node in &mut self.nodes {
            (node.cut_until, node.frozen_until, node.claiming) = (0, 0, None);
            node.asked.clear();
        }
        for at in 0..NODES {
            self.keep_lease(at);
            self.listen(at);
        }
        for stream in STREAMS {
            let owner = self
                .tree
                .get(&stream_key(stream))
                .map(|entry| record::read::<StreamRecord>(&entry.key, &entry.value).unwrap().owner);
            let at = (0..NODES).find(|at| Some(&self.nodes[*at].name) != owner.as_ref()).unwrap();
            if let Some(owner) =
                owner.clone().filter(|owner| self.tree.get(&node_key(Role::Origin, owner)).is_some())
            {
                assert!(owner != self.nodes[at].name);
            }
            let wall = self.wall(at);
            let ownership = &mut self.nodes[at].ownership;
            let mut claim = Claim::new(stream, "last", owner.into_iter().collect());
            let mut step = claim.begin(ownership);
            let grant = loop {
                step = match step {
                    Step::Get(key) => claim.handle_found(ownership, self.tree.get(&key), wall),
                    Step::Txn(txn) => claim.handle_outcome(ownership, self.tree.txn(txn).unwrap(), wall),
                    Step::Done(done) => break done.unwrap(),
                };
            };
            let before = self.writers.keys().filter(|(of, _)| *of == stream).map(|(_, epoch)| *epoch).max();
            assert!(
                before.is_none_or(|before| grant.epoch > before),
                "seed {}: {grant:?} after {before:?}",
                self.seed
            );
            for other in (0..NODES).filter(|other| *other != at) {
                self.listen(other);
                let held = self.nodes[other].grants.get(stream);
                let holds = held.is_some_and(|grant| self.nodes[other].ownership.holds(grant));
                assert!(!holds, "seed {}: o{other} goes on writing {stream}", self.seed);
            }
        }
    }
}

#[test]
fn no_two_nodes_write_one_epoch() {
    let (mut granted, mut elsewhere, mut fenced, mut taken_over) = (0, 0, 0, 0);
    let mut lives = BTreeSet::new();
    for seed in 1..=200 {
        let mut world = World::new(seed);
        for _ in 0..2000 {
            world.step();
        }
        world.settle();
        (granted, elsewhere) = (granted + world.granted, elsewhere + world.elsewhere);
        (fenced, taken_over) = (fenced + world.fenced, taken_over + world.taken_over);
        lives.extend(world.writers.into_values().map(|writer| (seed, writer)));
    }
    println!("granted {granted}, sent elsewhere {elsewhere}, fenced {fenced}, with a loss said {taken_over}");
    assert!(granted > 1000 && elsewhere > 1000 && fenced > 500 && taken_over > 500);
    assert!(lives.len() > 500, "{} processes wrote", lives.len());
}
