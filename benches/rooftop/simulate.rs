//! The simulation beside the real thing: 5,000 viewers with a connection each poll playlists and fetch segments from an
//! edge over an origin that is made up, and `edge::simulate` is asked what would come of the same.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge::policy::Class;
use edge::simulate::{self, Latency, Outcome, Reload, Rule, Scenario};
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::task::JoinSet;

use crate::Folders;
use crate::crowd::Viewer;
use crate::node::{Node, edge_node};
use crate::origin::{self, Origin, Script};
use crate::process::{Confined, two_cpus};
use crate::report::{Better, Report, quantile};

const VIEWERS: u64 = 5_000;

const ARRIVAL: Duration = Duration::from_secs(2);
const LENGTH: Duration = Duration::from_secs(10);
const SEGMENT: Duration = Duration::from_secs(1);

/// Of the stream when the first viewer comes: whole segments, and how much of the next one has passed.
const BEFORE: u64 = 100;
const PHASE: f64 = 0.37;

/// Segments that a player fetches at first.
const HOLD_BACK: u64 = 3;

/// How long the origin takes, and the cache-blocking timeout of all classes.
const CASES: [(&str, u64, u64); 3] = [("quick", 50, 1000), ("slow", 700, 1000), ("too-slow", 1500, 500)];

#[derive(Default)]
struct Told {
    /// When the first viewer came.
    zero: Option<Instant>,
    requests: u64,
}

type Log = Arc<Mutex<BTreeMap<String, Told>>>;

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (server_cpu, load_cpu) = two_cpus();
    let mut rows = Vec::new();
    for (name, latency_ms, timeout_ms) in CASES {
        if !report.wants(&format!("simulate/{name}")) {
            continue;
        }
        let classes: Vec<Class> = Class::defaults()
            .into_iter()
            .map(|class| Class { blocking_timeout: Duration::from_millis(timeout_ms), ..class })
            .collect();
        let scenario = scenario(&classes, latency_ms);
        let simulated = simulate::run(&scenario, Instant::now());
        let folder = folders.run.join(format!("simulate-{name}"));
        let log = Log::default();
        let upstream = {
            let log = log.clone();
            let answer = move |request: Request<Incoming>| play(log.clone(), latency_ms, request);
            runtime.block_on(Origin::start(&folder.join("state/tls"), answer))?
        };
        let mut table = toml::Table::new();
        table.insert("classes".into(), toml::Value::try_from(&classes)?);
        let classes: toml::Table = [("edge".to_owned(), toml::Value::Table(table))].into_iter().collect();
        let more = format!("delivery = [{{ prefix = \"/\", mode = \"pull\" }}]\n{classes}");
        let node = Node::start(&folder, &edge_node(&folder, &upstream, &more), server_cpu)?;
        let confined = Confined::to(load_cpu)?;
        let seen = runtime.block_on(watch(name, node.addr("http")?, &log))?;
        drop(confined);
        rows.extend(compare(name, &simulated, &seen));
        let fetches = (simulated.edge_fetches as f64, seen.fetches as f64);
        report.record(
            format!("simulate/{name}/fetches"),
            "requests upstream",
            Better::Lower,
            fetches.0,
            &[("the real run", fetches.1)],
        );
    }
    let head = ["origin", "", "requests", "fetches", "wait p50", "p99", "max", "errors"];
    let title = format!(
        "simulate: {VIEWERS} viewers arrive within {} s and poll for {} s; milliseconds. The simulation and the real run",
        ARRIVAL.as_secs(),
        LENGTH.as_secs()
    );
    report.table(&title, head.map(String::from).to_vec(), rows);
    Ok(())
}

fn scenario(classes: &[Class], latency_ms: u64) -> Scenario {
    let policy =
        edge::Policy { classes: classes.iter().cloned().map(Arc::new).collect(), delivery: Vec::new() };
    let latency = Duration::from_millis(latency_ms);
    Scenario {
        viewers: VIEWERS,
        edges: 1,
        shields: 0,
        renditions: 1,
        audio: false,
        arrival: ARRIVAL,
        length: LENGTH,
        segment: SEGMENT,
        part: SEGMENT,
        reload: Reload::Polling,
        hop: Duration::ZERO,
        latency: Latency::of(latency, latency),
        capacity: None,
        edge: policy.clone(),
        shield: policy,
        rule: Rule::Promote,
        seed: 1,
    }
}

/// What viewers and origin saw.
#[derive(Default)]
struct Seen {
    fetches: u64,
    requests: u64,
    failed: u64,
    waits_ms: Vec<f64>,
}

