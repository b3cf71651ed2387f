//! `rooftop reload`: a running node reads its configuration again.

use std::process::ExitCode;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::node::{NodeArgs, Question, exchange};

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

/// Has the configuration read again and says what came of it. Exit code 1: it has problems, and nothing has changed.
pub fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let question = Question::new(Method::POST, "/admin/reload").body(&json!({}));
    let answered = exchange(&args.node, question)?;
    let Some(told) = answered.good() else { return Ok(ExitCode::FAILURE) };
    if args.json {
        println!("{told:#}");
    } else {
        print!("{}", in_words(told));
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(told: &Value) -> String {
    let mut lines = String::new();
    let list = |name: &str| told[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for change in list("changed") {
        let [key, old, new, takes] = ["key", "old", "new", "takes"].map(|name| text(&change[name]));
        lines += &format!("{key}: {old} -> {new}, {takes}\n");
    }
    for certificate in list("certificates") {
        lines += &format!("new {} certificate, for connections from now on\n", text(&certificate));
    }
    for waits in list("needs_restart") {
        let [key, running, file] = ["key", "running", "file"].map(|name| text(&waits[name]));
        lines += &format!("{key} needs a restart: still {running}, the file says {file}\n");
    }
    if lines.is_empty() { "nothing has changed\n".into() } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_a_line() {
        let told = json!({
            "changed": [{ "key": "log.filter", "old": "info", "new": "debug", "takes": "at once" }],
            "needs_restart": [{ "key": "origin.listen", "running": "1.2.3.4:5", "file": "1.2.3.4:6" }],
            "certificates": ["public"],
        });
        let lines = [
            "log.filter: info -> debug, at once",
            "new public certificate, for connections from now on",
            "origin.listen needs a restart: still 1.2.3.4:5, the file says 1.2.3.4:6",
        ];
        assert_eq!(in_words(&told).lines().collect::<Vec<_>>(), lines);
        assert_eq!(in_words(&json!({})), "nothing has changed\n");
    }
}
