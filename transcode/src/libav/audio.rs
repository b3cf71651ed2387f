//! Audio that must be coded anew: decoders and the AAC encoder, all in planes of 32-bit floats.

use std::ffi::{CStr, c_int};
use std::ptr::{self, NonNull};
use std::slice;

use bytes::Bytes;
use ffmpeg_next::ffi;
use media::codec::AudioCodec;

use super::{Failure, Picture, check, check_receive, to_int};
use crate::error::Error;

const FLOAT_PLANES: c_int = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP as c_int;

/// Most channels: what AAC and Opus have in common, and what an `AVFrame` has plane pointers for.
pub(crate) const MAX_CHANNELS: usize = 8;

/// One codec on the calling thread.
struct Codec {
    context: NonNull<ffi::AVCodecContext>,
    packet: NonNull<ffi::AVPacket>,
    /// An `AVFrame` owned as pictures are: audio uses the same type.
    frame: Picture,
}

// SAFETY: context, packet and frame are owned by this struct alone; libav ties none of them to a thread.
unsafe impl Send for Codec {}

impl Codec {
    fn new(codec: *const ffi::AVCodec) -> Result<Self, Failure> {
        // SAFETY: `codec` comes from libav's tables; each object is checked for null and freed by Drop.
        unsafe {
            let context = NonNull::new(ffi::avcodec_alloc_context3(codec))
                .ok_or(Failure::out_of_memory("avcodec_alloc_context3"))?;
            let Some(packet) = NonNull::new(ffi::av_packet_alloc()) else {
                ffi::avcodec_free_context(&mut context.as_ptr());
                return Err(Failure::out_of_memory("av_packet_alloc"));
            };
            let frame = match Picture::empty() {
                Ok(frame) => frame,
                Err(failure) => {
                    ffi::av_packet_free(&mut packet.as_ptr());
                    ffi::avcodec_free_context(&mut context.as_ptr());
                    return Err(failure);
                }
            };
            Ok(Self { context, packet, frame })
        }
    }
}

impl Drop for Codec {
    fn drop(&mut self) {
        // SAFETY: we own both; each call nulls the local copy of the pointer.
        unsafe {
            ffi::av_packet_free(&mut self.packet.as_ptr());
            ffi::avcodec_free_context(&mut self.context.as_ptr());
        }
    }
}

/// A decoder of Opus, AAC or MP3.
pub(crate) struct AudioDecoder {
    codec: Codec,
    /// Where the next samples are if they do not say: those of a second frame in a packet.
    next: i64,
}

/// Those of libavcodec that give planes of floats.
fn decoder_name(codec: AudioCodec) -> &'static CStr {
    match codec {
        AudioCodec::Opus => c"opus",
        AudioCodec::Aac => c"aac",
        AudioCodec::Mp3 => c"mp3float",
    }
}

/// Decoded samples: one plane per channel, all of one length.
pub(crate) struct Decoded<'a> {
    /// Time of the first sample, in samples.
    pub(crate) pts: i64,
    /// Which channels they are, as libav's mask; 0 if that is not known.
    pub(crate) mask: u64,
    /// The planes.
    pub(crate) planes: Vec<&'a [f32]>,
}

impl AudioDecoder {
    /// For audio of `sample_rate` with a configuration `record`, which of MP3 is empty.
    pub(crate) fn open(codec: AudioCodec, record: &[u8], sample_rate: u32) -> Result<Self, Failure> {
        // SAFETY: as for video: extradata is allocated as libav demands (av_mallocz, zeroed padding) and owned by the
        // context, which Drop frees.
        unsafe {
            let codec = ffi::avcodec_find_decoder_by_name(decoder_name(codec).as_ptr());
            if codec.is_null() {
                return Err(Failure { call: "avcodec_find_decoder", code: ffi::AVERROR_DECODER_NOT_FOUND });
            }
            let decoder = Self { codec: Codec::new(codec)?, next: 0 };
            let raw = &mut *decoder.codec.context.as_ptr();
            raw.extradata = ffi::av_mallocz(record.len() + ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize).cast();
            if raw.extradata.is_null() {
                return Err(Failure::out_of_memory("av_mallocz"));
            }
            ptr::copy_nonoverlapping(record.as_ptr(), raw.extradata, record.len());
            raw.extradata_size = to_int(record.len());
            raw.pkt_timebase = ffi::AVRational { num: 1, den: sample_rate as c_int };
            raw.sample_rate = sample_rate as c_int;
            raw.thread_count = 1;
            check("avcodec_open2", ffi::avcodec_open2(raw, codec, ptr::null_mut()))?;
            Ok(decoder)
        }
    }

