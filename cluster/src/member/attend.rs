//! Keeps a node in touch with its store: lease and node records, watches, what is to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Contact, Shared, lock};
use crate::lease::{News, unix_ms};
use crate::record::{
    self, NODES, NodeRecord, REVOKED, RevokedRecord, Role, STREAMS, StreamRecord, StreamState,
};
use crate::ring::{Member, Node};
use crate::store::{Change, Entry, Error, LeaseId, Listing, Outcome, Txn, Watch};

/// First pause after the store was lost; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// At the end: for what is left to be written, and to end the lease.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Node records are written no more often than this: their loads change with every stream.
const SAY_EVERY: Duration = Duration::from_millis(200);

/// How often what is over is looked for, and live streams are written once more.
pub(super) const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// A stream's record is taken away when it is over or its owner gone, and nobody has written it for so long: epochs follow the
/// wall clock too, and a day is longer than clocks differ.
const STALE_MS: i64 = 24 * 3600 * 1000;

/// Records taken away in one round.
const MAX_REMOVED: usize = 100;

/// Own changes whose return by the watch is awaited.
const MAX_UNHEARD: usize = 256;

pub(super) async fn serve(shared: &Shared, shutdown: CancellationToken) {
    let mut lease = None;
    let mut pause = FIRST_PAUSE;
    while let Some(ended) = shutdown.run_until_cancelled(attend(shared, &mut lease)).await {
        let Err(error) = ended;
        shared.metrics.store_up.set(0);
        let was_up = *shared.contact.borrow() == Contact::Up;
        if was_up {
            shared.metrics.store_losses.inc();
            pause = FIRST_PAUSE;
        }
        if let Error::LeaseEnded(_) = error {
            warn!("this node was gone for the others: its lease has ended");
            lease = None;
        }
        let why = error.to_string();
        shared.contact.send_if_modified(|contact| {
            let now = match contact {
                Contact::Never(_) => Contact::Never(why.clone()),
                Contact::Up => {
                    warn!(error = why, "the store is lost: streams go on, new ones are refused");
                    Contact::Lost(why.clone())
                }
                Contact::Lost(_) => Contact::Lost(why.clone()),
            };
            std::mem::replace(contact, now.clone()) != now
        });
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let leave = async {
        let mut watched = Watched::default();
        write_all(shared, &mut watched).await?;
        match lease {
            Some(lease) => shared.store.revoke(lease).await,
            None => Ok(()),
        }
    };
    match tokio::time::timeout(LEAVE_TIMEOUT, leave).await {
        Ok(Ok(())) => {}
        // The lease ends by itself.
        Ok(Err(error)) => info!(%error, "left without telling the store"),
        Err(_) => info!("left without telling the store: it does not answer"),
    }
}

/// Own changes that the watch has not told of yet, by revision.
#[derive(Default)]
struct Watched(BTreeMap<u64, Instant>);

impl Watched {
    fn did(&mut self, revision: u64) {
        if self.0.len() < MAX_UNHEARD {
            self.0.insert(revision, Instant::now());
        }
    }

    fn heard(&mut self, shared: &Shared, changes: &[Change]) {
        for change in changes {
            if let Some(did) = self.0.remove(&change.revision()) {
                shared.metrics.watch_lag.observe(did.elapsed().as_secs_f64());
            }
        }
    }
}

/// As long as the store is there.
async fn attend(shared: &Shared, lease: &mut Option<LeaseId>) -> Result<Infallible, Error> {
    let ttl = shared.options.lease_ttl;
    if let Some(id) = *lease
        && !shared.store.keep_alive(id).await?
    {
        return Err(Error::LeaseEnded(id));
    }
    // First of all what others have claimed meanwhile.
    let mut streams = follow(shared, STREAMS, handle_streams).await?;
    let mut nodes = follow(shared, NODES, handle_nodes).await?;
    let mut revoked = follow(shared, REVOKED, handle_revoked).await?;
    let id = match *lease {
        Some(id) => id,
        None => *lease.insert(shared.store.grant(ttl).await?),
    };
    let mut watched = Watched::default();
    let mut own = shared.own_nodes.subscribe();
    say_nodes(shared, &mut own, id, &mut watched).await?;
    write_all(shared, &mut watched).await?;
    shared.metrics.store_up.set(1);
    match shared.contact.send_replace(Contact::Up) {
        Contact::Never(_) => info!("the store is there"),
        _ => info!(streams = shared.ownership().len(), "the store is back: all is reconciled"),
    }

    let mut beats = interval(ttl / 3);
    let mut housekeeping = interval(HOUSEKEEPING);
    let mut say_at = None;
    loop {
        let say = async {
            match say_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changes = streams.next() => {
                let changes = changes?;
                watched.heard(shared, &changes);
                changes.into_iter().for_each(|change| handle_stream(shared, change));
                // A record that was taken away is written anew.
                write_all(shared, &mut watched).await?;
            }
            changes = nodes.next() => {
                let changes = changes?;
                watched.heard(shared, &changes);
                changes.into_iter().for_each(|change| handle_node(shared, change));
                set_rings(shared);
            }
            changes = revoked.next() => changes?.into_iter().for_each(|change| handle_revocation(shared, change)),
            _ = beats.tick() => {
                if !shared.store.keep_alive(id).await? {
                    return Err(Error::LeaseEnded(id));
                }
            }
            () = shared.unwritten.notified() => write_all(shared, &mut watched).await?,
            _ = own.changed(), if say_at.is_none() => say_at = Some(tokio::time::Instant::now() + SAY_EVERY),
            () = say => {
                say_at = None;
                say_nodes(shared, &mut own, id, &mut watched).await?;
            }
            _ = housekeeping.tick() => {
                shared.ownership().touch();
                write_all(shared, &mut watched).await?;
                keep_house(shared).await?;
            }
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Takes in all that is there under `prefix`; then what changes.
async fn follow(
    shared: &Shared,
    prefix: &str,
    take_in: fn(&Shared, Listing),
) -> Result<Box<dyn Watch>, Error> {
    let listing = shared.store.list(prefix).await?;
    let revision = listing.revision;
    take_in(shared, listing);
    shared.store.watch(prefix, revision).await
}

/// Writes this node's records of itself, under its lease.
async fn say_nodes(
    shared: &Shared,
    own: &mut tokio::sync::watch::Receiver<BTreeMap<Role, NodeRecord>>,
    lease: LeaseId,
    watched: &mut Watched,
) -> Result<(), Error> {
    let records = own.borrow_and_update().clone();
    if records.is_empty() {
        return Ok(());
    }
    let put = |txn: Txn, node: &NodeRecord| txn.put(node.key(), record::text(node), Some(lease));
    let txn = records.values().fold(Txn::new(), put);
    if let Outcome::Done(revision) = shared.store.txn(txn).await? {
        watched.did(revision);
    }
    Ok(())
}

/// Writes what the store does not know yet.
async fn write_all(shared: &Shared, watched: &mut Watched) -> Result<(), Error> {
    loop {
        let Some((stream, txn)) = shared.ownership().poll_write(SystemTime::now()) else { break };
        let outcome = shared.store.txn(txn.clone()).await;
        let news = shared.ownership().handle_written(&stream, &txn, outcome.as_ref().ok());
        tell(shared, &stream, news);
        if let Outcome::Done(revision) = outcome? {
            watched.did(revision);
        }
    }
    loop {
        let Some((which, revocation)) = lock(&shared.unsaid).pop_first() else { return Ok(()) };
        let txn = Txn::new().put(revocation.key(), record::text(&revocation), None);
        match shared.store.txn(txn).await {
            Ok(_) => {}
            // It would be refused for ever: it stays in force here.
            Err(error @ Error::Refused(_)) => error!(?which, %error, "a revocation is in force here only"),
            Err(error) => {
                lock(&shared.unsaid).insert(which, revocation);
                return Err(error);
            }
        }
    }
}

fn tell(shared: &Shared, stream: &str, news: News) {
    if news == News::Fenced {
        warn!(stream, "another node has claimed the stream: this one stops");
        shared.metrics.fenced_streams.inc();
        shared.owned.send_replace(());
    }
}

fn parsed<T: serde::de::DeserializeOwned>(shared: &Shared, entry: &Entry) -> Option<T> {
    let read = record::read(&entry.key, &entry.value);
    read.inspect_err(|error| {
        shared.metrics.bad_records.inc();
        warn!(error, "a record of the store is left aside");
    })
    .ok()
}

fn handle_streams(shared: &Shared, listing: Listing) {
    let mut found = BTreeMap::new();
    for entry in &listing.entries {
        if let (Some(stream), Some(record)) = (entry.key.strip_prefix(STREAMS), parsed(shared, entry)) {
            found.insert(stream.to_owned(), (record, entry.revision));
        }
    }
    let owners = found.iter().filter_map(|(stream, (record, _)): (&String, &(StreamRecord, u64))| {
        Some((stream.clone(), has_it(record)?.to_owned()))
    });
    shared.origins.set_owners(owners.collect());
    let fenced = shared.ownership().reconcile(found, listing.revision);
    fenced.iter().for_each(|stream| tell(shared, stream, News::Fenced));
}

fn handle_stream(shared: &Shared, change: Change) {
    let (stream, found, revision) = match &change {
        Change::Put(entry) => {
            let record: Option<StreamRecord> = parsed(shared, entry);
            (entry.key.strip_prefix(STREAMS), record.map(|record| (record, entry.revision)), entry.revision)
        }
        Change::Delete { key, revision } => (key.strip_prefix(STREAMS), None, *revision),
    };
    let Some(stream) = stream else { return };
    shared.origins.set_owner(stream, found.as_ref().and_then(|(record, _)| has_it(record)));
    let news = shared.ownership().handle_change(stream, found, revision);
    tell(shared, stream, news);
}

fn has_it(record: &StreamRecord) -> Option<&str> {
    (record.state != StreamState::Ended).then_some(record.owner.as_str())
}

fn handle_nodes(shared: &Shared, listing: Listing) {
    let records =
        listing.entries.iter().filter_map(|entry| Some((entry.key.clone(), parsed(shared, entry)?)));
    let records = records.collect();
    *lock(&shared.nodes) = records;
    set_rings(shared);
}

fn handle_node(shared: &Shared, change: Change) {
    let mut nodes = lock(&shared.nodes);
    match change {
        Change::Put(entry) => {
            let Some(record) = parsed::<NodeRecord>(shared, &entry) else {
                nodes.remove(&entry.key);
                return;
            };
            let mine = shared
                .own_nodes
                .borrow()
                .get(&record.role)
                .is_some_and(|own| own.name == record.name && own.instance != record.instance);
            if mine {
                error!(name = record.name, address = record.address, "another node has the name of this one");
            }
            nodes.insert(entry.key, record);
        }
        Change::Delete { key, .. } => drop(nodes.remove(&key)),
    }
}

/// The rings follow the node records.
fn set_rings(shared: &Shared) {
    let nodes = lock(&shared.nodes);
    shared.metrics.nodes.set(nodes.len() as i64);
    if !shared.options.follow_nodes {
        return;
    }
    for (role, ring) in [(Role::Origin, &shared.origins), (Role::Shield, &shared.shields)] {
        let of_role = nodes.values().filter(|node| node.role == role).map(|record| Member {
            node: Node { name: record.name.clone(), address: record.address.clone() },
            capacity: record.capacity,
            load: record.load,
            draining: record.draining,
        });
        ring.set_members(of_role.collect());
    }
}

fn handle_revoked(shared: &Shared, listing: Listing) {
    let there: Vec<RevokedRecord> =
        listing.entries.iter().filter_map(|entry| parsed(shared, entry)).collect();
    // What is in force here, and not there, was not heard there or was lost: it is said again.
    let known: BTreeSet<_> = there.iter().map(|record| &record.which).collect();
    let here = shared.revoked.borrow().clone();
    let missing = here.records().filter(|record| !known.contains(&record.which));
    lock(&shared.unsaid).extend(missing.map(|record| (record.which.clone(), record.clone())));
    there.into_iter().for_each(|record| shared.revoke(record));
}

fn handle_revocation(shared: &Shared, change: Change) {
    match change {
        Change::Put(entry) => {
            if let Some(record) = parsed(shared, &entry) {
                shared.revoke(record);
            }
        }
        Change::Delete { key, .. } => {
            let gone = shared.revoked.borrow().records().find(|record| record.key() == key).cloned();
            if let Some(gone) = gone {
                shared.revoked.send_modify(|revoked| revoked.forget(&gone.which));
            }
        }
    }
}

/// Takes away what is over: origins do, for all.
async fn keep_house(shared: &Shared) -> Result<(), Error> {
    if !shared.own_nodes.borrow().contains_key(&Role::Origin) {
        return Ok(());
    }
    let now = SystemTime::now();
    let expired = shared.revoked.borrow().expired(u64::try_from(unix_ms(now) / 1000).unwrap_or(0));
    for record in expired.into_iter().take(MAX_REMOVED) {
        shared.store.txn(Txn::new().delete(record.key())).await?;
        shared.revoked.send_modify(|revoked| revoked.forget(&record.which));
    }
    for (stream, revision) in stale(shared, unix_ms(now)) {
        let key = record::stream_key(&stream);
        shared.store.txn(Txn::new().if_revision(key.clone(), revision).delete(key)).await?;
    }
    Ok(())
}

fn stale(shared: &Shared, now_ms: i64) -> Vec<(String, u64)> {
    let ownership = shared.ownership();
    let nodes = lock(&shared.nodes);
    let is_there = |record: &StreamRecord| {
        let node = nodes.get(&record::node_key(Role::Origin, &record.owner));
        node.is_some_and(|node| node.instance == record.instance)
    };
    let stale = ownership.seen().iter().filter(|(stream, (record, _))| {
        let over = record.state == StreamState::Ended || !is_there(record);
        over && ownership.record(stream).is_none() && now_ms - record.updated > STALE_MS
    });
    stale.take(MAX_REMOVED).map(|(stream, (_, revision))| (stream.clone(), *revision)).collect()
}
