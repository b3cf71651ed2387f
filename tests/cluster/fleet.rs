//! The fleet: which hosts there are, what runs on each, and what can be done to it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::kit::*;
use crate::net::{Net, WORLD};

/// Where viewers look for the fleet: at one edge, or at the other.
pub const VIEWERS: Ipv4Addr = address(100);

/// Hosts by name, with the last byte of their addresses.
const HOSTS: &[(&str, u8)] = &[
    (WORLD, 1),
    ("pop-1", 11),
    ("pop-2", 12),
    ("origin-1", 21),
    ("origin-2", 22),
    ("origin-3", 23),
    ("shield-1", 31),
    ("shield-2", 32),
    ("edge-1", 41),
    ("edge-2", 42),
];

const fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

pub fn hosts() -> Vec<(&'static str, Ipv4Addr)> {
    HOSTS.iter().map(|(name, last)| (*name, address(*last))).collect()
}

pub fn address_of(host: &str) -> Ipv4Addr {
    hosts().iter().find(|(name, _)| *name == host).unwrap_or_else(|| panic!("no host {host}")).1
}

/// The nodes of a role: its name, and a dash behind it.
pub fn nodes(role: &str) -> impl Iterator<Item = &'static str> {
    HOSTS.iter().map(|(name, _)| *name).filter(move |name| name.starts_with(role))
}

/// A process of the fleet.
struct Process {
    child: Child,
    frozen: bool,
    // Keeps the pipe open: a node that cannot write to its standard output would fail.
    _stdout: BufReader<ChildStdout>,
}

impl Process {
    fn kill(mut self) -> ExitStatus {
        let _ = self.child.kill();
        self.child.wait().unwrap()
    }
}

/// Every node as a process on a host of its own.
pub struct Fleet {
    pub net: Net,
    folder: PathBuf,
    running: BTreeMap<&'static str, Process>,
    /// The edge that viewers are led to.
    front: &'static str,
}

impl Fleet {
    /// Writes what the nodes need to know, and starts them all.
    pub fn start(net: Net, folder: &Path) -> Fleet {
        let tls = folder.join("tls");
        fs::write(folder.join("token.key"), "the fleet's own secret: only for this run").unwrap();
        for name in HOSTS.iter().map(|(name, _)| *name).filter(|name| *name != WORLD) {
            let files = ::net::tls::development_files(&tls, name, &[address_of(name).to_string()]).unwrap();
            fs::write(folder.join(format!("{name}.toml")), config(folder, name, &files)).unwrap();
        }
        let mut fleet = Fleet { net, folder: folder.into(), running: BTreeMap::new(), front: "edge-1" };
        fleet.lead_viewers_to(fleet.front);
        fleet.mend();
        fleet
    }

    /// Heals the network and starts what does not run, top down, so that each finds those it asks.
    pub fn mend(&mut self) {
        for (host, _) in hosts() {
            self.net.cable(host, true);
            self.net.heal(host);
        }
        for role in ["origin-", "shield-", "edge-", "pop-"] {
            for name in nodes(role) {
                if self
                    .running
                    .get_mut(name)
                    .is_some_and(|process| process.frozen || !matches!(process.child.try_wait(), Ok(None)))
                {
                    self.kill(name);
                }
                if !self.running.contains_key(name) {
                    self.run(name);
                }
            }
        }
    }

