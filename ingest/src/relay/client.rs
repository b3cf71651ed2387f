//! The relay's sockets: one HTTP/2 connection per attempt, driven by [`Handover`].

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::Node;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use media::StreamName;
use media::flv::Tag;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::answer::{Answer, AnswerReader};
use super::body::{self, PIECE_BYTES, Piece, RelayBody};
use super::budget::Budget;
use super::handover::{Action, Handover, Outcome};
use super::passed_over::PassedOver;
use crate::metrics::Metrics;
use crate::{config, stream_key::StreamKey};

/// A dead peer is noticed after this and as much again, also when there is no media to send.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Of a refusal's body only the first line is passed on.
const MAX_REFUSAL_BYTES: usize = 1024;

/// While a relay goes on, changes among the origins are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Origins that the next one is told to be lost.
const MAX_LOST: usize = 16;

/// Reports of one attempt on their way to the session; the reader waits when it is full.
const REPORTS: usize = 16;

/// What the relays of all sessions share.
#[derive(Clone)]
pub struct Relays {
    rules: config::Relay,
    origins: cluster::Ring,
    tls: Arc<rustls::ClientConfig>,
    metrics: Metrics,
    budget: Arc<Budget>,
    passed_over: Arc<Mutex<PassedOver>>,
}

/// One session's relay. Dropping it cuts the connection without ending the body.
pub struct Relay {
    handover: Handover,
    candidates: Candidates,
    /// The origins that failed since one took the stream.
    lost: Vec<String>,
    link: Option<Link>,
    request: Arc<RequestHead>,
    shared: Relays,
    counted: Counted,
}

/// The origins that a session may go to.
struct Candidates {
    /// By the number of the candidate. Those that have left stay.
    nodes: Vec<Arc<Node>>,
    /// The version of the ring that was looked at, and when.
    looked: (u64, Instant),
}

/// What [`Relay::next`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// An origin takes the stream: the broadcaster may be told. Comes once.
    Started,
    /// The relay is over. Nothing follows.
    Over(Outcome),
}

/// What is in the metrics already.
#[derive(Default)]
struct Counted {
    dropped_gops: u64,
    replays: u64,
}

/// What all attempts of a session say.
struct RequestHead {
    stream: StreamName,
    authorization: HeaderValue,
    session: HeaderValue,
    tls: Arc<rustls::ClientConfig>,
}

impl Relays {
    /// `tls` shows this node's certificate; ALPN is set here.
    pub fn new(
        rules: config::Relay,
        origins: cluster::Ring,
        tls: &rustls::ClientConfig,
        metrics: Metrics,
    ) -> Relays {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let budget = Arc::new(Budget::new(rules.total_buffer.as_u64(), metrics.buffered_bytes.clone()));
        Relays { rules, origins, tls: Arc::new(tls), metrics, budget, passed_over: Arc::default() }
    }

    fn passed_over(&self) -> MutexGuard<'_, PassedOver> {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to relay the stream of `key` for the session named `session`.
    pub fn open(&self, key: &StreamKey, session: &str) -> Relay {
        let looked = (self.origins.version(), now());
        let nodes = self.passed_over().order(now(), self.origins.placement(key.stream.as_str()));
        let request = RequestHead {
            stream: key.stream.clone(),
            authorization: secret(&format!("Bearer {}", key.token)),
            session: secret(session),
            tls: self.tls.clone(),
        };
        let seed = u64::from_le_bytes(crate::random());
        let handover = Handover::new(self.rules.clone(), nodes.len(), self.budget.clone(), seed, now());
        Relay {
            handover,
            candidates: Candidates { nodes, looked },
            lost: Vec::new(),
            link: None,
            request: Arc::new(request),
            shared: self.clone(),
            counted: Counted::default(),
        }
    }
}

impl Relay {
    /// A tag from the broadcaster.
    pub fn push(&mut self, tag: Tag) {
        if now().saturating_duration_since(self.candidates.looked.1) >= LOOK_EVERY {
            self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
        }
        self.handover.push(now(), unix_ms(), tag);
        let dropped = self.handover.replay().dropped_gops();
        if dropped > self.counted.dropped_gops {
            self.shared.metrics.dropped_gops.inc_by(dropped - self.counted.dropped_gops);
            if self.counted.dropped_gops == 0 {
                warn!(
                    buffer = %self.shared.rules.buffer,
                    last_error = self.handover.last_error(),
                    "replay buffer is full: its oldest media is dropped"
                );
            }
            self.counted.dropped_gops = dropped;
        }
    }

    /// The broadcaster has ended; [`Relay::next`] goes on until all is published.
    pub fn finish(&mut self) {
        self.handover.finish(now());
    }

