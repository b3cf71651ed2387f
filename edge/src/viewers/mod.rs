//! How many watch each stream: the different players that asked for something of it lately, estimated.
//!
//! A player is told by what it says of itself (CMCD `sid`), else by its address and `User-Agent`. Both are its own words, so an
//! address may stand for as many players as it may have connections and no more; what is chosen by others decides no
//! memory either: a stream takes two [`Sketch`]es, and streams beyond [`MAX_STREAMS`] are counted all together only
//! (`docs/decisions/0046-who-watches.md`).
#![deny(clippy::disallowed_methods)]

pub mod sketch;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, USER_AGENT};
use net::Network;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::config::Limits;
use sketch::Sketch;

/// Streams that are told apart, 4 KiB each.
pub const MAX_STREAMS: usize = 10_000;

/// Who asked for nothing for twice so long does not watch; who asks at least so often is always counted. Every player asks for a
/// playlist, an MPD or a segment at least once in a segment's time, of which 10 s is the longest that an origin makes.
pub const HALF: Duration = Duration::from_secs(15);

/// Only its last address counts: the one that the sender itself put there.
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who asks, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Where from.
    pub peer: SocketAddr,
    /// With what.
    pub headers: &'a HeaderMap,
    /// A hash of what the player calls its session (CMCD `sid`).
    pub session: Option<u64>,
}

/// How many players one address may stand for.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    /// 0: any number.
    per_address: u32,
    /// Those who speak for many.
    exempt: Vec<Network>,
}

impl Rules {
    fn of(limits: &Limits) -> Rules {
        let exempt = limits.exempt_addresses.iter().filter_map(|network| network.parse().ok()).collect();
        Rules { per_address: limits.connections_per_address, exempt }
    }

    /// The address that a player has, and how many players it may stand for; 0: any number.
    fn address(&self, asker: &Asker<'_>) -> (IpAddr, u32) {
        let addr = asker.peer.ip();
        if !self.exempt.iter().any(|network| network.contains(addr)) {
            return (addr, self.per_address);
        }
        let said = asker.headers.get_all(&FORWARDED_FOR).iter().next_back();
        let last = said.and_then(|said| said.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
        last.map_or((addr, 0), |addr| (addr, self.per_address))
    }
}

/// The players of one stream, or of all, in two halves of their time.
#[derive(Debug)]
struct Players {
    /// The half that something was noted in last, counted from the beginning. What was noted before the one before that is gone.
    half: AtomicU64,
    /// The one of even halves, and the one of odd ones.
    sketches: [Sketch; 2],
    turning: Mutex<()>,
}

impl Players {
    fn new(half: u64) -> Players {
        Players { half: half.into(), sketches: Default::default(), turning: Mutex::default() }
    }

    fn note(&self, player: u64, half: u64) {
        if self.half.load(Ordering::Acquire) < half {
            self.turn(half);
        }
        self.sketches[(half % 2) as usize].note(player);
    }

    #[cold]
    fn turn(&self, half: u64) {
        let _turning = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.half.load(Ordering::Relaxed);
        if before >= half {
            return;
        }
        self.sketches[(half % 2) as usize].clear();
        if before + 1 < half {
            self.sketches[((half + 1) % 2) as usize].clear();
        }
        self.half.store(half, Ordering::Release);
    }

    /// Looking changes nothing: when something was noted last decides when they are forgotten.
    fn count(&self, half: u64) -> u64 {
        let last = self.half.load(Ordering::Acquire);
        let [even, odd] = &self.sketches;
        match half.saturating_sub(last) {
            0 => even.count_of_both(odd),
            1 => {
                let last = &self.sketches[(last % 2) as usize];
                last.count_of_both(last)
            }
            _ => 0,
        }
    }
}

/// Those who watch one stream at this edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// What its paths begin with.
    pub stream: String,
    /// About how many players asked for something of it in the last 15 to 30 s.
    pub viewers: u64,
}

/// All who watch at this edge.
#[derive(Debug)]
pub struct Viewers {
    /// Keys that no client knows: nobody can choose where in a sketch something is noted.
    hasher: RandomState,
    began: Instant,
    table: RwLock<Table>,
    all: Players,
    metrics: Metrics,
}

#[derive(Debug)]
struct Table {
    rules: Rules,
    streams: HashMap<Box<str>, Players>,
}

impl Viewers {
    /// Nobody yet. Counts in these metrics, too.
    pub fn new(limits: &Limits, metrics: Metrics, now: Instant) -> Viewers {
        let table = RwLock::new(Table { rules: Rules::of(limits), streams: HashMap::new() });
        Viewers { hasher: RandomState::new(), began: now, table, all: Players::new(0), metrics }
    }

    /// Other limits per address are in force.
    pub fn set_limits(&self, limits: &Limits) {
        self.write().rules = Rules::of(limits);
    }

