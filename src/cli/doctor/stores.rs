//! What is elsewhere: etcd, and where broadcasts are kept.

use std::time::Duration;

use cluster::store::{Etcd, EtcdOptions, EtcdTls, Store as _};

use super::Finding;
use crate::config::{Config, Role, StoreKind};

/// For an answer of a store.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn etcd(config: &Config) -> Option<Finding> {
    if config.cluster.store != StoreKind::Etcd {
        return None;
    }
    let etcd = &config.cluster.etcd;
    let endpoints = etcd.endpoints.join(", ");
    let asked = async {
        let identity = etcd.certificate.clone().zip(etcd.key.clone());
        let tls = etcd.ca.clone().map(|ca| EtcdTls { ca, identity });
        let options = EtcdOptions { endpoints: etcd.endpoints.clone(), prefix: etcd.prefix.clone(), tls };
        let store = Etcd::new(&options).await?;
        store.list(cluster::record::NODES).await.map_err(|error| net::chain(&error))
    };
    Some(match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(listing)) => Finding::good(
            "etcd",
            format!("{endpoints} answers; {} roles are announced", listing.entries.len()),
        ),
        Ok(Err(why)) => Finding::failure(
            "etcd",
            format!("{endpoints}: {why}"),
            "check cluster.etcd: endpoints, certificates, and that its members have a leader (etcdctl endpoint status)",
        ),
        Err(_) => Finding::failure(
            "etcd",
            format!("{endpoints}: no answer within {PATIENCE:?}"),
            "is it running, and does a firewall let port 2379 through?",
        ),
    })
}

pub(super) async fn archive(config: &Config) -> Option<Finding> {
    if !config.has(Role::Origin) {
        return None;
    }
    let advice =
        "check [archive]: the folder and who may write it, or endpoint, bucket, region and credentials";
    let reader = match archive::open_to_read(&config.archive, &config.node.state_dir) {
        Ok(Some(reader)) => reader,
        Ok(None) => {
            return Some(Finding::good("archive", "archive.store is \"none\": broadcasts are not kept"));
        }
        Err(_) if is_absent(&config.archive, &config.node.state_dir) => {
            return Some(Finding::good("archive", "the folder is made on the first start"));
        }
        Err(error) => return Some(Finding::failure("archive", net::chain(&error), advice)),
    };
    Some(match tokio::time::timeout(PATIENCE, reader.broadcasts()).await {
        Ok(Ok(broadcasts)) => {
            Finding::good("archive", format!("it answers; {} broadcasts are kept", broadcasts.len()))
        }
        Ok(Err(error)) => Finding::failure("archive", net::chain(&error), advice),
        Err(_) => Finding::failure("archive", format!("no answer within {PATIENCE:?}"), advice),
    })
}

/// Whether broadcasts are kept in a folder that is not there yet.
fn is_absent(archive: &archive::Config, state_dir: &std::path::Path) -> bool {
    let folder = archive.path.clone().unwrap_or_else(|| state_dir.join("archive"));
    archive.store == archive::config::Store::File && !folder.exists()
}
