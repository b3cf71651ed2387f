//! The whole configuration: one TOML file, one field per crate, one validation that reports every problem before
//! any port is bound.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_path_to_error::Segment;

pub use crate::admin::config::{Admin, Role as AdminRole, Token as AdminToken};

/// A node's configuration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What this node is.
    pub node: NodeConfig,
    /// Where viewers and broadcasters reach the platform; only printed.
    pub public: Public,
    /// The operators' listener.
    pub admin: Admin,
    /// The Live API.
    pub api: crate::api::config::Api,
    /// Whom the Live API tells what happens.
    pub webhooks: crate::api::config::Webhooks,
    /// What is logged.
    pub log: Log,
    /// Where spans go.
    pub traces: crate::traces::config::Traces,
    /// Certificates.
    pub tls: Tls,
    /// Keys of stream tokens.
    pub tokens: Tokens,
    /// The members of the fleet.
    pub cluster: Cluster,
    /// RTMP and RTMPS.
    pub ingest: ingest::Config,
    /// Packaging.
    pub origin: origin::Config,
    /// The ladder.
    pub transcode: transcode::Config,
    /// Where broadcasts are kept.
    pub archive: archive::Config,
    /// The cache in front of the origins.
    pub shield: edge::Config,
    /// The cache near the viewers.
    pub edge: edge::Config,
}

/// A role that a node may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes RTMP from broadcasters.
    Ingest,
    /// Transcodes and packages.
    Origin,
    /// Caches in front of the origins.
    Shield,
    /// Caches near the viewers.
    Edge,
}

impl Role {
    /// Its name, as the file has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Ingest => "ingest",
            Role::Origin => "origin",
            Role::Shield => "shield",
            Role::Edge => "edge",
        }
    }
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Its name, as `[cluster]` lists it. Default `local`.
    pub name: String,
    /// What it does. Default: everything.
    pub roles: Vec<Role>,
    /// Where it keeps what it makes: development certificates, the token key. Relative to the working directory. Default `run`.
    pub state_dir: PathBuf,
    /// Whether this file, and the certificates and keys that it names, are read again when they change. Default true.
    pub watch_config: bool,
}

/// `[public]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Public {
    /// Host name of the URLs that `rooftop stream create` prints. Default `localhost`.
    pub host: String,
    /// The region that the Live API means when it is asked for no other. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where broadcasters may send to, at most 64; those of the wanted region are named first. Default: this node, by
    /// `host`.
    pub pops: Vec<Pop>,
    /// What the playback URLs of the Live API begin with, such as `https://live.example.com`, at most 16. Default: this
    /// node's edge, by `host`.
    pub playback: Vec<String>,
}

/// A place that takes broadcasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pop {
    /// Its name.
    pub name: String,
    /// Where it is, as callers name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where it takes RTMP over TLS, `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmps: Option<String>,
    /// Where it takes plain RTMP, `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtmp: Option<String>,
}

impl Public {
    fn problems(&self, problems: &mut Vec<String>) {
        if self.host.is_empty() || self.host.contains(['/', ' ', ':']) {
            problems.push(format!("public.host: {:?} is not a host name", self.host));
        }
        if self.pops.len() > MAX_POPS {
            problems.push(format!("public.pops: at most {MAX_POPS}"));
        }
        for (index, pop) in self.pops.iter().enumerate() {
            for (key, address) in [("rtmps", &pop.rtmps), ("rtmp", &pop.rtmp)] {
                if let Some(address) = address.as_ref().filter(|address| !is_host_and_port(address)) {
                    problems.push(format!("public.pops[{index}].{key}: {address:?} is not host:port"));
                }
            }
            if pop.rtmps.is_none() && pop.rtmp.is_none() {
                problems.push(format!("public.pops[{index}]: takes neither rtmps nor rtmp"));
            }
        }
        if self.playback.len() > MAX_PLAYBACK {
            problems.push(format!("public.playback: at most {MAX_PLAYBACK}"));
        }
        for (index, base) in self.playback.iter().enumerate() {
            let host = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
            if host
                .is_none_or(|host| host.is_empty() || host.ends_with('/') || host.contains([' ', '?', '#']))
            {
                problems.push(format!(
                    "public.playback[{index}]: {base:?} is not https://HOST, without a / at its end"
                ));
            }
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter such as `info` or `info,edge=debug`. Default `info`.
    pub filter: String,
}

/// `[tls]`: PEM files. What is not given is made in `state_dir/tls` as development certificates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The CA that all nodes of the fleet trust among themselves.
    pub ca: Option<PathBuf>,
    /// This node's certificate chain for the fleet.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The certificate chain shown to viewers and broadcasters. Default: the node's.
    pub public_certificate: Option<PathBuf>,
    /// Its key.
    pub public_key: Option<PathBuf>,
    /// Names and addresses that a development certificate is valid for besides localhost and the node's name.
    pub names: Vec<String>,
}

/// `[tokens]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tokens {
    /// Files with a key each, at most 8: a secret of at least 32 bytes, or Ed25519 in PEM, private or public. The first
    /// signs, all are accepted. POPs and origins need secrets or public keys only. Read again on every reload. Default:
    /// `state_dir/token.key`, a secret made on first start.
    pub key_files: Vec<PathBuf>,
}

