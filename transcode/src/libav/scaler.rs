//! Scaling a picture to a rung's size, and to 8-bit 4:2:0 if it is something else.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use ffmpeg_next::ffi;

use super::picture::Pool;
use super::{Failure, Picture, check};

/// Makes pictures of one size out of pictures of any size and format.
pub(crate) struct Scaler {
    width: u32,
    height: u32,
    /// What comes out has values from 0 to 255, whatever the source says.
    full_range: bool,
    pool: Pool,
    context: Option<Context>,
}

impl Scaler {
    /// `width` and `height` in pixels, even.
    pub(crate) fn new(width: u32, height: u32) -> Result<Self, Failure> {
        Ok(Self { width, height, full_range: false, pool: Pool::new(width, height)?, context: None })
    }

    /// The same, for pictures of full range, as JPEG wants them.
    pub(crate) fn full_range(width: u32, height: u32) -> Result<Self, Failure> {
        Ok(Self { full_range: true, ..Self::new(width, height)? })
    }

    /// The picture at this scaler's size, with the properties of `source`: its own pixels where it fits
    /// already. A source that changes size or format in mid-stream gets a new context; what comes out keeps
    /// its size.
    pub(crate) fn scale(&mut self, source: &Picture) -> Result<Picture, Failure> {
        let wanted = Shape::of(source, self.full_range);
        let fits = source.is_yuv420p() && source.width() == self.width && source.height() == self.height;
        if fits && wanted.stretched != Some(false) {
            return source.share();
        }
        let context = match self.context.take() {
            Some(context) if context.source == wanted => context,
            _ => Context::new(wanted, self.width, self.height)?,
        };
        let mut scaled = context.scale(source, self.pool.get()?)?;
        self.context = Some(context);
        if self.full_range {
            scaled.raw_mut().color_range = ffi::AVColorRange::AVCOL_RANGE_JPEG;
        }
        Ok(scaled)
    }
}

/// What a context is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: c_int,
    height: c_int,
    format: c_int,
    /// Where pictures of full range are made: whether it has full range itself.
    stretched: Option<bool>,
}

impl Shape {
    fn of(picture: &Picture, full_range: bool) -> Self {
        let raw = picture.raw();
        let stretched = full_range.then_some(raw.color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG);
        Self { width: raw.width, height: raw.height, format: raw.format, stretched }
    }
}

struct Context {
    sws: NonNull<ffi::SwsContext>,
    source: Shape,
}

// SAFETY: a SwsContext without threads of its own is plain memory, used through one owner.
unsafe impl Send for Context {}

impl Context {
    fn new(source: Shape, width: u32, height: u32) -> Result<Self, Failure> {
        // SAFETY: returns null or a context with defaults.
        let sws = unsafe { ffi::sws_alloc_context() };
        let sws = NonNull::new(sws).ok_or(Failure::out_of_memory("sws_alloc_context"))?;
        let context = Self { sws, source };
        // Bilinear widens its taps when it shrinks. The "fast" variant does not: a fiftieth less CPU time
        // in a whole ladder for visible aliasing (SSIM to Lanczos 0.98 instead of 0.99). Bicubic and up
        // blur less than the encoder does anyway.
        context.set(c"sws_flags", i64::from(ffi::SWS_BILINEAR))?;
        context.set(c"srcw", source.width.into())?;
        context.set(c"srch", source.height.into())?;
        context.set(c"src_format", source.format.into())?;
        context.set(c"dstw", width.into())?;
        context.set(c"dsth", height.into())?;
        context.set(c"dst_format", ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as i64)?;
        if let Some(stretched) = source.stretched {
            context.set(c"src_range", stretched.into())?;
            context.set(c"dst_range", 1)?;
        }
        // SAFETY: a context with all sizes and formats set.
        check("sws_init_context", unsafe {
            ffi::sws_init_context(context.sws.as_ptr(), std::ptr::null_mut(), std::ptr::null_mut())
        })?;
        Ok(context)
    }

    fn set(&self, option: &CStr, value: i64) -> Result<(), Failure> {
        // SAFETY: SwsContext begins with an AVClass, as av_opt_set_int wants.
        check("av_opt_set_int", unsafe {
            ffi::av_opt_set_int(self.sws.as_ptr().cast(), option.as_ptr(), value, 0)
        })?;
        Ok(())
    }

    fn scale(&self, source: &Picture, mut target: Picture) -> Result<Picture, Failure> {
        let (from, to) = (source.raw(), target.raw());
        // SAFETY: `from` has the shape this context was made for and `to` the target's, from the pool;
        // sws_scale reads and writes within their planes and padding.
        check("sws_scale", unsafe {
            ffi::sws_scale(
                self.sws.as_ptr(),
                from.data.as_ptr().cast(),
                from.linesize.as_ptr(),
                0,
                from.height,
                to.data.as_ptr(),
                to.linesize.as_ptr(),
            )
        })?;
        // SAFETY: both are valid frames; sizes and pixels are not touched, side data is shared.
        check("av_frame_copy_props", unsafe { ffi::av_frame_copy_props(target.as_ptr(), source.as_ptr()) })?;
        if from.colorspace == ffi::AVColorSpace::AVCOL_SPC_RGB {
            // RGB has just become the scaler's default YUV.
            let raw = target.raw_mut();
            raw.colorspace = ffi::AVColorSpace::AVCOL_SPC_SMPTE170M;
            raw.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
        }
        Ok(target)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: we own it.
        unsafe { ffi::sws_freeContext(self.sws.as_ptr()) }
    }
}
