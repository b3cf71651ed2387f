//! How one session of a stream gives way to the next while both are there: the one that publishes notes its frames, the
//! next one looks on until its own begin where those are, then claims the stream.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use media::time::Ticks;
use tokio::sync::watch;

use crate::feed::Frame;
use crate::overlap::{Print, Trail};
use crate::relay::unix_ms;

/// Sessions that may look on at once; further ones take the stream over as they come.
const MAX_HEIRS: usize = 4;

/// What the sessions of one stream share.
#[derive(Debug, Default)]
pub struct Succession {
    inner: Mutex<Inner>,
    /// Grows with everything that an heir may be waiting for.
    changed: watch::Sender<u64>,
    heirs: watch::Sender<usize>,
    /// Heirs that claim the stream and wait for the writer.
    turns: AtomicUsize,
    /// Keyed: nobody outside can make two frames look alike.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Inner {
    trail: Trail,
    /// The session that publishes.
    writing: Option<String>,
    /// It brings nothing more.
    ended: bool,
}

/// A session that looks on; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Heir(Arc<crate::live::Live>);

/// An heir that claims the stream, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<crate::live::Live>);

impl Succession {
    /// A session publishes from now on.
    pub(crate) fn writes(&self, session: &str) {
        self.change(|inner| (inner.writing, inner.ended) = (Some(session.into()), false));
    }

    /// It brings nothing more.
    pub(crate) fn ended(&self) {
        self.change(|inner| inner.ended = true);
    }

    /// It has let go.
    pub(crate) fn lets_go(&self) {
        self.change(|inner| (inner.writing, inner.ended) = (None, true));
    }

    /// Whether the session that publishes brings nothing more, or there is none.
    pub(crate) fn has_ended(&self) -> bool {
        let inner = self.lock();
        inner.ended || inner.writing.is_none()
    }

    /// What was noted.
    pub(crate) fn trail<T>(&self, look: impl FnOnce(&mut Trail) -> T) -> T {
        look(&mut self.lock().trail)
    }

    /// Notes a frame that was published at this place (90 kHz), or is about to be.
    pub(crate) fn note(&self, video: bool, frame: &FrameId, at: Ticks) {
        self.change(|inner| inner.trail.push(video, frame.print(at)));
    }

    /// What tells a frame from others.
    pub(crate) fn identify(&self, frame: &Frame) -> FrameId {
        let Frame { key, dts_ms, pts_ms, data, .. } = frame;
        FrameId { hash: self.hash(data), key: *key, dts_ms: *dts_ms, pts_ms: *pts_ms }
    }

    /// Grows with each frame, and when the session ends.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many sessions look on.
    pub(crate) fn heirs(&self) -> watch::Receiver<usize> {
        self.heirs.subscribe()
    }

    /// Whether a session of this origin has claimed the stream and waits for the writer.
    pub(crate) fn is_taken(&self) -> bool {
        self.turns.load(Ordering::Acquire) > 0
    }

    fn hash(&self, data: &Bytes) -> u64 {
        self.hasher.hash_one(&data[..])
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame without its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameId {
    hash: u64,
    key: bool,
    dts_ms: i64,
    pts_ms: i64,
}

impl FrameId {
    /// As it comes now.
    pub(crate) fn print(&self, at: Ticks) -> Print {
        let Self { hash, key, dts_ms, pts_ms } = *self;
        Print { hash, key, dts_ms, pts_ms, came_ms: unix_ms(), at }
    }
}

impl Heir {
    /// `session` may look on while another one publishes `live`; `None` if there is none, or too many look on.
    pub(crate) fn new(live: &Arc<crate::live::Live>, session: &str) -> Option<Heir> {
        let succession = &live.succession;
        if succession.lock().writing.as_ref().is_none_or(|writing| writing == session) {
            return None;
        }
        let counted = succession.heirs.send_if_modified(|heirs| {
            let room = *heirs < MAX_HEIRS;
            *heirs += usize::from(room);
            room
        });
        counted.then(|| Heir(live.clone()))
    }

    /// From the claim until the writer is had.
    pub(crate) fn turn(&self) -> Turn {
        self.0.succession.turns.fetch_add(1, Ordering::AcqRel);
        Turn(self.0.clone())
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        self.0.succession.heirs.send_modify(|heirs| *heirs -= 1);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.succession.turns.fetch_sub(1, Ordering::AcqRel);
    }
}
