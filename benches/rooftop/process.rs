//! Child processes that end with their guard, whatever happens.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// What a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that was started and has not been waited for, so that a signal can end it.
static STARTED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn started() -> MutexGuard<'static, BTreeSet<u32>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A child process in a process group of its own. Dropping it ends the group: SIGTERM, then SIGKILL.
pub(crate) struct Running {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts `command`.
    pub(crate) fn start(name: &str, command: &mut Command) -> anyhow::Result<Running> {
        // Held across the start: a signal in between would miss the new process.
        let mut started = started();
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
        started.insert(child.id());
        Ok(Running { name: name.to_owned(), child, status: None })
    }

    /// For its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, which must be a success, for at most `limit`.
    pub(crate) fn succeed(self, limit: Duration) -> anyhow::Result<()> {
        self.cost(limit).map(drop)
    }

    /// As [`Running::succeed`], and says what it has used. No other child may end meanwhile.
    pub(crate) fn cost(mut self, limit: Duration) -> anyhow::Result<Cost> {
        let (began, before) = (Instant::now(), ended_children_cpu_seconds());
        let mut peak_kib = 0;
        while self.status.is_none() && began.elapsed() < limit {
            // A high-water mark: only the growth of the last moments can be missed.
            peak_kib = peak_resident_kib(self.pid()).unwrap_or(0).max(peak_kib);
            self.wait(Duration::from_millis(5))?;
        }
        match self.status {
            None => bail!("{} took longer than {limit:?}", self.name),
            Some(status) if !status.success() => bail!("{}: {status}", self.name),
            Some(_) => Ok(Cost {
                cpu_s: ended_children_cpu_seconds() - before,
                wall_s: began.elapsed().as_secs_f64(),
                peak_mib: peak_kib as f64 / 1024.0,
            }),
        }
    }

    fn wait(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        while self.status.is_none() && Instant::now() < deadline {
            // The lock is held while the process is reaped, so that no signal is sent to a number that has a new owner.
            let mut started = started();
            self.status = self.child.try_wait()?;
            if self.status.is_some() {
                started.remove(&self.pid());
                break;
            }
            drop(started);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self.status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for signal in SIGNALS {
            if matches!(self.wait(Duration::from_millis(1)), Ok(Some(_))) {
                return;
            }
            send(signal, self.pid());
            let _ = self.wait(PATIENCE);
        }
    }
}

/// Ends everything that runs.
pub(crate) fn end_all() {
    let pids: Vec<u32> = started().iter().copied().collect();
    for signal in SIGNALS {
        let left = || pids.iter().copied().filter(|&pid| runs(pid));
        left().for_each(|pid| send(signal, pid));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && left().next().is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const SIGNALS: [&str; 2] = ["TERM", "KILL"];

/// Sends a signal to the process group that `pid` leads.
fn send(signal: &str, pid: u32) {
    // The shell's own command: the standard library has no kill(2) for groups. It fails only if the group is gone.
    let _ = Command::new("sh")
        .args(["-c", &format!("kill -s {signal} -- -{pid}")])
        .stderr(Stdio::null())
        .status();
}

fn runs(pid: u32) -> bool {
    stat(&pid.to_string()).is_some_and(|stat| stat.state != 'Z')
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// User and system, of all threads.
    pub(crate) cpu_s: f64,
    pub(crate) wall_s: f64,
    /// Largest resident set.
    pub(crate) peak_mib: f64,
}

/// CPU time that a process and its living children have used so far, in seconds, user and system.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let own = stat(&pid.to_string()).map_or(0.0, |stat| stat.own_cpu_s);
    own + children(pid).map(cpu_seconds).sum::<f64>()
}

/// CPU time of all children of this process that have been waited for, in seconds.
pub(crate) fn ended_children_cpu_seconds() -> f64 {
    stat("self").map_or(0.0, |stat| stat.ended_children_cpu_s)
}

/// CPU time of this process and of all its children that have been waited for, in seconds.
pub(crate) fn our_cpu_seconds() -> f64 {
    stat("self").map_or(0.0, |stat| stat.own_cpu_s + stat.ended_children_cpu_s)
}

/// Whether this process may do as it likes.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Memory of a process and its living children in bytes, what they share counted once.
pub(crate) fn memory_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024 + children(pid).map(memory_bytes).sum::<u64>()
}

fn children(pid: u32) -> impl Iterator<Item = u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>().into_iter()
}

/// The CPUs that this process may use.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// One CPU for the server and another for the load, where there are two.
pub(crate) fn two_cpus() -> (Option<usize>, Option<usize>) {
    match allowed_cpus()[..] {
        [first, second, ..] => (Some(first), Some(second)),
        _ => (None, None),
    }
}

/// Keeps all threads of this process on one CPU for as long as it lives: the load that it makes must not take from the
/// server.
pub(crate) struct Confined(Vec<usize>);

impl Confined {
    pub(crate) fn to(cpu: Option<usize>) -> anyhow::Result<Confined> {
        let before = allowed_cpus();
        if let Some(cpu) = cpu {
            confine(&[cpu])?;
        }
        Ok(Confined(before))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = confine(&self.0);
    }
}

fn confine(cpus: &[usize]) -> anyhow::Result<()> {
    let list = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", &list, &std::process::id().to_string()]);
    let output = command.output().context("taskset")?;
    ensure!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// CPU time that all processes of this machine have used, in seconds.
pub(crate) fn machine_cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // `cpu`, then user, nice, system, idle, iowait, irq, softirq, steal.
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let hundredths: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|&index| hundredths.get(index)).sum::<u64>() as f64 / 100.0
}

/// Of `/proc/[pid]/stat`.
struct Stat {
    state: char,
    own_cpu_s: f64,
    ended_children_cpu_s: f64,
}

fn stat(pid: &str) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let hundredths = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        own_cpu_s: (hundredths(11)? + hundredths(12)?) as f64 / 100.0,
        ended_children_cpu_s: (hundredths(13)? + hundredths(14)?) as f64 / 100.0,
    })
}

fn peak_resident_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
}
