//! The `rooftop` binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use rooftop::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Serve(args) => rooftop::cli::serve::run(args),
        Command::CheckConfig(args) => rooftop::cli::check_config::run(args),
        Command::Doctor(args) => rooftop::cli::doctor::run(args),
        Command::Status(args) => rooftop::cli::status::status(args),
        Command::Streams(args) => rooftop::cli::status::streams(args),
        Command::Top(args) => rooftop::cli::top::run(args),
        Command::Reload(args) => rooftop::cli::reload::run(args),
        Command::Drain(args) => rooftop::cli::status::drain(args),
        Command::Broadcast(args) => rooftop::cli::broadcast::run(args),
        Command::Stream(args) => rooftop::cli::stream::run(args),
        Command::Latency(args) => rooftop::cli::latency::run(args),
        Command::Simulate(args) => rooftop::cli::simulate::run(args),
        Command::Policy(args) => rooftop::cli::admin::policy(args),
        Command::Purge(args) => rooftop::cli::admin::purge(args),
        Command::Archive(args) => rooftop::cli::archive::run(args),
        Command::Token(args) => rooftop::cli::token::run(args),
        Command::Completions(args) => rooftop::cli::shell::completions(args),
        Command::Man(args) => rooftop::cli::shell::man(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rooftop: {error:#}");
        if let Some(advice) = rooftop::cli::advice(&error) {
            eprintln!("  {advice}");
        }
        ExitCode::FAILURE
    })
}
