//! The `[api]` and `[webhooks]` tables of the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

use super::events::Kind;

/// Receivers of webhooks: each has a queue of its own.
pub const MAX_ENDPOINTS: usize = 8;

/// Keys that open the API: two while one is replaced, and a few parties.
pub const MAX_KEYS: usize = 16;

/// `[api]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where the Live API is served besides the admin listener: HTTPS with the public certificate, with an API key only.
    /// Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Files with a key of 32 bytes or more each, at most 16; any opens the API at `listen`. So does what stands in the
    /// environment as `ROOFTOP_API_KEY`.
    pub key_files: Vec<PathBuf>,
    /// Broadcasts that are kept, 1 to 20000. Default 10000. For one more the oldest that has ended is forgotten; if none
    /// has, it is refused.
    pub max_broadcasts: usize,
}

/// `[webhooks]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhooks {
    /// For an answer of a receiver, 100ms to 60s. Default 10s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Longest wait before an event is sent again, 1s to 1h. Default 5m. The first wait is a second; each doubles.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// An event that could not be delivered for so long is dropped, 1s to 30 days. Default 1 day.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// Events that wait for one receiver, 1 to 10000. Default 1000. For one more the oldest is dropped.
    pub max_waiting: usize,
    /// PEM: what receivers' certificates must be signed by. Default: whom the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The receivers, at most 8.
    pub endpoints: Vec<Endpoint>,
}

/// A receiver of webhooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its name in metrics, logs and records: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: String,
    /// Where events are posted, `https://` or `http://`.
    pub url: String,
    /// A file with a secret (`whsec_` and 24 to 64 bytes as base64) in each of 1 to 4 lines: events are signed with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// The variable of the environment that holds the secrets instead, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
    /// Which events it is sent. Default: all.
    #[serde(default = "Kind::all")]
    pub events: Vec<Kind>,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: None, key_files: Vec::new(), max_broadcasts: 10_000 }
    }
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            backoff_max: Duration::from_secs(300),
            give_up: Duration::from_secs(86_400),
            max_waiting: 1_000,
            ca: None,
            endpoints: Vec::new(),
        }
    }
}

impl Api {
    /// What cannot be used, with the path of its key below `at`.
    pub fn problems(&self, at: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.key_files.len() > MAX_KEYS {
            problems.push(format!("{at}.key_files: at most {MAX_KEYS}"));
        }
        if !(1..=20_000).contains(&self.max_broadcasts) {
            problems.push(format!("{at}.max_broadcasts: {} is not 1 to 20000", self.max_broadcasts));
        }
        problems
    }
}

impl Webhooks {
    /// What cannot be used, with the path of its key below `at`.
    pub fn problems(&self, at: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let second = Duration::from_secs(1);
        for (key, value, range) in [
            ("timeout", self.timeout, Duration::from_millis(100)..=second * 60),
            ("backoff_max", self.backoff_max, second..=second * 3600),
            ("give_up", self.give_up, second..=second * 86_400 * 30),
        ] {
            if !range.contains(&value) {
                let [value, least, most] =
                    [value, *range.start(), *range.end()].map(humantime::format_duration);
                problems.push(format!("{at}.{key}: {value} is not {least} to {most}"));
            }
        }
        if !(1..=10_000).contains(&self.max_waiting) {
            problems.push(format!("{at}.max_waiting: {} is not 1 to 10000", self.max_waiting));
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            problems.push(format!("{at}.endpoints: at most {MAX_ENDPOINTS}"));
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let at = format!("{at}.endpoints[{index}]");
            if endpoint.name.parse::<media::StreamName>().is_err() {
                problems.push(format!("{at}.name: {:?} is not 1 to 64 of A-Z a-z 0-9 - _ .", endpoint.name));
            }
            if self.endpoints[..index].iter().any(|other| other.name == endpoint.name) {
                problems.push(format!("{at}.name: {:?} is there twice", endpoint.name));
            }
            let url = endpoint.url.parse::<Uri>().ok().filter(|url| {
                matches!(url.scheme_str(), Some("https" | "http"))
                    && url.host().is_some_and(|host| !host.is_empty())
            });
            match url {
                None => problems.push(format!("{at}.url: {:?} is not https://HOST/PATH", endpoint.url)),
                Some(url) if url.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
                    problems.push(format!("{at}.url: names and passwords in URLs are not sent"));
                }
                Some(_) => {}
            }
            if endpoint.secret_file.is_some() == endpoint.secret_env.is_some() {
                problems.push(format!("{at}: give either secret_file or secret_env"));
            }
            if endpoint.events.is_empty() {
                problems.push(format!("{at}.events: is empty, so nothing is ever sent"));
            }
        }
        problems
    }
}
