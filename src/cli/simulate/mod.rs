//! `rooftop simulate`: what TTLs and cache-blocking timeouts will do to an audience that arrives at once, before it comes.

mod plot;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use edge::simulate::{Latency, Reload, Rule, Scenario};
use http::Method;
use serde_json::{Value, json};

use super::node::{AccessArgs, Address, NodeArgs, Question, exchange, read};
use super::{EXIT_BAD_CONFIG, load};
use crate::whatif::measured::{self, ENOUGH, Measured};
use crate::whatif::{self, Cell, Varied, ms};

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Viewers of one stream
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    pub viewers: u64,
    /// Edges that they are spread over
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub edges: u16,
    /// Shields between edges and origin, 0 to 16 [default: 2; 0 where the latency was measured at an edge]
    #[arg(long, value_name = "COUNT")]
    pub shields: Option<u16>,
    /// Renditions of video that they are spread over; each viewer plays audio besides
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub renditions: u8,
    /// All of them arrive within this time
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub arrival: Duration,
    /// How long to look, from the first arrival
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub length: Duration,
    /// Duration of a segment
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub segment: Duration,
    /// Duration of a part
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = humantime::parse_duration)]
    pub part: Duration,
    /// What the players do
    #[arg(long, value_enum, default_value = "blocking")]
    pub players: Players,
    /// From an edge to a shield and back
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration)]
    pub hop: Duration,
    /// What half of the origin's answers take at most
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// What 99 of 100 take at most [default: as --latency]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub latency_p99: Option<Duration>,
    /// Requests that the origin answers in a second, one after the other [default: any number at once]
    #[arg(long, value_name = "COUNT")]
    pub capacity: Option<u32>,
    /// Take the policy in force and the latency of the upstream from the admin listener of a running node
    #[arg(long, value_name = "ADDRESS", conflicts_with = "latency")]
    pub admin: Option<Address>,
    /// What that one is asked with.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Take the policy from a configuration file [default: the classes as they are without one]
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    pub config: Option<PathBuf>,
    /// TTLs of the live playlist's class to try, separated by commas
    #[arg(long, value_name = "TIMES", default_value = "250ms,500ms,1s", value_delimiter = ',', value_parser = humantime::parse_duration)]
    pub ttl: Vec<Duration>,
    /// Cache-blocking timeouts to try, separated by commas
    #[arg(long, value_name = "TIMES", default_value = "250ms,500ms,1s,3s", value_delimiter = ',', value_parser = humantime::parse_duration)]
    pub blocking_timeout: Vec<Duration>,
    /// Classes whose cache-blocking timeout is varied, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub class: Vec<String>,
    /// What is random is the same for the same number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
    /// Draw it, too: an SVG file
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// How players learn of new media.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Players {
    /// Low-latency HLS: blocking reload, part after part
    Blocking,
    /// Plain HLS: the playlist once for each segment
    Polling,
}