/// `[cluster]`: the same on every node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Where the fleet keeps who owns which stream. Default `embedded`: each origin for itself.
    pub store: StoreKind,
    /// Host name or address at which the other nodes reach this one. Needed with etcd, of no use without: there the lists
    /// say it.
    pub host: Option<String>,
    /// How long revoked tokens are remembered: as long as tokens are made for. Default `30d`, 1h to 400d.
    #[serde(with = "humantime_serde")]
    pub revocations_kept: Duration,
    /// The origins. Streams are spread over them by their names. With etcd the nodes find one another by it, and the lists
    /// are not read.
    pub origins: Vec<NodeAddress>,
    /// The shields. Without any, edges ask the origins themselves.
    pub shields: Vec<NodeAddress>,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
}

/// What a fleet keeps its records in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// The process itself, and a file in `state_dir`.
    Embedded,
    /// etcd, v3 API.
    Etcd,
}

/// `[cluster.etcd]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EtcdConfig {
    /// URLs of its members, `http://HOST:PORT` or `https://HOST:PORT`. Default: none.
    pub endpoints: Vec<String>,
    /// What the keys of this fleet begin with. Default `/rooftop/`.
    pub prefix: String,
    /// A node that etcd has not heard of for so long is gone for the others. Default `5s`, 2s to 60s, whole seconds: what
    /// takes over streams does not wait for it.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// Who signed etcd's certificate, PEM. Needed for `https`.
    pub ca: Option<PathBuf>,
    /// What this node shows to etcd, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// A member of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAddress {
    /// Its `node.name`.
    pub name: String,
    /// `host:port`. For the node itself port 0 stands for the port that the system gave it.
    pub address: String,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: "local".into(),
            roles: vec![Role::Ingest, Role::Origin, Role::Shield, Role::Edge],
            state_dir: "run".into(),
            watch_config: true,
        }
    }
}

impl Default for Public {
    fn default() -> Self {
        Self { host: "localhost".into(), region: None, pops: Vec::new(), playback: Vec::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into() }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        let local = |port| NodeAddress { name: "local".into(), address: format!("127.0.0.1:{port}") };
        Self {
            store: StoreKind::Embedded,
            host: None,
            revocations_kept: Duration::from_secs(30 * 86_400),
            origins: vec![local(7443)],
            shields: vec![local(7444)],
            etcd: EtcdConfig::default(),
        }
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/rooftop/".into(),
            lease_ttl: Duration::from_secs(5),
            ca: None,
            certificate: None,
            key: None,
        }
    }
}

