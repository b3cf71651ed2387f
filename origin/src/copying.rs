//! When a source's video may be passed through, and where its segments begin: at keyframes that are where segments should
//! be, or not at all.
#![deny(clippy::disallowed_methods)]

use media::time::Ticks;

use crate::hls::Targets;

/// A segment may be this much longer or shorter than the others, an eighth of it at most, 90 kHz: encoders that place
/// keyframes by the clock are a few frames off.
const MAX_OFF: Ticks = 18_000;

/// Less than this leaves no room for them: about a frame at 25 frames a second.
const MIN_OFF: Ticks = 4_500;

/// How far a segment of `duration` may be off without being longer than its playlist may say.
fn allowed_off(duration: Ticks) -> Ticks {
    let targets = Targets { segment_duration: duration, part_target: 0 };
    // Durations are rounded to seconds, halves up.
    let longest = targets.target_duration() * 90_000 + 44_999;
    (longest - duration).min(duration / 8).min(MAX_OFF)
}

/// How long segments (90 kHz) are for a source with a keyframe each `interval`: the shortest whole number of intervals that
/// is at least what is `wanted` (numbers of segments never run ahead of the clock) and can be kept to. `None` if that is more
/// than `most`.
pub fn segment_duration(interval: Ticks, wanted: Ticks, most: Ticks) -> Option<Ticks> {
    if interval <= 0 {
        return None;
    }
    let first = (wanted + interval - 1) / interval;
    let multiples = (first.max(1)..).map(|count| count.saturating_mul(interval));
    multiples.take_while(|duration| *duration <= most).find(|duration| allowed_off(*duration) >= MIN_OFF)
}

/// What a frame of the source is to the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The segment of this index, counted from the run's first, begins with it.
    Begins(i64),
    /// It belongs to the segment before.
    Within,
    /// A segment should have begun by now, and no keyframe came: passing through must end before this frame.
    Missing,
}

/// Finds the frames with which segments begin. All renditions of the run cut there.
#[derive(Debug, Clone)]
pub struct Cuts {
    start: Ticks,
    duration: Ticks,
    off: Ticks,
    next: i64,
    last: Ticks,
}

impl Cuts {
    /// A run that begins at `start` with segments of `duration`, 90 kHz.
    pub fn new(start: Ticks, duration: Ticks) -> Cuts {
        Cuts { start, duration, off: allowed_off(duration), next: 0, last: start }
    }

    /// Takes the next frame in decoding order: when it is shown, and whether a segment may begin with it.
    pub fn frame(&mut self, pts: Ticks, closed: bool) -> Cut {
        if self.next == 0 {
            return match closed && (pts - self.start).abs() <= 90 {
                true => self.begin(pts),
                false => Cut::Missing,
            };
        }
        // As long as a segment should be, and not too far from where all of them together say.
        let length = pts - self.last;
        let drift = pts - (self.start + self.next * self.duration);
        let due = length >= self.duration - self.off;
        if closed && due && length <= self.duration + self.off && drift.abs() <= self.duration / 4 {
            return self.begin(pts);
        }
        if length > self.duration + self.off { Cut::Missing } else { Cut::Within }
    }

    fn begin(&mut self, pts: Ticks) -> Cut {
        (self.last, self.next) = (pts, self.next + 1);
        Cut::Begins(self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_whole_numbers_of_keyframe_intervals() {
        let check = |interval_ms: i64, wanted_ms: i64, expected_ms: Option<i64>| {
            let found = segment_duration(interval_ms * 90, wanted_ms * 90, 4_000 * 90);
            assert_eq!(found, expected_ms.map(|ms| ms * 90), "{interval_ms} {wanted_ms}");
        };
        check(1000, 1000, Some(1000));
        check(2000, 1000, Some(2000));
        check(500, 1000, Some(1000));
        check(960, 1000, Some(1920));
        check(250, 2000, Some(2000));
        check(2002, 1000, Some(2002));
        check(4000, 1000, Some(4000));
        check(4040, 1000, None);
        check(10_000, 1000, None);
        // Half a second below a whole one: the playlist has no room for more.
        check(1480, 1000, Some(2960));
        check(1490, 1000, Some(2980));
        check(0, 1000, None);
        check(-5, 1000, None);
    }

    /// Frames as `ms` or `ms!` for a keyframe; what they are to a run from 0 with segments of a second.
    fn cuts(script: &str) -> String {
        let mut cuts = Cuts::new(0, 90_000);
        let said = script.split(' ').map(|word| {
            let (ms, closed) = word.strip_suffix('!').map_or((word, false), |ms| (ms, true));
            match cuts.frame(ms.parse::<i64>().unwrap() * 90, closed) {
                Cut::Begins(index) => index.to_string(),
                Cut::Within => ".".to_owned(),
                Cut::Missing => "x".to_owned(),
            }
        });
        said.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn segments_begin_with_keyframes_where_they_should() {
        let check = |script, expected| assert_eq!(cuts(script), expected, "{script}");
        check("0! 500 1000! 1500 2000!", "0 . 1 . 2");
        // Keyframes of scene changes do not cut; those a little off do.
        check("0! 300! 960! 1400! 2020!", "0 . 1 . 2");
        // Reordered frames are shown before the keyframe.
        check("0! 400 200 800 600 1000! 1400 1200", "0 . . . . 1 . .");
        check("0! 500 1000 1100 1130", "0 . . . x");
        check("0! 800! 1130", "0 . x");
        check("0", "x");
        check("40!", "x");
    }

    #[test]
    fn a_steady_drift_is_followed_as_far_as_players_can() {
        let mut cuts = Cuts::new(0, 90_000);
        let mut begun = 0;
        for index in 0.. {
            if cuts.frame(index * 90_010, true) != Cut::Begins(index) {
                break;
            }
            begun = index;
        }
        assert_eq!(begun, 2250, "a quarter of a segment");
    }
}
