//! hls.js, dash.js and Shaka, low-latency and plain, side by side in headless Chromium: minutes without a stall, then through
//! what may happen to a broadcast. `make test-players` plays it; `ROOFTOP_PLAYERS_SECONDS` says how long the first act lasts.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::*;

/// Unless `ROOFTOP_PLAYERS` says otherwise, while one of them is looked into.
const PLAYERS: &str =
    "hls-low,hls-plain,dash-low,dash-plain,shaka-hls-low,shaka-hls-plain,shaka-dash-low,shaka-dash-plain";

/// Shaka and hls.js try a rung that had a gap again after half a minute, and half a minute later where it still had one.
const TRIED_AGAIN: u64 = 60;

/// How long all play without a stall, unless it is said otherwise.
const SECONDS: u64 = 300;

/// Until players have found their pace.
const SETTLE: Duration = Duration::from_secs(15);

/// An origin that is held up gets so much of each [`SLICE`] at first, in percent; then half of that, and so on.
const FIRST_SHARE: u32 = 20;

/// Longer than it takes to shed a rung.
const EACH_SHARE: Duration = Duration::from_secs(8);

const SLICE: Duration = Duration::from_millis(100);

/// For rungs to be shed, and to come back: half a minute of calm for each, and more where one has to go again.
const LONG: Duration = Duration::from_secs(240);

struct Players {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Players {
    fn start(node: &Node, stream: &str) -> Players {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/endurance.mjs");
        let url = node.url(&format!("/live/{stream}/"));
        let players = std::env::var("ROOFTOP_PLAYERS").unwrap_or_else(|_| PLAYERS.into());
        let mut child = Command::new("node")
            .args([script, "--url", &url, "--players", &players])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut players = Players { orders: child.stdin.take(), child, answers };
        println!("start-up, ms: {}", players.answer()["playing"]);
        players
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("the players say why they gave up")
    }

    /// What they have done since they were asked last, once it is as `order` wants it.
    fn ask(&mut self, act: &str, order: &str) -> Value {
        let began = Instant::now();
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut answer = self.answer();
        let look = answer["look"].take();
        println!("{act} ({order} after {:.1} s)", began.elapsed().as_secs_f64());
        for (player, seen) in look.as_object().unwrap() {
            let seconds = |name: &str| seen["latency"][name].as_f64().unwrap_or(f64::NAN);
            println!(
                "  {player:16} latency p50 {:.2} s, p95 {:.2} s; stalls, ms: {}; {} of {} frames dropped; sizes {}; errors {}",
                seconds("p50"),
                seconds("p95"),
                seen["stalls"],
                seen["dropped"],
                seen["frames"],
                seen["sizes"],
                seen["errors"]
            );
            assert_eq!(seen["fatal"], serde_json::json!([]), "{act}: {player}: {seen:#}");
        }
        look
    }
}

impl Drop for Players {
    fn drop(&mut self) {
        self.orders = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            terminate(&self.child);
            let _ = self.child.wait();
        }
    }
}

/// An origin, and what is in front of it: a node each, so that the one can be held up without the other.
fn nodes(folder: &Folder) -> (Node, Node) {
    let state = folder.path().join("state");
    let config = |name: &str, roles: &str, origin: SocketAddr, more: &str| {
        format!(
            "[node]\nname = {name:?}\nroles = {roles}\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n[cluster]\n\
             origins = [{{ name = \"origin\", address = \"{origin}\" }}]\n\
             shields = [{{ name = \"pop\", address = \"127.0.0.1:0\" }}]\n{more}\n",
            state.display()
        )
    };
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let own = "[origin]\nlisten = \"127.0.0.1:0\"";
    let origin = Node::start(folder, "origin", &config("origin", "[\"origin\"]", nowhere, own));
    let own = "[ingest]\nrtmps = \"127.0.0.1:0\"\ndrain = \"0s\"\n[shield]\nhttps = \"127.0.0.1:0\"\n\
               [edge]\nhttps = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"";
    let roles = "[\"ingest\", \"shield\", \"edge\"]";
    let pop = Node::start(folder, "pop", &config("pop", roles, origin.addr("origin"), own));
    (origin, pop)
}

fn clip(name: &str, size: &'static str) -> Clip {
    Clip::make(name, Recipe { size, rate: "30", seconds: 60, extra: &["-tune", "zerolatency"] })
}

fn wait(seconds: u64) {
    // What is waited for is time itself.
    std::thread::sleep(Duration::from_secs(seconds));
}

fn no_stall(act: &str, look: &Value) {
    for (player, seen) in look.as_object().unwrap() {
        assert_eq!(
            (&seen["stalls"], &seen["still_ms"]),
            (&serde_json::json!([]), &0.into()),
            "{act}: {player}"
        );
    }
}

