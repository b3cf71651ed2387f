//! How late parts are: at each hop of a broadcast that goes through a whole node, with the source passed through, and with the
//! ladder. Readers ask for segments before these exist, at the origin, the shield, the edge and, as peers, at two nginx in
//! front of the same origin: one that caches, and one that only passes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use net::tls;

use crate::Folders;
use crate::clip::{LIVE, LIVE_720, Recipe};
use crate::hop::Connection;
use crate::live::{self, Arrivals, Broadcast, Part};
use crate::nginx;
use crate::node::Node;
use crate::report::{Better, Report, quantile};

const HOPS: [&str; 5] = ["origin", "shield", "edge", "nginx (cache)", "nginx (pass)"];
const ORIGIN: usize = 0;
const SHIELD: usize = 1;
const EDGE: usize = 2;
const NGINX_CACHE: usize = 3;
const NGINX_PASS: usize = 4;

/// Parts of four frames, for the source that is passed through.
const SHORT_PARTS: &str = "part_target = \"133ms\"\n[transcode]\npassthrough = \"only\"";

/// Of the default configuration.
const PART_MS: f64 = 200.0;

/// The rungs that a picture of 720 lines gets by the default rules.
const LADDER: [&str; 4] = ["720p", "480p", "360p", "240p"];

const FRAME_MS: f64 = 1000.0 / Recipe::FPS as f64;

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let hops_wanted = ["origin-to-shield", "shield-to-edge", "last-frame-to-part-at"];
    if hops_wanted.iter().any(|name| report.wants(&format!("latency/{name}"))) {
        hops(folders, runtime, report)?;
    }
    if report.wants("latency/passthrough") {
        passthrough(folders, runtime, report).context("passthrough")?;
    }
    if report.wants("latency/ladder") {
        ladder(folders, runtime, report).context("ladder")?;
    }
    Ok(())
}

/// What each hop adds.
fn hops(folders: &Folders, runtime: &tokio::runtime::Handle, report: &mut Report) -> anyhow::Result<()> {
    let folder = folders.run.join("latency");
    let node = Node::start(&folder, &config(&folder, ""), None)?;
    let files = tls::development_files(&folder.join("state/tls"), "local", &[])?;
    let nginx = |mode| {
        let settings = nginx::Settings {
            certificate: &files.certificate,
            key: &files.key,
            upstream: &format!("https://{}", node.addr("origin")?),
            cpu: None,
            mode,
            memory: &folders.memory,
        };
        nginx::start(&folder, &settings)
    };
    let (caching, passing) = (nginx(nginx::Mode::Cache)?, nginx(nginx::Mode::Pass)?);
    let readers = [
        node.addr("origin")?,
        node.addr("shield")?,
        node.addr("https")?,
        caching.addr(true)?,
        passing.addr(true)?,
    ];
    let readers: Vec<_> = readers.into_iter().zip(HOPS).map(|(addr, hop)| (addr, hop, "360p")).collect();
    let Seen { sent, arrivals } = watch(&folder, &node, &LIVE, &folders.kept, &readers, runtime)?;
    let parts = live::parts(&arrivals, &HOPS)?;
    report.note(&format!("{} parts", parts.len()));
    let between = |from: usize, to: usize| -> Vec<f64> {
        parts.iter().map(|part| ms(part.arrived[from], part.arrived[to])).collect()
    };
    let since_sent = |hop: usize| -> Vec<f64> {
        let of = |part: &Part| Some(ms(*sent.get(*part.frames.end())?, part.arrived[hop]));
        parts.iter().filter_map(of).collect()
    };
    let peers = [
        ("", format!("{}; one hop", passing.title), between(ORIGIN, NGINX_PASS)),
        ("/nginx-cache", format!("{}; one hop", caching.title), between(ORIGIN, NGINX_CACHE)),
    ];
    for (name, late) in
        [("origin-to-shield", between(ORIGIN, SHIELD)), ("shield-to-edge", between(SHIELD, EDGE))]
    {
        for (suffix, peer, peer_late) in &peers {
            add(report, &format!("{name}{suffix}"), &late, Some((peer, peer_late)));
        }
    }
    add(report, "last-frame-to-part-at-origin", &since_sent(ORIGIN), None);
    add(report, "last-frame-to-part-at-edge", &since_sent(EDGE), None);
    Ok(())
}

/// Each frame of a source that is passed through, from the broadcaster to where viewers can have its part.
fn passthrough(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let folder = folders.run.join("latency-passthrough");
    let node = Node::start(&folder, &config(&folder, SHORT_PARTS), None)?;
    let readers = [(node.addr("https")?, "edge", "360p")];
    let Seen { sent, arrivals } = watch(&folder, &node, &LIVE, &folders.kept, &readers, runtime)?;
    let parts = live::parts(&arrivals, &["edge"])?;
    let late = |frame: usize, part: &Part| Some(ms(*sent.get(frame)?, part.arrived[0]));
    let each: Vec<f64> = parts
        .iter()
        .flat_map(|part| part.frames.clone().filter_map(move |frame| late(frame, part)))
        .collect();
    let last: Vec<f64> = parts.iter().filter_map(|part| late(*part.frames.end(), part)).collect();
    report.note(&format!("passed through: {} frames in {} parts of 133 ms", each.len(), parts.len()));
    for (name, late) in [("frame-to-part-at-edge", &each), ("last-frame-to-part-at-edge", &last)] {
        let mean = late.iter().sum::<f64>() / late.len().max(1) as f64;
        report.add(format!("latency/passthrough/{name}/mean"), "ms", Better::Lower, mean, None);
        add(report, &format!("passthrough/{name}"), late, None);
    }
    Ok(())
}