    /// Drives the relay until there is something to report. May be dropped midway and called again.
    pub async fn next(&mut self) -> Progress {
        loop {
            while let Some(action) = self.handover.poll() {
                match action {
                    Action::Open { candidate, received_ms, next } => self.open(candidate, received_ms, next),
                    Action::Abandon { failed } => {
                        if let Some(link) = self.link.take().filter(|_| failed) {
                            self.shared.passed_over().handle_failure(now(), &link.origin);
                            if self.lost.len() < MAX_LOST && !self.lost.contains(&link.origin) {
                                self.lost.push(link.origin);
                            }
                        }
                        self.shared.metrics.abandoned_attempts.inc();
                        debug!(error = self.handover.last_error(), "relay attempt abandoned");
                    }
                    Action::Started => return Progress::Started,
                    Action::Over(outcome) => {
                        self.link = None;
                        return Progress::Over(outcome);
                    }
                }
            }
            self.step().await;
        }
    }

    /// How often the stream was begun anew, at the next origin or at the same, after one had taken it.
    pub fn replays(&self) -> u64 {
        self.handover.replays()
    }

    /// Bytes that no origin has published yet.
    pub fn unpublished_bytes(&self) -> u64 {
        self.handover.replay().unacknowledged_bytes() as u64
    }

    /// Groups of pictures lost to the bound of the buffer.
    pub fn dropped_gops(&self) -> u64 {
        self.handover.replay().dropped_gops()
    }

    /// Waits for one thing to happen and tells the rules. Each wait may be dropped without loss.
    async fn step(&mut self) {
        let deadline = self.handover.poll_timeout();
        let (has_unsent, complete) = (self.handover.has_unsent(), self.handover.body_complete());
        let timeout = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let Some(link) = &mut self.link else {
            timeout.await;
            self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
            return self.handover.handle_timeout(now());
        };
        tokio::select! {
            biased;
            report = link.reports.recv() => match report {
                Some(Report::Status { status, text, owner }) => {
                    if status == 200 {
                        self.shared.passed_over().handle_answer(&link.origin);
                        self.lost.clear();
                    } else {
                        self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
                    }
                    let owner = owner.and_then(|owner| self.candidates.nodes.iter().position(|node| node.name == owner));
                    self.handover.handle_status(now(), status, &text, owner);
                    let replays = self.handover.replays();
                    self.shared.metrics.replays.inc_by(replays - self.counted.replays);
                    self.counted.replays = replays;
                }
                Some(Report::Answer(answer)) => {
                    if let Answer::Published { .. } = answer {
                        self.shared.metrics.acknowledgements.inc();
                    }
                    self.handover.handle_answer(now(), answer);
                }
                Some(Report::Lost { reason, torn }) => {
                    self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
                    self.handover.handle_lost(now(), reason, torn);
                }
                None => self.handover.handle_lost(now(), "relay task ended".into(), true),
            },
            room = link.body.reserve(), if (has_unsent || complete) && !link.ended => match room {
                Ok(room) if complete => {
                    room.send(Piece::End);
                    link.ended = true;
                }
                Ok(room) => {
                    if let Some(bytes) = self.handover.take(PIECE_BYTES) {
                        self.shared.metrics.relayed_bytes.inc_by(bytes.len() as u64);
                        room.send(Piece::Data(bytes));
                    }
                }
                // The request is gone; its report says why.
                Err(_) => link.ended = true,
            },
            () = timeout => {
                self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
                self.handover.handle_timeout(now());
            }
        }
    }

    fn open(&mut self, candidate: usize, received_ms: Option<u64>, next: Option<Arc<str>>) {
        let node = self.candidates.nodes[candidate].clone();
        if self.handover.has_started() {
            let error = self.handover.last_error();
            info!(origin = node.name, acknowledged = next.is_some(), error, "relaying once more");
        } else {
            debug!(origin = node.name, "relaying");
        }
        // Before the first tag has come, now is the best that can be said.
        let received_ms = received_ms.unwrap_or_else(unix_ms);
        // Also if it was given up itself before: then it is asked once more.
        let lost = self.lost.iter().filter(|lost| **lost != node.name).cloned().collect::<Vec<_>>().join(",");
        self.link = Some(Link::open(node, self.request.clone(), Says { received_ms, next, lost }));
    }
}

impl Candidates {
    /// Origins may have come, gone or moved since, and another may have the stream.
    fn look(&mut self, relays: &Relays, stream: &StreamName, handover: &mut Handover) {
        let version = relays.origins.version();
        if std::mem::replace(&mut self.looked, (version, now())).0 == version {
            return;
        }
        let order = relays.passed_over().order(now(), relays.origins.placement(stream.as_str()));
        let numbers =
            order.into_iter().map(|node| match self.nodes.iter().position(|known| known.name == node.name) {
                Some(number) => {
                    self.nodes[number] = node;
                    number
                }
                None => {
                    self.nodes.push(node);
                    self.nodes.len() - 1
                }
            });
        handover.set_candidates(numbers.collect());
    }
}

