//! Packages one run: cuts the samples of its renditions into parts and segments, wraps them as CMAF, publishes them, and
//! says how much of the source is safely published.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use media::captions::{Captions, Service};
use media::codec::{AudioConfig, VideoConfig};
use media::event::{Event as Moment, What};
use media::time::{FrameRate, Ticks, Timescale};
use media::{Epoch, RenditionId, Sample, SegmentNumber};
use transcode::{Rung, Tiles, cmaf};

use crate::broadcast::NewRendition;
use crate::continuation::{AudioStart, Continuation};
use crate::events;
use crate::hls::{Kind, Targets, Variant};
use crate::hops::{Entered, Hop, Taken};
use crate::live::{Live, Picture, Place};
use crate::metrics::Metrics;
use crate::relay::unix_us;
use crate::segmenter::{Event, Part, Segmenter};
use crate::window::Bitrate;

/// Audio frames that wait for the video of their segment. Beyond this the video is missing, and audio goes on without.
const MAX_WAITING_AUDIO: usize = 128;

/// Audio frames that wait for the encoders to open, beyond which the oldest go: some twenty seconds.
const MAX_UNBEGUN_AUDIO: usize = 1024;

/// Segments that audio may be behind video. A broadcaster that sends none for longer has lost it, and neither players nor
/// acknowledgements may wait.
const MAX_AUDIO_LAG: i64 = 3;

/// What an encoder may have gathered before its connection took it, in milliseconds of media.
const MAX_GATHERED_MS: i64 = 2000;

/// Boundaries remembered until they are acknowledged: more than any pipeline delays.
const MAX_BOUNDARIES: usize = 128;

/// Events that wait for the chunk that they belong to, beyond which the oldest go; and those that are known, so that none
/// that is sent again comes twice.
const MAX_WAITING_EVENTS: usize = 128;

/// What a packager needs to know of its run.
pub struct Plan {
    /// The stream.
    pub live: Arc<Live>,
    /// The run.
    pub epoch: Epoch,
    /// Where it begins.
    pub place: Place,
    /// When a POP received its first frame, milliseconds since 1970.
    pub unix_ms: i64,
    /// What playlists list, 90 kHz.
    pub listed: Ticks,
    /// The rungs, none for audio only.
    pub rungs: Vec<Rung>,
    /// The source's frame rate.
    pub frame_rate: Option<FrameRate>,
    /// The source's own video, if it is passed through: the first of `rungs` is it, and segments begin with its keyframes.
    pub copied: Option<VideoConfig>,
    /// The thumbnails that the encoders draw, if any.
    pub thumbnails: Option<Tiles>,
    /// The audio track, copied.
    pub audio: Option<AudioConfig>,
    /// Closed captions that were seen in the video so far.
    pub captions: Captions,
    /// What they are called, if operators say so.
    pub caption_services: Vec<Service>,
    /// Audio goes on behind what is published, also where that begins before the video does.
    pub audio_continues: bool,
    /// This process.
    pub instance: u64,
    /// Counters.
    pub metrics: Metrics,
    /// When frames of video and of audio came in; empty at first.
    pub taken: [Taken; 2],
}

/// Packages one run.
pub struct Packager {
    plan: Plan,
    video: Vec<Track>,
    audio: Option<Track>,
    configured: Vec<Option<NewRendition>>,
    began: bool,
    /// With their source milliseconds.
    waiting_audio: VecDeque<(Sample, i64)>,
    /// Samples of rungs that came before the last rung was configured.
    waiting_video: VecDeque<(usize, Sample)>,
    /// The newest segment whose first video frame came from the source.
    video_index: i64,
    /// The latest that a frame is shown that came from the source.
    video_pts: Ticks,
    /// First presentation time of each segment, and the same in source milliseconds.
    boundaries: BTreeMap<i64, (Ticks, i64)>,
    /// The same of audio, in its timescale.
    audio_boundaries: BTreeMap<i64, (Ticks, i64)>,
    acknowledged: Option<SegmentNumber>,
    /// The last audio frame that was packaged: its source milliseconds, and its end in its timescale.
    audio_end: Option<(i64, Ticks)>,
    /// What the broadcaster's clock shows now is so much more than the run's.
    offset_ms: i64,
    /// [`Plan::unix_ms`] as it was given.
    latest_beginning_ms: i64,
    /// The newest events.
    events: VecDeque<Moment>,
}

