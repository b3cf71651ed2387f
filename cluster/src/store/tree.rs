//! A store without a clock, a network or a file: what the operations of [`super::Store`] mean.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Change, Entry, Error, LeaseId, Listing, Op, Outcome, Txn};

/// Most entries: the streams of many origins, revocations, broadcasts of the API.
pub const MAX_ENTRIES: usize = 100_000;

/// Most bytes of keys and values together.
pub const MAX_BYTES: usize = 64 << 20;

/// Changes that a watch may still ask for.
pub const MAX_CHANGES: usize = 16_384;

/// Leases at a time.
pub const MAX_LEASES: usize = 10_000;

/// Keys and what is there, leases, and the latest changes.
#[derive(Debug, Default)]
pub struct Tree {
    entries: BTreeMap<String, Kept>,
    bytes: usize,
    revision: u64,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    changes: VecDeque<Change>,
    /// Changes up to here are no longer in `changes`.
    forgotten: u64,
}

#[derive(Debug, Clone)]
struct Kept {
    value: String,
    revision: u64,
    lease: Option<LeaseId>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}

/// What is left of a tree when its process ends: all but what goes with a lease.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    revision: u64,
    entries: BTreeMap<String, (u64, String)>,
}

impl Tree {
    /// The tree that was saved. Fails if it is not one that could have been.
    pub fn restore(saved: Saved) -> Result<Tree, String> {
        let Saved { revision, entries } = saved;
        if let Some((key, (of, _))) = entries.iter().find(|(_, (of, _))| *of > revision) {
            return Err(format!("{key:?} is of revision {of}, later than the whole, {revision}"));
        }
        let bytes = entries.iter().map(|(key, (_, value))| key.len() + value.len()).sum();
        if entries.len() > MAX_ENTRIES || bytes > MAX_BYTES {
            return Err(format!("{} entries, {bytes} bytes: too much", entries.len()));
        }
        let keep = |(key, (revision, value))| (key, Kept { value, revision, lease: None });
        let entries = entries.into_iter().map(keep).collect();
        Ok(Tree { entries, bytes, revision, forgotten: revision, ..Tree::default() })
    }

    /// What is to be kept over a restart.
    pub fn save(&self) -> Saved {
        let lasting = self.entries.iter().filter(|(_, kept)| kept.lease.is_none());
        let entries = lasting.map(|(key, kept)| (key.clone(), (kept.revision, kept.value.clone()))).collect();
        Saved { revision: self.revision, entries }
    }

