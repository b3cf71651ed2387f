//! The command line, health endpoints and shutdown, as an operator meets them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::kit::*;

#[test]
fn check_config_names_every_problem_and_exits_2() {
    let folder = Folder::new("check");
    let file = folder.path().join("bad.toml");
    fs::write(&file, "[origin]\nwindow = \"1s\"\ncolour = 1\n[edge]\nhttp = \"nowhere\"\n").unwrap();
    for command in [["check-config"].as_slice(), ["serve", "--config"].as_slice()] {
        let output = rooftop().args(command).arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        for key in ["origin.window", "origin.colour", "edge.http"] {
            assert!(said.contains(key), "{key} in {said}");
        }
    }
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/all-in-one.toml");
    assert!(rooftop().args(["check-config", good]).output().unwrap().status.success());
}

#[test]
fn errors_say_what_to_do() {
    let folder = Folder::new("advice");
    let file = folder.path().join("node.toml");
    let nowhere = "/nowhere/file";
    let keys = format!("[tokens]\nkey_files = [\"{nowhere}\"]\n");
    fs::write(&file, toml(&all_in_one(&folder.path().join("state"))) + &keys).unwrap();
    let (config, here) = (file.to_str().unwrap(), folder.path().to_str().unwrap());
    let path = "is the path right?";
    let cases: [(&[&str], &str); 12] = [
        (&["serve", "--config", nowhere], path),
        (&["check-config", here], "name the file in it"),
        (&["doctor", "--config", nowhere], path),
        (&["stream", "create", "show", "--config", config], path),
        (&["token", "make", "show", "--key", nowhere], "openssl rand -hex 32"),
        (&["token", "new-key", nowhere], path),
        (&["policy", "set", nowhere], path),
        (&["archive", "ls", "--config", nowhere], path),
        (&["archive", "verify", "show", "--config", config], "STREAM-MILLISECONDS"),
        (&["status", "--admin", "127.0.0.1:1"], "is the node running"),
        (&["latency", "a b", "--admin", "127.0.0.1:1"], "has a character outside"),
        (&["simulate", "--class", "none"], "there is no class \"none\" in the policy, but "),
    ];
    for (args, advice) in cases {
        let output = rooftop().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(advice), "{args:?} says {said}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let folder = Folder::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let mut config = all_in_one(&folder.path().join("state"));
    config.insert("admin", format!("listen = \"{addr}\"\n"));
    let file = folder.path().join("node.toml");
    fs::write(&file, toml(&config)).unwrap();
    let output = rooftop().args(["serve", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&format!("failed to listen on {addr}")) && said.contains("ss -ltnp"), "{said}");
}

#[test]
fn an_idle_node_answers_operators_and_stops_at_once() {
    let folder = Folder::new("idle");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let admin = |path: &str| get(&format!("http://{}{path}", node.addr("admin")));
    assert_eq!(admin("/healthz").status, 200);
    eventually("readiness", || (admin("/readyz").status == 200).then_some(()));
    let metrics = admin("/metrics").text();
    for name in ["ingest_connections", "origin_streams", "transcode_jobs", "edge_requests"] {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name}");
    }
    assert_eq!(admin("/secret").status, 404);
    let page = get(&node.url("/watch/anything"));
    assert!(page.status == 200 && page.text().contains("<html"));
    assert_eq!(get(&node.url("/live/nothing/index.m3u8")).status, 404);
    let now = get(&node.url("/time")).text();
    assert!(now.ends_with('Z') && now.len() == "2026-01-01T00:00:00.000Z".len(), "{now}");
    let (status, took) = node.stop();
    assert!(status.success() && took < Duration::from_secs(10), "{status}, {took:?}");
}

#[test]
fn a_doctor_says_what_is_wrong_and_what_to_do() {
    let folder = Folder::new("doctor");
    let file = folder.path().join("node.toml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = all_in_one(&folder.path().join("state"));
    let examine = |config: &std::collections::BTreeMap<&'static str, String>| {
        fs::write(&file, toml(config)).unwrap();
        let output = rooftop().args(["doctor", "--json", "--config"]).arg(&file).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), told["findings"].as_array().unwrap().clone())
    };
    let of = |findings: &[serde_json::Value], about: &str, level: &str| {
        findings.iter().filter(|found| found["about"] == about && found["level"] == level).count()
    };
    let (code, findings) = examine(&config);
    assert_eq!((code, of(&findings, "port", "good")), (Some(0), 7), "{findings:#?}");
    assert_eq!(of(&findings, "encoders", "good"), 1, "{findings:#?}");
    assert!(
        findings.iter().all(|found| (found["level"] == "good") == found["advice"].is_null()),
        "{findings:#?}"
    );

    config.insert("origin", format!("listen = \"{}\"\n", taken.local_addr().unwrap()));
    config.insert("tokens", "key_files = [\"/nowhere/key\"]\n".into());
    config.insert("archive", "store = \"s3\"\nbucket = \"b\"\nendpoint = \"http://127.0.0.1:1\"\n".into());
    config.insert("tls", "ca = \"/nowhere/ca\"\ncertificate = \"/nowhere/c\"\nkey = \"/nowhere/k\"\n".into());
    let (code, findings) = examine(&config);
    assert_eq!(code, Some(1));
    for (about, failures) in [("port", 1), ("key", 2), ("archive", 1), ("certificate", 3)] {
        assert_eq!(of(&findings, about, "failure"), failures, "{about}: {findings:#?}");
    }
    let text = rooftop().args(["doctor", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("FAILURE  port") && text.contains("-> end what listens there (ss "), "{text}");
}

