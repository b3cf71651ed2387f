//! What an audience that arrives at once does to caches and origin, before it comes: the code that decides in production
//! ([`crate::coalesce::Flight`], [`crate::handover::Table`], [`crate::freshness`], the classes of a [`Policy`]) in virtual
//! time, between viewers and an origin that are made up.
//!
//! Viewers who want the same of one edge at the same moment are one number, so that millions of them over hundreds of
//! edges take seconds. Every object is fetched when somebody asks for it, as with `delivery = "pull"`: what a push
//! brings costs nothing here.
//!
//! Read [`run`], then `world` (what the shell adds in production), `audience` (what viewers do) and `source` (the origin).
#![deny(clippy::disallowed_methods)]

mod audience;
pub mod latency;
mod measure;
mod names;
pub mod random;
mod source;
mod world;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use latency::Latency;
pub use measure::{Load, Spread};

use crate::policy::Policy;

/// Most edges of a scenario: each has its own tables.
pub const MAX_EDGES: u16 = 2000;

/// Most shields.
pub const MAX_SHIELDS: u16 = 16;

/// Most renditions that an audience is spread over.
pub const MAX_RENDITIONS: u8 = 16;

/// Most viewers: more than any audience so far, and sums that stay far below 2^64.
pub const MAX_VIEWERS: u64 = 1_000_000_000;

/// Longest time that is looked at.
pub const MAX_LENGTH: Duration = Duration::from_secs(600);

/// Most parts of a segment.
pub const MAX_PARTS: u64 = 64;

/// What happens to those who wait when the cache-blocking timeout runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// One more fetch is started, up to `max_fetches`; the rest wait on. What Rooftop does.
    Promote,
    /// Each goes upstream by itself, and what it brings is not shared. What other caches do.
    Flood,
}

impl Rule {
    /// Its name in tables and plots.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::Promote => "promote",
            Rule::Flood => "flood",
        }
    }
}

/// How players learn of new media.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reload {
    /// Low-latency HLS: each asks for the next part before it exists, and the answer is held until it does.
    Blocking,
    /// Plain HLS: the playlist again after a segment's duration, or half of that if it said nothing new.
    Polling,
}

/// A fleet, an audience and an origin.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Of one stream, in all; spread evenly over edges and renditions.
    pub viewers: u64,
    /// At least 1.
    pub edges: u16,
    /// Between edges and origin; all fetches of the stream go to one of them, promoted ones to the next. 0: edges ask the
    /// origin.
    pub shields: u16,
    /// Of video, at least 1; a viewer plays one of them.
    pub renditions: u8,
    /// Whether every viewer also plays an audio rendition.
    pub audio: bool,
    /// All viewers arrive within this time.
    pub arrival: Duration,
    /// For how long viewers go on, from the first arrival.
    pub length: Duration,
    /// Of a segment.
    pub segment: Duration,
    /// Of a part.
    pub part: Duration,
    /// How players learn of new media.
    pub reload: Reload,
    /// From an edge to a shield and back.
    pub hop: Duration,
    /// From a request until the origin's headers, besides the time that it holds a request on purpose.
    pub latency: Latency,
    /// Requests that the origin answers in a second, one after the other; `None`: any number at once.
    pub capacity: Option<u32>,
    /// The policy of the edges.
    pub edge: Policy,
    /// The policy of the shields.
    pub shield: Policy,
    /// What a timeout does.
    pub rule: Rule,
    /// What is random is the same for the same seed.
    pub seed: u64,
}

impl Scenario {
    /// What cannot be simulated, each beginning with the name of the field.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut within = |what: &str, good: bool, range: String| {
            if !good {
                problems.push(format!("{what}: must be {range}"));
            }
        };
        let ms = Duration::from_millis;
        within("viewers", (1..=MAX_VIEWERS).contains(&self.viewers), format!("1 to {MAX_VIEWERS}"));
        within("edges", (1..=MAX_EDGES).contains(&self.edges), format!("1 to {MAX_EDGES}"));
        within("shields", self.shields <= MAX_SHIELDS, format!("0 to {MAX_SHIELDS}"));
        within(
            "renditions",
            (1..=MAX_RENDITIONS).contains(&self.renditions),
            format!("1 to {MAX_RENDITIONS}"),
        );
        within("length", (ms(1)..=MAX_LENGTH).contains(&self.length), "1ms to 10m".into());
        within("arrival", self.arrival <= self.length, "no longer than the time that is looked at".into());
        within("segment", (ms(100)..=ms(60_000)).contains(&self.segment), "100ms to 60s".into());
        let parts = self.segment.as_micros() as u64 / (self.part.as_micros() as u64).max(1);
        within(
            "part",
            self.part >= ms(20) && (1..=MAX_PARTS).contains(&parts),
            format!("at least 20ms, and 1 to {MAX_PARTS} of them in a segment"),
        );
        within("hop", self.hop <= ms(10_000), "0s to 10s".into());
        within("capacity", self.capacity != Some(0), "at least 1".into());
        problems
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of viewers.
    pub requests: u64,
    /// Fetches of edges, in requests to the tier above.
    pub edge_fetches: u64,
    /// Requests to the origin.
    pub origin_requests: u64,
    /// Fetches of edges for each request of viewers.
    pub leak_ratio: f64,
    /// Requests that the shields get; without shields those of the origin.
    pub above_edges: Load,
    /// Requests that the origin gets.
    pub origin: Load,
    /// How long viewers wait for an answer, in milliseconds past when the origin had it.
    pub wait_ms: Spread,
    /// From a viewer's arrival to the first media, in milliseconds.
    pub startup_ms: Spread,
    /// Times that a viewer had nothing left to play.
    pub stalls: u64,
    /// How long in all, in seconds.
    pub stalled_s: f64,
    /// Requests that were answered by an error or broke off.
    pub failed: u64,
}

/// Lets everything happen. `scenario` has no [`Scenario::problems`]; `zero` is where virtual time begins, and any will do.
pub fn run(scenario: &Scenario, zero: Instant) -> Outcome {
    world::World::new(scenario, zero).run()
}

/// The same, unless `stop` says so before the end, which is asked every few thousand events: `None`.
pub fn run_until(scenario: &Scenario, zero: Instant, stop: &dyn Fn() -> bool) -> Option<Outcome> {
    world::World::new(scenario, zero).run_until(stop)
}

#[cfg(test)]
mod tests;