    /// Counts what was changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// See [`super::Store::get`].
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).map(|kept| entry(key, kept))
    }

    /// See [`super::Store::list`].
    pub fn list(&self, prefix: &str) -> Listing {
        let from = self.entries.range(prefix.to_owned()..);
        let entries = from.take_while(|(key, _)| key.starts_with(prefix)).map(|(key, kept)| entry(key, kept));
        Listing { entries: entries.collect(), revision: self.revision }
    }

    /// See [`super::Store::txn`].
    pub fn txn(&mut self, txn: Txn) -> Result<Outcome, Error> {
        txn.check()?;
        let holds = |key: &str, wanted| self.entries.get(key).map(|kept| kept.revision) == wanted;
        if !txn.conditions.iter().all(|condition| holds(&condition.key, condition.revision)) {
            let found = txn.conditions.iter().map(|condition| self.get(&condition.key));
            return Ok(Outcome::Differs(found.collect()));
        }
        let (mut count, mut bytes) = (self.entries.len(), self.bytes);
        for op in &txn.then {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            if let Some(kept) = self.entries.get(key) {
                count -= 1;
                bytes -= key.len() + kept.value.len();
            }
            if let Op::Put { value, lease, .. } = op {
                count += 1;
                bytes += key.len() + value.len();
                if let Some(ended) = lease.filter(|lease| !self.leases.contains_key(lease)) {
                    return Err(Error::LeaseEnded(ended));
                }
            }
        }
        if count > MAX_ENTRIES || bytes > MAX_BYTES {
            return Err(Error::Refused(format!("full: {count} entries, {bytes} bytes")));
        }
        let changes = |op: &Op| match op {
            Op::Put { .. } => true,
            Op::Delete { key } => self.entries.contains_key(key),
        };
        if txn.then.iter().any(changes) {
            self.revision += 1;
        }
        for op in txn.then {
            match op {
                Op::Put { key, value, lease } => self.put(key, value, lease),
                Op::Delete { key } => self.delete(key),
            }
        }
        Ok(Outcome::Done(self.revision))
    }

    /// What came after revision `after` under `prefix`.
    pub fn changes(&self, prefix: &str, after: u64) -> Result<Vec<Change>, Error> {
        if after < self.forgotten {
            return Err(Error::Compacted { after, oldest: self.forgotten });
        }
        let first = self.changes.partition_point(|change| change.revision() <= after);
        let of_prefix = |change: &&Change| {
            let (Change::Put(Entry { key, .. }) | Change::Delete { key, .. }) = change;
            key.starts_with(prefix)
        };
        Ok(self.changes.range(first..).filter(of_prefix).cloned().collect())
    }

    /// See [`super::Store::grant`].
    pub fn grant(&mut self, now: Instant, ttl: Duration) -> Result<LeaseId, Error> {
        if self.leases.len() >= MAX_LEASES {
            return Err(Error::Refused(format!("there are {MAX_LEASES} leases")));
        }
        let ttl = ttl.max(Duration::from_secs(1));
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, Lease { ttl, ends: now + ttl, keys: BTreeSet::new() });
        Ok(lease)
    }

    /// See [`super::Store::keep_alive`].
    pub fn keep_alive(&mut self, now: Instant, lease: LeaseId) -> bool {
        let lease = self.leases.get_mut(&lease);
        lease.map(|lease| lease.ends = now + lease.ttl).is_some()
    }

    /// See [`super::Store::revoke`].
    pub fn revoke(&mut self, lease: LeaseId) {
        let Some(lease) = self.leases.remove(&lease) else { return };
        if !lease.keys.is_empty() {
            self.revision += 1;
        }
        for key in lease.keys {
            self.delete(key);
        }
    }

    /// Ends the leases whose time is over. To be called before each operation, and when [`Tree::poll_timeout`] is reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((id, _)) = self.leases.iter().find(|(_, lease)| lease.ends <= now) {
            self.revoke(*id);
        }
    }

    /// When the next lease ends.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    fn put(&mut self, key: String, value: String, lease: Option<LeaseId>) {
        self.take(&key);
        self.bytes += key.len() + value.len();
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(key.clone());
        }
        let kept = Kept { value, revision: self.revision, lease };
        self.note(Change::Put(entry(&key, &kept)));
        self.entries.insert(key, kept);
    }

    fn delete(&mut self, key: String) {
        if self.take(&key) {
            self.note(Change::Delete { key, revision: self.revision });
        }
    }

    fn take(&mut self, key: &str) -> bool {
        let Some(kept) = self.entries.remove(key) else { return false };
        self.bytes -= key.len() + kept.value.len();
        if let Some(lease) = kept.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
        true
    }

    fn note(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() > MAX_CHANGES {
            self.forgotten = self.changes.pop_front().map_or(self.forgotten, |change| change.revision());
        }
    }
}

fn entry(key: &str, kept: &Kept) -> Entry {
    let Kept { value, revision, lease } = kept.clone();
    Entry { key: key.into(), value, revision, lease }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Txn {
        Txn::new().put(key, value, None)
    }

    #[test]
    fn what_is_forgotten_is_said() {
        let mut tree = Tree::default();
        for n in 0..=MAX_CHANGES {
            tree.txn(put("a", &n.to_string())).unwrap();
        }
        assert_eq!(tree.changes("", 0), Err(Error::Compacted { after: 0, oldest: 1 }));
        let changes = tree.changes("", 1).unwrap();
        assert_eq!((changes.len(), changes[0].revision()), (MAX_CHANGES, 2));
        assert!(tree.changes("b", 1).unwrap().is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let mut tree = Tree::default();
        let value = "x".repeat(super::super::MAX_VALUE_BYTES);
        let mut refused = None;
        for n in 0..2 * MAX_BYTES / value.len() {
            refused = tree.txn(put(&n.to_string(), &value)).err();
            if refused.is_some() {
                break;
            }
        }
        assert!(matches!(&refused, Some(Error::Refused(why)) if why.starts_with("full")), "{refused:?}");
        assert!(tree.bytes <= MAX_BYTES);
        assert!(tree.txn(Txn::new().delete("0")).is_ok() && tree.txn(put("0", "")).is_ok());
    }

    #[test]
    fn all_but_what_is_leased_is_saved() {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut tree = Tree::default();
        let lease = tree.grant(now, Duration::from_secs(5)).unwrap();
        tree.txn(put("a", "1").put("b", "2", Some(lease))).unwrap();
        tree.txn(put("a", "3")).unwrap();
        let text = serde_json::to_string(&tree.save()).unwrap();
        let mut back = Tree::restore(serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(back.list("").entries, [tree.get("a").unwrap()]);
        assert_eq!(back.txn(put("c", "")), Ok(Outcome::Done(3)), "revisions go on");
        assert!(Tree::restore(Saved { revision: 0, ..tree.save() }).is_err());
    }
}
