//! One broadcaster's connection from accept to end: moves bytes between its socket, its [`Session`] and its [`Relay`].

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use media::flv::Tag;
use net::Current;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{Instrument, Span, error, info, info_span, warn};

use crate::health::{Board, Entry, Health};
use crate::metrics::{Metrics, Reason, Why};
use crate::relay::REJECTED;
use crate::relay::client::{Progress, Relay, Relays};
use crate::relay::handover::Outcome;
use crate::rtmp::rate::RateLimit;
use crate::rtmp::session::{Event, Session};
use crate::stream_key::StreamKey;
use crate::{Config, Error, Fault};

/// One read: a keyframe takes a few of them, an idle connection holds one.
const READ_BYTES: usize = 16 << 10;

/// Answers that wait for a peer that does not read: a whole session has less than 8 KiB of them.
const MAX_UNSENT_BYTES: usize = 64 << 10;

/// Part of `idle_timeout` after which a silent broadcaster is pinged: small, so that the network has most of the time.
const PING_AFTER: f32 = 0.2;

/// A broadcaster that sends no media while its host is there is let be for so long: ffmpeg waits ten seconds for a track
/// that has dried up. After that its encoder has forgotten it.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How often operators see figures of a broadcast.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// To flush the last answer and see the peer close: then the answer has surely arrived.
const LINGER: Duration = Duration::from_secs(2);

/// What all connections share.
pub struct Context {
    /// The settings for connections that come now.
    pub config: Current<Config>,
    /// What the listeners let in.
    pub limits: Current<net::Limits>,
    /// What tokens are checked with.
    pub keys: Arc<cluster::token::Keys>,
    /// Who hears of bad tokens.
    pub guard: net::Guard,
    /// The way to the origins.
    pub relays: Relays,
    /// Where operators see how broadcasts stand.
    pub board: Board,
    /// Where to count.
    pub metrics: Metrics,
}

/// Serves one broadcaster until it ends, or until `shutdown` and the drain time have passed. If dropped, the connection
/// is cut, and its relay with it.
pub async fn run(stream: net::Stream, peer: SocketAddr, context: Arc<Context>, shutdown: CancellationToken) {
    let _open = Counted::new(&context.metrics.connections);
    let id = crate::random::<8>().map(|byte| format!("{byte:02x}")).concat();
    let span = info_span!("session", session = id, stream = tracing::field::Empty);
    // The future is large (TLS, handshake, buffers): on the heap it costs a connection once, not each of its callers.
    Box::pin(Connection::new(stream, peer, id, context, shutdown).run()).instrument(span).await;
}

struct Connection {
    reader: ReadHalf<net::Stream>,
    writer: WriteHalf<net::Stream>,
    /// TLS may hold bytes back that were written.
    unflushed: bool,
    tls: bool,
    peer: SocketAddr,
    id: String,
    context: Arc<Context>,
    /// The settings when it came.
    config: Arc<Config>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Goes off no later than the deadline, which each frame moves on.
    timer: Pin<Box<Sleep>>,
    session: Session,
    began: Instant,
    last_bytes: Instant,
    last_tag: Instant,
    /// When the last ping was sent.
    last_ping: Instant,
    rate: RateLimit,
    /// When the drain time ends; set by shutdown.
    drained: Option<Instant>,
    publishing: Option<Publishing>,
    received_bytes: u64,
    received_tags: u64,
}

/// From the publish command on.
struct Publishing {
    relay: Relay,
    watched: Watched,
    /// Since an origin took the stream.
    since: Option<Instant>,
    _live: Option<Counted>,
}

/// Shows the operators how the broadcast stands, for as long as it lives.
struct Watched {
    board: Board,
    session: String,
    stream: String,
    peer: String,
    health: Health,
    shown: Instant,
}