/// Places in [`Plan::taken`].
const VIDEO: usize = 0;
const AUDIO: usize = 1;

struct Track {
    id: RenditionId,
    segmenter: Segmenter,
    sequence: u32,
    /// The last sample's end.
    end: Option<Ticks>,
    /// Nothing is encoded for it at present.
    shed: bool,
    /// Events that no chunk has yet, in order of time; of a track that carries them.
    events: Option<VecDeque<Moment>>,
    /// Events of chunks in the middle of the newest segment.
    again: Vec<cmaf::EventMessage>,
    /// No chunk comes behind what is packaged now.
    ends: bool,
}

/// How far a run came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Came {
    /// Where the last frame of video ends that is published in every rung (audio-only: of audio), 90 kHz.
    pub end: Ticks,
    /// The first audio that is not published.
    pub audio: Option<AudioStart>,
}

/// How much is published: a POP may forget what is shown before `resume_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// The newest segment that is complete in every rendition.
    pub number: SegmentNumber,
    /// Presentation time of what follows it, in unwrapped source milliseconds.
    pub resume_ms: i64,
    /// What follows it, for another origin.
    pub next: Continuation,
}

/// Parts of a whole number of frames, as near to `wanted` as it gets (90 kHz).
pub fn part_target(wanted: Ticks, rate: Option<FrameRate>) -> Ticks {
    let Some(FrameRate { num, den }) = rate else { return wanted };
    let (num, den) = (i64::from(num), i64::from(den));
    let frames = ((wanted * num + 45_000 * den) / (90_000 * den)).max(1);
    // Rounded up: frames on the grid are up to a tick longer than the mean.
    (frames * den * 90_000 + num - 1) / num
}

impl Packager {
    /// Begins at once if there is no video to be configured first.
    pub fn new(plan: Plan) -> Self {
        let segmenter = |timescale, early| {
            let Targets { segment_duration, part_target } = plan.place.targets;
            let Place { start, first, .. } = plan.place;
            let segmenter = Segmenter::new(timescale, start, segment_duration, part_target, early, first);
            if plan.copied.is_some() { segmenter.with_given_cuts() } else { segmenter }
        };
        let track = |id: &RenditionId, segmenter| Track {
            id: id.clone(),
            segmenter,
            sequence: 0,
            end: None,
            shed: false,
            events: None,
            again: Vec::new(),
            ends: false,
        };
        let video: Vec<_> =
            plan.rungs.iter().map(|rung| track(&rung.id, segmenter(Timescale::VIDEO, 0))).collect();
        let audio = plan.audio.as_ref().map(|config| {
            let early = Ticks::from(usual_frame_samples(config) / 2);
            track(&audio_id(), segmenter(config.timescale(), early))
        });
        let mut packager = Self {
            latest_beginning_ms: plan.unix_ms,
            configured: vec![None; plan.rungs.len()],
            plan,
            video,
            audio,
            began: false,
            waiting_audio: VecDeque::new(),
            waiting_video: VecDeque::new(),
            video_index: i64::MIN,
            video_pts: Ticks::MIN,
            boundaries: BTreeMap::new(),
            audio_boundaries: BTreeMap::new(),
            acknowledged: None,
            audio_end: None,
            offset_ms: 0,
            events: VecDeque::new(),
        };
        let carries = match packager.video.is_empty() {
            true => packager.audio.as_mut_slice(),
            false => &mut packager.video[..],
        };
        carries.iter_mut().for_each(|track| track.events = Some(VecDeque::new()));
        packager.configure_copied();
        packager.begin_if_configured();
        packager
    }

