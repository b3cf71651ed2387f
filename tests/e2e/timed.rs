//! What travels with the pictures, from a broadcaster to players in headless Chromium: captions, text and a cue.

use std::process::{Command, Stdio};

use crate::kit::*;
use crate::publisher::{Publisher, Tag, tags_of};

/// A break of ANSI/SCTE 35 (14.1.2).
const CUE: &str = "/DAvAAAAAAAA///wFAVIAACPf+/+c2nALv4AUsz1AAAAAAAKAAhDVUVJAAABNWLbowo=";

/// An AMF0 string.
fn string(text: &str) -> Vec<u8> {
    [&[2][..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn message(ms: u32, name: &str, text: &str) -> Tag {
    Tag { kind: 18, ms, body: [string(name), string(text)].concat() }
}

/// Odd parity, as CEA-608 has it.
fn line21(bytes: [u8; 2]) -> [u8; 2] {
    bytes.map(|byte| if byte.count_ones() % 2 == 0 { byte | 0x80 } else { byte })
}

/// A pair of characters or a code for each frame: each second a line of its own that rolls up.
fn script(frames: usize) -> Vec<[u8; 2]> {
    let second = |second: usize| {
        let mut pairs = vec![line21([0x14, 0x25]), line21([0x14, 0x2D]), line21([0x14, 0x70])];
        pairs.extend(
            format!("SECOND {second:02} ").as_bytes().chunks(2).map(|pair| line21([pair[0], pair[1]])),
        );
        pairs.resize(30, [0x80, 0x80]);
        pairs
    };
    (0..frames.div_ceil(30)).flat_map(second).take(frames).collect()
}

/// Puts a pair into each video frame, in front of its picture.
fn caption(tags: &mut [Tag]) {
    let frames = tags.iter_mut().filter(|tag| tag.kind == 9 && tag.body[1] == 1);
    let frames: Vec<_> = frames.collect();
    for (pair, tag) in script(frames.len()).into_iter().zip(frames) {
        let mut nal = vec![6, 4, 8 + 2 + 3 + 1];
        nal.extend(b"\xB5\0\x31GA94\x03\xC1\xFF\xFC");
        nal.extend(pair);
        nal.extend([0xFF, 0x80]);
        tag.body.splice(5..5, [&(nal.len() as u32).to_be_bytes()[..], &nal].concat());
    }
}

#[test]
fn captions_and_events_reach_players() {
    let _turn = real_time(Share::Core);
    let extra = &["-tune", "zerolatency"];
    let clip = Clip::make("timed", Recipe { size: "320x180", rate: "30", seconds: 30, extra });
    let mut tags = tags_of(&std::fs::read(&clip.path).unwrap());
    caption(&mut tags);
    for second in (1..29).step_by(2) {
        tags.push(message(second * 1000, "onTextData", &format!("text {second}")));
        tags.push(message(second * 1000 + 400, "onAdCue", CUE));
    }
    // Metadata and configurations stay in front.
    tags[3..].sort_by_key(|tag| tag.ms);
    let folder = Folder::new("timed");
    let node = Node::start(&folder, "node", &toml(&all_in_one(&folder.path().join("state"))));
    let mut publisher = Publisher::publish(&node, "show");
    // Goes on until the players have seen enough.
    let sending = std::thread::spawn(move || publisher.send_in_time(&tags));
    live(&node, "show");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/timed.mjs");
    let output = Command::new("node")
        .args([script, "--url", &node.url("/live/show/")])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{seen:#}");
    let has = |player: &str, kind: &str, text: &str| {
        let all = seen[player][kind].as_array().unwrap();
        assert!(all.iter().any(|seen| seen.as_str().unwrap().contains(text)), "{player} {kind}: {seen:#}");
    };
    has("hls", "announced", "cc");
    has("hls", "captions", "SECOND");
    has("hls", "id3", "onTextData \"text ");
    has("hls", "ranges", "splice-1207959695");
    has("dash", "id3", "onTextData\u{0}\"text ");
    has("dash", "scte35", "\u{fc}0/");
    node.stop();
    // The connection ends with its node.
    let _ = sending.join().unwrap();
}
