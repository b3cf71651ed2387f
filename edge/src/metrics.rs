//! What a tier counts. One set of families serves all tiers of a process; each tier resolves its own once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::shelf;

/// Class names that a tier counts by; classes that come when there are so many share one label, [`MORE`]: an operator may
/// change the policy as often as he likes.
const MAX_CLASS_LABELS: usize = 256;

/// The label of the classes that have none of their own.
const MORE: &str = "(more)";

/// Upper bounds of the times that requests wait and fetches take, in seconds: a hop, a part, segments, the give-up times.
const WAIT_BUCKETS: [f64; 12] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// Upper bounds of the numbers of fetches that a name needed.
const FETCH_BUCKETS: [f64; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 8.0];

/// Seconds over which the leak ratio is taken.
const LEAK_WINDOW: usize = 60;

/// Labels of what a tier has one of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Tier {
    tier: &'static str,
}

/// Labels of answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    tier: &'static str,
    result: &'static str,
}

/// Labels of what is counted by class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    tier: &'static str,
    class: String,
}

/// Labels of answers by class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassRequest {
    tier: &'static str,
    class: String,
    result: &'static str,
}

/// Labels of fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Fetch {
    tier: &'static str,
    class: String,
    outcome: &'static str,
}

/// Labels of probes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Probe {
    tier: &'static str,
    outcome: &'static str,
}

/// Labels of what has reasons.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    tier: &'static str,
    reason: &'static str,
}

/// The families. Cloning is cheap; register once per process.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests answered, by how: each request counts once.
    requests: Family<Request, Counter>,
    /// Connections, requests and streams that were refused or cut off, by why: each counts once.
    pub(crate) refusals: Family<crate::protection::Refused, Counter>,
    /// Requests to upstreams, by class and by what became of their headers: each counts once.
    fetches: Family<Fetch, Counter>,
    /// Fetches started because the one before was slow.
    promotions: Family<Class, Counter>,
    /// Bodies that broke off after their headers.
    broken_bodies: Family<Class, Counter>,
    /// Probes of upstreams that were down or silent, by whether they answered.
    probes: Family<Probe, Counter>,
    /// Requests that wait for headers or for a range.
    waiters: Family<Tier, Gauge>,
    /// Names in flight.
    inflight_names: Family<Tier, Gauge>,
    /// Body bytes handed to viewers' connections.
    served_bytes: Family<Tier, Counter>,
    /// Memory of complete objects.
    cache_bytes: Family<Tier, Gauge>,
    /// Memory of objects on their way.
    inflight_bytes: Family<Tier, Gauge>,
    /// Memory of objects that are read and not kept.
    held_bytes: Family<Tier, Gauge>,
    /// Objects that have left the cache, by why.
    left_objects: Family<Reason, Counter>,
    /// Complete objects that were not kept.
    unkept_objects: Family<Tier, Counter>,
    /// Requests for objects, by class and how they were answered.
    class_requests: Family<ClassRequest, Counter>,
    /// How long requests waited that had to.
    wait_seconds: Family<Class, Histogram, fn() -> Histogram>,
    /// How long upstreams took.
    fetch_seconds: Family<Class, Histogram, fn() -> Histogram>,
    /// Fetches that a name needed, by names fetched.
    fetches_per_name: Family<Tier, Histogram, fn() -> Histogram>,
    /// Requests that met a bound, by which.
    overloads: Family<Reason, Counter>,
    /// Fetches per request over the last minute.
    leak_ratio: Family<Tier, Gauge<f64, AtomicU64>>,
    pub(crate) push: crate::push::metrics::Metrics,
    pub(crate) cmcd: crate::cmcd::Metrics,
    pub(crate) viewers: crate::viewers::Metrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            fetches: Family::default(),
            promotions: Family::default(),
            broken_bodies: Family::default(),
            waiters: Family::default(),
            inflight_names: Family::default(),
            served_bytes: Family::default(),
            cache_bytes: Family::default(),
            inflight_bytes: Family::default(),
            held_bytes: Family::default(),
            left_objects: Family::default(),
            unkept_objects: Family::default(),
            class_requests: Family::default(),
            wait_seconds: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            fetch_seconds: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            fetches_per_name: Family::new_with_constructor(|| Histogram::new(FETCH_BUCKETS)),
            overloads: Family::default(),
            probes: Family::default(),
            refusals: Family::default(),
            leak_ratio: Family::default(),
            push: crate::push::metrics::Metrics::default(),
            cmcd: crate::cmcd::Metrics::default(),
            viewers: crate::viewers::Metrics::default(),
        }
    }
}

