//! What is to be written, in which order, and what becomes of what could not be.
//!
//! A run's journal comes before its segments, and a segment's journal after the segment: so a journal never names what is
//! not there, and every object belongs to a run that is known.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use media::event::Event;
use media::time::Ticks;
use media::{Epoch, Object, RenditionId, SegmentNumber, StreamName};

use crate::index::{Ended, Hole, Index, Run, Segment, Why};
use crate::name::{BroadcastId, JournalName};

/// Between two journals of a broadcast while nothing but segments comes: what a crash can leave unwritten is at most this
/// and what is on its way; and more would cost S3 requests.
const JOURNAL_EVERY: Duration = Duration::from_secs(1);

/// Journals of one level that are replaced by one of the next: a day of segments then has some twenty journals.
const COMPACT_AT: usize = 64;

/// The highest level that is made while a broadcast is live: each of these stands for 64³ seconds.
const MAX_LIVE_LEVEL: u8 = 3;

/// First and longest wait after a write that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Runs that wait to be journaled, per broadcast: one that begins a run more often while the store is away loses what
/// belongs to the rest.
const MAX_WAITING_RUNS: usize = 256;

/// Holes of one broadcast that wait to be journaled; past it the last one grows over what is between: where there is a
/// segment too, it is the segment that counts.
const MAX_WAITING_HOLES: usize = 4096;

/// Segments that one journal names at most.
const MAX_JOURNAL_SEGMENTS: usize = 4096;

/// A segment that is complete.
#[derive(Debug, Clone)]
pub struct NewSegment {
    /// Of which broadcast.
    pub broadcast: BroadcastId,
    /// The run.
    pub epoch: Epoch,
    /// Of the run.
    pub rendition: RenditionId,
    /// Its number.
    pub number: SegmentNumber,
    /// Presentation time of its first sample, in ticks of the rendition.
    pub start: Ticks,
    /// In ticks of the rendition.
    pub duration: Ticks,
    /// Whether the timeline breaks before it.
    pub discontinuity: bool,
    /// So many of its first bytes are a keyframe that can be shown alone; 0 if that is not known.
    pub lead: u64,
    /// Its bytes, all there.
    pub object: Object,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    Queued,
    /// It was offered before.
    Known,
    /// The queue is full.
    Overflow,
    /// Its writer has lost the stream.
    Fenced,
}

/// Names one piece of work until it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// What to do next.
#[derive(Debug)]
pub(crate) enum Work {
    /// Write a segment.
    Media(Ticket, NewSegment),
    /// Write a journal.
    Journal(Ticket, JournalName, Box<Index>),
    /// Replace these journals by one of this name; later is as good.
    Compact(BroadcastId, Vec<JournalName>, JournalName),
    /// All is written: whatever there is becomes one index.
    Finish(BroadcastId),
}

/// The state of the store, as the last attempts showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failing {
    /// Attempts that failed one after the other.
    pub(crate) times: u32,
    /// The last one's cause.
    pub(crate) cause: String,
    since: Instant,
    retry_at: Instant,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    max_bytes: u64,
    parallel: usize,
    writer: u64,
    bytes: u64,
    next_ticket: u64,
    /// Of all journals of this process: a name is never used twice.
    next_sequence: u64,
    in_flight: BTreeMap<Ticket, Flight>,
    broadcasts: BTreeMap<BroadcastId, Broadcast>,
    /// Whose turn it is.
    turn: Option<BroadcastId>,
    fences: BTreeMap<StreamName, Epoch>,
    failing: Option<Failing>,
}

#[derive(Debug)]
enum Flight {
    Media(NewSegment),
    Journal(BroadcastId, JournalName, Box<Index>),
}

