//! Operators turn the policy of a running node: over the admin listener, by the file, and as the documentation says.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::kit::*;

/// One request on a connection of its own: status, headers as they came, body.
pub fn ask(
    node: &Node,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, String) {
    let addr = node.addr("admin");
    let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in [("host", addr.to_string()), ("content-length", body.len().to_string())] {
        if !headers.iter().any(|(given, _)| *given == name) {
            request += &format!("{name}: {value}\r\n");
        }
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

fn policy(node: &Node, tier: &str) -> (Value, String) {
    let (status, head, body) = ask(node, "GET", &format!("/admin/policy{tier}"), &[], "");
    assert_eq!(status, 200, "{body}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    (serde_json::from_str(&body).unwrap(), tag.to_owned())
}

fn put(node: &Node, path: &str, headers: &[(&str, &str)], policy: &Value) -> (u16, Value) {
    let headers = [&[JSON], headers].concat();
    let (status, _, body) = ask(node, "PUT", path, &headers, &policy.to_string());
    (status, serde_json::from_str(&body).unwrap())
}

#[test]
fn operators_change_the_policy_of_a_running_node() {
    let folder = Folder::new("policy");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let (all, _) = policy(&node, "");
    assert_eq!(all["edge"], all["shield"], "both have the defaults");
    let playlist =
        all["edge"]["classes"].as_array().unwrap().iter().position(|c| c["name"] == "playlist").unwrap();

    // A change of one tier, in the very words of the file.
    let (mut edge, tag) = policy(&node, "/edge");
    assert_eq!(edge, all["edge"]);
    edge["classes"][playlist]["ttl"] = json!("250ms");
    edge["delivery"] = json!([{ "prefix": "/live/demo/", "mode": "pull" }]);
    let (status, said) = put(&node, "/admin/policy/edge", &[("if-match", &tag)], &edge);
    assert_eq!((status, &said), (200, &edge));
    node.logged("old=\"\\\"500ms\\\"\" new=\"\\\"250ms\\\"\"");
    let mut config = json!({ "node": { "roles": ["edge"] }, "edge": edge });
    config["edge"]["http"] = json!("127.0.0.1:0");
    let file = folder.path().join("check.toml");
    fs::write(&file, toml::Table::try_from(config).unwrap().to_string()).unwrap();
    let checked = rooftop().arg("check-config").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    // The second operator has not seen it.
    let (status, said) = put(&node, "/admin/policy/edge", &[("if-match", &tag)], &all["edge"]);
    assert!(status == 412 && said["problems"][0].as_str().unwrap().contains("If-Match"), "{said}");

    // All that is wrong, and nothing changed.
    let mut bad = json!({ "edge": edge, "shield": all["shield"], "pop": {} });
    bad["edge"]["classes"][0]["ttl"] = json!("soon");
    bad["shield"]["classes"][1]["max_fetches"] = json!(9);
    bad["shield"]["classes"][1]["give_up"] = json!("1ms");
    let (status, said) = put(&node, "/admin/policy", &[], &bad);
    let problems: Vec<_> = said["problems"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert_eq!(status, 422);
    for key in
        ["edge.classes[0].ttl: ", "shield.classes[1].max_fetches: ", "shield.classes[1].give_up: ", "pop: "]
    {
        assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key}: {problems:?}");
    }
    assert_eq!(policy(&node, "").0, json!({ "edge": edge, "shield": all["shield"] }));

    // Both at once, back to what it was.
    assert_eq!(put(&node, "/admin/policy", &[], &all).0, 200);
    assert_eq!(policy(&node, "").0, all);
}

#[test]
fn the_admin_listener_refuses_what_a_web_page_could_send() {
    let folder = Folder::new("csrf");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let (edge, _) = policy(&node, "/edge");
    let edge = edge.to_string();
    let purge = "/admin/purge?prefix=/live/";
    for (method, path, headers, body, expected) in [
        ("PUT", "/admin/policy/edge", vec![("content-type", "text/plain")], edge.as_str(), 415),
        ("PUT", "/admin/policy/edge", vec![], edge.as_str(), 415),
        ("POST", purge, vec![], "", 415),
        ("POST", purge, vec![JSON, ("origin", "https://example.com")], "", 403),
        ("POST", purge, vec![JSON, ("origin", "null")], "", 403),
        ("POST", purge, vec![JSON, ("sec-fetch-site", "cross-site")], "", 403),
        ("POST", purge, vec![JSON, ("host", "example.com")], "", 403),
        ("GET", "/admin/policy", vec![("host", "example.com:9090")], "", 403),
        ("PUT", "/admin/policy/edge", vec![JSON], "{\"classes\": [", 400),
        ("PUT", "/admin/policy/edge", vec![JSON], "", 422),
        ("PUT", "/admin/policy/pop", vec![JSON], edge.as_str(), 404),
        ("POST", "/admin/purge", vec![JSON], "{}", 422),
        ("POST", "/admin/purge", vec![JSON], "{\"prefix\": \"live\"}", 422),
        ("POST", "/admin/purge", vec![JSON], "{\"prefix\": \"/\", \"prefixes\": 1}", 422),
        ("POST", "/admin/purge?prefix=/&tier=pop", vec![JSON], "", 404),
        ("POST", "/admin/purge?suffix=/", vec![JSON], "", 422),
        ("DELETE", "/admin/policy", vec![JSON], "", 405),
        ("GET", "/admin/purge", vec![], "", 405),
        ("GET", "/admin/policies", vec![], "", 404),
        ("POST", purge, vec![JSON], "", 200),
        (
            "POST",
            purge,
            vec![("content-type", "application/json; charset=utf-8"), ("sec-fetch-site", "none")],
            "",
            200,
        ),
    ] {
        let (status, head, said) = ask(&node, method, path, &headers, body);
        assert_eq!(status, expected, "{method} {path} {headers:?}: {said}");
        assert_eq!(head.contains("\r\nallow: "), expected == 405, "{head}");
        assert!(serde_json::from_str::<Value>(&said).is_ok(), "{said}");
    }
    // It is refused for what it announces.
    let large = ("content-length", "262145");
    assert_eq!(ask(&node, "PUT", "/admin/policy/edge", &[JSON, large], "").0, 413);
}

#[test]
fn a_reload_takes_the_policy_of_the_file_and_names_the_rest() {
    let folder = Folder::new("reload");
    let mut config = all_in_one(&folder.path().join("state"));
    // It is told when to look.
    config.get_mut("node").unwrap().push_str("watch_config = false\n");
    let node = Node::start(&folder, "node", &toml(&config));
    let hang_up = || {
        let sent = Command::new("kill").args(["-HUP", &node.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    let before = policy(&node, "").0;
    fs::write(node.config(), "[edge]\nhttp = 1\n[[edge.classes]]\nttl = \"x\"\n").unwrap();
    hang_up();
    node.logged("configuration not reloaded");
    node.logged("edge.classes[0].ttl");
    assert_eq!(policy(&node, "").0, before);

    let edge = config["edge"].replace("127.0.0.1:0", "127.0.0.1:1")
        + "cache_size = \"2GiB\"\ndelivery = [{ prefix = \"/live/\", mode = \"pull\" }]\n";
    config.insert("edge", edge.replace("http = \"127.0.0.1:1\"", "http = \"127.0.0.1:2\""));
    config.insert("shield", config["shield"].clone() + "[[shield.classes]]\nname = \"all\"\nttl = \"2s\"\n");
    fs::write(node.config(), toml(&config)).unwrap();
    hang_up();
    node.logged("configuration reloaded");
    let after = policy(&node, "").0;
    assert_eq!(after["edge"]["delivery"], json!([{ "prefix": "/live/", "mode": "pull" }]));
    assert_eq!(after["edge"]["classes"], before["edge"]["classes"]);
    assert_eq!(after["shield"]["classes"].as_array().unwrap().len(), 1);
    assert_eq!(after["shield"]["classes"][0]["ttl"], "2s");
    let log = node.log();
    let restarts: Vec<_> = log.lines().filter(|line| line.contains("needs a restart")).collect();
    for key in ["edge.http", "edge.https", "edge.cache_size"] {
        let named = |line: &&&str| line.contains(&format!("key=\"{key}\""));
        assert_eq!(restarts.iter().filter(named).count(), 1, "{key}: {restarts:#?}");
    }
    assert_eq!(restarts.len(), 3, "{restarts:#?}");
    assert_eq!(get(&node.url("/healthz")).status, 200, "it still serves where it did");
}

#[test]
fn the_examples_of_the_documentation_work() {
    let folder = Folder::new("examples");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/policy.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let script = format!("set -euo pipefail\n{}", blocks.collect::<String>());
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_rooftop")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("ADMIN", node.addr("admin").to_string())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("\"purged\"").count(), 3, "{said}");
    let classes = policy(&node, "/edge").0["classes"].clone();
    let playlist = classes.as_array().unwrap().iter().find(|class| class["name"] == "playlist").unwrap();
    assert_eq!(playlist["ttl"], "250ms", "the change was made");
    // And what the command line says when it does not work.
    let admin = format!("--admin={}", node.addr("admin"));
    let stale = ["policy", "set", "policy.json", "--tier=edge", "--if-match=\"0\"", &admin];
    let refused = rooftop().args(stale).current_dir(folder.path()).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("has changed since")
    );
    drop(node);
    let nobody = rooftop().args(["policy", "get", &admin]).output().unwrap();
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("is the node running"));
}
