//! Who was refused, and what was changed.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why a request was refused before it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

/// What came of a change: `done`, `refused`, `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    pub(super) outcome: &'static str,
}

/// Counters; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    pub(super) refused: Family<Reason, Counter>,
    pub(super) refused_connections: Family<Reason, Counter>,
    pub(super) changes: Family<Outcome, Counter>,
    pub(super) audit_lost: Counter,
}

impl net::Observe for Metrics {
    fn refused(&self, why: net::Refusal) {
        self.refused_connections.get_or_create(&Reason { reason: why.as_str() }).inc();
    }
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let help = "Requests to the admin listener that were refused, by reason: foreign_host, foreign_page, no_token, bad_token, \
                    too_many (wrong tokens), role";
        registry.register("admin_refused_requests", help, metrics.refused.clone());
        let help = "Connections to the admin listener that were refused or cut off, by reason";
        registry.register("admin_refused_connections", help, metrics.refused_connections.clone());
        let help = "Changes asked for at the admin listener: done, refused or failed";
        registry.register("admin_changes", help, metrics.changes.clone());
        let help = "Changes whose line could not be written to admin.audit";
        registry.register("admin_audit_lost", help, metrics.audit_lost.clone());
        metrics
    }
}
