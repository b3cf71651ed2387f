//! Whose bytes go next on an h2 connection (RFC 9218).
//!
//! The h2 layer takes turns between all streams that have handed it bytes. What a stream hands over is therefore rationed
//! here: the most urgent first, within a budget, so that little stands before a playlist when it comes.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::patience::{Floor, Pace};
use super::priority::{Priority, URGENCIES};

/// Bytes in the h2 layer's hands and not yet on their way, of streams as urgent as the one that asks or more. Enough for it
/// to fill what is gathered for one write twice over; at 10 Mbit/s it takes a tenth of a second to leave.
pub(crate) const BUDGET: u64 = 128 << 10;

/// What a stream was handed takes no room once its peer has taken nothing of it for so long: its window is closed, and the
/// others' need not be. Longer than what stands before it on a slow line takes.
const STANDS: Floor = Floor { timeout: Duration::from_secs(2), bytes: 1 };

/// A stream, numbered in the order in which they came.
pub(crate) type Id = u64;

/// The streams of one connection, each with what its shell keeps for it.
#[derive(Debug, Default)]
pub(crate) struct Turns<T> {
    streams: BTreeMap<Id, Stream<T>>,
    queues: [Queue; URGENCIES],
    /// Streams in the queues.
    waiting: usize,
    handed: [u64; URGENCIES],
    /// Who was named by `poll` last and has not asked since.
    called: Option<Id>,
}

#[derive(Debug)]
struct Stream<T> {
    shell: T,
    priority: Priority,
    waits: bool,
    /// Bytes in the h2 layer's hands.
    handed: u64,
    /// Bytes that have left it.
    sent: u64,
    pace: Pace,
    progress: Pace,
    /// Its bytes stand still, and are not counted by urgency until some leave.
    stands: bool,
    /// It will ask no more.
    gone: bool,
}

/// Those of one urgency who have bytes to hand over.
#[derive(Debug, Default)]
struct Queue {
    /// One after the other.
    whole: BTreeSet<Id>,
    /// In turns.
    incremental: VecDeque<Id>,
    /// The two kinds take turns as well.
    incremental_next: bool,
}

impl Queue {
    fn first(&self) -> Option<Id> {
        let (whole, incremental) = (self.whole.first().copied(), self.incremental.front().copied());
        if self.incremental_next { incremental.or(whole) } else { whole.or(incremental) }
    }
}

impl<T: Default> Turns<T> {
    /// A new stream.
    pub(crate) fn open(&mut self, id: Id, priority: Priority) {
        let stream = Stream {
            shell: T::default(),
            priority,
            waits: false,
            handed: 0,
            sent: 0,
            pace: Pace::default(),
            progress: Pace::default(),
            stands: false,
            gone: false,
        };
        self.streams.insert(id, stream);
    }

    /// What the shell keeps for a stream that has not left.
    pub(crate) fn shell(&mut self, id: Id) -> Option<&mut T> {
        self.streams.get_mut(&id).filter(|stream| !stream.gone).map(|stream| &mut stream.shell)
    }

    /// The same of all.
    pub(crate) fn shells(&self) -> impl Iterator<Item = &T> {
        self.streams.values().map(|stream| &stream.shell)
    }

