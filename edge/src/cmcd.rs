//! What players say of their playback with each request: CMCD (CTA-5004), in the query or in headers, put together by stream.
//!
//! Players may say anything: figures beyond all reason are left aside, streams beyond [`MAX_STREAMS`] are counted together
//! only, and nothing that is said chooses what is served.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;

/// Streams that are told apart.
pub const MAX_STREAMS: usize = 1000;

/// Longest text that is read, in bytes: CTA-5004 players send some hundred.
const MAX_BYTES: usize = 2048;

/// What is said goes back at most twice this long, and once at least.
const HALF: Duration = Duration::from_secs(30);

/// An hour of media is no buffer.
const MAX_BUFFER_MS: u64 = 3_600_000;

/// Of a rendition, or of a network, in kbit/s.
const MAX_KBPS: u64 = 10_000_000;

static HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("cmcd-object"),
    HeaderName::from_static("cmcd-request"),
    HeaderName::from_static("cmcd-session"),
    HeaderName::from_static("cmcd-status"),
];

/// Upper bounds of buffers, in seconds.
const BUFFER_BUCKETS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Upper bounds of bitrates and throughputs, in bits per second.
const RATE_BUCKETS: [f64; 9] = [250e3, 500e3, 1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 128e6];

/// What one request says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// The buffer ran empty since the request before (`bs`).
    pub starved: bool,
    /// Media in the buffer, in milliseconds (`bl`).
    pub buffer_ms: Option<u64>,
    /// Of the rendition that is asked for, in kbit/s (`br`).
    pub bitrate_kbps: Option<u64>,
    /// As the player measures it, in kbit/s (`mtp`).
    pub throughput_kbps: Option<u64>,
    /// A hash of what the player calls its session (`sid`).
    pub session: Option<u64>,
}

impl Said {
    /// What a request says; `None`: nothing.
    pub fn of(query: Option<&str>, headers: &HeaderMap) -> Option<Said> {
        let mut said = None;
        let in_query =
            query.and_then(|query| query.split('&').find_map(|parameter| parameter.strip_prefix("CMCD=")));
        if let Some(text) = in_query.filter(|text| text.len() <= MAX_BYTES) {
            let text = decoded(text);
            said.get_or_insert_with(Said::default).read(&text);
        }
        for name in &HEADERS {
            let text = headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(text) = text.filter(|text| text.len() <= MAX_BYTES) {
                said.get_or_insert_with(Said::default).read(text);
            }
        }
        said
    }

    fn read(&mut self, text: &str) {
        for pair in text.split(',') {
            let (key, value) = pair.trim().split_once('=').unwrap_or((pair.trim(), ""));
            let within = |most: u64| value.parse().ok().filter(|value| *value <= most);
            match key {
                // A boolean that is true has no value.
                "bs" => self.starved |= matches!(value, "" | "true" | "?1"),
                "bl" => self.buffer_ms = within(MAX_BUFFER_MS).or(self.buffer_ms),
                "br" => self.bitrate_kbps = within(MAX_KBPS).or(self.bitrate_kbps),
                "mtp" => self.throughput_kbps = within(MAX_KBPS).or(self.throughput_kbps),
                "sid" if !value.is_empty() => {
                    // Not keyed: who finds two that are alike is counted once for them.
                    let mut hasher = DefaultHasher::new();
                    value.hash(&mut hasher);
                    self.session = Some(hasher.finish());
                }
                _ => {}
            }
        }
    }
}

