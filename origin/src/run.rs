//! One run: from source frames through repair and encoders to the packager, and the acknowledgements that come of it. It
//! outlives the session that began it when the next one brings the frames that follow.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use media::time::{Ticks, Timescale};
use media::{Epoch, Sample};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::error::Error;
use crate::feed::Frame;
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
    pub(crate) recoder: Option<Recoder>,
    pub(crate) repair: Repair,
    /// Of the source's audio.
    pub(crate) timescale: Option<Timescale>,
    pub(crate) answers: Answers,
    /// Audio before is published.
    pub(crate) audio_from_ms: Option<i64>,
    /// The latest frames of video (audio-only: of audio): place at 90 kHz, source milliseconds.
    pub(crate) fed: VecDeque<(Ticks, i64)>,
}

pub(crate) struct Encoder {
    pub(crate) input: transcode::Input,
    pub(crate) publisher: JoinHandle<Result<(), Error>>,
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
    /// Takes a video frame in, and says its place (90 kHz). Waits while the encoders are behind.
    pub(crate) async fn video(&mut self, frame: Frame) -> Result<Option<Ticks>, Error> {
        let offset_ms = self.offset_ms();
        let Some(encoder) = &mut self.encoder else { return Ok(None) };
        let (dts_ms, pts_ms) = (frame.dts_ms - offset_ms, frame.pts_ms - offset_ms);
        let Times { dts, pts, duration } = self.repair.video(dts_ms, pts_ms, frame.pts_nanos);
        remember(&mut self.fed, pts, pts_ms);
        with(&self.packager, |packager| packager.source_video(pts, pts_ms, unix_us()));
        let sample = Sample { dts, pts, duration, key: frame.key, data: frame.data };
        if encoder.input.send(sample).await.is_err()
            // The reason is with the publisher, which ends with the encoders.
            && let Some(encoder) = self.encoder.take()
        {
            encoder.publisher.await??;
        }
        Ok(Some(pts))
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
        with(&self.packager, |packager| packager.source_audio(place, unix_us()));
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

/// Takes what the encoders give until they end.
pub(crate) async fn publish(
    mut output: transcode::Output,
    packager: Arc<Mutex<Packager>>,
    answers: Answers,
) -> Result<(), Error> {
    while let Some(event) = output.next().await {
        match event {
            transcode::Event::Config { rung, avcc, width, height } => {
                with(&packager, |packager| packager.configured(rung, &avcc, width, height));
            }
            transcode::Event::Sample { rung, sample } => {
                let published = with(&packager, |packager| {
                    packager.video(rung, sample);
                    packager.poll_published()
                });
                answers.acknowledge(published);
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
