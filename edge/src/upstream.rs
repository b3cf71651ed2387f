//! In which order the upstreams are asked for a name: ring order, except that a node that has just served the key comes
//! first (the owner of a stream may stand anywhere in the ring after a takeover) and one that is down comes last.
//!
//! A node is down from when no connection to it could be made until it answers anything, a fetch or a probe: viewers'
//! requests do not find out whether it is back. One that was silent for too long is probed at once, and down if that
//! fails too: an answer may be slow, but a host that hangs must not cost each name a timeout. One whose push fell silent is
//! down until a probe succeeds: pushes have pings. Probes back off, each node by itself and with jitter, so that the tiers
//! that lost a node do not all come back to it at once.
//!
//! A node that says nothing, not even that it refuses, costs who asks it a timeout. A tier whose own clients have somewhere
//! else to go asks only those that are [`Upstreams::able`], and says at once that it can ask nobody. So that it knows this in
//! time, all are probed as soon as a push has been quiet for a while: it may be the others too, or this node's own network.
//!
//! Driving rule of the probes: drain [`Upstreams::poll`], then wait for [`Upstreams::poll_timeout`], for the outcome of a
//! probe or for a node to go down.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Node;

/// How long after a node went down it is probed, at most (at least half of that), and how far that grows, doubled by each
/// probe that fails.
const FIRST_PROBE: Duration = Duration::from_millis(250);
const LAST_PROBE: Duration = Duration::from_secs(4);

/// A silent node that answers a probe is not probed again for so long: much may be slow at once.
const TRUSTED: Duration = Duration::from_secs(1);

/// A probe that is not answered for so long says that the node is silent, whatever comes of it in the end.
const UNANSWERED: Duration = Duration::from_millis(900);

/// When there is nobody else to be asked, silent nodes are probed within this time.
const WANTED: Duration = Duration::from_millis(500);

/// How long it is remembered who served a key. Every answer renews it.
const SERVED: Duration = Duration::from_secs(10);

/// Keys whose server is remembered: those that are not served by their first candidate, so ordinarily few.
const MAX_SERVED: usize = 4096;

/// What is known about the upstreams from their answers.
#[derive(Debug)]
pub struct Upstreams {
    /// Those that are down, or may be. Bounded by the number of nodes.
    doubted: BTreeMap<String, Doubt>,
    /// Until when silence is no reason to doubt a node. Bounded by the number of nodes.
    trusted: BTreeMap<String, Instant>,
    served: BTreeMap<String, (String, Instant)>,
    /// The state of the jitter.
    random: u64,
}

/// A node that is probed.
#[derive(Debug)]
struct Doubt {
    node: Arc<Node>,
    down: bool,
    /// Down because it says nothing: to ask it takes a timeout.
    silent: bool,
    probe: Probe,
    backoff: Duration,
}

/// When it is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    At(Instant),
    /// It is under way.
    Since(Instant),
}

/// How a node met a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// With any answer.
    Answered,
    /// With a refusal, or a connection that broke.
    Refused,
    /// With nothing, in time.
    Silent,
}

impl Upstreams {
    /// All up; `seed` is for the jitter.
    pub fn new(seed: u64) -> Upstreams {
        let (doubted, trusted) = (BTreeMap::new(), BTreeMap::new());
        Upstreams { doubted, trusted, served: BTreeMap::new(), random: seed | 1 }
    }

    /// Puts ring candidates of `key` in the order in which to ask them.
    pub fn order(&self, now: Instant, key: &str, mut candidates: Vec<Arc<Node>>) -> Vec<Arc<Node>> {
        let server = self.served.get(key).filter(|(_, until)| now < *until).map(|(name, _)| name.as_str());
        let is_down = |node: &Node| self.doubted.get(&node.name).is_some_and(|doubt| doubt.down);
        if server.is_some() || !self.doubted.is_empty() {
            // Stable: ring order within each group.
            candidates.sort_by_key(|node| (is_down(node), server != Some(node.name.as_str())));
        }
        candidates
    }

