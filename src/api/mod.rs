//! The Live API: broadcasts are created, followed and ended over REST, and other services are told of it by webhooks.
//!
//! All that it knows are records in the fleet's store, so that any node answers for all. Media and sessions are the
//! business of the roles: the API signs tokens, looks at the origin's streams, and revokes tokens.
//!
//! Read [`broadcast`] and [`follow`] for the rules, [`http`] for the requests, [`webhooks`] for the deliveries, and
//! `openapi.json` for what is promised.

mod broadcast;
pub mod config;
mod create;
pub mod events;
mod follow;
mod follower;
mod http;
mod listener;
mod metrics;
mod outbox;
mod problem;
mod recordings;
mod records;
mod urls;
mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::Member;
use cluster::token::Keys;
use net::Current;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use http::Api;
pub(crate) use listener::ApiKeys;
pub(crate) use urls::Urls;

use follower::Follower;
use listener::Listener;
use metrics::Metrics;
use outbox::Outbox;
use recordings::Recordings;
use records::Records;
use webhooks::Deliverer;

/// What the API needs from the rest of the process.
pub(crate) struct Deps {
    /// Its node.
    pub(crate) node: String,
    /// Where the records are, and who takes tokens back.
    pub(crate) member: Member,
    /// What tokens are signed with.
    pub(crate) keys: Arc<Keys>,
    pub(crate) urls: Current<Urls>,
    /// The streams of this node, if it has an origin.
    pub(crate) origin: Option<origin::Control>,
    /// What is kept, if it has an origin that keeps something.
    pub(crate) kept: Option<origin::Kept>,
    /// `origin.reconnect_grace`.
    pub(crate) grace: Duration,
    /// What comes in at this node, if it has an ingest.
    pub(crate) board: Option<ingest::health::Board>,
    /// The public certificate, for a listener of its own.
    pub(crate) tls: Arc<rustls::ServerConfig>,
}

/// The API with its port bound.
pub(crate) struct Service {
    api: Arc<Api>,
    listener: Option<Listener>,
    follower: Follower,
    recordings: Option<Recordings>,
    deliverer: Deliverer,
}

impl Service {
    /// Binds its own listener, if it is to have one, and reads keys and secrets.
    pub(crate) async fn bind(
        config: config::Api,
        webhooks: config::Webhooks,
        deps: Deps,
        registry: &mut Registry,
    ) -> anyhow::Result<Service> {
        let metrics = Metrics::register(registry);
        let listener = match config.listen {
            None => None,
            Some(addr) => Some(Listener::bind(addr, deps.tls, ApiKeys::read(&config)?).await?),
        };
        let records = Arc::new(Records::new(deps.member.store()));
        let deliverer = Deliverer::new(&deps.node, webhooks.clone(), records.clone(), metrics.clone())
            .context("webhooks")?;
        let outbox = Arc::new(Outbox { records: records.clone(), webhooks, metrics: metrics.clone() });
        let recordings = deps.kept.map(|kept| Recordings {
            node: deps.node.clone(),
            member: deps.member.clone(),
            outbox: outbox.clone(),
            reader: kept.reader,
            shared: kept.shared,
        });
        let follower = Follower {
            node: deps.node,
            member: deps.member,
            outbox: outbox.clone(),
            origin: deps.origin,
            grace: deps.grace,
        };
        let api = Api {
            records,
            outbox,
            urls: deps.urls,
            keys: deps.keys,
            board: deps.board,
            max_broadcasts: config.max_broadcasts,
            metrics,
        };
        Ok(Service { api: Arc::new(api), listener, follower, recordings, deliverer })
    }

    /// For the admin listener, which answers for the API too.
    pub(crate) fn api(&self) -> Arc<Api> {
        self.api.clone()
    }

    /// Who may use its own listener.
    pub(crate) fn keys(&self) -> Option<Current<ApiKeys>> {
        self.listener.as_ref().map(Listener::keys)
    }

    /// Where its own listener is.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(Listener::addr)
    }

    /// Serves until `shutdown`.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Service { api, listener, follower, recordings, deliverer } = self;
        let mut tasks = JoinSet::new();
        let records = api.records.clone();
        tasks.spawn(persist("records", shutdown.clone(), move |stop| {
            let records = records.clone();
            async move { records.run(stop).await }
        }));
        let follower = Arc::new(follower);
        tasks.spawn(persist("follower", shutdown.clone(), move |stop| {
            let follower = follower.clone();
            async move { follower.run(stop).await }
        }));
        if let Some(recordings) = recordings.map(Arc::new) {
            tasks.spawn(persist("recordings", shutdown.clone(), move |stop| {
                let recordings = recordings.clone();
                async move { recordings.run(stop).await }
            }));
        }
        let deliverer = Arc::new(deliverer);
        tasks.spawn(persist("webhooks", shutdown.clone(), move |stop| {
            let deliverer = deliverer.clone();
            async move { deliverer.run(stop).await }
        }));
        if let Some(listener) = listener {
            tasks.spawn(listener.serve(api, shutdown));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the API failed");
            }
        }
    }
}

/// Before a part that has failed begins anew.
const BEGIN_ANEW: Duration = Duration::from_secs(1);

/// Runs a part of the API to its end. One that panics begins anew: all that it has to do is in the store.
async fn persist<F>(name: &'static str, shutdown: CancellationToken, begin: impl Fn(CancellationToken) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(error) = tokio::spawn(begin(shutdown.clone())).await {
        tracing::error!(part = name, %error, "a part of the API failed: it begins anew");
        if shutdown.run_until_cancelled(tokio::time::sleep(BEGIN_ANEW)).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_begins_anew() {
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        persist("test", CancellationToken::new(), move |_| {
            let times = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(times >= 2, "not yet") }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
