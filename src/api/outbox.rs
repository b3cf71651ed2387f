//! Events that are to be delivered: written with the change that they tell of, in one transaction, so that neither is
//! there without the other.

use std::sync::Arc;

use cluster::store::{Error, Outcome, Txn};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::broadcast::{Broadcast, Step, rfc3339};
use super::config::Webhooks;
use super::events::Kind;
use super::metrics::{Dropped, Metrics};
use super::records::{self, Records};

/// One event for one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// The same for all receivers and all attempts.
    pub(crate) id: String,
    /// When it happened, milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// What is posted, byte for byte.
    pub(crate) body: String,
}

/// Writes steps of broadcasts.
pub(crate) struct Outbox {
    pub(crate) records: Arc<Records>,
    pub(crate) webhooks: Webhooks,
    pub(crate) metrics: Metrics,
}

/// How a step went.
pub(crate) enum Stepped {
    /// It is done: what became of the broadcast, and the revision of that.
    Done(Box<Broadcast>, u64),
    /// Somebody else changed the broadcast meanwhile: look again.
    Changed,
}

impl Outbox {
    /// Takes a broadcast, as it was at `revision`, one step on, and says so to those who want to know.
    pub(crate) async fn step(
        &self,
        revision: u64,
        broadcast: &Broadcast,
        step: &Step,
    ) -> Result<Stepped, Error> {
        let Some((next, kind)) = broadcast.after(step) else { return Ok(Stepped::Changed) };
        let key = records::broadcast_key(&next.id);
        let value = serde_json::to_string(&next).expect("a record is JSON");
        let mut txn = Txn::new().if_revision(&key, revision).put(key, value, None);
        // Of one that was over before, the stream may be another's by now.
        if broadcast.open() && !next.open() {
            txn = txn.delete(records::stream_key(next.stream.as_str()));
        }
        let silent = txn.clone();
        let (txn, dropped) = match kind {
            None => (txn, 0),
            Some(kind) => self.tell(txn, &next, kind, at_ms(step)),
        };
        let outcome = match self.records.commit(txn).await {
            // The state of a broadcast is worth more than the news of it.
            Err(Error::Refused(why)) if kind.is_some() => {
                tracing::warn!(broadcast = next.id, why, "no room for events: receivers will miss one");
                self.metrics.events_dropped.get_or_create(&Dropped { reason: "no_room" }).inc();
                self.records.commit(silent).await?
            }
            outcome => outcome?,
        };
        let Outcome::Done(revision) = outcome else { return Ok(Stepped::Changed) };
        self.metrics.events_dropped.get_or_create(&Dropped { reason: "full" }).inc_by(dropped);
        tracing::info!(broadcast = next.id, stream = %next.stream, state = next.state.as_str(), "broadcast goes on");
        Ok(Stepped::Done(Box::new(next), revision))
    }

    /// Adds an event for each receiver that wants it, and how many older ones leave for them.
    fn tell(&self, mut txn: Txn, broadcast: &Broadcast, kind: Kind, at_ms: u64) -> (Txn, u64) {
        let number = broadcast.events;
        let id = format!("evt_{}_{number}", broadcast.id);
        let body = json!({
            "type": kind.event_type(),
            "timestamp": rfc3339(at_ms),
            "id": id,
            "number": number,
            "data": broadcast.view(),
        });
        let event = Event { id, at_ms, body: body.to_string() };
        let value = serde_json::to_string(&event).expect("a record is JSON");
        let copy = self.records.copy();
        let mut dropped = 0;
        for endpoint in self.webhooks.endpoints.iter().filter(|endpoint| endpoint.events.contains(&kind)) {
            if copy.waiting(&endpoint.name).count() >= self.webhooks.max_waiting
                && let Some((oldest, _)) =
                    copy.waiting(&endpoint.name).min_by_key(|(_, (revision, _))| *revision)
            {
                txn = txn.delete(oldest);
                dropped += 1;
            }
            let key = format!("{}{}/{number:08}", records::events_key(&endpoint.name), broadcast.id);
            txn = txn.put(key, &value, None);
        }
        (txn, dropped)
    }
}

fn at_ms(step: &Step) -> u64 {
    match step {
        Step::Start { at_ms, .. }
        | Step::Interrupt { at_ms }
        | Step::Resume { at_ms, .. }
        | Step::End { at_ms, .. }
        | Step::Archive { at_ms, .. } => *at_ms,
        // Nobody is told of these.
        Step::Move { .. } | Step::Keep { .. } => 0,
    }
}
