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
mod records;
mod urls;
mod webhooks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::Member;
use cluster::token::Keys;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use http::Api;
pub(crate) use urls::Urls;

use follower::Follower;
use listener::{ApiKeys, Listener};
use metrics::Metrics;
use outbox::Outbox;
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
    pub(crate) urls: Urls,
    /// The streams of this node, if it has an origin.
    pub(crate) origin: Option<origin::Control>,
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
        Ok(Service { api: Arc::new(api), listener, follower, deliverer })
    }

    /// For the admin listener, which answers for the API too.
    pub(crate) fn api(&self) -> Arc<Api> {
        self.api.clone()
    }

    /// Where its own listener is.
    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(Listener::addr)
    }

    /// Serves until `shutdown`.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        let Service { api, listener, follower, deliverer } = self;
        let mut tasks = JoinSet::new();
        let (records, stop) = (api.records.clone(), shutdown.clone());
        tasks.spawn(async move { records.run(stop).await });
        let stop = shutdown.clone();
        tasks.spawn(async move { follower.run(stop).await });
        let stop = shutdown.clone();
        tasks.spawn(async move { deliverer.run(stop).await });
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