#[derive(Debug)]
struct Broadcast {
    waiting: VecDeque<NewSegment>,
    media_in_flight: usize,
    /// Runs, segments and holes that are not journaled.
    unsaid: Index,
    unsaid_segments: usize,
    runs: BTreeMap<Epoch, RunState>,
    journal_in_flight: bool,
    /// A journal that could not be written: it is the same again, so that whatever came of the attempt, it says the same.
    again: Option<(JournalName, Box<Index>)>,
    last_journal: Instant,
    written: BTreeMap<u8, Vec<JournalName>>,
    /// Nothing more will be offered.
    over: bool,
    /// What is to be said of the end once everything is written.
    end: Option<Ended>,
}

#[derive(Debug, Default)]
struct RunState {
    journaled: bool,
    /// The newest number offered.
    offered: BTreeMap<RenditionId, SegmentNumber>,
}

impl Queue {
    pub(crate) fn new(max_bytes: u64, parallel: usize, writer: u64) -> Self {
        Self {
            max_bytes,
            parallel,
            writer,
            bytes: 0,
            next_ticket: 0,
            next_sequence: 1,
            in_flight: BTreeMap::new(),
            broadcasts: BTreeMap::new(),
            turn: None,
            fences: BTreeMap::new(),
            failing: None,
        }
    }

