//! `rooftop policy get|set` and `rooftop purge`: the admin listener of a running node, from the command line.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::node::{NodeArgs, Question, exchange};

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
            let Some((answer, tag)) = ask(node, Method::GET, &path(tier), None, None)? else {
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
            let Some((_, tag)) = ask(node, Method::PUT, &path(tier), Some(&wanted), if_match.as_deref())?
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
    let Some((answer, _)) = ask(node, Method::POST, "/admin/purge", Some(&wanted), None)? else {
        return Ok(ExitCode::FAILURE);
    };
    println!("{answer:#}");
    Ok(ExitCode::SUCCESS)
}

/// The JSON and the entity tag of an answer; `None`: it was refused, and why is on standard error.
fn ask(
    node: &NodeArgs,
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
    let answered = exchange(node, question)?;
    Ok(answered.good().cloned().map(|answer| (answer, answered.tag)))
}
