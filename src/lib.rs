//! Builds the roles of a node from its configuration, joins them, and shuts them down in the direction of flow.
//!
//! This is the only file that knows all roles. They talk over network protocols only, also within one process: a fleet of
//! many machines is the same code with other addresses.
//!
//! [`Server::bind`], then [`Server::serve`]. Read [`config`] for what can be chosen.

mod adapters;
mod admin;
pub mod api;
pub mod cli;
pub mod config;
mod console;
mod fleet;
pub mod operator;
pub mod reload;
mod secrets;
mod status;
mod streams;
mod telemetry;
pub mod traces;
mod upgrade;
mod viewers;
mod whatif;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use anyhow::Context;
use net::tls::Clients;
use net::{Current, Identity};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use config::{Config, Role};
use operator::Operator;
use reload::Reloader;

/// A node whose ports are bound, but which does not serve yet.
pub struct Server {
    /// Where what listens, by name: `rtmp`, `rtmps`, `origin`, `shield`, `https`, `http`, `api`, `admin`.
    pub listeners: BTreeMap<&'static str, SocketAddr>,
    ingest: Option<ingest::Ingest>,
    origin: Option<origin::Origin>,
    archive: Option<archive::Writer>,
    shield: Option<edge::Edge>,
    edge: Option<edge::Edge>,
    admin: admin::Admin,
    api: api::Service,
    ready: Arc<AtomicBool>,
    /// An operator wants it to end.
    drain: CancellationToken,
    reloader: Reloader,
    fleet: fleet::Fleet,
    exporter: Option<traces::Exporter>,
}

