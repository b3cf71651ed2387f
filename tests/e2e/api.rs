//! The Live API: every answer is held against the document that is served, broadcasts go through their whole life, and a
//! receiver of webhooks hears of it in order.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::kit::*;

const TINY: Recipe = Recipe { size: "160x96", rate: "10", seconds: 5, extra: &["-g", "20", "-b:v", "50k"] };

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The API of a node, and what it promises.
struct Api {
    admin: SocketAddr,
    document: Value,
}

struct Said {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Api {
    fn of(node: &Node) -> Api {
        let admin = node.addr("admin");
        let document = get(&format!("http://{admin}/v1/openapi.json")).text();
        let api = Api { admin, document: serde_json::from_str(&document).unwrap() };
        eventually("the API", || (api.get("/v1/broadcasts").status == 200).then_some(()));
        api
    }

    fn get(&self, path: &str) -> Said {
        self.ask("GET", path, &[], "")
    }

    fn post(&self, path: &str, body: &Value) -> Said {
        self.ask("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Said {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        write!(socket, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = Vec::new();
        // A refusal may come before all of a large body is read.
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = lines.filter_map(header).collect();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
        let said = Said { status, headers, body };
        self.check(method, path, &said);
        said
    }

    /// Fails if the document does not say that this may be answered.
    fn check(&self, method: &str, path: &str, said: &Said) {
        let path = path.split('?').next().unwrap();
        let paths = self.document["paths"].as_object().unwrap();
        let fits = |template: &str| {
            let (template, path) = (template.split('/'), path.split('/'));
            template.clone().count() == path.clone().count()
                && template.zip(path).all(|(wanted, step)| wanted == step || wanted.starts_with('{'))
        };
        let Some((template, described)) = paths.iter().find(|(template, _)| fits(template)) else {
            assert_eq!(said.status, 404, "{path} is not in the document");
            return self.conforms(&json!({ "$ref": "#/components/schemas/Problem" }), &said.body);
        };
        let mut response = &described[method.to_ascii_lowercase()]["responses"][said.status.to_string()];
        if described.get(method.to_ascii_lowercase()).is_none() {
            assert!(matches!(said.status, 403 | 405), "{method} {template} is not in the document");
            return self.conforms(&json!({ "$ref": "#/components/schemas/Problem" }), &said.body);
        }
        if let Some(name) = response["$ref"].as_str() {
            response = self.document.pointer(name.strip_prefix('#').unwrap()).unwrap();
        }
        assert!(
            response.is_object(),
            "{method} {template}: {} is not in the document: {}",
            said.status,
            said.body
        );
        match response.get("content") {
            None => assert_eq!(said.body, Value::Null),
            Some(content) => {
                let media_type = &said.headers["content-type"];
                let schema = &content[media_type]["schema"];
                assert!(schema.is_object(), "{method} {template}: {media_type} is not in the document");
                self.conforms(schema, &said.body);
            }
        }
    }

    fn conforms(&self, schema: &Value, body: &Value) {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(body)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:?} in {body:#}");
    }

    /// Waits until a broadcast is in a state.
    fn becomes(&self, id: &str, state: &str) -> Value {
        eventually(&format!("state {state}"), || {
            let broadcast = self.get(&format!("/v1/broadcasts/{id}")).body;
            (broadcast["state"] == state).then_some(broadcast)
        })
    }
}

/// What came in at a receiver of webhooks.
#[derive(Clone)]
struct Came {
    id: String,
    event: Value,
    taken: bool,
}

/// A receiver that refuses each event once, then takes it.
struct Receiver {
    came: Arc<Mutex<Vec<Came>>>,
}

impl Receiver {
    fn at(listener: TcpListener) -> Receiver {
        let came = Arc::new(Mutex::new(Vec::<Came>::new()));
        let told = came.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                let Some((headers, body)) = request(&mut socket) else { continue };
                let (id, timestamp) = (&headers["webhook-id"], &headers["webhook-timestamp"]);
                let key = STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
                let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
                let signature = headers["webhook-signature"].strip_prefix("v1,").unwrap();
                let signature = STANDARD.decode(signature).unwrap();
                let valid =
                    hmac::verify(&key, format!("{id}.{timestamp}.{body}").as_bytes(), &signature).is_ok();
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = valid && told.iter().any(|came| came.id == *id);
                let event = if valid { serde_json::from_str(&body).unwrap() } else { Value::Null };
                told.push(Came { id: id.clone(), event, taken });
                let status = if taken { "204 No Content" } else { "503 Service Unavailable" };
                let _ = write!(socket, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Receiver { came }
    }

    fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an event to be taken.
    fn takes(&self, kind: &str) -> Value {
        eventually(kind, || {
            self.came()
                .into_iter()
                .find(|came| came.taken && came.event["type"] == kind)
                .map(|came| came.event)
        })
    }
}

fn request(socket: &mut TcpStream) -> Option<(BTreeMap<String, String>, String)> {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = socket.read(&mut piece).ok().filter(|read| *read > 0)?;
        text.extend_from_slice(&piece[..read]);
        let so_far = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = so_far.split_once("\r\n\r\n") else { continue };
        let header = |line: &str| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        };
        let headers: BTreeMap<_, _> = head.lines().filter_map(header).collect();
        if body.len() >= headers.get("content-length")?.parse().ok()? {
            return Some((headers, body.to_owned()));
        }
    }
}

/// A node whose webhooks go to `receiver`.
fn config(folder: &Folder, receiver: SocketAddr) -> String {
    let mut config = all_in_one(&folder.path().join("state"));
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let secret = secret.display();
    config.insert(
        "webhooks",
        format!(
            "backoff_max = \"1s\"\n[[webhooks.endpoints]]\nname = \"shop\"\nurl = \"http://{receiver}/hook\"\nsecret_file = \"{secret}\"\n"
        ),
    );
    let key = folder.path().join("api.key");
    std::fs::write(&key, "k".repeat(32)).unwrap();
    config.insert("api", format!("listen = \"127.0.0.1:0\"\nkey_files = [\"{}\"]\n", key.display()));
    toml(&config)
}

#[test]
fn a_broadcast_lives_and_those_who_want_to_know_are_told() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("api", TINY);
    let folder = Folder::new("api-life");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = Node::start(&folder, "node", &config(&folder, listener.local_addr().unwrap()));
    let receiver = Receiver::at(listener);
    let api = Api::of(&node);

