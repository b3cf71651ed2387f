//! How late a part is at each hop: a broadcast through a whole node, and readers of the growing segments at the origin,
//! the shield, the edge and, as peers, at two nginx in front of the same origin: one that caches, and one that only passes on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use media::flv::{self, Tag, TagKind};
use net::tls;

use crate::Folders;
use crate::clip::{LIVE, Recipe};
use crate::hop::{Arrival, Connection};
use crate::nginx;
use crate::node::Node;
use crate::process::Running;
use crate::report::{Better, Report, quantile};

/// Audio is sent so much before the video of the same time: whoever interleaves by time holds no frame back for it.
const AUDIO_LEAD_MS: u32 = 60;

/// What is left out at the beginning, while players and caches find one another.
const WARM_UP_SEGMENTS: usize = 2;

/// For anything that should take a second or two.
const PATIENCE: Duration = Duration::from_secs(15);

const HOPS: [&str; 5] = ["origin", "shield", "edge", "nginx (cache)", "nginx (pass)"];
const ORIGIN: usize = 0;
const SHIELD: usize = 1;
const EDGE: usize = 2;
const NGINX_CACHE: usize = 3;
const NGINX_PASS: usize = 4;

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let tags = read_tags(&LIVE.make(&folders.kept)?)?;
    let folder = folders.run.join("latency");
    let node = Node::start(&folder, &config(&folder), None)?;
    let files = tls::development_files(&folder.join("state/tls"), "local", &[])?;
    let client_tls = tls::client_config(&files)?;
    let nginx = |mode| {
        let settings = nginx::Settings {
            certificate: &files.certificate,
            key: &files.key,
            upstream: &format!("https://{}", node.addr("origin")?),
            cpu: None,
            mode,
            memory: &folders.memory,
        };
        nginx::start(&folder, &settings)
    };
    let (caching, passing) = (nginx(nginx::Mode::Cache)?, nginx(nginx::Mode::Pass)?);
    let addrs = [
        node.addr("origin")?,
        node.addr("shield")?,
        node.addr("https")?,
        caching.addr(true)?,
        passing.addr(true)?,
    ];

    let url = format!("rtmp://{}/live/{}", node.addr("rtmp")?, node.stream_key("bench")?);
    let (broadcast, sent) = Broadcast::start(&url, tags)?;
    let arrivals = runtime.block_on(async {
        let mut connections = Vec::new();
        for addr in addrs {
            connections.push(Connection::open(addr, &client_tls).await.with_context(|| addr.to_string())?);
        }
        let first = first_segment(&mut connections[EDGE]).await?;
        let readers =
            connections.into_iter().map(|connection| tokio::spawn(follow(connection, first.clone())));
        let mut arrivals = Vec::new();
        for (reader, hop) in readers.collect::<Vec<_>>().into_iter().zip(HOPS) {
            arrivals.push(reader.await?.with_context(|| format!("reader at the {hop}"))?);
        }
        anyhow::Ok(arrivals)
    })?;
    broadcast.end()?;
    let sent: Vec<Instant> = sent.iter().collect();

    let parts = parts(&arrivals)?;
    ensure!(!parts.is_empty(), "no segment was read at all hops");
    report.note(&format!("{} parts of {} segments", parts.len(), arrivals[EDGE].len() - WARM_UP_SEGMENTS));
    let ms = |from: Instant, to: Instant| {
        // Negative where the later hop was a little faster in this instance.
        let late = to.saturating_duration_since(from).as_secs_f64();
        1e3 * (late - from.saturating_duration_since(to).as_secs_f64())
    };
    let between = |from: usize, to: usize| -> Vec<f64> {
        parts.iter().map(|part| ms(part.arrived[from], part.arrived[to])).collect()
    };
    let since_sent = |hop: usize| -> Vec<f64> {
        let of = |part: &Part| Some(ms(*sent.get(part.last_frame)?, part.arrived[hop]));
        parts.iter().filter_map(of).collect()
    };
    let peers = [
        ("", format!("{}; one hop", passing.title), between(ORIGIN, NGINX_PASS)),
        ("/nginx-cache", format!("{}; one hop", caching.title), between(ORIGIN, NGINX_CACHE)),
    ];
    for (name, late) in
        [("origin-to-shield", between(ORIGIN, SHIELD)), ("shield-to-edge", between(SHIELD, EDGE))]
    {
        for (suffix, peer, peer_late) in &peers {
            add(report, &format!("{name}{suffix}"), &late, Some((peer, peer_late)));
        }
    }
    add(report, "last-frame-to-part-at-origin", &since_sent(ORIGIN), None);
    add(report, "last-frame-to-part-at-edge", &since_sent(EDGE), None);
    Ok(())
}

