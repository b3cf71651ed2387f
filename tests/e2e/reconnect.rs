//! The broadcaster goes away for five seconds and comes back: players go on by themselves, and no sequence goes back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::browser::{Player, SOURCE};
use crate::kit::*;

#[test]
fn players_survive_a_broadcaster_that_is_away_for_five_seconds() {
    let _turn = real_time(Share::Machine);
    let clip = Clip::make("browser", SOURCE);
    let folder = Folder::new("reconnect");
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str("reconnect_grace = \"12s\"\n");
    let node = Node::start(&folder, "node", &toml(&config));
    let url = node.publish_url("rtmps", "show");
    let first = Broadcaster::send(&clip, &url, -1);
    live(&node, "show");

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_sequences(&node, "/live/show/240p.m3u8", &done));
        let players = ["hls", "dash"].map(|player| {
            (player, Player::watch(&node, "show", player, &["--seconds", "60", "--until-restart"]))
        });
        // Ten segments for the players to get going.
        let began = last_segment(&node);
        eventually("ten more segments", || (last_segment(&node) >= began + 10).then_some(()));
        first.kill();
        // The absence itself is what is tested: five seconds of it.
        std::thread::sleep(Duration::from_secs(5));
        // It has another picture, of which no rung has a name of before: the closest goes on as 240p.
        let small = Clip::make("browser-small", Recipe { size: "160x120", ..SOURCE });
        let second = Broadcaster::send(&small, &url, -1);
        for (player, playing) in players {
            let report = playing.report();
            println!(
                "{player}: paused {} s, went on by itself: {}, recoveries {}",
                report["gap"]["seconds"], report["gap"]["resumed"], report["recoveries"]
            );
            assert_eq!(report["gap"]["resumed"], true, "{player}: {report:#}");
        }
        // It goes for good: who watches comes to an end, behind which there are gaps.
        let playlist = "/live/show/index.m3u8";
        let last = Player::open(&node.url(playlist), "hls", &["--recording", "--once", "--seconds", "60"]);
        let began = last_segment(&node);
        eventually("ten more segments", || (last_segment(&node) >= began + 10).then_some(()));
        second.kill();
        let report = last.report();
        println!("hls.js: ended at {} of {} s", report["ended_at"], report["duration"]);
        assert_eq!(report["errors"].as_array().unwrap().len(), 0, "{report:#}");
        let ended = get(&node.url("/live/show/240p.m3u8")).text();
        assert!(ended.ends_with("#EXT-X-ENDLIST\n") && ended.contains("#EXT-X-GAP\n"), "{ended}");
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().unwrap();
        assert!(seen.breaks >= 1, "the playlist tells the break: {seen:?}");
    });
}

fn last_segment(node: &Node) -> u64 {
    let playlist = get(&node.url("/live/show/240p.m3u8")).text();
    let number = |line: &str| line.rsplit('/').next()?.strip_suffix(".m4s")?.parse().ok();
    playlist.lines().rev().filter(|line| !line.starts_with('#')).find_map(number).unwrap_or(0)
}

/// What a playlist said over time.
#[derive(Debug, Default)]
pub struct Seen {
    media_sequence: u64,
    discontinuity_sequence: u64,
    last: u64,
    /// The newest segment that is no gap.
    last_media: u64,
    pub breaks: usize,
    /// Wall clock of each segment that was ever listed.
    times: BTreeMap<u64, String>,
}

/// Reads a playlist over and over; fails as soon as anything goes back, or a segment's time changes.
pub fn watch_sequences(node: &Node, path: &str, done: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let began = Instant::now();
    while !done.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(120) {
        let answer = get(&node.url(path));
        if answer.status == 200 {
            seen.look(&answer.text());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    seen
}

impl Seen {
    fn look(&mut self, playlist: &str) {
        let number = |name| tag(playlist, name).unwrap().parse::<u64>().unwrap();
        let media = number("#EXT-X-MEDIA-SEQUENCE");
        let discontinuity = number("#EXT-X-DISCONTINUITY-SEQUENCE");
        assert!(media >= self.media_sequence, "media sequence went from {} to {media}", self.media_sequence);
        assert!(discontinuity >= self.discontinuity_sequence);
        let listed = playlist.lines().filter(|line| line.starts_with("#EXTINF")).count() as u64;
        let last = media + listed;
        assert!(last >= self.last, "the newest segment went from {} to {last}", self.last);
        let tags = playlist.lines().filter(|line| *line == "#EXT-X-GAP" || line.starts_with("#EXTINF"));
        let (mut next, mut gap, mut last_media) = (media, false, self.last_media);
        for tag in tags {
            if tag == "#EXT-X-GAP" {
                gap = true;
                continue;
            }
            if !std::mem::take(&mut gap) {
                last_media = next;
            }
            next += 1;
        }
        assert!(last_media >= self.last_media, "media went from {} to {last_media}", self.last_media);
        self.last_media = last_media;
        let times = playlist.lines().filter_map(|line| line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:"));
        for (number, time) in (media..).zip(times) {
            let known = self.times.entry(number).or_insert_with(|| time.to_owned());
            assert_eq!(known, time, "the time of segment {number} changed");
        }
        let times: Vec<_> = self.times.values().collect();
        assert!(times.is_sorted(), "wall clock goes back: {times:?}");
        let breaks = playlist.lines().filter(|line| *line == "#EXT-X-DISCONTINUITY").count();
        (self.media_sequence, self.discontinuity_sequence, self.last) = (media, discontinuity, last);
        self.breaks = self.breaks.max(breaks);
    }
}
