//! `rooftop serve --config FILE`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{EXIT_BAD_CONFIG, load};
use crate::Server;
use crate::reload::Cause;
use crate::telemetry;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Log filter instead of the configured one, such as `info,edge=debug`
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads the configuration again. Once all ports are bound, one line of JSON on standard output tells them.
pub fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&args.config) else {
        return Ok(ExitCode::from(EXIT_BAD_CONFIG));
    };
    telemetry::init(&config.log.filter, args.log.as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
        let server = Server::bind(config, &args.config).await?;
        let reloader = server.reloader();
        println!("{}", serde_json::json!({ "listeners": server.listeners }));
        let shutdown = CancellationToken::new();
        let mut serving = tokio::spawn(server.serve(shutdown.clone()));
        let signal = loop {
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                ended = &mut serving => return ended?.map(|()| ExitCode::SUCCESS),
                _ = hangup.recv() => {
                    info!(signal = "SIGHUP", file = %args.config.display(), "reloading the configuration");
                    // It reads a file and goes through all names that are kept.
                    let reloader = reloader.clone();
                    let _ = tokio::task::spawn_blocking(move || reloader.reload(Cause::Signal)).await?;
                }
            }
        };
        info!(signal, "shutting down");
        shutdown.cancel();
        serving.await??;
        info!("stopped");
        Ok(ExitCode::SUCCESS)
    })
}
