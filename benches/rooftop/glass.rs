//! Glass to glass: a broadcaster whose pictures show the time, a whole node, and players in a real browser that read it.
//!
//! 360p30 by ffmpeg over RTMPS, x264 without delay, of which the default rules make two rungs; the players one after
//! another, each as its makers set it up (`tests/browser/glass.mjs`).

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::Folders;
use crate::crowd;
use crate::node::Node;
use crate::process::Running;
use crate::report::{Better, Report};

const WIDTH: usize = 640;
const HEIGHT: usize = 360;
const FPS: u32 = 30;

/// Cells of the clock: two rows of twenty, 32 pixels wide and high, over the lowest lines.
const COLUMNS: usize = 20;
const CELL: usize = 32;
const CLOCK_TOP: usize = HEIGHT - 2 * CELL;

/// What the encoder makes of full black and white is told apart easily.
const BLACK: u8 = 16;
const WHITE: u8 = 235;

const SAMPLE_RATE: u32 = 48_000;

/// Audio is written so much before the pictures of the same time, so that none waits for it in the broadcaster.
const AUDIO_LEAD: Duration = Duration::from_millis(100);

/// Samples of a write: an AAC frame.
const AUDIO_BLOCK: u32 = 1024;

/// The players, and what p95 is to be at most, in milliseconds.
const PLAYERS: [(&str, f64); 5] = [
    ("dash-low", 1000.0),
    ("hls-low", 1800.0),
    ("hls-plain", 4000.0),
    ("shaka-dash-low", 1000.0),
    ("shaka-hls-low", 1800.0),
];

/// For each player, once it has settled.
const SECONDS: u64 = 30;

/// Of the browser's start, the player's and what is before measuring.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a player saw.
#[derive(Debug, Deserialize)]
struct Seen {
    start_ms: f64,
    glass: Spread,
    player: Spread,
    frames: u64,
    unreadable: u64,
    stalls: u64,
    sizes: Vec<String>,
    problems: Vec<String>,
}

/// Milliseconds; `None` of nothing.
#[derive(Debug, Deserialize)]
struct Spread {
    p50: Option<f64>,
    p95: Option<f64>,
    max: Option<f64>,
}

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let wanted: Vec<_> =
        PLAYERS.into_iter().filter(|(name, _)| report.wants(&format!("glass/{name}"))).collect();
    let folder = folders.run.join("glass");
    let node = Node::start(&folder, &config(&folder), None)?;
    let url = format!("rtmps://{}/live/{}", node.addr("rtmps")?, node.stream_key("glass")?);
    let broadcast = Broadcast::start(&url, &folder)?;
    let http = node.addr("http")?;
    runtime.block_on(async {
        let deadline = Instant::now() + PATIENCE;
        while crowd::get(http, "/live/glass/index.m3u8").await?.status != 200 {
            ensure!(Instant::now() < deadline, "the stream did not begin");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    })?;
    let mut rows = Vec::new();
    for (player, aim_ms) in wanted {
        let seen = look(player, &format!("http://{http}/live/glass/"), &folder)?;
        let shown = |figure: Option<f64>| figure.map_or_else(|| "-".into(), |ms| format!("{ms:.0}"));
        let (Some(p50), Some(p95)) = (seen.glass.p50, seen.glass.p95) else {
            anyhow::bail!("{player} has shown nothing that can be read: {seen:?}");
        };
        ensure!(seen.unreadable * 20 < seen.frames, "{player}: the clock is hard to read: {seen:?}");
        for (name, unit, figure) in [("p50", "ms", p50), ("p95", "ms", p95), ("start", "ms", seen.start_ms)] {
            report.record(format!("glass/{player}/{name}"), unit, Better::Lower, figure, &[]);
        }
        report.note(&format!(
            "{player}: {} frames of {}, {} unreadable; by the player's own reckoning p50 {} ms; problems: {:?}",
            seen.frames,
            seen.sizes.join(" and "),
            seen.unreadable,
            shown(seen.player.p50),
            seen.problems
        ));
        rows.push(vec![
            player.to_owned(),
            format!("{:.0}", seen.start_ms),
            format!("{p50:.0}"),
            format!("{p95:.0}"),
            shown(seen.glass.max),
            seen.stalls.to_string(),
            format!("{aim_ms:.0}"),
        ]);
    }
    broadcast.end()?;
    let head = ["", "start ms", "p50 ms", "p95 ms", "max ms", "stalls", "p95 aimed at"].map(String::from);
    report.table("glass: from drawing a picture to showing it", head.to_vec(), rows);
    Ok(())
}

