//! Where log lines go: standard error, filtered; standard output is for what a command answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Installs the log. `filter` is a checked filter from the configuration; the flag `--log` overrides it.
pub(crate) fn init(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
