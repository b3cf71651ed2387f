//! A broadcaster changes its connection: because a POP drains and asks it to, or because the old one broke off. The stream
//! goes on as one broadcast, with every frame that was sent exactly once. The encoder is ours, so that it can send what
//! it likes on two connections; its frames are ffmpeg's, each picture with its number.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failover::{RATE, SECONDS, numbered};
use crate::kit::*;
use crate::numbered::Viewer;
use crate::publisher::{Publisher, Tag, tags_of};
use crate::reconnect::watch_sequences;

/// An origin, two POPs, and an edge.
pub struct Fleet {
    pub origin: Node,
    pub pops: [Node; 2],
    pub edge: Node,
    pub folder: Folder,
}

impl Fleet {
    pub fn start(name: &str, grace: &str, drain: &str) -> Fleet {
        let folder = Folder::new(name);
        let config = |name: &str, role: &str, origin: SocketAddr, listen: &str| {
            format!(
                "[node]\nname = \"{name}\"\nroles = [\"{role}\"]\nstate_dir = {:?}\n[admin]\n\
                 listen = \"127.0.0.1:0\"\n[cluster]\norigins = [{{ name = \"origin\", address = \"{origin}\" }}]\n\
                 shields = []\n{listen}\n",
                folder.path().join("state").display()
            )
        };
        let nowhere = "127.0.0.1:0".parse().unwrap();
        let listen =
            format!("[origin]\nlisten = \"127.0.0.1:0\"\nwindow = \"60s\"\nreconnect_grace = \"{grace}\"");
        let origin = Node::start(&folder, "origin", &config("origin", "origin", nowhere, &listen));
        let at = origin.addr("origin");
        let listen = format!("[ingest]\nrtmp = \"127.0.0.1:0\"\ndrain = \"{drain}\"");
        let pops =
            ["pop-a", "pop-b"].map(|name| Node::start(&folder, name, &config(name, "ingest", at, &listen)));
        let edge =
            Node::start(&folder, "edge", &config("edge", "edge", at, "[edge]\nhttp = \"127.0.0.1:0\""));
        Fleet { origin, pops, edge, folder }
    }

    /// Waits for the end of a broadcast, then reads all of it.
    fn read(&self, stream: &str) -> (Vec<u32>, Vec<String>, String) {
        eventually("the end of the broadcast", || {
            let playlist = get(&self.edge.url(&format!("/live/{stream}/96p.m3u8"))).text();
            playlist.contains("#EXT-X-ENDLIST").then_some(())
        });
        let folder = Folder::new(&format!("succession-{stream}"));
        Viewer::watch(folder.path(), &self.edge.url(&format!("/live/{stream}/index.m3u8"))).end().unwrap()
    }

    fn successions(&self, kind: &str) -> f64 {
        self.origin.metric(&format!("origin_successions_total{{kind=\"{kind}\"}}"))
    }
}

/// An encoder: what it says first on each connection, and what it makes.
pub struct Encoder {
    setup: Vec<Tag>,
    pub media: Vec<Tag>,
    pub sounds: Vec<String>,
}

impl Encoder {
    pub fn new() -> Encoder {
        let clip = numbered();
        let source = packets(clip.path.to_str().unwrap());
        let audio = &source.iter().find(|(kind, _)| kind == "audio").unwrap().1;
        let sounds = audio.iter().map(|packet| packet.hash.trim_start_matches("MD5:").to_owned()).collect();
        let tags = tags_of(&std::fs::read(&clip.path).unwrap());
        let (media, setup) = tags.into_iter().partition(|tag| tag.kind != 18 && tag.body[1] == 1);
        Encoder { setup, media, sounds }
    }

    pub fn keyframe_from(&self, index: usize) -> usize {
        let is_key = |tag: &Tag| tag.kind == 9 && tag.body[0] >> 4 == 1;
        self.media[index..].iter().position(is_key).map_or(self.media.len(), |more| index + more)
    }

    pub fn at(&self, ms: u32) -> usize {
        self.media.iter().position(|tag| tag.ms >= ms).unwrap()
    }

