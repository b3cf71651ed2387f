//! `rooftop token make NAME`, `rooftop token check TOKEN`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use cluster::token::{Claims, Terms};
use media::StreamName;

use super::{EXIT_BAD_CONFIG, load};
use crate::secrets;

/// Arguments of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do with tokens.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The subcommands of `token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token that lets its bearer publish a stream; printed alone
    Make(MakeArgs),
    /// Check a token's signature and time, and print what it says as JSON; exits 1 if it is refused
    Check(CheckArgs),
}

/// Arguments of `token make`.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// Name of the stream: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: StreamName,
    /// The configuration file of a node that has the token key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// How long the token is valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// Most bits per second that may be sent, over ten seconds
    #[arg(long, value_name = "BPS")]
    pub max_bitrate: Option<u64>,
    /// Most lines of video that may be sent
    #[arg(long, value_name = "LINES")]
    pub max_height: Option<u32>,
}

/// Arguments of `token check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The token, or a stream key that contains one
    pub token: String,
    /// The configuration file of a node that has the token key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Makes or checks a token.
pub fn run(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    let file = match &args.command {
        TokenCommand::Make(args) => &args.config,
        TokenCommand::Check(args) => &args.config,
    };
    let Some(config) = load(file) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let keys = secrets::token_keys(&config)?;
    let now = SystemTime::now();
    match &args.command {
        TokenCommand::Make(args) => {
            let terms = Terms {
                id: Some(secrets::random_id()?),
                max_bitrate: args.max_bitrate,
                max_height: args.max_height,
            };
            println!("{}", keys.issue_on(args.name.as_str(), args.ttl, terms, now));
        }
        TokenCommand::Check(args) => {
            let token = args.token.rsplit("token=").next().unwrap_or_default();
            let token = token.split('&').next().unwrap_or_default();
            let claims: Claims = keys.read(token, now)?;
            println!("{}", serde_json::to_string(&claims)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}
