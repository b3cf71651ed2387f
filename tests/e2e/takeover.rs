//! The owner of a stream is lost in the middle of a broadcast, and the origin that mirrored it goes on: viewers' playlists
//! never go back, what was listed stays, and nobody reloads.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::browser::{Player, SOURCE};
use crate::failover::{RATE, SECONDS, numbered};
use crate::kit::*;
use crate::numbered::Viewer;

/// Two origins that know one another, of which `owner` gets the stream; POPs; an edge.
struct Fleet {
    owner: Option<Node>,
    mirror: Node,
    pop: Option<Node>,
    other_pop: Node,
    edge: Node,
    folder: Folder,
}

/// An address that nothing listened on a moment ago: members must know one another before they run.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Fleet {
    fn start(name: &str, grace: &str) -> Fleet {
        let folder = Folder::new(name);
        let names = ["origin-1", "origin-2"];
        let addrs = names.map(|_| free());
        let members: Vec<_> = names
            .iter()
            .zip(addrs)
            .map(|(name, addr)| format!("{{ name = \"{name}\", address = \"{addr}\" }}"))
            .collect();
        let config = |name: &str, role: &str, sections: &str| {
            format!(
                "[node]\nname = \"{name}\"\nroles = [\"{role}\"]\nstate_dir = {:?}\n[admin]\n\
                 listen = \"127.0.0.1:0\"\n[cluster]\norigins = [{}]\nshields = []\n{sections}\n",
                folder.path().join("state").display(),
                members.join(", ")
            )
        };
        let mut origins = names.iter().zip(addrs).map(|(name, addr)| {
            let listen =
                format!("[origin]\nlisten = \"{addr}\"\nwindow = \"60s\"\nreconnect_grace = \"{grace}\"");
            Node::start(&folder, name, &config(name, "origin", &listen))
        });
        let (first, second) = (origins.next().unwrap(), origins.next().unwrap());
        let edge = "[edge]\nhttp = \"127.0.0.1:0\"";
        let edge = Node::start(&folder, "edge", &config("edge", "edge", edge));
        let pop = |name: &str| {
            let ingest = "[ingest]\nrtmps = \"127.0.0.1:0\"\n[ingest.relay]\nack_timeout = \"2s\"";
            Node::start(&folder, name, &config(name, "ingest", ingest))
        };
        let (pop, other_pop) = (pop("pop-1"), pop("pop-2"));
        let ring = cluster::Ring::new(
            names.map(|name| cluster::Node { name: name.into(), address: String::new() }).into(),
        );
        let (owner, mirror) =
            if ring.candidates("show")[0].name == names[0] { (first, second) } else { (second, first) };
        Fleet { owner: Some(owner), mirror, pop: Some(pop), other_pop, edge, folder }
    }

    fn pop(&self) -> &Node {
        self.pop.as_ref().unwrap()
    }

    /// Waits until some segments are published and mirrored, and the next one has begun.
    fn in_the_middle_of_a_segment(&self, rendition: &str) {
        eventually("six segments", || {
            (self.pop().metric("ingest_acknowledged_segments_total") >= 6.0).then_some(())
        });
        self.mirror.logged(" mirrored ");
        assert_eq!(self.mirror.metric("origin_mirrored_streams"), 1.0);
        assert_eq!(self.mirror.metric("origin_streams"), 0.0);
        eventually("parts of an open segment", || {
            let playlist = self.playlist(rendition);
            let open = playlist.rsplit(".m4s\n").next().unwrap_or_default();
            (open.matches("#EXT-X-PART:").count() >= 2).then_some(())
        });
    }

    fn playlist(&self, rendition: &str) -> String {
        get(&self.edge.url(&format!("/live/show/{rendition}.m3u8"))).text()
    }

    fn mpd(&self) -> String {
        get(&self.edge.url("/live/show/manifest.mpd")).text()
    }
}

/// What a viewer's playlist said over time.
#[derive(Debug, Default)]
struct Seen {
    first: u64,
    breaks_before: u64,
    /// Whole segments by number: where they are, and when.
    segments: BTreeMap<u64, (String, String)>,
    breaks: usize,
    /// Segments that had another name later.
    renamed: Vec<u64>,
    gaps: usize,
    /// Answers that were none.
    refused: Vec<u16>,
}