    let created =
        api.post("/v1/broadcasts", &json!({ "stream": "show", "title": "Launch", "max_height": 96 }));
    assert_eq!(created.status, 201, "{}", created.body);
    let id = created.body["id"].as_str().unwrap();
    let path = format!("/v1/broadcasts/{id}");
    assert_eq!(created.headers["location"], path);
    let url = created.body["ingest"][0]["rtmps_publish"].as_str().unwrap();
    let hls = created.body["playback"]["hls"].as_array().unwrap();
    assert!(hls.iter().any(|url| url.as_str().unwrap().ends_with("/live/show/index.m3u8")), "{hls:?}");
    let shown = api.get(&path).body;
    assert!(!shown.to_string().contains("token="), "the token is said once: {shown}");

    let first = Broadcaster::send(&clip, url, -1);
    receiver.takes("broadcast.started");
    let live = api.becomes(id, "live");
    assert_eq!(live["owner"], "local");
    let archive = live["archives"][0].as_str().unwrap();
    assert!(archive.strip_prefix("show-").unwrap().parse::<u64>().unwrap() > 1_700_000_000_000, "{archive}");
    let health = || api.get(&path).body["health"]["bitrate_bps"].as_u64().filter(|rate| *rate > 10_000);
    eventually("the broadcast's health", health);
    let listed = api.get("/v1/broadcasts?state=live").body;
    assert_eq!(listed["broadcasts"][0]["id"], id);
    // Another token's broadcast of the stream would be another broadcast.
    let conflict = api.post("/v1/broadcasts", &json!({ "stream": "show" }));
    assert_eq!((conflict.status, &conflict.body["errors"][0]["pointer"]), (409, &json!("#/stream")));
    assert_eq!(api.ask("DELETE", &path, &[], "").status, 409, "it is live");

