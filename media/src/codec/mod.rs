//! Codec configuration records and the codec strings (RFC 6381) that manifests announce.
#![deny(clippy::disallowed_methods)]

pub mod aac;
pub mod av1;
pub mod avc;
mod bits;
pub mod hevc;
pub mod mp3;
pub mod opus;
mod string;
pub mod vp9;

use std::fmt;

use bytes::Bytes;

use crate::time::{FrameRate, Timescale};

pub use aac::AacConfig;
pub use avc::AvcConfig;
pub use mp3::Mp3Config;
pub use opus::OpusConfig;

/// Largest picture taken, in luma samples a side: level 6.2 of H.264 and HEVC ends at 8192 x 4320.
pub(crate) const MAX_SIDE: u32 = 8192;

/// Smallest picture taken, in luma samples a side.
pub(crate) const MIN_SIDE: u32 = 16;

/// A configuration record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{record}: {problem}")]
pub struct Invalid {
    /// Which record.
    pub record: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// The video codecs that broadcasters may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VideoCodec {
    /// H.264.
    Avc,
    /// H.265.
    Hevc,
    /// AV1.
    Av1,
    /// VP9.
    Vp9,
}

impl VideoCodec {
    /// All of them.
    pub const ALL: [VideoCodec; 4] = [VideoCodec::Avc, VideoCodec::Hevc, VideoCodec::Av1, VideoCodec::Vp9];

    /// As Enhanced RTMP v2 names it (ExVideoTagHeader, `VideoFourCc`).
    pub const fn fourcc(self) -> &'static str {
        match self {
            VideoCodec::Avc => "avc1",
            VideoCodec::Hevc => "hvc1",
            VideoCodec::Av1 => "av01",
            VideoCodec::Vp9 => "vp09",
        }
    }

    /// The codec of a FourCC, if it is taken.
    pub fn from_fourcc(fourcc: &[u8]) -> Option<VideoCodec> {
        VideoCodec::ALL.into_iter().find(|codec| codec.fourcc().as_bytes() == fourcc)
    }
}

impl fmt::Display for VideoCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VideoCodec::Avc => "H.264",
            VideoCodec::Hevc => "HEVC",
            VideoCodec::Av1 => "AV1",
            VideoCodec::Vp9 => "VP9",
        })
    }
}

/// The audio codecs that broadcasters may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AudioCodec {
    /// AAC.
    Aac,
    /// Opus.
    Opus,
    /// MP3.
    Mp3,
}

impl AudioCodec {
    /// All of them.
    pub const ALL: [AudioCodec; 3] = [AudioCodec::Aac, AudioCodec::Opus, AudioCodec::Mp3];

    /// As Enhanced RTMP v2 names it (ExAudioTagHeader, `AudioFourCc`).
    pub const fn fourcc(self) -> &'static str {
        match self {
            AudioCodec::Aac => "mp4a",
            AudioCodec::Opus => "Opus",
            AudioCodec::Mp3 => ".mp3",
        }
    }

    /// The codec of a FourCC, if it is taken.
    pub fn from_fourcc(fourcc: &[u8]) -> Option<AudioCodec> {
        AudioCodec::ALL.into_iter().find(|codec| codec.fourcc().as_bytes() == fourcc)
    }
}

/// What is known of a video track before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoConfig {
    /// Its codec.
    pub codec: VideoCodec,
    /// The configuration record as it came.
    pub record: Bytes,
    /// Width of the cropped picture, in samples.
    pub width: u32,
    /// Height of the cropped picture, in samples.
    pub height: u32,
    /// Sample aspect ratio; 1:1 where unspecified.
    pub sar: (u32, u32),
    /// From the stream itself, where it is there and sensible.
    pub frame_rate: Option<FrameRate>,
}

/// What a codec's headers say of its pictures.
pub(crate) struct Picture {
    width: u32,
    height: u32,
    sar: (u32, u32),
    frame_rate: Option<FrameRate>,
}

