//! One run: from source frames through repair and encoders to the packager, and the acknowledgements that come of it. It
//! outlives the session that began it when the next one brings the frames that follow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use media::captions::Captions;
use media::codec::VideoCodec;
use media::event::{self, What};
use media::time::{FrameRate, Ticks, Timescale};
use media::{Epoch, Sample};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::copying::{Cut, Cuts};
use crate::error::Error;
use crate::feed::Frame;
use crate::hops::Entered;
use crate::live::Left;
use crate::overlap::Shift;
use crate::packager::{Packager, Published};
use crate::relay::{Line, send_line, unix_us};
use crate::repair::{Repair, Times};

/// Enough to find the last frame that is published, however many are on their way through decoder and encoders.
const MAX_FED: usize = 512;

/// One run of a broadcast. Its own clock is that of the session that began it.
pub(crate) struct Run {
    /// The epoch in its objects' names.
    pub(crate) epoch: Epoch,
    pub(crate) packager: Arc<Mutex<Packager>>,
    pub(crate) encoder: Option<Encoder>,
    /// Of the source's video.
    pub(crate) codec: Option<VideoCodec>,
    /// The source's video as a rendition of its own.
    pub(crate) copy: Option<Copy>,
    /// Its video could be passed through, if the run had begun with a keyframe.
    pub(crate) could_copy: bool,
    pub(crate) recoder: Option<Recoder>,
    pub(crate) repair: Repair,
    /// Of the source's audio.
    pub(crate) timescale: Option<Timescale>,
    pub(crate) answers: Answers,
    /// Its part of the origin's load.
    pub(crate) _carried: crate::Carried,
    /// Audio before is published.
    pub(crate) audio_from_ms: Option<i64>,
    /// The latest frames of video (audio-only: of audio): place at 90 kHz, source milliseconds.
    pub(crate) fed: VecDeque<(Ticks, i64)>,
    /// When the POP received what is fed next, microseconds since 1970, if it says so.
    pub(crate) received_us: Option<i64>,
}

pub(crate) struct Encoder {
    pub(crate) input: transcode::Input,
    pub(crate) publisher: JoinHandle<Result<(), Error>>,
}

/// Most bytes between two keyframes of video that is passed through: four seconds of 64 Mbit/s. They are kept in case
/// encoders must take them up.
const MAX_GOP_BYTES: usize = 32 << 20;

/// Passes the source's video through.
pub(crate) struct Copy {
    codec: VideoCodec,
    rate: Option<FrameRate>,
    cuts: Cuts,
    /// Place of the newest keyframe with which a segment may begin, and how much later than decoded it is shown.
    key: (Ticks, Ticks),
    last_dts: Option<Ticks>,
    /// What came since the newest segment began.
    gop: Vec<Frame>,
    gop_bytes: usize,
}

/// What became of a video frame.
pub(crate) enum Took {
    /// It is on its way, with this place (90 kHz).
    At(Ticks),
    /// There is nowhere to send it.
    Nowhere,
    /// No segment could begin where one should have: passing through must end before it.
    Uncut(Frame),
}

/// Turns the source's audio into AAC.
pub(crate) struct Recoder {
    pub(crate) input: transcode::audio::AudioInput,
    pub(crate) publisher: JoinHandle<Result<(), Error>>,
}

