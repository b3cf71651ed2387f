//! How well a broadcast comes in: what its tags and their arrival say about the encoder and its uplink.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use media::flv::{Tag, TagKind};
use serde::Serialize;

/// Figures are of the last so many seconds.
const WINDOW: Duration = Duration::from_secs(10);

/// Frames of a window that are looked at: more than any encoder makes.
const MAX_FRAMES: usize = 4096;

/// Keyframe intervals remembered.
const MAX_INTERVALS: usize = 16;

/// Timestamps that step by more than this have jumped: delays are measured anew from there.
const JUMP_MS: i64 = 5_000;

/// Media that comes this much later than the most punctual of the window: beyond what Wi-Fi and congestion control do.
const UNSTEADY: Duration = Duration::from_millis(500);

/// A keyframe is wanted at least this often: players wait for one at every join and switch.
const RARE_KEYFRAMES: Duration = Duration::from_secs(5);

/// Streams that a listing names: what fits on an operator's page.
pub const MAX_LISTED: usize = 1000;

/// What is wrong with a broadcast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Of four kinds: `keyframes`, `uplink`, `encoder`, `queue`.
    pub kind: &'static str,
    /// In words, for the broadcaster's ears.
    pub says: String,
}

/// The kinds of warnings.
pub const KINDS: [&str; 4] = ["keyframes", "uplink", "encoder", "queue"];

/// Health at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Bits per second of media.
    pub bitrate_bps: u64,
    /// Video frames per second of media time.
    pub fps: f64,
    /// Between the last two keyframes, in media time.
    pub keyframe_interval_ms: Option<u64>,
    /// Mean change of delay from frame to frame.
    pub jitter_ms: u64,
    /// How much later media comes than it came at its most punctual: what an uplink that is too slow adds to.
    pub lag_ms: u64,
    /// Steps of the timestamps that begin a new timeline.
    pub jumps: u64,
    /// Bytes that no origin has published yet.
    pub queue_bytes: u64,
    /// What is wrong.
    pub warnings: Vec<Warning>,
}

/// Watches one broadcast.
#[derive(Debug)]
pub struct Health {
    frames: VecDeque<Frame>,
    bytes: u64,
    last_ms: Option<u32>,
    /// Media time since the beginning, across jumps.
    media_ms: i64,
    began: Instant,
    /// Smallest difference between arrival and media time since the last jump.
    punctual_ms: i64,
    last_delay_ms: Option<i64>,
    jitter_ms: f64,
    last_key_ms: Option<i64>,
    intervals: VecDeque<i64>,
    jumps: u64,
}

/// Small, since there are hundreds. Times are milliseconds since the beginning, of 32 bits that wrap.
#[derive(Debug)]
struct Frame {
    arrived_ms: u32,
    media_ms: u32,
    bytes: u32,
    lag_ms: u16,
    video: bool,
}

impl Health {
    /// Of a broadcast that begins now.
    pub fn new(now: Instant) -> Health {
        Health {
            frames: VecDeque::new(),
            bytes: 0,
            last_ms: None,
            media_ms: 0,
            began: now,
            punctual_ms: i64::MAX,
            last_delay_ms: None,
            jitter_ms: 0.0,
            last_key_ms: None,
            intervals: VecDeque::new(),
            jumps: 0,
        }
    }

    /// A tag came.
    pub fn push(&mut self, now: Instant, tag: &Tag) {
        if tag.kind == TagKind::Script || tag.is_config() {
            return;
        }
        let step = self.last_ms.replace(tag.timestamp_ms).map_or(0, |last| {
            // 32 bits that wrap.
            i64::from(tag.timestamp_ms.wrapping_sub(last) as i32)
        });
        if step.abs() > JUMP_MS {
            self.jumps += 1;
            (self.punctual_ms, self.last_delay_ms, self.last_key_ms) = (i64::MAX, None, None);
        } else {
            self.media_ms += step;
        }
        let arrived_ms = now.saturating_duration_since(self.began).as_millis() as i64;
        let delay_ms = arrived_ms - self.media_ms;
        self.punctual_ms = self.punctual_ms.min(delay_ms);
        if let Some(last) = self.last_delay_ms.replace(delay_ms) {
            // RFC 3550, 6.4.1.
            self.jitter_ms += ((delay_ms - last).abs() as f64 - self.jitter_ms) / 16.0;
        }
        if tag.is_keyframe() {
            if let Some(last) = self.last_key_ms.replace(self.media_ms) {
                self.intervals.push_back(self.media_ms - last);
            }
            if self.intervals.len() > MAX_INTERVALS {
                self.intervals.pop_front();
            }
        }
        self.frames.push_back(Frame {
            arrived_ms: arrived_ms as u32,
            media_ms: self.media_ms as u32,
            bytes: tag.data.len() as u32,
            lag_ms: (delay_ms - self.punctual_ms).clamp(0, u16::MAX.into()) as u16,
            video: tag.kind == TagKind::Video,
        });
        self.bytes += tag.data.len() as u64;
        while self.frames.len() > MAX_FRAMES || self.span(now) > WINDOW {
            let gone = self.frames.pop_front().map_or(0, |frame| frame.bytes);
            self.bytes -= u64::from(gone);
        }
    }

