//! What was broadcast is there afterwards: whole, also after a `kill -9` in the middle, and the disk being full is no
//! reason for viewers to notice anything.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::kit::*;

/// `rooftop archive ...`; its exit status and what it printed.
fn archive(node: &Path, args: &[&str]) -> Output {
    rooftop().arg("archive").args(args).args(["--json", "--config"]).arg(node).output().unwrap()
}

fn listed(config: &Path) -> Vec<Value> {
    let output = archive(config, &["ls"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    listed["broadcasts"].as_array().unwrap().clone()
}

/// The one broadcast, once `so`.
pub fn broadcast(config: &Path, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || match listed(config).as_slice() {
        [one] if so(one) => Some(one.clone()),
        _ => None,
    })
}

fn verify(config: &Path) -> Value {
    let output = archive(config, &["verify"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report:#}");
    report["broadcasts"][0].clone()
}

/// Exports, and reads what came of it as ffprobe sees it: video, then audio.
fn export(config: &Path, id: &str, file: &Path) -> (Vec<Packet>, Vec<Packet>) {
    let output = archive(config, &["export", id, file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let exported: Value = serde_json::from_slice(&output.stdout).unwrap();
    // Every frame can be decoded, and nobody complains.
    let decoded = ffmpeg().arg("-i").arg(file).args(["-f", "null", "-"]).output().unwrap();
    let said = String::from_utf8_lossy(&decoded.stderr);
    assert!(decoded.status.success() && said.is_empty(), "{said}");
    let mut streams = packets(file.to_str().unwrap()).into_iter();
    let ((video, frames), (audio, sounds)) = (streams.next().unwrap(), streams.next().unwrap());
    assert_eq!((video.as_str(), audio.as_str()), ("video", "audio"));
    let counts: Vec<_> =
        exported["frames"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).collect();
    let mut found = [frames.len() as u64, sounds.len() as u64];
    found.sort_unstable();
    let mut counts = counts;
    counts.sort_unstable();
    assert_eq!(counts, found, "{exported}");
    (frames, sounds)
}

fn hashes(packets: &[Packet]) -> Vec<&str> {
    packets.iter().map(|packet| packet.hash.as_str()).collect()
}

const SOURCE: Recipe = Recipe { size: "640x360", rate: "30", seconds: 40, extra: &["-bf", "2", "-g", "75"] };

/// Frames one after the other in even steps, and audio of the source without a break: each of its frames has bytes of its
/// own.
fn check_frames(source: &[(String, Vec<Packet>)], video: &[Packet], audio: &[Packet]) {
    for (index, packet) in video.iter().enumerate() {
        let expected = video[0].pts + index as f64 / 30.0;
        assert!(
            (packet.pts - expected).abs() < 0.0015,
            "frame {index} at {} instead of {expected}",
            packet.pts
        );
    }
    let sent = &source.iter().find(|(kind, _)| kind == "audio").unwrap().1;
    let first = sent.iter().position(|packet| packet.hash == audio[0].hash).expect("it is of the source");
    assert!(first <= 2, "{first} frames of audio lie before the first video frame");
    assert!(hashes(&sent[first..first + audio.len()]) == hashes(audio), "every frame of audio, once");
}

#[test]
fn a_whole_broadcast_is_exported_to_the_frame() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("archive", SOURCE);
    let source = packets(clip.path.to_str().unwrap());
    let folder = Folder::new("archive-whole");
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str("reconnect_grace = \"1s\"\n");
    let node = Node::start(&folder, "node", &toml(&config));
    let (sent, said) = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0).wait();
    assert!(sent, "{said}");
    let kept = broadcast(node.config(), "its end", |one| !one["ended_unix_ms"].is_null());
    let id = kept["broadcast"].as_str().unwrap();
    assert_eq!((kept["missing"].as_u64(), kept["runs"].as_u64()), (Some(0), Some(1)), "{kept}");
    let report = verify(node.config());
    assert_eq!(
        (report["good"].as_u64(), report["holes"].as_array().unwrap().len()),
        (kept["segments"].as_u64(), 0)
    );

    let file = folder.path().join("show.mp4");
    let (video, audio) = export(node.config(), id, &file);
    let sent_video = &source[0].1;
    assert_eq!(video.len(), sent_video.len(), "every frame, once");
    check_frames(&source, &video, &audio);
    let again = archive(node.config(), &["export", id, file.to_str().unwrap()]);
    assert!(!again.status.success(), "what is there is not written over");
    let small = folder.path().join("small.mp4");
    let output = archive(node.config(), &["export", id, small.to_str().unwrap(), "--rendition", "240p"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = archive(node.config(), &["export", id, "x.mp4", "--rendition", "9000p"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no rendition 9000p: there are 360p"));

    // A byte on disk changes: it is found and named.
    let media = folder.path().join("state/archive").join(id).join("media");
    let damaged = std::fs::read_dir(media).unwrap().next().unwrap().unwrap().path().join("audio");
    let damaged = std::fs::read_dir(damaged).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = archive(node.config(), &["verify", id]);
    assert_eq!(output.status.code(), Some(1));
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(name));

    assert!(archive(node.config(), &["rm", id]).status.success());
    assert!(listed(node.config()).is_empty());
    assert!(!archive(node.config(), &["rm", id]).status.success());
}

#[test]
fn what_was_journaled_before_a_kill_is_there_after_it() {
    let _turn = real_time(Share::Core);
    let clip = Clip::make("archive", SOURCE);
    let source = packets(clip.path.to_str().unwrap());
    let folder = Folder::new("archive-kill");
    let config = toml(&all_in_one(&folder.path().join("state")));
    let node = Node::start(&folder, "node", &config);
    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0);
    let path = node.config().to_owned();
    broadcast(&path, "eight seconds of it", |one| one["duration_ms"].as_i64() >= Some(8000));
    let taken = rooftop().args(["serve", "--config"]).arg(&path).output().unwrap();
    assert!(!taken.status.success(), "a second writer is refused");
    node.kill();
    drop(broadcaster);
    let journaled = broadcast(&path, "what was journaled", |_| true);
    assert!(journaled["ended_unix_ms"].is_null());
    assert!(
        !archive(&path, &["rm", journaled["broadcast"].as_str().unwrap()]).status.success(),
        "it may be live"
    );

    let node = Node::start(&folder, "node", &config);
    let kept = broadcast(&path, "it is closed", |one| !one["ended_unix_ms"].is_null());
    assert!(kept["segments"].as_u64() >= journaled["segments"].as_u64(), "{journaled} {kept}");
    assert!(kept["duration_ms"].as_i64() >= journaled["duration_ms"].as_i64(), "{journaled} {kept}");
    verify(&path);
    let (video, audio) = export(&path, kept["broadcast"].as_str().unwrap(), &folder.path().join("show.mp4"));
    assert!(video.len() >= 8 * 30);
    check_frames(&source, &video, &audio);
    // And it goes on: who comes back within the grace goes on with the same broadcast.
    let _broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0);
    let on = broadcast(&path, "it goes on", |one| one["segments"].as_u64() > kept["segments"].as_u64());
    assert!(on["broadcast"] == kept["broadcast"] && on["ended_unix_ms"].is_null(), "{on}");
}

/// A small file system of its own.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &Path, size: &str) -> Option<Small> {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: only root may mount");
        }
        mounted.then(|| Small(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_and_viewers_notice_nothing() {
    let _turn = real_time(Share::Half);
    let clip = Clip::make("archive", SOURCE);
    let folder = Folder::new("archive-full");
    let disk = folder.path().join("disk");
    let Some(_disk) = Small::mount(&disk, "4m") else { return };
    let mut config = all_in_one(&folder.path().join("state"));
    config.insert("archive", format!("path = {:?}\n", disk.join("archive").display()));
    config.get_mut("origin").unwrap().push_str("reconnect_grace = \"1s\"\n");
    let node = Node::start(&folder, "node", &toml(&config));
    let filler = disk.join("filler");
    std::fs::write(&filler, vec![1; (4 << 20) - (128 << 10)]).unwrap();
    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0);
    live(&node, "show");
    eventually("the disk is full", || (node.metric("archive_failing") == 1.0).then_some(()));
    node.logged("No space left on device");
    let health = get(&format!("http://{}/healthz", node.addr("admin")));
    assert_eq!(health.status, 200, "live goes on");
    assert!(
        health.text().contains("archive: cannot be written") && health.text().contains("No space"),
        "{}",
        health.text()
    );
    let last = || {
        let playlist = get(&node.url("/live/show/360p.m3u8")).text();
        let number = |line: &str| line.rsplit('/').next()?.strip_suffix(".m4s")?.parse::<u64>().ok();
        playlist.lines().rev().filter(|line| !line.starts_with('#')).find_map(number).unwrap_or(0)
    };
    let began = last();
    eventually("five more segments", || (last() >= began + 5).then_some(()));
    assert_eq!(node.metric("archive_failing"), 1.0, "it is full all the time");
    std::fs::remove_file(&filler).unwrap();
    // What waited is more than what is free still: the disk is made larger.
    let grown = Command::new("mount").args(["-o", "remount,size=256m"]).arg(&disk).status().unwrap();
    assert!(grown.success());
    let (sent, said) = broadcaster.wait();
    assert!(sent, "{said}");
    let kept = broadcast(node.config(), "its end", |one| !one["ended_unix_ms"].is_null());
    assert_eq!(kept["missing"], 0, "nothing was lost: {kept}");
    assert_eq!(node.metric("archive_failing"), 0.0);
    verify(node.config());
}