    /// What is passed through needs no encoder to be opened.
    fn configure_copied(&mut self) {
        let (Some(config), Some(rung)) = (&self.plan.copied, self.plan.rungs.first()) else { return };
        self.configured[0] = Some(video_rendition(rung, config, self.plan.frame_rate));
    }

    /// Another session goes on with the run: its clock shows so many milliseconds more than the one before.
    pub fn shift_clock(&mut self, offset_ms: i64) {
        self.offset_ms += offset_ms;
    }

    /// What the broadcaster's clock shows now is so much more than the run's, milliseconds.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms
    }

    /// A rung's encoder was opened: what it makes.
    pub fn configured(&mut self, rung: usize, config: &VideoConfig) {
        let Some(slot) = self.configured.get_mut(rung) else { return };
        let rung = &self.plan.rungs[rung];
        *slot = Some(video_rendition(rung, config, rung.frame_rate));
        self.begin_if_configured();
    }

    /// A video frame goes into the encoders: segments may be opened up to its. `cut` is the segment that begins with it, of
    /// video that is passed through.
    pub fn source_video(&mut self, pts: Ticks, source_ms: i64, entered: Entered, cut: Option<i64>) {
        self.arrived(VIDEO, pts, entered);
        let Place { start, targets, .. } = self.plan.place;
        if pts < start {
            return;
        }
        if !self.began {
            // What an encoder gathered while it connected comes at once: of several frames the one that was least late says
            // when the first of them was made.
            let began_ms = entered.origin_us / 1000 - (pts - start) / 90;
            self.plan.unix_ms =
                self.plan.unix_ms.min(began_ms.max(self.latest_beginning_ms - MAX_GATHERED_MS));
        }
        self.video_pts = self.video_pts.max(pts);
        let index = match (&self.plan.copied, cut) {
            (None, _) => transcode::segment_index(start, targets.segment_duration, pts),
            (Some(_), Some(index)) => {
                for track in self.video.iter_mut().chain(&mut self.audio) {
                    track.segmenter.cut(index, pts);
                }
                index
            }
            (Some(_), None) => self.video_index,
        };
        self.video_index = self.video_index.max(index);
        if self.plan.copied.is_none() || cut.is_some() {
            note(&mut self.boundaries, index, pts, source_ms);
        }
        self.release_audio();
        if let Some(track) = self.audio.as_mut().filter(|_| self.began)
            && track.segmenter.newest_index().unwrap_or(-1) < index - MAX_AUDIO_LAG
        {
            track.segmenter.give_up(index - MAX_AUDIO_LAG);
            publish(&self.plan, track);
        }
    }

    /// Captions were seen in a frame.
    pub fn source_captions(&mut self, seen: Captions) {
        let all = self.plan.captions.union(seen);
        if all != std::mem::replace(&mut self.plan.captions, all) && self.began {
            self.plan.live.captions(self.plan.epoch, &all.services(&self.plan.caption_services));
        }
    }

    /// Something happens at its place on the timeline. False if that was said already.
    pub fn event(&mut self, event: &Moment) -> bool {
        if self.events.iter().any(|known| known.is_again(event)) {
            return false;
        }
        if self.events.len() >= MAX_WAITING_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        // What lies before is in the run before.
        let tracks = self.video.iter_mut().chain(&mut self.audio);
        for queue in tracks.filter_map(|track| track.events.as_mut()) {
            if event.at < self.plan.place.start {
                continue;
            }
            if queue.len() >= MAX_WAITING_EVENTS {
                queue.pop_front();
            }
            queue.insert(queue.partition_point(|before| before.at <= event.at), event.clone());
        }
        !self.began || self.plan.live.event(self.plan.epoch, event)
    }

    /// The encoders leave out the segment of a rung that begins at `pts`.
    pub fn shed(&mut self, rung: usize, pts: Ticks) {
        if let Some(track) = self.video.get_mut(rung).filter(|_| self.began) {
            track.shed = true;
            let index = track.segmenter.index_at(pts);
            track.segmenter.skip_to(index);
            publish(&self.plan, track);
            self.plan.live.shed(self.plan.epoch, &track.id, track.segmenter.number(index), true);
        }
    }

    /// The newest thumbnail.
    pub fn picture(&self, pts: Ticks, jpeg: Bytes) {
        self.plan.live.picture(Picture { epoch: self.plan.epoch, pts, jpeg });
    }

    /// A sheet of thumbnails is whole.
    pub fn sheet(&self, number: i64, jpeg: Bytes) {
        // Timelines begin behind zero.
        if let Ok(number) = u64::try_from(number) {
            self.plan.live.sheet(self.plan.epoch, SegmentNumber(number), jpeg);
        }
    }

    /// How many rungs are shed at present.
    pub fn rungs_shed(&self) -> usize {
        self.video.iter().filter(|track| track.shed).count()
    }

    /// An encoded frame.
    pub fn video(&mut self, rung: usize, sample: Sample) {
        if !self.began {
            self.waiting_video.push_back((rung, sample));
        } else if let Some(track) = self.video.get_mut(rung) {
            if std::mem::take(&mut track.shed) {
                let index = track.segmenter.index_at(sample.pts);
                track.segmenter.skip_to(index);
                self.plan.live.shed(self.plan.epoch, &track.id, track.segmenter.number(index), false);
            }
            track.end = track.end.max(Some(sample.pts + sample.duration.max(1)));
            if rung > 0 || self.plan.copied.is_none() {
                passed(&self.plan, Hop::Encoded, VIDEO, sample.pts, Timescale::VIDEO);
            }
            track.segmenter.push(sample, true);
            publish(&self.plan, track);
        }
    }

    /// An audio frame goes into its encoder, or is copied; `place` is at 90 kHz.
    pub fn source_audio(&mut self, place: Ticks, entered: Entered) {
        self.arrived(AUDIO, place, entered);
    }

    fn arrived(&mut self, kind: usize, place: Ticks, entered: Entered) {
        self.plan.taken[kind].took(place, entered);
        noted(&self.plan, Hop::Arrived, entered.origin_us - entered.pop_us);
    }

    /// The frame shown at `pts` was decoded so long ago.
    pub fn decoded(&self, pts: Ticks, ago: Duration) {
        if let Some(entered) = self.plan.taken[VIDEO].at(pts, Timescale::VIDEO) {
            noted(&self.plan, Hop::Decoded, unix_us() - ago.as_micros() as i64 - entered.pop_us);
        }
    }

    /// An audio frame. What lies wholly before the run's start is left out.
    pub fn audio(&mut self, sample: Sample, source_ms: i64) {
        let Some(track) = &self.audio else { return };
        let index = track.segmenter.index_at(sample.pts);
        if index < 0 && !self.plan.audio_continues {
            return;
        }
        note(&mut self.audio_boundaries, index.max(0), sample.pts, source_ms);
        if self.video.is_empty() {
            let pts = track.segmenter.timescale().rescale(sample.pts, Timescale::VIDEO);
            note(&mut self.boundaries, index.max(0), pts, source_ms);
        }
        if self.waiting_audio.len() >= MAX_UNBEGUN_AUDIO {
            self.waiting_audio.pop_front();
        }
        self.waiting_audio.push_back((sample, source_ms));
        self.release_audio();
    }

    /// The run is over and all encoded frames have come: completes what is open.
    pub fn finish(&mut self) {
        for track in self.video.iter_mut().chain(&mut self.audio) {
            track.ends = true;
        }
        for track in &mut self.video {
            if track.shed {
                track.segmenter.skip_to(self.video_index + 1);
            }
            track.segmenter.finish();
            publish(&self.plan, track);
        }
        if let Some(track) = self.audio.as_mut().filter(|_| self.began) {
            // Audio that reaches beyond the last video frame belongs to the last segment: no rendition may
            // have one segment more than the others.
            for (sample, source_ms) in self.waiting_audio.drain(..) {
                let may_open =
                    self.video.is_empty() || track.segmenter.index_at(sample.pts) <= self.video_index;
                self.audio_end = Some((source_ms, sample.pts + sample.duration));
                track.segmenter.push(sample, may_open);
            }
            track.segmenter.finish();
            publish(&self.plan, track);
            self.plan.metrics.frames_late.inc_by(track.segmenter.late());
        }
    }

    /// The relay is lost and may come back: what came is published, but segments stay open, so that another origin may
    /// still make them whole under their numbers.
    pub fn suspend(&mut self) {
        for track in &mut self.video {
            track.segmenter.suspend();
            publish(&self.plan, track);
        }
        if let Some(track) = self.audio.as_mut().filter(|_| self.began) {
            track.segmenter.suspend();
            publish(&self.plan, track);
        }
    }

    /// How far a run came that was suspended or finished. `None` if nothing came of it.
    pub fn came(&self) -> Option<Came> {
        let timescale = self.audio.as_ref().map(|track| track.segmenter.timescale());
        let audio_end = self.audio_end.zip(timescale);
        let waiting = self.waiting_audio.front().map(|(sample, source_ms)| (*source_ms, sample.pts));
        // Times of audio grow: what comes next is later than what came last.
        let next = waiting.or(self.audio_end.map(|(source_ms, end)| (source_ms + 1, end)));
        let audio = next.zip(timescale).map(|((source_ms, pts), timescale)| AudioStart {
            source_ms: (source_ms + self.offset_ms) as u32,
            pts,
            timescale,
        });
        let end = match self.video.iter().filter(|track| !track.shed).map(|track| track.end).min() {
            Some(end) => end?,
            None => audio_end.map(|((_, end), timescale)| timescale.rescale(end, Timescale::VIDEO))?,
        };
        Some(Came { end, audio })
    }

    /// What was completed since the last call.
    pub fn poll_published(&mut self) -> Option<Published> {
        let number = self.plan.live.complete(self.plan.epoch)?;
        let index = number.0.checked_sub(self.plan.place.first.0)? as i64;
        if self.acknowledged.is_some_and(|last| number <= last) {
            return None;
        }
        let index = index + 1;
        let (pts, resume_ms) = *self.boundaries.get(&index)?;
        let resume_ms = resume_ms + self.offset_ms;
        let (anchor, breaks, _) = self.plan.live.line()?;
        self.acknowledged = Some(number);
        self.boundaries = self.boundaries.split_off(&index);
        self.audio_boundaries = self.audio_boundaries.split_off(&index);
        let Place { start, targets, .. } = self.plan.place;
        let audio_start = |track: &Track| {
            let (pts, source_ms) = *self.audio_boundaries.get(&index)?;
            let source_ms = (source_ms + self.offset_ms) as u32;
            Some(AudioStart { source_ms, pts, timescale: track.segmenter.timescale() })
        };
        let next = Continuation {
            instance: self.plan.instance,
            first: number.next(),
            start: match self.plan.copied {
                Some(_) => pts,
                None => start + index * targets.segment_duration,
            },
            anchor,
            breaks,
            // As sent, times have 32 bits.
            lead: Some((resume_ms as u32, pts)),
            audio: self.audio.as_ref().and_then(audio_start),
        };
        self.plan.live.acknowledged(next);
        Some(Published { number, resume_ms, next })
    }

    fn begin_if_configured(&mut self) {
        if self.began || self.configured.iter().any(Option::is_none) {
            return;
        }
        let mut renditions: Vec<_> = self.configured.iter().flatten().cloned().collect();
        renditions.extend(self.plan.audio.as_ref().map(audio_rendition));
        let Plan { live, epoch, place, listed, unix_ms, captions, caption_services, .. } = &self.plan;
        let captions = captions.services(caption_services);
        live.draws(self.plan.thumbnails);
        live.begin(*epoch, *place, *listed, *unix_ms, renditions, captions);
        self.began = true;
        for event in &self.events {
            live.event(*epoch, event);
        }
        while let Some((rung, sample)) = self.waiting_video.pop_front() {
            self.video(rung, sample);
        }
        self.release_audio();
    }

    fn release_audio(&mut self) {
        let Some(track) = self.audio.as_mut().filter(|_| self.began) else { return };
        while let Some((sample, _)) = self.waiting_audio.front() {
            // Where cuts are given, the next one may yet come before this.
            let known = self.plan.copied.is_none()
                || track.segmenter.timescale().rescale(sample.pts, Timescale::VIDEO) <= self.video_pts;
            let in_time =
                self.video.is_empty() || (known && track.segmenter.index_at(sample.pts) <= self.video_index);
            if !in_time && self.waiting_audio.len() <= MAX_WAITING_AUDIO {
                break;
            }
            let (sample, source_ms) = self.waiting_audio.pop_front().expect("there is a front");
            self.audio_end = Some((source_ms, sample.pts + sample.duration));
            track.segmenter.push(sample, true);
            publish(&self.plan, track);
        }
    }
}

