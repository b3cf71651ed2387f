//! Dashboard and alert rules name metrics that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::kit::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What is no metric of ours: `up` is Prometheus's own.
const OTHERS: [&str; 1] = ["up"];

/// Names of metrics within a PromQL expression: what is no function, keyword or label.
fn metrics(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut text = String::new();
    let mut depth = 0;
    // Labels and ranges are within braces and brackets.
    for character in expression.chars() {
        match character {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ if depth > 0 => continue,
            _ => {}
        }
        text.push(character);
    }
    // Lists of labels.
    for keyword in ["by", "on", "ignoring", "without"] {
        while let Some(at) = text.find(&format!("{keyword} (")) {
            let end = text[at..].find(')').map_or(text.len(), |end| at + end + 1);
            text.replace_range(at..end, " ");
        }
    }
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|character: char| character.is_ascii_alphabetic()) {
        let end = rest[at..].find(|character| !is_name(character)).map_or(rest.len(), |end| at + end);
        let (name, after) = (&rest[at..end], &rest[end..]);
        let is_function = after.trim_start().starts_with('(');
        if !is_function && !["and", "or", "unless"].contains(&name) {
            names.insert(name.to_owned());
        }
        rest = after;
    }
    names
}

/// What Prometheus calls the series of a family.
fn family(name: &str) -> &str {
    ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// Whether a family is registered: one without series yet is not printed. Its crate may name it with or without the
/// crate's own name before it, or by the field that holds it.
fn is_registered(family: &str) -> bool {
    let (owner, rest) = family.split_once('_').unwrap();
    let folder = Path::new(ROOT).join(owner).join("src");
    let texts = [format!("\"{family}\""), format!("\"{rest}\""), format!(" {rest}: ")];
    folder.is_dir() && texts.iter().any(|text| says(&folder, text))
}

fn says(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => says(&path, text),
            false => {
                path.extension().is_some_and(|extension| extension == "rs")
                    && fs::read_to_string(&path).unwrap().contains(text)
            }
        }
    })
}

#[test]
fn what_they_ask_for_is_there() {
    let dashboard: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(Path::new(ROOT).join("configs/grafana/rooftop.json")).unwrap(),
    )
    .unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut wanted: BTreeSet<String> =
        targets.flat_map(|target| metrics(target["expr"].as_str().unwrap())).collect();
    assert!(wanted.len() > 30, "{wanted:?}");
    let alerts = fs::read_to_string(Path::new(ROOT).join("configs/prometheus/alerts.yml")).unwrap();
    let mut count = 0;
    for rule in alerts.split("- alert: ").skip(1) {
        let expression = rule.split("expr: ").nth(1).unwrap();
        // One line, or the indented ones below.
        let folded = expression.strip_prefix(">-\n");
        let lines = folded.unwrap_or(expression).lines();
        let lines = lines.take(if folded.is_some() { usize::MAX } else { 1 });
        let expression: String =
            lines.take_while(|line| folded.is_none() || line.starts_with("          ")).collect();
        let found = metrics(&expression);
        assert!(!found.is_empty(), "{rule}");
        wanted.extend(found);
        count += 1;
    }
    assert!(count > 10);

    let folder = Folder::new("dashboards");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let printed = get(&format!("http://{}/metrics", node.addr("admin"))).text();
    for name in wanted.iter().filter(|name| !OTHERS.contains(&name.as_str())) {
        let family = family(name);
        let printed = printed.lines().find(|line| line.starts_with(&format!("# TYPE {family} ")));
        assert!(printed.is_some() || is_registered(family), "there is no metric {name}");
        // Counters end in _total, histograms in _bucket and the like.
        if let Some(line) = printed {
            let suffix = &name[family.len()..];
            let fits = match line.rsplit(' ').next().unwrap() {
                "counter" => suffix == "_total",
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            assert!(fits, "{name} is none: {line}");
        }
    }
}

#[test]
fn names_are_found_in_expressions() {
    let expression =
        "sum by (le, class) (rate(a_total{tier=~\"x\"}[5m])) / max(b) > 0.1 and c_bucket unless d";
    let names: Vec<_> = metrics(expression).into_iter().collect();
    assert_eq!(names, ["a_total", "b", "c_bucket", "d"]);
}
