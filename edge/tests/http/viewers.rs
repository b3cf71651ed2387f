//! Two thousand viewers with a connection each ask for one name that nobody has asked for before, while the upstream works,
//! is late, silent, broken or unwilling. However many they are, it is asked once, or as often as slowness and failure allow,
//! and every one of them is told the same.
//!
//! How long they wait for bytes that are there is printed, not judged: that belongs to the benches.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use edge::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;

use crate::kit::{Asked, Chunks, Tier, Upstream, patient, until, within};

const VIEWERS: usize = 2_000;

/// Both ends of each connection are in this process, and other tests have theirs.
const DESCRIPTORS: u64 = 2 * VIEWERS as u64 + 1_000;

const PATH: &str = "/live/s/1/v/1.m4s";

const TAGGED: [(&str, &str); 3] =
    [("cache-control", "max-age=600"), ("etag", "\"v1\""), ("content-length", "50000")];

/// Nothing by which a later answer could be known to be the same.
const UNTAGGED: [(&str, &str); 2] = [("cache-control", "max-age=600"), ("content-length", "50000")];

/// So late that only those who asked for it by their class's times notice.
const LATE: Duration = Duration::from_millis(500);

fn content() -> Vec<u8> {
    (0..50_000_u32).map(|index| (index % 251) as u8).collect()
}

/// One of these tests at a time: together they would need more descriptors than a process usually has. `None`: it has
/// too few for one.
async fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let limit: u64 = line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX);
    if limit < DESCRIPTORS {
        let why = format!("{VIEWERS} viewers need {DESCRIPTORS} descriptors; `ulimit -n` says {limit}");
        assert!(std::env::var_os("ROOFTOP_STRICT").is_none_or(|strict| strict != "1"), "{why}");
        println!("skipped: {why}");
        return None;
    }
    Some(TURN.lock().await)
}

/// What a viewer got.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    /// With all of its body.
    Whole(u16, Vec<u8>),
    /// Its body did not end as its header said.
    Cut(u16),
    Nothing,
}

struct Viewer(TcpStream);

/// Viewers that have asked.
struct Herd(JoinSet<Seen>);

struct Seen {
    /// When the first byte of the answer came.
    begun: Option<Instant>,
    /// When it was over.
    ended: Instant,
    answer: Answer,
}

impl Viewer {
    async fn connect(tier: &Tier) -> Viewer {
        let addr: SocketAddr = tier.url.strip_prefix("http://").unwrap().parse().unwrap();
        Viewer(TcpStream::connect(addr).await.unwrap())
    }

    async fn ask(&mut self) {
        let request = format!("GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    async fn answer(mut self) -> Seen {
        let mut bytes = Vec::new();
        // An answer that is cut may end in a reset.
        let begun = matches!(self.0.read_buf(&mut bytes).await, Ok(1..)).then(Instant::now);
        let _ = self.0.read_to_end(&mut bytes).await;
        let ended = Instant::now();
        Seen { begun, ended, answer: Answer::parse(&bytes).unwrap_or(Answer::Nothing) }
    }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Answer> {
        let head_len = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&bytes[..head_len]).ok()?.to_ascii_lowercase();
        let status = head.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok()?;
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let body = &bytes[head_len..];
        let whole = match header("content-length: ") {
            Some(length) => Some(body.to_vec()).filter(|body| body.len().to_string() == length),
            None if header("transfer-encoding: chunked").is_some() => dechunk(body),
            None => Some(body.to_vec()),
        };
        Some(whole.map_or(Answer::Cut(status), |body| Answer::Whole(status, body)))
    }
}

/// A body in chunks (RFC 9112 section 7.1), if its end is there.
fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_len = bytes.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line_len]).ok()?, 16).ok()?;
        let chunk = bytes.get(line_len + 2..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk.get(..size)?);
        bytes = chunk.get(size + 2..)?;
    }
}

impl Herd {
    /// `count` viewers connect, then ask.
    async fn ask(tier: &Tier, count: usize) -> Herd {
        let mut viewers = Vec::new();
        for _ in 0..count {
            viewers.push(Viewer::connect(tier).await);
        }
        let mut herd = JoinSet::new();
        for mut viewer in viewers {
            herd.spawn(async move {
                viewer.ask().await;
                viewer.answer().await
            });
        }
        Herd(herd)
    }

