//! Mirrors: an origin holds the windows of the streams that would come to it next, and goes on with them when their owner
//! is lost.
//!
//! [`plan`] says which streams those are, [`wire`] and [`copy`] how a stream is told and copied; `tell` is the owner's
//! shell, `follow` the mirror's. This file keeps what is mirrored and answers for it while nobody owns it.
//! `docs/failover.md` tells the whole.

pub mod copy;
mod follow;
pub mod plan;
mod tell;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use media::{Epoch, StreamName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Shared;
use crate::live::{Live, State};
use plan::Members;
use wire::Listed;

pub(crate) use follow::run;
pub(crate) use tell::{QUEUE, tell_stream, tell_streams};

/// How long a request may wait to learn whether the owner lives: there is a sign of life every half a second.
const DOUBT: Duration = Duration::from_secs(1);

/// What an origin knows of the others and has of their streams.
pub(crate) struct Mirrors {
    members: Members,
    inner: Mutex<Inner>,
    /// Grows when there may be something to mirror that was not.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// What each origin that is connected says it has. Bounded by the number of origins.
    lists: BTreeMap<String, Vec<Listed>>,
    mirrors: BTreeMap<StreamName, Arc<Mirror>>,
}

/// One stream that is mirrored.
pub(super) struct Mirror {
    pub(super) stream: StreamName,
    pub(super) owner: String,
    /// What was copied whole. Another one is put here when the owner had to tell everything once more.
    live: watch::Sender<Option<Arc<Live>>>,
    link: watch::Sender<Link>,
    /// A task has it, or had it until its connection was lost.
    runs: AtomicBool,
    stop: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// Heard from so many times.
    Up(u64),
    Lost,
}

impl Mirror {
    /// The owner has just shown that it is there.
    pub(super) fn heard(&self) {
        self.link.send_modify(|link| {
            *link = Link::Up(match link {
                Link::Up(times) => times.wrapping_add(1),
                Link::Lost => 0,
            });
        });
    }

    /// The owner is gone, or does not have the stream any more: until someone claims it, it is answered for here.
    pub(super) fn lost(&self, shared: &Arc<Shared>) {
        if !self.stop.is_cancelled()
            && self.link.send_replace(Link::Lost) != Link::Lost
            && let Some(live) = &*self.live.borrow()
        {
            info!(stream = %self.stream, owner = self.owner, "owner lost: its window is answered for here");
            shared.interrupted(live, true);
        }
    }

    /// From now on it is this that is answered, if the owner is lost.
    pub(super) fn copied(&self, shared: &Shared, live: Arc<Live>) {
        if let Some(before) = self.live.send_replace(Some(live)) {
            // Whoever reads the old copy finds the owner.
            shared.end_pushes(&before);
        }
    }

    fn is(&self, live: &Arc<Live>) -> bool {
        self.live.borrow().as_ref().is_some_and(|kept| Arc::ptr_eq(kept, live))
    }