impl Watched {
    fn push(&mut self, tag: &Tag, relay: &Relay) {
        let now = Instant::now();
        self.health.push(now.into_std(), tag);
        if now - self.shown >= SHOW_EVERY {
            self.shown = now;
            let report = self.health.report(now.into_std(), relay.unpublished_bytes());
            let entry = Entry { stream: self.stream.clone(), peer: self.peer.clone(), report };
            self.board.show(&self.session, entry);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.board.remove(&self.session);
    }
}

/// Why the broadcaster's part is over.
enum End {
    /// In an orderly way, or by closing the connection while it published.
    Broadcaster,
    /// The relay is over already.
    Relay(Outcome),
    Error(Error),
}

impl Connection {
    fn new(
        stream: net::Stream,
        peer: SocketAddr,
        id: String,
        context: Arc<Context>,
        shutdown: CancellationToken,
    ) -> Connection {
        let config = context.config.get();
        let session = Session::new(config.max_message.as_u64() as u32);
        let now = Instant::now();
        let rate = RateLimit::new(config.max_bitrate_bps, now.into_std());
        let tls = stream.is_tls();
        if let Err(error) = notice_absence(&stream, config.idle_timeout.mul_f32(1.0 - PING_AFTER)) {
            warn!(%error, "a network that vanishes will be noticed late");
        }
        let (reader, writer) = tokio::io::split(stream);
        Connection {
            reader,
            writer,
            unflushed: false,
            tls,
            peer,
            id,
            context,
            config,
            shutdown: Box::pin(shutdown.cancelled_owned()),
            timer: Box::pin(tokio::time::sleep_until(now)),
            session,
            began: now,
            last_bytes: now,
            last_tag: now,
            last_ping: now,
            rate,
            drained: None,
            publishing: None,
            received_bytes: 0,
            received_tags: 0,
        }
    }

    async fn run(mut self) {
        let end = self.serve().await;
        let answer = match &end {
            End::Broadcaster => Ok(()),
            End::Relay(Outcome::Ended) => Ok(()),
            End::Relay(Outcome::Refused { code, reason }) => self.session.refuse(code, reason),
            End::Relay(Outcome::Lost { reason }) => self.session.refuse(REJECTED, reason),
            // The session has answered what it found wrong itself.
            End::Error(Error::Token { problem, .. }) => self.session.refuse(REJECTED, &problem.to_string()),
            End::Error(error @ (Error::Pause(_) | Error::TooFast(_) | Error::Shutdown))
                if self.publishing.is_some() =>
            {
                self.session.refuse(REJECTED, &error.to_string())
            }
            End::Error(_) => Ok(()),
        };
        if let Err(error) = answer {
            error!(%error, "cannot answer");
        }
        let broken = matches!(end, End::Error(Error::Io(_) | Error::Vanished(_) | Error::NotReading(_)));
        let goodbye = async {
            // A broken connection has nobody to tell; who does not listen is cut off.
            if !broken {
                let first = matches!(end, End::Broadcaster);
                say_goodbye(self.reader, self.writer, self.session.output(), first).await;
            }
        };
        let ((), outcome) = tokio::join!(goodbye, finish_relay(&end, self.publishing.as_mut()));
        self.context.metrics.clock_wraps.inc_by(self.session.clock_wraps());
        let account = Account {
            peer: self.peer,
            metrics: &self.context.metrics,
            publishing: self.publishing.as_ref(),
            received_bytes: self.received_bytes,
            received_tags: self.received_tags,
        };
        account.report(&end, outcome);
    }