    /// Starts a node and waits until its ports are bound.
    pub fn run(&mut self, name: &'static str) {
        let mut log = OpenOptions::new().create(true).append(true).open(self.log_path(name)).unwrap();
        writeln!(log, "--- {name} starts").unwrap();
        let mut command = self.net.on(name, env!("CARGO_BIN_EXE_rooftop"));
        let child = command.args(["serve", "--config"]).arg(self.config(name));
        let mut child = child.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("listeners"), "{name} did not start:\n{}", self.log(name));
        self.running.insert(name, Process { child, frozen: false, _stdout: stdout });
    }

    /// Gone without a word.
    pub fn kill(&mut self, name: &str) {
        self.running.remove(name).unwrap_or_else(|| panic!("{name} does not run")).kill();
    }

    /// Still there, but it does nothing any more.
    pub fn freeze(&mut self, name: &str) {
        self.signal(name, "-STOP");
        self.running.get_mut(name).unwrap().frozen = true;
    }

    /// It goes on as if no time had passed.
    pub fn thaw(&mut self, name: &str) {
        self.signal(name, "-CONT");
        self.running.get_mut(name).unwrap().frozen = false;
    }

    /// SIGTERM, and waits for its end.
    pub fn drain(&mut self, name: &str) {
        self.signal(name, "-TERM");
        let began = Instant::now();
        let status = self.running.remove(name).unwrap().child.wait().unwrap();
        assert!(status.success(), "{name} ended with {status} after {:?}", began.elapsed());
    }

    fn signal(&self, name: &str, signal: &str) {
        let pid = self.running.get(name).unwrap_or_else(|| panic!("{name} does not run")).child.id();
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }

    /// Viewers find this edge at [`VIEWERS`] from now on.
    pub fn lead_viewers_to(&mut self, edge: &'static str) {
        self.net.lead(VIEWERS, address_of(edge));
        self.front = edge;
    }

    /// The edge that viewers are led to, and the other one.
    pub fn edges(&self) -> (&'static str, &'static str) {
        (self.front, nodes("edge-").find(|name| *name != self.front).unwrap())
    }

    /// The origin that a stream's relay came to last.
    pub fn owner(&self, stream: &str) -> Option<&'static str> {
        let began = format!("relay{{stream={stream} ");
        nodes("origin-").find(|name| self.log(name).contains(&began))
    }

    /// The shield that edges ask first for a stream.
    pub fn shield(&self, stream: &str) -> &'static str {
        let member = |name: &str| cluster::Node { name: name.into(), address: String::new() };
        let first =
            cluster::Ring::new(nodes("shield-").map(member).collect()).candidates(stream)[0].name.clone();
        nodes("shield-").find(|name| *name == first).unwrap()
    }

    /// What to give a broadcaster that goes to this POP.
    pub fn publish_url(&self, pop: &str, stream: &str) -> String {
        let key = stream_key(&self.config(pop), stream, "1h");
        format!("rtmps://{}:1936/live/{key}", address_of(pop))
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    /// The ends of all logs.
    pub fn print_logs(&self) {
        for name in HOSTS.iter().map(|(name, _)| name) {
            let log = self.log(name);
            let lines: Vec<_> = log.lines().collect();
            println!("--- {name}, the last of {} lines", lines.len());
            println!("{}", lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn config(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (_, process) in std::mem::take(&mut self.running) {
            process.kill();
        }
    }
}

fn config(folder: &Path, name: &str, files: &::net::tls::Files) -> String {
    let state = folder.join(name);
    fs::create_dir_all(&state).unwrap();
    let members = |role: &str, port: u16| {
        let member =
            |name: &str| format!("{{ name = \"{name}\", address = \"{}:{port}\" }}", address_of(name));
        nodes(role).map(member).collect::<Vec<_>>().join(", ")
    };
    let here = address_of(name);
    let (role, rest) = match name.split_once('-').unwrap().0 {
        "pop" => (
            "ingest",
            format!(
                "[ingest]\nrtmps = \"{here}:1936\"\ndrain = \"2s\"\n[ingest.relay]\nack_timeout = \"2s\""
            ),
        ),
        "origin" => (
            "origin",
            format!(
                "[origin]\nlisten = \"{here}:7443\"\nreconnect_grace = \"2s\"\ndrain = \"5s\"\n\
                 [transcode]\npreset = \"ultrafast\""
            ),
        ),
        "shield" => ("shield", format!("[shield]\nhttps = \"{here}:7444\"\ndrain = \"2s\"")),
        _ => ("edge", "[edge]\nhttp = \"0.0.0.0:8080\"\nhttps = \"127.0.0.1:0\"\ndrain = \"2s\"".into()),
    };
    format!(
        "[node]\nname = \"{name}\"\nroles = [\"{role}\"]\nstate_dir = {state:?}\n\
         [tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
         [tokens]\nkey_files = [{:?}]\n\
         [cluster]\norigins = [{}]\nshields = [{}]\n{rest}\n",
        files.ca,
        files.certificate,
        files.key,
        folder.join("token.key"),
        members("origin-", 7443),
        members("shield-", 7444),
    )
}
