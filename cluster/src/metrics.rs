//! Counters of the store and of claims.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How a claim ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Claimed {
    /// `granted`, `owned` (without asking the store), `elsewhere`, `contended`, `no_store`.
    pub outcome: &'static str,
}

/// Counters of a node's part in the cluster. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Whether the store answers: 1 or 0.
    pub store_up: Gauge,
    /// Times that the store was lost, or a lease of this node ended.
    pub store_losses: Counter,
    /// Claims of streams, by outcome.
    pub claims: Family<Claimed, Counter>,
    /// Streams that this node had to give up since another claimed them.
    pub fenced_streams: Counter,
    /// Time from a change that this node makes in the store until its watch tells of it, seconds.
    pub watch_lag: Histogram,
    /// Records in the store that could not be read.
    pub bad_records: Counter,
    /// Nodes that are there, of all roles.
    pub nodes: Gauge,
}

impl Metrics {
    /// Counters that nobody reads.
    pub fn unread() -> Metrics {
        Metrics::register(&mut Registry::default())
    }

    /// Makes them and registers them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            store_up: Gauge::default(),
            store_losses: Counter::default(),
            claims: Family::default(),
            fenced_streams: Counter::default(),
            watch_lag: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
            bad_records: Counter::default(),
            nodes: Gauge::default(),
        };
        for outcome in ["granted", "owned", "elsewhere", "contended", "no_store"] {
            drop(metrics.claims.get_or_create(&Claimed { outcome }));
        }
        let Metrics { store_up, store_losses, claims, fenced_streams, watch_lag, bad_records, nodes } =
            &metrics;
        registry.register("cluster_store_up", "Whether the store answers: 1 or 0", store_up.clone());
        registry.register(
            "cluster_store_losses",
            "Times that the store was lost, or a lease of this node ended",
            store_losses.clone(),
        );
        registry.register("cluster_claims", "Claims of streams, by outcome", claims.clone());
        registry.register(
            "cluster_fenced_streams",
            "Streams that this node had to give up since another claimed them",
            fenced_streams.clone(),
        );
        registry.register(
            "cluster_watch_lag_seconds",
            "Time from a change that this node makes in the store until its watch tells of it",
            watch_lag.clone(),
        );
        registry.register(
            "cluster_bad_records",
            "Records in the store that could not be read",
            bad_records.clone(),
        );
        registry.register("cluster_nodes", "Nodes that are there, one for each role", nodes.clone());
        metrics
    }
}
