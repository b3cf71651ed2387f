//! Headless Chromium plays the watch page by hls.js and by dash.js.

use std::process::{Child, Command, Stdio};

use crate::kit::*;

pub const SOURCE: Recipe =
    Recipe { size: "640x360", rate: "30", seconds: 10, extra: &["-tune", "zerolatency"] };

/// A player in a browser of its own; killed when dropped.
pub struct Player(Child);

impl Player {
    /// Looks at a stream's watch page.
    pub fn watch(node: &Node, stream: &str, player: &str, arguments: &[&str]) -> Player {
        Player::open(&node.url(&format!("/watch/{stream}")), player, arguments)
    }

    pub fn open(url: &str, player: &str, arguments: &[&str]) -> Player {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/play.mjs");
        let child = Command::new("node")
            .args([script, "--url", url, "--player", player])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        Player(child.unwrap())
    }

    /// What the player saw.
    pub fn report(mut self) -> serde_json::Value {
        let report = serde_json::from_reader(self.0.stdout.take().unwrap());
        assert!(self.0.wait().unwrap().success(), "the player failed: {report:?}");
        report.unwrap()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // The script ends its browser when it is told to end.
            terminate(&self.0);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn both_players_play_close_to_live() {
    let _turn = real_time(Share::Machine);
    let clip = Clip::make("browser", SOURCE);
    let folder = Folder::new("browser");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let _broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), -1);
    live(&node, "show");
    for player in ["hls", "dash"] {
        let report = Player::watch(&node, "show", player, &["--seconds", "30"]).report();
        let latency = |name: &str| report["pdt_latency"][name].as_f64().unwrap();
        println!(
            "{player}: start {} ms, {} stalls, latency to PROGRAM-DATE-TIME p50 {:.2} s, p95 {:.2} s, max {:.2} s; {} dropped frames",
            report["started_ms"],
            report["stalls"],
            latency("p50"),
            latency("p95"),
            latency("max"),
            report["dropped"],
        );
        // A test machine may stop for a moment: stalls are judged by `endurance.rs`, and what they may cost is left room here.
        assert_eq!(report["recoveries"], 0, "{player}: {report:#}");
        let rate = report["advanced"].as_f64().unwrap() / report["wall"].as_f64().unwrap();
        assert!((0.8..1.05).contains(&rate), "{player}: time advances at {rate}x");
        assert!(latency("p50") < 3.0, "{player}: {report:#}");
        for errors in ["console_errors", "page_errors", "foreign_requests"] {
            assert_eq!(report[errors].as_array().unwrap().len(), 0, "{player}: {errors}: {report:#}");
        }
        for error in report["errors"].as_array().unwrap() {
            assert_eq!(
                (&error["kind"], &error["fatal"]),
                (&"media".into(), &false.into()),
                "{player}: {report:#}"
            );
        }
    }
}
