//! What operators choose about an origin.

use std::net::SocketAddr;
use std::time::Duration;

use media::captions::Service;
use serde::{Deserialize, Serialize};

/// The origin role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where relays and edges connect, HTTPS with client certificates. Default `127.0.0.1:7443`.
    pub listen: SocketAddr,
    /// Live streams at most; one more is answered with 503, so that its POP tries the next origin. Default 64, 1 to 10000:
    /// each costs about 0.6 to 1.2 CPUs with a 720p ladder.
    pub max_streams: usize,
    /// CPUs that this origin may use, in proportion to which the fleet brings it streams by what their ladders cost. Default 0:
    /// as many as the machine has. 0 to 1024.
    pub cpus: usize,
    /// Segment duration. Default `1s`, 500ms to 10s: short segments start faster, long ones compress better.
    #[serde(with = "humantime_serde")]
    pub segment_duration: Duration,
    /// Part duration wanted; the nearest whole number of frames is used. Default `200ms`, 50ms to 1s and at most the
    /// segment duration: LL-HLS players stay three parts behind.
    #[serde(with = "humantime_serde")]
    pub part_target: Duration,
    /// How much of a live stream is listed; as much again stays fetchable. Default `30s`, 6s to 10min: it is held in memory,
    /// about 0.6 MB a second and stream with a 720p ladder.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// Latency that DASH players are told to keep. Default `1500ms`, 500ms to 30s.
    #[serde(with = "humantime_serde")]
    pub dash_latency: Duration,
    /// Media time to wait for a second track before starting without it. Default `1s`, 100ms to 10s.
    #[serde(with = "humantime_serde")]
    pub probe: Duration,
    /// Media time to wait for a first video keyframe before the session is refused. Default `10s`, 1s to 60s: encoders
    /// send one every 1 to 10 s.
    #[serde(with = "humantime_serde")]
    pub keyframe_timeout: Duration,
    /// How long a stream stays alive without its broadcaster. Default `60s`, 0s to 1h.
    #[serde(with = "humantime_serde")]
    pub reconnect_grace: Duration,
    /// Streams of other origins mirrored at most, so that they go on here without a break when their owner is lost: each
    /// takes the memory of its window and the bit rate of its ladder. Default 64, 0 (none) to 10000.
    pub mirrored_streams: usize,
    /// How long an ended stream stays fetchable. Default `60s`, 0s to 1h: players that are behind finish watching.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How far back viewers may begin in a live stream (`?start=`), as far as the archive has it. Default `4h`, 0s to 1day;
    /// 0s: not beyond the window.
    #[serde(with = "humantime_serde")]
    pub dvr: Duration,
    /// What closed captions in the video (CEA-608, CEA-708) are called, of sources that carry any: channels with languages such
    /// as `CC1:en`, `CC3:es`, `SERVICE1:en`, 16 at most. Default none: players are told of those that are seen, without a
    /// language.
    pub captions: Vec<Service>,
    /// URL of the clock that DASH players synchronise to, as players reach it. Default `/time`, which every Rooftop edge
    /// answers; give the full URL where players load the manifest from another host than their page.
    pub time_url: String,
    /// How long requests and sessions may take to finish at shutdown. Default `5s`, 0s to 10min.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7443)),
            max_streams: 64,
            cpus: 0,
            segment_duration: Duration::from_secs(1),
            part_target: Duration::from_millis(200),
            window: Duration::from_secs(30),
            dash_latency: Duration::from_millis(1500),
            probe: Duration::from_secs(1),
            keyframe_timeout: Duration::from_secs(10),
            reconnect_grace: Duration::from_secs(60),
            mirrored_streams: 64,
            retention: Duration::from_secs(60),
            dvr: Duration::from_secs(4 * 3600),
            captions: Vec::new(),
            time_url: "/time".into(),
            drain: Duration::from_secs(5),
        }
    }
}

/// More than any machine has.
const MAX_CPUS: usize = 1024;

/// Captions in more languages are no use to anybody.
const MAX_CAPTIONS: usize = 16;

