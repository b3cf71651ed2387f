//! A broadcast of a stream: its renditions with their windows, its runs as periods, and the rules by which they change.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use media::captions::Service;
use media::codec::VideoCodec;
use media::event::Event;
use media::time::{Ticks, Timescale};
use media::{Epoch, Object, RenditionId, SegmentNumber, object};
use transcode::ladder::Known;

use crate::continuation::Continuation;
use crate::control::Rung;
use crate::dash::{Cut, Mpd, Period};
use crate::dvr::{Past, PastRuns};
use crate::events;
use crate::hls::{self, BadDirective, Directives, Hint, Playlist, Report, Targets, Variant};
use crate::live::{Found, Place, State};
use crate::thumbnails::{Sheet, Sheets};
use crate::timeline::Anchor;
use crate::window::{Bitrate, Segment, Window};

/// Init segments kept per rendition: one per run that may still be listed. A broadcaster whose encoder restarts more
/// often than this within a window is not watchable anyway.
pub(crate) const MAX_INITS: usize = 32;

/// Gaps are listed two segments behind the clock, and players ask for what begins next, some for one more.
const ASKED_AHEAD: u64 = 3;

/// Places of a run that are remembered at which its renditions change. Rungs are shed and come back seconds apart at least.
pub(crate) const MAX_CUTS: usize = 32;

/// Segments from the one with which a rung is back to the `Period` that has it again. Who reads a segment in low latency began
/// when that did, by an MPD as old as a segment: dash.js (5) goes on appending it when a `Period` turns out to begin there.
const TOLD_AHEAD: u64 = 3;

/// Segments of the second `Period` of a run that is cut: a whole one, and what came of the last.
const CUT_SEGMENTS: u64 = 2;

/// Samples of an AAC frame, which are ticks of its track.
const AAC_FRAME: Ticks = 1024;

/// Periods kept: as init segments.
pub(crate) const MAX_PERIODS: usize = 32;

#[derive(Debug)]
pub(crate) struct Broadcast {
    pub(crate) anchor: Anchor,
    pub(crate) targets: Targets,
    pub(crate) listed: Ticks,
    pub(crate) periods: Vec<Period>,
    pub(crate) renditions: Vec<Rendition>,
    pub(crate) next_number: SegmentNumber,
    /// Where the newest run ended, or has come so far, 90 kHz.
    pub(crate) end: Ticks,
    pub(crate) breaks: u64,
    /// What follows the newest segment that is complete, as it was last told to the POP.
    pub(crate) next: Option<Continuation>,
    /// The first of the gaps that were listed since the broadcaster went away.
    pub(crate) away: Option<SegmentNumber>,
    /// What is listed of events, and was until lately, in order of time.
    pub(crate) events: VecDeque<Event>,
    pub(crate) sheets: Sheets,
}

#[derive(Debug)]
pub(crate) struct Rendition {
    pub(crate) variant: Variant,
    pub(crate) window: Window,
    pub(crate) inits: Vec<(Epoch, Bytes)>,
    pub(crate) writer: Option<object::Writer>,
    /// The run it belongs to lately.
    pub(crate) epoch: Epoch,
    pub(crate) break_pending: bool,
}

/// A rendition of a new run.
#[derive(Debug, Clone)]
pub struct NewRendition {
    /// What manifests say of it.
    pub variant: Variant,
    /// Ticks per second of its samples.
    pub timescale: Timescale,
    /// Its init segment.
    pub init: Bytes,
}

/// What a push looks at, all of one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// How the broadcast stands.
    pub state: State,
    /// The newest run.
    pub run: Epoch,
    /// Largest first, audio last.
    pub renditions: Vec<RenditionView>,
}

/// One rendition of a [`View`].
#[derive(Debug, Clone)]
pub struct RenditionView {
    /// Its name.
    pub id: RenditionId,
    /// The run it belongs to lately.
    pub epoch: Epoch,
    /// The newest run's init segment.
    pub init: Option<(Epoch, Bytes)>,
    /// The newest segments, oldest first; the last one may be open.
    pub segments: Vec<SegmentView>,
}

