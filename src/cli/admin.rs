//! `rooftop policy get|set` and `rooftop purge`: the admin listener of a running node, from the command line.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::header::{CONTENT_TYPE, ETAG, HOST, HeaderName};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// For an answer of the node: a purge goes through all names.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which node.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node's admin.listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    pub admin: SocketAddr,
}

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What to do with the policy.
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// The subcommands of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy in force as JSON; its tag goes to standard error
    Get {
        /// One tier, edge or shield, instead of all
        tier: Option<String>,
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Put a policy in force, as `get` prints it
    Set {
        /// A file with JSON, or - for standard input
        file: PathBuf,
        /// The tier that the file is for, if it was got for one tier
        #[arg(long)]
        tier: Option<String>,
        /// Only if this is still the tag of the policy in force
        #[arg(long, value_name = "TAG")]
        if_match: Option<String>,
        /// Which node.
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// Arguments of `purge`.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    /// What the paths begin with, such as /live/demo/
    pub prefix: String,
    /// Keep what begins with this, such as the epoch that is running
    #[arg(long, value_name = "PREFIX")]
    pub except: Option<String>,
    /// One tier, edge or shield, instead of all
    #[arg(long)]
    pub tier: Option<String>,
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Shows or changes the policy.
pub fn policy(args: &PolicyArgs) -> anyhow::Result<ExitCode> {
    let path = |tier: &Option<String>| match tier {
        Some(tier) => format!("/admin/policy/{tier}"),
        None => "/admin/policy".to_owned(),
    };
    match &args.command {
        PolicyCommand::Get { tier, node } => {
            let Some((answer, tag)) = ask(node.admin, Method::GET, &path(tier), None, None)? else {
                return Ok(ExitCode::FAILURE);
            };
            eprintln!("tag: {tag}");
            println!("{answer:#}");
        }
        PolicyCommand::Set { file, tier, if_match, node } => {
            let mut text = String::new();
            if file.as_os_str() == "-" {
                std::io::stdin().read_to_string(&mut text).context("standard input")?;
            } else {
                text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            }
            let wanted = serde_json::from_str(&text)
                .with_context(|| format!("{}: not JSON as `rooftop policy get` prints it", file.display()))?;
            let Some((_, tag)) =
                ask(node.admin, Method::PUT, &path(tier), Some(&wanted), if_match.as_deref())?
            else {
                return Ok(ExitCode::FAILURE);
            };
            eprintln!("in force; tag: {tag}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Purges.
pub fn purge(args: &PurgeArgs) -> anyhow::Result<ExitCode> {
    let PurgeArgs { prefix, except, tier, node } = args;
    let wanted = json!({ "prefix": prefix, "except": except, "tier": tier });
    let Some((answer, _)) = ask(node.admin, Method::POST, "/admin/purge", Some(&wanted), None)? else {
        return Ok(ExitCode::FAILURE);
    };
    println!("{answer:#}");
    Ok(ExitCode::SUCCESS)
}

/// What a node is asked.
pub(super) struct Question {
    method: Method,
    path: String,
    body: String,
    headers: Vec<(HeaderName, String)>,
}

impl Question {
    pub(super) fn new(method: Method, path: &str) -> Question {
        Question { method, path: path.into(), body: String::new(), headers: Vec::new() }
    }

    pub(super) fn body(mut self, body: &Value) -> Question {
        self.body = body.to_string();
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &str) -> Question {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }
}

/// What it answers.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    tag: String,
    body: Value,
}

impl Answered {
    /// The JSON; `None`: it was refused, and why is on standard error.
    pub(super) fn good(&self) -> Option<&Value> {
        if self.status.is_success() {
            return Some(&self.body);
        }
        for problem in self.body["problems"].as_array().into_iter().flatten() {
            eprintln!("{}", problem.as_str().unwrap_or_default());
        }
        // RFC 9457.
        if let Some(detail) = self.body["detail"].as_str() {
            eprintln!("{detail}");
        }
        for error in self.body["errors"].as_array().into_iter().flatten() {
            let at = ["pointer", "parameter", "header"].into_iter().find_map(|member| error[member].as_str());
            eprintln!("{}: {}", at.unwrap_or_default(), error["detail"].as_str().unwrap_or_default());
        }
        None
    }
}

/// The JSON and the entity tag of an answer; `None`: it was refused, and why is on standard error.
fn ask(
    admin: SocketAddr,
    method: Method,
    path: &str,
    body: Option<&Value>,
    if_match: Option<&str>,
) -> anyhow::Result<Option<(Value, String)>> {
    let mut question = Question::new(method, path);
    if let Some(body) = body {
        question = question.body(body);
    }
    if let Some(tag) = if_match {
        question = question.header("if-match", tag);
    }
    let answered = exchange(admin, question)?;
    Ok(answered.good().cloned().map(|answer| (answer, answered.tag)))
}

/// What the admin listener of a node says in answer to a GET, as text.
pub(super) fn read(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let (head, body) = answer(admin, Question::new(Method::GET, path))?;
    if head.status != StatusCode::OK {
        bail!("{admin} answered {} for {path}", head.status);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Asks the admin listener of a node for JSON.
pub(super) fn exchange(admin: SocketAddr, question: Question) -> anyhow::Result<Answered> {
    let (head, body) = answer(admin, question)?;
    let tag = head.headers.get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
    let status = head.status;
    if status == StatusCode::NO_CONTENT {
        return Ok(Answered { status, tag, body: Value::Null });
    }
    let body: Value = serde_json::from_slice(&body)
        .with_context(|| format!("{admin} answered {status} with what is no JSON: no Rooftop?"))?;
    Ok(Answered { status, tag, body })
}

fn answer(admin: SocketAddr, question: Question) -> anyhow::Result<(http::response::Parts, Bytes)> {
    let Question { method, path, body, headers } = question;
    let mut request = Request::builder().method(method).uri(path).header(HOST, admin.to_string());
    request = request.header(CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exchange = async {
        let stream = TcpStream::connect(admin).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            anyhow::Ok((head, body.collect().await?.to_bytes()))
        };
        tokio::select! {
            answer = exchange => answer,
            ended = connection => {
                ended?;
                bail!("the connection ended early")
            }
        }
    };
    let answered = runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
    answered.map_err(anyhow::Error::from).and_then(|answer| answer).with_context(|| {
        format!("no answer from the admin listener at {admin}: is the node running, and is this its admin.listen? (--admin ADDRESS)")
    })
}
