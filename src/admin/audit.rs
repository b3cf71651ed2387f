//! Who changed what: the latest changes for `GET /admin/audit`, each as a log line (target `audit`), and as a line of the file
//! that `admin.audit` names.

use std::collections::VecDeque;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use http::request::Parts;
use http::{Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{error, info};

use super::gate::Caller;
use super::metrics::{Metrics, Outcome};

/// Changes that are kept in memory.
const MAX_KEPT: usize = 1000;

/// Of an answer that is not asked for more.
const LISTED: usize = 200;

/// Longest path of a change, in bytes.
const MAX_PATH_BYTES: usize = 256;

/// Details of a change: a policy of many classes has more, which the log has.
const MAX_DETAILS: usize = 20;

/// Longest detail, in bytes. With this, a line of the file has less than 32 KiB, escaped.
const MAX_DETAIL_BYTES: usize = 200;

/// What a route says of a change it made: lines such as `edge: classes[1].ttl: "500ms" -> "250ms"`. Goes into the extensions of
/// its answer. No secrets.
#[derive(Debug, Clone)]
pub(crate) struct Details(pub(crate) Vec<String>);

/// One change, done or refused.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    /// Counts from 1 since the process began.
    number: u64,
    unix_ms: u64,
    who: String,
    role: &'static str,
    peer: String,
    method: String,
    path: String,
    status: u16,
    details: Vec<String>,
}

/// The record of changes.
pub(super) struct Audit {
    file: Option<PathBuf>,
    metrics: Metrics,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    total: u64,
    kept: VecDeque<Arc<Entry>>,
}

impl Entry {
    /// Of a request, before it is answered.
    pub(super) fn new(caller: &Caller, head: &Parts) -> Entry {
        Entry {
            number: 0,
            unix_ms: 0,
            who: caller.name.clone(),
            role: caller.role.as_str(),
            peer: caller.peer.to_string(),
            method: head.method.to_string(),
            path: cut(head.uri.path(), MAX_PATH_BYTES),
            status: 0,
            details: Vec::new(),
        }
    }
}

impl Audit {
    /// Fails if the file cannot be written.
    pub(super) fn open(file: Option<&Path>, metrics: Metrics) -> anyhow::Result<Audit> {
        if let Some(file) = file {
            append(file, b"").with_context(|| format!("admin.audit: {}", file.display()))?;
        }
        Ok(Audit { file: file.map(Path::to_owned), metrics, ring: Mutex::default() })
    }

    /// Notes what came of a change; in the file, too, before this returns.
    pub(super) async fn note<B>(&self, mut entry: Entry, response: &Response<B>) {
        let status = response.status();
        let outcome = match status {
            status if status.is_success() => "done",
            status if status.is_server_error() => "failed",
            _ => "refused",
        };
        self.metrics.changes.get_or_create(&Outcome { outcome }).inc();
        entry.status = status.as_u16();
        entry.unix_ms = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
        entry.details = details(response);
        let entry = self.keep(entry);
        let Entry { who, role, peer, method, path, details, .. } = &*entry;
        info!(target: "audit", who, role, peer, method, path, status = entry.status, ?details, outcome, "change");
        let Some(file) = self.file.clone() else { return };
        let line = format!("{}\n", json!(*entry));
        // Opened for each line, so that it may be moved away at any time.
        let written = tokio::task::spawn_blocking(move || append(&file, line.as_bytes())).await;
        let why = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.metrics.audit_lost.inc();
        error!(number = entry.number, why, "a change could not be written to admin.audit");
    }

    fn keep(&self, mut entry: Entry) -> Arc<Entry> {
        let mut ring = self.lock();
        ring.total += 1;
        entry.number = ring.total;
        let entry = Arc::new(entry);
        if ring.kept.len() == MAX_KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(entry.clone());
        entry
    }