/// One segment of a [`RenditionView`].
#[derive(Debug, Clone)]
pub struct SegmentView {
    /// Its number.
    pub number: SegmentNumber,
    /// The run it belongs to.
    pub epoch: Epoch,
    /// How many parts it has so far.
    pub parts: u64,
    /// Whether it still grows.
    pub open: bool,
    /// Its bytes; `None` for a gap.
    pub object: Option<Object>,
}

/// Adds the services on channels that `known` does not have.
pub(crate) fn join(known: &mut Vec<Service>, services: &[Service]) {
    for service in services {
        if !known.iter().any(|known| known.channel == service.channel) {
            known.push(service.clone());
        }
    }
}

impl Broadcast {
    pub(crate) fn begin(
        &mut self,
        epoch: Epoch,
        place: Place,
        renditions: Vec<NewRendition>,
        mut captions: Vec<Service>,
        fresh: bool,
    ) {
        // The same renditions under the same init segments; if no frame is missing between, players notice nothing.
        let alike = renditions.len() == self.renditions.iter().filter(|r| r.epoch == self.epoch()).count()
            && renditions.iter().all(|new| self.goes_on_as(new));
        let joined = place.joined && alike;
        self.breaks += u64::from(!fresh && !joined);
        self.end = place.start;
        (self.next, self.away) = (None, None);
        let (mut connected, mut resumes) = (None, None);
        if let Some(before) = self.periods.last_mut() {
            before.end.get_or_insert(place.start);
            connected = joined.then_some(before.epoch);
            resumes = alike.then_some(before.epoch);
            // What was there may be there again: it stays on the menu.
            join(&mut captions, &before.captions_found);
        }
        // What an MPD says of a rendition never changes within a period (5.4): what was measured of it before, if anything.
        let variant = |new: &NewRendition| Variant {
            measured: self.rendition(&new.variant.id).map_or(new.variant.measured, |r| r.window.bitrate()),
            ..new.variant.clone()
        };
        let variants = renditions.iter().map(variant).collect();
        if self.periods.len() >= MAX_PERIODS {
            self.periods.remove(0);
        }
        self.periods.push(Period {
            epoch,
            start: place.start,
            end: None,
            first: place.first,
            variants,
            connected,
            resumes,
            cuts: Vec::new(),
            trimmed: false,
            captions: captions.clone(),
            captions_found: captions,
            thumbnails: None,
        });
        for NewRendition { variant, timescale, init } in renditions {
            let index =
                self.renditions.iter().position(|r| r.variant.id == variant.id).unwrap_or_else(|| {
                    // A rendition that joins late has the breaks before it behind it.
                    let window = Window::new(timescale, self.listed, self.breaks);
                    let (variant, inits) = (variant.clone(), Vec::new());
                    self.renditions.push(Rendition {
                        variant,
                        window,
                        inits,
                        writer: None,
                        epoch,
                        break_pending: false,
                    });
                    self.renditions.len() - 1
                });
            let rendition = &mut self.renditions[index];
            rendition.break_pending =
                (!joined || rendition.break_pending) && rendition.window.last().is_some();
            rendition.variant = variant;
            rendition.epoch = epoch;
            if rendition.inits.len() >= MAX_INITS {
                rendition.inits.remove(0);
            }
            rendition.inits.push((epoch, init));
        }
        // Largest first, audio last, whatever order they came in.
        self.renditions.sort_by_key(|rendition| match rendition.variant.kind {
            hls::Kind::Video { height, .. } => (0, u32::MAX - height),
            hls::Kind::Audio { .. } => (1, 0),
        });
    }

