//! `rooftop latency STREAM`: what frames take from hop to hop, as the stream's origin measures it, and as a viewer does.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use media::StreamName;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::node::{NodeArgs, Question, exchange};

/// For one segment to come: an origin waits for it as long as three of its target durations.
const PATIENCE: Duration = Duration::from_secs(15);

/// A playlist that lists hours has some hundred KiB.
const MAX_PLAYLIST_BYTES: usize = 4 << 20;

/// What comes before the first chunk of a segment, and more.
const MAX_HEAD_BYTES: usize = 4096;

/// Arguments of `latency`.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// Name of the stream
    pub stream: StreamName,
    /// The stream's origin
    #[command(flatten)]
    pub node: NodeArgs,
    /// Measure as a viewer, too, at the plain HTTP listener of an edge; its clock and this machine's should agree
    #[arg(long, value_name = "ADDRESS")]
    pub edge: Option<SocketAddr>,
    /// Segments to measure at the edge
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=60))]
    pub segments: u8,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// Asks and measures.
pub fn run(args: &LatencyArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/admin/latency?stream={}", args.stream);
    let answered = exchange(&args.node, Question::new(Method::GET, &path))?;
    let Some(mut told) = answered.good().cloned() else { return Ok(ExitCode::FAILURE) };
    if let Some(edge) = args.edge {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut took = runtime.block_on(watch(edge, &args.stream, args.segments))?;
        took.sort_by(f64::total_cmp);
        let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
        let hop = json!({
            "hop": "viewed", "passages": took.len(), "p50_ms": at(50), "p95_ms": at(95), "max_ms": at(100),
        });
        told["hops"].as_array_mut().context("the node's answer has no hops")?.push(hop);
    }
    if args.json {
        println!("{told}");
    } else {
        print!("{}", table(&told));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(told: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<12}{:>10}{:>12}{:>12}{:>12}",
        "frame in to", "passages", "p50 ms", "p95 ms", "max ms"
    );
    for hop in told["hops"].as_array().into_iter().flatten() {
        let name = hop["hop"].as_str().unwrap_or_default();
        let _ = write!(out, "{name:<12}{:>10}", hop["passages"].as_u64().unwrap_or_default());
        for figure in ["p50_ms", "p95_ms", "max_ms"] {
            let _ = write!(out, "{:>12.1}", hop[figure].as_f64().unwrap_or_default());
        }
        out.push('\n');
    }
    out
}

/// Milliseconds from when the first frame of a segment came in to when its chunk is here, of the next `segments`.
async fn watch(edge: SocketAddr, stream: &StreamName, segments: u8) -> anyhow::Result<Vec<f64>> {
    let base = format!("/live/{stream}/");
    let multivariant = text(edge, &format!("{base}index.m3u8")).await?;
    let playlist = first_uri(&multivariant).context("the multivariant playlist names no rendition")?;
    let listed = text(edge, &format!("{base}{playlist}")).await?;
    let newest = listed.lines().rfind(|line| line.ends_with(".m4s") && !line.starts_with('#'));
    let newest = newest.with_context(|| format!("{playlist} lists no segment"))?;
    let (folder, number) = newest.rsplit_once('/').context("segments have numbers")?;
    let number: u64 = number.trim_end_matches(".m4s").parse().context("segments have numbers")?;
    let mut took = Vec::new();
    // The next one has begun already; the one after it is sent as it is made.
    for number in (number + 2..).take(segments.into()) {
        let path = format!("{base}{folder}/{number}.m4s");
        took.push(tokio::time::timeout(PATIENCE, chunk(edge, &path)).await.with_context(|| path.clone())??);
    }
    Ok(took)
}

/// Waits for the first chunk of a segment; milliseconds since it was made.
async fn chunk(edge: SocketAddr, path: &str) -> anyhow::Result<f64> {
    let mut body = get(edge, path).await?;
    let mut head = Vec::new();
    while head.len() < MAX_HEAD_BYTES
        && let Some(frame) = body.frame().await
    {
        head.extend_from_slice(&frame?.into_data().unwrap_or_default());
        if let Some(unix_us) = produced(&head) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as i64;
            return Ok((now - unix_us) as f64 / 1000.0);
        }
    }
    bail!("{path} does not say when it was made: no prft box")
}

/// When the first frame of a segment went into the encoder, by its ProducerReferenceTimeBox (ISO/IEC 14496-12, 8.16.5):
/// microseconds since 1970. `None` if it is not there, or not yet.
fn produced(mut head: &[u8]) -> Option<i64> {
    loop {
        let size = u32::from_be_bytes(head.get(..4)?.try_into().ok()?) as usize;
        if head.get(4..8)? == b"prft" {
            // Version and flags, the track, then 32 bits of seconds since 1900 and 32 of fractions.
            let ntp = u64::from_be_bytes(head.get(16..24)?.try_into().ok()?);
            let us = ((ntp & 0xffff_ffff) * 1_000_000) >> 32;
            // Seconds begin anew in 2036.
            let seconds = ((ntp >> 32) as u32).wrapping_sub(2_208_988_800);
            return Some(i64::from(seconds) * 1_000_000 + us as i64);
        }
        head = head.get(size.max(8)..)?;
    }
}

fn first_uri(playlist: &str) -> Option<&str> {
    playlist.lines().find(|line| !line.is_empty() && !line.starts_with('#'))
}

async fn text(edge: SocketAddr, path: &str) -> anyhow::Result<String> {
    let body = http_body_util::Limited::new(get(edge, path).await?, MAX_PLAYLIST_BYTES);
    let collected = tokio::time::timeout(PATIENCE, body.collect()).await.with_context(|| path.to_owned())?;
    let bytes = collected.map_err(|error| anyhow::anyhow!("{path}: {error}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn get(edge: SocketAddr, path: &str) -> anyhow::Result<Incoming> {
    let stream = TcpStream::connect(edge).await.with_context(|| format!("no edge at {edge}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with its body.
    tokio::spawn(connection);
    let request = Request::get(path).header(HOST, edge.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        bail!("{edge} answered {} for {path}", response.status());
    }
    Ok(response.into_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_says_when_it_was_made() {
        let sample =
            media::Sample { dts: 0, pts: 0, duration: 3000, key: true, data: Bytes::from_static(b"x") };
        for unix_us in [1_795_262_400_250_000, 2_085_978_496_500_000] {
            let reference = Some(transcode::cmaf::ReferenceTime { unix_us, media_time: 0 });
            let segment = transcode::cmaf::chunk(1, std::slice::from_ref(&sample), true, reference, &[]);
            assert_eq!(produced(&segment), Some(unix_us));
            for cut in 0..56 {
                assert_eq!(produced(&segment[..cut]), None, "{cut}");
            }
        }
        let without = transcode::cmaf::chunk(1, &[sample], true, None, &[]);
        assert_eq!(produced(&without), None);
        assert_eq!(produced(&[0; 64]), None);
    }

    #[test]
    fn hops_are_a_table() {
        let told = json!({ "hops": [{ "hop": "encoded", "passages": 3, "p50_ms": 12.34, "p95_ms": 20.0, "max_ms": 21.5 }] });
        assert_eq!(
            table(&told),
            "frame in to   passages      p50 ms      p95 ms      max ms\n\
             encoded              3        12.3        20.0        21.5\n"
        );
    }
}
