//! The cluster test bench: a fleet on hosts of its own, each a network namespace; one thing after another goes wrong in the
//! middle of a broadcast, and every picture must still reach its viewers exactly once.
//!
//! `make test-cluster` asks for it, as root; `make test-cluster ONLY=kill-origin,drain-origin` for some of it. Otherwise
//! it is skipped. Read `scenario.rs` next.

#![expect(unreachable_pub, reason = "the modules of one test binary share their items plainly")]

mod fleet;
#[expect(dead_code, reason = "the stories of the other tests need more")]
#[path = "../e2e/kit.rs"]
mod kit;
mod net;
#[path = "../kit/numbered.rs"]
mod numbered;
mod player;
mod playlist;
mod reader;
mod scenario;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use fleet::Fleet;
use net::{Net, WORLD};
use scenario::{Outcome, SCENARIOS, Scenario};

/// Asks for the bench: `all`, or names of scenarios with commas between them.
const ASK: &str = "ROOFTOP_CLUSTER";

/// First argument of the process that plays the scenarios, then the run and the folder. It is in the world's namespace.
const PLAY: &str = "--play";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match (&arguments[..], std::env::var(ASK)) {
        ([PLAY, run, folder], Ok(asked)) => play(&Net::of(run.parse().unwrap()), Path::new(folder), &asked),
        (_, Ok(_)) => match missing() {
            None => supervise(),
            Some(missing) if std::env::var_os("ROOFTOP_STRICT").is_some() => {
                eprintln!("the cluster test bench cannot run: {missing}");
                ExitCode::FAILURE
            }
            Some(missing) => {
                println!("skipped: the cluster test bench cannot run: {missing}");
                ExitCode::SUCCESS
            }
        },
        (_, Err(_)) => {
            println!("skipped: `make test-cluster` asks for the cluster test bench");
            ExitCode::SUCCESS
        }
    }
}

/// What this machine lacks.
fn missing() -> Option<String> {
    for (program, argument) in [
        ("ip", "-Version"),
        ("nft", "--version"),
        ("ffmpeg", "-version"),
        ("node", "--version"),
        ("etcd", "--version"),
    ] {
        let found = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("no {program}: run scripts/deps.sh test"));
        }
    }
    let moto = fleet::moto();
    if !moto.exists() {
        return Some(format!("no {}: run scripts/deps.sh test", moto.display()));
    }
    net::tried().err().map(|error| format!("no network namespaces, as root has them: {error}"))
}

/// Makes the network, has the scenarios played in it, and takes it away again whatever comes of them.
fn supervise() -> ExitCode {
    net::sweep();
    let run = std::process::id();
    let folder = std::env::temp_dir().join(format!("rooftop-cluster-{run}"));
    std::fs::create_dir_all(&folder).unwrap();
    let built = Built(Net::of(run));
    built.0.build(&fleet::hosts()).unwrap();
    let me = std::env::current_exe().unwrap();
    let mut playing = built.0.on(WORLD, me);
    playing.args([PLAY, &run.to_string()]).arg(&folder);
    let ended = kit::runtime().block_on(async {
        let mut playing = playing.spawn().unwrap();
        let mut terminated =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let waiting = tokio::task::spawn_blocking(move || playing.wait());
        tokio::select! {
            status = waiting => Some(status.unwrap().unwrap()),
            _ = tokio::signal::ctrl_c() => None,
            _ = terminated.recv() => None,
        }
    });
    // Ends the scenarios too, if they still go on.
    drop(built);
    match ended {
        Some(status) if status.success() => {
            let _ = std::fs::remove_dir_all(&folder);
            ExitCode::SUCCESS
        }
        Some(status) => {
            println!("FAILED ({status}); logs and what was read: {}", folder.display());
            ExitCode::FAILURE
        }
        None => {
            println!("interrupted");
            ExitCode::from(130)
        }
    }
}

/// A network that is taken away when it is dropped.
struct Built(Net);

impl Drop for Built {
    fn drop(&mut self) {
        self.0.remove();
    }
}

fn play(net: &Net, folder: &Path, asked: &str) -> ExitCode {
    let began = Instant::now();
    let asked: Vec<_> = asked.split(',').collect();
    let all = asked == ["all"];
    let known = |name: &&str| SCENARIOS.iter().any(|one| one.name == *name);
    if let Some(name) = asked.iter().find(|name| !all && !known(name)) {
        eprintln!("no scenario {name:?}; there are: {}", names().join(", "));
        return ExitCode::FAILURE;
    }
    let mut fleet = Some(Fleet::start(net.clone(), folder));
    let mut outcomes = Vec::new();
    for scenario in SCENARIOS.iter().filter(|one| all || asked.contains(&one.name)) {
        println!("== {}: {:?} (after {:.0?})", scenario.name, scenario.fault, began.elapsed());
        let outcome = attempt(scenario, fleet.as_mut().unwrap(), folder);
        if !outcome.faults.is_empty() {
            for fault in &outcome.faults {
                println!("   {fault}");
            }
            fleet.as_ref().unwrap().print_logs();
            // What went wrong here must not show in the next one.
            drop(fleet.take());
            fleet = Some(Fleet::start(net.clone(), folder));
        }
        outcomes.push(outcome);
    }
    drop(fleet);
    table(&outcomes);
    let failed = outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count();
    println!("{} of {} scenarios passed, {:.0?}", outcomes.len() - failed, outcomes.len(), began.elapsed());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}

/// A scenario that panics has failed, and the next is played all the same.
fn attempt(scenario: &Scenario, fleet: &mut Fleet, folder: &Path) -> Outcome {
    let played = catch_unwind(AssertUnwindSafe(|| scenario::play(scenario, fleet, folder)));
    played.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        Outcome::failed(scenario, said.unwrap_or_default())
    })
}

fn table(outcomes: &[Outcome]) {
    println!();
    println!(
        "| scenario | longest time between new segments | beyond a segment's own | aim | pictures | breaks | hls.js | archive | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for outcome in outcomes {
        let beyond = outcome.gap.saturating_sub(scenario::SEGMENT);
        println!(
            "| {} | {:.2} s | {:.2} s | {} s | {} | {} | {} | {} | {} |",
            outcome.name,
            outcome.gap.as_secs_f64(),
            beyond.as_secs_f64(),
            outcome.aim.as_secs(),
            outcome.pictures,
            outcome.discontinuities,
            outcome.player,
            outcome.archive,
            if outcome.faults.is_empty() { "passed" } else { "FAILED" },
        );
    }
}
