//! Cached objects from one core: the edge role alone beside nginx, Varnish, h2o and a bare hyper answer, with the same
//! upstream, certificate and load, in turns.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use anyhow::ensure;
use net::tls;

use crate::load::{self, Protocol};
use crate::node::{Node, edge_node};
use crate::origin::{self, Origin};
use crate::process::{cpu_seconds, ended_children_cpu_seconds, machine_cpu_seconds, two_cpus};
use crate::report::{Better, Report, median, quantile};
use crate::server::Server;
use crate::{Folders, bare, h2o, nginx, varnish};

/// The servers take turns this often.
const ROUNDS: usize = 5;

/// Of load per turn.
const SECONDS: u32 = 1;

/// Size in bytes and what it stands for.
const SIZES: [(usize, &str); 4] =
    [(1_500, "1.5KB"), (50_000, "50KB"), (500_000, "500KB"), (2_000_000, "2MB")];

const PROTOCOLS: [Protocol; 3] = [Protocol::H1, Protocol::H2, Protocol::Plain];

/// Whose columns there are, in this order.
const COLUMNS: [&str; 5] = [crate::server::ROOFTOP, bare::NAME, "nginx", "h2o", "Varnish"];

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (server_cpu, load_cpu) = two_cpus();
    let folder = folders.run.join("edge_hits");
    let tls_folder = folder.join("state/tls");
    let (upstream, fetches) = runtime.block_on(Origin::of_sizes(&tls_folder))?;
    // What the node would make itself; the others show the same.
    let files = tls::development_files(&tls_folder, "edge", &[])?;
    let rooftop = Server::rooftop(Node::start(&folder, &edge_node(&folder, &upstream, ""), server_cpu)?)?;
    let settings = nginx::Settings {
        certificate: &files.certificate,
        key: &files.key,
        upstream: &format!("http://{}", upstream.http),
        cpu: server_cpu,
        mode: nginx::Mode::Cache,
        memory: &folders.memory,
    };
    let nginx = nginx::start(&folder, &settings)?;
    let varnish = varnish::start(&folder, upstream.http, &folders.memory, server_cpu)?;
    let paths = SIZES.map(|(size, _)| origin::path_of(size));
    let answers = runtime.block_on(bare::learn(rooftop.addr(false)?, paths))?;
    let h2o = h2o::start(&folder, &answers, &files.certificate, &files.key, &folders.memory, server_cpu)?;
    let bare = bare::start(&folder, &answers, &files, server_cpu)?;

    // Each object once for each cache, however often it was asked for.
    let mut asked: BTreeSet<(u32, usize)> = SIZES.map(|(size, _)| (rooftop.pid, size)).into();
    let mut tables = [Vec::new(), Vec::new()];
    for protocol in PROTOCOLS {
        let servers = match protocol {
            Protocol::H1 => vec![&rooftop, &bare, &nginx],
            Protocol::H2 => vec![&rooftop, &bare, &nginx, &h2o],
            Protocol::Plain => vec![&rooftop, &bare, &nginx, &varnish],
        };
        for (size, size_name) in SIZES {
            if !report.wants(&format!("edge_hits/{}/{size_name}", protocol.as_str())) {
                continue;
            }
            let caches = servers.iter().filter(|server| [nginx.pid, varnish.pid].contains(&server.pid));
            asked.extend(caches.map(|server| (server.pid, size)));
            let turns = measure(&servers, protocol, size, load_cpu)?;
            let name = format!("{} {size_name}", protocol.as_str());
            let said: Vec<String> =
                turns.iter().map(|turns| format!("{} {:.0} %", turns.server.name, turns.busy())).collect();
            let others: Vec<f64> = turns.iter().flat_map(|turns| turns.others.clone()).collect();
            report.note(&format!(
                "{name}, {}: server busy {} of its core; others took {:.0} % of a core",
                turns[0].security,
                said.join(", "),
                median(&others)
            ));
            let kinds: [(&str, &str, Figure); 2] = [
                ("per-cpu", "requests per CPU-s of the server", |turns| median(&turns.efficiencies)),
                // Whatever else runs on the machine only ever takes away from a rate.
                ("rate", "requests/s", |turns| quantile(&turns.rates, 1.0)),
            ];
            for (table, (what, unit, figure)) in tables.iter_mut().zip(kinds) {
                let ours = figure(&turns[0]);
                let peers: Vec<(&str, f64)> =
                    turns[1..].iter().map(|turns| (turns.server.title.as_str(), figure(turns))).collect();
                let row = format!("edge_hits/{}/{size_name}/{what}", protocol.as_str());
                report.record(row, unit, Better::Higher, ours, &peers);
                let cell = |column: &&str| {
                    let turns = turns.iter().find(|turns| turns.server.name == *column);
                    turns.map_or_else(String::new, |turns| match figure(turns) {
                        figure if *column == crate::server::ROOFTOP => format!("{figure:.0}"),
                        figure => format!("{figure:.0} ({:.2})", ours / figure),
                    })
                };
                table.push([name.clone()].into_iter().chain(COLUMNS.iter().map(cell)).collect());
            }
        }
    }
    let [per_cpu, rates] = tables;
    let columns = || [String::new()].into_iter().chain(COLUMNS.map(String::from)).collect();
    report.table(
        "hits: requests per CPU-second of the server (Rooftop's divided by theirs)",
        columns(),
        per_cpu,
    );
    report.table(
        "hits: requests per second, the best second (Rooftop's divided by theirs)",
        columns(),
        rates,
    );
    let fetches = fetches.load(Ordering::Relaxed);
    ensure!(fetches == asked.len(), "{fetches} requests at the upstream: these were not all hits");
    Ok(())
}

