//! The body of an answer on its way: the service's own, or a line of ours; whole on h1, in pieces and in turns on h2.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::io::Vitals;
use super::streams::Place;

/// Counts a request as under way for as long as it lives.
#[derive(Debug)]
pub(super) struct Busy {
    vitals: Arc<Vitals>,
    /// Whether the peer got what it asked for, or would have but for us.
    finished: bool,
}

impl Busy {
    pub(super) fn new(vitals: Arc<Vitals>) -> Busy {
        vitals.request();
        Busy { vitals, finished: false }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let count = if self.finished { &self.vitals.finished } else { &self.vitals.cancelled };
        count.fetch_add(1, Relaxed);
        self.vitals.answered();
    }
}

pin_project! {
    /// The body of an answer.
    pub(super) struct Answer<B> {
        #[pin]
        body: Option<B>,
        // Ours, or what of the service's last chunk has not had its turn.
        chunk: Bytes,
        // On h2.
        place: Option<Place>,
        busy: Busy,
    }
}

impl<B: Body<Data = Bytes>> Answer<B> {
    pub(super) fn service(body: B, place: Option<Place>, mut busy: Busy) -> Self {
        busy.finished = body.is_end_stream();
        Self { body: Some(body), chunk: Bytes::new(), place, busy }
    }

    pub(super) fn own(text: &'static str, place: Option<Place>, busy: Busy) -> Self {
        Self { body: None, chunk: Bytes::from_static(text.as_bytes()), place, busy }
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if this.chunk.is_empty() {
            let frame = match this.body.as_mut().as_pin_mut() {
                None => None,
                Some(body) => match body.poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(frame) => frame,
                },
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => *this.chunk = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                // An error of ours is no whim of the peer's.
                end => {
                    this.busy.finished = true;
                    return Poll::Ready(end);
                }
            }
        }
        let piece = match this.place {
            Some(place) if !this.chunk.is_empty() => match place.poll_piece(this.chunk, cx.waker()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece,
            },
            _ => std::mem::take(this.chunk),
        };
        if this.chunk.is_empty() && this.body.as_ref().as_pin_ref().is_none_or(|body| body.is_end_stream()) {
            this.busy.finished = true;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunk.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let chunk = self.chunk.len() as u64;
        let Some(body) = &self.body else { return SizeHint::with_exact(chunk) };
        let mut hint = body.size_hint();
        if chunk > 0 {
            // Upper first: it must not be below lower.
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + chunk);
            }
            hint.set_lower(hint.lower() + chunk);
        }
        hint
    }
}