/// The usual and the worst of twenty.
fn add(report: &mut Report, name: &str, late_ms: &[f64], peer: Option<(&str, &[f64])>) {
    for (part, label) in [(0.5, "p50"), (0.95, "p95")] {
        let peer = peer.map(|(name, late_ms)| (name, quantile(late_ms, part)));
        report.add(format!("latency/{name}/{label}"), "ms", Better::Lower, quantile(late_ms, part), peer);
    }
}

fn config(folder: &Path) -> String {
    let local = r#"[{ name = "local", address = "127.0.0.1:0" }]"#;
    format!(
        r#"
[node]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[cluster]
origins = {local}
shields = {local}
[ingest]
rtmp = "127.0.0.1:0"
rtmps = "127.0.0.1:0"
drain = "0s"
[origin]
listen = "127.0.0.1:0"
[shield]
https = "127.0.0.1:0"
drain = "0s"
[edge]
https = "127.0.0.1:0"
drain = "0s"
"#,
        folder.join("state").display()
    )
}

fn read_tags(clip: &Path) -> anyhow::Result<Vec<Tag>> {
    let mut flv = flv::Decoder::new();
    flv.push(&std::fs::read(clip)?);
    let mut tags = Vec::new();
    while let Some(tag) = flv.poll()? {
        tags.push(tag);
    }
    // Stable: configurations stay in front of what they configure.
    tags.sort_by_key(due_ms);
    Ok(tags)
}

/// When a tag is to be sent, in milliseconds from the start.
fn due_ms(tag: &Tag) -> u32 {
    match tag.kind {
        TagKind::Audio => tag.timestamp_ms.saturating_sub(AUDIO_LEAD_MS),
        _ => tag.timestamp_ms,
    }
}

