//! The MPD of a stream, and since when it is what it is.

use super::{Inner, Live};
use crate::dvr::PastRuns;

/// The newest MPD that was given out, and when it first was, milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Published {
    text: String,
    unix_ms: i64,
}

impl Live {
    /// The MPD at `unix_ms`; `None` before the first run. As long as it says the same it is the same to the byte:
    /// `publishTime` is when it was first given out, so that caches may revalidate it, and players see that nothing is new.
    pub fn mpd(
        &self,
        latency_ms: u64,
        unix_ms: i64,
        time_url: &str,
        past: Option<&PastRuns>,
    ) -> Option<String> {
        let mut inner = self.lock();
        let Inner { state, broadcast, published, .. } = &mut *inner;
        let broadcast = broadcast.as_ref()?;
        let render = |published_unix_ms| broadcast.mpd(*state, latency_ms, published_unix_ms, time_url, past);
        // What is listed before the window is each viewer's own.
        if past.is_some() {
            return Some(render(unix_ms));
        }
        let text = render(published.unix_ms);
        if text == published.text {
            return Some(text);
        }
        // A later version is never published earlier, whatever the clock does.
        published.unix_ms = unix_ms.max(published.unix_ms + 1);
        published.text = render(published.unix_ms);
        Some(published.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::tests::{T0, run};

    fn publish_time(mpd: &str) -> &str {
        mpd.split("publishTime=\"").nth(1).unwrap().split('"').next().unwrap()
    }

    #[test]
    fn what_says_the_same_is_the_same() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 40);
        let mpd = |unix_ms| live.mpd(1500, unix_ms, "/time", None).unwrap();
        let first = mpd(T0 + 40_000);
        assert_eq!(publish_time(&first), "2023-11-14T22:14:00.000Z");
        assert_eq!(mpd(T0 + 41_000), first);
        live.interrupt(false);
        run(&live, 2, T0 + 50_000, &["360p", "audio"], 1);
        // A clock that was set back.
        let second = mpd(T0 + 39_000);
        assert_eq!(publish_time(&second), "2023-11-14T22:14:00.001Z");
        assert_eq!(mpd(T0 + 60_000), second);
        assert!(second.contains("period-connectivity:2015\" value=\"1\""), "{second}");
        assert!(!second.contains("period-continuity"), "there is a gap between: {second}");
    }
}
