//! Audio that players do not take as it comes: one thread that decodes Opus, MP3 or AAC of more than two channels, mixes it
//! down to stereo, and encodes AAC.
//!
//! Times are kept to the sample: decoded audio is laid on one line, a hole in it becomes silence, what overlaps is left
//! out, and the encoder's frames are cut from that line.

use std::collections::VecDeque;
use std::thread;

use bytes::Bytes;
use media::codec::{AacConfig, AudioConfig};
use media::{Sample, Ticks};
use tokio::sync::mpsc;
use tracing::Span;

use crate::config::{Config, Opus};
use crate::error::{Closed, Error};
use crate::libav::{self, AudioDecoder, AudioEncoder, Decoded};
use crate::metrics::Metrics;
use crate::mix;

/// Packets that wait for the decoder, and frames that wait for the consumer: about a second and a quarter.
const QUEUE: usize = 64;

/// Longest hole that is filled with silence, as a part of a second. A longer one stays a hole.
const MAX_SILENCE: (Ticks, Ticks) = (1, 2);

/// Bits per second of each channel: what AAC-LC needs to sound like its source.
const CHANNEL_BITRATE_BPS: u32 = 64_000;

/// The same of low sample rates, in bits per sample: AAC cannot have more than six.
const CHANNEL_SAMPLE_BITS: u32 = 3;

/// Channels that every player has.
const STEREO: u32 = 2;

/// Takes the packets. Dropping it ends the work in good order: all that was sent still comes out.
#[derive(Debug)]
pub struct AudioInput(mpsc::Sender<Sample>);

/// Gives the AAC frames, in samples of the source's rate. Dropping it stops the work.
#[derive(Debug)]
pub struct AudioOutput(mpsc::Receiver<Result<Sample, Error>>);

/// Whether AAC is mixed down to stereo, rather than copied: AAC-LC of more channels, unless `surround` is kept.
pub fn mixes(config: &AacConfig, surround: bool) -> bool {
    !surround && config.channels > STEREO && config.object_type == 2
}

/// Whether audio is copied as it comes: AAC that is not mixed down, and Opus where the configuration has it so.
pub fn is_copied(config: &AudioConfig, rules: &Config) -> bool {
    match config {
        AudioConfig::Aac(config) => !mixes(config, rules.surround),
        AudioConfig::Opus(config) => {
            rules.opus == Opus::Copy && (rules.surround || config.channels <= STEREO)
        }
        AudioConfig::Mp3(_) => false,
    }
}

/// Starts the thread. Also returns what the AAC is: as the source, but without `surround` of at most two channels.
///
/// # Errors
/// The linked FFmpeg lacks a codec or refuses the header, or the system refuses a thread. Nothing is left running then.
pub fn start(
    source: &AudioConfig,
    surround: bool,
    metrics: Metrics,
) -> Result<(AacConfig, AudioInput, AudioOutput), Error> {
    libav::route_to_tracing();
    if !libav::can_recode(source.codec()) {
        return Err(Error::NoAudioEncoder);
    }
    let sample_rate = source.timescale().per_second();
    let channels = if surround { source.channels() } else { source.channels().min(STEREO) };
    let record = match source {
        AudioConfig::Opus(config) => config.record.clone(),
        AudioConfig::Aac(config) => as_it_says(&config.record),
        AudioConfig::Mp3(_) => Bytes::new(),
    };
    let decoder = AudioDecoder::open(source.codec(), &record, sample_rate)?;
    let bitrate_bps = CHANNEL_BITRATE_BPS.min(sample_rate * CHANNEL_SAMPLE_BITS) * channels;
    let encoder = AudioEncoder::open(sample_rate, channels, bitrate_bps)?;
    let config =
        AacConfig::parse(encoder.record()).map_err(|error| Error::Job { problem: error.to_string() })?;
    let (input, packets) = mpsc::channel(QUEUE);
    let (frames, output) = mpsc::channel(QUEUE);
    let line = Line::new(channels as usize, encoder.frame_samples(), sample_rate);
    let recoder = Recoder { decoder, encoder, line, frames, metrics };
    let span = Span::current();
    let name = "tc-audio".to_owned();
    let spawned =
        thread::Builder::new().name(name.clone()).spawn(move || span.in_scope(|| recoder.run(packets)));
    // It ends with its queues; nobody needs to wait for that.
    spawned.map(drop).map_err(|error| Error::Spawn { thread: name, reason: error.to_string() })?;
    Ok((config, AudioInput(input), AudioOutput(output)))
}

