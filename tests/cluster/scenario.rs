//! What can go wrong, and what must come of it: data first, then how each is played.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, VIEWERS, address_of, nodes};
use crate::kit::*;
use crate::net::Way;
use crate::numbered::{self, Viewer};
use crate::player::Player;
use crate::reader::Reader;

/// Pictures per second of what is broadcast.
const RATE: u32 = 20;

/// Segments that are out before something goes wrong.
const SETTLED: usize = 5;

/// Length of a segment: new ones cannot come more often.
pub const SEGMENT: Duration = Duration::from_secs(1);

/// Seconds of a broadcast that have gone by before the browser plays.
const STARTING: u32 = 8;

/// The broadcaster sends to this one.
const POP: &str = "pop-1";

/// Longest wait for readers after the broadcaster has gone: the grace, and what they are behind.
const READERS_END: Duration = Duration::from_secs(30);

/// Longest wait for the archive to have what it does not yet: what a bucket that fails makes it wait, and some.
const ARCHIVED: Duration = Duration::from_secs(20);

/// What an origin's log says of a full disk.
const DISK_IS_FULL: &str = "No space left on device";

/// The only one of the broadcasts' ladder.
const RENDITION: &str = "96p";

/// Something that goes wrong in the middle of a broadcast.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Kill(Target),
    /// SIGSTOP, and SIGCONT when it is over.
    Freeze(Target),
    /// The cable out of the switch, and in again.
    Unplug(Target),
    /// Nothing passes between a node and all hosts of a role.
    Part(Target, &'static str, Way),
    Drain(Target),
    /// The owner keeps the archive on a disk that is soon full.
    FullDisk,
    /// Every node in turn is drained and started again.
    RollingRestart,
}

/// Whom it happens to.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The origin that has the stream.
    Owner,
    /// The shield that most of the stream's objects come through, by the edges' ring.
    Shield,
    /// The edge that viewers are led to; they are led to the other one.
    Edge,
    /// The member of etcd that leads the others.
    EtcdLeader,
}

pub struct Scenario {
    pub name: &'static str,
    pub fault: Fault,
    /// Until what can be undone is undone, with the broadcast still going on; without it, the fault lasts to its end.
    pub lasts: Option<Duration>,
    /// Length of the broadcast.
    pub seconds: u32,
    /// What the longest gap between new segments should not exceed by more than a segment's own second.
    pub aim: Duration,
}

const SHORT: u32 = 18;
const KILL: Duration = Duration::from_secs(2);
const PARTITION: Duration = Duration::from_secs(3);
const NONE: Duration = Duration::ZERO;

const fn scenario(name: &'static str, fault: Fault, aim: Duration) -> Scenario {
    Scenario { name, fault, lasts: Some(Duration::from_secs(5)), seconds: SHORT, aim }
}

pub const SCENARIOS: &[Scenario] = &[
    scenario("kill-origin", Fault::Kill(Target::Owner), KILL),
    scenario("kill-shield", Fault::Kill(Target::Shield), KILL),
    scenario("kill-edge", Fault::Kill(Target::Edge), KILL),
    scenario("kill-etcd-leader", Fault::Kill(Target::EtcdLeader), NONE),
    // An origin that lost its stream this way stays away until the broadcast is over.
    to_the_end("freeze-origin", Fault::Freeze(Target::Owner)),
    scenario("freeze-shield", Fault::Freeze(Target::Shield), PARTITION),
    to_the_end("unplug-origin", Fault::Unplug(Target::Owner)),
    to_the_end("part-origin-from-pops-drop", Fault::Part(Target::Owner, "pop-", Way::Drop)),
    to_the_end("part-origin-from-pops-reject", Fault::Part(Target::Owner, "pop-", Way::Reject)),
    scenario("part-origin-from-etcd-drop", Fault::Part(Target::Owner, "etcd-", Way::Drop), NONE),
    scenario("part-origin-from-etcd-reject", Fault::Part(Target::Owner, "etcd-", Way::Reject), NONE),
    scenario("unplug-shield", Fault::Unplug(Target::Shield), PARTITION),
    scenario("part-shield-from-origins-drop", Fault::Part(Target::Shield, "origin-", Way::Drop), PARTITION),
    scenario(
        "part-shield-from-origins-reject",
        Fault::Part(Target::Shield, "origin-", Way::Reject),
        PARTITION,
    ),
    scenario("drain-origin", Fault::Drain(Target::Owner), NONE),
    Scenario { lasts: None, ..scenario("full-disk", Fault::FullDisk, NONE) },
    Scenario { seconds: 90, lasts: None, ..scenario("rolling-restart", Fault::RollingRestart, NONE) },
];

const fn to_the_end(name: &'static str, fault: Fault) -> Scenario {
    Scenario { lasts: None, ..scenario(name, fault, PARTITION) }
}

