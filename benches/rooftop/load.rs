//! The load generator: h2load, one thread on a CPU of its own, and what it says.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::node::pinned;
use crate::process::Running;

/// Which HTTP, over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// One request after the other on each connection.
    H1,
    /// Two at once on each connection: video and audio.
    H2,
}

/// What h2load has counted.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    /// TLS version and cipher suite.
    pub(crate) security: String,
}

/// For how long, or how many requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Length {
    Requests(u32),
    Seconds(u32),
}

/// Asks for one path again and again. All answers must be 200.
pub(crate) fn run(
    addr: SocketAddr,
    path: &str,
    protocol: Protocol,
    length: Length,
    cpu: Option<usize>,
) -> anyhow::Result<Load> {
    let mut command = pinned("h2load", cpu);
    command.args(["--threads", "1"]);
    // 16 requests at once either way.
    match protocol {
        Protocol::H1 => command.args(["--clients", "16", "--h1"]),
        Protocol::H2 => command.args(["--clients", "8", "--max-concurrent-streams", "2"]),
    };
    match length {
        Length::Requests(number) => command.args(["--requests", &number.to_string()]),
        Length::Seconds(seconds) => command.args(["--duration", &seconds.to_string()]),
    };
    command.arg(format!("https://{addr}{path}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut h2load = Running::start("h2load", &mut command)?;
    let mut stdout = h2load.child().stdout.take().context("no pipe")?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut text)?;
    h2load.succeed(Duration::from_secs(10))?;
    let said = parse(&text).with_context(|| format!("h2load said:\n{text}"))?;
    ensure!(said.all_good, "some answers were not 200:\n{text}");
    Ok(said.load)
}

struct Said {
    load: Load,
    all_good: bool,
}

/// Reads the lines `finished in 2.00s, ...`, `requests: ... 12 done, ...` and `status codes: 12 2xx, 0 3xx, ...`.
fn parse(text: &str) -> Option<Said> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let count = |line: &str, what: &str| -> Option<f64> {
        let item = line.split(',').map(str::trim).find(|item| item.ends_with(what))?;
        item.split(' ').next()?.parse().ok()
    };
    let finished = line("finished in ")?.split(',').next()?;
    let seconds = match (finished.strip_suffix("ms"), finished.strip_suffix("us")) {
        (Some(ms), _) => ms.parse::<f64>().ok()? / 1e3,
        (_, Some(us)) => us.parse::<f64>().ok()? / 1e6,
        _ => finished.strip_suffix('s')?.parse().ok()?,
    };
    let requests = line("requests: ")?;
    let done = count(requests, "done")?;
    let failed = count(requests, "errored")? + count(requests, "timeout")?;
    let security = format!("{} {}", line("TLS Protocol: ")?, line("Cipher: ")?);
    let codes = line("status codes: ")?;
    let others = ["3xx", "4xx", "5xx"].iter().try_fold(0.0, |sum, what| Some(sum + count(codes, what)?))?;
    Some(Said {
        load: Load { requests: done, seconds, security },
        all_good: done > 0.0 && failed + others == 0.0,
    })
}
