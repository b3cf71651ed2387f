//! A broadcast as the API keeps it: what was asked for, how it stands, and how it goes from one state to the next.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::StreamName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::{EndedBy, Kind, State};

/// Timelines of one broadcast that are remembered: one, and one more each time that an origin is lost with all it held.
pub(crate) const MAX_ARCHIVES: usize = 64;

/// One broadcast. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Broadcast {
    pub(crate) id: String,
    pub(crate) stream: StreamName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) token: Token,
    /// What its creation was asked with, so that it can be found when it is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency: Option<String>,
    pub(crate) state: State,
    pub(crate) created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) started_ms: Option<u64>,
    /// When it was interrupted last, whether or not it went on since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interrupted_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_by: Option<EndedBy>,
    /// The node whose origin has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<u64>,
    /// Its timelines, by the names under which they are archived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) archives: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) archived_ms: Option<u64>,
    /// Those of `archives` that can be played.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) recordings: Vec<String>,
    /// Events so far.
    #[serde(default)]
    pub(crate) events: u64,
}

/// What its token says; the token itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// The `jti`.
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) issued: u64,
    /// Unix seconds.
    pub(crate) expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_bitrate_bps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_height: Option<u32>,
}

/// Where a run of a broadcast is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// The node.
    pub(crate) owner: String,
    pub(crate) epoch: u64,
    pub(crate) anchor_unix_ms: i64,
}

/// What becomes of a broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Start {
        at_ms: u64,
        run: Run,
    },
    /// It goes on, elsewhere or as another run: nothing that anybody is told of.
    Move {
        run: Run,
    },
    Interrupt {
        at_ms: u64,
    },
    Resume {
        at_ms: u64,
        run: Run,
    },
    End {
        at_ms: u64,
        by: EndedBy,
    },
    /// All of it is kept, under these names.
    Archive {
        at_ms: u64,
        recordings: Vec<String>,
    },
    /// No more than these are kept any longer.
    Keep {
        recordings: Vec<String>,
    },
}

impl Broadcast {
    /// The broadcast after a step, and what happened; `None`: the step does not fit its state.
    pub(crate) fn after(&self, step: &Step) -> Option<(Broadcast, Option<Kind>)> {
        let mut next = self.clone();
        let kind = match (self.state, step) {
            (State::Created, Step::Start { at_ms, run }) => {
                (next.state, next.started_ms) = (State::Live, Some(*at_ms));
                next.runs_at(run);
                Some(Kind::Started)
            }
            (State::Live, Step::Move { run }) => {
                next.runs_at(run);
                None
            }
            (State::Live, Step::Interrupt { at_ms }) => {
                (next.state, next.interrupted_ms) = (State::Interrupted, Some(*at_ms));
                Some(Kind::Interrupted)
            }
            (State::Interrupted, Step::Resume { run, .. }) => {
                next.state = State::Live;
                next.runs_at(run);
                Some(Kind::Resumed)
            }
            (State::Created | State::Live | State::Interrupted, Step::End { at_ms, by }) => {
                (next.state, next.ended_ms, next.ended_by) = (State::Ended, Some(*at_ms), Some(*by));
                Some(Kind::Ended)
            }
            (State::Ended, Step::Archive { at_ms, recordings }) => {
                (next.state, next.archived_ms) = (State::Archived, Some(*at_ms));
                next.recordings.clone_from(recordings);
                Some(Kind::Archived)
            }
            (State::Archived, Step::Keep { recordings }) => {
                next.recordings.clone_from(recordings);
                None
            }
            _ => return None,
        };
        next.events += u64::from(kind.is_some());
        Some((next, kind))
    }

    fn runs_at(&mut self, run: &Run) {
        (self.owner, self.epoch) = (Some(run.owner.clone()), Some(run.epoch));
        let archive = format!("{}-{}", self.stream, run.anchor_unix_ms);
        if !self.archives.contains(&archive) {
            if self.archives.len() >= MAX_ARCHIVES {
                self.archives.remove(0);
            }
            self.archives.push(archive);
        }
    }

    /// Whether it may still be sent.
    pub(crate) fn open(&self) -> bool {
        !matches!(self.state, State::Ended | State::Archived)
    }

