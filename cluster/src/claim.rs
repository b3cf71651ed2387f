//! A claim on a stream, step by step: what to ask the store next, and when it is granted or refused.
//!
//! Begin with [`Claim::begin`], do what the [`Step`] says, and hand the answer to `handle_found` or `handle_outcome` until
//! it is done.
#![deny(clippy::disallowed_methods)]

use std::time::SystemTime;

use crate::lease::{Grant, Ownership};
use crate::record::{self, NodeRecord, Role, StreamRecord, StreamState, node_key, stream_key};
use crate::store::{Entry, Outcome, Txn};

/// Times that a claim is decided anew because somebody was faster.
const MAX_TRIES: u32 = 8;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read this key, then [`Claim::handle_found`].
    Get(String),
    /// Do this, then [`Claim::handle_outcome`].
    Txn(Txn),
    /// That was it.
    Done(Result<Grant, Refusal>),
}

/// Why a claim is not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another origin has the stream, and is there.
    #[error("origin {owner} has the stream")]
    Elsewhere {
        /// Its name.
        owner: String,
        /// Where it is.
        address: String,
    },
    /// Others claim it at the same time, again and again.
    #[error("too many claims at once")]
    Contended,
    /// The store cannot be asked.
    #[error("{0}; streams that this origin does not have yet are refused until it can be")]
    NoStore(String),
}

/// One claim.
#[derive(Debug)]
pub struct Claim {
    stream: String,
    session: String,
    /// Origins that the claimant has just lost.
    lost: Vec<String>,
    tries: u32,
    /// What the store holds, while its owner is looked for.
    found: Option<(StreamRecord, u64)>,
    /// What was proposed.
    proposed: Option<StreamRecord>,
}

impl Claim {
    /// `session` wants `stream`. `lost` are the origins that its POP has just lost: their word that they have the stream is
    /// not waited for.
    pub fn new(stream: &str, session: &str, lost: Vec<String>) -> Claim {
        let (stream, session) = (stream.into(), session.into());
        Claim { stream, session, lost, tries: 0, found: None, proposed: None }
    }

    /// What is owned here is granted at once.
    pub fn begin(&mut self, ownership: &mut Ownership) -> Step {
        match ownership.claim_owned(&self.stream, &self.session) {
            Some(grant) => Step::Done(Ok(grant)),
            None => Step::Get(stream_key(&self.stream)),
        }
    }

    /// What is there under the key that was to be read.
    pub fn handle_found(&mut self, ownership: &Ownership, found: Option<Entry>, now: SystemTime) -> Step {
        let Some((record, revision)) = self.found.take() else {
            return self.decide(ownership, found, now);
        };
        // The question was for the owner.
        let node = found.and_then(|entry| record::read::<NodeRecord>(&entry.key, &entry.value).ok());
        match node {
            Some(node) if node.instance == record.instance && !node.draining => {
                let StreamRecord { owner, address, .. } = record;
                Step::Done(Err(Refusal::Elsewhere { owner, address }))
            }
            _ => self.propose(ownership, Some(&record), Some(revision), now),
        }
    }

    /// How the transaction went.
    pub fn handle_outcome(&mut self, ownership: &mut Ownership, outcome: Outcome, now: SystemTime) -> Step {
        match (outcome, self.proposed.take()) {
            (Outcome::Done(revision), Some(record)) => {
                Step::Done(Ok(ownership.won(&self.stream, record, revision)))
            }
            (Outcome::Done(_), None) => Step::Done(Err(Refusal::Contended)),
            (Outcome::Differs(found), _) => {
                self.tries += 1;
                if self.tries >= MAX_TRIES {
                    return Step::Done(Err(Refusal::Contended));
                }
                // Another session of this very node may have been the faster one.
                if let Some(grant) = ownership.claim_owned(&self.stream, &self.session) {
                    return Step::Done(Ok(grant));
                }
                self.decide(ownership, found.into_iter().next().flatten(), now)
            }
        }
    }

    fn decide(&mut self, ownership: &Ownership, found: Option<Entry>, now: SystemTime) -> Step {
        let revision = found.as_ref().map(|entry| entry.revision);
        let record =
            found.and_then(|entry| Some((record::read(&entry.key, &entry.value).ok()?, entry.revision)));
        let Some((record, of)): Option<(StreamRecord, u64)> = record else {
            // Nothing, or nothing that says anything.
            return self.propose(ownership, None, revision, now);
        };
        let free = record.owner == ownership.me().name
            || record.state == StreamState::Ended
            || self.lost.contains(&record.owner);
        if free {
            return self.propose(ownership, Some(&record), Some(of), now);
        }
        let owner = node_key(Role::Origin, &record.owner);
        self.found = Some((record, of));
        Step::Get(owner)
    }

    fn propose(
        &mut self,
        ownership: &Ownership,
        found: Option<&StreamRecord>,
        revision: Option<u64>,
        now: SystemTime,
    ) -> Step {
        let record = ownership.proposal(&self.stream, &self.session, found, now);
        let key = stream_key(&self.stream);
        let txn = match revision {
            Some(revision) => Txn::new().if_revision(key.clone(), revision),
            None => Txn::new().if_absent(key.clone()),
        };
        let txn = txn.put(key, record::text(&record), None);
        self.proposed = Some(record);
        Step::Txn(txn)
    }
}
