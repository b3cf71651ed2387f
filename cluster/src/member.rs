//! This node's part in the cluster: what it says to the store and what it knows from it.
//!
//! [`Member`] is the handle that the roles share; [`Member::serve`] keeps it in touch with the store.

mod attend;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::claim::{Claim, Refusal, Step};
use crate::lease::{Grant, Me, News, Ownership};
use crate::metrics::{Claimed, Metrics};
use crate::record::{Line, NodeRecord, RevokedRecord, Role, StreamState, Which};
use crate::revoked::Revoked;
use crate::ring::Ring;
use crate::store::{Embedded, Error, Store};

/// What a claim may take, all its questions together: less than a POP waits for an origin's answer (2 s).
pub const CLAIM_TIMEOUT: Duration = Duration::from_millis(1500);

/// Between two questions of a claim that the store did not answer.
const CLAIM_PAUSE: Duration = Duration::from_millis(100);

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its `node.name`.
    pub name: String,
    /// Tells this process from others of that name.
    pub instance: u64,
    /// After so long without a word of a node it is gone for the others.
    pub lease_ttl: Duration,
    /// How long revocations are remembered: as long as tokens are made for.
    pub revocations_kept: Duration,
    /// For so long (and half a minute) a broadcast whose owner was lost is gone on with, and not begun anew.
    pub resume_within: Duration,
    /// The rings are made of node records. Otherwise they stay as they are given.
    pub follow_nodes: bool,
}

/// A node's part in the cluster. Cloning shares it.
#[derive(Clone)]
pub struct Member(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    options: Options,
    metrics: Metrics,
    ownership: Mutex<Ownership>,
    /// A grant may have been fenced.
    owned: watch::Sender<()>,
    /// There is something to write.
    unwritten: Notify,
    /// What this node says about itself, by role.
    own_nodes: watch::Sender<BTreeMap<Role, NodeRecord>>,
    nodes: Mutex<BTreeMap<String, NodeRecord>>,
    origins: Ring,
    shields: Ring,
    revoked: watch::Sender<Revoked>,
    /// Revocations to be told to the store.
    unsaid: Mutex<BTreeMap<Which, RevokedRecord>>,
    contact: watch::Sender<Contact>,
}

/// Whether the store is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// It has never been reached since this process began; why not.
    Never(String),
    /// It answers.
    Up,
    /// It was lost; why.
    Lost(String),
}

impl Default for Member {
    /// A node by itself, with a store in its memory.
    fn default() -> Member {
        let options = Options {
            name: "local".into(),
            instance: 1,
            lease_ttl: Duration::from_secs(10),
            revocations_kept: Duration::from_secs(86_400),
            resume_within: Duration::from_secs(60),
            follow_nodes: false,
        };
        let (origins, shields) = (Ring::new(Vec::new()), Ring::new(Vec::new()));
        Member::new(Arc::new(Embedded::default()), options, origins, shields, Metrics::unread())
    }
}

impl Member {
    /// Takes part by `store`. Of the rings the members are replaced by those of the store, if the options say so, and who
    /// has which stream is told to that of the origins.
    pub fn new(
        store: Arc<dyn Store>,
        options: Options,
        origins: Ring,
        shields: Ring,
        metrics: Metrics,
    ) -> Member {
        let me = Me { name: options.name.clone(), instance: options.instance, address: String::new() };
        let never = Contact::Never("not asked yet".into());
        let resume_within = options.resume_within + attend::HOUSEKEEPING;
        Member(Arc::new(Shared {
            store,
            options,
            metrics,
            ownership: Mutex::new(Ownership::new(me, resume_within)),
            owned: watch::Sender::default(),
            unwritten: Notify::new(),
            own_nodes: watch::Sender::default(),
            nodes: Mutex::default(),
            origins,
            shields,
            revoked: watch::Sender::default(),
            unsaid: Mutex::default(),
            contact: watch::Sender::new(never),
        }))
    }

    /// Keeps in touch with the store until `shutdown`, then takes this node's records of itself away. Everything else may
    /// be used before and without: claims ask the store themselves.
    pub async fn serve(&self, shutdown: CancellationToken) {
        attend::serve(&self.0, shutdown).await;
    }

    /// The store, for records of other kinds.
    pub fn store(&self) -> Arc<dyn Store> {
        self.0.store.clone()
    }

    /// The origins.
    pub fn origins(&self) -> Ring {
        self.0.origins.clone()
    }

