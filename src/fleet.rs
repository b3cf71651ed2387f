//! This node's part in the fleet: its store, what it announces, and the rings as the configuration lists them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cluster::member::Options;
use cluster::store::{Embedded, Etcd, EtcdOptions, EtcdTls, Store};
use cluster::{Member, Node, Ring, record};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, NodeAddress, Role, StoreKind};

/// Nodes of an embedded store hear of one another by lists: its lease only tells this process of itself.
const EMBEDDED_LEASE: Duration = Duration::from_secs(60);

/// The store and the handle to it.
pub(crate) struct Fleet {
    pub(crate) member: Member,
    /// Tells this process from others, and from itself before a restart.
    pub(crate) instance: u64,
    /// Is written to a file, if there is one.
    embedded: Option<Embedded>,
}

impl Fleet {
    pub(crate) async fn open(config: &Config, registry: &mut Registry) -> anyhow::Result<Fleet> {
        let cluster = &config.cluster;
        let instance = instance();
        let (store, embedded): (Arc<dyn Store>, _) = match cluster.store {
            // Only an origin has something to remember.
            StoreKind::Embedded if config.has(Role::Origin) => {
                let file = config.node.state_dir.join(format!("cluster-{}.json", config.node.name));
                let embedded = Embedded::open(&file)?;
                (Arc::new(embedded.clone()), Some(embedded))
            }
            StoreKind::Embedded => (Arc::new(Embedded::default()), None),
            StoreKind::Etcd => {
                let etcd = &cluster.etcd;
                let identity = etcd.certificate.clone().zip(etcd.key.clone());
                let tls = etcd.ca.clone().map(|ca| EtcdTls { ca, identity });
                let (endpoints, prefix) = (etcd.endpoints.clone(), etcd.prefix.clone());
                let etcd = Etcd::new(&EtcdOptions { endpoints, prefix, tls }).await;
                (Arc::new(etcd.map_err(anyhow::Error::msg).context("etcd")?), None)
            }
        };
        let is_etcd = cluster.store == StoreKind::Etcd;
        let options = Options {
            name: config.node.name.clone(),
            instance,
            lease_ttl: if is_etcd { cluster.etcd.lease_ttl } else { EMBEDDED_LEASE },
            revocations_kept: cluster.revocations_kept,
            resume_within: config.origin.reconnect_grace,
            follow_nodes: is_etcd,
        };
        let (origins, shields) = (Ring::new(Vec::new()), Ring::new(Vec::new()));
        let metrics = cluster::Metrics::register(registry);
        let member = Member::new(store, options, origins, shields, metrics);
        Ok(Fleet { member, instance, embedded })
    }

    /// A role of this node listens at `bound`.
    pub(crate) fn announce(&self, config: &Config, role: Role, bound: SocketAddr) {
        let capacity = if role == Role::Origin { config.origin.capacity() } else { 0 };
        let address = config.cluster.address_of(&config.node.name, role, bound);
        self.member.announce(in_records(role), &address, capacity);
    }

    /// Keeps in touch with the store until `leave`.
    pub(crate) async fn serve(self, leave: CancellationToken) {
        let written = CancellationToken::new();
        let keep = async {
            if let Some(embedded) = &self.embedded {
                embedded.keep(written.clone()).await;
            }
        };
        let attend = async {
            self.member.serve(leave).await;
            // What was said at the end goes into the file too.
            written.cancel();
        };
        tokio::join!(keep, attend);
    }
}

/// The members of a ring, as they are listed. With etcd only this node itself is known before the others are heard of.
pub(crate) fn list(member: &Member, role: Role, nodes: &[NodeAddress]) {
    let ring = if role == Role::Origin { member.origins() } else { member.shields() };
    let node = |node: &NodeAddress| Node { name: node.name.clone(), address: node.address.clone() };
    if !member.follows_nodes() {
        ring.set_members(nodes.iter().map(node).map(Into::into).collect());
    }
}

fn in_records(role: Role) -> record::Role {
    match role {
        Role::Ingest => record::Role::Ingest,
        Role::Origin => record::Role::Origin,
        Role::Shield => record::Role::Shield,
        Role::Edge => record::Role::Edge,
    }
}

fn instance() -> u64 {
    let mut bytes = [0; 8];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the system has random bytes: TLS needs them too");
    u64::from_ne_bytes(bytes)
}
