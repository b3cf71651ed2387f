//! What the bodies of audio and video tags mean.
#![deny(clippy::disallowed_methods)]

use bytes::{Buf, Bytes};

use super::error::{audio_codec_name, fourcc_name, video_codec_name};
use super::tracks::{Header, Packet};
use super::{Error, Tag};
use crate::codec::{AudioCodec, VideoCodec};

/// What a video tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Video {
    /// A codec's configuration record, such as an `AVCDecoderConfigurationRecord`.
    Config {
        /// Whose.
        codec: VideoCodec,
        /// The record.
        record: Bytes,
    },
    /// One access unit: length-prefixed NAL units, or a temporal unit of OBUs, or a VP9 frame.
    Frame {
        /// What it is coded in.
        codec: VideoCodec,
        /// Decoding can start here.
        key: bool,
        /// Presentation minus decoding time; negative offsets occur in the wild.
        composition_ms: i32,
        /// What presentation is later than the milliseconds say (Enhanced RTMP, `TimestampOffsetNano`), below 1000000.
        nanos: u32,
        /// The access unit.
        data: Bytes,
    },
    /// End of sequence, a command, metadata, or other tracks only: nothing to decode.
    Nothing,
}

/// What an audio tag means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audio {
    /// A codec's configuration record, such as an `AudioSpecificConfig`.
    Config {
        /// Whose.
        codec: AudioCodec,
        /// The record.
        record: Bytes,
    },
    /// One coded frame.
    Frame {
        /// What it is coded in.
        codec: AudioCodec,
        /// The frame.
        data: Bytes,
    },
    /// End of sequence, channel layout, or other tracks only: nothing to decode.
    Nothing,
}

impl Tag {
    /// Reads a video body.
    pub fn video(&self) -> Result<Video, Error> {
        let mut body = self.data.clone();
        let len = body.len();
        let short = Error::Short { what: "video tag", len };
        if len == 0 {
            return Err(short);
        }
        let first = body.get_u8();
        if first & 0x80 != 0 {
            return self.enhanced_video(first);
        }
        let frame_type = first >> 4;
        let codec = match first & 0x0F {
            7 => VideoCodec::Avc,
            // Not in any specification, but what encoders sent for HEVC before there was Enhanced RTMP.
            12 => VideoCodec::Hevc,
            id => return Err(Error::UnsupportedCodec { track: "video", codec: video_codec_name(id) }),
        };
        if body.len() < 4 {
            return Err(short);
        }
        let packet_type = body.get_u8();
        let composition_ms = sign_extend_24(body.get_uint(3) as u32);
        match (packet_type, frame_type) {
            (0, _) => Ok(Video::Config { codec, record: body }),
            (1, 5) => Ok(Video::Nothing),
            (1, _) => {
                let key = frame_type == 1;
                Ok(Video::Frame { codec, key, composition_ms, nanos: 0, data: body })
            }
            _ => Ok(Video::Nothing),
        }
    }

    /// Reads an audio body.
    pub fn audio(&self) -> Result<Audio, Error> {
        let mut body = self.data.clone();
        let len = body.len();
        if len == 0 {
            return Err(Error::Short { what: "audio tag", len });
        }
        let codec = AudioCodec::Aac;
        let format = body.get_u8() >> 4;
        match format {
            // The second is of 8 kHz. MP3 has no configuration: each frame says what it is.
            2 | 14 => Ok(Audio::Frame { codec: AudioCodec::Mp3, data: body }),
            9 => self.enhanced_audio(),
            10 if body.is_empty() => Err(Error::Short { what: "AAC tag", len }),
            10 => match body.get_u8() {
                0 => Ok(Audio::Config { codec, record: body }),
                _ => Ok(Audio::Frame { codec, data: body }),
            },
            _ => Err(Error::UnsupportedCodec { track: "audio", codec: audio_codec_name(format) }),
        }
    }

    /// ExVideoTagHeader and ExVideoTagBody.
    fn enhanced_video(&self, first: u8) -> Result<Video, Error> {
        const COMMAND: u8 = 5;
        let header = Header::read(self)?;
        let frame_type = first >> 4 & 7;
        if frame_type == COMMAND && header.packet_type != 4 {
            return Ok(Video::Nothing);
        }
        let Some(Packet { packet_type, fourcc, mut body }) = header.first_track()? else {
            return Ok(Video::Nothing);
        };
        if !matches!(packet_type, 0 | 1 | 3) {
            // End of sequence, colour metadata, and what later versions may add.
            return Ok(Video::Nothing);
        }
        let codec = VideoCodec::from_fourcc(&fourcc)
            .ok_or_else(|| Error::UnsupportedCodec { track: "video", codec: fourcc_name(&fourcc) })?;
        let mut composition_ms = 0;
        match packet_type {
            0 => return Ok(Video::Config { codec, record: body }),
            // CodedFrames: these two reorder, so their frames say when they are shown.
            1 if matches!(codec, VideoCodec::Avc | VideoCodec::Hevc) => {
                if body.len() < 3 {
                    return Err(Error::Short { what: "video tag", len: self.data.len() });
                }
                composition_ms = sign_extend_24(body.get_uint(3) as u32);
            }
            _ => {}
        }
        Ok(Video::Frame { codec, key: frame_type == 1, composition_ms, nanos: header.nanos, data: body })
    }

    /// ExAudioTagHeader and ExAudioTagBody.
    fn enhanced_audio(&self) -> Result<Audio, Error> {
        let Some(Packet { packet_type, fourcc, body }) = Header::read(self)?.first_track()? else {
            return Ok(Audio::Nothing);
        };
        if !matches!(packet_type, 0 | 1) {
            // End of sequence, channel layout, and what later versions may add.
            return Ok(Audio::Nothing);
        }
        let codec = AudioCodec::from_fourcc(&fourcc)
            .ok_or_else(|| Error::UnsupportedCodec { track: "audio", codec: fourcc_name(&fourcc) })?;
        Ok(match packet_type {
            0 => Audio::Config { codec, record: body },
            _ => Audio::Frame { codec, data: body },
        })
    }
}

fn sign_extend_24(value: u32) -> i32 {
    ((value << 8) as i32) >> 8
}
