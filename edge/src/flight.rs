//! The shell around [`crate::coalesce`]: the task that fetches one name, feeds its body, and keeps the object.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cluster::Node;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use media::Object;
use media::object::Writer;
use net::trace::{Kind as Side, Span};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::budget::Growing;
use crate::cache::{Content, Entry, Kind, Permit, State, Verdict};
use crate::coalesce::{Action, Cause, Failure, FetchId, Flight, Refusal, Rules};
use crate::fetch::{self, Answer, Ask, Failed};
use crate::form::Forms;
use crate::freshness::{self, Freshness};
use crate::metrics::{ClassMetrics, Tally};
use crate::policy::Class;
use crate::resume::{Rest, Until, Version};
use crate::tier::Tier;
use crate::upstream;

/// That no upstream has a name changes when a broadcaster begins, so it is remembered no longer than this.
const NOBODYS_TTL: Duration = Duration::from_secs(1);

/// What each chunk of a growing body costs besides its bytes: an upstream that sends single bytes must not cost more
/// memory than one that sends much.
const CHUNK_BYTES: u64 = 64;

/// A fetch that is to be made.
pub(crate) struct Job {
    pub(crate) permit: Permit,
    pub(crate) class: Arc<Class>,
    /// Those of the class.
    pub(crate) counts: Arc<ClassMetrics>,
    /// What is there already, past its freshness.
    pub(crate) stale: Option<Arc<Entry>>,
    /// The value of `CDN-Loop` to send.
    pub(crate) cdn_loop: HeaderValue,
    /// A push has promised the object: no fetch at first. Fires when that push is lost.
    pub(crate) promised: Option<CancellationToken>,
    /// From here to the end of the object's body; a part of the request that asked for it first.
    pub(crate) span: Span,
}

/// Fetches one name. Everyone who waits for it is told, whatever happens; dropped midway, they are woken with nothing and
/// readers of its body see it break.
pub(crate) async fn fly(tier: Arc<Tier>, job: Job) {
    let begin = if job.promised.is_some() { Flight::promised } else { Flight::new };
    Shell::new(tier, job, begin, None).run().await;
}

/// A body that a push has begun and will not end.
pub(crate) struct Orphan {
    pub(crate) entry: Arc<Entry>,
    pub(crate) writer: Writer,
    /// Bytes so far.
    pub(crate) len: u64,
    pub(crate) charge: Growing,
}

/// Fetches the rest of a body, so that its readers notice nothing; they see it break if that cannot be had.
pub(crate) async fn adopt(tier: Arc<Tier>, job: Job, orphan: Orphan) {
    let Orphan { entry, writer, len, charge } = orphan;
    // What cannot be told from another version cannot be gone on with.
    let Some(version) = Version::of(entry.status, &entry.headers) else {
        return tier.metrics.broke(&job.counts);
    };
    let Content::Growing { length, .. } = &entry.body else {
        return;
    };
    let until = length.map_or(Until::End, Until::Total);
    let body = Body { by: None, incoming: None, writer, entry, version: Some(version), until, len, charge };
    Shell::new(tier, job, Flight::adopted, Some(body)).run().await;
}

struct Shell {
    tier: Arc<Tier>,
    job: Job,
    hash_key: String,
    candidates: Vec<Arc<Node>>,
    /// The name of the ring's first candidate.
    first: Option<String>,
    /// What makes the fetches conditional.
    conditions: Option<HeaderMap>,
    /// The cache-blocking timeout that it began with.
    patience: Duration,
    flight: Flight,
    /// Those whose outcome is not counted yet.
    fetches: Vec<Fetch>,
    set: JoinSet<Result<Answer, Failed>>,
    tally: Tally,
    body: Option<Body>,
}

struct Fetch {
    id: FetchId,
    node: Arc<Node>,
    cause: Cause,
    began: Instant,
    handle: AbortHandle,
}

/// An answer, and the fetch that it came by.
type Won = (Answer, Fetch);

/// The body of the answer that won.
struct Body {
    /// Whose bytes come; `None` while they were pushed.
    by: Option<Fetch>,
    /// Until it breaks.
    incoming: Option<Incoming>,
    writer: Writer,
    entry: Arc<Entry>,
    /// What the rest would have to belong to, if this breaks.
    version: Option<Version>,
    until: Until,
    len: u64,
    charge: Growing,
}

type Joined = Option<Result<(tokio::task::Id, Result<Answer, Failed>), JoinError>>;

