//! One rung's thread: scale, pass on, encode.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;

use media::codec::{VideoCodec, VideoConfig};
use media::{Sample, captions};

use crate::captions::{Captions, are_written_by_encoders};
use crate::draw::Drawer;
use crate::error::Error;
use crate::job::{Event, Events, Pictures, Shown, Stop, VideoSource};
use crate::ladder::{Rung, USUAL_FRAME_RATE};
use crate::libav::{Encoder, Failure, Picture, Scaler, Settings};
use crate::nal;
use crate::thinning::Thinning;
use crate::timeline::Showing;

/// Pictures inside the encoder at once: it is set to give each back at once, so more than a few mean that
/// it does not work.
pub(crate) const MAX_INSIDE: usize = 8;

/// What an encoder makes, by its headers or a keyframe with them.
pub(crate) fn described(settings: &Settings, headers: &[u8]) -> Option<VideoConfig> {
    let codec = settings.encoder.codec;
    let config = VideoConfig::parse(codec, nal::record(codec, headers)?).ok()??;
    // AV1 does not say.
    let sar = if codec == VideoCodec::Av1 { settings.sar } else { config.sar };
    let frame_rate = Some(settings.frame_rate);
    Some(VideoConfig { width: settings.width, height: settings.height, sar, frame_rate, ..config })
}

/// A rung that waits for its first picture.
pub(crate) struct Stage {
    index: usize,
    name: String,
    settings: Settings,
    scaler: Scaler,
    next: Option<Pictures>,
    events: Events,
    encoder: Option<Encoder>,
    /// It is told what it makes.
    configured: bool,
    /// What the encoder holds, oldest first, and the captions that are to be written into each.
    inside: VecDeque<(Showing, Vec<u8>)>,
    thinning: Thinning,
    captions: Captions,
    /// Of the smallest rung.
    drawer: Option<Drawer>,
    /// A smaller rung has frames that this one leaves out.
    feeds: bool,
    /// Coded frames, until it is known how long they last.
    coded: VecDeque<Sample>,
}

impl Stage {
    /// Of rung `index`; `next` is the way to the next smaller one.
    pub(crate) fn new(
        index: usize,
        rungs: &[Rung],
        source: &VideoSource,
        next: Option<Pictures>,
        events: Events,
    ) -> Result<Self, Failure> {
        let rung = &rungs[index];
        let more_often =
            |below: &Rung| below.max_fps.is_none_or(|fps| rung.max_fps.is_some_and(|own| own < fps));
        let settings = Settings {
            width: rung.width,
            height: rung.height,
            frame_rate: rung.frame_rate.unwrap_or(USUAL_FRAME_RATE),
            bitrate_bps: rung.bitrate_bps,
            peak_bps: rung.peak_bps,
            buffer_bits: rung.buffer_bits,
            encoder: rung.encoder,
            preset: rung.preset.clone(),
            options: rung.options.clone(),
            sar: source.sar,
        };
        let captions = Captions::new(events.metrics.captions_lost.clone());
        Ok(Self {
            index,
            name: rung.id.to_string(),
            settings,
            scaler: Scaler::new(rung.width, rung.height)?,
            next,
            events,
            encoder: None,
            configured: false,
            inside: VecDeque::new(),
            thinning: Thinning::new(rung.max_fps),
            captions,
            drawer: None,
            feeds: rungs[index + 1..].iter().any(more_often),
            coded: VecDeque::new(),
        })
    }

    /// Has thumbnails drawn of what it encodes.
    pub(crate) fn drawn_by(mut self, drawer: Option<Drawer>) -> Self {
        self.drawer = drawer;
        self
    }

    /// Encodes until the pictures end or nobody wants the result.
    pub(crate) fn run(mut self, pictures: Receiver<Shown>) -> Result<(), Stop> {
        for (picture, showing, shed) in pictures {
            let is_shed = self.index < shed;
            let takes = !is_shed && self.thinning.takes(showing);
            // The next rung scales for itself what this one has no use for. But not by turns: a scaler is for one size.
            let scales = takes || (self.feeds && !is_shed);
            let picture = if scales { self.scaler.scale(&picture)? } else { picture };
            if let Some(next) = &self.next {
                next.send(picture.share()?, showing, shed)?;
            }
            if takes {
                self.draw(|drawer, events| drawer.show(&picture, showing.pts, events))?;
                let captioned = self.captions.shown_with(picture)?;
                self.encode(captioned, showing)?;
            } else if is_shed {
                self.thinning.end();
                self.captions.forget();
            } else {
                self.captions.left_out(&picture);
            }
            self.deliver()?;
            if is_shed && showing.key {
                self.events.send(Event::Shed { rung: self.index, pts: showing.pts })?;
            }
        }
        // The smaller rungs flush meanwhile.
        self.next = None;
        self.finish()
    }

