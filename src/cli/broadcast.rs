//! `rooftop broadcast create|list|show|end|delete`: the Live API of a running node, from the command line.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use media::StreamName;
use serde_json::{Value, json};

use super::node::{NodeArgs, Question, exchange};

/// Arguments of `broadcast`.
#[derive(Debug, Args)]
pub struct BroadcastArgs {
    /// What to do with broadcasts.
    #[command(subcommand)]
    pub command: BroadcastCommand,
}

/// The subcommands of `broadcast`.
#[derive(Debug, Subcommand)]
pub enum BroadcastCommand {
    /// Create a broadcast: prints its stream key, which is not shown again, and its URLs
    Create(CreateArgs),
    /// List broadcasts, newest first
    List(ListArgs),
    /// Show how a broadcast stands
    Show(OneArgs),
    /// End a broadcast at once: its token is revoked
    End(OneArgs),
    /// Forget a broadcast that has ended, and remove its recording if asked to
    Delete(DeleteArgs),
}

/// Arguments of `broadcast create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of its stream; default: one that is made up
    pub stream: Option<StreamName>,
    /// What it is called
    #[arg(long)]
    pub title: Option<String>,
    /// Something to remember with it, as NAME=VALUE; several times for several
    #[arg(long = "metadata", value_name = "NAME=VALUE", value_parser = pair)]
    pub metadata: Vec<(String, String)>,
    /// How long its token is valid
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub ttl: Duration,
    /// Most bits per second that may be sent, over ten seconds
    #[arg(long, value_name = "BPS")]
    pub max_bitrate: Option<u64>,
    /// Most lines of video that may be sent
    #[arg(long, value_name = "LINES")]
    pub max_height: Option<u32>,
    /// Name POPs of this region first
    #[arg(long)]
    pub region: Option<String>,
    /// Of several creations with the same key only the first makes a broadcast
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `broadcast list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those that are created, live, interrupted, ended or archived
    #[arg(long)]
    pub state: Option<String>,
    /// Only those of this stream
    #[arg(long)]
    pub stream: Option<StreamName>,
    /// At most so many, 1 to 200
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// Those after this one: what the page before named
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of the others.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// The broadcast
    pub id: String,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `broadcast delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Remove its recording from the archive, too
    #[arg(long)]
    pub with_recording: bool,
    /// Which broadcast.
    #[command(flatten)]
    pub one: OneArgs,
}

/// Asks the node.
pub fn run(args: &BroadcastArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        BroadcastCommand::Create(args) => create(args),
        BroadcastCommand::List(args) => list(args),
        BroadcastCommand::Show(args) => one(args, Method::GET, ""),
        BroadcastCommand::End(args) => one(args, Method::POST, "/end"),
        BroadcastCommand::Delete(DeleteArgs { one: args, with_recording }) => {
            one(args, Method::DELETE, if *with_recording { "?with_recording=true" } else { "" })
        }
    }
}

fn create(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let metadata: BTreeMap<_, _> = args.metadata.iter().cloned().collect();
    let mut body = json!({ "metadata": metadata, "token_ttl_seconds": args.ttl.as_secs() });
    for (name, value) in [
        ("stream", args.stream.as_ref().map(|stream| json!(stream))),
        ("title", args.title.as_ref().map(|title| json!(title))),
        ("max_bitrate_bps", args.max_bitrate.map(|most| json!(most))),
        ("max_height", args.max_height.map(|most| json!(most))),
        ("region", args.region.as_ref().map(|region| json!(region))),
    ] {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    let mut question = Question::new(Method::POST, "/v1/broadcasts").body(&body);
    if let Some(key) = &args.idempotency_key {
        question = question.header("idempotency-key", key);
    }
    answer(args.node.ask(question)?, args.json)
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let mut path = format!("/v1/broadcasts?limit={}", args.limit);
    for (name, value) in [
        ("state", &args.state),
        ("stream", &args.stream.as_ref().map(ToString::to_string)),
        ("after", &args.after),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let answered = args.node.ask(Question::new(Method::GET, &path))?;
    let Some(page) = answered.good() else { return Ok(ExitCode::FAILURE) };
    if args.json {
        println!("{page}");
        return Ok(ExitCode::SUCCESS);
    }
    for one in page["broadcasts"].as_array().into_iter().flatten() {
        let text = |name: &str| one[name].as_str().unwrap_or_default();
        println!(
            "{}  {:<11}  {}  {}  {}",
            text("id"),
            text("state"),
            text("created_at"),
            text("stream"),
            text("title")
        );
    }
    if let Some(next) = page["next"].as_str() {
        eprintln!("there are more: --after {next}");
    }
    Ok(ExitCode::SUCCESS)
}

fn one(args: &OneArgs, method: Method, what: &str) -> anyhow::Result<ExitCode> {
    let mut question = Question::new(method.clone(), &format!("/v1/broadcasts/{}{what}", args.id));
    if method == Method::POST {
        question = question.body(&json!({}));
    }
    answer(args.node.ask(question)?, args.json)
}

fn answer(answered: super::node::Answered, as_json: bool) -> anyhow::Result<ExitCode> {
    if matches!(answered.status, StatusCode::NO_CONTENT | StatusCode::ACCEPTED) {
        return Ok(ExitCode::SUCCESS);
    }
    let Some(broadcast) = answered.good() else { return Ok(ExitCode::FAILURE) };
    if as_json {
        println!("{broadcast}");
    } else {
        print(broadcast);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(broadcast: &Value) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    println!("Broadcast {}, {}", text(&broadcast["id"]), text(&broadcast["state"]));
    let line = |label: &str, value: &Value| {
        if !value.is_null() {
            println!("  {label:<22}{}", text(value));
        }
    };
    for (label, name) in [("Stream", "stream"), ("Title", "title"), ("Stream key", "stream_key")] {
        line(label, &broadcast[name]);
    }
    for pop in broadcast["ingest"].as_array().into_iter().flatten() {
        line("Server", &pop["rtmps"]);
        line("Server, in the clear", &pop["rtmp"]);
    }
    for (label, name) in [("Watch", "watch"), ("HLS", "hls"), ("DASH", "dash")] {
        for url in broadcast["playback"][name].as_array().into_iter().flatten() {
            line(label, url);
        }
    }
    for recording in broadcast["playback"]["recordings"].as_array().into_iter().flatten() {
        for (label, name) in [("Recording, HLS", "hls"), ("Recording, DASH", "dash")] {
            for url in recording[name].as_array().into_iter().flatten() {
                line(label, url);
            }
        }
    }
    for (label, name) in [
        ("Created", "created_at"),
        ("Started", "started_at"),
        ("Interrupted", "interrupted_at"),
        ("Ended", "ended_at"),
        ("Ended by", "ended_by"),
        ("Archived", "archived_at"),
        ("Owner", "owner"),
        ("Epoch", "epoch"),
    ] {
        line(label, &broadcast[name]);
    }
    for archive in broadcast["archives"].as_array().into_iter().flatten() {
        line("Archive", archive);
    }
    for warning in broadcast["health"]["warnings"].as_array().into_iter().flatten() {
        line("Warning", &warning["says"]);
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl NodeArgs {
    fn ask(&self, question: Question) -> anyhow::Result<super::node::Answered> {
        exchange(self, question)
    }
}
