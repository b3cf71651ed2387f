//! `rooftop check-config FILE`

use std::process::ExitCode;

use super::{CheckConfigArgs, EXIT_BAD_CONFIG, load};

/// Checks a file.
pub fn run(args: &CheckConfigArgs) -> anyhow::Result<ExitCode> {
    Ok(match load(&args.file) {
        Some(_) => {
            println!("{}: ok", args.file.display());
            ExitCode::SUCCESS
        }
        None => ExitCode::from(EXIT_BAD_CONFIG),
    })
}
