//! Why the archive could not do what it was asked.

use crate::journal::Damage;
use crate::name::BroadcastId;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be reached or refused.
    #[error("archive: {0}")]
    Store(#[from] object_store::Error),
    /// The folder cannot be made or used.
    #[error("archive folder {path}: {source}")]
    Folder {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another process writes there.
    #[error("archive folder {0}: another process has it")]
    Taken(String),
    /// The credentials cannot be read. What is in the file is not said.
    #[error("archive.credentials: {path}: {why}")]
    Credentials {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// There is no such broadcast.
    #[error("there is no broadcast {0} in the archive")]
    NoBroadcast(BroadcastId),
    /// There is no such object.
    #[error("broadcast {broadcast} has no {object}")]
    NoObject {
        /// The broadcast.
        broadcast: BroadcastId,
        /// The object.
        object: String,
    },
    /// It has to be over for that.
    #[error("broadcast {0} is live")]
    Live(BroadcastId),
    /// A journal is damaged.
    #[error("journal {name}: {damage}")]
    Journal {
        /// Its path in the store.
        name: String,
        /// What is wrong.
        damage: Damage,
    },
    /// An object is larger than any that is written.
    #[error("object {name}: {bytes} bytes are more than the {limit} that are read at once")]
    TooLarge {
        /// Its path in the store.
        name: String,
        /// Its length.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
}

impl Error {
    /// Whether it may be otherwise a moment later.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Store(object_store::Error::NotFound { .. }))
    }
}
