//! From FLV tags to the frames of one run: unwraps 32-bit times, waits until it is known which tracks there are, and
//! says when a run must end because time or codec configuration broke.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use media::captions::Captions;
use media::codec::{AudioCodec, AudioConfig, VideoCodec, VideoConfig, mp3};
use media::flv::{Audio, Tag, TagKind, Video};
use media::time::FrameRate;
use rml_amf0::Amf0Value;

/// Bytes held while it is not known which tracks there are: some seconds of the highest bitrate that is sent in practice.
const MAX_PROBE_BYTES: usize = 32 << 20;

/// How far audio may be from video before its times are taken for a restart of both.
const MAX_SKEW_MS: i64 = 5_000;

/// Video frames that may come while decoding time does not grow: a second of the fastest rate. Beyond it a segment might
/// never end.
const MAX_STALLED_FRAMES: u32 = 240;

/// Farthest that presentation may be from decoding: 16 frames, the most that H.264 reorders, at 8 frames a second. What
/// is farther off is damage, and would carry the whole timeline along.
const MAX_COMPOSITION_MS: i32 = 2_000;

/// Largest audio frame: what an ADTS header can say. AAC itself allows 768 bytes a channel.
const MAX_AUDIO_FRAME_BYTES: usize = 8191;

/// Frames that are said to be farther apart than this are not believed to be.
const MAX_INTERVAL: Duration = Duration::from_secs(12);

/// Most bytes of video since its last keyframe that are kept, in case a run begins between two: four seconds of 64 Mbit/s.
const MAX_GOP_BYTES: usize = 32 << 20;

/// Rules of when a run may start.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Media time to wait for the second track's configuration before starting without it.
    pub probe: Duration,
    /// Media time to wait for a video keyframe before the session is refused.
    pub keyframe_timeout: Duration,
    /// A gap longer than this in audio without video breaks the timeline. Below one segment, so that every segment of a run
    /// holds a frame.
    pub max_gap: Duration,
    /// The same in video, whose pictures are shown again where none comes. A source that says how rare its frames are may
    /// take two and a half times as long.
    pub max_still: Duration,
    /// Media time to wait for a second keyframe, so that it is known how far apart they are. `None`: it does not matter.
    pub keyframes: Option<Duration>,
}

/// What a run is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The video track.
    pub video: Option<VideoConfig>,
    /// The audio track.
    pub audio: Option<AudioConfig>,
    /// From the video itself, else from `onMetaData`.
    pub frame_rate: Option<FrameRate>,
    /// Presentation time of the first keyframe (audio-only: of the first frame), in unwrapped milliseconds.
    pub first_ms: i64,
    /// Closed captions in the video frames that came before it is known what the run is made of.
    pub captions: Captions,
    /// From the first keyframe to the second, if that was waited for and came.
    pub keyframe_interval_ms: Option<i64>,
    /// Time of the first frame that came, whether it could be used or not, in unwrapped milliseconds.
    pub came_ms: i64,
}

/// One coded frame with unwrapped source times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Decoding time.
    pub dts_ms: i64,
    /// Presentation time.
    pub pts_ms: i64,
    /// What it is shown later than that, below a millisecond.
    pub pts_nanos: u32,
    /// Decoding can start here.
    pub key: bool,
    /// How long audio lasts, in samples of its timescale; 0 for video.
    pub samples: u32,
    /// The coded bytes.
    pub data: Bytes,
}

/// What the feed says, in order: `Start`, frames, then perhaps `Restart` and again `Start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A run begins.
    Start(Source),
    /// A video frame of the run.
    Video(Frame),
    /// A video frame that came in the run before already: what follows cannot be decoded without it.
    Again(Frame),
    /// An audio frame of the run.
    Audio(Frame),
    /// A data message that belongs to a moment of the run.
    Data(Frame),
    /// The run ends here.
    Restart(Break),
}

/// Why a run ends and another begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Break {
    /// The video track has another configuration, or began after the audio.
    Video,
    /// The audio track has another configuration, or began after the video.
    Audio,
    /// Timestamps jumped, forwards or backwards.
    Jump,
    /// Timestamps do not get on.
    Stall,
}

impl Break {
    /// Fit for a label and a log line.
    pub fn as_str(self) -> &'static str {
        match self {
            Break::Video => "video_configuration",
            Break::Audio => "audio_configuration",
            Break::Jump => "timestamps_jumped",
            Break::Stall => "timestamps_stalled",
        }
    }
}

/// The broadcaster sent what cannot be served: the session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A tag that cannot be understood.
    #[error(transparent)]
    Flv(#[from] media::flv::Error),
    /// A codec configuration that cannot be used.
    #[error(transparent)]
    Codec(#[from] media::codec::Invalid),
    /// Nothing to start decoding with.
    #[error("no video keyframe within {0:?} of media")]
    NoKeyframe(Duration),
    /// Media without a configuration cannot be decoded.
    #[error("no codec configuration within {0:?} of media")]
    NoConfig(Duration),
    /// All media is numbered, and none is number 0.
    #[error(
        "only tracks with other numbers than 0 came within {0:?} of media: the first track must be number 0"
    )]
    NoFirstTrack(Duration),
    /// More came than may be held while waiting for a start.
    #[error("more than {MAX_PROBE_BYTES} bytes came before the stream could start")]
    ProbeOverflow,
}

