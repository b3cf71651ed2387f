//! Cached objects over TLS from one core: the edge role alone against nginx `proxy_cache`, with the same upstream,
//! certificate and load generator, in turns.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body_util::Full;
use hyper::body::Incoming;
use net::tls::{self, Clients};
use tokio_util::sync::CancellationToken;

use crate::Folders;
use crate::load::{self, Length, Protocol};
use crate::nginx::{self, Nginx};
use crate::node::Node;
use crate::process::{cpu_seconds, ended_children_cpu_seconds, machine_cpu_seconds};
use crate::report::{Better, Report, median, quantile};

/// The servers take turns this often.
const ROUNDS: usize = 3;

/// Of load per turn.
const SECONDS: u32 = 2;

/// Size in bytes and what it stands for.
const SIZES: [(usize, &str); 3] = [(500_000, "500KB"), (50_000, "50KB"), (1_500, "1.5KB")];

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    // One CPU for the server, another for the load, where there are two.
    let (server_cpu, load_cpu) = match allowed_cpus()[..] {
        [first, second, ..] => (Some(first), Some(second)),
        _ => (None, None),
    };
    let folder = folders.run.join("edge_hits");
    let tls_folder = folder.join("state/tls");
    let upstream = runtime.block_on(Upstream::start(&tls_folder))?;
    // What the node would make itself; nginx shows the same.
    let files = tls::development_files(&tls_folder, "edge", &[])?;
    let rooftop = Node::start(&folder, &config(&folder, upstream.https), server_cpu)?;
    let settings = nginx::Settings {
        certificate: &files.certificate,
        key: &files.key,
        upstream: &format!("http://{}", upstream.http),
        cpu: server_cpu,
        mode: nginx::Mode::Cache,
        memory: &folders.memory,
    };
    let nginx = Nginx::start(&folder, &settings)?;
    let peer = format!("nginx {} proxy_cache", nginx::version()?);
    let servers = [(rooftop.addr("https")?, rooftop.pid()), (nginx.addr, nginx.pid())];
    for (protocol, protocol_name) in [(Protocol::H1, "h1"), (Protocol::H2, "h2")] {
        for (size, size_name) in SIZES {
            let path = format!("/live/bench/1/{size}/1.m4s");
            let mut rates = [Vec::new(), Vec::new()];
            let mut efficiencies = [Vec::new(), Vec::new()];
            let mut busy = [Vec::new(), Vec::new()];
            let (mut others, mut security) = (Vec::new(), None);
            for round in 0..ROUNDS {
                for (index, &(addr, pid)) in servers.iter().enumerate() {
                    if round == 0 {
                        load::run(addr, &path, protocol, Length::Requests(500), load_cpu)?;
                    }
                    let (machine, loads) = (machine_cpu_seconds(), ended_children_cpu_seconds());
                    let before = cpu_seconds(pid);
                    let load = load::run(addr, &path, protocol, Length::Seconds(SECONDS), load_cpu)?;
                    let cpu_s = cpu_seconds(pid) - before;
                    let agreed = security.get_or_insert_with(|| load.security.clone());
                    ensure!(*agreed == load.security, "{agreed} is not {}", load.security);
                    rates[index].push(load.requests / load.seconds);
                    efficiencies[index].push(load.requests / cpu_s);
                    busy[index].push(100.0 * cpu_s / load.seconds);
                    let ours = cpu_s + ended_children_cpu_seconds() - loads;
                    others.push((machine_cpu_seconds() - machine - ours) / load.seconds * 100.0);
                }
            }
            // Whatever else runs on the machine only ever takes away from a rate.
            let rates = rates.map(|rates| quantile(&rates, 1.0));
            let efficiencies = efficiencies.map(|efficiencies| median(&efficiencies));
            let busy = busy.map(|busy| median(&busy));
            report.note(&format!(
                "{protocol_name} {size_name}, {}: server busy {:.0} % of its core (Rooftop), {:.0} % (nginx); \
                 others took {:.0} % of a core",
                security.unwrap_or_default(),
                busy[0],
                busy[1],
                median(&others)
            ));
            let mut row = |what: &str, unit, figures: [f64; 2]| {
                let name = format!("edge_hits/{protocol_name}/{size_name}/{what}");
                report.add(name, unit, Better::Higher, figures[0], Some((&peer, figures[1])));
            };
            row("rate", "requests/s", rates);
            row("throughput", "MB/s", rates.map(|rate| rate * size as f64 / 1e6));
            row("per-cpu", "requests per CPU-s of the server", efficiencies);
        }
    }
    // Each object once for each server, however often it was asked for.
    let fetches = upstream.requests.load(Ordering::Relaxed);
    ensure!(fetches == 2 * SIZES.len(), "{fetches} requests at the upstream: these were not all hits");
    Ok(())
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Vec<usize> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

fn config(folder: &std::path::Path, upstream: SocketAddr) -> String {
    format!(
        r#"
[node]
name = "edge"
roles = ["edge"]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[cluster]
origins = [{{ name = "upstream", address = "{upstream}" }}]
shields = []
[edge]
https = "127.0.0.1:0"
drain = "0s"
"#,
        folder.join("state").display()
    )
}

/// Serves `/live/bench/1/{size}/1.m4s`: so many bytes, cacheable for long.
struct Upstream {
    https: SocketAddr,
    http: SocketAddr,
    requests: Arc<AtomicUsize>,
    _shutdown: tokio_util::sync::DropGuard,
}

impl Upstream {
    async fn start(tls_folder: &std::path::Path) -> anyhow::Result<Upstream> {
        let files = tls::development_files(tls_folder, "upstream", &[])?;
        let server_tls = tls::server_config(&files, Clients::Fleet, &[b"h2", b"http/1.1"])?;
        let limits = net::Limits { max_connections: 100, handshake_timeout: Duration::from_secs(10) };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (https, http) =
            (net::Listener::bind(any, limits).await?, net::Listener::bind(any, limits).await?);
        let (https_addr, http_addr) = (https.local_addr(), http.local_addr());
        let requests = Arc::new(AtomicUsize::new(0));
        let shutdown = CancellationToken::new();
        for (listener, server_tls) in [(https, Some(server_tls)), (http, None)] {
            let requests = requests.clone();
            let service = move |request: http::Request<Incoming>, _| {
                requests.fetch_add(1, Ordering::Relaxed);
                std::future::ready(answer(request.uri().path()))
            };
            let options = net::http::Options::default();
            let serve =
                net::http::serve(listener, server_tls, options, shutdown.clone(), Duration::ZERO, service);
            tokio::spawn(serve);
        }
        let _shutdown = shutdown.drop_guard();
        Ok(Upstream { https: https_addr, http: http_addr, requests, _shutdown })
    }
}

fn answer(path: &str) -> http::Response<http_body_util::combinators::BoxBody<Bytes, Infallible>> {
    let size = path.strip_prefix("/live/bench/1/").and_then(|rest| rest.strip_suffix("/1.m4s"));
    let size = size.and_then(|size| size.parse().ok()).filter(|&size: &usize| size <= 1 << 20);
    let body: Bytes = (0..size.unwrap_or(0)).map(|index| (index * 31 % 251) as u8).collect();
    let mut response = http::Response::new(http_body_util::combinators::BoxBody::new(Full::new(body)));
    if size.is_none() {
        *response.status_mut() = http::StatusCode::NOT_FOUND;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600, immutable"));
    response
}