    /// The shields.
    pub fn shields(&self) -> Ring {
        self.0.shields.clone()
    }

    /// Whether the rings are made of node records.
    pub fn follows_nodes(&self) -> bool {
        self.0.options.follow_nodes
    }

    /// All nodes that are there, one record for each role.
    pub fn nodes(&self) -> Vec<NodeRecord> {
        lock(&self.0.nodes).values().cloned().collect()
    }

    /// Whether the store is there.
    pub fn contact(&self) -> watch::Receiver<Contact> {
        self.0.contact.subscribe()
    }

    /// This node has a role, at `address`; it carries so much, where that has a meaning: an origin so many tenths of a CPU.
    pub fn announce(&self, role: Role, address: &str, capacity: u32) {
        let Options { name, instance, .. } = &self.0.options;
        let (name, address) = (name.clone(), address.to_owned());
        if role == Role::Origin {
            self.0.ownership().set_address(&address);
        }
        let record =
            NodeRecord { name, role, address, instance: *instance, capacity, load: 0, draining: false };
        self.0.own_nodes.send_modify(|nodes| drop(nodes.insert(role, record)));
    }

    /// How much of its capacity this origin carries.
    pub fn set_load(&self, load: u32) {
        self.0.own_nodes.send_if_modified(|nodes| {
            nodes.get_mut(&Role::Origin).is_some_and(|node| std::mem::replace(&mut node.load, load) != load)
        });
    }

    /// From now on this node takes no new streams.
    pub fn drain(&self) {
        self.0.own_nodes.send_modify(|nodes| nodes.values_mut().for_each(|node| node.draining = true));
    }

    /// Takes the right to write `stream` for `session`; whoever had it before is fenced from this moment on. `lost` are the
    /// origins that the claimant has just lost. Ends within [`CLAIM_TIMEOUT`]. Dropped midway, the stream may be owned here
    /// without anybody writing it, until somebody claims it again.
    pub async fn claim(&self, stream: &str, session: &str, lost: Vec<String>) -> Result<Grant, Refusal> {
        let claimed = self.claim_in_time(stream, session, lost).await;
        let outcome = match &claimed {
            Ok((_, true)) => "granted",
            Ok((_, false)) => "owned",
            Err(Refusal::Elsewhere { .. }) => "elsewhere",
            Err(Refusal::Contended) => "contended",
            Err(Refusal::NoStore(_)) => "no_store",
        };
        self.0.metrics.claims.get_or_create(&Claimed { outcome }).inc();
        if claimed.is_ok() {
            self.0.owned.send_replace(());
            self.0.unwritten.notify_one();
        }
        claimed.map(|(grant, _)| grant)
    }

    /// The grant, and whether the store was asked.
    async fn claim_in_time(
        &self,
        stream: &str,
        session: &str,
        lost: Vec<String>,
    ) -> Result<(Grant, bool), Refusal> {
        let deadline = Instant::now() + CLAIM_TIMEOUT;
        loop {
            let claim = self.claim_once(stream, session, lost.clone());
            let problem = match tokio::time::timeout_at(deadline.into(), claim).await {
                Ok(Ok(done)) => return done,
                // What it refuses it will refuse again.
                Ok(Err(error @ Error::Refused(_))) => return Err(Refusal::NoStore(error.to_string())),
                Ok(Err(error)) => error.to_string(),
                Err(_) => Error::Away(format!("no answer within {CLAIM_TIMEOUT:?}")).to_string(),
            };
            if Instant::now() + CLAIM_PAUSE >= deadline {
                return Err(Refusal::NoStore(problem));
            }
            tokio::time::sleep(CLAIM_PAUSE).await;
        }
    }

    async fn claim_once(
        &self,
        stream: &str,
        session: &str,
        lost: Vec<String>,
    ) -> Result<Result<(Grant, bool), Refusal>, Error> {
        let mut claim = Claim::new(stream, session, lost);
        let mut step = claim.begin(&mut self.0.ownership());
        let mut asked = false;
        loop {
            step = match step {
                Step::Done(done) => return Ok(done.map(|grant| (grant, asked))),
                Step::Get(key) => {
                    asked = true;
                    let found = self.0.store.get(&key).await?;
                    claim.handle_found(&self.0.ownership(), found, SystemTime::now())
                }
                Step::Txn(txn) => {
                    let outcome = self.0.store.txn(txn).await?;
                    claim.handle_outcome(&mut self.0.ownership(), outcome, SystemTime::now())
                }
            };
        }
    }

