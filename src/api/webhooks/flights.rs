//! Deliveries on their way: whatever becomes of one, it comes back.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

use super::send::Answer;

/// An event that is being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) broadcast: String,
    /// Of its record.
    pub(super) key: String,
    /// When it happened, milliseconds since 1970.
    pub(super) at_ms: u64,
}

/// Those of one receiver.
#[derive(Debug, Default)]
pub(super) struct Flights {
    tasks: JoinSet<Answer>,
    flights: HashMap<Id, Flight>,
}

impl Flights {
    /// One begins.
    pub(super) fn begin(&mut self, flight: Flight, send: impl Future<Output = Answer> + Send + 'static) {
        let task = self.tasks.spawn(send);
        self.flights.insert(task.id(), flight);
    }

    /// The next that is over; one whose task panicked was not taken. `None`: there are none. May be dropped midway.
    pub(super) async fn next(&mut self) -> Option<(Flight, Answer)> {
        let (id, answer) = match self.tasks.join_next_with_id().await? {
            Ok((id, answer)) => (id, answer),
            Err(error) => {
                tracing::error!(%error, "a delivery failed");
                (error.id(), Answer::No { status: None, why: error.to_string(), retry_after_ms: 0 })
            }
        };
        self.flights.remove(&id).map(|flight| (flight, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_panics_comes_back_as_not_taken() {
        let mut flights = Flights::default();
        assert!(flights.next().await.is_none());
        for broadcast in ["a", "b"] {
            let flight = Flight { broadcast: broadcast.into(), key: format!("{broadcast}/1"), at_ms: 7 };
            flights.begin(flight, async move {
                assert_ne!(broadcast, "a", "it fails");
                Answer::Taken
            });
        }
        let mut back = Vec::new();
        while let Some((flight, answer)) = flights.next().await {
            back.push((flight.key, matches!(answer, Answer::Taken)));
        }
        back.sort();
        assert_eq!(back, [("a/1".to_owned(), false), ("b/1".to_owned(), true)]);
        assert!(flights.flights.is_empty());
    }
}
