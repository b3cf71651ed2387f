//! Nothing is lost: a known file goes in over RTMPS in real time, and every frame of it comes out of every rendition
//! exactly once, over HLS and over DASH.

use crate::kit::*;

const SECONDS: u32 = 32;

#[test]
fn every_frame_reaches_every_rendition() {
    let _turn = real_time(Share::Machine);
    // B-frames and a GOP that does not divide segments evenly: what encoders send by default.
    let extra = &["-bf", "2", "-g", "75"];
    let clip = Clip::make("720p30", Recipe { size: "1280x720", rate: "30", seconds: SECONDS, extra });
    let source = packets(clip.path.to_str().unwrap());
    let folder = Folder::new("frames");
    let mut config = all_in_one(&folder.path().join("state"));
    // The broadcast ends soon after its broadcaster, so that readers come to an end; all of it stays listed.
    config.get_mut("origin").unwrap().push_str("window = \"60s\"\nreconnect_grace = \"1s\"\n");
    let node = Node::start(&folder, "node", &toml(&config));

    let broadcaster = Broadcaster::send(&clip, &node.publish_url("rtmps", "show"), 0);
    live(&node, "show");
    let multivariant = get(&node.url("/live/show/index.m3u8")).text();
    let names = renditions(&multivariant);
    assert_eq!(names, ["720p", "480p", "360p", "240p", "audio"], "{multivariant}");
    // Read while it is live, as viewers do.
    let readers: Vec<_> =
        names.iter().map(|name| Probe::begin(&node.url(&format!("/live/show/{name}.m3u8")))).collect();
    let (sent, said) = broadcaster.wait();
    assert!(sent, "{said}");
    let hls: Vec<_> = readers.into_iter().flat_map(Probe::end).collect();

    eventually("a static MPD", || {
        get(&node.url("/live/show/manifest.mpd")).text().contains("static").then_some(())
    });
    let dash = packets(&node.url("/live/show/manifest.mpd"));
    for (what, streams) in [("HLS", &hls), ("DASH", &dash)] {
        assert_eq!(streams.len(), 5, "{what}");
        check(what, &source, streams);
    }
    check_announcements(&node, &multivariant);
}

fn of<'a>(streams: &'a [(String, Vec<Packet>)], kind: &'a str) -> impl Iterator<Item = &'a Vec<Packet>> {
    streams.iter().filter(move |(of, _)| of == kind).map(|(_, packets)| packets)
}

fn check(what: &str, source: &[(String, Vec<Packet>)], streams: &[(String, Vec<Packet>)]) {
    let source_video = of(source, "video").next().unwrap();
    let source_audio = of(source, "audio").next().unwrap();
    assert!(source_video.len() as u32 >= 30 * 30);
    let mut keys = Vec::new();
    for video in of(streams, "video") {
        assert_eq!(video.len(), source_video.len(), "{what}: every video frame, once");
        for (sent, got) in source_video.iter().zip(video) {
            let moved = (got.pts - video[0].pts) - (sent.pts - source_video[0].pts);
            assert!(moved.abs() < 0.0015, "{what}: a frame moved by {moved} s");
        }
        keys.push(video.iter().filter(|packet| packet.key).map(|packet| packet.pts).collect::<Vec<_>>());
    }
    let start = keys[0][0];
    let expected: Vec<f64> = (0..SECONDS).map(|second| start + f64::from(second)).collect();
    for times in &keys {
        assert_eq!(times.len(), expected.len(), "{what}: one keyframe a segment: {times:?}");
        assert!(times.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{what}: {times:?}");
    }

    // Audio is copied: each frame can be recognised, and its distance to the video be compared with the source's.
    let audio = of(streams, "audio").next().unwrap();
    let video = of(streams, "video").next().unwrap();
    let skipped = source_audio.iter().position(|packet| packet.hash == audio[0].hash).unwrap();
    assert!(skipped <= 2, "{what}: {skipped} audio frames lie before the first video frame");
    let hashes = |packets: &[Packet]| packets.iter().map(|packet| packet.hash.clone()).collect::<Vec<_>>();
    assert!(hashes(&source_audio[skipped..]) == hashes(audio), "{what}: every audio frame, once");
    assert!((audio[0].pts - video[0].pts).abs() < 0.02, "{what}: audio and video start together");
    for (sent, got) in source_audio[skipped..].iter().zip(audio) {
        let drift = (got.pts - video[0].pts) - (sent.pts - source_video[0].pts);
        assert!(drift.abs() < 0.02, "{what}: audio is {drift} s off");
    }
}

/// What the multivariant playlist says is what the renditions are.
fn check_announcements(node: &Node, early: &str) {
    let late = get(&node.url("/live/show/index.m3u8")).text();
    assert_eq!(early.lines().count(), late.lines().count());
    let variants: Vec<_> = late.lines().filter(|line| line.starts_with("#EXT-X-STREAM-INF:")).collect();
    for (variant, (size, profile)) in variants.iter().zip([
        ("1280x720", "avc1.6400"),
        ("854x480", "avc1.6400"),
        ("640x360", "avc1.6400"),
        ("426x240", "avc1.6400"),
    ]) {
        assert!(variant.contains(&format!("RESOLUTION={size}")), "{variant}");
        assert!(
            variant.contains(&format!("CODECS=\"{profile}")) && variant.contains(",mp4a.40.2\""),
            "{variant}"
        );
        assert!(variant.contains("FRAME-RATE=30.000"), "{variant}");
    }
    // Measured: the peak over segments, audio included.
    let playlist = get(&node.url("/live/show/360p.m3u8")).text();
    let epoch = playlist.split("URI=\"").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let first: u64 = tag(&playlist, "#EXT-X-MEDIA-SEQUENCE").unwrap().parse().unwrap();
    let bytes = |name: &str, number: u64| {
        let answer = get(&node.url(&format!("/live/show/{epoch}/{name}/{number}.m4s")));
        assert_eq!(answer.status, 200);
        assert!(answer.headers["cache-control"].to_str().unwrap().contains("immutable"));
        assert_eq!(answer.headers["content-type"], if name == "audio" { "audio/mp4" } else { "video/mp4" });
        answer.body.len() as u64
    };
    // A second has 46 or 47 audio frames: rates are per actual duration, sizes here per second.
    let peak = |name: &str| (0..u64::from(SECONDS)).map(|i| bytes(name, first + i) * 8).max().unwrap();
    let measured = peak("360p") + peak("audio");
    let bandwidth: u64 =
        variants[2].split("BANDWIDTH=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    let ratio = bandwidth as f64 / measured as f64;
    assert!((0.97..1.03).contains(&ratio), "announced {bandwidth}, measured {measured}");
}
