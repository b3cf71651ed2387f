//! A dictionary of codec options that notices what the codec did not understand.

use std::ffi::{CStr, CString};
use std::ptr;

use ffmpeg_next::ffi;

use super::{Failure, check};

/// Options for `avcodec_open2`. libav takes out what it understands; an unknown private option is
/// left behind without an error, so callers look at [`Options::unknown`] after opening.
pub(super) struct Options(*mut ffi::AVDictionary);

impl Options {
    pub(super) fn new() -> Self {
        Self(ptr::null_mut())
    }

    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), Failure> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| Failure { call: "av_dict_set", code: ffi::AVERROR(ffi::EINVAL) })
        };
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: both strings are copied by the call (no DONT_STRDUP flag); the dictionary is ours.
        check("av_dict_set", unsafe { ffi::av_dict_set(&mut self.0, key.as_ptr(), value.as_ptr(), 0) })?;
        Ok(())
    }

    /// For the codec to take its options from.
    pub(super) fn as_mut_ptr(&mut self) -> *mut *mut ffi::AVDictionary {
        &mut self.0
    }

    /// The first option that the codec left behind.
    pub(super) fn unknown(&self) -> Option<String> {
        // SAFETY: iterating a dictionary we own; an entry's key is a C string that lives as long as the
        // entry.
        unsafe {
            let entry = ffi::av_dict_get(self.0, c"".as_ptr(), ptr::null(), ffi::AV_DICT_IGNORE_SUFFIX);
            entry.as_ref().map(|entry| CStr::from_ptr(entry.key).to_string_lossy().into_owned())
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: frees the dictionary and nulls the pointer; a null dictionary is allowed.
        unsafe { ffi::av_dict_free(&mut self.0) }
    }
}
