//! Who may write a stream: what this node owns, and how it finds out that it does not any more.
//!
//! A claim reserves a few epochs beyond the one that it begins with ([`RESERVED`]). Who owns a stream takes the next of
//! them without asking the store, so that a broadcaster who comes back and a timeline that breaks need no store; the next
//! claimant begins behind them, so that no two nodes ever write one epoch.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::record::{self, Line, StreamRecord, StreamState, stream_key};
use crate::store::{Entry, Op, Outcome, Txn};

/// Epochs of one claim beyond its first: runs that may begin while the store is away. The record is renewed, and so is
/// this, with everything that is written of the stream.
pub const RESERVED: u64 = 63;

/// The right to write one stream under one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The stream.
    pub stream: String,
    /// Who holds it: the session that claimed it.
    pub holder: String,
    /// Larger than every epoch of this stream before.
    pub epoch: u64,
}

/// This node, as records name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its name.
    pub name: String,
    /// Tells this process from others of that name.
    pub instance: u64,
    /// Where its streams are.
    pub address: String,
}

/// What this node owns. As many as there are streams that it remembers; [`Ownership::forget`] lets one go.
#[derive(Debug)]
pub struct Ownership {
    me: Me,
    /// For so long after its record was written last a broadcast can be gone on with, milliseconds.
    resume_ms: i64,
    owned: BTreeMap<String, Owned>,
    /// Streams that this node let go, and the revisions of their records. These stay for a day and say that the stream is
    /// over: the next epoch must be higher, also by a clock that is late.
    released: BTreeMap<String, (StreamRecord, u64)>,
    /// What the store held of every stream when it was last heard, with the revisions.
    seen: BTreeMap<String, (StreamRecord, u64)>,
}

#[derive(Debug)]
struct Owned {
    record: StreamRecord,
    /// What the store holds, as far as is known; `None`: nothing.
    revision: Option<u64>,
    /// The record says more than the store.
    dirty: bool,
    /// A write is on its way.
    writing: bool,
}

/// What became of a stream when news of its record came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// This node owns it, or never did.
    Nothing,
    /// Another node has claimed it: this one stops.
    Fenced,
}