    /// Bytes of segments that are not written yet.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn failing(&self) -> Option<&Failing> {
        self.failing.as_ref()
    }

    /// Whether a broadcast may bring more.
    pub(crate) fn is_open(&self, broadcast: &BroadcastId) -> bool {
        self.broadcasts.contains_key(broadcast)
    }

    /// Whether all is written and said.
    pub(crate) fn is_empty(&self) -> bool {
        let idle = |broadcast: &Broadcast| broadcast.waiting.is_empty() && !broadcast.has_something_to_say();
        self.in_flight.is_empty() && self.broadcasts.values().all(idle)
    }

    /// A run begins, or goes on here after another origin.
    pub(crate) fn run(&mut self, now: Instant, broadcast: &BroadcastId, run: Run) -> Offered {
        if self.is_fenced(broadcast, run.epoch) {
            return Offered::Fenced;
        }
        // What the stream was before is over, whoever said so.
        let before = self.broadcasts.iter_mut();
        for (_, before) in before.filter(|(id, _)| id.stream() == broadcast.stream() && *id != broadcast) {
            let ended = |epoch| Ended { epoch, unix_ms: broadcast.unix_ms() as i64, abandoned: true };
            before.end = before.end.or_else(|| before.runs.keys().next_back().copied().map(ended));
            before.over = true;
        }
        let entry = self.broadcasts.entry(broadcast.clone());
        let state = entry.or_insert_with(|| Broadcast::new(broadcast.clone(), now));
        let known = state.runs.contains_key(&run.epoch);
        // Captions may have been found since it was said.
        if known && run.captions.is_empty() {
            return Offered::Known;
        }
        if state.unsaid.runs().count() >= MAX_WAITING_RUNS {
            return Offered::Overflow;
        }
        if !known {
            (state.over, state.end) = (false, None);
            state.runs.insert(run.epoch, RunState::default());
        }
        state.unsaid.add_run(run);
        // Runs that are long over are only looked up for what is still on its way.
        while state.runs.len() > 2 * MAX_WAITING_RUNS {
            state.runs.pop_first();
        }
        Offered::Queued
    }

    /// Something happened in a run. Those of runs that nobody announced are not kept.
    pub(crate) fn event(&mut self, broadcast: &BroadcastId, epoch: Epoch, event: Event) -> Offered {
        if self.is_fenced(broadcast, epoch) {
            return Offered::Fenced;
        }
        let state = self.broadcasts.get_mut(broadcast).filter(|state| state.runs.contains_key(&epoch));
        let Some(state) = state else { return Offered::Known };
        state.unsaid.add_event(event);
        Offered::Queued
    }

    /// A segment is complete.
    pub(crate) fn segment(&mut self, segment: NewSegment) -> Offered {
        if self.is_fenced(&segment.broadcast, segment.epoch) {
            return Offered::Fenced;
        }
        let len = segment.object.progress().len;
        let full = self.bytes + len > self.max_bytes;
        let Some(state) = self.broadcasts.get_mut(&segment.broadcast) else { return Offered::Overflow };
        let Some(run) = state.runs.get_mut(&segment.epoch) else {
            state.hole(&segment.rendition, segment.epoch, segment.number, Why::Overflow);
            return Offered::Overflow;
        };
        let newest = run.offered.get(&segment.rendition);
        if newest.is_some_and(|newest| segment.number <= *newest) {
            return Offered::Known;
        }
        run.offered.insert(segment.rendition.clone(), segment.number);
        if full {
            state.hole(&segment.rendition, segment.epoch, segment.number, Why::Overflow);
            return Offered::Overflow;
        }
        self.bytes += len;
        state.waiting.push_back(segment);
        Offered::Queued
    }

    /// No media came for a number.
    pub(crate) fn gap(
        &mut self,
        broadcast: &BroadcastId,
        epoch: Epoch,
        id: &RenditionId,
        number: SegmentNumber,
    ) {
        if !self.is_fenced(broadcast, epoch)
            && let Some(state) = self.broadcasts.get_mut(broadcast)
        {
            state.hole(id, epoch, number, Why::Gap);
        }
    }

    /// The broadcast is over.
    pub(crate) fn ended(&mut self, broadcast: &BroadcastId, ended: Ended) {
        if self.is_fenced(broadcast, ended.epoch) {
            return;
        }
        if let Some(state) = self.broadcasts.get_mut(broadcast) {
            (state.over, state.end) = (true, Some(ended));
        }
    }

    /// The stream's writer up to `epoch` has lost it: nothing more is taken from it. What it offered before is history and
    /// is written; where the next owner made it anew, the later run counts.
    pub(crate) fn fence(&mut self, stream: &StreamName, epoch: Epoch) {
        let fence = self.fences.entry(stream.clone()).or_insert(epoch);
        *fence = (*fence).max(epoch);
        for (_, state) in self.broadcasts.iter_mut().filter(|(id, _)| id.stream() == stream) {
            if state.runs.keys().all(|run| *run <= epoch) {
                state.over = true;
            }
        }
        // A fence is for writers that live: those of streams long gone are not remembered.
        while self.fences.len() > MAX_FENCES {
            self.fences.pop_first();
        }
    }

    /// What to do now.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Work> {
        let parallel = match &self.failing {
            Some(failing) if now < failing.retry_at => return None,
            // One attempt shows whether the store is back.
            Some(_) => 1,
            None => self.parallel,
        };
        if self.in_flight.len() < parallel {
            let work = self.journal(now).or_else(|| self.media());
            if work.is_some() {
                return work;
            }
        }
        if self.failing.is_some() { None } else { self.upkeep() }
    }

    /// When to poll again though nothing has happened.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let journal = self.broadcasts.values().filter_map(Broadcast::journal_at).min();
        match &self.failing {
            // What is on its way will tell.
            Some(_) if !self.in_flight.is_empty() => None,
            Some(failing) if self.broadcasts.values().any(Broadcast::is_ready) => Some(failing.retry_at),
            Some(failing) => journal.map(|at| at.max(failing.retry_at)),
            None if self.in_flight.len() >= self.parallel => None,
            None => journal,
        }
    }

    /// A piece of work succeeded. Of a segment, the name under which it is kept.
    pub(crate) fn done(&mut self, ticket: Ticket, written: Option<Segment>) {
        self.failing = None;
        match self.in_flight.remove(&ticket) {
            Some(Flight::Media(segment)) => {
                self.bytes -= segment.object.progress().len;
                if let Some(state) = self.broadcasts.get_mut(&segment.broadcast) {
                    state.media_in_flight -= 1;
                    if let Some(written) = written {
                        state.unsaid.add_segment(&segment.rendition, written);
                        state.unsaid_segments += 1;
                    }
                }
            }
            Some(Flight::Journal(broadcast, name, index)) => {
                if let Some(state) = self.broadcasts.get_mut(&broadcast) {
                    state.journal_in_flight = false;
                    state.written.entry(name.level).or_default().push(name);
                    for run in index.runs() {
                        state.runs.entry(run.epoch).or_default().journaled = true;
                    }
                }
            }
            None => {}
        }
    }

    /// A piece of work failed; it is tried again later.
    pub(crate) fn failed(&mut self, now: Instant, ticket: Ticket, cause: String, jitter: f64) {
        match self.in_flight.remove(&ticket) {
            Some(Flight::Media(segment)) => {
                if let Some(state) = self.broadcasts.get_mut(&segment.broadcast) {
                    state.media_in_flight -= 1;
                    // At the end: if it is this one that the store does not like, the others are not held up.
                    state.waiting.push_back(segment);
                }
            }
            Some(Flight::Journal(broadcast, name, index)) => {
                if let Some(state) = self.broadcasts.get_mut(&broadcast) {
                    state.journal_in_flight = false;
                    state.again = Some((name, index));
                }
            }
            None => return,
        }
        let (times, since) = match &self.failing {
            // Those that were on their way together fail together.
            Some(failing) if now < failing.retry_at => return,
            Some(failing) => (failing.times.saturating_add(1), failing.since),
            None => (1, now),
        };
        let wait = BACKOFF.0.saturating_mul(1 << (times - 1).min(16)).min(BACKOFF.1);
        let retry_at = now + wait.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0);
        self.failing = Some(Failing { times, cause, since, retry_at });
    }

    /// Journals were replaced by one.
    pub(crate) fn compacted(&mut self, broadcast: &BroadcastId, name: JournalName) {
        if let Some(state) = self.broadcasts.get_mut(broadcast) {
            state.written.entry(name.level).or_default().push(name);
        }
    }

    fn is_fenced(&self, broadcast: &BroadcastId, epoch: Epoch) -> bool {
        self.fences.get(broadcast.stream()).is_some_and(|fence| epoch <= *fence)
    }

    fn next_name(&mut self, level: u8) -> JournalName {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        JournalName { level, writer: self.writer, sequence }
    }

    fn ticket(&mut self, flight: Flight) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.in_flight.insert(ticket, flight);
        ticket
    }

    fn journal(&mut self, now: Instant) -> Option<Work> {
        let due = |state: &Broadcast| state.journal_at().is_some_and(|at| at <= now);
        let broadcast = self.broadcasts.iter().find(|(_, state)| due(state))?.0.clone();
        let again = self.broadcasts.get_mut(&broadcast)?.again.take();
        let name = again.as_ref().map_or_else(|| self.next_name(0), |(name, _)| *name);
        let state = self.broadcasts.get_mut(&broadcast)?;
        let index = match again {
            Some((_, index)) => index,
            None => {
                let mut unsaid = std::mem::replace(&mut state.unsaid, Index::new(broadcast.clone()));
                if state.is_written()
                    && let Some(end) = state.end.take()
                {
                    unsaid.end(end);
                }
                state.unsaid_segments = 0;
                Box::new(unsaid)
            }
        };
        state.journal_in_flight = true;
        state.last_journal = now;
        let ticket = self.ticket(Flight::Journal(broadcast, name, index.clone()));
        Some(Work::Journal(ticket, name, index))
    }

    /// The next segment, broadcasts taking turns.
    fn media(&mut self) -> Option<Work> {
        let id = {
            let mut ids = self.broadcasts.iter().filter(|(_, state)| state.is_ready()).map(|(id, _)| id);
            let first = ids.next()?;
            let after =
                |turn: &BroadcastId| std::iter::once(first).chain(ids).find(|id| *id > turn).unwrap_or(first);
            self.turn.as_ref().map_or(first, after).clone()
        };
        let state = self.broadcasts.get_mut(&id)?;
        let segment = state.waiting.pop_front()?;
        state.media_in_flight += 1;
        self.turn = Some(id);
        let ticket = self.ticket(Flight::Media(segment.clone()));
        Some(Work::Media(ticket, segment))
    }

    fn upkeep(&mut self) -> Option<Work> {
        let full = self.broadcasts.iter().find_map(|(id, state)| {
            let full =
                |(level, names): &(&u8, &Vec<_>)| names.len() >= COMPACT_AT && **level < MAX_LIVE_LEVEL;
            Some((id.clone(), *state.written.iter().find(full)?.0))
        });
        if let Some((id, level)) = full {
            let names = self.broadcasts.get_mut(&id)?.written.remove(&level)?;
            return Some(Work::Compact(id, names, self.next_name(level + 1)));
        }
        let over = |state: &Broadcast| {
            state.over && state.is_written() && !state.journal_in_flight && !state.has_something_to_say()
        };
        let id = self.broadcasts.iter().find(|(_, state)| over(state)).map(|(id, _)| id.clone())?;
        self.broadcasts.remove(&id);
        Some(Work::Finish(id))
    }
}

