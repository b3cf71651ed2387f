//! Which keys of the configuration take effect while a node runs, and what a new file changes: rules without I/O.

#![deny(clippy::disallowed_methods)]

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::{Config, Role};

/// When another value of a key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Takes {
    /// At once, for all.
    Now,
    /// For connections, sessions and streams that begin from then on. What is there goes on as it began.
    New,
    /// After a restart.
    Restart,
}

use Takes::{New, Now, Restart};

/// Each key, or a table with all that is in it. Of two entries the longer one counts. `shield` is as `edge`.
const KEYS: &[(&str, Takes)] = &[
    ("node.name", Restart),
    ("node.roles", Restart),
    ("node.state_dir", Restart),
    ("node.watch_config", Now),
    ("public", Now),
    ("admin.listen", Restart),
    // From HTTP to HTTPS, or back, is another listener.
    ("admin.certificate", New),
    ("admin.key", New),
    ("admin.audit", Restart),
    ("admin.tokens", Now),
    ("api.listen", Restart),
    ("api.key_files", Now),
    ("api.max_broadcasts", Restart),
    ("webhooks", Restart),
    ("log.filter", Now),
    ("traces", Restart),
    ("tls.ca", New),
    ("tls.certificate", New),
    ("tls.key", New),
    ("tls.public_certificate", New),
    ("tls.public_key", New),
    // They are for a development certificate that is yet to be made.
    ("tls.names", Restart),
    ("tokens.key_files", Now),
    ("cluster.store", Restart),
    ("cluster.host", Restart),
    ("cluster.revocations_kept", Restart),
    ("cluster.origins", Now),
    ("cluster.shields", Now),
    ("cluster.etcd", Restart),
    ("ingest.rtmp", Restart),
    ("ingest.rtmps", Restart),
    ("ingest.max_connections", New),
    ("ingest.connections_per_address", New),
    ("ingest.connects_per_address", New),
    ("ingest.connect_burst_per_address", New),
    ("ingest.bad_tokens_per_address", New),
    ("ingest.exempt_addresses", New),
    ("ingest.handshake_timeout", New),
    ("ingest.idle_timeout", New),
    ("ingest.max_message", New),
    ("ingest.max_bitrate_bps", New),
    ("ingest.drain", Restart),
    ("ingest.relay.buffer", New),
    ("ingest.relay.buffer_duration", New),
    // What all relays share is made once.
    ("ingest.relay.total_buffer", Restart),
    ("ingest.relay.history", New),
    ("ingest.relay.publish_timeout", New),
    ("ingest.relay.open_timeout", New),
    ("ingest.relay.ack_timeout", New),
    ("ingest.relay.streams_per_connection", Restart),
    ("ingest.relay.gather", Restart),
    ("ingest.relay.backoff", New),
    ("ingest.relay.backoff_max", New),
    ("ingest.relay.give_up", New),
    // A listener's time to drain has it in it.
    ("ingest.relay.end_timeout", Restart),
    ("origin.listen", Restart),
    ("origin.cpus", Restart),
    ("origin.max_streams", New),
    // A broadcast that goes on keeps to one grid: what is packaged now and after must agree.
    ("origin.segment_duration", Restart),
    ("origin.part_target", Restart),
    ("origin.window", Restart),
    ("origin.dash_latency", Restart),
    ("origin.probe", Restart),
    ("origin.keyframe_timeout", Restart),
    ("origin.reconnect_grace", Restart),
    ("origin.mirrored_streams", New),
    ("origin.retention", Restart),
    ("origin.dvr", Restart),
    ("origin.captions", Restart),
    ("origin.time_url", Restart),
    ("origin.drain", Restart),
    ("transcode", New),
    ("archive", Restart),
    ("edge.https", Restart),
    ("edge.http", Restart),
    ("edge.cache_size", Restart),
    ("edge.inflight_size", Restart),
    ("edge.max_object", Restart),
    ("edge.max_inflight_names", Restart),
    ("edge.max_waiters", Restart),
    ("edge.drain", Restart),
    ("edge.limits.max_connections", New),
    ("edge.limits.handshake_timeout", New),
    ("edge.limits.header_timeout", New),
    ("edge.limits.max_header", New),
    ("edge.limits.h2_max_streams", New),
    ("edge.limits.send_timeout", New),
    ("edge.limits.min_send_rate", New),
    ("edge.limits.connections_per_address", New),
    // A request is counted when it comes, whenever its connection did.
    ("edge.limits.requests_per_address", Now),
    ("edge.limits.burst_per_address", Now),
    ("edge.limits.exempt_addresses", New),
    ("edge.upstream", Restart),
    ("edge.playback.paths", Restart),
    ("edge.playback.key_files", Now),
    ("edge.push", Restart),
    // Fetches under way go on by the rules they began with.
    ("edge.classes", Now),
    ("edge.delivery", Now),
];

