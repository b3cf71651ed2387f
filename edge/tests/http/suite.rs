//! The public HTTP cache tests (npm: http-cache-tests) against a tier without classes of its own, so that RFC 9111 alone
//! decides. What fails must be listed with a reason, and what is listed must fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster::Node;
use edge::Class;
use serde::Deserialize;

use crate::kit::{Tier, config};

/// The suite takes about 20 seconds, most of them waiting for answers to become stale.
const LIMIT: Duration = Duration::from_secs(240);

/// One test of the suite, as `run.mjs` reports it.
#[derive(Debug, Deserialize)]
struct Test {
    kind: String,
    name: String,
    /// `true`, or what went wrong.
    result: serde_json::Value,
}

/// Killed when dropped.
struct Suite(Child);

impl Drop for Suite {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_rfc_9111_asks_for() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cache-tests");
    if !folder.join("node_modules").exists() {
        assert!(
            std::env::var_os("ROOFTOP_STRICT").is_none(),
            "no packages: run scripts/web.sh tests/cache-tests"
        );
        eprintln!("skipped: run scripts/web.sh tests/cache-tests");
        return;
    }
    let mut child = Command::new("node")
        .arg(folder.join("run.mjs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("node runs");
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let _suite = Suite(child);
    let run = async {
        let (mut lines, port) = next_line(BufReader::new(stdout)).await;
        let node = Node { name: "suite".into(), address: format!("127.0.0.1:{port}") };
        let class = Class { negative_ttl: Duration::ZERO, ..Class::default() };
        let tier = Tier::start(config(class), vec![node], |_| {}).await;
        writeln!(stdin, "{}", tier.url).unwrap();
        let report;
        (lines, report) = next_line(lines).await;
        drop(lines);
        report
    };
    let report = tokio::time::timeout(LIMIT, run).await.expect("the suite ends");
    let tests: BTreeMap<String, Test> = serde_json::from_str(&report).expect("a report");
    assert!(tests.len() > 300, "only {} tests ran", tests.len());
    let wrong = judge(&tests, &std::fs::read_to_string(folder.join("exceptions.toml")).unwrap());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn next_line<R: BufRead + Send + 'static>(mut lines: R) -> (R, String) {
    let read = move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        (lines, line.trim().to_owned())
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// What is not as it should be. `exceptions`: reasons, each with the tests that fail for it. Tests of the kind "check" ask which of two allowed things a
/// cache does: they are counted, and neither pass nor fail.
fn judge(tests: &BTreeMap<String, Test>, exceptions: &str) -> Vec<String> {
    let reasons: BTreeMap<String, Vec<String>> = toml::from_str(exceptions).expect("exceptions.toml");
    let mut excepted = BTreeSet::new();
    let mut wrong = Vec::new();
    for id in reasons.values().flatten() {
        if !excepted.insert(id) {
            wrong.push(format!("{id} is listed twice"));
        }
        match tests.get(id) {
            None => wrong.push(format!("{id} is listed, and the suite has no such test")),
            Some(test) if test.result == true => wrong.push(format!("{id} is listed, and passes")),
            Some(_) => {}
        }
    }
    let mut counts = BTreeMap::new();
    for (id, Test { kind, name, result }) in tests {
        let count: &mut (u32, u32) = counts.entry(kind).or_default();
        count.1 += 1;
        if result == true {
            count.0 += 1;
        } else if kind != "check" && !excepted.contains(id) {
            wrong.push(format!("{id} ({kind}) fails: {result}: {name}"));
        }
    }
    let counts: Vec<_> =
        counts.iter().map(|(kind, (passed, all))| format!("{kind}: {passed} of {all}")).collect();
    println!("http-cache-tests passed: {}; {} excepted", counts.join(", "), excepted.len());
    wrong
}

#[test]
fn both_kinds_of_surprise_are_told() {
    let test = |result| Test { kind: "required".into(), name: String::new(), result };
    let failed = || serde_json::json!(["Assertion", "no"]);
    let tests = BTreeMap::from([("good".into(), test(true.into())), ("bad".into(), test(failed()))]);
    for (exceptions, surprises) in [
        ("'why' = ['bad']", 0),
        ("", 1),
        ("'why' = ['bad', 'good']", 1),
        ("'why' = ['bad', 'unheard of']", 1),
        ("'why' = ['bad']\n'also' = ['bad']", 1),
    ] {
        let wrong = judge(&tests, exceptions);
        assert_eq!(wrong.len(), surprises, "{exceptions}: {wrong:?}");
    }
}