/// ffmpeg as the broadcaster, fed frame by frame in real time.
struct Broadcast {
    ffmpeg: Running,
    feeder: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Broadcast {
    /// The receiver gives the moment at which each video frame was handed over.
    fn start(url: &str, tags: Vec<Tag>) -> anyhow::Result<(Broadcast, mpsc::Receiver<Instant>)> {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-probesize", "5000", "-analyzeduration", "0"]);
        command.args(["-f", "flv", "-i", "pipe:0", "-c", "copy", "-flush_packets", "1"]);
        command.args(["-flvflags", "no_duration_filesize", "-tcp_nodelay", "1", "-f", "flv", url]);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut ffmpeg = Running::start("ffmpeg (broadcast)", &mut command)?;
        let stdin = ffmpeg.child().stdin.take().context("no pipe")?;
        let (moments, sent) = mpsc::channel();
        let feeder = std::thread::spawn(move || feed(stdin, &tags, &moments));
        Ok((Broadcast { ffmpeg, feeder }, sent))
    }

    fn end(self) -> anyhow::Result<()> {
        self.ffmpeg.succeed(Duration::from_secs(30))?;
        self.feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?
    }
}

fn feed(mut stdin: ChildStdin, tags: &[Tag], moments: &mpsc::Sender<Instant>) -> anyhow::Result<()> {
    stdin.write_all(&flv::HEADER)?;
    let began = Instant::now();
    for tag in tags {
        let due = began + Duration::from_millis(due_ms(tag).into());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut bytes = BytesMut::new();
        tag.encode(&mut bytes);
        if tag.kind == TagKind::Video && !tag.is_config() {
            moments.send(Instant::now())?;
        }
        stdin.write_all(&bytes).context("ffmpeg (broadcast) has ended")?;
    }
    Ok(())
}

/// Where the segments of the largest rendition are, and the number of the next.
#[derive(Debug, Clone)]
struct Segments {
    folder: String,
    next: u64,
}

async fn first_segment(edge: &mut Connection) -> anyhow::Result<Segments> {
    let playlist = "/live/bench/360p.m3u8";
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = edge.get(playlist, None).await? {
            let text = String::from_utf8_lossy(&arrival.body);
            let media = text.lines().rfind(|line| line.ends_with(".m4s"));
            let parts = media.and_then(|path| {
                let (folder, file) = path.rsplit_once('/')?;
                Some((folder, file.strip_suffix(".m4s")?.parse::<u64>().ok()?))
            });
            if let Some((folder, number)) = parts {
                // The one after it is growing.
                return Ok(Segments { folder: format!("/live/bench/{folder}"), next: number + 2 });
            }
        }
        if Instant::now() > deadline {
            bail!("no segment in {playlist} after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Reads all segments from `first` to the end of the broadcast. The next is asked for as soon as one begins, so that the
/// request is there before the bytes.
async fn follow(connection: Connection, first: Segments) -> anyhow::Result<BTreeMap<u64, Arrival>> {
    let ask = |number: u64| {
        let (mut connection, path) = (connection.clone(), format!("{}/{number}.m4s", first.folder));
        let (began, has_begun) = tokio::sync::oneshot::channel();
        (tokio::spawn(async move { connection.get(&path, Some(began)).await }), has_begun)
    };
    let mut arrivals = BTreeMap::new();
    let mut number = first.next;
    let (mut request, mut has_begun) = ask(number);
    loop {
        // An error means that there is none: its request says why.
        let more = has_begun.await.is_ok().then(|| ask(number + 1));
        match request.await? {
            Ok(Some(arrival)) => arrivals.insert(number, arrival),
            // What is asked for beyond the end is refused in one way or another.
            Ok(None) | Err(_) if !arrivals.is_empty() => return Ok(arrivals),
            Ok(None) => bail!("there is no segment {number}"),
            Err(error) => return Err(error),
        };
        let Some((next_request, next_has_begun)) = more else {
            return Ok(arrivals);
        };
        (request, has_begun) = (next_request, next_has_begun);
        number += 1;
    }
}

/// One part of one segment.
struct Part {
    /// Index of its last frame in the broadcast.
    last_frame: usize,
    /// When its last byte was there, for each hop.
    arrived: [Instant; HOPS.len()],
}

/// All parts of the segments that were read at every hop. The bytes must be the same everywhere.
fn parts(arrivals: &[BTreeMap<u64, Arrival>]) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (number, at_origin) in arrivals[ORIGIN].iter().skip(WARM_UP_SEGMENTS) {
        let at_hops: Vec<&Arrival> = arrivals.iter().filter_map(|hop| hop.get(number)).collect();
        if at_hops.len() < HOPS.len() {
            continue;
        }
        for (hop, arrival) in HOPS.iter().zip(&at_hops) {
            ensure!(arrival.body == at_origin.body, "segment {number} at the {hop} is not the origin's");
        }
        for chunk in chunks(&at_origin.body).with_context(|| format!("segment {number} is not CMAF"))? {
            let mut arrived = [Instant::now(); HOPS.len()];
            for (time, arrival) in arrived.iter_mut().zip(&at_hops) {
                *time = arrival.time_of(chunk.end).context("a part that never came")?;
            }
            let last_ticks = chunk.decode_time + (chunk.frames - 1) * FRAME_TICKS - FIRST_TICK;
            parts.push(Part { last_frame: usize::try_from(last_ticks / FRAME_TICKS)?, arrived });
        }
    }
    Ok(parts)
}

/// Where a broadcast begins, and how long a frame lasts.
const FIRST_TICK: i64 = origin::timeline::FIRST_TICK;
const FRAME_TICKS: i64 = 90_000 / Recipe::FPS as i64;

/// One CMAF chunk: where it ends in its segment, and its frames.
struct Chunk {
    end: usize,
    decode_time: i64,
    frames: i64,
}

fn chunks(segment: &[u8]) -> Option<Vec<Chunk>> {
    let mut chunks = Vec::new();
    let (mut decode_time, mut frames) = (0, 0);
    for Boxed { kind, content, end } in boxes(segment)? {
        if kind == *b"moof" {
            let traf = find(content, b"traf")?;
            // Version 1, as our own packager writes it.
            decode_time = i64::from_be_bytes(find(traf, b"tfdt")?.get(4..12)?.try_into().ok()?);
            frames = i64::from(u32::from_be_bytes(find(traf, b"trun")?.get(4..8)?.try_into().ok()?));
        } else if kind == *b"mdat" {
            chunks.push(Chunk { end, decode_time, frames });
        }
    }
    Some(chunks)
}

fn find<'a>(bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes)?.into_iter().find(|boxed| boxed.kind == *wanted).map(|boxed| boxed.content)
}

struct Boxed<'a> {
    kind: [u8; 4],
    content: &'a [u8],
    /// Where it ends among its neighbours.
    end: usize,
}

/// The boxes that follow one another.
fn boxes(bytes: &[u8]) -> Option<Vec<Boxed<'_>>> {
    let (mut boxes, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let header = bytes.get(at..at + 8)?;
        let size = u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        let end = at + size.max(8);
        let kind = header[4..].try_into().ok()?;
        boxes.push(Boxed { kind, content: bytes.get(at + 8..end)?, end });
        at = end;
    }
    Some(boxes)
}