    /// The number of the picture in a video tag.
    fn picture(&self, tag: &Tag) -> u32 {
        let shown = |tag: &Tag| tag.ms + u32::from_be_bytes([0, tag.body[2], tag.body[3], tag.body[4]]);
        let first = shown(&self.media[self.keyframe_from(0)]);
        ((shown(tag) - first) * RATE + 500) / 1000
    }

    /// Pictures in order, and the hashes of the sounds, of what was sent.
    pub fn sent(&self, was_sent: impl Fn(usize) -> bool) -> (Vec<u32>, Vec<String>) {
        let sent = || self.media.iter().enumerate().filter(|(index, _)| was_sent(*index)).map(|(_, tag)| tag);
        let mut pictures: Vec<_> = sent().filter(|tag| tag.kind == 9).map(|tag| self.picture(tag)).collect();
        pictures.sort_unstable();
        let audio = self.media.iter().enumerate().filter(|(_, tag)| tag.kind == 8);
        let sounds = audio.zip(&self.sounds).filter(|((index, _), _)| was_sent(*index));
        (pictures, sounds.map(|(_, hash)| hash.clone()).collect())
    }
}

/// One connection of the encoder, on a clock of its own.
pub struct Connection {
    publisher: Publisher,
    behind_ms: u32,
    heard: JoinHandle<String>,
    asked: Arc<AtomicBool>,
}

impl Connection {
    /// The clock of the connection is so much behind the encoder's.
    pub fn open(pop: &Node, stream: &str, caps_ex: u8, behind_ms: u32) -> Connection {
        let publisher = Publisher::publish_with(pop, stream, caps_ex);
        let (mut ear, asked) = (publisher.ear(), Arc::new(AtomicBool::new(false)));
        let flag = asked.clone();
        let heard = std::thread::spawn(move || {
            let (mut heard, mut buffer) = (String::new(), [0; 4096]);
            while let Ok(n @ 1..) = ear.read(&mut buffer) {
                heard.push_str(&String::from_utf8_lossy(&buffer[..n]));
                flag.fetch_or(heard.contains("NetConnection.Connect.ReconnectRequest"), Ordering::AcqRel);
            }
            heard
        });
        Connection { publisher, behind_ms, heard, asked }
    }

    pub fn begin(&mut self, encoder: &Encoder, ms: u32) {
        for tag in &encoder.setup {
            self.send(&Tag { ms, ..tag.clone() }).unwrap();
        }
    }

    pub fn send(&mut self, tag: &Tag) -> std::io::Result<()> {
        self.publisher.send_now(&Tag { ms: tag.ms - self.behind_ms, ..tag.clone() })
    }

    /// Whether the server asked it to reconnect.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Ends its part of the broadcast; what the server has said.
    pub fn end(mut self) -> String {
        self.publisher.unpublish();
        self.heard.join().unwrap()
    }
}

/// A broadcaster's pace, not a wait for something.
pub struct Pace(pub Instant);

