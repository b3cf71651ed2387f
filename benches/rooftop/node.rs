//! A `rooftop serve` process of the same build, on ports that the system chose.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::origin::Origin;
use crate::process::Running;

/// A node that serves.
pub(crate) struct Node {
    process: Running,
    config: PathBuf,
    listeners: BTreeMap<String, SocketAddr>,
    /// A node whose standard output is closed could not write to it.
    _stdout: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct FirstLine {
    listeners: BTreeMap<String, SocketAddr>,
}

impl Node {
    /// Starts a node with this configuration, on one CPU if given, and waits until its ports are bound.
    pub(crate) fn start(folder: &Path, config: &str, cpu: Option<usize>) -> anyhow::Result<Node> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join("rooftop.toml");
        std::fs::write(&path, config)?;
        let log = folder.join("rooftop.log");
        let mut command = pinned(env!("CARGO_BIN_EXE_rooftop"), cpu);
        command.args(["serve", "--log", "warn", "--config"]).arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut process = Running::start("rooftop", &mut command)?;
        let mut stdout = BufReader::new(process.child().stdout.take().context("no pipe")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let FirstLine { listeners } = serde_json::from_str(&line)
            .with_context(|| format!("rooftop did not start: {}", log.display()))?;
        Ok(Node { process, config: path, listeners, _stdout: stdout })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn addr(&self, listener: &str) -> anyhow::Result<SocketAddr> {
        self.listeners.get(listener).copied().with_context(|| format!("no listener {listener}"))
    }

    /// `NAME?token=...`
    pub(crate) fn stream_key(&self, stream: &str) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Created {
            key: String,
        }
        let output = Command::new(env!("CARGO_BIN_EXE_rooftop"))
            .args(["stream", "create", stream, "--json", "--config"])
            .arg(&self.config)
            .output()?;
        ensure!(output.status.success(), "stream create: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice::<Created>(&output.stdout)?.key)
    }
}

/// The configuration of a node that is an edge over `upstream` and nothing else; `more` goes on from the edge's table.
pub(crate) fn edge_node(folder: &Path, upstream: &Origin, more: &str) -> String {
    format!(
        r#"
[node]
name = "edge"
roles = ["edge"]
state_dir = "{}"
[admin]
listen = "127.0.0.1:0"
[cluster]
origins = [{{ name = "upstream", address = "{}" }}]
shields = []
[edge]
https = "127.0.0.1:0"
http = "127.0.0.1:0"
drain = "0s"
{more}
"#,
        folder.join("state").display(),
        upstream.https
    )
}

/// A command that runs on one CPU, with all its threads and children.
pub(crate) fn pinned(program: &str, cpu: Option<usize>) -> Command {
    let Some(cpu) = cpu else {
        return Command::new(program);
    };
    // It becomes the program, under the same process id.
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string(), program]);
    command
}
