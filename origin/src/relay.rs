//! The far end of ingest's relay: one session, from FLV bytes to published segments, and the acknowledgements back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cluster::lease::Grant;
use cluster::record::{self, StreamState};
use cluster::token::Claims;
use http_body::Body;
use http_body_util::BodyExt;
use media::codec::AudioConfig;
use media::flv::{self, TagKind};
use media::time::{Ticks, Timescale};
use media::{Epoch, Sample, SegmentNumber};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use transcode::{Job, VideoSource};

use crate::Shared;
use crate::continuation::Continuation;
use crate::error::{Error, Fault};
use crate::feed::{self, Feed, Frame, Rules, Source};
use crate::hls::Targets;
use crate::live::{Follow, Left, Live};
use crate::metrics::{Kind, Reason};
use crate::packager::{Came, Packager, Plan, Published, part_target};
use crate::repair::{Repair, Repairs, Times};
use crate::timeline::Anchor;

/// Lines that wait for the POP to read them: one a second and run; a POP that is this far behind is gone.
pub(crate) const LINE_QUEUE: usize = 64;

/// How long the session before may take to publish what it has, once it is fenced.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last line may wait for a POP that does not read.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(2);

/// Times of a POP's clock that are farther off than this are not believed.
const MAX_CLOCK_SKEW_MS: i64 = 60_000;

/// One line of the answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Published { published: u64, resume_ms: u32, r#continue: &'a str },
    Passed { published: u64, passed: u64, r#continue: &'a str },
    Error { error: &'a str, code: &'a str },
    End { end: bool },
}

/// What the relay request says besides its body.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What the token says.
    pub(crate) claims: Claims,
    /// The broadcaster's session, the same over all relays of it.
    pub(crate) session: String,
    /// When the POP received the first media of this body, milliseconds since 1970.
    pub(crate) received_unix_ms: i64,
    /// Where an origin said that the stream goes on.
    pub(crate) next: Option<Continuation>,
}

/// Runs a session to its end. The stream was claimed by `grant`; `lines` go back to the POP.
pub(crate) async fn session<B>(
    shared: Arc<Shared>,
    live: Arc<Live>,
    grant: Grant,
    request: Request,
    body: B,
    lines: mpsc::Sender<Bytes>,
    shutdown: CancellationToken,
) where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: std::fmt::Display,
{
    let began = Instant::now();
    shared.metrics.sessions.inc();
    let mut session = Session {
        rules: Rules {
            probe: shared.config.probe,
            keyframe_timeout: shared.config.keyframe_timeout,
            max_gap: shared.config.segment_duration * 9 / 10,
        },
        shared: &shared,
        live: &live,
        grant,
        request,
        lines: &lines,
        run: None,
        follow: Follow::Clock,
        left: None,
        tags: 0,
        received_bytes: 0,
        media_came: false,
        counted: Counted::default(),
    };
    info!(epoch = session.grant.epoch, resume = session.request.next.is_some(), "session began");
    let ended = session.relay(body, &shutdown).await;
    let (seconds, bytes) = (began.elapsed().as_secs_f64(), session.received_bytes);
    match &ended {
        Ok(()) => {
            session.last_line(&Line::End { end: true }).await;
            info!(seconds, bytes, "session ended: the broadcaster stopped");
        }
        Err(error) => match error.fault() {
            Fault::Broadcaster => {
                let code = "NetStream.Publish.Rejected";
                session.last_line(&Line::Error { error: &error.to_string(), code }).await;
                shared.metrics.sessions_rejected.inc();
                info!(seconds, bytes, %error, "session ended: refused");
            }
            Fault::Network => warn!(seconds, bytes, %error, "session ended early"),
            Fault::Ours => tracing::error!(seconds, bytes, %error, "session failed"),
        },
    }
    shared.metrics.sessions.dec();
    shared.metrics.sessions_ended.inc();
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    live: &'a Arc<Live>,
    grant: Grant,
    request: Request,
    rules: Rules,
    lines: &'a mpsc::Sender<Bytes>,
    run: Option<Run>,
    /// What the next run is to follow.
    follow: Follow,
    /// Where a lost relay of this session can be taken up.
    left: Option<Left>,
    /// Tags of this body so far.
    tags: u64,
    received_bytes: u64,
    media_came: bool,
    counted: Counted,
}

