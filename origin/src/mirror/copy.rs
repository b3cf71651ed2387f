//! A stream's structure as it is told, and the copy of it that a mirror builds: what is new since the last look on one
//! side, the same applied on the other.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use media::event::Event;
use media::time::{Ticks, Timescale};
use media::{Epoch, Object, RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use super::wire::{InitOf, Message, Nonsense, PictureOf, Piece, SheetOf};
use crate::broadcast::{Broadcast, MAX_CUTS, MAX_INITS, MAX_PERIODS, Rendition};
use crate::continuation::Continuation;
use crate::dash::Period;
use crate::events::MAX_EVENTS;
use crate::hls::{Kind, Targets, Variant};
use crate::live::{Live, Picture, State};
use crate::thumbnails::{Sheet, Sheets};
use crate::timeline::Anchor;
use crate::window::{Segment, Window};

/// Renditions of a stream that is mirrored: the ladder has fewer than ten.
const MAX_RENDITIONS: usize = 32;

/// Caption services of a run: there are no more channels and services.
const MAX_CAPTIONS: usize = 2 * (4 + 63);

/// Media that a mirror holds of one stream, in bytes; a ten minutes' window of a 5 Mbit/s ladder has 400 MB. Beyond it the
/// stream is not mirrored.
pub const MAX_STREAM_BYTES: u64 = 1 << 30;

/// Largest picture by itself that is taken, in bytes: those that are drawn have some ten KiB.
const MAX_PICTURE_BYTES: usize = 1 << 20;

/// Times and numbers are believed up to here, so that none of the sums overflows: in ticks of 90 kHz 1500 years.
const MAX_NUMBER: u64 = 1 << 52;

/// Segments of a run: of one second, more than a century of them.
const MAX_SEGMENTS: u64 = 1 << 32;

/// How a stream stands, its media apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    standing: Standing,
    anchor: Anchor,
    targets: Targets,
    listed: Ticks,
    next_number: SegmentNumber,
    end: Ticks,
    breaks: u64,
    /// The first of the gaps at the end that stand for an absent broadcaster.
    away: Option<SegmentNumber>,
    /// As POPs are told.
    next: Option<String>,
    periods: Vec<Period>,
    renditions: Vec<RenditionSnapshot>,
    /// In order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    events: Vec<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    Live,
    Interrupted,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RenditionSnapshot {
    variant: Variant,
    timescale: u32,
    epoch: Epoch,
    break_pending: bool,
    /// EXT-X-DISCONTINUITY-SEQUENCE
    discontinuity_sequence: u64,
}

impl Snapshot {
    fn of(state: State, broadcast: &Broadcast) -> Snapshot {
        let renditions = broadcast.renditions.iter().map(|rendition| RenditionSnapshot {
            variant: rendition.variant.clone(),
            timescale: rendition.window.timescale().per_second(),
            epoch: rendition.epoch,
            break_pending: rendition.break_pending,
            discontinuity_sequence: rendition.window.discontinuity_sequence(),
        });
        Snapshot {
            standing: match state {
                State::Offline | State::Ended => Standing::Ended,
                State::Live => Standing::Live,
                State::Interrupted(_) => Standing::Interrupted,
            },
            anchor: broadcast.anchor,
            targets: broadcast.targets,
            listed: broadcast.listed,
            next_number: broadcast.next_number,
            end: broadcast.end,
            breaks: broadcast.breaks,
            away: broadcast.away,
            next: broadcast.next.map(|next| next.to_string()),
            periods: broadcast.periods.clone(),
            renditions: renditions.collect(),
            events: broadcast.events.iter().cloned().collect(),
        }
    }

    /// Whether its numbers can be counted with.
    fn is_sane(&self) -> bool {
        let ticks = |at: Ticks| at.unsigned_abs() < MAX_NUMBER;
        let targets = |t: Targets| (1..90_000 * 60).contains(&t.segment_duration) && t.part_target > 0;
        let variant = |variant: &Variant| match variant.kind {
            Kind::Video { frame_rate, .. } => frame_rate.is_none_or(|rate| rate.den > 0),
            Kind::Audio { .. } => true,
        };
        let period = |period: &Period| {
            ticks(period.start)
                && period.end.is_none_or(ticks)
                && period.first.0 < MAX_NUMBER
                && period.cuts.iter().all(|cut| cut.at.0.abs_diff(period.first.0) < MAX_SEGMENTS)
                && period.cuts.len() <= MAX_CUTS
                && period.cuts.iter().all(|cut| cut.without.len() <= MAX_RENDITIONS)
                && period.variants.len() <= MAX_RENDITIONS
                && period.captions.len().max(period.captions_found.len()) <= MAX_CAPTIONS
                && period.thumbnails.is_none_or(|tiles| tiles.is_sane())
                && period.variants.iter().all(variant)
        };
        let rendition = |rendition: &RenditionSnapshot| {
            (1000..1 << 24).contains(&rendition.timescale)
                && rendition.epoch.0 < MAX_NUMBER
                && rendition.discontinuity_sequence < MAX_NUMBER
                && variant(&rendition.variant)
        };
        ticks(self.end)
            && ticks(self.listed)
            && ticks(self.anchor.ticks)
            && self.anchor.unix_ms.unsigned_abs() < MAX_NUMBER
            && self.next_number.0 < MAX_NUMBER
            && self.breaks < MAX_NUMBER
            && targets(self.targets)
            && self.periods.len() <= MAX_PERIODS
            && self.renditions.len() <= MAX_RENDITIONS
            && self.events.len() <= MAX_EVENTS
            && self.events.iter().all(|event| ticks(event.at))
            && self.periods.iter().all(period)
            && self.renditions.iter().all(rendition)
    }
}

/// What a mirror was told of a stream so far.
#[derive(Debug, Default)]
pub struct Teller {
    snapshot: Option<Snapshot>,
    renditions: BTreeMap<RenditionId, Told>,
    sheets: BTreeSet<(Epoch, SegmentNumber)>,
    picture: Option<PictureOf>,
    whole: bool,
}

#[derive(Debug, Default)]
struct Told {
    inits: BTreeSet<Epoch>,
    segment: Option<(Epoch, SegmentNumber)>,
    parts: usize,
    closed: bool,
}

impl Teller {
    /// What is new at `unix_ms`. `None` if what was told is no longer so: a mirror must begin anew.
    pub(crate) fn look(&mut self, state: State, broadcast: &Broadcast, unix_ms: i64) -> Option<Vec<Message>> {
        let mut messages = Vec::new();
        let snapshot = Snapshot::of(state, broadcast);
        if self.snapshot.as_ref() != Some(&snapshot) {
            messages.push(Message::Snapshot(Box::new(snapshot.clone())));
            self.snapshot = Some(snapshot);
        }
        for rendition in &broadcast.renditions {
            let told = self.renditions.entry(rendition.variant.id.clone()).or_default();
            for (epoch, init) in &rendition.inits {
                if told.inits.insert(*epoch) {
                    let of = InitOf { rendition: rendition.variant.id.clone(), epoch: *epoch };
                    messages.push(Message::Init(of, init.clone()));
                }
            }
            told.inits.retain(|epoch| rendition.inits.iter().any(|(kept, _)| kept == epoch));
            told.look(rendition, unix_ms, &mut messages)?;
        }
        let known = std::mem::take(&mut self.sheets);
        for Sheet { epoch, number, jpeg } in broadcast.sheets.iter() {
            if !known.contains(&(*epoch, *number)) {
                let of = SheetOf { epoch: *epoch, number: *number };
                messages.push(Message::Sheet(of, jpeg.clone()));
            }
            self.sheets.insert((*epoch, *number));
        }
        if !std::mem::replace(&mut self.whole, true) {
            messages.push(Message::Whole);
        }
        Some(messages)
    }

    /// The newest picture, if it was not told yet. It is no news by itself: look with what is.
    pub(crate) fn picture(&mut self, newest: Option<Picture>) -> Option<Message> {
        let Picture { epoch, pts, jpeg } = newest?;
        let of = PictureOf { epoch, pts };
        let told = self.picture.replace(of.clone());
        (told.as_ref() != Some(&of)).then_some(Message::Picture(of, jpeg))
    }
}

impl Told {
    fn look(&mut self, rendition: &Rendition, unix_ms: i64, messages: &mut Vec<Message>) -> Option<()> {
        let window = &rendition.window;
        let known = match self.segment {
            None => 0,
            // Out of the list, by a break or because this side was too slow: what came between was not told.
            Some(key) => window.segments().position(|segment| (segment.epoch, segment.number) == key)?,
        };
        let open = window.open_segment().map(|segment| segment.number);
        for segment in window.segments().skip(known) {
            let key = (segment.epoch, segment.number);
            let goes_on = self.segment == Some(key);
            let parts = if goes_on { self.parts } else { 0 };
            let closed = open != Some(segment.number);
            if goes_on && (self.closed || (parts == segment.parts.len() && !closed)) {
                continue;
            }
            let new = &segment.parts[parts..];
            let range = new.first().map_or(0, |part| part.offset)
                ..new.last().map_or(0, |part| part.offset + part.len);
            let piece = Piece {
                rendition: rendition.variant.id.clone(),
                epoch: segment.epoch,
                number: segment.number,
                start: segment.start,
                discontinuity: segment.discontinuity,
                gap: segment.object.is_none().then_some(segment.duration),
                parts: new.iter().map(|part| (part.len, part.duration, part.independent)).collect(),
                closed,
                told_unix_ms: unix_ms,
            };
            let bytes = segment.object.as_ref().map_or_else(Vec::new, |object| object.chunks(range));
            messages.push(Message::Piece(piece, bytes));
            (self.segment, self.parts, self.closed) = (Some(key), segment.parts.len(), closed);
        }
        Some(())
    }
}

/// Takes what was told of a stream into its copy; nothing if it is too late for that. Errors are those of [`apply`].
pub(crate) fn take(live: &Live, message: Message) -> Result<(), Nonsense> {
    match message {
        Message::Picture(_, jpeg) if jpeg.len() > MAX_PICTURE_BYTES => {
            Err(Nonsense::Insane("picture: more than 1 MiB"))
        }
        Message::Picture(PictureOf { epoch, pts }, jpeg) => {
            live.copy_picture(Picture { epoch, pts, jpeg });
            Ok(())
        }
        message => live.copy(|state, broadcast| apply(message, state, broadcast)).unwrap_or(Ok(())),
    }
}

/// Takes what was told into a copy. After an error the copy is of no use. The first thing told must be a snapshot.
pub(crate) fn apply(
    message: Message,
    state: &mut State,
    broadcast: &mut Option<Broadcast>,
) -> Result<(), Nonsense> {
    match (message, broadcast) {
        (Message::Snapshot(snapshot), broadcast) => {
            if !snapshot.is_sane() {
                return Err(Nonsense::Insane("snapshot: numbers beyond belief"));
            }
            *state = match snapshot.standing {
                Standing::Live => State::Live,
                Standing::Interrupted => State::Interrupted(0),
                Standing::Ended => State::Ended,
            };
            update(broadcast, *snapshot)
        }
        (Message::Init(of, init), Some(broadcast)) => {
            let rendition = find(broadcast, &of.rendition)?;
            rendition.inits.retain(|(epoch, _)| *epoch != of.epoch);
            if rendition.inits.len() >= MAX_INITS {
                rendition.inits.remove(0);
            }
            rendition.inits.push((of.epoch, init));
            Ok(())
        }
        (Message::Sheet(of, jpeg), Some(broadcast)) => {
            if of.number.0 >= MAX_SEGMENTS {
                return Err(Nonsense::Insane("sheet: a number beyond belief"));
            }
            broadcast.sheet(Sheet { epoch: of.epoch, number: of.number, jpeg });
            is_within_bounds(broadcast)
        }
        (Message::Piece(piece, bytes), Some(broadcast)) => {
            let gap = broadcast.targets.segment_duration;
            let away = broadcast.away.is_some_and(|first| first <= piece.number);
            put(find(broadcast, &piece.rendition)?, piece, bytes, gap, away)?;
            is_within_bounds(broadcast)
        }
        (Message::Whole, Some(_)) | (Message::Ping | Message::Gone, _) => Ok(()),
        _ => Err(Nonsense::OutOfTurn("before the snapshot")),
    }
}

fn is_within_bounds(broadcast: &Broadcast) -> Result<(), Nonsense> {
    let held = broadcast.renditions.iter().map(|rendition| rendition.window.bytes());
    if held.sum::<u64>() + broadcast.sheets.bytes() > MAX_STREAM_BYTES {
        return Err(Nonsense::Insane("stream: more media than is mirrored"));
    }
    Ok(())
}

fn find<'a>(broadcast: &'a mut Broadcast, id: &RenditionId) -> Result<&'a mut Rendition, Nonsense> {
    let mut all = broadcast.renditions.iter_mut();
    all.find(|rendition| rendition.variant.id == *id).ok_or(Nonsense::Insane("no such rendition"))
}