impl Pace {
    pub fn wait_for(&self, ms: u32) {
        let due = self.0 + Duration::from_millis(ms.into());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// The first POP drains while it carries two broadcasts: one goes to the other POP when it is asked to, with the next
/// keyframe, and on the old connection goes on until then, or for a group of pictures more; the other understands nothing.
fn moves_to_another_pop(name: &str, overlaps: bool, restarts: bool) {
    let _turn = real_time(Share::Half);
    let Fleet { origin, pops: [first_pop, second_pop], edge, folder } = Fleet::start(name, "2s", "6s");
    let encoder = Encoder::new();
    let (done, pace) = (AtomicBool::new(false), Pace(Instant::now()));
    let (old_heard, plain_heard, plain_frames) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            live(&edge, "show");
            Viewer::watch(folder.path(), &edge.url("/live/show/index.m3u8")).end().unwrap()
        });
        let sequences = scope.spawn(|| watch_sequences(&edge, "/live/show/96p.m3u8", &done));
        let plain = scope.spawn(|| {
            let mut plain = Connection::open(&first_pop, "plain", 0, 0);
            plain.begin(&encoder, 0);
            let mut frames = 0;
            for tag in &encoder.media {
                pace.wait_for(tag.ms);
                if plain.send(tag).is_err() {
                    break;
                }
                // The second process is asked to reconnect first: what comes later was taken by a POP that drains.
                frames += usize::from(tag.ms > 7_000);
            }
            (plain.heard.join().unwrap(), frames)
        });
        let mut old = Some(Connection::open(&first_pop, "show", 1, 0));
        old.as_mut().unwrap().begin(&encoder, 0);
        let (mut new, mut switch, mut until) = (None::<Connection>, usize::MAX, usize::MAX);
        let (mut ending, mut old_heard) = (false, None);
        for (index, tag) in encoder.media.iter().enumerate() {
            pace.wait_for(tag.ms);
            if !ending && tag.ms >= 6_000 {
                ending = true;
                first_pop.ask_to_end();
            }
            if new.is_none() && old.as_ref().is_some_and(Connection::is_asked) {
                assert_eq!(get(&format!("http://{}/readyz", first_pop.addr("admin"))).status, 503);
                switch = encoder.keyframe_from(index);
                until = if overlaps { encoder.keyframe_from(switch + 1) } else { switch };
                let ms = encoder.media[switch].ms;
                new = Some(Connection::open(&second_pop, "show", 1, if restarts { ms } else { 0 }));
                new.as_mut().unwrap().begin(&encoder, ms);
            }
            if index >= until
                && let Some(old) = old.take()
            {
                old_heard = Some(scope.spawn(move || old.end()));
            }
            if let Some(old) = &mut old {
                let sent = old.send(tag);
                assert!(sent.is_ok() || index > switch, "{sent:?}");
            }
            if let Some(new) = new.as_mut().filter(|_| index >= switch) {
                new.send(tag).unwrap();
            }
        }
        new.expect("it was asked to reconnect").end();
        let (pictures, sounds, said) = watching.join().unwrap();
        done.store(true, Ordering::Relaxed);
        let seen = sequences.join().unwrap();
        assert_eq!(seen.breaks, 0, "{seen:?}");
        let expected: Vec<u32> = (0..SECONDS * RATE).collect();
        let odd: Vec<_> = pictures.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
        assert!(pictures == expected, "{} pictures, not in turn: {odd:?}; ffmpeg: {said}", pictures.len());
        let skipped = encoder.sounds.iter().position(|hash| *hash == sounds[0]).unwrap();
        assert!(skipped <= 2, "{skipped} audio frames lie before the first picture");
        let differs = encoder.sounds[skipped..].iter().zip(&sounds).position(|(sent, got)| sent != got);
        assert!(encoder.sounds[skipped..] == sounds, "{} audio frames, differ at {differs:?}", sounds.len());
        let (plain_heard, plain_frames) = plain.join().unwrap();
        (old_heard.unwrap().join().unwrap(), plain_heard, plain_frames)
    });
    // Where one follows the other, over two POPs, either may come to the origin first: then it may hear this or not.
    assert!(!overlaps || old_heard.contains("taken over by a newer session"), "{old_heard}");
    assert!(plain_frames > 30 && plain_heard.contains("server shuts down"), "{plain_frames}: {plain_heard}");
    assert!(!plain_heard.contains("ReconnectRequest"));
    assert!(first_pop.ended().success());
    let kind = if overlaps { "repeated" } else { "followed" };
    assert_eq!(origin.metric(&format!("origin_successions_total{{kind=\"{kind}\"}}")), 1.0);
    assert_eq!(origin.metric("origin_runs_total"), 2.0, "one for each broadcast");
}

#[test]
fn every_frame_once_when_a_pop_drains_and_the_connections_overlap() {
    moves_to_another_pop("pop-overlap", true, false);
}

#[test]
fn every_frame_once_when_the_new_connection_has_a_clock_of_its_own() {
    moves_to_another_pop("pop-restart", true, true);
}

#[test]
fn every_frame_once_when_a_pop_drains_and_one_connection_follows_the_other() {
    moves_to_another_pop("pop-follow", false, false);
}

