//! The decoders: access units in, pictures in display order out.

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi;
use media::codec::VideoCodec;

use super::{Failure, Picture, check, check_receive, to_int};

/// Largest picture that is decoded: 4096x2304 either way round. At most 16 such references (14 MB each, twice that with
/// more than 8 bits) are held, so a hostile parameter set cannot ask for more than about 250 MB (500 MB).
pub(crate) const MAX_PIXELS: u64 = 4096 * 2304;

/// A single-threaded decoder: no frame of delay beyond what the stream's reordering asks for.
pub(crate) struct Decoder {
    context: NonNull<ffi::AVCodecContext>,
    packet: NonNull<ffi::AVPacket>,
    spare: Option<Picture>,
}

// SAFETY: the context, packet and frame are owned by this struct alone and libav ties none of them to a
// thread.
unsafe impl Send for Decoder {}

impl Decoder {
    /// A decoder for access units of `codec` whose parameter sets are in `record`.
    pub(crate) fn open(codec: VideoCodec, record: &[u8]) -> Result<Self, Failure> {
        // SAFETY: each object is checked for null before use and freed by Drop; extradata is allocated as
        // libav demands (av_mallocz, zeroed padding) and owned by the context.
        unsafe {
            let codec = find(codec);
            if codec.is_null() {
                return Err(Failure { call: "avcodec_find_decoder", code: ffi::AVERROR_DECODER_NOT_FOUND });
            }
            let context = NonNull::new(ffi::avcodec_alloc_context3(codec))
                .ok_or(Failure::out_of_memory("avcodec_alloc_context3"))?;
            let packet = NonNull::new(ffi::av_packet_alloc());
            let Some(packet) = packet else {
                ffi::avcodec_free_context(&mut context.as_ptr());
                return Err(Failure::out_of_memory("av_packet_alloc"));
            };
            let decoder = Self { context, packet, spare: None };
            let raw = &mut *context.as_ptr();
            let padding = ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize;
            raw.extradata = ffi::av_mallocz(record.len() + padding).cast();
            if raw.extradata.is_null() {
                return Err(Failure::out_of_memory("av_mallocz"));
            }
            ptr::copy_nonoverlapping(record.as_ptr(), raw.extradata, record.len());
            raw.extradata_size = to_int(record.len());
            raw.pkt_timebase = ffi::AVRational { num: 1, den: 90_000 };
            raw.thread_count = 1;
            // Patched-over pictures are shown rather than dropped: the count of frames must not change.
            raw.flags |= (ffi::AV_CODEC_FLAG_LOW_DELAY | ffi::AV_CODEC_FLAG_OUTPUT_CORRUPT) as c_int;
            raw.max_pixels = MAX_PIXELS as i64;
            check("avcodec_open2", ffi::avcodec_open2(context.as_ptr(), codec, ptr::null_mut()))?;
            Ok(decoder)
        }
    }

    /// Feeds one access unit; drain with [`Decoder::receive`] after each. `record` announces new parameter
    /// sets that hold from this access unit on. An error means that this access unit is broken; the decoder
    /// goes on with the next.
    pub(crate) fn send(
        &mut self,
        data: &[u8],
        pts: i64,
        dts: i64,
        record: Option<&[u8]>,
    ) -> Result<(), Failure> {
        let packet = self.packet.as_ptr();
        // SAFETY: the packet is ours and empty between calls; av_new_packet gives it `data.len()` bytes and
        // zeroed padding.
        unsafe {
            check("av_new_packet", ffi::av_new_packet(packet, to_int(data.len())))?;
            ptr::copy_nonoverlapping(data.as_ptr(), (*packet).data, data.len());
            (*packet).pts = pts;
            (*packet).dts = dts;
            if let Some(record) = record {
                let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_NEW_EXTRADATA;
                let side = ffi::av_packet_new_side_data(packet, kind, record.len());
                if !side.is_null() {
                    ptr::copy_nonoverlapping(record.as_ptr(), side, record.len());
                }
            }
            let sent = check("avcodec_send_packet", ffi::avcodec_send_packet(self.context.as_ptr(), packet));
            ffi::av_packet_unref(packet);
            sent.map(drop)
        }
    }

    /// No more input: [`Decoder::receive`] gives what is still held, then `None`.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        // SAFETY: a null packet starts draining.
        check("avcodec_send_packet", unsafe {
            ffi::avcodec_send_packet(self.context.as_ptr(), ptr::null())
        })?;
        Ok(())
    }

    /// The next picture in display order; `None` until more input is sent.
    pub(crate) fn receive(&mut self) -> Result<Option<Picture>, Failure> {
        let mut picture = match self.spare.take() {
            Some(picture) => picture,
            None => Picture::empty()?,
        };
        // SAFETY: the call unreferences the frame first and fills it on success only.
        let code = unsafe { ffi::avcodec_receive_frame(self.context.as_ptr(), picture.as_ptr()) };
        match check_receive("avcodec_receive_frame", code)? {
            Some(()) => {
                picture.normalise_format();
                Ok(Some(picture))
            }
            None => {
                self.spare = Some(picture);
                Ok(None)
            }
        }
    }
}

/// The decoder of a codec, null if the linked libavcodec has none.
fn find(codec: VideoCodec) -> *const ffi::AVCodec {
    let id = match codec {
        VideoCodec::Avc => ffi::AVCodecID::AV_CODEC_ID_H264,
        VideoCodec::Hevc => ffi::AVCodecID::AV_CODEC_ID_HEVC,
        VideoCodec::Vp9 => ffi::AVCodecID::AV_CODEC_ID_VP9,
        // By name: libavcodec's own AV1 decoder, which may come first, only drives hardware.
        VideoCodec::Av1 => {
            let names = [c"libdav1d", c"libaom-av1"];
            // SAFETY: looks names up in a static table.
            let mut found =
                names.iter().map(|name| unsafe { ffi::avcodec_find_decoder_by_name(name.as_ptr()) });
            return found.find(|codec| !codec.is_null()).unwrap_or(ptr::null());
        }
    };
    // SAFETY: as above.
    unsafe { ffi::avcodec_find_decoder(id) }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: we own both; each call nulls the local copy of the pointer.
        unsafe {
            ffi::av_packet_free(&mut self.packet.as_ptr());
            ffi::avcodec_free_context(&mut self.context.as_ptr());
        }
    }
}
