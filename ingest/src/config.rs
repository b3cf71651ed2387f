//! What an operator can turn. Every key has its default, unit, range and reason beside it.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Networks that are exempt: each new connection is compared with all of them.
const MAX_EXEMPT: usize = 256;

/// As many as the window of an origin's connection has room for.
const MAX_STREAMS_PER_CONNECTION: usize = 256;

/// Settings of the ingest role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where plain RTMP listens, such as `"127.0.0.1:1935"`. Default: nowhere, because tokens would travel in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtmp: Option<SocketAddr>,
    /// Where RTMP over TLS listens, such as `"0.0.0.0:1936"`. Default: nowhere; one of the two is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtmps: Option<SocketAddr>,
    /// Open connections per listener; one more is closed at once. Default 2000, range 1 to 1000000. An idle TLS
    /// connection costs about 30 KB.
    pub max_connections: usize,
    /// Open connections of one address, both listeners together; 0: no limit. Default 200, a tenth of `max_connections`.
    /// IPv6 addresses count by /64. A studio has a few dozen encoders behind one address.
    pub connections_per_address: u32,
    /// Connections per second of one address, over time; 0: no limit. Default 20: encoders try again every few seconds,
    /// and a TLS handshake costs about a millisecond of CPU time. Range 0 to 10000.
    pub connects_per_address: u32,
    /// Connections of one address at once before that rate counts. Default 200: all encoders of a studio after a power cut.
    /// Range 1 to 100000.
    pub connect_burst_per_address: u32,
    /// Refused tokens per minute of one address; 0: no limit. Default 60: one encoder with an expired key tries again every
    /// two seconds or more, and must not lock its neighbours out. Past it no connection of the address is let in for a
    /// second or so. Range 0 to 10000.
    pub bad_tokens_per_address: u32,
    /// Addresses and networks to which no limit per address applies: load balancers in front, which speak for many.
    /// Default: loopback. At most 256.
    pub exempt_addresses: Vec<String>,
    /// For the TLS handshake, and once more from there to the `publish` command. Default 10s, range 100ms to 60s. A broadcaster
    /// on a bad mobile line needs a few round trips of a second each.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// A session whose network is gone is closed after so long: a fifth of it without a byte, then a ping that its host does
    /// not acknowledge for the rest. An encoder that only pauses may do so for a minute. Default 5s, range 1s to 5m.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Largest RTMP message. Default and upper bound 8MiB, which is what an FLV tag may hold here; lower bound 64KiB.
    /// A 4K keyframe stays below 4 MiB.
    pub max_message: ByteSize,
    /// Fastest stream, in bits per second over ten seconds; a faster session is closed. Default 100000000, range 100000 to
    /// 10000000000. More than any encoder's 4K, less than what would fill a replay buffer at once.
    pub max_bitrate_bps: u64,
    /// The way to the origins.
    pub relay: Relay,
    /// After a shutdown signal: how long broadcasters may go on before they are closed. Default 10s, range 0s to 1h.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

