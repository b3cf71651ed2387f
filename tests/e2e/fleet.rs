//! A POP, two origins and a shield as four processes: streams spread over the origins by the ring, and each one's media
//! is found again at its own.

use std::net::SocketAddr;

use crate::kit::*;

const STREAMS: usize = 20;

/// A node of the fleet: all share certificates, keys and the member list.
fn config(folder: &Folder, name: &str, role: &str, origins: &str, shields: &str, listen: &str) -> String {
    let state = folder.path().join("state");
    format!(
        "[node]\nname = \"{name}\"\nroles = {role}\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [cluster]\norigins = [{origins}]\nshields = [{shields}]\n{listen}\n",
        state.display()
    )
}

fn member(name: &str, addr: SocketAddr) -> String {
    format!("{{ name = \"{name}\", address = \"{addr}\" }}")
}

#[test]
fn streams_spread_over_two_origins_and_are_found_again() {
    let _turn = real_time(Share::Machine);
    let extra = &["-preset", "ultrafast", "-tune", "zerolatency", "-g", "20", "-b:v", "50k"];
    let folder = Folder::new("fleet");
    let nowhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let origins = ["origin-1", "origin-2"].map(|name| {
        let listen = "[origin]\nlisten = \"127.0.0.1:0\"";
        Node::start(&folder, name, &config(&folder, name, "[\"origin\"]", &member(name, nowhere), "", listen))
    });
    let members =
        [member("origin-1", origins[0].addr("origin")), member("origin-2", origins[1].addr("origin"))]
            .join(", ");
    let listen = "[shield]\nhttps = \"127.0.0.1:0\"";
    let shield =
        Node::start(&folder, "shield-1", &config(&folder, "shield-1", "[\"shield\"]", &members, "", listen));
    let listen = "[ingest]\nrtmps = \"127.0.0.1:0\"\ndrain = \"0s\"\n[edge]\nhttp = \"127.0.0.1:0\"";
    let shields = member("shield-1", shield.addr("shield"));
    let roles = "[\"ingest\", \"edge\"]";
    let pop = Node::start(&folder, "pop-1", &config(&folder, "pop-1", roles, &members, &shields, listen));

    let names: Vec<String> = (0..STREAMS).map(|index| format!("stream-{index}")).collect();
    // Each stream is a picture of its own height, so that none can pass for another's.
    let clips: Vec<_> = (0..STREAMS)
        .map(|index| {
            let size: &'static str = format!("160x{}", lines(index)).leak();
            Clip::make(&format!("tiny-{index}"), Recipe { size, rate: "10", seconds: 5, extra })
        })
        .collect();
    let _broadcasters: Vec<_> = names
        .iter()
        .zip(&clips)
        .map(|(name, clip)| Broadcaster::send(clip, &pop.publish_url("rtmps", name), -1))
        .collect();
    let ring = cluster::Ring::new(
        ["origin-1", "origin-2"]
            .map(|name| cluster::Node { name: name.into(), address: String::new() })
            .into(),
    );
    let mut share = [0, 0];
    for (index, name) in names.iter().enumerate() {
        live(&pop, name);
        let owner = usize::from(ring.candidates(name)[0].name == "origin-2");
        share[owner] += 1;
        let began = format!("relay{{stream={name} ");
        origins[owner].logged(&began);
        assert!(!origins[1 - owner].log().contains(&began), "{name} is at its own origin only");

        // Through both tiers: the picture is the one that was sent.
        let rendition = format!("{}p", lines(index));
        let multivariant = get(&pop.url(&format!("/live/{name}/index.m3u8"))).text();
        assert_eq!(renditions(&multivariant), [rendition.as_str(), "audio"]);
        let (epoch, number) = eventually("a segment", || newest(&pop, name, index));
        let answer = get(&pop.url(&format!("/live/{name}/{epoch}/{rendition}/{number}.m4s")));
        assert_eq!(answer.status, 200);
        assert_eq!(&answer.body[4..8], b"styp");
    }
    println!("{} streams at origin-1, {} at origin-2", share[0], share[1]);
    assert!(share[0] >= 5 && share[1] >= 5, "{share:?}");
    for (origin, streams) in origins.iter().zip(share) {
        assert_eq!(origin.metric("origin_streams"), f64::from(streams));
    }
    assert_eq!(get(&pop.url("/live/unknown/index.m3u8")).status, 404);

    // One origin dies without a word: its POP replays what was not acknowledged to the other, viewers find it there.
    let [dead, survivor] = origins;
    let moved = names.iter().enumerate().filter(|(_, name)| ring.candidates(name)[0].name == "origin-1");
    let moved: Vec<_> =
        moved.map(|(index, name)| (index, name, newest(&pop, name, index).expect("was live"))).collect();
    dead.kill();
    for (index, name, (epoch, number)) in moved {
        // What was published but not acknowledged is published again, under the same numbers and a higher epoch.
        let mut last = 0;
        eventually(&format!("{name} at the other origin"), || {
            let (epoch_now, number_now) = newest(&pop, name, index)?;
            assert!(
                epoch_now >= epoch && number_now + 1 >= number.max(last),
                "{name}: {number}, then {number_now}"
            );
            last = number_now;
            (epoch_now > epoch && number_now > number).then_some(())
        });
    }
    assert_eq!(survivor.metric("origin_sessions"), STREAMS as f64);
}

/// Height of a stream's picture.
fn lines(index: usize) -> usize {
    64 + 2 * index
}

/// Epoch and number of the newest listed segment.
fn newest(pop: &Node, stream: &str, index: usize) -> Option<(u64, u64)> {
    let playlist = get(&pop.url(&format!("/live/{stream}/{}p.m3u8", lines(index)))).text();
    let segment = playlist.lines().rev().find(|line| line.ends_with(".m4s") && !line.starts_with('#'))?;
    let mut parts = segment.trim_end_matches(".m4s").split('/');
    Some((parts.next()?.parse().ok()?, parts.next_back()?.parse().ok()?))
}
