//! The console in headless Chromium, on a node with a broadcast and viewers: every page at two widths, light and dark; a policy
//! changed, refused and taken back. And on a node with tokens: signing in, what a role may not, text that stays text.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kit::*;

#[test]
fn operators_see_and_turn_a_running_node() {
    let _turn = real_time(Share::Core);
    let folder = Folder::new("console");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let guarded = Node::start(&folder, "guarded", &with_tokens(&folder));
    let clip = Clip::make(
        "console",
        Recipe { size: "426x240", rate: "30", seconds: 10, extra: &["-tune", "zerolatency"] },
    );
    let _broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), -1);
    live(&node, "show");
    let watched = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while watched.load(Ordering::Relaxed) {
                for name in ["index.m3u8", "240p.m3u8", "audio.m3u8"] {
                    get(&node.url(&format!("/live/show/{name}")));
                }
                // A viewer's pace, or this loop would take the machine.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/console.mjs");
        let mut command = Command::new("node");
        command.args([script, "--admin", &format!("http://{}", node.addr("admin"))]);
        command.args(["--stream", "show", "--class", "playlist"]);
        command.args(["--guarded", &format!("https://localhost:{}", guarded.addr("admin").port())]);
        command.args(["--viewer", VIEWER, "--operator", OPERATOR]);
        if let Some(shots) = std::env::var_os("ROOFTOP_SHOTS") {
            command.arg("--shots").arg(shots);
        }
        let output = command.output().unwrap();
        let asked = |command: &[&str]| -> serde_json::Value {
            let admin = node.addr("admin").to_string();
            let output = rooftop().args(command).args(["--json", "--admin", &admin]).output().unwrap();
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let (listed, shown) = (asked(&["streams"]), asked(&["stream", "show", "show"]));
        watched.store(false, Ordering::Relaxed);
        assert_eq!(
            (&listed["viewers"], &listed["streams"][0]["viewers"]),
            (&1.into(), &1.into()),
            "{listed}"
        );
        assert_eq!((&shown["viewers"], &shown["viewers_at"][0]), (&1.into(), &"local".into()), "{shown}");
        assert_eq!(shown["ladder"].as_array().map(Vec::len), Some(2), "{shown}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // One player, as far as the edge can know: it has an address and calls itself nothing.
        let viewers = &seen["viewers"];
        assert_eq!(viewers["listed"], "1", "{viewers}");
        assert!(
            viewers["said"].as_str().unwrap().starts_with("1 viewer. Viewers are those who asked local"),
            "{viewers}"
        );
        let policy = &seen["policy"];
        assert_eq!(policy["changed"], "7s", "{policy}");
        assert_eq!(policy["refused"], "7s", "{policy}");
        assert_eq!(policy["back"], policy["before"], "{policy}");
        assert!(policy["problem"].as_str().unwrap().contains("stale_if_error"), "{policy}");
        let what_if = &seen["whatIf"];
        assert_eq!(
            what_if["begun"]["timeouts"], "250ms, 500ms, 1s, 2s",
            "around what is in force: {what_if}"
        );
        assert!(what_if["problem"].as_str().unwrap().contains("viewers"), "{what_if}");
        let rows = what_if["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{what_if}");
        // Its columns: a button, TTL, timeout, leak here and with the flood.
        assert_eq!((&rows[0][2], &rows[1][2]), (&"250ms".into(), &"1s".into()), "{what_if}");
        assert_ne!(rows[0][3], rows[0][4], "a timeout below the latency floods: {what_if}");
        assert_eq!(what_if["changed"], serde_json::json!([["blocking_timeout", "250ms"]]), "{what_if}");
        assert_eq!(seen["keyboard"][2], "Streams", "{seen}");
        let roles = &seen["roles"];
        assert!(roles["wrong"].as_str().unwrap().contains("opens nothing here"), "{roles}");
        assert_eq!(roles["viewer"], "anna (view)", "{roles}");
        assert_eq!((&roles["mayType"], &roles["mayApply"]), (&0.into(), &0.into()), "{roles}");
        assert_eq!((&roles["refused"], &roles["allowed"]), (&403.into(), &200.into()), "{roles}");
        assert_eq!(roles["kept"], "{}{}", "no script can read what signs in: {roles}");
        assert_eq!(
            (&roles["injected"], &roles["title"]),
            (&0.into(), &"Changes · Rooftop console".into()),
            "{roles}"
        );
    });
}

const VIEWER: &str = "viewer-0123456789-0123456789-0123456789";
const OPERATOR: &str = "operator-0123456789-0123456789-0123456789";

/// An edge whose admin listener is HTTPS, with the development certificate, and wants tokens.
fn with_tokens(folder: &Folder) -> String {
    let at = |name: &str| folder.path().join(name).display().to_string();
    let mut tokens = String::new();
    for (name, role, token) in [("anna", "view", VIEWER), ("otto", "operate", OPERATOR)] {
        std::fs::write(at(name), token).unwrap();
        tokens += &format!("[[admin.tokens]]\nname = {name:?}\nrole = {role:?}\nfile = {:?}\n", at(name));
    }
    format!(
        "[node]\nroles = [\"edge\"]\nstate_dir = {:?}\n[cluster]\nshields = []\n[edge]\nhttp = \"127.0.0.1:0\"\n[admin]\n\
         listen = \"127.0.0.1:0\"\ncertificate = {:?}\nkey = {:?}\n{tokens}",
        at("guarded"),
        at("guarded/tls/local.pem"),
        at("guarded/tls/local.key"),
    )
}
