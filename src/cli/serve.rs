//! `rooftop serve --config FILE`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{EXIT_BAD_CONFIG, load};
use crate::Server;
use crate::config::Role;
use crate::reload::Cause;
use crate::telemetry;
use crate::upgrade::{self, Predecessor};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Log filter instead of the configured one, such as `info,edge=debug`
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Take over from the process that started this one, whose sockets come in at standard input
    #[arg(long, hide = true)]
    pub inherit: bool,
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads the configuration again, SIGUSR2 has the
/// binary started anew and taken over ([`crate::upgrade`]). Once all ports are bound, one line of JSON on standard output tells them.
pub fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    // By then there may be another binary at its path, which is the one that is to be started.
    let program = std::env::current_exe().context("the path of this binary")?;
    let has_origin = config.has(Role::Origin);
    telemetry::init(&config.log.filter, args.log.as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
        let mut upgrade = signal(SignalKind::user_defined2()).context("SIGUSR2")?;
        let predecessor = if args.inherit { Some(Predecessor::inherit()?) } else { None };
        let server = Server::bind(config, &args.config).await?;
        let reloader = server.reloader();
        println!("{}", serde_json::json!({ "listeners": server.listeners }));
        let (shutdown, handed) = (CancellationToken::new(), CancellationToken::new());
        let mut serving = tokio::spawn(server.serve(shutdown.clone(), handed.clone()));
        tell(&[NotifyState::Ready]);
        if let Some(Err(error)) = predecessor.map(Predecessor::relieve) {
            warn!(error = format!("{error:#}"), "nobody to relieve");
        }
        let mut next = None::<JoinHandle<anyhow::Result<u32>>>;
        let signal = loop {
            let started = async {
                match &mut next {
                    Some(next) => next.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                ended = &mut serving => return ended?.map(|()| ExitCode::SUCCESS),
                started = started => {
                    next = None;
                    match started? {
                        Ok(pid) => {
                            info!(pid, "the next process serves: this one drains");
                            tell(&[NotifyState::MainPid(pid)]);
                            handed.cancel();
                            break "SIGUSR2";
                        }
                        Err(error) => {
                            error!(error = format!("{error:#}"), "not upgraded: this process goes on");
                        }
                    }
                }
                _ = upgrade.recv() => {
                    if has_origin {
                        error!("not upgraded: the streams of an origin are in its memory; drain it, and another origin takes them");
                    } else if next.is_none() {
                        info!(signal = "SIGUSR2", program = %program.display(), "starting the next process");
                        let program = program.clone();
                        next = Some(tokio::task::spawn_blocking(move || upgrade::start_next(&program)));
                    }
                }
                _ = hangup.recv() => {
                    info!(signal = "SIGHUP", file = %args.config.display(), "reloading the configuration");
                    // It reads a file and goes through all names that are kept.
                    let reloader = reloader.clone();
                    if let Ok(now) = NotifyState::monotonic_usec_now() {
                        tell(&[NotifyState::Reloading, now]);
                    }
                    let _ = tokio::task::spawn_blocking(move || reloader.reload(Cause::Signal)).await?;
                    tell(&[NotifyState::Ready]);
                }
            }
        };
        info!(signal, "shutting down");
        if !handed.is_cancelled() {
            tell(&[NotifyState::Stopping]);
        }
        shutdown.cancel();
        serving.await??;
        info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells systemd how it stands, if that has started it as a service of `Type=notify`.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "systemd cannot be told");
    }
}