/// A configuration that leaves open whether there is more to it than AAC-LC says that there is not (ISO/IEC 14496-3,
/// 1.6.6.1): frames then have the samples by which they are timed.
fn as_it_says(record: &Bytes) -> Bytes {
    match record.len() {
        2 => [record, &[0x56, 0xE5, 0x00][..]].concat().into(),
        _ => record.clone(),
    }
}

impl AudioInput {
    /// Sends one packet, times in samples of the source's rate. Waits while the queue is full, that is until [`AudioOutput`] has been
    /// read: read it in another task. If dropped midway, the packet is not sent.
    ///
    /// # Errors
    /// The work has ended, or [`AudioOutput`] was dropped.
    pub async fn send(&mut self, packet: Sample) -> Result<(), Closed> {
        self.0.send(packet).await.map_err(|_| Closed)
    }
}

impl AudioOutput {
    /// The next frame; `None` after the last. An error is the last.
    pub async fn next(&mut self) -> Option<Result<Sample, Error>> {
        self.0.recv().await
    }
}

/// Why the thread stops before its input ends.
enum Stop {
    Closed,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

struct Recoder {
    decoder: AudioDecoder,
    encoder: AudioEncoder,
    line: Line,
    frames: mpsc::Sender<Result<Sample, Error>>,
    metrics: Metrics,
}

impl Recoder {
    fn run(mut self, mut packets: mpsc::Receiver<Sample>) {
        let outcome = loop {
            match packets.blocking_recv() {
                Some(packet) => {
                    if let Err(stop) = self.packet(&packet) {
                        break Err(stop);
                    }
                }
                None => break self.finish(),
            }
        };
        if let Err(Stop::Failed(error)) = outcome {
            let _ = self.frames.blocking_send(Err(error));
        }
    }

    fn packet(&mut self, packet: &Sample) -> Result<(), Stop> {
        // A broken packet is the source's damage: it leaves a hole, which becomes silence.
        if let Err(failure) = self.decoder.send(&packet.data, packet.pts) {
            self.metrics.audio_damaged.inc();
            tracing::debug!(%failure, "audio packet not decoded");
        }
        self.drain()
    }

    fn drain(&mut self) -> Result<(), Stop> {
        loop {
            match self.decoder.receive() {
                Ok(Some(Decoded { pts, planes, mask })) if planes.len() > self.line.planes.len() => {
                    let mixed = mix::to_stereo(&planes, mask);
                    self.line.push(pts, &mixed.each_ref().map(Vec::as_slice));
                }
                Ok(Some(decoded)) => self.line.push(decoded.pts, &decoded.planes),
                Ok(None) => break,
                Err(failure) => {
                    self.metrics.audio_damaged.inc();
                    tracing::debug!(%failure, "audio not decoded");
                    break;
                }
            }
        }
        self.encode()
    }

