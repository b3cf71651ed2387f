//! Takes a new configuration while the node runs: on SIGHUP, when files have changed ([`watch`]), when an operator asks
//! (`POST /admin/reload`). One path for all three: a file with problems changes nothing and says why; of a good one counts
//! what can ([`keys`] says which keys, and when), and what needs a restart is said by name.

pub(crate) mod keys;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::Member;
use net::{Current, Identity, identity};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use crate::api::{ApiKeys, Urls};
use crate::config::{self, Config, Problems, Role};
use crate::operator::Operator;
use crate::secrets::{self, InUse};
use crate::{fleet, telemetry};
use keys::{Change, Plan, Takes};
use watch::Look;

/// Characters of a value that a log line or an answer shows: enough for all that is no list of classes.
const MAX_SHOWN: usize = 200;

/// Who wants a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// `POST /admin/reload`.
    Operator,
    /// A file has changed.
    Files,
}

/// Reloads. Cloning is cheap.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    file: PathBuf,
    parts: Parts,
    metrics: Metrics,
    /// Locked for as long as a reload takes: one at a time.
    state: Mutex<State>,
    /// What the last reload left; never locked for long.
    told: Current<Told>,
}

/// What a reload reaches.
pub(crate) struct Parts {
    pub(crate) operator: Operator,
    /// What the fleet's listeners and links show and trust, and what the public is shown.
    pub(crate) fleet: Identity,
    pub(crate) public: Identity,
    /// What the admin listener shows, if it has a certificate.
    pub(crate) admin: Option<Identity>,
    /// What tokens are checked with.
    pub(crate) keys: InUse,
    /// Who may use the API's listener, if it has one.
    pub(crate) api_keys: Option<Current<ApiKeys>>,
    pub(crate) urls: Current<Urls>,
    pub(crate) tiers: Vec<edge::Control>,
    pub(crate) ingest: Option<ingest::Control>,
    pub(crate) origin: Option<origin::Control>,
    pub(crate) member: Member,
    pub(crate) listeners: BTreeMap<&'static str, SocketAddr>,
}

struct State {
    /// What counts.
    running: Config,
    /// The last file that could be used, what needs a restart included.
    file: Config,
    /// The files that the last readable configuration names, as they looked before they were read.
    looked: Look,
}

/// How the configuration stands, for operators.
#[derive(Debug, Clone)]
struct Told {
    watches: bool,
    /// How the files looked when they were last read.
    looked: Look,
    /// When the file was last taken.
    loaded: SystemTime,
    waiting: Vec<Change>,
    /// When and why the last reload was refused, if it was.
    refused: Option<(SystemTime, Vec<String>)>,
}

/// What a reload did.
#[derive(Debug)]
pub struct Reloaded {
    changes: Vec<Change>,
    waiting: Vec<Change>,
    certificates: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What is counted.
#[derive(Clone)]
pub(crate) struct Metrics {
    taken: Counter,
    refused: Counter,
    waiting: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Metrics {
        let reloads = Family::<ResultLabel, Counter>::default();
        let of = |result| reloads.get_or_create_owned(&ResultLabel { result });
        let metrics = Metrics { taken: of("taken"), refused: of("refused"), waiting: Gauge::default() };
        registry.register(
            "config_reloads",
            "Configuration files that were read again, by what became of them",
            reloads,
        );
        let help = "Keys of the configuration file whose values count after a restart";
        registry.register("config_keys_waiting", help, metrics.waiting.clone());
        metrics
    }
}

impl Reloader {
    /// For a node that was started with `config` from `file`.
    pub(crate) fn new(file: PathBuf, config: Config, parts: Parts, metrics: Metrics) -> Reloader {
        let looked = Look::at(files(&file, &config, &parts));
        let told = Current::from(Told {
            watches: config.node.watch_config,
            looked: looked.clone(),
            loaded: SystemTime::now(),
            waiting: Vec::new(),
            refused: None,
        });
        let state = State { running: config.clone(), file: config, looked };
        Reloader(Arc::new(Inner { file, parts, metrics, state: Mutex::new(state), told }))
    }