impl VideoConfig {
    /// Reads a configuration record. `None` if it does not say how large the pictures are: their first keyframe does
    /// ([`VideoConfig::from_keyframe`]). VP9's record never does, AV1's need not.
    pub fn parse(codec: VideoCodec, record: Bytes) -> Result<Option<VideoConfig>, Invalid> {
        let picture = match codec {
            VideoCodec::Avc => {
                let AvcConfig { record, width, height, sar, frame_rate } = AvcConfig::parse(record)?;
                return Ok(Some(VideoConfig { codec, record, width, height, sar, frame_rate }));
            }
            VideoCodec::Hevc => Some(hevc::picture(&record)?),
            VideoCodec::Av1 => av1::picture(&record)?,
            VideoCodec::Vp9 => {
                vp9::check(&record)?;
                None
            }
        };
        picture.map(|picture| Self::sized(codec, record, picture)).transpose()
    }

    /// The same where the record leaves it to the keyframe.
    pub fn from_keyframe(codec: VideoCodec, record: Bytes, keyframe: &[u8]) -> Result<VideoConfig, Invalid> {
        let picture = match codec {
            VideoCodec::Av1 => av1::sequence_header(keyframe),
            VideoCodec::Vp9 => vp9::frame_size(keyframe),
            VideoCodec::Avc | VideoCodec::Hevc => None,
        };
        let invalid = || Invalid { record: "keyframe", problem: format!("it has no {codec} header") };
        Self::sized(codec, record, picture.ok_or_else(invalid)?)
    }

    fn sized(codec: VideoCodec, record: Bytes, picture: Picture) -> Result<VideoConfig, Invalid> {
        let Picture { width, height, sar, frame_rate } = picture;
        let sides = MIN_SIDE..=MAX_SIDE;
        if !sides.contains(&width) || !sides.contains(&height) {
            let problem =
                format!("{codec} picture of {width}x{height} is outside {MIN_SIDE} to {MAX_SIDE} a side");
            return Err(Invalid { record: "video configuration", problem });
        }
        Ok(VideoConfig { codec, record, width, height, sar, frame_rate })
    }
}

/// What is known of an audio track before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AudioConfig {
    /// AAC.
    Aac(AacConfig),
    /// Opus.
    Opus(OpusConfig),
    /// MP3.
    Mp3(Mp3Config),
}

impl AudioConfig {
    /// Reads a configuration record.
    pub fn parse(codec: AudioCodec, record: Bytes) -> Result<AudioConfig, Invalid> {
        Ok(match codec {
            AudioCodec::Aac => AudioConfig::Aac(AacConfig::parse(record)?),
            AudioCodec::Opus => AudioConfig::Opus(OpusConfig::parse(record)?),
            AudioCodec::Mp3 => AudioConfig::Mp3(Mp3Config::parse(record)?),
        })
    }

    /// Its codec.
    pub fn codec(&self) -> AudioCodec {
        match self {
            AudioConfig::Aac(_) => AudioCodec::Aac,
            AudioConfig::Opus(_) => AudioCodec::Opus,
            AudioConfig::Mp3(_) => AudioCodec::Mp3,
        }
    }

    /// The record as it came.
    pub fn record(&self) -> &Bytes {
        match self {
            AudioConfig::Aac(config) => &config.record,
            AudioConfig::Opus(config) => &config.record,
            AudioConfig::Mp3(config) => &config.record,
        }
    }

    /// Its sample rate, in which its frames are timed without drift.
    pub fn timescale(&self) -> Timescale {
        match self {
            AudioConfig::Aac(config) => config.timescale(),
            AudioConfig::Opus(_) => opus::TIMESCALE,
            AudioConfig::Mp3(config) => config.timescale(),
        }
    }

    /// Channels, 1 to 8.
    pub fn channels(&self) -> u32 {
        match self {
            AudioConfig::Aac(config) => config.channels,
            AudioConfig::Opus(config) => config.channels,
            AudioConfig::Mp3(config) => config.channels,
        }
    }

    /// How many samples a frame holds, in ticks of [`AudioConfig::timescale`]; 0 if it is not understood.
    pub fn frame_samples(&self, frame: &[u8]) -> u32 {
        match self {
            AudioConfig::Aac(config) => config.frame_samples,
            AudioConfig::Opus(_) => opus::packet_samples(frame).unwrap_or(0),
            AudioConfig::Mp3(_) => mp3::packet_samples(frame),
        }
    }

    /// Such as `mp4a.40.2` (RFC 6381, 3.3), `opus` or `mp3`.
    pub fn codec_string(&self) -> String {
        match self {
            AudioConfig::Aac(config) => config.codec_string(),
            AudioConfig::Opus(_) => "opus".into(),
            AudioConfig::Mp3(_) => "mp3".into(),
        }
    }
}