    /// Those of `candidates` that would not be asked in vain until a timeout. If there are none, they are probed soon.
    pub fn able(&mut self, now: Instant, mut candidates: Vec<Arc<Node>>) -> Vec<Arc<Node>> {
        let silent = |doubt: &Doubt| match doubt.probe {
            _ if doubt.down && doubt.silent => true,
            Probe::Since(since) => now >= since + UNANSWERED,
            Probe::At(_) => false,
        };
        let is_silent = |node: &Node| self.doubted.get(&node.name).is_some_and(silent);
        if candidates.iter().any(|node| !is_silent(node)) {
            candidates.retain(|node| !is_silent(node));
            return candidates;
        }
        for node in candidates {
            let soon = now + self.jittered(WANTED);
            if let Some(doubt) = self.doubted.get_mut(&node.name)
                && let Probe::At(at) = &mut doubt.probe
            {
                *at = (*at).min(soon);
            }
        }
        Vec::new()
    }

    /// `node` answered for `key`; `first` says whether it is the key's first ring candidate.
    pub fn handle_answer(&mut self, now: Instant, key: &str, node: &str, first: bool) {
        self.doubted.remove(node);
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

    /// No connection to `node` could be made; `silent` says whether it was not even refused. Returns whether that brought it
    /// down.
    pub fn handle_unreachable(&mut self, now: Instant, node: &Arc<Node>, silent: bool) -> bool {
        let probe = Probe::At(now + self.jittered(FIRST_PROBE));
        let doubt = self.doubted.entry(node.name.clone()).or_insert_with(|| Doubt::new(node, probe));
        doubt.silent = silent;
        !std::mem::replace(&mut doubt.down, true)
    }

    /// `node` was silent for longer than its answer should take. Returns whether it is to be probed for that, at once.
    pub fn handle_silent(&mut self, now: Instant, node: &Arc<Node>) -> bool {
        let trusted = self.trusted.get(&node.name).is_some_and(|until| now < *until);
        if trusted || self.doubted.contains_key(&node.name) {
            return false;
        }
        self.doubted.insert(node.name.clone(), Doubt::new(node, Probe::At(now)));
        true
    }

    /// `node` has pushed nothing for too long, not even pings: that is no slow answer, it hangs or is cut off. It is down
    /// unless a probe, which is due at once, says otherwise. Returns whether that brought it down.
    pub fn handle_push_silent(&mut self, now: Instant, node: &Arc<Node>) -> bool {
        if self.trusted.get(&node.name).is_some_and(|until| now < *until) {
            return false;
        }
        let new = || Doubt::new(node, Probe::At(now));
        let doubt = self.doubted.entry(node.name.clone()).or_insert_with(new);
        doubt.silent = true;
        !std::mem::replace(&mut doubt.down, true)
    }

    /// `node` is no upstream any more.
    pub fn handle_gone(&mut self, node: &str) {
        self.doubted.remove(node);
        self.trusted.remove(node);
    }

    /// A probe of `node` has ended. Returns whether the node is up or down now, if that has changed.
    pub fn handle_probe(&mut self, now: Instant, node: &str, probed: Probed) -> Option<bool> {
        if probed == Probed::Answered {
            self.trusted.insert(node.into(), now + TRUSTED);
            return self.doubted.remove(node).filter(|doubt| doubt.down).map(|_| true);
        }
        let mut doubt = self.doubted.remove(node)?;
        doubt.backoff = (doubt.backoff * 2).min(LAST_PROBE);
        doubt.probe = Probe::At(now + self.jittered(doubt.backoff));
        doubt.silent = probed == Probed::Silent;
        let went_down = !std::mem::replace(&mut doubt.down, true);
        self.doubted.insert(node.into(), doubt);
        went_down.then_some(false)
    }

    /// The next node to be probed now.
    pub fn poll(&mut self, now: Instant) -> Option<Arc<Node>> {
        let is_due = |doubt: &&mut Doubt| matches!(doubt.probe, Probe::At(at) if at <= now);
        let due = self.doubted.values_mut().find(is_due)?;
        due.probe = Probe::Since(now);
        Some(due.node.clone())
    }

    /// When to call [`Upstreams::poll`] again, as things are.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let at = |doubt: &Doubt| match doubt.probe {
            Probe::At(at) => Some(at),
            Probe::Since(_) => None,
        };
        self.doubted.values().filter_map(at).min()
    }

    /// Between half of `most` and all of it.
    fn jittered(&mut self, most: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        most / 2 + most.mul_f64((self.random % 1024) as f64 / 2048.0)
    }
}

