//! The body of an answer: nothing, bytes that are there, or an object that may still grow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use media::object::{Broken, Reader};
use prometheus_client::metrics::counter::Counter;

use crate::push::Told;
use crate::sent::Passing;

/// Body of an answer. Bytes count as served when the connection takes them. An object that breaks ends it with an error, so
/// that the client sees a reset (h2) or a close without the last chunk (h1).
#[derive(Debug)]
pub(crate) struct Body {
    content: Content,
    served: Counter,
}

#[derive(Debug)]
enum Content {
    Empty,
    Whole(Bytes),
    /// With the bytes that are still to come, where their number was announced, and who is told when parts have left.
    Growing {
        reader: Reader,
        left: Option<u64>,
        passing: Option<Box<Passing>>,
    },
    Push(Told),
}

impl Body {
    pub(crate) fn empty() -> Body {
        Body { content: Content::Empty, served: Counter::default() }
    }

    pub(crate) fn whole(bytes: Bytes, served: &Counter) -> Body {
        Body { content: Content::Whole(bytes), served: served.clone() }
    }

    pub(crate) fn push(told: Told, served: &Counter) -> Body {
        Body { content: Content::Push(told), served: served.clone() }
    }

    /// `length` is what the header says, if it does.
    pub(crate) fn growing(
        reader: Reader,
        length: Option<u64>,
        passing: Option<Box<Passing>>,
        served: &Counter,
    ) -> Body {
        Body { content: Content::Growing { reader, left: length, passing }, served: served.clone() }
    }

    /// What was handed over has left: who asks for more, or needs the body no more, has passed it on to the connection.
    fn left(&mut self) {
        if let Content::Growing { passing: Some(passing), .. } = &mut self.content {
            passing.leave(now_us);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.left();
    }
}

/// Microseconds since 1970.
fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.left();
        let bytes = match &mut self.content {
            Content::Empty => return Poll::Ready(None),
            Content::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                self.content = Content::Empty;
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                bytes
            }
            Content::Push(told) => match told.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(bytes)) => bytes,
            },
            Content::Growing { reader, left, passing } => match reader.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(broken))) => return Poll::Ready(Some(Err(broken))),
                Poll::Ready(Some(Ok(bytes))) => {
                    if let Some(left) = left {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    if let Some(passing) = passing {
                        passing.hand(bytes.len() as u64);
                    }
                    bytes
                }
            },
        };
        self.served.inc_by(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Growing { reader, .. } => reader.is_end_stream(),
            Content::Push(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Growing { left: Some(left), .. } => SizeHint::with_exact(*left),
            // An object that has just become complete would say its length here, after the headers were chosen.
            Content::Growing { left: None, .. } | Content::Push(_) => SizeHint::default(),
        }
    }
}
