//! A herd: 2,000 viewers with a connection each ask for one name that nobody has asked for before, and the upstream is
//! quick, slow, silent, broken or unwilling. Rooftop beside nginx and Varnish.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, RANGE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use net::tls;
use tokio::task::JoinSet;

use crate::crowd::{Got, Viewer};
use crate::node::{Node, edge_node};
use crate::origin::{self, Origin, Script};
use crate::process::{Confined, two_cpus};
use crate::report::{Better, Report, quantile};
use crate::server::Server;
use crate::{Folders, bare, nginx, varnish};

const VIEWERS: usize = 2_000;

/// Of the object, in bytes: a part of a low rendition, so that waking the viewers counts for more than filling sockets.
const SIZE: usize = bare::HELD_SIZE;

/// How long the upstream takes when it is quick.
const QUICK: Duration = Duration::from_millis(100);

/// All servers give up on a silent upstream after 5 s; nobody should wait much longer than that.
const PATIENCE: Duration = Duration::from_secs(12);

/// More of the edge's table: the times that the others are told, a second fetch after 1 s and the end after 5 s.
const CLASS: &str = r#"
[[edge.classes]]
name = "herd"
paths = ["*"]
blocking_timeout = "1s"
give_up = "5s"
"#;

/// What an upstream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Quick,
    Slow,
    SilentAtFirst,
    SilentMidBody,
    CutOnce,
    CutAlways,
    Error,
    Missing,
    NoStore,
    FirstLeaves,
}

const CASES: [(Case, &str, &str); 10] = [
    (Case::Quick, "quick", "answers after 100 ms"),
    (Case::Slow, "slow", "answers after 3 s"),
    (Case::SilentAtFirst, "silent-at-first", "says nothing to the first request, answers the next"),
    (Case::SilentMidBody, "silent-mid-body", "falls silent after half of the first body, answers the next"),
    (Case::CutOnce, "cut-once", "closes after half of the first body, answers the next"),
    (Case::CutAlways, "cut-always", "closes after half of every body, knows no ranges"),
    (Case::Error, "500", "answers 500 after 100 ms"),
    (Case::Missing, "404", "answers 404 after 100 ms"),
    (Case::NoStore, "no-store", "answers after 100 ms; not to be kept"),
    (Case::FirstLeaves, "first-leaves", "answers after 300 ms; the first viewer has left by then"),
];

/// What happened upstream, by path.
#[derive(Default)]
struct Told {
    requests: usize,
    /// When it had first said all that it had to say in answer to one.
    there: Option<Instant>,
}

type Log = Arc<Mutex<BTreeMap<String, Told>>>;

fn locked(log: &Log) -> MutexGuard<'_, BTreeMap<String, Told>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (server_cpu, load_cpu) = two_cpus();
    let folder = folders.run.join("herd");
    let tls_folder = folder.join("state/tls");
    let log = Log::default();
    let upstream = {
        let log = log.clone();
        let answer = move |request: Request<Incoming>| play(log.clone(), request);
        runtime.block_on(Origin::start(&tls_folder, answer))?
    };
    let files = tls::development_files(&tls_folder, "edge", &[])?;
    let settings = nginx::Settings {
        certificate: &files.certificate,
        key: &files.key,
        upstream: &format!("http://{}", upstream.http),
        cpu: server_cpu,
        mode: nginx::Mode::Cache,
        memory: &folders.memory,
    };
    let servers = [
        Server::rooftop(Node::start(&folder, &edge_node(&folder, &upstream, CLASS), server_cpu)?)?,
        nginx::start(&folder, &settings)?,
        varnish::start(&folder, upstream.http, &folders.memory, server_cpu)?,
    ];
    let floor = bare::start(&folder, &bare::Answers::new(), &files, server_cpu)?;
    let confined = Confined::to(load_cpu)?;
    let mut rows = Vec::new();
    let outcome = runtime.block_on(least(&floor))?;
    rows.push(outcome.row("(nothing to fetch)", floor.name));
    for (case, name, what) in CASES {
        if !report.wants(&format!("herd/{name}")) {
            continue;
        }
        report.note(&format!("{name}: the upstream {what}"));
        let mut outcomes = Vec::new();
        for server in &servers {
            let path = format!("/live/{name}/{}.m4s", server.name);
            outcomes.push(runtime.block_on(stampede(case, &path, server, &log))?);
        }
        for (index, (server, outcome)) in servers.iter().zip(&outcomes).enumerate() {
            rows.push(outcome.row(if index == 0 { name } else { "" }, server.name));
        }
        let kinds: [(&str, &str, Better, Figure); 6] = [
            ("fetches", "requests upstream", Better::Lower, |outcome| outcome.fetches as f64),
            ("whole", "viewers", Better::Higher, |outcome| outcome.whole as f64),
            ("cut", "viewers", Better::Lower, |outcome| (outcome.cut + outcome.wrong) as f64),
            ("woken-p50", "ms", Better::Lower, |outcome| quantile(&outcome.woken_ms, 0.5)),
            ("woken-p99", "ms", Better::Lower, |outcome| quantile(&outcome.woken_ms, 0.99)),
            ("longest-wait", "ms", Better::Lower, |outcome| outcome.longest_ms),
        ];
        for (kind, unit, better, figure) in kinds {
            let peers: Vec<(&str, f64)> = servers[1..]
                .iter()
                .zip(&outcomes[1..])
                .map(|(server, outcome)| (server.title.as_str(), figure(outcome)))
                .collect();
            report.record(format!("herd/{name}/{kind}"), unit, better, figure(&outcomes[0]), &peers);
        }
    }
    drop(confined);
    let head = [
        "the upstream",
        "server",
        "fetches",
        "whole",
        "other answers",
        "cut",
        "woken p50",
        "p99",
        "max",
        "all done",
        "longest wait",
    ];
    let title = format!(
        "herd: {VIEWERS} viewers of one cold name. Milliseconds from when the upstream had first said all to a viewer's \
         first byte (woken) and to the last viewer's last (all done); the longest wait is from a viewer's own request"
    );
    report.table(&title, head.map(String::from).to_vec(), rows);
    Ok(())
}

