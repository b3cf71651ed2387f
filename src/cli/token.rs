//! `rooftop token make NAME`, `rooftop token check TOKEN`, `rooftop token new-key FILE`, `rooftop token new-admin FILE`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use cluster::token::{Keys, Terms};
use media::StreamName;

use super::{EXIT_BAD_CONFIG, load};
use crate::config::{AdminRole, Config};
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
    /// Check a token's signature and time, and print what it says as JSON; exits 1 after all that is wrong with it
    Check(CheckArgs),
    /// Make an Ed25519 key pair: FILE signs tokens, FILE.pub is for the nodes that check them
    NewKey(NewKeyArgs),
    /// Make a token for an admin listener in FILE; the lines for the configuration, which know its hash only, are printed
    NewAdmin(NewAdminArgs),
}

/// Arguments of `token make`.
#[derive(Debug, Args)]
pub struct MakeArgs {
    /// Name of the stream: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: StreamName,
    /// The configuration file of a node that has the key to sign with
    #[arg(long, value_name = "FILE", required_unless_present = "key")]
    pub config: Option<PathBuf>,
    /// A file with the key to sign with, instead of the first of `tokens.key_files`
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
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
    /// The configuration file of a node that has the token keys
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The stream that it should open
    #[arg(long, value_name = "NAME")]
    pub stream: Option<StreamName>,
}

/// Arguments of `token new-key`.
#[derive(Debug, Args)]
pub struct NewKeyArgs {
    /// Where the private key goes; must not exist
    pub file: PathBuf,
}

/// Arguments of `token new-admin`.
#[derive(Debug, Args)]
pub struct NewAdminArgs {
    /// Where the token goes; must not exist
    pub file: PathBuf,
    /// Whose it is, as logs and the audit name who did something: 1 to 64 of A-Z a-z 0-9 - _ .
    #[arg(long, value_name = "NAME")]
    pub name: StreamName,
    /// What it opens
    #[arg(long, value_name = "ROLE", value_enum)]
    pub role: AdminRole,
}

/// Makes or checks a token, or makes a key.
pub fn run(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        TokenCommand::Make(args) => make(args),
        TokenCommand::Check(args) => check(args),
        TokenCommand::NewKey(args) => {
            let public = secrets::make_key_pair(&args.file)?;
            println!("{}", serde_json::json!({ "private": args.file, "public": public }));
            Ok(ExitCode::SUCCESS)
        }
        TokenCommand::NewAdmin(args) => {
            let hash = secrets::make_admin_token(&args.file)?;
            let (name, role) = (args.name.as_str(), args.role.as_str());
            println!("\n[[admin.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{hash}\"");
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn make(args: &MakeArgs) -> anyhow::Result<ExitCode> {
    let config = match &args.config {
        None => None,
        Some(file) => match load(file) {
            None => return Ok(ExitCode::from(EXIT_BAD_CONFIG)),
            config => config,
        },
    };
    let keys = signing_keys(args.key.as_deref(), config.as_ref())?;
    let terms =
        Terms { id: Some(secrets::random_id()?), max_bitrate: args.max_bitrate, max_height: args.max_height };
    println!("{}", keys.issue_on(args.name.as_str(), args.ttl, terms, SystemTime::now())?);
    Ok(ExitCode::SUCCESS)
}

/// The key in `file`, else those that the configuration names.
pub(super) fn signing_keys(file: Option<&Path>, config: Option<&Config>) -> anyhow::Result<Keys> {
    match (file, config) {
        (Some(file), _) => Ok(Keys::of(vec![secrets::read_key(file)?])?),
        (None, Some(config)) => secrets::token_keys(config),
        (None, None) => anyhow::bail!("--key or --config is needed"),
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let keys = secrets::token_keys(&config)?;
    let token = args.token.rsplit("token=").next().unwrap_or_default();
    let token = token.split('&').next().unwrap_or_default();
    let found = keys.examine(token, args.stream.as_ref().map(StreamName::as_str), SystemTime::now());
    if let Some(claims) = &found.claims {
        println!("{}", serde_json::to_string(claims)?);
    }
    for problem in &found.problems {
        eprintln!("{problem}");
    }
    if found.claims.is_none() {
        eprintln!(
            "a token is what stands behind token= in a stream key: three parts with dots between them, without spaces"
        );
    }
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
