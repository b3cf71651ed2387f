//! libav's own log lines, as `tracing` events of target `libav`.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ffmpeg_next::ffi;

/// Longest line that is passed on, in bytes; libav quotes what it reads, so a peer could otherwise write
/// our log.
const MAX_LINE_BYTES: usize = 400;

/// Lines at WARN per second for the whole process: one broken broadcaster writes several per frame. The
/// rest go to DEBUG.
const MAX_WARNINGS_PER_SECOND: u64 = 5;

thread_local! {
    /// The last error of this thread, while somebody listens.
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Also says what libav had to say last about an error while it did `work` on this thread.
pub(super) fn listen<T>(work: impl FnOnce() -> T) -> (T, Option<String>) {
    HEARD.set(Some(String::new()));
    let done = work();
    (done, HEARD.take().filter(|heard| !heard.is_empty()))
}

/// Installs the callback, once per process.
pub(crate) fn route_to_tracing() {
    static ONCE: Once = Once::new();
    ONCE.call_once(install);
}

#[cfg(target_arch = "x86_64")]
fn install() {
    // SAFETY: the callback has the signature libav calls it with and lives as long as the program.
    unsafe {
        ffi::av_log_set_level(ffi::AV_LOG_INFO);
        ffi::av_log_set_callback(Some(callback));
    }
}

/// How `va_list` is passed differs between architectures and so does the generated binding: elsewhere libav
/// stays silent.
#[cfg(not(target_arch = "x86_64"))]
fn install() {
    // SAFETY: sets a global number.
    unsafe { ffi::av_log_set_level(ffi::AV_LOG_QUIET) }
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn callback(
    class: *mut c_void,
    level: c_int,
    format: *const c_char,
    arguments: *mut ffi::__va_list_tag,
) {
    // The upper bits may hold a colour.
    let level = level & 0xff;
    let is_heard = level <= ffi::AV_LOG_ERROR && HEARD.with_borrow(Option::is_some);
    let is_logged = level <= ffi::AV_LOG_INFO && tracing::enabled!(target: "libav", tracing::Level::WARN);
    if !is_heard && !is_logged {
        return;
    }
    let mut line: [c_char; MAX_LINE_BYTES] = [0; MAX_LINE_BYTES];
    let mut print_prefix = 1;
    // SAFETY: libav hands us a matching class, format and arguments; the buffer is as long as stated and
    // comes back terminated.
    let text = unsafe {
        ffi::av_log_format_line2(
            class,
            level,
            format,
            arguments,
            line.as_mut_ptr(),
            MAX_LINE_BYTES as c_int,
            &mut print_prefix,
        );
        CStr::from_ptr(line.as_ptr()).to_string_lossy()
    };
    // A panic must not cross into C; a subscriber that panics loses its line.
    let _ = catch_unwind(|| {
        // Control characters could forge lines of the log.
        let line = text.trim_end().replace(|c: char| c.is_control(), " ");
        if is_logged {
            emit(level, &line);
        }
        if is_heard {
            HEARD.set(Some(line));
        }
    });
}

fn emit(level: c_int, line: &str) {
    if level <= ffi::AV_LOG_WARNING && may_warn() {
        tracing::warn!(target: "libav", "{line}");
    } else {
        tracing::debug!(target: "libav", "{line}");
    }
}

/// At most [`MAX_WARNINGS_PER_SECOND`] times in each second; a race may let one more through.
fn may_warn() -> bool {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    /// The second in the upper, the count in the lower half.
    static WINDOW: AtomicU64 = AtomicU64::new(0);
    let second = START.get_or_init(Instant::now).elapsed().as_secs();
    let window = WINDOW.load(Ordering::Relaxed);
    let count = if window >> 32 == second { window & 0xffff_ffff } else { 0 };
    WINDOW.store(second << 32 | (count + 1), Ordering::Relaxed);
    count < MAX_WARNINGS_PER_SECOND
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::ffi::CString;
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Keeps levels and lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            struct Text(String);
            impl Visit for Text {
                fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
                    write!(self.0, "{value:?}").unwrap();
                }
            }
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push((*event.metadata().level(), text.0));
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    fn log(level: c_int, text: &str) {
        let text = CString::new(text).unwrap();
        // SAFETY: a format of one string and that string; no class.
        unsafe { ffi::av_log(std::ptr::null_mut(), level, c"%s".as_ptr(), text.as_ptr()) }
    }

    #[test]
    fn lines_are_bounded_cleaned_and_never_above_warn() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            route_to_tracing();
            log(ffi::AV_LOG_PANIC, "one\n");
            log(ffi::AV_LOG_INFO, "two");
            log(ffi::AV_LOG_DEBUG, "never");
            log(ffi::AV_LOG_INFO, "a\x1b[31m\nb");
            log(ffi::AV_LOG_INFO, &"x".repeat(10_000));
            for _ in 0..100 {
                log(ffi::AV_LOG_ERROR, "again");
            }
        });
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines[0], (Level::WARN, "one".to_owned()));
        assert_eq!(lines[1], (Level::DEBUG, "two".to_owned()));
        assert_eq!(lines[2], (Level::DEBUG, "a [31m b".to_owned()));
        assert_eq!(lines[3].1.len(), MAX_LINE_BYTES - 1);
        assert_eq!(lines.len(), 104);
        // A second may have passed in between.
        let warnings = lines.iter().filter(|(level, _)| *level == Level::WARN).count() as u64;
        assert!((1..=2 * MAX_WARNINGS_PER_SECOND).contains(&warnings), "{warnings}");
    }
}
