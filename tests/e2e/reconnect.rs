//! The broadcaster goes away for five seconds and comes back: players go on by themselves, and no sequence goes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::browser::{Player, SOURCE};
use crate::kit::*;

#[test]
fn players_survive_a_broadcaster_that_is_away_for_five_seconds() {
    let _turn = real_time();
    let clip = Clip::make("browser", SOURCE);
    let folder = Folder::new("reconnect");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let url = node.publish_url("rtmps", "show");
    let first = Broadcaster::send(&clip, &url, -1);
    live(&node, "show");

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_sequences(&node, &done));
        let players = ["hls", "dash"].map(|player| {
            (player, Player::watch(&node, "show", player, &["--seconds", "60", "--until-restart"]))
        });
        // Ten segments for the players to get going.
        let began = last_segment(&node);
        eventually("ten more segments", || (last_segment(&node) >= began + 10).then_some(()));
        first.kill();
        // The absence itself is what is tested: five seconds of it.
        std::thread::sleep(Duration::from_secs(5));
        let _second = Broadcaster::send(&clip, &url, -1);
        for (player, playing) in players {
            let report = playing.report();
            println!(
                "{player}: paused {} s, went on by itself: {}, recoveries {}",
                report["gap"]["seconds"], report["gap"]["resumed"], report["recoveries"]
            );
            assert_eq!(report["gap"]["resumed"], true, "{player}: {report:#}");
        }
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().unwrap();
        assert!(seen.breaks >= 1, "the playlist tells the break: {seen:?}");
    });
}

fn last_segment(node: &Node) -> u64 {
    let playlist = get(&node.url("/live/show/360p.m3u8")).text();
    let number = |line: &str| line.rsplit('/').next()?.strip_suffix(".m4s")?.parse().ok();
    playlist.lines().rev().filter(|line| !line.starts_with('#')).find_map(number).unwrap_or(0)
}

#[derive(Debug, Default)]
struct Seen {
    media_sequence: u64,
    discontinuity_sequence: u64,
    last: u64,
    breaks: usize,
}

/// Reads a playlist over and over; fails as soon as anything goes back.
fn watch_sequences(node: &Node, done: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let began = Instant::now();
    while !done.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(120) {
        let answer = get(&node.url("/live/show/360p.m3u8"));
        if answer.status == 200 {
            let playlist = answer.text();
            let number = |name| tag(&playlist, name).unwrap().parse::<u64>().unwrap();
            let media = number("#EXT-X-MEDIA-SEQUENCE");
            let discontinuity = number("#EXT-X-DISCONTINUITY-SEQUENCE");
            assert!(
                media >= seen.media_sequence,
                "media sequence went from {} to {media}",
                seen.media_sequence
            );
            assert!(discontinuity >= seen.discontinuity_sequence);
            let listed = playlist.lines().filter(|line| line.starts_with("#EXTINF")).count() as u64;
            let last = media + listed;
            assert!(last >= seen.last, "the newest segment went from {} to {last}", seen.last);
            let breaks = playlist.lines().filter(|line| *line == "#EXT-X-DISCONTINUITY").count();
            seen = Seen {
                media_sequence: media,
                discontinuity_sequence: discontinuity,
                last,
                breaks: seen.breaks.max(breaks),
            };
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    seen
}
