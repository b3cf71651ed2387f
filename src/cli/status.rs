//! `rooftop status`, `rooftop streams` and `rooftop drain`: how a running node stands, and its end in good order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::node::{NodeArgs, Question, exchange, read};
use crate::whatif::scrape::Scrape;

/// How often a node that drains is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Arguments of `status` and `streams`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Come back when it has ended, or fail after this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// What one look at a node shows.
pub(super) struct Seen {
    /// `GET /admin/status`
    pub(super) status: Value,
    /// Broadcasts, of `GET /admin/ingest`; empty where there is no ingest.
    pub(super) broadcasts: Vec<Value>,
    /// `GET /admin/viewers`; `null` where there is no edge.
    pub(super) viewers: Value,
    pub(super) metrics: Scrape,
}

impl Seen {
    pub(super) fn look(node: &NodeArgs) -> anyhow::Result<Seen> {
        let answered = exchange(node, Question::new(Method::GET, "/admin/status"))?;
        let Some(status) = answered.good().cloned() else {
            bail!("{} does not say how it stands", node.admin)
        };
        let has =
            |wanted| status["roles"].as_array().is_some_and(|roles| roles.iter().any(|role| role == wanted));
        let mut broadcasts = Vec::new();
        if has("ingest") {
            let answered = exchange(node, Question::new(Method::GET, "/admin/ingest"))?;
            let listed = answered.good().and_then(|told| told["listed"].as_array().cloned());
            broadcasts = listed.with_context(|| format!("{} does not list its broadcasts", node.admin))?;
        }
        let mut viewers = Value::Null;
        if has("edge") {
            let answered = exchange(node, Question::new(Method::GET, "/admin/viewers"))?;
            viewers = answered
                .good()
                .cloned()
                .with_context(|| format!("{} does not count its viewers", node.admin))?;
        }
        Ok(Seen { status, broadcasts, viewers, metrics: Scrape::parse(&read(node, "/metrics")?) })
    }

    /// Streams with what is known of their broadcasts and viewers, by name. An origin knows streams, a POP broadcasts and
    /// what is watched there.
    pub(super) fn streams(&self) -> Vec<Value> {
        let mut streams = BTreeMap::new();
        let mut of = |name: &Value, key: Option<&str>, value: &Value| {
            let Some(name) = name.as_str() else { return };
            let stream = streams.entry(name.to_owned()).or_insert_with(|| json!({ "stream": name }));
            match key {
                Some(key) => stream[key] = value.clone(),
                None => *stream = value.clone(),
            }
        };
        for stream in self.status["streams"].as_array().into_iter().flatten() {
            of(&stream["stream"], None, stream);
        }
        for broadcast in &self.broadcasts {
            of(&broadcast["stream"], Some("broadcast"), broadcast);
        }
        for watched in self.viewers["streams"].as_array().into_iter().flatten() {
            // Recordings are watched too, but are no streams.
            let name = watched["stream"].as_str().and_then(|path| path.strip_prefix("/live/"));
            of(&json!(name), Some("viewers"), &watched["viewers"]);
        }
        let mut streams: Vec<_> = streams.into_values().collect();
        if self.viewers["stream_count"].as_u64()
            <= self.viewers["streams"].as_array().map(|listed| listed.len() as u64)
        {
            // Nothing was left out: who is not listed has no viewers here.
            for stream in streams.iter_mut().filter(|stream| stream["viewers"].is_null()) {
                stream["viewers"] = 0.into();
            }
        }
        streams
    }

    /// Whose viewers are counted, in words.
    pub(super) fn covered(&self) -> String {
        covered(&self.viewers)
    }

    /// Figures of a cache tier; `None`: the node has none of that name.
    pub(super) fn tier(&self, tier: &str) -> Option<Tier> {
        let of = [("tier", tier)];
        if !self.metrics.has("edge_waiters", &of) {
            return None;
        }
        let not_for_objects = ["local", "refused", "loop", "forbidden"];
        let mut found = Tier {
            waiters: self.metrics.sum("edge_waiters", &of),
            names: self.metrics.sum("edge_inflight_names", &of),
            fetches: self.metrics.sum("edge_fetches_total", &of),
            promotions: self.metrics.sum("edge_promotions_total", &of),
            served_bytes: self.metrics.sum("edge_served_bytes_total", &of),
            cache_bytes: self.metrics.sum("edge_cache_bytes", &of),
            leak_ratio: self.metrics.sum("edge_leak_ratio", &of),
            ..Tier::default()
        };
        for (result, count) in self.metrics.by("edge_requests_total", &of, "result") {
            if !not_for_objects.contains(&result) {
                found.requests += count;
            }
            match result {
                "hit" => found.hits += count,
                "error" | "overloaded" => found.failed += count,
                _ => {}
            }
        }
        Some(found)
    }
}

