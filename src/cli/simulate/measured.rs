//! What a running node knows: the policy in force, and how long its upstream takes.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use edge::policy::Policy;
use edge::simulate::Latency;
use http::Method;
use serde_json::Value;

use super::super::admin::{Question, exchange, read};

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

pub(super) fn ask(admin: SocketAddr) -> anyhow::Result<Measured> {
    let answered = exchange(admin, Question::new(Method::GET, "/admin/policy"))?;
    let Some(policies) = answered.good() else { bail!("{admin} does not say its policy") };
    let policy = |tier: &str| -> anyhow::Result<Option<Policy>> {
        match &policies[tier] {
            Value::Null => Ok(None),
            found => Ok(Some(serde_json::from_value(found.clone()).context("a policy of another version?")?)),
        }
    };
    let (edge, shield) = (policy("edge")?, policy("shield")?);
    let text = read(admin, "/metrics")?;
    for tier in ["shield", "edge"] {
        let buckets = buckets(&text, tier);
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
fn buckets(text: &str, tier: &str) -> Vec<(f64, u64)> {
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for line in text.lines() {
        let Some((labels, count)) =
            line.strip_prefix("edge_fetch_seconds_bucket{").and_then(|rest| rest.split_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            labels
                .split(',')
                .find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
        };
        let (Some(bound), Ok(count)) =
            (label("le"), count.split(' ').next().unwrap_or_default().parse::<u64>())
        else {
            continue;
        };
        if label("tier") != Some(tier) || label("class").is_none_or(|class| HELD.contains(&class)) {
            continue;
        }
        let Ok(bound) = bound.replace("+Inf", "inf").parse::<f64>() else { continue };
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, all)) => *all += count,
            None => buckets.push((bound, count)),
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
            edge_fetch_seconds_bucket{le=\"0.05\",tier=\"shield\",class=\"media\"} 100\n\
            edge_fetch_seconds_bucket{le=\"0.05\",tier=\"edge\",class=\"init\"} 100\n";
        assert_eq!(buckets(text, "shield"), [(0.05, 13), (f64::INFINITY, 14)]);
        assert_eq!(buckets(text, "edge"), [(0.05, 100)]);
        assert_eq!(buckets("", "edge"), []);
    }
}
