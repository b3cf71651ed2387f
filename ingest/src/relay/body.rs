//! The request body of a relay: pieces come through a bounded channel, so that backpressure leaves tags in the replay
//! buffer.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::mpsc;

/// Pieces on their way; each is about [`PIECE_BYTES`], or one larger tag.
const PIECES: usize = 4;

/// Large enough to fill a TLS record several times, small enough to leave the rest in the replay buffer.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// What the body is made of.
#[derive(Debug)]
pub(super) enum Piece {
    /// Bytes of it.
    Data(Bytes),
    /// Its end. A channel that closes without this resets the request: an origin must never take a torn body for a whole one.
    End,
}

/// The body's far end was dropped before it sent [`Piece::End`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("relay abandoned")]
pub(super) struct Abandoned;

/// The receiving end of the channel, as hyper wants it.
pub(super) struct RelayBody {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

/// A body and the way to fill it.
pub(super) fn channel() -> (mpsc::Sender<Piece>, RelayBody) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (sender, RelayBody { pieces, ended: false })
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => {
                self.ended = true;
                Some(Err(Abandoned))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