/// The first frame of each part of each of four rungs, from the broadcaster to when its part is complete at the origin: the part
/// lasts, so no less than that. The peer is what is allowed: two frames more.
fn ladder(folders: &Folders, runtime: &tokio::runtime::Handle, report: &mut Report) -> anyhow::Result<()> {
    let folder = folders.run.join("latency-ladder");
    // All four to the end, however late: on a busy machine a rung would be shed.
    let node = Node::start(&folder, &config(&folder, "[transcode]\nshed = false"), None)?;
    let origin = node.addr("origin")?;
    let readers = LADDER.map(|rung| (origin, rung, rung));
    let Seen { sent, arrivals } = watch(&folder, &node, &LIVE_720, &folders.kept, &readers, runtime)?;
    let allowed = PART_MS + 2.0 * FRAME_MS;
    let late = |part: &Part| Some(ms(*sent.get(*part.frames.start())?, part.arrived[0]));
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for (rung, arrived) in LADDER.iter().zip(&arrivals) {
        let parts = live::parts(std::slice::from_ref(arrived), &[rung]).context(*rung)?;
        let late: Vec<f64> = parts.iter().filter_map(late).collect();
        let figures = [0.5, 0.95, 0.99, 1.0].map(|part| format!("{:.1}", quantile(&late, part)));
        rows.push([vec![(*rung).to_owned(), late.len().to_string()], figures.to_vec()].concat());
        all.extend(late);
    }
    for (part, label) in [(0.5, "p50"), (0.99, "p99")] {
        let name = format!("latency/ladder/first-frame-to-part-complete/{label}");
        let peer = Some(("allowed: the part and two frames", allowed));
        report.add(name, "ms", Better::Lower, quantile(&all, part), peer);
    }
    let head = ["", "parts", "p50", "p95", "p99", "max"].map(String::from).to_vec();
    report.table(
        "latency/ladder: ms from a part's first frame to when it is complete at the origin",
        head,
        rows,
    );
    Ok(())
}

/// What came of a broadcast.
struct Seen {
    /// When each frame was handed over to be sent.
    sent: Vec<Instant>,
    /// What each reader got.
    arrivals: Vec<Arrivals>,
}

/// Broadcasts a clip once; `readers` are an address, a name and a rendition each.
fn watch(
    folder: &Path,
    node: &Node,
    recipe: &Recipe,
    kept: &Path,
    readers: &[(SocketAddr, &str, &str)],
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Seen> {
    let tags = live::read_tags(&recipe.make(kept)?)?;
    let client_tls = tls::client_config(&tls::development_files(&folder.join("state/tls"), "local", &[])?)?;
    let url = format!("rtmp://{}/live/{}", node.addr("rtmp")?, node.stream_key(live::STREAM)?);
    let (broadcast, sent) = Broadcast::start(&url, tags)?;
    let arrivals = runtime.block_on(async {
        let (mut reading, mut firsts) = (Vec::new(), BTreeMap::new());
        for &(addr, name, rendition) in readers {
            let mut connection =
                Connection::open(addr, &client_tls).await.with_context(|| addr.to_string())?;
            // All readers of a rendition begin at the same segment.
            if !firsts.contains_key(rendition) {
                firsts.insert(rendition, live::first_segment(&mut connection, rendition).await?);
            }
            reading.push((name, tokio::spawn(live::follow(connection, firsts[rendition].clone()))));
        }
        let mut arrivals = Vec::new();
        for (name, reader) in reading {
            arrivals.push(reader.await?.with_context(|| format!("reader: {name}"))?);
        }
        anyhow::Ok(arrivals)
    })?;
    broadcast.end()?;
    Ok(Seen { sent: sent.iter().collect(), arrivals })
}

/// Negative where the later hop was a little faster in this instance.
fn ms(from: Instant, to: Instant) -> f64 {
    let late = to.saturating_duration_since(from).as_secs_f64();
    1e3 * (late - from.saturating_duration_since(to).as_secs_f64())
}

/// The usual and the worst of twenty.
fn add(report: &mut Report, name: &str, late_ms: &[f64], peer: Option<(&str, &[f64])>) {
    for (part, label) in [(0.5, "p50"), (0.95, "p95")] {
        let peer = peer.map(|(name, late_ms)| (name, quantile(late_ms, part)));
        report.add(format!("latency/{name}/{label}"), "ms", Better::Lower, quantile(late_ms, part), peer);
    }
}

/// A node of all roles; `more` goes on from the origin's table.
fn config(folder: &Path, more: &str) -> String {
    let local = r#"[{ name = "local", address = "127.0.0.1:0" }]"#;
    format!(
        r#"
[node]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[cluster]
origins = {local}
shields = {local}
[ingest]
rtmp = "127.0.0.1:0"
rtmps = "127.0.0.1:0"
drain = "0s"
[shield]
https = "127.0.0.1:0"
drain = "0s"
[edge]
https = "127.0.0.1:0"
drain = "0s"
[origin]
listen = "127.0.0.1:0"
{more}
"#,
        folder.join("state").display()
    )
}