/// When another value of a key counts; `None`: nobody has thought of it.
fn listed(key: &str) -> Option<(&'static str, Takes)> {
    let of_edge = key.strip_prefix("shield").map(|rest| format!("edge{rest}"));
    let key = of_edge.as_deref().unwrap_or(key);
    let within =
        |table: &str| key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    KEYS.iter().copied().filter(|(table, _)| within(table)).max_by_key(|(table, _)| table.len())
}

/// A key that the file gives another value than what counts now. `None`: it is not set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    at: Vec<String>,
    pub(crate) running: Option<Value>,
    pub(crate) wanted: Option<Value>,
    pub(crate) takes: Takes,
}

impl Change {
    /// As people write it, such as `origin.listen`.
    pub(crate) fn key(&self) -> String {
        self.at.join(".")
    }

    /// The value that counts now, as the file would have it.
    pub(crate) fn running_text(&self) -> String {
        self.text(self.running.as_ref())
    }

    /// The same of the value that is wanted.
    pub(crate) fn wanted_text(&self) -> String {
        self.text(self.wanted.as_ref())
    }

    fn text(&self, value: Option<&Value>) -> String {
        match value {
            None => "not set".into(),
            // URLs of receivers may be secrets; and what tokens are told from each other by is nobody else's business.
            Some(Value::Array(list)) if SILENT.contains(&self.key().as_str()) => {
                format!("{} of them", list.len())
            }
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        }
    }
}

/// Lists whose contents are not shown.
const SILENT: [&str; 2] = ["admin.tokens", "webhooks.endpoints"];

/// What a new file does to a running node.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// What counts from now on: of the new file all that needs no restart.
    pub(crate) config: Config,
    /// What that changes.
    pub(crate) changes: Vec<Change>,
    /// What stays as it is until a restart.
    pub(crate) waiting: Vec<Change>,
}

impl Plan {
    /// Compares what counts now with what a file wants. `Err`: what is wrong with the part that needs no restart taken
    /// alone, each with its key path.
    pub(crate) fn new(running: &Config, wanted: &Config) -> Result<Plan, Vec<String>> {
        let json = |config| serde_json::to_value(config).map_err(|error| vec![error.to_string()]);
        let (mut values, wanted_values) = (json(running)?, json(wanted)?);
        let mut found = Vec::new();
        differ(&mut Vec::new(), Some(&values), Some(&wanted_values), &mut found);
        for change in &mut found {
            if !is_used(running, &change.at[0]) {
                change.takes = New;
            } else if change.at[0] == "admin" && (change.running.is_none() || change.wanted.is_none()) {
                change.takes = Restart;
            }
        }
        let (waiting, changes): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|change| change.takes == Restart);
        for Change { at, wanted, .. } in &changes {
            put(&mut values, at, wanted.as_ref());
        }
        let config: Config = serde_json::from_value(values).map_err(|error| vec![error.to_string()])?;
        if !waiting.is_empty() {
            let problems = config.problems();
            if !problems.is_empty() {
                let with = waiting.iter().map(Change::key).collect::<Vec<_>>().join(", ");
                let say =
                    |problem| format!("{problem} (as long as what needs a restart stays as it is: {with})");
                return Err(problems.into_iter().map(say).collect());
            }
        }
        Ok(Plan { config, changes, waiting })
    }
}

/// Whether the node has the role that a table is for.
fn is_used(running: &Config, table: &str) -> bool {
    match table {
        "ingest" => running.has(Role::Ingest),
        "origin" | "transcode" | "archive" => running.has(Role::Origin),
        "shield" => running.has(Role::Shield),
        "edge" => running.has(Role::Edge),
        _ => true,
    }
}

/// Where two values differ, down to what is no table: a list is one value.
fn differ(at: &mut Vec<String>, running: Option<&Value>, wanted: Option<&Value>, found: &mut Vec<Change>) {
    let none = Map::new();
    match (running, wanted) {
        (running, wanted) if running == wanted => {}
        (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) => {
            let table = |value: Option<&Value>| {
                value.and_then(Value::as_object).cloned().unwrap_or_else(|| none.clone())
            };
            let (running, wanted) = (table(running), table(wanted));
            for key in running.keys().chain(wanted.keys().filter(|key| !running.contains_key(*key))) {
                at.push(key.clone());
                differ(at, running.get(key), wanted.get(key), found);
                at.pop();
            }
        }
        (running, wanted) => {
            // What nobody has thought of is safe only after a restart.
            let takes = listed(&at.join(".")).map_or(Restart, |(_, takes)| takes);
            let given = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
            found.push(Change { at: at.clone(), running: given(running), wanted: given(wanted), takes });
        }
    }
}

