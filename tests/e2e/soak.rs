//! Live traffic for a while: a broadcast and many players at its live edge. Memory stays within what was allowed, and
//! nothing is left when the players have gone.
//!
//! `make soak` runs ten minutes with a thousand players; in the tests it is twenty seconds with fewer. Both can be chosen:
//! `ROOFTOP_SOAK_SECONDS`, `ROOFTOP_SOAK_VIEWERS`.

use std::fs;
use std::time::{Duration, Instant};

use net::tls;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kit::*;
use crate::players::{Access, Watched, watch};

const SECONDS: u64 = 20;
const VIEWERS: u64 = 200;

/// So long a run has filled its caches half way through, and what grows after that is a leak.
const LONG: Duration = Duration::from_secs(300);

/// Players come one after the other within this time.
const ARRIVAL: Duration = Duration::from_secs(4);

/// Each tier's, in bytes: reached within a few minutes.
const CACHE: u64 = 8 << 20;
const INFLIGHT: u64 = 16 << 20;

/// Connections, and tasks of them, that tiers keep to one another beyond those of a single viewer.
const KEPT: u64 = 24;

#[test]
fn a_thousand_players_leave_nothing_behind() {
    let _turn = real_time(Share::Machine);
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let length = Duration::from_secs(number("ROOFTOP_SOAK_SECONDS", SECONDS));
    let viewers = number("ROOFTOP_SOAK_VIEWERS", VIEWERS);
    let clip = Clip::make(
        "240p",
        Recipe { size: "426x240", rate: "30", seconds: 10, extra: &["-tune", "zerolatency", "-b:v", "400k"] },
    );
    let folder = Folder::new("soak");
    let mut sections = all_in_one(&folder.path().join("state"));
    // A push that outlives its viewers for long would look like something left behind.
    let tier = format!(
        "cache_size = \"{CACHE}B\"\ninflight_size = \"{INFLIGHT}B\"\nmax_object = \"4MiB\"\npush.idle = \"1s\"\n"
    );
    for role in ["edge", "shield"] {
        sections.entry(role).or_default().push_str(&tier);
    }
    sections.entry("origin").or_default().push_str("part_target = \"500ms\"\nwindow = \"10s\"\n");
    let node = Node::start(&folder, "node", &toml(&sections));
    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmp", "show"), -1);
    live(&node, "show");
    let renditions = renditions(&get(&node.url("/live/show/index.m3u8")).text());
    assert_eq!(renditions.len(), 2, "one rung and audio: {renditions:?}");
    let files = tls::development_files(&folder.path().join("state/tls"), "local", &[]).unwrap();
    let mut client_tls = rustls::ClientConfig::clone(&tls::client_config(&files).unwrap());
    client_tls.alpn_protocols = vec![b"h2".to_vec()];
    let client_tls = std::sync::Arc::new(client_tls);
    let access = |viewer: u64| match viewer.is_multiple_of(2) {
        true => Access::Tls(node.addr("https"), client_tls.clone()),
        false => Access::Plain(node.addr("http")),
    };

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let play = |viewers: u64, length: Duration, mut look: Box<dyn FnMut() + '_>| -> Vec<Watched> {
        let stop = CancellationToken::new();
        let mut playing = JoinSet::new();
        for viewer in 0..viewers {
            let (access, renditions, stop) = (access(viewer), renditions.clone(), stop.clone());
            playing.spawn_on(
                async move {
                    tokio::time::sleep(ARRIVAL * viewer as u32 / viewers as u32).await;
                    watch(access, "show", &renditions, stop).await
                },
                runtime.handle(),
            );
        }
        let began = Instant::now();
        while began.elapsed() < length {
            std::thread::sleep(Duration::from_secs(1));
            look();
        }
        stop.cancel();
        runtime.block_on(playing.join_all()).into_iter().flatten().collect()
    };

    // What two viewers leave open between the tiers is there to stay.
    play(2, Duration::from_secs(3), Box::new(|| {}));
    let before = settled(&node);
    println!("{}\n{before}", State::HEAD);

    let began = Instant::now();
    let mut states: Vec<(Duration, State)> = Vec::new();
    let look = || {
        let state = State::of(&node);
        // All of a short run, every ten seconds of a long one.
        if length < LONG || states.len().is_multiple_of(10) {
            println!("{state}  at {:.0?}", began.elapsed());
        }
        states.push((began.elapsed(), state));
    };
    let watched = play(viewers, length, Box::new(look));
    let after = settled(&node);
    println!("{after}  after they had gone");

    let mut total = Watched::default();
    for watched in &watched {
        total.add(watched.clone());
    }
    let seconds = length.as_secs_f64();
    println!(
        "{viewers} viewers, {length:?}: {:.0} playlists and {:.0} parts a second, {:.1} MB/s; failures: {:?}",
        total.playlists as f64 / seconds,
        total.parts as f64 / seconds,
        total.bytes as f64 / seconds / 1e6,
        total.failures
    );
    assert!(total.failures.is_empty());
    assert!(watched.iter().all(|watched| watched.parts > 0), "somebody saw nothing");
    for (time, state) in &states {
        assert!(
            state.cache_bytes <= 2 * CACHE && state.inflight_bytes <= 2 * INFLIGHT,
            "at {time:?}: {state:?}"
        );
    }
    assert!(after.tasks <= before.tasks + KEPT, "{} tasks before, {} after", before.tasks, after.tasks);
    assert!(after.files <= before.files + KEPT, "{} files before, {} after", before.files, after.files);
    if length >= LONG {
        let median = |from: Duration, to: Duration| {
            let within = states.iter().filter(|(time, _)| (from..to).contains(time));
            let mut resident: Vec<u64> = within.map(|(_, state)| state.resident).collect();
            resident.sort_unstable();
            resident[resident.len() / 2]
        };
        let (third, last) = (median(length / 2, length * 3 / 4), median(length * 3 / 4, length * 2));
        println!("resident: {third} bytes in the third quarter, {last} in the last");
        assert!(last <= third + third / 20 + (4 << 20), "memory grows");
    }
    drop(broadcaster);
}

