//! What a broadcast's life is told in: its states, and the events between them.
#![deny(clippy::disallowed_methods)]

use serde::{Deserialize, Serialize};

/// How a broadcast stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing was sent yet.
    Created,
    /// Its broadcaster sends.
    Live,
    /// Its broadcaster is away and may come back.
    Interrupted,
    /// It is over, for good.
    Ended,
    /// All of it is in the archive, to be played.
    Archived,
}

impl State {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Live => "live",
            State::Interrupted => "interrupted",
            State::Ended => "ended",
            State::Archived => "archived",
        }
    }

    /// All, in the order of a life.
    pub const ALL: [State; 5] =
        [State::Created, State::Live, State::Interrupted, State::Ended, State::Archived];
}

/// Why a broadcast ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndedBy {
    /// Somebody asked the API for it.
    Request,
    /// The broadcaster was away for longer than `origin.reconnect_grace`.
    Absence,
    /// The token expired before anything was sent.
    Expiry,
}

/// Something that happened to a broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The first media came.
    Started,
    /// The broadcaster is away.
    Interrupted,
    /// It is back.
    Resumed,
    /// The broadcast is over.
    Ended,
    /// All of it is in the archive.
    Archived,
}

impl Kind {
    /// All of them.
    pub fn all() -> Vec<Kind> {
        vec![Kind::Started, Kind::Interrupted, Kind::Resumed, Kind::Ended, Kind::Archived]
    }

    /// The `type` of the webhook.
    pub fn event_type(self) -> &'static str {
        match self {
            Kind::Started => "broadcast.started",
            Kind::Interrupted => "broadcast.interrupted",
            Kind::Resumed => "broadcast.resumed",
            Kind::Ended => "broadcast.ended",
            Kind::Archived => "broadcast.archived",
        }
    }
}