/// RFC 3986 section 2.1; what is no encoding stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |digit: &u8| char::from(*digit).to_digit(16);
        match (first, after) {
            (b'%', [high, low, tail @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                bytes.push((hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0)) as u8);
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How a stream plays at its viewers, by what they said in the last half to whole minute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Playing {
    /// What its paths begin with.
    pub stream: String,
    /// Requests that said something.
    pub requests: u64,
    /// Of those, after the buffer had run empty.
    pub starvations: u64,
    /// Mean of what was said; `None`: nobody did.
    pub buffer_ms: Option<u64>,
    /// The same.
    pub bitrate_kbps: Option<u64>,
    /// The same.
    pub throughput_kbps: Option<u64>,
}

/// Counts, and sums with how many there are in them.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    requests: u64,
    starvations: u64,
    buffer_ms: (u64, u64),
    bitrate_kbps: (u64, u64),
    throughput_kbps: (u64, u64),
}

impl Sums {
    fn add(&mut self, said: &Said) {
        self.requests += 1;
        self.starvations += u64::from(said.starved);
        for (sum, value) in [
            (&mut self.buffer_ms, said.buffer_ms),
            (&mut self.bitrate_kbps, said.bitrate_kbps),
            (&mut self.throughput_kbps, said.throughput_kbps),
        ] {
            if let Some(value) = value {
                *sum = (sum.0 + value, sum.1 + 1);
            }
        }
    }
}

/// One stream, in two halves of its time.
#[derive(Debug)]
struct Stream {
    /// When the younger half began.
    began: Instant,
    older: Sums,
    younger: Sums,
}

impl Stream {
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= HALF {
            self.older = if age < 2 * HALF { self.younger } else { Sums::default() };
            self.younger = Sums::default();
            // Not from now on: how long something is remembered does not depend on when somebody looked.
            self.began = now - Duration::from_nanos((age.as_nanos() % HALF.as_nanos()) as u64);
        }
    }

    /// Whether nothing is left of what was said.
    fn is_over(&mut self, now: Instant) -> bool {
        self.turn(now);
        self.older.requests + self.younger.requests == 0
    }
}

/// All that players say.
#[derive(Debug, Default)]
pub struct Board {
    streams: Mutex<BTreeMap<String, Stream>>,
    metrics: Metrics,
}

impl Board {
    /// Counts in these metrics, too.
    pub fn new(metrics: Metrics) -> Board {
        Board { streams: Mutex::default(), metrics }
    }

    /// A viewer of the stream whose paths begin with `stream` says this.
    pub fn note(&self, stream: &str, said: &Said, now: Instant) {
        self.metrics.count(said);
        let mut streams = self.lock();
        if !streams.contains_key(stream) {
            if streams.len() >= MAX_STREAMS {
                streams.retain(|_, stream| !stream.is_over(now));
            }
            if streams.len() >= MAX_STREAMS {
                self.metrics.untold.inc();
                return;
            }
            let (older, younger) = (Sums::default(), Sums::default());
            streams.insert(stream.to_owned(), Stream { began: now, older, younger });
        }
        if let Some(stream) = streams.get_mut(stream) {
            stream.turn(now);
            stream.younger.add(said);
        }
    }

    /// The streams of which something was said lately, those with the most starvations first.
    pub fn list(&self, now: Instant) -> Vec<Playing> {
        let mut streams = self.lock();
        streams.retain(|_, stream| !stream.is_over(now));
        let mut playing: Vec<_> = streams
            .iter()
            .map(|(name, stream)| {
                let (a, b) = (&stream.older, &stream.younger);
                let mean = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0).checked_div(a.1 + b.1);
                Playing {
                    stream: name.clone(),
                    requests: a.requests + b.requests,
                    starvations: a.starvations + b.starvations,
                    buffer_ms: mean(a.buffer_ms, b.buffer_ms),
                    bitrate_kbps: mean(a.bitrate_kbps, b.bitrate_kbps),
                    throughput_kbps: mean(a.throughput_kbps, b.throughput_kbps),
                }
            })
            .collect();
        playing.sort_by(|a, b| b.starvations.cmp(&a.starvations).then_with(|| a.stream.cmp(&b.stream)));
        playing
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is counted of all streams together. Cloning is cheap; register once per process.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Counter,
    starvations: Counter,
    untold: Counter,
    buffer: Histogram,
    bitrate: Histogram,
    throughput: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Counter::default(),
            starvations: Counter::default(),
            untold: Counter::default(),
            buffer: Histogram::new(BUFFER_BUCKETS),
            bitrate: Histogram::new(RATE_BUCKETS),
            throughput: Histogram::new(RATE_BUCKETS),
        }
    }
}

