//! What viewers do: which object they want next, and whether they still have something to play.
//!
//! A player begins with the multivariant playlist, the playlist and the init segment of its renditions. With blocking
//! reload it then asks for part after part and plays three parts behind; else it fetches the last three segments and polls
//! the playlist.
#![deny(clippy::disallowed_methods)]

use super::measure::Times;
use super::names::{Name, Track};
use super::source::Source;
use super::{Reload, Scenario};

/// How far behind the live edge players begin, in parts or segments.
const HOLD_BACK: u64 = 3;

/// What a viewer does after an error: `Retry-After: 1`.
const RETRY_US: u64 = 1_000_000;

/// Viewers who are in all respects alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Viewers {
    pub(super) edge: u16,
    track: Track,
    step: Step,
    /// The part that is wanted next, and the newest that is known; or segments, for those who poll.
    next: u64,
    known: u64,
    /// How long there is something to play; 0: it has not begun.
    plays_until_us: u64,
    /// When they came; forgotten once they play.
    arrived_us: u64,
    /// When those who poll asked last.
    polled_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Multivariant,
    Playlist,
    Init,
    Media,
    Reload,
}

/// What viewers are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// Else it is an error.
    pub(super) good: bool,
    /// The newest part that a playlist lists.
    pub(super) newest: u64,
}

pub(super) struct Audience {
    reload: Reload,
    /// The number of the audio rendition, if there is one.
    audio: Option<Track>,
    part_us: u64,
    segment_us: u64,
    pub(super) requests: u64,
    pub(super) waits: Times,
    pub(super) startups: Times,
    pub(super) stalls: u64,
    pub(super) stalled_us: u128,
    pub(super) failed: u64,
}

impl Audience {
    pub(super) fn new(scenario: &Scenario, source: &Source) -> Audience {
        let segment_us = scenario.segment.as_micros() as u64;
        Audience {
            reload: scenario.reload,
            audio: scenario.audio.then_some(scenario.renditions),
            part_us: segment_us / source.parts,
            segment_us,
            requests: 0,
            waits: Times::default(),
            startups: Times::default(),
            stalls: 0,
            stalled_us: 0,
            failed: 0,
        }
    }

    /// Who comes when: at most a hundred groups for each edge and rendition.
    pub(super) fn arrivals(scenario: &Scenario) -> Vec<(u64, Viewers, u64)> {
        let arrival_us = scenario.arrival.as_micros() as u64;
        let waves = (arrival_us / 1000).clamp(1, 100);
        let places = u64::from(scenario.edges) * u64::from(scenario.renditions) * waves;
        let mut arrivals = Vec::new();
        for edge in 0..scenario.edges {
            for track in 0..scenario.renditions {
                for wave in 0..waves {
                    let place =
                        (u64::from(edge) * u64::from(scenario.renditions) + u64::from(track)) * waves + wave;
                    // A coprime step, so that those left over are spread in all three.
                    let turn = place.wrapping_mul(7919) % places;
                    let count = scenario.viewers / places + u64::from(turn < scenario.viewers % places);
                    let at_us = (2 * wave + 1) * arrival_us / (2 * waves);
                    let viewers = Viewers {
                        edge,
                        track,
                        step: Step::Multivariant,
                        next: 0,
                        known: 0,
                        plays_until_us: 0,
                        arrived_us: at_us,
                        polled_us: 0,
                    };
                    if count > 0 {
                        arrivals.push((at_us, viewers, count));
                    }
                }
            }
        }
        arrivals
    }

    /// What they want, and the part up to which they want it.
    pub(super) fn wants(&self, viewers: &Viewers, source: &Source) -> (Name, u64) {
        let Viewers { track, next, known, .. } = *viewers;
        match viewers.step {
            Step::Multivariant => (Name::Multivariant, 0),
            Step::Playlist => (Name::Playlist(track), 0),
            Step::Init => (Name::Init(track), 0),
            Step::Reload => (Name::Reload(track, next), 0),
            Step::Media if self.reload == Reload::Polling => {
                (Name::Segment(track, next), source.last_part(next))
            }
            Step::Media => {
                let segment = source.segment(next);
                (Name::Segment(track, segment), source.last_part(segment).min(known))
            }
        }
    }