fn update(broadcast: &mut Option<Broadcast>, snapshot: Snapshot) -> Result<(), Nonsense> {
    let Snapshot { anchor, targets, listed, next_number, end, breaks, away, next, periods, .. } = snapshot;
    let (renditions, events) = (snapshot.renditions, snapshot.events.into());
    let next = next.map(|text| text.parse::<Continuation>()).transpose();
    let next = next.map_err(|_| Nonsense::Insane("snapshot: not a continuation"))?;
    let (mut before, sheets) = broadcast
        .take()
        .map_or_else(|| (Vec::new(), Sheets::default()), |before| (before.renditions, before.sheets));
    let mut now = Vec::with_capacity(renditions.len());
    for RenditionSnapshot { variant, timescale, epoch, break_pending, discontinuity_sequence } in renditions {
        let timescale = Timescale::new(timescale).ok_or(Nonsense::Insane("snapshot: a timescale of zero"))?;
        let known = before.iter().position(|known| known.variant.id == variant.id);
        let known = known.map(|index| before.swap_remove(index));
        let known = known.filter(|known| known.window.timescale() == timescale);
        now.push(match known {
            Some(known) => Rendition { variant, epoch, break_pending, ..known },
            None => Rendition {
                variant,
                window: Window::new(timescale, listed, discontinuity_sequence),
                inits: Vec::new(),
                writer: None,
                epoch,
                break_pending,
            },
        });
    }
    *broadcast = Some(Broadcast {
        anchor,
        targets,
        listed,
        periods,
        renditions: now,
        next_number,
        end,
        breaks,
        next,
        away,
        events,
        sheets,
    });
    Ok(())
}

