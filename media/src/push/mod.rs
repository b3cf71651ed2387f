//! The push: how one tier hands the objects of a stream to the tier below as they are made, over one long-lived request.
//!
//! [`frame`] is what goes over the wire, [`hub`] what a publisher has to say to its subscribers. Both know names, header
//! fields and bytes, and nothing of what they mean. `docs/push.md` has the wire format in tables.

pub mod frame;
pub mod hub;

use std::time::Duration;

pub use frame::{Bad, Decoder, Frame, Head, Name};
pub use hub::{Hub, Subscriber};

/// The media type of a push.
pub const MEDIA_TYPE: &str = "application/vnd.rooftop.push";

/// Where pushes are asked for: `GET /push/live/demo` is the push of what is named `/live/demo/...`.
pub const PATH_PREFIX: &str = "/push";

/// How often a publisher says that it is still there: often enough that a lost push is noticed well before the players
/// of it have played what they hold (three parts or more).
pub const PING_EVERY: Duration = Duration::from_millis(500);