/// Where acknowledgements go: the session's POP; nowhere while the run waits for its next session. Clones share it.
#[derive(Clone)]
pub(crate) struct Answers(Arc<Mutex<Option<mpsc::Sender<Bytes>>>>);

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Run {
    /// Takes a video frame in. Waits while the encoders are behind.
    pub(crate) async fn video(&mut self, frame: Frame) -> Result<Took, Error> {
        let offset_ms = self.offset_ms();
        if self.encoder.is_none() && self.copy.is_none() {
            return Ok(Took::Nowhere);
        }
        let (dts_ms, pts_ms) = (frame.dts_ms - offset_ms, frame.pts_ms - offset_ms);
        let times = self.repair.video(dts_ms, pts_ms, frame.pts_nanos);
        let Times { dts, pts, duration } = times;
        let (mut copied, mut begins) = (None, None);
        if let Some(copy) = &mut self.copy {
            match copy.frame(times, &frame) {
                None => return Ok(Took::Uncut(frame)),
                Some((sample, cut)) => (copied, begins) = (Some(sample), cut),
            }
        }
        remember(&mut self.fed, pts, pts_ms);
        let entered = Entered::new(self.received_us, unix_us());
        let captions = self.codec.map(|codec| Captions::seen_in(codec, &frame.data)).unwrap_or_default();
        let published = with(&self.packager, |packager| {
            packager.source_captions(captions);
            packager.source_video(pts, pts_ms, entered, begins);
            let sample = copied?;
            packager.video(0, sample);
            packager.poll_published()
        });
        self.answers.acknowledge(published);
        let sample = Sample { dts, pts, duration, key: frame.key, data: frame.data };
        let sent = match &mut self.encoder {
            None => Ok(()),
            Some(encoder) if begins.is_some() => encoder.input.send_cut(sample).await,
            Some(encoder) => encoder.input.send(sample).await,
        };
        if sent.is_err()
            // The reason is with the publisher, which ends with the encoders.
            && let Some(encoder) = self.encoder.take()
        {
            encoder.publisher.await??;
        }
        Ok(Took::At(pts))
    }

    /// The frames that passing through did not bring to the end of their segment: they begin with a keyframe.
    pub(crate) fn take_gop(&mut self) -> Vec<Frame> {
        self.copy.as_mut().map_or_else(Vec::new, |copy| std::mem::take(&mut copy.gop))
    }

    /// The same for audio. Waits while the audio encoder is behind, if there is one.
    pub(crate) async fn audio(&mut self, frame: Frame) -> Result<Option<Ticks>, Error> {
        let Some(timescale) = self.timescale else { return Ok(None) };
        let ms = frame.dts_ms - self.offset_ms();
        if self.audio_from_ms.is_some_and(|from| ms < from) {
            return Ok(None);
        }
        let Some(times) = self.repair.audio(ms, frame.samples) else { return Ok(None) };
        let Times { dts, pts, duration } = times;
        let place = timescale.rescale(pts, Timescale::VIDEO);
        if self.encoder.is_none() {
            remember(&mut self.fed, place, ms);
        }
        let entered = Entered::new(self.received_us, unix_us());
        with(&self.packager, |packager| packager.source_audio(place, entered));
        let sample = Sample { dts, pts, duration, key: true, data: frame.data };
        match &mut self.recoder {
            None => {
                let published = with(&self.packager, |packager| {
                    packager.audio(sample, ms);
                    packager.poll_published()
                });
                self.answers.acknowledge(published);
            }
            Some(recoder) => {
                if recoder.input.send(sample).await.is_err()
                    && let Some(recoder) = self.recoder.take()
                {
                    recoder.publisher.await??;
                }
            }
        }
        Ok(Some(place))
    }

    /// Something happens at `ms` of the source. False if that was said already.
    pub(crate) fn event(&mut self, ms: i64, what: What) -> bool {
        let at = self.repair.moment(ms - self.offset_ms());
        with(&self.packager, |packager| packager.event(&event::Event { at, what }))
    }

    /// Waits for another session: what is in the encoders stays there.
    pub(crate) fn park(&self) {
        *self.answers.lock() = None;
    }

    /// Another session brings the frames that follow.
    pub(crate) fn adopt(&mut self, lines: mpsc::Sender<Bytes>, shift: Shift) {
        *self.answers.lock() = Some(lines);
        with(&self.packager, |packager| packager.shift_clock(shift.offset_ms));
        self.repair.nudge(shift.nudge);
    }

    fn offset_ms(&self) -> i64 {
        with(&self.packager, |packager| packager.offset_ms())
    }

    /// Publishes what came without a hole, and says how far that is.
    pub(crate) async fn suspend(self) -> Result<Option<Left>, Error> {
        if let Some(Recoder { input, publisher }) = self.recoder {
            drop(input);
            publisher.await??;
        }
        if let Some(Encoder { input, publisher }) = self.encoder {
            input.abandon();
            publisher.await??;
        }
        with(&self.packager, Packager::suspend);
        Ok(left(&self.packager, &self.fed))
    }

    /// Publishes what is still in the encoders, then completes the open segments. Says how far it came.
    pub(crate) async fn finish(self) -> Result<Option<Left>, Error> {
        let recoded = match self.recoder {
            Some(Recoder { input, publisher, .. }) => {
                drop(input);
                publisher.await?
            }
            None => Ok(()),
        };
        let encoded = match self.encoder {
            Some(Encoder { input, publisher }) => {
                drop(input);
                publisher.await?
            }
            None => Ok(()),
        };
        with(&self.packager, Packager::finish);
        encoded.and(recoded)?;
        Ok(left(&self.packager, &self.fed))
    }
}

impl Copy {
    /// Of a run that begins at `start` with segments of `segment_duration` (90 kHz); `rate` as repair has it.
    pub(crate) fn new(
        codec: VideoCodec,
        rate: Option<FrameRate>,
        start: Ticks,
        segment_duration: Ticks,
    ) -> Self {
        let cuts = Cuts::new(start, segment_duration);
        Self { codec, rate, cuts, key: (start, 0), last_dts: None, gop: Vec::new(), gop_bytes: 0 }
    }