    /// Feeds one packet; drain with [`AudioDecoder::receive`]. An error means that this packet is broken.
    pub(crate) fn send(&mut self, data: &[u8], pts: i64) -> Result<(), Failure> {
        let packet = self.codec.packet.as_ptr();
        // SAFETY: the packet is ours and empty between calls; av_new_packet gives it `data.len()` bytes and padding.
        unsafe {
            check("av_new_packet", ffi::av_new_packet(packet, to_int(data.len())))?;
            ptr::copy_nonoverlapping(data.as_ptr(), (*packet).data, data.len());
            (*packet).pts = pts;
            (*packet).dts = pts;
            let sent =
                check("avcodec_send_packet", ffi::avcodec_send_packet(self.codec.context.as_ptr(), packet));
            ffi::av_packet_unref(packet);
            sent.map(drop)
        }
    }

    /// No more input: [`AudioDecoder::receive`] gives what is still held, then `None`.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        // SAFETY: a null packet starts draining.
        let code = unsafe { ffi::avcodec_send_packet(self.codec.context.as_ptr(), ptr::null()) };
        check("avcodec_send_packet", code).map(drop)
    }

    /// The next samples; `None` until more input is sent.
    pub(crate) fn receive(&mut self) -> Result<Option<Decoded<'_>>, Failure> {
        // SAFETY: the call unreferences the frame first and fills it on success only.
        let code =
            unsafe { ffi::avcodec_receive_frame(self.codec.context.as_ptr(), self.codec.frame.as_ptr()) };
        if check_receive("avcodec_receive_frame", code)?.is_none() {
            return Ok(None);
        }
        let frame = self.codec.frame.raw();
        let (channels, samples) =
            (frame.ch_layout.nb_channels.max(0) as usize, frame.nb_samples.max(0) as usize);
        if frame.format != FLOAT_PLANES || channels > MAX_CHANNELS {
            return Err(Failure { call: "avcodec_receive_frame", code: ffi::AVERROR_INVALIDDATA });
        }
        // SAFETY: a planar frame has a plane of `nb_samples` floats for each of its channels, in `data` while there are
        // at most eight; they live until the next call, which the borrow of `self` rules out.
        let plane = |plane: usize| unsafe { slice::from_raw_parts(frame.data[plane].cast::<f32>(), samples) };
        let pts = if frame.pts == ffi::AV_NOPTS_VALUE { self.next } else { frame.pts };
        self.next = pts + samples as i64;
        // SAFETY: in the native order the union holds a mask.
        let mask = match frame.ch_layout.order {
            ffi::AVChannelOrder::AV_CHANNEL_ORDER_NATIVE => unsafe { frame.ch_layout.u.mask },
            _ => 0,
        };
        Ok(Some(Decoded { pts, mask, planes: (0..channels).map(plane).collect() }))
    }
}

/// An AAC-LC encoder.
pub(crate) struct AudioEncoder(Codec);

impl AudioEncoder {
    /// For `channels` in libav's native order at `sample_rate`, `bitrate_bps` together.
    pub(crate) fn open(sample_rate: u32, channels: u32, bitrate_bps: u32) -> Result<Self, Error> {
        // SAFETY: the codec is checked for null; the context is freed by Drop.
        unsafe {
            let codec = ffi::avcodec_find_encoder_by_name(c"aac".as_ptr());
            if codec.is_null() {
                return Err(Error::NoAudioEncoder);
            }
            let encoder = Self(Codec::new(codec)?);
            let raw = &mut *encoder.0.context.as_ptr();
            raw.sample_rate = sample_rate as c_int;
            raw.sample_fmt = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP;
            raw.bit_rate = bitrate_bps.into();
            raw.time_base = ffi::AVRational { num: 1, den: sample_rate as c_int };
            raw.flags |= ffi::AV_CODEC_FLAG_GLOBAL_HEADER as c_int;
            raw.thread_count = 1;
            ffi::av_channel_layout_default(&mut raw.ch_layout, channels as c_int);
            check("avcodec_open2 (aac)", ffi::avcodec_open2(raw, codec, ptr::null_mut()))?;
            Ok(encoder)
        }
    }

