//! How this node stands, for operators: `GET /admin/status`; and its end in good order: `POST /admin/drain`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, UNIX_EPOCH};

use cluster::Member;
use cluster::member::Contact;
use origin::live::State;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Config;
use crate::reload::Reloader;

/// Most streams of an answer.
const MAX_STREAMS: usize = 1000;

/// What is known of the node.
pub(crate) struct Status {
    node: String,
    roles: Vec<&'static str>,
    began: Instant,
    listeners: BTreeMap<&'static str, SocketAddr>,
    ready: Arc<AtomicBool>,
    drain: CancellationToken,
    store: watch::Receiver<Contact>,
    member: Member,
    parts: Parts,
}

/// What it shows of other parts of the node.
pub(crate) struct Parts {
    pub(crate) archive: archive::Sink,
    pub(crate) origin: Option<origin::Control>,
    pub(crate) reloader: Reloader,
}

impl Status {
    /// Of a node whose ports are bound, but for the admin listener's. `drain` ends it.
    pub(crate) fn new(
        config: &Config,
        listeners: &BTreeMap<&'static str, SocketAddr>,
        ready: Arc<AtomicBool>,
        drain: CancellationToken,
        member: Member,
        parts: Parts,
    ) -> Status {
        Status {
            node: config.node.name.clone(),
            roles: config.node.roles.iter().map(|role| role.as_str()).collect(),
            began: Instant::now(),
            listeners: listeners.clone(),
            ready,
            drain,
            store: member.contact(),
            member,
            parts,
        }
    }

    /// As JSON.
    pub(crate) fn show(&self) -> Value {
        let store = match &*self.store.borrow() {
            Contact::Up => json!({ "up": true }),
            Contact::Never(why) | Contact::Lost(why) => json!({ "up": false, "why": why }),
        };
        let failing = self.parts.archive.health().and_then(|health| health.failing);
        let archive = failing.map(|(cause, attempts)| json!({ "cause": cause, "attempts": attempts }));
        let draining = self.drain.is_cancelled();
        let streams = self.parts.origin.as_ref().map(origin::Control::list).unwrap_or_default();
        let nodes = self.member.nodes();
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "roles": self.roles,
            "ready": self.ready.load(Ordering::Relaxed) && !draining,
            "draining": draining,
            "uptime_s": self.began.elapsed().as_secs(),
            "unix_ms": UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64),
            "listeners": self.listeners,
            "config": self.parts.reloader.show(),
            "store": store,
            "archive_failing": archive,
            "nodes": nodes.iter().map(|node| json!({
                "name": node.name,
                "role": node.role,
                "address": node.address,
                "capacity": node.capacity,
                "load": node.load,
                "draining": node.draining,
            })).collect::<Vec<_>>(),
            "stream_count": streams.len(),
            "streams": streams.iter().take(MAX_STREAMS).map(|standing| json!({
                "stream": standing.stream.as_str(),
                "state": word(standing.state),
                "epoch": standing.epoch,
                "began_unix_ms": standing.anchor_unix_ms,
            })).collect::<Vec<_>>(),
        })
    }

    /// Begins to end the node, as SIGTERM does.
    pub(crate) fn drain(&self) -> Value {
        if !self.drain.is_cancelled() {
            info!("an operator drains this node");
            self.drain.cancel();
        }
        json!({ "draining": true })
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Offline => "offline",
        State::Live => "live",
        State::Interrupted(_) => "interrupted",
        State::Ended => "ended",
    }
}