/// How a broadcaster is away.
#[derive(Debug, Clone, Copy)]
struct Away {
    seconds: u32,
    other_pop: bool,
    restarts: bool,
    /// The old connection stays, and nothing comes over it any more.
    silent: bool,
}

#[test]
fn a_broadcaster_who_was_away_goes_on_with_the_same_broadcast() {
    let _turn = real_time(Share::Core);
    // Ten seconds are nearly all of the grace that there is.
    let fleet = Fleet::start("away", "12s", "0s");
    let encoder = Encoder::new();
    let mut stories = Vec::new();
    for (seconds, silent) in [(3, false), (10, false), (3, true)] {
        for other_pop in [false, true] {
            for restarts in [false, true] {
                stories.push(Away { seconds, other_pop, restarts, silent });
            }
        }
    }
    std::thread::scope(|scope| {
        let (fleet, encoder) = (&fleet, &encoder);
        let playing: Vec<_> = stories
            .iter()
            .enumerate()
            .map(|(index, story)| scope.spawn(move || goes_on(fleet, encoder, index, *story)))
            .collect();
        for story in playing {
            story.join().unwrap();
        }
    });
    let of = |restarts: bool| stories.iter().filter(|story| story.restarts == restarts).count() as f64;
    assert_eq!(fleet.successions("away"), of(false));
    assert_eq!(fleet.successions("new"), of(true));
    let ends = fleet.origin.log().matches("broadcast ended").count();
    assert_eq!(ends, stories.len(), "one broadcast each");
}

fn goes_on(fleet: &Fleet, encoder: &Encoder, index: usize, away: Away) {
    let stream = format!("show-{index}");
    // In the middle of a group of pictures, before its B-frames.
    let cut = encoder.at(6_100);
    let back = encoder.keyframe_from(encoder.at(encoder.media[cut].ms + away.seconds * 1000));
    let pace = Pace(Instant::now());
    let mut old = Connection::open(&fleet.pops[0], &stream, 0, 0);
    old.begin(encoder, 0);
    for tag in &encoder.media[..cut] {
        pace.wait_for(tag.ms);
        old.send(tag).unwrap();
    }
    let (done, path) = (AtomicBool::new(false), format!("/live/{stream}/96p.m3u8"));
    let (pictures, sounds, said) = std::thread::scope(|scope| {
        let sequences = scope.spawn(|| watch_sequences(&fleet.edge, &path, &done));
        let silent = match away.silent {
            true => Some(old),
            false => {
                old.publisher.hang_up();
                None
            }
        };
        let ms = encoder.media[back].ms;
        pace.wait_for(ms);
        let pop = &fleet.pops[usize::from(away.other_pop)];
        let mut new = Connection::open(pop, &stream, 0, if away.restarts { ms } else { 0 });
        new.begin(encoder, ms);
        for tag in &encoder.media[back..] {
            pace.wait_for(tag.ms);
            new.send(tag).unwrap();
        }
        new.end();
        if let Some(old) = silent {
            let heard = old.heard.join().unwrap();
            assert!(heard.contains("taken over by a newer session"), "{away:?}: {heard}");
        }
        let read = fleet.read(&stream);
        done.store(true, Ordering::Relaxed);
        let seen = sequences.join().unwrap();
        assert_eq!(seen.breaks, 1, "{away:?}: {seen:?}");
        read
    });
    let (expected, sent) = encoder.sent(|index| index < cut || index >= back);
    let odd: Vec<_> = pictures.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(pictures == expected, "{away:?}: {} pictures, {odd:?}; ffmpeg: {said}", pictures.len());
    // Audio that was sent with a picture and is heard before it has no place.
    let places: Vec<_> =
        sounds.iter().map(|hash| sent.iter().position(|sent| sent == hash).unwrap()).collect();
    assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{away:?}: sounds come twice, or not in order");
    assert!(sent.len() - sounds.len() <= 8, "{away:?}: {} of {} sounds", sounds.len(), sent.len());
}