#[test]
fn operators_look_at_a_node_and_drain_it() {
    let folder = Folder::new("look");
    let mut config = all_in_one(&folder.path().join("state"));
    let collector = Collector::start();
    config.insert("traces", format!("endpoint = \"http://{}\"\nrequest_ratio = 1.0\n", collector.addr));
    let node = Node::start(&folder, "node", &toml(&config));
    let admin = node.addr("admin").to_string();
    let json = |command: &[&str]| -> serde_json::Value {
        let output = rooftop().args(command).args(["--json", "--admin", &admin]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    eventually("readiness", || (get(&format!("http://{admin}/readyz")).status == 200).then_some(()));
    // What viewers say of traces is not minded.
    let said = format!("traceparent: 00-{:032x}-{:016x}-01", 7, 7);
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &said]);
    let answered = curl.arg(node.url("/live/nothing/index.m3u8")).output().unwrap();
    assert_eq!(answered.stdout, b"404");
    let status = json(&["status"]);
    assert_eq!((&status["node"], &status["ready"]), (&"local".into(), &true.into()), "{status:#}");
    assert_eq!(status["tiers"]["edge"]["requests"], 1.0, "{status:#}");
    assert_eq!(status["listeners"]["http"], node.addr("http").to_string());
    assert_eq!(json(&["streams"])["streams"], serde_json::json!([]));
    assert_eq!(json(&["top", "--once", "--every", "100ms"])["tiers"]["shield"]["waiters"], 0.0);
    for command in ["status", "streams", "top"] {
        let mut args = vec![command, "--admin", &admin];
        args.extend(["--once", "--every=100ms"].iter().filter(|_| command == "top"));
        let output = rooftop().args(&args).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 40, "{output:?}");
    }
    assert_eq!(json(&["drain", "--wait", "20s"])["ended"], true);
    assert!(node.ended().success());
    one_trace_through_all_tiers(&collector.spans());
    let gone = rooftop().args(["status", "--admin", &admin]).output().unwrap();
    assert!(String::from_utf8_lossy(&gone.stderr).contains("is the node running"));
}

/// A viewer's request is a trace, from the edge to the origin.
fn one_trace_through_all_tiers(spans: &[Span]) {
    let edge = spans.iter().find(|span| span.name == "edge" && span.parent_span_id.is_empty()).unwrap();
    assert_eq!(edge.trace_id.len(), 16);
    assert!(edge.trace_id[..15].iter().any(|byte| *byte != 0), "a viewer chose {:?}", edge.trace_id);
    let mut span = edge;
    for name in ["object", "fetch", "shield", "object", "fetch", "origin"] {
        let is_next = |other: &&Span| other.name == name && other.parent_span_id == span.span_id;
        span =
            spans.iter().find(is_next).unwrap_or_else(|| panic!("no {name} below {}: {spans:#?}", span.name));
        assert_eq!(span.trace_id, edge.trace_id, "{name}");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{name}");
    }
    let path = span.attributes.iter().find(|said| said.key == "url.path").unwrap();
    assert!(format!("{path:?}").contains("/live/nothing/index.m3u8"), "{path:?}");
}

/// Takes what an exporter of traces posts.
struct Collector {
    addr: SocketAddr,
    came: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let came = Arc::new(Mutex::new(Vec::new()));
        let taken = came.clone();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                // The exporter keeps its connection.
                while let Some(body) = posted(&mut socket) {
                    let request = ExportTraceServiceRequest::decode(&*body).unwrap();
                    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
                    taken.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
                    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            }
        });
        Collector { addr, came }
    }

    fn spans(&self) -> Vec<Span> {
        self.came.lock().unwrap().clone()
    }
}

