//! h2o with files in memory: how fast an h2 server can be.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::bare::Answers;
use crate::node::pinned;
use crate::origin;
use crate::process::{self, Running};
use crate::server::{Server, free_addr};

/// Headers that it makes itself of a file.
const OWN_HEADERS: [&str; 6] =
    ["accept-ranges", "content-length", "content-type", "date", "etag", "last-modified"];

/// Starts it over files that make these answers, and waits until it accepts connections.
pub(crate) fn start(
    folder: &Path,
    answers: &Answers,
    certificate: &Path,
    key: &Path,
    memory: &Path,
    cpu: Option<usize>,
) -> anyhow::Result<Server> {
    let folder = folder.join("h2o");
    let root = memory.join("h2o");
    std::fs::create_dir_all(&folder)?;
    let mut headers = String::new();
    for (path, answer) in answers {
        let file = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().context("a path has a folder")?)?;
        std::fs::write(&file, origin::content(answer.size))?;
        // Those of one answer stand for all. What it says by itself is left to it.
        let others = answer.headers.iter().filter(|(name, _)| !OWN_HEADERS.contains(&name.as_str()));
        headers = others
            .map(|(name, value)| format!("header.set: \"{name}: {}\"\n", value.replace('"', "\\\"")))
            .collect();
    }
    let (https, http) = (free_addr()?, free_addr()?);
    let config = format!(
        r#"num-threads: 1
max-connections: 12000
{user}pid-file: {folder}/pid
error-log: {folder}/error.log
http1-request-timeout: 3600
http2-idle-timeout: 3600
file.mime.addtypes: {{ "video/mp4": ".m4s" }}
listen: {{ host: {host}, port: {http_port} }}
listen:
  host: {host}
  port: {https_port}
  ssl: {{ certificate-file: {certificate}, key-file: {key}, minimum-version: TLSv1.2 }}
hosts:
  default:
    paths:
      "/":
        file.dir: {root}
{headers}"#,
        // Else it would become `nobody`, who cannot read a private folder.
        user = if process::is_root() { "user: root\n" } else { "" },
        folder = folder.display(),
        host = https.ip(),
        http_port = http.port(),
        https_port = https.port(),
        certificate = certificate.display(),
        key = key.display(),
        root = root.display(),
    );
    let path = folder.join("h2o.conf");
    std::fs::write(&path, config)?;
    let mut command = pinned("h2o", cpu);
    command.arg("-c").arg(&path).stdin(Stdio::null());
    let log = File::create(folder.join("h2o.log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    let process = Running::start("h2o", &mut command)?;
    Server::of("h2o", format!("h2o {} file.dir", version()?), process, Some(https), Some(http), &folder)
}

/// Of `h2o version 2.2.5`.
fn version() -> anyhow::Result<String> {
    let output = Command::new("h2o").arg("--version").output().context("h2o")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("").rsplit(' ').next().unwrap_or("").to_owned())
}