/// Reads a playlist over and over; fails as soon as anything goes back.
fn watch(fleet: &Fleet, rendition: &str, done: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let url = fleet.edge.url(&format!("/live/show/{rendition}.m3u8"));
    while !done.load(Ordering::Relaxed) {
        let answer = get(&url);
        match answer.status {
            200 => seen.look(&answer.text()),
            status => seen.refused.push(status),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    seen
}

impl Seen {
    fn look(&mut self, playlist: &str) {
        let number = |name| tag(playlist, name).unwrap().parse::<u64>().unwrap();
        let (first, breaks_before) =
            (number("#EXT-X-MEDIA-SEQUENCE"), number("#EXT-X-DISCONTINUITY-SEQUENCE"));
        assert!(first >= self.first, "EXT-X-MEDIA-SEQUENCE went from {} to {first}", self.first);
        assert!(
            breaks_before >= self.breaks_before,
            "EXT-X-DISCONTINUITY-SEQUENCE went from {} to {breaks_before}",
            self.breaks_before
        );
        let times = playlist.lines().filter_map(|line| line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:"));
        let uris = playlist.lines().filter(|line| !line.starts_with('#'));
        let listed: Vec<_> = (first..).zip(uris.zip(times)).collect();
        let (oldest, newest) = (listed[0].0, listed[listed.len() - 1].0);
        let known = self.segments.last_key_value().map_or(0, |(number, _)| *number);
        // The end takes back what stood for media that never came.
        let back = newest < known && !playlist.ends_with("#EXT-X-ENDLIST\n");
        assert!(!back, "the newest segment went from {known} to {newest}:\n{playlist}");
        for (number, (uri, time)) in listed {
            let now = (uri.to_owned(), time.to_owned());
            let before = self.segments.insert(number, now.clone());
            if before.is_some_and(|before| before != now) {
                self.renamed.push(number);
            }
        }
        (self.first, self.breaks_before) = (oldest, breaks_before);
        self.breaks = self.breaks.max(playlist.matches("#EXT-X-DISCONTINUITY\n").count());
        self.gaps = self.gaps.max(playlist.matches("#EXT-X-GAP\n").count());
    }
}

/// What a node has used so far, in user and kernel mode.
fn cpu_seconds(node: &Node) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

fn epoch(uri: &str) -> u64 {
    uri.split('/').next().unwrap().parse().unwrap()
}

fn attribute<'a>(mpd: &'a str, name: &str) -> &'a str {
    mpd.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap()
}

/// The POP lives: what it had not heard of it sends again, and viewers find no border at all.
#[test]
fn a_killed_owner_is_taken_over_without_a_border() {
    let _turn = real_time(Share::Half);
    let mut fleet = Fleet::start("takeover", "5s");
    let clip = numbered();
    let source = packets(clip.path.to_str().unwrap());
    let broadcaster = Broadcaster::send(&clip, &fleet.pop().publish_url("rtmps", "show"), 0);
    live(&fleet.edge, "show");
    let viewer = Viewer::watch(fleet.folder.path(), &fleet.edge.url("/live/show/index.m3u8"));
    fleet.in_the_middle_of_a_segment("96p");
    println!(
        "mirrored {} bytes of {}, CPU of the mirror {:.2} s, of the owner {:.2} s",
        fleet.mirror.metric("origin_mirrored_bytes_total"),
        fleet.owner.as_ref().unwrap().metric("origin_published_bytes_total"),
        cpu_seconds(&fleet.mirror),
        cpu_seconds(fleet.owner.as_ref().unwrap())
    );
    let (mpd, owner) = (fleet.mpd(), fleet.owner.take().unwrap());
    let done = AtomicBool::new(false);
    let (seen, said, mpd_after) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&fleet, "96p", &done));
        let stop = Done(&done);
        owner.kill();
        eventually("ten more segments", || {
            (fleet.mirror.metric("origin_segments_total") >= 20.0).then_some(())
        });
        let mpd = fleet.mpd();
        let (sent, said) = broadcaster.wait();
        assert!(sent, "the broadcaster's connection lives on: {said}");
        drop(stop);
        (watcher.join().unwrap(), said, mpd)
    });
    let (pictures, sounds, complaints) = viewer.end().unwrap();
    println!("broadcaster: {said}; viewer: {complaints}; {} segments", seen.segments.len());

    // Every frame once.
    let expected: Vec<u32> = (0..SECONDS * RATE).collect();
    let odd: Vec<_> = pictures.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(pictures == expected, "{} pictures, not in turn: {odd:?}; {complaints}", pictures.len());
    let audio = &source.iter().find(|(kind, _)| kind == "audio").unwrap().1;
    let skipped = audio.iter().position(|packet| packet.hash.ends_with(&sounds[0])).unwrap();
    let sent: Vec<_> = audio[skipped..].iter().map(|packet| packet.hash.trim_start_matches("MD5:")).collect();
    assert!(skipped <= 2 && sent == sounds, "{} audio frames of {}", sounds.len(), sent.len());

    // One list: no break, no gap, what was listed is where it was, and its times go on.
    assert_eq!((seen.breaks_before, seen.breaks, seen.gaps), (0, 0, 0), "{seen:?}");
    assert_eq!(seen.refused, [0u16; 0]);
    assert_eq!(seen.renamed, [0u64; 0], "a whole segment that was listed stays what it is: {seen:?}");
    let numbers: Vec<_> = seen.segments.keys().copied().collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let epochs: Vec<_> = seen.segments.values().map(|(uri, _)| epoch(uri)).collect();
    assert!(epochs.is_sorted() && epochs[0] < epochs[epochs.len() - 1], "{epochs:?}");
    let ms = |time: &str| humantime::parse_rfc3339(time).unwrap();
    let times: Vec<_> = seen.segments.values().map(|(_, time)| ms(time)).collect();
    let odd = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
    let odd: Vec<_> = odd.filter(|step| (step.as_millis() as i64 - 1000).abs() > 40).collect();
    assert!(odd.len() <= 1, "all but the last last a second: {odd:?}");
    let playlist = fleet.playlist("96p");
    assert!(playlist.ends_with("#EXT-X-ENDLIST\n"), "{playlist}");
    for uri in media_then_gaps(&playlist) {
        assert_eq!(get(&fleet.edge.url(&format!("/live/show/{uri}"))).status, 200, "{uri}");
    }
    assert_eq!(attribute(&mpd, "availabilityStartTime"), attribute(&mpd_after, "availabilityStartTime"));
    let connected = format!(
        "<SupplementalProperty schemeIdUri=\"urn:mpeg:dash:period-connectivity:2015\" value=\"{}\"/>",
        epochs[0]
    );
    assert_eq!(mpd_after.matches("<Period ").count(), 2, "{mpd_after}");
    assert_eq!(mpd_after.matches(&connected).count(), 2, "one for each adaptation set: {mpd_after}");
    assert_eq!(fleet.mirror.metric("origin_takeovers_total"), 1.0);
    assert_eq!(fleet.mirror.metric("origin_mirrored_streams"), 0.0);
}

