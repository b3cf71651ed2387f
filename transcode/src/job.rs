//! One job: its threads and the bounded queues between them.
//!
//! ```text
//! Input ──32 access units──▶ decode ──4 pictures──▶ rung 0 ──4 pictures──▶ rung 1 ──▶ …
//!                               └───────── 32 events per rung ─────────┴──────────┴──▶ Output
//! ```
//!
//! Each rung scales the picture it is given, passes the result on and then encodes, so that scaling and
//! encoding of all rungs overlap. Every queue makes its writer wait when it is full, back to
//! [`Input::send`]. The end travels with the media: dropping [`Input`] flushes each stage in turn, and
//! [`Output`] reports [`Event::Ended`] once every thread is through. A thread that fails closes its queues,
//! which stops its neighbours.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use media::codec::{VideoCodec, VideoConfig};
use media::time::FrameRate;
use media::{Sample, Ticks};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tracing::Span;

use crate::config::MAX_RUNGS;
use crate::decode::{self, AccessUnit, Pace};
use crate::draw::Drawer;
use crate::error::{Closed, Error};
use crate::ladder::Rung;
use crate::libav::{self, Decoder, Deinterlacer, Failure, MAX_PIXELS, Picture};
use crate::metrics::Metrics;
use crate::rung::Stage;
use crate::thumbnails::Tiles;
use crate::timeline::{Showing, Timeline};

/// Access units that wait for the decoder: about a second, to smooth the bursts in which networks deliver.
const INPUT_QUEUE: usize = 32;

/// Pictures that wait for a rung: enough to overlap the stages, few because one 2160p picture has 12 MB.
const PICTURE_QUEUE: usize = 4;

/// Events per rung that wait for the consumer: about a second.
const EVENT_QUEUE: usize = 32;

/// Pictures whose decoding is remembered: more than there are between the decoder and the last rung.
const MAX_DECODED: usize = 128;

/// Longest configuration record; real ones have 50 to 500 bytes.
const MAX_RECORD_BYTES: usize = 64 * 1024;

/// The video that a job is to transcode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoSource {
    /// What it is coded in.
    pub codec: VideoCodec,
    /// The codec's configuration record, such as an AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section
    /// 5.3.3.1), at most 64 KiB.
    pub record: Bytes,
    /// Width in pixels after cropping, at least 16; a picture has at most 4096 x 2304 pixels, either way
    /// round.
    pub width: u32,
    /// Height in pixels after cropping, at least 16.
    pub height: u32,
    /// Sample aspect ratio; (1, 1) for square pixels.
    pub sar: (u32, u32),
    /// Nominal frame rate, for the rate control and the ladder; 30 is assumed when unknown.
    pub frame_rate: Option<FrameRate>,
}

/// What [`start`] is to do. All times are in ticks of 1/90000 s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// What will be sent.
    pub source: VideoSource,
    /// What is wanted, largest first: 1 to 12 rungs with even sizes, see [`crate::ladder::derive()`].
    pub rungs: Vec<Rung>,
    /// The first frame wanted: decoded frames with an earlier `pts` are not encoded.
    pub start: Ticks,
    /// A keyframe begins each segment, see [`crate::segment_index`]; at least 1.
    pub segment_duration: Ticks,
    /// A picture that the source shows for longer is shown again in between: the longest that a frame may be; at least 1.
    pub longest_showing: Ticks,
    /// Segments begin with the frames that are sent with [`Input::send_cut`], not by `segment_duration`.
    pub given_cuts: bool,
    /// Whether interlaced pictures are made progressive.
    pub deinterlace: bool,
    /// Whether rungs are shed when the encoders do not keep up with the clock, and how many of the largest are from the
    /// second segment on. `None`: never, for work that is not live.
    pub shed: Option<usize>,
    /// The thumbnails to be drawn, if any.
    pub thumbnails: Option<Tiles>,
}

