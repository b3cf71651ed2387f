//! Two sessions of one broadcaster: where the frames of the new one stand among those that the old one brought, so that
//! none is lost and none comes twice.
//!
//! A [`Trail`] remembers prints of the newest frames; a [`Head`] is what a new session begins with. The same encoder
//! shows by its frames (several in a row are equal, at times that differ by one offset) or by its clock (it goes on where
//! it was, in the media and on the wall). Everything else is another beginning.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::codec::{AudioConfig, VideoConfig};
use media::time::{FrameRate, Ticks};

use crate::feed::Source;

/// Frames of each kind that are remembered: half a minute of video at 60 frames a second, three quarters of audio.
pub const MAX_FRAMES: usize = 2048;

/// Frames of a new session, of its leading track, that are looked at before it counts as another beginning.
const HEAD_FRAMES: usize = 12;

/// The same in media time of any track, where frames of that one are rare: a screen share may send one in ten seconds.
const HEAD_MS: i64 = 1_000;

/// Frames held while they are looked at have at most so many bytes.
const HEAD_BYTES: usize = 32 << 20;

/// Two muxers round the same time to milliseconds, each from an origin of its own.
const SLACK_MS: i64 = 2;

/// Frames that must be equal and occur but once, where the clock began anew: a still picture or silence repeats itself.
const EVIDENCE: usize = 4;

/// How far apart on the wall clock the two sessions may bring one frame, where the clock began anew: an encoder that is
/// started again on the same file sends the same frames too, and means another showing of them.
const MAX_LAG_MS: i64 = 2_000;

/// The same where the clock goes on: what an encoder sends again from its last keyframe.
const MAX_AGAIN_MS: i64 = 10_000;

/// How far the encoder's clock and the wall clock may differ in how long the broadcaster was away: what a congested
/// uplink holds back.
const MAX_DRIFT_MS: i64 = 5_000;

/// What tells one frame from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// Keyed hash of the payload.
    pub hash: u64,
    /// Decoding can start here.
    pub key: bool,
    /// Decoding time, unwrapped source milliseconds.
    pub dts_ms: i64,
    /// Presentation time, the same.
    pub pts_ms: i64,
    /// When it came to this origin, milliseconds since 1970.
    pub came_ms: i64,
    /// Its place on the timeline, 90 kHz; of no meaning in a [`Head`].
    pub at: Ticks,
}

/// What frames are made with: another one makes other frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    video: Option<VideoConfig>,
    audio: Option<AudioConfig>,
    frame_rate: Option<FrameRate>,
}

impl From<&Source> for Setup {
    fn from(source: &Source) -> Self {
        let Source { video, audio, frame_rate, .. } = source.clone();
        Self { video, audio, frame_rate }
    }
}

/// The newest frames of a stream.
#[derive(Debug, Default)]
pub struct Trail {
    setup: Option<Setup>,
    video: VecDeque<Print>,
    audio: VecDeque<Print>,
    /// Decoding time of the first frame of the session's leading track.
    began_ms: Option<i64>,
}

/// The first frames of a session.
#[derive(Debug, Default)]
pub struct Head {
    setup: Option<Setup>,
    video: Vec<Print>,
    audio: Vec<Print>,
    bytes: usize,
}

/// How the clock of a new session stands to the trail's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// To be subtracted from the new session's milliseconds.
    pub offset_ms: i64,
    /// What the mean of several frames says beyond that, 90 kHz: to be added to their places.
    pub nudge: Ticks,
}

/// What a new session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It begins with frames of the trail.
    Repeats(Shift),
    /// It begins behind the trail, on the same clock.
    Follows {
        /// By a whole number of wraps.
        shift: Shift,
        /// Media time that is missing between the two; 0 when the next frame is the next.
        gap_ms: i64,
    },
    /// Another beginning.
    Unrelated,
}

/// What of a new session was there before: frames decoded up to these times, in the new session's milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    video_ms: Option<i64>,
    audio_ms: Option<i64>,
}

impl Known {
    /// Whether a frame was there before.
    pub fn covers(&self, video: bool, dts_ms: i64) -> bool {
        // Frames are farther apart than times are off.
        let until = if video { self.video_ms } else { self.audio_ms };
        until.is_some_and(|until| dts_ms < until + SLACK_MS)
    }
}

