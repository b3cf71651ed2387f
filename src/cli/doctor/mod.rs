//! `rooftop doctor --config FILE`: what would keep a node from working on this machine, and what to do about it.

mod certificates;
mod machine;
mod stores;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::{EXIT_BAD_CONFIG, load};
use crate::config::{Config, Role};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The configuration file of the node
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Good,
    /// It works, but somebody should look.
    Warning,
    /// The node does not start, or does not do its work.
    Failure,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    about: &'static str,
    level: Level,
    found: String,
    /// What to do about it, unless it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn good(about: &'static str, found: impl Into<String>) -> Finding {
        Finding { about, level: Level::Good, found: found.into(), advice: None }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { about, level: Level::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn failure(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { about, level: Level::Failure, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything, and says what it found. Exit code 1: something does not work.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(examine(&config));
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Good);
    if args.json {
        println!("{}", json!({ "level": worst, "findings": findings }));
    } else {
        for Finding { about, level, found, advice } in &findings {
            let mark = match level {
                Level::Good => "ok",
                Level::Warning => "warning",
                Level::Failure => "FAILURE",
            };
            println!("{mark:<8} {about:<13} {found}");
            if let Some(advice) = advice {
                println!("{:<8} {:<13} -> {advice}", "", "");
            }
        }
    }
    Ok(if worst == Level::Failure { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(config: &Config) -> Vec<Finding> {
    let now = SystemTime::now();
    let mut findings = vec![Finding::good("configuration", format!("roles {}", roles(config)))];
    let running = machine::is_running(&config.admin).await;
    findings.extend(machine::ports(config, running));
    findings.push(machine::folder(config));
    findings.extend(certificates::all(config, now));
    findings.extend(certificates::keys(config));
    findings.push(machine::clock(now).await);
    findings.extend(stores::etcd(config).await);
    findings.extend(stores::archive(config).await);
    if config.has(Role::Origin) {
        // Else the configuration would not have been taken.
        let encoders: Vec<_> = config.transcode.encoders().into_iter().collect();
        findings.push(Finding::good("encoders", format!("tried: {}", encoders.join(", "))));
    }
    findings.extend(machine::limits(config));
    findings
}

fn roles(config: &Config) -> String {
    config.node.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}
