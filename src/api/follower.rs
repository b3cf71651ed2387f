//! Keeps the broadcasts' records in step with what this node's origin sees, and ends what was ended elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cluster::Member;
use cluster::record::{NodeRecord, Role, Which};
use cluster::store::Error;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::broadcast::Broadcast;
use super::follow::{self, Next, Seen};
use super::outbox::Outbox;
use super::records::Kept;

/// Before a step that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows streams.
pub(crate) struct Follower {
    pub(crate) node: String,
    pub(crate) member: Member,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) origin: Option<origin::Control>,
    /// How long an origin waits for a broadcaster.
    pub(crate) grace: Duration,
}

impl Follower {
    /// Follows until `shutdown`.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        let mut seen = Seen::default();
        // Tokens of broadcasts that are over, which the origins were told.
        let mut revoked = BTreeSet::new();
        let mut records = self.outbox.records.changes();
        let mut streams = self.origin.as_ref().map(origin::Control::changes);
        let mut away = false;
        loop {
            records.mark_unchanged();
            if let Some(streams) = &mut streams {
                streams.mark_unchanged();
            }
            seen.observe(unix_ms(), self.origin.as_ref().map_or_else(Vec::new, origin::Control::list));
            let wake = match self.look(&seen, &mut revoked).await {
                Ok(wake) => {
                    away = false;
                    wake.map(|at_ms| Duration::from_millis(at_ms.saturating_sub(unix_ms())))
                }
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        warn!(%error, "the state of broadcasts cannot be written: it will be when the store is back");
                    }
                    Some(RETRY)
                }
            };
            let timer = async {
                match wake {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            let news = async {
                match &mut streams {
                    Some(streams) => streams.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = records.changed() => {}
                _ = news => {}
                () = timer => {}
            }
        }
    }

    /// Does all that is to be done now; when to look again.
    async fn look(&self, seen: &Seen, revoked: &mut BTreeSet<String>) -> Result<Option<u64>, Error> {
        if !self.outbox.records.known() {
            return Ok(None);
        }
        let broadcasts: Vec<Kept<Broadcast>> =
            self.outbox.records.copy().broadcasts.values().cloned().collect();
        let known: BTreeSet<_> =
            broadcasts.iter().map(|(_, broadcast)| broadcast.token.id.as_str()).collect();
        revoked.retain(|id| known.contains(id.as_str()));
        drop(known);
        let mut wake = None;
        for (revision, broadcast) in broadcasts {
            if !broadcast.open() {
                self.end(&broadcast, seen, revoked);
                continue;
            }
            match self.next(&broadcast, seen) {
                // What it makes of the record is a change, which wakes this loop again.
                Next::Now(step) => {
                    self.outbox.step(revision, &broadcast, &step).await?;
                }
                Next::At(at_ms) => wake = Some(wake.unwrap_or(u64::MAX).min(at_ms)),
                Next::OnChange => {}
            }
        }
        Ok(wake)
    }

    fn next(&self, broadcast: &Broadcast, seen: &Seen) -> Next {
        let grace_ms = self.grace.as_millis() as u64;
        let mine = speaks_for(&self.node, &self.member, broadcast);
        follow::next(broadcast, seen, &self.node, mine, unix_ms(), grace_ms)
    }

    /// The token of a broadcast that is over opens nothing any more, and its session ends.
    fn end(&self, broadcast: &Broadcast, seen: &Seen, revoked: &mut BTreeSet<String>) {
        let token = &broadcast.token;
        let here =
            seen.of(broadcast).is_some_and(|(standing, _)| standing.state != origin::live::State::Ended);
        // A session that was let in goes on past its token's time: only where there is none is nothing left to be done.
        let expired = token.expires.saturating_mul(1000) <= unix_ms();
        if (expired && !here) || !revoked.insert(token.id.clone()) {
            return;
        }
        let which = Which::Id(token.id.clone());
        if !self.member.revoked().borrow().has(&which) {
            self.member.revoke(which);
        }
        if let Some(origin) = &self.origin
            && here
        {
            origin.end(&broadcast.stream, &token.id);
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Whether nobody but `me` can say how a broadcast stands: it is here, or its origin is gone.
pub(super) fn speaks_for(me: &str, member: &Member, broadcast: &Broadcast) -> bool {
    let Some(owner) = &broadcast.owner else { return true };
    // Without node records there is no telling who is there.
    let gone = || {
        let there = |node: &NodeRecord| node.role == Role::Origin && node.name == *owner;
        member.follows_nodes() && !member.nodes().iter().any(there)
    };
    *owner == me || gone()
}

#[cfg(test)]
mod tests {
    use super::super::broadcast::{Step, tests::created};
    use super::super::config::Webhooks;
    use super::super::events::EndedBy;
    use super::super::metrics::Metrics;
    use super::super::records::Records;
    use super::*;
    use media::Epoch;
    use origin::control::Standing;
    use origin::live::State;

    #[test]
    fn what_is_over_is_taken_back_where_it_is_still_sent_also_past_its_tokens_time() {
        let member = Member::default();
        let follower = Follower {
            node: "o1".into(),
            member: member.clone(),
            outbox: Arc::new(Outbox {
                records: Arc::new(Records::new(member.store())),
                webhooks: Webhooks::default(),
                metrics: Metrics::register(&mut prometheus_client::registry::Registry::default()),
            }),
            origin: None,
            grace: Duration::from_secs(60),
        };
        // Its token was good for the first day of 1970.
        let (over, _) = created().after(&Step::End { at_ms: 5000, by: EndedBy::Request }).unwrap();
        let standing = |state| Standing {
            stream: over.stream.clone(),
            state,
            anchor_unix_ms: 0,
            epoch: Epoch(7),
            token: Some(over.token.id.clone()),
        };
        let mut revoked = BTreeSet::new();
        for (state, taken_back) in [(State::Ended, false), (State::Live, true)] {
            let mut seen = Seen::default();
            seen.observe(2000, vec![standing(state)]);
            follower.end(&over, &seen, &mut revoked);
            let which = Which::Id(over.token.id.clone());
            assert_eq!(member.revoked().borrow().has(&which), taken_back, "{state:?}");
        }
    }
}