impl Shell {
    fn new(
        tier: Arc<Tier>,
        job: Job,
        begin: fn(Instant, Rules, usize) -> Flight,
        body: Option<Body>,
    ) -> Shell {
        let (path, _) = job.permit.key.split_once('?').unwrap_or((&job.permit.key, ""));
        let hash_key = upstream::hash_key(path, tier.config.upstream.key_segments).to_owned();
        let (candidates, first) = tier.candidates(path, &hash_key);
        let patience = tier.blocking_timeout(&job.class);
        let rules = Rules {
            blocking_timeout: patience,
            give_up: job.class.give_up,
            max_fetches: job.class.max_fetches,
        };
        let flight = begin(Instant::now(), rules, candidates.len());
        let conditions = job.stale.as_ref().and_then(|stale| fetch::conditions(stale.status, &stale.headers));
        let (fetches, set) = (Vec::new(), JoinSet::new());
        let tally = tier.metrics.tally();
        Shell {
            tier,
            job,
            hash_key,
            candidates,
            first,
            conditions,
            patience,
            flight,
            fetches,
            set,
            tally,
            body,
        }
    }

    async fn run(mut self) {
        let mut won = None;
        while self.act(&mut won) {
            let deadline = self.flight.poll_timeout().map(tokio::time::Instant::from_std);
            let timeout = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let lost = async {
                match &self.job.promised {
                    Some(promised) => promised.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            let seized = std::future::poll_fn(|cx| self.job.permit.poll_seized(cx));
            let body = &mut self.body;
            let frame = async {
                match body.as_mut().and_then(|body| body.incoming.as_mut()) {
                    Some(incoming) => incoming.frame().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.tier.stop.cancelled() => return self.abandon(),
                () = seized => self.flight.handle_superseded(),
                frame = frame => self.handle_frame(frame),
                joined = self.set.join_next_with_id(), if !self.set.is_empty() => won = self.handle_joined(joined),
                () = lost => {
                    self.job.promised = None;
                    self.order();
                    self.flight.handle_push_lost(Instant::now());
                }
                () = timeout => {
                    self.order();
                    self.flight.handle_timeout(Instant::now());
                }
            }
        }
    }

    /// Who is to be asked first may have changed since the push promised the object; that one, say, is down.
    fn order(&mut self) {
        if self.flight.asked_nobody() {
            let path = self.job.permit.key.split('?').next().unwrap_or_default();
            (self.candidates, self.first) = self.tier.candidates(path, &self.hash_key);
            self.flight.set_candidates(self.candidates.len());
        }
    }

    /// Does what the flight says; `false` when it is over.
    fn act(&mut self, won: &mut Option<Won>) -> bool {
        while let Some(action) = self.flight.poll() {
            match action {
                Action::Start { fetch, candidate, cause } => {
                    let ask = self.conditions.clone().map_or(Ask::Whole, Ask::IfChanged);
                    self.start(fetch, candidate, cause, ask);
                }
                Action::Resume { fetch, candidate, cause } => {
                    if let Some(rest) = self.body.as_ref().and_then(Body::rest) {
                        self.start(fetch, candidate, cause, Ask::Rest(rest));
                    }
                }
                Action::Cancel { fetch } => self.cancel(fetch),
                Action::Serve { .. } | Action::Switch { .. } | Action::Freshen { .. } => match won.take() {
                    Some((Answer::Whole(response), by)) => self.serve(by, response),
                    Some((Answer::Rest { first, incoming, until }, by)) => {
                        self.switch(by, first, incoming, until);
                    }
                    Some((Answer::NotModified(head), _)) => self.freshen(&head),
                    Some((Answer::Nothing, _)) | None => {}
                },
                Action::Refuse(refusal) => self.refuse(refusal),
                Action::Complete => self.complete(),
                Action::Break => {
                    self.tier.metrics.broke(&self.job.counts);
                    // Its writer is dropped unfinished: readers see it break.
                    self.body = None;
                }
            }
        }
        // One that came too late.
        *won = None;
        self.flight.poll_timeout().is_some()
    }

    fn start(&mut self, fetch: FetchId, candidate: usize, cause: Cause, ask: Ask) {
        let node = self.candidates[candidate].clone();
        if cause == Cause::Promoted {
            self.tier.metrics.promoted(&self.job.counts);
            let source = self.body.as_ref().and_then(|body| body.by.as_ref());
            for silent in self.fetches.iter().chain(source) {
                self.tier.silent(&silent.node);
            }
        }
        debug!(tier = self.tier.name, key = %self.job.permit.key, node = %node.name, ?cause, ?ask, "fetch starts");
        let mut span = self.job.span.child("fetch", Side::Client);
        if let Some(span) = span.sampled() {
            span.set("server.address", &*node.address).set("rooftop.node", &*node.name);
            span.set("rooftop.cause", format!("{cause:?}").as_str());
        }
        let get = self.tier.client.clone().get(
            node.clone(),
            self.job.permit.key.clone(),
            self.job.cdn_loop.clone(),
            ask,
            span,
        );
        self.tally.started();
        let handle = self.set.spawn(get);
        self.fetches.push(Fetch { id: fetch, node, cause, began: Instant::now(), handle });
    }

    fn cancel(&mut self, fetch: FetchId) {
        if let Some(body) = &mut self.body
            && let Some(by) = body.by.as_ref().filter(|by| by.id == fetch)
        {
            body.incoming = None;
            let node = by.node.clone();
            self.warn(&node.name, "body fell silent");
        }
        if let Some(index) = self.fetches.iter().position(|open| open.id == fetch) {
            let fetch = self.fetches.swap_remove(index);
            self.cancelled(&fetch);
        }
    }

    /// At the end of this process: those who wait are woken with nothing.
    fn abandon(mut self) {
        for fetch in std::mem::take(&mut self.fetches) {
            self.cancelled(&fetch);
        }
    }

    fn cancelled(&self, fetch: &Fetch) {
        fetch.handle.abort();
        // One that was ended early, since another answered, says nothing.
        let waited = fetch.began.elapsed();
        if waited >= self.patience {
            self.tier.took(&self.job.class, waited);
        }
        self.tier.metrics.fetched(&self.job.counts, "cancelled");
    }

    /// The answer, for what the flight says next.
    fn handle_joined(&mut self, joined: Joined) -> Option<Won> {
        let (task, outcome) = match joined? {
            Ok((task, outcome)) => (task, outcome),
            Err(error) => (error.id(), Err(Failed::new(Failure::Broken, error.to_string()))),
        };
        // Those that were cancelled are not in the list any more.
        let index = self.fetches.iter().position(|open| open.handle.id() == task)?;
        let by = self.fetches.swap_remove(index);
        let now = Instant::now();
        match outcome {
            Ok(answer) => {
                let outcome = match &answer {
                    Answer::Whole(_) => "answered",
                    Answer::NotModified(_) => "not_modified",
                    Answer::Rest { .. } | Answer::Nothing => "resumed",
                };
                self.tier.metrics.fetched(&self.job.counts, outcome);
                let first = self.first.as_ref() == Some(&by.node.name);
                self.tier.took(&self.job.class, now - by.began);
                self.job.counts.took(now - by.began);
                self.tier.upstreams().handle_answer(now, &self.hash_key, &by.node.name, first);
                match &answer {
                    Answer::Whole(response) => {
                        let resumable = Version::of(response.status(), response.headers()).is_some();
                        self.flight.handle_headers(now, by.id, resumable);
                    }
                    Answer::NotModified(_) => self.flight.handle_not_modified(by.id),
                    Answer::Rest { .. } => self.flight.handle_resumed(now, by.id),
                    Answer::Nothing => self.flight.handle_end(by.id),
                }
                Some((answer, by))
            }
            Err(failed) => {
                self.note(&by.node, &failed);
                if failed.failure == Failure::Unfit {
                    // It confirmed something else: the next is asked without conditions.
                    self.conditions = None;
                }
                self.flight.handle_failure(now, by.id, failed.failure);
                None
            }
        }
    }

    fn note(&self, node: &Arc<Node>, failed: &Failed) {
        let outcome = match failed.failure {
            Failure::NotMine => "not_mine",
            Failure::Broken => "broken",
            Failure::TimedOut => "timed_out",
            Failure::Unfit => "unfit",
            Failure::Erred => "erred",
            Failure::Unavailable => "unavailable",
        };
        self.tier.metrics.fetched(&self.job.counts, outcome);
        self.tier.upstreams().handle_refusal(&self.hash_key, &node.name);
        if failed.unreachable {
            self.tier.unreachable(node, failed.failure == Failure::TimedOut);
        }
        // Neither "not mine" nor "be patient" is a fault.
        if matches!(failed.failure, Failure::NotMine | Failure::Unavailable) {
            debug!(tier = self.tier.name, key = %self.job.permit.key, node = %node.name, why = failed.why, "no answer");
        } else {
            self.warn(&node.name, &failed.why);
        }
    }

    /// An upstream's fault, for a person to see; at most one a second, since a herd of names may fail together.
    fn warn(&self, node: &str, why: &str) {
        let key = &self.job.permit.key;
        match self.tier.quiet.pass(Instant::now()) {
            Some(unsaid) => warn!(tier = self.tier.name, %key, node, why, unsaid, "upstream failed"),
            None => debug!(tier = self.tier.name, %key, node, why, "upstream failed"),
        }
    }

    fn serve(&mut self, by: Fetch, response: Response<Incoming>) {
        let (head, incoming) = response.into_parts();
        let wall = SystemTime::now();
        let charge = self.tier.store.growing();
        let (writer, object) = Object::growing_with(charge.charge().clone());
        let announced = fetch::content_length(&head.headers);
        let version = Version::of(head.status, &head.headers);
        let entry = Arc::new(Entry {
            status: head.status,
            headers: fetch::for_viewers(head.version, &head.headers, self.tier.name, wall),
            body: Content::Growing { object, length: announced, mark: None },
            received: Instant::now(),
            freshness: freshness::freshness(&self.job.class, head.status, &head.headers, wall),
            failed: false,
            grace_until: None,
            charge: None,
            counts: self.job.counts.clone(),
            forms: Forms::default(),
            lease: None,
        });
        if entry.freshness.keep().is_zero() {
            // Shared by those who wait now; later ones ask anew.
            self.job.permit.leave();
        }
        let kind = if by.cause == Cause::Promoted { Kind::Promoted } else { Kind::Fetched };
        if !self.job.permit.tell(Verdict { entry: entry.clone(), kind }) {
            // Seized in this very moment.
            return self.flight.handle_superseded();
        }
        let (incoming, until) = (Some(incoming), announced.map_or(Until::End, Until::Total));
        self.body = Some(Body { by: Some(by), incoming, writer, entry, version, until, len: 0, charge });
    }

    /// Goes on with a body where the one before ended.
    fn switch(&mut self, by: Fetch, first: Bytes, incoming: Incoming, until: Until) {
        let Some(body) = &mut self.body else {
            return;
        };
        debug!(tier = self.tier.name, key = %self.job.permit.key, node = %by.node.name, from = body.len, "body goes on");
        (body.by, body.incoming, body.until) = (Some(by), Some(incoming), until);
        self.handle_frame(Some(Ok(Frame::data(first))));
    }

    /// What was there is still good.
    fn freshen(&mut self, head: &http::response::Parts) {
        let Some(stale) = self.job.stale.take() else {
            return;
        };
        let wall = SystemTime::now();
        let news = fetch::for_viewers(head.version, &head.headers, self.tier.name, wall);
        let headers = fetch::updated(&stale.headers, news);
        let mut judged = headers.clone();
        for name in [header::AGE, header::SET_COOKIE] {
            if let Some(value) = head.headers.get(&name) {
                judged.insert(name, value.clone());
            }
        }
        let entry = Entry {
            headers,
            received: Instant::now(),
            freshness: freshness::freshness(&self.job.class, stale.status, &judged, wall),
            grace_until: None,
            lease: None,
            ..Entry::clone(&stale)
        };
        if entry.freshness.keep().is_zero() {
            self.job.permit.leave();
        }
        let told = self.job.permit.tell(Verdict { entry: Arc::new(entry.clone()), kind: Kind::Confirmed });
        if told && !entry.freshness.keep().is_zero() {
            self.tier.store.keep(&self.job.permit, entry);
        }
    }

    fn handle_frame(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) {
        let Some(body) = &mut self.body else {
            return;
        };
        let Some((fetch, node)) = body.by.as_ref().map(|by| (by.id, by.node.clone())) else {
            return;
        };
        let now = Instant::now();
        let (failure, broken) = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => match body.push(data, &self.tier) {
                    Ok(()) => return self.flight.handle_bytes(now, fetch),
                    Err(why) => (Failure::Unfit, why),
                },
                // Trailers say nothing that viewers need.
                Err(_) => return,
            },
            // Whatever happens behind the last byte.
            Some(Err(_)) | None if body.until == Until::Total(body.len) => {
                return self.flight.handle_end(fetch);
            }
            Some(Err(error)) => (Failure::Broken, net::chain(&error)),
            None => match body.until {
                Until::End => return self.flight.handle_end(fetch),
                until => (Failure::Broken, format!("it ended after {} bytes of {until:?}", body.len)),
            },
        };
        body.incoming = None;
        self.warn(&node.name, &format!("body broke off: {broken}"));
        self.flight.handle_failure(now, fetch, failure);
    }

    fn complete(&mut self) {
        // Its bytes count as on their way until the copy is on the shelf.
        let Some(Body { writer, entry, charge: _charge, .. }) = self.body.take() else {
            return;
        };
        writer.finish();
        if Instant::now() >= entry.received + entry.freshness.keep() {
            return;
        }
        self.tier.store.keep(&self.job.permit, Entry::clone(&entry));
    }

    fn refuse(&mut self, refusal: Refusal) {
        if refusal == Refusal::GaveUp {
            self.warn("all", "no answer within give_up");
        }
        let now = Instant::now();
        let negative_ttl = self.job.class.negative_ttl;
        let (entry, kind) = match self.job.stale.take().filter(|stale| stale.state(now) != State::Gone) {
            // The copy stays, and the upstream is left alone for a while.
            Some(stale) => {
                (Entry { grace_until: Some(now + negative_ttl), ..Entry::clone(&stale) }, Kind::Stale)
            }
            None => {
                let counts = self.job.counts.clone();
                (failed_entry(self.tier.name, counts, refusal, negative_ttl, now), Kind::Failed)
            }
        };
        // Told first: if the name was seized, what came by the other way is not to be covered by this.
        let told = self.job.permit.tell(Verdict { entry: Arc::new(entry.clone()), kind });
        if told && (kind == Kind::Stale || !negative_ttl.is_zero()) {
            self.tier.store.keep(&self.job.permit, entry);
        }
    }
}

impl Body {
    /// What is missing; `None`: it cannot be asked for.
    fn rest(&self) -> Option<Rest> {
        Some(Rest { from: self.len, version: self.version.clone()? })
    }

