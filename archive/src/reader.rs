//! Finds broadcasts, their indexes and their media.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use media::{Epoch, RenditionId, SegmentNumber};
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::watch;

use crate::error::Error;
use crate::index::{Index, Segment};
use crate::journal::{self, Damage};
use crate::metrics::Metrics;
use crate::name::{BroadcastId, JournalName, media_path};
use crate::upkeep::FINAL_LEVEL;

/// Memory that indexes may take which were read lately: one of a day and five renditions has 40 MiB.
const CACHE_BYTES: u64 = 64 << 20;

/// How long an index is taken for new: a broadcast that is live is behind its window anyway.
const FRESH: Duration = Duration::from_secs(1);

/// Journals that are read at a time.
const PARALLEL: usize = 16;

/// The largest journal that is read: an index of a week and five renditions.
const MAX_JOURNAL_BYTES: u64 = 512 << 20;

/// The largest segment that is read at once.
const MAX_SEGMENT_BYTES: u64 = 256 << 20;

/// How often a journal may be listed and not be there. Each listing may meet another one that is replaced: at the end of a
/// broadcast all go, one by one.
const ATTEMPTS: u32 = 5;

/// Reads an archive, also while it is written, also from another process. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    cache: moka::sync::Cache<BroadcastId, Arc<Slot>>,
    metrics: Metrics,
    /// Grows with every broadcast that is closed or removed.
    settled: Arc<watch::Sender<u64>>,
}

/// Bytes of a segment.
#[derive(Debug, Clone)]
pub struct Media {
    /// What the index says of it.
    pub segment: Segment,
    /// All of it or the range asked for.
    pub bytes: Bytes,
}

/// How far a broadcast has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of this name is kept.
    Absent,
    /// More of it may come, or it is being closed.
    Open,
    /// All that was published of it is here under one index: nothing is added any more.
    Closed,
}

/// One index, and the lock under which it is made anew.
#[derive(Debug, Default)]
struct Slot {
    loaded: tokio::sync::Mutex<Option<Loaded>>,
    /// As the cache counts it.
    weight: u32,
}

/// An index, and what it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) index: Arc<Index>,
    /// With when each was written, in milliseconds since 1970.
    pub(crate) journals: BTreeMap<JournalName, i64>,
    pub(crate) damaged: Vec<(JournalName, Damage)>,
    at: Instant,
}