    /// Reads the file and what it names, and puts in force what can be. `Err`: everything that is wrong; nothing has changed
    /// then. Reads files and goes through all names that are kept: not for the threads that serve.
    pub fn reload(&self, cause: Cause) -> Result<Reloaded, Vec<String>> {
        let Inner { file, metrics, .. } = &*self.0;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.take(&mut state, cause);
        let mut told = (*self.0.told.get()).clone();
        told.looked = state.looked.clone();
        match &done {
            Ok(reloaded) => {
                metrics.taken.inc();
                metrics.waiting.set(reloaded.waiting.len() as i64);
                let certificates = reloaded.certificates.join(" ");
                info!(file = %file.display(), changed = reloaded.changes.len(), certificates, "configuration reloaded");
                told.watches = state.running.node.watch_config;
                told.loaded = SystemTime::now();
                told.waiting = reloaded.waiting.clone();
                told.refused = None;
            }
            Err(problems) => {
                metrics.refused.inc();
                for problem in problems {
                    error!(file = %file.display(), problem, "configuration not reloaded");
                }
                told.refused = Some((SystemTime::now(), problems.clone()));
            }
        }
        self.0.told.set(told);
        done
    }

    fn take(&self, state: &mut State, cause: Cause) -> Result<Reloaded, Vec<String>> {
        let Inner { file, parts, .. } = &*self.0;
        // Looked at before it is read: what changes meanwhile is seen later.
        state.looked = Look::at(files(file, &state.file, parts));
        let wanted = Config::load(file).map_err(|Problems(problems)| problems)?;
        state.looked.name(files(file, &wanted, parts));
        let Plan { config, changes, waiting } = Plan::new(&state.running, &wanted)?;

        // First all that may fail.
        let mut problems = Vec::new();
        let mut keep = |problem: anyhow::Error| problems.push(format!("{problem:#}"));
        let identities = read_identities(&config).map_err(&mut keep).ok();
        let keys = parts.keys.read(&config).map_err(&mut keep).ok();
        let api_keys = parts.api_keys.as_ref().map(|_| ApiKeys::read(&config.api).map_err(&mut keep));
        let (Some([fleet, public, admin]), Some(keys), None | Some(Ok(_))) = (identities, keys, &api_keys)
        else {
            return Err(problems);
        };

        // Then all that cannot.
        let mut certificates = Vec::new();
        let shown =
            [("fleet", Some(&parts.fleet)), ("public", Some(&parts.public)), ("admin", parts.admin.as_ref())];
        for ((name, identity), loaded) in shown.into_iter().zip([fleet, public, admin]) {
            if let (Some(identity), Some(loaded)) = (identity, loaded)
                && identity.replace(loaded)
            {
                certificates.push(name);
            }
        }
        parts.keys.replace(keys);
        if let (Some(current), Some(Ok(keys))) = (&parts.api_keys, api_keys) {
            current.set(keys);
        }
        if config.log.filter != state.running.log.filter && !telemetry::set_filter(&config.log.filter) {
            warn!(key = "log.filter", "serve --log overrides it");
        }
        parts.urls.set(Urls::new(&config, &parts.listeners, parts.keys.watch.clone()));
        if let Some(ingest) = &parts.ingest {
            ingest.set_config(config.ingest.clone());
        }
        if let Some(origin) = &parts.origin {
            origin.set_config(&config.origin, config.transcode.clone());
        }
        for control in &parts.tiers {
            let tier = if control.tier() == "shield" { &config.shield } else { &config.edge };
            control.set_limits(&tier.limits);
        }
        if [Role::Origin, Role::Shield]
            .iter()
            .any(|role| list_of(&config, *role) != list_of(&state.running, *role))
        {
            for (role, listener) in [(Role::Origin, "origin"), (Role::Shield, "shield")] {
                let mut nodes = list_of(&config, role).to_vec();
                if let Some(addr) = parts.listeners.get(listener) {
                    config::fill_address(&mut nodes, &config.node.name, *addr);
                }
                fleet::list(&parts.member, role, &nodes);
            }
        }
        // What operators have turned since stays, unless they ask for the file, or it has other policies than before.
        let of = |config: &Config| (config.edge.policy(), config.shield.policy());
        if cause != Cause::Files || of(&config) != of(&state.running) {
            let (edge, shield) = of(&config);
            parts.operator.put_policies(|tier| if tier == "shield" { shield.clone() } else { edge.clone() });
        }
        for change in &changes {
            let (running, file) = (shorten(change.running_text()), shorten(change.wanted_text()));
            info!(key = change.key(), old = running, new = file, takes = ?change.takes, "configuration changed");
        }
        for change in &waiting {
            let (running, file) = (shorten(change.running_text()), shorten(change.wanted_text()));
            warn!(key = change.key(), running, file, "needs a restart");
        }
        state.running = config;
        state.file = wanted;
        Ok(Reloaded { changes, waiting, certificates })
    }

