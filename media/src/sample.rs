//! One coded frame or audio packet with its times.
#![deny(clippy::disallowed_methods)]

use bytes::Bytes;

use crate::time::Ticks;

/// One coded frame or audio packet. Times are ticks of its track's timescale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When it is to be decoded.
    pub dts: Ticks,
    /// When it is to be shown; may lie before `dts` only where the container allows negative offsets.
    pub pts: Ticks,
    /// How long it lasts, in ticks.
    pub duration: Ticks,
    /// Whether decoding can start here.
    pub key: bool,
    /// The coded bytes: length-prefixed NAL units for H.264, a raw frame for AAC.
    pub data: Bytes,
}
