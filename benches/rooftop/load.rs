//! The load generators: h2load over TLS, wrk without, one thread on a CPU of its own, and what they say.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::node::pinned;
use crate::process::Running;

/// What is spoken, 16 requests at once either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// h1 over TLS, 16 connections.
    H1,
    /// h2 over TLS, 8 connections with two requests at once on each: video and audio.
    H2,
    /// h1 without TLS, 16 connections.
    Plain,
}

impl Protocol {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Protocol::H1 => "h1",
            Protocol::H2 => "h2",
            Protocol::Plain => "plain",
        }
    }
}

/// What was counted.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    /// TLS version and cipher suite, if any.
    pub(crate) security: String,
}

/// Asks for one path again and again for so many seconds. All answers must be 200.
pub(crate) fn run(
    addr: SocketAddr,
    path: &str,
    protocol: Protocol,
    seconds: u32,
    cpu: Option<usize>,
) -> anyhow::Result<Load> {
    let seconds = seconds.to_string();
    match protocol {
        // It costs less per request than h2load, which here would be the limit.
        Protocol::Plain => {
            let mut command = pinned("wrk", cpu);
            command.args(["--threads", "1", "--connections", "16", "--duration", &seconds]);
            let text = output("wrk", command.arg(format!("http://{addr}{path}")))?;
            parse_wrk(&text).with_context(|| format!("wrk said:\n{text}"))
        }
        Protocol::H1 | Protocol::H2 => {
            let mut command = pinned("h2load", cpu);
            command.args(["--threads", "1", "--duration", &seconds]);
            match protocol {
                Protocol::H2 => command.args(["--clients", "8", "--max-concurrent-streams", "2"]),
                _ => command.args(["--clients", "16", "--h1"]),
            };
            let text = output("h2load", command.arg(format!("https://{addr}{path}")))?;
            parse_h2load(&text).with_context(|| format!("h2load said:\n{text}"))
        }
    }
}

fn output(name: &str, command: &mut Command) -> anyhow::Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running::start(name, command)?;
    let mut stdout = running.child().stdout.take().context("no pipe")?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut text)?;
    running.succeed(Duration::from_secs(10))?;
    Ok(text)
}

/// Reads the lines `finished in 2.00s, ...`, `requests: ... 12 done, ...` and `status codes: 12 2xx, 0 3xx, ...`.
fn parse_h2load(text: &str) -> anyhow::Result<Load> {
    let line = |start: &str| {
        text.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no line {start:?}"))
    };
    let count = |line: &str, what: &str| -> anyhow::Result<f64> {
        let item = line.split(',').map(str::trim).find(|item| item.ends_with(what));
        let number = item.and_then(|item| item.split(' ').next()?.parse().ok());
        number.with_context(|| format!("no number of {what:?} in {line:?}"))
    };
    let finished = line("finished in ")?.split(',').next().unwrap_or_default();
    let requests = line("requests: ")?;
    let codes = line("status codes: ")?;
    let mut bad = count(requests, "errored")? + count(requests, "timeout")?;
    for others in ["3xx", "4xx", "5xx"] {
        bad += count(codes, others)?;
    }
    ensure!(bad == 0.0, "some answers were not 200");
    let load = Load {
        requests: count(requests, "done")?,
        seconds: seconds(finished)?,
        security: format!("{} {}", line("TLS Protocol: ")?, line("Cipher: ")?),
    };
    ensure!(load.requests > 0.0, "no answer at all");
    Ok(load)
}

/// Reads the line `12345 requests in 2.00s, 1.2GB read`; two others are there only if something went wrong.
fn parse_wrk(text: &str) -> anyhow::Result<Load> {
    let bad = text.lines().find(|line| line.contains("Non-2xx") || line.contains("Socket errors"));
    ensure!(bad.is_none(), "some answers were not 200");
    let line = text.lines().find(|line| line.contains(" requests in ")).context("no line of requests")?;
    let (requests, rest) = line.trim().split_once(" requests in ").context("no number")?;
    let load = Load {
        requests: requests.parse()?,
        seconds: seconds(rest.split(',').next().unwrap_or_default())?,
        security: "no TLS".into(),
    };
    ensure!(load.requests > 0.0, "no answer at all");
    Ok(load)
}

/// `2.00s`, `987.65ms` or `123us`.
fn seconds(text: &str) -> anyhow::Result<f64> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix("us")) {
        (Some(ms), _) => (ms, 1e-3),
        (_, Some(us)) => (us, 1e-6),
        _ => (text.strip_suffix('s').with_context(|| format!("{text:?} is not a time"))?, 1.0),
    };
    Ok(number.parse::<f64>()? * unit)
}