/// Remembers the first frame of a segment.
fn note(boundaries: &mut BTreeMap<i64, (Ticks, i64)>, index: i64, pts: Ticks, source_ms: i64) {
    let first = boundaries.entry(index).or_insert((pts, source_ms));
    *first = (*first).min((pts, source_ms));
    if boundaries.len() > MAX_BOUNDARIES {
        boundaries.pop_first();
    }
}

fn video_rendition(rung: &Rung, config: &VideoConfig, frame_rate: Option<FrameRate>) -> NewRendition {
    let VideoConfig { width, height, .. } = *config;
    NewRendition {
        variant: Variant {
            id: rung.id.clone(),
            codec: config.codec_string(),
            bitrate_bps: u64::from(rung.bitrate_bps),
            measured: Bitrate::default(),
            kind: Kind::Video { width, height, frame_rate },
        },
        timescale: Timescale::VIDEO,
        init: cmaf::source_init(Timescale::VIDEO, config),
    }
}

/// The one audio rendition's name.
fn audio_id() -> RenditionId {
    "audio".parse().expect("is a valid name")
}

/// What is announced for copied AAC until it has been measured.
const AUDIO_BITRATE_BPS: u32 = 128_000;

/// Samples of most frames.
fn usual_frame_samples(config: &AudioConfig) -> u32 {
    match config {
        AudioConfig::Aac(config) => config.frame_samples,
        // 20 ms; MP3 is never packaged.
        AudioConfig::Opus(_) | AudioConfig::Mp3(_) => 960,
    }
}

