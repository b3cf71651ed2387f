//! What was broadcast is played whole after its end, and while it is live from further back than memory reaches. Pictures
//! bear their numbers: each is seen once, and in turn.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::archive::broadcast;
use crate::browser::Player;
use crate::kit::*;
use crate::numbered;
use crate::reconnect::watch_sequences;

const RATE: u32 = 25;
const SECONDS: u32 = 8;
const PICTURES: u32 = RATE * SECONDS;
/// In a row, of the clip: they are sent behind the picture that is shown after them.
const B_PICTURES: usize = 2;

/// A node that is everything; two renditions of what [`clip`] makes.
fn node(folder: &Folder, origin: &str) -> Node {
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str(origin);
    let rungs = "rungs = [{ height = 96, bitrate_kbps = 300 }, { height = 48, bitrate_kbps = 150 }]\n";
    config.insert("transcode", rungs.into());
    Node::start(folder, "node", &toml(&config))
}

fn clip(folder: &Folder) -> Clip {
    let path = folder.path().join("clip.flv");
    numbered::make(&path, RATE, SECONDS);
    Clip { path }
}

/// Broadcasts the clip, waits until viewers are told that the broadcaster is away, and broadcasts again.
fn interrupted(node: &Node, clip: &Clip, loops: i32) -> Broadcaster {
    let (sent, said) = Broadcaster::send(clip, &node.publish_url("rtmps", "show"), 0).wait();
    assert!(sent, "{said}");
    eventually("gaps while the broadcaster is away", || {
        get(&node.url("/live/show/96p.m3u8")).text().contains("#EXT-X-GAP").then_some(())
    });
    Broadcaster::send(clip, &node.publish_url("rtmps", "show"), loops)
}

/// A viewer of one video stream of `input`, from the oldest listed segment on; killed when dropped.
struct Viewer(Child);

