//! nginx as a caching proxy: the peer of both cache tiers.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::node::pinned;
use crate::process::{self, Running};
use crate::server::{Server, free_addr};

/// What it needs to know.
pub(crate) struct Settings<'a> {
    /// Shown to clients; for mTLS also to the upstream.
    pub(crate) certificate: &'a Path,
    pub(crate) key: &'a Path,
    /// `http://host:port` or `https://host:port`.
    pub(crate) upstream: &'a str,
    /// The one CPU it may use.
    pub(crate) cpu: Option<usize>,
    pub(crate) mode: Mode,
    /// Where it keeps cached files.
    pub(crate) memory: &'a Path,
}

/// What it does with what the upstream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Keeps it.
    Cache,
    /// Passes it on at once and forgets it.
    Pass,
}

/// Starts it and waits until it accepts connections.
pub(crate) fn start(folder: &Path, settings: &Settings<'_>) -> anyhow::Result<Server> {
    let (https, http) = (free_addr()?, free_addr()?);
    let (title, folder) = match settings.mode {
        Mode::Cache => ("proxy_cache", folder.join("nginx-cache")),
        Mode::Pass => ("no buffering, no cache", folder.join("nginx-pass")),
    };
    std::fs::create_dir_all(&folder)?;
    let cache = settings.memory.join(format!("nginx-{}", https.port()));
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config(settings, https, http, &folder, &cache))?;
    let log = folder.join("error.log");
    let mut command = pinned("nginx", settings.cpu);
    command.arg("-p").arg(&folder).arg("-c").arg(&path).arg("-e").arg(&log);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(folder.join("stderr.log"))?);
    let process = Running::start("nginx", &mut command)?;
    Server::of("nginx", format!("nginx {} {title}", version()?), process, Some(https), Some(http), &folder)
}

/// Its version.
fn version() -> anyhow::Result<String> {
    let output = Command::new("nginx").arg("-v").output().context("nginx")?;
    let text = String::from_utf8_lossy(&output.stderr);
    Ok(text.trim().rsplit('/').next().unwrap_or("").to_owned())
}

/// Tuned for hits: one worker, nothing logged, cached files in memory and kept open, connections never closed. Of a name
/// that is not there one request goes upstream, and another after a second without an answer.
fn config(
    settings: &Settings<'_>,
    https: SocketAddr,
    http: SocketAddr,
    folder: &Path,
    cache: &Path,
) -> String {
    let Settings { certificate, key, upstream, .. } = settings;
    let (certificate, key) = (certificate.display(), key.display());
    let (folder, cache) = (folder.display(), cache.display());
    // Workers of a master that runs as root could not read a private folder.
    let user = if process::is_root() { "user root;" } else { "" };
    let mode = match settings.mode {
        Mode::Cache => {
            "proxy_buffers 64 16k; proxy_cache all; proxy_cache_valid 200 1h;
            proxy_cache_lock on; proxy_cache_lock_timeout 1s; proxy_cache_lock_age 1s;"
        }
        Mode::Pass => "proxy_buffering off;",
    };
    format!(
        r#"{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 12000; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 1h;
    keepalive_requests 100000000;
    output_buffers 2 512k;
    open_file_cache max=1000 inactive=1h;
    open_file_cache_valid 1h;
    types {{ video/mp4 m4s; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {cache} levels=1 keys_zone=all:8m max_size=1g inactive=1h use_temp_path=off;
    server {{
        listen {http} backlog=4096;
        listen {https} ssl http2 backlog=4096;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:tls:8m;
        ssl_buffer_size 16k;
        http2_chunk_size 16k;
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 5s;
            proxy_ssl_certificate {certificate};
            proxy_ssl_certificate_key {key};
            proxy_ssl_verify off;
            {mode}
        }}
    }}
}}
"#
    )
}
