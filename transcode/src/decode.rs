//! The decoding thread: access units in, pictures with their times out to the largest rung.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use media::{Sample, Ticks};
use tokio::sync::mpsc::Receiver;

use crate::job::{Event, Events, Pictures, Stop};
use crate::libav::{Decoder, Deinterlacer, Failure, Picture};
use crate::metrics::Metrics;
use crate::shed::{Change, Shedding};
use crate::timeline::{Step, Timeline};

/// Largest access unit that is decoded: a 24-bit length, as FLV has it, cannot say more.
const MAX_ACCESS_UNIT_BYTES: usize = 1 << 24;

/// One source frame on its way to the decoder.
#[derive(Debug)]
pub(crate) struct AccessUnit {
    pub(crate) sample: Sample,
    /// Parameter sets that hold from here on.
    pub(crate) record: Option<Bytes>,
    /// A segment begins with it, where the source says so.
    pub(crate) cut: bool,
    /// When it began to wait.
    pub(crate) sent: Instant,
}

/// Watches whether the encoders keep up, and says which rungs are shed.
pub(crate) struct Pace {
    live: bool,
    shedding: Shedding,
    began: Instant,
    /// Of the rungs, largest first.
    names: Vec<String>,
    metrics: Metrics,
    /// Told to whoever does what can wait.
    strained: Arc<AtomicBool>,
    /// Rungs shed in the current segment. `None` before the first, which opens all encoders.
    shed: Option<usize>,
}

impl Pace {
    pub(crate) fn new(
        names: Vec<String>,
        shed: Option<usize>,
        metrics: Metrics,
        strained: Arc<AtomicBool>,
    ) -> Self {
        let shedding = Shedding::new(names.len(), shed.unwrap_or(0));
        metrics.rungs_shed.inc_by(shedding.shed() as i64);
        let (live, began) = (shed.is_some(), Instant::now());
        Self { live, shedding, began, names, metrics, strained, shed: None }
    }

    /// An access unit has been taken that waited since `sent`.
    fn observe(&mut self, sent: Instant, dts: Ticks) {
        if !self.live {
            return;
        }
        let before = self.shedding.shed();
        let change = self.shedding.observe(self.began.elapsed(), sent.elapsed(), dts);
        self.strained.store(self.shedding.is_strained(), Ordering::Relaxed);
        let name = |index: usize| self.names.get(index).map_or("", String::as_str);
        match change {
            None => {}
            Some(Change::Shed) => {
                self.metrics.rungs_shed.inc();
                self.metrics.sheds.inc();
                let rung = name(before);
                tracing::warn!(
                    rung,
                    "the encoders fall behind: the rung is not encoded until they have time for it"
                );
            }
            Some(Change::Restored) => {
                self.metrics.rungs_shed.dec();
                tracing::info!(rung = name(before - 1), "the encoders have time: the rung is encoded again");
            }
            Some(Change::Exhausted) => {
                self.metrics.exhausted.inc();
                let rung = name(before);
                tracing::error!(
                    rung,
                    "the machine is too slow for the smallest rung alone: the stream falls behind"
                );
            }
        }
    }

    /// How many rungs are shed for a frame. Changes where segments begin.
    fn shed(&mut self, begins: bool) -> usize {
        match self.shed {
            None => self.shed = Some(0),
            Some(_) if begins => self.shed = Some(self.shedding.shed()),
            Some(_) => {}
        }
        self.shed.unwrap_or(0)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.metrics.rungs_shed.dec_by(self.shedding.shed() as i64);
    }
}

/// What makes pictures.
pub(crate) struct Source {
    pub(crate) decoder: Decoder,
    /// `None` where interlaced pictures are left as they are.
    pub(crate) deinterlacer: Option<Deinterlacer>,
}

/// Decodes until the input ends or nobody wants the result. An input that ends because it was `abandoned` leaves what
/// the decoder holds.
pub(crate) fn run(
    source: Source,
    timeline: Timeline,
    pace: Pace,
    mut input: Receiver<AccessUnit>,
    abandoned: &AtomicBool,
    pictures: Pictures,
    events: Events,
) -> Result<(), Stop> {
    let mut stage = Stage { source, timeline, pace, pictures, events, record: None, last: None, damaged: 0 };
    while let Some(AccessUnit { sample, record, cut, sent }) = input.blocking_recv() {
        if stage.events.is_closed() {
            return Err(Stop::Closed);
        }
        stage.pace.observe(sent, sample.dts);
        stage.record = record.or(stage.record);
        if cut {
            stage.timeline.cut(sample.pts);
        }
        stage.push(&sample)?;
    }
    if abandoned.load(Ordering::Acquire) {
        return Ok(());
    }
    stage.finish()
}