    /// What all of them got. Prints how long after `there`, when the bytes were there, it began and ended for them.
    async fn answers(self, what: &str, there: Instant) -> BTreeMap<Answer, usize> {
        let (mut answers, mut begun, mut ended) = (BTreeMap::new(), Vec::new(), Vec::new());
        for seen in within("all answers", self.0.join_all()).await {
            begun.extend(seen.begun.map(|begun| begun.saturating_duration_since(there)));
            ended.push(seen.ended.saturating_duration_since(there));
            *answers.entry(seen.answer).or_default() += 1;
        }
        println!("{what}: {} viewers, first byte {}; closed {}", ended.len(), spread(begun), spread(ended));
        answers
    }

    async fn all_get(self, what: &str, there: Instant, expected: Answer, count: usize) {
        let answers = self.answers(what, there).await;
        let kinds: Vec<String> = answers.iter().map(|(answer, count)| format!("{count} {answer}")).collect();
        assert!(answers == BTreeMap::from([(expected, count)]), "{what}: {kinds:?}");
    }
}

fn spread(mut late: Vec<Duration>) -> String {
    late.sort();
    let of = |part: usize| late.get(late.len() * part / 1000).or(late.last()).copied().unwrap_or_default();
    format!("p50 {:.1?}, p99 {:.1?}, max {:.1?}", of(500), of(990), of(1000))
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Whole(status, body) => write!(f, "x {status} with {} bytes", body.len()),
            Answer::Cut(status) => write!(f, "x {status}, cut"),
            Answer::Nothing => write!(f, "x nothing"),
        }
    }
}

fn whole() -> Answer {
    Answer::Whole(200, content())
}

async fn landed(tier: &Tier) {
    until("the flight's end", || tier.metric("edge_inflight_names{tier=\"edge\"}") == 0).await;
    assert_eq!(tier.metric("edge_waiters{tier=\"edge\"}"), 0);
    assert_eq!(tier.metric("edge_inflight_bytes{tier=\"edge\"}"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_works_is_asked_once() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    tier.until_waiting(VIEWERS).await;
    let asked = upstream.asked().await;
    let there = Instant::now();
    asked.answer(200, &TAGGED, &content());
    herd.all_get("at once", there, whole(), VIEWERS).await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 1);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"miss\"}"), 1);
    assert_eq!(tier.metric("edge_requests_total{tier=\"edge\",result=\"coalesced\"}"), VIEWERS as i64 - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_one_is_asked_twice_whoever_waits() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], Class { blocking_timeout: LATE, ..patient() }).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    let (first, second) = (upstream.asked().await, upstream.asked().await);
    tier.until_waiting(VIEWERS).await;
    let there = Instant::now();
    first.answer(200, &TAGGED, &content());
    herd.all_get("late", there, whole(), VIEWERS).await;
    second.gone().await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 2, "max_fetches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_silent_at_first_is_asked_again() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], Class { blocking_timeout: LATE, ..patient() }).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    let (first, second) = (upstream.asked().await, upstream.asked().await);
    tier.until_waiting(VIEWERS).await;
    let there = Instant::now();
    second.answer(200, &TAGGED, &content());
    herd.all_get("silent at first", there, whole(), VIEWERS).await;
    first.gone().await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stays_silent_is_given_up_for_all() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    // They come one after the other: the last of them must still find the flight.
    let class = Class { blocking_timeout: LATE, give_up: 6 * LATE, ..patient() };
    let tier = Tier::over(&[&upstream], class).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    let (first, second) = (upstream.asked().await, upstream.asked().await);
    let answers = herd.answers("silent for ever", Instant::now()).await;
    let statuses: Vec<_> = answers.keys().map(|answer| matches!(answer, Answer::Whole(503, _))).collect();
    assert_eq!(statuses, [true], "one clear status");
    first.gone().await;
    second.gone().await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 2, "max_fetches");
}

/// A flight whose first body has brought one half to a first viewer; the rest of the herd follows.
async fn halfway(upstream: &mut Upstream, tier: &Tier, headers: &[(&str, &str)]) -> (Herd, Chunks) {
    let mut first = Viewer::connect(tier).await;
    first.ask().await;
    let chunks = upstream.asked().await.begin(200, headers);
    chunks.send(&content()[..25_000]);
    let mut herd = Herd::ask(tier, VIEWERS - 1).await;
    herd.0.spawn(first.answer());
    (herd, chunks)
}

