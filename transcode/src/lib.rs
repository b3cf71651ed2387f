//! Turns the samples of one stream into a ladder of renditions: decodes the video once, scales each rung
//! from the next larger one, encodes the rungs beside one another, and writes CMAF boxes around what comes
//! out.
//!
//! It refuses to know about sockets, URLs, keys and manifests. It never drops a frame on its own account:
//! every source frame leaves every rung exactly once (of a rung with a lower frame rate, every so manieth), a frame that
//! cannot be decoded is stood in for by its neighbour and counted, and a consumer that is too slow makes the sender wait.
//!
//! Audio is copied by whoever packages it, but for Opus, MP3 and surround sound, which [`audio`] turns into AAC. So is video that is passed through:
//! [`copy`] says what of it goes into a file.
//!
//! [`start`] is the verb; read `job.rs` for the threads and queues behind it, [`timeline`] for the rule of
//! where segments begin, [`ladder`] for the choice of rungs and [`cmaf`] for the boxes.

pub mod audio;
mod captions;
pub mod cmaf;
pub mod config;
pub mod copy;
pub mod cost;
mod decode;
mod deinterlace;
mod draw;
pub mod encoders;
pub mod error;
mod job;
pub mod ladder;
mod libav;
pub mod metrics;
mod mix;
mod nal;
pub mod remux;
mod rung;
pub mod shed;
mod thinning;
pub mod thumbnails;
pub mod timeline;
mod trial;

pub use config::{Config, Deinterlace, Opus, Passthrough};
pub use error::{Closed, Error};
pub use job::{Event, Input, Job, Output, VideoSource, start};
pub use ladder::Rung;
pub use libav::Failure;
pub use metrics::Metrics;
pub use thumbnails::{Thumbnails, Tiles};
pub use timeline::segment_index;
pub use trial::try_encoders;