    /// Somebody was answered with something of the stream whose paths begin with `stream`.
    pub fn note(&self, stream: &str, asker: &Asker<'_>, now: Instant) {
        let half = self.half(now);
        let table = self.read();
        let player = self.player(&table.rules, asker);
        self.all.note(player, half);
        if let Some(players) = table.streams.get(stream) {
            players.note(player, half);
            return;
        }
        if table.streams.len() >= MAX_STREAMS {
            self.metrics.untold.inc();
            return;
        }
        drop(table);
        let mut table = self.write();
        // So that many who come at once cannot pass the bound.
        if table.streams.len() < MAX_STREAMS {
            let players = table.streams.entry(stream.into()).or_insert_with(|| Players::new(half));
            players.note(player, half);
        }
    }

    /// Now and then: forgets streams that nobody watches any more, and says how many watch.
    pub fn tick(&self, now: Instant) {
        let half = self.half(now);
        self.metrics.viewers.set(self.all.count(half) as i64);
        let is_over = |players: &Players| players.half.load(Ordering::Acquire) + 1 < half;
        if self.read().streams.values().any(is_over) {
            self.write().streams.retain(|_, players| !is_over(players));
        }
    }

    /// How many watch at this edge, each counted once. Takes a microsecond or two.
    pub fn all(&self, now: Instant) -> u64 {
        self.all.count(self.half(now))
    }

    /// How many watch the stream whose paths begin with `stream`. Takes a microsecond or two.
    pub fn of(&self, stream: &str, now: Instant) -> u64 {
        let half = self.half(now);
        self.read().streams.get(stream).map_or(0, |players| players.count(half))
    }

    /// The streams that somebody watches, those with the most viewers first. Takes a microsecond or two each.
    pub fn list(&self, now: Instant) -> Vec<Watched> {
        let half = self.half(now);
        let table = self.read();
        let counted = table.streams.iter().map(|(stream, players)| (stream.to_string(), players.count(half)));
        let mut streams: Vec<_> = counted.map(|(stream, viewers)| Watched { stream, viewers }).collect();
        drop(table);
        streams.retain(|watched| watched.viewers > 0);
        streams.sort_by(|a, b| b.viewers.cmp(&a.viewers).then_with(|| a.stream.cmp(&b.stream)));
        streams
    }

    /// What a player is noted as.
    fn player(&self, rules: &Rules, asker: &Asker<'_>) -> u64 {
        let (addr, most) = rules.address(asker);
        let player = match asker.session {
            Some(session) => self.hasher.hash_one(session),
            None => {
                let agent = asker.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
                self.hasher.hash_one((addr, agent))
            }
        };
        match most {
            0 => player,
            most => self.hasher.hash_one((net::household(addr), player % u64::from(most))),
        }
    }

    fn half(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.began).as_nanos() / HALF.as_nanos()) as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        // Every change under the lock is a single one.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is counted of all streams together. Cloning is cheap; register once per process.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    viewers: Gauge,
    untold: Counter,
}