    /// Since the oldest frame that is remembered.
    fn span(&self, now: Instant) -> Duration {
        let now_ms = now.saturating_duration_since(self.began).as_millis() as u32;
        let since = |frame: &Frame| Duration::from_millis(now_ms.wrapping_sub(frame.arrived_ms).into());
        self.frames.front().map_or(Duration::ZERO, since)
    }

    /// How things stand, with `queue_bytes` that no origin has published yet.
    pub fn report(&self, now: Instant, queue_bytes: u64) -> Report {
        let millis = self.span(now).as_millis().max(1000) as u64;
        let bitrate_bps = self.bytes * 8 * 1000 / millis;
        let (fps, usual_fps) = self.frame_rates();
        let lag_ms = u64::from(self.frames.iter().map(|frame| frame.lag_ms).max().unwrap_or(0));
        let mut warnings = Vec::new();
        let mut warn = |kind, says: String| warnings.push(Warning { kind, says });
        if let (Some(least), Some(most)) = (self.intervals.iter().min(), self.intervals.iter().max()) {
            if *most > RARE_KEYFRAMES.as_millis() as i64 {
                warn("keyframes", format!("keyframes are {most} ms apart: viewers wait for them; set 2 s"));
            } else if *most > 2 * (*least).max(1) {
                let says =
                    format!("keyframes come irregularly, {least} to {most} ms apart: set a fixed interval");
                warn("keyframes", says);
            }
        }
        if lag_ms > UNSTEADY.as_millis() as u64 {
            warn("uplink", format!("the uplink is unstable: media came up to {lag_ms} ms late"));
        }
        if usual_fps > 0.0 && fps < 0.85 * usual_fps {
            let says = format!("{fps:.1} of {usual_fps:.1} frames per second: the encoder is overloaded");
            warn("encoder", says);
        }
        // Segments and a take-over are seconds; more is an origin that does not keep up.
        if bitrate_bps > 0 && queue_bytes * 8 > bitrate_bps * 10 {
            let seconds = queue_bytes * 8 / bitrate_bps;
            warn("queue", format!("{seconds} s of media wait for an origin"));
        }
        Report {
            bitrate_bps,
            fps: (fps * 100.0).round() / 100.0,
            keyframe_interval_ms: self.intervals.back().map(|interval| (*interval).max(0) as u64),
            jitter_ms: self.jitter_ms.round() as u64,
            lag_ms,
            jumps: self.jumps,
            queue_bytes,
            warnings,
        }
    }

    /// Video frames per second of media, as it is and as the usual distance of two frames says.
    fn frame_rates(&self) -> (f64, f64) {
        let mut times = self.frames.iter().filter(|frame| frame.video).map(|frame| frame.media_ms);
        let Some(mut last) = times.next() else { return (0.0, 0.0) };
        let (mut frames, mut span, mut steps) = (0.0, 0, Vec::new());
        for time in times {
            let step = i64::from(time.wrapping_sub(last) as i32);
            (frames, span, last) = (frames + 1.0, span + step, time);
            if step > 0 {
                steps.push(step);
            }
        }
        if steps.is_empty() {
            return (0.0, 0.0);
        }
        steps.sort_unstable();
        // Times are rounded to milliseconds: the mean of the middle half says more than the one in the middle.
        let middle = &steps[steps.len() / 4..(steps.len() * 3).div_ceil(4)];
        let usual = middle.iter().sum::<i64>() as f64 / middle.len() as f64;
        (frames * 1000.0 / span.max(1) as f64, 1000.0 / usual)
    }
}

/// The broadcasts that come in, for operators. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, Entry>>>);

/// One broadcast.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The stream.
    pub stream: String,
    /// The broadcaster's address.
    pub peer: String,
    /// How it stands, at most a second old while media comes.
    #[serde(flatten)]
    pub report: Report,
}

impl Board {
    /// Shows how the broadcast of a session stands.
    pub fn show(&self, session: &str, entry: Entry) {
        self.entries().insert(session.into(), entry);
    }

    /// The session is over.
    pub fn remove(&self, session: &str) {
        self.entries().remove(session);
    }

    /// At most [`MAX_LISTED`] broadcasts by session, those with warnings first; only those of `stream` if it is given. And
    /// how many there are.
    pub fn list(&self, stream: Option<&str>) -> (Vec<(String, Entry)>, usize) {
        let entries = self.entries();
        let wanted = |entry: &Entry| stream.is_none_or(|stream| entry.stream == stream);
        let mut found: Vec<_> = entries.iter().filter(|(_, entry)| wanted(entry)).collect();
        found.sort_by_key(|(_, entry)| entry.report.warnings.is_empty());
        let count = found.len();
        let listed = found.into_iter().take(MAX_LISTED);
        (listed.map(|(session, entry)| (session.clone(), entry.clone())).collect(), count)
    }

