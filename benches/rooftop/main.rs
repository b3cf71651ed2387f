//! What Rooftop costs and how late it is, each beside a peer that does the same work in the same run.
//!
//! `make bench` runs all scenarios; `scripts/bench.sh edge_hits/plain idle` some of what there is. Nothing is asserted about
//! times; what is checked is that both sides did the whole work.
//!
//! Read [`ladder`], [`latency`] and [`edge_hits`]; `docs/benchmarks.md` says what the figures mean.

mod bare;
mod clip;
mod crowd;
mod edge_hits;
mod fill;
mod glass;
mod h2o;
mod herd;
mod hop;
mod idle;
mod ingest;
mod ladder;
mod latency;
mod live;
mod load;
mod nginx;
mod nginx_rtmp;
mod node;
mod origin;
mod packaging;
mod process;
mod publishers;
mod quality;
mod report;
mod server;
mod simulate;
mod sink;
mod store;
mod varnish;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use report::Report;

/// Where clips, logs and results go: `target/bench` of the workspace, and a folder below it for this run.
pub(crate) struct Folders {
    /// Kept between runs.
    pub(crate) kept: PathBuf,
    /// Gone after a run that succeeded.
    pub(crate) run: PathBuf,
    /// Held in memory where the system offers that; goes whatever happens.
    pub(crate) memory: PathBuf,
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.memory);
    }
}

type Scenario = fn(&Folders, &tokio::runtime::Handle, &mut Report) -> anyhow::Result<()>;

const SCENARIOS: [(&str, Scenario); 11] = [
    ("ladder", ladder::run),
    ("packaging", packaging::run),
    ("latency", latency::run),
    ("glass", glass::run),
    ("ingest", ingest::run),
    ("edge_hits", edge_hits::run),
    ("idle", idle::run),
    ("fill", fill::run),
    ("herd", herd::run),
    ("simulate", simulate::run),
    ("store", store::run),
];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    // This binary is also some of the processes that take part.
    match args.next() {
        Some(mode) if mode == ladder::MODE => return ladder::child(args),
        Some(mode) if mode == bare::MODE => return bare::child(args),
        Some(mode) if mode == sink::MODE => return sink::child(args),
        _ => {}
    }
    if !std::env::args().any(|arg| arg == "--bench") {
        // `cargo test --all-targets` runs benches too, without this argument.
        println!("nothing to test; measure with: make bench");
        return Ok(());
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let known = |wanted: &&String| {
        SCENARIOS.iter().any(|(known, _)| wanted.split('/').next().is_some_and(|wanted| wanted == *known))
    };
    if let Some(unknown) = wanted.iter().find(|wanted| !known(wanted)) {
        bail!("there is no scenario {unknown:?}: {}", SCENARIOS.map(|(name, _)| name).join(", "));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let folders = folders()?;
    end_all_on_signals(&runtime, folders.memory.clone())?;
    let began = Instant::now();
    let mut report = Report::new(wanted);
    for (name, run) in SCENARIOS {
        if report.wants(name) {
            report.begin(name);
            let (time, machine, ours) =
                (Instant::now(), process::machine_cpu_seconds(), process::our_cpu_seconds());
            run(&folders, runtime.handle(), &mut report)
                .with_context(|| format!("scenario {name}; logs are in {}", folders.run.display()))?;
            let others = process::machine_cpu_seconds() - machine - (process::our_cpu_seconds() - ours);
            let share = 100.0 * others / time.elapsed().as_secs_f64();
            report.note(&format!("meanwhile other processes of this machine took {share:.0} % of a core"));
        }
    }
    println!("\n{}", report.text());
    let path = folders.kept.join("results.json");
    std::fs::write(&path, report.json()?).with_context(|| path.display().to_string())?;
    println!("{} written; {:.0} s in all", path.display(), began.elapsed().as_secs_f64());
    std::fs::remove_dir_all(&folders.run)?;
    Ok(())
}

fn folders() -> anyhow::Result<Folders> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("bench");
    let run = kept.join(format!("{RUN}{}", std::process::id()));
    std::fs::create_dir_all(&run).with_context(|| run.display().to_string())?;
    let shared_memory = Path::new("/dev/shm");
    let memory = match shared_memory.is_dir() {
        true => shared_memory.join(format!("{MEMORY}{}", std::process::id())),
        false => run.join("memory"),
    };
    std::fs::create_dir_all(&memory).with_context(|| memory.display().to_string())?;
    for (folder, prefix) in [(kept.as_path(), RUN), (shared_memory, MEMORY)] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            // What a run has left that failed or was killed: its process is gone.
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
    }
    Ok(Folders { kept, run, memory })
}

/// Names of folders of one run, before its process id.
const RUN: &str = "run-";
const MEMORY: &str = "rooftop-bench-";

/// Ctrl-C and SIGTERM end what this run has started. A panic or an error does so by dropping it.
fn end_all_on_signals(runtime: &tokio::runtime::Runtime, memory: PathBuf) -> anyhow::Result<()> {
    let _entered = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    runtime.spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        process::end_all();
        let _ = std::fs::remove_dir_all(memory);
        std::process::exit(130);
    });
    Ok(())
}