/// Lets one player play.
fn look(player: &str, url: &str, folder: &Path) -> anyhow::Result<Seen> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/glass.mjs");
    let log = folder.join(format!("{player}.log"));
    let mut command = Command::new("node");
    command.args([script, "--url", url, "--player", player, "--seconds", &SECONDS.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
    let mut running = Running::start("node", &mut command)?;
    let mut said = String::new();
    let mut stdout = running.child().stdout.take().context("no pipe")?;
    // It gives up by itself.
    stdout.read_to_string(&mut said)?;
    running.succeed(PATIENCE).with_context(|| format!("{player}, see {}", log.display()))?;
    serde_json::from_str(&said).with_context(|| format!("{player} said {said:?}"))
}

/// ffmpeg as the broadcaster: pictures come through its standard input, sound from a socket, both when it is time.
struct Broadcast {
    ffmpeg: Running,
    over: Arc<AtomicBool>,
    pictures: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Broadcast {
    fn start(url: &str, folder: &Path) -> anyhow::Result<Broadcast> {
        let sound = TcpListener::bind("127.0.0.1:0")?;
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-probesize", "32", "-analyzeduration", "0", "-fflags", "nobuffer"]);
        command.args([
            "-f",
            "rawvideo",
            "-pixel_format",
            "yuv420p",
            "-video_size",
            &format!("{WIDTH}x{HEIGHT}"),
        ]);
        command.args(["-framerate", &FPS.to_string(), "-i", "pipe:0"]);
        command.args(["-probesize", "32", "-analyzeduration", "0", "-f", "s16le"]);
        command.args(["-ar", &SAMPLE_RATE.to_string(), "-ac", "1", "-i"]);
        command.arg(format!("tcp://{}", sound.local_addr()?)).args(["-map", "0:v", "-map", "1:a"]);
        command
            .args("-c:v libx264 -preset superfast -tune zerolatency -profile:v high -threads 1".split(' '));
        command.args("-g 60 -keyint_min 60 -sc_threshold 0 -b:v 800k -maxrate 800k -bufsize 800k".split(' '));
        command.args("-c:a aac -b:a 96k -flush_packets 1 -flvflags no_duration_filesize".split(' '));
        command.args(["-tcp_nodelay", "1", "-f", "flv", url]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(folder.join("ffmpeg.log"))?);
        let mut ffmpeg = Running::start("ffmpeg (broadcast)", &mut command)?;
        let stdin = ffmpeg.child().stdin.take().context("no pipe")?;
        let over = Arc::new(AtomicBool::new(false));
        let began = Instant::now() + AUDIO_LEAD;
        let (ends, is_over) = (over.clone(), over.clone());
        let pictures = std::thread::spawn(move || draw(stdin, began, &ends));
        // Ends with ffmpeg, which may never ask for it.
        std::thread::spawn(move || sing(&sound, began, &is_over));
        Ok(Broadcast { ffmpeg, over, pictures })
    }

    fn end(self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.pictures
            .join()
            .map_err(|_| anyhow::anyhow!("the painter panicked"))?
            .context("ffmpeg has ended")?;
        self.ffmpeg.succeed(Duration::from_secs(30))
    }
}

/// Writes each picture when its time has come.
fn draw(mut ffmpeg: ChildStdin, began: Instant, over: &AtomicBool) -> std::io::Result<()> {
    let mut picture = vec![128; WIDTH * HEIGHT * 3 / 2];
    for number in 0_u32.. {
        let due = began + Duration::from_secs(1) * number / FPS;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if over.load(Ordering::Relaxed) {
            break;
        }
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u32);
        paint(&mut picture, number as usize);
        burn_in(&mut picture, unix_ms);
        ffmpeg.write_all(&picture)?;
    }
    Ok(())
}

/// Waves that move in three directions, and a shade that comes and goes: something to code everywhere.
fn paint(picture: &mut [u8], number: usize) {
    let wave = |at: usize| {
        let up = at & 127;
        (if at & 128 == 0 { up } else { 127 - up }) as u8
    };
    for (y, line) in picture.chunks_exact_mut(WIDTH).take(CLOCK_TOP).enumerate() {
        for (x, luma) in line.iter_mut().enumerate() {
            *luma = 40 + wave(x + 3 * number) / 2 + wave(2 * y + number) / 2 + wave(x + y + 2 * number) / 2;
        }
    }
    for (at, chroma) in picture[WIDTH * HEIGHT..].iter_mut().enumerate() {
        *chroma = 96 + wave(at % (WIDTH / 2) + number) / 2;
    }
}

/// The clock as `tests/browser/glass.mjs` reads it.
fn burn_in(picture: &mut [u8], unix_ms: u32) {
    let bytes = unix_ms.to_be_bytes();
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let bits = u64::from(unix_ms) << 8 | u64::from(sum);
    let grey = WIDTH * HEIGHT..picture.len();
    for (y, line) in picture.chunks_exact_mut(WIDTH).take(HEIGHT).enumerate().skip(CLOCK_TOP) {
        for (column, cell) in line.chunks_exact_mut(CELL).enumerate() {
            let bit = (y - CLOCK_TOP) / CELL * COLUMNS + column;
            cell.fill(if bits >> (2 * COLUMNS - 1 - bit) & 1 == 1 { WHITE } else { BLACK });
        }
    }
    // No colour below it: black and white are told apart by any channel.
    for plane in picture[grey].chunks_exact_mut(WIDTH * HEIGHT / 4) {
        plane[CLOCK_TOP / 2 * (WIDTH / 2)..].fill(128);
    }
}

/// Writes a tone to whom asks for it first.
fn sing(sound: &TcpListener, began: Instant, over: &AtomicBool) -> std::io::Result<()> {
    let (mut ffmpeg, _) = sound.accept()?;
    let mut next = 0_u32;
    while !over.load(Ordering::Relaxed) {
        let due = began + Duration::from_secs(1) * next / SAMPLE_RATE - AUDIO_LEAD;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let block = (next..next + AUDIO_BLOCK).flat_map(|at| {
            let phase = f64::from(at) / f64::from(SAMPLE_RATE) * 440.0 * std::f64::consts::TAU;
            ((phase.sin() * 3000.0) as i16).to_le_bytes()
        });
        ffmpeg.write_all(&block.collect::<Vec<_>>())?;
        next += AUDIO_BLOCK;
    }
    Ok(())
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
rtmps = "127.0.0.1:0"
drain = "0s"
[origin]
listen = "127.0.0.1:0"
dash_latency = "800ms"
[shield]
https = "127.0.0.1:0"
drain = "0s"
[edge]
https = "127.0.0.1:0"
http = "127.0.0.1:0"
drain = "0s"
"#,
        folder.join("state").display()
    )
}
