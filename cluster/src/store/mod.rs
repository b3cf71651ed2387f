//! Where the fleet keeps what all of it must agree on: a small key-value store with leases, behind one trait, [`Store`].
//!
//! [`Embedded`] lives in this process and needs nothing else; [`Etcd`] speaks to etcd (v3). What is kept in them is the
//! business of the rest of this crate; here keys and values are text.
//!
//! Read this file, then [`tree`], which is the embedded store without its clock and its file, and says exactly what the
//! operations mean.

mod embedded;
mod etcd;
pub mod tree;

use std::pin::Pin;
use std::time::Duration;

pub use embedded::Embedded;
pub use etcd::{Etcd, EtcdOptions, EtcdTls};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// Largest value, in bytes: records are a few hundred; a broadcast of the API with its webhooks a few thousand.
pub const MAX_VALUE_BYTES: usize = 64 << 10;

/// Conditions and operations of one transaction: etcd's own bound.
pub const MAX_TXN_OPS: usize = 128;

/// What a store answers, later. All of them may be dropped midway: a transaction may then have been done or not.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A store. Every operation of all its users happens in one order, which the revisions count.
pub trait Store: Send + Sync + 'static {
    /// What is there under `key`.
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Entry>>;

    /// All that is there under keys which begin with `prefix`, as it was at one moment.
    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Listing>;

    /// Does all of `then` if all conditions hold, or nothing.
    fn txn(&self, txn: Txn) -> Pending<'_, Outcome>;

    /// The changes under `prefix` that come after revision `after`, in order, none left out.
    fn watch<'a>(&'a self, prefix: &'a str, after: u64) -> Pending<'a, Box<dyn Watch>>;

    /// A lease that ends after `ttl` (whole seconds, at least one) unless it is kept alive.
    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId>;

    /// Begins the time of a lease anew. False if it has ended.
    fn keep_alive(&self, lease: LeaseId) -> Pending<'_, bool>;

    /// Ends a lease: all that was put under it goes. A lease that has ended already is no error.
    fn revoke(&self, lease: LeaseId) -> Pending<'_, ()>;
}

/// The changes under a prefix.
pub trait Watch: Send {
    /// The next changes, at least one, of one or more revisions. May be dropped without loss. After an error the watch is
    /// over: list again, and watch from there.
    fn next(&mut self) -> Pending<'_, Vec<Change>>;
}

/// One key and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// What was put there last.
    pub value: String,
    /// The revision of that.
    pub revision: u64,
    /// The lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// A lease of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

/// What [`Store::list`] finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub entries: Vec<Entry>,
    /// The revision of the store at that moment: what to watch after.
    pub revision: u64,
}

/// A transaction: at most [`MAX_TXN_OPS`] conditions and as many operations, no key written twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What is done then.
    pub then: Vec<Op>,
}

impl Txn {
    /// Nothing yet.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Only if nothing is there under `key`.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Txn {
        self.conditions.push(Condition { key: key.into(), revision: None });
        self
    }

    /// Only if what is there under `key` was put there at `revision`.
    #[must_use]
    pub fn if_revision(mut self, key: impl Into<String>, revision: u64) -> Txn {
        self.conditions.push(Condition { key: key.into(), revision: Some(revision) });
        self
    }

    /// Put `value` under `key`, to go with `lease` if there is one.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<String>, lease: Option<LeaseId>) -> Txn {
        self.then.push(Op::Put { key: key.into(), value: value.into(), lease });
        self
    }

    /// Take away what is there under `key`, if anything.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.then.push(Op::Delete { key: key.into() });
        self
    }

    fn check(&self) -> Result<(), Error> {
        if self.conditions.len() > MAX_TXN_OPS || self.then.len() > MAX_TXN_OPS {
            return Err(Error::Refused(format!("a transaction has at most {MAX_TXN_OPS} operations")));
        }
        let mut written = std::collections::BTreeSet::new();
        for op in &self.then {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(Error::Refused(format!("key of {} bytes, not 1 to {MAX_KEY_BYTES}", key.len())));
            }
            if !written.insert(key) {
                return Err(Error::Refused(format!("{key:?} is written twice in one transaction")));
            }
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE_BYTES
            {
                let len = value.len();
                return Err(Error::Refused(format!("{key:?}: {len} bytes exceed {MAX_VALUE_BYTES}")));
            }
        }
        Ok(())
    }
}

/// What must be so for a transaction to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whose entry.
    pub key: String,
    /// Its revision; `None`: there must be none.
    pub revision: Option<u64>,
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Put a value, whatever was there.
    Put {
        /// Where.
        key: String,
        /// What.
        value: String,
        /// Goes when this ends.
        lease: Option<LeaseId>,
    },
    /// Take away what is there.
    Delete {
        /// Where.
        key: String,
    },
}

/// How a transaction went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is done, at this revision.
    Done(u64),
    /// A condition did not hold, and nothing is done: what is there under the key of each condition, in their order.
    Differs(Vec<Option<Entry>>),
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Somebody put this.
    Put(Entry),
    /// What was there went.
    Delete {
        /// Where.
        key: String,
        /// When.
        revision: u64,
    },
}

impl Change {
    /// When it was.
    pub fn revision(&self) -> u64 {
        match self {
            Change::Put(entry) => entry.revision,
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// Why a store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, or did not answer in time. What was asked may have been done.
    #[error("the store cannot be reached: {0}")]
    Away(String),
    /// What was asked can never be done; nothing was.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// The lease has ended; nothing was done.
    #[error("lease {0:?} has ended")]
    LeaseEnded(LeaseId),
    /// A watch asked for changes that the store no longer has.
    #[error("changes after revision {after} are forgotten up to {oldest}")]
    Compacted {
        /// What was asked for.
        after: u64,
        /// The oldest that is left to be watched after.
        oldest: u64,
    },
}
