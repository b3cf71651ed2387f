//! What one tier has: its stores, its client, what it knows about its upstreams; and how a request gets at an object.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::{Node, Ring};
use http::{HeaderMap, HeaderValue};
use net::Current;
use net::trace::{Kind as Side, Span, Tracer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::access::Access;
use crate::budget::{self, Budget};
use crate::cache::{Entry, Joined, Kind, State, Store, Waiting};
use crate::cmcd::Board;
use crate::config::Config;
use crate::fetch::Client;
use crate::flight::{self, Job};
use crate::metrics::{Answered, Overload, TierMetrics};
use crate::pace::Pace;
use crate::policy::{self, Class, Policy};
use crate::push::Pushes;
use crate::upstream::{self, Probed, Upstreams};
use crate::viewers::Viewers;
use crate::{Deps, Pages};

/// How often a request tries again after the task that fetched for it vanished without a word.
const ATTEMPTS: u32 = 2;

/// Classes whose pace is known, of all that operators have named.
const MAX_PACES: usize = 256;

/// How often memory is given back that nothing new asks for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

pub(crate) struct Tier {
    pub(crate) name: &'static str,
    pub(crate) config: Config,
    policy: Current<Policy>,
    pub(crate) store: Arc<Store>,
    pub(crate) client: Client,
    ring: Ring,
    upstreams: Mutex<Upstreams>,
    /// By the name of the class, of those whose timeout is adaptive.
    paces: Mutex<BTreeMap<String, Pace>>,
    /// Wakes [`Tier::probe`].
    in_doubt: Notify,
    pub(crate) pages: Option<Arc<dyn Pages>>,
    /// If there are paths that need a token.
    pub(crate) access: Option<Access>,
    pub(crate) metrics: TierMetrics,
    /// What players say, where viewers come.
    pub(crate) players: Option<Board>,
    /// How many watch, where viewers come.
    pub(crate) viewers: Option<Viewers>,
    pub(crate) pushes: Pushes,
    tracer: Tracer,
    pub(crate) quiet: Quiet,
    /// What says in `CDN-Loop` that a request has been here: no viewer can know it.
    pub(crate) node_id: String,
    /// Ends the flights.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// Why a request has no object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// A bound of ours is reached.
    Overloaded(Overload),
    /// The fetch vanished: a fault of ours, or the end of this process.
    Lost,
}

impl Tier {
    pub(crate) fn new(config: Config, deps: Deps) -> Tier {
        use std::hash::{BuildHasher, Hasher};
        let metrics = deps.metrics.of(deps.tier);
        let max_object = config.max_object.as_u64();
        let client = Client::new(deps.client_tls, config.upstream.connect_timeout, max_object, deps.tier);
        let gauges = budget::Gauges {
            shelf: metrics.cache_bytes.clone(),
            growing: metrics.inflight_bytes.clone(),
            held: metrics.held_bytes.clone(),
        };
        let budget = Budget::new(config.cache_size.as_u64(), config.inflight_size.as_u64(), gauges);
        let (left, names) = (metrics.left.clone(), metrics.inflight_names.clone());
        let unkept = metrics.unkept.clone();
        let store = Store::new(budget, left, unkept, config.max_inflight_names, names);
        // The standard library's one source of randomness.
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let paths = config.playback.paths.clone();
        let access = deps.playback_keys.filter(|_| !paths.is_empty()).map(|keys| Access::new(keys, paths));
        Tier {
            name: deps.tier,
            policy: config.policy().into(),
            store: Arc::new(store),
            client,
            ring: deps.upstreams,
            upstreams: Mutex::new(Upstreams::new(random)),
            paces: Mutex::default(),
            in_doubt: Notify::new(),
            pages: deps.pages,
            access,
            metrics,
            viewers: (deps.tier == crate::VIEWERS_TIER)
                .then(|| Viewers::new(&config.limits, deps.metrics.viewers.clone(), Instant::now())),
            players: (deps.tier == crate::VIEWERS_TIER).then(|| Board::new(deps.metrics.cmcd.clone())),
            pushes: Pushes::new(
                config.push.clone(),
                config.upstream.key_segments,
                deps.pushes_on,
                deps.metrics.push.of(deps.tier),
            ),
            tracer: deps.tracer,
            quiet: Quiet::default(),
            node_id: format!("{}-{random:016x}", deps.tier),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
        }
    }

    /// A request's span. A viewer's is the first of a trace; what it says of traces is not minded.
    pub(crate) fn span(&self, headers: &HeaderMap) -> Span {
        if self.viewers.is_some() {
            self.tracer.request(self.name)
        } else {
            self.tracer.continued(self.name, headers)
        }
    }

    /// The complete object of a name, if it is there and fresh, and how it answers.
    pub(crate) fn fresh(&self, key: &str, now: Instant) -> Option<(Arc<Entry>, Answered)> {
        let entry = self.store.get(key, now).filter(|entry| entry.state(now) == State::Fresh)?;
        let answered = answered_by(&entry);
        Some((entry, answered))
    }

    /// The object of a name, and how it was come by. `key` is canonical. Dropping the future leaves the fetch alone.
    pub(crate) async fn find(
        self: &Arc<Self>,
        key: &str,
        span: &Span,
        cdn_loop: impl Fn() -> HeaderValue,
    ) -> Result<(Arc<Entry>, Answered), Denied> {
        for _ in 0..ATTEMPTS {
            let now = Instant::now();
            let there = self.store.get(key, now);
            if let Some(entry) = &there {
                match entry.state(now) {
                    State::Fresh => return Ok((entry.clone(), answered_by(entry))),
                    State::Grace => return Ok((entry.clone(), Answered::Stale)),
                    State::Revalidate => {
                        // Past a bound it simply stays stale for now.
                        let _ = self.join(key, now, there.clone(), span, &cdn_loop);
                        return Ok((entry.clone(), Answered::Stale));
                    }
                    State::IfError | State::Gone => {}
                }
            }
            let (waiting, own) = match self.join(key, now, there, span, &cdn_loop)? {
                Found::Complete(entry) => return Ok((entry.clone(), answered_by(&entry))),
                Found::Waiting { waiting, own } => (waiting, own),
            };
            let _waiter = self.waiter()?;
            if let Some(verdict) = waiting.await {
                verdict.entry.counts.waited(now.elapsed());
                let answered = match verdict.kind {
                    Kind::Failed => Answered::Error,
                    Kind::Stale => Answered::Stale,
                    Kind::Pushed => Answered::Pushed,
                    _ if !own => Answered::Coalesced,
                    Kind::Fetched => Answered::Miss,
                    Kind::Promoted => Answered::Promoted,
                    Kind::Confirmed => Answered::Revalidated,
                };
                return Ok((verdict.entry, answered));
            }
        }
        Err(Denied::Lost)
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.policy.get()
    }

    /// Puts a policy without [`Policy::problems`] in force: for requests from now on, and for what is kept where it says
    /// less than before. Fetches under way go on by the rules they began with. Returns how many kept objects it made
    /// shorter.
    pub(crate) fn set_policy(&self, policy: Policy) -> usize {
        let policy = Arc::new(policy);
        self.policy.set(policy.clone());
        let wall = SystemTime::now();
        self.store.revise(|key, entry| {
            let (path, query) = key.split_once('?').unwrap_or((key, ""));
            let Entry { status, headers, failed, freshness, .. } = entry;
            policy::shortened(policy.class(path, query), *status, headers, *failed, *freshness, wall)
        })
    }

    /// A place among those who wait.
    pub(crate) fn waiter(&self) -> Result<Waiter, Denied> {
        let waiter = Waiter(self.metrics.waiters.clone());
        // Counted first, so that no two can take the last place.
        if waiter.0.inc() >= self.config.max_waiters as i64 {
            Err(Denied::Overloaded(Overload::Waiters))
        } else {
            Ok(waiter)
        }
    }

    /// The upstreams for what is below a path in the order in which to ask them, and the name of the ring's own first.
    /// `hash_key` is the path's.
    pub(crate) fn candidates(&self, path: &str, hash_key: &str) -> (Vec<Arc<Node>>, Option<String>) {
        let candidates = self.ring.candidates(upstream::ring_key(path, self.config.upstream.key_segments));
        let first = candidates.first().map(|node| node.name.clone());
        let now = Instant::now();
        let mut upstreams = self.upstreams();
        let candidates = upstreams.order(now, hash_key, candidates);
        // A tier below has another node to ask; viewers have not, and wait.
        if !self.pushes.serves {
            return (candidates, first);
        }
        let able = upstreams.able(now, candidates);
        drop(upstreams);
        if able.is_empty() {
            self.in_doubt.notify_one();
        }
        (able, first)
    }

    /// The cache-blocking timeout of a class as things are.
    pub(crate) fn blocking_timeout(&self, class: &Class) -> Duration {
        let adapted = class.adaptive.and_then(|adaptive| {
            let paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
            adaptive.timeout(paces.get(&class.name)?)
        });
        adapted.unwrap_or(class.blocking_timeout)
    }

    /// A fetch of this class took so long for its first byte, or had none for so long when it was ended.
    pub(crate) fn took(&self, class: &Class, took: Duration) {
        if class.adaptive.is_none() {
            return;
        }
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        if paces.len() >= MAX_PACES && !paces.contains_key(&class.name) {
            paces.clear();
        }
        paces.entry(class.name.clone()).or_default().push(took);
    }

    /// No connection to `node` could be made, or not in time.
    pub(crate) fn unreachable(&self, node: &Arc<Node>, silent: bool) {
        if self.upstreams().handle_unreachable(Instant::now(), node, silent) {
            warn!(tier = self.name, node = %node.name, address = node.address, "upstream is down: no connection");
            self.in_doubt.notify_one();
        }
    }

    /// `node` takes longer for an answer than its class allows.
    pub(crate) fn silent(&self, node: &Arc<Node>) {
        if self.upstreams().handle_silent(Instant::now(), node) {
            self.in_doubt.notify_one();
        }
    }

    /// A push of what is below `prefix` is quiet: all that could be asked for it are probed.
    pub(crate) fn push_quiet(&self, prefix: &str) {
        let now = Instant::now();
        let nodes = self.ring.candidates(upstream::ring_key(prefix, self.config.upstream.key_segments));
        let mut upstreams = self.upstreams();
        let doubted = nodes.iter().filter(|node| upstreams.handle_silent(now, node)).count();
        drop(upstreams);
        if doubted > 0 {
            self.in_doubt.notify_one();
        }
    }

    /// `node` has pushed nothing for too long, not even pings.
    pub(crate) fn push_silent(&self, node: &Arc<Node>) {
        if self.upstreams().handle_push_silent(Instant::now(), node) {
            warn!(tier = self.name, node = %node.name, address = node.address, "upstream is down: its push is silent");
            self.in_doubt.notify_one();
        }
    }

    /// Asks upstreams that are down, or may be, whether they are there, for as long as this is polled.
    pub(crate) async fn probe(&self) -> Infallible {
        // At most one for each node.
        let mut probes = JoinSet::new();
        loop {
            let (due, next) = {
                let mut upstreams = self.upstreams();
                (upstreams.poll(Instant::now()), upstreams.poll_timeout())
            };
            if let Some(node) = due {
                if !self.ring.contains(&node.name) {
                    // It has left the fleet.
                    self.upstreams().handle_gone(&node.name);
                    continue;
                }
                let probe = self.client.clone().probe(node.clone());
                probes.spawn(async move { (probe.await, node) });
                continue;
            }
            let timeout = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(Ok((probed, node))) = probes.join_next() => {
                    self.metrics.probed(probed == Probed::Answered);
                    let (name, address) = (&node.name, &node.address);
                    let change = self.upstreams().handle_probe(Instant::now(), name, probed);
                    match change {
                        Some(true) => info!(tier = self.name, node = name, address, "upstream is back"),
                        Some(false) => warn!(tier = self.name, node = name, address, "upstream is down: it is silent"),
                        None => {}
                    }
                }
                () = timeout => {}
                () = self.in_doubt.notified() => {}
            }
        }
    }

    pub(crate) fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        // What it holds are hints: half a change does no harm.
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The class that a name belongs to.
    pub(crate) fn class(&self, key: &str) -> Arc<Class> {
        let (path, query) = key.split_once('?').unwrap_or((key, ""));
        self.policy().class(path, query).clone()
    }

    /// Random enough to spread what should not happen at once.
    pub(crate) fn random(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        std::collections::hash_map::RandomState::new().build_hasher().finish()
    }

    /// Once a second: what nobody can be given any more leaves. Never ends; dropping it is fine at any time.
    pub(crate) async fn keep_house(&self) -> Infallible {
        let mut ticks = tokio::time::interval(HOUSEKEEPING);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.store.sweep(Instant::now());
            self.metrics.tick();
            if let Some(viewers) = &self.viewers {
                viewers.tick(Instant::now());
            }
        }
    }

    fn join(
        self: &Arc<Self>,
        key: &str,
        now: Instant,
        stale: Option<Arc<Entry>>,
        span: &Span,
        cdn_loop: impl Fn() -> HeaderValue,
    ) -> Result<Found, Denied> {
        let budget = self.config.inflight_size.as_u64() / 4 * 3;
        // Asked before the name is taken: a push that keeps its promise in between takes the name over.
        let promised = self.pushes.promised(key);
        match self.store.join(key, now) {
            Joined::There(entry) => Ok(Found::Complete(entry)),
            Joined::Waiting(waiting) => Ok(Found::Waiting { waiting, own: false }),
            Joined::Full => Err(Denied::Overloaded(Overload::Names)),
            Joined::Yours(..) if self.metrics.inflight_bytes.get() > budget as i64 => {
                Err(Denied::Overloaded(Overload::Memory))
            }
            // Answers that are not to be kept leave the table of names at once, but count until their bodies end.
            Joined::Yours(..) if self.tasks.len() >= self.config.max_inflight_names => {
                Err(Denied::Overloaded(Overload::Flights))
            }
            Joined::Yours(permit, waiting) => {
                let class = self.class(key);
                let counts = self.metrics.class(&class.name);
                let mut span = span.child("object", Side::Internal);
                if let Some(span) = span.sampled() {
                    span.set("rooftop.tier", self.name).set("rooftop.class", &*class.name);
                }
                let job = Job { permit, class, counts, stale, cdn_loop: cdn_loop(), promised, span };
                self.tasks.spawn(flight::fly(self.clone(), job));
                Ok(Found::Waiting { waiting, own: true })
            }
        }
    }
}

enum Found {
    Complete(Arc<Entry>),
    Waiting { waiting: Waiting, own: bool },
}

fn answered_by(entry: &Entry) -> Answered {
    if entry.failed { Answered::Error } else { Answered::Hit }
}

/// Counts one request among those that wait, for as long as it lives.
pub(crate) struct Waiter(Gauge);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Lets one event a second pass, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<(Option<Instant>, u64)>);

impl Quiet {
    /// How many were held back since the last one that passed; `None`: hold this one back too.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < Duration::from_secs(1)) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_a_second() {
        let (quiet, now) = (Quiet::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(quiet.pass(at(0)), Some(0));
        assert_eq!(quiet.pass(at(1)), None);
        assert_eq!(quiet.pass(at(999)), None);
        assert_eq!(quiet.pass(at(1000)), Some(2));
    }
}