#[test]
#[ignore = "takes a quarter of an hour: make test-players"]
fn all_players_play_through_drops_and_a_change_of_resolution() {
    let _turn = real_time(Share::Machine);
    let seconds = std::env::var("ROOFTOP_PLAYERS_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let folder = Folder::new("endurance");
    let (_origin, pop) = nodes(&folder);
    let (large, small) = (clip("endurance-360p", "640x360"), clip("endurance-240p", "426x240"));
    let url = pop.publish_url("rtmps", "show");
    let mut broadcaster = Broadcaster::send(&large, &url, -1);
    live(&pop, "show");
    let mut players = Players::start(&pop, "show");
    wait(SETTLE.as_secs());
    players.ask("settled", "look");
    wait(seconds);
    no_stall("undisturbed", &players.ask(&format!("{seconds} s undisturbed"), "look"));

    // Of a size that stays each may show a smaller rung: Shaka keeps to one where the machine was too busy for all frames.
    let resized = "showing 426x240";
    for (away, clip, order) in [(3, &large, "playing"), (20, &large, "playing"), (1, &small, resized)] {
        broadcaster.kill();
        wait(away);
        broadcaster = Broadcaster::send(clip, &url, -1);
        let act = format!("{away} s without the broadcaster");
        players.ask(&act, order);
        wait(SETTLE.as_secs());
        players.ask(&act, "look");
        wait(20);
        no_stall("afterwards", &players.ask("20 s afterwards", "look"));
    }
    drop(broadcaster);
}

/// Lets a process run for a share of each [`SLICE`] only, until it is dropped.
struct HeldUp {
    percent: std::sync::Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl HeldUp {
    fn hold(pid: u32) -> HeldUp {
        let percent = std::sync::Arc::new(AtomicU32::new(100));
        let share = percent.clone();
        let thread = std::thread::spawn(move || {
            let signal = |name: &str| {
                let sent = Command::new("kill").args([name, &pid.to_string()]).status();
                assert!(sent.unwrap().success(), "{name} to {pid}");
            };
            loop {
                let runs = share.load(Ordering::Relaxed);
                match runs {
                    0 => return,
                    100.. => std::thread::sleep(SLICE),
                    _ => {
                        signal("-STOP");
                        std::thread::sleep(SLICE * (100 - runs) / 100);
                        signal("-CONT");
                        std::thread::sleep(SLICE * runs / 100);
                    }
                }
            }
        });
        HeldUp { percent, thread: Some(thread) }
    }

    fn to(&self, percent: u32) {
        self.percent.store(percent, Ordering::Relaxed);
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        self.to(0);
        if let Some(thread) = self.thread.take() {
            // It ends with the process going on.
            let _ = thread.join();
        }
    }
}

#[test]
#[ignore = "takes some minutes: make test-players"]
fn all_players_play_through_a_rung_that_is_shed_and_comes_back() {
    let _turn = real_time(Share::Machine);
    let folder = Folder::new("shedding");
    let (origin, pop) = nodes(&folder);
    let clip = clip("endurance-360p", "640x360");
    let _broadcaster = Broadcaster::send(&clip, &pop.publish_url("rtmps", "show"), -1);
    live(&pop, "show");
    let mut players = Players::start(&pop, "show");
    wait(SETTLE.as_secs());
    players.ask("settled", "look");

    let held = HeldUp::hold(origin.pid());
    let (began, mut share) = (Instant::now(), FIRST_SHARE);
    let shed = || origin.metric("transcode_rungs_shed");
    while shed() == 0.0 {
        assert!(began.elapsed() < LONG && share > 0, "no rung was shed with {share} % of the time");
        held.to(share);
        let until = Instant::now() + EACH_SHARE;
        while shed() == 0.0 && Instant::now() < until {
            wait(1);
        }
        println!(
            "with {share} % of the time: {} rungs shed after {:.0} s",
            shed(),
            began.elapsed().as_secs_f64()
        );
        share /= 2;
    }
    drop(held);
    players.ask("a rung is shed", "playing");
    let began = Instant::now();
    while shed() > 0.0 {
        assert!(began.elapsed() < LONG, "{} rungs did not come back", shed());
        wait(1);
    }
    println!("all rungs are back after {:.0} s", began.elapsed().as_secs_f64());
    wait(TRIED_AGAIN);
    let look = players.ask("a minute later", "playing");
    // Not each of them: Shaka keeps to a lower rung where the machine was too busy to show all frames.
    for library in ["hls-", "dash-", "shaka-"] {
        let of_it = look.as_object().unwrap().iter().filter(|(player, _)| player.starts_with(library));
        let mut sizes = of_it.map(|(_, seen)| &seen["size"]).peekable();
        assert!(
            sizes.peek().is_none() || sizes.any(|size| size == "640x360"),
            "{library} does not come back: {look:#}"
        );
    }
    assert!(origin.metric("transcode_sheds_total") >= 1.0);
}
