//! The far end of ingest's relay: one session, from FLV bytes to published segments, and the acknowledgements back.

#[cfg(test)]
mod sources;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use archive::BroadcastId;
use bytes::Bytes;
use cluster::lease::Grant;
use cluster::record::{self, StreamState};
use cluster::token::Claims;
use http_body::Body;
use http_body_util::BodyExt;
use media::codec::{AudioConfig, VideoConfig};
use media::event::What;
use media::flv::{self, TagKind};
use media::time::{Ticks, Timescale};
use media::{Epoch, SegmentNumber};
use serde::Serialize;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use transcode::{Job, Passthrough, VideoSource};

use crate::Shared;
use crate::continuation::Continuation;
use crate::copying;
use crate::error::{Error, Fault};
use crate::events::{self, Limit, Refused};
use crate::feed::{self, Break, Feed, Frame, Rules, Source};
use crate::hls::Targets;
use crate::live::{Follow, Left, Live, State, Writer};
use crate::metrics::{Kind, Reason};
use crate::overlap::{Known, Setup};
use crate::packager::{Packager, Plan, part_target};
use crate::repair::{Repair, Repairs};
use crate::run::{Answers, Copy, Encoder, Recoder, Run, Took, publish, publish_audio, with};
use crate::succession::Heir;
use crate::timeline::Anchor;
use turn::{LOOK_ON, Waiting};

/// Lines that wait for the POP to read them: one a second and run; a POP that is this far behind is gone.
pub(crate) const LINE_QUEUE: usize = 64;

/// How long the session before may take to publish what it has, once it is fenced.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last line may wait for a POP that does not read.
const LAST_LINE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the archive may take to say how far a broadcast came.
const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Segments that were published behind the last one that the archive's journals name: journals come once a second, one is
/// on its way, and one was open.
const UNSAID: u64 = 3;

/// How long a picture may stand still before time is taken to have jumped: audio waits for video about as long.
const MAX_STILL: Duration = Duration::from_millis(2_500);

/// A source whose keyframes are as far apart as may be passed through is a little late with the second.
const KEYFRAME_SLACK: Duration = Duration::from_millis(500);

/// Times of a POP's clock that are farther off than this are not believed.
const MAX_CLOCK_SKEW_MS: i64 = 60_000;

/// One line of the answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Line<'a> {
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

/// By what right a session publishes.
pub(crate) enum Right {
    /// It has claimed the stream.
    Claimed(Grant),
    /// Another session of this origin publishes: it claims the stream when its turn has come.
    Heir(Heir),
}

