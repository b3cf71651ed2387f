//! The streams of one h2 connection: [`Turns`] with the tasks that wait for theirs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use tokio::task::AbortHandle;

use super::patience::Floor;
use super::priority::Priority;
use super::turns::{Id, Turns};

/// What is handed to the h2 layer at once, at most: two full frames of 16 KiB, a quarter of the budget.
const PIECE_BYTES: usize = 32 << 10;

/// The streams of one connection. Shared by its tasks.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    turns: Turns<Task>,
    last: Id,
}

/// What runs a stream.
#[derive(Debug, Default)]
struct Task {
    handle: Option<AbortHandle>,
    /// It waits for its turn.
    waker: Option<Waker>,
}

impl Streams {
    /// A request came.
    pub(super) fn open(self: &Arc<Self>, priority: Priority) -> Place {
        let mut state = self.lock();
        state.last += 1;
        let id = state.last;
        state.turns.open(id, priority);
        Place { streams: self.clone(), id, priority }
    }

    /// The task of the stream that was opened last. The h2 layer asks for its service, then spawns it, in one go.
    pub(super) fn spawned(&self, task: AbortHandle) {
        let mut state = self.lock();
        let last = state.last;
        // It may have ended already.
        if let Some(opened) = state.turns.shell(last) {
            opened.handle = Some(task);
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().turns.is_empty()
    }

    /// Ends those streams whose peer takes nothing of them: how many, and whether all of them could be ended.
    pub(super) fn cut_stalled(&self, now: Instant, floor: Floor) -> (usize, bool) {
        let mut state = self.lock();
        let stalled = state.turns.stalled(now, floor);
        state.call();
        let mut all = true;
        for (id, alone) in &stalled {
            match state.turns.shell(*id).and_then(|task| task.handle.as_ref()) {
                Some(handle) if *alone => handle.abort(),
                _ => all = false,
            }
        }
        (stalled.len(), all)
    }

    /// Ends all: their connection is gone.
    pub(super) fn abort(&self) {
        self.lock().turns.shells().filter_map(|task| task.handle.as_ref()).for_each(AbortHandle::abort);
    }

    fn sent(&self, id: Id, bytes: u64) {
        let mut state = self.lock();
        state.turns.sent(id, bytes);
        state.call();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Wakes whose turn it is. Waking only puts a task into a queue.
    fn call(&mut self) {
        while let Some(id) = self.turns.poll() {
            if let Some(waker) = self.turns.shell(id).and_then(|task| task.waker.take()) {
                waker.wake();
            }
        }
    }
}

/// One stream's place among the others. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Place {
    streams: Arc<Streams>,
    id: Id,
    priority: Priority,
}

impl Place {
    /// What the answer's headers say of its priority; before its first piece.
    pub(super) fn answered(&self, headers: &HeaderMap) {
        let priority = self.priority.merged(headers);
        if priority != self.priority {
            self.streams.lock().turns.set(self.id, priority);
        }
    }

    /// A piece of `bytes`, taken from them, once it is this stream's turn. The piece says when it has left.
    pub(super) fn poll_piece(&self, bytes: &mut Bytes, waker: &Waker) -> Poll<Bytes> {
        let piece = bytes.len().min(PIECE_BYTES);
        let mut state = self.streams.lock();
        let granted = state.turns.ask(self.id, piece as u64);
        if !granted && let Some(task) = state.turns.shell(self.id) {
            task.waker = Some(waker.clone());
        }
        // There may be room for another.
        state.call();
        drop(state);
        if !granted {
            return Poll::Pending;
        }
        let piece = bytes.split_to(piece);
        Poll::Ready(Bytes::from_owner(Piece { bytes: piece, streams: self.streams.clone(), id: self.id }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        state.turns.leave(self.id);
        state.call();
    }
}

/// Bytes in the h2 layer's hands. It drops them when they have left, or when their stream is reset.
struct Piece {
    bytes: Bytes,
    streams: Arc<Streams>,
    id: Id,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.streams.sent(self.id, self.bytes.len() as u64);
    }
}