/// Streams whose lost writers are remembered.
const MAX_FENCES: usize = 65_536;

impl Broadcast {
    fn new(id: BroadcastId, now: Instant) -> Self {
        Self {
            waiting: VecDeque::new(),
            media_in_flight: 0,
            unsaid: Index::new(id),
            unsaid_segments: 0,
            runs: BTreeMap::new(),
            journal_in_flight: false,
            again: None,
            last_journal: now,
            written: BTreeMap::new(),
            over: false,
            end: None,
        }
    }

    /// Whether a segment can be written now.
    fn is_ready(&self) -> bool {
        let front = self.waiting.front();
        front.is_some_and(|s| self.runs.get(&s.epoch).is_none_or(|run| run.journaled))
            && self.unsaid_segments < MAX_JOURNAL_SEGMENTS
    }

    /// Whether every segment that was offered is written.
    fn is_written(&self) -> bool {
        self.waiting.is_empty() && self.media_in_flight == 0
    }

    fn has_something_to_say(&self) -> bool {
        self.again.is_some() || !self.unsaid.is_empty() || (self.end.is_some() && self.is_written())
    }

    /// When the next journal is due: at once for a run, since its segments wait for it, and for the end; else not too
    /// often.
    fn journal_at(&self) -> Option<Instant> {
        if self.journal_in_flight || !self.has_something_to_say() {
            return None;
        }
        let at_once = self.again.is_some()
            || self.unsaid.runs().next().is_some()
            || self.unsaid_segments >= MAX_JOURNAL_SEGMENTS
            || (self.over && self.is_written());
        Some(if at_once { self.last_journal } else { self.last_journal + JOURNAL_EVERY })
    }

