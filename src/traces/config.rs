//! `[traces]`

use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

/// Most spans that may wait: some 100 MB.
const MAX_QUEUE: usize = 100_000;

/// Where spans go, and which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// An OpenTelemetry collector that takes OTLP over HTTP, `http://HOST:PORT` or `https://HOST:PORT`; `/v1/traces` is added.
    /// Default: none, and nothing is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Share of the viewers' requests that are traced from the edge to the origin, 0 to 1. Default 0.001.
    pub request_ratio: f64,
    /// Share of the broadcasters' sessions that are traced from the POP to the origin, 0 to 1. Default 1.
    pub session_ratio: f64,
    /// For an answer of the collector, 100ms to 60s. Default 5s. What it has not taken by then is lost.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Spans that wait to be sent, 1 to 100000. Default 4096. For more there is no room: they are lost.
    pub queue: usize,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: None,
            request_ratio: 0.001,
            session_ratio: 1.0,
            timeout: Duration::from_secs(5),
            queue: 4096,
        }
    }
}

impl Traces {
    /// Everything that is wrong, with key paths that begin with `path`.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let is_collector = |text: &String| {
            text.parse::<Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https"))
                    && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                    && uri.query().is_none()
            })
        };
        if let Some(endpoint) = self.endpoint.as_ref().filter(|endpoint| !is_collector(endpoint)) {
            problems
                .push(format!("{path}.endpoint: {endpoint:?} is not http://HOST:PORT or https://HOST:PORT"));
        }
        for (key, ratio) in [("request_ratio", self.request_ratio), ("session_ratio", self.session_ratio)] {
            if !(0.0..=1.0).contains(&ratio) {
                problems.push(format!("{path}.{key}: {ratio} is outside 0 to 1"));
            }
        }
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
        if !(least..=most).contains(&self.timeout) {
            problems.push(format!("{path}.timeout: {:?} is outside {least:?} to {most:?}", self.timeout));
        }
        if !(1..=MAX_QUEUE).contains(&self.queue) {
            problems.push(format!("{path}.queue: {} is outside 1 to {MAX_QUEUE}", self.queue));
        }
        problems
    }
}
