//! The consistent-hash ring: every node that knows the same members sends a key the same way.
//!
//! Who looks for a stream asks [`Ring::candidates`]: its owner, where that is known, then all members in ring order. Who
//! brings one asks [`Ring::placement`]: consistent hashing with bounded loads for those that are new; one that somebody has,
//! or had, goes on in ring order, since the next in it has a copy.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use consistent_hash::{DefaultHash, StaticHashRing};
use tokio::sync::watch;

/// Virtual nodes of a member of ordinary capacity. The spread (max/mean load) at 160 is 1.13 to 1.19; more buys little and
/// costs rebuild time.
const VIRTUAL_NODES: usize = 160;

/// The capacity that has [`VIRTUAL_NODES`]: some six CPUs. Others have more or fewer in proportion.
const ORDINARY_CAPACITY: u32 = 64;

/// Virtual nodes of a very small and a very large member.
const MIN_VIRTUAL_NODES: usize = 10;
const MAX_VIRTUAL_NODES: usize = 2560;

/// A member is passed over for a new key when it would have more than this many times its share of the load, in hundredths.
const BOUND: u64 = 125;

/// A member of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name: what is hashed, so that a node keeps its keys when its address changes.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

/// A member and how much it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: Node,
    /// How much it carries, in units of a cheap key; 0: not known, as much as any other.
    pub capacity: u32,
    /// How much of that its keys take.
    pub load: u32,
    /// It takes no new ones.
    pub draining: bool,
}

impl From<Node> for Member {
    fn from(node: Node) -> Member {
        Member { node, capacity: 0, load: 0, draining: false }
    }
}

/// Maps keys to nodes; adding or removing one node moves only that node's share of the keys. Cloning shares it: members
/// may come and go while it is used.
#[derive(Clone)]
pub struct Ring {
    shared: Arc<Shared>,
    /// Used as long as the ring is empty.
    otherwise: Option<Arc<Shared>>,
}

struct Shared {
    state: RwLock<State>,
    version: watch::Sender<u64>,
}

struct State {
    ring: Arc<Hashed>,
    /// By name.
    members: BTreeMap<String, Member>,
    /// By key, the name of the member that has it, where it is known.
    owners: BTreeMap<String, String>,
}

type Hashed = StaticHashRing<'static, String, Arc<Node>, DefaultHash>;

impl Ring {
    /// A ring of these nodes. Of nodes with the same name the first counts. An empty ring has no candidates.
    pub fn new(nodes: Vec<Node>) -> Ring {
        Ring::of(nodes.into_iter().map(Member::from).collect())
    }

    /// The same with what is known about their loads.
    pub fn of(members: Vec<Member>) -> Ring {
        let members = by_name(members);
        let state = State { ring: hashed(&members), members, owners: BTreeMap::new() };
        let shared = Arc::new(Shared { state: RwLock::new(state), version: watch::Sender::default() });
        Ring { shared, otherwise: None }
    }

    /// This ring, and `other` for as long as it is empty.
    #[must_use]
    pub fn or(&self, other: &Ring) -> Ring {
        Ring { shared: self.shared.clone(), otherwise: Some(other.shared.clone()) }
    }