/// Settings of the relay to the origins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relay {
    /// Media kept per stream until an origin has published it. When it is full the oldest group of pictures goes.
    /// Default 32MiB, range 1MiB to 4GiB: 40 seconds at 6 Mbit/s, more than a takeover takes.
    pub buffer: ByteSize,
    /// The same in time. Default 60s, range 5s to 1h: as long as `give_up`.
    #[serde(with = "humantime_serde")]
    pub buffer_duration: Duration,
    /// The same for all streams together, in bytes: past it, those with more than an equal share let go of their oldest
    /// group. Default 2GiB, range 16MiB to 1TiB: what the machine can spare.
    pub total_buffer: ByteSize,
    /// Published segments that are kept all the same and published again by the next origin, so that viewers who have
    /// not fetched them yet find them there. Default 3, range 0 to 60: players stay three segments behind.
    pub history: u64,
    /// All a broadcaster waits for its answer to `publish`. Default 5s, range 100ms to 60s; encoders give up at 10 to 30s.
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// What one origin may take to connect and answer before the next one is asked. Default 2s, range 50ms to 30s, below
    /// `publish_timeout`: else the second origin is never asked in time.
    #[serde(with = "humantime_serde")]
    pub open_timeout: Duration,
    /// An origin that acknowledges nothing while so much media passes is given up for the next. Default 10s, range 2s to 5m;
    /// acknowledgements come once per segment.
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// Relays to one origin share connections, so many to each. Default 64, range 1 to 256: with more a lost packet holds up
    /// more streams for a round trip, with fewer each frame costs more.
    pub streams_per_connection: usize,
    /// Frames of the streams that share a connection leave together, this far apart at least. Default 2ms, range 0s to 50ms:
    /// about as much is added to a frame's latency while the connection is busy, and nothing while it is not.
    #[serde(with = "humantime_serde")]
    pub gather: Duration,
    /// First pause after all origins failed in turn; doubles up to `backoff_max`, jittered. Default 100ms, range 10ms to 10s.
    #[serde(with = "humantime_serde")]
    pub backoff: Duration,
    /// Longest pause between two rounds over the origins. Default 3s, range `backoff` to 60s.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// A session whose stream no origin takes for so long is ended, so that its encoder shows the fault. Default 60s,
    /// range 1s to 1h.
    #[serde(with = "humantime_serde")]
    pub give_up: Duration,
    /// After the broadcaster's end: how long the origin may take to publish the rest. Default 10s, range 100ms to 5m.
    #[serde(with = "humantime_serde")]
    pub end_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rtmp: None,
            rtmps: None,
            max_connections: 2000,
            connections_per_address: 200,
            connects_per_address: 20,
            connect_burst_per_address: 200,
            bad_tokens_per_address: 60,
            exempt_addresses: vec!["127.0.0.0/8".into(), "::1".into()],
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(5),
            max_message: ByteSize::mib(8),
            max_bitrate_bps: 100_000_000,
            relay: Relay::default(),
            drain: Duration::from_secs(10),
        }
    }
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            buffer: ByteSize::mib(32),
            buffer_duration: Duration::from_secs(60),
            total_buffer: ByteSize::gib(2),
            history: 3,
            publish_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(2),
            ack_timeout: Duration::from_secs(10),
            streams_per_connection: 64,
            gather: Duration::from_millis(2),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(3),
            give_up: Duration::from_secs(60),
            end_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// What a listener lets in.
    pub(crate) fn limits(&self) -> net::Limits {
        net::Limits { max_connections: self.max_connections, handshake_timeout: self.handshake_timeout }
    }

    /// Everything that is wrong, each entry led by its key below `path`; empty when all is well.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.rtmp.is_none() && self.rtmps.is_none() {
            problems.push(format!("{path}: neither `rtmp` nor `rtmps` is set: broadcasters cannot connect"));
        }
        if self.rtmp.is_some_and(|addr| addr.port() != 0) && self.rtmp == self.rtmps {
            problems.push(format!("{path}.rtmps: is the same address as `rtmp`"));
        }
        if !(1..=1_000_000).contains(&self.max_connections) {
            problems
                .push(format!("{path}.max_connections: {} is not within 1 to 1000000", self.max_connections));
        }
        for (key, value, least, most) in [
            ("connects_per_address", self.connects_per_address, 0, 10_000),
            ("connect_burst_per_address", self.connect_burst_per_address, 1, 100_000),
            ("bad_tokens_per_address", self.bad_tokens_per_address, 0, 10_000),
        ] {
            if !(least..=most).contains(&value) {
                problems.push(format!("{path}.{key}: {value} is not within {least} to {most}"));
            }
        }
        if self.exempt_addresses.len() > MAX_EXEMPT {
            problems.push(format!("{path}.exempt_addresses: more than {MAX_EXEMPT}"));
        }
        for network in &self.exempt_addresses {
            if let Err(problem) = network.parse::<net::Network>() {
                problems.push(format!("{path}.exempt_addresses: {problem}"));
            }
        }
        if !(100_000..=10_000_000_000).contains(&self.max_bitrate_bps) {
            let key = format!("{path}.max_bitrate_bps");
            problems.push(format!("{key}: {} is not within 100000 to 10000000000", self.max_bitrate_bps));
        }
        let (second, milli) = (Duration::from_secs(1), Duration::from_millis(1));
        let mut duration = |key: &str, value, least, most| {
            problems.extend(outside(value, least, most).map(|why| format!("{path}.{key}: {why}")));
        };
        duration("handshake_timeout", self.handshake_timeout, 100 * milli, 60 * second);
        duration("idle_timeout", self.idle_timeout, second, 300 * second);
        duration("drain", self.drain, Duration::ZERO, 3600 * second);
        let relay = &self.relay;
        duration("relay.buffer_duration", relay.buffer_duration, 5 * second, 3600 * second);
        duration("relay.publish_timeout", relay.publish_timeout, 100 * milli, 60 * second);
        duration("relay.open_timeout", relay.open_timeout, 50 * milli, 30 * second);
        duration("relay.ack_timeout", relay.ack_timeout, 2 * second, 300 * second);
        duration("relay.gather", relay.gather, Duration::ZERO, 50 * milli);
        duration("relay.backoff", relay.backoff, 10 * milli, 10 * second);
        duration("relay.backoff_max", relay.backoff_max, relay.backoff, 60 * second);
        duration("relay.give_up", relay.give_up, second, 3600 * second);
        duration("relay.end_timeout", relay.end_timeout, 100 * milli, 300 * second);
        if relay.open_timeout >= relay.publish_timeout {
            problems.push(format!("{path}.relay.open_timeout: is not below `publish_timeout`"));
        }
        let mut size = |key: &str, value: ByteSize, least: ByteSize, most: ByteSize| {
            if !(least..=most).contains(&value) {
                problems.push(format!("{path}.{key}: {value} is not within {least} to {most}"));
            }
        };
        let most = ByteSize::b(media::flv::MAX_TAG_BYTES as u64);
        size("max_message", self.max_message, ByteSize::kib(64), most);
        size("relay.buffer", relay.buffer, ByteSize::mib(1), ByteSize::gib(4));
        size("relay.total_buffer", relay.total_buffer, ByteSize::mib(16), ByteSize::tib(1));
        if !(1..=MAX_STREAMS_PER_CONNECTION).contains(&relay.streams_per_connection) {
            let (key, most) = (format!("{path}.relay.streams_per_connection"), MAX_STREAMS_PER_CONNECTION);
            problems.push(format!("{key}: {} is not within 1 to {most}", relay.streams_per_connection));
        }
        if relay.history > 60 {
            problems.push(format!("{path}.relay.history: {} is not within 0 to 60", relay.history));
        }
        problems
    }
}

