//! The fleet: which hosts there are, what runs on each, and what can be done to it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::ExitStatusExt;
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
    ("etcd-1", 51),
    ("etcd-2", 52),
    ("etcd-3", 53),
    (S3, 61),
];

/// The host of the archive's bucket.
const S3: &str = "s3";

const BUCKET: &str = "rooftop";

/// In the order in which they start, so that each finds those it asks.
const ROLES: &[&str] = &[S3, "etcd-", "origin-", "shield-", "edge-", "pop-"];

const SIGTERM: i32 = 15;

/// What an origin's own disk has room for, where it keeps the archive on one: a few segments of all renditions.
const SMALL_DISK: &str = "size=256k";

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
    // Kept open: a node that cannot write to its standard output would fail.
    stdout: BufReader<ChildStdout>,
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
        fs::write(folder.join("s3.credentials"), "key-of-the-run\nsecret-of-the-run\n").unwrap();
        for name in ["origin-", "shield-", "edge-", "pop-"].into_iter().flat_map(nodes) {
            let files = ::net::tls::development_files(&tls, name, &[address_of(name).to_string()]).unwrap();
            fs::write(folder.join(format!("{name}.toml")), config(folder, name, &files)).unwrap();
        }
        // A fleet that is started anew knows nothing of the one before.
        for name in nodes("etcd-") {
            let _ = fs::remove_dir_all(folder.join(name));
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
        for role in ROLES {
            let dead: Vec<_> = nodes(role).filter(|name| !self.lives(name)).collect();
            // Together: etcd answers once most of its members are there.
            for name in &dead {
                if self.running.contains_key(name) {
                    self.kill(name);
                }
                self.begin(name);
            }
            for name in dead {
                self.ready(name);
            }
        }
    }

    fn lives(&mut self, name: &str) -> bool {
        let process = self.running.get_mut(name);
        process.is_some_and(|process| !process.frozen && matches!(process.child.try_wait(), Ok(None)))
    }

    /// Starts a node and waits until it serves.
    pub fn run(&mut self, name: &'static str) {
        self.begin(name);
        self.ready(name);
    }

    fn begin(&mut self, name: &'static str) {
        let mut log = OpenOptions::new().create(true).append(true).open(self.log_path(name)).unwrap();
        writeln!(log, "--- {name} starts").unwrap();
        let mut command = match name {
            S3 => self.s3(),
            _ if name.starts_with("etcd-") => self.etcd(name),
            _ => {
                let mut command = self.net.on(name, env!("CARGO_BIN_EXE_rooftop"));
                command.args(["serve", "--config"]).arg(self.config(name));
                command
            }
        };
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        self.running.insert(name, Process { child, frozen: false, stdout });
    }

    fn etcd(&self, name: &str) -> Command {
        let at = |name: &str, port: u16| format!("http://{}:{port}", address_of(name));
        let members: Vec<_> = nodes("etcd-").map(|name| format!("{name}={}", at(name, 2380))).collect();
        let mut command = self.net.on(name, "etcd");
        command.args(["--name", name, "--log-level", "warn", "--data-dir"]).arg(self.folder.join(name));
        for urls in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([urls, &at(name, 2379)]);
        }
        for urls in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([urls, &at(name, 2380)]);
        }
        command.args(["--initial-cluster", &members.join(",")]);
        command
    }

    fn s3(&self) -> Command {
        let mut command = self.net.on(S3, moto());
        command.args(["-H", &address_of(S3).to_string(), "-p", "5000"]);
        command
    }

    fn ready(&mut self, name: &'static str) {
        if name == S3 {
            return eventually("the bucket", make_bucket);
        }
        if name.starts_with("etcd-") {
            let health = format!("http://{}:2379/health", address_of(name));
            return eventually(name, || get(&health).text().contains("true").then_some(()));
        }
        let mut line = String::new();
        self.running.get_mut(name).unwrap().stdout.read_line(&mut line).unwrap();
        assert!(line.contains("listeners"), "{name} did not start:\n{}", self.log(name));
    }

    /// The member of etcd that leads the others.
    pub fn etcd_leader(&self) -> &'static str {
        let leads = |name: &&str| {
            let metrics = get(&format!("http://{}:2379/metrics", address_of(name))).text();
            metrics.contains("\netcd_server_is_leader 1\n")
        };
        eventually("a leader of etcd", || nodes("etcd-").find(leads))
    }

    /// Has an origin keep the archive on a disk of its own, with hardly any room, for as long as `during`.
    pub fn with_small_disk<T>(&mut self, name: &'static str, during: impl FnOnce(&mut Fleet) -> T) -> T {
        let disk = self.folder.join("small-disk");
        fs::create_dir_all(&disk).unwrap();
        // Those that this process starts see it; it goes with this process at the latest.
        let mount = ["-t", "tmpfs", "-o", SMALL_DISK, "none"];
        assert!(Command::new("mount").args(mount).arg(&disk).status().unwrap().success());
        let usual = fs::read_to_string(self.config(name)).unwrap();
        let (before, _) = usual.split_once("[archive]").unwrap();
        let own = format!("{before}[archive]\nstore = \"file\"\npath = {disk:?}\ndrain = \"0s\"\n");
        fs::write(self.config(name), own).unwrap();
        self.drain(name);
        self.run(name);
        let outcome = during(self);
        fs::write(self.config(name), usual).unwrap();
        self.drain(name);
        self.run(name);
        assert!(Command::new("umount").arg("-l").arg(&disk).status().unwrap().success());
        outcome
    }

    /// `rooftop archive`, as an origin's operator calls it; what it printed, or why it failed.
    pub fn archive(&self, args: &[&str]) -> Result<serde_json::Value, String> {
        let mut command = rooftop();
        command.arg("archive").args(args).args(["--json", "--config"]).arg(self.config("origin-1"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = serde_json::from_slice(&output.stdout);
        printed.map_err(|_| format!("archive {}: {said}", args.join(" "))).and_then(|printed| {
            let good = output.status.success();
            if good { Ok(printed) } else { Err(format!("archive {}: {printed} {said}", args.join(" "))) }
        })
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
        // etcd ends by the signal itself.
        let well = status.success() || (name.starts_with("etcd-") && status.signal() == Some(SIGTERM));
        assert!(well, "{name} ended with {status} after {:?}", began.elapsed());
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
        first("shield-", stream)
    }

    /// The origin that POPs ask first for a stream.
    pub fn home(&self, stream: &str) -> &'static str {
        first("origin-", stream)
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
                 [transcode]\npreset = \"ultrafast\"\n\
                 [archive]\nstore = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"http://{}:5000\"\ncredentials = {:?}",
                address_of(S3),
                folder.join("s3.credentials"),
            ),
        ),
        "shield" => ("shield", format!("[shield]\nhttps = \"{here}:7444\"\ndrain = \"2s\"")),
        _ => ("edge", "[edge]\nhttp = \"0.0.0.0:8080\"\nhttps = \"127.0.0.1:0\"\ndrain = \"2s\"".into()),
    };
    format!(
        "[node]\nname = \"{name}\"\nroles = [\"{role}\"]\nstate_dir = {state:?}\n\
         [tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n\
         [tokens]\nkey_files = [{:?}]\n\
         [cluster]\nstore = \"etcd\"\nhost = \"{here}\"\n[cluster.etcd]\nendpoints = [{}]\n{rest}\n",
        files.ca,
        files.certificate,
        files.key,
        folder.join("token.key"),
        nodes("etcd-")
            .map(|name| format!("\"http://{}:2379\"", address_of(name)))
            .collect::<Vec<_>>()
            .join(", "),
    )
}

/// The first of a role on the ring.
fn first(role: &str, stream: &str) -> &'static str {
    let member = |name: &str| cluster::Node { name: name.into(), address: String::new() };
    let first = cluster::Ring::new(nodes(role).map(member).collect()).candidates(stream)[0].name.clone();
    nodes(role).find(|name| *name == first).unwrap()
}

/// The S3-speaking server.
pub fn moto() -> PathBuf {
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/moto/bin/moto_server");
    std::env::var_os("MOTO_SERVER").map_or_else(here, PathBuf::from)
}

/// Whether the bucket is there now.
fn make_bucket() -> Option<()> {
    let host = format!("{}:5000", address_of(S3));
    let mut stream = TcpStream::connect(&host).ok()?;
    let request = "HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\nHost:";
    write!(stream, "PUT /{BUCKET} {request} {host}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}