    /// A higher epoch for the holder of `grant`, unless it was fenced.
    pub async fn renew(&self, grant: &Grant) -> Option<Grant> {
        let renewed = self.0.ownership().renew(grant);
        if renewed.is_some() {
            self.0.owned.send_replace(());
            self.0.unwritten.notify_one();
            return renewed;
        }
        if !self.holds(grant) {
            return None;
        }
        // The reservation is used up.
        self.claim(&grant.stream, &grant.holder, Vec::new()).await.ok()
    }

    /// Whether `grant` is still the newest of its stream.
    pub fn holds(&self, grant: &Grant) -> bool {
        self.0.ownership().holds(grant)
    }

    /// Whether this node has `stream`, whichever session of it writes.
    pub fn owns(&self, stream: &str) -> bool {
        self.0.ownership().record(stream).is_some()
    }

    /// The session that claimed `stream` last, at any node, as far as is known.
    pub fn holder(&self, stream: &str) -> Option<String> {
        let ownership = self.0.ownership();
        let seen = || ownership.seen().get(stream).map(|(record, _)| record);
        ownership.record(stream).or_else(seen).map(|record| record.session.clone())
    }

    /// Completes when `grant` no longer holds. Safe to drop.
    pub async fn fenced(&self, grant: &Grant) {
        let mut owned = self.0.owned.subscribe();
        while self.holds(grant) {
            if owned.changed().await.is_err() {
                return;
            }
        }
    }

    /// Where the broadcast of a stream stands, if it is owned here. Cheap where nothing is new.
    pub fn describe(&self, stream: &str, state: StreamState, line: Option<Line>) {
        let news = self.0.ownership().describe(stream, state, line);
        if news {
            self.0.unwritten.notify_one();
        }
    }

    /// What a broadcast was before this node had it, or before this process began: what its record says.
    pub fn line(&self, stream: &str) -> Option<Line> {
        self.0.ownership().record(stream).and_then(|record| record.line)
    }

    /// Forgets the stream of `grant` if nobody claimed it since.
    pub fn forget(&self, grant: &Grant) {
        self.0.ownership().forget(grant);
        self.0.owned.send_replace(());
        self.0.unwritten.notify_one();
    }

    /// Another origin is known to write `stream` under `epoch`, whatever the store says: a lower grant of this one does not
    /// hold any more.
    pub fn outbid(&self, stream: &str, epoch: u64) {
        if self.0.ownership().outbid(stream, epoch) == News::Fenced {
            self.0.metrics.fenced_streams.inc();
            self.0.owned.send_replace(());
            self.0.unwritten.notify_one();
        }
    }

    /// The other origin that has `stream`, if one is known and there: its name and address.
    pub fn elsewhere(&self, stream: &str) -> Option<(String, String)> {
        let (owner, address, instance) = {
            let ownership = self.0.ownership();
            let record = ownership.elsewhere(stream)?;
            (record.owner.clone(), record.address.clone(), record.instance)
        };
        let nodes = lock(&self.0.nodes);
        let node = nodes.get(&crate::record::node_key(Role::Origin, &owner))?;
        (node.instance == instance).then_some((owner, address))
    }

    /// Takes tokens back, here at once and at all other origins as soon as the store has it.
    pub fn revoke(&self, which: Which) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let until = at.saturating_add(self.0.options.revocations_kept.as_secs());
        let record = RevokedRecord { which: which.clone(), at, until };
        info!(?which, "tokens are revoked");
        self.0.revoke(record.clone());
        let mut unsaid = lock(&self.0.unsaid);
        unsaid.insert(which, record);
        // Only those that are still in force are worth telling.
        let revoked = self.0.revoked.borrow();
        unsaid.retain(|which, _| revoked.has(which));
        drop((revoked, unsaid));
        self.0.unwritten.notify_one();
    }

    /// What was taken back.
    pub fn revoked(&self) -> watch::Receiver<Revoked> {
        self.0.revoked.subscribe()
    }
}

impl Shared {
    fn ownership(&self) -> MutexGuard<'_, Ownership> {
        lock(&self.ownership)
    }

    fn revoke(&self, record: RevokedRecord) {
        self.revoked.send_modify(|revoked| {
            if let Some(forgotten) = revoked.revoke(record) {
                tracing::warn!(which = ?forgotten.which, "too many revocations: the oldest is forgotten");
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