/// The feed of one session.
#[derive(Debug)]
pub struct Feed {
    rules: Rules,
    clock: Unwrap,
    video: Option<VideoConfig>,
    /// The configuration record in force, if its first keyframe has yet to say how large pictures are.
    unsized_video: Option<(VideoCodec, Bytes)>,
    audio: Option<AudioConfig>,
    meta_rate: Option<FrameRate>,
    /// How far apart frames are said to be, where that is more than a second.
    meta_interval: Option<Duration>,
    running: bool,
    /// Frames that wait for a start, video ones from the first keyframe on.
    held: VecDeque<(TagKind, Frame)>,
    held_bytes: usize,
    probing_since_ms: Option<i64>,
    last_video_ms: Option<i64>,
    last_audio_ms: Option<i64>,
    /// The latest decoding time of video, and how many frames came since that were not later.
    newest_video_ms: Option<i64>,
    stalled_frames: u32,
    /// Video of the run since its last keyframe, unless that is too much.
    gop: Vec<Frame>,
    gop_bytes: usize,
    events: VecDeque<Event>,
    /// Frames dropped because they came before a configuration or a keyframe, or cannot be what they claim.
    skipped: u64,
    damaged_times: u64,
    other_tracks: BTreeSet<OtherTrack>,
    other_messages: u64,
}

/// A track that is not taken: the first of its kind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherTrack {
    /// Video, else audio.
    pub video: bool,
    /// Its number, not 0.
    pub number: u8,
}

impl std::fmt::Display for OtherTrack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", if self.video { "video" } else { "audio" }, self.number)
    }
}

