//! This machine: its ports, its clock, its limits.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::Finding;
use crate::cli::node::{self, AccessArgs, NodeArgs};
use crate::config::{Admin, Config, Role};

/// For a program or a node of this machine to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Descriptors beside those of listeners: upstreams, relays, files.
const SPARE_DESCRIPTORS: u64 = 4096;

/// When this was written: no clock is right that says less.
const WRITTEN: u64 = 1_795_000_000;

/// Whether a node answers at its admin listener.
pub(super) async fn is_running(admin: &Admin) -> bool {
    let scheme = if admin.certificate.is_some() { "https://" } else { "" };
    let Ok(address) = format!("{scheme}{}", admin.listen).parse() else { return false };
    let node = NodeArgs { admin: address, access: AccessArgs::default() };
    let ask = tokio::task::spawn_blocking(move || node::read(&node, "/healthz"));
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(Ok(text))) => text.starts_with("ok"),
        // It need not be for this address, nor signed by whom this machine trusts.
        Ok(Ok(Err(error))) => format!("{error:#}").contains("invalid peer certificate"),
        _ => false,
    }
}

/// Whether what listens could listen.
pub(super) fn ports(config: &Config, running: bool) -> Vec<Finding> {
    let mut listeners = vec![("admin.listen", Some(config.admin.listen)), ("api.listen", config.api.listen)];
    for (role, keys) in [
        (Role::Ingest, vec![("ingest.rtmp", config.ingest.rtmp), ("ingest.rtmps", config.ingest.rtmps)]),
        (Role::Origin, vec![("origin.listen", Some(config.origin.listen))]),
        (Role::Shield, vec![("shield.https", config.shield.https), ("shield.http", config.shield.http)]),
        (Role::Edge, vec![("edge.https", config.edge.https), ("edge.http", config.edge.http)]),
    ] {
        listeners.extend(keys.into_iter().filter(|_| config.has(role)));
    }
    let listeners = listeners.into_iter().filter_map(|(key, addr)| Some((key, addr?)));
    listeners.map(|(key, addr)| port(key, addr, running)).collect()
}

fn port(key: &str, addr: SocketAddr, running: bool) -> Finding {
    use std::io::ErrorKind;
    let Err(error) = TcpListener::bind(addr) else {
        return Finding::good("port", format!("{key} {addr} is free"));
    };
    let found = format!("{key} {addr}: {error}");
    match error.kind() {
        ErrorKind::AddrInUse if running => {
            Finding::good("port", format!("{key} {addr} is in use, and a node is running here"))
        }
        ErrorKind::AddrInUse => Finding::failure(
            "port",
            found,
            format!(
                "end what listens there (ss -ltnp 'sport = :{}'), or configure another port",
                addr.port()
            ),
        ),
        ErrorKind::PermissionDenied => Finding::failure(
            "port",
            found,
            "ports below 1024 need AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit",
        ),
        ErrorKind::AddrNotAvailable => {
            Finding::failure("port", found, "configure an address of this machine (ip address), or 0.0.0.0")
        }
        _ => Finding::failure("port", found, "configure another address"),
    }
}

/// Whether the node can keep what it makes.
pub(super) fn folder(config: &Config) -> Finding {
    let folder = &config.node.state_dir;
    let name = folder.display();
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    let wrote = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&probe, b"x"))
        .and_then(|()| std::fs::remove_file(&probe));
    match wrote {
        Ok(()) => Finding::good("state", format!("{name} can be written")),
        Err(error) => Finding::failure(
            "state",
            format!("node.state_dir {name}: {error}"),
            "make the folder writable for the user that Rooftop runs as, or configure another",
        ),
    }
}

