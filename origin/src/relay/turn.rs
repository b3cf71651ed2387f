//! A session's turn: what it waits for while another one publishes, and what it goes on with.

use std::collections::VecDeque;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::Session;
use crate::error::Error;
use crate::feed::{self, Frame, Source};
use crate::live::{Follow, Live, Writer};
use crate::metrics::Kind;
use crate::overlap::{Head, Setup, Verdict};
use crate::succession::Heir;

/// How long a new session looks on, once it has what it begins with: the frames before may still be on their way through
/// the other connection. And how long one that has ended waits for the next to take its run.
pub(super) const LOOK_ON: Duration = Duration::from_secs(2);

/// What a session begins with.
#[derive(Default)]
pub(super) struct Waiting {
    /// While another session publishes.
    pub(super) heir: Option<Heir>,
    pub(super) head: Head,
    /// The run's beginning, if it has begun.
    pub(super) source: Option<Source>,
    /// The run is over already: no more of it comes.
    pub(super) whole: bool,
    pub(super) events: VecDeque<feed::Event>,
}

impl Session<'_> {
    /// Whether the session may go on with what waits: it knows what it follows, and the one before has let go.
    pub(super) async fn turn(&mut self, shutdown: &CancellationToken) -> Result<bool, Error> {
        let (live, shared) = (self.live.clone(), self.shared.clone());
        let Some(waiting) = &mut self.waiting else { return Ok(true) };
        let judge = |waiting: &Waiting| live.succession.trail(|trail| trail.judge(&waiting.head));
        if waiting.source.is_none() && !waiting.whole {
            return Ok(false);
        }
        let enough = waiting.whole || waiting.head.is_enough();
        let Some(heir) = waiting.heir.take() else {
            if enough || judge(waiting) != Verdict::Unrelated {
                self.settle().await?;
                return Ok(true);
            }
            return Ok(false);
        };
        let mut changes = live.succession.changes();
        let until = tokio::time::Instant::now() + LOOK_ON;
        let (mut revocations, claims) = (shared.store.revoked(), self.request.claims.clone());
        loop {
            changes.mark_unchanged();
            let reached = |waiting: &Waiting| {
                live.succession.trail(|trail| trail.reaches(&waiting.head, trail.judge(&waiting.head)))
            };
            if live.succession.has_ended() && (enough || judge(waiting) != Verdict::Unrelated) {
                break;
            }
            if reached(waiting) {
                break;
            }
            if !enough {
                waiting.heir = Some(heir);
                return Ok(false);
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Error::ShuttingDown),
                _ = revocations.wait_for(|revoked| revoked.contains(&claims)) => return Err(Error::Revoked),
                () = tokio::time::sleep_until(until) => break,
                _ = changes.changed() => {}
            }
        }
        let turn = heir.turn();
        let claimed = shared.store.claim(live.name().as_str(), &self.request.session, Vec::new()).await;
        let grant = claimed.map_err(Error::NotClaimed)?;
        self.grant = Some(grant.clone());
        let writer = self.lock_writer().await?;
        self.writer = Some(writer);
        drop((turn, heir));
        tokio::select! {
            biased;
            () = shared.store.fenced(&grant) => return Err(Error::TakenOver),
            () = std::future::ready(()) => {}
        }
        self.settle().await?;
        Ok(true)
    }

    /// Decides, as the writer, what the session goes on with.
    async fn settle(&mut self) -> Result<(), Error> {
        let (Some(waiting), Some(mut writer)) = (self.waiting.take(), self.writer.take()) else {
            return Ok(());
        };
        let settled = self.settle_with(&waiting, &mut writer).await;
        (self.waiting, self.writer) = (Some(waiting), Some(writer));
        settled
    }

    async fn settle_with(&mut self, waiting: &Waiting, writer: &mut Writer) -> Result<(), Error> {
        let (parked, came) = (writer.parked.take(), writer.came.take());
        let Some(source) = &waiting.source else {
            return match parked {
                Some(run) => self.complete(*run, writer).await,
                None => Ok(()),
            };
        };
        let succession = &self.live.succession;
        let verdict = succession.trail(|trail| trail.judge(&waiting.head));
        let max_gap_ms = self.rules.max_gap.as_millis() as i64;
        let (kind, shift) = match verdict {
            Verdict::Repeats(shift) => ("repeated", Some(shift)),
            Verdict::Follows { shift, gap_ms } if gap_ms <= max_gap_ms => ("followed", Some(shift)),
            Verdict::Follows { .. } => ("away", None),
            Verdict::Unrelated => ("new", None),
        };
        let came = match parked {
            Some(mut run) => {
                if let Some(shift) = shift
                    && self.allows(source).is_ok()
                {
                    self.known = succession.trail(|trail| {
                        let known = trail.known(shift);
                        trail.adopt(&waiting.head, shift);
                        known
                    });
                    run.adopt(self.lines.clone(), shift);
                    self.counted.repairs = run.repair.repairs();
                    self.epoch = run.epoch;
                    self.run = Some(*run);
                    self.adopted = true;
                    self.told(kind);
                    return Ok(());
                }
                self.complete(*run, writer).await?;
                writer.came.take()
            }
            None => came,
        };
        self.follow = match (verdict, came) {
            (Verdict::Repeats(shift) | Verdict::Follows { shift, gap_ms: 0 }, Some(left)) => {
                Follow::Left(left.shifted(shift.offset_ms))
            }
            // It was away: it goes on where its clock says.
            (Verdict::Follows { shift, .. }, _) => {
                let place = succession.trail(|trail| trail.place(shift, source.first_ms));
                place.map_or(Follow::Clock, |place| Follow::At((source.first_ms as u32, place)))
            }
            _ => Follow::Clock,
        };
        self.told(kind);
        Ok(())
    }

    fn told(&self, kind: &'static str) {
        self.shared.metrics.successions.get_or_create(&Kind { kind }).inc();
        info!(follows = kind, run = self.adopted, "the session goes on from the one before");
    }
}

impl Waiting {
    pub(super) fn push(&mut self, event: feed::Event, live: &Live) {
        let mut print = |video, frame: &Frame| {
            if !self.whole {
                self.head.push(video, live.succession.identify(frame).print(0), frame.data.len());
            }
        };
        match &event {
            feed::Event::Start(source) if self.source.is_none() => {
                self.head.start(Setup::from(source));
                self.source = Some(source.clone());
            }
            feed::Event::Start(_) => {}
            feed::Event::Video(frame) | feed::Event::Again(frame) => print(true, frame),
            feed::Event::Audio(frame) => print(false, frame),
            feed::Event::Data(_) => {}
            feed::Event::Restart(_) => self.whole = true,
        }
        self.events.push_back(event);
    }
}
