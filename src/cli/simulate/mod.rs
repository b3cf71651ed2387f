//! `rooftop simulate`: what TTLs and cache-blocking timeouts will do to an audience that arrives at once, before it comes.

mod measured;
mod plot;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use edge::policy::{Class, Policy};
use edge::simulate::{self, Latency, Outcome, Reload, Rule, Scenario};
use serde::Serialize;
use serde_json::json;

use super::node::{AccessArgs, Address, NodeArgs};
use super::{EXIT_BAD_CONFIG, load};

/// Most values of one of the two that are varied: each pair is a run of its own.
const MAX_VALUES: usize = 16;

/// Names of the stream's manifests, by which the class is found whose `ttl` is varied.
const PLAYLIST: &str = "/live/show/720p.m3u8";

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

/// One run.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    ttl_ms: u64,
    blocking_timeout_ms: u64,
    rule: Rule,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Runs the audience once for each TTL, timeout and rule.
pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    for (flag, values) in [("--ttl", &args.ttl), ("--blocking-timeout", &args.blocking_timeout)] {
        if values.len() > MAX_VALUES {
            bail!("{flag}: at most {MAX_VALUES} values");
        }
    }
    let mut latency = Latency::of(args.latency, args.latency_p99.unwrap_or(args.latency));
    let defaults = edge::Config::default().policy();
    let (mut edge, mut shield) = (defaults.clone(), defaults);
    let (mut shields, mut measured) = (2, None);
    if let Some(file) = &args.config {
        let Some(config) = load(file) else { return Ok(ExitCode::from(EXIT_BAD_CONFIG)) };
        (edge, shield) = (config.edge.policy(), config.shield.policy());
    } else if let Some(admin) = &args.admin {
        let node = NodeArgs { admin: admin.clone(), access: args.access.clone() };
        let found = measured::ask(&node)?;
        edge = found.edge.unwrap_or(edge);
        shield = found.shield.unwrap_or(shield);
        latency = found.latency;
        shields = if found.tier == "shield" { 2 } else { 0 };
        measured = Some(json!({ "admin": admin.to_string(), "tier": found.tier, "fetches": found.fetches }));
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
    let mut problems = scenario.problems();
    if args.latency_p99.is_some_and(|p99| p99 < args.latency) {
        problems.push("latency-p99: must not be less than --latency".into());
    }
    let classes = || scenario.edge.classes.iter().chain(&scenario.shield.classes);
    for name in args.class.iter().filter(|name| !classes().any(|class| class.name == **name)) {
        problems.push(format!("class: there is no class {name:?} in the policy"));
    }
    let mut cells = Vec::new();
    for &ttl in &args.ttl {
        for &timeout in &args.blocking_timeout {
            let varied =
                [&scenario.edge, &scenario.shield].map(|policy| vary(policy, ttl, timeout, &args.class));
            problems.extend(varied.iter().flat_map(|policy| policy.problems("policy")));
            for rule in [Rule::Promote, Rule::Flood] {
                let [edge, shield] = varied.clone();
                cells.push((ttl, timeout, Scenario { edge, shield, rule, ..scenario.clone() }));
            }
        }
    }
    if !problems.is_empty() {
        problems.sort();
        problems.dedup();
        bail!("{}", problems.join("\n"));
    }
    let began = Instant::now();
    let cells = run_all(&cells);
    let told = json!({
        "viewers": scenario.viewers,
        "edges": scenario.edges,
        "shields": scenario.shields,
        "renditions": scenario.renditions,
        "players": scenario.reload,
        "latency_ms": { "p50": ms(scenario.latency.quantile(0.5)), "p99": ms(scenario.latency.quantile(0.99)) },
        "measured": measured,
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
            serde_json::Value::String(tier) => format!(", as measured by tier {tier}"),
            _ => String::new(),
        },
    );
    print!("{}", table(&cells, scenario.viewers));
    eprintln!("{} runs in {:.1} s", cells.len(), began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// The policy with another TTL of the live playlist's class, and other timeouts.
fn vary(policy: &Policy, ttl: Duration, timeout: Duration, classes: &[String]) -> Policy {
    let playlists = policy.class(PLAYLIST, "").name.clone();
    let varied = policy.classes.iter().map(|class| {
        let mut class = Class::clone(class);
        if class.name == playlists {
            class.ttl = Some(ttl);
        }
        if classes.is_empty() || classes.contains(&class.name) {
            class.blocking_timeout = timeout;
            class.adaptive = None;
        }
        class.into()
    });
    Policy { classes: varied.collect(), ..policy.clone() }
}

/// One after the other on every processor.
fn run_all(cells: &[(Duration, Duration, Scenario)]) -> Vec<Cell> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(cells.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, (ttl, timeout, scenario))) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    cells.get(index).map(|cell| (index, cell))
                } {
                    let outcome = simulate::run(scenario, Instant::now());
                    let cell = Cell {
                        ttl_ms: ms(*ttl),
                        blocking_timeout_ms: ms(*timeout),
                        rule: scenario.rule,
                        outcome,
                    };
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, cell));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, cell)| cell).collect()
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn table(cells: &[Cell], viewers: u64) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>7} {:>8}  {:<8}{:>9}{:>11}{:>11}{:>9}{:>9}{:>7}{:>7}{:>7}{:>9}{:>10}{:>10}",
        "ttl",
        "timeout",
        "rule",
        "leak %",
        "edges' /s",
        "peak",
        "origin/s",
        "peak",
        "wait50",
        "99",
        "max ms",
        "start99",
        "stalls/k",
        "errors/k",
    );
    for Cell { ttl_ms, blocking_timeout_ms, rule, outcome } in cells {
        let per_thousand = |count: u64| count as f64 * 1000.0 / viewers.max(1) as f64;
        let _ = writeln!(
            out,
            "{ttl_ms:>7} {blocking_timeout_ms:>8}  {:<8}{:>9.4}{:>11.0}{:>11}{:>9.0}{:>9}{:>7}{:>7}{:>7}{:>9}{:>10.1}{:>10.1}",
            rule.as_str(),
            outcome.leak_ratio * 100.0,
            outcome.above_edges.mean,
            outcome.above_edges.peak,
            outcome.origin.mean,
            outcome.origin.peak,
            outcome.wait_ms.p50,
            outcome.wait_ms.p99,
            outcome.wait_ms.max,
            outcome.startup_ms.p99,
            per_thousand(outcome.stalls),
            per_thousand(outcome.failed),
        );
    }
    out
}
