//! Varnish: plain h1 only, as its open-source edition serves.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::node::pinned;
use crate::process::Running;
use crate::server::{Server, free_addr};

/// Starts it in front of a plain upstream and waits until it accepts connections. What it keeps is in memory.
pub(crate) fn start(
    folder: &Path,
    upstream: SocketAddr,
    memory: &Path,
    cpu: Option<usize>,
) -> anyhow::Result<Server> {
    let folder = folder.join("varnish");
    std::fs::create_dir_all(&folder)?;
    let vcl = folder.join("bench.vcl");
    // A silent upstream is given up after as long as nginx and Rooftop are told.
    let text = format!(
        r#"vcl 4.1;
backend default {{
    .host = "{}"; .port = "{}";
    .first_byte_timeout = 5s; .between_bytes_timeout = 5s;
}}
"#,
        upstream.ip(),
        upstream.port()
    );
    std::fs::write(&vcl, text)?;
    let http = free_addr()?;
    let mut command = pinned("varnishd", cpu);
    command.args(["-F", "-j", "none", "-T", "none", "-s", "malloc,1g"]);
    command.arg("-n").arg(memory.join("varnish")).arg("-f").arg(&vcl);
    command.args(["-a", &format!("{http},HTTP")]);
    // A thread for each of a herd; connections stay open; the queue of those that come at once is long enough.
    for parameter in [
        "thread_pools=1",
        "thread_pool_min=100",
        "thread_pool_max=5000",
        "thread_queue_limit=20000",
        "timeout_idle=3600",
        "listen_depth=4096",
    ] {
        command.args(["-p", parameter]);
    }
    let log = File::create(folder.join("varnishd.log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let process = Running::start("varnishd", &mut command)?;
    Server::of("Varnish", format!("Varnish {}", version()?), process, None, Some(http), &folder)
}

/// Of `varnishd (varnish-7.1.1 revision ...)`.
fn version() -> anyhow::Result<String> {
    let output = Command::new("varnishd").arg("-V").output().context("varnishd")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let version = text.split_once("varnish-").and_then(|(_, rest)| rest.split(' ').next());
    Ok(version.unwrap_or("").to_owned())
}
