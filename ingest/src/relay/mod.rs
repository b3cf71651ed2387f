//! The relay to the origin: what to keep ([`replay`], within a [`budget`]), whom to send it to ([`handover`]), what comes back ([`answer`]),
//! and the sockets that do it ([`client`], over connections that are shared).

pub mod answer;
pub mod budget;
pub mod client;
pub mod handover;
pub mod passed_over;
pub mod replay;
mod uplink;

/// The status with which a broadcaster is refused when the origin names no other.
pub const REJECTED: &str = "NetStream.Publish.Rejected";