/// What came of one.
pub struct Outcome {
    pub name: &'static str,
    pub gap: Duration,
    pub aim: Duration,
    pub pictures: usize,
    pub discontinuities: u64,
    pub player: String,
    /// What the archive has of it.
    pub archive: String,
    /// Each a sentence; none: it passed.
    pub faults: Vec<String>,
}

impl Outcome {
    /// One that was not played to its end.
    pub fn failed(scenario: &Scenario, why: String) -> Outcome {
        Outcome {
            name: scenario.name,
            gap: Duration::ZERO,
            aim: scenario.aim,
            pictures: 0,
            discontinuities: 0,
            player: String::new(),
            archive: String::new(),
            faults: vec![why],
        }
    }
}

/// Plays one on a fleet that is whole, and leaves it whole.
pub fn play(scenario: &Scenario, fleet: &mut Fleet, folder: &Path) -> Outcome {
    match scenario.fault {
        Fault::FullDisk => {
            let home = fleet.home(scenario.name);
            fleet.with_small_disk(home, |fleet| broadcast(scenario, fleet, folder))
        }
        _ => broadcast(scenario, fleet, folder),
    }
}

fn broadcast(scenario: &Scenario, fleet: &mut Fleet, folder: &Path) -> Outcome {
    let clip = Clip { path: folder.join(format!("clip-{}.flv", scenario.seconds)) };
    if !clip.path.exists() {
        numbered::make(&clip.path, RATE, scenario.seconds);
    }
    let folder = folder.join(scenario.name);
    fs::create_dir_all(&folder).unwrap();
    let stream = scenario.name;
    let broadcaster = Broadcaster::send(&clip, &fleet.publish_url(POP, stream), 0);
    let base = format!("http://{VIEWERS}:8080/live/{stream}/");
    let index = format!("{base}index.m3u8");
    eventually("the stream at the edge", || (get(&index).status == 200).then_some(()));
    let reader = Reader::watch(&base, RENDITION);
    let viewer = Viewer::watch(&folder, &index);
    let player = Player::watch(&format!("http://{VIEWERS}:8080/watch/{stream}"), scenario.seconds - STARTING);
    player.plays();
    eventually("the first segments", || (reader.fetched() >= SETTLED).then_some(()));

    strike(scenario, fleet, &reader);
    let (sent, said) = broadcaster.wait();
    let read = reader.end(READERS_END);
    let mut faults = Vec::new();
    let mut check = |good: bool, what: String| {
        if !good {
            faults.push(what);
        }
    };
    check(sent, format!("the broadcaster's connection broke: {said}"));
    let expected: Vec<u32> = (0..scenario.seconds * RATE).collect();
    let pictures = read.pictures(&folder);
    check(pictures == expected, format!("the bed's reader: {}", odd(&pictures, expected.len())));
    let ffmpeg = viewer.end();
    match &ffmpeg {
        Ok(seen) => {
            check(
                seen.0 == expected,
                format!("ffmpeg: {}; it says {}", odd(&seen.0, expected.len()), seen.2),
            );
        }
        Err(said) => check(false, format!("ffmpeg did not keep reading: {said}")),
    }
    let player = player.report();
    match &player {
        Ok(report) => {
            let sound = report["page_errors"].as_array().is_some_and(Vec::is_empty);
            check(played_on(report) && sound, format!("hls.js: {}", told(report)));
        }
        Err(said) => check(false, format!("hls.js did not keep playing: {said}")),
    }
    let gap = read.longest_gap(SETTLED - 1);
    let discontinuities = read.discontinuities;
    faults.extend(read.faults);
    fleet.mend();
    // Now that those are back that may have something of it, too.
    let archive = match scenario.fault {
        Fault::FullDisk => Ok("full".into()),
        _ => archived(fleet, &folder, stream, &expected),
    };
    faults.extend(archive.as_ref().err().map(|why| format!("the archive: {why}")));
    Outcome {
        name: scenario.name,
        gap,
        aim: scenario.aim,
        pictures: pictures.len(),
        discontinuities,
        player: player.map_or("failed".into(), |report| {
            let of = |what: &str| &report[what];
            format!("{} stalls of {} s, {} recoveries", of("stalls"), of("stalled_seconds"), of("recoveries"))
        }),
        archive: archive.unwrap_or_else(|_| "failed".into()),
        faults,
    }
}

