//! Hosts as network namespaces, each with a cable to one switch, which has a namespace of its own. Nothing of it touches
//! the machine's own network. All names carry the process id of the run that made them.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

/// What all namespaces of all runs begin with.
const PREFIX: &str = "rooftop-bed-";

/// The table that holds a host's partitions.
const TABLE: &str = "bed";

/// The table that leads viewers.
const FRONT: &str = "front";

/// Where viewers and broadcasters are.
pub const WORLD: &str = "world";

/// How a partition turns packets away.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// Nobody answers.
    Drop,
    /// Connections are refused and reset.
    Reject,
}

/// The network of one run.
#[derive(Clone)]
pub struct Net {
    run: u32,
}

impl Net {
    /// The network of a run that [`Net::build`] made, here or in the process that started this one.
    pub fn of(run: u32) -> Net {
        Net { run }
    }

    /// Makes the switch and the hosts, each with an address.
    pub fn build(&self, hosts: &[(&str, Ipv4Addr)]) -> Result<(), String> {
        let switch = self.namespace("switch");
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "lan", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "lan", "up"])?;
        for (host, address) in hosts {
            let (namespace, port) = (self.namespace(host), port(host));
            ip(&["netns", "add", &namespace])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            let link = ["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0"];
            ip(&[&link[..], &["netns", &namespace]].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "lan", "up"])?;
            ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// Ends what runs on the hosts, and takes them away.
    pub fn remove(&self) {
        remove(&format!("{PREFIX}{}-", self.run));
    }

    /// A command that runs on a host.
    pub fn on(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program).stdin(Stdio::null());
        command
    }

    /// Pulls a host's cable out of the switch, or puts it back.
    pub fn cable(&self, host: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&["-n", &self.namespace("switch"), "link", "set", &port(host), state]).unwrap();
    }

    /// Lets nothing through between a host and others, in either direction.
    pub fn part(&self, host: &str, from: &[Ipv4Addr], way: Way) {
        let from = from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let verdict = match way {
            Way::Drop => "drop",
            Way::Reject => "meta l4proto tcp reject with tcp reset",
        };
        // A reset that turns a packet away has to get out itself.
        self.filter(
            host,
            &format!(
                "table inet {TABLE} {{
                    chain from {{
                        type filter hook input priority 0;
                        ip saddr {{ {from} }} {verdict}
                    }}
                    chain to {{
                        type filter hook output priority 0;
                        ip daddr {{ {from} }} tcp flags & rst == rst accept
                        ip daddr {{ {from} }} {verdict}
                    }}
                }}"
            ),
        );
    }

    /// Ends a host's partitions.
    pub fn heal(&self, host: &str) {
        self.filter(host, &format!("table inet {TABLE}\ndelete table inet {TABLE}"));
    }

    fn filter(&self, host: &str, rules: &str) {
        let mut child = self.on(host, "nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "nft on {host}: {rules}");
    }

    /// Leads those in the world who connect to one address to another, as a balancer does: connections that there are stay
    /// where they are.
    pub fn lead(&self, from: Ipv4Addr, to: Ipv4Addr) {
        self.filter(
            WORLD,
            &format!(
                "table ip {FRONT}
                delete table ip {FRONT}
                table ip {FRONT} {{
                    chain out {{
                        type nat hook output priority -100;
                        ip daddr {from} dnat to {to}
                    }}
                }}"
            ),
        );
    }

    fn namespace(&self, host: &str) -> String {
        format!("{PREFIX}{}-{host}", self.run)
    }
}

/// Takes away what runs left behind that are no more.
pub fn sweep() {
    for namespace in namespaces() {
        let Some((run, _)) = namespace.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if run.parse::<u32>().is_ok() && !Path::new("/proc").join(run).exists() {
            println!("left by an earlier run: {namespace}");
            remove(&namespace);
        }
    }
}

/// Whether namespaces can be made here.
pub fn tried() -> Result<(), String> {
    let name = format!("{PREFIX}{}-try", std::process::id());
    ip(&["netns", "add", &name])?;
    ip(&["netns", "delete", &name])
}

fn remove(prefix: &str) {
    for namespace in namespaces().iter().filter(|name| name.starts_with(prefix)) {
        let output = Command::new("ip").args(["netns", "pids", namespace]).output();
        let pids = output.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", pid]).stderr(Stdio::null()).status();
        }
        if let Err(error) = ip(&["netns", "delete", namespace]) {
            eprintln!("{error}");
        }
    }
}

fn namespaces() -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output();
    let list = output.map(|output| output.stdout).unwrap_or_default();
    let names = String::from_utf8_lossy(&list);
    names.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The switch's end of a host's cable; names of links have 15 bytes at the most.
fn port(host: &str) -> String {
    format!("to-{host}")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("ip {}: {said}", arguments.join(" ")))
}
