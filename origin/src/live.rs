//! One stream as viewers see it: its broadcast's renditions, windows and periods, behind one lock, and a version
//! that grows with every part.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cluster::lease::Grant;
use media::time::{Ticks, Timescale};
use media::{Epoch, Object, RenditionId, SegmentNumber, StreamName, object};
use tokio::sync::watch;

use crate::continuation::{AudioStart, Continuation};
use crate::control::Standing;
use crate::dash::{Mpd, Period};
use crate::hls::{self, BadDirective, Directives, Playlist, Report, Targets, Variant};
use crate::timeline::{Anchor, FIRST_TICK};
use crate::window::{Segment, Window};

/// Init segments kept per rendition: one per run that may still be listed. A broadcaster whose encoder restarts more
/// often than this within a window is not watchable anyway.
const MAX_INITS: usize = 32;

/// Periods kept: as init segments.
const MAX_PERIODS: usize = 32;

/// How far a POP's count of segments may be ahead of the wall clock's, in segments.
const MAX_LEAD: u64 = 60;

/// How a broadcast stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing was published yet.
    Offline,
    /// A session publishes.
    Live,
    /// The broadcaster is away; how often that happened tells one interruption from another.
    Interrupted(u64),
    /// It is over.
    Ended,
}

/// One stream. Writers are serialised by [`Live::writer`]; readers may be many.
#[derive(Debug)]
pub struct Live {
    name: StreamName,
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    /// Grows when this or another stream of the origin begins, is interrupted, goes on or ends.
    news: Arc<watch::Sender<u64>>,
    /// Held by the session that publishes: the next one waits until the one before has let go.
    pub writer: Arc<tokio::sync::Mutex<Writer>>,
}

/// What one writer leaves to the next.
#[derive(Debug, Default)]
pub struct Writer {
    /// The session that wrote last and whose relay was lost, and where it can be taken up.
    pub left: Option<(String, Left)>,
    /// Its right to write.
    pub grant: Option<Grant>,
}

/// How far a run came whose relay was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// A video frame (audio-only: an audio frame) that is published: milliseconds as sent, and its place (90 kHz).
    pub lead: (u32, Ticks),
    /// Everything before is published (90 kHz); after the lead.
    pub end: Ticks,
    /// The first audio that is not published.
    pub audio: Option<AudioStart>,
}

/// How a new run follows what was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// By the wall clock: a new session, or a break of the timeline.
    Clock,
    /// Behind what its own relay left here.
    Left(Left),
    /// As another origin told.
    Handed(Continuation),
}

#[derive(Debug)]
struct Inner {
    state: State,
    interruptions: u64,
    /// The `jti` of the token of the session that publishes, or did last.
    token: Option<String>,
    broadcast: Option<Broadcast>,
}

#[derive(Debug)]
struct Broadcast {
    anchor: Anchor,
    targets: Targets,
    listed: Ticks,
    periods: Vec<Period>,
    renditions: Vec<Rendition>,
    next_number: SegmentNumber,
    /// Where the newest run ended, or has come so far, 90 kHz.
    end: Ticks,
    breaks: u64,
}

#[derive(Debug)]
struct Rendition {
    variant: Variant,
    window: Window,
    inits: Vec<(Epoch, Bytes)>,
    writer: Option<object::Writer>,
    /// The run it belongs to lately.
    epoch: Epoch,
    break_pending: bool,
}

/// Where a new run is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its first frame's place on the timeline, 90 kHz.
    pub start: Ticks,
    /// Number of its first segment.
    pub first: SegmentNumber,
    /// What playlists of this broadcast promised.
    pub targets: Targets,
    /// The timeline that another origin handed over, and its discontinuities so far: what was listed here is of the past.
    pub handed: Option<(Anchor, u64)>,
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

/// What a request for a manifest or object finds.
#[derive(Debug)]
pub enum Found<T> {
    /// Here it is.
    Ready(T),
    /// Not yet, but soon: wait for the next version.
    Later,
    /// It does not exist, or no longer.
    Never,
}

impl Live {
    /// A stream that was never published.
    pub fn new(name: StreamName) -> Self {
        Self::heard(name, Arc::default())
    }

    /// The same, and `news` grows when its state changes.
    pub fn heard(name: StreamName, news: Arc<watch::Sender<u64>>) -> Self {
        let inner = Inner { state: State::Offline, interruptions: 0, token: None, broadcast: None };
        let (inner, version) = (Mutex::new(inner), watch::Sender::new(0));
        Self { name, inner, version, news, writer: Arc::default() }
    }