impl Metrics {
    /// Adds the families to `registry`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let help = "Requests of players that say how they play (CMCD)";
        registry.register("edge_cmcd_requests", help, metrics.requests.clone());
        let help = "Of those, requests after the player's buffer had run empty";
        registry.register("edge_cmcd_starvations", help, metrics.starvations.clone());
        let help = "Of those, requests for streams beyond the bound of streams that are told apart";
        registry.register("edge_cmcd_untold", help, metrics.untold.clone());
        let help = "Media in players' buffers, in seconds";
        registry.register("edge_cmcd_buffer_seconds", help, metrics.buffer.clone());
        let help = "Bitrates of the renditions that players ask for";
        registry.register("edge_cmcd_bitrate_bps", help, metrics.bitrate.clone());
        let help = "Throughput as players measure it";
        registry.register("edge_cmcd_throughput_bps", help, metrics.throughput.clone());
        metrics
    }

    fn count(&self, said: &Said) {
        self.requests.inc();
        if said.starved {
            self.starvations.inc();
        }
        let observe = |histogram: &Histogram, value: Option<u64>, by: f64| {
            if let Some(value) = value {
                histogram.observe(value as f64 * by);
            }
        };
        observe(&self.buffer, said.buffer_ms, 0.001);
        observe(&self.bitrate, said.bitrate_kbps, 1000.0);
        observe(&self.throughput, said.throughput_kbps, 1000.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_players_say_is_read() {
        let none = HeaderMap::new();
        let check = |query: &str, expected: Option<Said>| {
            assert_eq!(Said::of(Some(query), &none), expected, "{query}");
        };
        let said = Said {
            starved: true,
            buffer_ms: Some(21_300),
            bitrate_kbps: Some(3200),
            throughput_kbps: Some(25_400),
            session: None,
        };
        check("a=b&CMCD=bl%3D21300%2Cbr%3D3200%2Cbs%2Cmtp%3D25400", Some(said));
        check("CMCD=bl=21300,br=3200,bs=true,mtp=25400", Some(said));
        check("CMCD=bl%3D99999999,br=-1,bs=false,mtp=x%2", Some(Said::default()));
        check("CMCD=", Some(Said::default()));
        check("cmcd=bs", None);
        check(&format!("CMCD=bs,{}", "x".repeat(MAX_BYTES)), None);
        assert_eq!(Said::of(None, &none), None);
        let session = |query: &str| Said::of(Some(query), &none).unwrap().session;
        assert!(session("CMCD=sid%3D%22a%22").is_some_and(|a| Some(a) != session("CMCD=sid%3D%22b%22")));
        assert_eq!((session("CMCD=sid=,bs"), session("CMCD=bs")), (None, None));
        let mut headers = HeaderMap::new();
        headers.insert("cmcd-session", "sid=\"a\"".parse().unwrap());
        assert_eq!(Said::of(None, &headers).unwrap().session, session("CMCD=bs,sid=%22a%22"));
        let mut headers = HeaderMap::new();
        headers.insert("cmcd-object", "br=3200,d=1000".parse().unwrap());
        headers.insert("cmcd-request", "bl=21300, mtp=25400".parse().unwrap());
        headers.insert("cmcd-status", "bs".parse().unwrap());
        assert_eq!(Said::of(Some("_HLS_msn=1"), &headers), Some(said));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn streams_are_told_apart_for_a_minute() {
        let (board, zero) = (Board::default(), Instant::now());
        let at = |seconds: u64| zero + Duration::from_secs(seconds);
        let said = |starved, buffer_ms| Said { starved, buffer_ms: Some(buffer_ms), ..Said::default() };
        board.note("/live/a", &said(false, 1000), at(0));
        board.note("/live/a", &said(false, 2000), at(20));
        board.note("/live/b", &said(true, 100), at(20));
        board.note("/live/a", &said(false, 3000), at(40));
        let names = |now| board.list(now).iter().map(|playing| playing.stream.clone()).collect::<Vec<_>>();
        assert_eq!(names(at(41)), ["/live/b", "/live/a"], "the one in trouble first");
        let a = &board.list(at(41))[1];
        assert_eq!((a.requests, a.starvations, a.buffer_ms, a.bitrate_kbps), (3, 0, Some(2000), None));
        // Half a minute later the first half of one is forgotten, then that of the other.
        assert_eq!(board.list(at(75))[1].buffer_ms, Some(3000));
        assert_eq!(names(at(81)), ["/live/a"]);
        assert_eq!(names(at(200)), Vec::<String>::new());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn streams_have_a_bound() {
        let (board, zero) = (Board::default(), Instant::now());
        for n in 0..MAX_STREAMS + 5 {
            board.note(&format!("/live/{n}"), &Said::default(), zero);
        }
        assert_eq!(board.list(zero).len(), MAX_STREAMS);
        assert_eq!((board.metrics.untold.get(), board.metrics.requests.get()), (5, MAX_STREAMS as u64 + 5));
        board.note("/live/new", &Said::default(), zero + 2 * HALF);
        assert_eq!(board.list(zero + 2 * HALF).len(), 1, "those that are over make room");
    }
}