impl Reader {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, metrics: Metrics) -> Self {
        let cache = moka::sync::Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_: &BroadcastId, slot: &Arc<Slot>| slot.weight)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build();
        Self { store, cache, metrics, settled: Arc::default() }
    }

    /// Every broadcast, oldest first within a stream.
    pub async fn broadcasts(&self) -> Result<Vec<BroadcastId>, Error> {
        let listed = self.store.list_with_delimiter(None).await?;
        let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename()?.parse().ok());
        let mut broadcasts: Vec<BroadcastId> = names.collect();
        broadcasts.sort();
        Ok(broadcasts)
    }

    /// What is kept of a broadcast; `None` if there is none of this name. Of one that is live it is at most
    /// a second old, or two with the journal's.
    pub async fn index(&self, broadcast: &BroadcastId) -> Result<Option<Arc<Index>>, Error> {
        Ok(self.loaded(broadcast).await?.map(|loaded| loaded.index))
    }

    /// How far a broadcast has come.
    pub async fn standing(&self, broadcast: &BroadcastId) -> Result<Standing, Error> {
        Ok(match self.loaded(broadcast).await? {
            None => Standing::Absent,
            Some(loaded) => {
                let last = loaded.journals.keys().next_back().map(|name| name.level);
                let closed = loaded.index.ended().is_some() && last == Some(FINAL_LEVEL);
                if closed { Standing::Closed } else { Standing::Open }
            }
        })
    }

    /// An init segment.
    pub async fn init(
        &self,
        broadcast: &BroadcastId,
        epoch: Epoch,
        rendition: &RenditionId,
    ) -> Result<Option<Bytes>, Error> {
        let index = self.index(broadcast).await?;
        let run = index.as_deref().and_then(|index| index.run(epoch));
        let found = run.and_then(|run| run.renditions.iter().find(|found| found.id == *rendition));
        Ok(found.map(|rendition| rendition.init.clone()))
    }

    /// A segment or a range of its bytes; `None` if the index has none of this name. An error also where the store has lost
    /// what the index names.
    pub async fn segment(
        &self,
        broadcast: &BroadcastId,
        epoch: Epoch,
        rendition: &RenditionId,
        number: SegmentNumber,
        range: Option<Range<u64>>,
    ) -> Result<Option<Media>, Error> {
        let index = self.index(broadcast).await?;
        let segment = index.as_deref().and_then(|index| index.segment(epoch, rendition, number));
        let Some(segment) = segment.copied() else { return Ok(None) };
        let bytes = self.media(broadcast, rendition, &segment, range).await?;
        Ok(Some(Media { segment, bytes }))
    }

    /// The bytes of a segment that an index names.
    pub async fn media(
        &self,
        broadcast: &BroadcastId,
        rendition: &RenditionId,
        segment: &Segment,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, Error> {
        let path = media_path(broadcast, rendition, segment);
        let range = range.map_or(0..segment.bytes, |range| range.start..range.end.min(segment.bytes));
        let bytes = range.end.saturating_sub(range.start);
        if bytes > MAX_SEGMENT_BYTES {
            return Err(Error::TooLarge { name: path.to_string(), bytes, limit: MAX_SEGMENT_BYTES });
        }
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        Ok(self.store.get_range(&path, range).await?)
    }

    pub(crate) async fn loaded(&self, broadcast: &BroadcastId) -> Result<Option<Loaded>, Error> {
        let slot = self.cache.get_with(broadcast.clone(), Arc::default);
        let mut loaded = slot.loaded.lock().await;
        let fresh = loaded.as_ref().filter(|loaded| loaded.at.elapsed() < FRESH);
        if let Some(fresh) = fresh {
            return Ok(Some(fresh.clone()));
        }
        let found = match self.load(broadcast, loaded.take()).await {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.cache.invalidate(broadcast);
                return Ok(None);
            }
            Err(error) => {
                self.cache.invalidate(broadcast);
                return Err(error);
            }
        };
        *loaded = Some(found.clone());
        // The weight is taken when something is put in.
        let weight = u32::try_from(512 + found.index.objects().count() * 96).unwrap_or(u32::MAX);
        if weight != slot.weight {
            let loaded = tokio::sync::Mutex::new(Some(found.clone()));
            self.cache.insert(broadcast.clone(), Arc::new(Slot { loaded, weight }));
        }
        Ok(Some(found))
    }

    /// Reads what is new since `before`: journals never change, and what one says that was replaced is said by another.
    pub(crate) async fn load(
        &self,
        broadcast: &BroadcastId,
        before: Option<Loaded>,
    ) -> Result<Option<Loaded>, Error> {
        let now = Instant::now();
        let mut loaded = before.unwrap_or_else(|| Loaded {
            index: Arc::new(Index::new(broadcast.clone())),
            journals: BTreeMap::new(),
            damaged: Vec::new(),
            at: now,
        });
        let mut missing: BTreeMap<JournalName, u32> = BTreeMap::new();
        loop {
            let journals = self.journals(broadcast).await?;
            if journals.is_empty() || exists(&*self.store, &broadcast.removed()).await? {
                return Ok(None);
            }
            let wanted: Vec<_> =
                journals.keys().filter(|name| !loaded.journals.contains_key(name)).copied().collect();
            let read = stream::iter(wanted)
                .map(|name| async move {
                    let said = self.journal(broadcast, name).await.map_err(|error| (name, error))?;
                    Ok::<_, (JournalName, Error)>((name, said))
                })
                .buffer_unordered(PARALLEL)
                .try_collect::<Vec<_>>()
                .await;
            let read = match read {
                Ok(read) => read,
                Err((name, error)) => {
                    let times = missing.entry(name).or_default();
                    *times += 1;
                    if !error.is_not_found() || *times >= ATTEMPTS {
                        return Err(error);
                    }
                    // Replaced by a higher one since it was listed.
                    tracing::debug!(%broadcast, %error, "a journal was replaced meanwhile");
                    continue;
                }
            };
            loaded.damaged.retain(|(name, _)| journals.contains_key(name));
            if !read.is_empty() {
                let index = Arc::make_mut(&mut loaded.index);
                for (name, said) in read {
                    match said {
                        Ok(said) => index.merge(&said),
                        Err(damage) => {
                            self.metrics.damaged_journals.inc();
                            loaded.damaged.push((name, damage));
                        }
                    }
                }
            }
            (loaded.journals, loaded.at) = (journals, now);
            return Ok(Some(loaded));
        }
    }

    async fn journals(&self, broadcast: &BroadcastId) -> Result<BTreeMap<JournalName, i64>, Error> {
        let folder = broadcast.journals();
        let listed = self.store.list(Some(&folder)).try_collect::<Vec<_>>().await?;
        let named = |meta: &object_store::ObjectMeta| {
            Some((JournalName::parse(&meta.location)?, meta.last_modified.timestamp_millis()))
        };
        Ok(listed.iter().filter_map(named).collect())
    }

    async fn journal(
        &self,
        broadcast: &BroadcastId,
        name: JournalName,
    ) -> Result<Result<Index, Damage>, Error> {
        let path = name.path(broadcast);
        let got = self.store.get(&path).await?;
        if got.meta.size > MAX_JOURNAL_BYTES {
            return Err(Error::TooLarge {
                name: path.to_string(),
                bytes: got.meta.size,
                limit: MAX_JOURNAL_BYTES,
            });
        }
        Ok(journal::decode(broadcast, &got.bytes().await?))
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Changes whenever a broadcast is closed or removed in this process, through any clone of this reader or the writer
    /// that was opened with it.
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// A broadcast was closed or removed: its index is read anew.
    pub(crate) fn settle(&self, broadcast: &BroadcastId) {
        self.cache.invalidate(broadcast);
        self.settled.send_modify(|count| *count += 1);
    }
}

pub(crate) async fn exists(store: &dyn ObjectStore, path: &object_store::path::Path) -> Result<bool, Error> {
    match store.head(path).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