/// What became of hls.js in a browser, and of the list, when the owner and perhaps the POP are killed.
fn hls_js_goes_on(name: &str, fresh: bool) -> (serde_json::Value, Seen) {
    let _turn = real_time(Share::Machine);
    let mut fleet = Fleet::start(name, "20s");
    let clip = Clip::make("browser", SOURCE);
    let mut broadcasters = vec![Broadcaster::send(&clip, &fleet.pop().publish_url("rtmps", "show"), -1)];
    live(&fleet.edge, "show");
    let player = Player::watch(&fleet.edge, "show", "hls", &["--seconds", "40"]);
    eventually("six segments more than the player was told of", || {
        (fleet.pop().metric("ingest_acknowledged_segments_total") >= 12.0).then_some(())
    });
    fleet.in_the_middle_of_a_segment("360p");
    let (owner, pop) = (fleet.owner.take().unwrap(), fleet.pop.take().unwrap());
    let done = AtomicBool::new(false);
    let (report, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&fleet, "360p", &done));
        let stop = Done(&done);
        owner.kill();
        let pop = if fresh {
            pop.kill();
            broadcasters.push(Broadcaster::send(&clip, &fleet.other_pop.publish_url("rtmps", "show"), -1));
            None
        } else {
            Some(pop)
        };
        let report = player.report();
        drop((stop, pop));
        (report, watcher.join().unwrap())
    });
    println!(
        "{name}: {} stalls, {} s in all; {} recoveries; gaps listed {}, refused {:?}",
        report["stalls"], report["stalled_seconds"], report["recoveries"], seen.gaps, seen.refused
    );
    assert_eq!(fleet.mirror.metric("origin_takeovers_total"), 1.0);
    assert_eq!(report["recoveries"], 0, "{report:#}");
    // Long after the loss it plays. Four samples a second; a machine that stops for a while may cost it some of them.
    let samples: Vec<_> =
        report["samples"].as_array().unwrap().iter().map(|s| s[1].as_f64().unwrap()).collect();
    let (last, before) = (samples[samples.len() - 1], samples[samples.len() - 61]);
    assert!(last > before + 5.0, "fifteen seconds took it from {before} to {last}: {report:#}");
    (report, seen)
}

#[test]
fn hls_js_goes_on_when_the_owner_is_killed() {
    let (_, seen) = hls_js_goes_on("takeover-hls", false);
    assert_eq!((seen.breaks_before, seen.breaks, seen.gaps), (0, 0, 0), "{seen:?}");
    assert_eq!((seen.renamed.len(), seen.refused.len()), (0, 0), "{seen:?}");
}