    /// How many broadcasts have a warning of each of [`KINDS`].
    pub fn warnings(&self) -> [(&'static str, i64); 4] {
        let entries = self.entries();
        KINDS.map(|kind| {
            let has = |entry: &&Entry| entry.report.warnings.iter().any(|warning| warning.kind == kind);
            (kind, entries.values().filter(has).count() as i64)
        })
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 1000 bytes: each arrives at `.0` with time `.1`, and is a keyframe if `.2`.
    fn report(frames: impl IntoIterator<Item = (u64, u32, bool)>, queue: u64) -> Report {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let began = Instant::now();
        let mut health = Health::new(began);
        let mut last = 0;
        for (at, timestamp_ms, key) in frames {
            let mut data = vec![0; 1000];
            (data[0], data[1]) = (if key { 0x17 } else { 0x27 }, 1);
            let tag = Tag { kind: TagKind::Video, timestamp_ms, data: data.into() };
            health.push(began + Duration::from_millis(at), &tag);
            last = at;
        }
        health.report(began + Duration::from_millis(last), queue)
    }

    fn kinds(report: &Report) -> Vec<&str> {
        report.warnings.iter().map(|warning| warning.kind).collect()
    }

    /// 30 frames per second with a keyframe each two, from `base` on.
    fn regular(n: u32, base: u32) -> impl Iterator<Item = (u64, u32, bool)> {
        (0..n).map(move |i| (u64::from(i) * 1000 / 30, base.wrapping_add(i * 1000 / 30), i % 60 == 0))
    }

    #[test]
    fn a_good_broadcast_has_no_warnings() {
        for base in [0, u32::MAX - 10_000] {
            let report = report(regular(900, base), 100_000);
            assert_eq!(report.warnings, []);
            assert!((235_000..245_000).contains(&report.bitrate_bps), "{report:?}");
            assert!((29.9..30.1).contains(&report.fps), "{report:?}");
            assert_eq!((report.keyframe_interval_ms, report.jumps), (Some(2000), 0));
            assert!(report.jitter_ms <= 1 && report.lag_ms <= 1, "{report:?}");
        }
        assert_eq!(report([], 0).warnings, []);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let irregular =
            regular(900, 0).map(|(at, ms, _)| (at, ms, [0, 1000, 4000, 5000, 9000].contains(&ms)));
        assert_eq!(kinds(&report(irregular, 0)), ["keyframes"]);
        let rare = regular(900, 0).map(|(at, ms, _)| (at, ms, ms % 10_000 == 0));
        assert_eq!(kinds(&report(rare, 0)), ["keyframes"]);
        let bursts = regular(900, 0).map(|(at, ms, key)| (at.next_multiple_of(900), ms, key));
        assert_eq!(kinds(&report(bursts, 0)), ["uplink"]);
        let slow = regular(900, 0).map(|(at, ms, key)| (at * 11 / 10, ms, key));
        assert_eq!(kinds(&report(slow, 0)), ["uplink"], "ever later");
        let dropping = regular(900, 0).filter(|(_, ms, key)| *key || ms % 1000 < 700);
        assert_eq!(kinds(&report(dropping, 0)), ["encoder"]);
        assert_eq!(kinds(&report(regular(900, 0), 1_000_000)), ["queue"]);
    }

    #[test]
    fn a_jump_is_counted_and_is_no_lag() {
        let jumps = regular(450, 0).chain(regular(450, 1 << 30).map(|(at, ms, key)| (at + 15_000, ms, key)));
        let report = report(jumps, 0);
        assert_eq!((report.jumps, report.warnings.as_slice()), (1, &[][..]), "{report:?}");
    }

    #[test]
    fn the_board_lists_those_in_trouble_first() {
        let board = Board::default();
        let entry = |stream: &str, queue| Entry {
            stream: stream.into(),
            peer: String::new(),
            report: report(regular(300, 0), queue),
        };
        board.show("s1", entry("a", 0));
        board.show("s2", entry("b", 1_000_000));
        let sessions =
            |stream| board.list(stream).0.into_iter().map(|(session, _)| session).collect::<Vec<_>>();
        assert_eq!(
            (sessions(None), sessions(Some("a"))),
            (vec!["s2".into(), "s1".into()], vec!["s1".into()])
        );
        assert_eq!(board.warnings()[3], ("queue", 1));
        for n in 0..MAX_LISTED {
            board.show(&format!("x{n}"), entry("x", 0));
        }
        assert_eq!((board.list(None).0.len(), board.list(None).1), (MAX_LISTED, MAX_LISTED + 2));
        board.remove("s2");
        assert_eq!(sessions(Some("b")), [""; 0]);
    }
}
