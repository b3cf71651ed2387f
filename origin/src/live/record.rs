//! Hands what a broadcast has published to the archive: looks at it after every change, and offers what is new.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use archive::index::{self, Run};
use archive::{BroadcastId, NewSegment, Sink};
use media::time::Ticks;
use media::{Epoch, Object, RenditionId, SegmentNumber, StreamName};

use super::State;
use crate::broadcast::Broadcast;
use crate::dash::Period;
use crate::hls::Kind;
use crate::thumbnails;

/// What of a stream was offered.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    sink: Sink,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    id: BroadcastId,
    /// Of those that are still listed as periods.
    runs: BTreeSet<Epoch>,
    newest: BTreeMap<RenditionId, (Epoch, SegmentNumber)>,
    /// Of sheets of thumbnails.
    newest_sheet: Option<(Epoch, SegmentNumber)>,
    /// Events that are still listed.
    events: BTreeSet<(Ticks, u32)>,
    /// Captions of the newest run.
    captions: usize,
    ended: bool,
}

impl Recorder {
    pub(super) fn new(sink: Sink) -> Self {
        Self { sink, current: None }
    }

    /// Offers what changed since the last call. Costs a few comparisons when nothing did.
    pub(super) fn observe(&mut self, stream: &StreamName, state: State, broadcast: Option<&Broadcast>) {
        let Some(broadcast) = broadcast.filter(|_| !self.sink.is_none()) else { return };
        let unix_ms = broadcast.anchor.unix_ms;
        let known = self.current.as_ref().is_some_and(|known| known.id.unix_ms() == unix_ms.max(0) as u64);
        if !known {
            let id = BroadcastId::new(stream.clone(), unix_ms);
            let (runs, newest) = (BTreeSet::new(), BTreeMap::new());
            let (events, newest_sheet, captions, ended) = Default::default();
            self.current = Some(Current { id, runs, newest, newest_sheet, events, captions, ended });
        }
        let Some(current) = &mut self.current else { return };
        for (index, period) in broadcast.periods.iter().enumerate() {
            // Said once more where captions were found later.
            let newest = index + 1 == broadcast.periods.len();
            let found = newest && current.captions != period.captions_found.len();
            if newest {
                current.captions = period.captions_found.len();
            }
            if current.runs.insert(period.epoch) || found {
                let later = &broadcast.periods[index + 1..];
                let later_breaks = later.iter().filter(|period| period.connected.is_none()).count();
                let breaks = broadcast.breaks.saturating_sub(later_breaks as u64);
                self.sink.run(&current.id, run(broadcast, period, breaks));
                current.runs.retain(|run| broadcast.periods.iter().any(|period| period.epoch == *run));
            }
        }
        for rendition in &broadcast.renditions {
            let open = rendition.window.open_segment().map(|segment| segment.number);
            let newest = current.newest.get(&rendition.variant.id).copied();
            let closed = rendition.window.segments().rev().filter(|segment| open != Some(segment.number));
            let new = closed
                .take_while(|segment| newest.is_none_or(|newest| (segment.epoch, segment.number) > newest));
            let mut new: Vec<_> = new.collect();
            let Some(last) = new.first() else { continue };
            current.newest.insert(rendition.variant.id.clone(), (last.epoch, last.number));
            new.reverse();
            for segment in new {
                let (epoch, number) = (segment.epoch, segment.number);
                let (broadcast, rendition) = (current.id.clone(), rendition.variant.id.clone());
                match &segment.object {
                    Some(object) => self.sink.segment(NewSegment {
                        broadcast,
                        epoch,
                        rendition,
                        number,
                        start: segment.start,
                        duration: segment.duration,
                        discontinuity: segment.discontinuity,
                        lead: segment.lead(),
                        object: object.clone(),
                    }),
                    None => self.sink.gap(&broadcast, epoch, &rendition, number),
                }
            }
        }
        for sheet in broadcast.sheets.iter() {
            let key = (sheet.epoch, sheet.number);
            let run = broadcast.periods.iter().find(|run| run.epoch == sheet.epoch);
            let Some(tiles) = run.and_then(|run| run.thumbnails).filter(|_| current.newest_sheet < Some(key))
            else {
                continue;
            };
            current.newest_sheet = Some(key);
            self.sink.segment(NewSegment {
                broadcast: current.id.clone(),
                epoch: sheet.epoch,
                rendition: thumbnails::rendition(),
                number: sheet.number,
                start: tiles.sheet_duration().saturating_mul(sheet.number.0 as Ticks),
                duration: tiles.sheet_duration(),
                discontinuity: false,
                lead: 0,
                object: Object::complete(sheet.jpeg.clone()),
            });
        }
        if !broadcast.events.is_empty() {
            let known = std::mem::take(&mut current.events);
            for event in &broadcast.events {
                let key = (event.at, event.id());
                if !known.contains(&key) {
                    self.sink.event(&current.id, broadcast.epoch(), event.clone());
                }
                current.events.insert(key);
            }
        }
        let ended = state == State::Ended;
        if ended && !current.ended {
            self.sink.ended(&current.id, broadcast.epoch());
        }
        current.ended = ended;
    }
}

fn run(broadcast: &Broadcast, period: &Period, breaks: u64) -> Run {
    let rendition = |variant: &crate::hls::Variant| {
        let found = broadcast.rendition(&variant.id)?;
        let (_, init) = found.inits.iter().find(|(epoch, _)| *epoch == period.epoch)?;
        Some(index::Rendition {
            id: variant.id.clone(),
            codec: variant.codec.clone(),
            bitrate_bps: variant.bitrate_bps,
            timescale: found.window.timescale(),
            kind: match variant.kind {
                Kind::Video { width, height, frame_rate } => index::Kind::Video { width, height, frame_rate },
                Kind::Audio { channels, sample_rate } => index::Kind::Audio { channels, sample_rate },
            },
            init: init.clone(),
        })
    };
    Run {
        epoch: period.epoch,
        first: period.first,
        start: period.start,
        anchor: index::Anchor { unix_ms: broadcast.anchor.unix_ms, ticks: broadcast.anchor.ticks },
        segment_duration: broadcast.targets.segment_duration,
        part_target: broadcast.targets.part_target,
        breaks,
        renditions: period.variants.iter().filter_map(rendition).collect(),
        captions: period.captions_found.clone(),
        tiles: period.thumbnails.map(|tiles| index::Tiles {
            interval: tiles.interval,
            columns: tiles.columns,
            rows: tiles.rows,
            width: tiles.width,
            height: tiles.height,
        }),
    }
}