type Figure = fn(&Turns<'_>) -> f64;

/// What one server did in its turns.
struct Turns<'a> {
    server: &'a Server,
    security: String,
    /// Requests per second.
    rates: Vec<f64>,
    /// Requests per CPU-second of the server.
    efficiencies: Vec<f64>,
    /// Percent of its core.
    busy: Vec<f64>,
    /// Percent of a core that neither server nor load took.
    others: Vec<f64>,
}

impl Turns<'_> {
    fn busy(&self) -> f64 {
        median(&self.busy)
    }
}

fn measure<'a>(
    servers: &[&'a Server],
    protocol: Protocol,
    size: usize,
    load_cpu: Option<usize>,
) -> anyhow::Result<Vec<Turns<'a>>> {
    let path = origin::path_of(size);
    let new = |&server| Turns {
        server,
        security: String::new(),
        rates: Vec::new(),
        efficiencies: Vec::new(),
        busy: Vec::new(),
        others: Vec::new(),
    };
    let mut all: Vec<Turns<'a>> = servers.iter().map(new).collect();
    for _ in 0..ROUNDS {
        for turns in &mut all {
            let addr = turns.server.addr(protocol != Protocol::Plain)?;
            let (machine, loads) = (machine_cpu_seconds(), ended_children_cpu_seconds());
            let before = cpu_seconds(turns.server.pid);
            let load = load::run(addr, &path, protocol, SECONDS, load_cpu)?;
            let cpu_s = cpu_seconds(turns.server.pid) - before;
            turns.rates.push(load.requests / load.seconds);
            turns.efficiencies.push(load.requests / cpu_s);
            turns.busy.push(100.0 * cpu_s / load.seconds);
            let ours = cpu_s + ended_children_cpu_seconds() - loads;
            turns.others.push((machine_cpu_seconds() - machine - ours) / load.seconds * 100.0);
            turns.security = load.security;
        }
    }
    let agreed = &all[0].security;
    for turns in &all {
        ensure!(turns.security == *agreed, "{}: {} is not {agreed}", turns.server.name, turns.security);
    }
    Ok(all)
}
