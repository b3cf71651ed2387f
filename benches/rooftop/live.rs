//! A broadcast in real time whose every frame's moment is known, and readers of its segments while these grow.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use media::flv::{self, Tag, TagKind};

use crate::clip::Recipe;
use crate::hop::{Arrival, Connection};
use crate::process::Running;

/// The name of the stream.
pub(crate) const STREAM: &str = "bench";

/// Audio is sent so much before the video of the same time: whoever interleaves by time holds no frame back for it.
const AUDIO_LEAD_MS: u32 = 60;

/// What is left out at the beginning, while players and caches find one another.
const WARM_UP_SEGMENTS: usize = 2;

/// For anything that should take a second or two.
const PATIENCE: Duration = Duration::from_secs(15);

/// The tags of a clip in the order in which they are sent.
pub(crate) fn read_tags(clip: &Path) -> anyhow::Result<Vec<Tag>> {
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
pub(crate) struct Broadcast {
    ffmpeg: Running,
    feeder: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Broadcast {
    /// The receiver gives the moment at which each video frame was handed over.
    pub(crate) fn start(url: &str, tags: Vec<Tag>) -> anyhow::Result<(Broadcast, mpsc::Receiver<Instant>)> {
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

    pub(crate) fn end(self) -> anyhow::Result<()> {
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

/// What a reader got of each segment, by its number.
pub(crate) type Arrivals = BTreeMap<u64, Arrival>;

/// Where the segments of a rendition are, and the number of the next.
#[derive(Debug, Clone)]
pub(crate) struct Segments {
    folder: String,
    next: u64,
}

/// Waits until a rendition can be had.
pub(crate) async fn first_segment(server: &mut Connection, rendition: &str) -> anyhow::Result<Segments> {
    let playlist = format!("/live/{STREAM}/{rendition}.m3u8");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = server.get(&playlist, None).await? {
            let text = String::from_utf8_lossy(&arrival.body);
            let media = text.lines().rfind(|line| line.ends_with(".m4s"));
            let parts = media.and_then(|path| {
                let (folder, file) = path.rsplit_once('/')?;
                Some((folder, file.strip_suffix(".m4s")?.parse::<u64>().ok()?))
            });
            if let Some((folder, number)) = parts {
                // The one after it is growing.
                return Ok(Segments { folder: format!("/live/{STREAM}/{folder}"), next: number + 2 });
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
pub(crate) async fn follow(connection: Connection, first: Segments) -> anyhow::Result<Arrivals> {
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
pub(crate) struct Part {
    /// Indices of its frames in the broadcast.
    pub(crate) frames: std::ops::RangeInclusive<usize>,
    /// When its last byte was there, for each reader.
    pub(crate) arrived: Vec<Instant>,
}

/// All parts of the segments that each of the readers, named by `hops`, has read. The bytes must be the same everywhere.
pub(crate) fn parts(arrivals: &[Arrivals], hops: &[&str]) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let first = arrivals.first().context("no reader")?;
    for (number, at_first) in first.iter().skip(WARM_UP_SEGMENTS) {
        let at_hops: Vec<&Arrival> = arrivals.iter().filter_map(|hop| hop.get(number)).collect();
        if at_hops.len() < arrivals.len() {
            continue;
        }
        for (hop, arrival) in hops.iter().zip(&at_hops) {
            ensure!(arrival.body == at_first.body, "segment {number} at the {hop} differs");
        }
        for chunk in chunks(&at_first.body).with_context(|| format!("segment {number} is not CMAF"))? {
            let arrived =
                at_hops.iter().map(|arrival| arrival.time_of(chunk.end).context("a part that never came"));
            let first = usize::try_from((chunk.decode_time - FIRST_TICK) / FRAME_TICKS)?;
            let frames = first..=first + chunk.frames.max(1) - 1;
            parts.push(Part { frames, arrived: arrived.collect::<anyhow::Result<_>>()? });
        }
    }
    ensure!(!parts.is_empty(), "no segment was read by all readers");
    Ok(parts)
}

/// Where a broadcast begins, and how long a frame lasts.
const FIRST_TICK: i64 = origin::timeline::FIRST_TICK;
const FRAME_TICKS: i64 = 90_000 / Recipe::FPS as i64;

/// One part: where it ends in its segment, and its frames.
struct Chunk {
    end: usize,
    decode_time: i64,
    frames: usize,
}

/// The parts of a segment: its CMAF chunks, but that the keyframe which begins it, a chunk of its own, is of the first part.
fn chunks(segment: &[u8]) -> Option<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut decode_time, mut frames) = (0, 0_usize);
    for Boxed { kind, content, end } in boxes(segment)? {
        if kind == *b"moof" {
            let traf = find(content, b"traf")?;
            // Version 1, as our own packager writes it.
            decode_time = i64::from_be_bytes(find(traf, b"tfdt")?.get(4..12)?.try_into().ok()?);
            frames = u32::from_be_bytes(find(traf, b"trun")?.get(4..8)?.try_into().ok()?) as usize;
        } else if kind == *b"mdat" {
            match &mut chunks[..] {
                [lead @ Chunk { frames: 1, .. }] => (lead.end, lead.frames) = (end, 1 + frames),
                _ => chunks.push(Chunk { end, decode_time, frames }),
            }
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
