//! What a running node knows: the policy in force, and how long its upstream takes.

use anyhow::Context;
use edge::policy::Policy;
use edge::simulate::Latency;
use serde_json::Value;

use super::scrape::Scrape;

/// Classes whose requests an origin holds on purpose: their time is not that of an answer.
const HELD: [&str; 2] = ["blocking-playlist", "media"];

/// Fewer fetches say nothing of a hundredth of them.
pub(crate) const ENOUGH: u64 = 20;

/// How long the upstream of a node takes to answer.
pub(crate) struct Measured {
    pub(crate) latency: Latency,
    /// The tier that measured it: the one nearest to the origin.
    pub(crate) tier: &'static str,
    /// How many fetches that is from.
    pub(crate) fetches: u64,
}

impl Measured {
    /// From what a node's `/metrics` say; `None`: it has fetched fewer than [`ENOUGH`].
    pub(crate) fn of(metrics: &str) -> Option<Measured> {
        let scrape = Scrape::parse(metrics);
        ["shield", "edge"].into_iter().find_map(|tier| {
            let buckets = buckets(&scrape, tier);
            let fetches = buckets.last().map_or(0, |&(_, count)| count);
            let latency = Latency::measured(&buckets).filter(|_| fetches >= ENOUGH)?;
            Some(Measured { latency, tier, fetches })
        })
    }
}

/// A tier's policy, of the answer to `GET /admin/policy`; `None`: the node has no such tier.
pub(crate) fn policy(policies: &Value, tier: &str) -> anyhow::Result<Option<Policy>> {
    match &policies[tier] {
        Value::Null => Ok(None),
        found => Ok(Some(serde_json::from_value(found.clone()).context("a policy of another version?")?)),
    }
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
        assert!(
            Measured::of(text).is_some_and(|measured| measured.tier == "edge" && measured.fetches == 100)
        );
        assert!(Measured::of("").is_none());
    }
}
