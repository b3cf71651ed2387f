//! The store inside this process: nothing to install, one node. With a file it outlives the process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::tree::{Saved, Tree};
use super::{Change, Entry, Error, LeaseId, Listing, Outcome, Pending, Store, Txn, Watch};

/// How long changes are gathered before the file is written: what a crash may cost. Epochs also follow the wall clock, so
/// that one lost claim does no harm.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// How long to wait after the file could not be written.
const RETRY: Duration = Duration::from_secs(5);

/// Largest file that is read, in bytes: JSON of a full tree with every character escaped would be more, ours is not.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A store inside the process. Cloning shares it.
#[derive(Clone, Default)]
pub struct Embedded(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tree: Mutex<Tree>,
    /// The revision, and a nudge when a lease was granted.
    changed: watch::Sender<u64>,
    file: Option<PathBuf>,
    /// The revision that the file had.
    opened: u64,
}

impl Embedded {
    /// What an earlier process left in `file`, or nothing. [`Embedded::keep`] writes it. A file that cannot be read as such
    /// is an error: to go on without it would forget epochs.
    pub fn open(file: &Path) -> std::io::Result<Embedded> {
        let tree = match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Tree::default(),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(damaged(file, format!("{} bytes exceed {MAX_FILE_BYTES}", metadata.len())));
            }
            Ok(_) => {
                let saved = serde_json::from_slice::<Saved>(&std::fs::read(file)?);
                let tree = saved.map_err(|error| error.to_string()).and_then(Tree::restore);
                tree.map_err(|error| damaged(file, error))?
            }
        };
        let opened = tree.revision();
        let (tree, changed) = (Mutex::new(tree), watch::Sender::new(opened));
        Ok(Embedded(Arc::new(Inner { tree, changed, file: Some(file.into()), opened })))
    }

    /// Writes the file soon after each change, until `shutdown`, and then once more. Without a file there is nothing to
    /// do. A file that cannot be written is reported and tried again; the store itself goes on.
    pub async fn keep(&self, shutdown: CancellationToken) {
        let Some(file) = &self.0.file else { return };
        let mut changed = self.0.changed.subscribe();
        let mut written = self.0.opened;
        let mut failing = false;
        loop {
            let more = async { drop(changed.wait_for(|revision| *revision > written).await) };
            let stopping = tokio::select! {
                biased;
                () = shutdown.cancelled() => true,
                () = more => shutdown.run_until_cancelled(tokio::time::sleep(DEBOUNCE)).await.is_none(),
            };
            let (revision, saved) = self.with(|tree, _| (tree.revision(), tree.save()));
            if revision > written {
                let to = file.clone();
                let wrote = tokio::task::spawn_blocking(move || write(&to, &saved)).await;
                match wrote.map_err(std::io::Error::other).and_then(|wrote| wrote) {
                    Ok(()) => {
                        written = revision;
                        if std::mem::take(&mut failing) {
                            info!(file = %file.display(), "records are kept again");
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            warn!(file = %file.display(), %error, "records are not kept over a restart");
                        }
                        shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                    }
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Tree, Instant) -> T) -> T {
        let mut tree = self.0.tree.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock by which those who watch sleep, so that tests may turn it.
        let now = tokio::time::Instant::now().into_std();
        tree.handle_timeout(now);
        let done = act(&mut tree, now);
        let revision = tree.revision();
        drop(tree);
        self.0.changed.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        done
    }
}

fn damaged(file: &Path, what: String) -> std::io::Error {
    let file = file.display();
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{file} holds no records: {what}"))
}

/// All of it or the file as it was before: a new file takes the place of the old.
fn write(file: &Path, saved: &Saved) -> std::io::Result<()> {
    let next = file.with_extension("next");
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut out = std::fs::File::create(&next)?;
    out.write_all(&serde_json::to_vec(saved)?)?;
    out.sync_all()?;
    std::fs::rename(&next, file)?;
    match file.parent() {
        Some(folder) if folder != Path::new("") => std::fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// An operation that is done at once.
fn ready<'a, T: Send + 'a>(done: Result<T, Error>) -> Pending<'a, T> {
    Box::pin(std::future::ready(done))
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Option<Entry>> {
        ready(Ok(self.with(|tree, _| tree.get(key))))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Pending<'a, Listing> {
        ready(Ok(self.with(|tree, _| tree.list(prefix))))
    }

    fn txn(&self, txn: Txn) -> Pending<'_, Outcome> {
        ready(self.with(|tree, _| tree.txn(txn)))
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: u64) -> Pending<'a, Box<dyn Watch>> {
        let watch = Watcher { store: self.clone(), prefix: prefix.into(), after };
        ready(Ok(Box::new(watch) as Box<dyn Watch>))
    }

    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId> {
        let granted = self.with(|tree, now| tree.grant(now, ttl));
        // Who waits for the end of a lease looks when the next one is.
        self.0.changed.send_modify(|_| {});
        ready(granted)
    }

    fn keep_alive(&self, lease: LeaseId) -> Pending<'_, bool> {
        ready(Ok(self.with(|tree, now| tree.keep_alive(now, lease))))
    }

    fn revoke(&self, lease: LeaseId) -> Pending<'_, ()> {
        self.with(|tree, _| tree.revoke(lease));
        ready(Ok(()))
    }
}

struct Watcher {
    store: Embedded,
    prefix: String,
    after: u64,
}

impl Watch for Watcher {
    fn next(&mut self) -> Pending<'_, Vec<Change>> {
        Box::pin(async {
            let mut changed = self.store.0.changed.subscribe();
            loop {
                changed.mark_unchanged();
                let (changes, revision, lease_ends) = self.store.with(|tree, _| {
                    (tree.changes(&self.prefix, self.after), tree.revision(), tree.poll_timeout())
                });
                let changes = changes?;
                self.after = revision;
                if !changes.is_empty() {
                    return Ok(changes);
                }
                let lease_ended = async {
                    match lease_ends {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // Its sender lives as long as the store, which this watch holds.
                    _ = changed.changed() => {}
                    () = lease_ended => {}
                }
            }
        })
    }
}
