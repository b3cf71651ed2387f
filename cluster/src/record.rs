//! What the store holds: records of nodes, streams and revocations, as JSON under keys that name them.
#![deny(clippy::disallowed_methods)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the keys of nodes begin with.
pub const NODES: &str = "nodes/";

/// What the keys of streams begin with.
pub const STREAMS: &str = "streams/";

/// What the keys of revocations begin with.
pub const REVOKED: &str = "revoked/";

/// What others use a node for. Fields that a newer version adds are left aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes broadcasters.
    Ingest,
    /// Takes streams.
    Origin,
    /// Caches in front of the origins.
    Shield,
    /// Caches near the viewers.
    Edge,
}

impl Role {
    /// As keys have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Ingest => "ingest",
            Role::Origin => "origin",
            Role::Shield => "shield",
            Role::Edge => "edge",
        }
    }
}

/// One role of a node that is there: the record goes with its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its `node.name`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where, `host:port`.
    pub address: String,
    /// Tells a process from the one before under the same name.
    pub instance: u64,
    /// What it carries, in tenths of a CPU; 0 where that has no meaning.
    #[serde(default)]
    pub capacity: u32,
    /// How much of that is taken.
    #[serde(default)]
    pub load: u32,
    /// It takes no new streams.
    #[serde(default)]
    pub draining: bool,
}

/// Where a broadcast stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamState {
    /// Its broadcaster sends.
    #[default]
    Live,
    /// Its broadcaster is away, and may come back.
    Interrupted,
    /// It is over; what it left can still be watched.
    Ended,
}

/// Who writes a stream. It stays when its owner goes: the next epoch must be higher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// The origin's name.
    pub owner: String,
    /// Which process of that name.
    pub instance: u64,
    /// Where it is.
    pub address: String,
    /// The epoch that it writes.
    pub epoch: u64,
    /// The highest epoch that it may begin without asking the store.
    pub reserved: u64,
    /// The broadcaster's session.
    pub session: String,
    /// Where the broadcast stands.
    #[serde(default)]
    pub state: StreamState,
    /// The broadcast, as far as the owner has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<Line>,
    /// When this was written, unix milliseconds.
    #[serde(default)]
    pub updated: i64,
}

/// What a broadcast must not lose with its origin: its timeline's beginning and how often it broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The wall clock at one moment of the timeline, unix milliseconds.
    pub anchor_unix_ms: i64,
    /// That moment, 90 kHz.
    pub anchor_ticks: i64,
    /// Discontinuities so far: where the discontinuity sequence goes on.
    pub breaks: u64,
}

/// A token, or all of a stream, taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The token with this `jti`.
    Id(String),
    /// All tokens of this stream that were issued up to then.
    Stream(String),
}

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRecord {
    /// What.
    pub which: Which,
    /// Since when, unix seconds.
    pub at: u64,
    /// From when on no token that it is about can still be valid, unix seconds.
    pub until: u64,
}

impl NodeRecord {
    /// Where it is kept.
    pub fn key(&self) -> String {
        node_key(self.role, &self.name)
    }
}

/// Where the record of a node is kept.
pub fn node_key(role: Role, name: &str) -> String {
    format!("{NODES}{}/{name}", role.as_str())
}

/// Where the record of a stream is kept.
pub fn stream_key(stream: &str) -> String {
    format!("{STREAMS}{stream}")
}

impl RevokedRecord {
    /// Where it is kept.
    pub fn key(&self) -> String {
        match &self.which {
            Which::Id(id) => format!("{REVOKED}id/{id}"),
            Which::Stream(stream) => format!("{REVOKED}stream/{stream}"),
        }
    }
}

/// As the store holds it.
pub fn text(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("records are plain data")
}

/// What the store holds; the error names the key.
pub fn read<T: DeserializeOwned>(key: &str, value: &str) -> Result<T, String> {
    serde_json::from_str(value).map_err(|error| format!("{key:?} holds no record of its kind: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_newer_and_older_versions_are_read() {
        let value =
            r#"{"owner":"o1","instance":7,"address":"h:1","epoch":5,"reserved":9,"session":"s","colour":1}"#;
        let record: StreamRecord = read("streams/a", value).unwrap();
        assert_eq!((record.state, record.line, record.updated), (StreamState::Live, None, 0));
        assert_eq!(read::<StreamRecord>("streams/a", &text(&record)), Ok(record));
        let error = read::<NodeRecord>("nodes/origin/x", "{}").unwrap_err();
        assert!(error.starts_with("\"nodes/origin/x\" holds no record"), "{error}");
    }
}
