//! What TTLs and cache-blocking timeouts will do to an audience that arrives at once: [`edge::simulate`], once for each of
//! them and each rule. For `rooftop simulate`, and for the console by [`ask`].

pub(crate) mod ask;
pub(crate) mod measured;
pub(crate) mod scrape;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge::policy::{Class, Policy};
use edge::simulate::{self, Outcome, Rule, Scenario};
use serde::Serialize;

/// Most values of one of the two that are varied: each pair is two runs of its own.
pub(crate) const MAX_VALUES: usize = 16;

/// Names of the stream's manifests, by which the class is found whose `ttl` is varied.
const PLAYLIST: &str = "/live/show/720p.m3u8";

/// What is tried.
pub(crate) struct Varied<'a> {
    pub(crate) ttl: &'a [Duration],
    pub(crate) blocking_timeout: &'a [Duration],
    /// Classes whose timeout it is; none: all.
    pub(crate) classes: &'a [String],
}

/// One run before it is made.
pub(crate) struct Trial {
    ttl: Duration,
    blocking_timeout: Duration,
    scenario: Scenario,
}

/// One run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    pub(crate) ttl_ms: u64,
    pub(crate) blocking_timeout_ms: u64,
    pub(crate) rule: Rule,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// The name of the class whose TTL is varied.
pub(crate) fn playlist_class(policy: &Policy) -> &str {
    &policy.class(PLAYLIST, "").name
}

/// A trial for each TTL, timeout and rule; or everything that is wrong, each beginning with what it is about.
pub(crate) fn trials(scenario: &Scenario, varied: &Varied<'_>) -> Result<Vec<Trial>, Vec<String>> {
    let mut problems = scenario.problems();
    for (what, values) in [("ttl", varied.ttl), ("blocking-timeout", varied.blocking_timeout)] {
        if !(1..=MAX_VALUES).contains(&values.len()) {
            problems.push(format!("{what}: must have 1 to {MAX_VALUES} values"));
            return Err(problems);
        }
    }
    let classes = || scenario.edge.classes.iter().chain(&scenario.shield.classes);
    for name in varied.classes.iter().filter(|name| !classes().any(|class| class.name == **name)) {
        let mut there: Vec<_> = classes().map(|class| class.name.as_str()).collect();
        there.sort_unstable();
        there.dedup();
        problems.push(format!("class: there is no class {name:?} in the policy, but {}", there.join(", ")));
    }
    let mut trials = Vec::new();
    for &ttl in varied.ttl {
        for &blocking_timeout in varied.blocking_timeout {
            let [edge, shield] = [&scenario.edge, &scenario.shield]
                .map(|policy| vary(policy, ttl, blocking_timeout, varied.classes));
            problems.extend([&edge, &shield].iter().flat_map(|policy| policy.problems("policy")));
            for rule in [Rule::Promote, Rule::Flood] {
                let (edge, shield) = (edge.clone(), shield.clone());
                let scenario = Scenario { edge, shield, rule, ..scenario.clone() };
                trials.push(Trial { ttl, blocking_timeout, scenario });
            }
        }
    }
    problems.sort();
    problems.dedup();
    if problems.is_empty() { Ok(trials) } else { Err(problems) }
}

/// The policy with another TTL of the live playlist's class, and other timeouts.
fn vary(policy: &Policy, ttl: Duration, timeout: Duration, classes: &[String]) -> Policy {
    let playlists = playlist_class(policy).to_owned();
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

/// One after the other on each of so many threads, until `stop`; in order. Those that had not ended by then are left out.
pub(crate) fn run(trials: &[Trial], threads: usize, stop: &(dyn Fn() -> bool + Sync)) -> Vec<Cell> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(trials.len()) {
            scope.spawn(|| {
                while let Some((index, trial)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    trials.get(index).map(|trial| (index, trial))
                } {
                    let Some(outcome) = simulate::run_until(&trial.scenario, Instant::now(), stop) else {
                        return;
                    };
                    let cell = Cell {
                        ttl_ms: ms(trial.ttl),
                        blocking_timeout_ms: ms(trial.blocking_timeout),
                        rule: trial.scenario.rule,
                        outcome,
                    };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, cell));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, cell)| cell).collect()
}

pub(crate) fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}
