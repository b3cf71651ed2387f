//! What is done to broadcasts as a whole: journals become one index, what a crash left behind is found again, the oldest
//! make room. Every step may be interrupted anywhere, and done twice.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectStoreExt, PutPayload};
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::index::{Ended, Index};
use crate::journal;
use crate::metrics::Reason;
use crate::name::{BroadcastId, Digest, JournalName, MediaName};
use crate::reader::{Loaded, Reader, exists};

/// The level of the one index of a broadcast that is over.
pub(crate) const FINAL_LEVEL: u8 = 9;

/// A broadcast of a shared store whose last journal is older has no writer any more: longer than any grace for
/// broadcasters that are away.
const ABANDONED: Duration = Duration::from_secs(2 * 3600);

/// Objects that are removed, or found again, at a time.
const PARALLEL: usize = 16;

/// Replaces journals by one that says the same.
pub(crate) async fn compact(
    reader: &Reader,
    broadcast: &BroadcastId,
    names: &[JournalName],
    to: JournalName,
) -> Result<(), Error> {
    let mut index = Index::new(broadcast.clone());
    for name in names {
        let path = name.path(broadcast);
        let bytes = reader.store().get(&path).await?.bytes().await?;
        let said = journal::decode(broadcast, &bytes)
            .map_err(|damage| Error::Journal { name: path.to_string(), damage })?;
        index.merge(&said);
    }
    replace(reader, &index, names, to).await
}

/// Finds again what was written and never journaled, and makes one index of everything. `end` is what is to be said if
/// nobody said that it is over.
pub(crate) async fn finish(
    reader: &Reader,
    broadcast: &BroadcastId,
    writer: u64,
    end: Option<Ended>,
) -> Result<(), Error> {
    let Some(loaded) = reader.load(broadcast, None).await? else { return Ok(()) };
    let mut index = Index::clone(&loaded.index);
    let adopted = adopt(reader, &mut index).await?;
    if let Some(end) = end.filter(|_| index.ended().is_none()) {
        index.end(end);
    }
    // Journals that cannot be read stay for `verify` to be found.
    let damaged = |name: &JournalName| loaded.damaged.iter().any(|(damaged, _)| damaged == name);
    let names: Vec<_> = loaded.journals.keys().copied().filter(|name| !damaged(name)).collect();
    let whole = matches!(names.as_slice(), [only] if only.level == FINAL_LEVEL);
    if !whole || adopted > 0 || end.is_some() {
        let sequence = names.iter().filter(|name| name.level == FINAL_LEVEL).map(|name| name.sequence).max();
        let to = JournalName { level: FINAL_LEVEL, writer, sequence: sequence.unwrap_or(0) + 1 };
        replace(reader, &index, &names, to).await?;
        reader.metrics().finished_broadcasts.inc();
    }
    reader.settle(broadcast);
    if adopted > 0 {
        info!(%broadcast, segments = adopted, "found segments again that a crash had left without a journal");
    }
    Ok(())
}

async fn replace(
    reader: &Reader,
    index: &Index,
    names: &[JournalName],
    to: JournalName,
) -> Result<(), Error> {
    let broadcast = index.broadcast();
    let payload = PutPayload::from(journal::encode(index));
    reader.store().put(&to.path(broadcast), payload).await?;
    // From here on they say nothing new: whoever is stopped now leaves them for the next time.
    for name in names.iter().filter(|name| **name != to) {
        ignore_missing(reader.store().delete(&name.path(broadcast)).await)?;
    }
    Ok(())
}

