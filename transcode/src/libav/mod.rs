//! The one place that speaks FFI: decoders, encoders, a scaler and a picture, each a safe owner of its
//! libav object.
//!
//! Everything above this module sees Rust types only. The wrappers here call `ffmpeg_next::ffi` rather than
//! the safe half of that crate, because refcounted frames, extradata, rate-control fields and left-over
//! options are not reachable there; they keep to fields that FFmpeg 5 to 8 share.
#![allow(unsafe_code)]

mod audio;
mod decoder;
mod encoder;
mod fields;
mod jpeg;
mod log;
mod options;
mod picture;
mod scaler;

pub(crate) use audio::{AudioDecoder, AudioEncoder, Decoded, can_recode};
pub(crate) use decoder::{Decoder, MAX_PIXELS};
pub(crate) use encoder::{Encoder, Settings};
pub(crate) use fields::Deinterlacer;
pub(crate) use jpeg::Jpeg;
pub(crate) use log::route_to_tracing;
pub(crate) use picture::Picture;
pub(crate) use scaler::Scaler;

use std::ffi::{CStr, c_char, c_int};

use ffmpeg_next::ffi;

/// A libav call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The function that failed.
    pub call: &'static str,
    /// Its (negative) return value.
    pub code: c_int,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text: [c_char; 128] = [0; 128];
        // SAFETY: the buffer is as long as stated; av_strerror always terminates it.
        let text = unsafe {
            ffi::av_strerror(self.code, text.as_mut_ptr(), text.len());
            CStr::from_ptr(text.as_ptr())
        };
        write!(f, "{}: {} ({})", self.call, text.to_string_lossy(), self.code)
    }
}

impl Failure {
    /// What a constructor that returns null means.
    fn out_of_memory(call: &'static str) -> Self {
        Self { call, code: ffi::AVERROR(ffi::ENOMEM) }
    }
}

/// Turns a libav return value into a result; non-negative values are success.
fn check(call: &'static str, code: c_int) -> Result<c_int, Failure> {
    if code < 0 { Err(Failure { call, code }) } else { Ok(code) }
}

const AGAIN: c_int = ffi::AVERROR(ffi::EAGAIN);

/// Maps "needs more input" and "nothing more will come" to `None`, for the receive half of the codec calls.
fn check_receive(call: &'static str, code: c_int) -> Result<Option<()>, Failure> {
    match code {
        AGAIN | ffi::AVERROR_EOF => Ok(None),
        code => check(call, code).map(|_| Some(())),
    }
}

/// Lengths cross the FFI as `int`; everything here is bounded far below that.
fn to_int(len: usize) -> c_int {
    c_int::try_from(len).unwrap_or(c_int::MAX)
}