/// What a job has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A rung has begun: once per rung, before its first sample.
    Config {
        /// Index into [`Job::rungs`].
        rung: usize,
        /// What follows: its codec and configuration record, its size and pixels.
        config: VideoConfig,
    },
    /// One coded frame: one per source frame and rung, each rung in order. Of a rung with [`Rung::max_fps`], every so
    /// manieth, and each that begins a segment.
    Sample {
        /// Index into [`Job::rungs`].
        rung: usize,
        /// `pts` is exactly the source frame's, `duration` too, with that of frames left out behind it; `dts == pts`, `key` means that decoding can begin here, and `data`
        /// is as in MP4, of H.264 and HEVC length-prefixed (4 bytes), without parameter sets and delimiters.
        sample: Sample,
    },
    /// A rung is shed: nothing of the segment that begins here is encoded for it.
    Shed {
        /// Index into [`Job::rungs`].
        rung: usize,
        /// Presentation time of the segment's first frame.
        pts: Ticks,
    },
    /// The newest thumbnail by itself.
    Picture {
        /// Presentation time of its frame.
        pts: Ticks,
        /// A JPEG file.
        jpeg: Bytes,
    },
    /// A sheet of thumbnails whose time is over: in order, but some may be missing.
    Sheet {
        /// As [`Tiles::sheet`] counts.
        number: i64,
        /// A JPEG file.
        jpeg: Bytes,
    },
    /// The source was broken. The session goes on.
    Damaged {
        /// Frames patched over by the decoder, repeated from a neighbour, or lost: the last only where no
        /// picture was ever decoded, or where a decoder out of step gave later ones first.
        frames: u64,
    },
    /// The job is over; always the last event.
    Ended(Result<(), Error>),
}

/// Starts the threads of a job. Their log lines belong to the caller's current span.
///
/// # Errors
/// The job makes no sense, the linked FFmpeg lacks a codec, the decoder refuses the source's `record`, or the
/// system refuses a thread. Nothing is left running then.
pub fn start(job: Job, metrics: Metrics) -> Result<(Input, Output), Error> {
    validate(&job)?;
    libav::route_to_tracing();
    if let Some(rung) = job.rungs.iter().find(|rung| !libav::Encoder::is_available(rung.encoder)) {
        return Err(Error::NoEncoder { encoder: rung.encoder.name });
    }
    let strained = Arc::new(AtomicBool::new(false));
    let mut drawer = job.thumbnails.and_then(|tiles| drawer(tiles, strained.clone()));
    let decoder = Decoder::open(job.source.codec, &job.source.record)?;
    let (input, access_units) = mpsc::channel(INPUT_QUEUE);
    let (events, output) = mpsc::channel(EVENT_QUEUE * job.rungs.len());
    let crew = Arc::new(Crew::default());
    let decoded = Decoded::default();
    // Declared before the queues that end the threads, so that leaving early joins after closing.
    let mut threads = Threads::new(metrics.jobs.clone());
    // From the last rung up, since each is given the way to the one below it.
    let mut next = None;
    for (index, rung) in job.rungs.iter().enumerate().rev() {
        let (pictures, inlet) = Pictures::channel(metrics.clone());
        let outlet = Events { events: events.clone(), metrics: metrics.clone(), decoded: decoded.clone() };
        let stage = Stage::new(index, &job.rungs, &job.source, next.replace(pictures), outlet)?;
        // The first to be made is the smallest.
        let stage = stage.drawn_by(drawer.take());
        let thread = crew.spawn(format!("tc-{}", rung.id), events.clone(), move || stage.run(inlet))?;
        threads.handles.push(thread);
    }
    let Some(first) = next else { unreachable!("a valid job has a rung") };
    let outlet = Events { events: events.clone(), metrics: metrics.clone(), decoded: decoded.clone() };
    let mut timeline = Timeline::new(job.start, job.segment_duration, job.longest_showing);
    if job.given_cuts {
        timeline = timeline.with_given_cuts();
    }
    let names = job.rungs.iter().map(|rung| rung.id.to_string()).collect();
    let pace = Pace::new(names, job.shed, metrics.clone(), strained);
    let source = decode::Source { decoder, deinterlacer: job.deinterlace.then(Deinterlacer::default) };
    let abandoned = Arc::new(AtomicBool::new(false));
    let abandon = abandoned.clone();
    threads.handles.push(crew.spawn("tc-decode".to_owned(), events, move || {
        decode::run(source, timeline, pace, access_units, &abandoned, first, outlet)
    })?);
    let threads = Arc::new(threads);
    Ok((
        Input {
            access_units: input,
            codec: job.source.codec,
            record: None,
            abandoned: abandon,
            _threads: threads.clone(),
        },
        Output { events: output, decoded, crew, ended: false, _threads: threads },
    ))
}

