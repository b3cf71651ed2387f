//! Raw source times to the stream timeline: frames of a regular rate lie on its exact grid, audio is timed by its
//! sample counts, so that nothing drifts; what does not fit is repaired and counted.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeSet;

use media::time::{FrameRate, Ticks, Timescale};

/// A frame this close to the grid is on it: FLV times are rounded to milliseconds, some muxers round twice.
const GRID_TOLERANCE: Ticks = 90 * 3 / 2;

/// Audio this close to its sample count is on it: encoders stamp audio blocks up to a block late.
const AUDIO_TOLERANCE_MS: i64 = 30;

/// Presentation times remembered to keep them unique: beyond any reordering depth (16 frames in H.264).
const RECENT: usize = 64;

/// The times of one frame on the stream timeline, in its track's timescale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Decoding time.
    pub dts: Ticks,
    /// Presentation time; unique within its track.
    pub pts: Ticks,
    /// Zero where only the next frame can tell.
    pub duration: Ticks,
}

/// How often what was repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs {
    /// The grid of the frame rate was laid anew because frames had drifted off it.
    pub grid_shifts: u64,
    /// Audio was moved because its times and its sample count disagreed.
    pub audio_shifts: u64,
    /// Audio was left out because what came before covered its time.
    pub audio_overlaps: u64,
    /// Two frames claimed the same presentation time: the second was moved by a tick.
    pub collisions: u64,
    /// A frame's decoding time was not later than the one before.
    pub regressions: u64,
}

impl Repairs {
    /// Each kind's name and count.
    pub fn kinds(&self) -> [(&'static str, u64); 5] {
        [
            ("grid", self.grid_shifts),
            ("audio_shift", self.audio_shifts),
            ("audio_overlap", self.audio_overlaps),
            ("presentation_collision", self.collisions),
            ("decoding_regression", self.regressions),
        ]
    }
}

/// The clock of one run: `zero_ms` of the source is `base` on the stream timeline (90 kHz).
#[derive(Debug)]
pub struct Repair {
    base: Ticks,
    zero_ms: i64,
    rate: Option<FrameRate>,
    grid_zero: Ticks,
    recent: BTreeSet<Ticks>,
    last_dts: Option<Ticks>,
    audio: Option<AudioClock>,
    repairs: Repairs,
}

#[derive(Debug)]
struct AudioClock {
    timescale: Timescale,
    base: Ticks,
    next: Option<Ticks>,
}

impl Repair {
    /// A clock that maps source time `zero_ms` to `base`. `audio` is its timescale.
    pub fn new(base: Ticks, zero_ms: i64, rate: Option<FrameRate>, audio: Option<Timescale>) -> Self {
        let audio = audio.map(|timescale| AudioClock {
            timescale,
            base: Timescale::VIDEO.rescale(base, timescale),
            next: None,
        });
        let recent = BTreeSet::new();
        let repairs = Repairs::default();
        Self { base, zero_ms, rate, grid_zero: base, recent, last_dts: None, audio, repairs }
    }

    /// Audio goes on at `pts` (in its timescale), which its first frame is close to.
    pub fn continue_audio(&mut self, pts: Ticks) {
        if let Some(clock) = &mut self.audio {
            clock.next = Some(pts);
        }
    }

    /// Video lies so much later from now on (90 kHz, less than a millisecond): another clock shows the same moments,
    /// rounded otherwise. Audio is timed by its samples.
    pub fn nudge(&mut self, ticks: Ticks) {
        self.base += ticks;
    }

    /// Times of a video frame, 90 kHz. `pts_nanos` is what it is shown later than the milliseconds say.
    pub fn video(&mut self, dts_ms: i64, pts_ms: i64, pts_nanos: u32) -> Times {
        let raw = self.base + (pts_ms - self.zero_ms) * 90 + Ticks::from(pts_nanos) * 90 / 1_000_000;
        let (mut pts, duration) = match self.rate {
            Some(rate) => self.on_grid(raw, rate),
            None => (raw, 0),
        };
        while !self.recent.insert(pts) {
            self.repairs.collisions += 1;
            pts += 1;
        }
        if self.recent.len() > RECENT {
            self.recent.pop_first();
        }
        // Decoding order is what counts for a decoder; the exact decoding time only has to grow.
        let raw_dts = self.base + (dts_ms - self.zero_ms) * 90;
        let dts = self.last_dts.map_or(raw_dts, |last| raw_dts.max(last + 1));
        self.repairs.regressions += u64::from(dts != raw_dts);
        self.last_dts = Some(dts);
        Times { dts, pts, duration }
    }