type Figure = fn(&Outcome) -> f64;

/// What became of the viewers of one name.
#[derive(Default)]
struct Outcome {
    fetches: usize,
    /// 200 with the right bytes.
    whole: usize,
    /// Complete answers with another status.
    statuses: BTreeMap<u16, usize>,
    /// Ended in the middle, and said so.
    cut: usize,
    /// 200 that looked whole with other bytes than the object's.
    wrong: usize,
    /// No answer.
    none: usize,
    /// First bytes, after the upstream had first said all.
    woken_ms: Vec<f64>,
    /// Last bytes.
    done_ms: Vec<f64>,
    longest_ms: f64,
}

impl Outcome {
    fn of(fetches: usize, there: Option<Instant>, answers: Vec<Answered>) -> Outcome {
        let expected = origin::content(SIZE);
        let mut outcome = Outcome { fetches, ..Outcome::default() };
        for (asked, answered, got) in answers {
            let begun = got.as_ref().map(|got| got.begun);
            match got {
                None => outcome.none += 1,
                Some(Got { cut: true, .. }) => outcome.cut += 1,
                Some(Got { status: 200, body, .. }) if body == expected => outcome.whole += 1,
                Some(Got { status: 200, .. }) => outcome.wrong += 1,
                Some(Got { status, .. }) => *outcome.statuses.entry(status).or_default() += 1,
            }
            if let (Some(there), Some(begun)) = (there, begun) {
                outcome.woken_ms.push(1e3 * begun.saturating_duration_since(there).as_secs_f64());
                outcome.done_ms.push(1e3 * answered.saturating_duration_since(there).as_secs_f64());
            }
            outcome.longest_ms = outcome.longest_ms.max(1e3 * (answered - asked).as_secs_f64());
        }
        outcome
    }

    fn row(&self, case: &str, server: &str) -> Vec<String> {
        let number = |count: usize| if count == 0 { "-".into() } else { count.to_string() };
        let mut others: Vec<String> =
            self.statuses.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        if self.wrong > 0 {
            others.push(format!("{} wrong", self.wrong));
        }
        if self.none > 0 {
            others.push(format!("{} none", self.none));
        }
        let others = if others.is_empty() { "-".into() } else { others.join(", ") };
        // The upstream may never have said all.
        let late = |late_ms: &[f64], part| match late_ms.is_empty() {
            true => "-".into(),
            false => format!("{:.0}", quantile(late_ms, part)),
        };
        let woken = [0.5, 0.99, 1.0].map(|part| late(&self.woken_ms, part));
        [case.into(), server.into(), number(self.fetches), number(self.whole), others, number(self.cut)]
            .into_iter()
            .chain(woken)
            .chain([late(&self.done_ms, 1.0), format!("{:.0}", self.longest_ms)])
            .collect()
    }
}

