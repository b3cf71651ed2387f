//! `/admin/what-if`: what the console's panel begins with, and what it answers. One audience at a time, of bounded size and for
//! bounded time: the node has others to serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edge::simulate::{Latency, Reload, Rule, Scenario};
use http::StatusCode;
use humantime_serde::Serde;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::measured::{ENOUGH, Measured, policy};
use super::{Varied, ms, playlist_class, run, trials};
use crate::operator::Operator;

/// Most viewers of an audience: the largest so far had fewer.
const MAX_VIEWERS: u64 = 20_000_000;

/// Most edges: each costs as much time as the others.
const MAX_EDGES: u16 = 500;

/// Most pairs of a TTL and a timeout.
const MAX_PAIRS: usize = 16;

/// What has not been simulated by then is left out. Half of the processors, this long.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// How long is looked at the audience.
const LENGTH: Duration = Duration::from_secs(10);

/// Shields between the edges and an origin, where the latency is a shield's.
const SHIELDS: u16 = 2;

/// Why there is no answer.
pub(crate) type Refused = (StatusCode, Vec<String>);

/// Who asks has to take turns.
pub(crate) struct WhatIf(Arc<Semaphore>);

impl Default for WhatIf {
    fn default() -> Self {
        WhatIf(Arc::new(Semaphore::new(1)))
    }
}

/// What is asked. Durations are written as in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    viewers: u64,
    edges: u16,
    #[serde(default)]
    shields: Option<u16>,
    #[serde(default = "renditions")]
    renditions: u8,
    #[serde(default = "arrival", with = "humantime_serde")]
    arrival: Duration,
    #[serde(default = "players")]
    players: Reload,
    /// What half of the origin's answers take at most; without it, what was measured.
    #[serde(default, with = "humantime_serde")]
    latency: Option<Duration>,
    /// What 99 of 100 take; without it, the same.
    #[serde(default, with = "humantime_serde")]
    latency_p99: Option<Duration>,
    /// Requests that the origin answers in a second; without it, any number.
    #[serde(default)]
    capacity: Option<u32>,
    ttl: Vec<Serde<Duration>>,
    blocking_timeout: Vec<Serde<Duration>>,
    /// Whose timeouts; none: all.
    #[serde(default)]
    class: Vec<String>,
}

fn renditions() -> u8 {
    3
}

fn arrival() -> Duration {
    Duration::from_secs(2)
}

fn players() -> Reload {
    Reload::Blocking
}

/// Ends the work when nobody waits for it any more.
struct Left(Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl WhatIf {
    /// Where it is asked.
    pub(crate) const PATH: &str = "/admin/what-if";

    /// What the panel begins with: which class is whose, what was measured, and what may be asked.
    pub(crate) fn known(&self, operator: &Operator, registry: &Registry) -> Result<Value, Refused> {
        let policies = policies(operator)?;
        let mut playlist = serde_json::Map::new();
        for tier in ["edge", "shield"] {
            if let Some(policy) = policy(&policies, tier).map_err(ours)? {
                playlist.insert(tier.into(), playlist_class(&policy).into());
            }
        }
        let measured = Measured::of(&metrics(registry)?);
        let shields = if measured.as_ref().is_some_and(|found| found.tier == "edge") { 0 } else { SHIELDS };
        Ok(json!({
            "playlist_class": playlist,
            "measured": measured.map(|Measured { latency, tier, fetches }| json!({
                "tier": tier, "fetches": fetches,
                "p50_ms": ms(latency.quantile(0.5)), "p99_ms": ms(latency.quantile(0.99)),
            })),
            "shields": shields,
            "limits": {
                "viewers": MAX_VIEWERS, "edges": MAX_EDGES, "pairs": MAX_PAIRS, "seconds": TIME_LIMIT.as_secs(),
                "fetches": ENOUGH,
            },
        }))
    }

    /// Simulates what is asked. Dropping this ends it.
    pub(crate) async fn answer(
        &self,
        operator: &Operator,
        registry: &Registry,
        wanted: Value,
    ) -> Result<Value, Refused> {
        let asked: Asked = serde_path_to_error::deserialize(wanted).map_err(|error| {
            let problem = match error.path().iter().next() {
                Some(_) => format!("{}: {}", error.path(), error.inner()),
                None => error.inner().to_string(),
            };
            (StatusCode::UNPROCESSABLE_ENTITY, vec![problem])
        })?;
        let measured = Measured::of(&metrics(registry)?);
        let (scenario, mut problems) = scenario(&asked, &policies(operator)?, measured)?;
        let [ttl, blocking_timeout] = [&asked.ttl, &asked.blocking_timeout]
            .map(|values| values.iter().map(|value| **value).collect::<Vec<Duration>>());
        if ttl.len() * blocking_timeout.len() > MAX_PAIRS {
            problems.push(format!("ttl, blocking_timeout: at most {MAX_PAIRS} pairs of the two"));
        }
        let varied = Varied { ttl: &ttl, blocking_timeout: &blocking_timeout, classes: &asked.class };
        let trials = match trials(&scenario, &varied) {
            Ok(trials) if problems.is_empty() => trials,
            found => {
                problems.extend(found.err().into_iter().flatten());
                return Err((StatusCode::UNPROCESSABLE_ENTITY, problems));
            }
        };
        let busy = "this node is simulating another audience: ask again when that is done";
        let permit = self.0.clone().try_acquire_owned();
        let permit = permit.map_err(|_| (StatusCode::TOO_MANY_REQUESTS, vec![busy.into()]))?;
        let left = Arc::new(AtomicBool::new(false));
        let _left = Left(left.clone());
        let threads = std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).max(1));
        let (count, began) = (trials.len(), Instant::now());
        let work = move || {
            let _permit = permit;
            run(&trials, threads, &|| left.load(Ordering::Relaxed) || began.elapsed() >= TIME_LIMIT)
        };
        let cells = tokio::task::spawn_blocking(work).await.map_err(|error| ours(error.into()))?;
        Ok(json!({
            "viewers": asked.viewers,
            "latency_ms": { "p50": ms(scenario.latency.quantile(0.5)), "p99": ms(scenario.latency.quantile(0.99)) },
            "seconds": LENGTH.as_secs(),
            "left_out": count - cells.len(),
            "cells": cells,
        }))
    }
}

