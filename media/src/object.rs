//! The growing object: a body that only grows, chunk by chunk, until it is complete or has failed.
//!
//! One [`Writer`] appends; any number of [`Reader`]s follow, each at its own offset, and are woken by the
//! bytes themselves. A reader never holds a writer back. A writer that is dropped before
//! [`Writer::finish`] leaves a failed object, so that no short body can pass for a whole one.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Whether more bytes will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The writer may append more.
    Growing,
    /// The length is final.
    Complete,
    /// The writer gave up: what is there is not the whole body.
    Failed,
}

/// How far an object has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes so far.
    pub len: u64,
    /// Whether that is all.
    pub end: End,
}

/// The body broke off before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("object failed after {len} bytes")]
pub struct Broken {
    /// Bytes that had arrived.
    pub len: u64,
}

/// A shared handle on a growing body. Cloning is cheap.
#[derive(Clone)]
pub struct Object(Arc<Mutex<State>>);

struct State {
    /// Goes when the last handle on the object does.
    _attached: Option<Arc<dyn Send + Sync>>,
    /// Each chunk with the offset of its first byte.
    chunks: Vec<(u64, Bytes)>,
    progress: Progress,
    /// Readers that wait for the next change, and which change that is: a waker is only ever in the list
    /// of the generation it was put in, and the whole list leaves at once.
    waiting: Vec<Waker>,
    generation: u64,
}

/// The one place that appends. Dropping it without [`Writer::finish`] fails the object.
#[derive(Debug)]
pub struct Writer(Object);

impl Object {
    /// An empty object that grows, and its writer.
    pub fn growing() -> (Writer, Object) {
        let object = Self::with(Vec::new(), Progress { len: 0, end: End::Growing }, None);
        (Writer(object.clone()), object)
    }

    /// As [`Object::growing`]; `attached` is dropped when the writer, every reader and every handle have gone: for those
    /// who keep account of what bodies hold.
    pub fn growing_with(attached: Arc<dyn Send + Sync>) -> (Writer, Object) {
        let object = Self::with(Vec::new(), Progress { len: 0, end: End::Growing }, Some(attached));
        (Writer(object.clone()), object)
    }

    /// An object that is whole from the start.
    pub fn complete(body: Bytes) -> Object {
        let len = body.len() as u64;
        let chunks = if body.is_empty() { Vec::new() } else { vec![(0, body)] };
        Self::with(chunks, Progress { len, end: End::Complete }, None)
    }

    fn with(chunks: Vec<(u64, Bytes)>, progress: Progress, attached: Option<Arc<dyn Send + Sync>>) -> Object {
        let state = State { _attached: attached, chunks, progress, waiting: Vec::new(), generation: 0 };
        Object(Arc::new(Mutex::new(state)))
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.lock().progress
    }

    /// Follows the bytes of `range`, waiting for those that have not come. An end of `u64::MAX` means
    /// "to the end". Reading past the end of a complete object just ends.
    pub fn read(&self, range: Range<u64>) -> Reader {
        Reader { object: self.clone(), next: range.start, end: range.end, slot: None }
    }

    /// Waits until `len` bytes are there or the object has ended, whichever comes first.
    pub fn wait_for(&self, len: u64) -> WaitFor {
        WaitFor { object: self.clone(), len, slot: None }
    }

    /// The whole body of a complete object in one piece (copied if it came in several); else `None`.
    pub fn to_bytes(&self) -> Option<Bytes> {
        let state = self.lock();
        if state.progress.end != End::Complete {
            return None;
        }
        if let [(_, only)] = state.chunks.as_slice() {
            return Some(only.clone());
        }
        Some(state.whole().into())
    }

    /// The bytes of `range` that are there, chunk by chunk, not copied.
    pub fn chunks(&self, range: Range<u64>) -> Vec<Bytes> {
        let state = self.lock();
        let (mut next, mut chunks) = (range.start, Vec::new());
        while next < range.end
            && let Some(chunk) = state.chunk_at(next, range.end)
        {
            next += chunk.len() as u64;
            chunks.push(chunk);
        }
        chunks
    }