/// Counters and gauges of a tier.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tier {
    /// For objects.
    pub(super) requests: f64,
    pub(super) hits: f64,
    /// Answered by an error of ours.
    pub(super) failed: f64,
    pub(super) fetches: f64,
    pub(super) promotions: f64,
    pub(super) served_bytes: f64,
    pub(super) waiters: f64,
    pub(super) names: f64,
    pub(super) cache_bytes: f64,
    pub(super) leak_ratio: f64,
}

/// How the node stands. Exit code 1: it is not ready.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let seen = Seen::look(&args.node)?;
    let mut told = seen.status.clone();
    for tier in ["shield", "edge"] {
        if let Some(found) = seen.tier(tier) {
            told["tiers"][tier] = json!({
                "requests": found.requests,
                "hits": found.hits,
                "failed": found.failed,
                "fetches": found.fetches,
                "promotions": found.promotions,
                "waiters": found.waiters,
                "inflight_names": found.names,
                "cache_bytes": found.cache_bytes,
                "leak_ratio_1m": found.leak_ratio,
            });
        }
    }
    told["broadcasts"] = seen.broadcasts.len().into();
    if args.json {
        println!("{told}");
    } else {
        print!("{}", in_words(&told));
    }
    Ok(if told["ready"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_words(told: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list =
        |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
    let _ = writeln!(
        out,
        "{}: {}, up {}, Rooftop {}, roles {}",
        text(&told["node"]),
        standing(told),
        humantime::format_duration(Duration::from_secs(told["uptime_s"].as_u64().unwrap_or_default())),
        text(&told["version"]),
        list(&told["roles"]),
    );
    for (name, addr) in told["listeners"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "  {name:<8} {}", text(addr));
    }
    if told["store"]["up"] != true {
        let _ = writeln!(out, "store cannot be reached: {}", text(&told["store"]["why"]));
    }
    if let Some(cause) = told["archive_failing"]["cause"].as_str() {
        let _ = writeln!(out, "archive cannot be written: {cause}");
    }
    let _ = writeln!(out, "{} streams, {} broadcasts come in here", told["stream_count"], told["broadcasts"]);
    for (tier, found) in told["tiers"].as_object().into_iter().flatten() {
        let number = |key: &str| found[key].as_f64().unwrap_or_default();
        let _ = writeln!(
            out,
            "{tier}: {:.0} requests, {:.1} % hits, {:.3} % of the last minute's went upstream, {:.0} wait, {:.0} MiB kept",
            number("requests"),
            100.0 * number("hits") / number("requests").max(1.0),
            100.0 * number("leak_ratio_1m"),
            number("waiters"),
            number("cache_bytes") / f64::from(1 << 20),
        );
    }
    for node in told["nodes"].as_array().into_iter().flatten() {
        let load = match node["capacity"].as_u64() {
            Some(capacity @ 1..) => format!("  load {} of {capacity}", node["load"]),
            _ => String::new(),
        };
        let draining = if node["draining"] == true { "  draining" } else { "" };
        let _ = writeln!(
            out,
            "  {:<7} {:<24} {}{load}{draining}",
            text(&node["role"]),
            text(&node["name"]),
            text(&node["address"])
        );
    }
    out
}

/// In a word.
pub(super) fn standing(status: &Value) -> &'static str {
    match (&status["draining"], &status["ready"]) {
        (Value::Bool(true), _) => "draining",
        (_, Value::Bool(true)) => "ready",
        _ => "not ready",
    }
}