    /// The place of a moment, 90 kHz, as far as milliseconds tell.
    pub fn moment(&self, ms: i64) -> Ticks {
        self.base + (ms - self.zero_ms) * 90
    }

    /// Times of an audio frame of so many samples in the audio timescale; `None` for a frame that lies wholly in what was already
    /// covered.
    pub fn audio(&mut self, ms: i64, samples: u32) -> Option<Times> {
        let clock = self.audio.as_mut()?;
        let duration = Ticks::from(samples);
        let raw = clock.base + Timescale::MILLIS.rescale(ms - self.zero_ms, clock.timescale);
        let tolerance = Timescale::MILLIS.rescale(AUDIO_TOLERANCE_MS, clock.timescale).max(duration);
        let pts = match clock.next {
            None => raw,
            Some(next) if (raw - next).abs() <= tolerance => next,
            Some(next) => {
                if raw + duration <= next - tolerance {
                    self.repairs.audio_overlaps += 1;
                    return None;
                }
                self.repairs.audio_shifts += 1;
                raw.max(next)
            }
        };
        clock.next = Some(pts + duration);
        Some(Times { dts: pts, pts, duration })
    }

    /// What was repaired so far.
    pub fn repairs(&self) -> Repairs {
        self.repairs
    }

    fn on_grid(&mut self, raw: Ticks, rate: FrameRate) -> (Ticks, Ticks) {
        let nearest = |zero: Ticks| {
            let frames = i128::from(raw - zero) * i128::from(rate.num);
            let scale = i128::from(rate.den) * i128::from(Timescale::VIDEO.per_second());
            (frames * 2 + scale).div_euclid(scale * 2) as i64
        };
        let start = |zero: Ticks, index: i64| zero + rate.frame_start(index, Timescale::VIDEO);
        let mut index = nearest(self.grid_zero);
        if (start(self.grid_zero, index) - raw).abs() > GRID_TOLERANCE {
            self.repairs.grid_shifts += 1;
            self.grid_zero = raw;
            index = 0;
        }
        let pts = start(self.grid_zero, index);
        (pts, start(self.grid_zero, index + 1) - pts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_video_lies_on_the_exact_grid_for_a_day() {
        for (num, den) in [(30, 1), (25, 1), (30000, 1001), (24000, 1001), (60000, 1001), (60, 1)] {
            let rate = FrameRate { num, den };
            let mut repair = Repair::new(900_000, 5_000, Some(rate), None);
            for index in (0..rate.num as i64 * 86_400 / rate.den as i64).step_by(997) {
                let ms = 5_000 + rate.frame_start(index, Timescale::MILLIS);
                let times = repair.video(ms, ms, 0);
                assert_eq!(
                    times.pts,
                    900_000 + rate.frame_start(index, Timescale::VIDEO),
                    "{rate:?} frame {index}"
                );
                assert_eq!(
                    times.pts + times.duration,
                    900_000 + rate.frame_start(index + 1, Timescale::VIDEO)
                );
            }
            assert_eq!(repair.repairs(), Repairs::default());
        }
    }

    #[test]
    fn odd_times_stay_ordered_and_unique() {
        let mut repair = Repair::new(900_000, 0, Some(FrameRate { num: 30, den: 1 }), None);
        let mut seen = BTreeSet::new();
        let mut last_dts = -1;
        // Jitter, a doubled time, a step back of decoding time.
        for ms in [0, 33, 70, 70, 69, 140, 141, 171, 900] {
            let times = repair.video(ms, ms, 0);
            assert!(seen.insert(times.pts) && times.dts > last_dts, "{ms}");
            last_dts = times.dts;
        }
        assert!(repair.repairs().grid_shifts > 0 && repair.repairs().collisions > 0);
    }

    #[test]
    fn audio_is_timed_by_its_samples() {
        let rate = Timescale::new(44_100).unwrap();
        let mut repair = Repair::new(900_000, 100, None, Some(rate));
        let mut expected = 441_000;
        for index in 0..100_000i64 {
            let ms = 100 + index * 1024 * 1000 / 44_100;
            assert_eq!(repair.audio(ms, 1024).unwrap().pts, expected, "frame {index}");
            expected += 1024;
        }
        // Half a second is missing: later frames move on by as much.
        let ms = 100 + 100_000 * 1024 * 1000 / 44_100 + 500;
        let moved = repair.audio(ms, 1024).unwrap().pts - expected;
        assert!((22_000..22_100).contains(&moved), "{moved}");
        assert_eq!(repair.audio(ms - 400, 1024), None, "a frame of the past");
        assert_eq!((repair.repairs().audio_shifts, repair.repairs().audio_overlaps), (1, 1));
    }

    /// A source with jitter, losses, doubled times, reordering and steps back.
    #[test]
    fn whatever_comes_lies_in_order_near_where_it_was_sent() {
        let mut seed = 17u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) % below) as i64
        };
        let rates = [None, Some((25, 1)), Some((30_000, 1001)), Some((24_000, 1001)), Some((60_000, 1001))];
        for round in 0..200 {
            let rate = rates[round % rates.len()].map(|(num, den)| FrameRate { num, den });
            let fps = rate.unwrap_or(FrameRate { num: 30, den: 1 });
            let timescale = Timescale::new([44_100, 48_000, 22_050][round % 3]).unwrap();
            let mut repair = Repair::new(900_000, 1_000, rate, Some(timescale));
            let (mut seen, mut last_dts, mut last_end) = (BTreeSet::new(), Ticks::MIN, Ticks::MIN);
            let (mut frames, mut counted) = (0, 0);
            for index in 0..300 {
                let jitter = if random(4) == 0 { random(9) - 4 } else { 0 };
                let ms = 1_000 + fps.frame_start(index, Timescale::MILLIS) + jitter;
                let (composition, nanos) = (random(4) * 33, random(1_000_000) as u32);
                if random(12) > 0 {
                    let Times { dts, pts, duration } = repair.video(ms, ms + composition, nanos);
                    assert!(seen.insert(pts), "presentation times are unique");
                    assert!(dts > last_dts && duration >= 0, "decoding times grow");
                    let raw = 900_000 + (ms + composition - 1_000) * 90;
                    assert!(
                        (pts - raw).abs() <= GRID_TOLERANCE + 90 + 2 * RECENT as i64,
                        "{} ticks off",
                        pts - raw
                    );
                    last_dts = dts;
                }
                let samples = [1024, 960, 120][random(3) as usize];
                let sent = 1_000 + index * 23 + random(70) - 35;
                if let Some(Times { pts, duration, .. }) = repair.audio(sent, samples as u32) {
                    assert!(pts >= last_end && duration == samples, "audio does not overlap");
                    let raw = Timescale::VIDEO.rescale(900_000, timescale)
                        + Timescale::MILLIS.rescale(sent - 1_000, timescale);
                    let most = Timescale::MILLIS.rescale(AUDIO_TOLERANCE_MS, timescale).max(1024) + 1024;
                    assert!((pts - raw).abs() <= most, "audio is {} samples off", pts - raw);
                    last_end = pts + duration;
                } else {
                    frames += 1;
                }
                let now: u64 = repair.repairs().kinds().iter().map(|(_, count)| count).sum();
                assert!(now >= counted, "counts never go back");
                counted = now;
            }
            assert_eq!(repair.repairs().audio_overlaps, frames, "what is left out is counted");
        }
    }

    #[test]
    fn nanoseconds_place_frames_between_milliseconds() {
        let mut repair = Repair::new(0, 0, None, None);
        let placed =
            [(0, 0), (16, 666_667), (33, 333_333)].map(|(ms, nanos)| repair.video(ms, ms, nanos).pts);
        assert_eq!(placed, [0, 1500, 2999]);
    }
}
