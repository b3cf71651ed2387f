//! Pictures as JPEG files, by libavcodec's `mjpeg` encoder.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::slice;

use ffmpeg_next::ffi;

use super::{Failure, Picture, check};

/// `FF_QP2LAMBDA`: libavcodec's unit of quality, of one step of the quantiser.
const LAMBDA: c_int = 118;

/// One JPEG encoder, for full-range 4:2:0 of one size with square pixels.
pub(crate) struct Jpeg {
    context: NonNull<ffi::AVCodecContext>,
    packet: NonNull<ffi::AVPacket>,
    /// The quality of each picture.
    quality: c_int,
    /// Pictures encoded so far: their times must grow.
    count: i64,
}

// SAFETY: owned by this struct alone; libav ties neither to a thread.
unsafe impl Send for Jpeg {}

impl Jpeg {
    /// Opens the encoder; sides in pixels, `quantiser` 2 (best) to 31.
    pub(crate) fn open(width: u32, height: u32, quantiser: u32) -> Result<Self, Failure> {
        let quality = quantiser.clamp(1, 31) as c_int * LAMBDA;
        // SAFETY: each object is checked for null before use and freed by Drop.
        unsafe {
            let codec = ffi::avcodec_find_encoder(ffi::AVCodecID::AV_CODEC_ID_MJPEG);
            if codec.is_null() {
                return Err(Failure { call: "avcodec_find_encoder", code: ffi::AVERROR_ENCODER_NOT_FOUND });
            }
            let context = NonNull::new(ffi::avcodec_alloc_context3(codec))
                .ok_or(Failure::out_of_memory("avcodec_alloc_context3"))?;
            let Some(packet) = NonNull::new(ffi::av_packet_alloc()) else {
                ffi::avcodec_free_context(&mut context.as_ptr());
                return Err(Failure::out_of_memory("av_packet_alloc"));
            };
            let jpeg = Self { context, packet, quality, count: 0 };
            let raw = &mut *context.as_ptr();
            raw.width = width as c_int;
            raw.height = height as c_int;
            raw.pix_fmt = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P;
            raw.color_range = ffi::AVColorRange::AVCOL_RANGE_JPEG;
            raw.sample_aspect_ratio = ffi::AVRational { num: 1, den: 1 };
            raw.time_base = ffi::AVRational { num: 1, den: 25 };
            raw.thread_count = 1;
            raw.flags |= ffi::AV_CODEC_FLAG_QSCALE as c_int;
            raw.global_quality = quality;
            check("avcodec_open2", ffi::avcodec_open2(context.as_ptr(), codec, std::ptr::null_mut()))?;
            Ok(jpeg)
        }
    }

    /// The picture as a file. It must have the encoder's size.
    pub(crate) fn encode(&mut self, mut picture: Picture) -> Result<Vec<u8>, Failure> {
        let context = self.context.as_ptr();
        // SAFETY: the context is open.
        let size = unsafe { ((*context).width, (*context).height) };
        let raw = picture.raw_mut();
        if (raw.width, raw.height) != size {
            return Err(Failure { call: "avcodec_send_frame", code: ffi::AVERROR(ffi::EINVAL) });
        }
        raw.pts = self.count;
        raw.quality = self.quality;
        raw.pict_type = ffi::AVPictureType::AV_PICTURE_TYPE_I;
        raw.color_range = ffi::AVColorRange::AVCOL_RANGE_JPEG;
        self.count += 1;
        let packet = self.packet.as_ptr();
        // SAFETY: a valid frame of the size and format the encoder was opened with, of which the call takes its own reference;
        // then a packet whose data is `size` bytes until it is unreferenced.
        unsafe {
            check("avcodec_send_frame", ffi::avcodec_send_frame(context, picture.as_ptr()))?;
            check("avcodec_receive_packet", ffi::avcodec_receive_packet(context, packet))?;
            let (data, len) = ((*packet).data, (*packet).size.max(0) as usize);
            let file = if data.is_null() { Vec::new() } else { slice::from_raw_parts(data, len).to_vec() };
            ffi::av_packet_unref(packet);
            Ok(file)
        }
    }
}

impl Drop for Jpeg {
    fn drop(&mut self) {
        // SAFETY: we own both; each call nulls the local copy of the pointer.
        unsafe {
            ffi::av_packet_free(&mut self.packet.as_ptr());
            ffi::avcodec_free_context(&mut self.context.as_ptr());
        }
    }
}