/// The body of the next request of a connection.
fn posted(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(socket);
    let mut length = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

#[test]
fn shells_and_man_know_every_command() {
    let folder = Folder::new("man");
    let pages = folder.path().join("man1");
    assert!(rooftop().arg("man").arg(&pages).status().unwrap().success());
    let help = String::from_utf8(rooftop().arg("--help").output().unwrap().stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<_> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()))
        .collect();
    assert!(commands.len() > 15 && commands.contains(&"simulate"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let output = rooftop().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        for command in &commands {
            assert!(script.contains(command), "{command} in the completions of {shell}");
        }
    }
    for command in commands.iter().filter(|command| **command != "help") {
        let page = fs::read_to_string(pages.join(format!("rooftop-{command}.1")));
        assert!(page.is_ok_and(|page| page.contains(".TH")), "{command}");
    }
}

#[test]
fn an_audience_is_simulated() {
    let folder = Folder::new("simulate");
    let svg = folder.path().join("plot.svg");
    let simulate = |more: &[&str]| {
        let audience =
            ["simulate", "--viewers=20000", "--edges=4", "--ttl=500ms", "--blocking-timeout=250ms,1s"];
        rooftop().args(audience).args(more).output().unwrap()
    };
    let slow = simulate(&["--latency=600ms", "--json", "--plot", svg.to_str().unwrap()]);
    assert!(slow.status.success(), "{slow:?}");
    let told: serde_json::Value = serde_json::from_slice(&slow.stdout).unwrap();
    let cells = told["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 4, "{told:#}");
    let fetches = |rule: &str, timeout: u64| {
        let cell = cells.iter().find(|cell| cell["rule"] == rule && cell["blocking_timeout_ms"] == timeout);
        cell.unwrap()["edge_fetches"].as_u64().unwrap()
    };
    assert!(fetches("flood", 250) > 10 * fetches("promote", 250), "{told:#}");
    assert!(fetches("promote", 250) > fetches("promote", 1000), "one more for each name: {told:#}");
    let drawn = fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n") && drawn.contains("flood"), "{drawn}");

    let text = String::from_utf8(simulate(&["--players=polling"]).stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 2 + 4, "{text}");
    assert!(
        lines[2..].iter().all(|line| line.len() == lines[2].len()),
        "the columns stand below their titles: {text}"
    );
    // What cannot be is said, all of it.
    let bad = simulate(&["--part=7m", "--class=none", "--latency-p99=1ms", "--shields=17"]);
    let said = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(1));
    for flag in ["part: ", "class: ", "latency-p99: ", "shields: "] {
        assert!(said.contains(flag), "{flag} in {said}");
    }
    // A node that has fetched nothing knows no latency.
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let asked = rooftop().args(["simulate", "--admin", &node.addr("admin").to_string()]).output().unwrap();
    let said = String::from_utf8(asked.stderr).unwrap();
    assert!(!asked.status.success() && said.contains("too few"), "{said}");
}

#[test]
fn a_play_url_opens_one_stream() {
    let folder = Folder::new("play-url");
    let mut config = all_in_one(&folder.path().join("state"));
    config.insert("edge.playback", "paths = [\"/live/*\"]\n".into());
    config.insert("log", "filter = \"debug\"\n".into());
    let node = Node::start(&folder, "node", &toml(&config));
    assert_eq!(get(&node.url("/live/show/index.m3u8")).status, 401);
    assert_eq!(get(&node.url("/watch/show")).status, 200, "the page itself is for everyone");
    let output = rooftop()
        .args(["stream", "play-url", "show", "--json", "--config"])
        .arg(node.config())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let token = made["token"].as_str().unwrap();
    let url = made["hls"][0].as_str().unwrap();
    let path = &url[url.find("/t/").unwrap()..];
    assert_eq!(path, format!("/t/{token}/live/show/index.m3u8"));
    assert!(made["watch"][0].as_str().unwrap().ends_with(&format!("/watch/show?token={token}")));
    // Nobody broadcasts: what is asked is let in, and not found.
    for open in [path.to_owned(), format!("/live/show/manifest.mpd?token={token}")] {
        assert_eq!(get(&node.url(&open)).status, 404, "{open}");
    }
    assert_eq!(get(&node.url(&format!("/t/{token}/live/other/index.m3u8"))).status, 403);
    // A token to publish is none to watch.
    let key = stream_key(node.config(), "show", "1h");
    let publish = key.split_once("token=").unwrap().1;
    assert_eq!(get(&node.url(&format!("/t/{publish}/live/show/index.m3u8"))).status, 401);
    let log = node.log();
    assert!(log.contains("/live/show/index.m3u8") && !log.contains(token) && !log.contains(publish), "{log}");
}