    fn hole(&mut self, rendition: &RenditionId, epoch: Epoch, number: SegmentNumber, why: Why) {
        self.unsaid.grow_hole(rendition, epoch, Hole { first: number, last: number, why }, MAX_WAITING_HOLES);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;
    use crate::index::{Anchor, Run};

    fn run(epoch: u64) -> Run {
        Run {
            epoch: Epoch(epoch),
            first: SegmentNumber(1),
            start: 0,
            anchor: Anchor { unix_ms: 0, ticks: 0 },
            segment_duration: 90_000,
            part_target: 18_000,
            breaks: 0,
            captions: Vec::new(),
            tiles: None,
            renditions: Vec::new(),
        }
    }

    fn segment(number: u64) -> NewSegment {
        NewSegment {
            broadcast: "demo-1".parse().unwrap(),
            epoch: Epoch(1),
            rendition: "360p".parse().unwrap(),
            number: SegmentNumber(number),
            start: 0,
            duration: 90_000,
            discontinuity: false,
            lead: 0,
            object: Object::complete(bytes::Bytes::from_static(b"segment")),
        }
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<Work> {
        std::iter::from_fn(|| queue.poll(now)).collect()
    }

    /// Whoever polls until there is nothing and then waits for the timeout never turns in circles.
    fn check_timeout(queue: &Queue, now: Instant) {
        assert!(queue.poll_timeout().is_none_or(|at| at > now), "it would wake for nothing");
    }

    #[test]
    fn captions_that_are_found_later_are_said_with_their_run() {
        let now = Instant::now();
        let mut queue = Queue::new(1000, 2, 7);
        let id: BroadcastId = "demo-1".parse().unwrap();
        queue.run(now, &id, run(1));
        let captions = vec!["CC1:en".parse().unwrap()];
        assert!(matches!(queue.run(now, &id, run(1)), Offered::Known));
        let found = Run { captions: captions.clone(), ..run(1) };
        assert!(matches!(queue.run(now, &id, found), Offered::Queued));
        let work = drain(&mut queue, now);
        let [Work::Journal(_, _, index)] = work.as_slice() else { panic!("{work:?}") };
        assert_eq!(index.run(Epoch(1)).map(|run| &run.captions), Some(&captions));
    }

    #[test]
    fn runs_are_said_before_segments_and_segments_afterwards() {
        let now = Instant::now();
        let mut queue = Queue::new(1000, 2, 7);
        let id: BroadcastId = "demo-1".parse().unwrap();
        queue.run(now, &id, run(1));
        for number in 1..=3 {
            queue.segment(segment(number));
        }
        let work = drain(&mut queue, now);
        let [Work::Journal(first, name, index)] = work.as_slice() else { panic!("{work:?}") };
        assert_eq!((index.runs().count(), index.objects().count()), (1, 0));
        check_timeout(&queue, now);
        queue.done(*first, None);
        let work = drain(&mut queue, now);
        let [Work::Media(one, _), Work::Media(two, _)] = work.as_slice() else { panic!("{work:?}") };
        check_timeout(&queue, now);
        // Both fail together: one attempt follows, when it is time.
        queue.failed(now, *one, "full".into(), 0.5);
        queue.failed(now, *two, "full".into(), 0.5);
        assert_eq!(queue.failing().map(|failing| failing.times), Some(1));
        assert!(drain(&mut queue, now).is_empty());
        check_timeout(&queue, now);
        let later = queue.poll_timeout().unwrap();
        assert_eq!(later, now + BACKOFF.0);
        let work = drain(&mut queue, later);
        let [Work::Media(again, _)] = work.as_slice() else { panic!("{work:?}") };
        check_timeout(&queue, later);
        queue.failed(later, *again, "full".into(), 0.5);
        assert_eq!(queue.poll_timeout(), Some(later + 2 * BACKOFF.0));
        let later = later + 2 * BACKOFF.0;
        let work = drain(&mut queue, later);
        let [Work::Media(again, _)] = work.as_slice() else { panic!("{work:?}") };
        queue.done(*again, None);
        assert_eq!(queue.failing(), None);
        assert_eq!(drain(&mut queue, later).len(), 2, "all at once again");
        assert!(JournalName { sequence: name.sequence + 1, ..*name } == queue.next_name(0));
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let mut now = Instant::now();
        let mut queue = Queue::new(1000, 1, 7);
        queue.run(now, &"demo-1".parse().unwrap(), run(1));
        let mut waits = Vec::new();
        for _ in 0..20 {
            let Some(Work::Journal(ticket, ..)) = queue.poll(now) else { panic!("it is tried again") };
            queue.failed(now, ticket, "away".into(), 0.5);
            let at = queue.poll_timeout().unwrap();
            waits.push(at - now);
            now = at;
        }
        assert_eq!((waits[0], waits[1]), (BACKOFF.0, 2 * BACKOFF.0));
        assert_eq!(waits[19], BACKOFF.1);
    }
}
