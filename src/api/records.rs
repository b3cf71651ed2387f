//! The API's records in the shared store, and a copy of them in this process that every question is answered from.
//!
//! Under `api/`: `broadcasts/{id}`; `streams/{stream}`, which broadcast has a stream, as long as it is open;
//! `keys/{hash}`, which broadcast an idempotency key made; `events/{receiver}/{broadcast}/{number}`, what is to be
//! delivered; `deliverer`, the node that delivers; `removals/{recording}`, what is to leave the archive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::store::{Change, Entry, Error, Outcome, Store, Txn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::broadcast::Broadcast;
use super::outbox::Event;

/// What all keys begin with.
const PREFIX: &str = "api/";

/// Before a store that could not be reached is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// For what was written to be seen here too.
const ECHO: Duration = Duration::from_secs(2);

/// A record and the revision of its last change.
pub(crate) type Kept<T> = (u64, Arc<T>);

/// The records.
pub(crate) struct Records {
    store: Arc<dyn Store>,
    copy: Mutex<Copy>,
    /// The revision that the copy has come to; `None` before it was read for the first time.
    reached: watch::Sender<Option<u64>>,
}

/// What was there last.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// By identifier, which is by age.
    pub(crate) broadcasts: BTreeMap<String, Kept<Broadcast>>,
    /// By key, which is by receiver, broadcast and number.
    pub(crate) events: BTreeMap<String, Kept<Event>>,
    /// By the name of the recording.
    pub(crate) removals: BTreeMap<String, Kept<Removal>>,
}

/// A recording that is to be removed by whoever keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removal {
    /// When it was asked for, milliseconds since 1970.
    pub(crate) at_ms: u64,
}

/// Where a broadcast is kept.
pub(crate) fn broadcast_key(id: &str) -> String {
    format!("{PREFIX}broadcasts/{id}")
}

/// Where it is kept which broadcast has a stream.
pub(crate) fn stream_key(stream: &str) -> String {
    format!("{PREFIX}streams/{stream}")
}

/// Where it is kept what an idempotency key made.
pub(crate) fn idempotency_key(hash: &str) -> String {
    format!("{PREFIX}keys/{hash}")
}

/// Where the events of a receiver are kept.
pub(crate) fn events_key(receiver: &str) -> String {
    format!("{PREFIX}events/{receiver}/")
}

/// Where it is kept that a recording is to be removed.
pub(crate) fn removal_key(recording: &str) -> String {
    format!("{PREFIX}removals/{recording}")
}

/// Where it is kept who delivers.
pub(crate) fn deliverer_key() -> String {
    format!("{PREFIX}deliverer")
}

impl Records {
    pub(crate) fn new(store: Arc<dyn Store>) -> Records {
        Records { store, copy: Mutex::default(), reached: watch::Sender::new(None) }
    }

    /// Follows the store until `shutdown`.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        let mut away = false;
        let follow = async {
            loop {
                if let Err(error) = self.follow().await {
                    if !std::mem::replace(&mut away, true) {
                        warn!(%error, "the API's records cannot be followed: what it says may be old");
                    }
                } else {
                    away = false;
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = follow => {}
        }
    }

    async fn follow(&self) -> Result<(), Error> {
        let listing = self.store.list(PREFIX).await?;
        {
            let mut copy = self.copy();
            *copy = Copy::default();
            for entry in &listing.entries {
                copy.put(entry);
            }
        }
        self.reached.send_replace(Some(listing.revision));
        let mut watch = self.store.watch(PREFIX, listing.revision).await?;
        loop {
            let changes = match watch.next().await {
                Ok(changes) => changes,
                // Changes went by: from the beginning.
                Err(Error::Compacted { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let last = changes.last().map_or(0, Change::revision);
            {
                let mut copy = self.copy();
                for change in &changes {
                    match change {
                        Change::Put(entry) => copy.put(entry),
                        Change::Delete { key, .. } => copy.delete(key),
                    }
                }
            }
            self.reached.send_modify(|reached| *reached = Some(last).max(*reached));
        }
    }

    /// What is there, as far as it is known here. Not to be held over an await.
    pub(crate) fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows with every change; `None` until the store was read.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<u64>> {
        self.reached.subscribe()
    }

    /// Whether the store was ever read.
    pub(crate) fn known(&self) -> bool {
        self.reached.borrow().is_some()
    }

    /// What is there now, past the copy.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    /// Does a transaction, and waits for it to be seen here.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Outcome, Error> {
        let outcome = self.store.txn(txn).await?;
        if let Outcome::Done(revision) = outcome {
            let mut reached = self.reached.subscribe();
            let seen = reached.wait_for(|reached| *reached >= Some(revision));
            // It is done whether or not it was seen in time.
            let _ = tokio::time::timeout(ECHO, seen).await;
        }
        Ok(outcome)
    }

    /// The store itself, for leases.
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }
}

impl Copy {
    fn put(&mut self, entry: &Entry) {
        if let Some(id) = id_of(&entry.key) {
            if let Some(broadcast) = read(entry) {
                self.broadcasts.insert(id.to_owned(), (entry.revision, Arc::new(broadcast)));
            }
        } else if let Some(recording) = removal_of(&entry.key) {
            if let Some(removal) = read(entry) {
                self.removals.insert(recording.to_owned(), (entry.revision, Arc::new(removal)));
            }
        } else if is_event(&entry.key)
            && let Some(event) = read(entry)
        {
            self.events.insert(entry.key.clone(), (entry.revision, Arc::new(event)));
        }
    }

    fn delete(&mut self, key: &str) {
        if let Some(id) = id_of(key) {
            self.broadcasts.remove(id);
        } else if let Some(recording) = removal_of(key) {
            self.removals.remove(recording);
        } else {
            self.events.remove(key);
        }
    }

    /// What waits for a receiver, by key.
    pub(crate) fn waiting(&self, receiver: &str) -> impl Iterator<Item = (&String, &Kept<Event>)> {
        let first = events_key(receiver);
        self.events.range(first.clone()..).take_while(move |(key, _)| key.starts_with(&first))
    }
}

fn id_of(key: &str) -> Option<&str> {
    key.strip_prefix(PREFIX)?.strip_prefix("broadcasts/")
}

fn removal_of(key: &str) -> Option<&str> {
    key.strip_prefix(PREFIX)?.strip_prefix("removals/")
}

fn is_event(key: &str) -> bool {
    key.strip_prefix(PREFIX).is_some_and(|key| key.starts_with("events/"))
}

/// A record; one that this version cannot read is left to those who can.
fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    match serde_json::from_str(&entry.value) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(key = entry.key, %error, "a record of the API cannot be read");
            None
        }
    }
}