    /// Who is in the ring from now on, and how much they carry.
    pub fn set_members(&self, members: Vec<Member>) {
        let members = by_name(members);
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.members == members {
            return;
        }
        let place = |member: &Member| (member.node.clone(), virtual_nodes(member));
        if !state.members.values().map(place).eq(members.values().map(place)) {
            state.ring = hashed(&members);
        }
        state.members = members;
        drop(state);
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Who has `key`; `None`: nobody is known to.
    pub fn set_owner(&self, key: &str, owner: Option<&str>) {
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.owners.get(key).map(String::as_str) == owner {
            return;
        }
        match owner {
            Some(owner) => state.owners.insert(key.into(), owner.into()),
            None => state.owners.remove(key),
        };
        drop(state);
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Who has which key, of all of them.
    pub fn set_owners(&self, owners: BTreeMap<String, String>) {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).owners = owners;
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Grows with every change of members and owners.
    pub fn version(&self) -> u64 {
        let other = self.otherwise.as_ref().map_or(0, |other| *other.version.borrow());
        *self.shared.version.borrow() + other
    }

    /// Tells of every change of members and owners, but for those of a ring that stands in for it.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// All nodes that may have `key`, each once: who is known to have it, then the others in ring order.
    pub fn candidates(&self, key: &str) -> Vec<Arc<Node>> {
        self.read(|state| state.candidates(key))
    }

    /// All nodes that may take `key`, in the order in which to ask them, each once: who has it already; then, in ring order,
    /// those that would not exceed their share of the load by more than a quarter, those that would, and those that
    /// are full. Of a key that somebody has, shares do not matter: who is next mirrors it. Who drains is left out, unless
    /// there is nobody else.
    pub fn placement(&self, key: &str) -> Vec<Arc<Node>> {
        self.read(|state| {
            let mut candidates = state.candidates(key);
            let (mut load, mut capacity) = (0, 0);
            for member in state.members.values().filter(|member| !member.draining) {
                load += u64::from(member.load);
                capacity += u64::from(weight(member));
            }
            let owner = state.owners.get(key);
            let group = |node: &Arc<Node>| {
                let Some(member) = state.members.get(&node.name) else { return 3 };
                // What the bound allows it, of all there is with the new key, rounded up.
                let share = (load + 1) * BOUND * u64::from(weight(member));
                let allowed = share.div_ceil(100 * capacity.max(1));
                match member {
                    Member { draining: true, .. } => 3,
                    _ if owner == Some(&node.name) => 0,
                    Member { capacity, load, .. } if *capacity > 0 && load >= capacity => 2,
                    Member { load, .. } if owner.is_none() && u64::from(*load) + 1 > allowed => 1,
                    _ => 0,
                }
            };
            // Stable: ring order within each group.
            candidates.sort_by_key(group);
            let taking = candidates.iter().filter(|node| group(node) < 3).count();
            if taking > 0 {
                candidates.truncate(taking);
            }
            candidates
        })
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.read(|state| state.members.is_empty())
    }

    /// Whether `name` is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.read(|state| state.members.contains_key(name))
    }

    /// Its members, by name.
    pub fn members(&self) -> Vec<Member> {
        self.read(|state| state.members.values().cloned().collect())
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        match &self.otherwise {
            Some(other) if state.members.is_empty() => {
                drop(state);
                look(&other.state.read().unwrap_or_else(PoisonError::into_inner))
            }
            _ => look(&state),
        }
    }
}

impl State {
    fn candidates(&self, key: &str) -> Vec<Arc<Node>> {
        if self.members.is_empty() {
            return Vec::new();
        }
        let mut nodes: Vec<_> = self.ring.calc_candidates(&key).map(|node| node.value.clone()).collect();
        if let Some(owner) = self.owners.get(key) {
            // Stable: ring order for all others.
            nodes.sort_by_key(|node| node.name != *owner);
        }
        nodes
    }
}

fn by_name(members: Vec<Member>) -> BTreeMap<String, Member> {
    let mut named = BTreeMap::new();
    for member in members {
        named.entry(member.node.name.clone()).or_insert(member);
    }
    named
}

fn hashed(members: &BTreeMap<String, Member>) -> Arc<Hashed> {
    let nodes = members.values().map(|member| {
        let node = consistent_hash::Node::new(member.node.name.clone()).quantity(virtual_nodes(member));
        node.value(Arc::new(member.node.clone()))
    });
    Arc::new(StaticHashRing::new(DefaultHash, nodes))
}

fn virtual_nodes(member: &Member) -> usize {
    let nodes = VIRTUAL_NODES * weight(member) as usize / ORDINARY_CAPACITY as usize;
    nodes.clamp(MIN_VIRTUAL_NODES, MAX_VIRTUAL_NODES)
}

fn weight(member: &Member) -> u32 {
    if member.capacity == 0 { ORDINARY_CAPACITY } else { member.capacity }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(names: &[&str]) -> Ring {
        let node = |name: &&str| Node { name: (*name).into(), address: format!("{name}:1") };
        Ring::new(names.iter().map(node).collect())
    }

    #[test]
    fn every_node_is_a_candidate_once() {
        let ring = ring(&["a", "b", "c", "b"]);
        for key in 0..100 {
            let mut names: Vec<_> =
                ring.candidates(&format!("stream-{key}")).iter().map(|node| node.name.clone()).collect();
            names.sort();
            assert_eq!(names, ["a", "b", "c"]);
        }
        assert!(Ring::new(Vec::new()).candidates("x").is_empty());
    }

    #[test]
    fn keys_spread_and_only_a_lost_nodes_keys_move() {
        let (all, without) = (ring(&["a", "b", "c", "d"]), ring(&["a", "b", "d"]));
        let mut count = std::collections::BTreeMap::<String, usize>::new();
        for key in 0..4000 {
            let key = format!("stream-{key}");
            let candidates = all.candidates(&key);
            *count.entry(candidates[0].name.clone()).or_default() += 1;
            let left: Vec<_> =
                candidates.iter().filter(|node| node.name != "c").map(|node| &node.name).collect();
            assert_eq!(&without.candidates(&key)[0].name, left[0]);
        }
        assert!(count.values().all(|n| (700..1300).contains(n)), "{count:?}");
    }

    fn member(name: &str, capacity: u32, load: u32, draining: bool) -> Member {
        Member { node: Node { name: name.into(), address: format!("{name}:1") }, capacity, load, draining }
    }

    fn names(nodes: &[Arc<Node>]) -> Vec<&str> {
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn no_member_gets_much_more_than_its_share() {
        let capacities = [("a", 64), ("b", 64), ("c", 64), ("d", 128)];
        let mut loads = BTreeMap::from(capacities.map(|(name, _)| (name, 0)));
        let members = |loads: &BTreeMap<&str, u32>| {
            capacities.iter().map(|(name, capacity)| member(name, *capacity, loads[name], false)).collect()
        };
        let ring = Ring::of(members(&loads));
        let mut spilled = 0;
        for stream in 0..250u64 {
            let key = format!("stream-{stream}");
            let placed = ring.placement(&key)[0].name.clone();
            spilled += u32::from(ring.candidates(&key)[0].name != placed);
            *loads.get_mut(placed.as_str()).unwrap() += 1;
            ring.set_members(members(&loads));
            for (name, capacity) in capacities {
                let most = ((stream + 1) * 125 * capacity as u64).div_ceil(100 * 320);
                assert!(u64::from(loads[name]) <= most, "{loads:?} after {stream}");
            }
        }
        assert!((1..100).contains(&spilled), "{spilled} of 250");
    }

    #[test]
    fn who_is_full_comes_last_and_who_drains_not_at_all() {
        let ring = Ring::of(["a", "b", "c"].map(|name| member(name, 64, 0, false)).into());
        let order = ring.candidates("s");
        let [first, second, third] = [0, 1, 2].map(|at| order[at].name.as_str());
        assert_eq!(names(&ring.placement("s")), [first, second, third]);
        let set = |of_first: (u32, bool), of_second: (u32, bool)| {
            ring.set_members(vec![
                member(first, 64, of_first.0, of_first.1),
                member(second, 64, of_second.0, of_second.1),
                member(third, 64, 60, false),
            ]);
        };
        set((64, false), (62, false));
        assert_eq!(names(&ring.placement("s")), [second, third, first], "full");
        set((63, false), (0, false));
        assert_eq!(
            names(&ring.placement("s")),
            [second, first, third],
            "beyond a quarter more than the mean"
        );
        set((10, true), (60, false));
        assert_eq!(names(&ring.placement("s")), [second, third]);
        assert_eq!(names(&ring.candidates("s")), [first, second, third], "what it has is still found there");
        ring.set_members(vec![member(first, 64, 0, true)]);
        assert_eq!(names(&ring.placement("s")), [first], "better than nobody");
    }

    #[test]
    fn who_has_it_comes_first() {
        let ring = ring(&["a", "b", "c"]);
        let order = ring.candidates("s");
        let version = ring.version();
        ring.set_owner("s", Some(&order[2].name));
        assert!(ring.version() > version);
        let expected = [2, 0, 1].map(|at| order[at].name.as_str());
        assert_eq!(names(&ring.candidates("s")), expected);
        assert_eq!(names(&ring.placement("s")), expected);
        ring.set_owner("s", Some("gone"));
        assert_eq!(ring.candidates("s"), order);
        ring.set_owner("s", Some(&order[2].name));
        let mut members = ring.members();
        members.iter_mut().for_each(|member| member.draining = member.node.name == order[2].name);
        ring.set_members(members);
        assert_eq!(ring.candidates("s")[0], order[2]);
        assert_eq!(names(&ring.placement("s")), [0, 1].map(|at| order[at].name.as_str()));
    }

    #[test]
    fn who_is_next_takes_what_it_mirrors_also_beyond_its_share() {
        let ring = Ring::of(["a", "b", "c"].map(|name| member(name, 64, 0, false)).into());
        let order = ring.candidates("s");
        let [first, second, third] = [0, 1, 2].map(|at| order[at].name.as_str());
        ring.set_owner("s", Some(first));
        let set = |of_second: u32| {
            ring.set_members(vec![member(second, 64, of_second, false), member(third, 64, 10, false)]);
        };
        set(60);
        assert_eq!(names(&ring.placement("s")), [second, third], "its owner is gone");
        set(64);
        assert_eq!(names(&ring.placement("s")), [third, second], "full");
    }

    #[test]
    fn another_ring_stands_in_for_an_empty_one() {
        let (shields, origins) = (Ring::new(Vec::new()), ring(&["o"]));
        let upstreams = shields.or(&origins);
        let version = upstreams.version();
        assert_eq!(names(&upstreams.candidates("s")), ["o"]);
        shields.set_members(vec![member("s", 0, 0, false)]);
        assert!(upstreams.version() > version && upstreams.contains("s") && !upstreams.contains("o"));
        assert_eq!(names(&upstreams.candidates("s")), ["s"]);
    }

    #[test]
    fn loads_move_nobody_on_the_ring() {
        let ring = Ring::of(["a", "b", "c"].map(|name| member(name, 64, 0, false)).into());
        let before: Vec<_> = (0..100).map(|key| ring.candidates(&key.to_string())).collect();
        ring.set_members(["a", "b", "c"].map(|name| member(name, 64, 40, name == "b")).into());
        let after: Vec<_> = (0..100).map(|key| ring.candidates(&key.to_string())).collect();
        assert_eq!(before, after);
    }
}