/// Runs a session to its end; `lines` go back to the POP.
pub(crate) async fn session<B>(
    shared: Arc<Shared>,
    live: Arc<Live>,
    right: Right,
    request: Request,
    body: B,
    lines: mpsc::Sender<Bytes>,
    shutdown: CancellationToken,
) where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: std::fmt::Display,
{
    let began = Instant::now();
    let ladder = shared.transcode.get();
    shared.metrics.sessions.inc();
    let mut session = Session {
        rules: Rules {
            probe: shared.config.probe,
            keyframe_timeout: shared.config.keyframe_timeout,
            max_gap: shared.config.segment_duration * 9 / 10,
            max_still: MAX_STILL,
            // Of a broadcast that goes on it is fixed how long segments are.
            keyframes: (ladder.passthrough != Passthrough::Off
                && !matches!(live.state(), State::Live | State::Interrupted(_)))
            .then_some(ladder.max_keyframe_interval + KEYFRAME_SLACK),
        },
        ladder,
        shared: &shared,
        live: &live,
        grant: None,
        writer: None,
        waiting: None,
        known: Known::default(),
        adopted: false,
        epoch: Epoch(0),
        request,
        lines: &lines,
        run: None,
        source: None,
        copies: true,
        follow: Follow::Clock,
        left: None,
        tags: 0,
        received_us: None,
        received_bytes: 0,
        media_came: false,
        limit: Limit::default(),
        refused: None,
        counted: Counted::default(),
    };
    info!(
        resume = session.request.next.is_some(),
        looks_on = matches!(right, Right::Heir(_)),
        "session began"
    );
    let ended = session.relay(right, body, &shutdown).await;
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
    /// The ladder's rules as they were when it came.
    ladder: Arc<transcode::Config>,
    live: &'a Arc<Live>,
    /// From its claim on.
    grant: Option<Grant>,
    /// From its turn on.
    writer: Option<OwnedMutexGuard<Writer>>,
    /// Its first frames, until it is known what they follow.
    waiting: Option<Waiting>,
    /// What the session before brought already.
    known: Known,
    /// Its first run is the one of the session before.
    adopted: bool,
    /// Of its run.
    epoch: Epoch,
    request: Request,
    rules: Rules,
    lines: &'a mpsc::Sender<Bytes>,
    run: Option<Run>,
    /// What it is made of.
    source: Option<Source>,
    /// Nothing yet has shown that its video cannot be passed through.
    copies: bool,
    /// What the next run is to follow.
    follow: Follow,
    /// Where a lost relay of this session can be taken up.
    left: Option<Left>,
    /// Tags of this body so far.
    tags: u64,
    /// When the POP received the last of them, microseconds since 1970, if it says so.
    received_us: Option<i64>,
    received_bytes: u64,
    media_came: bool,
    /// How many events it may bring.
    limit: Limit,
    /// Why one was refused last.
    refused: Option<Refused>,
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
    async fn relay<B>(&mut self, right: Right, mut body: B, shutdown: &CancellationToken) -> Result<(), Error>
    where
        B: Body<Data = Bytes> + Unpin + Send,
        B::Error: std::fmt::Display,
    {
        let mut feed = Feed::new(self.rules);
        let begun = match right {
            Right::Heir(heir) => {
                self.waiting = Some(Waiting { heir: Some(heir), ..Waiting::default() });
                Ok(())
            }
            Right::Claimed(grant) => {
                self.grant = Some(grant);
                self.begin().await
            }
        };
        let relayed = match begun {
            Ok(()) => self.take_in(&mut body, &mut feed, shutdown).await,
            Err(error) => Err(error),
        };
        if relayed.is_ok() {
            feed.finish();
        }
        let fed = match relayed {
            Ok(()) => self.feed_on(&mut feed, shutdown, true).await,
            Err(error) => Err(error),
        };
        self.count(&feed);
        let finished = self.end(&fed).await;
        fed.and(finished)
    }

    /// The session has claimed the stream: finds out what it follows.
    async fn begin(&mut self) -> Result<(), Error> {
        let mut writer = self.lock_writer().await?;
        let left = writer.left.take().filter(|(session, _)| *session == self.request.session);
        self.follow = match (left, self.request.next) {
            // The same broadcaster over a new relay, and no other origin in between: what its last relay brought is
            // published, acknowledged or not.
            (Some((_, left)), next) if next.is_none_or(|next| next.instance == self.shared.instance) => {
                self.left = Some(left);
                Follow::Left(left)
            }
            (_, Some(next)) => Follow::Handed(self.live.newest(next)),
            // This process does not know the broadcast, its record does: the one before was killed.
            (_, None) if self.live.line().is_none() => {
                match self.shared.store.line(self.live.name().as_str()) {
                    Some(line) => {
                        let segment_duration = ticks(self.shared.config.segment_duration);
                        Follow::Handed(on_record(line, segment_duration, self.kept(line).await))
                    }
                    None => Follow::Clock,
                }
            }
            (_, None) => Follow::Clock,
        };
        if self.follow == Follow::Clock && !self.live.succession.trail(|trail| trail.is_empty()) {
            self.waiting = Some(Waiting::default());
        }
        let completed = match writer.parked.take_if(|_| self.waiting.is_none()) {
            Some(run) => self.complete(*run, &mut writer).await,
            None => Ok(()),
        };
        self.writer = Some(writer);
        completed
    }

    /// The last segment of a broadcast on record that the archive has, and where it ends (90 kHz).
    async fn kept(&self, line: record::Line) -> Option<(SegmentNumber, Ticks)> {
        let broadcast = BroadcastId::new(self.live.name().clone(), line.anchor_unix_ms);
        let reader = &self.shared.kept.as_ref()?.reader;
        match tokio::time::timeout(ARCHIVE_TIMEOUT, reader.index(&broadcast)).await {
            Ok(Ok(index)) => index?.newest(),
            Ok(Err(error)) => {
                warn!(%broadcast, %error, "the archive cannot be read: the broadcast goes on by the clock alone");
                None
            }
            Err(_) => {
                warn!(%broadcast, "the archive does not answer: the broadcast goes on by the clock alone");
                None
            }
        }
    }

    /// The session before was fenced by our claim; it lets go.
    async fn lock_writer(&self) -> Result<OwnedMutexGuard<Writer>, Error> {
        let writer = tokio::time::timeout(HANDOVER_TIMEOUT, self.live.writer.clone().lock_owned());
        let writer = writer.await.map_err(|_| Error::Busy)?;
        if !self.shared.keep(self.live) {
            return Err(Error::Busy);
        }
        self.live.succession.writes(&self.request.session);
        Ok(writer)
    }

    /// Whatever ended the session: what came is published.
    async fn end(&mut self, fed: &Result<(), Error>) -> Result<(), Error> {
        let (Some(mut writer), Some(grant)) = (self.writer.take(), self.grant.clone()) else {
            // Who had no turn has published nothing.
            self.waiting = None;
            self.leave_nothing();
            return Ok(());
        };
        // It was to be decided about, and the session did not come so far.
        let undecided = match writer.parked.take() {
            Some(run) => self.complete(*run, &mut writer).await,
            None => Ok(()),
        };
        let succession = &self.live.succession;
        if matches!(fed, Err(Error::TakenOver)) && !self.shared.store.owns(&grant.stream) {
            // By another origin, which keeps what comes from here on.
            self.shared.archive.fence(self.live.name(), Epoch(grant.epoch));
        }
        if matches!(fed, Ok(()) | Err(Error::Relay(_))) && self.run.is_some() {
            // The next session may be about to go on with this one's run.
            succession.ended();
            let mut heirs = succession.heirs();
            tokio::select! {
                biased;
                () = self.shared.store.fenced(&grant) => {}
                _ = heirs.wait_for(|heirs| *heirs == 0) => {}
                () = tokio::time::sleep(LOOK_ON) => {}
            }
        }
        // If it may come back, here or at another origin, it is taken up where it came to without a hole.
        let lost = match fed {
            Err(Error::Relay(_) | Error::ShuttingDown) => true,
            Err(Error::TakenOver) => {
                self.shared.store.holder(&grant.stream) == Some(self.request.session.clone())
            }
            _ => false,
        };
        let taken = matches!(fed, Ok(()) | Err(Error::Relay(_) | Error::TakenOver)) && succession.is_taken();
        if matches!(fed, Err(Error::TakenOver)) && self.shared.store.elsewhere(&grant.stream).is_some() {
            self.shared.fence_archive(self.live);
        }
        let finished = match self.run.take() {
            Some(run) if taken => {
                self.count_repairs(&run);
                run.park();
                writer.parked = Some(Box::new(run));
                Ok(())
            }
            Some(run) if lost => self.suspend(run, &mut writer).await,
            Some(run) => self.complete(run, &mut writer).await,
            None => Ok(()),
        };
        writer.left = self.left.filter(|_| lost).map(|left| (self.request.session.clone(), left));
        writer.grant = Some(grant);
        succession.lets_go();
        undecided.and(finished)
    }

    /// The session before may have left its run for this one, or be about to: as this one has no turn, and if no other has,
    /// nobody else completes it. What was claimed goes with the stream.
    fn leave_nothing(&self) {
        let (shared, live, grant) = (self.shared.clone(), self.live.clone(), self.grant.clone());
        self.shared.tasks.spawn(async move {
            let writer = tokio::time::timeout(HANDOVER_TIMEOUT, live.writer.clone().lock_owned());
            // Who keeps it publishes, and leaves its run to nobody.
            let Ok(mut writer) = writer.await else {
                return grant.iter().for_each(|grant| shared.store.forget(grant));
            };
            if let Some(grant) = grant.filter(|grant| shared.store.holds(grant)) {
                writer.grant = Some(grant);
            }
            let parked = if live.succession.is_taken() { None } else { writer.parked.take() };
            if let Some(run) = parked {
                match run.finish().await {
                    Ok(came) => writer.came = came,
                    Err(error) => {
                        warn!(stream = %live.name(), %error, "a run that nobody took did not end well");
                    }
                }
                shared.interrupted(&live, false);
            }
            drop(writer);
            shared.forget_if(&live, |state| state == State::Offline);
        });
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
            let fenced = async {
                match &grant {
                    Some(grant) => shared.store.fenced(grant).await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Error::ShuttingDown),
                () = fenced => return Err(Error::TakenOver),
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
                self.received_us = decoder.received_unix_ms(unix_ms()).map(|ms| ms * 1000);
                feed.push(&tag)?;
                self.feed_on(feed, shutdown, false).await?;
            }
            self.count(feed);
            if self.writer.is_some() {
                self.describe();
            }
        }
    }

    /// Tells the store where the broadcast stands, if that is news.
    fn describe(&self) {
        if let Some((anchor, breaks, _)) = self.live.line() {
            let line = record::Line { anchor_unix_ms: anchor.unix_ms, anchor_ticks: anchor.ticks, breaks };
            self.shared.store.describe(self.live.name().as_str(), StreamState::Live, Some(line));
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

    /// `last`: no more comes.
    async fn feed_on(
        &mut self,
        feed: &mut Feed,
        shutdown: &CancellationToken,
        last: bool,
    ) -> Result<(), Error> {
        while let Some(event) = feed.poll() {
            match &mut self.waiting {
                Some(waiting) => waiting.push(event, self.live),
                None => self.happen(event).await?,
            }
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.whole |= last;
            if self.turn(shutdown).await? {
                while let Some(event) = self.waiting.as_mut().and_then(|waiting| waiting.events.pop_front()) {
                    self.happen(event).await?;
                }
                self.waiting = None;
            }
        }
        Ok(())
    }

    async fn happen(&mut self, event: feed::Event) -> Result<(), Error> {
        match event {
            feed::Event::Start(_) if std::mem::take(&mut self.adopted) => {}
            feed::Event::Start(source) => self.start_run(source)?,
            feed::Event::Video(frame) => self.frame(true, frame).await?,
            feed::Event::Audio(frame) => self.frame(false, frame).await?,
            feed::Event::Data(frame) => self.data(&frame),
            feed::Event::Again(frame) => {
                if let Some(run) = &mut self.run {
                    run.video(frame).await?;
                }
            }
            feed::Event::Restart(reason) => {
                let why = reason.as_str();
                self.shared.metrics.timeline_breaks.get_or_create(&Reason { reason: why }).inc();
                info!(why, "the timeline breaks: a new run begins");
                self.finish_run().await?;
                let came = self.writer.as_ref().and_then(|writer| writer.came);
                let video = self.source.as_ref().is_some_and(|source| source.video.is_some());
                self.follow = match came {
                    // The clock goes on, and so does the video.
                    Some(left) if reason == Break::Audio && video => Follow::Left(left),
                    _ => {
                        self.pass().await;
                        Follow::Clock
                    }
                };
                (self.left, self.known) = (None, Known::default());
                self.media_came = true;
                self.request.received_unix_ms = unix_ms();
                // Not a claim: a session that was fenced meanwhile must not take the stream back.
                let renewed = match &self.grant {
                    Some(grant) => self.shared.store.renew(grant).await,
                    None => None,
                };
                self.grant = Some(renewed.ok_or(Error::TakenOver)?);
            }
        }
        Ok(())
    }

    async fn frame(&mut self, video: bool, frame: Frame) -> Result<(), Error> {
        let Some(run) = &mut self.run else { return Ok(()) };
        run.received_us = self.received_us;
        if self.known.covers(video, frame.dts_ms) {
            self.shared.metrics.frames_repeated.inc();
            return Ok(());
        }
        let id = self.live.succession.identify(&frame);
        let place = if !video {
            run.audio(frame).await?
        } else if run.could_copy
            && frame.key
            && let Some(VideoConfig { codec, .. }) = self.source.as_ref().and_then(|s| s.video.as_ref())
            && transcode::copy::is_closed(*codec, &frame.data)
        {
            info!("a keyframe came: the source's video is passed through from here on");
            self.change_over(vec![frame]).await?
        } else {
            match run.video(frame).await? {
                Took::At(place) => Some(place),
                Took::Nowhere => None,
                Took::Uncut(frame) => {
                    warn!(
                        "no keyframe came where a segment should begin: the source's video is encoded from here on"
                    );
                    self.shared.metrics.passthrough_ends.inc();
                    self.copies = false;
                    let mut frames = run.take_gop();
                    frames.push(frame);
                    self.change_over(frames).await?
                }
            }
        };
        if let Some(place) = place {
            self.live.succession.note(video, &id, place);
        }
        Ok(())
    }

    /// A data message of the broadcaster.
    fn data(&mut self, frame: &Frame) {
        let Some(run) = &mut self.run else { return };
        let what = match events::read(&frame.data) {
            Ok(_) if !self.limit.allows(frame.dts_ms) => Err(Refused::Rate),
            read => read,
        };
        match what {
            Ok(what) => {
                let kind = match &what {
                    What::Scte35(_) => "scte35",
                    What::Data { .. } => "data",
                };
                if run.event(frame.dts_ms, what) {
                    self.shared.metrics.events.get_or_create(&Kind { kind }).inc();
                    debug!(kind, ms = frame.dts_ms, "an event");
                }
            }
            Err(refused) => {
                let reason = refused.as_str();
                self.shared.metrics.events_refused.get_or_create(&Reason { reason }).inc();
                if self.refused.replace(refused) != Some(refused) {
                    let name =
                        flv::message_name(&frame.data).map(|name| name.chars().take(64).collect::<String>());
                    warn!(
                        name,
                        reason,
                        bytes = frame.data.len(),
                        "a data message of the broadcaster is no event"
                    );
                }
            }
        }
    }

    /// Ends the run and begins another where it ended, with `frames`, of which the first is a keyframe. Those that the run
    /// before has shown are only decoded. Says the place of the last one.
    async fn change_over(&mut self, frames: Vec<Frame>) -> Result<Option<Ticks>, Error> {
        self.finish_run().await?;
        let left = self.writer.as_mut().and_then(|writer| writer.came);
        let renewed = match &self.grant {
            Some(grant) => self.shared.store.renew(grant).await,
            None => None,
        };
        self.grant = Some(renewed.ok_or(Error::TakenOver)?);
        self.follow = left.map_or(Follow::Clock, Follow::Left);
        let (Some(source), Some(first)) = (self.source.clone(), frames.first()) else { return Ok(None) };
        let (first_ms, came_ms) = (first.pts_ms, first.pts_ms);
        self.start_run(Source { first_ms, came_ms, keyframe_interval_ms: None, ..source })?;
        let mut place = None;
        for frame in frames {
            let Some(run) = &mut self.run else { break };
            if let Took::At(at) = run.video(frame).await? {
                place = Some(at);
            }
        }
        Ok(place)
    }

    /// Whether the token allows what comes.
    fn allows(&self, source: &Source) -> Result<(), Error> {
        match (self.request.claims.max_height, &source.video) {
            (Some(limit), Some(video)) if video.width.min(video.height) > limit => {
                Err(Error::TooTall { width: video.width, height: video.height, limit })
            }
            _ => Ok(()),
        }
    }

    fn start_run(&mut self, source: Source) -> Result<(), Error> {
        self.allows(&source)?;
        let Some(epoch) = self.grant.as_ref().map(|grant| grant.epoch) else { return Err(Error::TakenOver) };
        self.epoch = Epoch(epoch);
        self.live.succession.trail(|trail| trail.restart(Setup::from(&source)));
        let config = &self.shared.config;
        let follow = std::mem::replace(&mut self.follow, Follow::Clock);
        // As sent, times have 32 bits: those nearest to the first frame are meant.
        let near = |ms: u32| source.first_ms + i64::from(ms.wrapping_sub(source.first_ms as u32) as i32);
        let (lead, audio_start) = match follow {
            Follow::Clock => (None, None),
            Follow::Left(left) => (Some(left.lead), left.audio),
            Follow::At(lead) => (Some(lead), None),
            Follow::Handed(next) => (next.lead, next.audio),
        };
        let lead = lead.map(|(ms, pts)| (near(ms), pts));
        // What came first is not what the run begins with, where a broadcaster begins between two keyframes.
        let now = unix_ms();
        let begins_ms = lead.map_or(source.first_ms, |(ms, _)| ms);
        let unix_ms = self.request.received_unix_ms.saturating_add(begins_ms - source.came_ms);
        let unix_ms = unix_ms.clamp(now - MAX_CLOCK_SKEW_MS, now);
        let ladder = self.ladder.clone();
        let rules = &*ladder;
        let passes = self.writer.as_ref().is_some_and(|writer| writer.passes);
        let passable = self.copies
            && source.video.as_ref().is_some_and(|video| rules.passes_through(video.codec, &video.record));
        // Of a source that is passed through, segments are as long as its keyframes are apart.
        let measured = source.keyframe_interval_ms.filter(|_| passable).map(|interval_ms| {
            let interval = interval(interval_ms, source.frame_rate);
            let most = ticks(rules.max_keyframe_interval.min(config.window / 6));
            copying::segment_duration(interval, ticks(config.segment_duration), most)
        });
        let segment_duration = measured.flatten().unwrap_or(ticks(config.segment_duration));
        // Parts are whole frames of every rung.
        let part = ticks(config.part_target);
        let common = source.frame_rate.map(|rate| transcode::ladder::common_frame_rate(rules, rate, part));
        let wanted =
            Targets { segment_duration, part_target: part_target(part, common).min(segment_duration) };
        let place = self.live.place(unix_ms, follow, wanted);
        self.live.publishes(self.request.claims.jti.clone());
        let followed = match follow {
            Follow::Clock => false,
            Follow::Left(left) => place.start == left.end,
            Follow::At((_, at)) => place.start == at,
            Follow::Handed(_) => place.handed.is_some() || place.joined,
        };
        // Of frames that are farther apart than parts only the next one tells how long each lasts: what is between is filled.
        let longest_showing = place.targets.part_target;
        let regular =
            source.frame_rate.filter(|rate| rate.frame_start(1, Timescale::VIDEO) <= longest_showing);
        let (zero_ms, base) = lead.filter(|_| followed).unwrap_or((source.first_ms, place.start));
        let video = source.video.as_ref().map(|config| VideoSource {
            codec: config.codec,
            record: config.record.clone(),
            width: config.width,
            height: config.height,
            sar: config.sar,
            frame_rate: source.frame_rate,
        });
        // It was measured, and is what is kept to; or what is kept to was measured before.
        let suits = match measured {
            Some(measured) => measured == Some(place.targets.segment_duration),
            None => passable && (passes || matches!(follow, Follow::Handed(_))),
        };
        let first = base + (source.first_ms - zero_ms) * 90;
        let copies = suits && (first - place.start).abs() <= 90;
        let mut rungs = video
            .as_ref()
            .map_or_else(Vec::new, |video| transcode::ladder::with_passthrough(rules, video, copies));
        let passed = source.video.as_ref().filter(|_| copies).map(|config| config.codec);
        transcode::ladder::keep_names(&mut rungs, passed, &self.live.known_video());
        let milli_cpus = video.as_ref().map_or(0, |video| transcode::cost::milli_cpus(video, &rungs, copies));
        let timescale = source.audio.as_ref().map(AudioConfig::timescale);
        let (audio, recoder) = match source.audio.clone() {
            None => (None, None),
            Some(config) if transcode::audio::is_copied(&config, rules) => (Some(config), None),
            Some(config) => {
                let metrics = self.shared.transcode_metrics.clone();
                let (aac, input, output) =
                    transcode::audio::start(&config, rules.surround, metrics).map_err(source_error)?;
                (Some(AudioConfig::Aac(aac)), Some((input, output, config.timescale())))
            }
        };
        info!(
            epoch,
            video = video.as_ref().map(|video| format!("{} {}x{}", video.codec, video.width, video.height)),
            fps = source.frame_rate.map(media::time::FrameRate::fps),
            audio = audio.as_ref().map(AudioConfig::codec_string),
            recoded = recoder.is_some(),
            rungs = rungs.iter().map(|rung| rung.id.as_str()).collect::<Vec<_>>().join(" "),
            passed_through = copies,
            first_segment = place.first.0,
            "run began"
        );
        let audio_start =
            audio_start.filter(|start| followed && recoder.is_none() && timescale == Some(start.timescale));
        let drawn = rungs.get(usize::from(copies)..).and_then(<[_]>::last);
        let sar = video.as_ref().map_or((1, 1), |video| video.sar);
        let thumbnails = drawn.and_then(|smallest| rules.thumbnails.of(smallest, sar));
        let packager = Arc::new(Mutex::new(Packager::new(Plan {
            live: self.live.clone(),
            epoch: self.epoch,
            place,
            unix_ms,
            listed: ticks(config.window),
            rungs: rungs.clone(),
            frame_rate: source.frame_rate,
            copied: source.video.clone().filter(|_| copies),
            thumbnails,
            audio,
            captions: source.captions,
            caption_services: config.captions.clone(),
            audio_continues: audio_start.is_some(),
            instance: self.shared.instance,
            metrics: self.shared.metrics.clone(),
            taken: Default::default(),
        })));
        let answers = Answers::new(self.lines.clone());
        let Targets { segment_duration, .. } = place.targets;
        let copy = video
            .as_ref()
            .filter(|_| copies)
            .map(|video| Copy::new(video.codec, regular, place.start, segment_duration));
        let first = usize::from(copies);
        let encoder = match video {
            Some(source) if rungs.len() > first => {
                let rungs = rungs[first..].to_vec();
                let (start, given_cuts) = (place.start, copies);
                let shed = rules.shed.then(|| self.writer.as_ref().map_or(0, |writer| writer.shed));
                let deinterlace = rules.deinterlace == transcode::Deinterlace::Auto;
                let job = Job {
                    source,
                    rungs,
                    start,
                    segment_duration,
                    longest_showing,
                    given_cuts,
                    deinterlace,
                    shed,
                    thumbnails,
                };
                let started = transcode::start(job, self.shared.transcode_metrics.clone());
                let (input, output) = started.map_err(source_error)?;
                let publisher = tokio::spawn(publish(output, first, packager.clone(), answers.clone()));
                Some(Encoder { input, publisher })
            }
            _ => None,
        };
        let recoder = recoder.map(|(input, output, timescale)| {
            let start = Timescale::VIDEO.rescale(base, timescale);
            let source_ms = move |pts| zero_ms + timescale.rescale(pts - start, Timescale::MILLIS);
            let publisher = publish_audio(output, source_ms, packager.clone(), answers.clone());
            Recoder { input, publisher: tokio::spawn(publisher) }
        });
        self.shared.metrics.runs.inc();
        self.counted.repairs = Repairs::default();
        let mut repair = Repair::new(base, zero_ms, regular, timescale);
        if let Some(start) = audio_start {
            repair.continue_audio(start.pts);
        }
        self.source = Some(source.clone());
        if let Some(writer) = &mut self.writer {
            writer.passes = suits;
        }
        self.run = Some(Run {
            epoch: self.epoch,
            packager,
            encoder,
            codec: source.video.as_ref().map(|video| video.codec),
            copy,
            could_copy: suits && !copies,
            recoder,
            repair,
            timescale,
            answers,
            _carried: crate::Carried::new(self.shared.clone(), milli_cpus),
            audio_from_ms: audio_start.map(|start| near(start.source_ms)),
            fed: VecDeque::new(),
            received_us: self.received_us,
        });
        Ok(())
    }

    /// Tells the POP that what came before the tag that broke the timeline is published: from here on times mean
    /// something else.
    async fn pass(&self) {
        let Some(number) = self.live.complete(self.epoch) else { return };
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
        let (Some(run), Some(mut writer)) = (self.run.take(), self.writer.take()) else { return Ok(()) };
        let finished = self.complete(run, &mut writer).await;
        self.writer = Some(writer);
        finished
    }

    /// Publishes all that came of a run.
    async fn complete(&mut self, run: Run, writer: &mut Writer) -> Result<(), Error> {
        self.count_repairs(&run);
        writer.shed = with(&run.packager, |packager| packager.rungs_shed());
        let finished = run.finish().await;
        self.shared.interrupted(self.live, false);
        writer.came = finished?;
        Ok(())
    }

    /// Publishes what came of a run without a hole; the rest comes again.
    async fn suspend(&mut self, run: Run, writer: &mut Writer) -> Result<(), Error> {
        self.count_repairs(&run);
        writer.shed = with(&run.packager, |packager| packager.rungs_shed());
        let suspended = run.suspend().await;
        self.shared.interrupted(self.live, true);
        self.left = suspended?.or(self.left);
        writer.came = self.left;
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

/// Where a broadcast goes on of which only the record is left: on its timeline, by the wall clock, behind a break, and never
/// before what was `kept` of it: a broadcaster's clock may be ahead. One number is left out: the segment that was open may
/// have been seen.
fn on_record(
    line: record::Line,
    segment_duration: Ticks,
    kept: Option<(SegmentNumber, Ticks)>,
) -> Continuation {
    let record::Line { anchor_unix_ms: unix_ms, anchor_ticks: ticks, breaks } = line;
    let by_clock = (self::unix_ms() * 90 / segment_duration).max(0) as u64 + 1;
    let (next, end) = kept.map_or((0, ticks), |(last, end)| (last.0.saturating_add(1 + UNSAID), end));
    Continuation {
        instance: 0,
        first: SegmentNumber(by_clock.max(next)),
        start: ticks.max(end),
        anchor: Anchor { unix_ms, ticks },
        breaks: breaks + 1,
        lead: None,
        audio: None,
    }
}

/// How far apart keyframes are (90 kHz) whose times are rounded to milliseconds.
fn interval(interval_ms: i64, rate: Option<media::time::FrameRate>) -> Ticks {
    let Some(rate) = rate else { return interval_ms * 90 };
    let (num, den) = (i64::from(rate.num), i64::from(rate.den) * 1000);
    rate.frame_start((interval_ms * num * 2 + den) / (den * 2), Timescale::VIDEO)
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

fn text(line: &Line<'_>) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("lines are plain data");
    text.push(b'\n');
    text.into()
}

pub(crate) fn send_line(lines: &mpsc::Sender<Bytes>, line: &Line<'_>) {
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
    unix_us() / 1000
}

pub(crate) fn unix_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