    /// Its name.
    pub fn name(&self) -> &StreamName {
        &self.name
    }

    /// Grows with every change that a viewer could see.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// How the broadcast stands.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// How it stands; `None` before the first run.
    pub fn standing(&self) -> Option<Standing> {
        let inner = self.lock();
        let broadcast = inner.broadcast.as_ref()?;
        Some(Standing {
            stream: self.name.clone(),
            state: inner.state,
            anchor_unix_ms: broadcast.anchor.unix_ms,
            epoch: broadcast.epoch(),
            token: inner.token.clone(),
        })
    }

    // --- the writer's side ---

    /// Says by which token's right (`jti`) the next run is published.
    pub fn publishes(&self, token: Option<String>) {
        self.lock().token = token;
    }

    /// Finds the place of a new run whose first frame a POP received at `unix_ms`, and completes what the run before left
    /// open. After the end of a broadcast, a new one begins.
    pub fn place(&self, unix_ms: i64, follow: Follow, targets: Targets) -> Place {
        let mut place = Place { start: FIRST_TICK, first: SegmentNumber(0), targets, handed: None };
        self.change(|inner| {
            // Wall clock in segments: a stream that begins again on another origin, or after a restart, goes on with
            // higher numbers, since segments are never made faster than time passes.
            let by_clock = SegmentNumber((unix_ms * 90 / targets.segment_duration).max(0) as u64);
            // Another origin may be believed as far as the clock may be.
            if let Follow::Handed(next) = follow
                && next.first.0 <= by_clock.0.saturating_add(MAX_LEAD)
            {
                let by_clock = if next.lead.is_some() { next.start } else { next.anchor.at(unix_ms) };
                (place.start, place.first) = (by_clock.max(next.start), next.first);
                place.handed = Some((next.anchor, next.breaks));
                return;
            }
            match &mut inner.broadcast {
                Some(broadcast) if inner.state != State::Ended => {
                    broadcast.finish_run();
                    place.start = match follow {
                        // Audio may reach a little beyond: the video goes on where it was.
                        Follow::Left(left) => left.end,
                        _ => broadcast.anchor.at(unix_ms).max(broadcast.end),
                    };
                    (place.first, place.targets) = (broadcast.next_number, broadcast.targets);
                }
                before => {
                    let next = before.as_ref().map_or(by_clock, |broadcast| broadcast.next_number);
                    place.first = next.max(by_clock);
                }
            }
        });
        place
    }

    /// Begins the run `epoch` at `place`: from now on its renditions are announced.
    pub fn begin(
        &self,
        epoch: Epoch,
        place: Place,
        listed: Ticks,
        unix_ms: i64,
        renditions: Vec<NewRendition>,
    ) {
        self.change(|inner| {
            if inner.state == State::Ended || place.handed.is_some() {
                inner.broadcast = None;
            }
            let fresh = inner.broadcast.is_none();
            let (anchor, breaks) = place.handed.unwrap_or((Anchor { unix_ms, ticks: place.start }, 0));
            let broadcast = inner.broadcast.get_or_insert_with(|| Broadcast {
                anchor,
                targets: place.targets,
                listed,
                periods: Vec::new(),
                renditions: Vec::new(),
                next_number: place.first,
                end: place.start,
                breaks,
            });
            inner.state = State::Live;
            broadcast.begin(epoch, place, renditions, fresh);
        });
    }

    /// Opens a segment of a rendition. Ignored, as are the next two, unless `epoch` is the run that is being written.
    pub fn open(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber, start: Ticks) {
        self.write(epoch, id, |broadcast, index| broadcast.open(index, number, start));
    }

    /// Publishes a part.
    pub fn part(&self, epoch: Epoch, id: &RenditionId, chunk: Bytes, duration: Ticks, independent: bool) {
        self.write(epoch, id, |broadcast, index| {
            let rendition = &mut broadcast.renditions[index];
            rendition.window.part(chunk.len() as u64, duration, independent);
            if let Some(writer) = &mut rendition.writer {
                writer.push(chunk);
            }
        });
    }

    /// Completes the open segment.
    pub fn close(&self, epoch: Epoch, id: &RenditionId) {
        self.write(epoch, id, Broadcast::close);
    }

    /// Lists a segment for which no media came.
    pub fn gap(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber) {
        self.write(epoch, id, |broadcast, index| broadcast.gap(index, number));
    }