/// One attempt: a task that owns the connection, and the two channels to it.
struct Link {
    origin: String,

    body: mpsc::Sender<Piece>,
    ended: bool,
    reports: mpsc::Receiver<Report>,
    /// Aborted when dropped.
    _task: JoinSet<()>,
}

/// What one attempt says.
struct Says {
    received_ms: u64,
    next: Option<Arc<str>>,
    /// Names of origins that failed.
    lost: String,
}

enum Report {
    Status { status: u16, text: String, owner: Option<String> },
    Answer(Answer),
    Lost { reason: String, torn: bool },
}

impl Link {
    fn open(node: Arc<Node>, head: Arc<RequestHead>, says: Says) -> Link {
        let (body, request_body) = body::channel();
        let (reporter, reports) = mpsc::channel(REPORTS);
        let mut task = JoinSet::new();
        let origin = node.name.clone();
        task.spawn(async move {
            let ended = converse(&node, &head, says, request_body, &reporter).await;
            let (reason, torn) = match ended {
                Ok(()) => ("origin ended its answer".into(), false),
                Err(error) => (net::chain(error.as_ref()), true),
            };
            // The receiver may be gone: then nobody asks.
            let reason = format!("{} ({}): {reason}", node.name, node.address);
            let _ = reporter.send(Report::Lost { reason, torn }).await;
        });
        Link { origin, body, ended: false, reports, _task: task }
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

/// One request from connecting to the end of its answer.
async fn converse(
    node: &Node,
    head: &RequestHead,
    says: Says,
    request_body: RelayBody,
    reporter: &mpsc::Sender<Report>,
) -> Result<(), BoxError> {
    let socket = TcpStream::connect(&node.address).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(host(&node.address).to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(head.tls.clone()).connect(name, socket).await?;
    let tasks = Tasks::default();
    // However this function ends, also when it is dropped: nothing of the connection outlives it.
    let _guard = tasks.stop.clone().drop_guard();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(tasks)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_send_buf_size(4 * PIECE_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let conversation = async {
        let request = head.request(node, &says, request_body)?;
        let (parts, mut answer) = sender.send_request(request).await?.into_parts();
        let status = parts.status.as_u16();
        let text = if status == 200 { String::new() } else { first_line(&mut answer).await };
        let owner = parts.headers.get("rooftop-owner").and_then(|name| name.to_str().ok()).map(str::to_owned);
        reporter.send(Report::Status { status, text, owner }).await?;
        let mut reader = AnswerReader::default();
        while let Some(frame) = answer.frame().await {
            if let Some(bytes) = frame?.data_ref() {
                reader.push(bytes)?;
            }
            while let Some(line) = reader.poll() {
                reporter.send(Report::Answer(line)).await?;
            }
        }
        Ok(())
    };
    let mut connection = std::pin::pin!(connection);
    let mut conversation = std::pin::pin!(conversation);
    tokio::select! {
        ended = &mut conversation => ended,
        // The connection ends first only when it broke: the conversation then says how, and cannot hang.
        broken = &mut connection => {
            let said = conversation.await;
            broken.map_err(BoxError::from).and(said)
        }
    }
}

impl RequestHead {
    fn request(&self, node: &Node, says: &Says, body: RelayBody) -> Result<Request<RelayBody>, BoxError> {
        let path = format!("/relay/{}", self.stream);
        let uri =
            Uri::builder().scheme("https").authority(node.address.as_str()).path_and_query(path).build()?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, "video/x-flv")
            .header("rooftop-session", &self.session)
            .header("rooftop-received", says.received_ms);
        if let Some(next) = &says.next {
            request = request.header("rooftop-continue", &**next);
        }
        if !says.lost.is_empty() {
            request = request.header("rooftop-lost", &says.lost);
        }
        Ok(request.body(body)?)
    }
}

/// Where hyper starts the tasks of a connection (its frames, the request body): all stop together.
#[derive(Clone, Default)]
struct Tasks {
    running: TaskTracker,
    stop: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let stop = self.stop.clone();
        self.running.spawn(async move { stop.run_until_cancelled(future).await });
    }
}

async fn first_line(body: &mut Incoming) -> String {
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[], |bytes| bytes));
        if text.len() > MAX_REFUSAL_BYTES || text.contains(&b'\n') {
            break;
        }
    }
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&line[..line.len().min(MAX_REFUSAL_BYTES)]);
    line.chars().filter(|character| !character.is_control()).collect()
}

/// `host` of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn secret(text: &str) -> HeaderValue {
    // A token that cannot stand in a header cannot be valid either: the origin refuses the empty one.
    let mut value = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_addresses() {
        for (address, expected) in [("dc1:9000", "dc1"), ("127.0.0.1:1", "127.0.0.1"), ("[::1]:1", "::1")] {
            assert_eq!(host(address), expected);
        }
    }
}
