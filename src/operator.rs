//! What operators change while a node runs: the policies of its cache tiers, by the admin listener or by reloading the
//! configuration file ([`crate::reload`]); and purges. One change at a time, each logged with what it was before.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge::Control;
use edge::policy::{Class, Delivery, Policy};
use serde::Deserialize;
use serde_json::Value;
use tracing::{error, info};

use crate::config;

/// Lines that one change writes to the log; a change of everything is one line less to read than the file.
const MAX_LOGGED: usize = 100;

/// The keys of a tier's table that can change without a restart.
const LIVE_KEYS: [&str; 2] = ["classes", "delivery"];

/// A handle for operators. Cloning is cheap.
#[derive(Clone)]
pub struct Operator(Arc<Inner>);

struct Inner {
    /// Those of this node, the one nearest to the origins first.
    tiers: Vec<Control>,
    /// Locked by whoever changes something.
    turn: Mutex<()>,
}

/// Why a change was refused. Nothing has changed then.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Everything that is wrong, with key paths.
    Problems(Vec<String>),
    /// This node has no tier of that name.
    NoTier(String),
    /// Someone else has changed it since.
    Changed,
}

/// A tier's policy as JSON shows it, not yet checked.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Draft {
    classes: Vec<Arc<Class>>,
    delivery: Vec<Delivery>,
}

impl Operator {
    pub(crate) fn new(tiers: Vec<Control>) -> Operator {
        Operator(Arc::new(Inner { tiers, turn: Mutex::new(()) }))
    }

    /// The policies in force by tier, or that of one tier, as JSON in the shape of the configuration file.
    pub fn policy(&self, tier: Option<&str>) -> Result<Value, Refusal> {
        let Some(tier) = tier else {
            return Ok(self
                .0
                .tiers
                .iter()
                .map(|control| (control.tier().to_owned(), shown(control)))
                .collect());
        };
        let control = self.0.tiers.iter().find(|control| control.tier() == tier);
        control.map(shown).ok_or_else(|| self.no_tier(tier))
    }

    /// Puts policies in force: of the tiers that `wanted` names, or of `tier` if that is given. `tag`: only if
    /// [`tag_of`] says the same of what is in force now. Says what changed, one line each.
    pub fn set_policy(
        &self,
        tier: Option<&str>,
        wanted: Value,
        tag: Option<&str>,
    ) -> Result<Vec<String>, Refusal> {
        let _turn = self.turn();
        let now = self.policy(tier)?;
        if tag.is_some_and(|tag| tag != "*" && !tag.split(',').any(|tag| tag.trim() == tag_of(&now))) {
            return Err(Refusal::Changed);
        }
        let wanted = match tier {
            Some(tier) => BTreeMap::from([(tier.to_owned(), wanted)]),
            None => match wanted {
                Value::Object(tiers) => tiers.into_iter().collect(),
                _ => return Err(Refusal::Problems(vec!["the body: must be an object of tiers".into()])),
            },
        };
        let (mut drafts, mut problems) = (Vec::new(), Vec::new());
        for (tier, draft) in wanted {
            let Some(control) = self.0.tiers.iter().find(|control| control.tier() == tier) else {
                problems.push(format!("{tier}: this node has no such tier, but {}", self.names()));
                continue;
            };
            let policy = read(&tier, draft, &mut problems);
            drafts.extend(policy.map(|policy| (control, policy)));
        }
        if !problems.is_empty() {
            return Err(Refusal::Problems(problems));
        }
        Ok(apply(drafts, "the admin listener"))
    }