impl Cluster {
    /// Where the other nodes reach a listener of the node `name` that is `bound`: as it is listed, or at its host.
    pub fn address_of(&self, name: &str, role: Role, bound: SocketAddr) -> String {
        let listed = match role {
            Role::Origin => &self.origins[..],
            Role::Shield => &self.shields[..],
            Role::Ingest | Role::Edge => &[],
        };
        let mut listed: Vec<_> = listed.iter().filter(|node| node.name == name).cloned().collect();
        fill_address(&mut listed, name, bound);
        match (&self.host, listed.first()) {
            (None, Some(node)) => node.address.clone(),
            (None, None) => bound.to_string(),
            (Some(host), _) if host.contains(':') => format!("[{host}]:{}", bound.port()),
            (Some(host), _) => format!("{host}:{}", bound.port()),
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (hour, most) = (Duration::from_secs(3600), Duration::from_secs(400 * 86_400));
        if !(hour..=most).contains(&self.revocations_kept) {
            let kept = self.revocations_kept;
            problems.push(format!("cluster.revocations_kept: {kept:?} is outside {hour:?} to {most:?}"));
        }
        if let Some(host) = self.host.as_ref().filter(|host| host.is_empty() || host.contains(['/', ' '])) {
            problems.push(format!("cluster.host: {host:?} is not a host name or address"));
        }
        let etcd = &self.etcd;
        let is_url = |url: &str| {
            url.parse::<http::Uri>().is_ok_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.port_u16().is_some()
            })
        };
        for (index, url) in etcd.endpoints.iter().enumerate().filter(|(_, url)| !is_url(url)) {
            problems.push(format!("cluster.etcd.endpoints[{index}]: {url:?} is not http(s)://HOST:PORT"));
        }
        let ttl = etcd.lease_ttl;
        if !(2..=60).contains(&ttl.as_secs()) || ttl.subsec_nanos() != 0 {
            problems.push(format!("cluster.etcd.lease_ttl: {ttl:?} is not 2 to 60 whole seconds"));
        }
        if etcd.prefix.len() > MAX_PREFIX_BYTES || etcd.prefix.contains('\0') {
            problems.push(format!("cluster.etcd.prefix: more than {MAX_PREFIX_BYTES} bytes, or a zero byte"));
        }
        if etcd.certificate.is_some() != etcd.key.is_some() {
            problems.push("cluster.etcd: certificate and key are given together or not at all".into());
        }
        let secure = etcd.endpoints.iter().any(|url| url.starts_with("https:"));
        if secure && etcd.endpoints.iter().any(|url| url.starts_with("http:")) {
            problems.push("cluster.etcd.endpoints: all are https, or none".into());
        }
        if secure != etcd.ca.is_some() {
            problems.push("cluster.etcd.ca: is given with https endpoints, and only then".into());
        }
        match self.store {
            StoreKind::Embedded if self.origins.is_empty() => {
                problems.push("cluster.origins: there must be at least one".into());
            }
            StoreKind::Etcd => {
                if etcd.endpoints.is_empty() {
                    problems.push("cluster.etcd.endpoints: there must be at least one".into());
                }
                if self.host.is_none() {
                    problems
                        .push("cluster.host: with etcd the others must be told where this node is".into());
                }
            }
            StoreKind::Embedded => {}
        }
        problems
    }
}

/// Longest prefix of keys: what is behind it may have as much again.
const MAX_PREFIX_BYTES: usize = 256;

/// Everything that is wrong with a file, each entry with the path of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Places that one answer of the API names.
const MAX_POPS: usize = 64;

/// Bases of playback URLs.
const MAX_PLAYBACK: usize = 16;

/// A file may hold this many wrong keys before the rest goes unreported.
const MAX_PROBLEMS: usize = 100;

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, Problems> {
        let text = std::fs::read_to_string(path).map_err(|error| Problems(vec![format!("{error}")]))?;
        Self::parse(&text)
    }

    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Config, Problems> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| Problems(vec![error.to_string().trim().to_owned()]))?;
        let (config, mut problems) = read::<Config>(table);
        let Some(config) = config else {
            return Err(Problems(problems));
        };
        problems.extend(config.problems());
        if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
    }

    /// Whether this node has the role.
    pub fn has(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }

    /// Everything that is wrong, each with its key path. Tries the encoders.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let name_is_good = |name: &str| name.parse::<media::StreamName>().is_ok();
        if !name_is_good(&self.node.name) {
            let allowed = "1 to 64 of A-Z a-z 0-9 - _ .";
            problems.push(format!("node.name: {:?} is not {allowed}", self.node.name));
        }
        if self.node.roles.is_empty() {
            problems.push("node.roles: a node without a role has nothing to do".into());
        }
        problems.extend(self.admin.problems("admin"));
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.filter) {
            problems.push(format!("log.filter: {error}"));
        }
        self.public.problems(&mut problems);
        problems.extend(self.api.problems("api"));
        problems.extend(self.webhooks.problems("webhooks"));
        problems.extend(self.traces.problems("traces"));
        self.tls_problems(&mut problems);
        for (key, nodes) in [("origins", &self.cluster.origins), ("shields", &self.cluster.shields)] {
            for (index, node) in nodes.iter().enumerate() {
                if !name_is_good(&node.name) {
                    problems.push(format!("cluster.{key}[{index}].name: {:?} is not a node name", node.name));
                }
                if nodes[..index].iter().any(|other| other.name == node.name) {
                    problems.push(format!("cluster.{key}[{index}].name: {:?} is there twice", node.name));
                }
                if !is_host_and_port(&node.address) {
                    problems
                        .push(format!("cluster.{key}[{index}].address: {:?} is not host:port", node.address));
                }
            }
        }
        if self.tokens.key_files.len() > cluster::keys::MAX_KEYS {
            problems.push(format!("tokens.key_files: more than {} files", cluster::keys::MAX_KEYS));
        }
        problems.extend(self.cluster.problems());
        if self.has(Role::Ingest) {
            problems.extend(self.ingest.problems("ingest"));
        }
        if self.has(Role::Origin) {
            problems.extend(self.origin.problems("origin"));
            let ladder = self.transcode.problems("transcode");
            if ladder.is_empty() {
                problems.extend(transcode::try_encoders(&self.transcode, "transcode"));
            }
            problems.extend(ladder);
            problems.extend(self.archive.problems("archive"));
        }
        if self.has(Role::Shield) {
            problems.extend(self.shield.problems("shield"));
            if self.shield.https.is_none() && self.shield.http.is_some() {
                problems.push("shield.https: edges reach a shield over HTTPS".into());
            }
            if !self.shield.playback.paths.is_empty() {
                problems.push("shield.playback.paths: edges check tokens and pass none on".into());
            }
        }
        if self.has(Role::Edge) {
            problems.extend(self.edge.problems("edge"));
        }
        problems
    }

    fn tls_problems(&self, problems: &mut Vec<String>) {
        let fleet = [&self.tls.ca, &self.tls.certificate, &self.tls.key];
        if fleet.iter().any(|file| file.is_some()) && fleet.iter().any(|file| file.is_none()) {
            problems.push("tls: ca, certificate and key are given together or not at all".into());
        }
        if self.tls.public_certificate.is_some() != self.tls.public_key.is_some() {
            problems.push("tls: public_certificate and public_key are given together or not at all".into());
        }
    }
}

