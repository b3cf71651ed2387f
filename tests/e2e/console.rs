//! The console in headless Chromium, on a node with a broadcast and viewers: every page at two widths, light and dark; a policy
//! changed, refused and taken back; nobody else's page may do that.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::kit::*;

#[test]
fn operators_see_and_turn_a_running_node() {
    let _turn = real_time(Share::Core);
    let folder = Folder::new("console");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
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
        if let Some(shots) = std::env::var_os("ROOFTOP_SHOTS") {
            command.arg("--shots").arg(shots);
        }
        let output = command.output().unwrap();
        watched.store(false, Ordering::Relaxed);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let policy = &seen["policy"];
        assert_eq!(policy["changed"], "7s", "{policy}");
        assert_eq!(policy["refused"], "7s", "{policy}");
        assert_eq!(policy["back"], policy["before"], "{policy}");
        assert!(policy["problem"].as_str().unwrap().contains("stale_if_error"), "{policy}");
        assert_eq!(seen["keyboard"][2], "Streams", "{seen}");
    });
}