/// What a node holds.
#[derive(Debug, Clone, Copy)]
struct State {
    resident: u64,
    /// Of both tiers together.
    cache_bytes: u64,
    inflight_bytes: u64,
    inflight_names: u64,
    waiters: u64,
    tasks: u64,
    files: u64,
}

impl State {
    const HEAD: &str = "resident MiB  cached  in flight KiB  names  waiters  tasks  files";

    fn of(node: &Node) -> State {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let resident = tag(&status, "VmRSS").unwrap().trim().strip_suffix(" kB").unwrap();
        let tiers = |name: &str| {
            let of = |tier: &str| node.metric(&format!("{name}{{tier=\"{tier}\"}}")) as u64;
            of("edge") + of("shield")
        };
        State {
            resident: resident.parse::<u64>().unwrap() * 1024,
            cache_bytes: tiers("edge_cache_bytes"),
            inflight_bytes: tiers("edge_inflight_bytes"),
            inflight_names: tiers("edge_inflight_names"),
            waiters: tiers("edge_waiters"),
            tasks: node.metric("process_tasks") as u64,
            files: fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count() as u64,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        write!(
            f,
            "{:>12.1}  {:>6.1}  {:>13.0}  {:>5}  {:>7}  {:>5}  {:>5}",
            mib(self.resident),
            mib(self.cache_bytes),
            self.inflight_bytes as f64 / 1024.0,
            self.inflight_names,
            self.waiters,
            self.tasks,
            self.files
        )
    }
}

/// The node's state once nobody waits, nothing is in flight, and connections of viewers have been let go.
fn settled(node: &Node) -> State {
    let idle = |state: &State| state.waiters + state.inflight_names + state.inflight_bytes == 0;
    let mut last = u64::MAX;
    eventually("an idle node", || {
        let state = State::of(node);
        let steady = std::mem::replace(&mut last, state.tasks) == state.tasks;
        (idle(&state) && steady).then_some(state)
    })
}