impl Ownership {
    /// Nothing is owned yet.
    /// A broadcast whose owner was lost is gone on with for `resume_within`.
    pub fn new(me: Me, resume_within: Duration) -> Ownership {
        let resume_ms = i64::try_from(resume_within.as_millis()).unwrap_or(i64::MAX);
        Ownership { me, resume_ms, owned: BTreeMap::new(), released: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// This node.
    pub fn me(&self) -> &Me {
        &self.me
    }

    /// From now on records say that this node is there: its port was not known before.
    pub fn set_address(&mut self, address: &str) {
        self.me.address = address.into();
    }

    /// Grants a stream that is owned here to `session` with a higher epoch, as long as the reservation lasts.
    pub fn claim_owned(&mut self, stream: &str, session: &str) -> Option<Grant> {
        let owned = self.owned.get_mut(stream)?;
        let epoch = owned.record.epoch + 1;
        if epoch > owned.record.reserved {
            return None;
        }
        owned.record.epoch = epoch;
        owned.record.session = session.into();
        owned.record.state = StreamState::Live;
        owned.dirty = true;
        Some(Grant { stream: stream.into(), holder: session.into(), epoch })
    }

    /// A higher epoch for a holder that begins anew; `None` if it holds the stream no more, or the reservation is used up.
    pub fn renew(&mut self, grant: &Grant) -> Option<Grant> {
        if self.holds(grant) { self.claim_owned(&grant.stream, &grant.holder) } else { None }
    }

    /// The record with which this node would take the stream, after what the store holds of it.
    ///
    /// An epoch begins at the wall clock's milliseconds, so that epochs still grow where a store was lost: media URLs carry
    /// the epoch and must never name other bytes.
    pub fn proposal(
        &self,
        stream: &str,
        session: &str,
        found: Option<&StreamRecord>,
        now: SystemTime,
    ) -> StreamRecord {
        let clock = unix_ms(now);
        let own = self.owned.get(stream).map(|owned| &owned.record);
        let own = own.or(self.released.get(stream).map(|(record, _)| record)).map_or(0, |own| own.reserved);
        let last = found.map_or(0, |found| found.reserved.max(found.epoch)).max(own);
        let epoch = u64::try_from(clock).unwrap_or(0).max(last.saturating_add(1));
        let goes_on = |found: &&StreamRecord| {
            found.state != StreamState::Ended && clock.saturating_sub(found.updated) <= self.resume_ms
        };
        let line = found.filter(goes_on).and_then(|found| found.line);
        StreamRecord {
            owner: self.me.name.clone(),
            instance: self.me.instance,
            address: self.me.address.clone(),
            epoch,
            reserved: epoch.saturating_add(RESERVED),
            session: session.into(),
            state: StreamState::Live,
            line,
            updated: clock,
        }
    }

    /// The store took `record` at `revision`: the stream is owned here. If a later claim, of this node or another, is known
    /// by now, the grant is fenced from the beginning.
    pub fn won(&mut self, stream: &str, record: StreamRecord, revision: u64) -> Grant {
        let grant = Grant { stream: stream.into(), holder: record.session.clone(), epoch: record.epoch };
        let newer = self.owned.get(stream).is_some_and(|owned| owned.record.epoch > record.epoch);
        let seen = self.seen.get(stream);
        let lost = seen.is_some_and(|(seen, of)| *of > revision && !self.me.wrote(seen));
        if !newer && !lost {
            self.released.remove(stream);
            let owned = Owned { record, revision: Some(revision), dirty: false, writing: false };
            self.owned.insert(stream.into(), owned);
        }
        grant
    }

    /// Whether the grant is still the newest of its stream.
    pub fn holds(&self, grant: &Grant) -> bool {
        self.owned.get(&grant.stream).is_some_and(|owned| owned.record.epoch == grant.epoch)
    }

    /// The record of a stream that is owned here.
    pub fn record(&self, stream: &str) -> Option<&StreamRecord> {
        self.owned.get(stream).map(|owned| &owned.record)
    }

    /// How many streams are owned here.
    pub fn len(&self) -> usize {
        self.owned.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// Where the broadcast of a stream stands that is owned here. Returns whether that is news for the store.
    pub fn describe(&mut self, stream: &str, state: StreamState, line: Option<Line>) -> bool {
        let Some(owned) = self.owned.get_mut(stream) else { return false };
        let before = (owned.record.state, owned.record.line);
        (owned.record.state, owned.record.line) = (state, line.or(before.1));
        let news = before != (owned.record.state, owned.record.line);
        owned.dirty |= news;
        news
    }

    /// Live broadcasts are alive: their records say when that was known last.
    pub fn touch(&mut self) {
        let live = self.owned.values_mut().filter(|owned| owned.record.state == StreamState::Live);
        live.for_each(|owned| owned.dirty = true);
    }

    /// Forgets a stream unless somebody claimed it after `grant`.
    pub fn forget(&mut self, grant: &Grant) {
        if !self.holds(grant) {
            return;
        }
        if let Some(Owned { revision: Some(revision), mut record, .. }) = self.owned.remove(&grant.stream) {
            (record.state, record.line) = (StreamState::Ended, None);
            self.released.insert(grant.stream.clone(), (record, revision));
        }
    }

    /// Another node is known to write a stream under `epoch`, whatever the store says: what is owned here below that is let
    /// go, and whoever claims it here next begins above.
    pub fn outbid(&mut self, stream: &str, epoch: u64) -> News {
        if self.owned.get(stream).is_none_or(|owned| owned.record.epoch >= epoch) {
            return News::Nothing;
        }
        if let Some(Owned { revision: Some(revision), mut record, .. }) = self.owned.remove(stream) {
            (record.state, record.line) = (StreamState::Ended, None);
            record.reserved = record.reserved.max(epoch);
            self.released.insert(stream.into(), (record, revision));
        }
        News::Fenced
    }

    /// What another node, `owner` of the record, writes; `None` if nobody is known to, or this node does. Whether that node
    /// is there is another question.
    pub fn elsewhere(&self, stream: &str) -> Option<&StreamRecord> {
        let (seen, _) = self.seen.get(stream)?;
        let other = !self.me.wrote(seen) && !self.owned.contains_key(stream);
        (other && seen.state != StreamState::Ended).then_some(seen)
    }

    /// What the store held of every stream when it was last heard, with the revisions.
    pub fn seen(&self) -> &BTreeMap<String, (StreamRecord, u64)> {
        &self.seen
    }

    /// What the store holds of a stream now, as a watch tells it; `None`: nothing.
    pub fn handle_change(&mut self, stream: &str, found: Option<(StreamRecord, u64)>, revision: u64) -> News {
        let news = self.observe(stream, found.as_ref().map(|(record, of)| (record, *of)), revision);
        match found {
            Some(found) => self.seen.insert(stream.into(), found),
            None => self.seen.remove(stream),
        };
        news
    }

    fn observe(&mut self, stream: &str, found: Option<(&StreamRecord, u64)>, revision: u64) -> News {
        let Some(owned) = self.owned.get_mut(stream) else { return News::Nothing };
        if owned.revision.is_some_and(|known| known > revision) {
            // From before this node's own last word.
            return News::Nothing;
        }
        match found {
            Some((record, of)) if self.me.wrote(record) => owned.revision = Some(of),
            Some((record, _)) if record.epoch > owned.record.reserved => {
                self.owned.remove(stream);
                return News::Fenced;
            }
            // Not by the rules: a store that was put back to what it held before. The higher epoch stays.
            Some((_, of)) => (owned.revision, owned.dirty) = (Some(of), true),
            None => (owned.revision, owned.dirty) = (None, true),
        }
        News::Nothing
    }

    /// All that the store holds, at one revision: what is owned here and not there is to be written anew. Returns the
    /// streams that others have claimed.
    pub fn reconcile(&mut self, found: BTreeMap<String, (StreamRecord, u64)>, revision: u64) -> Vec<String> {
        self.seen = found;
        let mut streams: Vec<String> = self.owned.keys().cloned().collect();
        streams.retain(|stream| {
            let found = self.seen.get(stream).cloned();
            self.observe(stream, found.as_ref().map(|(record, of)| (record, *of)), revision) == News::Fenced
        });
        streams
    }

    /// What is to be written next. Its outcome goes to [`Ownership::handle_written`].
    pub fn poll_write(&mut self, now: SystemTime) -> Option<(String, Txn)> {
        if let Some((stream, (mut record, revision))) = self.released.pop_first() {
            record.updated = unix_ms(now);
            let key = stream_key(&stream);
            let txn = Txn::new().if_revision(key.clone(), revision).put(key, record::text(&record), None);
            return Some((stream, txn));
        }
        let (stream, owned) = self.owned.iter_mut().find(|(_, owned)| owned.dirty && !owned.writing)?;
        (owned.dirty, owned.writing) = (false, true);
        owned.record.updated = unix_ms(now);
        let mut record = owned.record.clone();
        // The reservation is believed in only once the store has it.
        record.reserved = record.reserved.max(record.epoch.saturating_add(RESERVED));
        let key = stream_key(stream);
        let txn = match owned.revision {
            Some(revision) => Txn::new().if_revision(key.clone(), revision),
            None => Txn::new().if_absent(key.clone()),
        };
        Some((stream.clone(), txn.put(key, record::text(&record), None)))
    }

    /// How a write of [`Ownership::poll_write`] went: `None` if the store could not be asked, or did not say.
    pub fn handle_written(&mut self, stream: &str, txn: &Txn, outcome: Option<&Outcome>) -> News {
        let Some(owned) = self.owned.get_mut(stream) else {
            self.handle_let_go(stream, txn, outcome);
            return News::Nothing;
        };
        owned.writing = false;
        match outcome {
            Some(Outcome::Done(revision)) => {
                // Unless a claim of this node came in between, which has its own.
                if let Some(written) =
                    written(txn).filter(|_| owned.revision.is_none_or(|known| known <= *revision))
                {
                    owned.revision = Some(*revision);
                    owned.record.reserved = owned.record.reserved.max(written.reserved);
                }
                News::Nothing
            }
            Some(Outcome::Differs(found)) => {
                owned.dirty = true;
                let found = found.first().and_then(Option::as_ref);
                self.differs(stream, found)
            }
            None => {
                owned.dirty = true;
                News::Nothing
            }
        }
    }

    /// A write went so while its stream was let go, or said that: it is over when the store has heard it.
    fn handle_let_go(&mut self, stream: &str, txn: &Txn, outcome: Option<&Outcome>) {
        let Some(written) = written(txn) else { return };
        let pending = self.released.get(stream).map(|(record, of)| (record.clone(), Some(*of)));
        let (record, of) = match (outcome, pending) {
            // This was the word itself.
            (Some(Outcome::Done(_)), None) => return,
            (Some(Outcome::Done(of)), Some((record, _))) => (record, Some(*of)),
            (None, Some(pending)) => pending,
            (None, None) => (written, txn.conditions.first().and_then(|condition| condition.revision)),
            (Some(Outcome::Differs(found)), pending) => {
                let record = pending.map_or(written, |(record, _)| record);
                let found = found.first().and_then(Option::as_ref);
                // An earlier word of this node; not a claim, of another or of this one.
                let earlier = |entry: &&Entry| {
                    record::read::<StreamRecord>(&entry.key, &entry.value)
                        .is_ok_and(|found| self.me.wrote(&found) && found.epoch <= record.reserved)
                };
                let of = found.filter(earlier).map(|entry| entry.revision);
                (record, of)
            }
        };
        match of {
            Some(of) if record.state == StreamState::Ended => {
                self.released.insert(stream.into(), (record, of));
            }
            _ => drop(self.released.remove(stream)),
        }
    }

    fn differs(&mut self, stream: &str, found: Option<&Entry>) -> News {
        let Some(owned) = self.owned.get_mut(stream) else { return News::Nothing };
        match found {
            None => {
                owned.revision = None;
                News::Nothing
            }
            Some(entry) => match record::read::<StreamRecord>(&entry.key, &entry.value) {
                Ok(record) => {
                    let news = self.observe(stream, Some((&record, entry.revision)), entry.revision);
                    // The watch has yet to tell who has the stream now.
                    if self.seen.get(stream).is_none_or(|(_, of)| *of < entry.revision) {
                        self.seen.insert(stream.into(), (record, entry.revision));
                    }
                    news
                }
                // What is there is not a record: it is written over.
                Err(_) => {
                    owned.revision = Some(entry.revision);
                    News::Nothing
                }
            },
        }
    }
}

/// The record that a transaction writes.
fn written(txn: &Txn) -> Option<StreamRecord> {
    txn.then.iter().find_map(|op| match op {
        Op::Put { key, value, .. } => record::read(key, value).ok(),
        Op::Delete { .. } => None,
    })
}

impl Me {
    /// Whether this very process wrote it.
    pub fn wrote(&self, record: &StreamRecord) -> bool {
        record.owner == self.name && record.instance == self.instance
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tree::Tree;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ownership(name: &str) -> Ownership {
        Ownership::new(Me { name: name.into(), instance: 1, address: format!("{name}:1") }, HOUR)
    }

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn stored(tree: &Tree) -> (StreamRecord, u64) {
        let entry = tree.get("streams/s").unwrap();
        (record::read(&entry.key, &entry.value).unwrap(), entry.revision)
    }

    /// Claims `s` from what the store holds.
    fn claim(node: &mut Ownership, tree: &mut Tree, now: SystemTime) -> Grant {
        let found = tree.get("streams/s").map(|_| stored(tree));
        let record = node.proposal("s", "session", found.as_ref().map(|(record, _)| record), now);
        let txn = match found {
            Some((_, of)) => Txn::new().if_revision("streams/s", of),
            None => Txn::new().if_absent("streams/s"),
        };
        let Ok(Outcome::Done(revision)) = tree.txn(txn.put("streams/s", record::text(&record), None)) else {
            panic!("nobody else claims it")
        };
        node.won("s", record, revision)
    }

    /// Carries out what is to be written; the store hears the first `unheard` of them only in part: not at all, or its
    /// answer is lost.
    fn write(node: &mut Ownership, tree: &mut Tree, done: bool, heard: bool) {
        let (stream, txn) = node.poll_write(at(5000)).unwrap();
        let outcome = if done { tree.txn(txn.clone()).ok() } else { None };
        node.handle_written(&stream, &txn, outcome.as_ref().filter(|_| heard));
    }

    #[test]
    fn a_stream_that_was_let_go_is_over_once_the_store_has_heard_it() {
        for (done, heard) in [(false, false), (true, false), (true, true)] {
            let (mut node, mut tree) = (ownership("a"), Tree::default());
            let grant = claim(&mut node, &mut tree, at(1000));
            node.forget(&grant);
            write(&mut node, &mut tree, done, heard);
            if !heard {
                write(&mut node, &mut tree, true, true);
            }
            // An answer that was lost costs one question more.
            while node.poll_write(at(5000)).is_some() {
                assert!(done && !heard);
            }
            assert_eq!(stored(&tree).0.state, StreamState::Ended, "{done} {heard}");
        }
    }

    #[test]
    fn a_write_on_its_way_does_not_outlive_its_stream() {
        let (mut node, mut tree) = (ownership("a"), Tree::default());
        let grant = claim(&mut node, &mut tree, at(1000));
        node.describe("s", StreamState::Interrupted, None);
        let (stream, txn) = node.poll_write(at(2000)).unwrap();
        let outcome = tree.txn(txn.clone()).unwrap();
        node.forget(&grant);
        node.handle_written(&stream, &txn, Some(&outcome));
        write(&mut node, &mut tree, true, true);
        assert_eq!(stored(&tree).0.state, StreamState::Ended);
        assert!(node.poll_write(at(5000)).is_none());
        // What was claimed meanwhile is left alone.
        let grant = claim(&mut node, &mut tree, at(3000));
        node.forget(&grant);
        let mut other = ownership("b");
        claim(&mut other, &mut tree, at(4000));
        write(&mut node, &mut tree, true, true);
        assert!(node.poll_write(at(5000)).is_none() && stored(&tree).0.owner == "b");
    }

    #[test]
    fn who_is_fenced_by_a_write_knows_by_whom() {
        let (mut node, mut other, mut tree) = (ownership("a"), ownership("b"), Tree::default());
        let grant = claim(&mut node, &mut tree, at(1000));
        claim(&mut other, &mut tree, at(2000));
        node.describe("s", StreamState::Interrupted, None);
        write(&mut node, &mut tree, true, true);
        assert!(!node.holds(&grant));
        assert_eq!(node.elsewhere("s").map(|record| record.owner.as_str()), Some("b"));
    }

    #[test]
    fn who_hears_of_a_higher_epoch_lets_go_and_begins_above_it() {
        let (mut node, mut tree) = (ownership("a"), Tree::default());
        let grant = claim(&mut node, &mut tree, at(1000));
        assert_eq!(node.outbid("s", grant.epoch), News::Nothing, "its own");
        assert_eq!(node.outbid("s", 9000), News::Fenced);
        assert!(!node.holds(&grant) && node.renew(&grant).is_none());
        // By a clock that is late, before and after the store has heard it.
        assert!(claim(&mut node, &mut tree, at(2000)).epoch > 9000);
        let grant = node.claim_owned("s", "another").unwrap();
        assert_eq!(node.outbid("s", 20_000), News::Fenced);
        write(&mut node, &mut tree, true, true);
        assert!(claim(&mut node, &mut tree, at(2000)).epoch > 20_000);
        assert!(!node.holds(&grant));
    }
}