struct Stage {
    source: Source,
    timeline: Timeline,
    pace: Pace,
    pictures: Pictures,
    events: Events,
    /// New parameter sets, until an access unit takes them along.
    record: Option<Bytes>,
    /// The picture shown last, to stand in for one that does not come.
    last: Option<Picture>,
    /// Frames to report as damaged.
    damaged: u64,
}

impl Stage {
    fn push(&mut self, sample: &Sample) -> Result<(), Stop> {
        self.events.metrics.access_units.inc();
        self.timeline.push(sample.pts, sample.duration);
        if sample.data.len() <= MAX_ACCESS_UNIT_BYTES && !sample.data.is_empty() {
            let record = self.record.take();
            let sent = self.source.decoder.send(&sample.data, sample.pts, sample.dts, record.as_deref());
            self.survive(sent, "access unit not decoded");
        }
        self.drain()
    }

    fn finish(&mut self) -> Result<(), Stop> {
        let finished = self.source.decoder.finish();
        self.survive(finished, "decoder not drained");
        self.drain()?;
        self.timeline.finish();
        self.carry_out(None)?;
        self.report()
    }

    /// Takes out what the decoder has ready.
    fn drain(&mut self) -> Result<(), Stop> {
        loop {
            match self.source.decoder.receive() {
                Ok(Some(picture)) => self.show(picture)?,
                Ok(None) => break,
                Err(failure) => {
                    self.survive(Err(failure), "picture not decoded");
                    break;
                }
            }
        }
        self.carry_out(None)?;
        self.report()
    }

    fn show(&mut self, picture: Picture) -> Result<(), Stop> {
        self.events.metrics.frames_decoded.inc();
        if picture.is_damaged() {
            self.events.metrics.frames_damaged.inc();
            self.damaged += 1;
        }
        if let Some(pts) = picture.pts() {
            self.timeline.decoded(pts);
            self.events.decoded.note(pts);
        }
        let picture = match &mut self.source.deinterlacer {
            Some(deinterlacer) => {
                let (picture, was_interlaced) = deinterlacer.take(picture)?;
                self.events.metrics.frames_deinterlaced.inc_by(was_interlaced.into());
                picture
            }
            None => picture,
        };
        self.carry_out(Some(picture))
    }

    /// Does what the timeline decided, with `current` as the picture that was just decoded.
    fn carry_out(&mut self, current: Option<Picture>) -> Result<(), Stop> {
        while let Some(step) = self.timeline.poll() {
            let (picture, showing, again) = match step {
                Step::Show(showing) => (current.as_ref(), showing, false),
                Step::Repeat(showing) => {
                    self.events.metrics.frames_repeated.inc();
                    self.damaged += 1;
                    (self.last.as_ref().or(current.as_ref()), showing, true)
                }
                Step::Fill(showing) => {
                    self.events.metrics.frames_filled.inc();
                    (self.last.as_ref(), showing, true)
                }
                Step::Lost => {
                    self.events.metrics.frames_lost.inc();
                    self.damaged += 1;
                    continue;
                }
            };
            let picture = picture.expect("the timeline shows only after a picture was decoded");
            let shed = self.pace.shed(showing.key);
            let picture = if again { picture.share_without_captions() } else { picture.share() };
            self.pictures.send(picture?, showing, shed)?;
        }
        if current.is_some() {
            self.last = current;
        }
        Ok(())
    }

    /// A broken access unit is the source's damage, not our failure: the timeline notices the frame that
    /// does not come.
    fn survive(&self, outcome: Result<(), Failure>, what: &'static str) {
        if let Err(failure) = outcome {
            tracing::debug!(%failure, what);
        }
    }

    fn report(&mut self) -> Result<(), Stop> {
        match std::mem::take(&mut self.damaged) {
            0 => Ok(()),
            frames => self.events.send(Event::Damaged { frames }),
        }
    }
}
