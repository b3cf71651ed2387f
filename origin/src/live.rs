//! One stream as viewers see it: its [broadcast](crate::broadcast) behind one lock, how it stands, and a version that
//! grows with every part.

mod mpd;
mod record;
mod thumbnails;

pub use thumbnails::Picture;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archive::BroadcastId;
use bytes::Bytes;
use cluster::lease::Grant;
use media::captions::Service;
use media::event::Event;
use media::time::Ticks;
use media::{Epoch, Object, RenditionId, SegmentNumber, StreamName};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use transcode::ladder::Known;

use crate::broadcast::{Broadcast, NewRendition, Rendition, View};
use crate::continuation::{AudioStart, Continuation};
use crate::control::{Rung, Standing};
use crate::dvr::Past;
use crate::hls::{self, BadDirective, Directives, Targets, Variant};
use crate::hops;
use crate::run::Run;
use crate::succession::Succession;
use crate::thumbnails::Sheets;
use crate::timeline::{Anchor, FIRST_TICK};

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
    /// What waits for the broadcaster, and since which interruption: one task, however often it comes and goes.
    absence: Mutex<Option<(State, AbortHandle)>>,
    /// How one session gives way to the next.
    pub succession: Succession,
    /// What its frames took lately.
    pub hops: hops::Board,
}