/// Puts a value where it belongs, or takes it away.
fn put(values: &mut Value, at: &[String], wanted: Option<&Value>) {
    let Some((last, tables)) = at.split_last() else { return };
    let mut here = values;
    for table in tables {
        let Value::Object(members) = here else { return };
        here = members.entry(table.clone()).or_insert_with(|| Value::Object(Map::new()));
    }
    if let Value::Object(members) = here {
        match wanted {
            Some(value) => members.insert(last.clone(), value.clone()),
            None => members.remove(last),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../configs/reference.toml");

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// All keys that the reference shows, also those that are not set there.
    fn keys() -> Vec<String> {
        let (mut table, mut keys) = (String::new(), Vec::new());
        for line in REFERENCE.lines() {
            let line = line.strip_prefix("# ").unwrap_or(line);
            let named = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
            if let Some(name) = named.filter(|name| !name.contains('"')) {
                table = name.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, _)) = line.split_once(" = ")
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            {
                keys.push(format!("{table}.{key}"));
            }
        }
        keys
    }

    #[test]
    fn of_every_key_it_is_known_when_it_counts() {
        let keys = keys();
        assert!(keys.len() > 140 && keys.iter().any(|key| key == "tls.public_key"), "{keys:#?}");
        for key in &keys {
            assert!(listed(key).is_some(), "{key}: when does another value count? Add it to KEYS");
        }
        for &(entry, _) in KEYS {
            let used = keys.iter().any(|key| listed(key).is_some_and(|(by, _)| by == entry));
            assert!(used, "{entry}: there is no such key");
        }
    }

    #[test]
    fn what_can_count_now_does_and_the_rest_waits() {
        let running = config(REFERENCE);
        let text = REFERENCE
            .replace("filter = \"info\"", "filter = \"debug\"")
            .replace("listen = \"127.0.0.1:7443\"", "listen = \"127.0.0.1:7445\"")
            .replace("max_connections = 2000\n", "max_connections = 3000\n")
            .replace("# region = \"eu\"", "region = \"eu\"")
            .replace("options = {}", "options = { tune = \"film\" }")
            .replace("names = []", "names = [\"example.com\"]");
        let plan = Plan::new(&running, &config(&text)).unwrap();
        let said = |changes: &[Change]| {
            let each =
                changes.iter().map(|c| format!("{}: {} -> {}", c.key(), c.running_text(), c.wanted_text()));
            each.collect::<Vec<_>>()
        };
        assert_eq!(
            said(&plan.changes),
            [
                "ingest.max_connections: 2000 -> 3000",
                "log.filter: info -> debug",
                "public.region: not set -> eu",
                "transcode.options.tune: not set -> film",
            ]
        );
        assert_eq!(
            said(&plan.waiting),
            ["origin.listen: 127.0.0.1:7443 -> 127.0.0.1:7445", "tls.names: [] -> [\"example.com\"]"]
        );
        assert_eq!(plan.config.ingest.max_connections, 3000);
        assert_eq!(plan.config.public.region.as_deref(), Some("eu"));
        assert_eq!(plan.config.origin, running.origin);
        assert!(plan.config.tls.names.is_empty());

        // Back again: what was taken is taken back, and nothing waits.
        let back = Plan::new(&plan.config, &running).unwrap();
        assert_eq!((back.changes.len(), back.waiting.len()), (4, 0));
        assert_eq!(back.config, running);
        assert_eq!(Plan::new(&running, &running).unwrap().changes, []);
    }

    #[test]
    fn what_is_taken_must_be_sound_without_what_waits() {
        let roles = "[node]\nroles = [\"edge\"]\n[edge]\nhttp = \"127.0.0.1:0\"\n";
        let etcd = "[cluster]\nstore = \"etcd\"\nhost = \"a\"\norigins = []\n";
        let wanted = format!("{roles}{etcd}[cluster.etcd]\nendpoints = [\"http://etcd:2379\"]\n");
        let problems = Plan::new(&config(roles), &config(&wanted)).unwrap_err();
        assert!(
            problems.len() == 1
                && problems[0].starts_with("cluster.origins: there must be at least one")
                && problems[0].contains("cluster.store"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_role_that_is_not_there_needs_no_restart() {
        let text = "[node]\nroles = [\"edge\"]\n[edge]\nhttp = \"127.0.0.1:0\"\n";
        let plan = Plan::new(&config(text), &config(&format!("{text}[origin]\ncpus = 3\n"))).unwrap();
        assert_eq!((plan.changes.len(), plan.waiting), (1, Vec::new()));
    }
}
