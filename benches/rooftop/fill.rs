//! How late a hit is while 500 other names are being filled: the edge beside nginx.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use net::tls;
use tokio::task::JoinSet;

use crate::crowd::Viewer;
use crate::idle::stranger;
use crate::node::{Node, edge_node};
use crate::origin::{self, Origin, Script};
use crate::process::{Confined, two_cpus};
use crate::report::{Better, Report, quantile, short};
use crate::server::Server;
use crate::{Folders, nginx};

/// Names that are being filled at once.
const NAMES: usize = 500;

/// Of each of these, in bytes, and in how many pieces and how far apart these come: 4 s of media in real time.
const PIECE: usize = 20_000;
const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(200);

/// Of the cached object, in bytes.
const HIT: usize = 50_000;

/// Viewers of the cached object, and how long each waits after an answer.
const HITTERS: usize = 16;
const THINKING: Duration = Duration::from_millis(5);

/// Turns of each server, with the names being filled and without.
const ROUNDS: usize = 2;

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (server_cpu, load_cpu) = two_cpus();
    let folder = folders.run.join("fill");
    let tls_folder = folder.join("state/tls");
    let upstream = runtime.block_on(Origin::start(&tls_folder, answer))?;
    let files = tls::development_files(&tls_folder, "edge", &[])?;
    let client_tls = stranger(&files)?;
    let settings = nginx::Settings {
        certificate: &files.certificate,
        key: &files.key,
        upstream: &format!("http://{}", upstream.http),
        cpu: server_cpu,
        mode: nginx::Mode::Cache,
        memory: &folders.memory,
    };
    let servers = [
        Server::rooftop(Node::start(&folder, &edge_node(&folder, &upstream, ""), server_cpu)?)?,
        nginx::start(&folder, &settings)?,
    ];
    let confined = Confined::to(load_cpu)?;
    let mut rows = Vec::new();
    let mut latencies = vec![[Vec::new(), Vec::new()]; servers.len()];
    for round in 0..ROUNDS {
        for (server, latencies) in servers.iter().zip(&mut latencies) {
            for (names, latencies) in [0, NAMES].into_iter().zip(latencies) {
                let turn = turn(server, &client_tls, names, round);
                latencies.extend(runtime.block_on(turn)?);
            }
        }
    }
    drop(confined);
    for (index, what) in [(0, "nothing else"), (1, "500 names being filled")] {
        for (part, label) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
            let figures: Vec<f64> =
                latencies.iter().map(|latencies| quantile(&latencies[index], part)).collect();
            let name = format!("fill/{}/{label}", if index == 0 { "alone" } else { "filling" });
            report.record(name, "ms", Better::Lower, figures[0], &[(&servers[1].title, figures[1])]);
            rows.push(vec![what.to_owned(), label.into(), short(figures[0]), short(figures[1])]);
        }
    }
    let head = ["", "", "Rooftop ms", "nginx ms"].map(String::from).to_vec();
    report.table(
        "a hit of 50 KB over TLS (h1), from the request to the last byte, while there is",
        head,
        rows,
    );
    Ok(())
}

/// How long hits took, in milliseconds, while `names` are being filled; each of these has a viewer.
async fn turn(
    server: &Server,
    tls: &Arc<rustls::ClientConfig>,
    names: usize,
    round: usize,
) -> anyhow::Result<Vec<f64>> {
    let addr = server.addr(true)?;
    let path = origin::path_of(HIT);
    let mut hitters = Viewer::connect_all(HITTERS, addr, Some(tls)).await?;
    for viewer in &mut hitters {
        viewer.get(&path).await?;
    }
    let fillers = Viewer::connect_all(names, addr, Some(tls)).await?;
    let done = Arc::new(AtomicBool::new(false));
    let mut filling = JoinSet::new();
    for (number, mut viewer) in fillers.into_iter().enumerate() {
        let path = format!("/live/fill/{}/{round}/{number}.m4s", server.name);
        filling.spawn(async move { viewer.get(&path).await });
    }
    let mut hitting = JoinSet::new();
    for mut viewer in hitters {
        let (path, done) = (path.clone(), done.clone());
        hitting.spawn(async move {
            let mut latencies = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                let got = viewer.get(&path).await?;
                latencies.push(1e3 * began.elapsed().as_secs_f64());
                ensure!(got.status == 200 && got.body.len() == HIT, "status {}", got.status);
                tokio::time::sleep(THINKING).await;
            }
            Ok(latencies)
        });
    }
    if names == 0 {
        tokio::time::sleep(PAUSE * PIECES as u32 / 2).await;
    }
    while let Some(filled) = filling.join_next().await {
        let got = filled??;
        ensure!(got.status == 200 && got.body.len() == PIECE * PIECES, "filling: status {}", got.status);
    }
    done.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(hits) = hitting.join_next().await {
        latencies.extend(hits??);
    }
    Ok(latencies)
}

/// `/live/fill/...`: piece after piece; else an object of some size.
async fn answer(request: Request<Incoming>) -> Response<Script> {
    if !request.uri().path().starts_with("/live/fill/") {
        return origin::sized(request.uri().path());
    }
    let (pen, body) = Script::new();
    // Encoders are not in step with one another.
    let number =
        request.uri().path().rsplit('/').next().and_then(|file| file.strip_suffix(".m4s")?.parse().ok());
    let offset = PAUSE * number.unwrap_or(0) / NAMES as u32;
    tokio::spawn(async move {
        tokio::time::sleep(offset).await;
        let piece: Bytes = origin::content(PIECE);
        for _ in 0..PIECES {
            tokio::time::sleep(PAUSE).await;
            if pen.send(Ok(piece.clone())).is_err() {
                return;
            }
        }
    });
    origin::cacheable(body, None)
}
