//! Keeps every segment of every broadcast in an object store, on disk or in S3, and finds it again: for viewers who go back,
//! for those who come after the end, and for export.
//!
//! It refuses to slow the live path down: [`Sink`] never waits, and what the store does not take in time becomes a hole
//! with a name. It knows neither manifests nor sockets; an origin offers segments, readers ask for an [`Index`].
//!
//! [`open`] is the verb. Read [`index`] for what is known of a broadcast, [`queue`] for the order in which it is written, and
//! [`upkeep`] for what makes it safe to stop anywhere.

pub mod config;
mod error;
pub mod index;
mod journal;
pub mod metrics;
mod name;
mod queue;
mod reader;
mod store;
#[cfg(test)]
mod tests;
mod upkeep;
mod verify;
mod writer;

use std::path::Path;

pub use config::Config;
pub use error::Error;
pub use index::Index;
pub use journal::Damage;
pub use metrics::Metrics;
pub use name::{BroadcastId, Digest, NotABroadcast};
pub use queue::NewSegment;
pub use reader::{Media, Reader, Standing};
pub use verify::{Finding, Problem, Report};
pub use writer::{Health, Sink, Writer};

/// Opens the archive to write and read it; `None` where nothing is kept.
pub fn open(config: &Config, state_dir: &Path, metrics: Metrics) -> Result<Option<(Writer, Reader)>, Error> {
    let Some(opened) = store::open(config, state_dir, true)? else { return Ok(None) };
    let reader = Reader::new(opened.store, metrics);
    let writer = Writer::new(reader.clone(), config, random_id(), opened.lock);
    Ok(Some((writer, reader)))
}

/// Opens the archive to read it, also while another process writes it; `None` where nothing is kept.
pub fn open_to_read(config: &Config, state_dir: &Path) -> Result<Option<Reader>, Error> {
    let opened = store::open(config, state_dir, false)?;
    Ok(opened.map(|opened| Reader::new(opened.store, Metrics::default())))
}

/// Removes a broadcast. One that may be live is removed with `force` only.
pub async fn remove(reader: &Reader, broadcast: &BroadcastId, force: bool) -> Result<(), Error> {
    let index = reader.index(broadcast).await?.ok_or_else(|| Error::NoBroadcast(broadcast.clone()))?;
    if index.ended().is_none() && !force {
        return Err(Error::Live(broadcast.clone()));
    }
    upkeep::remove(reader, broadcast).await
}

fn random_id() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random bytes: TLS needs them too");
    u64::from_ne_bytes(bytes)
}