/// What of the feed and the run's repair is in the metrics already.
#[derive(Default)]
struct Counted {
    repairs: Repairs,
    skipped: u64,
    damaged_times: u64,
    other_messages: u64,
    other_tracks: usize,
}

impl Session<'_> {
    async fn relay<B>(&mut self, mut body: B, shutdown: &CancellationToken) -> Result<(), Error>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        B::Error: std::fmt::Display,
    {
        // The session before was fenced by our claim; it publishes what it has and lets go.
        let writer = tokio::time::timeout(HANDOVER_TIMEOUT, self.live.writer.clone().lock_owned());
        let mut writer = writer.await.map_err(|_| Error::Busy)?;
        if !self.shared.keep(self.live) {
            return Err(Error::Busy);
        }
        let left = writer.left.take().filter(|(session, _)| *session == self.request.session);
        self.follow = match (left, self.request.next) {
            // The same broadcaster over a new relay, and no other origin in between: what its last relay brought is
            // published, acknowledged or not.
            (Some((_, left)), next) if next.is_none_or(|next| next.instance == self.shared.instance) => {
                self.left = Some(left);
                Follow::Left(left)
            }
            (_, Some(next)) => Follow::Handed(next),
            // This process does not know the broadcast, its record does: the one before was killed.
            (_, None) if self.live.line().is_none() => {
                self.shared.store.line(&self.grant.stream).map_or(Follow::Clock, |line| {
                    Follow::Handed(on_record(line, ticks(self.shared.config.segment_duration)))
                })
            }
            (_, None) => Follow::Clock,
        };
        let mut feed = Feed::new(self.rules);
        let relayed = self.take_in(&mut body, &mut feed, shutdown).await;
        if relayed.is_ok() {
            feed.finish();
        }
        let fed = match relayed {
            Ok(()) => self.feed_on(&mut feed).await,
            Err(error) => Err(error),
        };
        // Whatever ended the session: what came is published. If it may come back, here or at another origin, as far as
        // it came without a hole.
        let lost = match &fed {
            Err(Error::Relay(_) | Error::ShuttingDown) => true,
            Err(Error::TakenOver) => {
                self.shared.store.holder(&self.grant.stream) == Some(self.request.session.clone())
            }
            _ => false,
        };
        let finished = if lost { self.suspend_run().await } else { self.finish_run().await };
        writer.left = self.left.filter(|_| lost).map(|left| (self.request.session.clone(), left));
        writer.grant = Some(self.grant.clone());
        self.count(&feed);
        fed.and(finished)
    }

    async fn take_in<B>(
        &mut self,
        body: &mut B,
        feed: &mut Feed,
        shutdown: &CancellationToken,
    ) -> Result<(), Error>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        B::Error: std::fmt::Display,
    {
        let mut decoder = flv::Decoder::new();
        let shared = self.shared.clone();
        let (mut revocations, claims) = (shared.store.revoked(), self.request.claims.clone());
        loop {
            let grant = self.grant.clone();
            let frame = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Error::ShuttingDown),
                () = shared.store.fenced(&grant) => return Err(Error::TakenOver),
                _ = revocations.wait_for(|revoked| revoked.contains(&claims)) => return Err(Error::Revoked),
                frame = body.frame() => frame,
            };
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|error| Error::Relay(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            self.received_bytes += data.len() as u64;
            self.shared.metrics.received_bytes.inc_by(data.len() as u64);
            decoder.push(&data);
            while let Some(tag) = decoder.poll()? {
                self.tags += 1;
                if self.request.next.is_none()
                    && !self.media_came
                    && !tag.is_config()
                    && tag.kind != TagKind::Script
                {
                    // The POP opens the relay before the first frame comes: that moment says more than its header.
                    self.media_came = true;
                    self.request.received_unix_ms = unix_ms();
                }
                feed.push(&tag)?;
                self.feed_on(feed).await?;
            }
            self.count(feed);
            self.describe();
        }
    }

    /// Tells the store where the broadcast stands, if that is news.
    fn describe(&self) {
        if let Some((anchor, breaks, _)) = self.live.line() {
            let line = record::Line { anchor_unix_ms: anchor.unix_ms, anchor_ticks: anchor.ticks, breaks };
            self.shared.store.describe(&self.grant.stream, StreamState::Live, Some(line));
        }
    }

    /// Puts what was repaired, skipped and left aside into the metrics, as it happens.
    fn count(&mut self, feed: &Feed) {
        let (metrics, counted) = (&self.shared.metrics, &mut self.counted);
        if let Some(run) = &self.run {
            count_repairs(metrics, &mut counted.repairs, run.repair.repairs());
        }
        let add = |counter: &prometheus_client::metrics::counter::Counter, counted: &mut u64, now: u64| {
            counter.inc_by(now - std::mem::replace(counted, now));
        };
        add(&metrics.frames_skipped, &mut counted.skipped, feed.skipped());
        let damaged = metrics.frames_repaired.get_or_create(&Kind { kind: "composition" });
        add(&damaged, &mut counted.damaged_times, feed.damaged_times());
        drop(damaged);
        add(&metrics.tracks_ignored, &mut counted.other_messages, feed.other_messages());
        let tracks = feed.other_tracks();
        if counted.other_tracks == 0 && !tracks.is_empty() {
            let named = tracks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            warn!(
                tracks = named,
                "the broadcaster sends several tracks: only the first video and audio are taken"
            );
        }
        counted.other_tracks = tracks.len();
    }

    async fn feed_on(&mut self, feed: &mut Feed) -> Result<(), Error> {
        while let Some(event) = feed.poll() {
            match event {
                feed::Event::Start(source) => self.start_run(source)?,
                feed::Event::Video(frame) => {
                    if let Some(run) = &mut self.run {
                        run.video(frame).await?;
                    }
                }
                feed::Event::Audio(frame) => {
                    if let Some(run) = &mut self.run {
                        run.audio(frame).await?;
                    }
                }
                feed::Event::Restart(why) => {
                    let why = why.as_str();
                    self.shared.metrics.timeline_breaks.get_or_create(&Reason { reason: why }).inc();
                    info!(why, "the timeline breaks: a new run begins");
                    self.finish_run().await?;
                    self.pass().await;
                    (self.follow, self.left) = (Follow::Clock, None);
                    self.media_came = true;
                    self.request.received_unix_ms = unix_ms();
                    // Not a claim: a session that was fenced meanwhile must not take the stream back.
                    self.grant = self.shared.store.renew(&self.grant).await.ok_or(Error::TakenOver)?;
                }
            }
        }
        Ok(())
    }

    fn start_run(&mut self, source: Source) -> Result<(), Error> {
        if let (Some(limit), Some(video)) = (self.request.claims.max_height, &source.video)
            && video.width.min(video.height) > limit
        {
            return Err(Error::TooTall { width: video.width, height: video.height, limit });
        }
        let config = &self.shared.config;
        let follow = std::mem::replace(&mut self.follow, Follow::Clock);
        // As sent, times have 32 bits: those nearest to the first frame are meant.
        let near = |ms: u32| source.first_ms + i64::from(ms.wrapping_sub(source.first_ms as u32) as i32);
        let (lead, audio_start) = match follow {
            Follow::Clock => (None, None),
            Follow::Left(left) => (Some(left.lead), left.audio),
            Follow::Handed(next) => (next.lead, next.audio),
        };
        let lead = lead.map(|(ms, pts)| (near(ms), pts));
        // What came first is not what the run begins with, where a broadcaster begins between two keyframes.
        let now = unix_ms();
        let begins_ms = lead.map_or(source.first_ms, |(ms, _)| ms);
        let unix_ms = self.request.received_unix_ms.saturating_add(begins_ms - source.came_ms);
        let unix_ms = unix_ms.clamp(now - MAX_CLOCK_SKEW_MS, now);
        let wanted = Targets {
            segment_duration: ticks(config.segment_duration),
            part_target: part_target(ticks(config.part_target), source.frame_rate),
        };
        let place = self.live.place(unix_ms, follow, wanted);
        self.live.publishes(self.request.claims.jti.clone());
        let followed = match follow {
            Follow::Clock => false,
            Follow::Left(left) => place.start == left.end,
            Follow::Handed(_) => place.handed.is_some(),
        };
        let (zero_ms, base) = lead.filter(|_| followed).unwrap_or((source.first_ms, place.start));
        let video = source.video.as_ref().map(|config| VideoSource {
            codec: config.codec,
            record: config.record.clone(),
            width: config.width,
            height: config.height,
            sar: config.sar,
            frame_rate: source.frame_rate,
        });
        let rungs = video
            .as_ref()
            .map_or_else(Vec::new, |video| transcode::ladder::derive(&self.shared.transcode, video));
        let timescale = source.audio.as_ref().map(AudioConfig::timescale);
        let (audio, recoder) = match source.audio {
            None => (None, None),
            Some(AudioConfig::Aac(config)) => (Some(config), None),
            Some(AudioConfig::Opus(config)) => {
                let metrics = self.shared.transcode_metrics.clone();
                let (config, input, output) =
                    transcode::audio::start(&config, metrics).map_err(source_error)?;
                (Some(config), Some((input, output)))
            }
        };
        info!(
            epoch = self.grant.epoch,
            video = video.as_ref().map(|video| format!("{} {}x{}", video.codec, video.width, video.height)),
            fps = source.frame_rate.map(media::time::FrameRate::fps),
            audio = audio.as_ref().map(media::codec::AacConfig::codec_string),
            recoded = recoder.is_some(),
            rungs = rungs.iter().map(|rung| rung.id.as_str()).collect::<Vec<_>>().join(" "),
            first_segment = place.first.0,
            "run began"
        );
        let audio_start =
            audio_start.filter(|start| followed && recoder.is_none() && timescale == Some(start.timescale));
        let packager = Arc::new(Mutex::new(Packager::new(Plan {
            live: self.live.clone(),
            epoch: Epoch(self.grant.epoch),
            place,
            unix_ms,
            listed: ticks(config.window),
            rungs: rungs.clone(),
            frame_rate: source.frame_rate,
            audio,
            audio_continues: audio_start.is_some(),
            instance: self.shared.instance,
            metrics: self.shared.metrics.clone(),
        })));
        let encoder = match video {
            None => None,
            Some(source) => {
                let Targets { segment_duration, .. } = place.targets;
                let job = Job { source, rungs, start: place.start, segment_duration };
                let started = transcode::start(job, self.shared.transcode_metrics.clone());
                let (input, output) = started.map_err(source_error)?;
                let publisher = tokio::spawn(publish(output, packager.clone(), self.lines.clone()));
                Some(Encoder { input, publisher })
            }
        };
        let recoder = recoder.map(|(input, output)| {
            let start = Timescale::VIDEO.rescale(base, Timescale::OPUS);
            let source_ms = move |pts| zero_ms + Timescale::OPUS.rescale(pts - start, Timescale::MILLIS);
            let publisher = publish_audio(output, source_ms, packager.clone(), self.lines.clone());
            Recoder { input, publisher: tokio::spawn(publisher) }
        });
        self.shared.metrics.runs.inc();
        self.counted.repairs = Repairs::default();
        let mut repair = Repair::new(base, zero_ms, source.frame_rate, timescale);
        if let Some(start) = audio_start {
            repair.continue_audio(start.pts);
        }
        self.run = Some(Run {
            packager,
            encoder,
            recoder,
            repair,
            timescale,
            lines: self.lines.clone(),
            audio_from_ms: audio_start.map(|start| near(start.source_ms)),
            fed: VecDeque::new(),
        });
        Ok(())
    }

    /// Tells the POP that what came before the tag that broke the timeline is published: from here on times mean
    /// something else.
    async fn pass(&self) {
        let Some(number) = self.live.complete(Epoch(self.grant.epoch)) else { return };
        let Some((anchor, breaks, end)) = self.live.line() else { return };
        let next = Continuation {
            instance: self.shared.instance,
            first: number.next(),
            start: end,
            anchor,
            breaks: breaks + 1,
            lead: None,
            audio: None,
        };
        let (published, passed, next) = (number.0, self.tags - 1, next.to_string());
        self.last_line(&Line::Passed { published, passed, r#continue: &next }).await;
    }

    async fn finish_run(&mut self) -> Result<(), Error> {
        let Some(run) = self.run.take() else { return Ok(()) };
        self.count_repairs(&run);
        let finished = run.finish().await;
        self.shared.interrupted(self.live, false);
        finished
    }

    async fn suspend_run(&mut self) -> Result<(), Error> {
        let Some(run) = self.run.take() else { return Ok(()) };
        self.count_repairs(&run);
        let suspended = run.suspend().await;
        self.shared.interrupted(self.live, true);
        self.left = suspended?.or(self.left);
        Ok(())
    }

    fn count_repairs(&mut self, run: &Run) {
        let repairs = run.repair.repairs();
        count_repairs(&self.shared.metrics, &mut self.counted.repairs, repairs);
        if repairs != Repairs::default() {
            debug!(?repairs, "frames were moved in time");
        }
    }

    /// Waits for the POP to make room: this line must not be lost.
    async fn last_line(&self, line: &Line<'_>) {
        if tokio::time::timeout(LAST_LINE_TIMEOUT, self.lines.send(text(line))).await.is_err() {
            debug!("the POP does not read its acknowledgements");
        }
    }
}

/// One run of a session.
struct Run {
    packager: Arc<Mutex<Packager>>,
    encoder: Option<Encoder>,
    recoder: Option<Recoder>,
    repair: Repair,
    /// Of the source's audio.
    timescale: Option<Timescale>,
    lines: mpsc::Sender<Bytes>,
    /// Audio before is published.
    audio_from_ms: Option<i64>,
    /// The latest frames of video (audio-only: of audio): place at 90 kHz, source milliseconds.
    fed: VecDeque<(Ticks, i64)>,
}

struct Encoder {
    input: transcode::Input,
    publisher: JoinHandle<Result<(), Error>>,
}

/// Turns the source's audio into AAC.
struct Recoder {
    input: transcode::audio::AudioInput,
    publisher: JoinHandle<Result<(), Error>>,
}

impl Run {
    /// Waits while the encoders are behind.
    async fn video(&mut self, frame: Frame) -> Result<(), Error> {
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        let Times { dts, pts, duration } = self.repair.video(frame.dts_ms, frame.pts_ms, frame.pts_nanos);
        remember(&mut self.fed, pts, frame.pts_ms);
        with(&self.packager, |packager| packager.source_video(pts, frame.pts_ms));
        let sample = Sample { dts, pts, duration, key: frame.key, data: frame.data };
        if encoder.input.send(sample).await.is_err() {
            // The reason is with the publisher, which ends with the encoders.
            return match self.encoder.take() {
                Some(encoder) => encoder.publisher.await?,
                None => Ok(()),
            };
        }
        Ok(())
    }

    /// Waits while the audio encoder is behind, if there is one.
    async fn audio(&mut self, frame: Frame) -> Result<(), Error> {
        let Some(timescale) = self.timescale else { return Ok(()) };
        if self.audio_from_ms.is_some_and(|from| frame.dts_ms < from) {
            return Ok(());
        }
        let Some(times) = self.repair.audio(frame.dts_ms, frame.samples) else { return Ok(()) };
        let Times { dts, pts, duration } = times;
        if self.encoder.is_none() {
            remember(&mut self.fed, timescale.rescale(pts, Timescale::VIDEO), frame.pts_ms);
        }
        let sample = Sample { dts, pts, duration, key: true, data: frame.data };
        let Some(recoder) = &mut self.recoder else {
            let published = with(&self.packager, |packager| {
                packager.audio(sample, frame.pts_ms);
                packager.poll_published()
            });
            acknowledge(&self.lines, published);
            return Ok(());
        };
        if recoder.input.send(sample).await.is_err() {
            return match self.recoder.take() {
                Some(recoder) => recoder.publisher.await?,
                None => Ok(()),
            };
        }
        Ok(())
    }

    /// Publishes what came without a hole, and says how far that is.
    async fn suspend(self) -> Result<Option<Left>, Error> {
        if let Some(Recoder { input, publisher }) = self.recoder {
            drop(input);
            publisher.await??;
        }
        if let Some(Encoder { input, publisher }) = self.encoder {
            input.abandon();
            publisher.await??;
        }
        let Some(Came { end, audio }) = with(&self.packager, Packager::suspend) else { return Ok(None) };
        let lead = self.fed.iter().filter(|(pts, _)| *pts < end).max();
        // As sent, times have 32 bits.
        Ok(lead.map(|(pts, ms)| Left { lead: (*ms as u32, *pts), end, audio }))
    }

    /// Publishes what is still in the encoders, then completes the open segments.
    async fn finish(self) -> Result<(), Error> {
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
        encoded.and(recoded)
    }
}

/// Enough to find the last frame that is published, however many are on their way through decoder and encoders.
const MAX_FED: usize = 512;

fn remember(fed: &mut VecDeque<(Ticks, i64)>, pts: Ticks, source_ms: i64) {
    if fed.len() >= MAX_FED {
        fed.pop_front();
    }
    fed.push_back((pts, source_ms));
}

/// Takes what the encoders give until they end.
async fn publish(
    mut output: transcode::Output,
    packager: Arc<Mutex<Packager>>,
    lines: mpsc::Sender<Bytes>,
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
                acknowledge(&lines, published);
            }
            transcode::Event::Damaged { frames } => debug!(frames, "damaged frames were patched over"),
            transcode::Event::Ended(result) => return result.map_err(Error::from),
        }
    }
    Ok(())
}