    first.kill();
    receiver.takes("broadcast.interrupted");
    api.becomes(id, "interrupted");
    let second = Broadcaster::send(&clip, url, -1);
    receiver.takes("broadcast.resumed");
    api.becomes(id, "live");

    let began = Instant::now();
    let ended = api.post(&format!("{path}/end"), &json!({}));
    assert_eq!(
        (ended.status, &ended.body["state"], &ended.body["ended_by"]),
        (200, &json!("ended"), &json!("request"))
    );
    let (sent, _) = second.wait();
    println!("ended: the session was cut after {:?}", began.elapsed());
    assert!(!sent);
    node.logged("why=\"the token was revoked\"");
    eventually("the end of the playlist", || {
        get(&node.url("/live/show/audio.m3u8")).text().contains("#EXT-X-ENDLIST").then_some(())
    });
    receiver.takes("broadcast.ended");
    assert!(!Broadcaster::send(&clip, url, -1).wait().0, "its token opens nothing any more");
    assert_eq!(api.post(&format!("{path}/end"), &json!({})).body["ended_at"], ended.body["ended_at"]);

    // All of it is in the archive by then.
    let told = receiver.takes("broadcast.archived");
    let archived = api.becomes(id, "archived");
    assert_eq!(
        (&told["data"]["recordings"], &archived["recordings"]),
        (&json!([archive]), &json!([archive]))
    );
    let recording = &archived["playback"]["recordings"][0];
    let of = |kind: &str| {
        let urls = recording[kind].as_array().unwrap().iter().map(|url| url.as_str().unwrap());
        let plain = urls.filter(|url| url.starts_with("http://")).collect::<Vec<_>>();
        plain[0].to_owned()
    };
    assert_eq!(get(&of("dash")).status, 200);
    let played = packets(&of("hls"));
    assert!(played.len() == 2 && played.iter().all(|(_, packets)| packets.len() > 20), "{}", played.len());
    assert_eq!(api.get("/v1/broadcasts?state=archived").body["broadcasts"][0]["id"], id);