/// The streams that the node knows.
pub fn streams(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let seen = Seen::look(&args.node)?;
    let streams = seen.streams();
    if args.json {
        println!(
            "{}",
            json!({
                "stream_count": seen.status["stream_count"],
                "streams": streams,
                "viewers": seen.viewers["viewers"],
                "viewers_at": seen.viewers["viewers_at"],
                "viewers_not_at": seen.viewers["viewers_not_at"],
            })
        );
    } else {
        print!("{}{}", table(&streams, None), seen.covered());
    }
    Ok(ExitCode::SUCCESS)
}

/// Widest column of names; longer ones push the others aside.
const MAX_NAME: usize = 40;

/// Columns of the other figures, and of a warning or two.
const FIGURES: usize = 59;

/// A line for each stream, after one that says what is in it. `columns`: for a terminal of so many, with names cut and
/// without epochs, so that the warnings are seen.
pub(super) fn table(streams: &[Value], columns: Option<u16>) -> String {
    let most =
        columns.map_or(MAX_NAME, |columns| usize::from(columns).saturating_sub(FIGURES).clamp(8, MAX_NAME));
    let name = |stream: &Value| {
        let name = stream["stream"].as_str().unwrap_or_default();
        match name.char_indices().nth(most - 1) {
            // Names of streams are ASCII.
            Some((end, _)) if columns.is_some() && name.len() > most => format!("{}…", &name[..end]),
            _ => name.to_owned(),
        }
    };
    let widest = streams.iter().map(|stream| name(stream).chars().count()).max().unwrap_or(0);
    let width = widest.clamp("stream".len(), most);
    let epoch = |shown: &str| if columns.is_some() { String::new() } else { format!("{shown:>15}") };
    let mut out = format!(
        "{:<width$} {:<12}{}{:>8}{:>9}{:>7}{:>8}  {}\n",
        "stream",
        "state",
        epoch("epoch"),
        "viewers",
        "kbit/s",
        "fps",
        "lag ms",
        "warnings"
    );
    for stream in streams {
        let broadcast = &stream["broadcast"];
        let figure = |value: &Value, by: f64, digits: usize| match value.as_f64() {
            Some(value) => format!("{:.digits$}", value / by),
            None => "-".into(),
        };
        let warnings = broadcast["warnings"].as_array().into_iter().flatten();
        let warnings: Vec<_> = warnings.filter_map(|warning| warning["kind"].as_str()).collect();
        let of_stream = stream["epoch"].as_u64().map_or("-".into(), |epoch| epoch.to_string());
        let _ = writeln!(
            out,
            "{:<width$} {:<12}{}{:>8}{:>9}{:>7}{:>8}  {}",
            name(stream),
            stream["state"].as_str().unwrap_or(if broadcast.is_null() { "watched" } else { "relayed" }),
            epoch(&of_stream),
            figure(&stream["viewers"], 1.0, 0),
            figure(&broadcast["bitrate_bps"], 1000.0, 0),
            figure(&broadcast["fps"], 1.0, 1),
            figure(&broadcast["lag_ms"], 1.0, 0),
            warnings.join(" "),
        );
    }
    out
}