fn audio_rendition(config: &AudioConfig) -> NewRendition {
    let (sample_rate, channels) = (config.timescale().per_second(), config.channels());
    NewRendition {
        variant: Variant {
            id: audio_id(),
            codec: config.codec_string(),
            bitrate_bps: u64::from(AUDIO_BITRATE_BPS),
            measured: Bitrate::default(),
            kind: Kind::Audio { channels, sample_rate },
        },
        timescale: config.timescale(),
        init: match config {
            AudioConfig::Opus(config) => cmaf::opus_init(config),
            AudioConfig::Aac(_) | AudioConfig::Mp3(_) => cmaf::audio_init(
                config.timescale(),
                sample_rate,
                channels as u16,
                config.record(),
                AUDIO_BITRATE_BPS,
            ),
        },
    }
}

/// Notes that the frame shown at `pts` has passed `hop`.
fn passed(plan: &Plan, hop: Hop, kind: usize, pts: Ticks, timescale: Timescale) {
    if let Some(entered) = plan.taken[kind].at(pts, timescale) {
        noted(plan, hop, unix_us() - entered.pop_us);
    }
}

fn noted(plan: &Plan, hop: Hop, us: i64) {
    plan.metrics.hops.note(hop, us);
    plan.live.hops.note(hop, us);
}