    /// A copy of the whole body of a complete object, which holds no memory but its own: chunks may be pieces of larger
    /// buffers.
    pub fn to_vec(&self) -> Option<Vec<u8>> {
        let state = self.lock();
        (state.progress.end == End::Complete).then(|| state.whole())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let woken = {
            let mut state = self.lock();
            if state.progress.end != End::Growing {
                return;
            }
            change(&mut state);
            state.generation += 1;
            std::mem::take(&mut state.waiting)
        };
        for waker in woken {
            waker.wake();
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress { len, end } = self.progress();
        write!(f, "Object({len} bytes, {end:?})")
    }
}

impl Writer {
    /// Appends a chunk and wakes the readers. Empty chunks are ignored.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.0.change(|state| {
            let start = state.progress.len;
            state.progress.len += chunk.len() as u64;
            state.chunks.push((start, chunk));
        });
    }

    /// Declares the body whole.
    pub fn finish(self) {
        self.0.change(|state| state.progress.end = End::Complete);
    }

    /// A handle for readers.
    pub fn object(&self) -> &Object {
        &self.0
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.change(|state| state.progress.end = End::Failed);
    }
}

/// A place in a list of wakers: which generation's list, and where in it.
type Slot = Option<(u64, usize)>;

impl State {
    fn whole(&self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(self.progress.len as usize);
        for (_, chunk) in &self.chunks {
            whole.extend_from_slice(chunk);
        }
        whole
    }

    fn wait(&mut self, slot: &mut Slot, waker: &Waker) {
        match *slot {
            Some((generation, index)) if generation == self.generation => {
                self.waiting[index].clone_from(waker);
            }
            _ => {
                *slot = Some((self.generation, self.waiting.len()));
                self.waiting.push(waker.clone());
            }
        }
    }

    /// The bytes from `from` on that lie in one chunk, at most up to `end`.
    fn chunk_at(&self, from: u64, end: u64) -> Option<Bytes> {
        let index = self.chunks.partition_point(|(start, _)| *start <= from).checked_sub(1)?;
        let (start, chunk) = &self.chunks[index];
        let skip = (from - start) as usize;
        if skip >= chunk.len() {
            return None;
        }
        let take = usize::try_from(end - from).unwrap_or(usize::MAX).min(chunk.len() - skip);
        Some(chunk.slice(skip..skip + take))
    }
}

/// Reads a range of an [`Object`] as it grows; also an HTTP body. Dropping it costs nothing.
#[derive(Debug)]
pub struct Reader {
    object: Object,
    next: u64,
    end: u64,
    slot: Slot,
}

impl Reader {
    /// The next bytes, as far as one chunk goes; `None` at the end of the range or of the object.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if self.next >= self.end {
            return Poll::Ready(None);
        }
        let mut state = self.object.lock();
        if let Some(bytes) = state.chunk_at(self.next, self.end) {
            self.next += bytes.len() as u64;
            return Poll::Ready(Some(Ok(bytes)));
        }
        match state.progress.end {
            End::Complete => {
                self.end = self.next;
                Poll::Ready(None)
            }
            End::Failed => {
                self.end = self.next;
                Poll::Ready(Some(Err(Broken { len: state.progress.len })))
            }
            End::Growing => {
                state.wait(&mut self.slot, cx.waker());
                Poll::Pending
            }
        }
    }

    /// [`Reader::poll_next`] as a future; dropping it midway loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.poll_next(cx).map(|next| next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let Progress { len, end } = self.object.progress();
        self.next >= self.end || (end == End::Complete && self.next >= len)
    }

    /// Exact once the object is complete, or when the range is already wholly there.
    fn size_hint(&self) -> SizeHint {
        let Progress { len, end } = self.object.progress();
        if self.end <= len || end == End::Complete {
            SizeHint::with_exact(self.end.min(len).saturating_sub(self.next))
        } else {
            SizeHint::default()
        }
    }
}