impl Feed {
    /// A feed that has seen nothing.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            clock: Unwrap::default(),
            video: None,
            unsized_video: None,
            audio: None,
            meta_rate: None,
            meta_interval: None,
            running: false,
            held: VecDeque::new(),
            held_bytes: 0,
            probing_since_ms: None,
            last_video_ms: None,
            last_audio_ms: None,
            newest_video_ms: None,
            stalled_frames: 0,
            gop: Vec::new(),
            gop_bytes: 0,
            events: VecDeque::new(),
            skipped: 0,
            damaged_times: 0,
            other_tracks: BTreeSet::new(),
            other_messages: 0,
        }
    }

    /// Takes the next tag. After an error the session is over.
    pub fn push(&mut self, tag: &Tag) -> Result<(), Rejected> {
        match tag.kind {
            TagKind::Script => {
                if let Some(fps) = fps_of(&tag.data) {
                    self.meta_rate = FrameRate::from_fps(fps).or(self.meta_rate);
                    let slow = fps > 0.0 && fps < 1.0 && 1.0 / fps <= MAX_INTERVAL.as_secs_f64();
                    self.meta_interval = slow.then(|| Duration::from_secs_f64(1.0 / fps));
                }
                if tag.is_event() {
                    self.data(tag);
                }
            }
            TagKind::Video => match tag.video()? {
                Video::Config { codec, record } => self.video_config(codec, record)?,
                Video::Frame { codec, key, composition_ms, nanos, data } => {
                    self.size_video(codec, key, &data)?;
                    let dts_ms = self.clock.extend(tag.timestamp_ms);
                    let sane = composition_ms.abs() <= MAX_COMPOSITION_MS;
                    self.damaged_times += u64::from(!sane);
                    let pts_ms = dts_ms + if sane { i64::from(composition_ms) } else { 0 };
                    let known = self.video.as_ref().is_some_and(|config| config.codec == codec);
                    let frame = Frame { dts_ms, pts_ms, pts_nanos: nanos, key, samples: 0, data };
                    self.frame(TagKind::Video, known, frame)?;
                }
                Video::Nothing => {}
            },
            TagKind::Audio => match tag.audio()? {
                Audio::Config { codec, record } => self.audio_config(codec, record)?,
                Audio::Frame { data, .. } if data.is_empty() => {}
                Audio::Frame { data, .. } if data.len() > MAX_AUDIO_FRAME_BYTES => self.skipped += 1,
                Audio::Frame { codec, data } => {
                    let dts_ms = self.clock.extend(tag.timestamp_ms);
                    if let Some(record) = (codec == AudioCodec::Mp3).then(|| mp3::record(&data)).flatten() {
                        self.audio_config(codec, record)?;
                    }
                    let config = self.audio.as_ref().filter(|config| config.codec() == codec);
                    let samples = config.map_or(0, |config| config.frame_samples(&data));
                    let frame = Frame { dts_ms, pts_ms: dts_ms, pts_nanos: 0, key: true, samples, data };
                    self.frame(TagKind::Audio, samples > 0, frame)?;
                }
                Audio::Nothing => {}
            },
        }
        self.note_other_tracks(tag)
    }

    /// No more tags come: starts with what there is, if that is enough.
    pub fn finish(&mut self) {
        if !self.running && self.startable() {
            self.start();
        }
    }

    /// The next event, in order.
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Frames that came before they could be used, or were damaged.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Video frames whose composition time was beyond belief.
    pub fn damaged_times(&self) -> u64 {
        self.damaged_times
    }

    /// Tracks that came and are not taken, at most 510.
    pub fn other_tracks(&self) -> &BTreeSet<OtherTrack> {
        &self.other_tracks
    }

    /// Messages that held such tracks.
    pub fn other_messages(&self) -> u64 {
        self.other_messages
    }

    fn video_config(&mut self, codec: VideoCodec, record: Bytes) -> Result<(), Rejected> {
        let sized =
            self.video.as_ref().is_some_and(|config| (config.codec, &config.record) == (codec, &record));
        let waits =
            self.unsized_video.as_ref().is_some_and(|(of, waiting)| (*of, waiting) == (codec, &record));
        // An empty one says nothing: some encoders send it at the end.
        if !sized && !waits && !record.is_empty() {
            self.video = VideoConfig::parse(codec, record.clone())?;
            self.unsized_video = self.video.is_none().then_some((codec, record));
            self.configured(TagKind::Video);
        }
        Ok(())
    }

    /// Completes a configuration that leaves the size of pictures to their first keyframe.
    fn size_video(&mut self, codec: VideoCodec, key: bool, data: &Bytes) -> Result<(), Rejected> {
        if key && let Some((_, record)) = self.unsized_video.take_if(|(of, _)| *of == codec) {
            self.video = Some(VideoConfig::from_keyframe(codec, record, data)?);
        }
        Ok(())
    }

    fn audio_config(&mut self, codec: AudioCodec, record: Bytes) -> Result<(), Rejected> {
        let known = |config: &AudioConfig| (config.codec(), config.record()) == (codec, &record);
        if !self.audio.as_ref().is_some_and(known) && !record.is_empty() {
            self.audio = Some(AudioConfig::parse(codec, record)?);
            self.configured(TagKind::Audio);
        }
        Ok(())
    }

    /// Takes a data message. Some encoders stamp them zero, or with a time of their own: it is now that they are sent.
    fn data(&mut self, tag: &Tag) {
        let newest = self.last_video_ms.max(self.last_audio_ms);
        let sent = self.clock.near(tag.timestamp_ms);
        let ms = newest.filter(|newest| (sent - newest).abs() > MAX_EVENT_SKEW_MS).unwrap_or(sent);
        let data = tag.data.clone();
        let frame = Frame { dts_ms: ms, pts_ms: ms, pts_nanos: 0, key: false, samples: 0, data };
        if self.running {
            self.events.push_back(Event::Data(frame));
        } else if self.held_bytes + frame.data.len() <= MAX_PROBE_BYTES {
            self.held_bytes += frame.data.len();
            self.held.push_back((TagKind::Script, frame));
        }
    }

    /// A track has a new configuration: a run ends with it; of what waits for a start only that track is of no use any more.
    fn configured(&mut self, track: TagKind) {
        if self.running && track == TagKind::Audio && !self.gop.is_empty() {
            return self.change_audio();
        }
        if self.running {
            return self.restart(if track == TagKind::Video { Break::Video } else { Break::Audio });
        }
        let before = self.held.len();
        self.held.retain(|(kind, _)| *kind != track);
        self.skipped += (before - self.held.len()) as u64;
        self.held_bytes = self.held.iter().map(|(_, frame)| frame.data.len()).sum();
    }

    /// Video is there, or will be once its first keyframe comes.
    fn has_video(&self) -> bool {
        self.video.is_some() || self.unsized_video.is_some()
    }

    /// Remembers the tracks beside the first, and that there is nothing else.
    fn note_other_tracks(&mut self, tag: &Tag) -> Result<(), Rejected> {
        let others = tag.other_tracks();
        if others.is_empty() {
            return Ok(());
        }
        self.other_messages += 1;
        let video = tag.kind == TagKind::Video;
        self.other_tracks.extend(others.into_iter().map(|number| OtherTrack { video, number }));
        if self.running || self.has_video() || self.audio.is_some() {
            return Ok(());
        }
        let now_ms = self.clock.extend(tag.timestamp_ms);
        let since_ms = *self.probing_since_ms.get_or_insert(now_ms);
        if now_ms - since_ms >= self.rules.keyframe_timeout.as_millis() as i64 {
            return Err(Rejected::NoFirstTrack(self.rules.keyframe_timeout));
        }
        Ok(())
    }

    /// `known`: there is a configuration for it, and the frame is understood.
    fn frame(&mut self, kind: TagKind, known: bool, frame: Frame) -> Result<(), Rejected> {
        if self.breaks(kind, frame.dts_ms) {
            self.restart(Break::Jump);
        }
        if kind == TagKind::Video && self.stalls(frame.dts_ms) {
            self.restart(Break::Stall);
        }
        if kind == TagKind::Audio && self.strays(frame.dts_ms) {
            self.skipped += 1;
            return Ok(());
        }
        match kind {
            TagKind::Video => self.last_video_ms = Some(frame.dts_ms),
            _ => self.last_audio_ms = Some(frame.dts_ms),
        }
        if !self.running {
            return self.probe(kind, known, frame);
        }
        if !known {
            self.skipped += 1;
            return Ok(());
        }
        if kind == TagKind::Video {
            self.keep(&frame);
        }
        self.events.push_back(match kind {
            TagKind::Video => Event::Video(frame),
            _ => Event::Audio(frame),
        });
        Ok(())
    }

    /// Whether `ms` cannot be on the same timeline as what came before on this track.
    fn breaks(&self, kind: TagKind, ms: i64) -> bool {
        let jumps = |last: Option<i64>, most: Duration| {
            last.is_some_and(|last| (ms - last).abs() > most.as_millis() as i64)
        };
        let jump = |last| jumps(last, self.rules.max_gap);
        let still = self.meta_interval.map_or(self.rules.max_still, |i| self.rules.max_still.max(i * 5 / 2));
        match kind {
            TagKind::Video => jumps(self.last_video_ms, still),
            // Audio may pause while video goes on; it leaves video's neighbourhood only when time starts anew.
            _ if self.has_video() => {
                jump(self.last_audio_ms)
                    && self.last_video_ms.is_some_and(|video| (ms - video).abs() > MAX_SKEW_MS)
            }
            _ => jump(self.last_audio_ms),
        }
    }

    /// Whether video has come for too long without getting on in time.
    fn stalls(&mut self, ms: i64) -> bool {
        if self.newest_video_ms.is_none_or(|newest| ms > newest) {
            self.newest_video_ms = Some(ms);
            self.stalled_frames = 0;
        } else {
            self.stalled_frames += 1;
        }
        self.stalled_frames > MAX_STALLED_FRAMES
    }

    /// Whether the first audio of a run cannot belong to its video: a straggler from before the time jumped. Taken in, it
    /// would have all audio wait for its time.
    fn strays(&self, ms: i64) -> bool {
        self.has_video()
            && self.last_audio_ms.is_none()
            && self.last_video_ms.is_some_and(|video| (ms - video).abs() > MAX_SKEW_MS)
    }

    /// Another run begins with other audio where the video is, which goes on.
    fn change_audio(&mut self) {
        let (gop, gop_bytes) = (self.gop.clone(), self.gop_bytes);
        let (video_ms, newest_ms) = (self.last_video_ms, self.newest_video_ms);
        self.restart(Break::Audio);
        let Some(first) = gop.first() else { return };
        self.events.push_back(Event::Start(self.source(first.pts_ms, first.dts_ms, None)));
        self.events.extend(gop.iter().cloned().map(Event::Again));
        (self.gop, self.gop_bytes, self.running) = (gop, gop_bytes, true);
        (self.last_video_ms, self.newest_video_ms) = (video_ms, newest_ms);
    }

    fn source(&self, first_ms: i64, came_ms: i64, keyframe_interval_ms: Option<i64>) -> Source {
        // Those of a run that goes on with other audio are in its group of pictures.
        let held = self.held.iter().filter(|(kind, _)| *kind == TagKind::Video).map(|(_, frame)| frame);
        let captions = self.video.as_ref().map(|video| {
            let seen = held.chain(&self.gop).map(|frame| Captions::seen_in(video.codec, &frame.data));
            seen.reduce(Captions::union).unwrap_or_default()
        });
        Source {
            captions: captions.unwrap_or_default(),
            video: self.video.clone(),
            audio: self.audio.clone(),
            frame_rate: self.video.as_ref().and_then(|config| config.frame_rate.or(self.meta_rate)),
            first_ms,
            keyframe_interval_ms,
            came_ms,
        }
    }

    /// Keeps what comes of video since its last keyframe.
    fn keep(&mut self, frame: &Frame) {
        if frame.key {
            self.gop.clear();
            self.gop_bytes = 0;
        }
        self.gop_bytes += frame.data.len();
        if self.gop_bytes > MAX_GOP_BYTES {
            self.gop.clear();
        } else if frame.key || !self.gop.is_empty() {
            self.gop.push(frame.clone());
        }
    }

    fn restart(&mut self, why: Break) {
        if self.running {
            self.running = false;
            self.events.push_back(Event::Restart(why));
        }
        self.skipped += self.held.len() as u64;
        self.held.clear();
        self.held_bytes = 0;
        self.gop.clear();
        self.gop_bytes = 0;
        self.probing_since_ms = None;
        self.last_video_ms = None;
        self.last_audio_ms = None;
        self.newest_video_ms = None;
        self.stalled_frames = 0;
    }

    fn probe(&mut self, kind: TagKind, known: bool, frame: Frame) -> Result<(), Rejected> {
        let now_ms = frame.dts_ms;
        let since_ms = *self.probing_since_ms.get_or_insert(now_ms);
        let after_key = self.held.iter().any(|(kind, _)| *kind == TagKind::Video);
        if !known || (kind == TagKind::Video && !frame.key && !after_key) {
            self.skipped += 1;
        } else {
            self.held_bytes += frame.data.len();
            self.held.push_back((kind, frame));
        }
        let waited = Duration::from_millis((now_ms - since_ms).max(0) as u64);
        let complete = waited >= self.rules.probe || (self.video.is_some() && self.audio.is_some());
        let measured = self.rules.keyframes.is_none_or(|wait| waited >= wait)
            || !self.has_video()
            || self.keyframe_interval_ms().is_some();
        let full = self.held_bytes > MAX_PROBE_BYTES;
        if self.startable() && ((complete && measured) || full) {
            self.start();
        } else if full {
            return Err(Rejected::ProbeOverflow);
        } else if waited >= self.rules.keyframe_timeout && !self.startable() {
            return Err(match self.has_video() {
                true => Rejected::NoKeyframe(self.rules.keyframe_timeout),
                false => Rejected::NoConfig(self.rules.keyframe_timeout),
            });
        }
        Ok(())
    }

    /// From the first keyframe that waits to the second.
    fn keyframe_interval_ms(&self) -> Option<i64> {
        let mut keys = self.held.iter().filter(|(kind, frame)| *kind == TagKind::Video && frame.key);
        let (first, second) = (keys.next()?, keys.next()?);
        Some(second.1.pts_ms - first.1.pts_ms)
    }

    /// Whether there is something to start with: a keyframe, or audio where no video was announced.
    fn startable(&self) -> bool {
        let wanted = if self.has_video() { TagKind::Video } else { TagKind::Audio };
        self.held.iter().any(|(kind, _)| *kind == wanted)
    }

    fn start(&mut self) {
        let leading = if self.video.is_some() { TagKind::Video } else { TagKind::Audio };
        let Some(first_ms) =
            self.held.iter().find(|(kind, _)| *kind == leading).map(|(_, frame)| frame.pts_ms)
        else {
            return;
        };
        self.running = true;
        self.held_bytes = 0;
        if leading == TagKind::Video {
            // What waits may hold stragglers from before the time jumped: taken in, they would have all audio wait for theirs.
            let strays = |ms: i64| (ms - first_ms).abs() > MAX_SKEW_MS;
            let before = self.held.len();
            self.held.retain(|(kind, frame)| *kind != TagKind::Audio || !strays(frame.dts_ms));
            self.skipped += (before - self.held.len()) as u64;
            self.last_audio_ms = self.last_audio_ms.filter(|ms| !strays(*ms));
        }
        let keyframe_interval_ms = self.keyframe_interval_ms().filter(|_| self.rules.keyframes.is_some());
        let came_ms = self.probing_since_ms.unwrap_or(first_ms);
        self.events.push_back(Event::Start(self.source(first_ms, came_ms, keyframe_interval_ms)));
        for (kind, mut frame) in std::mem::take(&mut self.held) {
            if kind == TagKind::Script && (frame.pts_ms - first_ms).abs() > MAX_EVENT_SKEW_MS {
                (frame.dts_ms, frame.pts_ms) = (first_ms, first_ms);
            }
            if kind == TagKind::Video {
                self.keep(&frame);
            }
            self.events.push_back(match kind {
                TagKind::Video => Event::Video(frame),
                TagKind::Audio => Event::Audio(frame),
                TagKind::Script => Event::Data(frame),
            });
        }
    }
}