impl Server {
    /// Makes what is missing on a first start (development certificates, token key) and binds every port. `file` is where
    /// `config` was read from.
    pub async fn bind(config: Config, file: &Path) -> anyhow::Result<Server> {
        let files = secrets::certificates(&config)?;
        let keys = Arc::new(secrets::token_keys(&config)?);
        let (inside, public) = (Identity::load(&files.fleet)?, Identity::load(&files.public)?);
        let client_tls = inside.client()?;
        let mut registry = Registry::default();
        let access = admin::Access::open(&config.admin, &files.fleet.ca, &mut registry)?;
        let mut in_use = secrets::InUse { publish: keys.clone(), watch: None, admin: access.tokens() };
        if !config.edge.playback.paths.is_empty() {
            in_use.watch = Some(Arc::new(secrets::playback_keys(&config)?));
        }
        telemetry::register(&mut registry);
        let (tracer, exporter) = traces::open(&config, &mut registry)?;
        let mut listeners = BTreeMap::new();

        // Origins first, then shields, edges and ingest: each may have a port that the system chose, which the next must know.
        let mut origins = config.cluster.origins.clone();
        let fleet = fleet::Fleet::open(&config, &mut registry).await.context("cluster")?;
        let member = fleet.member.clone();
        let (mut archive, mut kept) = (None, None);
        let origin = if config.has(Role::Origin) {
            let metrics = archive::Metrics::register(&mut registry);
            let opened = archive::open(&config.archive, &config.node.state_dir, metrics)?;
            let (writer, reader) = opened.unzip();
            archive = writer;
            let shared = config.archive.store == archive::config::Store::S3;
            kept = reader.map(|reader| origin::Kept { reader, shared });
            let deps = origin::Deps {
                keys: keys.clone(),
                store: member.clone(),
                instance: fleet.instance,
                archive: archive.as_ref().map(archive::Writer::sink).unwrap_or_default(),
                kept: kept.clone(),
                transcode: config.transcode.clone(),
                server_tls: inside.server(Clients::Fleet, &[b"h2", b"http/1.1"])?,
                tracer: tracer.clone(),
                metrics: origin::Metrics::register(&mut registry),
                transcode_metrics: transcode::Metrics::register(&mut registry),
                members: origin::mirror::plan::Members::new(config.node.name.clone(), member.origins()),
                client_tls: client_tls.clone(),
            };
            let origin = origin::Origin::bind(config.origin.clone(), deps).await.context("origin")?;
            listeners.insert("origin", origin.addr());
            config::fill_address(&mut origins, &config.node.name, origin.addr());
            fleet.announce(&config, Role::Origin, origin.addr());
            Some(origin)
        } else {
            None
        };
        fleet::list(&member, Role::Origin, &origins);
        let origins = member.origins();

        let edge_metrics = edge::Metrics::register(&mut registry);
        let mut shields = config.cluster.shields.clone();
        let shield = if config.has(Role::Shield) {
            let deps = edge::Deps {
                tier: "shield",
                upstreams: origins.clone(),
                client_tls: Some(client_tls.clone()),
                server_tls: Some(inside.server(Clients::Fleet, &[b"h2", b"http/1.1"])?),
                pages: None,
                playback_keys: None,
                pushes_on: true,
                tracer: tracer.clone(),
                metrics: edge_metrics.clone(),
            };
            let shield = edge::Edge::bind(config.shield.clone(), deps).await.context("shield")?;
            if let Some(addr) = shield.https_addr() {
                listeners.insert("shield", addr);
                config::fill_address(&mut shields, &config.node.name, addr);
                fleet.announce(&config, Role::Shield, addr);
            }
            Some(shield)
        } else {
            None
        };

        fleet::list(&member, Role::Shield, &shields);
        let edge = if config.has(Role::Edge) {
            // Without shields an edge asks the origins itself.
            let upstreams = member.shields().or(&origins);
            let deps = edge::Deps {
                tier: "edge",
                upstreams,
                client_tls: Some(client_tls.clone()),
                server_tls: Some(public.server(Clients::Anyone, &[b"h2", b"http/1.1"])?),
                pages: Some(Arc::new(adapters::WatchPages)),
                playback_keys: in_use.watch.clone(),
                pushes_on: false,
                tracer: tracer.clone(),
                metrics: edge_metrics,
            };
            let edge = edge::Edge::bind(config.edge.clone(), deps).await.context("edge")?;
            if let Some(addr) = edge.https_addr().or(edge.http_addr()) {
                fleet.announce(&config, Role::Edge, addr);
            }
            listeners.extend(edge.https_addr().map(|addr| ("https", addr)));
            listeners.extend(edge.http_addr().map(|addr| ("http", addr)));
            Some(edge)
        } else {
            None
        };

        let ingest = if config.has(Role::Ingest) {
            let deps = ingest::Deps {
                origins,
                keys: keys.clone(),
                server_tls: public.server(Clients::Anyone, &[])?,
                client_tls,
                tracer,
                metrics: ingest::Metrics::register(&mut registry),
            };
            let ingest = ingest::Ingest::bind(config.ingest.clone(), deps).await.context("ingest")?;
            if let Some(addr) = ingest.rtmps_addr().or(ingest.rtmp_addr()) {
                fleet.announce(&config, Role::Ingest, addr);
            }
            listeners.extend(ingest.rtmp_addr().map(|addr| ("rtmp", addr)));
            listeners.extend(ingest.rtmps_addr().map(|addr| ("rtmps", addr)));
            Some(ingest)
        } else {
            None
        };

        let tiers: Vec<_> = [&shield, &edge].into_iter().flatten().map(edge::Edge::control).collect();
        let streams = streams::Streams {
            origin: origin.as_ref().map(origin::Origin::control),
            board: ingest.as_ref().map(ingest::Ingest::board),
            tiers: tiers.clone(),
        };
        if let Some(board) = &streams.board {
            registry.register_collector(Box::new(streams::Warnings(board.clone())));
        }
        let urls = Current::from(api::Urls::new(&config, &listeners, in_use.watch.clone()));
        let public_tls = public.server(Clients::Anyone, &[b"h2", b"http/1.1"])?;
        let deps = api::Deps {
            node: config.node.name.clone(),
            member: member.clone(),
            keys: keys.clone(),
            urls: urls.clone(),
            origin: streams.origin.clone(),
            kept,
            grace: config.origin.reconnect_grace,
            board: streams.board.clone(),
            tls: public_tls,
        };
        let api = api::Service::bind(config.api.clone(), config.webhooks.clone(), deps, &mut registry);
        let api = api.await.context("api")?;
        listeners.extend(api.addr().map(|addr| ("api", addr)));
        let ready = Arc::new(AtomicBool::new(false));
        let listen = config.admin.listen;
        let drain = CancellationToken::new();
        let sink = archive.as_ref().map(archive::Writer::sink).unwrap_or_default();
        let (control, contact) = (streams.origin.clone(), member.contact());
        let viewers = viewers::Viewers::new(config.node.name.clone(), member.clone(), &tiers);
        let console = console::Console::new(member.clone(), streams.clone(), viewers.clone());
        let operator = Operator::new(tiers.clone());
        let parts = reload::Parts {
            operator: operator.clone(),
            fleet: inside,
            public,
            admin: access.identity(),
            keys: in_use,
            api_keys: api.keys(),
            urls,
            tiers,
            ingest: ingest.as_ref().map(ingest::Ingest::control),
            origin: streams.origin.clone(),
            member: member.clone(),
            listeners: listeners.clone(),
        };
        let reloads = reload::Metrics::register(&mut registry);
        let reloader = Reloader::new(file.to_owned(), config.clone(), parts, reloads);
        let status = status::Status::new(
            &config,
            &listeners,
            ready.clone(),
            drain.clone(),
            member,
            status::Parts { archive: sink.clone(), origin: control, reloader: reloader.clone() },
        );
        let parts = admin::Parts {
            access,
            store: contact,
            archive: sink,
            api: api.api(),
            status,
            console,
            viewers,
            reloader: reloader.clone(),
        };
        let admin = admin::Admin::bind(listen, registry, ready.clone(), operator, streams, parts);
        let admin = admin.await.context("admin")?;
        listeners.insert("admin", admin.addr());
        Ok(Server {
            listeners,
            ingest,
            origin,
            archive,
            shield,
            edge,
            admin,
            api,
            ready,
            drain,
            reloader,
            fleet,
            exporter,
        })
    }