    /// Its priority, which counts from here on; before it asks for the first time.
    pub(crate) fn set(&mut self, id: Id, priority: Priority) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.waits && stream.handed == 0) {
            stream.priority = priority;
        }
    }

    /// Whether it may hand over `bytes` now. If not, `poll` names it when it may.
    pub(crate) fn ask(&mut self, id: Id, bytes: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        let priority = stream.priority;
        let urgency = usize::from(priority.urgency);
        if self.waiting == 0 && self.handed[..=urgency].iter().sum::<u64>() < BUDGET {
            self.hand(id, bytes);
            return true;
        }
        let queue = &mut self.queues[urgency];
        if !stream.waits {
            stream.waits = true;
            self.waiting += 1;
            if priority.incremental {
                queue.incremental.push_back(id);
            } else {
                queue.whole.insert(id);
            }
        }
        if self.called == Some(id) {
            self.called = None;
        }
        if self.next() != Some(id) {
            return false;
        }
        self.unqueue(id, priority);
        self.queues[urgency].incremental_next = !priority.incremental;
        self.hand(id, bytes);
        true
    }

    fn hand(&mut self, id: Id, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.waits = false;
        stream.handed += bytes;
        if !stream.stands {
            self.handed[usize::from(stream.priority.urgency)] += bytes;
        }
    }

    /// `bytes` of it have left.
    pub(crate) fn sent(&mut self, id: Id, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let handed = &mut self.handed[usize::from(stream.priority.urgency)];
        if std::mem::take(&mut stream.stands) {
            *handed += stream.handed;
        }
        *handed -= bytes;
        stream.handed -= bytes;
        stream.sent += bytes;
        if stream.gone && stream.handed == 0 {
            self.streams.remove(&id);
        }
    }

    /// It will ask no more: its answer is complete, or was given up.
    pub(crate) fn leave(&mut self, id: Id) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.gone = true;
        let (priority, done) = (stream.priority, stream.handed == 0);
        if std::mem::take(&mut stream.waits) {
            self.unqueue(id, priority);
        }
        if self.called == Some(id) {
            self.called = None;
        }
        if done {
            self.streams.remove(&id);
        }
    }

    /// Who is to ask again, once.
    pub(crate) fn poll(&mut self) -> Option<Id> {
        let next = self.next().filter(|next| self.called != Some(*next))?;
        self.called = Some(next);
        Some(next)
    }

    /// Whether there are streams.
    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Streams whose peer takes too little of what was handed over for them, and whether they could still be ended by
    /// themselves: the h2 layer alone has what is left of the others. To be called from time to time while the socket
    /// takes what it is given; `poll` may name someone then.
    pub(crate) fn stalled(&mut self, now: Instant, floor: Floor) -> Vec<(Id, bool)> {
        let slow = self.streams.iter_mut().filter_map(|(id, stream)| {
            let waits = stream.handed > 0;
            if stream.progress.handle(now, STANDS, waits, stream.sent) && !stream.stands {
                stream.stands = true;
                self.handed[usize::from(stream.priority.urgency)] -= stream.handed;
            }
            let slow = stream.pace.handle(now, floor, waits, stream.sent);
            slow.then_some((*id, !stream.gone))
        });
        slow.collect()
    }

    /// The most urgent one that waits, if there is room for it. If not, there is none for the less urgent.
    fn next(&self) -> Option<Id> {
        if self.waiting == 0 {
            return None;
        }
        let mut handed = 0;
        for (queue, more) in self.queues.iter().zip(self.handed) {
            handed += more;
            if let Some(id) = queue.first() {
                return (handed < BUDGET).then_some(id);
            }
        }
        None
    }

    fn unqueue(&mut self, id: Id, priority: Priority) {
        self.waiting -= 1;
        let queue = &mut self.queues[usize::from(priority.urgency)];
        if !priority.incremental {
            queue.whole.remove(&id);
        } else if queue.incremental.front() == Some(&id) {
            queue.incremental.pop_front();
        } else {
            queue.incremental.retain(|other| *other != id);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests choose their own begin of time")]
mod tests {
    use super::*;
    use std::time::Duration;

    const PIECE: u64 = 32 << 10;

    /// Streams with so many pieces each; what the h2 layer is handed leaves at once, in order. Who was served, piece by
    /// piece.
    fn order(streams: &[(u8, bool, u64)]) -> Vec<Id> {
        let mut turns = Turns::<()>::default();
        let mut left: BTreeMap<Id, u64> = BTreeMap::new();
        // The budget is full when they come.
        turns.open(1000, Priority { urgency: 0, incremental: false });
        for _ in 0..BUDGET / PIECE {
            assert!(turns.ask(1000, PIECE));
        }
        for (id, &(urgency, incremental, pieces)) in streams.iter().enumerate() {
            turns.open(id as Id, Priority { urgency, incremental });
            assert!(!turns.ask(id as Id, PIECE));
            left.insert(id as Id, pieces);
        }
        let mut pipe: VecDeque<Id> = (0..BUDGET / PIECE).map(|_| 1000).collect();
        let mut served = Vec::new();
        while let Some(sent) = pipe.pop_front() {
            turns.sent(sent, PIECE);
            while let Some(called) = turns.poll() {
                let left = left.get_mut(&called).unwrap();
                while *left > 0 && turns.ask(called, PIECE) {
                    *left -= 1;
                    served.push(called);
                    pipe.push_back(called);
                }
                if *left == 0 {
                    turns.leave(called);
                }
            }
        }
        turns.leave(1000);
        assert!(turns.is_empty() && turns.handed.iter().all(|&handed| handed == 0));
        assert!(left.values().all(|&left| left == 0), "all were served: {left:?}");
        served
    }

    #[test]
    fn the_urgent_go_first_the_whole_in_order_the_incremental_in_turns() {
        assert_eq!(order(&[(3, false, 3), (3, false, 2), (1, false, 1)]), [2, 0, 0, 0, 1, 1]);
        assert_eq!(order(&[(3, true, 3), (3, true, 2), (3, true, 1)]), [0, 1, 2, 0, 1, 0]);
        assert_eq!(order(&[(3, false, 2), (3, true, 2), (3, false, 2)]), [0, 1, 0, 1, 2, 2]);
        assert_eq!(order(&[(7, true, 1), (0, false, 6), (7, false, 1)]), [1, 1, 1, 1, 1, 1, 2, 0]);
    }

    #[test]
    fn room_is_counted_by_urgency_and_nobody_is_forgotten() {
        let mut turns = Turns::<()>::default();
        let at = |urgency| Priority { urgency, incremental: false };
        turns.open(1, at(3));
        turns.open(2, at(3));
        assert!(turns.ask(1, BUDGET));
        assert!(!turns.ask(1, 1) && !turns.ask(2, 1));
        assert_eq!(turns.poll(), None, "there is no room");
        turns.open(3, at(1));
        assert!(turns.ask(3, 10), "what is less urgent takes no room from it");
        turns.sent(1, BUDGET / 2);
        assert_eq!(turns.poll(), Some(1));
        assert_eq!(turns.poll(), None, "named once");
        // It goes away instead of asking.
        turns.leave(1);
        assert_eq!(turns.poll(), Some(2));
        // Another one was quicker, and it must be named again.
        turns.open(4, at(2));
        assert!(turns.ask(4, BUDGET));
        assert!(!turns.ask(2, 1));
        assert_eq!(turns.poll(), None);
        turns.sent(4, BUDGET);
        assert_eq!(turns.poll(), Some(2));
        assert!(turns.ask(2, 1));
        for id in [2, 3, 4] {
            turns.leave(id);
        }
        turns.sent(1, BUDGET / 2);
        turns.sent(2, 1);
        turns.sent(3, 10);
        assert!(turns.is_empty() && turns.handed == [0; URGENCIES]);
    }

    #[test]
    fn streams_that_stand_still_are_found() {
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let floor = Floor { timeout: Duration::from_secs(10), bytes: 100 };
        let mut turns = Turns::<()>::default();
        for id in 0..4 {
            turns.open(id, Priority::default());
        }
        for id in 0..3 {
            assert!(turns.ask(id, 1000));
        }
        turns.leave(2);
        assert_eq!(turns.stalled(at(0), floor), []);
        turns.sent(0, 100);
        assert_eq!(turns.stalled(at(9), floor), []);
        assert_eq!(turns.stalled(at(10), floor), [(1, true), (2, false)]);
        turns.leave(1);
        turns.sent(1, 1000);
        turns.sent(2, 1000);
        assert_eq!(turns.stalled(at(20), floor), [(0, true)]);
    }

    #[test]
    fn what_stands_still_takes_no_room() {
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let floor = Floor { timeout: Duration::from_secs(60), bytes: 100 };
        let mut turns = Turns::<()>::default();
        for id in 0..3 {
            turns.open(id, Priority::default());
        }
        assert!(turns.ask(0, BUDGET - 1) && turns.ask(1, 1));
        assert!(!turns.ask(2, 10));
        for second in 0..2 {
            assert_eq!(turns.stalled(at(second), floor), []);
            assert_eq!(turns.poll(), None, "it may yet go on");
        }
        assert_eq!(turns.stalled(at(2), floor), []);
        assert_eq!(turns.poll(), Some(2));
        assert!(turns.ask(2, 10));
        // Of one more is there, which does not count either; the other goes on, and counts again.
        assert!(turns.ask(1, BUDGET));
        turns.sent(0, 1);
        assert_eq!(turns.handed[3], BUDGET - 2 + 10);
        for (id, bytes) in [(0, BUDGET - 2), (1, BUDGET + 1), (2, 10)] {
            turns.leave(id);
            turns.sent(id, bytes);
        }
        assert!(turns.is_empty() && turns.handed == [0; URGENCIES]);
    }
}