/// Whether somebody keeps the clock right: tokens, certificates and players go by it.
pub(super) async fn clock(now: SystemTime) -> Finding {
    let advice = "run chrony or systemd-timesyncd: tokens, certificates and players' latency go by the clock";
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let shown = humantime::format_rfc3339_seconds(now);
    if seconds < WRITTEN {
        return Finding::failure("clock", format!("it says {shown}, which is past"), advice);
    }
    let ask = tokio::task::spawn_blocking(|| {
        let mut timedatectl = Command::new("timedatectl");
        timedatectl.args(["show", "--property=NTPSynchronized", "--value"]);
        timedatectl.stdin(Stdio::null()).stderr(Stdio::null()).output()
    });
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(Ok(output))) if output.stdout.starts_with(b"yes") => {
            Finding::good("clock", format!("{shown}, synchronised"))
        }
        Ok(Ok(Ok(output))) if output.stdout.starts_with(b"no") => {
            Finding::warning("clock", format!("{shown}, and nothing synchronises it"), advice)
        }
        _ => Finding::warning("clock", format!("{shown}; whether it is right nobody here says"), advice),
    }
}

/// What the system allows.
pub(super) fn limits(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let listeners =
        |limits: &edge::config::Limits, ports: usize| limits.max_connections as u64 * ports as u64;
    let ports = |tier: &edge::Config| tier.https.iter().count() + tier.http.iter().count();
    let mut wanted = SPARE_DESCRIPTORS;
    if config.has(Role::Edge) {
        wanted += listeners(&config.edge.limits, ports(&config.edge));
    }
    if config.has(Role::Shield) {
        wanted += listeners(&config.shield.limits, ports(&config.shield));
    }
    if config.has(Role::Ingest) {
        wanted += 2 * config.ingest.max_connections as u64;
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(files) = open_files(&read("/proc/self/limits")) {
        findings.push(match files >= wanted {
            true => Finding::good("open files", format!("{files} are allowed, {wanted} may be needed")),
            false => Finding::warning(
                "open files",
                format!("{files} are allowed here, and all connections that the file allows need {wanted}"),
                format!("LimitNOFILE={wanted} in the systemd unit, ulimit -n {wanted} in a shell; or lower max_connections"),
            ),
        });
    }
    if let Ok(backlog) = read("/proc/sys/net/core/somaxconn").trim().parse::<u32>() {
        findings.push(match backlog >= 1024 {
            true => Finding::good("backlog", format!("net.core.somaxconn is {backlog}")),
            false => Finding::warning(
                "backlog",
                format!("net.core.somaxconn is {backlog}: connections of a herd are refused by the kernel"),
                "sysctl -w net.core.somaxconn=4096, and in /etc/sysctl.d",
            ),
        });
    }
    let mut caches = 0;
    for (role, tier) in [(Role::Edge, &config.edge), (Role::Shield, &config.shield)] {
        if config.has(role) {
            caches += tier.cache_size.as_u64() + tier.inflight_size.as_u64();
        }
    }
    if let Some(memory) = memory(&read("/proc/meminfo")) {
        let mib = |bytes: u64| bytes >> 20;
        // Connections, encoders and the system need the rest.
        findings.push(match caches <= memory / 4 * 3 {
            true => Finding::good(
                "memory",
                format!("{} MiB, of which caches may take {}", mib(memory), mib(caches)),
            ),
            false => Finding::warning(
                "memory",
                format!("caches may take {} of {} MiB", mib(caches), mib(memory)),
                "lower cache_size and inflight_size to three quarters of the memory together",
            ),
        });
    }
    findings
}

/// The soft limit, of `/proc/self/limits`.
fn open_files(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// In bytes, of `/proc/meminfo`.
fn memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn what_the_system_says_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 1048576              files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files(&limits.replace("1024 ", "unlimited ")), Some(u64::MAX));
        assert_eq!(open_files(""), None);
        assert_eq!(memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(memory("MemTotal: many"), None);
    }

    #[test]
    fn a_port_that_is_taken_is_a_failure_unless_it_is_ours() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let finding = port("edge.http", addr, false);
        assert!(
            finding.level == Level::Failure && finding.found.starts_with("edge.http 127.0.0.1:"),
            "{finding:?}"
        );
        assert!(finding.advice.unwrap().contains(&addr.port().to_string()));
        assert_eq!(port("edge.http", addr, true).level, Level::Good);
        let elsewhere = "192.0.2.1:80".parse().unwrap();
        assert_eq!(port("edge.http", elsewhere, false).level, Level::Failure);
    }
}
