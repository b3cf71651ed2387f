//! The relay's requests: one per attempt, over a connection that is shared with others, driven by [`Handover`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cluster::Node;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Uri, header};
use media::StreamName;
use media::flv::Tag;
use net::Current;
use net::trace::{Kind, Span, Tracer};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::answer::{Answer, AnswerReader};
use super::budget::Budget;
use super::handover::{Action, Handover, Outcome};
use super::passed_over::PassedOver;
use super::uplink::{BoxError, PIECE_BYTES, Uplink, Uplinks, room};
use crate::metrics::Metrics;
use crate::{config, stream_key::StreamKey};

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
    rules: Current<config::Relay>,
    origins: cluster::Ring,
    tracer: Tracer,
    uplinks: Arc<Uplinks>,
    metrics: Metrics,
    budget: Arc<Budget>,
    passed_over: Arc<Mutex<PassedOver>>,
}

/// One session's relay. Dropping it resets the request without ending its body.
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
    /// The session's, which ends with the last attempt.
    span: Span,
}

impl Relays {
    /// `tls` shows this node's certificate; ALPN is set here.
    pub fn new(
        rules: config::Relay,
        origins: cluster::Ring,
        tls: &rustls::ClientConfig,
        tracer: Tracer,
        metrics: Metrics,
    ) -> Relays {
        let budget = Arc::new(Budget::new(rules.total_buffer.as_u64(), metrics.buffered_bytes.clone()));
        let uplinks = Arc::new(Uplinks::new(&rules, tls));
        Relays { rules: rules.into(), origins, tracer, uplinks, metrics, budget, passed_over: Arc::default() }
    }

    /// Other rules, for sessions that begin from now on, but for what all of them share.
    pub fn set_rules(&self, rules: config::Relay) {
        self.rules.set(rules);
    }

