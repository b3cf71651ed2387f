//! Delivers events to the receivers of `[webhooks]`: one node of the fleet does at a time, and keeps what is not delivered
//! in the store.
//!
//! Read [`schedule`] for what is sent when, `signature` for how it is signed; this is the shell around both.

mod flights;
mod schedule;
mod send;
pub(crate) mod signature;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use cluster::store::{Error, LeaseId, Outcome, Txn};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::config::{Endpoint, Webhooks};
use super::metrics::{Attempt, Dropped, Metrics, Receiver};
use super::records::{self, Records};
use flights::{Flight, Flights};
use schedule::Schedule;
use send::{Answer, Sender};
use signature::Secrets;

/// After so long without a sign of life of the node that delivers, another one does.
const LEASE: Duration = Duration::from_secs(10);

/// Between two signs of life, and between two looks of those who would take over.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// Delivers what is in the outbox.
pub(crate) struct Deliverer {
    node: String,
    records: Arc<Records>,
    metrics: Metrics,
    config: Webhooks,
    receivers: Vec<Arc<Sender>>,
}

impl Deliverer {
    /// Reads the secrets. Fails if one cannot be used, or there is no trusted authority for an `https` receiver.
    pub(crate) fn new(
        node: &str,
        config: Webhooks,
        records: Arc<Records>,
        metrics: Metrics,
    ) -> anyhow::Result<Deliverer> {
        let client = send::client(&config)?;
        let receivers = config.endpoints.iter().map(|endpoint| {
            let secrets =
                secrets(endpoint).with_context(|| format!("webhook receiver {:?}", endpoint.name))?;
            let url = endpoint.url.parse().context("url")?;
            let (name, client) = (endpoint.name.clone(), client.clone());
            anyhow::Ok(Arc::new(Sender { name, url, secrets, client, timeout: config.timeout }))
        });
        let receivers = receivers.collect::<anyhow::Result<_>>()?;
        Ok(Deliverer { node: node.into(), records, metrics, config, receivers })
    }

    /// Delivers until `shutdown`, whenever it is this node's turn.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        if self.receivers.is_empty() {
            return;
        }
        let mut known = self.records.changes();
        shutdown.run_until_cancelled(known.wait_for(Option::is_some)).await;
        let mut away = false;
        while !shutdown.is_cancelled() {
            match self.turn(&shutdown).await {
                Ok(()) => away = false,
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        warn!(%error, "webhooks wait: the store does not say whose turn it is");
                    }
                }
            }
            shutdown.run_until_cancelled(tokio::time::sleep(SIGN_OF_LIFE)).await;
        }
    }

    /// Waits for the turn, takes it if it is free, and delivers until it is lost.
    async fn turn(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let key = records::deliverer_key();
        if self.records.get(&key).await?.is_some() {
            return Ok(());
        }
        let store = self.records.store();
        let lease = store.grant(LEASE).await?;
        let txn = Txn::new().if_absent(&key).put(&key, &self.node, Some(lease));
        let taken = store.txn(txn).await;
        if !matches!(taken, Ok(Outcome::Done(_))) {
            store.revoke(lease).await?;
            return taken.map(|_| ());
        }
        info!("webhooks are delivered from here");
        let lost = shutdown.child_token();
        let deliver = async {
            let mut receivers = JoinSet::new();
            for sender in &self.receivers {
                let deliver = Delivery {
                    sender: sender.clone(),
                    records: self.records.clone(),
                    metrics: self.metrics.clone(),
                    config: self.config.clone(),
                };
                receivers.spawn(deliver.run(lost.clone()));
            }
            self.drop_removed().await;
            while let Some(ended) = receivers.join_next().await {
                if let Err(error) = ended {
                    // The turn ends, and what was on its way is sent again in the next.
                    tracing::error!(%error, "deliveries to a receiver failed");
                    lost.cancel();
                }
            }
        };
        tokio::join!(deliver, async {
            self.hold(lease, &lost).await;
            lost.cancel();
        });
        store.revoke(lease).await
    }

    /// Keeps the lease until it is lost or `stop` says so.
    async fn hold(&self, lease: LeaseId, stop: &CancellationToken) {
        let mut alive = Instant::now();
        while stop.run_until_cancelled(tokio::time::sleep(SIGN_OF_LIFE)).await.is_some() {
            match self.records.store().keep_alive(lease).await {
                Ok(true) => alive = Instant::now(),
                Ok(false) => return warn!("another node delivers webhooks"),
                Err(error) if alive.elapsed() > LEASE / 2 => {
                    return warn!(%error, "webhooks wait: the store is away");
                }
                Err(_) => {}
            }
        }
    }

    /// Events of receivers that the configuration no longer has go.
    async fn drop_removed(&self) {
        let known: BTreeSet<_> =
            self.config.endpoints.iter().map(|endpoint| records::events_key(&endpoint.name)).collect();
        let orphans: Vec<_> = {
            let copy = self.records.copy();
            let removed = |key: &&String| !known.iter().any(|prefix| key.starts_with(prefix));
            copy.events.keys().filter(removed).cloned().collect()
        };
        for key in orphans {
            if self.records.commit(Txn::new().delete(key)).await.is_ok() {
                self.metrics.events_dropped.get_or_create(&Dropped { reason: "receiver_removed" }).inc();
            }
        }
    }
}