    /// The newest segment that is complete in all renditions of the run.
    pub fn complete(&self, epoch: Epoch) -> Option<SegmentNumber> {
        let inner = self.lock();
        let renditions = &inner.broadcast.as_ref()?.renditions;
        renditions.iter().filter(|r| r.epoch == epoch).map(|r| r.window.last_closed()).min()?
    }

    /// The broadcast's timeline, how often it broke, and where its complete segments end (90 kHz).
    pub fn line(&self) -> Option<(Anchor, u64, Ticks)> {
        let inner = self.lock();
        inner.broadcast.as_ref().map(|broadcast| (broadcast.anchor, broadcast.breaks, broadcast.end))
    }

    /// The run is over; the stream waits for its broadcaster. Segments that are left `open` become whole at another
    /// origin, or are completed by the next run or the end. Returns what to pass to [`Live::end`].
    pub fn interrupt(&self, open: bool) -> State {
        let mut state = State::Offline;
        self.change(|inner| {
            if let Some(broadcast) = &mut inner.broadcast
                && inner.state == State::Live
            {
                if !open {
                    broadcast.finish_run();
                }
                inner.interruptions += 1;
                inner.state = State::Interrupted(inner.interruptions);
            }
            state = inner.state;
        });
        state
    }

    /// Ends the broadcast, unless it went on since `interrupted`. Returns whether it did end.
    pub fn end(&self, interrupted: State) -> bool {
        let mut ended = false;
        self.change(|inner| {
            if inner.state == interrupted {
                if let Some(broadcast) = &mut inner.broadcast {
                    broadcast.finish_run();
                }
                inner.state = State::Ended;
                ended = true;
            }
        });
        ended
    }

    // --- the readers' side ---

    /// The multivariant playlist.
    pub fn multivariant(&self) -> Option<String> {
        self.lock().broadcast.as_ref().map(|broadcast| hls::multivariant(&broadcast.variants()))
    }

    /// A media playlist that satisfies the directives.
    pub fn playlist(&self, id: &RenditionId, directives: Directives) -> Result<Found<String>, BadDirective> {
        let inner = self.lock();
        let Some(broadcast) = &inner.broadcast else { return Ok(Found::Never) };
        let Some(rendition) = broadcast.rendition(id) else { return Ok(Found::Never) };
        let ended = inner.state == State::Ended;
        // After EXT-X-ENDLIST the directives mean nothing (6.2.5.2).
        // A playlist without a whole segment is one that plain players give up on: they wait for it here.
        if rendition.window.last_closed().is_none()
            || !(ended || directives.satisfied(&rendition.window, broadcast.targets)?)
        {
            return Ok(Found::Later);
        }
        let playlist = Playlist {
            id,
            window: &rendition.window,
            targets: broadcast.targets,
            anchor: broadcast.anchor,
            reports: &broadcast.reports(id),
            // A run that has no segment yet will bring an init segment of its own: there is nothing to name before.
            hint: inner.state == State::Live
                && rendition.epoch == broadcast.epoch()
                && rendition.window.segments().next_back().is_some_and(|last| last.epoch == rendition.epoch),
            ended,
        };
        Ok(Found::Ready(playlist.render()))
    }

    /// The MPD.
    pub fn mpd(&self, latency_ms: u64, published_unix_ms: i64, time_url: &str) -> Option<String> {
        let inner = self.lock();
        let broadcast = inner.broadcast.as_ref()?;
        let mut periods = broadcast.periods.clone();
        for variant in periods.iter_mut().flat_map(|period| &mut period.variants) {
            if let Some(rendition) = broadcast.rendition(&variant.id) {
                variant.measured = rendition.window.bitrate();
            }
        }
        let mpd = Mpd {
            anchor: broadcast.anchor,
            targets: broadcast.targets,
            window: broadcast.depth(),
            latency_ms,
            published_unix_ms,
            time_url,
            periods: &periods,
            ended: (inner.state == State::Ended).then(|| broadcast.oldest()),
        };
        Some(mpd.render())
    }