    /// They have their answer. Says what they do next, and when.
    pub(super) fn answered(
        &mut self,
        now_us: u64,
        asked_us: u64,
        mut viewers: Viewers,
        count: u64,
        answer: Answer,
        source: &Source,
    ) -> Vec<(u64, Viewers)> {
        let (name, through) = self.wants(&viewers, source);
        let there_us = match name {
            Name::Segment(..) => source.published(through),
            other => source.available(other),
        };
        self.requests += count;
        self.waits.push(now_us.saturating_sub(asked_us.max(there_us)), count);
        if !answer.good {
            self.failed += count;
            return vec![(now_us + RETRY_US, viewers)];
        }
        let step = |step| Viewers { step, ..viewers };
        match viewers.step {
            Step::Multivariant => {
                let audio = self.audio.map(|track| Viewers { track, ..step(Step::Playlist) });
                [Some(step(Step::Playlist)), audio].into_iter().flatten().map(|next| (now_us, next)).collect()
            }
            Step::Playlist => vec![self.listed(now_us, asked_us, viewers, answer.newest, source)],
            Step::Init => vec![(now_us, step(Step::Media))],
            Step::Reload => {
                viewers.known = answer.newest.max(viewers.next);
                viewers.step = Step::Media;
                vec![(now_us, viewers)]
            }
            Step::Media => vec![self.played(now_us, viewers, count, through)],
        }
    }

    /// Media was asked for and broke off.
    pub(super) fn broken(&mut self, now_us: u64, viewers: Viewers, count: u64) -> (u64, Viewers) {
        self.requests += count;
        self.failed += count;
        (now_us + RETRY_US, viewers)
    }

    /// A playlist with parts up to `newest` has come.
    fn listed(
        &self,
        now_us: u64,
        asked_us: u64,
        mut viewers: Viewers,
        newest: u64,
        source: &Source,
    ) -> (u64, Viewers) {
        let begins = viewers.next == 0;
        // The last one that is whole.
        let segment = source.segment(newest + 1) - 1;
        viewers.polled_us = asked_us;
        match (self.reload, begins) {
            (Reload::Blocking, _) => {
                viewers.polled_us = 0;
                (viewers.next, viewers.known, viewers.step) = (newest, newest, Step::Init);
                (now_us, viewers)
            }
            (Reload::Polling, true) => {
                (viewers.next, viewers.known, viewers.step) = (segment + 1 - HOLD_BACK, segment, Step::Init);
                (now_us, viewers)
            }
            (Reload::Polling, false) if segment < viewers.next => {
                (now_us.max(asked_us + self.segment_us / 2), viewers)
            }
            (Reload::Polling, false) => {
                (viewers.known, viewers.step) = (segment, Step::Media);
                (now_us, viewers)
            }
        }
    }

    /// Media up to the part `through`, or a whole segment, has come.
    fn played(&mut self, now_us: u64, mut viewers: Viewers, count: u64, through: u64) -> (u64, Viewers) {
        let (unit_us, got) = match self.reload {
            Reload::Blocking => (self.part_us, through + 1 - viewers.next),
            Reload::Polling => (self.segment_us, 1),
        };
        let is_video = Some(viewers.track) != self.audio;
        if viewers.plays_until_us == 0 {
            if is_video {
                self.startups.push(now_us - viewers.arrived_us, count);
            }
            viewers.arrived_us = 0;
            viewers.plays_until_us = match self.reload {
                Reload::Polling => now_us + unit_us,
                Reload::Blocking => {
                    // Those who have nearly as much to play are taken for alike, by the less: soon all ask together.
                    let grain = (unit_us / 4).max(1);
                    (now_us + HOLD_BACK * unit_us) / grain * grain
                }
            };
        } else {
            let late_us = now_us.saturating_sub(viewers.plays_until_us);
            if late_us > 0 && is_video {
                self.stalls += count;
                self.stalled_us += u128::from(late_us) * u128::from(count);
            }
            viewers.plays_until_us = viewers.plays_until_us.max(now_us) + got * unit_us;
        }
        viewers.next += got;
        if viewers.next <= viewers.known {
            return (now_us, viewers);
        }
        if self.reload == Reload::Polling {
            viewers.step = Step::Playlist;
            return (now_us.max(viewers.polled_us + self.segment_us), viewers);
        }
        viewers.step = Step::Reload;
        (now_us, viewers)
    }
}