    fn encode(&mut self, mut picture: Picture, showing: Showing) -> Result<(), Stop> {
        if self.encoder.is_none() {
            self.open(&picture)?;
        }
        let Some(encoder) = &mut self.encoder else { unreachable!("opened above") };
        let captions = match are_written_by_encoders(self.settings.encoder.codec) {
            true => Vec::new(),
            false => picture.take_captions(),
        };
        self.inside.push_back((showing, captions));
        encoder.send(picture, showing.pts, showing.key)?;
        self.drain()?;
        match self.inside.front() {
            Some((oldest, _)) if self.inside.len() > MAX_INSIDE => {
                Err(self.wrong("holds pictures back", oldest.pts))
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), Stop> {
        self.thinning.end();
        if let Some(encoder) = &mut self.encoder {
            encoder.finish()?;
            self.drain()?;
        }
        self.deliver()?;
        self.draw(Drawer::finish)?;
        match self.inside.front() {
            Some((missing, _)) => Err(self.wrong("kept a picture", missing.pts)),
            None => Ok(()),
        }
    }

    /// A failure there is no reason to end the stream.
    fn draw(&mut self, draw: impl FnOnce(&mut Drawer, &Events) -> Result<(), Stop>) -> Result<(), Stop> {
        let Some(drawer) = &mut self.drawer else { return Ok(()) };
        match draw(drawer, &self.events) {
            Err(Stop::Failed(error)) => {
                tracing::warn!(%error, "no more thumbnails of this run");
                self.drawer = None;
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Opens the encoder for pictures like `first`, whose colour properties are known only now.
    fn open(&mut self, first: &Picture) -> Result<(), Stop> {
        let encoder = Encoder::open(&self.settings, first)?;
        let config = described(&self.settings, encoder.headers());
        self.encoder = Some(encoder);
        self.configured = config.is_some();
        config.map_or(Ok(()), |config| self.events.send(Event::Config { rung: self.index, config }))
    }

    /// Takes out what the encoder has ready.
    fn drain(&mut self) -> Result<(), Stop> {
        let codec = self.settings.encoder.codec;
        while let Some(encoder) = &mut self.encoder
            && let Some(packet) = encoder.receive()?
        {
            let (pts, key, mut data) = (packet.pts, packet.key, nal::to_sample(codec, packet.data));
            // Some say only with their first picture what it is.
            let config = if self.configured { None } else { described(&self.settings, packet.data) };
            let inside = self.inside.pop_front();
            let Some((showing, captions)) = inside.filter(|(showing, _)| showing.pts == pts) else {
                return Err(self.wrong("gave a picture out of turn", pts));
            };
            if showing.key && !key {
                return Err(self.wrong("made no keyframe where one was asked for", pts));
            }
            if !std::mem::replace(&mut self.configured, true) {
                let config = config.ok_or_else(|| self.wrong("has no parameter sets", pts))?;
                self.events.send(Event::Config { rung: self.index, config })?;
            }
            if !captions.is_empty() {
                let captioned = captions::inserted(codec, &data, &captions);
                data = captioned.ok_or_else(|| self.wrong("made a frame without a picture", pts))?;
            }
            let metrics = &self.events.metrics;
            metrics.frames_encoded.inc();
            metrics.encoded_bytes.inc_by(data.len() as u64);
            self.coded.push_back(Sample { dts: pts, pts, duration: showing.duration, key, data });
        }
        Ok(())
    }

    /// Sends what is coded and has its duration.
    fn deliver(&mut self) -> Result<(), Stop> {
        while self.thinning.is_known()
            && let Some(mut sample) = self.coded.pop_front()
        {
            sample.duration = self.thinning.duration().unwrap_or(sample.duration);
            self.events.send(Event::Sample { rung: self.index, sample })?;
        }
        Ok(())
    }

    fn wrong(&self, problem: &'static str, pts: i64) -> Stop {
        Error::Encoder { rung: self.name.clone(), problem, pts }.into()
    }
}