    fn encode(&mut self) -> Result<(), Stop> {
        while let Some((pts, planes)) = self.line.poll() {
            self.encoder.send(&planes, pts)?;
            self.deliver()?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), Stop> {
        let duration = self.encoder.frame_samples() as Ticks;
        while let Some((pts, data)) = self.encoder.receive()? {
            self.metrics.audio_encoded.inc();
            let sample = Sample { dts: pts, pts, duration, key: true, data };
            self.frames.blocking_send(Ok(sample)).map_err(|_| Stop::Closed)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Stop> {
        self.decoder.finish()?;
        self.drain()?;
        self.line.finish();
        self.encode()?;
        self.encoder.finish()?;
        self.deliver()
    }
}

/// Decoded audio in the order of its time, cut into the encoder's frames.
struct Line {
    frame_samples: usize,
    /// The longest hole that becomes silence, in samples.
    most_silence: Ticks,
    /// Samples not yet cut, a plane per channel.
    planes: Vec<Vec<f32>>,
    /// Time of the first of them.
    start: Option<Ticks>,
    ready: VecDeque<(Ticks, Vec<Vec<f32>>)>,
}

impl Line {
    fn new(channels: usize, frame_samples: usize, sample_rate: u32) -> Self {
        Self {
            frame_samples: frame_samples.max(1),
            most_silence: Ticks::from(sample_rate) * MAX_SILENCE.0 / MAX_SILENCE.1,
            planes: vec![Vec::new(); channels],
            start: None,
            ready: VecDeque::new(),
        }
    }

    /// Samples from `pts` on, a plane per channel; missing channels are silent.
    fn push(&mut self, pts: Ticks, planes: &[&[f32]]) {
        let len = planes.first().map_or(0, |plane| plane.len());
        let mut skip = 0;
        match self.end() {
            None => self.start = Some(pts),
            Some(end) if pts - end > self.most_silence => {
                self.finish();
                self.start = Some(pts);
            }
            Some(end) if pts >= end => self.extend((pts - end) as usize, |_| &[]),
            Some(end) => skip = usize::try_from(end - pts).unwrap_or(len).min(len),
        }
        self.extend(len - skip, |channel| planes.get(channel).map_or(&[], |plane| &plane[skip..]));
        while self.planes.first().is_some_and(|plane| plane.len() >= self.frame_samples) {
            self.cut();
        }
    }

    /// What is left becomes a frame, filled up with silence.
    fn finish(&mut self) {
        let left = self.planes.first().map_or(0, Vec::len);
        if left > 0 {
            self.extend(self.frame_samples - left, |_| &[]);
            self.cut();
        }
        self.start = None;
    }

    fn poll(&mut self) -> Option<(Ticks, Vec<Vec<f32>>)> {
        self.ready.pop_front()
    }

    fn end(&self) -> Option<Ticks> {
        Some(self.start? + self.planes.first().map_or(0, Vec::len) as Ticks)
    }

    /// Appends `len` samples to each channel: those of `plane`, then silence.
    fn extend<'a>(&mut self, len: usize, plane: impl Fn(usize) -> &'a [f32]) {
        for (channel, samples) in self.planes.iter_mut().enumerate() {
            let whole = samples.len() + len;
            let plane = plane(channel);
            samples.extend_from_slice(&plane[..plane.len().min(len)]);
            samples.resize(whole, 0.0);
        }
    }

    fn cut(&mut self) {
        let Some(start) = self.start else { return };
        let frame = self.planes.iter_mut().map(|plane| plane.drain(..self.frame_samples).collect()).collect();
        self.ready.push_back((start, frame));
        self.start = Some(start + self.frame_samples as Ticks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 10 samples; each sample's value is its own time.
    fn frames(pushed: &[(Ticks, usize)]) -> Vec<(Ticks, Vec<f32>)> {
        let mut line = Line::new(2, 10, 48_000);
        let mut out = Vec::new();
        for &(pts, len) in pushed {
            let plane: Vec<f32> = (0..len).map(|i| (pts + i as Ticks) as f32).collect();
            line.push(pts, &[&plane, &plane]);
            out.extend(std::iter::from_fn(|| line.poll()));
        }
        line.finish();
        out.extend(std::iter::from_fn(|| line.poll()));
        out.into_iter()
            .map(|(pts, planes)| {
                assert_eq!((planes.len(), planes[0].len()), (2, 10));
                assert_eq!(planes[0], planes[1]);
                (pts, planes.into_iter().next().unwrap())
            })
            .collect()
    }

    #[test]
    fn frames_are_cut_where_time_says() {
        let line = frames(&[(100, 7), (107, 8), (115, 5)]);
        assert_eq!(line.iter().map(|(pts, _)| *pts).collect::<Vec<_>>(), [100, 110]);
        assert!(line.iter().flat_map(|(pts, frame)| frame.iter().zip(*pts..)).all(|(v, at)| *v == at as f32));
        // A hole of 3 becomes silence, what overlaps is left out, the end is filled up.
        let line = frames(&[(100, 5), (108, 4), (104, 6), (110, 4)]);
        assert_eq!(line[0].1[..], [100., 101., 102., 103., 104., 0., 0., 0., 108., 109.]);
        assert_eq!(line[1], (110, vec![110., 111., 112., 113., 0., 0., 0., 0., 0., 0.]));
        // A long hole stays one.
        let far = 105 + 24_000 + 1;
        let line = frames(&[(100, 5), (far, 10)]);
        assert_eq!(line.iter().map(|(pts, _)| *pts).collect::<Vec<_>>(), [100, far]);
        assert_eq!(line[0].1[5..], [0.0; 5]);
        // Wholly in the past: nothing.
        assert_eq!(frames(&[(100, 10), (50, 10), (95, 5)]).len(), 1);
    }
}