/// Puts the real port of the node `name` where its address has port 0.
pub fn fill_address(nodes: &mut [NodeAddress], name: &str, addr: SocketAddr) {
    for node in nodes.iter_mut().filter(|node| node.name == name) {
        if let Some(host) = node.address.strip_suffix(":0") {
            node.address = format!("{host}:{}", addr.port());
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// What a table says, and everything that is wrong with it, each with its key path. Without what is wrong there may be
/// nothing left to read.
pub(crate) fn read<T: serde::de::DeserializeOwned>(mut table: toml::Table) -> (Option<T>, Vec<String>) {
    let (mut problems, mut removed) = (Vec::new(), Vec::new());
    loop {
        match serde_path_to_error::deserialize::<_, T>(table.clone()) {
            Ok(value) => return (Some(value), problems),
            // What is wrong is noted and taken out, so that the next round finds the next problem.
            Err(error) => {
                let message = error.inner().message().trim().to_owned();
                let quoted = |before| message.strip_prefix(before).and_then(|rest| rest.split('`').next());
                let mut at: Vec<Step> = error.path().iter().filter_map(Step::of).collect();
                // A missing field is news only if it was not taken out here.
                let missing = quoted("missing field `");
                let known = missing.is_some_and(|key| removed.contains(&shown(&at, Some(key))));
                if let Some(unknown) = quoted("unknown field `")
                    && !matches!(at.last(), Some(Step::Key(key)) if key == unknown)
                {
                    at.push(Step::Key(unknown.to_owned()));
                }
                let full = shown(&at, None);
                if !known {
                    problems.push(if full.is_empty() { message } else { format!("{full}: {message}") });
                }
                if problems.len() >= MAX_PROBLEMS || !take_out(&mut table, at.clone()) {
                    return (None, problems);
                }
                removed.push(full);
            }
        }
    }
}

/// One step on the way to a value.
#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn of(segment: &Segment) -> Option<Step> {
        match segment {
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            _ => None,
        }
    }
}

/// A way as people write it, such as `edge.classes[2].ttl`.
fn shown(at: &[Step], last: Option<&str>) -> String {
    let mut text = String::new();
    for step in at {
        match step {
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text.extend(last.map(|key| format!(".{key}")));
    text.trim_start_matches('.').to_owned()
}

/// Removes what is there, or the nearest thing above it that can be removed: elements stay, since those behind them would
/// get other numbers.
fn take_out(table: &mut toml::Table, mut at: Vec<Step>) -> bool {
    while let Some(last) = at.pop() {
        let Step::Key(last) = last else {
            continue;
        };
        let mut here: Option<&mut toml::Value> = None;
        for step in &at {
            here = match (step, here) {
                (Step::Key(key), None) => table.get_mut(key),
                (Step::Key(key), Some(value)) => value.as_table_mut().and_then(|table| table.get_mut(key)),
                (Step::Index(index), Some(value)) => {
                    value.as_array_mut().and_then(|array| array.get_mut(*index))
                }
                (Step::Index(_), None) => None,
            };
            if here.is_none() {
                break;
            }
        }
        let parent = match here {
            None if at.is_empty() => Some(&mut *table),
            None => None,
            Some(value) => value.as_table_mut(),
        };
        if parent.is_some_and(|parent| parent.remove(&last).is_some()) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
    }

    #[test]
    fn the_reference_shows_the_defaults() {
        let text = std::fs::read_to_string(file("reference.toml")).unwrap();
        let reference = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let defaults = Config {
            shield: edge::Config { https: reference.shield.https, ..edge::Config::default() },
            ingest: ingest::Config { rtmps: reference.ingest.rtmps, ..ingest::Config::default() },
            edge: edge::Config { https: reference.edge.https, ..edge::Config::default() },
            ..Config::default()
        };
        assert_eq!(reference, defaults);
        // Every key that serialises is there to be read about.
        let keys = toml::Table::try_from(&reference).unwrap();
        for (section, values) in &keys {
            for key in values.as_table().unwrap().keys() {
                assert!(
                    text.contains(&format!("\n{key} = ")) || text.contains(&format!(".{key}]")),
                    "{section}.{key}"
                );
            }
        }
    }

    #[test]
    fn every_shipped_file_loads() {
        for entry in std::fs::read_dir(file("")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            if let Err(problems) = Config::load(&path) {
                panic!("{}: {problems}", path.display());
            }
        }
    }

    #[test]
    fn every_problem_is_reported_with_its_key() {
        let text = r#"
            colour = "red"
            [node]
            name = "a b"
            rolls = ["origin"]
            [ingest]
            rtmp = "nowhere"
            handshake_timeout = "10 parsecs"
            [cluster]
            origins = [{ name = "o1", address = "o1" }, { name = "o1", address = "o1:1", colour = 1, size = 2 }]
            shields = [{ name = "s1", address = 7 }, { name = "s/1", address = "s1:1" }]
            [cluster.etcd]
            endpoints = ["etcd:2379", "https://etcd:2379"]
            lease_ttl = "1500ms"
            [origin]
            window = "1s"
            max_streams = -1
            [edge.limits]
            max_connections = "many"
            [[edge.classes]]
            name = "a"
            ttl = 7
            [[edge.classes]]
            name = "b"
            give_up = "1h"
            stale = "1s"
            [[edge.delivery]]
            prefix = "live"
            mode = "pull"
            [public]
            pops = [{ name = "a", rtmps = "nowhere" }, { name = "b" }]
            playback = ["live.example/"]
            [api]
            max_broadcasts = 0
            [traces]
            endpoint = "localhost:4318"
            request_ratio = 2
            session_ratio = -1
            timeout = "1h"
            queue = 0
            [webhooks]
            timeout = "1h"
            [[webhooks.endpoints]]
            name = "a b"
            url = "ftp://example.com"
            secret_env = "A"
            events = []
            [[webhooks.endpoints]]
            name = "shop"
            url = "https://user:password@example.com"
        "#;
        let Problems(problems) = Config::parse(text).unwrap_err();
        for key in [
            "colour",
            "node.rolls",
            "node.name",
            "ingest.rtmp",
            "ingest.handshake_timeout",
            "cluster.origins[0].address",
            "cluster.origins[1].colour",
            "cluster.origins[1].size",
            "cluster.origins[1].name",
            "cluster.shields[0].address",
            "cluster.etcd.endpoints[0]",
            "cluster.etcd.lease_ttl",
            "cluster.etcd.ca",
            "edge.classes[0].ttl",
            "edge.classes[1].stale",
            "edge.classes[1].give_up",
            "edge.delivery[0].prefix",
            "origin.window",
            "origin.max_streams",
            "edge.limits.max_connections",
            "public.pops[0].rtmps",
            "public.pops[1]",
            "public.playback[0]",
            "api.max_broadcasts",
            "traces.endpoint",
            "traces.request_ratio",
            "traces.session_ratio",
            "traces.timeout",
            "traces.queue",
            "webhooks.timeout",
            "webhooks.endpoints[0].name",
            "webhooks.endpoints[0].url",
            "webhooks.endpoints[0].events",
            "webhooks.endpoints[1].url",
            "webhooks.endpoints[1]: give either",
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key}: {problems:#?}");
        }
        let Problems(problems) = Config::parse("[node").unwrap_err();
        assert!(problems[0].contains("line 1"), "{problems:?}");
    }
}