    /// The latest changes, newest first; the query may be `limit=COUNT`.
    pub(super) fn show(&self, query: &str) -> Result<Value, String> {
        let limit = match query {
            "" => Some(LISTED),
            query => query.strip_prefix("limit=").and_then(|limit| limit.parse().ok()),
        };
        let limit = limit
            .filter(|limit| (1..=MAX_KEPT).contains(limit))
            .ok_or_else(|| format!("the query may be limit=COUNT, 1 to {MAX_KEPT}"))?;
        let ring = self.lock();
        let listed: Vec<_> = ring.kept.iter().rev().take(limit).cloned().collect();
        let total = ring.total;
        drop(ring);
        let listed: Vec<_> = listed.iter().map(|entry| json!(**entry)).collect();
        Ok(json!({ "total": total, "changes": listed }))
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer says of its change, within bounds.
fn details<B>(response: &Response<B>) -> Vec<String> {
    let made = response.headers().get(header::LOCATION).filter(|_| response.status() == StatusCode::CREATED);
    let made = made.and_then(|made| made.to_str().ok()).map(|made| format!("made {made}"));
    let given = response.extensions().get::<Details>().map_or(&[][..], |details| &details.0);
    let mut details: Vec<_> =
        made.iter().chain(given).take(MAX_DETAILS).map(|line| cut(line, MAX_DETAIL_BYTES)).collect();
    if given.len() > MAX_DETAILS {
        details.push(format!("and {} more", given.len() - MAX_DETAILS));
    }
    details
}

/// At most so many bytes of a text.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", &text[..end])
}

fn append(file: &Path, line: &[u8]) -> std::io::Result<()> {
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(file)?.write_all(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::roles::Role;

    fn entry(path: &str) -> Entry {
        let caller = Caller { name: "ops".into(), role: Role::Operate, peer: "192.0.2.1:7".parse().unwrap() };
        let head = http::Request::post(path).header("authorization", "Bearer s3cret").body(()).unwrap();
        Entry::new(&caller, &head.into_parts().0)
    }

    fn answer(status: u16, details: Vec<String>) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.extensions_mut().insert(Details(details));
        response
    }

    #[tokio::test]
    async fn changes_are_kept_within_bounds_and_written() {
        let folder = std::env::temp_dir().join(format!("rooftop-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("audit.jsonl");
        let audit = Audit::open(Some(&file), Metrics::default()).unwrap();
        audit.note(entry("/admin/purge?prefix=/a"), &answer(200, vec!["edge: 3".into()])).await;
        // What a peer may choose is bounded, and stays one line.
        let long = format!("/admin/{}", "x".repeat(5000));
        let details = vec![format!("\u{e9}\n{}", "\u{1}".repeat(9000)); 900];
        audit.note(entry(&long), &answer(422, details)).await;
        for _ in 0..MAX_KEPT {
            audit.note(entry("/admin/drain"), &answer(500, Vec::new())).await;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), MAX_KEPT + 2);
        assert!(text.lines().all(|line| line.len() < 32 << 10));
        let first = &lines[0];
        assert_eq!(first["number"], 1, "{first}");
        assert_eq!(
            (&first["who"], &first["role"], &first["peer"], &first["path"], &first["status"]),
            (&json!("ops"), &json!("operate"), &json!("192.0.2.1:7"), &json!("/admin/purge"), &json!(200))
        );
        assert_eq!(first["details"], json!(["edge: 3"]));
        assert_eq!(lines[1]["details"][MAX_DETAILS], "and 880 more");
        assert!(!text.contains("s3cret"));

        let shown = audit.show("").unwrap();
        assert_eq!(
            (shown["total"].as_u64(), shown["changes"].as_array().unwrap().len()),
            (Some(1002), LISTED)
        );
        assert_eq!(shown["changes"][0]["number"], 1002, "the newest first");
        let all = audit.show("limit=1000").unwrap();
        assert_eq!(all["changes"][MAX_KEPT - 1]["number"], 3, "the oldest are gone");
        for wrong in ["limit=0", "limit=1001", "limit=x", "after=1"] {
            assert!(audit.show(wrong).is_err(), "{wrong}");
        }

        // A file that is moved away is made anew; one that cannot be written is counted.
        std::fs::rename(&file, folder.join("audit.1")).unwrap();
        audit.note(entry("/admin/drain"), &answer(200, Vec::new())).await;
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
        audit.note(entry("/admin/drain"), &answer(200, Vec::new())).await;
        assert_eq!(audit.metrics.audit_lost.get(), 1);
        let outcomes = ["done", "refused", "failed"];
        let counted = outcomes.map(|outcome| audit.metrics.changes.get_or_create(&Outcome { outcome }).get());
        assert_eq!(counted, [3, 1, 1000]);
        assert!(Audit::open(Some(Path::new("/nowhere/audit")), Metrics::default()).is_err());
    }
}
