//! A reference-counted picture, and the pool that scaled pictures come from.

use std::ffi::c_int;
use std::ptr::NonNull;

use ffmpeg_next::ffi;

use super::{Failure, check};

const YUV420P: c_int = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
const YUVJ420P: c_int = ffi::AVPixelFormat::AV_PIX_FMT_YUVJ420P as c_int;

/// One uncompressed picture. The pixels are shared by reference count; the properties are this picture's
/// own.
pub(crate) struct Picture(NonNull<ffi::AVFrame>);

// SAFETY: an AVFrame is a plain struct whose buffers are counted atomically; nothing in it is tied to a
// thread, and all access to the struct itself goes through `&` or `&mut`.
unsafe impl Send for Picture {}
// SAFETY: as above; `&Picture` only reads.
unsafe impl Sync for Picture {}

impl Picture {
    /// A picture without pixels, to be filled.
    pub(super) fn empty() -> Result<Self, Failure> {
        // SAFETY: returns null or a fresh frame.
        let frame = unsafe { ffi::av_frame_alloc() };
        NonNull::new(frame).map(Self).ok_or(Failure::out_of_memory("av_frame_alloc"))
    }

    /// Another owner of the same pixels; nothing is copied.
    pub(crate) fn share(&self) -> Result<Self, Failure> {
        let copy = Self::empty()?;
        // SAFETY: `copy` is empty and `self` is a valid frame with counted buffers.
        check("av_frame_ref", unsafe { ffi::av_frame_ref(copy.as_ptr(), self.as_ptr()) })?;
        Ok(copy)
    }

    /// As [`Picture::share`], without the closed captions: they are said once, by the picture that they came with.
    pub(crate) fn share_without_captions(&self) -> Result<Self, Failure> {
        let copy = self.share()?;
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_A53_CC;
        // SAFETY: a valid frame that owns its list of side data, the data itself is counted.
        unsafe { ffi::av_frame_remove_side_data(copy.as_ptr(), kind) };
        Ok(copy)
    }

    /// Closed captions (`cc_data`, triplets) that are shown with it.
    pub(crate) fn captions(&self) -> &[u8] {
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_A53_CC;
        // SAFETY: a valid frame; its side data is `size` bytes that live as long as the frame does, and are not changed.
        unsafe {
            let side = ffi::av_frame_get_side_data(self.as_ptr(), kind);
            match side.as_ref() {
                Some(side) if !side.data.is_null() => std::slice::from_raw_parts(side.data, side.size),
                _ => &[],
            }
        }
    }

    /// Takes its captions away. What it was shared from keeps them.
    pub(crate) fn take_captions(&mut self) -> Vec<u8> {
        let captions = self.captions().to_vec();
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_A53_CC;
        // SAFETY: a valid frame that owns its list of side data, the data itself is counted.
        unsafe { ffi::av_frame_remove_side_data(self.as_ptr(), kind) };
        captions
    }

    /// Gives it these captions in place of its own.
    pub(crate) fn set_captions(&mut self, captions: &[u8]) -> Result<(), Failure> {
        let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_A53_CC;
        // SAFETY: a valid frame that owns its list of side data; the new entry has as many bytes as are written.
        unsafe {
            ffi::av_frame_remove_side_data(self.as_ptr(), kind);
            let side = ffi::av_frame_new_side_data(self.as_ptr(), kind, captions.len());
            let side = side.as_mut().ok_or(Failure::out_of_memory("av_frame_new_side_data"))?;
            std::ptr::copy_nonoverlapping(captions.as_ptr(), side.data, captions.len());
        }
        Ok(())
    }

    /// A grey picture; sides in pixels, even.
    pub(crate) fn grey(width: u32, height: u32) -> Result<Self, Failure> {
        let pool = Pool::new(width, height)?;
        let mut picture = pool.get()?;
        let raw = picture.raw_mut();
        for (plane, bytes) in [(0, 0), (1, 1), (2, 1)].map(|(plane, of)| (plane, pool.plane_bytes[of])) {
            // SAFETY: the pool's buffers have that many bytes behind each plane's first.
            unsafe { raw.data[plane].write_bytes(128, bytes) }
        }
        Ok(picture)
    }

    /// Copies another picture to where its left upper corner is given, in pixels, even. Both are 8-bit 4:2:0, and nobody else
    /// has this one's pixels; what does not fit is left out.
    pub(crate) fn put(&mut self, tile: &Picture, x: u32, y: u32) {
        let (to, from) = (self.raw(), tile.raw());
        let fits = x + tile.width() <= self.width() && y + tile.height() <= self.height();
        if !(fits && self.is_yuv420p() && tile.is_yuv420p()) {
            return;
        }
        for plane in 0..3 {
            let half = |side: u32| if plane == 0 { side as usize } else { side.div_ceil(2) as usize };
            let (width, height, x, y) = (half(tile.width()), half(tile.height()), half(x), half(y));
            let stride = |frame: &ffi::AVFrame| frame.linesize[plane].max(0) as usize;
            for row in 0..height {
                // SAFETY: both rows lie within their planes, whose rows are a stride apart, and belong to different buffers.
                unsafe {
                    let source = from.data[plane].add(row * stride(from));
                    let target = to.data[plane].add((y + row) * stride(to) + x);
                    std::ptr::copy_nonoverlapping(source, target, width);
                }
            }
        }
    }

