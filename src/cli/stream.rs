//! `rooftop stream create NAME`, `rooftop stream play-url NAME`, `rooftop stream show NAME`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use cluster::token::Terms;
use media::StreamName;
use serde::Serialize;

use super::{EXIT_BAD_CONFIG, load};
use crate::config::Config;
use crate::secrets;

/// Arguments of `stream`.
#[derive(Debug, Args)]
pub struct StreamArgs {
    /// What to do with streams.
    #[command(subcommand)]
    pub command: StreamCommand,
}

/// The subcommands of `stream`.
#[derive(Debug, Subcommand)]
pub enum StreamCommand {
    /// Make a stream key: whoever has it may publish the stream until it expires
    Create(CreateArgs),
    /// Make URLs with a playback token: whoever has one may watch the stream until it expires
    PlayUrl(PlayUrlArgs),
    /// How a stream of the fleet stands, as a running node knows it
    Show(super::show::ShowArgs),
}

/// Arguments of `stream create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the stream: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: StreamName,
    /// The configuration file of a node that has the token key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// A file with the private key to sign with, instead of the first of `tokens.key_files`
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// How long the key is valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `stream play-url`.
#[derive(Debug, Args)]
pub struct PlayUrlArgs {
    /// Name of the stream: 1 to 64 of A-Z a-z 0-9 - _ .
    pub name: StreamName,
    /// The configuration file of a node that has the playback key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// How long the token is valid: a player that is at it then is refused from there on
    #[arg(long, value_name = "DURATION", default_value = "12h", value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// What `stream play-url` prints.
#[derive(Debug, Serialize)]
struct PlayUrl {
    stream: String,
    token: String,
    watch: Vec<String>,
    hls: Vec<String>,
    dash: Vec<String>,
}

/// What `stream create` prints.
#[derive(Debug, Serialize)]
struct Created {
    stream: String,
    key: String,
    ingest: Vec<String>,
    publish: Vec<String>,
    watch: Vec<String>,
    hls: Vec<String>,
    dash: Vec<String>,
}

/// Makes what is asked for.
pub fn run(args: &StreamArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        StreamCommand::Create(args) => create(args),
        StreamCommand::PlayUrl(args) => play_url(args),
        StreamCommand::Show(args) => super::show::run(args),
    }
}

fn play_url(args: &PlayUrlArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let keys = secrets::playback_keys(&config)?;
    let name = &args.name;
    let token = keys.issue_playback(&format!("/live/{name}"), args.ttl, SystemTime::now())?;
    let bases = bases(&config);
    let urls = |file: &str| bases.iter().map(|base| format!("{base}/t/{token}/live/{name}/{file}")).collect();
    let made = PlayUrl {
        stream: name.to_string(),
        watch: bases.iter().map(|base| format!("{base}/watch/{name}?token={token}")).collect(),
        hls: urls("index.m3u8"),
        dash: urls("manifest.mpd"),
        token: token.clone(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&made)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("Stream {name}, token valid for {}", humantime::format_duration(args.ttl));
    let token = vec![made.token];
    for (label, lines) in
        [("Watch", &made.watch), ("HLS", &made.hls), ("DASH", &made.dash), ("Token", &token)]
    {
        for line in lines {
            println!("  {label:<22}{line}");
        }
    }
    if config.edge.playback.paths.is_empty() {
        eprintln!(
            "note: edge.playback.paths is empty, so this node lets everyone watch and knows no /t/ paths"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let keys = super::token::signing_keys(args.key.as_deref(), Some(&config))?;
    let terms = Terms { id: Some(secrets::random_id()?), ..Terms::default() };
    let token = keys.issue_on(args.name.as_str(), args.ttl, terms, SystemTime::now())?;
    let created = created(&config, &args.name, &token);
    if args.json {
        println!("{}", serde_json::to_string(&created)?);
    } else {
        print(&created, args.ttl);
    }
    Ok(ExitCode::SUCCESS)
}

fn created(config: &Config, name: &StreamName, token: &str) -> Created {
    let host = &config.public.host;
    let key = format!("{name}?token={token}");
    let ingest: Vec<_> = [("rtmps", config.ingest.rtmps), ("rtmp", config.ingest.rtmp)]
        .into_iter()
        .filter_map(|(scheme, addr)| Some(format!("{scheme}://{host}:{}/live", addr?.port())))
        .collect();
    let bases = bases(config);
    let urls = |path: String| bases.iter().map(|base| format!("{base}{path}")).collect();
    Created {
        stream: name.to_string(),
        publish: ingest.iter().map(|url| format!("{url}/{key}")).collect(),
        ingest,
        watch: urls(format!("/watch/{name}")),
        hls: urls(format!("/live/{name}/index.m3u8")),
        dash: urls(format!("/live/{name}/manifest.mpd")),
        key,
    }
}

/// Where viewers reach the edge.
fn bases(config: &Config) -> Vec<String> {
    let host = &config.public.host;
    [("http", config.edge.http), ("https", config.edge.https)]
        .into_iter()
        .filter_map(|(scheme, addr)| Some(format!("{scheme}://{host}:{}", addr?.port())))
        .collect()
}

fn print(created: &Created, ttl: Duration) {
    println!("Stream {}, key valid for {}", created.stream, humantime::format_duration(ttl));
    for (label, lines) in [
        ("Server (OBS: Custom)", &created.ingest),
        ("Stream key", &vec![created.key.clone()]),
        ("ffmpeg -f flv", &created.publish),
        ("Watch", &created.watch),
        ("HLS", &created.hls),
        ("DASH", &created.dash),
    ] {
        for line in lines {
            println!("  {label:<22}{line}");
        }
    }
}
