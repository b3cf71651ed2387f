use crate::feed::Rejected;

/// Whose fault an error is: it alone decides what is logged and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What was sent cannot be served.
    Broadcaster,
    /// The way between POP and origin broke.
    Network,
    /// We broke a promise.
    Ours,
}

/// Why an origin cannot start, or a session ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port cannot be had.
    #[error(transparent)]
    Listen(#[from] net::Error),
    /// The broadcaster sent what cannot be served.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The relay was not FLV.
    #[error(transparent)]
    Flv(#[from] media::flv::Error),
    /// A newer session publishes the stream.
    #[error("taken over by a newer session")]
    TakenOver,
    /// An operator took the token back.
    #[error("the token was revoked")]
    Revoked,
    /// The picture is larger than the token allows.
    #[error("video of {width}x{height}: the token allows {limit} lines")]
    TooTall {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Of the shorter side.
        limit: u32,
    },
    /// The POP went away in the middle of the relay.
    #[error("relay broke: {0}")]
    Relay(String),
    /// What the broadcaster sends cannot be decoded at all.
    #[error("source: {0}")]
    Source(transcode::Error),
    /// Encoding failed.
    #[error("transcode: {0}")]
    Transcode(#[from] transcode::Error),
    /// The right to write the stream was not granted.
    #[error("not claimed: {0}")]
    NotClaimed(cluster::claim::Refusal),
    /// The session before would not let go.
    #[error("the session before did not end in time")]
    Busy,
    /// The origin is shutting down.
    #[error("origin is shutting down")]
    ShuttingDown,
    /// A task of ours panicked.
    #[error("publisher task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Rejected(_)
            | Error::Flv(_)
            | Error::TakenOver
            | Error::Revoked
            | Error::TooTall { .. }
            | Error::Source(_) => Fault::Broadcaster,
            Error::Relay(_) | Error::ShuttingDown | Error::NotClaimed(_) => Fault::Network,
            Error::Listen(_) | Error::Transcode(_) | Error::Busy | Error::Task(_) => Fault::Ours,
        }
    }
}