fn secrets(endpoint: &Endpoint) -> anyhow::Result<Secrets> {
    let text = match (&endpoint.secret_file, &endpoint.secret_env) {
        (Some(file), _) => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        (None, Some(name)) => std::env::var(name).with_context(|| format!("environment variable {name}"))?,
        (None, None) => String::new(),
    };
    Ok(Secrets::read(&text)?)
}

/// The events of one receiver.
struct Delivery {
    sender: Arc<Sender>,
    records: Arc<Records>,
    metrics: Metrics,
    config: Webhooks,
}

impl Delivery {
    async fn run(self, stop: CancellationToken) {
        let began = Instant::now();
        let now_ms = || began.elapsed().as_millis() as u64;
        let mut schedule = Schedule::new(self.config.backoff_max.as_millis() as u64);
        let mut changes = self.records.changes();
        let mut flights = Flights::default();
        // Delivered, but still there: the store could not be told.
        let mut done = BTreeSet::new();
        loop {
            changes.mark_unchanged();
            self.look(&mut schedule, &mut done);
            while let Some((broadcast, key)) = schedule.poll(now_ms()) {
                let event = self.records.copy().events.get(&key).map(|(_, event)| event.clone());
                // It made room for a newer one since.
                let Some(event) = event else {
                    schedule.taken(&broadcast, &key, now_ms());
                    continue;
                };
                let sender = self.sender.clone();
                let flight = Flight { broadcast, key, at_ms: event.at_ms };
                flights.begin(flight, async move { sender.send(&event).await });
            }
            let due = schedule.poll_timeout().map(|at| began + Duration::from_millis(at));
            // What could not be told is told again.
            let due = if done.is_empty() { due } else { due.max(Some(Instant::now() + SIGN_OF_LIFE)) };
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Those on their way are sent again by whoever delivers next: at least once.
                () = stop.cancelled() => return,
                Some((Flight { broadcast, key, at_ms }, answer)) = flights.next() => {
                    let over = self.is_over(&answer, at_ms);
                    match answer {
                        Answer::No { retry_after_ms, .. } if !over => {
                            schedule.failed(&broadcast, now_ms(), retry_after_ms, jitter());
                        }
                        _ => {
                            if self.records.commit(Txn::new().delete(&key)).await.is_err() {
                                done.insert(key.clone());
                            }
                            schedule.taken(&broadcast, &key, now_ms());
                        }
                    }
                }
                changed = changes.changed() => if changed.is_err() { return },
                () = timer => {
                    for key in done.clone() {
                        if self.records.commit(Txn::new().delete(&key)).await.is_ok() {
                            done.remove(&key);
                        }
                    }
                }
            }
        }
    }

    /// Whether an event is dealt with; counts how.
    fn is_over(&self, answer: &Answer, at_ms: u64) -> bool {
        let receiver = self.sender.name.clone();
        let attempt = |outcome| {
            self.metrics.attempts.get_or_create(&Attempt { receiver: receiver.clone(), outcome }).inc()
        };
        let dropped = |reason| self.metrics.events_dropped.get_or_create(&Dropped { reason }).inc();
        let (gone, why) = match answer {
            Answer::Taken => {
                attempt("delivered");
                return true;
            }
            Answer::No { status: Some(status), .. } => {
                attempt("refused");
                (status.as_u16() == 410, format!("status {status}"))
            }
            Answer::No { status: None, why, .. } => {
                attempt("failed");
                (false, why.clone())
            }
        };
        let late = unix_ms().saturating_sub(at_ms) > self.config.give_up.as_millis() as u64;
        if gone || late {
            warn!(receiver, why, "an event is dropped undelivered");
            dropped(if gone { "gone" } else { "gave_up" });
        } else {
            info!(receiver, why, "an event was not taken: it is sent again");
        }
        gone || late
    }

    fn look(&self, schedule: &mut Schedule, done: &mut BTreeSet<String>) {
        let copy = self.records.copy();
        done.retain(|key| copy.events.contains_key(key));
        let waiting: Vec<_> =
            copy.waiting(&self.sender.name).filter(|(key, _)| !done.contains(*key)).collect();
        let first = records::events_key(&self.sender.name);
        let of = |key: &'_ str| key[first.len()..].split('/').next().unwrap_or_default().len() + first.len();
        schedule.set(waiting.iter().map(|(key, _)| (&key[first.len()..of(key)], key.as_str())));
        let gauge =
            self.metrics.events_waiting.get_or_create(&Receiver { receiver: self.sender.name.clone() });
        gauge.set(waiting.len() as i64);
    }
}

/// 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 2];
    match rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => f64::from(u16::from_ne_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.0,
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
