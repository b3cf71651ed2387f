//! An admin listener that others reach: HTTPS, tokens with roles, the command line with them, what is noted of changes, and that
//! no secret is in any answer or log.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::kit::*;

/// Secrets of all kinds that a configuration names.
const SECRETS: [(&str, &str); 6] = [
    ("viewer.token", "VIEWER-SECRET-0123456789-0123456789"),
    ("chief.token", "CHIEF-SECRET-0123456789-0123456789"),
    ("api.key", "API-SECRET-0123456789-0123456789-0123"),
    ("publish.key", "PUBLISH-SECRET-0123456789-0123456789"),
    ("watch.key", "WATCH-SECRET-0123456789-0123456789-01"),
    ("hook.secret", "whsec_U0VDUkVULVNFQ1JFVC1TRUNSRVQtU0VDUkVU"),
];

struct Guarded {
    folder: Folder,
    node: Node,
}

impl Guarded {
    fn start() -> Guarded {
        let folder = Folder::new("admin");
        let at = |name: &str| folder.path().join(name).display().to_string();
        for (name, secret) in SECRETS {
            fs::write(at(name), format!("{secret}\n")).unwrap();
        }
        let made = rooftop()
            .args(["token", "new-admin", &at("operator.token"), "--name", "operator", "--role", "operate"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let operator = String::from_utf8(made.stdout).unwrap();
        let token = fs::read_to_string(at("operator.token")).unwrap();
        assert!(!operator.contains(token.trim()), "{operator}");
        let mut config = all_in_one(&folder.path().join("state"));
        let tls = |name: &str| folder.path().join("state/tls").join(name).display().to_string();
        config.insert(
            "admin",
            format!(
                "listen = \"0.0.0.0:0\"\ncertificate = {:?}\nkey = {:?}\naudit = {:?}\n{operator}\
                 [[admin.tokens]]\nname = \"viewer\"\nrole = \"view\"\nfile = {:?}\n\
                 [[admin.tokens]]\nname = \"chief\"\nrole = \"admin\"\nfile = {:?}\n",
                tls("local.pem"),
                tls("local.key"),
                at("audit.jsonl"),
                at("viewer.token"),
                at("chief.token")
            ),
        );
        config.insert("api", format!("listen = \"127.0.0.1:0\"\nkey_files = [{:?}]\n", at("api.key")));
        config.insert("tokens", format!("key_files = [{:?}]\n", at("publish.key")));
        config.insert(
            "edge.playback",
            format!("paths = [\"/live/private*\"]\nkey_files = [{:?}]\n", at("watch.key")),
        );
        config.insert(
            "webhooks",
            format!(
                "[[webhooks.endpoints]]\nname = \"shop\"\nurl = \"http://127.0.0.1:9\"\nsecret_file = {:?}\n",
                at("hook.secret")
            ),
        );
        let node = Node::start(&folder, "node", &toml(&config));
        Guarded { folder, node }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.node.addr("admin").port())
    }

    /// Status, then headers and body as they came.
    fn curl(&self, token: Option<&str>, arguments: &[&str], path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--cacert", &self.file("state/tls/ca.pem")]);
        command.args(token.map(|token| format!("-HAuthorization: Bearer {token}")));
        let output = command.args(arguments).arg(self.url(path)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    /// The command line, with a token file: its standard output if it went well, else standard error.
    fn cli(&self, token: Option<&str>, arguments: &[&str]) -> Result<String, String> {
        let mut command = rooftop();
        command.args(arguments).args(["--admin", &self.url("")]).env_remove("ROOFTOP_ADMIN_TOKEN");
        command.args(["--ca", &self.file("state/tls/ca.pem")]);
        command.args(token.map(|token| format!("--token-file={}", self.file(token))));
        let output = command.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }
}

#[test]
fn tokens_open_what_their_roles_may_and_no_secret_is_said() {
    let guarded = Guarded::start();
    let [viewer, chief] = [SECRETS[0].1, SECRETS[1].1];

    // The command line says who may and what to do.
    let refused = guarded.cli(None, &["status"]).unwrap_err();
    assert!(refused.contains("this needs a token") && refused.contains("--token-file FILE"), "{refused}");
    let told: Value =
        serde_json::from_str(&guarded.cli(Some("viewer.token"), &["status", "--json"]).unwrap()).unwrap();
    assert_eq!(told["node"], "local", "{told}");
    let purge = ["purge", "/live/<img src=x>/"];
    let refused = guarded.cli(Some("viewer.token"), &purge).unwrap_err();
    assert!(refused.contains("viewer has the role view, and POST /admin/purge needs operate"), "{refused}");
    guarded.cli(Some("operator.token"), &purge).unwrap();
    let policy = guarded.cli(Some("viewer.token"), &["policy", "get", "edge"]).unwrap();
    let longer = policy.replacen("\"ttl\": \"1s\"", "\"ttl\": \"7s\"", 1).replacen(
        "\"ttl\": \"500ms\"",
        "\"ttl\": \"7s\"",
        1,
    );
    assert_ne!(policy, longer, "{policy}");
    fs::write(guarded.file("policy.json"), longer).unwrap();
    guarded
        .cli(Some("operator.token"), &["policy", "set", &guarded.file("policy.json"), "--tier", "edge"])
        .unwrap();
    let untrusted = rooftop().args(["status", "--admin", &guarded.url("")]).output().unwrap();
    let said = String::from_utf8_lossy(&untrusted.stderr).into_owned();
    assert!(said.contains("invalid peer certificate") || said.contains("trusts nobody"), "{said}");
    assert!(said.contains("--ca FILE"), "{said}");

    // Every change is noted, with who it was.
    let audit: Value = serde_json::from_str(
        guarded.curl(Some(viewer), &[], "/admin/audit").1.split("\r\n\r\n").last().unwrap(),
    )
    .unwrap();
    let changes = audit["changes"].as_array().unwrap();
    let of = |change: &Value| {
        format!("{} {} {} {}", change["who"], change["method"], change["path"], change["status"])
    };
    let noted: Vec<_> = changes.iter().map(|change| of(change).replace('"', "")).collect();
    assert_eq!(
        noted,
        [
            "operator PUT /admin/policy/edge 200",
            "operator POST /admin/purge 200",
            "viewer POST /admin/purge 403"
        ]
    );
    assert!(changes[0]["details"][0].as_str().unwrap().contains("-> \"7s\""), "{changes:#?}");
    let file = fs::read_to_string(guarded.file("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 3, "{file}");
    assert!(guarded.node.log().contains(" audit: change"), "its own target");

    // Nothing that is asked, rightly or wrongly, is answered or logged with a secret.
    let mut said = String::new();
    let paths = [
        "/",
        "/console/",
        "/console/console.js",
        "/healthz",
        "/readyz",
        "/metrics",
        "/admin/session",
        "/admin/status",
        "/admin/streams",
        "/admin/streams/private",
        "/admin/history",
        "/admin/playback",
        "/admin/viewers",
        "/admin/ingest",
        "/admin/latency?stream=private",
        "/admin/policy",
        "/admin/audit?limit=1000",
        "/v1/broadcasts",
        "/v1/openapi.json",
        "/admin/config",
        "/nowhere",
    ];
    for path in paths {
        for token in [None, Some(viewer), Some(chief), Some("WRONG-SECRET-0123456789-0123456789")] {
            let (status, answer) = guarded.curl(token, &[], path);
            let head = answer.to_ascii_lowercase();
            for header in
                ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "frame-ancestors 'none'"]
            {
                assert!(head.contains(header), "{header} of {path}: {answer}");
            }
            let open = ["/", "/console/", "/console/console.js", "/healthz", "/readyz"].contains(&path);
            assert!(
                open || path == "/admin/session"
                    || token == Some(viewer)
                    || token == Some(chief)
                    || [401, 429].contains(&status),
                "{path}: {status}"
            );
            said += &answer;
        }
    }
    let json = "-Hcontent-type: application/json";
    for body in
        [format!("{{\"token\": \"{viewer}\"}}"), format!("{{\"token\": [\"{chief}\"]}}"), chief.to_owned()]
    {
        said += &guarded.curl(None, &[json, "-d", &body], "/admin/session").1;
    }
    said += &guarded.curl(Some(chief), &[json, "-d", "{\"stream\":\"private\"}"], "/admin/revoke").1;

    // A token that is taken away opens nothing, without a restart.
    let text = fs::read_to_string(guarded.node.config()).unwrap();
    let (before, after) = text.split_once("[[admin.tokens]]\nname = \"viewer\"").unwrap();
    let rest = after.split_once("[[admin.tokens]]").unwrap().1;
    fs::write(guarded.node.config(), format!("{before}[[admin.tokens]]{rest}")).unwrap();
    let sent = Command::new("kill").args(["-HUP", &guarded.node.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    guarded.node.logged("configuration reloaded");
    assert_eq!(guarded.curl(Some(chief), &[], "/admin/status").0, 200);
    assert_ne!(guarded.curl(Some(viewer), &[], "/admin/status").0, 200);

    said += &guarded.node.log();
    said += &fs::read_to_string(guarded.file("audit.jsonl")).unwrap();
    for (name, secret) in SECRETS {
        assert!(
            !said.contains(secret),
            "{name} was said: {}",
            &said[said.find(secret).unwrap().saturating_sub(300)..]
        );
    }
}