    /// The media type of a rendition's init and media segments (RFC 4337), as the MPD has it.
    pub fn media_type(&self, id: &RenditionId) -> &'static str {
        let inner = self.lock();
        match inner.broadcast.as_ref().and_then(|broadcast| broadcast.rendition(id)) {
            Some(Rendition { variant: Variant { kind: hls::Kind::Audio { .. }, .. }, .. }) => "audio/mp4",
            _ => "video/mp4",
        }
    }

    /// An init segment.
    pub fn init(&self, epoch: Epoch, id: &RenditionId) -> Option<Bytes> {
        let inner = self.lock();
        let rendition = inner.broadcast.as_ref()?.rendition(id)?;
        rendition.inits.iter().find(|(of, _)| *of == epoch).map(|(_, init)| init.clone())
    }

    /// A segment. One that is about to begin is worth waiting for: players are told of it by preload hints and by
    /// availabilityTimeOffset.
    pub fn segment(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber) -> Found<Object> {
        let inner = self.lock();
        let Some(broadcast) = &inner.broadcast else { return Found::Never };
        let Some(rendition) = broadcast.rendition(id) else { return Found::Never };
        if let Some(object) = rendition.window.find(epoch, number) {
            return Found::Ready(object.clone());
        }
        let next = rendition.window.last().map_or(broadcast.next_number, SegmentNumber::next);
        let soon = number == next || number == next.next();
        if soon && inner.state == State::Live && epoch == broadcast.epoch() && rendition.epoch == epoch {
            return Found::Later;
        }
        Found::Never
    }

    /// The stream with the newest `segments` of each rendition; `None` before the first run.
    pub fn view(&self, segments: usize) -> Option<View> {
        let inner = self.lock();
        let broadcast = inner.broadcast.as_ref()?;
        let renditions = broadcast.renditions.iter().map(|rendition| {
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
        Some(View { state: inner.state, run: broadcast.epoch(), renditions: renditions.collect() })
    }

    /// What playlists promise; `None` before the first run.
    pub fn targets(&self) -> Option<Targets> {
        self.lock().broadcast.as_ref().map(|broadcast| broadcast.targets)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let standing = |inner: &Inner| (inner.state, inner.broadcast.as_ref().map(Broadcast::epoch));
        let news = {
            let mut inner = self.lock();
            let before = standing(&inner);
            change(&mut inner);
            before != standing(&inner)
        };
        self.version.send_modify(|version| *version += 1);
        if news {
            self.news.send_modify(|news| *news += 1);
        }
    }

    fn write(&self, epoch: Epoch, id: &RenditionId, write: impl FnOnce(&mut Broadcast, usize)) {
        self.change(|inner| {
            if let Some(broadcast) = inner.broadcast.as_mut().filter(|_| inner.state == State::Live)
                && let Some(index) =
                    broadcast.renditions.iter().position(|r| r.variant.id == *id && r.epoch == epoch)
                && broadcast.epoch() == epoch
            {
                write(broadcast, index);
            }
        });
    }
}

impl Broadcast {
    fn begin(&mut self, epoch: Epoch, place: Place, renditions: Vec<NewRendition>, fresh: bool) {
        self.breaks += u64::from(!fresh);
        self.end = place.start;
        if let Some(before) = self.periods.last_mut() {
            before.end.get_or_insert(place.start);
        }
        if self.periods.len() >= MAX_PERIODS {
            self.periods.remove(0);
        }
        self.periods.push(Period {
            epoch,
            start: place.start,
            end: None,
            first: place.first,
            variants: renditions.iter().map(|new| new.variant.clone()).collect(),
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
            rendition.break_pending = rendition.window.last().is_some();
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

    fn open(&mut self, index: usize, number: SegmentNumber, start: Ticks) {
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

    fn gap(&mut self, index: usize, number: SegmentNumber) {
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

    fn close(&mut self, index: usize) {
        let rendition = &mut self.renditions[index];
        if let Some(writer) = rendition.writer.take() {
            writer.finish();
        }
        let was_open = rendition.window.open_segment().is_some();
        rendition.window.close();
        if was_open && index == self.renditions.iter().position(|r| r.epoch == self.epoch()).unwrap_or(0) {
            self.fill_gaps(index);
        }
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

    fn finish_run(&mut self) {
        for index in 0..self.renditions.len() {
            self.close(index);
        }
        let (end, next_number, segment_duration) =
            (self.end, self.next_number, self.targets.segment_duration);
        if let Some(period) = self.periods.last_mut() {
            // Players count segments by the period's duration: the last frame of a rendition may reach a little beyond
            // its last segment's nominal end, and must not promise another.
            let segments = next_number.0.saturating_sub(period.first.0) as Ticks;
            period.end = Some(end.min(period.start + segments * segment_duration));
        }
    }

    /// How far back viewers may go, in whole segments. A young broadcast says its age: FFmpeg's reader subtracts the depth
    /// from it without looking.
    fn depth(&self) -> Ticks {
        let segment = self.targets.segment_duration;
        // What an origin was handed begins later than the broadcast.
        let began = self.periods.first().map_or(self.anchor.ticks, |period| period.start);
        let age = (self.end - began) / segment * segment;
        age.clamp(segment, self.listed.max(segment))
    }

    /// The oldest segment that is listed in every rendition of the newest run.
    fn oldest(&self) -> SegmentNumber {
        let current = self.renditions.iter().filter(|rendition| rendition.epoch == self.epoch());
        let oldest =
            current.filter_map(|rendition| rendition.window.segments().next().map(|segment| segment.number));
        oldest.max().unwrap_or(self.next_number)
    }

    fn epoch(&self) -> Epoch {
        self.periods.last().map_or(Epoch(0), |period| period.epoch)
    }

    fn rendition(&self, id: &RenditionId) -> Option<&Rendition> {
        self.renditions.iter().find(|rendition| rendition.variant.id == *id)
    }

    fn variants(&self) -> Vec<Variant> {
        let measured = |r: &Rendition| Variant { measured: r.window.bitrate(), ..r.variant.clone() };
        self.renditions.iter().filter(|r| r.epoch == self.epoch()).map(measured).collect()
    }

    fn reports(&self, except: &RenditionId) -> Vec<Report> {
        let others = self.renditions.iter().filter(|r| r.variant.id != *except && r.epoch == self.epoch());
        let report = |rendition: &Rendition| {
            let mut segments = rendition.window.segments().rev().skip_while(|segment| {
                // An open segment without a part is not in its playlist yet.
                segment.parts.is_empty() && segment.object.is_some()
            });
            let newest = segments.next()?;
            let part = (newest.parts.len() as u64).checked_sub(1);
            Some(Report { id: rendition.variant.id.clone(), msn: newest.number, part })
        };
        others.filter_map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hls::Kind;
    use crate::window::Bitrate;

    const TARGETS: Targets = Targets { segment_duration: 90_000, part_target: 18_000 };

    fn rendition(name: &str) -> NewRendition {
        let (kind, timescale) = match name {
            "audio" => (
                Kind::Audio { channels: 2, sample_rate: 48_000 },
                Timescale::new(48_000).expect("is not zero"),
            ),
            _ => (Kind::Video { width: 640, height: 360, frame_rate: None }, Timescale::VIDEO),
        };
        let (codec, measured) = ("x".into(), Bitrate::default());
        let variant = Variant { id: name.parse().unwrap(), codec, bitrate_bps: 1000, measured, kind };
        NewRendition { variant, timescale, init: Bytes::from_static(b"i") }
    }

    fn begin(live: &Live, epoch: u64, unix_ms: i64, names: &[&str]) -> Place {
        let place = live.place(unix_ms, Follow::Clock, TARGETS);
        let renditions = names.iter().map(|name| rendition(name)).collect();
        live.begin(Epoch(epoch), place, 6 * 90_000, unix_ms, renditions);
        place
    }

    /// A run of whole segments in these renditions.
    fn run(live: &Live, epoch: u64, unix_ms: i64, names: &[&str], segments: u64) {
        let place = begin(live, epoch, unix_ms, names);
        for index in 0..segments {
            for name in names {
                let NewRendition { variant: Variant { id, .. }, timescale, .. } = rendition(name);
                let start = Timescale::VIDEO.rescale(place.start + index as Ticks * 90_000, timescale);
                live.open(Epoch(epoch), &id, SegmentNumber(place.first.0 + index), start);
                let second = timescale.per_second().into();
                live.part(Epoch(epoch), &id, Bytes::from_static(b"part"), second, true);
                live.close(Epoch(epoch), &id);
            }
        }
    }

    fn playlist(live: &Live, name: &str) -> String {
        match live.playlist(&name.parse().unwrap(), Directives::default()) {
            Ok(Found::Ready(playlist)) => playlist,
            other => panic!("{other:?}"),
        }
    }

    const T0: i64 = 1_700_000_000_000;

    #[test]
    fn a_rendition_that_is_missing_goes_on_in_gaps_and_keeps_no_period() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 8);
        live.interrupt(false);
        run(&live, 2, T0 + 10_000, &["360p"], 4);
        let mpd = |live: &Live| live.mpd(1500, T0, "/time").unwrap();
        assert!(mpd(&live).contains("<Period id=\"1\""), "its media is still listed");
        live.interrupt(false);
        run(&live, 3, T0 + 20_000, &["360p"], 10);
        let (video, audio) = (playlist(&live, "360p"), playlist(&live, "audio"));
        let head = |text: &str| {
            text.lines().filter(|line| line.contains("-SEQUENCE:")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(head(&video), head(&audio));
        assert_eq!(audio.matches("#EXT-X-GAP").count(), 6, "{audio}");
        let mpd = mpd(&live);
        assert!(!mpd.contains("<Period id=\"1\"") && !mpd.contains("<Period id=\"2\""), "{mpd}");
    }

    #[test]
    fn a_run_is_hinted_at_once_it_has_media() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p"], 4);
        assert!(playlist(&live, "360p").contains("TYPE=PART,URI=\"1/360p/"));
        live.interrupt(false);
        begin(&live, 2, T0 + 10_000, &["360p"]);
        assert!(!playlist(&live, "360p").contains("PRELOAD-HINT"), "the old run brings nothing more");
    }

    fn continuation(first: u64) -> Continuation {
        Continuation {
            instance: 1,
            first: SegmentNumber(first),
            start: 5 * 90_000,
            anchor: Anchor { unix_ms: T0 - 4000, ticks: FIRST_TICK },
            breaks: 3,
            lead: Some((0, 5 * 90_000)),
            audio: None,
        }
    }

    #[test]
    fn numbers_of_another_origin_are_believed_within_reason() {
        let live = Live::new("demo".parse().unwrap());
        let first = |next| live.place(T0, Follow::Handed(continuation(next)), TARGETS).first.0;
        let by_clock = T0 as u64 / 1000;
        assert_eq!(live.place(T0, Follow::Clock, TARGETS).first.0, by_clock);
        for (next, expected) in [
            (by_clock - 5, by_clock - 5),
            (by_clock + 5, by_clock + 5),
            (by_clock + MAX_LEAD, by_clock + MAX_LEAD),
            (by_clock + MAX_LEAD + 1, by_clock),
            (u64::MAX, by_clock),
        ] {
            assert_eq!(first(next), expected, "{next}");
        }
    }

    #[test]
    fn a_stream_that_is_handed_over_goes_on_on_its_timeline() {
        let live = Live::new("demo".parse().unwrap());
        // It was here before, in another life.
        run(&live, 1, T0 - 60_000, &["360p"], 3);
        live.interrupt(true);
        let by_clock = T0 as u64 / 1000;
        let place = live.place(T0, Follow::Handed(continuation(by_clock)), TARGETS);
        assert_eq!((place.start, place.first.0), (5 * 90_000, by_clock));
        live.begin(Epoch(2), place, 6 * 90_000, T0, vec![rendition("360p")]);
        let id = "360p".parse().unwrap();
        live.open(Epoch(2), &id, place.first, place.start);
        live.part(Epoch(2), &id, Bytes::from_static(b"part"), 90_000, true);
        live.close(Epoch(2), &id);
        let playlist = playlist(&live, "360p");
        for line in [
            &format!("#EXT-X-MEDIA-SEQUENCE:{by_clock}"),
            "#EXT-X-DISCONTINUITY-SEQUENCE:3",
            "#EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:20.000Z",
        ] {
            assert!(playlist.lines().any(|found| found == line), "{line} in\n{playlist}");
        }
        assert!(!playlist.contains("#EXT-X-DISCONTINUITY\n"), "nothing breaks: {playlist}");
    }

    #[test]
    fn what_is_left_open_is_completed_by_the_next_run_or_the_end() {
        for ends in [true, false] {
            let live = Live::new("demo".parse().unwrap());
            run(&live, 1, T0, &["360p"], 3);
            let id = "360p".parse().unwrap();
            let number = SegmentNumber(T0 as u64 / 1000 + 3);
            live.open(Epoch(1), &id, number, 4 * 90_000);
            live.part(Epoch(1), &id, Bytes::from_static(b"part"), 30_000, true);
            let left = live.interrupt(true);
            assert_eq!(live.complete(Epoch(1)), Some(SegmentNumber(number.0 - 1)));
            if ends {
                assert!(live.end(left));
            } else {
                let (lead, end) = ((7, 4 * 90_000 + 27_000), 4 * 90_000 + 30_000);
                let place = live.place(T0, Follow::Left(Left { lead, end, audio: None }), TARGETS);
                assert_eq!((place.start, place.first), (end, number.next()));
            }
            assert_eq!(live.complete(Epoch(1)), Some(number));
        }
    }
}
