//! The vocabulary of what flows through Rooftop: names, time, samples, FLV tags, codec records, and
//! the growing object that carries media from the packager to the socket.
//!
//! It refuses to know about sockets, configuration, metrics and tasks: everything here is a value, and the
//! growing object is the one moving part, because it is the seam between packager, window, cache and socket.
//!
//! Read [`object`] first, then [`flv`] and [`time`].

pub mod captions;
pub mod codec;
pub mod event;
pub mod flv;
pub mod lately;
pub mod name;
pub mod object;
pub mod push;
pub mod range;
pub mod sample;
pub mod scte35;
pub mod time;

pub use name::{Epoch, RenditionId, SegmentNumber, StreamName};
pub use object::Object;
pub use sample::Sample;
pub use time::{Ticks, Timescale};