/// Adds the segments to `index` that are there without a journal; how many.
async fn adopt(reader: &Reader, index: &mut Index) -> Result<usize, Error> {
    let broadcast = index.broadcast().clone();
    let listed = reader.store().list(Some(&broadcast.media())).try_collect::<Vec<_>>().await?;
    let unknown = listed.into_iter().filter_map(|meta| {
        let name = MediaName::parse(&meta.location)?;
        let run = index.run(name.epoch)?;
        let known = index.segment(name.epoch, &name.rendition, name.number).is_some();
        (!known && run.renditions.iter().any(|r| r.id == name.rendition)).then_some((name, meta.location))
    });
    let unknown: Vec<_> = unknown.collect();
    let found = stream::iter(unknown)
        .map(|(name, path)| async move {
            let bytes = match reader.store().get(&path).await {
                Ok(got) => got.bytes().await?,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(Error::from(error)),
            };
            Ok(Some((name, path, bytes.len() as u64, Digest::of(&bytes))))
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<_>>()
        .await?;
    let mut adopted = 0;
    for (name, path, bytes, sha256) in found.into_iter().flatten() {
        let segment = name.segment(bytes, sha256);
        // Its name has the beginning of its checksum: a piece of a segment is not taken for a segment.
        if crate::name::media_path(&broadcast, &name.rendition, &segment) == path {
            index.add_segment(&name.rendition, segment);
            adopted += 1;
        } else {
            warn!(%broadcast, object = %path, "an object is damaged and has no journal: it is left alone");
        }
    }
    reader.metrics().adopted_segments.inc_by(adopted as u64);
    Ok(adopted)
}

/// Removes all of a broadcast. Once begun it is gone for readers, and is gone on with until nothing is left.
pub(crate) async fn remove(reader: &Reader, broadcast: &BroadcastId) -> Result<(), Error> {
    let store = reader.store();
    store.put(&broadcast.removed(), PutPayload::from_static(b"removed\n")).await?;
    reader.settle(broadcast);
    for folder in [broadcast.media(), broadcast.journals()] {
        let listed = store.list(Some(&folder));
        listed
            .map_err(Error::from)
            .try_for_each_concurrent(PARALLEL, |meta| async move {
                ignore_missing(store.delete(&meta.location).await)
            })
            .await?;
    }
    ignore_missing(store.delete(&broadcast.removed()).await)
}

/// What is remembered of broadcasts that are over, so that each is read once.
#[derive(Debug, Default)]
pub(crate) struct Janitor {
    finished: BTreeMap<BroadcastId, (i64, u64)>,
}

/// What broadcasts may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_age: Duration,
    pub(crate) max_bytes: u64,
}

impl Janitor {
    /// Looks at every broadcast: finishes those without a writer, removes the oldest. `open` tells those that this process
    /// writes; `alone` says that no other does.
    pub(crate) async fn round(
        &mut self,
        reader: &Reader,
        limits: Limits,
        writer: u64,
        open: &(dyn Fn(&BroadcastId) -> bool + Sync),
        alone: bool,
    ) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        let broadcasts = reader.broadcasts().await?;
        let mut live_bytes = 0;
        self.finished.retain(|broadcast, _| broadcasts.binary_search(broadcast).is_ok());
        for broadcast in broadcasts {
            // Asked after the listing: what is listed and still open was open before it was listed.
            if open(&broadcast) {
                self.finished.remove(&broadcast);
                live_bytes += self.look(reader, &broadcast).await?.map_or(0, |loaded| bytes(&loaded.index));
                continue;
            }
            if self.finished.contains_key(&broadcast) {
                continue;
            }
            let Some(mut loaded) = self.look(reader, &broadcast).await? else {
                if exists(&**reader.store(), &broadcast.removed()).await? {
                    remove(reader, &broadcast).await?;
                }
                continue;
            };
            let written = loaded.journals.values().copied().max().unwrap_or(now);
            let abandoned = alone || now - written > ABANDONED.as_millis() as i64;
            if loaded.index.ended().is_none() {
                if !abandoned {
                    live_bytes += bytes(&loaded.index);
                    continue;
                }
                let epoch = loaded.index.runs().last().map_or(media::Epoch(0), |run| run.epoch);
                let end = Ended { epoch, unix_ms: written, abandoned: true };
                info!(%broadcast, "nobody writes this broadcast any more: it is closed");
                finish(reader, &broadcast, writer, Some(end)).await?;
            } else if loaded.journals.len() > 1 {
                finish(reader, &broadcast, writer, None).await?;
            }
            match self.look(reader, &broadcast).await? {
                Some(again) => loaded = again,
                None => continue,
            }
            if let Some(ended) = loaded.index.ended() {
                self.finished.insert(broadcast, (ended.unix_ms, bytes(&loaded.index)));
            }
        }
        self.make_room(reader, limits, now, live_bytes).await
    }

    async fn make_room(
        &mut self,
        reader: &Reader,
        limits: Limits,
        now: i64,
        live_bytes: u64,
    ) -> Result<(), Error> {
        let max_age = i64::try_from(limits.max_age.as_millis()).unwrap_or(i64::MAX);
        let mut oldest_first: Vec<_> =
            self.finished.iter().map(|(id, (ended, bytes))| (*ended, id.clone(), *bytes)).collect();
        oldest_first.sort();
        let mut total = live_bytes + oldest_first.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        for (ended, broadcast, bytes) in oldest_first {
            let reason = if now.saturating_sub(ended) > max_age {
                "age"
            } else if total > limits.max_bytes {
                "size"
            } else {
                break;
            };
            remove(reader, &broadcast).await?;
            total -= bytes;
            self.finished.remove(&broadcast);
            reader.metrics().removed_broadcasts.get_or_create(&Reason { reason }).inc();
            info!(%broadcast, bytes, reason, "removed a broadcast from the archive");
        }
        if live_bytes > limits.max_bytes {
            warn!(
                live_bytes,
                max_size = limits.max_bytes,
                "broadcasts that are live are larger than archive.max_size"
            );
        }
        reader.metrics().stored_bytes.set(i64::try_from(total).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Without the cache of those that watch: each broadcast is looked at once.
    async fn look(&self, reader: &Reader, broadcast: &BroadcastId) -> Result<Option<Loaded>, Error> {
        let loaded = reader.load(broadcast, None).await?;
        debug!(%broadcast, there = loaded.is_some(), "looked at a broadcast");
        Ok(loaded)
    }
}

fn bytes(index: &Index) -> u64 {
    index.objects().map(|(_, segment)| segment.bytes).sum()
}

fn ignore_missing(deleted: Result<(), object_store::Error>) -> Result<(), Error> {
    match deleted {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
