//! The command line: one file per subcommand.

pub mod admin;
pub mod archive;
pub mod broadcast;
pub mod check_config;
pub mod doctor;
pub mod latency;
pub mod node;
pub mod reload;
pub mod serve;
pub mod shell;
pub mod show;
pub mod simulate;
pub mod status;
pub mod stream;
pub mod token;
pub mod top;

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

/// Live video ingest, transcoding and DASH/HLS edge delivery.
#[derive(Debug, Parser)]
#[command(name = "rooftop", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the roles that the configuration names until SIGTERM or Ctrl-C
    Serve(serve::ServeArgs),
    /// Report every problem of a configuration file; exits 2 if there is one
    CheckConfig(CheckConfigArgs),
    /// Look at what would keep a node from working on this machine; exits 1 if something would
    Doctor(doctor::DoctorArgs),
    /// How a running node stands; exits 1 if it is not ready
    Status(status::StatusArgs),
    /// The streams of a running node
    Streams(status::StatusArgs),
    /// A running node as it works, once a second
    Top(top::TopArgs),
    /// Have a running node read its configuration again; exits 1 if it has problems
    Reload(reload::ReloadArgs),
    /// Let a running node end in good order, as SIGTERM does
    Drain(status::DrainArgs),
    /// Broadcasts of the Live API of a running node
    Broadcast(broadcast::BroadcastArgs),
    /// Stream keys, playback URLs, and how a stream stands
    Stream(stream::StreamArgs),
    /// What the frames of a stream take from hop to hop
    Latency(latency::LatencyArgs),
    /// What an audience that arrives at once will do to caches and origin, by TTL and cache-blocking timeout
    Simulate(Box<simulate::SimulateArgs>),
    /// The cache policy of a running node
    Policy(admin::PolicyArgs),
    /// Make the caches of a running node forget what begins with a prefix
    Purge(admin::PurgeArgs),
    /// Broadcasts that are kept: list, verify, remove, export
    Archive(archive::ArchiveArgs),
    /// Tokens that let their bearers publish, with limits
    Token(token::TokenArgs),
    /// Print completions for a shell, such as: rooftop completions bash > /etc/bash_completion.d/rooftop
    Completions(shell::CompletionsArgs),
    /// Write the man pages
    Man(shell::ManArgs),
}

/// Arguments of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// The file to check
    pub file: PathBuf,
}

/// Exit code of a configuration that cannot be used.
pub const EXIT_BAD_CONFIG: u8 = 2;

/// What to do about an error that came from the system; errors of ours say it themselves.
pub fn advice(error: &anyhow::Error) -> Option<&'static str> {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
    match cause.kind() {
        io::ErrorKind::PermissionDenied => Some(
            "files of a node belong to its user: as root, or, for the Debian package, sudo -u rooftop rooftop … \
             (a port below 1024 needs CAP_NET_BIND_SERVICE)",
        ),
        io::ErrorKind::NotFound => Some(
            "is the path right? Relative paths, also those within a configuration, count from the working directory; \
             a token key is made with: openssl rand -hex 32 > FILE",
        ),
        io::ErrorKind::IsADirectory => Some("that is a folder: name the file in it"),
        io::ErrorKind::AddrInUse => {
            Some("something else listens there: ss -ltnp says what; or choose another port")
        }
        io::ErrorKind::StorageFull => Some("the disk is full: df -h says which"),
        _ => None,
    }
}

/// Reads a configuration, or prints what is wrong with it to standard error.
fn load(file: &Path) -> Option<crate::config::Config> {
    if let Err(error) = std::fs::File::open(file).and_then(|mut open| open.read(&mut [0])) {
        let error = anyhow::Error::from(error).context(format!("the configuration {}", file.display()));
        eprintln!("{error:#}");
        if let Some(advice) = advice(&error) {
            eprintln!("  {advice}");
        }
        return None;
    }
    match crate::config::Config::load(file) {
        Ok(config) => Some(config),
        Err(crate::config::Problems(problems)) => {
            for problem in problems {
                eprintln!("{}: {problem}", file.display());
            }
            None
        }
    }
}
