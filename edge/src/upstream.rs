//! In which order the upstreams are asked for a name: ring order, except that a node that has just served the key comes
//! first (the owner of a stream may stand anywhere in the ring after a takeover) and one that cannot be reached comes last.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Node;

/// How long a node that could not be reached is asked last.
const DOWN: Duration = Duration::from_secs(2);

/// How long it is remembered who served a key. Every answer renews it.
const SERVED: Duration = Duration::from_secs(10);

/// Keys whose server is remembered: those that are not served by their first candidate, so ordinarily few.
const MAX_SERVED: usize = 4096;

/// What is known about the upstreams from their answers.
#[derive(Debug, Default)]
pub struct Upstreams {
    down: BTreeMap<String, Instant>,
    served: BTreeMap<String, (String, Instant)>,
}

impl Upstreams {
    /// Puts ring candidates of `key` in the order in which to ask them.
    pub fn order(&self, now: Instant, key: &str, mut candidates: Vec<Arc<Node>>) -> Vec<Arc<Node>> {
        let server = self.served.get(key).filter(|(_, until)| now < *until).map(|(name, _)| name.as_str());
        let is_down = |node: &Node| self.down.get(&node.name).is_some_and(|until| now < *until);
        if server.is_some() || !self.down.is_empty() {
            // Stable: ring order within each group.
            candidates.sort_by_key(|node| (is_down(node), server != Some(node.name.as_str())));
        }
        candidates
    }

    /// `node` answered for `key`; `first` says whether it is the key's first ring candidate.
    pub fn handle_answer(&mut self, now: Instant, key: &str, node: &str, first: bool) {
        self.down.remove(node);
        if first {
            self.served.remove(key);
            return;
        }
        if self.served.len() >= MAX_SERVED && !self.served.contains_key(key) {
            self.served.retain(|_, (_, until)| now < *until);
            if self.served.len() >= MAX_SERVED {
                self.served.clear();
            }
        }
        self.served.insert(key.into(), (node.into(), now + SERVED));
    }

    /// `node` said that `key` is not its own, or failed.
    pub fn handle_refusal(&mut self, key: &str, node: &str) {
        if self.served.get(key).is_some_and(|(name, _)| name == node) {
            self.served.remove(key);
        }
    }

    /// `node` could not be reached. Bounded by the number of nodes.
    pub fn handle_unreachable(&mut self, now: Instant, node: &str) {
        self.down.insert(node.into(), now + DOWN);
    }
}

/// The part of a path that says where it belongs: its `segments`-th segment, or all of it if it has fewer.
/// With 2, `/live/{stream}/...` belongs where `{stream}` does, which is the key that ingest places streams by.
pub fn hash_key(path: &str, segments: usize) -> &str {
    let nth = segments.checked_sub(1).and_then(|skip| path.strip_prefix('/')?.split('/').nth(skip));
    nth.filter(|segment| !segment.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(upstreams: &Upstreams, now: Instant) -> String {
        let node = |name: &str| Arc::new(Node { name: name.into(), address: format!("{name}:1") });
        let nodes = upstreams.order(now, "k", ["a", "b", "c"].map(node).into());
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn the_server_comes_first_and_the_unreachable_last() {
        let now = Instant::now();
        let mut upstreams = Upstreams::default();
        assert_eq!(order(&upstreams, now), "abc");
        upstreams.handle_answer(now, "k", "c", false);
        assert_eq!(order(&upstreams, now), "cab");
        upstreams.handle_unreachable(now, "a");
        assert_eq!(order(&upstreams, now), "cba");
        upstreams.handle_refusal("k", "b");
        assert_eq!(order(&upstreams, now), "cba", "b was not the one");
        upstreams.handle_refusal("k", "c");
        assert_eq!(order(&upstreams, now), "bca");
        assert_eq!(order(&upstreams, now + DOWN), "abc");
        upstreams.handle_answer(now, "k", "b", false);
        assert_eq!(order(&upstreams, now + SERVED), "abc", "forgotten");
        upstreams.handle_answer(now, "k", "a", true);
        assert_eq!(order(&upstreams, now), "abc", "the owner is back home");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut upstreams = Upstreams::default();
        for key in 0..3 * MAX_SERVED {
            upstreams.handle_answer(now, &key.to_string(), "c", false);
            assert!(upstreams.served.len() <= MAX_SERVED);
        }
    }

    #[test]
    fn hash_keys() {
        for (path, segments, expected) in [
            ("/live/foo/index.m3u8", 2, "foo"),
            ("/live/foo/7/v/1.m4s", 2, "foo"),
            ("/live/foo", 2, "foo"),
            ("/live//x", 2, "/live//x"),
            ("/time", 2, "/time"),
            ("/live/foo/x", 1, "live"),
            ("/live/foo/x", 0, "/live/foo/x"),
        ] {
            assert_eq!(hash_key(path, segments), expected, "{path} {segments}");
        }
    }
}
