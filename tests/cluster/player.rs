//! The watch page in headless Chromium, played by hls.js.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::kit::*;

/// A browser with the page open; closed when dropped.
pub struct Player {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Player {
    /// Opens a page, and looks at it for so many seconds from the moment it plays.
    pub fn watch(url: &str, seconds: u32) -> Player {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/play.mjs");
        let mut child = Command::new("node")
            .args([script, "--url", url, "--player", "hls", "--seconds", &seconds.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::<Mutex<String>>::default();
        let (kept, stderr) = (said.clone(), child.stderr.take().unwrap());
        // Ends with the script.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *kept.lock().unwrap() += &format!("{line}\n");
            }
        });
        Player { child, said }
    }

    /// Waits until it plays.
    pub fn plays(&self) {
        eventually("playback in the browser", || {
            self.said.lock().unwrap().contains("event: playing").then_some(())
        });
    }

    /// What the player saw, or why it failed.
    pub fn report(mut self) -> Result<serde_json::Value, String> {
        let report = serde_json::from_reader(self.child.stdout.take().unwrap());
        let ended = self.child.wait().unwrap();
        report.ok().filter(|_| ended.success()).ok_or_else(|| self.said.lock().unwrap().clone())
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // The script ends its browser when it is told to end.
            terminate(&self.child);
            let _ = self.child.wait();
        }
    }
}