impl Config {
    /// What one address may use; networks that cannot be read are left out.
    pub(crate) fn per_address(&self) -> net::PerAddress {
        net::PerAddress {
            connections: self.connections_per_address,
            // There a connection counts as ten requests; here it is all that there is.
            requests_per_second: 10 * self.connects_per_address,
            burst: 10 * self.connect_burst_per_address,
            offences_per_minute: self.bad_tokens_per_address,
            exempt: self.exempt_addresses.iter().filter_map(|network| network.parse().ok()).collect(),
        }
    }
}

fn outside(value: Duration, least: Duration, most: Duration) -> Option<String> {
    (value < least || value > most).then(|| format!("{value:?} is not within {least:?} to {most:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_with_its_key() {
        let addr = Some("127.0.0.1:1935".parse().unwrap());
        let mut config = Config { rtmp: addr, ..Config::default() };
        assert_eq!(config.problems("ingest"), Vec::<String>::new());
        config.rtmps = addr;
        config.max_connections = 0;
        config.max_message = ByteSize::mib(9);
        config.max_bitrate_bps = 0;
        config.connect_burst_per_address = 0;
        config.exempt_addresses = vec!["10.0.0.1/8".into()];
        config.relay.backoff_max = Duration::from_millis(50);
        config.relay.open_timeout = Duration::from_secs(5);
        let problems = config.problems("ingest");
        let keys: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
        let expected = [
            "ingest.rtmps",
            "ingest.max_connections",
            "ingest.connect_burst_per_address",
            "ingest.exempt_addresses",
            "ingest.max_bitrate_bps",
            "ingest.relay.backoff_max",
            "ingest.relay.open_timeout",
            "ingest.max_message",
        ];
        assert_eq!(keys, expected, "{problems:?}");
        assert_eq!(Config::default().problems("x").len(), 1, "a listener is needed");
    }
}
