//! Pictures of two fields, made progressive.

use std::mem::ManuallyDrop;
use std::slice;

use ffmpeg_next::ffi;
use ffmpeg_next::util::frame::Video;

use super::picture::Pool;
use super::{Failure, Picture, Scaler, check};
use crate::deinterlace::{Plane, fill_in};

struct Made {
    size: (u32, u32),
    pool: Pool,
    /// Of what is not 8 bits of 4:2:0.
    scaler: Scaler,
}

/// Makes pictures progressive that say that they are interlaced; of others it only keeps the last.
#[derive(Default)]
pub(crate) struct Deinterlacer {
    /// The picture before, as it came.
    before: Option<Picture>,
    /// For pictures of one size.
    made_for: Option<Made>,
}

impl Deinterlacer {
    /// The next picture in display order; whether it was interlaced.
    pub(crate) fn take(&mut self, picture: Picture) -> Result<(Picture, bool), Failure> {
        let Some(top_first) = top_field_first(&picture) else {
            self.before = Some(picture.share()?);
            return Ok((picture, false));
        };
        let size = (picture.width(), picture.height());
        let made = match self.made_for.take().filter(|made| made.size == size) {
            Some(made) => made,
            None => Made { size, pool: Pool::new(size.0, size.1)?, scaler: Scaler::new(size.0, size.1)? },
        };
        let Made { pool, scaler, .. } = self.made_for.insert(made);
        let picture = scaler.scale(&picture)?;
        let before = self.before.take().filter(Picture::is_yuv420p);
        let before = before.filter(|before| (before.width(), before.height()) == size);
        let target = pool.get()?;
        for index in 0..3 {
            let (Some(now), Some(out)) = (plane(&picture, index), plane(&target, index)) else {
                return Err(Failure { call: "deinterlace", code: ffi::AVERROR_INVALIDDATA });
            };
            let (stride, len) = (out.stride, out.bytes.len());
            // SAFETY: the same bytes, of a picture from the pool that nobody else has; `out` is not used any more.
            let out = unsafe { slice::from_raw_parts_mut(target.raw().data[index], len) };
            fill_in(out, stride, now, before.as_ref().and_then(|before| plane(before, index)), top_first);
        }
        // SAFETY: both are valid frames; sizes and pixels are not touched, side data is shared.
        check("av_frame_copy_props", unsafe { ffi::av_frame_copy_props(target.as_ptr(), picture.as_ptr()) })?;
        self.before = Some(picture);
        Ok((target, true))
    }
}

/// Of an interlaced picture, whether its even lines are shown first.
fn top_field_first(picture: &Picture) -> Option<bool> {
    // SAFETY: a view of a frame that lives longer; it is not freed. Where the flags are is different in versions of libav.
    let view = ManuallyDrop::new(unsafe { Video::wrap(picture.as_ptr()) });
    view.is_interlaced().then(|| view.is_top_first())
}

/// A plane of 8-bit 4:2:0.
fn plane(picture: &Picture, index: usize) -> Option<Plane<'_>> {
    let raw = picture.raw();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (width, height) = if index == 0 { (width, height) } else { (width.div_ceil(2), height.div_ceil(2)) };
    let stride = usize::try_from(raw.linesize[index]).ok()?;
    if raw.data[index].is_null() || stride < width || height == 0 {
        return None;
    }
    // SAFETY: a plane has `height` lines that are `stride` bytes apart, of which the last may end with its last sample; they
    // live as long as the picture.
    let bytes = unsafe { slice::from_raw_parts(raw.data[index], stride * (height - 1) + width) };
    Some(Plane { bytes, stride, width, height })
}
