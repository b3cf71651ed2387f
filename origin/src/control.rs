//! What the rest of a node may ask of its origin's streams: how they stand, to be told when that changes, and their end.

use std::time::Duration;

use cluster::record::StreamState;
use media::lately::Spread;
use media::{Epoch, RenditionId, SegmentNumber, StreamName};
use tokio::sync::watch;
use tracing::info;

use crate::Control;
use crate::hls::Kind;
use crate::hops::Hop;
use crate::live::{Picture, State};

/// How long the last session of a stream that is ended may take to publish what it brought.
const LET_GO: Duration = Duration::from_secs(10);

/// One stream, as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub stream: StreamName,
    /// Of the newest broadcast.
    pub state: State,
    /// When the timeline of the newest broadcast begins, milliseconds since 1970: with the stream's name it names the
    /// broadcast.
    pub anchor_unix_ms: i64,
    /// The newest run.
    pub epoch: Epoch,
    /// The `jti` of the token that the newest run was published with.
    pub token: Option<String>,
}

/// One rendition of a stream, as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Rung {
    /// Its name.
    pub id: RenditionId,
    /// RFC 6381.
    pub codec: String,
    /// What kind of track it is.
    pub kind: Kind,
    /// Bits per second: measured over what is listed, or as configured before a segment is whole.
    pub bitrate_bps: u64,
    /// Its newest segment.
    pub newest: Option<SegmentNumber>,
    /// Whether the newest segment has no media: the rung is shed, or the broadcaster is away.
    pub is_gap: bool,
    /// Until when there is media, milliseconds since 1970.
    pub until_unix_ms: Option<i64>,
}

impl Control {
    /// The renditions of a stream's newest run, largest first and audio last; `None` if it was not published here.
    pub fn ladder(&self, stream: &StreamName) -> Option<Vec<Rung>> {
        self.0.stream(stream)?.ladder()
    }

    /// The newest picture of a stream; `None` if there is none here.
    pub fn picture(&self, stream: &StreamName) -> Option<Picture> {
        self.0.stream(stream)?.newest_picture()
    }

    /// The streams that were published here and are remembered, by name.
    pub fn list(&self) -> Vec<Standing> {
        let mut listed: Vec<_> = self.0.streams().values().filter_map(|live| live.described()).collect();
        listed.sort_by(|a, b| a.stream.cmp(&b.stream));
        listed
    }

    /// What the frames of a stream took lately, hop by hop; `None` if it is not published here.
    pub fn took(&self, stream: &StreamName) -> Option<Vec<(Hop, Spread)>> {
        self.0.stream(stream).filter(|live| live.state() != State::Offline).map(|live| live.hops.took())
    }

    /// Changes whenever [`Control::list`] does, except for streams that are forgotten after their end.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.news.subscribe()
    }

    /// Ends the broadcast of `stream` without waiting for its broadcaster to come back, once its session is gone; revoke
    /// the token first. Nothing happens if another token's session has the stream by then.
    pub fn end(&self, stream: &StreamName, token: &str) {
        let Some(live) = self.0.stream(stream) else { return };
        let (shared, token) = (self.0.clone(), token.to_owned());
        self.0.tasks.spawn(async move {
            let ended = async {
                let writer = tokio::time::timeout(LET_GO, live.writer.clone().lock_owned()).await;
                let standing = live.described().filter(|standing| standing.token.as_deref() == Some(&token));
                let (Ok(writer), Some(standing)) = (writer, standing) else { return };
                if !matches!(standing.state, State::Interrupted(_)) || !live.end(standing.state) {
                    return;
                }
                drop(writer);
                shared.store.describe(live.name().as_str(), StreamState::Ended, None);
                info!(stream = %live.name(), "broadcast ended: an operator ended it");
                tokio::time::sleep(shared.config.retention).await;
                shared.forget_if(&live, |state| state == State::Ended);
            };
            tokio::select! {
                biased;
                () = shared.shutdown.cancelled() => {}
                () = ended => {}
            }
        });
    }
}
