//! Every version of every playlist of a broadcast with gaps, and all of its media, are kept and held against the rules: our
//! own, and what parsers by others make of them.
//!
//! `ROOFTOP_LINT_SECONDS=600` makes it ten minutes (`make test-players`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boxes::{self, Chunk, Track};
use crate::kit::*;
use crate::lint::{self, Lint};
use crate::playlists::{Playlist, attributes, required};

/// How long a broadcast lasts, pauses included, unless it is said otherwise.
const SECONDS: u64 = 24;

/// What came of following one playlist to its end.
struct Followed {
    name: String,
    lint: Lint,
    /// All versions, oldest first.
    versions: Vec<String>,
    longest_wait: Duration,
    refused: usize,
}

#[test]
fn every_version_of_every_playlist_keeps_to_the_rules() {
    let _turn = real_time(Share::Half);
    let seconds = std::env::var("ROOFTOP_LINT_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let folder = Folder::new("lints");
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str("reconnect_grace = \"8s\"\n");
    let node = Arc::new(Node::start(&folder, "node", &toml(&config)));
    let (large, small) = (clip("lint-360p", "640x360"), clip("lint-240p", "426x240"));
    let url = node.publish_url("rtmps", "show");
    let first = Broadcaster::send(&large, &url, -1);
    live(&node, "show");
    let names = renditions(&get(&node.url("/live/show/index.m3u8")).text());
    assert!(names.len() >= 3, "two rungs and audio: {names:?}");

    let lists = names.iter().cloned().chain([format!("{}/iframes", names[0])]);
    let lists: Vec<_> = lists.collect();
    let (followed, media, multivariants) = std::thread::scope(|scope| {
        let followers = scope.spawn(|| runtime().block_on(follow_all(&node, &lists)));
        broadcast(&url, first, &large, &small, seconds);
        followers.join().unwrap()
    });

    let mut problems = Vec::new();
    let mut lints = BTreeMap::new();
    for followed in followed {
        let Followed { name, lint, versions, longest_wait, refused } = followed;
        println!(
            "{name}: {} versions, {} segments, the longest wait for one {:.2} s, {refused} times refused meanwhile",
            lint.versions,
            lint.listed.len(),
            longest_wait.as_secs_f64()
        );
        assert!(versions.len() > seconds as usize / 2, "{name}: {} versions", versions.len());
        assert!(versions.last().unwrap().contains("#EXT-X-ENDLIST"));
        problems.extend(lint.problems.iter().map(|problem| format!("{name}: {problem}")));
        keep(folder.path(), &name, &versions);
        lints.insert(name, lint);
    }
    keep(folder.path(), "index", &multivariants);
    assert!(
        lints.values().all(|lint| lint.listed.values().any(|(.., segment)| segment.gap)),
        "no gap to look at"
    );
    let iframes = lints.remove(lists.last().unwrap()).unwrap();
    problems.extend(lint::across(&lints));
    let chunks = check_media(&lints, &media, folder.path(), &mut problems);
    check_iframes(&iframes, &chunks, &mut problems);
    check_multivariants(&multivariants, &lints, &media, &mut problems);
    check_by_others(&folder.path().join("playlists"), &mut problems);
    check_iframe_reader(&node, &names[0]);
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn clip(name: &str, size: &'static str) -> Clip {
    // Longer than it is ever sent: where ffmpeg begins a clip anew there is a hole of some milliseconds.
    Clip::make(name, Recipe { size, rate: "30", seconds: 20, extra: &["-tune", "zerolatency"] })
}

/// Sends for some seconds, is away for a few, comes back with another resolution, and so on; ends with an absence.
fn broadcast(url: &str, first: Broadcaster, large: &Clip, small: &Clip, seconds: u64) {
    // What is waited for is time itself: media and pauses of so many seconds.
    let wait = |seconds| std::thread::sleep(Duration::from_secs(seconds));
    let (mut sent, mut broadcaster) = (10, first);
    wait(10);
    for (away, clip) in [(4, small), (3, large), (6, small)].iter().cycle() {
        broadcaster.kill();
        wait(*away);
        broadcaster = Broadcaster::send(clip, url, -1);
        wait(10);
        sent += away + 10;
        if sent >= seconds {
            break;
        }
    }
    broadcaster.kill();
}

/// Follows playlists to their end, and fetches all media that they name.
async fn follow_all(
    node: &Arc<Node>,
    names: &[String],
) -> (Vec<Followed>, BTreeMap<String, Vec<u8>>, Vec<String>) {
    let mut tasks = JoinSet::new();
    for name in names {
        tasks.spawn(follow(node.clone(), name.clone()));
    }
    let over = CancellationToken::new();
    let multivariants = tokio::spawn(multivariants(node.clone(), over.clone()));
    let (mut followed, mut media) = (Vec::new(), BTreeMap::new());
    for (one, its_media) in tasks.join_all().await {
        followed.push(one);
        media.extend(its_media);
    }
    over.cancel();
    (followed, media, multivariants.await.unwrap())
}

/// Each version of the multivariant playlist, up to the one that is there when all is `over`.
async fn multivariants(node: Arc<Node>, over: CancellationToken) -> Vec<String> {
    let (client, url) = (client(), node.url("/live/show/index.m3u8"));
    let mut versions = Vec::new();
    loop {
        let last = over.is_cancelled();
        let answer = get_with(&client, &url).await;
        assert_eq!(answer.status, 200, "the multivariant playlist");
        if versions.last() != Some(&answer.text()) {
            versions.push(answer.text());
        }
        if last {
            return versions;
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), over.cancelled()).await;
    }
}

/// As a low-latency player that never misses a version, and has each delta update besides.
async fn follow(node: Arc<Node>, name: String) -> (Followed, BTreeMap<String, Vec<u8>>) {
    let client = client();
    let url = node.url(&format!("/live/show/{name}.m3u8"));
    let mut followed = Followed {
        name,
        lint: Lint::default(),
        versions: Vec::new(),
        longest_wait: Duration::ZERO,
        refused: 0,
    };
    let mut media = BTreeMap::new();
    let (mut query, mut newest, mut since) = (String::new(), 0, std::time::Instant::now());
    loop {
        let answer = get_with(&client, &format!("{url}{query}")).await;
        if answer.status != 200 {
            assert_eq!(answer.status, 503, "{url}{query}: {}", answer.text());
            followed.refused += 1;
            query.clear();
            continue;
        }
        let text = answer.text();
        if followed.versions.last() == Some(&text) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        if let Some(before) = followed.versions.last() {
            let skip =
                if query.is_empty() { "?_HLS_skip=v2".to_owned() } else { format!("{query}&_HLS_skip=v2") };
            let delta = get_with(&client, &format!("{url}{skip}")).await;
            if delta.status == 200 {
                followed.lint.delta(before, &delta.text(), &text);
            }
        }
        followed.lint.look(&text);
        let playlist = Playlist::parse(&text).unwrap_or_else(|problem| panic!("{url}: {problem}\n{text}"));
        for (number, _, map, segment) in playlist.numbered() {
            if segment.gap || segment.uri.is_empty() || playlist.iframes_only {
                continue;
            }
            if number > newest {
                (newest, followed.longest_wait) = (number, followed.longest_wait.max(since.elapsed()));
                since = std::time::Instant::now();
            }
            for uri in map.into_iter().chain([segment.uri.as_str()]) {
                if !media.contains_key(uri) {
                    let answer = get_with(&client, &node.url(&format!("/live/show/{uri}"))).await;
                    assert_eq!(answer.status, 200, "{uri}");
                    media.insert(uri.to_owned(), answer.body);
                }
            }
        }
        let ended = playlist.ended;
        let next = playlist.media_sequence + playlist.segments.len() as u64;
        let parts = playlist.open.as_ref().map_or(0, |open| open.parts.len());
        query = if playlist.iframes_only {
            format!("?_HLS_msn={next}")
        } else {
            format!("?_HLS_msn={next}&_HLS_part={parts}")
        };
        followed.versions.push(text);
        if ended {
            return (followed, media);
        }
    }
}

/// For parsers, and for whoever looks into a failure.
fn keep(folder: &Path, name: &str, versions: &[String]) {
    let folder = folder.join("playlists");
    std::fs::create_dir_all(&folder).unwrap();
    for (index, text) in versions.iter().enumerate() {
        std::fs::write(folder.join(format!("{}-{index:06}.m3u8", name.replace('/', "-"))), text).unwrap();
    }
}

/// Boxes of all media, durations as listed, decoding times that follow one another; and ffprobe reads each segment.
fn check_media(
    lints: &BTreeMap<String, Lint>,
    media: &BTreeMap<String, Vec<u8>>,
    folder: &Path,
    problems: &mut Vec<String>,
) -> BTreeMap<String, Vec<Chunk>> {
    let mut all = BTreeMap::new();
    for (name, lint) in lints {
        let mut tracks = BTreeMap::<&str, Track>::new();
        let mut before: Option<(String, u64)> = None;
        for (number, (_, map, segment)) in lint.listed.iter().filter(|(_, (.., segment))| !segment.gap) {
            let map = map.as_deref().unwrap();
            let mut check = || -> Result<(), String> {
                if !tracks.contains_key(map) {
                    tracks.insert(map, boxes::init(&media[map]).map_err(|error| format!("{map}: {error}"))?);
                }
                let track = &tracks[map];
                let chunks = boxes::segment(&media[&segment.uri], track)?;
                let duration: u64 = chunks.iter().map(|chunk| chunk.duration).sum();
                let seconds = duration as f64 / f64::from(track.timescale);
                if (seconds - segment.seconds).abs() > 0.000_02 {
                    return Err(format!("{seconds} s of media are listed as {}", segment.seconds));
                }
                let begins = chunks[0].decode_time;
                if let Some((run, due)) = before.take().filter(|(run, _)| run == map)
                    && due != begins
                {
                    return Err(format!("begins at {begins} in {run}, {due} is due"));
                }
                before = Some((map.to_owned(), begins + duration));
                all.insert(segment.uri.clone(), chunks);
                Ok(())
            };
            if let Err(error) = check() {
                problems.push(format!("{name}, segment {number}: {error}"));
            }
            let file = folder.join("segment.mp4");
            std::fs::write(&file, [media[map].as_slice(), &media[&segment.uri]].concat()).unwrap();
            if let Err(error) = probe(&file) {
                problems.push(format!("{name}, segment {number}: ffprobe: {error}"));
            }
        }
    }
    all
}

/// What ffprobe says against a file.
fn probe(file: &Path) -> Result<(), String> {
    let output = Command::new("ffprobe")
        .args(["-v", "warning", "-show_entries", "stream=codec_name", "-of", "csv=p=0"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() && !output.stdout.is_empty() { Ok(()) } else { Err(said) }
}

/// Ranges of I-frame playlists are the first chunks of their segments, with one picture each.
fn check_iframes(lint: &Lint, chunks: &BTreeMap<String, Vec<Chunk>>, problems: &mut Vec<String>) {
    let mut looked_at = 0;
    for (number, (_, _, segment)) in lint.listed.iter().filter(|(_, (.., segment))| !segment.gap) {
        let lead = segment.uri.strip_prefix("../").and_then(|uri| chunks.get(uri)).map(|chunks| &chunks[0]);
        let Some(lead) = lead else {
            problems.push(format!("keyframe {number}: {} was not listed", segment.uri));
            continue;
        };
        looked_at += 1;
        if (lead.samples, lead.sync, segment.range) != (1, true, Some((lead.bytes.1 as u64, 0))) {
            problems.push(format!("keyframe {number}: {lead:?} for {:?}", segment.range));
        }
    }
    assert!(looked_at > 5, "only {looked_at} keyframes");
}

/// CODECS and RESOLUTION are exact, BANDWIDTH is not exceeded, and every version names what is there.
fn check_multivariants(
    versions: &[String],
    lints: &BTreeMap<String, Lint>,
    media: &BTreeMap<String, Vec<u8>>,
    problems: &mut Vec<String>,
) {
    let last = versions.last().unwrap();
    let peak = |name: &str| {
        let listed =
            lints[name].listed.values().filter(|(.., segment)| !segment.gap && segment.seconds >= 0.5);
        let bps = listed.map(|(.., segment)| media[&segment.uri].len() as f64 * 8.0 / segment.seconds);
        bps.fold(0.0, f64::max)
    };
    let newest_track = |name: &str| {
        let newest = lints[name].listed.values().rev().find(|(.., segment)| !segment.gap).unwrap();
        boxes::init(&media[newest.1.as_deref().unwrap()]).unwrap()
    };
    let audio = newest_track("audio");
    let mut lines = last.lines();
    while let Some(line) = lines.next() {
        let Some(list) = line.strip_prefix("#EXT-X-STREAM-INF:") else { continue };
        let name = lines.next().unwrap().strip_suffix(".m3u8").unwrap();
        let said = attributes(list).unwrap();
        let track = newest_track(name);
        let (width, height) = track.size.unwrap();
        let codecs = format!("{},{}", track.codec, audio.codec);
        if said["CODECS"] != codecs || said["RESOLUTION"] != format!("{width}x{height}") {
            problems.push(format!("{name}: {list}, but it is {codecs} of {width}x{height}"));
        }
        let bandwidth: f64 = required(&said, "BANDWIDTH").unwrap().parse().unwrap();
        if bandwidth + 2.0 < peak(name) + peak("audio") {
            problems
                .push(format!("{name}: BANDWIDTH {bandwidth}, but {} was sent", peak(name) + peak("audio")));
        }
    }
}

/// Parsers by others read every version, and understand the same.
fn check_by_others(folder: &Path, problems: &mut Vec<String>) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |program: &Path, script: &str| -> BTreeMap<String, BTreeMap<String, serde_json::Value>> {
        let output = Command::new(program)
            .arg(here.join(script))
            .arg(folder)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let mut all = read(Path::new("node"), "tests/playlists/parse.mjs");
    let python = here.join("target/tools/parsers/bin/python");
    for (file, understood) in read(&python, "tests/parsers/hls.py") {
        all.entry(file).or_default().extend(understood);
    }
    for (file, understood) in all {
        assert_eq!(understood.len(), 3, "{file}: {understood:?}");
        let text = std::fs::read_to_string(folder.join(&file)).unwrap();
        let ours = (!file.starts_with("index")).then(|| Playlist::parse(&text).unwrap());
        for (parser, said) in understood {
            let number = |name: &str| said[name].as_u64();
            let right = match &ours {
                _ if said.get("problem").is_some() => false,
                None => {
                    let count = |tag: &str| Some(text.matches(tag).count() as u64);
                    number("variants") == count("#EXT-X-STREAM-INF:")
                        && number("iframes") == count("#EXT-X-I-FRAME-STREAM-INF:")
                }
                Some(ours) => {
                    let seconds: f64 = ours.segments.iter().map(|segment| segment.seconds).sum();
                    let parts = ours.numbered().iter().map(|(.., segment)| segment.parts.len() as u64).sum();
                    let gaps = ours.segments.iter().filter(|segment| segment.gap).count() as u64;
                    number("segments") == Some(ours.segments.len() as u64)
                        && number("media_sequence") == Some(ours.media_sequence)
                        && number("discontinuity_sequence") == Some(ours.discontinuity_sequence)
                        && number("parts") == Some(parts)
                        && said.get("gaps").is_none_or(|said| said.as_u64() == Some(gaps))
                        && said["ended"] == ours.ended
                        && said["seconds"].as_f64().is_some_and(|said| (said - seconds).abs() < 0.001)
                }
            };
            if !right {
                problems.push(format!("{file}: {parser} understands {said}"));
            }
        }
    }
}

/// FFmpeg reads a rendition's I-frame playlist: keyframes and nothing else.
fn check_iframe_reader(node: &Node, name: &str) {
    let url = node.url(&format!("/live/show/{name}/iframes.m3u8"));
    let streams = packets(&url);
    let video: Vec<_> =
        streams.iter().filter(|(kind, _)| kind == "video").flat_map(|(_, packets)| packets).collect();
    assert!(video.len() > 5 && video.iter().all(|packet| packet.key), "{} packets", video.len());
}