/// The audience, and what is wrong with it beyond what every scenario is asked.
fn scenario(
    asked: &Asked,
    policies: &Value,
    measured: Option<Measured>,
) -> Result<(Scenario, Vec<String>), Refused> {
    let mut problems = Vec::new();
    if asked.viewers > MAX_VIEWERS {
        problems.push(format!("viewers: at most {MAX_VIEWERS} here; rooftop simulate takes more"));
    }
    if asked.edges > MAX_EDGES {
        problems.push(format!("edges: at most {MAX_EDGES} here; rooftop simulate takes more"));
    }
    if asked.latency.is_none() && asked.latency_p99.is_some()
        || asked.latency.zip(asked.latency_p99).is_some_and(|(latency, p99)| p99 < latency)
    {
        problems.push("latency_p99: must not be less than latency".into());
    }
    let of_shield = measured.as_ref().is_none_or(|found| found.tier == "shield");
    let latency = match (asked.latency, measured) {
        (Some(latency), _) => Latency::of(latency, asked.latency_p99.unwrap_or(latency)),
        (None, Some(found)) => found.latency,
        (None, None) => {
            problems.push(format!(
                "latency: this node has fetched fewer than {ENOUGH} playlists and init segments, too few to say how long \
                 its upstream takes: give it"
            ));
            Latency::of(Duration::ZERO, Duration::ZERO)
        }
    };
    let defaults = edge::Config::default().policy();
    let of = |tier: &str| policy(policies, tier).map_err(ours);
    let (edge, shield) = (of("edge")?, of("shield")?);
    let scenario = Scenario {
        viewers: asked.viewers,
        edges: asked.edges,
        shields: asked.shields.unwrap_or(if of_shield { SHIELDS } else { 0 }),
        renditions: asked.renditions,
        audio: true,
        arrival: asked.arrival,
        length: LENGTH,
        segment: Duration::from_secs(1),
        part: Duration::from_millis(200),
        reload: asked.players,
        hop: Duration::from_millis(20),
        latency,
        capacity: asked.capacity,
        // A node that has one of the two tiers goes by the defaults for the other.
        edge: edge.unwrap_or_else(|| defaults.clone()),
        shield: shield.unwrap_or(defaults),
        rule: Rule::Promote,
        seed: 1,
    };
    Ok((scenario, problems))
}

fn policies(operator: &Operator) -> Result<Value, Refused> {
    operator.policy(None).map_err(|refusal| ours(anyhow::anyhow!("{refusal:?}")))
}

fn metrics(registry: &Registry) -> Result<String, Refused> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).map_err(|error| ours(error.into()))?;
    Ok(text)
}

fn ours(error: anyhow::Error) -> Refused {
    (StatusCode::INTERNAL_SERVER_ERROR, vec![format!("{error:#}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(more: Value) -> Asked {
        let mut all = json!({ "viewers": 1000, "edges": 2, "ttl": ["500ms"], "blocking_timeout": ["1s"] });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn problems(more: Value) -> Vec<String> {
        let mut found = scenario(&asked(more), &json!({}), None).unwrap();
        found.1.extend(found.0.problems());
        found.1
    }

    #[test]
    fn what_is_asked_has_bounds() {
        assert_eq!(problems(json!({ "latency": "50ms" })), [""; 0]);
        let found = problems(json!({
            "viewers": 20_000_001, "edges": 501, "shields": 17, "latency": "50ms", "latency_p99": "1ms", "arrival": "11s",
        }));
        for what in ["viewers: ", "edges: ", "shields: ", "latency_p99: ", "arrival: "] {
            assert!(found.iter().any(|problem| problem.starts_with(what)), "{what} in {found:?}");
        }
        assert!(
            problems(json!({}))
                .iter()
                .any(|problem| problem.contains("latency: this node has fetched fewer"))
        );
    }

    #[test]
    fn what_was_measured_counts_unless_something_is_said() {
        let measured = || {
            let (latency, tier) = (Latency::of(Duration::from_millis(70), Duration::from_millis(70)), "edge");
            Some(Measured { latency, tier, fetches: 20 })
        };
        let (found, _) = scenario(&asked(json!({})), &json!({}), measured()).unwrap();
        assert_eq!((ms(found.latency.quantile(0.5)), found.shields), (70, 0), "it was measured at an edge");
        let said = asked(json!({ "latency": "30ms", "shields": 3 }));
        let (found, _) = scenario(&said, &json!({}), measured()).unwrap();
        assert_eq!((ms(found.latency.quantile(0.5)), found.shields), (30, 3));
    }

    #[test]
    fn a_run_ends_when_it_is_told_to() {
        let (scenario, _) = scenario(&asked(json!({ "latency": "50ms" })), &json!({}), None).unwrap();
        let second = [Duration::from_secs(1)];
        let varied = Varied { ttl: &second, blocking_timeout: &second, classes: &[] };
        let trials = trials(&scenario, &varied).unwrap();
        assert_eq!(run(&trials, 1, &|| true).len(), 0);
        assert_eq!(run(&trials, 2, &|| false).len(), 2, "one of each rule");
    }
}