    /// How the configuration stands, as JSON.
    pub(crate) fn show(&self) -> Value {
        let told = self.0.told.get();
        let ms = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        json!({
            "file": self.0.file,
            "loaded_unix_ms": ms(told.loaded),
            "needs_restart": told.waiting.iter().map(waits).collect::<Vec<_>>(),
            "refused": told.refused.as_ref().map(|(at, problems)| json!({ "unix_ms": ms(*at), "problems": problems })),
        })
    }

    /// Whether files are watched.
    fn watches(&self) -> bool {
        self.0.told.get().watches
    }

    /// How the files looked when they were last read, and how they look now.
    fn look(&self) -> (Look, Look) {
        let told = self.0.told.get();
        (told.looked.clone(), Look::at(told.looked.paths()))
    }
}

impl Reloaded {
    /// What changed, what needs a restart, and which certificates are other ones, as JSON.
    pub(crate) fn show(&self) -> Value {
        let changed = |change: &Change| {
            json!({
                "key": change.key(),
                "old": shorten(change.running_text()),
                "new": shorten(change.wanted_text()),
                "takes": if change.takes == Takes::Now { "at once" } else { "for what begins from now on" },
            })
        };
        json!({
            "changed": self.changes.iter().map(changed).collect::<Vec<_>>(),
            "needs_restart": self.waiting.iter().map(waits).collect::<Vec<_>>(),
            "certificates": self.certificates,
        })
    }

    /// What changed, for the audit.
    pub(crate) fn words(&self) -> Vec<String> {
        let changed = self.changes.iter().map(|change| {
            format!(
                "{}: {} -> {}",
                change.key(),
                shorten(change.running_text()),
                shorten(change.wanted_text())
            )
        });
        let certificates = self.certificates.iter().map(|name| format!("new {name} certificate"));
        changed.chain(certificates).collect()
    }
}

fn waits(change: &Change) -> Value {
    let (running, file) = (shorten(change.running_text()), shorten(change.wanted_text()));
    json!({ "key": change.key(), "running": running, "file": file })
}

fn shorten(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn list_of(config: &Config, role: Role) -> &[config::NodeAddress] {
    if role == Role::Origin { &config.cluster.origins } else { &config.cluster.shields }
}

/// Of the fleet, of the public side, of the admin listener.
fn read_identities(config: &Config) -> anyhow::Result<[Option<identity::Loaded>; 3]> {
    let files = secrets::certificates(config)?;
    let admin = config.admin.files(&files.fleet.ca);
    let read = |files: &net::tls::Files| identity::Loaded::read(files).map(Some);
    Ok([read(&files.fleet)?, read(&files.public)?, admin.as_ref().map_or(Ok(None), read)?])
}

/// All that a reload reads.
fn files(file: &std::path::Path, config: &Config, parts: &Parts) -> Vec<PathBuf> {
    let mut files = vec![file.to_owned()];
    files.extend(secrets::certificate_paths(config));
    files.extend(secrets::key_paths(config, parts.keys.watch.is_some()));
    if parts.api_keys.is_some() {
        files.extend(config.api.key_files.iter().cloned());
    }
    files
}