/// What one writer leaves to the next.
#[derive(Debug, Default)]
pub struct Writer {
    /// The session that wrote last and whose relay was lost, and where it can be taken up.
    pub left: Option<(String, Left)>,
    /// How far the last run came that was completed.
    pub came: Option<Left>,
    /// A run whose session gave way to the next one.
    pub(crate) parked: Option<Box<Run>>,
    /// Its right to write.
    pub grant: Option<Grant>,
    /// The source's video is passed through, as far as is known: segments are as long as its keyframes are apart.
    pub(crate) passes: bool,
    /// Rungs that the last run had shed: the next begins without them.
    pub(crate) shed: usize,
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

impl Left {
    /// The same for a session whose clock shows so many milliseconds more.
    pub(crate) fn shifted(self, offset_ms: i64) -> Self {
        // As sent, times have 32 bits.
        let shifted = |ms: u32| ms.wrapping_add(offset_ms as u32);
        let audio = self.audio.map(|start| AudioStart { source_ms: shifted(start.source_ms), ..start });
        Self { lead: (shifted(self.lead.0), self.lead.1), audio, ..self }
    }
}

/// How a new run follows what was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// By the wall clock: a new session, or a break of the timeline.
    Clock,
    /// Behind what its own relay left here, or a session whose frames it goes on with.
    Left(Left),
    /// Where the broadcaster's clock says, which went on while it was away: milliseconds as sent of what is shown first, and
    /// its place (90 kHz).
    At((u32, Ticks)),
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
    /// What another origin tells is taken in, until a run is over or begins here.
    copies: bool,
    /// What is here was copied, and its owner may be there: it keeps it, until a session writes here or it ends here.
    mirrored: bool,
    recorder: record::Recorder,
    published: mpd::Published,
    pictures: thumbnails::Pictures,
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
    /// It goes on exactly where the run before ended: nothing breaks, unless its encoding does.
    pub joined: bool,
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
        Self::recorded(name, archive::Sink::default(), Arc::default())
    }

    /// As [`Live::new`]; what it will publish goes to the archive, too, and `news` grows when its state changes.
    pub fn recorded(name: StreamName, archive: archive::Sink, news: Arc<watch::Sender<u64>>) -> Self {
        let inner = Inner {
            state: State::Offline,
            interruptions: 0,
            token: None,
            broadcast: None,
            copies: true,
            mirrored: false,
            recorder: record::Recorder::new(archive),
            published: mpd::Published::default(),
            pictures: thumbnails::Pictures::default(),
        };
        Self {
            name,
            inner: Mutex::new(inner),
            version: watch::Sender::new(0),
            news,
            writer: Arc::default(),
            absence: Mutex::default(),
            succession: Succession::default(),
            hops: hops::Board::default(),
        }
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

    /// How the broadcast stands, and its newest run.
    pub fn standing(&self) -> (State, Epoch) {
        let inner = self.lock();
        (inner.state, inner.broadcast.as_ref().map_or(Epoch(0), Broadcast::epoch))
    }

    /// What operators are told; `None` before the first run.
    pub fn described(&self) -> Option<Standing> {
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

    /// Looks at the whole of it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(State, Option<&Broadcast>) -> T) -> T {
        let inner = self.lock();
        read(inner.state, inner.broadcast.as_ref())
    }

    /// Takes in what another origin tells; `None` if it is too late for that.
    pub(crate) fn copy<T>(&self, copy: impl FnOnce(&mut State, &mut Option<Broadcast>) -> T) -> Option<T> {
        let mut copied = None;
        self.change(|inner| {
            if inner.copies {
                inner.mirrored = true;
                copied = Some(copy(&mut inner.state, &mut inner.broadcast));
            }
        });
        copied
    }

    // --- the writer's side ---

    /// Says by which token's right (`jti`) the next run is published.
    pub fn publishes(&self, token: Option<String>) {
        self.lock().token = token;
    }

    /// The video renditions that players know if the broadcast goes on: those of its newest run.
    pub fn known_video(&self) -> Vec<Known> {
        self.read(|state, broadcast| match broadcast {
            Some(broadcast) if state != State::Ended => broadcast.known_video(),
            _ => Vec::new(),
        })
    }

    /// Finds the place of a new run whose first frame a POP received at `unix_ms`, and completes what the run before left
    /// open. After the end of a broadcast, a new one begins.
    pub fn place(&self, unix_ms: i64, follow: Follow, targets: Targets) -> Place {
        let mut place =
            Place { start: FIRST_TICK, first: SegmentNumber(0), targets, handed: None, joined: false };
        self.change(|inner| {
            inner.mirrored = false;
            // Wall clock in segments: a stream that begins again on another origin, or after a restart, goes on with
            // higher numbers, since segments are never made faster than time passes.
            let by_clock = SegmentNumber((unix_ms * 90 / targets.segment_duration).max(0) as u64);
            // Another origin may be believed as far as the clock may be.
            if let Follow::Handed(next) = follow
                && next.first.0 <= by_clock.0.saturating_add(MAX_LEAD)
            {
                let by_clock = if next.lead.is_some() { next.start } else { next.anchor.at(unix_ms) };
                (place.start, place.first) = (by_clock.max(next.start), next.first);
                // The very timeline that it speaks of: what is listed before stays.
                let known = inner
                    .broadcast
                    .as_mut()
                    .filter(|broadcast| inner.state != State::Ended && broadcast.anchor == next.anchor);
                if let Some(broadcast) = known
                    && broadcast.rewind(next.first, next.start)
                {
                    (place.targets, place.joined) = (broadcast.targets, next.lead.is_some());
                } else {
                    place.handed = Some((next.anchor, next.breaks));
                }
                return;
            }
            match &mut inner.broadcast {
                Some(broadcast) if inner.state != State::Ended => {
                    // What its relay left is gone on with, in place of the gaps: it was not away.
                    let here = match (follow, broadcast.away) {
                        (Follow::Left(left), Some(number)) => broadcast.rewind(number, left.end),
                        _ => true,
                    };
                    broadcast.finish_run();
                    place.start = match follow {
                        // Audio may reach a little beyond: the video goes on where it was.
                        Follow::Left(left) if here => {
                            place.joined = left.end <= broadcast.end;
                            left.end
                        }
                        Follow::At((_, place)) => place.max(broadcast.end),
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
        captions: Vec<Service>,
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
                next: None,
                away: None,
                events: VecDeque::new(),
                sheets: Sheets::default(),
            });
            (inner.state, inner.copies) = (State::Live, false);
            broadcast.begin(epoch, place, renditions, captions, fresh);
            if let Some(run) = broadcast.periods.last_mut() {
                run.thumbnails = inner.pictures.tiles;
            }
        });
    }

    /// Captions were found in the run. Ignored unless `epoch` is the run that is being written.
    pub fn captions(&self, epoch: Epoch, captions: &[Service]) {
        self.change(|inner| {
            let run = inner.broadcast.as_mut().filter(|broadcast| broadcast.epoch() == epoch);
            if let Some(broadcast) = run {
                broadcast.found(captions);
            }
        });
    }

    /// Lists an event of the run. False, and nothing is changed, if it is listed, or `epoch` is not the run that is being
    /// written.
    pub fn event(&self, epoch: Epoch, event: &Event) -> bool {
        let mut new = false;
        self.change(|inner| {
            let run = inner.broadcast.as_mut().filter(|broadcast| broadcast.epoch() == epoch);
            new = run.is_some_and(|broadcast| broadcast.event(event));
        });
        new
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
            rendition.window.begins_with(&chunk);
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

    /// Nothing is encoded for a rendition from segment `number` on, or something is again.
    pub fn shed(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber, shed: bool) {
        self.write(epoch, id, |broadcast, index| broadcast.shed(index, number, shed));
    }

    /// The newest segment that is complete in all renditions of the run.
    pub fn complete(&self, epoch: Epoch) -> Option<SegmentNumber> {
        let inner = self.lock();
        let renditions = &inner.broadcast.as_ref()?.renditions;
        renditions.iter().filter(|r| r.epoch == epoch).map(|r| r.window.last_closed()).min()?
    }

    /// The name under which the broadcast is kept; `None` before the first run.
    pub fn broadcast_id(&self) -> Option<BroadcastId> {
        let (anchor, ..) = self.line()?;
        Some(BroadcastId::new(self.name.clone(), anchor.unix_ms))
    }

    /// The broadcast's timeline, how often it broke, and where its complete segments end (90 kHz).
    pub fn line(&self) -> Option<(Anchor, u64, Ticks)> {
        let inner = self.lock();
        inner.broadcast.as_ref().map(|broadcast| (broadcast.anchor, broadcast.breaks, broadcast.end))
    }

    /// Remembers what follows the newest complete segment, as the POP is told.
    pub fn acknowledged(&self, next: Continuation) {
        self.change(|inner| {
            if let Some(broadcast) = &mut inner.broadcast {
                broadcast.next = Some(next);
            }
        });
    }

    /// Where to go on from: `next`, as the POP has it, or a later segment of the same run that is known here to be complete.
    pub fn newest(&self, next: Continuation) -> Continuation {
        let inner = self.lock();
        let known = inner.broadcast.as_ref().and_then(|broadcast| {
            let known = broadcast.next?;
            let of_that_run = |c: &Continuation| (c.instance, c.anchor, c.breaks);
            let later = of_that_run(&known) == of_that_run(&next) && known.first > next.first;
            (later && broadcast.is_whole_before(known.first)).then_some(known)
        });
        known.unwrap_or(next)
    }

    /// The run is over; the stream waits for its broadcaster. Segments that are left `open` become whole at another
    /// origin, or are completed by the next run or the end. Returns what to pass to [`Live::end`].
    pub fn interrupt(&self, open: bool) -> State {
        let mut state = State::Offline;
        self.change(|inner| {
            inner.copies = false;
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

    /// Has `wait` begin for the interruption `state`, in place of what waited for an earlier one; nothing if it waits already.
    pub(crate) fn wait_for_broadcaster(&self, state: State, wait: impl FnOnce() -> AbortHandle) {
        let mut absence = self.absence.lock().unwrap_or_else(PoisonError::into_inner);
        if absence.as_ref().is_some_and(|(since, _)| *since == state) {
            return;
        }
        if let Some((_, before)) = absence.replace((state, wait())) {
            before.abort();
        }
    }

    /// Lists gaps up to the wall clock time `unix_ms` for a broadcaster who is away since `interrupted`. False if it is not.
    pub fn stay_alive(&self, interrupted: State, unix_ms: i64) -> bool {
        let mut away = false;
        self.change(|inner| {
            away = inner.state == interrupted;
            if let Some(broadcast) = inner.broadcast.as_mut().filter(|_| away) {
                broadcast.stay_alive(broadcast.anchor.at(unix_ms));
            }
        });
        away
    }

    /// Ends the broadcast, unless it went on since `interrupted`. Returns whether it did end.
    pub fn end(&self, interrupted: State) -> bool {
        let mut ended = false;
        self.change(|inner| {
            if inner.state == interrupted {
                if let Some(broadcast) = &mut inner.broadcast {
                    broadcast.end();
                }
                (inner.state, inner.mirrored) = (State::Ended, false);
                ended = true;
            }
        });
        ended
    }

    // --- the readers' side ---

    /// The multivariant playlist; `query` is what the URIs of the media playlists end with.
    pub fn multivariant(&self, query: &str) -> Option<String> {
        let inner = self.lock();
        let broadcast = inner.broadcast.as_ref()?;
        let captions = Some(broadcast.captions());
        Some(hls::multivariant(&broadcast.variants(), &broadcast.iframe_variants(), captions, query))
    }

    /// An I-frame playlist that satisfies the directives; the rest as [`Live::playlist`].
    pub fn iframes(
        &self,
        id: &RenditionId,
        directives: Directives,
        past: Option<(&Past, &str)>,
    ) -> Result<Found<String>, BadDirective> {
        let (past, query) = past.map_or((None, ""), |(past, query)| (Some(past), query));
        let inner = self.lock();
        match &inner.broadcast {
            Some(broadcast) => broadcast.iframes(inner.state, id, directives, past, query),
            None => Ok(Found::Never),
        }
    }

    /// A media playlist that satisfies the directives, with what is listed before the window and the query that says so,
    /// which other playlists' URIs end with.
    pub fn playlist(
        &self,
        id: &RenditionId,
        directives: Directives,
        past: Option<(&Past, &str)>,
    ) -> Result<Found<String>, BadDirective> {
        let (past, query) = past.map_or((None, ""), |(past, query)| (Some(past), query));
        let inner = self.lock();
        match &inner.broadcast {
            Some(broadcast) => broadcast.playlist(inner.state, id, directives, past, query),
            None => Ok(Found::Never),
        }
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
        match &inner.broadcast {
            Some(broadcast) => broadcast.segment(inner.state, epoch, id, number),
            None => Found::Never,
        }
    }

    /// Whether there is no media at this place of a run, though players may ask for it.
    pub fn is_gap(&self, epoch: Epoch, id: &RenditionId, number: SegmentNumber) -> bool {
        self.lock().broadcast.as_ref().is_some_and(|broadcast| broadcast.is_gap(epoch, id, number))
    }

    /// The stream with the newest `segments` of each rendition; `None` before the first run.
    pub fn view(&self, segments: usize) -> Option<View> {
        let inner = self.lock();
        Some(inner.broadcast.as_ref()?.view(inner.state, segments))
    }

    /// The renditions of the newest run; `None` before the first run.
    pub fn ladder(&self) -> Option<Vec<Rung>> {
        self.lock().broadcast.as_ref().map(Broadcast::ladder)
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
            inner.record(&self.name);
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

impl Inner {
    /// What is only mirrored here is kept by its owner, also one that is merely out of sight; once it goes on here, or ends
    /// here, all that is listed is offered.
    fn record(&mut self, name: &StreamName) {
        if !self.copies && !self.mirrored {
            self.recorder.observe(name, self.state, self.broadcast.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hls::Kind;
    use crate::window::Bitrate;
    use media::time::Timescale;

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

    pub(super) fn begin(live: &Live, epoch: u64, unix_ms: i64, names: &[&str]) -> Place {
        let place = live.place(unix_ms, Follow::Clock, TARGETS);
        let renditions = names.iter().map(|name| rendition(name)).collect();
        live.begin(Epoch(epoch), place, 6 * 90_000, unix_ms, renditions, Vec::new());
        place
    }

    /// A run of whole segments in these renditions.
    pub(super) fn run(live: &Live, epoch: u64, unix_ms: i64, names: &[&str], segments: u64) {
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
        match live.playlist(&name.parse().unwrap(), Directives::default(), None) {
            Ok(Found::Ready(playlist)) => playlist,
            other => panic!("{other:?}"),
        }
    }

    pub(super) const T0: i64 = 1_700_000_000_000;

    #[test]
    fn a_rendition_that_is_missing_goes_on_in_gaps_and_keeps_no_period() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 8);
        live.interrupt(false);
        run(&live, 2, T0 + 10_000, &["360p"], 4);
        let mpd = |live: &Live| live.mpd(1500, T0, "/time", None).unwrap();
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
    fn the_part_behind_the_last_of_a_segment_is_hinted_at_in_the_next() {
        let live = Live::new("demo".parse().unwrap());
        let place = begin(&live, 1, T0, &["360p", "audio"]);
        let hints = [("360p", 18_000, 90_000), ("audio", 9 * 1024, 48_000)];
        for (name, part, second) in hints {
            let id = name.parse().unwrap();
            let start = place.start * second / 90_000;
            live.open(Epoch(1), &id, place.first, start);
            live.part(Epoch(1), &id, Bytes::from_static(b"part"), second, true);
            live.close(Epoch(1), &id);
            let number = place.first.next();
            live.open(Epoch(1), &id, number, start + second);
            let mut come = 0;
            while come < second {
                // The last part of audio has what is left up to half a frame before or behind the boundary.
                let duration =
                    part.min((second - come + 511) / 1024 * 1024).max(if name == "audio" { 0 } else { part });
                if duration == 0 {
                    break;
                }
                live.part(Epoch(1), &id, Bytes::from_static(b"part"), duration, come == 0);
                come += duration;
                let whole = come + if name == "audio" { 512 } else { 0 } >= second;
                let (number, at) = if whole {
                    (number.next().0, 0)
                } else {
                    (number.0, (come as u64).div_ceil(part as u64) * 4)
                };
                let hint = format!("TYPE=PART,URI=\"1/{name}/{number}.m4s\",BYTERANGE-START={at}\n");
                let listed = playlist(&live, name);
                assert!(listed.contains(&hint), "{hint} after {come} in\n{listed}");
            }
        }
    }

    #[test]
    fn a_run_is_hinted_at_as_soon_as_it_begins() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p"], 4);
        assert!(playlist(&live, "360p").contains("TYPE=PART,URI=\"1/360p/"));
        live.interrupt(false);
        begin(&live, 2, T0 + 10_000, &["360p"]);
        let hinted = playlist(&live, "360p");
        assert!(!hinted.contains("TYPE=PART,URI=\"1/"), "the old run brings nothing more: {hinted}");
        let first = T0 / 1000 + 4;
        for hint in [
            "#EXT-X-PRELOAD-HINT:TYPE=MAP,URI=\"2/360p/init.mp4\"\n".to_owned(),
            format!("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"2/360p/{first}.m4s\",BYTERANGE-START=0\n"),
        ] {
            assert!(hinted.contains(&hint), "{hint} in\n{hinted}");
        }
        let (id, first) = ("360p".parse().unwrap(), SegmentNumber(first as u64));
        assert!(live.init(Epoch(2), &id).is_some(), "what is hinted at is there, or waited for");
        assert!(matches!(live.segment(Epoch(2), &id, first), Found::Later));
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
        live.begin(Epoch(2), place, 6 * 90_000, T0, vec![rendition("360p")], Vec::new());
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
    fn a_playlist_stays_alive_by_gaps_until_the_broadcaster_is_back() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 3);
        let away = live.interrupt(false);
        for (ms, gaps) in [(3900, 0), (4000, 1), (4900, 1), (6500, 3)] {
            assert!(live.stay_alive(away, T0 + ms));
            for name in ["360p", "audio"] {
                let listed = playlist(&live, name);
                assert_eq!(listed.matches("#EXT-X-GAP\n").count(), gaps, "{ms} ms: {listed}");
            }
        }
        let place = begin(&live, 2, T0 + 8000, &["360p", "audio"]);
        assert_eq!(place.first.0, T0 as u64 / 1000 + 6);
        assert_eq!(place.start, FIRST_TICK + 8 * 90_000);
        assert!(!live.stay_alive(away, T0 + 9000), "it is back");
        for name in ["360p", "audio"] {
            let id = name.parse().unwrap();
            live.open(Epoch(2), &id, place.first, 0);
            live.part(Epoch(2), &id, Bytes::from_static(b"part"), 90_000, true);
            live.close(Epoch(2), &id);
        }
        // What is left of the media is not pushed out. At the end nothing is taken back, and the last parts are there.
        let away = live.interrupt(false);
        let parts = |playlist: &str| playlist.matches("#EXT-X-PART:").count();
        let before = parts(&playlist(&live, "360p"));
        for minute in 1..5 {
            assert!(live.stay_alive(away, T0 + minute * 60_000));
        }
        let listed = playlist(&live, "360p");
        assert!(listed.matches("#EXT-X-GAP\n").count() > 20, "{listed}");
        assert_eq!(parts(&listed), 0, "{listed}");
        assert!(live.end(away));
        let ended = playlist(&live, "360p");
        let without_parts: String =
            ended.split_inclusive('\n').filter(|line| !line.starts_with("#EXT-X-PART:")).collect();
        assert_eq!(without_parts, format!("{}#EXT-X-ENDLIST\n", without_reports(&listed)));
        assert_eq!(parts(&ended), before, "{ended}");
    }

    #[test]
    fn an_absence_does_not_grow_a_list_without_bound() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p"], 3);
        let away = live.interrupt(false);
        for second in 0..3600 {
            assert!(live.stay_alive(away, T0 + second * 1000));
        }
        assert_eq!(playlist(&live, "360p").matches("#EXTINF").count(), 606);
        assert!(live.end(away) && playlist(&live, "360p").ends_with("#EXT-X-ENDLIST\n"));
    }

    /// As a list that has ended has it.
    fn without_reports(playlist: &str) -> String {
        let lines = playlist.lines().filter(|line| !line.starts_with("#EXT-X-RENDITION-REPORT"));
        lines.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn what_is_mirrored_is_kept_once_it_goes_on_or_ends_here() {
        let folder = std::env::temp_dir().join(format!("rooftop-mirrored-{}", std::process::id()));
        let config = archive::Config { path: Some(folder.clone()), ..archive::Config::default() };
        let opened = archive::open(&config, &folder, archive::Metrics::default());
        let (writer, _) = opened.unwrap().unwrap();
        let queued = || writer.sink().health().unwrap().queued_bytes;
        for (index, ends) in [true, false].into_iter().enumerate() {
            let t0 = T0 + index as i64 * 3_600_000;
            let owner = Live::new("demo".parse().unwrap());
            run(&owner, t0 as u64, t0, &["360p"], 3);
            let live = Live::recorded("demo".parse().unwrap(), writer.sink(), Arc::default());
            let told = owner.lock().broadcast.take();
            live.copy(|state, broadcast| (*state, *broadcast) = (State::Live, told)).unwrap();
            let before = queued();
            let away = live.interrupt(true);
            assert!(live.stay_alive(away, t0 + 8000));
            assert_eq!(queued(), before, "its owner may be there, and keeps it");
            if ends {
                assert!(live.end(away));
            } else {
                live.place(t0 + 9000, Follow::Clock, TARGETS);
            }
            assert_eq!(queued(), before + 3 * 4);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn gaps_give_way_to_what_a_lost_relay_brings_after_all() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p"], 3);
        let away = live.interrupt(true);
        assert!(live.stay_alive(away, T0 + 5000));
        assert_eq!(playlist(&live, "360p").matches("#EXT-X-GAP\n").count(), 2);
        let end = FIRST_TICK + 3 * 90_000;
        let left = Left { lead: (7, end - 3000), end, audio: None };
        let place = live.place(T0 + 5000, Follow::Left(left), TARGETS);
        assert_eq!((place.start, place.first.0), (end, T0 as u64 / 1000 + 3));
        assert!(!playlist(&live, "360p").contains("#EXT-X-GAP"));
    }

    #[tokio::test]
    async fn one_task_waits_however_often_a_broadcaster_comes_and_goes() {
        let live = Live::new("demo".parse().unwrap());
        let tasks = tokio_util::task::TaskTracker::new();
        for times in 0..100 {
            let wait = || tasks.spawn(std::future::pending::<()>()).abort_handle();
            live.wait_for_broadcaster(State::Interrupted(times), wait);
            live.wait_for_broadcaster(State::Interrupted(times), wait);
        }
        // Those that were told to end do so when they are next looked at.
        while tasks.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.len(), 1);
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
