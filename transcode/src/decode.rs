//! The decoding thread: access units in, pictures with their times out to the largest rung.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use media::Sample;
use tokio::sync::mpsc::Receiver;

use crate::job::{Event, Events, Pictures, Stop};
use crate::libav::{Decoder, Failure, Picture};
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
}

/// Decodes until the input ends or nobody wants the result. An input that ends because it was `abandoned` leaves what
/// the decoder holds.
pub(crate) fn run(
    decoder: Decoder,
    timeline: Timeline,
    mut input: Receiver<AccessUnit>,
    abandoned: &AtomicBool,
    pictures: Pictures,
    events: Events,
) -> Result<(), Stop> {
    let mut stage = Stage { decoder, timeline, pictures, events, record: None, last: None, damaged: 0 };
    while let Some(AccessUnit { sample, record, cut }) = input.blocking_recv() {
        if stage.events.is_closed() {
            return Err(Stop::Closed);
        }
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
    decoder: Decoder,
    timeline: Timeline,
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
            let sent = self.decoder.send(&sample.data, sample.pts, sample.dts, record.as_deref());
            self.survive(sent, "access unit not decoded");
        }
        self.drain()
    }

    fn finish(&mut self) -> Result<(), Stop> {
        let finished = self.decoder.finish();
        self.survive(finished, "decoder not drained");
        self.drain()?;
        self.timeline.finish();
        self.carry_out(None)?;
        self.report()
    }

    /// Takes out what the decoder has ready.
    fn drain(&mut self) -> Result<(), Stop> {
        loop {
            match self.decoder.receive() {
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
        }
        self.carry_out(Some(picture))
    }

    /// Does what the timeline decided, with `current` as the picture that was just decoded.
    fn carry_out(&mut self, current: Option<Picture>) -> Result<(), Stop> {
        while let Some(step) = self.timeline.poll() {
            let (picture, showing) = match step {
                Step::Show(showing) => (current.as_ref(), showing),
                Step::Repeat(showing) => {
                    self.events.metrics.frames_repeated.inc();
                    self.damaged += 1;
                    (self.last.as_ref().or(current.as_ref()), showing)
                }
                Step::Fill(showing) => {
                    self.events.metrics.frames_filled.inc();
                    (self.last.as_ref(), showing)
                }
                Step::Lost => {
                    self.events.metrics.frames_lost.inc();
                    self.damaged += 1;
                    continue;
                }
            };
            let picture = picture.expect("the timeline shows only after a picture was decoded");
            self.pictures.send(picture.share()?, showing)?;
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