/// How a request was answered: the `result` label, and the words for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// From a fresh complete object.
    Hit,
    /// By a fetch that it started.
    Miss,
    /// By a fetch that was under way.
    Coalesced,
    /// By a fetch that it started and that needed another one beside it.
    Promoted,
    /// By what was there, after a fetch that it started said that it is still good.
    Revalidated,
    /// By a push from the tier above, for which it waited.
    Pushed,
    /// From a stale object, as its class allows.
    Stale,
    /// The upstream failed or was too slow, now or within the negative TTL.
    Error,
    /// A bound of ours was reached.
    Overloaded,
    /// By this process itself: a page, or CORS preflight.
    Local,
    /// Not to be served: method, length of the name.
    Refused,
    /// It has come round in a circle.
    Loop,
    /// It has no token, or none that opens what it asks for.
    Forbidden,
}

impl Answered {
    const ALL: [Answered; 13] = [
        Answered::Hit,
        Answered::Miss,
        Answered::Coalesced,
        Answered::Promoted,
        Answered::Revalidated,
        Answered::Pushed,
        Answered::Stale,
        Answered::Error,
        Answered::Overloaded,
        Answered::Local,
        Answered::Refused,
        Answered::Loop,
        Answered::Forbidden,
    ];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Answered::Hit => "hit",
            Answered::Miss => "miss",
            Answered::Coalesced => "coalesced",
            Answered::Promoted => "promoted",
            Answered::Revalidated => "revalidated",
            Answered::Pushed => "pushed",
            Answered::Stale => "stale",
            Answered::Error => "error",
            Answered::Overloaded => "overloaded",
            Answered::Local => "local",
            Answered::Refused => "refused",
            Answered::Loop => "loop",
            Answered::Forbidden => "forbidden",
        }
    }
}

