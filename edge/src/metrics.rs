//! What a tier counts. One set of families serves all tiers of a process; each tier resolves its own once.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::shelf;

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
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests answered, by how: each request counts once.
    requests: Family<Request, Counter>,
    /// Requests to upstreams, by class and by what became of their headers: each counts once.
    fetches: Family<Fetch, Counter>,
    /// Fetches started because the one before was slow.
    promotions: Family<Class, Counter>,
    /// Bodies that broke off after their headers.
    broken_bodies: Family<Class, Counter>,
    /// Probes of upstreams that were down, by whether they answered.
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
        let metrics = Metrics::default();
        registry.register("edge_requests", "Requests answered, by how", metrics.requests.clone());
        let help = "Requests to upstreams, by class and by what became of their headers";
        registry.register("edge_fetches", help, metrics.fetches.clone());
        let help = "Fetches started because the one before was slow";
        registry.register("edge_promotions", help, metrics.promotions.clone());
        let help = "Bodies that broke off after their headers";
        registry.register("edge_broken_bodies", help, metrics.broken_bodies.clone());
        let help = "Probes of upstreams that were down, by whether they answered";
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
    families: Metrics,
    tier: &'static str,
}

impl TierMetrics {
    pub(crate) fn answered(&self, answered: Answered) {
        self.requests[answered as usize].inc();
    }

    pub(crate) fn fetched(&self, class: &str, outcome: &'static str) {
        let labels = Fetch { tier: self.tier, class: class.into(), outcome };
        self.families.fetches.get_or_create(&labels).inc();
    }

    pub(crate) fn promoted(&self, class: &str) {
        self.families.promotions.get_or_create(&self.class(class)).inc();
    }

    pub(crate) fn broke(&self, class: &str) {
        self.families.broken_bodies.get_or_create(&self.class(class)).inc();
    }

    pub(crate) fn probed(&self, answered: bool) {
        let outcome = if answered { "answered" } else { "failed" };
        self.families.probes.get_or_create(&Probe { tier: self.tier, outcome }).inc();
    }

    fn class(&self, class: &str) -> Class {
        Class { tier: self.tier, class: class.into() }
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
}