/// `gap`: how long skipped segments are, 90 kHz; `away`: it is one of those that stand for an absent broadcaster.
fn put(
    rendition: &mut Rendition,
    piece: Piece,
    bytes: Vec<Bytes>,
    gap: Ticks,
    away: bool,
) -> Result<(), Nonsense> {
    let Piece { epoch, number, start, discontinuity, gap: missing, parts, closed, .. } = piece;
    let ticks = |at: Ticks| at.unsigned_abs() < MAX_NUMBER;
    let sane = number.0 < MAX_NUMBER
        && ticks(start)
        && missing.is_none_or(ticks)
        && parts.iter().all(|(_, duration, _)| (0..1 << 40).contains(duration));
    let sum = parts.iter().try_fold(0u64, |sum, (len, ..)| sum.checked_add(*len));
    let come: usize = bytes.iter().map(Bytes::len).sum();
    if !sane || sum != Some(come as u64) {
        return Err(Nonsense::Insane("piece: numbers beyond belief, or other bytes than its parts say"));
    }
    let window = &mut rendition.window;
    let last = window.segments().next_back().map(|last| (last.number, last.epoch));
    match last {
        Some(key) if key == (number, epoch) && window.open_segment().is_some() => {}
        Some((last, _)) if number != last.next() => return Err(Nonsense::Insane("piece: not the next")),
        _ => {
            let (writer, object) = Object::growing();
            let segment = Segment {
                number,
                epoch,
                start,
                duration: missing.unwrap_or(0),
                parts: Vec::new(),
                object: missing.is_none().then_some(object),
                bytes: 0,
                discontinuity,
            };
            if away && missing.is_some() {
                window.away(segment);
                return Ok(());
            }
            let gap = Timescale::VIDEO.rescale(gap, window.timescale());
            window.open(segment, gap);
            rendition.writer = missing.is_none().then_some(writer);
        }
    }
    let mut bytes = bytes.into_iter();
    let mut rest = Bytes::new();
    for (len, duration, independent) in parts {
        window.part(len, duration, independent);
        let mut left = len as usize;
        while left > 0 {
            if rest.is_empty() {
                match bytes.next() {
                    Some(next) => rest = next,
                    None => break,
                }
            }
            let chunk = rest.split_to(left.min(rest.len()));
            if left == len as usize {
                window.begins_with(&chunk);
            }
            left -= chunk.len();
            if let Some(writer) = &mut rendition.writer {
                writer.push(chunk);
            }
        }
    }
    if closed {
        if let Some(writer) = rendition.writer.take() {
            writer.finish();
        }
        window.close();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::NewRendition;
    use crate::continuation::AudioStart;
    use crate::hls::Directives;
    use crate::live::{Follow, Found, Live};
    use crate::mirror::wire::Reader;
    use crate::window::Bitrate;
    use media::event::What;
    use media::time::FrameRate;

    const T0: i64 = 1_700_000_000_000;
    const TARGETS: Targets = Targets { segment_duration: 90_000, part_target: 45_000 };
    const NAMES: [&str; 2] = ["96p", "audio"];

    fn rendition(name: &str, init: &'static [u8]) -> NewRendition {
        let frame_rate = Some(FrameRate { num: 30, den: 1 });
        let (kind, timescale) = match name {
            "audio" => (Kind::Audio { channels: 2, sample_rate: 48_000 }, Timescale::OPUS),
            _ => (Kind::Video { width: 192, height: 96, frame_rate }, Timescale::VIDEO),
        };
        let (codec, measured) = ("x".into(), Bitrate::default());
        let variant = Variant { id: name.parse().unwrap(), codec, bitrate_bps: 1000, measured, kind };
        NewRendition { variant, timescale, init: Bytes::from_static(init) }
    }

    fn begin(live: &Live, epoch: u64, follow: Follow, unix_ms: i64, init: &'static [u8]) -> SegmentNumber {
        let place = live.place(unix_ms, follow, TARGETS);
        let renditions = NAMES.iter().map(|name| rendition(name, init)).collect();
        live.begin(Epoch(epoch), place, 6 * 90_000, unix_ms, renditions, Vec::new());
        place.first
    }

    /// Opens segment `number`, `index` segments after the timeline's begin, with as many parts.
    fn segment(live: &Live, epoch: u64, number: SegmentNumber, index: i64, parts: usize, close: bool) {
        for name in NAMES {
            let NewRendition { variant: Variant { id, .. }, timescale, .. } = rendition(name, b"");
            let ticks = |at| Timescale::VIDEO.rescale(at, timescale);
            live.open(Epoch(epoch), &id, number, ticks((1 + index) * 90_000));
            for part in 0..parts {
                let body = Bytes::from(format!("<{epoch} {number} {part}>"));
                live.part(Epoch(epoch), &id, body, ticks(45_000), part == 0);
            }
            if close {
                live.close(Epoch(epoch), &id);
            }
        }
    }

    /// Owner and mirror, and what is between them, over the wire's own bytes.
    struct Pair {
        owner: Live,
        mirror: Live,
        teller: Teller,
    }

    impl Pair {
        fn new() -> Pair {
            let live = || Live::new("demo".parse().unwrap());
            Pair { owner: live(), mirror: live(), teller: Teller::default() }
        }

        fn tell(&mut self) -> Vec<Message> {
            let said = self.owner.read(|state, broadcast| self.teller.look(state, broadcast.unwrap(), T0));
            let mut said = said.unwrap();
            said.extend(self.teller.picture(self.owner.newest_picture()));
            let mut reader = Reader::default();
            let mut told = Vec::new();
            for frame in said.iter().flat_map(|message| message.encode().unwrap()) {
                // However the network cuts it.
                for piece in frame.chunks(7) {
                    let mut bytes = Bytes::copy_from_slice(piece);
                    while let Some(message) = reader.next(&mut bytes).unwrap() {
                        told.push(message.clone());
                        take(&self.mirror, message).unwrap();
                    }
                }
            }
            told
        }
    }

    fn playlist(live: &Live, name: &str) -> String {
        match live.playlist(&name.parse().unwrap(), Directives::default(), None) {
            Ok(Found::Ready(playlist)) => playlist,
            other => panic!("{other:?}"),
        }
    }

    fn head(playlist: &str) -> Vec<&str> {
        playlist.lines().filter(|line| line.contains("-SEQUENCE:")).collect()
    }

    fn next(first: SegmentNumber, index: i64, anchor: Anchor) -> Continuation {
        let start = (1 + index) * 90_000;
        let audio = Some(AudioStart { source_ms: 0, pts: 0, timescale: Timescale::OPUS });
        Continuation { instance: 1, first, start, anchor, breaks: 0, lead: Some((0, start)), audio }
    }

    #[test]
    fn a_mirror_says_what_its_owner_says() {
        let mut pair = Pair::new();
        pair.owner.draws(Some(crate::thumbnails::tests::TILES));
        let first = begin(&pair.owner, 1, Follow::Clock, T0, b"init");
        for index in 0..9 {
            segment(&pair.owner, 1, SegmentNumber(first.0 + index), index as i64, 2, true);
            if index == 3 {
                let told = pair.tell();
                assert_eq!(told.last(), Some(&Message::Whole));
                assert_eq!(told.iter().filter(|message| matches!(message, Message::Init(..))).count(), 2);
            }
        }
        segment(&pair.owner, 1, SegmentNumber(first.0 + 9), 9, 1, false);
        let what = What::Data { name: "onTextData".into(), json: "1".into() };
        let event = Event { at: 8 * 90_000, what };
        assert!(pair.owner.event(Epoch(1), &event) && !pair.owner.event(Epoch(1), &event));
        let what = What::Scte35(Bytes::from_static(b"\xFCsection"));
        assert!(pair.owner.event(Epoch(1), &Event { at: 9 * 90_000, what }));
        pair.owner.sheet(Epoch(1), SegmentNumber(0), Bytes::from_static(b"sheet"));
        let picture = |pts| Picture { epoch: Epoch(1), pts, jpeg: Bytes::from_static(b"picture") };
        pair.owner.picture(picture(90_000));
        pair.tell();
        assert_eq!(pair.tell(), [], "nothing new");
        assert_eq!(pair.mirror.newest_picture(), Some(picture(90_000)));
        pair.owner.picture(picture(180_000));
        assert_eq!(pair.tell().len(), 1);
        assert_eq!(pair.mirror.newest_picture(), Some(picture(180_000)));
        assert_eq!(pair.mirror.find_sheet(Epoch(1), SegmentNumber(0)).unwrap(), "sheet");
        for name in NAMES {
            assert_eq!(playlist(&pair.mirror, name), playlist(&pair.owner, name));
            assert_eq!(playlist(&pair.mirror, name).matches("#EXT-X-DATERANGE:").count(), 2);
        }
        assert_eq!(pair.mirror.mpd(1500, T0, "/time", None), pair.owner.mpd(1500, T0, "/time", None));
        let id = "96p".parse().unwrap();
        let Found::Ready(object) = pair.mirror.segment(Epoch(1), &id, SegmentNumber(first.0 + 8)) else {
            panic!("not there")
        };
        assert_eq!(object.to_bytes().unwrap(), format!("<1 {0} 0><1 {0} 1>", first.0 + 8));
        // A second run, and the end.
        pair.owner.interrupt(false);
        pair.tell();
        let number = begin(&pair.owner, 2, Follow::Clock, T0 + 12_000, b"init");
        segment(&pair.owner, 2, number, 11, 2, true);
        pair.tell();
        assert_eq!(playlist(&pair.mirror, "96p"), playlist(&pair.owner, "96p"));
        assert!(playlist(&pair.mirror, "96p").contains("#EXT-X-DISCONTINUITY\n"));
        let state = pair.owner.interrupt(false);
        for second in 14..40 {
            assert!(pair.owner.stay_alive(state, T0 + second * 1000));
            pair.tell();
            assert_eq!(playlist(&pair.mirror, "96p"), playlist(&pair.owner, "96p"));
        }
        assert!(playlist(&pair.mirror, "96p").matches("#EXT-X-GAP").count() > 20);
        // The owner is lost as well, and nobody comes: nothing that was listed is taken back.
        let away = pair.mirror.interrupt(true);
        assert!(pair.owner.end(state) && pair.mirror.end(away));
        assert_eq!(playlist(&pair.mirror, "96p"), playlist(&pair.owner, "96p"));
        assert!(playlist(&pair.mirror, "96p").matches("#EXT-X-GAP").count() > 20);
    }

    /// Takes over in the middle of segment `first + 8`; returns both and the number.
    fn lost_in_the_middle() -> (Pair, SegmentNumber) {
        let mut pair = Pair::new();
        let first = begin(&pair.owner, 1, Follow::Clock, T0, b"init");
        for index in 0..8 {
            segment(&pair.owner, 1, SegmentNumber(first.0 + index), index as i64, 2, true);
        }
        let number = SegmentNumber(first.0 + 8);
        segment(&pair.owner, 1, number, 8, 1, false);
        let (anchor, ..) = pair.owner.line().unwrap();
        pair.owner.acknowledged(next(number, 8, anchor));
        pair.tell();
        pair.mirror.interrupt(true);
        (pair, number)
    }

    #[test]
    fn a_takeover_goes_on_where_the_owner_was() {
        for (init, breaks) in [(&b"init"[..], 0), (b"other", 1)] {
            let (pair, number) = lost_in_the_middle();
            let before = playlist(&pair.mirror, "96p");
            // The POP would have it once more from two segments before: not needed.
            let (anchor, ..) = pair.owner.line().unwrap();
            let old = next(SegmentNumber(number.0 - 2), 6, anchor);
            let newest = pair.mirror.newest(old);
            assert_eq!(newest.first, number);
            assert_eq!(begin(&pair.mirror, 9, Follow::Handed(newest), T0 + 9000, init), number);
            segment(&pair.mirror, 9, number, 8, 2, true);
            let after = playlist(&pair.mirror, "96p");
            assert_eq!(after.matches("#EXT-X-DISCONTINUITY\n").count(), breaks, "{after}");
            assert!(after.contains(&format!("\n9/96p/{number}.m4s\n")), "{after}");
            assert!(
                !after.contains(&format!("1/96p/{number}.m4s")),
                "the whole one is in its place: {after}"
            );
            for index in 3..8 {
                let uri = format!("\n1/96p/{}.m4s\n", number.0 - 8 + index);
                assert!(before.contains(&uri) && after.contains(&uri), "{uri} in {after}");
            }
            // Who was told of it still gets what there is.
            let id = "96p".parse().unwrap();
            let Found::Ready(object) = pair.mirror.segment(Epoch(1), &id, number) else { panic!("gone") };
            assert_eq!(object.chunks(0..u64::MAX).concat(), format!("<1 {number} 0>").as_bytes());
            let mpd = pair.mirror.mpd(1500, T0, "/time", None).unwrap();
            let connected = mpd.matches("period-continuity:2015\" value=\"1\"").count();
            assert_eq!(connected, if breaks == 0 { 2 } else { 0 }, "{mpd}");
            assert!(mpd.contains("<Period id=\"1\" start=\"PT1S\" duration=\"PT8S\""), "{mpd}");
            assert!(mpd.contains("<Period id=\"9\" start=\"PT9S\""), "{mpd}");
        }
    }

    #[test]
    fn a_takeover_by_a_fresh_session_is_a_break_and_nothing_goes_back() {
        let (pair, number) = lost_in_the_middle();
        let before = playlist(&pair.mirror, "96p");
        assert_eq!(begin(&pair.mirror, 9, Follow::Clock, T0 + 12_000, b"init"), number.next());
        segment(&pair.mirror, 9, number.next(), 12, 2, true);
        let after = playlist(&pair.mirror, "96p");
        assert_eq!(after.matches("#EXT-X-DISCONTINUITY\n").count(), 1, "{after}");
        assert!(after.contains(&format!("\n1/96p/{number}.m4s\n")), "what came of it stays: {after}");
        assert!(head(&before) <= head(&after), "{before}\n{after}");
    }

    #[test]
    fn nonsense_is_refused() {
        let mut pair = Pair::new();
        let first = begin(&pair.owner, 1, Follow::Clock, T0, b"init");
        segment(&pair.owner, 1, first, 0, 2, true);
        let told = pair.tell();
        let refused = |message: Message| {
            pair.mirror.copy(|state, broadcast| apply(message, state, broadcast)).unwrap().unwrap_err()
        };
        let Some(Message::Snapshot(good)) = told.first().cloned() else { panic!("{told:?}") };
        for bad in [
            Snapshot { end: i64::MAX, ..(*good).clone() },
            Snapshot { targets: Targets { segment_duration: 0, part_target: 1 }, ..(*good).clone() },
            Snapshot { next: Some("1 2".into()), ..(*good).clone() },
            Snapshot { periods: vec![good.periods[0].clone(); MAX_PERIODS + 1], ..(*good).clone() },
            Snapshot { renditions: vec![good.renditions[0].clone(); MAX_RENDITIONS + 1], ..(*good).clone() },
        ] {
            assert!(matches!(refused(Message::Snapshot(Box::new(bad))), Nonsense::Insane(_)));
        }
        let of = PictureOf { epoch: Epoch(1), pts: 0 };
        let large = Message::Picture(of, vec![0; MAX_PICTURE_BYTES + 1].into());
        assert!(matches!(take(&pair.mirror, large), Err(Nonsense::Insane(_))));
        assert_eq!(pair.mirror.newest_picture(), None);
        let pieces = told.iter().filter_map(|message| match message {
            Message::Piece(piece, bytes) => Some((piece.clone(), bytes.clone())),
            _ => None,
        });
        let (piece, bytes) = pieces.last().unwrap();
        let next = Piece { number: piece.number.next(), ..piece.clone() };
        for (bad, bytes) in [
            (piece.clone(), bytes.clone()),
            (Piece { number: SegmentNumber(next.number.0 + 1), ..next.clone() }, bytes.clone()),
            (Piece { start: i64::MIN, ..next.clone() }, bytes.clone()),
            (Piece { rendition: "x".parse().unwrap(), ..next.clone() }, bytes.clone()),
            (Piece { parts: vec![(u64::MAX, 1, true), (1, 1, true)], ..next.clone() }, bytes.clone()),
            (next.clone(), bytes[..1].to_vec()),
        ] {
            assert!(matches!(refused(Message::Piece(bad, bytes)), Nonsense::Insane(_)));
        }
        let mut fresh = (State::Offline, None);
        let early = apply(Message::Piece(next, bytes), &mut fresh.0, &mut fresh.1).unwrap_err();
        assert!(matches!(early, Nonsense::OutOfTurn(_)));
    }
}
