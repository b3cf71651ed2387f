//! What a tier counts of its pushes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of what parts take, in seconds: a part lasts 50 ms to a second.
const PART_BUCKETS: [f64; 12] = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0];

/// Labels of what a tier has one of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Tier {
    tier: &'static str,
}

/// Labels of what is counted by how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    tier: &'static str,
    reason: &'static str,
}

/// The families. Cloning is cheap; register once per process.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pushes: Family<Tier, Gauge>,
    ends: Family<Ended, Counter>,
    objects: Family<Tier, Counter>,
    bytes: Family<Tier, Counter>,
    kept: Family<Tier, Counter>,
    missed: Family<Tier, Counter>,
    subscribers: Family<Tier, Gauge>,
    part_seconds: Parts,
    sent_seconds: Parts,
}

#[derive(Debug, Clone)]
struct Parts(Family<Tier, Histogram, fn() -> Histogram>);

impl Default for Parts {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(PART_BUCKETS)))
    }
}

impl Metrics {
    /// Adds the families to `registry`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register("edge_pushes", "Pushes from the tier above under way", metrics.pushes.clone());
        let help = "Attempts to be pushed a stream that ended, by why";
        registry.register("edge_push_ends", help, metrics.ends.clone());
        registry.register("edge_push_objects", "Objects that were pushed here", metrics.objects.clone());
        registry.register("edge_push_bytes", "Bytes of bodies that were pushed here", metrics.bytes.clone());
        let help = "Promised objects that a request waited for and that were pushed";
        registry.register("edge_push_promises_kept", help, metrics.kept.clone());
        let help = "Promised objects that a request waited for and that were not pushed";
        registry.register("edge_push_promises_missed", help, metrics.missed.clone());
        let help = "Nodes of the tier below that streams are pushed to, once for each stream";
        registry.register("edge_push_subscribers", help, metrics.subscribers.clone());
        let help =
            "Seconds from when the first frame of a part came in at its POP to when the part was pushed here";
        registry.register("edge_part_seconds", help, metrics.part_seconds.0.clone());
        let help = "Seconds from when the first frame of a part came in at its POP to when the connection of a client that waited for \
                    it had taken its last byte";
        registry.register("edge_sent_seconds", help, metrics.sent_seconds.0.clone());
        metrics
    }

    pub(crate) fn of(&self, tier: &'static str) -> TierMetrics {
        let only = Tier { tier };
        TierMetrics {
            pushes: self.pushes.get_or_create_owned(&only),
            objects: self.objects.get_or_create_owned(&only),
            bytes: self.bytes.get_or_create_owned(&only),
            kept: self.kept.get_or_create_owned(&only),
            missed: self.missed.get_or_create_owned(&only),
            subscribers: self.subscribers.get_or_create_owned(&only),
            part_seconds: self.part_seconds.0.get_or_create_owned(&only),
            sent_seconds: self.sent_seconds.0.get_or_create_owned(&only),
            ends: self.ends.clone(),
            tier,
        }
    }
}

/// The counters of one tier.
#[derive(Debug)]
pub(crate) struct TierMetrics {
    pub(crate) pushes: Gauge,
    pub(crate) objects: Counter,
    pub(crate) bytes: Counter,
    pub(crate) kept: Counter,
    pub(crate) missed: Counter,
    pub(crate) subscribers: Gauge,
    pub(crate) part_seconds: Histogram,
    pub(crate) sent_seconds: Histogram,
    ends: Family<Ended, Counter>,
    tier: &'static str,
}

impl TierMetrics {
    pub(crate) fn ended(&self, reason: &'static str) {
        self.ends.get_or_create(&Ended { tier: self.tier, reason }).inc();
    }
}
