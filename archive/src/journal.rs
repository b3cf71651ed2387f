//! What journal objects hold: the SHA-256 of what follows, a line end, and a piece of the index as JSON.
#![deny(clippy::disallowed_methods)]

use media::event::Event;
use media::time::Ticks;
use media::{Epoch, RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use crate::index::{Ended, Hole, Index, Run, Segment};
use crate::name::{BroadcastId, Digest};

/// Version of the format. A reader takes what it knows only.
const VERSION: u32 = 1;

/// A journal object that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is cut, or bytes in it changed.
    #[error("its checksum does not match")]
    Checksum,
    /// It was written whole, by something else.
    #[error("it is not a journal of this version: {0}")]
    Format(String),
    /// It is of another broadcast.
    #[error("it is of broadcast {0}")]
    Other(BroadcastId),
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    broadcast: BroadcastId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    segments: Vec<Group>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    holes: Vec<HoleRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    events: Vec<Event>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

/// Segments of one run and rendition: number, start, duration, discontinuity, bytes, SHA-256.
#[derive(Serialize, Deserialize)]
struct Group {
    epoch: Epoch,
    rendition: RenditionId,
    list: Vec<(SegmentNumber, Ticks, Ticks, bool, u64, Digest)>,
    /// Of each of them the bytes of its keyframe; none where all are unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leads: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct HoleRecord {
    epoch: Epoch,
    rendition: RenditionId,
    #[serde(flatten)]
    hole: Hole,
}

/// The bytes of a journal object that says what `index` does.
pub(crate) fn encode(index: &Index) -> Vec<u8> {
    let mut segments: Vec<Group> = Vec::new();
    for (rendition, s) in index.objects() {
        let entry = (s.number, s.start, s.duration, s.discontinuity, s.bytes, s.sha256);
        match segments.last_mut().filter(|group| group.epoch == s.epoch && group.rendition == *rendition) {
            Some(group) => {
                group.list.push(entry);
                group.leads.push(s.lead);
            }
            None => {
                let (list, leads) = (vec![entry], vec![s.lead]);
                segments.push(Group { epoch: s.epoch, rendition: rendition.clone(), list, leads });
            }
        }
    }
    for group in &mut segments {
        if group.leads.iter().all(|lead| *lead == 0) {
            group.leads.clear();
        }
    }
    let holes = index.holes().map(|(rendition, epoch, hole)| HoleRecord {
        epoch,
        rendition: rendition.clone(),
        hole: *hole,
    });
    let record = Record {
        version: VERSION,
        broadcast: index.broadcast().clone(),
        runs: index.runs().cloned().collect(),
        segments,
        holes: holes.collect(),
        events: index.events().collect(),
        ended: index.said_ended(),
    };
    let json = serde_json::to_vec(&record).expect("a record has a text");
    let mut bytes = format!("{}\n", Digest::of(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    bytes
}

/// What a journal object says.
pub(crate) fn decode(broadcast: &BroadcastId, bytes: &[u8]) -> Result<Index, Damage> {
    let (sum, json) = bytes.split_at_checked(65).ok_or(Damage::Checksum)?;
    let sum = std::str::from_utf8(sum).ok().and_then(|sum| sum.strip_suffix('\n')?.parse::<Digest>().ok());
    if sum != Some(Digest::of(json)) {
        return Err(Damage::Checksum);
    }
    let record: Record = serde_json::from_slice(json).map_err(|error| Damage::Format(error.to_string()))?;
    if record.version != VERSION {
        return Err(Damage::Format(format!("version {}", record.version)));
    }
    if record.broadcast != *broadcast {
        return Err(Damage::Other(record.broadcast));
    }
    let mut index = Index::new(record.broadcast);
    for run in record.runs {
        index.add_run(run);
    }
    for Group { epoch, rendition, list, leads } in record.segments {
        let leads = leads.into_iter().chain(std::iter::repeat(0));
        for ((number, start, duration, discontinuity, bytes, sha256), lead) in list.into_iter().zip(leads) {
            let segment = Segment { epoch, number, start, duration, discontinuity, lead, bytes, sha256 };
            index.add_segment(&rendition, segment);
        }
    }
    for HoleRecord { epoch, rendition, hole } in record.holes {
        index.add_hole(&rendition, epoch, hole);
    }
    for event in record.events {
        index.add_event(event);
    }
    if let Some(ended) = record.ended {
        index.end(ended);
    }
    Ok(index)
}