/// Whose viewers an answer counts, and whose not, in a line.
pub(super) fn covered(answer: &Value) -> String {
    let list = |value: &Value| {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let (here, elsewhere) = (list(&answer["viewers_at"]), list(&answer["viewers_not_at"]));
    match (here.is_empty(), elsewhere.is_empty()) {
        (true, true) => "viewers are counted at edges; this node is none\n".into(),
        (true, false) => format!("viewers are counted at edges: ask {elsewhere}\n"),
        (false, true) => format!("viewers: those at {here}\n"),
        (false, false) => format!("viewers: those at {here}; not those at {elsewhere}\n"),
    }
}

/// Lets the node end in good order.
pub fn drain(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let admin = &args.node.admin;
    let question = Question::new(Method::POST, "/admin/drain").body(&json!({}));
    let answered = exchange(&args.node, question)?;
    if answered.good().is_none() {
        return Ok(ExitCode::FAILURE);
    }
    let began = Instant::now();
    let ended = match args.wait {
        None => false,
        Some(limit) => loop {
            // Its admin listener is the last that ends.
            if std::net::TcpStream::connect(admin.host_and_port()).is_err() {
                break true;
            }
            if began.elapsed() >= limit {
                bail!("{admin} has not ended within {}", humantime::format_duration(limit));
            }
            std::thread::sleep(LOOK);
        },
    };
    if args.json {
        println!("{}", json!({ "draining": true, "ended": ended }));
    } else if ended {
        println!("it has ended");
    } else {
        println!(
            "it drains: sessions and answers may finish within the drain times of its roles, then it ends"
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            status: json!({
                "node": "pop-1", "version": "1", "roles": ["ingest", "edge"], "ready": true, "draining": false,
                "uptime_s": 61, "listeners": { "http": "127.0.0.1:80" }, "store": { "up": false, "why": "gone" },
                "stream_count": 1, "nodes": [
                    { "name": "o1", "role": "origin", "address": "o1:1", "capacity": 20, "load": 3, "draining": true },
                ],
                "streams": [{ "stream": "b", "state": "live", "epoch": 7 }],
            }),
            broadcasts: vec![
                json!({ "stream": "b", "bitrate_bps": 2_500_000, "fps": 29.97, "lag_ms": 3, "warnings": [{ "kind": "uplink" }] }),
                json!({ "stream": "a", "bitrate_bps": 1000, "fps": 25.0, "lag_ms": 0, "warnings": [] }),
            ],
            viewers: json!({
                "viewers": 4, "stream_count": 3, "viewers_at": ["pop-1"], "viewers_not_at": ["pop-2", "pop-3"],
                "streams": [
                    { "stream": "/live/b", "viewers": 3 }, { "stream": "/live/c", "viewers": 1 }, { "stream": "/vod/b-1", "viewers": 1 },
                ],
            }),
            metrics: Scrape::parse(
                "edge_waiters{tier=\"edge\"} 2\nedge_requests_total{tier=\"edge\",result=\"hit\"} 90\n\
                 edge_requests_total{tier=\"edge\",result=\"miss\"} 9\nedge_requests_total{tier=\"edge\",result=\"local\"} 5\n\
                 edge_requests_total{tier=\"edge\",result=\"error\"} 1\n",
            ),
        }
    }

    #[test]
    fn a_node_is_told_in_words() {
        let text = in_words(&seen().status);
        for words in ["pop-1: ready, up 1m 1s", "store cannot be reached: gone", "load 3 of 20  draining"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn streams_and_broadcasts_are_one_table() {
        let streams = seen().streams();
        let text = table(&streams, None);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].starts_with("a ") && lines[1].contains("relayed"), "{text}");
        assert!(
            lines[2].contains(" live ") && lines[2].contains("7       3     2500   30.0       3  uplink"),
            "{text}"
        );
        assert!(
            lines[3].starts_with("c ") && lines[3].contains("watched") && lines[3].contains("-       1"),
            "{text}"
        );
        let long = [
            json!({ "stream": "a".repeat(64), "state": "interrupted", "epoch": 1_795_303_647_647_u64, "viewers": 12_345,
            "broadcast": { "bitrate_bps": 12_345_678, "fps": 59.94, "lag_ms": 12_345, "warnings": [{ "kind": "uplink" }] } }),
        ];
        assert!(table(&long, None).contains(&"a".repeat(64)), "what scripts read is whole");
        for line in table(&long, Some(80)).lines() {
            assert!(line.chars().count() <= 80, "a terminal shows the warnings: {line}");
        }
        let viewers: Vec<_> = streams.iter().map(|stream| &stream["viewers"]).collect();
        assert_eq!(viewers, [&json!(0), &json!(3), &json!(1)]);
    }

    #[test]
    fn whose_viewers_are_counted_is_said() {
        assert_eq!(seen().covered(), "viewers: those at pop-1; not those at pop-2, pop-3\n");
        let said = |here: &[&str], elsewhere: &[&str]| {
            covered(&json!({ "viewers_at": here, "viewers_not_at": elsewhere }))
        };
        assert_eq!(said(&["a"], &[]), "viewers: those at a\n");
        assert!(said(&[], &["b"]).contains("ask b") && said(&[], &[]).contains("this node is none"));
    }

    #[test]
    fn tiers_are_those_that_are_there() {
        let seen = seen();
        assert!(seen.tier("shield").is_none());
        let tier = seen.tier("edge").unwrap();
        assert_eq!((tier.requests, tier.hits, tier.failed, tier.waiters), (100.0, 90.0, 1.0, 2.0));
    }
}
