//! The far end of the relay in a process of its own: takes every stream, reads its tags, acknowledges as an origin does, and
//! measures how long each frame was on its way. It transcodes nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use media::flv::{Decoder, Tag, TagKind};
use net::tls::{self, Clients};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::node::pinned;
use crate::origin::{Pen, Script};
use crate::process::Running;
use crate::publishers;
use crate::report::quantile;

/// First argument of this binary that makes it such a sink.
pub(crate) const MODE: &str = "--relay-sink";

/// As many of media as an origin's segment has by default.
const ACKNOWLEDGE_EVERY_MS: u32 = 1000;

/// What an origin has published when it acknowledges is older than what came last: its encoders look ahead.
const BEHIND_MS: u32 = 300;

/// As `Origin::serve` has them.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// A sink that runs. Dropping it ends it.
pub(crate) struct Sink {
    pub(crate) addr: SocketAddr,
    process: Running,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What came since it was asked last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// Relays that are being taken.
    pub(crate) relays: u64,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// Bodies that broke off.
    pub(crate) broken: u64,
    /// From before a frame was written to when it was read here, in milliseconds.
    pub(crate) late_ms: BTreeMap<String, f64>,
}

#[derive(Default)]
struct Counts {
    relays: u64,
    frames: u64,
    bytes: u64,
    broken: u64,
    late_ms: Vec<f64>,
}

impl Sink {
    /// Starts this binary as a sink with the certificates of the fleet in `tls_folder`.
    pub(crate) fn start(tls_folder: &Path, cpu: Option<usize>) -> anyhow::Result<Sink> {
        let program = std::env::current_exe()?;
        let mut command = pinned(program.to_str().context("a path in UTF-8")?, cpu);
        command.arg(MODE).arg(tls_folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start("relay sink", &mut command)?;
        let orders = process.child().stdin.take().context("no pipe")?;
        let mut answers = BufReader::new(process.child().stdout.take().context("no pipe")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let addr = line.trim().parse().with_context(|| format!("the relay sink did not start: {line:?}"))?;
        Ok(Sink { addr, process, orders, answers })
    }

    /// What it has heard since the last time.
    pub(crate) fn heard(&mut self) -> anyhow::Result<Heard> {
        self.orders.write_all(b"\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// What the child process does.
pub(crate) fn child(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let folder = PathBuf::from(args.next().context("which folder?")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = tls::development_files(&folder, "sink", &[])?;
    let tls = tls::server_config(&files, Clients::Fleet, &[b"h2"])?;
    let counts = Arc::new(Mutex::new(Counts::default()));
    let limits = net::Limits { max_connections: 10_000, handshake_timeout: Duration::from_secs(10) };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = runtime.block_on(net::Listener::bind(any, limits))?;
    println!("{}", listener.local_addr());
    std::io::stdout().flush()?;
    let asked = counts.clone();
    let end = CancellationToken::new();
    let parent_ended = end.clone();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            let mut counts = asked.lock().unwrap_or_else(PoisonError::into_inner);
            let late_ms = std::mem::take(&mut counts.late_ms);
            let relays = counts.relays;
            let Counts { frames, bytes, broken, .. } =
                std::mem::replace(&mut *counts, Counts { relays, ..Counts::default() });
            drop(counts);
            let of = |(name, part)| (String::from(name), quantile(&late_ms, part));
            let late_ms = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)].map(of).into();
            let heard = Heard { relays, frames, bytes, broken, late_ms };
            println!("{}", serde_json::to_string(&heard).unwrap_or_default());
        }
        parent_ended.cancel();
    });
    let options = net::http::Options {
        h2_max_streams: 1024,
        h2_stream_window: STREAM_WINDOW,
        h2_connection_window: CONNECTION_WINDOW,
        ..Default::default()
    };
    let service = move |request, _| answer(request, counts.clone());
    runtime.block_on(net::http::serve(listener, Some(tls), options, end, Duration::ZERO, service));
    Ok(())
}

async fn answer(request: Request<Incoming>, counts: Arc<Mutex<Counts>>) -> Response<Script> {
    let (pen, lines) = Script::new();
    let mut response = Response::new(lines);
    if request.uri().path().starts_with("/relay/") {
        tokio::spawn(take_in(request.into_body(), pen, counts));
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

async fn take_in(mut body: Incoming, pen: Pen, counts: Arc<Mutex<Counts>>) {
    let lock = || counts.lock().unwrap_or_else(PoisonError::into_inner);
    // Who has gone wants no line.
    let say = |text: String| drop(pen.send(Ok(Bytes::from(text + "\n"))));
    lock().relays += 1;
    let (mut decoder, mut segment, mut next_ms) = (Decoder::new(), 0, ACKNOWLEDGE_EVERY_MS);
    let whole = loop {
        let Some(frame) = body.frame().await else { break true };
        let Ok(frame) = frame else { break false };
        let Some(data) = frame.data_ref() else { continue };
        decoder.push(data);
        let now = publishers::unix_nanos();
        let mut counts = lock();
        counts.bytes += data.len() as u64;
        while let Ok(Some(tag)) = decoder.poll() {
            if !tag.is_frame() {
                continue;
            }
            counts.frames += 1;
            if let Some(written) = publishers::written_unix_nanos(&tag) {
                counts.late_ms.push(now.saturating_sub(written) as f64 / 1e6);
            }
            if is_video(&tag) && tag.timestamp_ms >= next_ms {
                let resume_ms = tag.timestamp_ms - BEHIND_MS;
                say(format!(r#"{{"published":{segment},"resume_ms":{resume_ms},"continue":"{segment}"}}"#));
                segment += 1;
                next_ms += ACKNOWLEDGE_EVERY_MS;
            }
        }
    };
    if whole {
        say(r#"{"end":true}"#.into());
    }
    let mut counts = lock();
    counts.relays -= 1;
    counts.broken += u64::from(!whole);
}

fn is_video(tag: &Tag) -> bool {
    tag.kind == TagKind::Video
}