    fn epoch(&self) -> Epoch {
        self.live.borrow().as_ref().map_or(Epoch(0), |live| live.standing().1)
    }
}

impl Mirrors {
    pub(crate) fn new(members: Members) -> Mirrors {
        Mirrors { members, inner: Mutex::default(), changes: watch::Sender::default() }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// The stream as it was when its owner was lost; `None` if it is not mirrored, or its owner lives. Waits for a sign of
    /// life or its absence, so that those who have just found the owner dead are not sent away.
    pub(crate) async fn orphan(&self, stream: &StreamName) -> Option<Arc<Live>> {
        let mirror = self.lock().mirrors.get(stream).cloned()?;
        let mut link = mirror.link.subscribe();
        if *link.borrow_and_update() != Link::Lost {
            // Without a word of it the owner is as good as gone.
            let heard = tokio::time::timeout(DOUBT, link.changed()).await.is_ok();
            if heard && *link.borrow() != Link::Lost {
                return None;
            }
        }
        mirror.live.borrow().clone()
    }

    /// The stream's copy, for a session that claims it; it is not mirrored any more.
    pub(crate) fn take(&self, shared: &Shared, stream: &StreamName) -> Option<Arc<Live>> {
        let mut inner = self.lock();
        let mirror = inner.mirrors.remove(stream)?;
        mirror.stop.cancel();
        shared.metrics.mirrored_streams.set(inner.mirrors.len() as i64);
        let live = mirror.live.borrow().clone()?;
        info!(%stream, owner = mirror.owner, "taken over with what was mirrored");
        shared.metrics.takeovers.inc();
        Some(live)
    }

    /// Whether it is this that is answered for the stream, if its owner is lost.
    pub(crate) fn has(&self, live: &Arc<Live>) -> bool {
        self.lock().mirrors.get(live.name()).is_some_and(|mirror| mirror.is(live))
    }

    /// Forgets a copy that nobody claimed.
    pub(crate) fn forget(&self, shared: &Shared, live: &Arc<Live>) {
        let mut inner = self.lock();
        if inner.mirrors.get(live.name()).is_some_and(|mirror| mirror.is(live))
            && let Some(mirror) = inner.mirrors.remove(live.name())
        {
            mirror.stop.cancel();
            shared.metrics.mirrored_streams.set(inner.mirrors.len() as i64);
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// An origin said what it has; `None`: it is not connected any more.
    pub(super) fn listed(&self, shared: &Arc<Shared>, peer: &str, list: Option<Vec<Listed>>) {
        let mut inner = self.lock();
        match list {
            Some(list) => inner.lists.insert(peer.into(), list),
            None => inner.lists.remove(peer),
        };
        self.fence(shared, &inner);
        self.reconcile(shared, &mut inner);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// What is to be mirrored from an origin and has no task yet.
    pub(super) fn begin(&self, peer: &str) -> Vec<Arc<Mirror>> {
        let inner = self.lock();
        let theirs = inner.mirrors.values().filter(|mirror| mirror.owner == peer);
        theirs.filter(|mirror| !mirror.runs.swap(true, Ordering::Relaxed)).cloned().collect()
    }

    /// The connection to an origin is lost, and with it the tasks that mirrored its streams.
    pub(super) fn lost(&self, shared: &Arc<Shared>, peer: &str) {
        let inner = self.lock();
        for mirror in inner.mirrors.values().filter(|mirror| mirror.owner == peer) {
            mirror.runs.store(false, Ordering::Relaxed);
            mirror.lost(shared);
        }
    }

    /// The stream is over: its owner said so.
    pub(super) fn over(&self, shared: &Shared, mirror: &Arc<Mirror>) {
        let mut inner = self.lock();
        if inner.mirrors.get(&mirror.stream).is_some_and(|kept| Arc::ptr_eq(kept, mirror)) {
            inner.mirrors.remove(&mirror.stream);
            shared.metrics.mirrored_streams.set(inner.mirrors.len() as i64);
        }
    }

    /// Streams that another origin writes under a higher epoch are not written here any more, whatever this process missed
    /// while it was frozen or cut off.
    fn fence(&self, shared: &Shared, inner: &Inner) {
        for Listed { name, epoch, .. } in inner.lists.values().flatten().filter(|listed| listed.live) {
            if let Some(live) = shared.stream(name)
                && live.standing().1 < *epoch
                && live.standing().0 != State::Offline
            {
                warn!(stream = %name, %epoch, "another origin has taken the stream over");
                shared.metrics.fenced.inc();
                shared.store.outbid(name.as_str(), epoch.0);
                shared.withdraw(&live);
            }
        }
    }

    /// Begins and ends mirrors as the lists have it.
    fn reconcile(&self, shared: &Arc<Shared>, inner: &mut Inner) {
        // Of two that say they have a stream the later one does.
        let mut owners = BTreeMap::<&StreamName, (Epoch, &str)>::new();
        for (owner, list) in &inner.lists {
            for listed in list {
                let newest = owners.entry(&listed.name).or_insert((listed.epoch, owner));
                *newest = (*newest).max((listed.epoch, owner));
            }
        }
        let up = |name: &str| inner.lists.contains_key(name);
        let own = |name: &StreamName, epoch: Epoch| {
            shared.stream(name).is_some_and(|live| live.standing().1 >= epoch)
        };
        let wanted = |name: &StreamName, epoch: Epoch, owner: &str| {
            self.members.mirrors(name.as_str(), owner, up) && !own(name, epoch)
        };
        inner.mirrors.retain(|name, mirror| {
            let keep = match owners.get(name) {
                // Nobody's: then it is answered for here, if it came so far.
                None => mirror.live.borrow().is_some(),
                Some((epoch, owner)) if *owner == mirror.owner => wanted(name, *epoch, owner),
                // Whoever wrote it last has it now.
                Some((epoch, _)) => *epoch <= mirror.epoch(),
            };
            if !keep {
                mirror.stop.cancel();
                if let Some(live) = &*mirror.live.borrow() {
                    shared.end_pushes(live);
                }
            }
            keep
        });
        for (name, (epoch, owner)) in owners {
            if inner.mirrors.contains_key(name) || !wanted(name, epoch, owner) {
                continue;
            }
            if inner.mirrors.len() >= shared.limits.get().mirrored {
                shared.metrics.mirrors_refused.inc();
                continue;
            }
            let mirror = Mirror {
                stream: name.clone(),
                owner: owner.to_owned(),
                live: watch::Sender::new(None),
                link: watch::Sender::new(Link::Up(0)),
                runs: AtomicBool::new(false),
                stop: shared.shutdown.child_token(),
            };
            inner.mirrors.insert(name.clone(), Arc::new(mirror));
        }
        shared.metrics.mirrored_streams.set(inner.mirrors.len() as i64);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