impl Trail {
    /// Whether nothing was noted.
    pub fn is_empty(&self) -> bool {
        self.video.is_empty() && self.audio.is_empty()
    }

    /// A run of frames begins that has nothing to do with those before.
    pub fn restart(&mut self, setup: Setup) {
        *self = Self { setup: Some(setup), ..Self::default() };
    }

    /// The next frame of a track, in decoding order.
    pub fn push(&mut self, video: bool, print: Print) {
        if video == self.setup.as_ref().is_some_and(|setup| setup.video.is_some()) {
            self.began_ms.get_or_insert(print.dts_ms);
        }
        let track = if video { &mut self.video } else { &mut self.audio };
        if track.len() >= MAX_FRAMES {
            track.pop_front();
        }
        track.push_back(print);
    }

    /// What the beginning of a session means.
    pub fn judge(&self, head: &Head) -> Verdict {
        if self.setup.is_none() || self.setup != head.setup {
            return Verdict::Unrelated;
        }
        let (trail, first) = (self.leading(), head.leading().first());
        let Some((first, last)) = first.zip(trail.back()) else { return Verdict::Unrelated };
        // The newest first: where times do not tell, evidence is of frames that occur once, and that is one place.
        let repeated = (0..trail.len()).rev().filter(|index| trail[*index].key == first.key);
        if let Some(shift) = repeated.filter_map(|index| self.repeated(head, index)).next() {
            return Verdict::Repeats(shift);
        }
        let away_ms = near(first.dts_ms - last.dts_ms);
        let wall_ms = first.came_ms - last.came_ms;
        if away_ms <= SLACK_MS || (wall_ms - away_ms).abs() > MAX_DRIFT_MS {
            return Verdict::Unrelated;
        }
        let shift = Shift { offset_ms: first.dts_ms - last.dts_ms - away_ms, nudge: 0 };
        let next_ms = step_ms(trail);
        let gap_ms = if is_next(away_ms, next_ms) { 0 } else { away_ms - next_ms };
        Verdict::Follows { shift, gap_ms }
    }

    /// Whether everything that the old session is to bring is there: the new one may go on.
    pub fn reaches(&self, head: &Head, verdict: Verdict) -> bool {
        let shift = match verdict {
            Verdict::Repeats(shift) | Verdict::Follows { shift, gap_ms: 0 } => shift,
            Verdict::Follows { .. } | Verdict::Unrelated => return false,
        };
        let has = |setup: &Setup| (setup.video.is_some(), setup.audio.is_some());
        if self.setup.as_ref().map(has) != Some((true, true)) {
            return true;
        }
        // Audio travels a little behind or ahead of its video.
        match (self.audio.back(), head.audio.first()) {
            (Some(last), Some(first)) => {
                let away_ms = first.dts_ms - shift.offset_ms - last.dts_ms;
                away_ms <= 0 || is_next(away_ms, step_ms(&self.audio))
            }
            (None, _) => true,
            (Some(_), None) => false,
        }
    }

    /// What of the new session is in the trail.
    pub fn known(&self, shift: Shift) -> Known {
        let until = |track: &VecDeque<Print>| Some(track.back()?.dts_ms + shift.offset_ms);
        Known { video_ms: until(&self.video), audio_ms: until(&self.audio) }
    }

    /// The place of what the new session shows at `pts_ms` of its clock, 90 kHz.
    pub fn place(&self, shift: Shift, pts_ms: i64) -> Option<Ticks> {
        let last = self.leading().back()?;
        Some(last.at + (pts_ms - shift.offset_ms - last.pts_ms) * 90 + shift.nudge)
    }

    /// The session that began with `head` goes on in this trail: times are its own from now on.
    pub fn adopt(&mut self, head: &Head, shift: Shift) {
        for print in self.video.iter_mut().chain(&mut self.audio) {
            print.dts_ms += shift.offset_ms;
            print.pts_ms += shift.offset_ms;
        }
        self.began_ms = head.leading().first().map(|first| first.dts_ms);
    }

    fn leading(&self) -> &VecDeque<Print> {
        if self.setup.as_ref().is_some_and(|setup| setup.video.is_some()) { &self.video } else { &self.audio }
    }

