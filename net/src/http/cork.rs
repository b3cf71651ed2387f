//! Gathers what an HTTP/2 connection writes in one turn, so that it leaves in few full TLS records.
//!
//! The h2 crate flushes after every DATA frame. Over TLS each frame (9 bytes and, as browsers have it, at most 16 KiB)
//! would be two records and a system call of its own. Here a flush only counts once the connection has no more to say
//! for now, that is when its future has been polled: no byte leaves later than at the end of that same poll.

use std::error::Error as StdError;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes held back at most: four full TLS records, as many as rustls takes in one write by default.
const MAX_GATHERED: usize = 64 << 10;

/// So that a few small writes are not moved about.
const FIRST_BYTES: usize = 8 << 10;

/// A stream whose writes are gathered, where that pays: over TLS. Without it they go straight through, since the kernel
/// takes many pieces at once without a copy of ours. Clones are handles on the same stream: one for the connection, one to drive it.
pub struct Corked<S>(Arc<Mutex<Inner<S>>>);

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<S> {
    stream: S,
    gathers: bool,
    gathered: BytesMut,
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    /// Gathers what is written to `stream` if it `gathers`, else passes it on.
    pub fn new(stream: S, gathers: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { stream, gathers, gathered: BytesMut::new() })))
    }

    /// Polls `connection`, which must have a clone of this stream, and sends what it has written. An error is that of the
    /// connection, or why nothing can be sent.
    pub fn poll_drive<C, E>(
        &self,
        connection: Pin<&mut C>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<dyn StdError + Send + Sync>>>
    where
        C: Future<Output = Result<(), E>>,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let polled = connection.poll(cx);
        match self.lock().poll_send(cx) {
            Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(Err(error.into())),
            _ => polled.map_err(Into::into),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        // Only the one task that drives the connection ever locks it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        // An idle connection keeps no buffer.
        self.gathered = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if !inner.gathers {
            return Pin::new(&mut inner.stream).poll_write_vectored(cx, bufs);
        }
        if inner.gathered.len() >= MAX_GATHERED {
            ready!(inner.poll_empty(cx))?;
        }
        let before = inner.gathered.len();
        if before == 0 {
            inner.gathered.reserve(FIRST_BYTES);
        }
        for buf in bufs {
            let room = MAX_GATHERED - inner.gathered.len();
            inner.gathered.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        Poll::Ready(Ok(inner.gathered.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        let inner = self.lock();
        inner.gathers || inner.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        // What is gathered is sent by `poll_drive`.
        if inner.gathers { Poll::Ready(Ok(())) } else { Pin::new(&mut inner.stream).poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.poll_empty(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn drive<S: AsyncWrite + Unpin>(
        cork: &Corked<S>,
        mut connection: Pin<&mut impl Future<Output = io::Result<()>>>,
    ) -> io::Result<()> {
        let ended = std::future::poll_fn(|cx| cork.poll_drive(connection.as_mut(), cx)).await;
        ended.map_err(|error| *error.downcast().unwrap())
    }

    /// Counts the writes that reach it.
    struct Counting(tokio::io::DuplexStream, Arc<std::sync::atomic::AtomicUsize>);

    impl AsyncWrite for Counting {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// What the peer gets of `frames` flushed one by one, and in how many writes.
    async fn check(gathers: bool, frames: usize, frame_bytes: usize, pipe_bytes: usize) -> usize {
        let (near, mut far) = tokio::io::duplex(pipe_bytes);
        let writes = Arc::default();
        let cork = Corked::new(Counting(near, Arc::clone(&writes)), gathers);
        let mut io = cork.clone();
        let connection = async move {
            for number in 0..frames {
                io.write_all(&vec![number as u8; frame_bytes]).await?;
                io.flush().await?;
            }
            // As a connection that waits for the next request: what was written must leave all the same.
            std::future::pending::<io::Result<()>>().await
        };
        let mut connection = std::pin::pin!(connection);
        let mut got = vec![0; frames * frame_bytes];
        tokio::select! {
            ended = drive(&cork, connection.as_mut()) => panic!("ended: {ended:?}"),
            read = far.read_exact(&mut got) => assert_eq!(read.unwrap(), got.len()),
        }
        for (number, frame) in got.chunks(frame_bytes.max(1)).enumerate() {
            assert!(frame.iter().all(|&byte| byte == number as u8), "frame {number}");
        }
        writes.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[tokio::test]
    async fn frames_leave_together_and_none_stays_behind() {
        assert_eq!(check(true, 10, 1000, 1 << 20).await, 1);
        assert_eq!(check(false, 10, 1000, 1 << 20).await, 10);
        assert_eq!(check(true, 100, 16393, 8 << 20).await, 26, "in pieces of 64 KiB");
        // A peer that takes little at a time.
        for pipe_bytes in [1, 7, 1000, 70_000] {
            check(true, 20, 9000, pipe_bytes).await;
        }
    }

    #[tokio::test]
    async fn what_is_gathered_leaves_before_the_end_and_errors_are_heard() {
        let (near, mut far) = tokio::io::duplex(100);
        let cork = Corked::new(near, true);
        let mut io = cork.clone();
        let connection = async move {
            io.write_all(&[7; 1000]).await?;
            io.shutdown().await
        };
        let mut got = Vec::new();
        let mut connection = std::pin::pin!(connection);
        let (ended, read) = tokio::join!(drive(&cork, connection.as_mut()), far.read_to_end(&mut got));
        ended.unwrap();
        assert_eq!((read.unwrap(), got), (1000, vec![7; 1000]));

        let (near, far) = tokio::io::duplex(100);
        drop(far);
        let cork = Corked::new(near, true);
        let mut io = cork.clone();
        let connection = async move {
            io.write_all(&[7; 1000]).await?;
            std::future::pending::<io::Result<()>>().await
        };
        let mut connection = std::pin::pin!(connection);
        let ended = drive(&cork, connection.as_mut()).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
