//! RTMP: chunks to messages ([`chunk`]), messages to a session's events ([`session`]), and the sockets around them.

pub mod amf;
pub mod chunk;
pub mod connection;
pub mod rate;
pub mod session;

pub use session::{Event, Session};
