//! A connection's stream with an eye on it: what came, what was taken, what is stuck.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::patience::Signs;
use crate::Stream;

/// What is known of a connection, by those who serve it. Each number has one writer; nobody waits for another.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    /// Bytes that came.
    received: AtomicU64,
    /// Bytes that the stream took.
    taken: AtomicU64,
    /// The last write found no room.
    blocked: AtomicBool,
    /// The last flush did not get rid of all: a TLS layer takes what it is given first.
    stuck: AtomicBool,
    /// Something was written and not yet flushed.
    unflushed: AtomicBool,
    /// The last read found nothing, so nothing hides in the TLS layer's buffer.
    drained: AtomicBool,
    /// Bytes came since the last request.
    partial: AtomicBool,
    requests: AtomicU64,
    /// Requests whose services or bodies are under way.
    busy: AtomicU32,
    /// Of those that ended: answered to the end, or given up by the peer.
    pub(super) finished: AtomicU32,
    pub(super) cancelled: AtomicU32,
}

impl Vitals {
    pub(super) fn request(&self) {
        self.requests.store(self.requests.load(Relaxed) + 1, Relaxed);
        self.partial.store(false, Relaxed);
        self.busy.fetch_add(1, Relaxed);
    }

    pub(super) fn answered(&self) {
        self.busy.fetch_sub(1, Relaxed);
    }

    /// As the timers want to know it.
    pub(super) fn signs(&self) -> Signs {
        Signs {
            busy: self.busy.load(Relaxed) > 0 || self.unflushed.load(Relaxed),
            requests: self.requests.load(Relaxed),
            blocked: self.blocked.load(Relaxed) || self.stuck.load(Relaxed),
            taken: self.taken.load(Relaxed),
        }
    }

    /// Whether the stream can be taken from HTTP/1's hands: all is said, and nothing more was heard.
    pub(super) fn at_rest(&self) -> bool {
        !self.signs().busy && !self.partial() && self.drained.load(Relaxed)
    }

    /// Whether a request has begun to come and has not arrived.
    pub(super) fn partial(&self) -> bool {
        self.partial.load(Relaxed)
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// A stream and what was read of it before.
pub(super) struct Io {
    stream: Stream,
    before: Bytes,
    vitals: Arc<Vitals>,
}

impl Io {
    pub(super) fn new(stream: Stream, vitals: Arc<Vitals>) -> Io {
        Io { stream, before: Bytes::new(), vitals }
    }

    /// Gives bytes back, to be read again.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.before.is_empty(), "what was given back is read first");
        self.before = bytes;
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.before.is_empty()
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.before.is_empty() {
            let bytes = this.before.len().min(buf.remaining());
            buf.put_slice(&this.before[..bytes]);
            this.before.advance(bytes);
            this.vitals.drained.store(false, Relaxed);
            this.vitals.partial.store(true, Relaxed);
            return Poll::Ready(Ok(()));
        }
        // The last of it went with its memory.
        this.before = Bytes::new();
        let filled = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let vitals = &this.vitals;
        vitals.drained.store(polled.is_pending(), Relaxed);
        let bytes = (buf.filled().len() - filled) as u64;
        if bytes > 0 {
            vitals.received.store(vitals.received.load(Relaxed) + bytes, Relaxed);
            vitals.partial.store(true, Relaxed);
        }
        polled
    }
}

impl Io {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let vitals = &self.vitals;
        vitals.unflushed.store(true, Relaxed);
        vitals.blocked.store(polled.is_pending(), Relaxed);
        if let Poll::Ready(Ok(bytes)) = &polled {
            vitals.taken.store(vitals.taken.load(Relaxed) + *bytes as u64, Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_ready() {
            self.vitals.unflushed.store(false, Relaxed);
        }
        self.vitals.stuck.store(polled.is_pending(), Relaxed);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
