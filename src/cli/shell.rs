//! `rooftop completions SHELL` and `rooftop man FOLDER`: the command line, for shells and for `man`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to write them; it is made if it is not there
    pub folder: PathBuf,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    clap_complete::generate(args.shell, &mut Cli::command(), "rooftop", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for each command.
pub fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let folder = || args.folder.display().to_string();
    std::fs::create_dir_all(&args.folder).with_context(folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).with_context(folder)?;
    Ok(ExitCode::SUCCESS)
}