    /// The video renditions of the newest run.
    pub(crate) fn known_video(&self) -> Vec<Known> {
        let current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        let known = current.filter_map(|Rendition { variant, .. }| {
            let hls::Kind::Video { width, height, .. } = variant.kind else { return None };
            let codec = VideoCodec::from_fourcc(hls::fourcc(&variant.codec).as_bytes())?;
            Some(Known { id: variant.id.clone(), codec, lines: width.min(height) })
        });
        known.collect()
    }

    /// Something happens. False if it is known.
    pub(crate) fn event(&mut self, event: &Event) -> bool {
        if self.events.iter().any(|known| known.is_again(event)) {
            return false;
        }
        self.events.insert(self.events.partition_point(|before| before.at <= event.at), event.clone());
        self.forget_events();
        true
    }

    /// Those of date ranges that left the playlists long ago.
    fn forget_events(&mut self) {
        if !self.events.is_empty() {
            let first = self.renditions.iter().filter_map(|rendition| {
                let start = rendition.window.segments().next()?.start;
                Some(rendition.window.timescale().rescale(start, Timescale::VIDEO))
            });
            let from = first.min().unwrap_or(Ticks::MIN / 2);
            events::forget(&mut self.events, from - self.targets.skip_boundary());
        }
    }

    /// A sheet of thumbnails is whole. It is kept for as long as the media that it shows.
    pub(crate) fn sheet(&mut self, sheet: Sheet) {
        self.sheets.push(sheet, self.end - 2 * self.listed, &self.periods);
    }

    /// Captions were found in the newest run.
    pub(crate) fn found(&mut self, captions: &[Service]) {
        if let Some(run) = self.periods.last_mut() {
            join(&mut run.captions_found, captions);
        }
    }

    /// Captions that players who begin now are told of.
    pub(crate) fn captions(&self) -> &[Service] {
        self.periods.last().map_or(&[], |run| &run.captions_found)
    }

    /// Whether a rendition of the newest run has this name and the same header.
    fn goes_on_as(&self, new: &NewRendition) -> bool {
        self.rendition(&new.variant.id).is_some_and(|before| {
            before.epoch == self.epoch()
                && before.window.timescale() == new.timescale
                && before.inits.last().is_some_and(|(_, init)| *init == new.init)
        })
    }

    /// Whether everything up to and without `number` is complete in all renditions of the newest run.
    pub(crate) fn is_whole_before(&self, number: SegmentNumber) -> bool {
        let mut current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        current.all(|rendition| rendition.window.last_closed().is_some_and(|last| last.next() >= number))
    }