impl Config {
    /// What this origin carries, in tenths of a CPU.
    pub fn capacity(&self) -> u32 {
        let cpus = match self.cpus {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpus => cpus,
        };
        cpus.min(MAX_CPUS) as u32 * 10
    }

    /// How much of [`Config::capacity`] is taken: by what the ladders of its streams cost together (thousandths of a CPU), or
    /// by how many streams there are, whichever is more.
    pub fn load(&self, streams: usize, max_streams: usize, milli_cpus: u64) -> u32 {
        let by_count = (streams as u64 * u64::from(self.capacity())).div_ceil(max_streams.max(1) as u64);
        u32::try_from(milli_cpus.div_ceil(100).max(by_count)).unwrap_or(u32::MAX)
    }

    /// Everything that is wrong, each entry beginning with the key's path below `path`.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        for (key, value, low, high) in [
            ("segment_duration", self.segment_duration, ms(500), s(10)),
            ("part_target", self.part_target, ms(50), s(1)),
            ("window", self.window, s(6), s(600)),
            ("dash_latency", self.dash_latency, ms(500), s(30)),
            ("probe", self.probe, ms(100), s(10)),
            ("keyframe_timeout", self.keyframe_timeout, s(1), s(60)),
            ("reconnect_grace", self.reconnect_grace, s(0), s(3600)),
            ("retention", self.retention, s(0), s(3600)),
            ("dvr", self.dvr, s(0), s(86_400)),
            ("drain", self.drain, s(0), s(600)),
        ] {
            if !(low..=high).contains(&value) {
                problems.push(format!("{path}.{key}: {value:?} is outside {low:?} to {high:?}"));
            }
        }
        if self.part_target > self.segment_duration {
            problems.push(format!(
                "{path}.part_target: {:?} is longer than segment_duration, {:?}",
                self.part_target, self.segment_duration
            ));
        }
        if self.window < self.segment_duration * 6 {
            problems.push(format!(
                "{path}.window: {:?} is shorter than six segments of {:?}",
                self.window, self.segment_duration
            ));
        }
        if !(1..=10_000).contains(&self.max_streams) {
            problems.push(format!("{path}.max_streams: {} is outside 1 to 10000", self.max_streams));
        }
        if self.cpus > MAX_CPUS {
            problems.push(format!("{path}.cpus: {} is outside 0 to {MAX_CPUS}", self.cpus));
        }
        if self.captions.len() > MAX_CAPTIONS {
            problems.push(format!(
                "{path}.captions: {} services are more than {MAX_CAPTIONS}",
                self.captions.len()
            ));
        }
        for (index, service) in self.captions.iter().enumerate() {
            if self.captions[..index].iter().any(|before| before.channel == service.channel) {
                problems.push(format!("{path}.captions: {} is there twice", service.channel));
            }
        }
        if self.mirrored_streams > 10_000 {
            problems
                .push(format!("{path}.mirrored_streams: {} is outside 0 to 10000", self.mirrored_streams));
        }
        if self.time_url.is_empty() || self.time_url.contains(['"', '<', '>', '&']) {
            problems.push(format!("{path}.time_url: {:?} is not a URL or absolute path", self.time_url));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_what_ladders_cost_or_how_many_there_are() {
        let config = Config { cpus: 4, max_streams: 10, ..Config::default() };
        assert_eq!(config.capacity(), 40);
        for (streams, milli_cpus, load) in
            [(0, 0, 0), (1, 10, 4), (1, 924, 10), (2, 6000, 60), (10, 0, 40), (3, 10, 12)]
        {
            assert_eq!(config.load(streams, config.max_streams, milli_cpus), load, "{streams} {milli_cpus}");
        }
        assert!(Config::default().capacity() >= 10);
    }

    #[test]
    fn every_problem_is_named() {
        assert_eq!(Config::default().problems("origin"), [""; 0]);
        let config = Config {
            part_target: Duration::from_millis(900),
            segment_duration: Duration::from_millis(600),
            window: Duration::from_secs(1),
            max_streams: 0,
            cpus: 5000,
            ..Config::default()
        };
        let problems = config.problems("origin");
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems[0].starts_with("origin.window: 1s is outside 6s to 600s"), "{problems:?}");
    }
}