/// Takes what the audio encoder gives until it ends. `source_ms` says when in the source a frame is heard, as near as
/// repair lets them differ.
async fn publish_audio(
    mut output: transcode::audio::AudioOutput,
    source_ms: impl Fn(Ticks) -> i64,
    packager: Arc<Mutex<Packager>>,
    lines: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    while let Some(frame) = output.next().await {
        let sample = frame?;
        let source_ms = source_ms(sample.pts);
        let published = with(&packager, |packager| {
            packager.audio(sample, source_ms);
            packager.poll_published()
        });
        acknowledge(&lines, published);
    }
    Ok(())
}

/// Where a broadcast goes on of which only the record is left: on its timeline, by the wall clock, behind a break. One
/// number is left out: the segment that was open may have been seen.
fn on_record(line: record::Line, segment_duration: Ticks) -> Continuation {
    let record::Line { anchor_unix_ms: unix_ms, anchor_ticks: ticks, breaks } = line;
    let by_clock = (self::unix_ms() * 90 / segment_duration).max(0) as u64;
    Continuation {
        instance: 0,
        first: SegmentNumber(by_clock + 1),
        start: ticks,
        anchor: Anchor { unix_ms, ticks },
        breaks: breaks + 1,
        lead: None,
        audio: None,
    }
}