    /// The `AudioSpecificConfig`.
    pub(crate) fn record(&self) -> Bytes {
        // SAFETY: extradata is null or `extradata_size` bytes, set when the encoder was opened.
        unsafe {
            let raw = self.0.context.as_ref();
            if raw.extradata.is_null() {
                return Bytes::new();
            }
            Bytes::copy_from_slice(slice::from_raw_parts(raw.extradata, raw.extradata_size.max(0) as usize))
        }
    }

    /// Samples of a frame: what [`AudioEncoder::send`] takes at a time.
    pub(crate) fn frame_samples(&self) -> usize {
        // SAFETY: the context lives as long as `self`.
        unsafe { self.0.context.as_ref().frame_size.max(0) as usize }
    }

    /// Feeds one frame: a plane per channel, all of [`AudioEncoder::frame_samples`]; drain with
    /// [`AudioEncoder::receive`].
    pub(crate) fn send(&mut self, planes: &[Vec<f32>], pts: i64) -> Result<(), Failure> {
        let samples = self.frame_samples();
        // SAFETY: the frame is ours; av_frame_get_buffer gives it a plane of `nb_samples` floats per channel, of which
        // there are at most eight; both sides are checked to be that long before the copy.
        unsafe {
            let frame = self.0.frame.as_ptr();
            ffi::av_frame_unref(frame);
            let context = self.0.context.as_ref();
            (*frame).nb_samples = to_int(samples);
            (*frame).format = FLOAT_PLANES;
            (*frame).sample_rate = context.sample_rate;
            (*frame).pts = pts;
            check(
                "av_channel_layout_copy",
                ffi::av_channel_layout_copy(&mut (*frame).ch_layout, &context.ch_layout),
            )?;
            check("av_frame_get_buffer", ffi::av_frame_get_buffer(frame, 0))?;
            let channels = context.ch_layout.nb_channels.max(0) as usize;
            if planes.len() != channels || planes.iter().any(|plane| plane.len() != samples) {
                return Err(Failure { call: "avcodec_send_frame", code: ffi::AVERROR(ffi::EINVAL) });
            }
            for (index, plane) in planes.iter().enumerate() {
                ptr::copy_nonoverlapping(plane.as_ptr(), (*frame).data[index].cast::<f32>(), samples);
            }
            check("avcodec_send_frame", ffi::avcodec_send_frame(self.0.context.as_ptr(), frame)).map(drop)
        }
    }

    /// No more input: [`AudioEncoder::receive`] gives what is still held, then `None`.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        // SAFETY: a null frame starts draining.
        let code = unsafe { ffi::avcodec_send_frame(self.0.context.as_ptr(), ptr::null()) };
        check("avcodec_send_frame", code).map(drop)
    }

    /// The next coded frame and the time of its first sample; `None` until more input is sent.
    pub(crate) fn receive(&mut self) -> Result<Option<(i64, Bytes)>, Failure> {
        let packet = self.0.packet.as_ptr();
        // SAFETY: the call unreferences the packet first; on success data is `size` bytes, copied at once.
        unsafe {
            let code = ffi::avcodec_receive_packet(self.0.context.as_ptr(), packet);
            if check_receive("avcodec_receive_packet", code)?.is_none() {
                return Ok(None);
            }
            let raw = &*packet;
            let data = match raw.data.is_null() {
                true => Bytes::new(),
                false => Bytes::copy_from_slice(slice::from_raw_parts(raw.data, raw.size.max(0) as usize)),
            };
            Ok(Some((raw.pts, data)))
        }
    }
}

/// Whether the linked libavcodec can turn audio of this codec into AAC.
pub(crate) fn can_recode(codec: AudioCodec) -> bool {
    let found = |name: &CStr, encoder: bool| {
        // SAFETY: looks a name up in a static table.
        unsafe {
            match encoder {
                true => !ffi::avcodec_find_encoder_by_name(name.as_ptr()).is_null(),
                false => !ffi::avcodec_find_decoder_by_name(name.as_ptr()).is_null(),
            }
        }
    };
    found(decoder_name(codec), false) && found(c"aac", true)
}