    // In order, each refused once and then taken, under one identifier.
    let came = receiver.came();
    let kinds =
        ["started", "interrupted", "resumed", "ended", "archived"].map(|kind| format!("broadcast.{kind}"));
    let expected: Vec<_> =
        kinds.iter().flat_map(|kind| [(kind.as_str(), false), (kind.as_str(), true)]).collect();
    let told: Vec<_> = came.iter().map(|came| (came.event["type"].as_str().unwrap(), came.taken)).collect();
    assert_eq!(told, expected);
    for (index, came) in came.iter().enumerate() {
        api.conforms(&json!({ "$ref": "#/components/schemas/Event" }), &came.event);
        assert_eq!(came.event["number"], index / 2 + 1);
        assert_eq!((&came.event["id"], &came.event["data"]["id"]), (&json!(came.id), &json!(id)));
    }
    eventually("nothing waits", || {
        (node.metric("api_webhook_events_waiting{receiver=\"shop\"}") == 0.0).then_some(())
    });
    let attempts = |outcome| {
        node.metric(&format!("api_webhook_attempts_total{{receiver=\"shop\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((attempts("refused"), attempts("delivered")), (5.0, 5.0));

    // Caches hold what they were asked for: each of these is a name of its own.
    let multivariant =
        |asked: &str| get(&node.url(&format!("/vod/{archive}/index.m3u8?asked={asked}"))).status;
    assert_eq!(multivariant("before"), 200);
    assert_eq!(api.ask("DELETE", &path, &[("if-match", "\"0\"")], "").status, 412);
    assert_eq!(api.ask("DELETE", &format!("{path}?with_recording=1"), &[], "").status, 422);
    assert_eq!(api.ask("DELETE", &format!("{path}?with_recording=true"), &[], "").status, 202);
    assert_eq!(api.get(&path).status, 404);
    let kept = folder.path().join("state/archive").join(archive);
    eventually("the recording is gone", || (!kept.exists()).then_some(()));
    assert_eq!(multivariant("after"), 404);
}

#[test]
fn requests_are_read_strictly_and_lists_are_paged() {
    let folder = Folder::new("api-strict");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start(&folder, "node", &config(&folder, nobody));
    let api = Api::of(&node);
    let json_type = ("content-type", "application/json");

    for (body, pointer) in [
        (json!({ "stream": "a b" }), "#/stream"),
        (json!({ "colour": 1 }), "#/colour"),
        (json!({ "metadata": { "a": 1 } }), "#/metadata/a"),
        (json!({ "token_ttl_seconds": 1 }), "#/token_ttl_seconds"),
        (json!([]), "#"),
    ] {
        let refused = api.post("/v1/broadcasts", &body);
        assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{body}");
    }
    assert_eq!(api.get("/v1/broadcasts?limit=0").body["errors"][0]["parameter"], "limit");
    let long = "x".repeat(66_000);
    for (method, path, headers, body, status) in [
        ("POST", "/v1/broadcasts", &[json_type][..], "{", 400),
        ("POST", "/v1/broadcasts", &[json_type], long.as_str(), 413),
        ("POST", "/v1/broadcasts", &[("content-type", "text/plain")], "{}", 415),
        ("POST", "/v1/broadcasts", &[], "{}", 415),
        ("POST", "/v1/broadcasts", &[json_type, ("origin", "https://evil.example")], "{}", 403),
        ("POST", "/v1/broadcasts", &[json_type, ("idempotency-key", "")], "{}", 422),
        ("PUT", "/v1/broadcasts", &[json_type], "{}", 405),
        ("DELETE", "/v1/openapi.json", &[], "", 405),
        ("GET", "/v1/broadcasts/0", &[], "", 404),
        ("GET", "/v1/broadcasts/..%2fx/end/x", &[], "", 404),
        ("POST", "/v1/broadcasts/000000000000000000000/end", &[json_type], "", 404),
        ("GET", "/v1/broadcasts/000000000000000000000?x=1", &[], "", 422),
        ("DELETE", "/v1/broadcasts/000000000000000000000?with_recording=true", &[], "", 404),
        ("OPTIONS", "/v1/broadcasts", &[], "", 405),
    ] {
        assert_eq!(api.ask(method, path, headers, body).status, status, "{method} {path} {headers:?}");
    }

    // One request, asked three times.
    let ask = |body: &str| api.ask("POST", "/v1/broadcasts", &[json_type, ("idempotency-key", "one")], body);
    let first = ask(r#"{"stream":"a","title":"A"}"#);
    assert_eq!(first.body, ask(r#"{ "title": "A", "stream": "a" }"#).body);
    let other = ask(r#"{"stream":"b"}"#);
    assert_eq!((other.status, &other.body["errors"][0]["header"]), (422, &json!("Idempotency-Key")));
    let mut ids = vec![first.body["id"].as_str().unwrap().to_owned()];
    for _ in 0..6 {
        let created = api.post("/v1/broadcasts", &json!({})).body;
        ids.push(created["id"].as_str().unwrap().to_owned());
        assert_eq!(created["stream"], created["id"]);
    }
    // Those of one millisecond have no order of their own.
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/broadcasts?limit=3{after}")).body;
        let listed = page["broadcasts"].as_array().unwrap();
        assert!(listed.len() <= 3);
        paged.extend(listed.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert!(paged.is_sorted_by(|a, b| a > b), "newest first: {paged:?}");
    ids.sort_by(|a, b| b.cmp(a));
    assert_eq!(paged, ids);
    assert_eq!(api.get("/v1/broadcasts?stream=a").body["broadcasts"].as_array().unwrap().len(), 1);

    let path = format!("/v1/broadcasts/{}", ids[0]);
    let shown = api.get(&path);
    let tag = shown.headers["etag"].as_str();
    assert_eq!(api.ask("GET", &path, &[("if-none-match", tag)], "").status, 304);
    let end = |tag: &str| api.ask("POST", &format!("{path}/end"), &[json_type, ("if-match", tag)], "");
    assert_eq!(end("\"1\"").status, 412);
    assert_eq!(end(tag).status, 200);

    // The same for those who have a key, from elsewhere.
    let curl = |key: &str| {
        let url = format!("https://localhost:{}/v1/broadcasts?state=ended", node.addr("api").port());
        let ca = folder.path().join("state/tls/ca.pem");
        let out = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "-H", &format!("authorization: Bearer {key}"), "--cacert"])
            .args([ca.as_os_str(), url.as_ref()])
            .output()
            .unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        let (body, status) = said.rsplit_once('\n').unwrap();
        (serde_json::from_str::<Value>(body).unwrap(), status.to_owned())
    };
    let (page, status) = curl(&"k".repeat(32));
    assert_eq!((status.as_str(), page["broadcasts"].as_array().unwrap().len()), ("200", 1));
    let (problem, status) = curl("wrong");
    assert_eq!((status.as_str(), &problem["status"]), ("401", &json!(401)));
}

#[test]
fn broadcasts_and_undelivered_events_outlive_the_process() {
    let folder = Folder::new("api-restart");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config(&folder, address);
    let node = Node::start(&folder, "node", &config);
    let api = Api::of(&node);
    let cli = |node: &Node, arguments: &[&str]| {
        let output = rooftop()
            .arg("broadcast")
            .args(arguments)
            .args(["--json", "--admin", &node.addr("admin").to_string()])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), serde_json::from_str::<Value>(&said).unwrap_or_default())
    };
    let (_, created) =
        cli(&node, &["create", "show", "--title", "Launch", "--metadata", "a=b", "--ttl", "1h"]);
    let id = created["id"].as_str().unwrap();
    assert!(created["stream_key"].as_str().unwrap().starts_with("show?token="), "{created}");
    let (_, ended) = cli(&node, &["end", id]);
    assert_eq!(ended["state"], "ended");
    eventually("an attempt", || {
        (node.metric("api_webhook_attempts_total{receiver=\"shop\",outcome=\"failed\"}") >= 1.0).then_some(())
    });
    drop(api);
    let (status, _) = node.stop();
    assert!(status.success());

    let receiver = Receiver::at(TcpListener::bind(address).unwrap());
    let node = Node::start(&folder, "node", &config);
    let api = Api::of(&node);
    let event = receiver.takes("broadcast.ended");
    assert_eq!(event["data"]["id"], id);
    assert_eq!(api.get(&format!("/v1/broadcasts/{id}")).body["metadata"]["a"], "b");
    let (_, page) = cli(&node, &["list", "--state", "ended"]);
    assert_eq!(page["broadcasts"][0]["id"], id);
    assert!(cli(&node, &["delete", id]).0);
    assert!(!cli(&node, &["show", id]).0);
}

#[test]
fn the_documented_examples_work() {
    let folder = Folder::new("api-examples");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start(&folder, "node", &config(&folder, nobody));
    let _ready = Api::of(&node);
    let text = include_str!("../../docs/api.md");
    let examples: Vec<_> =
        text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 3);
    let script = format!("set -eu -o pipefail\n{}", examples.concat());
    let ran = Command::new("bash")
        .args(["-c", &script])
        .env("API", format!("http://{}", node.addr("admin")))
        .output();
    let ran = ran.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}
