//! The `[edge]` and `[shield]` tables of the configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::policy::{Class, Delivery, Mode, Policy};

/// Exempt networks: each is looked at for each connection.
const MAX_EXEMPT: usize = 256;

/// A cache tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where HTTPS (h2 and h1) is served. Default: nowhere. One of `https` and `http` must be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<SocketAddr>,
    /// Where plain HTTP (h1, and h2 by prior knowledge) is served: for trying on loopback, and behind a TLS terminator.
    /// Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// Memory for complete objects. Default 1GiB, 1MiB or more. Objects on their way have `inflight_size` besides.
    pub cache_size: ByteSize,
    /// Memory for objects on their way. Default 512MiB, 1MiB or more. From three quarters of it on no further fetch begins
    /// (503); a body that would exceed it is broken off.
    pub inflight_size: ByteSize,
    /// Largest object, 1KiB to 2GiB. Default 64MiB: four seconds at 128 Mbit/s. A larger one is refused as 502, or broken
    /// off if its length was not announced.
    pub max_object: ByteSize,
    /// Names being fetched at once, 1 or more. Default 10000. One more is answered 503.
    pub max_inflight_names: usize,
    /// Requests waiting for headers, or for a range to come, at once, 1 or more. Default 200000. One more is answered 503.
    pub max_waiters: usize,
    /// How long running answers may take to finish after a shutdown has begun, 0s to 1h. Default 10s.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// What a client may use.
    pub limits: Limits,
    /// Where objects come from.
    pub upstream: Upstream,
    /// Who may watch.
    pub playback: Playback,
    /// Streams that the tier above pushes.
    pub push: Push,
    /// Classes of objects; the first that matches a name counts. Names that match none are of class "other" with its
    /// defaults. Default: `recording`, `blocking-playlist`, `playlist`, `mpd`, `media`, `init`, `other`.
    pub classes: Vec<Class>,
    /// How the objects below a path come from the tier above; the first whose prefix begins a path counts. Others are pushed
    /// where the tier above offers it. Default: `/vod/` by pull, since nothing is added to recordings. At most 256.
    pub delivery: Vec<Delivery>,
}

/// What a client may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections per listener, 1 or more. Default 50000. One more is closed at once.
    pub max_connections: usize,
    /// For a TLS handshake, 100ms to 60s. Default 10s.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// For the header of a request (h1), the wait for it included, so that idle connections end too. 100ms to 1h.
    /// Default 60s: longer than any player pauses between segments.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Largest request header, 8KiB to 1MiB. Default 16KiB.
    pub max_header: ByteSize,
    /// Requests at once on one h2 connection, 1 or more. Default 1000: a tier below sends all its fetches over one.
    pub h2_max_streams: u32,
    /// Open connections of one address, both listeners together; 0: no limit. Default 4096. IPv6 addresses count by /64. A
    /// carrier's NAT puts some hundred viewers behind one address, a company its whole staff.
    pub connections_per_address: u32,
    /// Requests per second of one address, over time; 0: no limit. Default 10000. One more is answered 429. A connection
    /// counts as ten requests, and is closed at once past the limit.
    pub requests_per_address: u32,
    /// Requests of one address at once before that rate counts, 1 or more. Default 20000.
    pub burst_per_address: u32,
    /// Addresses and networks to which no limit per address applies: load balancers and TLS terminators in front, which
    /// speak for many. Default: loopback.
    pub exempt_addresses: Vec<String>,
    /// Who takes less than `min_send_rate` for so long while there is something to send is cut off: the connection, or the
    /// one h2 stream. 1s to 1h. Default 60s.
    #[serde(with = "humantime_serde")]
    pub send_timeout: Duration,
    /// Per second, at most 1GiB. Default 1KiB: no audio rendition is that slow. 0: a single byte will do.
    pub min_send_rate: ByteSize,
}