/// How far a data message may be from the newest media, in milliseconds, before its time is not believed.
const MAX_EVENT_SKEW_MS: i64 = 10_000;

/// Extends 32-bit millisecond times to 64 bits: they wrap after 49.7 days, and encoders may start anywhere.
#[derive(Debug, Default)]
pub struct Unwrap {
    last: Option<i64>,
}

impl Unwrap {
    /// The time nearest to the last one that has these low 32 bits. The first is taken as a signed number
    /// (FLV annex E.4.1), moved up by 2^32 so that small steps back stay positive.
    pub fn extend(&mut self, time_ms: u32) -> i64 {
        let extended = self.near(time_ms);
        self.last = Some(extended);
        extended
    }

    /// The same for a time that others are not to follow.
    pub fn near(&self, time_ms: u32) -> i64 {
        match self.last {
            None => i64::from(time_ms) + (1 << 32),
            Some(last) => last + i64::from(time_ms.wrapping_sub(last as u32) as i32),
        }
    }
}

/// `framerate` of an `onMetaData` script tag, as it is sent.
fn fps_of(script: &[u8]) -> Option<f64> {
    /// Metadata of real encoders has below a kilobyte.
    const MAX_SCRIPT_BYTES: usize = 16 << 10;
    let values = rml_amf0::deserialize(&mut script.get(..script.len().min(MAX_SCRIPT_BYTES))?).ok()?;
    values.iter().find_map(|value| match value {
        Amf0Value::Object(fields) => match fields.get("framerate")? {
            Amf0Value::Number(fps) => Some(*fps),
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    const AVC: &str = "0142c01effe100196742c01ed900a02ff97011000003000100000300320f162e4801000568cb83cb20";

    fn tag(kind: TagKind, timestamp_ms: u32, head: &[u8], rest: &[u8]) -> Tag {
        let mut data = BytesMut::from(head);
        data.extend_from_slice(rest);
        Tag { kind, timestamp_ms, data: data.freeze() }
    }

    fn video_config() -> Tag {
        let record: Vec<u8> =
            (0..AVC.len()).step_by(2).map(|i| u8::from_str_radix(&AVC[i..i + 2], 16).unwrap()).collect();
        tag(TagKind::Video, 0, &[0x17, 0, 0, 0, 0], &record)
    }

    fn audio_config() -> Tag {
        tag(TagKind::Audio, 0, &[0xAF, 0], &[0x12, 0x10])
    }

    fn video(ms: u32, key: bool) -> Tag {
        tag(TagKind::Video, ms, &[if key { 0x17 } else { 0x27 }, 1, 0, 0, 0], b"v")
    }

    fn audio(ms: u32) -> Tag {
        tag(TagKind::Audio, ms, &[0xAF, 1], b"a")
    }

    fn rules() -> Rules {
        Rules {
            probe: Duration::from_secs(1),
            keyframe_timeout: Duration::from_secs(10),
            max_gap: Duration::from_millis(900),
            max_still: Duration::from_millis(900),
            keyframes: None,
        }
    }

    /// What a session of these tags says, one letter an event: S(tart), v, a, R(estart).
    fn said(tags: impl IntoIterator<Item = Tag>) -> Result<String, Rejected> {
        let mut feed = Feed::new(rules());
        let mut said = String::new();
        for tag in tags {
            feed.push(&tag)?;
            while let Some(event) = feed.poll() {
                said.push(match event {
                    Event::Start(source) if source.video.is_none() => 'A',
                    Event::Start(source) if source.audio.is_none() => 'V',
                    Event::Start(_) => 'S',
                    Event::Video(_) => 'v',
                    Event::Again(_) => 'w',
                    Event::Audio(_) => 'a',
                    Event::Data(_) => 'd',
                    Event::Restart(_) => 'R',
                });
            }
        }
        Ok(said)
    }

    #[test]
    fn data_messages_are_of_their_moment_and_no_frames() {
        let text = |ms| tag(TagKind::Script, ms, &[2, 0, 10], b"onTextData\x05");
        let script = |ms| tag(TagKind::Script, ms, &[2, 0, 10], b"onMetaData\x05");
        // What comes before it is known what there is waits like the frames.
        let begin =
            [video_config(), text(0), video(0, true), audio_config(), text(20), audio(23), script(24)];
        assert_eq!(said(begin).unwrap(), "Sdvda");
        let mut feed = Feed::new(rules());
        let mut times = Vec::new();
        let stray = [text(5_000), text(0x8000_0000), text(1_020)];
        for tag in [video_config(), audio_config(), video(1_000, true), audio(1_010)].into_iter().chain(stray)
        {
            feed.push(&tag).unwrap();
            while let Some(event) = feed.poll() {
                if let Event::Data(frame) = event {
                    times.push(frame.pts_ms - (1 << 32));
                }
            }
        }
        assert_eq!(times, [5_000, 1_010, 1_020], "a time of nobody's is now, and moves nothing");
    }

    #[test]
    fn a_run_starts_at_a_keyframe_with_the_tracks_there_are() {
        let both = [video_config(), audio_config(), audio(0), video(0, false), video(33, true), audio(40)];
        assert_eq!(said(both).unwrap(), "Sava");
        let late =
            [video_config(), video(0, true), video(33, false), audio_config(), audio(40), video(66, false)];
        assert_eq!(said(late).unwrap(), "Svvav", "what came before the audio's configuration is kept");
        let twice = [
            video_config(),
            audio_config(),
            tag(TagKind::Audio, 0, &[0xAF, 0], &[0x11, 0x90]),
            audio(0),
            video(0, true),
        ];
        assert_eq!(said(twice).unwrap(), "Sav");
        let video_only = (0..40).map(|i| video(i * 33, i == 0));
        assert_eq!(
            said([video_config()].into_iter().chain(video_only)).unwrap(),
            format!("V{}", "v".repeat(40))
        );
        let audio_only = (0..50).map(|i| audio(i * 23));
        assert_eq!(
            said([audio_config()].into_iter().chain(audio_only)).unwrap(),
            format!("A{}", "a".repeat(50))
        );
    }

    #[test]
    fn what_cannot_start_is_refused_in_words() {
        let no_key = (0..400).map(|i| video(i * 33, false));
        let error = said([video_config(), audio_config()].into_iter().chain(no_key)).unwrap_err();
        assert_eq!(error.to_string(), "no video keyframe within 10s of media");
        let no_config = (0..400).map(|i| video(i * 33, i == 0));
        assert_eq!(said(no_config).unwrap_err(), Rejected::NoConfig(Duration::from_secs(10)));
        let vvc = tag(TagKind::Video, 0, b"\x90vvc1", b"");
        let error = said([vvc]).unwrap_err().to_string();
        assert!(error.starts_with("unsupported video codec VVC (vvc1)"), "{error}");
        let second_only = (0..400).map(|i| tag(TagKind::Video, i * 33, b"\x96\x01hvc1\x01", b"x"));
        assert_eq!(said(second_only).unwrap_err(), Rejected::NoFirstTrack(Duration::from_secs(10)));
    }

    #[test]
    fn a_jump_ends_the_run_and_a_wrap_does_not() {
        let start = [video_config(), audio_config()];
        let wrap = (0..4u32).map(|i| video((u32::MAX - 50).wrapping_add(i * 33), i == 0));
        assert_eq!(said(start.clone().into_iter().chain(wrap)).unwrap(), "Svvvv");
        let jump =
            [video(0, true), video(33, false), video(5000, false), video(5033, true), video(5066, false)];
        assert_eq!(said(start.clone().into_iter().chain(jump)).unwrap(), "SvvRSvv");
        let to_zero = [video(90_000, true), audio(90_000), audio(0), video(0, true), audio(23)];
        assert_eq!(said(start.clone().into_iter().chain(to_zero)).unwrap(), "SvaRSava");
        let straggler = [video(90_000, true), audio(90_000), video(0, true), audio(90_023), audio(5)];
        assert_eq!(said(start.clone().into_iter().chain(straggler)).unwrap(), "SvaRSva");
        let stuck = (0..=MAX_STALLED_FRAMES + 1).map(|i| video(100 - i % 2, true));
        let runs = said(start.clone().into_iter().chain(stuck)).unwrap();
        assert!(runs.ends_with("vRSv"), "{runs}");
        let audio_pause = [
            video(0, true),
            audio(0),
            video(500, false),
            video(1000, false),
            video(1500, false),
            audio(1500),
        ];
        assert_eq!(said(start.into_iter().chain(audio_pause)).unwrap(), "Svavvva");
    }

    #[test]
    fn a_second_keyframe_is_waited_for_where_it_matters() {
        let started = |keyframes: Option<Duration>, every: u32, frames: u32| {
            let mut feed = Feed::new(Rules { keyframes, ..rules() });
            for tag in [video_config(), audio_config(), audio(0)] {
                feed.push(&tag).unwrap();
            }
            for frame in 0..frames {
                feed.push(&video(frame * 40, frame % every == 0)).unwrap();
                match feed.poll() {
                    Some(Event::Start(source)) => {
                        let held = std::iter::from_fn(|| feed.poll()).count();
                        return Some((frame, source.keyframe_interval_ms, held));
                    }
                    other => assert_eq!(other, None),
                }
            }
            None
        };
        let wait = Some(Duration::from_secs(5));
        assert_eq!(started(None, 50, 100), Some((0, None, 2)));
        assert_eq!(started(wait, 50, 100), Some((50, Some(2000), 52)), "nothing that came is lost");
        assert_eq!(started(wait, 1000, 200), Some((125, None, 127)), "it does not come");
        assert_eq!(started(wait, 1000, 100), None);
    }

    #[test]
    fn rare_frames_break_nothing_where_they_are_announced() {
        let slides = |fps: Option<f64>| {
            let mut feed = Feed::new(rules());
            let mut script = b"\x02\0\x0aonMetaData\x03\0\x09framerate\0".to_vec();
            script.extend(fps.unwrap_or(30.0).to_be_bytes());
            script.extend([0, 0, 9]);
            feed.push(&tag(TagKind::Script, 0, &[], &script)).unwrap();
            for tag in [video_config(), audio_config(), audio(0)] {
                feed.push(&tag).unwrap();
            }
            for frame in 0..4 {
                feed.push(&video(frame * 5000, true)).unwrap();
            }
            std::iter::from_fn(|| feed.poll()).filter(|event| matches!(event, Event::Restart(_))).count()
        };
        assert_eq!((slides(None), slides(Some(0.2)), slides(Some(0.01))), (3, 0, 3));
    }

    #[test]
    fn damage_moves_no_timeline_and_fills_no_queue() {
        let mut feed = Feed::new(rules());
        let far = tag(TagKind::Video, 66, &[0x27, 1, 0x7F, 0xFF, 0xFF], b"v");
        let huge = tag(TagKind::Audio, 66, &[0xAF, 1], &[0; MAX_AUDIO_FRAME_BYTES + 1]);
        for tag in [video_config(), audio_config(), video(33, true), far, huge] {
            feed.push(&tag).unwrap();
        }
        let frames: Vec<_> = std::iter::from_fn(|| feed.poll()).skip(1).collect();
        let [Event::Video(_), Event::Video(far)] = frames.as_slice() else { panic!("{frames:?}") };
        assert_eq!((far.pts_ms, feed.skipped(), feed.damaged_times()), (far.dts_ms, 1, 1));
    }

    #[test]
    fn the_first_keyframe_says_what_a_record_does_not() {
        // VP9: a record without a size, a frame between keyframes, a keyframe of 352x288.
        let record = tag(TagKind::Video, 0, b"\x90vp09", &[0, 31, 0x82, 1, 1, 1, 0, 0]);
        let vp9 = |ms, key: bool, data: &[u8]| {
            tag(TagKind::Video, ms, if key { b"\x91vp09" } else { b"\xA1vp09" }, data)
        };
        let key = [0x82, 0x49, 0x83, 0x42, 0x00, 0x15, 0xF0, 0x11, 0xF0, 0x00];
        let mut feed = Feed::new(rules());
        for tag in
            [record.clone(), audio_config(), audio(0), vp9(0, false, &[0x86]), vp9(33, true, &key), record]
        {
            feed.push(&tag).unwrap();
        }
        let Some(Event::Start(source)) = feed.poll() else { panic!("no start") };
        let video = source.video.unwrap();
        assert_eq!((video.codec, video.width, video.height), (VideoCodec::Vp9, 352, 288));
        assert!(source.audio.is_some() && matches!(feed.poll(), Some(Event::Audio(_))));
        assert!(
            matches!(feed.poll(), Some(Event::Video(_))) && feed.poll().is_none(),
            "the record said nothing new"
        );
        let damaged = [vp9(0, true, &[0x82]), vp9(0, true, &[])];
        for damaged in damaged {
            let record = tag(TagKind::Video, 0, b"\x90vp09", &[0, 31, 0x82, 1, 1, 1, 0, 0]);
            let error = said([record, damaged]).unwrap_err().to_string();
            assert_eq!(error, "keyframe: it has no VP9 header");
        }
    }

    #[test]
    fn a_change_of_codec_begins_a_run_and_strangers_are_left_out() {
        let opus = tag(TagKind::Audio, 40, b"\x90Opus", b"OpusHead\x01\x02\x38\x01\x80\xBB\0\0\0\0\0");
        let packet = |ms| tag(TagKind::Audio, ms, b"\x91Opus", &[0xFC, 1, 2]);
        let tags = [
            video_config(),
            audio_config(),
            video(0, true),
            audio(0),
            packet(20),
            opus,
            packet(40),
            video(66, true),
            packet(60),
        ];
        // The video goes on where it is.
        assert_eq!(said(tags).unwrap(), "SvaRSwava");
    }

    #[test]
    fn late_audio_costs_no_video() {
        let start = (0..60).map(|frame| video(frame * 40, frame % 25 == 0));
        let late = [audio_config(), audio(2400), video(2400, false), video(2440, false)];
        let tags = [video_config()].into_iter().chain(start).chain(late);
        let expected = format!("V{}RS{}avv", "v".repeat(60), "w".repeat(10));
        assert_eq!(said(tags).unwrap(), expected, "frames since the last keyframe come once more");
    }

    #[test]
    fn tracks_beside_the_first_are_noted() {
        let second = tag(TagKind::Video, 40, b"\x96\x01hvc1\x01", b"x");
        let both = tag(TagKind::Audio, 40, b"\x95\x11mp4a\x00\0\0\x01a\x03\0\0\x01", b"b");
        let mut feed = Feed::new(rules());
        for tag in [video_config(), audio_config(), video(0, true), second.clone(), both, second] {
            feed.push(&tag).unwrap();
        }
        let named: Vec<_> = feed.other_tracks().iter().map(ToString::to_string).collect();
        assert_eq!((named, feed.other_messages()), (vec!["audio 3".to_string(), "video 1".to_string()], 3));
        let events: Vec<_> = std::iter::from_fn(|| feed.poll()).collect();
        assert!(matches!(events[..], [Event::Start(_), Event::Video(_), Event::Audio(_)]), "{events:?}");
    }

    #[test]
    fn whatever_times_do_every_frame_is_accounted_for_and_runs_hold_together() {
        let mut seed = 11u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let mut feed = Feed::new(rules());
            let (mut ms, mut pushed, mut emitted) = (random(1 << 32) as u32, 0, 0);
            let (mut running, mut last_video) = (false, None::<i64>);
            for index in 0..400 {
                ms = match random(60) {
                    0 => 0,
                    1 => random(1 << 32) as u32,
                    2 => ms.wrapping_add(random(20_000) as u32),
                    3 => ms.wrapping_sub(random(20_000) as u32),
                    4..10 => ms.wrapping_sub(random(5) as u32),
                    _ => ms.wrapping_add(random(40) as u32),
                };
                let tag = match random(40) {
                    0 => video_config(),
                    1 => audio_config(),
                    2 => tag(TagKind::Audio, ms, &[0xAF, 0], &[0x11, 0x90]),
                    3..24 => video(ms, index % 10 == 0),
                    _ => audio(ms),
                };
                pushed += u64::from(tag.is_frame());
                if feed.push(&tag).is_err() {
                    break;
                }
                while let Some(event) = feed.poll() {
                    match event {
                        Event::Data(_) => {}
                        Event::Start(_) => {
                            assert!(!running, "a run begins once");
                            (running, last_video) = (true, None);
                        }
                        Event::Restart(_) => {
                            assert!(running, "what did not begin cannot end");
                            running = false;
                        }
                        Event::Video(frame) => {
                            emitted += 1;
                            assert!(
                                running && (last_video.is_some() || frame.key),
                                "a run begins with a keyframe"
                            );
                            let gap = last_video.map_or(0, |last| (frame.dts_ms - last).abs());
                            assert!(gap <= 900, "a gap of {gap} ms within a run");
                            last_video = Some(frame.dts_ms);
                        }
                        Event::Again(frame) => {
                            assert!(running && (last_video.is_some() || frame.key));
                            last_video = Some(frame.dts_ms);
                        }
                        Event::Audio(frame) => {
                            emitted += 1;
                            let skew = last_video.map_or(0, |video| (frame.dts_ms - video).abs());
                            assert!(
                                running && (feed.video.is_none() || skew <= MAX_SKEW_MS + 900),
                                "{skew} ms apart"
                            );
                        }
                    }
                }
                assert_eq!(pushed, emitted + feed.skipped() + feed.held.len() as u64, "a frame is lost");
            }
        }
    }

    #[test]
    fn times_extend_past_the_wrap() {
        let mut clock = Unwrap::default();
        let base = 1i64 << 32;
        for (raw, extended) in [
            (u32::MAX - 1, base + i64::from(u32::MAX) - 1),
            (3, base + (1 << 32) + 3),
            (u32::MAX, base + (1 << 32) - 1),
        ] {
            assert_eq!(clock.extend(raw), extended);
        }
    }
}
