//! What packaging alone costs an origin: many broadcasts whose video is passed through and whose audio is copied, cut into parts
//! and segments and listed; nothing is decoded. Beside ffmpeg's muxer of low-latency DASH, a process for each.
//!
//! The origin on one CPU; on the other a POP that relays to it, and the broadcasters.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::clip::BROADCAST;
use crate::node::{Node, pinned};
use crate::process::{Confined, Running, cpu_seconds, memory_bytes, two_cpus};
use crate::publishers::{Clip, Ending, Publishers};
use crate::report::{Better, Report};
use crate::{Folders, ingest};

const STREAMS: usize = 100;

/// Of ffmpeg: as many as have room in the memory of a small machine; they do not know of one another.
const PEERS: usize = 20;

/// Their clips begin within this: a group of pictures, so that keyframes do not come together.
const SPREAD: Duration = Duration::from_secs(2);

/// Until all have begun, for which two keyframes are needed, and windows have something in them.
const WARM_UP: Duration = Duration::from_secs(10);

/// What is measured of ffmpeg; of Rooftop it is [`ingest::MEASURED`].
const MEASURED: Duration = Duration::from_secs(15);

const PEER: &str = "ffmpeg -c copy to chunked DASH";

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let path = BROADCAST.make(&folders.kept)?;
    let clip = Clip::read(&path, BROADCAST.seconds)?;
    let (server_cpu, load_cpu) = two_cpus();
    let _confined = Confined::to(load_cpu)?;
    let (rate, frames) = (clip.kbit_per_s(), clip.frames_per_s());
    report.note(&format!("each stream: {rate:.0} kbit/s in {frames:.0} frames a second"));
    let (cpu_ms, kib) = rooftop(&folders.run.join("packaging"), &clip, runtime, report)?;
    let (their_cpu_ms, their_kib) = peer(&folders.memory.join("packaging"), &path, server_cpu)?;
    report.add(
        "packaging/cpu",
        "CPU ms per stream-second",
        Better::Lower,
        cpu_ms,
        Some((PEER, their_cpu_ms)),
    );
    report.add("packaging/memory", "KiB per stream", Better::Lower, kib, Some((PEER, their_kib)));
    Ok(())
}

/// CPU time in milliseconds for a second of one stream, and KiB for each stream.
fn rooftop(
    folder: &Path,
    clip: &Clip,
    runtime: &tokio::runtime::Handle,
    report: &Report,
) -> anyhow::Result<(f64, f64)> {
    let (server_cpu, load_cpu) = two_cpus();
    let nowhere = "127.0.0.1:0";
    let origin = Node::start(&folder.join("origin"), &config(folder, "origin", nowhere), server_cpu)?;
    let relays_to = origin.addr("origin")?.to_string();
    let pop = Node::start(&folder.join("pop"), &config(folder, "ingest", &relays_to), load_cpu)?;
    let keys = (0..STREAMS).map(|index| pop.stream_key(&format!("bench{index}")));
    let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
    let before = memory_bytes(origin.pid());
    let mut load = Publishers::connect(clip, pop.addr("rtmp")?, None, "live", &keys, Ending::AsItIs, SPREAD)?;
    load.run(WARM_UP)?;
    let metric = |name| runtime.block_on(ingest::metric(origin.addr("admin")?, name));
    let (segments, parts) = (metric("origin_segments_total")?, metric("origin_parts_total")?);
    let began = Instant::now();
    let cpu_ms = ingest::cpu_ms(&mut load, clip, origin.pid())?;
    let stream_seconds = STREAMS as f64 * began.elapsed().as_secs_f64();
    let (segments, parts) =
        (metric("origin_segments_total")? - segments, metric("origin_parts_total")? - parts);
    let kib = memory_bytes(origin.pid()).saturating_sub(before) as f64 / 1024.0 / STREAMS as f64;
    report.note(&format!(
        "each stream-second: {:.2} segments and {:.2} parts of video and audio together",
        segments / stream_seconds,
        parts / stream_seconds
    ));
    // Segments of two seconds, of two renditions.
    ensure!(segments > 0.9 * stream_seconds, "{segments} segments in {stream_seconds:.0} stream-seconds");
    for (what, name) in [
        ("streams are no more passed through", "origin_passthrough_ends_total"),
        ("pictures were encoded", "transcode_frames_encoded_total"),
        ("segments are missing", "origin_gaps_total"),
    ] {
        let count = metric(name)?;
        ensure!(count == 0.0, "{count} {what}");
    }
    let streams = metric("origin_streams")?;
    ensure!(streams == STREAMS as f64, "{streams} streams of {STREAMS}");
    load.end()?;
    Ok((cpu_ms, kib))
}

/// The same of ffmpeg, in real time: 200 ms chunks, as many segments listed as Rooftop's window has.
fn peer(folder: &Path, clip: &Path, cpu: Option<usize>) -> anyhow::Result<(f64, f64)> {
    let start = |index: usize| -> anyhow::Result<Running> {
        let folder = folder.join(index.to_string());
        std::fs::create_dir_all(&folder)?;
        let mut command: Command = pinned("ffmpeg", cpu);
        command.args(["-nostdin", "-v", "error", "-re", "-stream_loop", "-1", "-i"]).arg(clip);
        command.args("-c copy -f dash -ldash 1 -streaming 1 -seg_duration 2 -frag_type duration".split(' '));
        command.args("-frag_duration 0.2 -use_template 1 -use_timeline 0 -window_size 15".split(' '));
        command.args("-extra_window_size 15 -utc_timing_url /time".split(' ')).arg(folder.join("live.mpd"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running::start("ffmpeg (packaging)", &mut command)
    };
    let all = (0..PEERS).map(start).collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(WARM_UP);
    let used = || all.iter().map(|one| cpu_seconds(one.pid())).sum::<f64>();
    let (began, before) = (Instant::now(), used());
    std::thread::sleep(MEASURED);
    let cpu_ms = 1e3 * (used() - before) / began.elapsed().as_secs_f64() / PEERS as f64;
    let bytes: u64 = all.iter().map(|one| memory_bytes(one.pid())).sum();
    for index in 0..PEERS {
        let manifest = folder.join(index.to_string()).join("live.mpd");
        ensure!(manifest.is_file(), "ffmpeg has not written {}", manifest.display());
    }
    Ok((cpu_ms, bytes as f64 / 1024.0 / PEERS as f64))
}

fn config(folder: &Path, role: &str, origin: &str) -> String {
    let own = match role {
        "origin" => {
            "[origin]\nlisten = \"127.0.0.1:0\"\nmax_streams = 1000\nmirrored_streams = 0\n\
             [transcode]\npassthrough = \"only\"\n[archive]\nstore = \"none\"\n"
        }
        _ => "[ingest]\nrtmp = \"127.0.0.1:0\"\nrtmps = \"127.0.0.1:0\"\ndrain = \"0s\"\n",
    };
    format!(
        r#"
[node]
name = "{role}"
roles = ["{role}"]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[cluster]
origins = [{{ name = "origin", address = "{origin}" }}]
shields = []
{own}"#,
        folder.join("state").display(),
    )
}