    /// Whether the head begins with the frame at `index` of the leading track.
    fn repeated(&self, head: &Head, index: usize) -> Option<Shift> {
        let (trail, leading) = (self.leading(), head.leading());
        let first = trail[index];
        let offset_ms = leading[0].dts_ms - first.dts_ms;
        let pairs = || trail.iter().skip(index).zip(leading);
        for (nth, (old, new)) in pairs().enumerate() {
            let in_time = (new.dts_ms - old.dts_ms - offset_ms).abs() <= SLACK_MS
                && (new.pts_ms - old.pts_ms - offset_ms).abs() <= SLACK_MS;
            // Some encoders put something of their own into the first frame of a connection.
            let may_differ = nth == 0 && head.has_video();
            if !in_time || old.key != new.key || (old.hash != new.hash && !may_differ) {
                return None;
            }
        }
        let equal = pairs().filter(|(old, new)| old.hash == new.hash);
        let single = |track: &VecDeque<Print>, hash| track.iter().filter(|p| p.hash == hash).nth(1).is_none();
        let mut proven = equal.clone().filter(|(old, _)| single(trail, old.hash)).count();
        if head.has_video() {
            for new in &head.audio {
                let at_its_time = |old: &&Print| (new.dts_ms - old.dts_ms - offset_ms).abs() <= SLACK_MS + 1;
                match self.audio.iter().find(at_its_time) {
                    Some(old) if old.hash != new.hash => return None,
                    Some(old) => proven += usize::from(single(&self.audio, old.hash)),
                    None => {}
                }
            }
        }
        let lag_ms = leading[0].came_ms - first.came_ms;
        let goes_on = near(offset_ms).abs() <= SLACK_MS
            && self.began_ms.is_some_and(|began_ms| (first.dts_ms - began_ms).abs() > SLACK_MS);
        let convinces = match goes_on {
            // The same frame at the same time of a clock that runs on.
            true => equal.count() > 0 && lag_ms.abs() <= MAX_AGAIN_MS,
            false => proven >= EVIDENCE && lag_ms.abs() <= MAX_LAG_MS,
        };
        let off_ms = pairs().map(|(old, new)| new.dts_ms - old.dts_ms - offset_ms).sum::<i64>();
        let nudge = -off_ms * 90 / pairs().count().max(1) as i64;
        convinces.then_some(Shift { offset_ms, nudge })
    }
}

impl Head {
    /// The session's tracks are known.
    pub fn start(&mut self, setup: Setup) {
        self.setup = Some(setup);
    }

    /// Its next frame, of so many bytes.
    pub fn push(&mut self, video: bool, print: Print, bytes: usize) {
        self.bytes += bytes;
        if video { &mut self.video } else { &mut self.audio }.push(print);
    }

    /// Whether it has all that is looked at.
    pub fn is_enough(&self) -> bool {
        let leading = self.leading();
        let since = |last: &Print| leading.first().map_or(0, |first| last.dts_ms - first.dts_ms);
        let span_ms =
            [&self.video, &self.audio].into_iter().filter_map(|track| track.last()).map(since).max();
        leading.len() >= HEAD_FRAMES || span_ms >= Some(HEAD_MS) || self.bytes >= HEAD_BYTES
    }

    fn has_video(&self) -> bool {
        self.setup.as_ref().is_some_and(|setup| setup.video.is_some())
    }

    fn leading(&self) -> &[Print] {
        if self.has_video() { &self.video } else { &self.audio }
    }
}

/// Source times are 32 bits wide: the nearest is meant.
fn near(ms: i64) -> i64 {
    i64::from(ms as i32)
}

/// Milliseconds from the last frame of a track to the next.
fn step_ms(track: &VecDeque<Print>) -> i64 {
    let mut newest = track.iter().rev().map(|print| print.dts_ms);
    let (last, before) = (newest.next(), newest.next());
    last.zip(before).map_or(40, |(last, before)| last - before).clamp(1, HEAD_MS)
}

