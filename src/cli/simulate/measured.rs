//! What a running node knows: the policy in force, and how long its upstream takes.

use anyhow::{Context, bail};
use edge::policy::Policy;
use edge::simulate::Latency;
use http::Method;
use serde_json::Value;

use super::super::node::{NodeArgs, Question, exchange, read};
use super::super::scrape::Scrape;

/// Classes whose requests an origin holds on purpose: their time is not that of an answer.
const HELD: [&str; 2] = ["blocking-playlist", "media"];

/// Fewer fetches say nothing of a hundredth of them.
const ENOUGH: u64 = 20;

pub(super) struct Measured {
    /// `None`: the node has no such tier.
    pub(super) edge: Option<Policy>,
    pub(super) shield: Option<Policy>,
    /// Of the tier nearest to the origin.
    pub(super) latency: Latency,
    /// Which that is.
    pub(super) tier: &'static str,
    /// How many fetches that is from.
    pub(super) fetches: u64,
}

pub(super) fn ask(node: &NodeArgs) -> anyhow::Result<Measured> {
    let admin = &node.admin;
    let answered = exchange(node, Question::new(Method::GET, "/admin/policy"))?;
    let Some(policies) = answered.good() else { bail!("{admin} does not say its policy") };
    let policy = |tier: &str| -> anyhow::Result<Option<Policy>> {
        match &policies[tier] {
            Value::Null => Ok(None),
            found => Ok(Some(serde_json::from_value(found.clone()).context("a policy of another version?")?)),
        }
    };
    let (edge, shield) = (policy("edge")?, policy("shield")?);
    let scrape = Scrape::parse(&read(node, "/metrics")?);
    for tier in ["shield", "edge"] {
        let buckets = buckets(&scrape, tier);
        let fetches = buckets.last().map_or(0, |&(_, count)| count);
        if fetches >= ENOUGH
            && let Some(latency) = Latency::measured(&buckets)
        {
            return Ok(Measured { edge, shield, latency, tier, fetches });
        }
    }
    bail!(
        "{admin} has fetched fewer than {ENOUGH} playlists and init segments, too few to say how long its upstream takes: \
         give --latency and --config instead of --admin"
    )
}

/// The cumulative buckets of `edge_fetch_seconds` of one tier, over all classes that an origin answers at once.
fn buckets(scrape: &Scrape, tier: &str) -> Vec<(f64, u64)> {
    let name = "edge_fetch_seconds_bucket";
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for (class, _) in scrape.by(name, &[("tier", tier), ("le", "+Inf")], "class") {
        if HELD.contains(&class) {
            continue;
        }
        for (bound, count) in scrape.by(name, &[("tier", tier), ("class", class)], "le") {
            let Ok(bound) = bound.replace("+Inf", "inf").parse::<f64>() else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, all)) => *all += count as u64,
                None => buckets.push((bound, count as u64)),
            }
        }
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_added_up() {
        let text = "# TYPE edge_fetch_seconds histogram\n\
            edge_fetch_seconds_sum{tier=\"shield\",class=\"init\"} 1.5\n\
            edge_fetch_seconds_bucket{le=\"0.05\",tier=\"shield\",class=\"init\"} 3\n\
            edge_fetch_seconds_bucket{le=\"+Inf\",tier=\"shield\",class=\"init\"} 4\n\
            edge_fetch_seconds_bucket{le=\"0.05\",tier=\"shield\",class=\"playlist\"} 10\n\
            edge_fetch_seconds_bucket{le=\"+Inf\",tier=\"shield\",class=\"playlist\"} 10\n\
            edge_fetch_seconds_bucket{le=\"+Inf\",tier=\"shield\",class=\"media\"} 100\n\
            edge_fetch_seconds_bucket{le=\"+Inf\",tier=\"edge\",class=\"init\"} 100\n";
        let scrape = Scrape::parse(text);
        assert_eq!(buckets(&scrape, "shield"), [(0.05, 13), (f64::INFINITY, 14)]);
        assert_eq!(buckets(&scrape, "edge"), [(f64::INFINITY, 100)]);
        assert_eq!(buckets(&scrape, "pop"), []);
    }
}