fn compare(name: &str, simulated: &Outcome, seen: &Seen) -> [Vec<String>; 2] {
    let wait = simulated.wait_ms;
    let apart = |a: u64, b: u64| 100.0 * (a as f64 - b as f64) / (b as f64).max(1.0);
    let simulation = [
        name.into(),
        "simulated".into(),
        format!("{} ({:+.1} %)", simulated.requests, apart(simulated.requests, seen.requests)),
        format!("{} ({:+.1} %)", simulated.edge_fetches, apart(simulated.edge_fetches, seen.fetches)),
        wait.p50.to_string(),
        wait.p99.to_string(),
        wait.max.to_string(),
        simulated.failed.to_string(),
    ];
    let at = |part| format!("{:.0}", quantile(&seen.waits_ms, part));
    let real = [
        String::new(),
        "real".into(),
        seen.requests.to_string(),
        seen.fetches.to_string(),
        at(0.5),
        at(0.99),
        at(1.0),
        seen.failed.to_string(),
    ];
    [simulation.to_vec(), real.to_vec()]
}

async fn watch(name: &'static str, edge: SocketAddr, log: &Log) -> anyhow::Result<Seen> {
    let viewers = Viewer::connect_all(VIEWERS as usize, edge, None).await?;
    let zero = Instant::now();
    log.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().zero = Some(zero);
    let mut watching = JoinSet::new();
    for (index, viewer) in viewers.into_iter().enumerate() {
        let arrives = zero + ARRIVAL.mul_f64((index as f64 + 0.5) / VIEWERS as f64);
        watching.spawn(play_on(name, viewer, zero, arrives));
    }
    let mut all = Seen::default();
    for seen in watching.join_all().await {
        all.requests += seen.requests;
        all.failed += seen.failed;
        all.waits_ms.extend(seen.waits_ms);
    }
    let told = log.lock().unwrap_or_else(PoisonError::into_inner).remove(name).unwrap_or_default();
    all.fetches = told.requests;
    Ok(all)
}

/// One viewer, who does what those of the simulation do.
async fn play_on(name: &str, mut viewer: Viewer, zero: Instant, arrives: Instant) -> Seen {
    let mut seen = Seen::default();
    let ends = zero + LENGTH;
    tokio::time::sleep_until(arrives.into()).await;
    let path = |object: String| format!("/live/{name}/{object}");
    let Some(_) = seen.get(&mut viewer, &path("index.m3u8".into()), ends).await else { return seen };
    let (mut next, mut polled) = (None, Instant::now());
    while let Some(listed) = seen.get(&mut viewer, &path("0.m3u8".into()), ends).await {
        let listed: u64 = String::from_utf8_lossy(&listed).trim().parse().unwrap_or(0);
        let wait = match next {
            None => {
                let Some(_) = seen.get(&mut viewer, &path("1/0/init.mp4".into()), ends).await else { break };
                next = Some(listed + 1 - HOLD_BACK);
                SEGMENT
            }
            Some(next) if listed < next => SEGMENT / 2,
            Some(_) => SEGMENT,
        };
        for number in next.unwrap_or(listed)..=listed {
            if seen.get(&mut viewer, &path(format!("1/0/{number}.m4s")), ends).await.is_none() {
                return seen;
            }
        }
        next = next.map(|next| next.max(listed + 1));
        tokio::time::sleep_until((polled + wait).into()).await;
        polled = Instant::now();
    }
    seen
}

impl Seen {
    /// Asks until there is an answer; `None`: it is over.
    async fn get(&mut self, viewer: &mut Viewer, path: &str, ends: Instant) -> Option<Vec<u8>> {
        loop {
            let asked = Instant::now();
            if asked >= ends {
                return None;
            }
            let got = viewer.get(path).await.ok()?;
            self.requests += 1;
            self.waits_ms.push(1e3 * (got.begun - asked).as_secs_f64());
            if got.status == 200 && !got.cut {
                return Some(got.body);
            }
            self.failed += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// The origin's part in `/live/{name}/...`.
async fn play(log: Log, latency_ms: u64, request: Request<Incoming>) -> Response<Script> {
    let path = request.uri().path().to_owned();
    let mut parts = path.split('/').skip(2);
    let (name, object) = (parts.next().unwrap_or_default(), path.rsplit('/').next().unwrap_or_default());
    let newest = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = log.get_mut(name) else {
            return origin::status(StatusCode::NOT_FOUND);
        };
        // An edge that asks to be pushed a stream asks for something else.
        let known = [".m3u8", ".mp4", ".m4s"].iter().any(|extension| object.ends_with(extension));
        let (Some(zero), true) = (told.zero, known) else {
            return origin::status(StatusCode::NOT_FOUND);
        };
        told.requests += 1;
        (zero.elapsed().as_secs_f64() / SEGMENT.as_secs_f64() + PHASE) as u64 + BEFORE - 1
    };
    tokio::time::sleep(Duration::from_millis(latency_ms)).await;
    let (body, control) = match object {
        "index.m3u8" => (format!("{newest}\n"), "max-age=2"),
        object if object.ends_with(".m3u8") => (format!("{newest}\n"), "max-age=1"),
        _ => ("x".repeat(1000), "public, max-age=31536000, immutable"),
    };
    let mut response = origin::cacheable(Script::whole(body.clone().into()), Some(body.len()));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(control));
    response
}