    /// As the API shows it, without URLs.
    pub(crate) fn view(&self) -> Value {
        let mut view = json!({
            "id": self.id,
            "stream": self.stream,
            "state": self.state,
            "metadata": self.metadata,
            "created_at": rfc3339(self.created_ms),
            "archives": self.archives,
            "token": { "id": self.token.id, "expires_at": rfc3339(self.token.expires.saturating_mul(1000)) },
        });
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                view[key] = value;
            }
        };
        put("title", self.title.as_ref().map(|title| json!(title)));
        put("started_at", self.started_ms.map(|at| rfc3339(at).into()));
        put("interrupted_at", self.interrupted_ms.map(|at| rfc3339(at).into()));
        put("ended_at", self.ended_ms.map(|at| rfc3339(at).into()));
        put("ended_by", self.ended_by.map(|by| json!(by)));
        put("archived_at", self.archived_ms.map(|at| rfc3339(at).into()));
        put("recordings", self.archived_ms.map(|_| json!(self.recordings)));
        put("owner", self.owner.as_ref().map(|owner| json!(owner)));
        put("epoch", self.epoch.map(|epoch| json!(epoch)));
        let limits = [
            ("max_bitrate_bps", self.token.max_bitrate_bps.map(|limit| json!(limit))),
            ("max_height", self.token.max_height.map(|limit| json!(limit))),
        ];
        for (key, limit) in limits {
            if let Some(limit) = limit {
                view["token"][key] = limit;
            }
        }
        view
    }
}

/// RFC 3339 in UTC, with milliseconds; what no calendar holds is its last day.
pub(crate) fn rfc3339(ms: u64) -> String {
    // 9999-12-31T23:59:59.999Z
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn created() -> Broadcast {
        Broadcast {
            id: "b1".into(),
            stream: "demo".parse().unwrap(),
            title: None,
            metadata: BTreeMap::new(),
            token: Token {
                id: "t1".into(),
                issued: 0,
                expires: 86_400,
                max_bitrate_bps: None,
                max_height: None,
            },
            idempotency: None,
            state: State::Created,
            created_ms: 1000,
            started_ms: None,
            interrupted_ms: None,
            ended_ms: None,
            ended_by: None,
            owner: None,
            epoch: None,
            archives: Vec::new(),
            archived_ms: None,
            recordings: Vec::new(),
            events: 0,
        }
    }

    fn run(owner: &str, epoch: u64, anchor_unix_ms: i64) -> Run {
        Run { owner: owner.into(), epoch, anchor_unix_ms }
    }

    #[test]
    fn a_life() {
        let steps = [
            (Step::Start { at_ms: 2000, run: run("o1", 7, 1900) }, Some(Kind::Started)),
            (Step::Move { run: run("o2", 8, 1900) }, None),
            (Step::Interrupt { at_ms: 3000 }, Some(Kind::Interrupted)),
            (Step::Resume { at_ms: 4000, run: run("o2", 9, 3900) }, Some(Kind::Resumed)),
            (Step::End { at_ms: 5000, by: EndedBy::Request }, Some(Kind::Ended)),
            (Step::Archive { at_ms: 6000, recordings: vec!["demo-1900".into()] }, Some(Kind::Archived)),
        ];
        let mut broadcast = created();
        for (step, expected) in &steps {
            let (next, kind) = broadcast.after(step).unwrap_or_else(|| panic!("{step:?}"));
            assert_eq!(kind, *expected, "{step:?}");
            broadcast = next;
        }
        assert_eq!(broadcast.archives, ["demo-1900", "demo-3900"]);
        assert_eq!((broadcast.owner.as_deref(), broadcast.epoch, broadcast.events), (Some("o2"), Some(9), 5));
        for (step, _) in steps {
            assert_eq!(broadcast.after(&step), None, "it is over: {step:?}");
        }
        let view = broadcast.view();
        assert_eq!(view["ended_at"], "1970-01-01T00:00:05.000Z");
        assert_eq!((&view["ended_by"], &view["state"]), (&json!("request"), &json!("archived")));
        assert_eq!(
            (&view["archived_at"], &view["recordings"]),
            (&json!("1970-01-01T00:00:06.000Z"), &json!(["demo-1900"]))
        );
        let (removed, told) = broadcast.after(&Step::Keep { recordings: Vec::new() }).unwrap();
        assert_eq!((&removed.view()["recordings"], told), (&json!([]), None));
        let kept: Broadcast = serde_json::from_str(&serde_json::to_string(&broadcast).unwrap()).unwrap();
        assert_eq!(kept, broadcast);
    }

    #[test]
    fn times_that_no_calendar_holds_are_written_all_the_same() {
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
    }
}