    /// Goes back to where segment `number` begins, at `start` (90 kHz): what is listed from there on will be made once more.
    /// False, and nothing is changed, if not even a segment would be left.
    pub(crate) fn rewind(&mut self, number: SegmentNumber, start: Ticks) -> bool {
        let reaches = |rendition: &Rendition| {
            rendition.window.segments().next().is_some_and(|oldest| oldest.number < number)
        };
        if !self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch()).all(reaches) {
            return false;
        }
        for rendition in &mut self.renditions {
            rendition.window.keep_parts_off(self.targets.parts_listed(rendition.window.timescale()));
            rendition.break_pending |= rendition.window.truncate(number);
            // Whoever reads what was open finds that the rest does not come.
            rendition.writer = None;
        }
        for index in 0..self.renditions.len() {
            self.close(index);
        }
        while self.periods.len() > 1 && self.periods.last().is_some_and(|period| period.first >= number) {
            self.periods.pop();
        }
        if let Some(period) = self.periods.last_mut() {
            period.end = Some(start.max(period.start));
            period.cuts.retain(|cut| cut.at < number);
            period.trimmed &= !period.cuts.is_empty();
        }
        (self.end, self.next_number) = (start, number);
        true
    }

    pub(crate) fn open(&mut self, index: usize, number: SegmentNumber, start: Ticks) {
        let (writer, object) = Object::growing();
        let gap_duration = Timescale::VIDEO
            .rescale(self.targets.segment_duration, self.renditions[index].window.timescale());
        let rendition = &mut self.renditions[index];
        let segment = Segment {
            number,
            epoch: rendition.epoch,
            start,
            duration: 0,
            parts: Vec::new(),
            object: Some(object),
            bytes: 0,
            discontinuity: std::mem::take(&mut rendition.break_pending),
        };
        rendition.window.open(segment, gap_duration);
        rendition.writer = Some(writer);
        self.next_number = self.next_number.max(number.next());
    }

    pub(crate) fn gap(&mut self, index: usize, number: SegmentNumber) {
        let (place, segment_duration) =
            (self.periods.last().map(|p| (p.start, p.first)), self.targets.segment_duration);
        let Some((start, first)) = place else { return };
        let rendition = &mut self.renditions[index];
        let ticks = |ticks| Timescale::VIDEO.rescale(ticks, rendition.window.timescale());
        let duration = ticks(segment_duration);
        let gap = Segment {
            number,
            epoch: rendition.epoch,
            start: ticks(start + number.0.saturating_sub(first.0) as Ticks * segment_duration),
            duration,
            parts: Vec::new(),
            object: None,
            bytes: 0,
            discontinuity: std::mem::take(&mut rendition.break_pending),
        };
        rendition.window.open(gap, duration);
        rendition.window.close();
    }

    pub(crate) fn close(&mut self, index: usize) {
        let rendition = &mut self.renditions[index];
        if let Some(writer) = rendition.writer.take() {
            writer.finish();
        }
        let was_open = rendition.window.open_segment().is_some();
        rendition.window.close();
        if was_open && index == self.renditions.iter().position(|r| r.epoch == self.epoch()).unwrap_or(0) {
            self.fill_gaps(index);
        }
        self.forget_events();
        let rendition = &self.renditions[index];
        if let Some(last) = rendition.window.segments().next_back() {
            let end = rendition.window.timescale().rescale(last.start + last.duration, Timescale::VIDEO);
            self.end = self.end.max(end);
        }
        // A gap holds no media: it keeps nobody's period.
        let held = |r: &Rendition| r.window.segments().find(|s| s.object.is_some()).map(|s| s.epoch);
        let oldest = self.renditions.iter().filter_map(held).min();
        if let Some(oldest) = oldest {
            self.periods.retain(|period| period.epoch >= oldest);
        }
        self.trim();
    }

    /// Nothing comes: lists gaps for what lies wholly before `until` (90 kHz), so that the playlists stay alive. At most a
    /// window of them at once: what is older would leave it at once.
    pub(crate) fn stay_alive(&mut self, until: Ticks) {
        if self.away.is_none() {
            self.finish_run();
            self.cut();
            self.away = Some(self.next_number);
        }
        let duration = self.targets.segment_duration;
        let most = self.listed / duration + 1;
        for _ in 0..most {
            if self.end + duration > until {
                break;
            }
            for rendition in &mut self.renditions {
                let ticks = |ticks| Timescale::VIDEO.rescale(ticks, rendition.window.timescale());
                let gap = Segment {
                    number: self.next_number,
                    epoch: rendition.epoch,
                    start: ticks(self.end),
                    duration: ticks(duration),
                    parts: Vec::new(),
                    object: None,
                    bytes: 0,
                    discontinuity: std::mem::take(&mut rendition.break_pending),
                };
                rendition.window.away(gap);
            }
            self.end += duration;
            self.next_number = self.next_number.next();
        }
    }

    /// The MPD is to tell the end of the run. dash.js takes the end of an MPD's only period for the end of the presentation,
    /// so that one is told as two; in front of what is cut off there are segments that players have passed.
    fn cut(&mut self) {
        let next = self.next_number;
        if let Some(run) = self.periods.last_mut() {
            // Nothing came of it.
            run.cuts.retain(|cut| cut.at < next);
        }
        if let [only] = &mut self.periods[..]
            && only.cuts.len() + usize::from(!only.trimmed) == 1
        {
            let at = SegmentNumber(self.next_number.0.saturating_sub(CUT_SEGMENTS));
            let (begins, without) =
                only.cuts.last().map_or((only.first, Vec::new()), |cut| (cut.at, cut.without.clone()));
            if at > begins {
                only.cuts.push(Cut { at, without });
            }
        }
    }

    /// From segment `number` on nothing is encoded for a rendition, or something is again: players of DASH are told in a
    /// period that is without it, and [`TOLD_AHEAD`] segments later in one that has it again. At most [`MAX_CUTS`] of these are
    /// told of; before them it seems to be there, in gaps.
    pub(crate) fn shed(&mut self, index: usize, number: SegmentNumber, shed: bool) {
        let Some(period) = self.periods.last_mut() else { return };
        let id = &self.renditions[index].variant.id;
        let (at, mut without) =
            period.cuts.last().map_or((period.first, Vec::new()), |cut| (cut.at, cut.without.clone()));
        if without.contains(id) == shed {
            return;
        }
        match shed {
            true => without.push(id.clone()),
            false => without.retain(|other| other != id),
        }
        let number = if shed { number } else { SegmentNumber(number.0 + TOLD_AHEAD) };
        let cut = Cut { at: number.max(at), without };
        if cut.at == at && !period.cuts.is_empty() {
            period.cuts.pop();
        }
        // Nothing is before it.
        period.trimmed |= cut.at == period.first;
        period.cuts.push(cut);
        if period.cuts.len() > MAX_CUTS {
            period.cuts.remove(0);
        }
    }

    /// Forgets of what has left the window how it was cut. A run that is over goes as a whole.
    fn trim(&mut self) {
        let oldest = self.renditions.iter().filter_map(|r| r.window.segments().next());
        let oldest = oldest.map(|segment| segment.number).min();
        let (Some(oldest), Some(run)) = (oldest, self.periods.last_mut()) else { return };
        let gone = run.cuts.iter().take_while(|cut| cut.at <= oldest).count();
        run.trimmed |= gone > 0;
        run.cuts.drain(..gone.saturating_sub(1));
    }

    /// It is over. The gaps of the last absence stay where they were listed: nothing that was told is taken back.
    pub(crate) fn end(&mut self) {
        self.finish_run();
    }

    /// Renditions that this run does not have must go on all the same: their players are told that media is missing, and
    /// choose another.
    fn fill_gaps(&mut self, leader: usize) {
        let (epoch, timescale) = (self.epoch(), self.renditions[leader].window.timescale());
        let Some(model) = self.renditions[leader].window.segments().next_back().cloned() else { return };
        for rendition in self.renditions.iter_mut().filter(|rendition| rendition.epoch != epoch) {
            let ticks = |ticks| timescale.rescale(ticks, rendition.window.timescale());
            let gap = Segment {
                epoch: rendition.epoch,
                start: ticks(model.start),
                duration: ticks(model.duration),
                parts: Vec::new(),
                object: None,
                bytes: 0,
                ..model.clone()
            };
            let duration = gap.duration;
            rendition.window.open(gap, duration);
            rendition.window.close();
        }
    }

    pub(crate) fn finish_run(&mut self) {
        for index in 0..self.renditions.len() {
            self.close(index);
        }
        let edge = self.edge();
        // The gaps of an absence are no part of a run.
        if let Some(period) = self.periods.last_mut().filter(|_| self.away.is_none()) {
            period.end = Some(edge);
        }
    }

    /// How far the newest run has come. Players count segments by the period's duration: the last frame of a rendition may
    /// reach a little beyond its last segment's nominal end, and must not promise another.
    fn edge(&self) -> Ticks {
        let nominal = self.periods.last().map_or(self.end, |run| {
            let segments = self.next_number.0.saturating_sub(run.first.0) as Ticks;
            run.start + segments * self.targets.segment_duration
        });
        self.end.min(nominal)
    }

    // --- the readers' side ---

    /// A media playlist that satisfies the directives; `query` is what the URIs of other ones end with.
    pub(crate) fn playlist(
        &self,
        state: State,
        id: &RenditionId,
        directives: Directives,
        past: Option<&Past>,
        query: &str,
    ) -> Result<Found<String>, BadDirective> {
        let Some(rendition) = self.rendition(id) else { return Ok(Found::Never) };
        self.listed(state, rendition, directives, past, query, |playlist| playlist.render(directives.skip))
    }

    /// The I-frame playlist of a video rendition. It has no parts: those that are asked for come with their segment.
    pub(crate) fn iframes(
        &self,
        state: State,
        id: &RenditionId,
        directives: Directives,
        past: Option<&Past>,
        query: &str,
    ) -> Result<Found<String>, BadDirective> {
        let video = |rendition: &&Rendition| matches!(rendition.variant.kind, hls::Kind::Video { .. });
        let Some(rendition) = self.rendition(id).filter(video) else { return Ok(Found::Never) };
        let directives = Directives { part: None, ..directives };
        self.listed(state, rendition, directives, past, query, |playlist| playlist.iframes(directives.skip))
    }

    fn listed(
        &self,
        state: State,
        rendition: &Rendition,
        directives: Directives,
        past: Option<&Past>,
        query: &str,
        render: impl FnOnce(&Playlist<'_>) -> String,
    ) -> Result<Found<String>, BadDirective> {
        let id = &rendition.variant.id;
        let ended = state == State::Ended;
        // After EXT-X-ENDLIST the directives mean nothing (6.2.5.2).
        // A playlist without a whole segment is one that plain players give up on: they wait for it here.
        if rendition.window.last_closed().is_none()
            || !(ended || directives.satisfied(&rendition.window, self.targets)?)
        {
            return Ok(Found::Later);
        }
        let first = rendition.window.segments().next().map_or(self.next_number, |segment| segment.number);
        let mut events = past.map_or_else(Vec::new, |past| past.events().to_vec());
        for event in &self.events {
            if !events.iter().any(|known| known.is_again(event)) {
                events.push(event.clone());
            }
        }
        let playlist = Playlist {
            id,
            events: &events,
            earlier: &past.map_or_else(VecDeque::new, |past| past.clone().before(first)),
            window: &rendition.window,
            targets: self.targets,
            anchor: self.anchor,
            reports: &self.reports(id),
            hint: self.hint(state, rendition),
            ended,
            query,
        };
        Ok(Found::Ready(render(&playlist)))
    }

    /// What of a rendition is coming.
    fn hint(&self, state: State, rendition: &Rendition) -> Hint {
        let Some((last, run)) = rendition.window.segments().next_back().zip(self.periods.last()) else {
            return Hint::Nothing;
        };
        if state != State::Live || rendition.epoch != run.epoch {
            Hint::Nothing
        } else if last.epoch == run.epoch {
            // Until the next frame comes a segment is open that has all its parts: what is promised of it would never come.
            let index = last.number.0.saturating_sub(run.first.0) as Ticks;
            let boundary = run.start + (index + 1) * self.targets.segment_duration;
            let boundary = Timescale::VIDEO.rescale(boundary, rendition.window.timescale());
            let early = match rendition.variant.kind {
                // Frames of audio are cut where they are nearest to the boundary.
                hls::Kind::Audio { .. } => AAC_FRAME / 2,
                // A rounding.
                hls::Kind::Video { .. } => 1,
            };
            match rendition.window.open_segment() {
                Some(open) if open.start + open.duration + early >= boundary => {
                    Hint::Segment(open.number.next())
                }
                _ => Hint::Part,
            }
        } else {
            Hint::Run(run.epoch, last.number.next().max(run.first))
        }
    }

    /// The MPD.
    pub(crate) fn mpd(
        &self,
        state: State,
        latency_ms: u64,
        published_unix_ms: i64,
        time_url: &str,
        past: Option<&PastRuns>,
    ) -> String {
        let mut periods = self.periods.clone();
        let (mut depth, mut oldest) = (self.depth(), self.oldest());
        if let Some(past) = past {
            let first = periods.first().map(|period| period.epoch);
            let before = past.periods.iter().filter(|period| Some(period.epoch) < first);
            periods.splice(0..0, before.cloned());
            // What has left the window can still be had.
            periods.iter_mut().for_each(|period| period.trimmed = false);
            depth = depth.max(self.end - past.from.max(periods.first().map_or(past.from, |p| p.start)));
            oldest = past.first.map_or(oldest, |first| first.min(oldest));
        }
        let mpd = Mpd {
            anchor: self.anchor,
            targets: self.targets,
            window: depth,
            edge: self.edge(),
            sheets_from: self.end - self.depth(),
            latency_ms,
            published_unix_ms,
            time_url,
            periods: &periods,
            away: self.away.is_some(),
            ended: (state == State::Ended).then_some(oldest),
        };
        mpd.render()
    }

    /// A segment. One that is about to begin is worth waiting for: players are told of it by preload hints and by
    /// availabilityTimeOffset.
    pub(crate) fn segment(
        &self,
        state: State,
        epoch: Epoch,
        id: &RenditionId,
        number: SegmentNumber,
    ) -> Found<Object> {
        let Some(rendition) = self.rendition(id) else { return Found::Never };
        if let Some(object) = rendition.window.find(epoch, number) {
            return Found::Ready(object.clone());
        }
        let next = rendition.window.last().map_or(self.next_number, SegmentNumber::next);
        let soon = number == next || number == next.next();
        // Once the broadcaster is taken to be away, it is known that there will be none.
        let awaited = match state {
            State::Live => true,
            State::Interrupted(_) => self.away.is_none(),
            State::Offline | State::Ended => false,
        };
        if soon && awaited && epoch == self.epoch() && rendition.epoch == epoch {
            return Found::Later;
        }
        Found::Never
    }

    /// Whether this is a place of the timeline at which the run has no media, though players may ask for it: a gap, or behind
    /// the run's end and before the next run's beginning. Some take a period to last that long whatever is told.
    pub(crate) fn is_gap(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber) -> bool {
        let Some(rendition) = self.rendition(id) else { return false };
        let listed = rendition.window.segments().find(|s| s.number == number && s.epoch == epoch);
        if let Some(listed) = listed {
            return listed.object.is_none();
        }
        let Some(index) = self.periods.iter().position(|period| period.epoch == epoch) else { return false };
        let period = &self.periods[index];
        let segment = self.targets.segment_duration;
        let behind =
            |end: Ticks| period.first.0 + ((end - period.start).max(0) as u64).div_ceil(segment as u64);
        let until = match self.periods.get(index + 1) {
            Some(next) => behind(next.start),
            None if self.away.is_some() => self.next_number.0 + ASKED_AHEAD,
            None => return false,
        };
        period.end.is_some_and(|end| (behind(end)..=until).contains(&number.0))
    }

    /// It with the newest `segments` of each rendition.
    pub(crate) fn view(&self, state: State, segments: usize) -> View {
        let renditions = self.renditions.iter().map(|rendition| {
            let window = &rendition.window;
            let open = window.open_segment().map(|segment| segment.number);
            let newest = window.segments().skip(window.segments().len().saturating_sub(segments));
            let segments = newest.map(|segment| SegmentView {
                number: segment.number,
                epoch: segment.epoch,
                parts: segment.parts.len() as u64,
                open: open == Some(segment.number),
                object: segment.object.clone(),
            });
            RenditionView {
                id: rendition.variant.id.clone(),
                epoch: rendition.epoch,
                init: rendition.inits.last().cloned(),
                segments: segments.collect(),
            }
        });
        View { state, run: self.epoch(), renditions: renditions.collect() }
    }

    /// The renditions of the newest run, as operators see them.
    pub(crate) fn ladder(&self) -> Vec<Rung> {
        let zero = self.anchor.zero_unix_ms();
        let current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        let rung = |rendition: &Rendition| {
            let (variant, window) = (&rendition.variant, &rendition.window);
            let newest = window.segments().last();
            // The open segment has media once its first part is there.
            let media = window.segments().rfind(|segment| segment.object.is_some());
            let until = |segment: &Segment| {
                zero + window.timescale().rescale(segment.start + segment.duration, Timescale::MILLIS)
            };
            Rung {
                id: variant.id.clone(),
                codec: variant.codec.clone(),
                kind: variant.kind,
                bitrate_bps: match window.bitrate() {
                    Bitrate { segments: 0, .. } => variant.bitrate_bps,
                    measured => measured.average_bps,
                },
                newest: newest.map(|segment| segment.number),
                is_gap: newest.is_some_and(|segment| segment.object.is_none()),
                until_unix_ms: media.map(until),
            }
        };
        current.map(rung).collect()
    }

    /// How far back viewers may go, in whole segments. A young broadcast says its age: FFmpeg's reader subtracts the depth
    /// from it without looking.
    pub(crate) fn depth(&self) -> Ticks {
        let segment = self.targets.segment_duration;
        // What an origin was handed begins later than the broadcast.
        let began = self.periods.first().map_or(self.anchor.ticks, |period| period.start);
        let age = (self.end - began) / segment * segment;
        age.clamp(segment, self.listed.max(segment))
    }

    /// The oldest segment that is listed in every rendition of the newest run.
    pub(crate) fn oldest(&self) -> SegmentNumber {
        let current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        let oldest =
            current.filter_map(|rendition| rendition.window.segments().next().map(|segment| segment.number));
        oldest.max().unwrap_or(self.next_number)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.periods.last().map_or(Epoch(0), |period| period.epoch)
    }

    pub(crate) fn rendition(&self, id: &RenditionId) -> Option<&Rendition> {
        self.renditions.iter().find(|rendition| rendition.variant.id == *id)
    }

    pub(crate) fn variants(&self) -> Vec<Variant> {
        let measured = |r: &Rendition| Variant { measured: r.window.bitrate(), ..r.variant.clone() };
        self.renditions.iter().filter(|r| r.epoch == self.epoch()).map(measured).collect()
    }

    /// Renditions with an I-frame playlist, and its bits per second at most: until some were measured, as configured for
    /// all pictures.
    pub(crate) fn iframe_variants(&self) -> BTreeMap<RenditionId, u64> {
        let current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        let video = current.filter(|rendition| matches!(rendition.variant.kind, hls::Kind::Video { .. }));
        let bps = |rendition: &Rendition| match rendition.window.keyframes_bps() {
            0 => rendition.variant.bitrate_bps,
            measured => measured,
        };
        video.map(|rendition| (rendition.variant.id.clone(), bps(rendition))).collect()
    }

    pub(crate) fn reports(&self, except: &RenditionId) -> Vec<Report> {
        let others = self.renditions.iter().filter(|r| r.variant.id != *except && r.epoch == self.epoch());
        let report = |rendition: &Rendition| {
            let mut segments = rendition.window.segments().rev().skip_while(|segment| {
                // An open segment without a part is not in its playlist yet.
                segment.parts.is_empty() && segment.object.is_some()
            });
            let newest = segments.next()?;
            // The last part that is listed, though gaps may follow it (4.4.5.4).
            let from = rendition.window.parts_from(self.targets.parts_listed(rendition.window.timescale()));
            let mut with_parts =
                rendition.window.segments().rev().take_while(|segment| segment.number >= from);
            let newest = with_parts.find(|segment| !segment.parts.is_empty()).unwrap_or(newest);
            let part = (newest.parts.len() as u64).checked_sub(1);
            Some(Report { id: rendition.variant.id.clone(), msn: newest.number, part })
        };
        others.filter_map(report).collect()
    }
}