/// A stream can do without thumbnails.
fn drawer(tiles: Tiles, strained: Arc<AtomicBool>) -> Option<Drawer> {
    let drawer = Drawer::new(tiles, strained);
    drawer.inspect_err(|failure| tracing::warn!(%failure, "no thumbnails of this run")).ok()
}

/// Takes the samples of the source. Dropping it ends the job in good order: all frames that were sent still
/// come out.
#[derive(Debug)]
pub struct Input {
    access_units: mpsc::Sender<AccessUnit>,
    codec: VideoCodec,
    /// Parameter sets to go with the next access unit.
    record: Option<Bytes>,
    abandoned: Arc<AtomicBool>,
    _threads: Arc<Threads>,
}

impl Input {
    /// Ends the job where the source broke off. Pictures that the decoder holds back until it has seen those shown before
    /// them do not come out: all that does is shown without a hole, and the source can be taken up behind it.
    pub fn abandon(self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Sends one access unit: as its codec has them in MP4 (NAL units are length-prefixed), times in ticks of 1/90000 s, in
    /// decode order, starting with a keyframe. Waits while the queue is full, that is until [`Output`] has
    /// been read far enough: read it in another task. If dropped midway, the sample is not sent.
    ///
    /// # Errors
    /// The job has ended, or [`Output`] was dropped.
    pub async fn send(&mut self, sample: Sample) -> Result<(), Closed> {
        self.put(sample, false).await
    }

    /// The same; a segment begins with it, of a job with [`Job::given_cuts`].
    ///
    /// # Errors
    /// As [`Input::send`].
    pub async fn send_cut(&mut self, sample: Sample) -> Result<(), Closed> {
        self.put(sample, true).await
    }

    async fn put(&mut self, sample: Sample, cut: bool) -> Result<(), Closed> {
        let permit = self.access_units.reserve().await.map_err(|_| Closed)?;
        permit.send(AccessUnit { sample, record: self.record.take(), cut, sent: Instant::now() });
        Ok(())
    }

    /// Announces new parameter sets for the samples that follow, such as a second sequence header in FLV.
    /// The rungs keep their sizes whatever the new ones say.
    ///
    /// # Errors
    /// It is not a configuration record of the source's codec of at most 64 KiB; the old one stays in force.
    pub fn reconfigure(&mut self, record: Bytes) -> Result<(), Error> {
        check_record(self.codec, &record)?;
        self.record = Some(record);
        Ok(())
    }
}

/// Gives what comes out. Dropping it stops the job; what is under way is lost.
#[derive(Debug)]
pub struct Output {
    events: mpsc::Receiver<Event>,
    decoded: Decoded,
    crew: Arc<Crew>,
    ended: bool,
    _threads: Arc<Threads>,
}

impl Output {
    /// When the picture shown at `pts` came out of the decoder, once: rungs ask after their samples, and the first to ask is
    /// told.
    pub fn decoded(&self, pts: Ticks) -> Option<Instant> {
        self.decoded.take(pts)
    }

    /// The next event; `None` after [`Event::Ended`]. Nothing is lost if it is dropped midway.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        // The channel closes when the last thread has let go of it, having recorded its failure before
        // that.
        let event = self.events.recv().await;
        Some(event.unwrap_or_else(|| {
            self.ended = true;
            Event::Ended(self.crew.failure.get().cloned().map_or(Ok(()), Err))
        }))
    }
}

