//! What becomes of broadcasts' recordings: a broadcast is archived once all of it is kept and closed, a recording that is
//! removed is named no more, and what was asked to go goes.
//!
//! Levels, as in [`super::follow`]: whatever was missed is found at the next look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use archive::{BroadcastId, Reader, Standing};
use cluster::Member;
use cluster::store::Txn;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::broadcast::{Broadcast, Step};
use super::events::State;
use super::follower::speaks_for;
use super::outbox::Outbox;
use super::records::{self, Kept, Removal};

/// Between two looks though nothing is known to have happened: other nodes write a shared store, and operators remove from
/// it.
const ROUND_EVERY: Duration = Duration::from_secs(60);

/// Before what could not be read or written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the wish to have a recording removed is kept for origins that are away and may have parts of it.
const REMOVAL_MS: u64 = 24 * 3600 * 1000;

/// Recordings that may wait for their removal.
pub(crate) const MAX_REMOVALS: usize = 10_000;

/// Looks after recordings, where the archive is at hand.
pub(crate) struct Recordings {
    pub(crate) node: String,
    pub(crate) member: Member,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) reader: Reader,
    /// Whether all origins keep in one place.
    pub(crate) shared: bool,
}

impl Recordings {
    /// Looks after them until `shutdown`.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        let mut records = self.outbox.records.changes();
        let mut settled = self.reader.settled();
        // What is to wait for something to happen in the archive: a change of records is no news of it.
        let mut waiting = BTreeSet::new();
        let (mut round, mut away) = (true, false);
        loop {
            records.mark_unchanged();
            settled.mark_unchanged();
            let wait = match self.look(std::mem::take(&mut round), &mut waiting).await {
                Ok(()) => {
                    away = false;
                    ROUND_EVERY
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        warn!(
                            error = format!("{error:#}"),
                            "recordings cannot be looked after: it is tried again"
                        );
                    }
                    RETRY
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = settled.changed() => round = true,
                () = tokio::time::sleep(wait) => round = true,
                _ = records.changed() => {}
            }
        }
    }

    /// Does what is to be done now; in a `round` also of what was looked at before.
    async fn look(&self, round: bool, waiting: &mut BTreeSet<String>) -> anyhow::Result<()> {
        if !self.outbox.records.known() {
            return Ok(());
        }
        if round {
            waiting.clear();
            let kept = self.reader.broadcasts().await?;
            for (revision, broadcast) in self.mine(State::Archived) {
                let there = |name: &&String| name.parse().is_ok_and(|id| kept.binary_search(&id).is_ok());
                let recordings: Vec<_> = broadcast.recordings.iter().filter(there).cloned().collect();
                if recordings != broadcast.recordings {
                    self.outbox.step(revision, &broadcast, &Step::Keep { recordings }).await?;
                }
            }
        }
        for (revision, broadcast) in self.mine(State::Ended) {
            if waiting.contains(&broadcast.id) {
                continue;
            }
            let mut found = Vec::new();
            for name in &broadcast.archives {
                let Ok(id) = name.parse::<BroadcastId>() else { continue };
                found.push((name.clone(), self.reader.standing(&id).await?));
            }
            match whole(found) {
                Some(recordings) => {
                    let step = Step::Archive { at_ms: unix_ms(), recordings };
                    self.outbox.step(revision, &broadcast, &step).await?;
                }
                None => drop(waiting.insert(broadcast.id.clone())),
            }
        }
        let removals: Vec<(String, Kept<Removal>)> = {
            let copy = self.outbox.records.copy();
            copy.removals.iter().map(|(name, removal)| (name.clone(), removal.clone())).collect()
        };
        for (name, (revision, removal)) in removals {
            if !waiting.contains(&name) && !self.remove(&name, revision, &removal).await? {
                waiting.insert(name);
            }
        }
        Ok(())
    }

    /// The broadcasts in `state` that nobody else speaks for, and that had media.
    fn mine(&self, state: State) -> Vec<Kept<Broadcast>> {
        let copy = self.outbox.records.copy();
        let mine = copy.broadcasts.values().filter(|(_, broadcast)| {
            broadcast.state == state
                && !broadcast.archives.is_empty()
                && speaks_for(&self.node, &self.member, broadcast)
        });
        mine.cloned().collect()
    }

    /// Removes what is here of a recording. Whether nothing is left to be done anywhere.
    async fn remove(&self, name: &str, revision: u64, removal: &Removal) -> anyhow::Result<bool> {
        let gone = match name.parse::<BroadcastId>() {
            Ok(id) => match archive::remove(&self.reader, &id, false).await {
                Ok(()) => {
                    info!(recording = name, "removed a recording, as was asked for with its broadcast");
                    true
                }
                Err(archive::Error::NoBroadcast(_)) => true,
                // A part that this origin has yet to close.
                Err(archive::Error::Live(_)) => false,
                Err(error) => return Err(error.into()),
            },
            Err(_) => true,
        };
        let everywhere = gone && (self.shared || !self.member.follows_nodes());
        let forgotten = unix_ms().saturating_sub(removal.at_ms) > REMOVAL_MS;
        if everywhere || forgotten {
            let key = records::removal_key(name);
            self.outbox.records.commit(Txn::new().if_revision(&key, revision).delete(key)).await?;
        }
        Ok(everywhere || forgotten)
    }
}

/// What can be played of a broadcast, once all that is kept of it is closed. Timelines that are not here may be where the
/// origin is that had them.
fn whole(found: Vec<(String, Standing)>) -> Option<Vec<String>> {
    if found.iter().any(|(_, standing)| *standing == Standing::Open) {
        return None;
    }
    let closed = found.into_iter().filter(|(_, standing)| *standing == Standing::Closed);
    let names: Vec<_> = closed.map(|(name, _)| name).collect();
    (!names.is_empty()).then_some(names)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broadcast_is_archived_when_nothing_of_it_is_open() {
        for (found, expected) in [
            (vec![], None),
            (vec![Standing::Absent], None),
            (vec![Standing::Open], None),
            (vec![Standing::Closed, Standing::Open], None),
            (vec![Standing::Closed], Some(vec!["0"])),
            (vec![Standing::Absent, Standing::Closed, Standing::Closed], Some(vec!["1", "2"])),
        ] {
            let names = found.iter().enumerate().map(|(n, standing)| (n.to_string(), *standing)).collect();
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(whole(names), expected, "{found:?}");
        }
    }
}
