//! What chosen metrics were over the last hour, for charts: samples of the metrics' text, a ring for each series.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

/// Between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// An hour of samples.
const SAMPLES: usize = 720;

/// Series that are kept: 64 classes in two tiers, thirteen results each, are most of them. 8 bytes a sample: 12 MB at most.
const MAX_SERIES: usize = 2048;

/// What is kept: names of families as the text has them, without labels.
const KEPT: &[&str] = &[
    "edge_cache_bytes",
    "edge_class_requests_total",
    "edge_fetches_total",
    "edge_inflight_bytes",
    "edge_inflight_names",
    "edge_leak_ratio",
    "edge_promotions_total",
    "edge_requests_total",
    "edge_served_bytes_total",
    "edge_viewers",
    "edge_wait_seconds_bucket",
    "edge_waiters",
    "ingest_buffered_bytes",
    "ingest_connections",
    "ingest_received_bytes_total",
    "ingest_sessions",
    "origin_sessions",
    "origin_streams",
    "process_tasks",
    "transcode_jobs",
    "transcode_rungs_shed",
];

/// The last hour. Times are seconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct History {
    times: VecDeque<u64>,
    series: BTreeMap<String, VecDeque<f64>>,
    /// Series that found no room.
    left_out: u64,
}

impl History {
    /// Adds a sample: all metrics, as OpenMetrics text.
    pub(crate) fn sample(&mut self, unix_s: u64, text: &str) {
        if self.times.len() == SAMPLES {
            self.times.pop_front();
            for values in self.series.values_mut() {
                values.pop_front();
            }
        }
        let before = self.times.len();
        self.times.push_back(unix_s);
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let family = name.split('{').next().unwrap_or_default();
            let Ok(value) = value.parse() else { continue };
            if KEPT.binary_search(&family).is_err() {
                continue;
            }
            let full = self.series.len() == MAX_SERIES;
            match self.series.get_mut(name) {
                Some(values) => values.push_back(value),
                None if full => self.left_out += 1,
                None => {
                    // It was not there: counters begin at nothing.
                    let values = std::iter::repeat_n(0.0, before).chain([value]).collect();
                    self.series.insert(name.to_owned(), values);
                }
            }
        }
        for values in self.series.values_mut().filter(|values| values.len() <= before) {
            let last = values.back().copied().unwrap_or_default();
            values.push_back(last);
        }
    }

    /// Samples later than `after`, seconds since 1970. Series that were nothing all the time are left out.
    pub(crate) fn since(&self, after: u64) -> Value {
        let first = self.times.partition_point(|time| *time <= after);
        let series = self.series.iter().filter(|(_, values)| values.iter().any(|value| *value != 0.0));
        json!({
            "interval_s": INTERVAL.as_secs(),
            "left_out": self.left_out,
            "times": self.times.iter().skip(first).collect::<Vec<_>>(),
            "series": series
                .map(|(name, values)| (name.as_str(), values.iter().skip(first).collect::<Vec<_>>()))
                .collect::<BTreeMap<_, _>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found() {
        assert!(KEPT.is_sorted());
    }

    #[test]
    fn an_hour_is_kept_and_a_series_that_comes_late_began_at_nothing() {
        let mut history = History::default();
        let hits = r#"edge_class_requests_total{tier="edge",class="segments",result="hit"}"#;
        history.sample(10, "# HELP edge_waiters Requests\nedge_waiters 0\nother_total 7\n# EOF\n");
        history.sample(20, &format!("edge_waiters 3\n{hits} 12\n"));
        // A family that is missing once keeps its value.
        history.sample(30, &format!("{hits} 15\n"));
        assert_eq!(
            history.since(0),
            json!({
                "interval_s": 5, "left_out": 0, "times": [10, 20, 30],
                "series": { hits: [0.0, 12.0, 15.0], "edge_waiters": [0.0, 3.0, 3.0] },
            })
        );
        assert_eq!(history.since(20)["series"][hits], json!([15.0]));
        for sample in 4..1000 {
            history.sample(sample * 10, &format!("edge_waiters {sample}\n"));
        }
        let kept = history.since(0);
        assert_eq!(kept["times"].as_array().unwrap().len(), SAMPLES);
        assert_eq!(kept["series"]["edge_waiters"][0], json!(1000.0 - SAMPLES as f64));
        assert_eq!(kept["series"][hits].as_array().unwrap().len(), SAMPLES);
    }

    #[test]
    fn series_are_bounded() {
        let mut history = History::default();
        let text: String =
            (0..MAX_SERIES + 5).map(|index| format!("edge_waiters{{tier=\"{index}\"}} 1\n")).collect();
        history.sample(1, &text);
        let kept = history.since(0);
        assert_eq!((kept["series"].as_object().unwrap().len(), &kept["left_out"]), (MAX_SERIES, &json!(5)));
    }
}