    /// The sample as it goes into the rendition, and the segment that begins with it. `None` where passing through ends.
    ///
    /// Decoding times are moved so that a keyframe is shown when it is decoded, as if all frames came when they are
    /// decoded: what is reordered has composition offsets in both directions, and segments tile in both times.
    fn frame(&mut self, times: Times, frame: &Frame) -> Option<(Sample, Option<i64>)> {
        let Times { dts, pts, duration } = times;
        let closed = frame.key && transcode::copy::is_closed(self.codec, &frame.data);
        let begins = match self.cuts.frame(pts, closed) {
            Cut::Missing => return None,
            Cut::Within => None,
            Cut::Begins(index) => Some(index),
        };
        if begins.is_some() {
            self.gop.clear();
            self.gop_bytes = 0;
        }
        self.gop_bytes += frame.data.len();
        if self.gop_bytes > MAX_GOP_BYTES {
            return None;
        }
        self.gop.push(frame.clone());
        if closed {
            self.key = (pts, pts - dts);
        }
        let (key, delay) = self.key;
        let (mut shown, mut lasts) = (dts + delay, duration);
        if let Some(rate) = self.rate {
            // The grid on which presentation times lie.
            let (num, den) = (i128::from(rate.num), i128::from(rate.den) * 90_000);
            let index = ((i128::from(shown - key) * num * 2 + den).div_euclid(den * 2)) as i64;
            let at = |index| key + rate.frame_start(index, Timescale::VIDEO);
            (shown, lasts) = (at(index), at(index + 1) - at(index));
        }
        let placed = self.last_dts.map_or(shown, |last| shown.max(last + 1));
        self.last_dts = Some(placed);
        if lasts > 0 {
            lasts = (lasts - (placed - shown)).max(1);
        }
        let data = transcode::copy::stripped(self.codec, &frame.data);
        Some((Sample { dts: placed, pts, duration: lasts, key: closed, data }, begins))
    }
}

/// How far a run came, on the clock of its last session.
fn left(packager: &Mutex<Packager>, fed: &VecDeque<(Ticks, i64)>) -> Option<Left> {
    let (came, offset_ms) = with(packager, |packager| (packager.came(), packager.offset_ms()));
    let came = came?;
    let (pts, ms) = fed.iter().filter(|(pts, _)| *pts < came.end).max()?;
    // As sent, times have 32 bits.
    Some(Left { lead: ((ms + offset_ms) as u32, *pts), end: came.end, audio: came.audio })
}

fn remember(fed: &mut VecDeque<(Ticks, i64)>, pts: Ticks, source_ms: i64) {
    if fed.len() >= MAX_FED {
        fed.pop_front();
    }
    fed.push_back((pts, source_ms));
}

/// Takes what the encoders give until they end. Their first rung is the run's rung number `first`.
pub(crate) async fn publish(
    mut output: transcode::Output,
    first: usize,
    packager: Arc<Mutex<Packager>>,
    answers: Answers,
) -> Result<(), Error> {
    while let Some(event) = output.next().await {
        match event {
            transcode::Event::Config { rung, config } => {
                with(&packager, |packager| packager.configured(first + rung, &config));
            }
            transcode::Event::Sample { rung, sample } => {
                let decoded = output.decoded(sample.pts);
                let published = with(&packager, |packager| {
                    if let Some(at) = decoded {
                        packager.decoded(sample.pts, at.elapsed());
                    }
                    packager.video(first + rung, sample);
                    packager.poll_published()
                });
                answers.acknowledge(published);
            }
            transcode::Event::Shed { rung, pts } => {
                let published = with(&packager, |packager| {
                    packager.shed(first + rung, pts);
                    packager.poll_published()
                });
                answers.acknowledge(published);
            }
            transcode::Event::Picture { pts, jpeg } => {
                with(&packager, |packager| packager.picture(pts, jpeg));
            }
            transcode::Event::Sheet { number, jpeg } => {
                with(&packager, |packager| packager.sheet(number, jpeg));
            }
            transcode::Event::Damaged { frames } => debug!(frames, "damaged frames were patched over"),
            transcode::Event::Ended(result) => return result.map_err(Error::from),
        }
    }
    Ok(())
}

/// Takes what the audio encoder gives until it ends. `source_ms` says when in the source a frame is heard, as near as
/// repair lets them differ.
pub(crate) async fn publish_audio(
    mut output: transcode::audio::AudioOutput,
    source_ms: impl Fn(Ticks) -> i64,
    packager: Arc<Mutex<Packager>>,
    answers: Answers,
) -> Result<(), Error> {
    while let Some(frame) = output.next().await {
        let sample = frame?;
        let source_ms = source_ms(sample.pts);
        let published = with(&packager, |packager| {
            packager.audio(sample, source_ms);
            packager.poll_published()
        });
        answers.acknowledge(published);
    }
    Ok(())
}

impl Answers {
    pub(crate) fn new(lines: mpsc::Sender<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(Some(lines))))
    }

    fn acknowledge(&self, published: Option<Published>) {
        if let Some(Published { number, resume_ms, next }) = published
            && let Some(lines) = &*self.lock()
        {
            let next = next.to_string();
            // As sent, times have 32 bits.
            let line =
                Line::Published { published: number.0, resume_ms: resume_ms as u32, r#continue: &next };
            send_line(lines, &line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<mpsc::Sender<Bytes>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn with<T>(packager: &Mutex<Packager>, act: impl FnOnce(&mut Packager) -> T) -> T {
    act(&mut packager.lock().unwrap_or_else(PoisonError::into_inner))
}