/// Future of [`Object::wait_for`]: the progress at that moment; dropping it costs nothing.
#[derive(Debug)]
pub struct WaitFor {
    object: Object,
    len: u64,
    slot: Slot,
}

impl Future for WaitFor {
    type Output = Progress;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Progress> {
        let this = &mut *self;
        let mut state = this.object.lock();
        if state.progress.len >= this.len || state.progress.end != End::Growing {
            return Poll::Ready(state.progress);
        }
        state.wait(&mut this.slot, cx.waker());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(reader: &mut Reader, count: &Arc<Count>) -> Poll<Option<Result<Bytes, Broken>>> {
        let waker = Waker::from(count.clone());
        reader.poll_next(&mut Context::from_waker(&waker))
    }

    fn bytes(text: &'static str) -> Poll<Option<Result<Bytes, Broken>>> {
        Poll::Ready(Some(Ok(Bytes::from_static(text.as_bytes()))))
    }

    #[test]
    fn a_follower_gets_what_is_there_then_what_comes() {
        let (mut writer, object) = Object::growing();
        writer.push(Bytes::from_static(b"hello "));
        let count = Arc::new(Count::default());
        let mut reader = object.read(2..u64::MAX);
        assert_eq!(poll(&mut reader, &count), bytes("llo "));
        assert_eq!(poll(&mut reader, &count), Poll::Pending);
        assert_eq!(poll(&mut reader, &count), Poll::Pending);
        writer.push(Bytes::from_static(b"world"));
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "polled twice, woken once");
        assert_eq!(poll(&mut reader, &count), bytes("world"));
        writer.finish();
        assert_eq!(poll(&mut reader, &count), Poll::Ready(None));
        assert_eq!(object.to_bytes().unwrap(), "hello world");
    }

    #[test]
    fn what_is_attached_goes_with_the_last_handle() {
        let attached = Arc::new(Count::default());
        let (mut writer, object) = Object::growing_with(attached.clone());
        writer.push(Bytes::from_static(b"ab"));
        writer.push(Bytes::from_static(b"c"));
        assert_eq!(object.to_vec(), None);
        let reader = object.read(0..1);
        writer.finish();
        assert_eq!(object.to_vec().unwrap(), b"abc");
        drop(object);
        assert_eq!(Arc::strong_count(&attached), 2);
        drop(reader);
        assert_eq!(Arc::strong_count(&attached), 1);
    }

    #[test]
    fn a_dropped_writer_is_a_broken_body() {
        let (mut writer, object) = Object::growing();
        writer.push(Bytes::from_static(b"ab"));
        let count = Arc::new(Count::default());
        let mut reader = object.read(0..u64::MAX);
        assert_eq!(poll(&mut reader, &count), bytes("ab"));
        assert_eq!(poll(&mut reader, &count), Poll::Pending);
        drop(writer);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut reader, &count), Poll::Ready(Some(Err(Broken { len: 2 }))));
        assert_eq!(object.to_bytes(), None);
    }

    #[test]
    fn ranges_cross_chunks_and_stop() {
        let (mut writer, object) = Object::growing();
        for chunk in ["abc", "def", "ghi"] {
            writer.push(Bytes::from_static(chunk.as_bytes()));
        }
        let count = Arc::new(Count::default());
        let mut reader = object.read(2..7);
        assert_eq!(http_body::Body::size_hint(&reader).exact(), Some(5));
        for expected in ["c", "def", "g"] {
            assert_eq!(poll(&mut reader, &count), bytes(expected));
        }
        assert_eq!(poll(&mut reader, &count), Poll::Ready(None));
        let mut past = object.read(9..20);
        assert_eq!(poll(&mut past, &count), Poll::Pending);
        writer.finish();
        assert_eq!(poll(&mut past, &count), Poll::Ready(None));
    }
}