fn publish(plan: &Plan, track: &mut Track) {
    while let Some(event) = track.segmenter.poll() {
        match event {
            Event::Open { number, start } => plan.live.open(plan.epoch, &track.id, number, start),
            Event::Part(part) => {
                track.sequence = track.sequence.wrapping_add(1);
                let timescale = track.segmenter.timescale();
                let kind = if track.id == audio_id() { AUDIO } else { VIDEO };
                let first = part.samples.first().map_or(0, |sample| sample.pts);
                let reference = plan.taken[kind].reference(first, timescale).filter(|_| part.first);
                let events = messages(track, &part);
                let chunk = if part.first && part.independent && kind == VIDEO {
                    track.sequence = track.sequence.wrapping_add(1);
                    cmaf::lead_part(track.sequence.wrapping_sub(1), &part.samples, reference, &events)
                } else {
                    cmaf::chunk(track.sequence, &part.samples, part.first, reference, &events)
                };
                plan.metrics.parts.inc();
                plan.metrics.published_bytes.inc_by(chunk.len() as u64);
                if let Some(entered) = plan.taken[kind].at(first, timescale) {
                    plan.live.hops.publishes(entered.pop_us);
                }
                plan.live.part(plan.epoch, &track.id, chunk, part.duration, part.independent);
                passed(plan, Hop::Published, kind, first, timescale);
            }
            Event::Close => {
                plan.metrics.segments.inc();
                plan.live.close(plan.epoch, &track.id);
            }
            Event::Gap { number } => {
                plan.metrics.gaps.inc();
                plan.live.gap(plan.epoch, &track.id, number);
            }
        }
    }
}