impl Metrics {
    /// Adds the families to `registry`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let push = crate::push::metrics::Metrics::register(registry);
        let cmcd = crate::cmcd::Metrics::register(registry);
        let viewers = crate::viewers::Metrics::register(registry);
        let metrics = Metrics { push, cmcd, viewers, ..Metrics::default() };
        registry.register("edge_requests", "Requests answered, by how", metrics.requests.clone());
        let help = "Connections, requests and streams refused or cut off to protect the tier, by why";
        registry.register("edge_refusals", help, metrics.refusals.clone());
        let help = "Requests to upstreams, by class and by what became of their headers";
        registry.register("edge_fetches", help, metrics.fetches.clone());
        let help = "Fetches started because the one before was slow";
        registry.register("edge_promotions", help, metrics.promotions.clone());
        let help = "Bodies that broke off after their headers";
        registry.register("edge_broken_bodies", help, metrics.broken_bodies.clone());
        let help = "Probes of upstreams that were down or silent, by whether they answered";
        registry.register("edge_probes", help, metrics.probes.clone());
        let help = "Requests that wait for headers or for a range";
        registry.register("edge_waiters", help, metrics.waiters.clone());
        registry.register("edge_inflight_names", "Names in flight", metrics.inflight_names.clone());
        let help = "Body bytes handed to viewers' connections";
        registry.register("edge_served_bytes", help, metrics.served_bytes.clone());
        registry.register("edge_cache_bytes", "Memory of complete objects", metrics.cache_bytes.clone());
        let help = "Memory of objects on their way";
        registry.register("edge_inflight_bytes", help, metrics.inflight_bytes.clone());
        let help = "Memory of objects that viewers still read and that are not in the cache";
        registry.register("edge_held_bytes", help, metrics.held_bytes.clone());
        let help = "Objects that have left the cache, by why; replaced ones are not counted";
        registry.register("edge_left_objects", help, metrics.left_objects.clone());
        let help = "Complete objects that were not kept, since viewers and fetches had all memory";
        registry.register("edge_unkept_objects", help, metrics.unkept_objects.clone());
        let help = "Requests for objects that were found, by class and by how";
        registry.register("edge_class_requests", help, metrics.class_requests.clone());
        let help = "Seconds that requests waited for the headers of their object, of those that had to";
        registry.register("edge_wait_seconds", help, metrics.wait_seconds.clone());
        let help = "Seconds from a request to an upstream to its headers";
        registry.register("edge_fetch_seconds", help, metrics.fetch_seconds.clone());
        let help = "Requests to upstreams that a name needed, each time it was fetched";
        registry.register("edge_fetches_per_name", help, metrics.fetches_per_name.clone());
        let help = "Requests refused because a bound was reached, by which";
        registry.register("edge_overloads", help, metrics.overloads.clone());
        let help = "Requests to upstreams per request for an object, over the last minute";
        registry.register("edge_leak_ratio", help, metrics.leak_ratio.clone());
        metrics
    }

    pub(crate) fn of(&self, tier: &'static str) -> TierMetrics {
        let only = Tier { tier };
        TierMetrics {
            requests: Answered::ALL.map(|answered| {
                self.requests.get_or_create_owned(&Request { tier, result: answered.as_str() })
            }),
            waiters: self.waiters.get_or_create_owned(&only),
            inflight_names: self.inflight_names.get_or_create_owned(&only),
            served_bytes: self.served_bytes.get_or_create_owned(&only),
            cache_bytes: self.cache_bytes.get_or_create_owned(&only),
            inflight_bytes: self.inflight_bytes.get_or_create_owned(&only),
            held_bytes: self.held_bytes.get_or_create_owned(&only),
            left: shelf::Counters {
                evicted: self.left_objects.get_or_create_owned(&Reason { tier, reason: "evicted" }),
                expired: self.left_objects.get_or_create_owned(&Reason { tier, reason: "expired" }),
                purged: self.left_objects.get_or_create_owned(&Reason { tier, reason: "purged" }),
            },
            unkept: self.unkept_objects.get_or_create_owned(&only),
            overloads: Overload::ALL.map(|overload| {
                self.overloads.get_or_create_owned(&Reason { tier, reason: overload.as_str() })
            }),
            fetches_per_name: self.fetches_per_name.get_or_create_owned(&only),
            leak_ratio: self.leak_ratio.get_or_create_owned(&only),
            leak: Mutex::default(),
            started: Counter::default(),
            classes: Mutex::default(),
            families: self.clone(),
            tier,
        }
    }
}

/// The counters of one tier.
#[derive(Debug)]
pub(crate) struct TierMetrics {
    requests: [Counter; Answered::ALL.len()],
    pub(crate) waiters: Gauge,
    pub(crate) inflight_names: Gauge,
    pub(crate) served_bytes: Counter,
    pub(crate) cache_bytes: Gauge,
    pub(crate) inflight_bytes: Gauge,
    pub(crate) held_bytes: Gauge,
    pub(crate) left: shelf::Counters,
    pub(crate) unkept: Counter,
    overloads: [Counter; Overload::ALL.len()],
    fetches_per_name: Histogram,
    leak_ratio: Gauge<f64, AtomicU64>,
    leak: Mutex<Leak>,
    /// Requests to upstreams.
    started: Counter,
    classes: Mutex<BTreeMap<String, Arc<ClassMetrics>>>,
    families: Metrics,
    tier: &'static str,
}

impl TierMetrics {
    pub(crate) fn answered(&self, answered: Answered) {
        self.requests[answered as usize].inc();
    }

    /// A request met a bound.
    pub(crate) fn overloaded(&self, overload: Overload) {
        self.overloads[overload as usize].inc();
    }