/// What cannot be decoded is the broadcaster's fault.
fn source_error(error: transcode::Error) -> Error {
    match error {
        transcode::Error::Job { .. } | transcode::Error::Libav(_) => Error::Source(error),
        error => Error::Transcode(error),
    }
}

fn count_repairs(metrics: &crate::Metrics, counted: &mut Repairs, now: Repairs) {
    for ((kind, count), (_, before)) in now.kinds().into_iter().zip(counted.kinds()) {
        metrics.frames_repaired.get_or_create(&Kind { kind }).inc_by(count - before);
    }
    *counted = now;
}

fn with<T>(packager: &Mutex<Packager>, act: impl FnOnce(&mut Packager) -> T) -> T {
    act(&mut packager.lock().unwrap_or_else(PoisonError::into_inner))
}

fn acknowledge(lines: &mpsc::Sender<Bytes>, published: Option<Published>) {
    if let Some(Published { number, resume_ms, next }) = published {
        let next = next.to_string();
        // As sent, times have 32 bits.
        let line = Line::Published { published: number.0, resume_ms: resume_ms as u32, r#continue: &next };
        send_line(lines, &line);
    }
}

fn text(line: &Line<'_>) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("lines are plain data");
    text.push(b'\n');
    text.into()
}

fn send_line(lines: &mpsc::Sender<Bytes>, line: &Line<'_>) {
    // A POP that does not read its acknowledgements keeps more than it must; the newest line says all, so a lost one
    // costs nothing.
    if lines.try_send(text(line)).is_err() {
        debug!("the POP does not read its acknowledgements");
    }
}

fn ticks(duration: Duration) -> Ticks {
    Timescale::MILLIS.rescale(duration.as_millis() as i64, Timescale::VIDEO)
}

pub(crate) fn unix_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::BytesMut;
    use http_body::Frame as BodyFrame;
    use media::flv::Tag;
    use prometheus_client::registry::Registry;

    /// A relay that brings these bytes and then ends, or breaks.
    struct Relay(VecDeque<Result<Bytes, &'static str>>);

    impl Body for Relay {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<BodyFrame<Bytes>, &'static str>>> {
            Poll::Ready(self.0.pop_front().map(|next| next.map(BodyFrame::data)))
        }
    }

    /// Milliseconds of AAC frame `index` at 44.1 kHz, as FLV has them.
    fn audio_ms(index: u32) -> u32 {
        index * 1024 * 1000 / 44_100
    }

    fn audio_relay(frames: std::ops::Range<u32>, breaks: bool) -> Relay {
        let mut flv = BytesMut::from(&flv::HEADER[..]);
        let mut tag = |timestamp_ms, data: Vec<u8>| {
            Tag { kind: TagKind::Audio, timestamp_ms, data: data.into() }.encode(&mut flv);
        };
        tag(0, vec![0xAF, 0, 0x12, 0x10]);
        for index in frames {
            tag(audio_ms(index), vec![0xAF, 1, 1, 2, (index >> 8) as u8, index as u8]);
        }
        let broken = breaks.then_some(Err("connection lost"));
        Relay([Ok(flv.freeze())].into_iter().chain(broken).collect())
    }

    fn shared() -> Arc<Shared> {
        let mut registry = Registry::default();
        Arc::new(Shared {
            config: crate::Config::default(),
            transcode: transcode::Config::default(),
            keys: Arc::new(cluster::token::Keys::new(&[vec![0; 32]]).unwrap()),
            store: cluster::Member::default(),
            metrics: crate::Metrics::register(&mut registry),
            transcode_metrics: transcode::Metrics::register(&mut registry),
            streams: Mutex::new(HashMap::new()),
            hubs: std::sync::Mutex::default(),
            tasks: tokio_util::task::TaskTracker::new(),
            shutdown: CancellationToken::new(),
            instance: 1,
            news: Arc::default(),
        })
    }

    #[tokio::test]
    async fn a_relay_that_comes_back_loses_and_doubles_no_audio_frame() {
        let shared = shared();
        let name = "demo".parse().unwrap();
        let live = shared.stream_for_publishing(&name).unwrap();
        for (frames, breaks) in [(0..200, true), (150..333, true), (300..500, false)] {
            let request = Request {
                claims: Claims::default(),
                session: "s1".into(),
                received_unix_ms: unix_ms(),
                next: None,
            };
            let grant = shared.store.claim("demo", "s1", Vec::new()).await.unwrap();
            let (lines, _answer) = mpsc::channel(LINE_QUEUE);
            let body = audio_relay(frames, breaks);
            session(shared.clone(), live.clone(), grant, request, body, lines, shared.shutdown.clone()).await;
        }
        let crate::live::Found::Ready(playlist) =
            live.playlist(&"audio".parse().unwrap(), crate::hls::Directives::default()).unwrap()
        else {
            panic!("nothing was published")
        };
        let mut came = Vec::new();
        for uri in playlist.lines().filter(|line| !line.starts_with('#')) {
            let (_, target) = crate::path::parse(&format!("/live/demo/{uri}")).unwrap();
            let crate::path::Target::Segment(epoch, id, number) = target else { panic!("{uri}") };
            let crate::live::Found::Ready(object) = live.segment(epoch, &id, number) else { panic!("{uri}") };
            let bytes = object.to_bytes().unwrap();
            // Each frame of this test is 1, 2 and its own number.
            let mut rest = &bytes[..];
            while let Some(at) = rest.windows(4).position(|name| name == b"mdat") {
                let len = u32::from_be_bytes(rest[at - 4..at].try_into().unwrap()) as usize - 8;
                let (frames, behind) = rest[at + 4..].split_at(len);
                came.extend(frames.chunks(4).map(|f| u32::from(f[2]) << 8 | u32::from(f[3])));
                rest = behind;
            }
        }
        assert_eq!(came, (0..500).collect::<Vec<_>>());
    }
}