    pub(super) fn as_ptr(&self) -> *mut ffi::AVFrame {
        self.0.as_ptr()
    }

    /// The picture's properties.
    pub(super) fn raw(&self) -> &ffi::AVFrame {
        // SAFETY: never null, valid until drop, and mutated only through `&mut self`.
        unsafe { self.0.as_ref() }
    }

    pub(super) fn raw_mut(&mut self) -> &mut ffi::AVFrame {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { self.0.as_mut() }
    }

    /// Full-range 4:2:0 has a pixel format of its own in libav; calling it plain 4:2:0 with a full range
    /// says the same, and spares scaler and encoder the special case.
    pub(super) fn normalise_format(&mut self) {
        let raw = self.raw_mut();
        if raw.format == YUVJ420P {
            raw.format = YUV420P;
            raw.color_range = ffi::AVColorRange::AVCOL_RANGE_JPEG;
        }
    }

    /// 8-bit 4:2:0, the one layout that is encoded.
    pub(crate) fn is_yuv420p(&self) -> bool {
        self.raw().format == YUV420P
    }

    /// Width in pixels, cropping applied.
    pub(crate) fn width(&self) -> u32 {
        self.raw().width.max(0) as u32
    }

    /// Height in pixels, cropping applied.
    pub(crate) fn height(&self) -> u32 {
        self.raw().height.max(0) as u32
    }

    /// The time carried through the codec.
    pub(crate) fn pts(&self) -> Option<i64> {
        Some(self.raw().pts).filter(|&pts| pts != ffi::AV_NOPTS_VALUE)
    }

    /// Whether the decoder found errors in it and patched them over.
    pub(crate) fn is_damaged(&self) -> bool {
        let raw = self.raw();
        raw.flags & ffi::AV_FRAME_FLAG_CORRUPT != 0 || raw.decode_error_flags != 0
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        let mut frame = self.0.as_ptr();
        // SAFETY: we own the frame; its buffers are released by count.
        unsafe { ffi::av_frame_free(&mut frame) }
    }
}

/// Pictures of one size in 8-bit 4:2:0 whose memory is used again: a fresh mapping per frame costs
/// its page faults every time.
pub(super) struct Pool {
    pool: NonNull<ffi::AVBufferPool>,
    width: c_int,
    height: c_int,
    linesizes: [c_int; 2],
    plane_bytes: [usize; 2],
}

// SAFETY: AVBufferPool is documented as thread-safe; the other fields are numbers.
unsafe impl Send for Pool {}

/// Row starts and row ends on cache lines: SIMD code reads and writes whole vectors, past the last pixel
/// too.
const ALIGN: usize = 64;

impl Pool {
    /// `width` and `height` are even and at most a few thousand, as checked when the job starts.
    pub(super) fn new(width: u32, height: u32) -> Result<Self, Failure> {
        let rows = (height as usize).next_multiple_of(32);
        let luma = (width as usize).next_multiple_of(ALIGN);
        let chroma = (width as usize).div_ceil(2).next_multiple_of(ALIGN);
        let plane_bytes = [luma * rows, chroma * rows.div_ceil(2)];
        let bytes = plane_bytes[0] + 2 * plane_bytes[1] + 2 * ALIGN;
        // SAFETY: no custom allocator; returns null or a pool.
        let pool = unsafe { ffi::av_buffer_pool_init(bytes, None) };
        Ok(Self {
            pool: NonNull::new(pool).ok_or(Failure::out_of_memory("av_buffer_pool_init"))?,
            width: width as c_int,
            height: height as c_int,
            linesizes: [luma as c_int, chroma as c_int],
            plane_bytes,
        })
    }

    /// A picture with uninitialised pixels; its memory returns to the pool when the last owner drops it.
    pub(super) fn get(&self) -> Result<Picture, Failure> {
        let mut picture = Picture::empty()?;
        // SAFETY: the pool is alive; its buffers are long enough for the three planes plus alignment.
        unsafe {
            let buffer = ffi::av_buffer_pool_get(self.pool.as_ptr());
            if buffer.is_null() {
                return Err(Failure::out_of_memory("av_buffer_pool_get"));
            }
            let raw = picture.raw_mut();
            raw.buf[0] = buffer;
            let base = (*buffer).data;
            raw.data[0] = base.add(base.align_offset(ALIGN));
            raw.data[1] = raw.data[0].add(self.plane_bytes[0]);
            raw.data[2] = raw.data[1].add(self.plane_bytes[1]);
            raw.linesize[..3].copy_from_slice(&[self.linesizes[0], self.linesizes[1], self.linesizes[1]]);
            raw.width = self.width;
            raw.height = self.height;
            raw.format = YUV420P;
        }
        Ok(picture)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut pool = self.pool.as_ptr();
        // SAFETY: marks the pool for release once its last buffer has come back.
        unsafe { ffi::av_buffer_pool_uninit(&mut pool) }
    }
}