    /// Takes bytes in, within the bounds.
    fn push(&mut self, data: Bytes, tier: &Tier) -> Result<(), String> {
        let max_object = tier.config.max_object.as_u64();
        self.len += data.len() as u64;
        if let Until::Total(total) = self.until
            && self.len > total
        {
            return Err(format!("more than its {total} bytes came"));
        }
        if self.len > max_object {
            return Err(format!("it exceeds max_object = {max_object} bytes"));
        }
        if !tier.store.grow(&self.charge, data.len() as u64 + CHUNK_BYTES) {
            return Err("inflight_size is used up".into());
        }
        self.writer.push(data);
        Ok(())
    }
}

/// What viewers get when no upstream answers.
fn failed_entry(
    tier: &str,
    counts: Arc<ClassMetrics>,
    refusal: Refusal,
    negative_ttl: Duration,
    now: Instant,
) -> Entry {
    let status = refusal.status();
    let (why, ttl) = match refusal {
        Refusal::NoUpstream => ("no upstream can be reached", negative_ttl),
        Refusal::GaveUp => ("the upstream gave no answer in time", negative_ttl),
        Refusal::Failed(Failure::NotMine) => ("no upstream has it", negative_ttl.min(NOBODYS_TTL)),
        Refusal::Failed(Failure::Broken) => ("the upstream could not be reached", negative_ttl),
        Refusal::Failed(Failure::TimedOut) => ("the upstream timed out", negative_ttl),
        Refusal::Failed(Failure::Erred | Failure::Unfit) => ("the upstream failed", negative_ttl),
        Refusal::Failed(Failure::Unavailable) => ("the upstream asks for patience", negative_ttl),
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // A tier below remembers failures by its own rules, a browser should not.
    let control = if status == StatusCode::NOT_FOUND { "max-age=1" } else { "no-store" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    fetch::cors(&mut headers);
    let zero = Duration::ZERO;
    Entry {
        status,
        headers,
        body: Content::Whole(format!("rooftop-{tier}: {why}\n").into()),
        received: now,
        freshness: Freshness { age: zero, fresh: ttl, while_revalidate: zero, if_error: zero, confirm: zero },
        failed: true,
        grace_until: None,
        charge: None,
        counts,
        forms: Forms::default(),
        lease: None,
    }
}