    /// A handle to read its configuration again with while it serves.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves until `shutdown` or an operator drains it; then ends the roles one after the other in the direction of flow, each within its own
    /// drain time, so that what a broadcaster sent before still reaches the viewers. A role that ends by itself ends the
    /// node: half a node would look healthy and lose what is sent to it.
    /// Where the next process has taken over (`handed` is cancelled before `shutdown`), nothing new is for this one: all
    /// stop to accept at once, the operators' listener too.
    pub async fn serve(self, shutdown: CancellationToken, handed: CancellationToken) -> anyhow::Result<()> {
        let leave = CancellationToken::new();
        let fleet = tokio::spawn(self.fleet.serve(leave.clone()));
        let mut roles = Vec::new();
        let mut start = |name, serve: Option<(JoinHandle<()>, CancellationToken)>| {
            roles.extend(serve.map(|(task, stop)| Running { name, task, stop }));
        };
        let stops = [(); 5].map(|()| CancellationToken::new());
        let [ingest, origin, archive, shield, edge] = stops;
        start("ingest", self.ingest.map(|role| (tokio::spawn(role.serve(ingest.clone())), ingest)));
        start("origin", self.origin.map(|role| (tokio::spawn(role.serve(origin.clone())), origin)));
        start("archive", self.archive.map(|role| (tokio::spawn(role.serve(archive.clone())), archive)));
        start("shield", self.shield.map(|role| (tokio::spawn(role.serve(shield.clone())), shield)));
        start("edge", self.edge.map(|role| (tokio::spawn(role.serve(edge.clone())), edge)));
        let stop_admin = CancellationToken::new();
        let admin = tokio::spawn(self.admin.serve(stop_admin.clone()));
        let stop_api = CancellationToken::new();
        let api = tokio::spawn(self.api.serve(stop_api.clone()));
        let watch = tokio::spawn(reload::watch::run(self.reloader, stop_admin.clone()));
        let stop_traces = CancellationToken::new();
        let traces = self.exporter.map(|exporter| tokio::spawn(exporter.run(stop_traces.clone())));

        self.ready.store(true, Ordering::Relaxed);
        let failed = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            () = self.drain.cancelled() => None,
            name = first_ended(&mut roles) => Some(name),
        };
        self.ready.store(false, Ordering::Relaxed);
        if handed.is_cancelled() {
            roles.iter().for_each(|role| role.stop.cancel());
            stop_api.cancel();
            stop_admin.cancel();
        }
        for Running { name, task, stop } in roles {
            info!(role = name, "stopping");
            stop.cancel();
            if let Err(error) = task.await {
                tracing::error!(role = name, %error, "role failed");
            }
        }
        stop_api.cancel();
        api.await?;
        // Last of the node's work: what the roles did at their end is written.
        leave.cancel();
        fleet.await?;
        stop_admin.cancel();
        admin.await?;
        watch.await?;
        stop_traces.cancel();
        if let Some(traces) = traces {
            traces.await?;
        }
        match failed {
            None => Ok(()),
            Some(name) => anyhow::bail!("role {name} ended by itself"),
        }
    }
}

/// A role at work.
struct Running {
    name: &'static str,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

/// Takes the first role out that ends, and names it.
async fn first_ended(roles: &mut Vec<Running>) -> &'static str {
    let (index, result) = std::future::poll_fn(|cx| {
        for (index, role) in roles.iter_mut().enumerate() {
            if let Poll::Ready(result) = Pin::new(&mut role.task).poll(cx) {
                return Poll::Ready((index, result));
            }
        }
        Poll::Pending
    })
    .await;
    let name = roles.remove(index).name;
    if let Err(error) = result {
        tracing::error!(role = name, %error, "role failed");
    }
    name
}