/// Why a stage stopped before its input ended.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The next stage or the consumer is gone; whoever left first knows why.
    Closed,
    /// This stage cannot go on.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.into())
    }
}

/// The way to the consumer.
pub(crate) struct Events {
    events: mpsc::Sender<Event>,
    pub(crate) metrics: Metrics,
    pub(crate) decoded: Decoded,
}

/// When pictures came out of the decoder, by their presentation times. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decoded(Arc<Mutex<VecDeque<(Ticks, Instant)>>>);

impl Decoded {
    /// A picture has come.
    pub(crate) fn note(&self, pts: Ticks) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= MAX_DECODED {
            times.pop_front();
        }
        times.push_back((pts, Instant::now()));
    }

    /// When it came; the second time nobody knows any more.
    fn take(&self, pts: Ticks) -> Option<Instant> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = times.iter().position(|(decoded, _)| *decoded == pts)?;
        times.remove(index).map(|(_, at)| at)
    }
}

impl Events {
    /// Waits while the consumer is behind.
    pub(crate) fn send(&self, event: Event) -> Result<(), Stop> {
        use mpsc::error::TrySendError;
        match self.events.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Stop::Closed),
            Err(TrySendError::Full(event)) => {
                self.metrics.queue_waits.inc();
                self.events.blocking_send(event).map_err(|_| Stop::Closed)
            }
        }
    }

    /// Whether nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

/// A picture, when it is shown, and how many of the largest rungs are shed.
pub(crate) type Shown = (Picture, Showing, usize);

/// The way to the next rung.
pub(crate) struct Pictures {
    pictures: SyncSender<Shown>,
    metrics: Metrics,
}

impl Pictures {
    fn channel(metrics: Metrics) -> (Self, Receiver<Shown>) {
        let (pictures, inlet) = sync_channel(PICTURE_QUEUE);
        (Self { pictures, metrics }, inlet)
    }

    /// Waits while the rung is behind.
    pub(crate) fn send(&self, picture: Picture, showing: Showing, shed: usize) -> Result<(), Stop> {
        match self.pictures.try_send((picture, showing, shed)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(Stop::Closed),
            Err(TrySendError::Full(item)) => {
                self.metrics.queue_waits.inc();
                self.pictures.send(item).map_err(|_| Stop::Closed)
            }
        }
    }
}

/// What the threads of a job share: the first failure.
#[derive(Debug, Default)]
struct Crew {
    failure: OnceLock<Error>,
}

impl Crew {
    /// Runs `work` on a thread of its own; its failure or panic becomes the job's. `alive` keeps [`Output`]
    /// waiting until that has been recorded, since a panic drops the queues of `work` before.
    fn spawn(
        self: &Arc<Self>,
        name: String,
        alive: mpsc::Sender<Event>,
        work: impl FnOnce() -> Result<(), Stop> + Send + 'static,
    ) -> Result<JoinHandle<()>, Error> {
        let (crew, span, thread) = (self.clone(), Span::current(), name.clone());
        let body = move || {
            let _entered = span.enter();
            let failure = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(()) | Err(Stop::Closed)) => None,
                Ok(Err(Stop::Failed(error))) => Some(error),
                Err(panic) => Some(Error::Panicked { thread, message: panic_message(panic.as_ref()) }),
            };
            if let Some(error) = failure {
                // Only the first failure counts; the others follow from it.
                let _ = crew.failure.set(error);
            }
            drop(alive);
        };
        let builder = thread::Builder::new().name(name.clone());
        builder.spawn(body).map_err(|error| Error::Spawn { thread: name, reason: error.to_string() })
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// The threads of a job, joined when the last of [`Input`] and [`Output`] is dropped. By then their queues
/// are closed, so that is at once after [`Event::Ended`], and at most the work on one picture per thread
/// before it.
#[derive(Debug)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
    jobs: Gauge,
}

impl Threads {
    fn new(jobs: Gauge) -> Self {
        jobs.inc();
        Self { handles: Vec::new(), jobs }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for handle in self.handles.drain(..) {
            // A panic was caught inside the thread.
            let _ = handle.join();
        }
        self.jobs.dec();
    }
}

