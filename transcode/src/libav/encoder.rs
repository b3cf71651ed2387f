//! The video encoders, tuned for live: every picture leaves as soon as it has been encoded.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};
use std::slice;

use ffmpeg_next::ffi;
use media::codec::VideoCodec;
use media::time::FrameRate;

use super::options::Options;
use super::{Failure, Picture, check, check_receive, log};
use crate::encoders::EncoderKind;
use crate::error::Error;

/// What an encoder is told about its rung.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Width of the pictures.
    pub(crate) width: u32,
    /// Height of the pictures.
    pub(crate) height: u32,
    /// What the rate control assumes; pictures may come at other times.
    pub(crate) frame_rate: FrameRate,
    /// Average rate in bits per second.
    pub(crate) bitrate_bps: u32,
    /// The buffer model's fill rate in bits per second.
    pub(crate) peak_bps: u32,
    /// The buffer model's size in bits.
    pub(crate) buffer_bits: u32,
    /// Which encoder.
    pub(crate) encoder: &'static EncoderKind,
    /// One of its presets.
    pub(crate) preset: String,
    /// Options of the configuration.
    pub(crate) options: BTreeMap<String, String>,
    /// Sample aspect ratio.
    pub(crate) sar: (u32, u32),
}

/// One coded picture.
pub(crate) struct Packet<'a> {
    /// Annex B byte stream of H.264 and HEVC, without parameter sets; OBUs of AV1.
    pub(crate) data: &'a [u8],
    /// The time given with the picture.
    pub(crate) pts: i64,
    /// Whether decoding can begin with it.
    pub(crate) key: bool,
}

/// One encoder on the calling thread.
pub(crate) struct Encoder {
    context: NonNull<ffi::AVCodecContext>,
    packet: NonNull<ffi::AVPacket>,
}

// SAFETY: owned by this struct alone; libav ties neither to a thread.
unsafe impl Send for Encoder {}

impl Encoder {
    /// Opens the encoder for pictures like `first`, whose colour properties it takes over.
    pub(crate) fn open(settings: &Settings, first: &Picture) -> Result<Self, Error> {
        // SAFETY: each object is checked for null before use and freed by Drop.
        unsafe {
            let codec = find(settings.encoder);
            if codec.is_null() {
                return Err(Error::NoEncoder { encoder: settings.encoder.name });
            }
            let context = NonNull::new(ffi::avcodec_alloc_context3(codec))
                .ok_or(Failure::out_of_memory("avcodec_alloc_context3"))?;
            let Some(packet) = NonNull::new(ffi::av_packet_alloc()) else {
                ffi::avcodec_free_context(&mut context.as_ptr());
                return Err(Failure::out_of_memory("av_packet_alloc").into());
            };
            let encoder = Self { context, packet };
            configure(&mut *context.as_ptr(), settings, first.raw());
            let mut options = options(settings)?;
            let open = || ffi::avcodec_open2(context.as_ptr(), codec, options.as_mut_ptr());
            let (opened, said) = log::listen(open);
            let encoder_name = settings.encoder.name;
            check("avcodec_open2", opened).map_err(|failure| {
                let said = said.map(|said| format!(" ({said})")).unwrap_or_default();
                Error::Unopened { encoder: encoder_name, failure, said }
            })?;
            match options.unknown() {
                Some(name) => Err(Error::UnknownOption { encoder: encoder_name, name }),
                None => Ok(encoder),
            }
        }
    }

    /// Whether the linked libavcodec has it.
    pub(crate) fn is_available(encoder: &EncoderKind) -> bool {
        !find(encoder).is_null()
    }

    /// The parameter sets as an Annex B byte stream; of AV1 the sequence header.
    pub(crate) fn headers(&self) -> &[u8] {
        // SAFETY: extradata is null or `extradata_size` bytes, set when the encoder was opened and constant
        // since.
        unsafe {
            let raw = self.context.as_ref();
            if raw.extradata.is_null() {
                return &[];
            }
            slice::from_raw_parts(raw.extradata, raw.extradata_size.max(0) as usize)
        }
    }