/// All viewers connect, then ask at once.
async fn stampede(case: Case, path: &str, server: &Server, log: &Log) -> anyhow::Result<Outcome> {
    let mut viewers = Viewer::connect_all(VIEWERS, server.addr(false)?, None).await?;
    let mut leaving = None;
    if case == Case::FirstLeaves
        && let Some(mut first) = viewers.pop()
    {
        first.ask(path).await?;
        while locked(log).get(path).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        leaving = Some(first);
    }
    let waiting = ask_all(viewers, path);
    if leaving.is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(leaving);
    }
    let answers = waiting.join_all().await;
    let told = locked(log).remove(path).unwrap_or_default();
    let outcome = Outcome::of(told.requests, told.there, answers);
    // Whatever a server still does for those that are gone is not to disturb the next.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(outcome)
}

/// What a server that has nothing to fetch takes to wake as many.
async fn least(server: &Server) -> anyhow::Result<Outcome> {
    let addr = server.addr(false)?;
    let mut releasing = Viewer::connect(addr, None).await?;
    let viewers = Viewer::connect_all(VIEWERS, addr, None).await?;
    let waiting = ask_all(viewers, &format!("{}/herd", bare::HOLD));
    tokio::time::sleep(3 * QUICK).await;
    let there = Instant::now();
    releasing.get(&format!("{}/herd", bare::RELEASE)).await?;
    Ok(Outcome::of(0, Some(there), waiting.join_all().await))
}

/// When a viewer asked, when it had its answer or none, and that.
type Answered = (Instant, Instant, Option<Got>);

fn ask_all(viewers: Vec<Viewer>, path: &str) -> JoinSet<Answered> {
    let mut waiting = JoinSet::new();
    for mut viewer in viewers {
        let path = path.to_owned();
        waiting.spawn(async move {
            let asked = Instant::now();
            let got = tokio::time::timeout(PATIENCE, viewer.get(&path)).await;
            (asked, Instant::now(), got.ok().and_then(Result::ok))
        });
    }
    waiting
}

/// The upstream's part in `/live/{case}/...`.
async fn play(log: Log, request: Request<Incoming>) -> Response<Script> {
    let path = request.uri().path().to_owned();
    let name = path.split('/').nth(2).unwrap_or_default();
    let Some((case, ..)) = CASES.into_iter().find(|(_, case, _)| *case == name) else {
        return origin::status(StatusCode::NOT_FOUND);
    };
    let first = {
        let mut log = locked(&log);
        let told = log.entry(path.clone()).or_default();
        told.requests += 1;
        told.requests == 1
    };
    let there = || {
        // A viewer who has given up may have been counted already.
        if let Some(told) = locked(&log).get_mut(&path) {
            told.there.get_or_insert_with(Instant::now);
        }
    };
    let delay = match case {
        Case::Slow => Duration::from_secs(3),
        Case::FirstLeaves => 3 * QUICK,
        Case::SilentAtFirst if first => std::future::pending().await,
        _ => QUICK,
    };
    tokio::time::sleep(delay).await;
    let half = match case {
        Case::SilentMidBody | Case::CutOnce => first,
        Case::CutAlways => true,
        _ => false,
    };
    if half {
        let (pen, body) = Script::new();
        let _ = pen.send(Ok(origin::content(SIZE).slice(..SIZE / 2)));
        let mut response = origin::cacheable(body, Some(SIZE));
        if case != Case::CutAlways {
            response.headers_mut().insert(ETAG, HeaderValue::from_static("\"herd\""));
        } else {
            there();
        }
        tokio::spawn(async move {
            if case == Case::SilentMidBody {
                return pen.closed().await;
            }
            // The first half is to arrive.
            tokio::time::sleep(QUICK).await;
            let _ = pen.send(Err(std::io::Error::other("cut")));
        });
        return response;
    }
    there();
    match case {
        Case::Error => origin::status(StatusCode::INTERNAL_SERVER_ERROR),
        Case::Missing => origin::status(StatusCode::NOT_FOUND),
        _ => {
            let mut response = whole_or_rest(request.headers());
            if case == Case::NoStore {
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            }
            response
        }
    }
}

/// The object, or its rest if the request asks for that.
fn whole_or_rest(headers: &HeaderMap) -> Response<Script> {
    let range = headers.get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let first = range.and_then(|range| range.split('-').next()?.parse().ok()).filter(|&first| first < SIZE);
    let body = Script::whole(origin::content(SIZE).slice(first.unwrap_or(0)..));
    let mut response = origin::cacheable(body, Some(SIZE - first.unwrap_or(0)));
    response.headers_mut().insert(ETAG, HeaderValue::from_static("\"herd\""));
    if let Some(first) = first {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let of = format!("bytes {first}-{}/{SIZE}", SIZE - 1);
        if let Ok(of) = HeaderValue::try_from(of) {
            response.headers_mut().insert(CONTENT_RANGE, of);
        }
        response.headers_mut().insert(CONTENT_LENGTH, (SIZE - first).into());
    }
    response
}