/// Streams that the tier above pushes, so that what comes next is here before it is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Push {
    /// How long a stream goes on to be pushed after the last request for it, 1s to 1h. Default 30s.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// A push that brings nothing for this long, not even a sign of life, is lost. 1s to 60s, default 2s: there is one
    /// every half second.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// Longest wait before a push that was lost or refused is asked for again, 1s to 10min. Default 15s.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Streams pushed at once, 1 or more. Default 1000. One more takes the place of the one that was not asked for for the
    /// longest, or is fetched if all are in use.
    pub max_streams: usize,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// For a TCP connection to an upstream, 10ms to 60s. Default 1s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How many leading path segments name a stream; the last of them is the key by which the upstream is chosen.
    /// Default 2: `/live/{stream}/...` belongs to where `{stream}` does. 0: the whole path is the key. At most 16.
    pub key_segments: usize,
}

/// Who may watch. A viewer brings a token in the path (`/t/{token}/live/...`), as bearer or in the query (`token`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Playback {
    /// Patterns of paths that need a playback token, such as `/live/*`, at most 64. Default: none.
    pub paths: Vec<String>,
    /// Files with a key each, at most 8: a secret of 32 bytes or more, or Ed25519 in PEM, private or public. Tokens are made
    /// with the first and accepted with any. Read again on every reload. Default: a secret that is made on the first start,
    /// `playback.key` in `node.state_dir`.
    pub key_files: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            https: None,
            http: None,
            cache_size: ByteSize::gib(1),
            inflight_size: ByteSize::mib(512),
            max_object: ByteSize::mib(64),
            max_inflight_names: 10_000,
            max_waiters: 200_000,
            drain: Duration::from_secs(10),
            limits: Limits::default(),
            upstream: Upstream::default(),
            playback: Playback::default(),
            push: Push::default(),
            classes: Class::defaults(),
            // Nothing is added to recordings.
            delivery: vec![Delivery { prefix: "/vod/".into(), mode: Mode::Pull }],
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 50_000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            max_header: ByteSize::kib(16),
            h2_max_streams: 1000,
            connections_per_address: 4096,
            requests_per_address: 10_000,
            burst_per_address: 20_000,
            exempt_addresses: vec!["127.0.0.0/8".into(), "::1".into()],
            send_timeout: Duration::from_secs(60),
            min_send_rate: ByteSize::kib(1),
        }
    }
}

impl Default for Push {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            silence: Duration::from_secs(2),
            backoff_max: Duration::from_secs(15),
            max_streams: 1000,
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(1), key_segments: 2 }
    }
}

