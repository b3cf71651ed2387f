//! The relay to the origin: what to keep ([`replay`]), whom to send it to ([`handover`]), what comes back ([`answer`]),
//! and the sockets that do it ([`client`]).

pub mod answer;
mod body;
pub mod client;
pub mod handover;
pub mod replay;

/// The status with which a broadcaster is refused when the origin names no other.
pub const REJECTED: &str = "NetStream.Publish.Rejected";
