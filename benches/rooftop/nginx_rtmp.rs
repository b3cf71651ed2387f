//! nginx with its RTMP module: the peer that takes broadcasts.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::node::pinned;
use crate::process::{self, Running};
use crate::server::{free_addr, until_accepts};

/// One that runs. Dropping it ends it.
pub(crate) struct NginxRtmp {
    pub(crate) addr: SocketAddr,
    process: Running,
}

/// The application that it takes broadcasts for.
pub(crate) const APP: &str = "live";

/// Starts it and waits until it accepts connections. It hands each stream on to `next`, if there is one.
pub(crate) fn start(
    folder: &Path,
    name: &str,
    next: Option<SocketAddr>,
    cpu: Option<usize>,
) -> anyhow::Result<NginxRtmp> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder)?;
    let addr = free_addr()?;
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config(&folder, &modules()?, addr, next))?;
    let mut command = pinned("nginx", cpu);
    command.arg("-p").arg(&folder).arg("-c").arg(&path).arg("-e").arg(folder.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(folder.join("stderr.log"))?);
    let process = Running::start(name, &mut command)?;
    until_accepts(addr, name, &folder)?;
    Ok(NginxRtmp { addr, process })
}

impl NginxRtmp {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Where this nginx has its modules.
fn modules() -> anyhow::Result<String> {
    let output = Command::new("nginx").arg("-V").output().context("nginx")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let folder = text.split_whitespace().find_map(|option| option.strip_prefix("--modules-path="));
    Ok(folder.context("this nginx loads no modules")?.to_owned())
}

/// One worker that logs nothing.
fn config(folder: &Path, modules: &str, addr: SocketAddr, next: Option<SocketAddr>) -> String {
    let folder = folder.display();
    let user = if process::is_root() { "user root;" } else { "" };
    let push = next.map_or_else(String::new, |next| format!("push rtmp://{next}/{APP};"));
    format!(
        r#"load_module {modules}/ngx_rtmp_module.so;
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
rtmp {{
    access_log off;
    server {{
        listen {addr};
        chunk_size 4096;
        application {APP} {{
            live on;
            {push}
        }}
    }}
}}
"#
    )
}