fn is_next(away_ms: i64, step_ms: i64) -> bool {
    away_ms <= step_ms * 3 / 2 + SLACK_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use media::codec::AudioCodec;

    struct Random(u64);

    impl Random {
        fn below(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % below
        }
    }

    fn setup(video: bool, audio: bool) -> Setup {
        let config = VideoConfig {
            codec: media::codec::VideoCodec::Avc,
            record: Bytes::from_static(b"record"),
            width: 640,
            height: 360,
            sar: (1, 1),
            frame_rate: None,
        };
        let aac = AudioConfig::parse(AudioCodec::Aac, Bytes::from_static(&[0x11, 0x90])).unwrap();
        Setup { video: video.then_some(config), audio: audio.then_some(aac), frame_rate: None }
    }

    /// What an encoder makes: each frame's track, print with times in microseconds, in decoding order of all.
    fn encoder(random: &mut Random, video: bool, audio: bool, still: bool) -> Vec<(bool, Print)> {
        let (rate, gop, b_frames) =
            (24 + random.below(37) as i64, 10 + random.below(60), 1 + random.below(3) as i64);
        let mut frames = Vec::new();
        let mut print = |video, key, dts: i64, pts: i64, hash: u64| {
            frames.push((video, Print { hash, key, dts_ms: dts, pts_ms: pts, came_ms: dts / 1000, at: pts }));
        };
        for index in 0..900 * i64::from(u8::from(video)) {
            let key = (index as u64).is_multiple_of(gop);
            let shown = if key { index } else { index + index % b_frames };
            // A picture that stands still comes out the same in every second group.
            let hash =
                if still { index as u64 % (2 * gop) } else { random.below(1 << 30) << 20 | index as u64 };
            print(true, key, index * 1_000_000 / rate, shown * 1_000_000 / rate, hash);
        }
        let seconds = 900 / rate;
        let ahead = random.below(2) as i64 * 30_000;
        for index in 0..seconds * 48_000 / 1024 * i64::from(u8::from(audio)) {
            let at = index * 1024 * 125 / 6 + 7_000 - ahead;
            print(false, true, at, at, random.below(1 << 30) << 20 | index as u64);
        }
        frames.sort_by_key(|(_, print)| print.dts_ms);
        frames
    }

    /// As a connection has it whose clock shows `zero_ms` at `origin` microseconds.
    fn sent(frames: &[(bool, Print)], origin: i64, zero_ms: i64, came_ms: i64) -> Vec<(bool, Print)> {
        let ms = |us: i64| (us - origin).div_euclid(1000) + zero_ms;
        let sent = frames.iter().map(|(video, print)| {
            let Print { dts_ms, pts_ms, .. } = *print;
            let came_ms = print.came_ms + came_ms;
            (
                *video,
                Print { dts_ms: ms(dts_ms), pts_ms: ms(pts_ms), came_ms, at: pts_ms * 9 / 100, ..*print },
            )
        });
        sent.collect()
    }

    fn trail(setup: Setup, frames: &[(bool, Print)]) -> Trail {
        let mut trail = Trail::default();
        trail.restart(setup);
        frames.iter().for_each(|(video, print)| trail.push(*video, *print));
        trail
    }

    fn head(setup: Setup, frames: &[(bool, Print)]) -> Head {
        let mut head = Head::default();
        head.start(setup);
        for (video, print) in frames {
            if head.is_enough() {
                break;
            }
            head.push(*video, *print, 1000);
        }
        head
    }

    const WRAP: i64 = 1 << 32;

    #[test]
    fn overlaps_are_found_wherever_they_are_and_whatever_the_clock() {
        let mut random = Random(3);
        for round in 0..600 {
            let (video, audio) = [(true, true), (true, false), (false, true)][round % 3];
            let still = video && audio && random.below(3) == 0;
            let frames = encoder(&mut random, video, audio, still);
            let setup = setup(video, audio);
            let from = 200 + random.below(300) as usize;
            let Some(key) = (from..frames.len()).find(|i| frames[*i].0 == video && frames[*i].1.key) else {
                continue;
            };
            let origin = frames[key].1.dts_ms;
            // The old session's clock may have begun shortly before its 32 bits end.
            let zero = [WRAP, 2 * WRAP - 5_000][random.below(2) as usize];
            let same_clock = random.below(2) == 0;
            let old_all = sent(&frames, 0, zero, 0);
            let (new_origin, new_zero) = match same_clock {
                true => (0, zero - WRAP * random.below(2) as i64),
                false => (origin, WRAP + random.below(3) as i64 * 1_000_000),
            };
            let lag_ms = random.below(3_000) as i64 - 1_500;
            let new = sent(&frames[key..], new_origin, new_zero, lag_ms);
            let overlap = 20 + random.below(120) as usize;
            let mut trail = trail(setup.clone(), &old_all[..(key + overlap).min(frames.len())]);
            let mut head = head(setup, &new);
            if video && random.below(2) == 0 {
                // OBS puts its version into the first keyframe of a connection.
                head.video[0].hash ^= 1;
            }
            let verdict = trail.judge(&head);
            let Verdict::Repeats(shift) = verdict else { panic!("{round}: {verdict:?}") };
            assert!(trail.reaches(&head, verdict));
            let known = trail.known(shift);
            // What was there and what is not known is all there is, once, in order.
            let mut hashes: Vec<_> = [true, false]
                .map(|kind| {
                    let old = old_all[..(key + overlap).min(frames.len())].iter().filter(|(v, _)| *v == kind);
                    let new = new.iter().filter(|(v, p)| *v == kind && !known.covers(*v, p.dts_ms));
                    old.chain(new).map(|(_, print)| print.hash).collect::<Vec<_>>()
                })
                .into();
            for kind in [false, true] {
                let all: Vec<_> = frames.iter().filter(|(v, _)| *v == kind).map(|(_, p)| p.hash).collect();
                assert_eq!(hashes.pop().unwrap(), all, "{round} video: {kind}, overlap {overlap}");
            }
            // Places agree to less than half a frame.
            let (_, later) = *new.iter().filter(|(v, _)| *v == video).nth(5).unwrap();
            let place = trail.place(shift, later.pts_ms).unwrap();
            assert!((place - later.at).abs() <= 2 * 90, "{round}: {place} is not {}", later.at);
            // The third session finds the second in the same trail.
            trail.adopt(&head, shift);
            let again = trail.judge(&head);
            let Verdict::Repeats(shift) = again else { panic!("{round}: {again:?}") };
            assert!(shift.offset_ms.abs() <= SLACK_MS);
        }
    }

    #[test]
    fn a_clock_that_goes_on_is_followed_over_any_absence() {
        let mut random = Random(5);
        for round in 0..300 {
            let frames = encoder(&mut random, true, true, false);
            let setup = setup(true, true);
            let keys: Vec<_> =
                (300..frames.len() - 100).filter(|i| frames[*i].0 && frames[*i].1.key).collect();
            let key = keys[random.below(keys.len() as u64) as usize];
            let missing = random.below(200) as usize * usize::from(round % 2 == 0);
            let zero = 2 * WRAP - 8_000;
            let old = sent(&frames[..key - missing], 0, zero, 0);
            let new = sent(&frames[key..], 0, zero - WRAP, random.below(9_000) as i64 - 4_500);
            let trail = trail(setup.clone(), &old);
            let head = head(setup, &new);
            let verdict = trail.judge(&head);
            let Verdict::Follows { shift, gap_ms } = verdict else { panic!("{round}: {verdict:?}") };
            assert_eq!((shift.offset_ms, shift.nudge), (-WRAP, 0));
            let lost = frames[key - missing..key].iter().filter(|(video, _)| *video).count();
            assert_eq!(gap_ms > 0, lost > 0, "{round}: {gap_ms} ms for {lost} frames");
            assert!(missing > 0 || trail.reaches(&head, verdict));
            assert!(new.iter().all(|(video, print)| !trail.known(shift).covers(*video, print.dts_ms)));
        }
    }

    #[test]
    fn other_beginnings_are_told_apart() {
        let mut random = Random(7);
        let unrelated = |trail: &Trail, head: &Head, what: &str| {
            assert_eq!(trail.judge(head), Verdict::Unrelated, "{what}");
            assert!(!trail.reaches(head, Verdict::Unrelated));
        };
        for round in 0..200 {
            let still = round % 2 == 0;
            let frames = encoder(&mut random, true, true, still);
            let setup = setup(true, true);
            let old = trail(setup.clone(), &sent(&frames[..600], 0, WRAP, 0));
            // A file that is played once more, seconds later.
            let away_ms = 3_000 + random.below(60_000) as i64 + frames[599].1.came_ms;
            let again = sent(&frames, 0, WRAP, away_ms);
            unrelated(&old, &head(setup.clone(), &again), "played again");
            // Another encoder, whose picture stands still as well.
            let other = encoder(&mut random, true, true, still);
            let came_ms = frames[599].1.came_ms;
            unrelated(&old, &head(setup.clone(), &sent(&other, 0, WRAP, came_ms)), "another encoder");
            // The same, and a clock that is far off.
            unrelated(&old, &head(setup.clone(), &sent(&other, 0, WRAP + 900_000_000, came_ms)), "far off");
            // The same frames with another configuration.
            let key = (300..600).find(|i| frames[*i].0 && frames[*i].1.key).unwrap();
            let mut mono = setup.clone();
            mono.frame_rate = Some(FrameRate { num: 25, den: 1 });
            unrelated(&old, &head(mono, &sent(&frames[key..], 0, WRAP, 0)), "configured anew");
            unrelated(&old, &Head::default(), "nothing");
        }
        assert!(Trail::default().is_empty());
        unrelated(&Trail::default(), &Head::default(), "nothing before");
    }

    #[test]
    fn what_stands_still_and_begins_anew_is_no_proof() {
        let frames = encoder(&mut Random(11), true, false, true);
        let setup = setup(true, false);
        let key = (500..).find(|i| frames[*i].1.key).unwrap();
        let old = trail(setup.clone(), &sent(&frames[..key + 9], 0, WRAP, 0));
        let restarted = head(setup.clone(), &sent(&frames[key..], frames[key].1.dts_ms, WRAP, 0));
        assert_eq!(old.judge(&restarted), Verdict::Unrelated, "which of the groups it is cannot be known");
        let verdict = old.judge(&head(setup, &sent(&frames[key..], 0, WRAP, 0)));
        let shift = Shift { offset_ms: 0, nudge: 0 };
        assert_eq!(verdict, Verdict::Repeats(shift), "the clock tells");
    }

    #[test]
    fn audio_that_is_on_its_way_is_waited_for() {
        let frames = encoder(&mut Random(13), true, true, false);
        let setup = setup(true, true);
        let key = (400..).find(|i| frames[*i].0 && frames[*i].1.key).unwrap();
        let old = sent(&frames[..key], 0, WRAP, 0);
        let late = old.len() - 12;
        let without: Vec<_> =
            old.iter().enumerate().filter(|(i, (video, _))| *video || *i < late).map(|(_, f)| *f).collect();
        let head = head(setup.clone(), &sent(&frames[key..], 0, WRAP, 0));
        for (frames, whole) in [(without, false), (old, true)] {
            let trail = trail(setup.clone(), &frames);
            let verdict = trail.judge(&head);
            assert!(matches!(verdict, Verdict::Follows { gap_ms: 0, .. }), "{verdict:?}");
            assert_eq!(trail.reaches(&head, verdict), whole);
        }
    }

    #[test]
    fn a_trail_is_bounded() {
        let mut trail = Trail::default();
        for index in 0..3 * MAX_FRAMES as i64 {
            let print = Print { hash: 1, key: true, dts_ms: index, pts_ms: index, came_ms: 0, at: 0 };
            trail.push(index % 2 == 0, print);
        }
        assert_eq!((trail.video.len(), trail.audio.len()), (MAX_FRAMES, MAX_FRAMES));
        let mut head = Head::default();
        let print = Print { hash: 1, key: true, dts_ms: 0, pts_ms: 0, came_ms: 0, at: 0 };
        head.start(setup(true, false));
        head.push(false, print, HEAD_BYTES);
        assert!(head.is_enough());
    }

    #[test]
    fn a_picture_that_stands_is_not_waited_for() {
        let print = |dts_ms| Print { hash: 1, key: true, dts_ms, pts_ms: dts_ms, came_ms: 0, at: 0 };
        let mut head = Head::default();
        head.start(setup(true, true));
        head.push(true, print(50_000), 1000);
        for audio in 0..200 {
            assert!(!head.is_enough() || audio * 20 > HEAD_MS, "after {audio} frames of audio");
            head.push(false, print(50_000 + audio * 20), 100);
        }
        assert!(head.is_enough());
    }
}