    pub(crate) fn fetched(&self, class: &ClassMetrics, outcome: &'static str) {
        let labels = Fetch { tier: self.tier, class: class.label.clone(), outcome };
        self.families.fetches.get_or_create(&labels).inc();
    }

    pub(crate) fn promoted(&self, class: &ClassMetrics) {
        self.families.promotions.get_or_create(&self.labels(class)).inc();
    }

    pub(crate) fn broke(&self, class: &ClassMetrics) {
        self.families.broken_bodies.get_or_create(&self.labels(class)).inc();
    }

    pub(crate) fn probed(&self, answered: bool) {
        let outcome = if answered { "answered" } else { "failed" };
        self.families.probes.get_or_create(&Probe { tier: self.tier, outcome }).inc();
    }

    /// The counters of a class. Takes a lock: once per fetch, not per request.
    pub(crate) fn class(&self, name: &str) -> Arc<ClassMetrics> {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        let full = classes.len() >= MAX_CLASS_LABELS;
        let label = if classes.contains_key(name) || !full { name } else { MORE };
        if let Some(class) = classes.get(label) {
            return class.clone();
        }
        let requests = Answered::ALL.map(|answered| {
            let (class, result) = (label.to_owned(), answered.as_str());
            self.families.class_requests.get_or_create_owned(&ClassRequest { tier: self.tier, class, result })
        });
        let labels = Class { tier: self.tier, class: label.to_owned() };
        let waited = self.families.wait_seconds.get_or_create_owned(&labels);
        let fetched = self.families.fetch_seconds.get_or_create_owned(&labels);
        let class = Arc::new(ClassMetrics { label: label.to_owned(), requests, waited, fetched });
        classes.insert(label.to_owned(), class.clone());
        class
    }

    /// Counts the fetches of one name, from now until it is dropped.
    pub(crate) fn tally(&self) -> Tally {
        Tally { per_name: self.fetches_per_name.clone(), all: self.started.clone(), count: 0 }
    }

    /// Once a second: what is said of the last minute.
    pub(crate) fn tick(&self) {
        let not_for_objects = [Answered::Local, Answered::Refused, Answered::Loop, Answered::Forbidden];
        let asked = Answered::ALL.iter().filter(|answered| !not_for_objects.contains(answered));
        let asked = asked.map(|answered| self.requests[*answered as usize].get()).sum();
        let mut leak = self.leak.lock().unwrap_or_else(PoisonError::into_inner);
        self.leak_ratio.set(leak.push(asked, self.started.get()));
    }

    fn labels(&self, class: &ClassMetrics) -> Class {
        Class { tier: self.tier, class: class.label.clone() }
    }
}

/// The counters of one class in one tier. Objects carry them along, so that a hit looks nothing up.
#[derive(Debug)]
pub(crate) struct ClassMetrics {
    label: String,
    requests: [Counter; Answered::ALL.len()],
    waited: Histogram,
    fetched: Histogram,
}

impl ClassMetrics {
    /// A request for an object of the class was answered.
    pub(crate) fn answered(&self, answered: Answered) {
        self.requests[answered as usize].inc();
    }

    /// An upstream took so long until its headers.
    pub(crate) fn took(&self, time: Duration) {
        self.fetched.observe(time.as_secs_f64());
    }

    /// A request waited for so long until its object had headers.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited.observe(time.as_secs_f64());
    }
}

/// Counts the fetches of one name.
#[derive(Debug)]
pub(crate) struct Tally {
    per_name: Histogram,
    all: Counter,
    count: u32,
}

impl Tally {
    /// One more.
    pub(crate) fn started(&mut self) {
        self.all.inc();
        self.count += 1;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.per_name.observe(f64::from(self.count));
    }
}

/// Fetches per request, from what both counters said each second.
#[derive(Debug, Default)]
struct Leak(VecDeque<(u64, u64)>);

