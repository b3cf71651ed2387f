//! Memory of connections that have asked once and wait: the edge beside nginx and a bare hyper server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use net::tls;
use rustls::ClientConfig;

use crate::crowd::Viewer;
use crate::node::{Node, edge_node};
use crate::origin::{self, Origin};
use crate::process::memory_bytes;
use crate::report::{Better, Report};
use crate::server::Server;
use crate::{Folders, bare, nginx};

const CONNECTIONS: usize = 10_000;

/// More of the edge's table: connections that wait longer than the scenario takes.
const PATIENT: &str = "[edge.limits]\nheader_timeout = \"1h\"";

/// Of the object that each asks for, in bytes.
const SIZE: usize = 1_500;

/// Connections that must still answer afterwards: every so many-th.
const CHECKED: usize = 100;

/// For what is freed or finished behind an answer.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let folder = folders.run.join("idle");
    let tls_folder = folder.join("state/tls");
    let (upstream, _) = runtime.block_on(Origin::of_sizes(&tls_folder))?;
    let files = tls::development_files(&tls_folder, "edge", &[])?;
    let client_tls = stranger(&files)?;
    let mut rows = Vec::new();
    for (what, tls) in [("TLS", Some(&client_tls)), ("plain", None)] {
        let mut figures = Vec::new();
        // New processes: memory that an earlier crowd has left free would be used again.
        for index in 0..3 {
            let server = start(index, &folder, &upstream, &files, folders, runtime)?;
            let bytes = runtime.block_on(measure(&server, tls))?;
            figures.push((server.title.clone(), bytes / 1024.0));
        }
        let peers: Vec<(&str, f64)> =
            figures[1..].iter().map(|(title, kib)| (title.as_str(), *kib)).collect();
        let name = format!("idle/{}/memory", what.to_lowercase());
        report.record(name, "KiB per connection", Better::Lower, figures[0].1, &peers);
        let cells = figures.iter().map(|(_, kib)| format!("{kib:.1}"));
        rows.push([what.to_owned()].into_iter().chain(cells).collect());
    }
    let head = ["", "Rooftop", bare::NAME, "nginx"].map(String::from).to_vec();
    let title =
        format!("idle connections: KiB of the process for each of {CONNECTIONS} (the kernel's apart)");
    report.table(&title, head, rows);
    Ok(())
}

/// Rooftop, bare hyper, nginx.
fn start(
    index: usize,
    folder: &Path,
    upstream: &Origin,
    files: &tls::Files,
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Server> {
    match index {
        0 => Server::rooftop(Node::start(folder, &edge_node(folder, upstream, PATIENT), None)?),
        1 => {
            let headers = vec![("content-type".to_owned(), "video/mp4".to_owned())];
            let answer = bare::Answer { headers, size: SIZE };
            bare::start(folder, &[(origin::path_of(SIZE), answer)].into(), files, None)
        }
        _ => {
            let settings = nginx::Settings {
                certificate: &files.certificate,
                key: &files.key,
                upstream: &format!("http://{}", upstream.http),
                cpu: None,
                mode: nginx::Mode::Cache,
                memory: &folders.memory,
            };
            let server = nginx::start(folder, &settings)?;
            // Its cache is there with the first object.
            runtime.block_on(crate::crowd::get(server.addr(false)?, &origin::path_of(SIZE)))?;
            Ok(server)
        }
    }
}

/// Trusts the fleet, and resumes no session: every viewer is a new one.
pub(crate) fn stranger(files: &tls::Files) -> anyhow::Result<Arc<ClientConfig>> {
    let mut tls = ClientConfig::clone(&*tls::client_config(files)?);
    tls.resumption = rustls::client::Resumption::disabled();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Bytes per connection.
async fn measure(server: &Server, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<f64> {
    let (addr, path) = (server.addr(tls.is_some())?, origin::path_of(SIZE));
    // What the first of all costs is not theirs.
    let mut first = Viewer::connect_all(1, addr, tls).await?;
    for viewer in &mut first {
        viewer.get(&path).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let before = memory_bytes(server.pid);
    let mut viewers = Viewer::connect_all(CONNECTIONS, addr, tls).await?;
    for viewer in &mut viewers {
        let got = viewer.get(&path).await?;
        ensure!(got.status == 200 && got.body.len() == SIZE, "{}: status {}", server.name, got.status);
    }
    tokio::time::sleep(SETTLE).await;
    let after = memory_bytes(server.pid);
    for viewer in viewers.iter_mut().step_by(CHECKED) {
        ensure!(viewer.get(&path).await?.status == 200, "{} has closed a connection", server.name);
    }
    Ok((after as f64 - before as f64) / CONNECTIONS as f64)
}