    /// Until the broadcaster ends, fails, or its relay is over.
    async fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.drain_session() {
                return end;
            }
            let unsent = self.session.output().len();
            if unsent > MAX_UNSENT_BYTES {
                return End::Error(Error::NotReading(unsent));
            }
            match self.wait().await {
                Ok(Happened::Read(0)) if self.publishing.is_some() => return End::Broadcaster,
                Ok(Happened::Read(0)) => return End::Error(Error::Early),
                Ok(Happened::Read(n)) => {
                    self.last_bytes = Instant::now();
                    self.received_bytes += n as u64;
                    self.context.metrics.received_bytes.inc_by(n as u64);
                    if let Err(problem) = self.rate.push(self.last_bytes.into_std(), n) {
                        return End::Error(Error::TooFast(problem));
                    }
                }
                Ok(Happened::Silence) => {
                    self.last_ping = Instant::now();
                    if let Err(error) = self.session.ping(self.began.elapsed().as_millis() as u32) {
                        return End::Error(error);
                    }
                }
                Ok(Happened::Written) => self.unflushed = true,
                Ok(Happened::Flushed) => self.unflushed = false,
                Ok(Happened::Progress(Progress::Started)) => {
                    if let Err(error) = self.started() {
                        return End::Error(error);
                    }
                }
                Ok(Happened::Progress(Progress::Over(outcome))) => return End::Relay(outcome),
                Ok(Happened::Early) => {}
                Ok(Happened::Shutdown) => {
                    self.drained = Some(Instant::now() + self.config.drain);
                    // Who does not understand it goes on until then.
                    if self.publishing.is_some()
                        && let Err(error) = self.session.request_reconnect(None, "this server goes away")
                    {
                        return End::Error(error);
                    }
                }
                Err(error) => return End::Error(error),
            }
        }
    }

    /// Waits for one thing. Reading never waits for the relay: what comes goes into its buffer.
    async fn wait(&mut self) -> Result<Happened, Error> {
        let (deadline, late) = self.deadline();
        if deadline < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(deadline);
        }
        let (input, output) = self.session.buffers();
        input.reserve(READ_BYTES);
        let (writing, flushing) = (!output.is_empty(), self.unflushed);
        let send = async {
            if writing {
                self.writer.write_buf(output).await.map(|_| Happened::Written)
            } else {
                self.writer.flush().await.map(|()| Happened::Flushed)
            }
        };
        let relay = async {
            match &mut self.publishing {
                Some(publishing) => publishing.relay.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.as_mut(), if self.drained.is_none() => Ok(Happened::Shutdown),
            progress = relay => Ok(Happened::Progress(progress)),
            read = self.reader.read_buf(input) => match read {
                // Many encoders close the connection without closing TLS first.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Happened::Read(0)),
                // What the system makes of a ping that nobody acknowledges.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
                    ) =>
                {
                    Err(Error::Vanished(self.config.idle_timeout))
                }
                read => Ok(Happened::Read(read?)),
            },
            sent = send, if writing || flushing => sent.map_err(Error::Io),
            () = self.timer.as_mut() => match late {
                _ if Instant::now() < deadline => Ok(Happened::Early),
                Some(late) => Err(late),
                None => Ok(Happened::Silence),
            },
        }
    }

    /// When something must have happened, and what is wrong if it has not; `None` means that it is time to ask.
    fn deadline(&self) -> (Instant, Option<Error>) {
        let config = &self.config;
        let silence = match self.publishing {
            None => {
                let error = Error::HandshakeTimeout(config.handshake_timeout);
                (self.began + config.handshake_timeout, Some(error))
            }
            // Its host has the rest of the time to acknowledge the ping.
            Some(_) => {
                let quiet = config.idle_timeout.mul_f32(PING_AFTER);
                (self.last_bytes.max(self.last_ping) + quiet, None)
            }
        };
        let pause = match self.publishing {
            Some(_) => (self.last_tag + MAX_PAUSE, Some(Error::Pause(MAX_PAUSE))),
            None => (silence.0, None),
        };
        let silence = if pause.0 < silence.0 { pause } else { silence };
        match self.drained {
            // Who does not publish yet may as well connect elsewhere.
            Some(_) if self.publishing.is_none() => (Instant::now(), Some(Error::Shutdown)),
            Some(drained) if drained < silence.0 => (drained, Some(Error::Shutdown)),
            _ => silence,
        }
    }

    fn drain_session(&mut self) -> Result<(), End> {
        while let Some(event) = self.session.poll() {
            match event {
                Event::Publish(key) => self.publish(key).map_err(End::Error)?,
                Event::Tag(tag) => {
                    self.received_tags += 1;
                    self.last_tag = self.last_bytes;
                    self.context.metrics.received_tags.inc();
                    if let Some(publishing) = &mut self.publishing {
                        publishing.watched.push(&tag, &publishing.relay);
                        publishing.relay.push(tag);
                    }
                }
                Event::Ended => return Err(End::Broadcaster),
                Event::Failed(error) => return Err(End::Error(error)),
            }
        }
        Ok(())
    }

    fn publish(&mut self, key: StreamKey) -> Result<(), Error> {
        Span::current().record("stream", key.stream.as_str());
        let verified = self.context.keys.verify(&key.token, key.stream.as_str(), SystemTime::now());
        let claims = verified.map_err(|problem| {
            self.context.guard.offence(self.peer);
            Error::Token { stream: key.stream.clone(), problem }
        })?;
        if let Some(limit) = claims.max_bitrate.filter(|limit| *limit < self.config.max_bitrate_bps) {
            self.rate = RateLimit::new(limit, Instant::now().into_std());
        }
        let relay = self.context.relays.open(&key, &self.id);
        self.last_tag = Instant::now();
        let watched = Watched {
            board: self.context.board.clone(),
            session: self.id.clone(),
            stream: key.stream.to_string(),
            peer: self.peer.to_string(),
            health: Health::new(Instant::now().into_std()),
            shown: Instant::now(),
        };
        self.publishing = Some(Publishing { relay, watched, since: None, _live: None });
        Ok(())
    }

    fn started(&mut self) -> Result<(), Error> {
        let Some(publishing) = &mut self.publishing else {
            return Ok(());
        };
        publishing.since = Some(Instant::now());
        publishing._live = Some(Counted::new(&self.context.metrics.sessions));
        info!(peer = %self.peer, tls = self.tls, "broadcast begins");
        self.session.accept()
    }
}

