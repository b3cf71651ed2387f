//! An origin is lost in the middle of a broadcast, one way or another. The broadcaster does not notice, and who reads
//! HLS from the edge gets every frame exactly once: each picture bears its own number, which is read back after decoding.

use std::cell::RefCell;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::kit::*;
use crate::numbered::{Viewer, make};

pub const SECONDS: u32 = 24;
pub const RATE: u32 = 30;

/// A broadcast with B-frames, whose groups of pictures do not divide into segments evenly.
pub fn numbered() -> Clip {
    static CLIP: Mutex<Option<Arc<Folder>>> = Mutex::new(None);
    let mut made = CLIP.lock().unwrap();
    let folder = made.get_or_insert_with(|| {
        let folder = Folder::new("numbered");
        make(&folder.path().join("clip.flv"), RATE, SECONDS);
        Arc::new(folder)
    });
    Clip { path: folder.path().join("clip.flv") }
}

/// Two origins, of which `owner` gets the stream; a POP; an edge.
struct Fleet {
    owner: Option<Node>,
    _other: Node,
    pop: Node,
    edge: Node,
    folder: Folder,
}

impl Fleet {
    /// `way` may put something between the POP and an origin.
    fn start(name: &str, way: impl Fn(SocketAddr) -> SocketAddr) -> Fleet {
        let folder = Folder::new(name);
        let config = |name: &str, role: &str, members: &str, listen: &str| {
            format!(
                "[node]\nname = \"{name}\"\nroles = [\"{role}\"]\nstate_dir = {:?}\n[admin]\n\
                 listen = \"127.0.0.1:0\"\n[cluster]\norigins = [{members}]\nshields = []\n{listen}\n",
                folder.path().join("state").display()
            )
        };
        let member = |name: &str, addr: SocketAddr| format!("{{ name = \"{name}\", address = \"{addr}\" }}");
        let nowhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let names = ["origin-1", "origin-2"];
        let origins = names.map(|name| {
            let listen = "[origin]\nlisten = \"127.0.0.1:0\"\nwindow = \"60s\"\nreconnect_grace = \"2s\"";
            Node::start(&folder, name, &config(name, "origin", &member(name, nowhere), listen))
        });
        let addrs = [origins[0].addr("origin"), origins[1].addr("origin")];
        let members =
            |at: [SocketAddr; 2]| format!("{}, {}", member(names[0], at[0]), member(names[1], at[1]));
        let listen = "[edge]\nhttp = \"127.0.0.1:0\"";
        let edge = Node::start(&folder, "edge", &config("edge", "edge", &members(addrs), listen));
        let listen = "[ingest]\nrtmps = \"127.0.0.1:0\"\n[ingest.relay]\nack_timeout = \"2s\"";
        let pop = Node::start(&folder, "pop", &config("pop", "ingest", &members(addrs.map(way)), listen));
        let ring = cluster::Ring::new(
            names.map(|name| cluster::Node { name: name.into(), address: String::new() }).into(),
        );
        let [first, second] = origins;
        let (owner, _other) =
            if ring.candidates("show")[0].name == names[0] { (first, second) } else { (second, first) };
        Fleet { owner: Some(owner), _other, pop, edge, folder }
    }

    /// Waits until some segments are published, and the next one has begun.
    fn in_the_middle_of_a_segment(&self) {
        eventually("six segments", || {
            (self.pop.metric("ingest_acknowledged_segments_total") >= 6.0).then_some(())
        });
        eventually("parts of an open segment", || {
            let playlist = get(&self.edge.url("/live/show/96p.m3u8")).text();
            let open = playlist.rsplit(".m4s\n").next().unwrap_or_default();
            (open.matches("#EXT-X-PART:").count() >= 2).then_some(())
        });
    }
}

/// Plays the story: `lose` does something to the fleet in the middle of a segment.
fn nothing_is_lost(mut fleet: Fleet, lose: impl FnOnce(&mut Fleet)) {
    let clip = numbered();
    let source = packets(clip.path.to_str().unwrap());
    let broadcaster = Broadcaster::send(&clip, &fleet.pop.publish_url("rtmps", "show"), 0);
    live(&fleet.edge, "show");
    let viewer = Viewer::watch(fleet.folder.path(), &fleet.edge.url("/live/show/index.m3u8"));
    fleet.in_the_middle_of_a_segment();
    lose(&mut fleet);
    let (sent, said) = broadcaster.wait();
    assert!(sent, "the broadcaster's connection lives on: {said}");

    let (pictures, sounds, said) = viewer.end().unwrap();
    let expected: Vec<u32> = (0..SECONDS * RATE).collect();
    let odd: Vec<_> = pictures.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(pictures == expected, "{} pictures, not in turn: {odd:?}; ffmpeg: {said}", pictures.len());
    let audio = &source.iter().find(|(kind, _)| kind == "audio").unwrap().1;
    let skipped = audio.iter().position(|packet| packet.hash.ends_with(&sounds[0])).unwrap();
    assert!(skipped <= 2, "{skipped} audio frames lie before the first picture");
    let sent: Vec<_> = audio[skipped..].iter().map(|packet| packet.hash.trim_start_matches("MD5:")).collect();
    let differs = sent.iter().zip(&sounds).position(|(sent, got)| sent != got);
    assert!(sent == sounds, "{} audio frames of {}, differ at {differs:?}", sounds.len(), sent.len());

    assert_eq!(fleet.pop.metric("ingest_replays_total"), 1.0);
    assert_eq!(fleet.pop.metric("ingest_dropped_gops_total"), 0.0);
    assert_eq!(fleet.pop.log().matches("broadcast begins").count(), 1);
    assert_eq!(fleet.pop.metric("ingest_ended_sessions_total{reason=\"closed\"}"), 1.0);
}

#[test]
fn every_frame_once_when_an_origin_is_killed() {
    let _turn = real_time(Share::Half);
    nothing_is_lost(Fleet::start("killed", |addr| addr), |fleet| fleet.owner.take().unwrap().kill());
}

#[test]
fn every_frame_once_when_an_origin_freezes() {
    let _turn = real_time(Share::Half);
    nothing_is_lost(Fleet::start("frozen", |addr| addr), |fleet| fleet.owner.as_ref().unwrap().freeze());
}

#[test]
fn every_frame_once_when_an_origin_drains() {
    let _turn = real_time(Share::Half);
    nothing_is_lost(Fleet::start("drained", |addr| addr), |fleet| {
        let (status, _) = fleet.owner.take().unwrap().stop();
        assert!(status.success());
    });
}

/// Connections through here can be cut.
struct Cutter {
    addr: SocketAddr,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cutter {
    fn new(to: SocketAddr) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, ends) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let kept = ends.clone();
        // Ends with the test process; what it carries ends with its peers.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else { continue };
                let mut both = kept.lock().unwrap();
                both.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Cutter { addr, ends }
    }

    fn cut(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn every_frame_once_when_the_connection_to_an_origin_breaks() {
    let _turn = real_time(Share::Half);
    let cutters = RefCell::new(Vec::new());
    let fleet = Fleet::start("cut", |addr| {
        cutters.borrow_mut().push(Cutter::new(addr));
        cutters.borrow().last().unwrap().addr
    });
    nothing_is_lost(fleet, |fleet| {
        cutters.borrow().iter().for_each(Cutter::cut);
        fleet.owner.as_ref().unwrap().logged("resume=true");
    });
}