impl Viewer {
    fn watch(input: &str, stream: &str) -> Viewer {
        let filter = format!("scale={}:1:flags=area", numbered::BITS);
        let oldest: &[&str] = if input.contains(".m3u8") { &["-live_start_index", "0"] } else { &[] };
        let child = ffmpeg()
            .args(oldest)
            .args(["-i", input, "-map", stream, "-fps_mode", "passthrough", "-vf", &filter])
            .args(["-pix_fmt", "gray", "-f", "rawvideo", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Viewer(child.unwrap())
    }

    /// At the end: the numbers of all pictures that ffmpeg decoded, and what it complained of.
    fn end(mut self) -> (Vec<u32>, String) {
        let (mut pictures, mut said) = (Vec::new(), String::new());
        // It complains of less than a pipe holds.
        self.0.stdout.take().unwrap().read_to_end(&mut pictures).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        (numbered::numbers(&pictures), said)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pictures(input: &str, stream: &str) -> (Vec<u32>, String) {
    Viewer::watch(input, stream).end()
}

fn twice() -> Vec<u32> {
    (0..PICTURES).chain(0..PICTURES).collect()
}

/// A manifest, which caches may keep for a minute.
fn manifest(node: &Node, path: &str) -> String {
    let answer = get(&node.url(path));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert_eq!(answer.headers["cache-control"], "max-age=60", "{path}");
    answer.text()
}

/// The value of an attribute of an XML element.
fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split_once(&format!(" {name}=\""))?.1.split('"').next()
}

/// Puts the segments of every Period of a recording's MPD that has `rendition` behind their init segments, a file each.
fn fetched(node: &Node, base: &str, mpd: &str, rendition: &str, folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for period in mpd.split("<Period").skip(1) {
        let Some((_, of)) = period.split_once(&format!("<Representation id=\"{rendition}\"")) else {
            continue;
        };
        let of = of.split("</Representation>").next().unwrap();
        let name = |name: &str| attribute(of, name).unwrap().replace("$RepresentationID$", rendition);
        let mut bytes = get(&node.url(&format!("{base}/{}", name("initialization")))).body;
        let mut number: u64 = name("startNumber").parse().unwrap();
        for repeats in of
            .split("<S ")
            .skip(1)
            .map(|s| attribute(&format!(" {s}"), "r").map_or(1, |r| r.parse::<u64>().unwrap() + 1))
        {
            for _ in 0..repeats {
                let path = format!("{base}/{}", name("media").replace("$Number$", &number.to_string()));
                let segment = get(&node.url(&path));
                assert_eq!(segment.status, 200, "{path}");
                assert!(segment.headers["cache-control"].to_str().unwrap().contains("immutable"));
                bytes.extend(segment.body);
                number += 1;
            }
        }
        let file = folder.join(format!("{rendition}-{}.mp4", files.len()));
        std::fs::write(&file, bytes).unwrap();
        files.push(file.to_str().unwrap().to_owned());
    }
    files
}

/// Each Period has thumbnails of its whole time.
fn sheets_are_kept(node: &Node, base: &str, mpd: &str) {
    for period in mpd.split("<Period").skip(1) {
        let (_, images) = period.split_once("contentType=\"image\"").unwrap_or_else(|| panic!("{period}"));
        let number = |of: &str, name: &str| attribute(of, name).unwrap().parse::<u64>().unwrap();
        let (first, offset) = (number(images, "startNumber"), number(images, "presentationTimeOffset"));
        let sheets = images.split_once("<S ").unwrap().1;
        let sheets = format!(" {sheets}");
        let (begins, duration) = (number(&sheets, "t"), number(&sheets, "d"));
        let (one, _) = sheets.split_once("/>").unwrap();
        let repeats = attribute(one, "r").map_or(0, |repeats| repeats.parse::<u64>().unwrap());
        let end = offset + 90_000 * u64::from(SECONDS);
        assert!(begins <= offset && begins + (repeats + 1) * duration >= end, "{images}");
        for number in first..=first + repeats {
            let path = attribute(images, "media").unwrap().replace("$Number$", &number.to_string());
            let sheet = get(&node.url(&format!("{base}/{path}")));
            let is_jpeg =
                sheet.body.starts_with(&[0xFF, 0xD8]) && sheet.headers["content-type"] == "image/jpeg";
            assert!(sheet.status == 200 && is_jpeg, "{path}: {}", sheet.status);
            assert!(sheet.headers["cache-control"].to_str().unwrap().contains("immutable"));
        }
        assert_eq!(get(&node.url(&format!("{base}/1/thumbnails/{first}.jpg"))).status, 404);
    }
}

#[test]
fn a_recording_is_played_whole_without_the_pause() {
    let _turn = real_time(Share::Core);
    let folder = Folder::new("vod-whole");
    let clip = clip(&folder);
    let node = node(&folder, "reconnect_grace = \"10s\"\n");
    let (sent, said) = interrupted(&node, &clip, 0).wait();
    assert!(sent, "{said}");
    let open = broadcast(node.config(), "it is kept", |_| true);
    let base = format!("/vod/{}", open["broadcast"].as_str().unwrap());
    assert_eq!(get(&node.url(&format!("{base}/index.m3u8"))).status, 404, "it may go on");
    broadcast(node.config(), "its end", |one| !one["ended_unix_ms"].is_null());
    eventually("the recording", || {
        (get(&node.url(&format!("{base}/index.m3u8"))).status == 200).then_some(())
    });

    let multivariant = manifest(&node, &format!("{base}/index.m3u8"));
    assert_eq!(renditions(&multivariant), ["96p", "48p", "audio"], "{multivariant}");
    let mpd = manifest(&node, &format!("{base}/manifest.mpd"));
    let seconds = f64::from(2 * SECONDS);
    assert_eq!(
        attribute(&mpd, "mediaPresentationDuration"),
        Some(format!("PT{}S", 2 * SECONDS).as_str()),
        "{mpd}"
    );
    assert_eq!((mpd.matches("<Period").count(), mpd.contains("type=\"static\"")), (2, true), "{mpd}");
    for name in ["96p", "48p"] {
        let path = format!("{base}/{name}.m3u8");
        let playlist = manifest(&node, &path);
        assert!(playlist.ends_with("#EXT-X-ENDLIST\n") && !playlist.contains("EXT-X-GAP"), "{playlist}");
        assert_eq!(playlist.matches("#EXT-X-DISCONTINUITY\n").count(), 1, "{playlist}");
        let durations = playlist.lines().filter_map(|line| line.strip_prefix("#EXTINF:")?.strip_suffix(','));
        let duration: f64 = durations.map(|text| text.parse::<f64>().unwrap()).sum();
        assert!((duration - seconds).abs() < 0.001, "{duration} s: {playlist}");
        let (seen, said) = pictures(&node.url(&path), "0:v");
        assert!(seen == twice(), "{name} over HLS: {} pictures; ffmpeg: {said}", seen.len());
        let periods = fetched(&node, &base, &mpd, name, folder.path());
        let seen: Vec<_> = periods.iter().flat_map(|file| pictures(file, "0:v").0).collect();
        assert!(seen == twice(), "{name} over DASH: {} pictures in {periods:?}", seen.len());
    }
    sheets_are_kept(&node, &base, &mpd);
    // What players do first; it is fetched once, whoever asks.
    let (seen, said) = pictures(&node.url(&format!("{base}/index.m3u8")), "0:v:0");
    assert!(seen == twice(), "{} pictures; ffmpeg: {said}", seen.len());
    let again = get(&node.url(&format!("{base}/96p.m3u8")));
    let said: Vec<_> = again.headers.get_all("cache-status").iter().map(|v| v.to_str().unwrap()).collect();
    assert!(said.iter().any(|said| said.contains("-edge; hit")), "{said:?}");
    // FFmpeg's DASH reader plays the longest Period only: here one of two that are as long.
    let probed = packets(&node.url(&format!("{base}/manifest.mpd")));
    for (kind, packets) in probed.iter().filter(|(kind, _)| kind == "video") {
        assert_eq!(packets.len(), PICTURES as usize, "{kind}");
    }
    let probed = packets(&node.url(&format!("{base}/96p.m3u8")));
    assert_eq!(probed[0].1.len(), 2 * PICTURES as usize);

    let players = [("hls", "index.m3u8"), ("dash", "manifest.mpd")].map(|(player, file)| {
        (player, Player::open(&node.url(&format!("{base}/{file}")), player, &["--recording"]))
    });
    for (player, playing) in players {
        let report = playing.report();
        println!("{player}: {report}");
        let duration = report["duration"].as_f64().unwrap();
        assert!((duration - seconds).abs() < 0.05, "{player}: {report:#}");
        assert!((report["ended_at"].as_f64().unwrap() - seconds).abs() < 0.1, "{player}: {report:#}");
        assert_eq!(report["seeks"], 3, "{player}: {report:#}");
        for errors in ["errors", "page_errors"] {
            assert_eq!(report[errors].as_array().unwrap().len(), 0, "{player}: {errors}: {report:#}");
        }
    }
}

/// What a playlist says of each segment: its discontinuity sequence number, its date, its address, whether it is a gap.
type Listed = BTreeMap<u64, (u64, String, String, bool)>;

fn listed(playlist: &str) -> Listed {
    let number = |name| tag(playlist, name).unwrap().parse::<u64>().unwrap();
    let (mut next, mut breaks) = (number("#EXT-X-MEDIA-SEQUENCE"), number("#EXT-X-DISCONTINUITY-SEQUENCE"));
    let (mut date, mut gap) = (String::new(), false);
    let mut listed = Listed::new();
    for line in playlist.lines() {
        if line == "#EXT-X-DISCONTINUITY" {
            breaks += 1;
        } else if line == "#EXT-X-GAP" {
            gap = true;
        } else if let Some(text) = line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:") {
            date = text.into();
        } else if !line.starts_with('#') {
            listed.insert(next, (breaks, std::mem::take(&mut date), line.into(), std::mem::take(&mut gap)));
            next += 1;
        }
    }
    listed
}

/// Both say the same of what both list.
fn agree(one: &Listed, other: &Listed) {
    for (number, said) in one {
        assert!(
            other.get(number).is_none_or(|also| also == said),
            "{number}: {said:?} {:?}",
            other.get(number)
        );
    }
}

#[test]
fn a_live_stream_is_played_from_further_back_than_memory() {
    let _turn = real_time(Share::Half);
    let folder = Folder::new("vod-dvr");
    let clip = clip(&folder);
    let node = node(&folder, "reconnect_grace = \"10s\"\nwindow = \"6s\"\n");
    let path = |query: &str| format!("/live/show/96p.m3u8{query}");
    let playlist = |query: &str| get(&node.url(&path(query))).text();
    let done = AtomicBool::new(false);
    let (broadcaster, viewer) = std::thread::scope(|scope| {
        let watchers = ["", "?start=-15", "?start=-600", "?start=1"].map(|query| {
            scope.spawn({
                let (node, done) = (&node, &done);
                move || watch_sequences(node, &path(query), done)
            })
        });
        let broadcaster = interrupted(&node, &clip, -1);
        let first = *listed(&playlist("?start=-600")).keys().next().unwrap();
        eventually("that much is behind the window", || {
            (*listed(&playlist("")).keys().next()? >= first + 18).then_some(())
        });
        let viewer = Viewer::watch(&node.url(&path("?start=-600")), "0:v");

        let plain = listed(&playlist(""));
        let (near, far) = (listed(&playlist("?start=-15")), listed(&playlist("?start=-600")));
        agree(&plain, &near);
        agree(&near, &far);
        let begins = |listed: &Listed| *listed.keys().next().unwrap();
        assert_eq!(begins(&far), first, "all of it");
        assert!(begins(&near) + 7 <= begins(&plain), "{near:?} {plain:?}");
        assert!(begins(&near) > begins(&far) && begins(&near) + 25 > *near.keys().last().unwrap());
        let breaks: Vec<_> = far.values().map(|segment| segment.0).collect();
        assert_eq!((breaks[0], breaks[breaks.len() - 1]), (0, 1), "{breaks:?}");
        for (number, (_, _, uri, gap)) in &far {
            let answer = get(&node.url(&format!("/live/show/{uri}")));
            assert_eq!(answer.status, if *gap { 404 } else { 200 }, "{number}: {uri}");
        }
        let gaps = far.values().filter(|segment| segment.3).count();
        assert!((1..12).contains(&gaps), "only where the broadcaster was away: {far:?}");

        let newest = *listed(&playlist("?start=-15")).keys().last().unwrap();
        let next = playlist(&format!("?start=-15&_HLS_msn={}", newest + 2));
        assert!(listed(&next).contains_key(&(newest + 2)), "{next}");
        assert!(begins(&listed(&next)) >= begins(&near) && listed(&next).len() >= 14, "{next}");
        assert_eq!(get(&node.url(&path("?start=soon"))).status, 400);
        let multivariant = get(&node.url("/live/show/index.m3u8?start=-15")).text();
        for name in ["\n96p.m3u8?start=-15\n", "\n48p.m3u8?start=-15\n", "URI=\"audio.m3u8?start=-15\""] {
            assert!(multivariant.contains(name), "{multivariant}");
        }
        check_mpd(&node, &far);
        done.store(true, Ordering::Relaxed);
        for watcher in watchers {
            watcher.join().unwrap();
        }
        (broadcaster, viewer)
    });
    let before = get(&node.url("/live/show/96p.m3u8")).text();
    let newest = *listed(&before).keys().last().unwrap();
    eventually("some seconds more", || (*listed(&playlist("")).keys().last()? > newest + 3).then_some(()));
    // A journal that nobody can have written: the list of those who went back is not cut short and grown again.
    let (kept, name) =
        (node.config().with_file_name("state/archive"), format!("0-{:016x}-{:010}.json", 0, 1));
    let broadcast =
        broadcast(node.config(), "it is kept", |_| true)["broadcast"].as_str().unwrap().to_owned();
    let journal = kept.join(broadcast).join("journal").join(name);
    std::fs::File::create(&journal).unwrap().set_len(600 << 20).unwrap();
    let ask = |n: u32| get(&node.url(&path(&format!("?start=-{}", 100 + n))));
    eventually("that it cannot be read is said", || {
        let answer = ask(1);
        (answer.status == 503 && answer.headers.contains_key("retry-after")).then_some(())
    });
    assert_eq!(get(&node.url(&path("?asked=again"))).status, 200, "what is in memory");
    std::fs::remove_file(&journal).unwrap();
    eventually("and it is back", || (ask(9).status == 200).then_some(()));
    broadcaster.kill();
    let (seen, said) = viewer.end();
    assert!(seen.len() > 2 * PICTURES as usize, "{} pictures; ffmpeg: {said}", seen.len());
    // Who is killed may have sent a picture before those that are shown before it.
    let seen = &seen[..seen.len() - B_PICTURES - 1];
    let odd = seen.iter().enumerate().find(|(index, number)| **number != *index as u32 % PICTURES);
    assert_eq!(odd, None, "every picture once, in turn; ffmpeg: {said}");
}

fn check_mpd(node: &Node, far: &Listed) {
    let mpd = |query: &str| get(&node.url(&format!("/live/show/manifest.mpd{query}"))).text();
    let depth = |mpd: &str| {
        let text = attribute(mpd, "timeShiftBufferDepth").unwrap().strip_prefix("PT").unwrap().to_owned();
        humantime::parse_duration(&text.to_lowercase()).unwrap().as_secs_f64()
    };
    let (plain, near, all) = (mpd(""), mpd("?start=-15"), mpd("?start=-600"));
    assert!(depth(&plain) <= 7.0 && (13.0..17.0).contains(&depth(&near)), "{plain} {near}");
    assert!(depth(&all) > 20.0, "{all}");
    assert_eq!((plain.matches("<Period").count(), all.matches("<Period").count()), (1, 2), "{plain} {all}");
    // Every segment that a period counts is there under its name.
    for period in all.split("<Period").skip(1) {
        let first: u64 = attribute(period, "startNumber").unwrap().parse().unwrap();
        let epoch = attribute(period, "media").unwrap().split('/').next().unwrap();
        let last = match attribute(period, "duration") {
            Some(text) if period.split('>').next().unwrap().contains(" duration=") => {
                let text = text.strip_prefix("PT").unwrap().to_lowercase();
                first + humantime::parse_duration(&text).unwrap().as_secs_f64().ceil() as u64 - 1
            }
            _ => first,
        };
        for number in first..=last {
            let (_, _, uri, gap) = &far[&number];
            assert!(!gap && *uri == format!("{epoch}/96p/{number}.m4s"), "{number}: {uri} {all}");
            for rendition in ["96p", "48p", "audio"] {
                let path = format!("/live/show/{epoch}/{rendition}/{number}.m4s");
                assert_eq!(get(&node.url(&path)).status, 200, "{path}");
            }
        }
    }
}