    fn passed_over(&self) -> MutexGuard<'_, PassedOver> {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to relay the stream of `key` for the session named `session`.
    pub fn open(&self, key: &StreamKey, session: &str) -> Relay {
        let looked = (self.origins.version(), now());
        let nodes = self.passed_over().order(now(), self.origins.placement(key.stream.as_str()));
        let mut span = self.tracer.session("broadcast");
        if let Some(span) = span.sampled() {
            span.set("rooftop.stream", key.stream.as_str()).set("rooftop.session", session);
        }
        let request = RequestHead {
            stream: key.stream.clone(),
            authorization: secret(&format!("Bearer {}", key.token)),
            session: secret(session),
            span,
        };
        let seed = u64::from_le_bytes(crate::random());
        let handover =
            Handover::new((*self.rules.get()).clone(), nodes.len(), self.budget.clone(), seed, now());
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
                    buffer = %self.shared.rules.get().buffer,
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
                            // One that answers is sound, whatever it says.
                            if !link.declined {
                                link.uplink.retire();
                            }
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
        let wants_room = link.body.is_some() && (has_unsent || complete);
        let has_room = async {
            match &mut link.body {
                Some(body) => room(body).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            report = link.reports.recv() => match report {
                Some(Report::Sent(body)) => link.body = Some(body),
                Some(Report::Status { status, text, owner }) => {
                    link.declined = status != 200;
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
            room = has_room, if wants_room => self.send(room.is_some(), complete),
            () = timeout => {
                self.candidates.look(&self.shared, &self.request.stream, &mut self.handover);
                self.handover.handle_timeout(now());
            }
        }
    }

    /// The next piece of the body, or its end.
    fn send(&mut self, has_room: bool, complete: bool) {
        let Some(link) = &mut self.link else { return };
        let Some(body) = link.body.as_mut().filter(|_| has_room) else {
            // The request is gone: its report says why.
            link.body = None;
            return;
        };
        if complete {
            // Whether it could be said or not: the origin's answer tells the rest.
            let _ = body.send_data(Bytes::new(), true);
            link.body = None;
        } else if let Some(piece) = self.handover.take(PIECE_BYTES) {
            self.shared.metrics.relayed_bytes.inc_by(piece.len() as u64);
            if body.send_data(piece, false).is_err() {
                link.body = None;
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
        let says = Says { received_ms, next, lost };
        self.link = Some(Link::open(&self.shared.uplinks, node, self.request.clone(), says));
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

/// One attempt: the request's body, and a task that reads the answer.
struct Link {
    origin: String,
    uplink: Arc<Uplink>,
    /// Once the request is sent, until its body has ended. Dropped before that it resets the request.
    body: Option<SendStream<Bytes>>,
    /// The origin answered, and would not have the stream.
    declined: bool,
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
    Sent(SendStream<Bytes>),
    Status { status: u16, text: String, owner: Option<String> },
    Answer(Answer),
    Lost { reason: String, torn: bool },
}

impl Link {
    fn open(uplinks: &Arc<Uplinks>, node: Arc<Node>, head: Arc<RequestHead>, says: Says) -> Link {
        let (reporter, reports) = mpsc::channel(REPORTS);
        let mut task = JoinSet::new();
        let origin = node.name.clone();
        let uplink = uplinks.lease(&node.address);
        let leased = uplink.clone();
        task.spawn(async move {
            let ended = converse(&leased, &node, &head, says, &reporter).await;
            let (reason, torn) = match (ended, leased.why_closed()) {
                (Ok(()), _) => ("origin ended its answer".into(), false),
                // It says more than a stream that went with it.
                (Err(_), Some(why)) => (why.to_string(), true),
                (Err(error), None) => (net::chain(error.as_ref()), true),
            };
            // The receiver may be gone: then nobody asks.
            let reason = format!("{} ({}): {reason}", node.name, node.address);
            let _ = reporter.send(Report::Lost { reason, torn }).await;
        });
        Link { origin, uplink, body: None, declined: false, reports, _task: task }
    }
}

/// One request from its head to the end of its answer.
async fn converse(
    uplink: &Uplink,
    node: &Node,
    head: &RequestHead,
    says: Says,
    reporter: &mpsc::Sender<Report>,
) -> Result<(), BoxError> {
    let mut span = head.span.child("relay", Kind::Client);
    if let Some(span) = span.sampled() {
        span.set("server.address", &*node.address).set("rooftop.node", &*node.name);
    }
    let mut request = head.request(node, &says)?;
    span.propagate(request.headers_mut());
    let talked = talk(uplink, request, reporter).await;
    if let (Some(span), Err(error)) = (span.sampled(), &talked) {
        span.fail(&error.to_string());
    }
    talked
}

async fn talk(
    uplink: &Uplink,
    request: Request<()>,
    reporter: &mpsc::Sender<Report>,
) -> Result<(), BoxError> {
    let (response, body) = uplink.sender().await?.send_request(request, false)?;
    reporter.send(Report::Sent(body)).await?;
    let (parts, mut answer) = response.await?.into_parts();
    let status = parts.status.as_u16();
    let text = if status == 200 { String::new() } else { first_line(&mut answer).await };
    let owner = parts.headers.get("rooftop-owner").and_then(|name| name.to_str().ok()).map(str::to_owned);
    reporter.send(Report::Status { status, text, owner }).await?;
    let mut reader = AnswerReader::default();
    while let Some(bytes) = next_bytes(&mut answer).await {
        reader.push(&bytes?)?;
        while let Some(line) = reader.poll() {
            reporter.send(Report::Answer(line)).await?;
        }
    }
    Ok(())
}

async fn next_bytes(answer: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let bytes = answer.data().await?;
    Some(bytes.and_then(|bytes| {
        answer.flow_control().release_capacity(bytes.len())?;
        Ok(bytes)
    }))
}

impl RequestHead {
    fn request(&self, node: &Node, says: &Says) -> Result<Request<()>, BoxError> {
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
        Ok(request.body(())?)
    }
}

async fn first_line(answer: &mut RecvStream) -> String {
    let mut text = Vec::new();
    while let Some(Ok(bytes)) = next_bytes(answer).await {
        text.extend_from_slice(&bytes);
        if text.len() > MAX_REFUSAL_BYTES || text.contains(&b'\n') {
            break;
        }
    }
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&line[..line.len().min(MAX_REFUSAL_BYTES)]);
    line.chars().filter(|character| !character.is_control()).collect()
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