impl Doubt {
    fn new(node: &Arc<Node>, probe: Probe) -> Doubt {
        Doubt { node: node.clone(), down: false, silent: false, probe, backoff: FIRST_PROBE }
    }
}

/// The part of a path that says where it belongs: its `segments`-th segment, or all of it if it has fewer.
/// With 2, `/live/{stream}/...` belongs where `{stream}` does, which is the key that ingest places streams by.
pub fn hash_key(path: &str, segments: usize) -> &str {
    let nth = segments.checked_sub(1).and_then(|skip| path.strip_prefix('/')?.split('/').nth(skip));
    nth.filter(|segment| !segment.is_empty()).unwrap_or(path)
}

/// The key by which the ring places what is below a path: as [`hash_key`], but a recording, `/vod/{stream}-{milliseconds}/...`,
/// belongs where the stream did, whose origin may be the only one that has kept it.
pub fn ring_key(path: &str, segments: usize) -> &str {
    let key = hash_key(path, segments);
    let recording = key.rsplit_once('-').filter(|_| path.starts_with("/vod/"));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    recording.filter(|(stream, at)| !stream.is_empty() && number(at)).map_or(key, |(stream, _)| stream)
}

/// The leading `segments` of the path of a name that goes on behind them: `/live/{stream}` of `/live/{stream}/...` with 2.
pub fn prefix(name: &str, segments: usize) -> Option<&str> {
    let path = name.split_once('?').map_or(name, |(path, _)| path);
    if segments == 0 || !path.starts_with('/') {
        return None;
    }
    let mut ends = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').map(|(at, _)| at).skip(1);
    let prefix = &path[..ends.nth(segments - 1)?];
    // No segment of it is empty.
    (!prefix.contains("//") && !prefix.ends_with('/')).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Arc<Node> {
        Arc::new(Node { name: name.into(), address: format!("{name}:1") })
    }

    fn order(upstreams: &Upstreams, now: Instant) -> String {
        let nodes = upstreams.order(now, "k", ["a", "b", "c"].map(node).into());
        nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn the_server_comes_first_and_the_unreachable_last() {
        let now = Instant::now();
        let mut upstreams = Upstreams::new(1);
        assert_eq!(order(&upstreams, now), "abc");
        upstreams.handle_answer(now, "k", "c", false);
        assert_eq!(order(&upstreams, now), "cab");
        assert!(upstreams.handle_unreachable(now, &node("a"), false));
        assert!(!upstreams.handle_unreachable(now, &node("a"), false), "no news");
        assert_eq!(order(&upstreams, now), "cba");
        upstreams.handle_refusal("k", "b");
        assert_eq!(order(&upstreams, now), "cba", "b was not the one");
        upstreams.handle_refusal("k", "c");
        assert_eq!(order(&upstreams, now), "bca");
        upstreams.handle_answer(now, "other", "a", true);
        assert_eq!(order(&upstreams, now), "abc", "it has answered a fetch");
        upstreams.handle_answer(now, "k", "b", false);
        assert_eq!(order(&upstreams, now + SERVED), "abc", "forgotten");
        upstreams.handle_answer(now, "k", "a", true);
        assert_eq!(order(&upstreams, now), "abc", "the owner is back home");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn what_is_down_is_probed_less_and_less_often() {
        let mut now = Instant::now();
        let mut upstreams = Upstreams::new(7);
        assert_eq!(upstreams.poll_timeout(), None);
        upstreams.handle_unreachable(now, &node("a"), false);
        let mut most = FIRST_PROBE;
        for _ in 0..8 {
            let at = upstreams.poll_timeout().unwrap();
            assert!(at - now >= most / 2 && at - now <= most, "{:?} of {most:?}", at - now);
            assert_eq!(upstreams.poll(at - Duration::from_nanos(1)), None, "not yet");
            assert_eq!(upstreams.poll(at).unwrap().name, "a");
            assert_eq!((upstreams.poll(at), upstreams.poll_timeout()), (None, None), "one probe at a time");
            now = at + Duration::from_millis(100);
            assert_eq!(upstreams.handle_probe(now, "a", Probed::Refused), None);
            assert_eq!(order(&upstreams, now), "bca", "still down");
            most = (most * 2).min(LAST_PROBE);
        }
        assert_eq!(most, LAST_PROBE);
        upstreams.poll(now + LAST_PROBE).unwrap();
        assert_eq!(upstreams.handle_probe(now, "a", Probed::Answered), Some(true));
        assert_eq!(upstreams.handle_probe(now, "a", Probed::Answered), None);
        assert_eq!(upstreams.handle_probe(now, "a", Probed::Refused), None, "too late");
        assert_eq!((order(&upstreams, now).as_str(), upstreams.poll_timeout()), ("abc", None));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn what_is_silent_is_down_only_if_it_answers_no_probe() {
        let now = Instant::now();
        let mut upstreams = Upstreams::new(7);
        assert!(upstreams.handle_silent(now, &node("a")));
        assert!(!upstreams.handle_silent(now, &node("a")));
        assert_eq!(order(&upstreams, now), "abc", "not yet");
        assert_eq!(upstreams.poll(now).unwrap().name, "a");
        assert_eq!(upstreams.handle_probe(now, "a", Probed::Answered), None);
        assert!(!upstreams.handle_silent(now + TRUSTED / 2, &node("a")), "it has just answered");
        assert!(upstreams.handle_silent(now + TRUSTED, &node("a")));
        assert_eq!(upstreams.poll(now + TRUSTED).unwrap().name, "a");
        assert_eq!(upstreams.handle_probe(now + TRUSTED, "a", Probed::Refused), Some(false));
        assert_eq!(order(&upstreams, now), "bca");
        assert!(upstreams.poll_timeout().is_some());
        upstreams.handle_gone("a");
        assert_eq!((order(&upstreams, now).as_str(), upstreams.poll_timeout()), ("abc", None));
        assert!(upstreams.handle_unreachable(now, &node("a"), false));
        // Doubt and certainty.
        assert!(upstreams.handle_silent(now, &node("b")));
        assert!(upstreams.handle_unreachable(now, &node("b"), false));
        assert_eq!(order(&upstreams, now), "cab");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn what_stops_to_push_is_down_until_it_answers_a_probe() {
        let now = Instant::now();
        let mut upstreams = Upstreams::new(7);
        assert!(upstreams.handle_push_silent(now, &node("a")));
        assert!(!upstreams.handle_push_silent(now, &node("a")), "no news");
        assert_eq!(order(&upstreams, now), "bca");
        assert_eq!(upstreams.poll(now).unwrap().name, "a");
        assert_eq!(upstreams.handle_probe(now, "a", Probed::Answered), Some(true));
        assert_eq!(order(&upstreams, now), "abc");
        assert!(!upstreams.handle_push_silent(now + TRUSTED / 2, &node("a")), "it has just answered");
        // A doubt becomes a certainty, and its probe goes on.
        assert!(upstreams.handle_silent(now, &node("b")));
        assert!(upstreams.handle_push_silent(now, &node("b")));
        assert_eq!(order(&upstreams, now), "acb");
        assert_eq!(upstreams.poll(now).unwrap().name, "b");
        assert_eq!(upstreams.handle_probe(now, "b", Probed::Silent), None, "no news");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn who_says_nothing_is_not_asked_where_that_would_take_a_timeout() {
        let now = Instant::now();
        let mut upstreams = Upstreams::new(7);
        let able = |upstreams: &mut Upstreams, now| {
            let able = upstreams.able(now, ["a", "b"].map(node).into());
            able.iter().map(|node| node.name.as_str()).collect::<String>()
        };
        assert_eq!(able(&mut upstreams, now), "ab");
        // A push is quiet: all are probed.
        for name in ["a", "b"] {
            assert!(upstreams.handle_silent(now, &node(name)));
            assert!(upstreams.poll(now).is_some());
        }
        let late = now + UNANSWERED;
        assert_eq!(able(&mut upstreams, late - Duration::from_millis(1)), "ab");
        assert_eq!(able(&mut upstreams, late), "");
        assert_eq!(upstreams.poll_timeout(), None, "they are being probed");
        assert!(upstreams.handle_push_silent(late, &node("a")));
        // It refuses: to ask it costs nothing, and finds out first when it is back.
        assert_eq!(upstreams.handle_probe(late, "b", Probed::Refused), Some(false));
        assert_eq!(able(&mut upstreams, late), "b");
        let mut later = late;
        for _ in 0..5 {
            let next = upstreams.poll_timeout().unwrap();
            upstreams.poll(next).unwrap();
            upstreams.handle_probe(next, "b", Probed::Silent);
            later = next;
        }
        assert_eq!(upstreams.handle_probe(later, "a", Probed::Silent), None);
        assert!(upstreams.poll_timeout().unwrap() > later + WANTED / 2);
        assert_eq!(able(&mut upstreams, later), "");
        assert!(upstreams.poll_timeout().unwrap() <= later + WANTED, "somebody wants to know");
        assert_eq!(upstreams.handle_probe(later, "a", Probed::Answered), Some(true));
        assert_eq!(able(&mut upstreams, later), "a");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut upstreams = Upstreams::new(1);
        for key in 0..3 * MAX_SERVED {
            upstreams.handle_answer(now, &key.to_string(), "c", false);
            assert!(upstreams.served.len() <= MAX_SERVED);
        }
    }

    #[test]
    fn prefixes() {
        for (name, segments, expected) in [
            ("/live/foo/index.m3u8", 2, Some("/live/foo")),
            ("/live/foo/7/v/1.m4s?x=/a/b", 2, Some("/live/foo")),
            ("/live/foo/", 2, Some("/live/foo")),
            ("/live/foo", 2, None),
            ("/live/foo?x=/a", 2, None),
            ("/live//x/y", 2, None),
            ("//live/x/y", 2, None),
            ("live/x/y", 2, None),
            ("/live/foo/x", 1, Some("/live")),
            ("/live/foo/x", 0, None),
        ] {
            assert_eq!(prefix(name, segments), expected, "{name} {segments}");
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
            ("/vod/foo-17/index.m3u8", 2, "foo-17"),
        ] {
            assert_eq!(hash_key(path, segments), expected, "{path} {segments}");
        }
        for (path, expected) in [
            ("/vod/foo-17/index.m3u8", "foo"),
            ("/vod/foo-17-18/7/v/1.m4s", "foo-17"),
            ("/vod/foo/x", "foo"),
            ("/vod/foo-1x/x", "foo-1x"),
            ("/vod/-1/x", "-1"),
            ("/live/foo-17/x", "foo-17"),
        ] {
            assert_eq!(ring_key(path, 2), expected, "{path}");
        }
    }
}