fn validate(job: &Job) -> Result<(), Error> {
    let VideoSource { codec, record, width, height, sar, .. } = &job.source;
    check_record(*codec, record)?;
    let problem = if (*width).min(*height) < 16 || u64::from(*width) * u64::from(*height) > MAX_PIXELS {
        format!("source of {width}x{height} is outside 16x16 to {MAX_PIXELS} pixels")
    } else if sar.0 == 0 || sar.1 == 0 {
        format!("sample aspect ratio {}:{} has a zero", sar.0, sar.1)
    } else if job.source.frame_rate.is_some_and(|rate| rate.num == 0 || rate.den == 0) {
        "frame rate has a zero".to_owned()
    } else if !(1..=MAX_RUNGS).contains(&job.rungs.len()) {
        format!("{} rungs; 1 to {MAX_RUNGS} are allowed", job.rungs.len())
    } else if let Some(rung) = job.rungs.iter().find(|rung| !is_sane(rung)) {
        let Rung { id, width, height, bitrate_bps, peak_bps, buffer_bits, .. } = rung;
        format!(
            "rung {id}: {width}x{height} must be even, 16x16 to {MAX_PIXELS} pixels; its rates ({bitrate_bps} bit/s, peak {peak_bps}, \
             buffer {buffer_bits} bits) positive and the peak not below the average"
        )
    } else if job.segment_duration < 1 {
        format!("segment duration of {} ticks is not positive", job.segment_duration)
    } else if job.longest_showing < 1 {
        format!("longest showing of {} ticks is not positive", job.longest_showing)
    } else {
        return Ok(());
    };
    Err(Error::Job { problem })
}

fn check_record(codec: VideoCodec, record: &[u8]) -> Result<(), Error> {
    // libav would take anything else for a byte stream with start codes.
    let (name, least, version) = match codec {
        VideoCodec::Avc => ("AVCDecoderConfigurationRecord", 7, Some(1)),
        VideoCodec::Hevc => ("HEVCDecoderConfigurationRecord", 23, Some(1)),
        VideoCodec::Av1 => ("AV1CodecConfigurationRecord", 4, Some(0x81)),
        VideoCodec::Vp9 => ("VPCodecConfigurationRecord", 8, None),
    };
    // Before its record was final, HEVC's version was 0.
    let versioned =
        |first| version.is_none_or(|version| version == first) || (codec, first) == (VideoCodec::Hevc, 0);
    let problem = if record.len() > MAX_RECORD_BYTES {
        format!("configuration record of {} bytes exceeds {MAX_RECORD_BYTES}", record.len())
    } else if record.len() < least || !record.first().copied().is_some_and(versioned) {
        format!("configuration record is not an {name} of a known version")
    } else {
        return Ok(());
    };
    Err(Error::Job { problem })
}

fn is_sane(rung: &Rung) -> bool {
    let Rung { width, height, bitrate_bps, peak_bps, buffer_bits, .. } = *rung;
    let size = width.min(height) >= 16
        && width.is_multiple_of(2)
        && height.is_multiple_of(2)
        && u64::from(width) * u64::from(height) <= MAX_PIXELS;
    size && bitrate_bps > 0 && peak_bps >= bitrate_bps && buffer_bits > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_before_the_end() {
        let (events, receiver) = mpsc::channel(1);
        let crew = Arc::new(Crew::default());
        let mut threads = Threads::new(Gauge::default());
        let queue = events.clone();
        let work = move || {
            let _queue = queue;
            panic!("invariant {}", 7)
        };
        threads.handles.push(crew.spawn("tc-test".to_owned(), events, work).unwrap());
        let mut output = Output {
            events: receiver,
            decoded: Decoded::default(),
            crew,
            ended: false,
            _threads: Arc::new(threads),
        };
        let expected = Error::Panicked { thread: "tc-test".to_owned(), message: "invariant 7".to_owned() };
        assert_eq!(output.next().await, Some(Event::Ended(Err(expected))));
        assert_eq!(output.next().await, None);
    }
}