/// Does what goes wrong, and undoes what can be undone.
fn strike(scenario: &Scenario, fleet: &mut Fleet, reader: &Reader) {
    let target = |fleet: &Fleet, target: Target| match target {
        Target::Owner => fleet.owner(scenario.name).expect("an origin has the stream"),
        Target::Shield => fleet.shield(scenario.name),
        Target::Edge => fleet.edges().0,
        Target::EtcdLeader => fleet.etcd_leader(),
    };
    // How long the fault lasts belongs to the story.
    let over = || scenario.lasts.map(std::thread::sleep).is_some();
    match scenario.fault {
        Fault::Kill(whom) => {
            let name = target(fleet, whom);
            fleet.kill(name);
            if let Target::Edge = whom {
                fleet.lead_viewers_to(fleet.edges().1);
            }
            if over() {
                fleet.run(name);
            }
        }
        Fault::Freeze(whom) => {
            let name = target(fleet, whom);
            fleet.freeze(name);
            if over() {
                fleet.thaw(name);
            }
        }
        Fault::Unplug(whom) => {
            let name = target(fleet, whom);
            fleet.net.cable(name, false);
            if over() {
                fleet.net.cable(name, true);
            }
        }
        Fault::Part(whom, role, way) => {
            let name = target(fleet, whom);
            let others: Vec<_> = nodes(role).map(address_of).collect();
            fleet.net.part(name, &others, way);
            if over() {
                fleet.net.heal(name);
            }
        }
        Fault::Drain(whom) => {
            let name = target(fleet, whom);
            fleet.drain(name);
            if over() {
                fleet.run(name);
            }
        }
        Fault::FullDisk => {
            let name = target(fleet, Target::Owner);
            assert_eq!(name, fleet.home(scenario.name), "the disk of another one is full");
            eventually("a disk that is full", || fleet.log(name).contains(DISK_IS_FULL).then_some(()));
            // Live goes on meanwhile.
            let had = reader.fetched();
            eventually("new segments", || (reader.fetched() >= had + 3).then_some(()));
        }
        Fault::RollingRestart => {
            for role in ["etcd-", "edge-", "shield-", "origin-", "pop-"] {
                // The broadcaster would have to come again, and this one does not.
                for name in nodes(role).filter(|name| *name != POP) {
                    restart(fleet, name);
                    let had = reader.fetched();
                    eventually(&format!("new segments after {name} was restarted"), || {
                        (reader.fetched() >= had + 2).then_some(())
                    });
                }
            }
        }
    }
}

/// Whether each picture that was sent is in the archive exactly once, and everything there is sound.
fn archived(fleet: &Fleet, folder: &Path, stream: &str, expected: &[u32]) -> Result<String, String> {
    let is_its = |one: &&serde_json::Value| {
        let id = one["broadcast"].as_str().unwrap_or_default();
        id.strip_prefix(stream)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|at| at.parse::<u64>().is_ok())
    };
    let began = Instant::now();
    let kept = loop {
        let listed = fleet.archive(&["ls"])?;
        let its: Vec<_> = listed["broadcasts"].as_array().into_iter().flatten().filter(is_its).collect();
        match its[..] {
            [one] if !one["ended_unix_ms"].is_null() && one["missing"] == 0 => break one.clone(),
            _ if began.elapsed() > ARCHIVED => {
                return Err(format!("not one whole broadcast that is over: {its:?}"));
            }
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    let id = kept["broadcast"].as_str().unwrap_or_default();
    fleet.archive(&["verify", id])?;
    let file = folder.join("archive.mp4");
    fleet.archive(&["export", id, &file.display().to_string(), "--rendition", RENDITION])?;
    let (gray, mut command) = (folder.join("archive.gray"), ffmpeg());
    let decoded = numbered::readable(command.arg("-i").arg(&file)).arg(&gray).status().unwrap();
    let pictures = numbered::numbers(&fs::read(&gray).unwrap_or_default());
    if !decoded.success() || pictures != expected {
        return Err(format!("{kept}: {}", odd(&pictures, expected.len())));
    }
    Ok(format!("whole, {} runs", kept["runs"]))
}

/// As an operator does it: viewers are led elsewhere first.
fn restart(fleet: &mut Fleet, name: &'static str) {
    let (front, other) = fleet.edges();
    if front == name {
        fleet.lead_viewers_to(other);
    }
    fleet.drain(name);
    fleet.run(name);
}

/// Whether media time moved on by a second and more behind the longest standstill.
fn played_on(report: &serde_json::Value) -> bool {
    let samples: Vec<[f64; 2]> = report["samples"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|sample| [0, 1].map(|index| sample[index].as_f64().unwrap_or_default()))
        .collect();
    let (mut still, mut longest, mut behind) = (0, 0.0, 0);
    for (index, [wall, time]) in samples.iter().enumerate() {
        if *time != samples[still][1] {
            still = index;
        } else if wall - samples[still][0] > longest {
            (longest, behind) = (wall - samples[still][0], index);
        }
    }
    samples.last().is_some_and(|last| last[1] - samples[behind][1] > 1.0)
}

/// A player's report without its samples, and with no more than the beginnings of messages.
fn told(report: &serde_json::Value) -> String {
    let mut report = report.clone();
    report["samples"].take();
    for error in report["errors"].as_array_mut().into_iter().flatten() {
        let said: String = error["message"].as_str().unwrap_or_default().chars().take(160).collect();
        error["message"] = said.into();
    }
    report.to_string()
}

/// Where the numbers are not in turn.
fn odd(pictures: &[u32], expected: usize) -> String {
    let jumps: Vec<_> = pictures.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    format!("{} pictures of {expected}, from {:?}, not in turn: {jumps:?}", pictures.len(), pictures.first())
}