impl Leak {
    /// Takes what the counters say now; the ratio since the oldest of the window, 0 if nobody asked.
    fn push(&mut self, requests: u64, fetches: u64) -> f64 {
        self.0.push_back((requests, fetches));
        if self.0.len() > LEAK_WINDOW + 1 {
            self.0.pop_front();
        }
        let (requests_before, fetches_before) = self.0.front().copied().unwrap_or_default();
        let asked = requests.saturating_sub(requests_before);
        if asked == 0 { 0.0 } else { fetches.saturating_sub(fetches_before) as f64 / asked as f64 }
    }
}

/// Which bound a request met: the `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// `max_inflight_names`: names that are being fetched.
    Names,
    /// The same, of fetches whose bodies still come although nobody may join them.
    Flights,
    /// `inflight_size`: bodies on their way.
    Memory,
    /// `max_waiters`: requests that wait.
    Waiters,
}

impl Overload {
    const ALL: [Overload; 4] = [Overload::Names, Overload::Flights, Overload::Memory, Overload::Waiters];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Overload::Names => "names",
            Overload::Flights => "flights",
            Overload::Memory => "memory",
            Overload::Waiters => "waiters",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tiers_share_the_families() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        for answered in Answered::ALL {
            assert_eq!(Answered::ALL[answered as usize], answered, "the order of ALL is the enum's");
            metrics.of("edge").answered(answered);
        }
        metrics.of("shield").answered(Answered::Hit);
        metrics.of("edge").answered(Answered::Hit);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("edge_requests_total{tier=\"edge\",result=\"hit\"} 2\n"), "{text}");
        assert!(text.contains("edge_requests_total{tier=\"shield\",result=\"hit\"} 1\n"), "{text}");
    }
    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn classes_have_labels_within_a_bound() {
        let mut registry = Registry::default();
        let tier = Metrics::register(&mut registry).of("edge");
        for number in 0..2 * MAX_CLASS_LABELS {
            let class = tier.class(&format!("c{number}"));
            class.answered(Answered::Hit);
            tier.fetched(&class, "answered");
        }
        tier.class("c1").answered(Answered::Hit);
        let text = text(&registry);
        let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("edge_fetches_total{"), MAX_CLASS_LABELS + 1);
        assert!(text.contains("edge_class_requests_total{tier=\"edge\",class=\"c1\",result=\"hit\"} 2\n"));
        let more = format!("class=\"(more)\",result=\"hit\"}} {MAX_CLASS_LABELS}\n");
        assert!(text.contains(&more), "{text}");
    }

    #[test]
    fn names_and_overloads_are_told_apart() {
        let mut registry = Registry::default();
        let tier = Metrics::register(&mut registry).of("edge");
        for overload in Overload::ALL {
            assert_eq!(Overload::ALL[overload as usize], overload, "the order of ALL is the enum's");
        }
        tier.overloaded(Overload::Memory);
        let (mut one, two) = (tier.tally(), tier.tally());
        one.started();
        one.started();
        drop((one, two));
        let text = text(&registry);
        for line in [
            "edge_overloads_total{tier=\"edge\",reason=\"memory\"} 1",
            "edge_overloads_total{tier=\"edge\",reason=\"names\"} 0",
            "edge_fetches_per_name_bucket{le=\"0.0\",tier=\"edge\"} 1",
            "edge_fetches_per_name_bucket{le=\"1.0\",tier=\"edge\"} 1",
            "edge_fetches_per_name_bucket{le=\"2.0\",tier=\"edge\"} 2",
            "edge_fetches_per_name_count{tier=\"edge\"} 2",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
    }

    #[test]
    fn the_leak_is_that_of_the_last_minute() {
        let mut leak = Leak::default();
        assert_eq!(leak.push(0, 0), 0.0);
        assert_eq!(leak.push(1000, 100), 0.1);
        for _ in 0..LEAK_WINDOW - 1 {
            assert_eq!(leak.push(1000, 100), 0.1);
        }
        assert_eq!(leak.push(1100, 101), 0.01, "the burst is out of sight");
        assert_eq!(leak.0.len(), LEAK_WINDOW + 1);
    }
}