    /// Feeds one picture, as a closed keyframe if asked; drain with [`Encoder::receive`] after each.
    pub(crate) fn send(&mut self, mut picture: Picture, pts: i64, key: bool) -> Result<(), Failure> {
        let raw = picture.raw_mut();
        raw.pts = pts;
        raw.pict_type = match key {
            true => ffi::AVPictureType::AV_PICTURE_TYPE_I,
            false => ffi::AVPictureType::AV_PICTURE_TYPE_NONE,
        };
        // SAFETY: a valid frame of the size and format the encoder was opened with; the call takes its own
        // reference.
        check("avcodec_send_frame", unsafe {
            ffi::avcodec_send_frame(self.context.as_ptr(), picture.as_ptr())
        })?;
        Ok(())
    }

    /// No more input: [`Encoder::receive`] gives what is still held, then `None`.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        // SAFETY: a null frame starts draining.
        check("avcodec_send_frame", unsafe { ffi::avcodec_send_frame(self.context.as_ptr(), ptr::null()) })?;
        Ok(())
    }

    /// The next coded picture; `None` until more input is sent.
    pub(crate) fn receive(&mut self) -> Result<Option<Packet<'_>>, Failure> {
        let packet = self.packet.as_ptr();
        // SAFETY: the call unreferences the packet first; on success data is `size` bytes that live until
        // the next call, which the borrow of `self` rules out.
        unsafe {
            let code = ffi::avcodec_receive_packet(self.context.as_ptr(), packet);
            if check_receive("avcodec_receive_packet", code)?.is_none() {
                return Ok(None);
            }
            let raw = &*packet;
            let data = match raw.data.is_null() {
                true => &[][..],
                false => slice::from_raw_parts(raw.data, raw.size.max(0) as usize),
            };
            Ok(Some(Packet { data, pts: raw.pts, key: raw.flags & ffi::AV_PKT_FLAG_KEY != 0 }))
        }
    }
}

fn find(encoder: &EncoderKind) -> *const ffi::AVCodec {
    let Ok(name) = CString::new(encoder.name) else { return ptr::null() };
    // SAFETY: looks a name up in a static table.
    unsafe { ffi::avcodec_find_encoder_by_name(name.as_ptr()) }
}

fn configure(context: &mut ffi::AVCodecContext, settings: &Settings, first: &ffi::AVFrame) {
    context.width = settings.width as c_int;
    context.height = settings.height as c_int;
    context.pix_fmt = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P;
    context.time_base = ffi::AVRational { num: 1, den: 90_000 };
    context.framerate = rational(settings.frame_rate.num, settings.frame_rate.den);
    context.sample_aspect_ratio = rational(settings.sar.0, settings.sar.1);
    context.color_range = first.color_range;
    context.colorspace = first.colorspace;
    context.color_primaries = first.color_primaries;
    context.color_trc = first.color_trc;
    if settings.encoder.codec != VideoCodec::Av1 {
        // What AV1 says of it must be in its record as well.
        context.chroma_sample_location = first.chroma_location;
    }
    context.bit_rate = settings.bitrate_bps.into();
    context.rc_max_rate = settings.peak_bps.into();
    if settings.encoder.constant_rate {
        context.rc_min_rate = context.bit_rate;
        context.rc_max_rate = context.bit_rate;
    }
    context.rc_buffer_size = c_int::try_from(settings.buffer_bits).unwrap_or(c_int::MAX);
    context.max_b_frames = 0;
    // More than any encoder counts: keyframes come where segments begin and nowhere else.
    context.gop_size = 1 << 30;
    // The rungs run beside one another; threads within one only add overhead and delay.
    context.thread_count = 1;
    context.flags |= ffi::AV_CODEC_FLAG_GLOBAL_HEADER as c_int;
}

fn options(settings: &Settings) -> Result<Options, Failure> {
    let mut options = Options::new();
    for (name, value) in settings.encoder.options(&settings.preset, &settings.options) {
        options.set(&name, &value)?;
    }
    Ok(options)
}

fn rational(num: u32, den: u32) -> ffi::AVRational {
    match (c_int::try_from(num), c_int::try_from(den)) {
        (Ok(num), Ok(den)) if den > 0 => ffi::AVRational { num, den },
        _ => ffi::AVRational { num: 0, den: 1 },
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: we own both; each call nulls the local copy of the pointer.
        unsafe {
            ffi::av_packet_free(&mut self.packet.as_ptr());
            ffi::avcodec_free_context(&mut self.context.as_ptr());
        }
    }
}
