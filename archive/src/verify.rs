//! Reads everything that is kept of a broadcast and compares it with what its index says.

use futures_util::{StreamExt, stream};
use object_store::ObjectStoreExt;
use serde::Serialize;

use crate::error::Error;
use crate::index::{Entry, Summary, Why};
use crate::name::{BroadcastId, Digest, media_path};
use crate::reader::Reader;
use media::SegmentNumber;

/// Objects that are read at a time.
const PARALLEL: usize = 8;

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is not what was written.
    Damaged(String),
    /// It cannot be read.
    Unreadable(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Missing => f.write_str("missing"),
            Problem::Damaged(why) => write!(f, "damaged: {why}"),
            Problem::Unreadable(why) => write!(f, "unreadable: {why}"),
        }
    }
}

/// One object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Its path in the store.
    pub object: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What [`Reader::verify`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The broadcast.
    #[serde(flatten)]
    pub summary: Summary,
    /// Objects read and found good.
    pub good: usize,
    /// Those that are not.
    pub findings: Vec<Finding>,
    /// Segments that were never written, as `{rendition}/{number}: {why}`; gaps that live viewers had are not among them.
    pub holes: Vec<String>,
}

impl Reader {
    /// Reads all objects of a broadcast and compares their checksums. Nothing is changed.
    pub async fn verify(&self, broadcast: &BroadcastId) -> Result<Report, Error> {
        let loaded = self.load(broadcast, None).await?;
        let loaded = loaded.ok_or_else(|| Error::NoBroadcast(broadcast.clone()))?;
        let mut findings: Vec<_> = loaded
            .damaged
            .iter()
            .map(|(name, damage)| Finding {
                object: name.path(broadcast).to_string(),
                problem: Problem::Damaged(damage.to_string()),
            })
            .collect();
        let objects: Vec<_> = loaded.index.objects().map(|(id, segment)| (id.clone(), *segment)).collect();
        let count = objects.len();
        let bad = stream::iter(objects)
            .map(|(rendition, segment)| async move {
                let path = media_path(broadcast, &rendition, &segment);
                let read = async { self.store().get(&path).await?.bytes().await };
                let problem = match read.await {
                    Ok(bytes) if bytes.len() as u64 != segment.bytes => {
                        Problem::Damaged(format!("{} bytes instead of {}", bytes.len(), segment.bytes))
                    }
                    Ok(bytes) if Digest::of(&bytes) != segment.sha256 => {
                        Problem::Damaged("its checksum does not match".into())
                    }
                    Ok(_) => return None,
                    Err(object_store::Error::NotFound { .. }) => Problem::Missing,
                    Err(error) => Problem::Unreadable(error.to_string()),
                };
                Some(Finding { object: path.to_string(), problem })
            })
            .buffer_unordered(PARALLEL)
            .filter_map(std::future::ready)
            .collect::<Vec<_>>()
            .await;
        let good = count - bad.len();
        findings.extend(bad);
        findings.sort();
        let mut holes = Vec::new();
        for rendition in loaded.index.renditions() {
            for entry in loaded.index.entries(&rendition.id, SegmentNumber(0)) {
                if let Entry::Missing { number, why: why @ (Why::Overflow | Why::Lost), .. } = entry {
                    holes.push(format!("{}/{number}: {}", rendition.id, why.as_str()));
                }
            }
        }
        Ok(Report { summary: loaded.index.summary(), good, findings, holes })
    }
}