/// Runs the audience once for each TTL, timeout and rule.
pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let mut latency = Latency::of(args.latency, args.latency_p99.unwrap_or(args.latency));
    let defaults = edge::Config::default().policy();
    let (mut edge, mut shield) = (defaults.clone(), defaults);
    let (mut shields, mut measured_at) = (2, None);
    if let Some(file) = &args.config {
        let Some(config) = load(file) else { return Ok(ExitCode::from(EXIT_BAD_CONFIG)) };
        (edge, shield) = (config.edge.policy(), config.shield.policy());
    } else if let Some(admin) = &args.admin {
        let node = NodeArgs { admin: admin.clone(), access: args.access.clone() };
        let (policies, found) = ask(&node)?;
        edge = measured::policy(&policies, "edge")?.unwrap_or(edge);
        shield = measured::policy(&policies, "shield")?.unwrap_or(shield);
        latency = found.latency;
        shields = if found.tier == "shield" { 2 } else { 0 };
        measured_at =
            Some(json!({ "admin": admin.to_string(), "tier": found.tier, "fetches": found.fetches }));
    }
    let scenario = Scenario {
        viewers: args.viewers,
        edges: args.edges,
        shields: args.shields.unwrap_or(shields),
        renditions: args.renditions,
        audio: true,
        arrival: args.arrival,
        length: args.length,
        segment: args.segment,
        part: args.part,
        reload: match args.players {
            Players::Blocking => Reload::Blocking,
            Players::Polling => Reload::Polling,
        },
        hop: args.hop,
        latency,
        capacity: args.capacity,
        edge,
        shield,
        rule: Rule::Promote,
        seed: args.seed,
    };
    let varied = Varied { ttl: &args.ttl, blocking_timeout: &args.blocking_timeout, classes: &args.class };
    let tried = whatif::trials(&scenario, &varied);
    let p99_is_less = args.latency_p99.is_some_and(|p99| p99 < args.latency);
    let p99_is_less = p99_is_less.then(|| "latency-p99: must not be less than --latency".to_owned());
    let trials = match tried {
        Ok(trials) if p99_is_less.is_none() => trials,
        found => {
            let problems: Vec<_> = p99_is_less.into_iter().chain(found.err().into_iter().flatten()).collect();
            bail!("{}", problems.join("\n"));
        }
    };
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cells = whatif::run(&trials, threads, &|| false);
    let told = json!({
        "viewers": scenario.viewers,
        "edges": scenario.edges,
        "shields": scenario.shields,
        "renditions": scenario.renditions,
        "players": scenario.reload,
        "latency_ms": { "p50": ms(scenario.latency.quantile(0.5)), "p99": ms(scenario.latency.quantile(0.99)) },
        "measured": measured_at,
        "seconds": scenario.length.as_secs_f64(),
        "cells": cells,
    });
    if let Some(file) = &args.plot {
        let svg = plot::svg(&cells).with_context(|| file.display().to_string())?;
        std::fs::write(file, svg).with_context(|| file.display().to_string())?;
    }
    if args.json {
        println!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} viewers at {} edges over {} shields, {} of {} players; the origin takes {} ms, 99 of 100 at most {} ms{}",
        scenario.viewers,
        scenario.edges,
        scenario.shields,
        humantime::format_duration(scenario.length),
        told["players"].as_str().unwrap_or_default(),
        told["latency_ms"]["p50"],
        told["latency_ms"]["p99"],
        match &told["measured"]["tier"] {
            Value::String(tier) => format!(", as measured by tier {tier}"),
            _ => String::new(),
        },
    );
    print!("{}", table(&cells, scenario.viewers));
    eprintln!("{} runs in {:.1} s", cells.len(), began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// The policies in force at a node, and how long its upstream takes.
fn ask(node: &NodeArgs) -> anyhow::Result<(Value, Measured)> {
    let answered = exchange(node, Question::new(Method::GET, "/admin/policy"))?;
    let Some(policies) = answered.good() else { bail!("{} does not say its policy", node.admin) };
    let found = Measured::of(&read(node, "/metrics")?);
    let found = found.with_context(|| {
        format!(
            "{} has fetched fewer than {ENOUGH} playlists and init segments, too few to say how long its upstream \
             takes: give --latency and --config instead of --admin",
            node.admin
        )
    })?;
    Ok((policies.clone(), found))
}

/// Columns: what they are about, which figure of that, and how wide.
const COLUMNS: [(&str, &str, usize); 13] = [
    ("ttl", "ms", 6),
    ("timeout", "ms", 9),
    ("leak", "%", 10),
    ("edges ask", "mean/s", 11),
    ("", "peak/s", 9),
    ("origin", "mean/s", 9),
    ("", "peak/s", 9),
    ("wait ms", "p50", 9),
    ("", "p99", 7),
    ("", "max", 7),
    ("start ms", "p99", 10),
    ("of 1000", "stalls", 9),
    ("", "errors", 8),
];

fn table(cells: &[Cell], viewers: u64) -> String {
    let mut out = String::new();
    let mut row = |rule: &str, cells: [String; COLUMNS.len()]| {
        let mut line = String::new();
        for (at, (cell, (_, _, width))) in cells.iter().zip(COLUMNS).enumerate() {
            let _ = write!(line, "{cell:>width$}");
            if at == 1 {
                let _ = write!(line, "  {rule:<7}");
            }
        }
        let _ = writeln!(out, "{line}");
    };
    row("", COLUMNS.map(|(about, _, _)| about.to_owned()));
    row("rule", COLUMNS.map(|(_, figure, _)| figure.to_owned()));
    for Cell { ttl_ms, blocking_timeout_ms, rule, outcome } in cells {
        let per_thousand = |count: u64| format!("{:.1}", count as f64 * 1000.0 / viewers.max(1) as f64);
        let figures = [
            ttl_ms.to_string(),
            blocking_timeout_ms.to_string(),
            format!("{:.4}", outcome.leak_ratio * 100.0),
            format!("{:.0}", outcome.above_edges.mean),
            outcome.above_edges.peak.to_string(),
            format!("{:.0}", outcome.origin.mean),
            outcome.origin.peak.to_string(),
            outcome.wait_ms.p50.to_string(),
            outcome.wait_ms.p99.to_string(),
            outcome.wait_ms.max.to_string(),
            outcome.startup_ms.p99.to_string(),
            per_thousand(outcome.stalls),
            per_thousand(outcome.failed),
        ];
        row(rule.as_str(), figures);
    }
    out
}