impl Config {
    /// What is wrong with it, each with the key path that `path` begins.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |ok: bool, key: &str, rule: &str| {
            if !ok {
                problems.push(format!("{path}.{key}: {rule}"));
            }
        };
        let within = |value: Duration, least_ms, most_s| {
            (Duration::from_millis(least_ms)..=Duration::from_secs(most_s)).contains(&value)
        };
        require(self.https.is_some() || self.http.is_some(), "https", "set https or http, or both");
        require(
            self.https.is_none() || self.https != self.http || port_free(self.https),
            "http",
            "is the same as https",
        );
        require(self.cache_size >= ByteSize::mib(1), "cache_size", "must be 1MiB or more");
        require(self.inflight_size >= ByteSize::mib(1), "inflight_size", "must be 1MiB or more");
        let object = (ByteSize::kib(1)..=ByteSize::gib(2)).contains(&self.max_object);
        require(object, "max_object", "must be 1KiB to 2GiB");
        let fits = self.max_object <= self.cache_size && self.max_object <= self.inflight_size;
        require(fits, "max_object", "must not exceed cache_size or inflight_size");
        require(self.max_inflight_names > 0, "max_inflight_names", "must be 1 or more");
        require(self.max_waiters > 0, "max_waiters", "must be 1 or more");
        require(within(self.drain, 0, 3600), "drain", "must be 0s to 1h");
        let limits = &self.limits;
        require(limits.max_connections > 0, "limits.max_connections", "must be 1 or more");
        let handshake = within(limits.handshake_timeout, 100, 60);
        require(handshake, "limits.handshake_timeout", "must be 100ms to 60s");
        require(within(limits.header_timeout, 100, 3600), "limits.header_timeout", "must be 100ms to 1h");
        let header = (ByteSize::kib(8)..=ByteSize::mib(1)).contains(&limits.max_header);
        require(header, "limits.max_header", "must be 8KiB to 1MiB");
        require(limits.h2_max_streams > 0, "limits.h2_max_streams", "must be 1 or more");
        require(limits.burst_per_address > 0, "limits.burst_per_address", "must be 1 or more");
        let fine = limits.requests_per_address <= 1_000_000;
        require(fine, "limits.requests_per_address", "must be 0 to 1000000");
        require(within(limits.send_timeout, 1000, 3600), "limits.send_timeout", "must be 1s to 1h");
        require(limits.min_send_rate <= ByteSize::gib(1), "limits.min_send_rate", "must be 0B to 1GiB");
        let few = limits.exempt_addresses.len() <= MAX_EXEMPT;
        require(few, "limits.exempt_addresses", "at most 256");
        for network in &limits.exempt_addresses {
            if let Err(problem) = network.parse::<net::Network>() {
                require(false, "limits.exempt_addresses", &problem);
            }
        }
        let connect = within(self.upstream.connect_timeout, 10, 60);
        require(connect, "upstream.connect_timeout", "must be 10ms to 60s");
        require(self.upstream.key_segments <= 16, "upstream.key_segments", "must be 0 to 16");
        require(self.playback.paths.len() <= 64, "playback.paths", "at most 64 patterns");
        let absolute = self.playback.paths.iter().all(|path| path.starts_with(['/', '*']));
        require(absolute, "playback.paths", "a pattern must begin with / or *");
        require(self.playback.key_files.len() <= 8, "playback.key_files", "at most 8 files");
        let push = &self.push;
        require(within(push.idle, 1000, 3600), "push.idle", "must be 1s to 1h");
        require(within(push.silence, 1000, 60), "push.silence", "must be 1s to 60s");
        require(within(push.backoff_max, 1000, 600), "push.backoff_max", "must be 1s to 10min");
        require(push.max_streams > 0, "push.max_streams", "must be 1 or more");
        problems.extend(self.policy().problems(path));
        problems
    }

    /// The part that can be changed while it runs.
    pub fn policy(&self) -> Policy {
        Policy {
            classes: self.classes.iter().cloned().map(Arc::new).collect(),
            delivery: self.delivery.clone(),
        }
    }
}

/// Two listeners may share an address only if the system chooses their ports.
fn port_free(addr: Option<SocketAddr>) -> bool {
    addr.is_some_and(|addr| addr.port() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_toml() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
    }

    fn check(text: &str, expected: &[&str]) {
        let config: Config = toml::from_str(text).unwrap();
        let problems = config.problems("edge");
        assert_eq!(problems.len(), expected.len(), "{text}: {problems:?}");
        for (problem, key) in problems.iter().zip(expected) {
            assert!(problem.starts_with(&format!("edge.{key}: ")), "{problem}");
        }
    }

    #[test]
    fn problems_name_their_keys() {
        check("", &["https"]);
        check("http = '127.0.0.1:80'", &[]);
        check("http = '127.0.0.1:80'\nhttps = '127.0.0.1:80'", &["http"]);
        check("http = '127.0.0.1:0'\nhttps = '127.0.0.1:0'", &[]);
        check("http = '[::]:80'\ncache_size = '2MiB'", &["max_object"]);
        check(
            "http = '[::]:80'\nmax_waiters = 0\nmax_object = '3GiB'",
            &["max_object", "max_object", "max_waiters"],
        );
        check("http = '[::]:80'\n[[classes]]\nmax_fetches = 9", &["classes[0].max_fetches"]);
        check("http = '[::]:80'\n[limits]\nmax_header = '1KiB'", &["limits.max_header"]);
        check("http = '[::]:80'\n[playback]\npaths = ['live/*']", &["playback.paths"]);
        check(
            "http = '[::]:80'\n[limits]\nburst_per_address = 0\nexempt_addresses = ['10.0.0.0/8', '10.0.0.1/8', 'lb']",
            &["limits.burst_per_address", "limits.exempt_addresses", "limits.exempt_addresses"],
        );
        assert!(toml::from_str::<Config>("htpp = '[::]:80'").is_err());
    }
}
