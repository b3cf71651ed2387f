//! What a POP spends on broadcasts: RTMP or RTMPS in, the relay to an origin out, beside nginx with its RTMP module.
//!
//! Server on one CPU, on the other the broadcasters and what takes the relays: a sink that acknowledges as an origin does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use net::tls;
use rustls::ClientConfig;

use crate::clip::BROADCAST;
use crate::node::Node;
use crate::process::{Confined, cpu_seconds, memory_bytes, two_cpus};
use crate::publishers::{Clip, Ending, Publishers};
use crate::report::{Better, Report};
use crate::sink::{Heard, Sink};
use crate::{Folders, idle, nginx_rtmp};

/// Broadcasters at once.
const STREAMS: [usize; 2] = [100, 300];

/// Their clips begin within this: a group of pictures, so that keyframes do not come together.
const SPREAD: Duration = Duration::from_secs(2);

/// Until buffers are as full as they get: the POP keeps some published segments and what is not acknowledged.
const WARM_UP: Duration = Duration::from_secs(8);

/// What is measured.
const MEASURED: Duration = Duration::from_secs(15);

/// What is on its way when the last frame was written.
const SETTLE: Duration = Duration::from_millis(300);

/// For the end of all relays.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stream keys are signed with this; it is of no use to anyone else.
const SECRET: &str = "a secret of the benches, which nobody keeps";

/// Stream keys that all nodes of this scenario accept.
struct Keys {
    /// What they are signed with.
    file: PathBuf,
    made: Vec<String>,
}

/// How a server was used.
struct Figures {
    /// Of the server, for a second of one stream.
    cpu_ms: f64,
    /// What the server grew by, for each stream.
    kib: f64,
    /// The same without what the replay buffer says it holds.
    kib_besides: f64,
    late_ms: Option<(f64, f64)>,
}

pub(crate) fn run(
    folders: &Folders,
    runtime: &tokio::runtime::Handle,
    report: &mut Report,
) -> anyhow::Result<()> {
    let clip = Clip::read(&BROADCAST.make(&folders.kept)?, BROADCAST.seconds)?;
    let (server_cpu, load_cpu) = two_cpus();
    let _confined = Confined::to(load_cpu)?;
    let (rate, frames) = (clip.kbit_per_s(), clip.frames_per_s());
    report.note(&format!("each stream: {rate:.0} kbit/s in {frames:.0} frames a second"));
    let key_file = folders.run.join("ingest-token.key");
    std::fs::write(&key_file, SECRET)?;
    let mut stream_keys = Keys { file: key_file, made: Vec::new() };
    let mut rows = Vec::new();
    for streams in STREAMS {
        let folder = |name: &str| folders.run.join(format!("ingest-{name}-{streams}"));
        let wants = |report: &Report, name: &str| report.wants(&format!("ingest/{name}/{streams}"));
        let mut peers = Vec::new();
        if wants(report, "rtmp") {
            for (name, hands_on) in [("nginx-rtmp, push", true), ("nginx-rtmp, takes only", false)] {
                let folder = folder(if hands_on { "push" } else { "take" });
                let next = match hands_on {
                    true => Some(nginx_rtmp::start(&folder, "nginx-rtmp-next", None, load_cpu)?),
                    false => None,
                };
                let next_addr = next.as_ref().map(|next| next.addr);
                let server = nginx_rtmp::start(&folder, "nginx-rtmp", next_addr, server_cpu)?;
                let keys: Vec<String> = (0..streams).map(|index| format!("bench{index}")).collect();
                let app = nginx_rtmp::APP;
                let before = memory_bytes(server.pid());
                let mut load =
                    Publishers::connect(&clip, server.addr, None, app, &keys, Ending::Moment, SPREAD)?;
                load.run(WARM_UP)?;
                let grown = memory_bytes(server.pid()).saturating_sub(before) as f64;
                let cpu_ms = cpu_ms(&mut load, &clip, server.pid())?;
                load.end()?;
                let kib = grown / streams as f64 / 1024.0;
                let figures = Figures { cpu_ms, kib, kib_besides: kib, late_ms: None };
                rows.push(row(name, streams, &figures));
                peers.push((name, figures));
            }
        }
        for name in ["rtmp", "rtmps"] {
            if !wants(report, name) {
                continue;
            }
            let figures =
                rooftop(&folder(name), name == "rtmps", streams, &clip, &mut stream_keys, runtime, report)
                    .with_context(|| format!("{name}, {streams} streams"))?;
            let beside: &[(&str, Figures)] = if name == "rtmp" { &peers } else { &[] };
            let against = |of: fn(&Figures) -> f64| -> Vec<(&str, f64)> {
                beside.iter().map(|(name, figures)| (*name, of(figures))).collect()
            };
            let mut record = |what: &str, unit, figure, peers: &[(&str, f64)]| {
                report.record(format!("ingest/{name}/{streams}/{what}"), unit, Better::Lower, figure, peers);
            };
            record("cpu", "CPU ms per stream-second", figures.cpu_ms, &against(|figures| figures.cpu_ms));
            record("memory", "KiB per stream", figures.kib, &[]);
            let memory = against(|figures| figures.kib_besides);
            record("memory-besides-replay", "KiB per stream", figures.kib_besides, &memory);
            if let Some((p50, p99)) = figures.late_ms {
                record("added-latency/p50", "ms", p50, &[]);
                record("added-latency/p99", "ms", p99, &[]);
            }
            for (peer, theirs) in beside {
                let ratio = figures.cpu_ms / theirs.cpu_ms;
                report.note(&format!("{streams} streams: CPU of Rooftop ({name}) / {peer}: {ratio:.2}"));
            }
            rows.push(row(&format!("Rooftop, {name} in, mTLS relay out"), streams, &figures));
        }
    }
    let head = ["", "streams", "CPU ms per stream-s", "KiB per stream", "besides replay", "p50 ms", "p99 ms"];
    let title = "ingest: the server's CPU time and memory, and how late frames are at the relay's far end";
    report.table(title, head.map(String::from).to_vec(), rows);
    Ok(())
}

