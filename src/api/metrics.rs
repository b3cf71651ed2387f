//! What the API has done.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Requests by the status of their answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Status {
    pub(crate) status: u16,
}

/// Attempts by receiver (a name of the configuration) and how they went: `delivered`, `refused` (an answer other than 2xx),
/// `failed` (no answer).
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Attempt {
    pub(crate) receiver: String,
    pub(crate) outcome: &'static str,
}

/// Why an event will never be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Dropped {
    pub(crate) reason: &'static str,
}

/// Of one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Receiver {
    pub(crate) receiver: String,
}

/// Counters; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<Status, Counter>,
    pub(crate) attempts: Family<Attempt, Counter>,
    pub(crate) events_dropped: Family<Dropped, Counter>,
    pub(crate) events_waiting: Family<Receiver, Gauge>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        registry.register("api_requests", "Requests to the Live API, by status", metrics.requests.clone());
        let help = "Attempts to deliver an event, by receiver and outcome";
        registry.register("api_webhook_attempts", help, metrics.attempts.clone());
        let help = "Events that will not be delivered: full, no_room, gave_up, gone, or receiver_removed";
        registry.register("api_webhook_events_dropped", help, metrics.events_dropped.clone());
        let help = "Events that wait for a receiver, at the node that delivers";
        registry.register("api_webhook_events_waiting", help, metrics.events_waiting.clone());
        metrics
    }
}