impl Metrics {
    /// Adds the families to `registry`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let help =
            "Players that asked the edge for something of a stream in the last 15 to 30 seconds, estimated";
        registry.register("edge_viewers", help, metrics.viewers.clone());
        let help = "Requests for streams beyond the bound of streams whose viewers are told apart";
        registry.register("edge_viewers_untold", help, metrics.untold.clone());
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_address: u32) -> Limits {
        let exempt_addresses = vec!["10.0.0.1".into()];
        Limits { connections_per_address: per_address, exempt_addresses, ..Limits::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn viewers(per_address: u32) -> (Viewers, Instant) {
        let zero = Instant::now();
        (Viewers::new(&limits(per_address), Metrics::default(), zero), zero)
    }

    /// One request for `/live/a`.
    fn ask(viewers: &Viewers, now: Instant, addr: &str, agent: &str, session: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, agent.parse().unwrap());
        let peer = SocketAddr::new(addr.parse().unwrap(), 1);
        viewers.note("/live/a", &Asker { peer, headers: &headers, session }, now);
    }

    #[test]
    fn players_are_told_apart_as_well_as_they_can_be() {
        let (viewers, now) = viewers(4096);
        let count = || viewers.of("/live/a", now);
        ask(&viewers, now, "1.2.3.4", "x", None);
        ask(&viewers, now, "1.2.3.4", "x", None);
        assert_eq!(count(), 1);
        ask(&viewers, now, "1.2.3.4", "y", None);
        ask(&viewers, now, "1.2.3.5", "x", None);
        assert_eq!(count(), 3, "by agent and address");
        ask(&viewers, now, "1.2.3.4", "x", Some(1));
        ask(&viewers, now, "1.2.3.4", "x", Some(2));
        ask(&viewers, now, "1.2.3.4", "other", Some(2));
        assert_eq!(count(), 5, "by what they call their session");
        ask(&viewers, now, "2001:db8::1", "x", None);
        ask(&viewers, now, "2001:db8::2", "x", None);
        assert_eq!(count(), 7, "two of a household");
        assert_eq!(viewers.all(now), 7);
        assert_eq!(viewers.list(now), [Watched { stream: "/live/a".into(), viewers: 7 }]);
        assert_eq!(viewers.of("/live/b", now), 0);
    }

    #[test]
    fn an_address_stands_for_no_more_than_it_may() {
        let (viewers, now) = viewers(50);
        for n in 0..20_000 {
            ask(&viewers, now, "1.2.3.4", &n.to_string(), Some(n));
            ask(&viewers, now, &format!("2001:db8::{n:x}", n = n & 0xffff), "x", None);
        }
        let count = viewers.of("/live/a", now);
        assert!((90..=110).contains(&count), "two addresses, 50 each: {count}");
        viewers.set_limits(&limits(0));
        for n in 0..20_000 {
            ask(&viewers, now, "1.2.3.4", "x", Some(n));
        }
        assert!(viewers.of("/live/a", now) > 18_000, "no limit");
    }

    #[test]
    fn who_speaks_for_many_may_say_for_whom() {
        let (viewers, now) = viewers(50);
        let peer = SocketAddr::new("10.0.0.1".parse().unwrap(), 1);
        let ask = |said: &[&str], session| {
            let mut headers = HeaderMap::new();
            for said in said {
                headers.append(&FORWARDED_FOR, said.parse().unwrap());
            }
            viewers.note("/live/a", &Asker { peer, headers: &headers, session }, now);
            viewers.of("/live/a", now)
        };
        assert_eq!(ask(&["1.2.3.4"], None), 1);
        assert_eq!(
            ask(&["9.9.9.9", "8.8.8.8, 1.2.3.4"], None),
            1,
            "what viewers said themselves is not minded"
        );
        assert_eq!(ask(&["1.2.3.5"], None), 2);
        assert_eq!(ask(&["unknown"], None), 3, "as the balancer itself");
        assert_eq!(ask(&[], None), 3);
        let mut count = 3;
        for session in 0..1000 {
            count = ask(&[], Some(session));
        }
        assert!((930..=1080).contains(&count), "{count}");
        let stranger = SocketAddr::new("10.0.0.2".parse().unwrap(), 1);
        let mut headers = HeaderMap::new();
        for n in 0..100 {
            headers.insert(&FORWARDED_FOR, format!("1.1.1.{n}").parse().unwrap());
            viewers.note("/live/b", &Asker { peer: stranger, headers: &headers, session: None }, now);
        }
        assert_eq!(viewers.of("/live/b", now), 1, "from others it says nothing");
    }

    #[test]
    fn who_asks_no_more_is_counted_no_more() {
        let (viewers, zero) = viewers(0);
        let at = |seconds: u64| zero + Duration::from_secs(seconds);
        ask(&viewers, at(0), "1.1.1.1", "x", None);
        ask(&viewers, at(14), "1.1.1.2", "x", None);
        ask(&viewers, at(16), "1.1.1.3", "x", None);
        assert_eq!(viewers.of("/live/a", at(29)), 3);
        ask(&viewers, at(31), "1.1.1.3", "x", None);
        assert_eq!(viewers.of("/live/a", at(31)), 1, "the first half is forgotten");
        viewers.tick(at(59));
        assert_eq!((viewers.of("/live/a", at(59)), viewers.metrics.viewers.get()), (1, 1));
        viewers.tick(at(61));
        assert_eq!((viewers.metrics.viewers.get(), viewers.read().streams.len()), (0, 0));
        // Long after, what was in either half is not there again.
        ask(&viewers, at(1000), "1.1.1.9", "x", None);
        assert_eq!((viewers.of("/live/a", at(1000)), viewers.all(at(1000))), (1, 1));
    }

    #[test]
    fn streams_have_a_bound() {
        let (viewers, now) = viewers(0);
        let headers = HeaderMap::new();
        let asker =
            Asker { peer: SocketAddr::new("1.1.1.1".parse().unwrap(), 1), headers: &headers, session: None };
        for n in 0..MAX_STREAMS + 5 {
            viewers.note(&format!("/live/{n}"), &asker, now);
        }
        assert_eq!((viewers.list(now).len(), viewers.metrics.untold.get()), (MAX_STREAMS, 5));
        assert_eq!(viewers.all(now), 1, "who watches several is one viewer");
        viewers.tick(now + 2 * HALF);
        viewers.note("/live/new", &asker, now + 2 * HALF);
        assert_eq!(viewers.list(now + 2 * HALF).len(), 1, "those that are over make room");
    }
}