/// What was sent and is not acknowledged by the peer's host within `timeout` ends the connection (RFC 5482): that is what
/// tells an encoder that pauses, or does not read, from one whose network is gone.
fn notice_absence(stream: &net::Stream, timeout: Duration) -> std::io::Result<()> {
    let socket = match stream {
        net::Stream::Plain(socket) => socket,
        net::Stream::Tls(stream) => stream.get_ref().0,
    };
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(timeout))
}

/// Sends what waits, then lets the peer close: closing while its bytes are on their way would make the system reset the
/// connection, and the answer with it. A peer that has ended its broadcast closes `first`: some (gstreamer's rtmp2sink)
/// have more to say behind that, and take our end for a failure.
async fn say_goodbye(
    mut reader: ReadHalf<net::Stream>,
    mut writer: WriteHalf<net::Stream>,
    output: &mut BytesMut,
    first: bool,
) {
    let mut ignored = vec![0; READ_BYTES];
    let mut closes = async || while reader.read(&mut ignored).await.is_ok_and(|n| n > 0) {};
    let flush = async {
        writer.write_all_buf(output).await?;
        writer.flush().await
    };
    let flushed = tokio::time::timeout(LINGER, flush).await;
    if first && matches!(flushed, Ok(Ok(()))) {
        let _ = tokio::time::timeout(LINGER, closes()).await;
    }
    let _ = tokio::time::timeout(LINGER, async {
        writer.shutdown().await?;
        closes().await;
        std::io::Result::Ok(())
    })
    .await;
}

/// All that the broadcaster sent is still owed to the viewers.
async fn finish_relay(end: &End, publishing: Option<&mut Publishing>) -> Outcome {
    let publishing = match (end, publishing) {
        (End::Relay(outcome), _) => return outcome.clone(),
        (_, None) => return Outcome::Ended,
        (_, Some(publishing)) => publishing,
    };
    publishing.relay.finish();
    loop {
        if let Progress::Over(outcome) = publishing.relay.next().await {
            return outcome;
        }
    }
}

/// What is said about a connection at its end.
struct Account<'a> {
    peer: SocketAddr,
    metrics: &'a Metrics,
    publishing: Option<&'a Publishing>,
    received_bytes: u64,
    received_tags: u64,
}

impl Account<'_> {
    /// One line and one count for each connection, whatever became of it.
    fn report(&self, end: &End, outcome: Outcome) {
        let (peer, metrics) = (self.peer, self.metrics);
        let relay_problem = match outcome {
            Outcome::Ended => None,
            Outcome::Refused { reason, .. } => Some(Error::Refused(reason)),
            Outcome::Lost { reason } => Some(Error::NoOrigin(reason)),
        };
        let problem = match end {
            End::Error(error) => Some(error),
            End::Broadcaster | End::Relay(_) => relay_problem.as_ref(),
        };
        let reason = Reason { reason: problem.map_or(Why::Closed, Why::of) };
        let why = problem.map_or_else(|| "broadcaster ended".to_string(), ToString::to_string);
        let live = self.publishing.and_then(|publishing| Some((publishing, publishing.since?)));
        let Some((publishing, since)) = live else {
            metrics.refused.get_or_create(&reason).inc();
            return match problem.map(Error::fault) {
                Some(Fault::Upstream) => warn!(%peer, why, "broadcaster refused"),
                _ => info!(%peer, why, "broadcaster refused"),
            };
        };
        metrics.sessions_ended.get_or_create(&reason).inc();
        if let (End::Error(_), Some(lost)) = (end, &relay_problem) {
            warn!(why = %lost, "the end of the broadcast is lost");
        }
        info!(
            %peer,
            why,
            seconds = since.elapsed().as_secs_f64(),
            bytes = self.received_bytes,
            tags = self.received_tags,
            dropped_gops = publishing.relay.dropped_gops(),
            replays = publishing.relay.replays(),
            "broadcast ends"
        );
    }
}

enum Happened {
    Read(usize),
    Written,
    Flushed,
    Progress(Progress),
    /// The timer went off before anything is due.
    Early,
    /// Nothing came for so long that it is time to ask for a sign of life.
    Silence,
    Shutdown,
}

/// Adds one to a gauge for as long as it lives, also through a panic.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