fn answer_the_rest(asked: Asked) {
    assert_eq!(asked.headers["range"], "bytes=25000-");
    let headers = [
        ("cache-control", "max-age=600"),
        ("etag", "\"v1\""),
        ("content-range", "bytes 25000-49999/50000"),
        ("content-length", "25000"),
    ];
    asked.answer(206, &headers, &content()[25_000..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_falls_silent_goes_on_elsewhere() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], Class { blocking_timeout: 4 * LATE, ..patient() }).await;
    let (herd, silent) = halfway(&mut upstream, &tier, &TAGGED).await;
    let asked = upstream.asked().await;
    let there = Instant::now();
    answer_the_rest(asked);
    herd.all_get("silent in mid-body", there, whole(), VIEWERS).await;
    silent.gone().await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_cut_goes_on_elsewhere() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let (herd, chunks) = halfway(&mut upstream, &tier, &TAGGED).await;
    chunks.cut();
    let asked = upstream.asked().await;
    let there = Instant::now();
    answer_the_rest(asked);
    herd.all_get("cut in mid-body", there, whole(), VIEWERS).await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_always_cut_are_cut_for_all_and_never_short() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    tier.until_waiting(VIEWERS).await;
    let chunks = upstream.asked().await.begin(200, &UNTAGGED);
    chunks.send(&content()[..25_000]);
    let there = Instant::now();
    chunks.cut();
    let mut herd = std::pin::pin!(herd.answers("always cut", there));
    let mut asked = 1;
    let answers = loop {
        // Whether it is asked again for what it cannot go on with is its own affair; how often is not.
        tokio::select! {
            biased;
            answers = &mut herd => break answers,
            again = upstream.asked() => {
                asked += 1;
                let chunks = again.begin(200, &UNTAGGED);
                chunks.send(&content()[..25_000]);
                chunks.cut();
            }
        }
    };
    for answer in answers.keys() {
        // Whoever is woken after the break is told at once.
        assert!(matches!(answer, Answer::Cut(200) | Answer::Whole(502, _)), "{answer}");
    }
    assert_eq!(answers.values().sum::<usize>(), VIEWERS);
    landed(&tier).await;
    assert!(asked <= 3, "{asked} fetches: more than max_fetches and a retry");
    assert_eq!(upstream.requests(), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_likes_are_told_to_all() {
    let Some(_turn) = turn().await else { return };
    for (status, fetches, expected) in [(500, 2, 502), (404, 1, 404)] {
        let mut upstream = Upstream::start("a").await;
        let tier = Tier::over(&[&upstream], patient()).await;
        let herd = Herd::ask(&tier, VIEWERS).await;
        tier.until_waiting(VIEWERS).await;
        let mut there = Instant::now();
        for _ in 0..fetches {
            let asked = upstream.asked().await;
            there = Instant::now();
            asked.answer(status, &[], b"no");
        }
        let answers = herd.answers(&status.to_string(), there).await;
        let got: Vec<_> = answers
            .iter()
            .map(|(answer, count)| (matches!(answer, Answer::Whole(got, _) if *got == expected), *count))
            .collect();
        assert_eq!(got, [(true, VIEWERS)], "{status}");
        landed(&tier).await;
        assert_eq!(upstream.requests(), fetches, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_to_be_kept_is_shared_by_those_who_waited() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let herd = Herd::ask(&tier, VIEWERS).await;
    tier.until_waiting(VIEWERS).await;
    let asked = upstream.asked().await;
    let there = Instant::now();
    asked.answer(200, &[("cache-control", "no-store")], &content());
    herd.all_get("no-store", there, whole(), VIEWERS).await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_them_leaves() {
    let Some(_turn) = turn().await else { return };
    let mut upstream = Upstream::start("a").await;
    let tier = Tier::over(&[&upstream], patient()).await;
    let mut first = Viewer::connect(&tier).await;
    first.ask().await;
    let asked = upstream.asked().await;
    let herd = Herd::ask(&tier, VIEWERS - 1).await;
    tier.until_waiting(VIEWERS).await;
    drop(first);
    tier.until_waiting(VIEWERS - 1).await;
    let there = Instant::now();
    asked.answer(200, &TAGGED, &content());
    herd.all_get("without the first", there, whole(), VIEWERS - 1).await;
    landed(&tier).await;
    assert_eq!(upstream.requests(), 1);
}
