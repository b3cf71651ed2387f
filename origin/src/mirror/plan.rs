//! Which streams an origin mirrors: those that would come to it next.
#![deny(clippy::disallowed_methods)]

use std::sync::Arc;

use cluster::{Node, Ring};
use tokio::sync::watch;

/// The origins of the fleet, as one of them sees them.
#[derive(Debug, Clone)]
pub struct Members {
    /// The one that looks.
    name: String,
    ring: Ring,
}

impl Members {
    /// `ring` may or may not hold `name`.
    pub fn new(name: String, ring: Ring) -> Members {
        Members { name, ring }
    }

    /// All others.
    pub fn peers(&self) -> Vec<Node> {
        let members = self.ring.members().into_iter().map(|member| member.node);
        members.filter(|node| node.name != self.name).collect()
    }

    /// Tells when others came or went.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.ring.changes()
    }

    /// Whether a stream that `owner` has is to be mirrored here: POPs that lose an owner ask the one behind it in the order
    /// of the ring, so of those that are `up` the next one is to have it. One that drains is not asked any more.
    pub fn mirrors(&self, stream: &str, owner: &str, up: impl Fn(&str) -> bool) -> bool {
        let candidates: Vec<Arc<Node>> = self.ring.candidates(stream);
        let behind = candidates.iter().position(|node| node.name == owner).map_or(0, |at| at + 1);
        let members = self.ring.members();
        let draining = |name: &str| members.iter().any(|member| member.draining && member.node.name == name);
        let mut next = candidates.iter().cycle().skip(behind).take(candidates.len());
        let asked = |name: &str| name != owner && (name == self.name || up(name)) && !draining(name);
        let next = next.find(|node| asked(&node.name));
        next.is_some_and(|node| node.name == self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_that_is_up_mirrors() {
        let names = ["a", "b", "c"];
        let node = |name: &&str| Node { name: (*name).into(), address: String::new() };
        let ring = Ring::new(names.iter().map(node).collect());
        let order: Vec<_> = ring.candidates("s").iter().map(|node| node.name.clone()).collect();
        let mirrors = |owner: usize, down: Option<usize>| {
            let down = down.map(|index| order[index].as_str());
            let all = 0..3;
            let mut them = all.filter(|index| {
                let members = Members::new(order[*index].clone(), ring.clone());
                down != Some(&order[*index]) && members.mirrors("s", &order[owner], |name| Some(name) != down)
            });
            let one = them.next();
            assert_eq!(them.next(), None, "one at most");
            one
        };
        assert_eq!([0, 1, 2].map(|owner| mirrors(owner, None)), [Some(1), Some(2), Some(0)]);
        assert_eq!([0, 1, 2].map(|owner| mirrors(owner, Some((owner + 1) % 3))), [Some(2), Some(0), Some(1)]);
        let mut members = ring.members();
        members.iter_mut().for_each(|member| member.draining = member.node.name == order[1]);
        ring.set_members(members);
        assert_eq!([0, 1, 2].map(|owner| mirrors(owner, None)), [Some(2), Some(2), Some(0)]);
        let alone = Members::new("a".into(), Ring::new(vec![node(&"a")]));
        assert!(alone.peers().is_empty() && !alone.mirrors("s", "a", |_| true));
    }
}