    /// Forgets what begins with `prefix` and not with `except`, in all tiers or in one; how much, by tier.
    pub fn purge(
        &self,
        tier: Option<&str>,
        prefix: &str,
        except: Option<&str>,
    ) -> Result<BTreeMap<&'static str, usize>, Refusal> {
        if !prefix.starts_with('/') {
            return Err(Refusal::Problems(vec!["prefix: must begin with /, such as /live/demo/".into()]));
        }
        if let Some(tier) = tier.filter(|tier| !self.0.tiers.iter().any(|control| control.tier() == *tier)) {
            return Err(self.no_tier(tier));
        }
        // Nearest to the origins first, so that no tier fills itself again from one that still has it.
        let tiers = self.0.tiers.iter().filter(|control| tier.is_none_or(|tier| control.tier() == tier));
        Ok(tiers.map(|control| (control.tier(), control.purge_but(prefix, except))).collect())
    }

    /// Puts the policies of a configuration file in force, which were checked with it.
    pub(crate) fn put_policies(&self, of: impl Fn(&str) -> Policy) {
        let _turn = self.turn();
        apply(self.0.tiers.iter().map(|control| (control, of(control.tier()))), "the configuration file");
    }

    /// How streams play at the viewers of this node, as their players say (CMCD); `None`: none come here.
    pub fn playing(&self) -> Option<Vec<edge::cmcd::Playing>> {
        self.0.tiers.iter().find_map(Control::playing)
    }

    /// The names of the tiers, for messages.
    fn names(&self) -> String {
        let names: Vec<_> = self.0.tiers.iter().map(Control::tier).collect();
        if names.is_empty() { "none".into() } else { names.join(" and ") }
    }

    fn no_tier(&self, tier: &str) -> Refusal {
        Refusal::NoTier(format!("this node has no tier {tier:?}, but {}", self.names()))
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entity tag of what JSON says.
pub fn tag_of(value: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn shown(control: &Control) -> Value {
    serde_json::to_value(&*control.policy()).unwrap_or_default()
}

/// Reads the policy of `tier`, or adds to `problems` what is wrong with it.
fn read(tier: &str, draft: Value, problems: &mut Vec<String>) -> Option<Policy> {
    let before = problems.len();
    let table = match toml::Value::try_from(&draft) {
        Ok(toml::Value::Table(table)) => table,
        Ok(_) => {
            problems.push(format!("{tier}: must be an object with classes and delivery"));
            return None;
        }
        // TOML has no null.
        Err(_) => {
            problems.push(format!("{tier}: null has no meaning here; leave the key out instead"));
            return None;
        }
    };
    // A change says all of it: what is left out would otherwise go back to its default unnoticed.
    for key in LIVE_KEYS.into_iter().filter(|key| !table.contains_key(*key)) {
        problems.push(format!("{tier}.{key}: is missing"));
    }
    let (draft, wrong) = config::read::<Draft>(table);
    problems.extend(wrong.into_iter().map(|problem| format!("{tier}.{problem}")));
    let Draft { classes, delivery } = draft?;
    let policy = Policy { classes, delivery };
    problems.extend(policy.problems(tier));
    (problems.len() == before).then_some(policy)
}

/// Puts checked policies in force; what changed by it, one line each.
fn apply<'a>(policies: impl IntoIterator<Item = (&'a Control, Policy)>, by: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (control, policy) in policies {
        let old = shown(control);
        if let Err(problems) = control.set_policy(policy) {
            error!(tier = control.tier(), ?problems, "policy refused");
            continue;
        }
        let changes = changes(&old, &shown(control));
        for Change { path, old, new } in changes.iter().take(MAX_LOGGED) {
            info!(tier = control.tier(), key = path, old, new, by, "policy changed");
            lines.push(format!("{}.{path}: {old} -> {new}", control.tier()));
        }
        if let Some(more) = changes.len().checked_sub(MAX_LOGGED).filter(|more| *more > 0) {
            info!(tier = control.tier(), more, by, "policy changed");
            lines.push(format!("{}: {more} more", control.tier()));
        }
    }
    lines
}

/// A key that has another value.
struct Change {
    path: String,
    old: String,
    new: String,
}

/// Where two JSON values differ, down to what is no object or array.
fn changes(old: &Value, new: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    differ(String::new(), Some(old), Some(new), &mut found);
    found
}

fn differ(path: String, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Change>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differ(path, old.get(key), new.get(key), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                differ(format!("{path}[{index}]"), old.get(index), new.get(index), found);
            }
        }
        (old, new) => {
            let text = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), Value::to_string);
            found.push(Change { path, old: text(old), new: text(new) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_their_keys() {
        let old = serde_json::json!({ "a": { "b": [1, { "c": 2 }], "d": 1 }, "e": 1 });
        let new = serde_json::json!({ "a": { "b": [1, { "c": 3 }, 4] }, "e": 1, "f": "x" });
        let found: Vec<_> =
            changes(&old, &new).into_iter().map(|c| format!("{}: {} -> {}", c.path, c.old, c.new)).collect();
        assert_eq!(found, ["a.b[1].c: 2 -> 3", "a.b[2]: none -> 4", "a.d: 1 -> none", "f: none -> \"x\""]);
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let mut problems = Vec::new();
        let draft = serde_json::json!({
            "classes": [
                { "name": "a", "paths": ["*"], "ttl": "10 parsecs", "colour": 1 },
                { "name": "b", "paths": [], "max_fetches": "two", "give_up": "1h" },
            ],
            "delivery": [{ "prefix": "/live/", "mode": "pool" }],
            "clases": [],
        });
        assert!(read("edge", draft, &mut problems).is_none());
        for key in [
            "classes[0].ttl",
            "classes[0].colour",
            "classes[1].paths",
            "classes[1].max_fetches",
            "classes[1].give_up",
            "delivery[0].mode",
            "clases",
        ] {
            let wanted = format!("edge.{key}: ");
            assert_eq!(problems.iter().filter(|p| p.starts_with(&wanted)).count(), 1, "{key}: {problems:#?}");
        }
        assert_eq!(problems.len(), 7, "{problems:#?}");
        for (draft, key) in [
            (serde_json::json!([]), "edge: "),
            (serde_json::json!({ "classes": [] }), "edge.delivery: "),
            (serde_json::json!({ "classes": null, "delivery": [] }), "edge: "),
        ] {
            let mut problems = Vec::new();
            assert!(read("edge", draft, &mut problems).is_none());
            assert!(problems.len() == 1 && problems[0].starts_with(key), "{key}: {problems:?}");
        }
    }
}