/// The events of a part. A splice in the middle of a segment is said again where the next one begins, for players that begin
/// there (DASH-IF low-latency modes, 9.X.4.5).
fn messages(track: &mut Track, part: &Part) -> Vec<cmaf::EventMessage> {
    let timescale = track.segmenter.timescale();
    let Track { events: Some(queue), again, ends: all, .. } = track else { return Vec::new() };
    let begins = part.samples.iter().map(|sample| sample.pts).min().unwrap_or(0);
    let ends = part.samples.iter().map(|sample| sample.pts + sample.duration.max(1)).max().unwrap_or(begins);
    let mut messages = Vec::new();
    if part.first {
        messages.append(again);
    }
    let due = |event: &Moment| *all || Timescale::VIDEO.rescale(event.at, timescale) < ends;
    while let Some(event) = queue.pop_front() {
        if !due(&event) {
            queue.push_front(event);
            break;
        }
        let message = events::message(&event, timescale, begins);
        if !part.first && matches!(event.what, What::Scte35(_)) {
            // Word for word: players know by its time that it is no other.
            again.push(message.clone());
        }
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_frames_and_never_longer_than_announced() {
        for (num, den, target) in [
            (30, 1, 18_000),
            (25, 1, 18_000),
            (24, 1, 18_750),
            (30000, 1001, 18_018),
            (24000, 1001, 18_769),
            (60, 1, 18_000),
            (60000, 1001, 18_018),
            (50, 1, 18_000),
            (15, 1, 18_000),
            (1, 1, 90_000),
        ] {
            assert_eq!(part_target(18_000, Some(FrameRate { num, den })), target, "{num}/{den}");
        }
        assert_eq!(part_target(18_000, None), 18_000);
    }
}