/// The POP is lost as well: what it had not passed on is lost, and the broadcaster begins anew at another.
#[test]
fn hls_js_goes_on_when_owner_and_pop_are_killed() {
    let (_, seen) = hls_js_goes_on("takeover-fresh", true);
    assert_eq!(seen.breaks, 1, "{seen:?}");
    assert_eq!((seen.renamed.len(), seen.refused.len()), (0, 0), "{seen:?}");
    let numbers: Vec<_> = seen.segments.keys().copied().collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

/// What a playlist lists, without the gaps of the last absence, which stand behind all media.
fn media_then_gaps(playlist: &str) -> Vec<&str> {
    let (mut media, mut gap, mut gaps) = (Vec::new(), false, 0);
    for line in playlist.lines() {
        if line == "#EXT-X-GAP" {
            gap = true;
        } else if !line.starts_with('#') {
            if std::mem::take(&mut gap) {
                gaps += 1;
            } else {
                assert_eq!(gaps, 0, "media behind a gap: {playlist}");
                media.push(line);
            }
        }
    }
    media
}

/// Owner, POP and broadcaster are gone: for the grace the mirror answers alone, then the broadcast is over.
#[test]
fn the_mirror_answers_while_nobody_owns_the_stream() {
    let _turn = real_time(Share::Half);
    let mut fleet = Fleet::start("orphan", "10s");
    let clip = Clip::make("browser", SOURCE);
    let broadcaster = Broadcaster::send(&clip, &fleet.pop().publish_url("rtmps", "show"), -1);
    live(&fleet.edge, "show");
    fleet.in_the_middle_of_a_segment("360p");
    let (owner, pop) = (fleet.owner.take().unwrap(), fleet.pop.take().unwrap());
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&fleet, "360p", &done));
        let _stop = Done(&done);
        owner.kill();
        pop.kill();
        broadcaster.kill();
        fleet.mirror.logged("its window is answered for here");
        // The edge never had these: nobody asked for sound so far.
        let audio = fleet.playlist("audio");
        let oldest = audio.lines().find(|line| !line.starts_with('#')).unwrap();
        assert_eq!(get(&fleet.edge.url(&format!("/live/show/{oldest}"))).status, 200, "{oldest}");
        let mpd = fleet.mpd();
        assert!(mpd.contains("type=\"dynamic\"") && mpd.matches("<Period ").count() == 1, "{mpd}");
        // What does not come is not waited for in vain.
        for _ in 0..3 {
            let playlist = fleet.playlist("360p");
            let first: u64 = tag(&playlist, "#EXT-X-MEDIA-SEQUENCE").unwrap().parse().unwrap();
            let next = first + playlist.matches("#EXTINF").count() as u64;
            let answer = get(&fleet.edge.url(&format!("/live/show/360p.m3u8?_HLS_msn={next}")));
            assert_eq!(answer.status, 200);
            assert!(answer.text().contains(&format!("/360p/{next}.m4s")), "{}", answer.text());
        }
        let ended = eventually("the end", || {
            let playlist = fleet.playlist("360p");
            playlist.ends_with("#EXT-X-ENDLIST\n").then_some(playlist)
        });
        eventually("the end in the MPD", || fleet.mpd().contains("type=\"static\"").then_some(()));
        assert!(media_then_gaps(&ended).len() >= 6, "{ended}");
        drop(_stop);
        watcher.join().unwrap()
    });
    assert_eq!((seen.breaks, seen.renamed.len(), seen.refused.len()), (0, 0, 0), "{seen:?}");
    assert!(seen.gaps >= 3, "{seen:?}");
    assert_eq!(fleet.mirror.metric("origin_takeovers_total"), 0.0);
}

/// An owner that was frozen wakes up when another has the stream: it learns so and lets go.
#[test]
fn an_owner_that_thaws_lets_go() {
    let _turn = real_time(Share::Half);
    let fleet = Fleet::start("thaw", "20s");
    let clip = Clip::make("browser", SOURCE);
    let _broadcaster = Broadcaster::send(&clip, &fleet.pop().publish_url("rtmps", "show"), -1);
    live(&fleet.edge, "show");
    fleet.in_the_middle_of_a_segment("360p");
    let owner = fleet.owner.as_ref().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&fleet, "360p", &done));
        let _stop = Done(&done);
        let before = fleet.mirror.metric("origin_segments_total");
        owner.freeze();
        eventually("segments of the mirror", || {
            (fleet.mirror.metric("origin_segments_total") >= before + 6.0).then_some(())
        });
        owner.thaw();
        owner.logged("another origin has taken the stream over");
        assert_eq!(owner.metric("origin_fenced_total"), 1.0);
        eventually("the stream mirrored by who had it", || {
            (owner.metric("origin_streams") == 0.0 && owner.metric("origin_mirrored_streams") == 1.0)
                .then_some(())
        });
        drop(_stop);
        let seen = watcher.join().unwrap();
        println!("while its owner was frozen: refused {:?}, gaps {}", seen.refused, seen.gaps);
    });
    assert_eq!(fleet.mirror.metric("origin_takeovers_total"), 1.0);
}

/// Set at the end of a scope, also when that is a panic: threads that wait for it would hang the test.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