fn row(name: &str, streams: usize, figures: &Figures) -> Vec<String> {
    let Figures { cpu_ms, kib, kib_besides, late_ms } = figures;
    let ms = |part: Option<f64>| part.map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
    let (p50, p99) = (ms(late_ms.map(|late| late.0)), ms(late_ms.map(|late| late.1)));
    let cpu = format!("{cpu_ms:.2}");
    vec![name.into(), streams.to_string(), cpu, format!("{kib:.0}"), format!("{kib_besides:.0}"), p50, p99]
}

/// CPU time of the process for a second of one stream. What counts are the frames that were sent: on a machine that is
/// too busy some come later than they are due.
pub(crate) fn cpu_ms(load: &mut Publishers<'_>, clip: &Clip, pid: u32) -> anyhow::Result<f64> {
    let (frames, before) = (load.frames, cpu_seconds(pid));
    load.run(MEASURED)?;
    let stream_seconds = (load.frames - frames) as f64 / clip.frames_per_s();
    Ok(1e3 * (cpu_seconds(pid) - before) / stream_seconds)
}

fn rooftop(
    folder: &Path,
    secure: bool,
    streams: usize,
    clip: &Clip,
    keys: &mut Keys,
    runtime: &tokio::runtime::Handle,
    report: &Report,
) -> anyhow::Result<Figures> {
    let (server_cpu, load_cpu) = two_cpus();
    let tls_folder = folder.join("state/tls");
    let mut sink = Sink::start(&tls_folder, load_cpu)?;
    let node = Node::start(folder, &config(folder, &keys.file, &sink), server_cpu)?;
    while keys.made.len() < streams {
        keys.made.push(node.stream_key(&format!("bench{}", keys.made.len()))?);
    }
    let stranger: Option<Arc<ClientConfig>> = match secure {
        true => Some(broadcaster_tls(&tls_folder)?),
        false => None,
    };
    let addr = node.addr(if secure { "rtmps" } else { "rtmp" })?;
    let before = memory_bytes(node.pid());
    let (tls, keys) = (stranger.as_ref(), &keys.made[..streams]);
    let mut load = Publishers::connect(clip, addr, tls, "live", keys, Ending::Moment, SPREAD)?;
    load.run(WARM_UP)?;
    let admin = node.addr("admin")?;
    let grown = memory_bytes(node.pid()).saturating_sub(before) as f64;
    let buffered = runtime.block_on(metric(admin, "ingest_buffered_bytes"))?;
    let warm = sink.heard()?;
    ensure!(warm.relays == streams as u64, "{} relays for {streams} streams", warm.relays);
    let (began, sink_before) = (load.frames, cpu_seconds(sink.pid()));
    let cpu_ms = cpu_ms(&mut load, clip, node.pid())?;
    let sink_share = (cpu_seconds(sink.pid()) - sink_before) / MEASURED.as_secs_f64();
    std::thread::sleep(SETTLE);
    let heard = sink.heard()?;
    let written = load.frames - began;
    report.note(&format!(
        "{} in, {streams} streams: {written} frames, the latest written {:.1} ms after it was due; the sink took {:.0} % of \
         the load's CPU; frames late at most {:.1} ms",
        if secure { "RTMPS" } else { "RTMP" },
        1e3 * load.latest.as_secs_f64(),
        100.0 * sink_share,
        late(&heard, "max"),
    ));
    let all = load.frames;
    load.end()?;
    let (mut came, mut broken) = (warm.frames + heard.frames, warm.broken + heard.broken);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ended = sink.heard()?;
        (came, broken) = (came + ended.frames, broken + ended.broken);
        if ended.relays == 0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{} relays are left after the end", ended.relays);
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(came == all && broken == 0, "{all} frames were written, {came} came, {broken} relays broke off");
    let per_stream = 1024.0 * streams as f64;
    Ok(Figures {
        cpu_ms,
        kib: grown / per_stream,
        kib_besides: (grown - buffered) / per_stream,
        late_ms: Some((late(&heard, "p50"), late(&heard, "p99"))),
    })
}

fn late(heard: &Heard, which: &str) -> f64 {
    heard.late_ms.get(which).copied().unwrap_or_default()
}

/// As an encoder has it: it trusts the server, shows nothing of its own and resumes no session.
fn broadcaster_tls(tls_folder: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let files = tls::development_files(tls_folder, "broadcaster", &[])?;
    let stranger = idle::stranger(&files)?;
    let mut config = ClientConfig::clone(&stranger);
    config.alpn_protocols.clear();
    Ok(Arc::new(config))
}

/// The value of a metric without labels.
pub(crate) async fn metric(admin: std::net::SocketAddr, name: &str) -> anyhow::Result<f64> {
    let got = crate::crowd::get(admin, "/metrics").await?;
    let text = String::from_utf8_lossy(&got.body).into_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.with_context(|| format!("no metric {name}"))
}

fn config(folder: &Path, key_file: &Path, sink: &Sink) -> String {
    format!(
        r#"
[node]
name = "pop"
roles = ["ingest"]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[tokens]
key_files = ["{}"]
[cluster]
origins = [{{ name = "sink", address = "{}" }}]
shields = []
[ingest]
rtmp = "127.0.0.1:0"
rtmps = "127.0.0.1:0"
drain = "0s"
"#,
        folder.join("state").display(),
        key_file.display(),
        sink.addr,
    )
}
