//! A broadcast over DASH with a drop of three seconds, one of eight after which the picture has another size, and its end.
//! dash.js and Shaka, low-latency and plain, each with its own settings, go on by themselves; every version of the MPD is read
//! by foreign parsers and by a lint of what may never change.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::kit::*;

const SMALL: Recipe =
    Recipe { size: "426x240", rate: "30", seconds: 10, extra: &["-tune", "zerolatency", "-b:v", "300k"] };
const SMALLER: Recipe = Recipe { size: "256x144", ..SMALL };

/// Four players in a browser.
struct Players {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Players {
    fn watch(mpd: &str) -> Players {
        let mut child = Command::new("node")
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/dash.mjs"), "--url", mpd])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Players { child, stdin, stdout }
    }

    /// What they say next; they give up by themselves.
    fn say(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the players gave up: {line:?}"))
    }

    /// Waits until all play behind a place of the timeline, seconds.
    fn pass(&mut self, seconds: f64) -> Value {
        writeln!(self.stdin.as_mut().unwrap(), "past {seconds}").unwrap();
        let said = self.say();
        for (player, told) in said["players"].as_object().unwrap() {
            println!(
                "{player}: past {seconds:.1} s after {} s, {} stalls so far, latency {:.2} s, errors {}",
                told["seconds"],
                told["stalls"],
                told["latency"].as_f64().unwrap(),
                told["errors"]
            );
        }
        said
    }
}

impl Players {
    /// All of them find the thumbnail of a moment of a run: on sheets of three seconds, one each second.
    fn show(&mut self, seconds: f64, run: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "thumbnail {seconds}").unwrap();
        let said = self.say();
        let (sheet, tile) = ((seconds / 3.0) as u32, (seconds % 3.0) as u32);
        for (player, shown) in said["players"].as_object().unwrap() {
            let path = format!("/live/show/{run}/thumbnails/{sheet}.jpg");
            let expected = serde_json::json!({ "path": path, "place": [tile * 160, 0, 160, 90], "sheet": [3 * 160, 90] });
            assert_eq!(*shown, expected, "{player} at {seconds} s");
        }
    }
}

impl Drop for Players {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if matches!(self.child.try_wait(), Ok(None)) {
            terminate(&self.child);
            let _ = self.child.wait();
        }
    }
}

/// Every version of the MPD, until it is over.
fn collect(url: &str, done: &AtomicBool) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let answer = get(url);
        if answer.status == 200 && versions.last() != Some(&answer.text()) {
            versions.push(answer.text());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    versions
}

fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split(&format!(" {name}=\"")).nth(1)?.split('"').next()
}

/// Each `Period` element: its id, and where it begins, seconds.
fn periods(mpd: &str) -> Vec<(String, f64)> {
    let seconds = |text: &str| text.strip_prefix("PT")?.strip_suffix('S')?.parse().ok();
    let period = |line: &str| Some((attribute(line, "id")?.to_owned(), seconds(attribute(line, "start")?)?));
    mpd.lines().filter(|line| line.contains("<Period ")).filter_map(period).collect()
}

/// By itself, twice as large as on a sheet.
fn the_newest_picture_is_there(node: &Node) {
    let answer = get(&node.url("/live/show/thumbnail.jpg"));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "image/jpeg");
    assert_eq!(answer.headers["cache-control"], "max-age=1");
    let folder = Folder::new("mpd-picture");
    let file = folder.path().join("thumbnail.jpg");
    std::fs::write(&file, &answer.body).unwrap();
    let size = [
        "-v",
        "error",
        "-show_entries",
        "stream=codec_name,width,height,sample_aspect_ratio",
        "-of",
        "csv=p=0",
    ];
    let output = Command::new("ffprobe").args(size).arg(&file).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "mjpeg,320,180,1:1");
}

#[test]
fn dash_goes_on_over_absences_and_another_size_and_its_mpd_never_goes_back() {
    let _turn = real_time(Share::Machine);
    let (first, second) = (Clip::make("mpd", SMALL), Clip::make("mpd-smaller", SMALLER));
    let folder = Folder::new("mpd");
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str("reconnect_grace = \"12s\"\n");
    config.insert("transcode.thumbnails", "interval = \"1s\"\ncolumns = 3\n".into());
    let node = Node::start(&folder, "node", &toml(&config));
    let publish = node.publish_url("rtmp", "show");
    let mut broadcaster = Broadcaster::send(&first, &publish, -1);
    live(&node, "show");
    let url = node.url("/live/show/manifest.mpd");
    let done = AtomicBool::new(false);
    let versions = std::thread::scope(|scope| {
        let collected = scope.spawn(|| collect(&url, &done));
        // However this ends, the collector ends.
        let _end = Ends(&done);
        let mut players = Players::watch(&url);
        let newest = || periods(&get(&url).text()).pop().unwrap();
        println!("milliseconds to start: {}", players.say()["playing"]);
        players.pass(12.0);
        hops_are_measured(&node);
        players.show(10.5, &newest().0);
        the_newest_picture_is_there(&node);
        for (away, clip) in [(3, &first), (8, &second)] {
            let before = newest().0;
            broadcaster.kill();
            // The absence itself is what is tested.
            std::thread::sleep(Duration::from_secs(away));
            if away > 3 {
                let told = get(&url).text();
                let open =
                    told.lines().filter(|line| line.contains("<Period ") && !line.contains("duration"));
                assert_eq!(open.count(), 0, "the MPD says that nothing comes for now: {told}");
                nothing_is_a_segment(&node, &told);
            }
            broadcaster = Broadcaster::send(clip, &publish, -1);
            let (_, start) =
                eventually("a new period", || Some(newest()).filter(|(id, _)| !id.starts_with(&before)));
            players.pass(start + 4.0);
            // Soon after it began, which is not where a sheet begins.
            players.show(start.floor() + 1.5, &newest().0);
        }
        broadcaster.kill();
        eventually("the end", || get(&url).text().contains("type=\"static\"").then_some(()));
        // The last version is to be among those collected.
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        collected.join().unwrap()
    });
    assert!(versions.last().unwrap().contains("type=\"static\""));
    let lint = pipe(
        Command::new("node").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/mpd-lint.mjs")),
        &versions,
    );
    println!("{} versions, the largest of {} bytes", lint["versions"], lint["largest"]);
    assert_eq!(lint["problems"].as_array().unwrap().len(), 0, "{lint:#}\n{}", versions.join("\n"));
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/parsers/bin/python");
    if python.exists() || std::env::var_os("ROOFTOP_STRICT").is_some() {
        let read = pipe(
            Command::new(python).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parsers/mpd.py")),
            &versions,
        );
        for (version, read) in versions.iter().zip(read.as_array().unwrap()) {
            let ids: Vec<_> = read
                .as_array()
                .unwrap()
                .iter()
                .map(|period| period[0].as_str().unwrap().to_owned())
                .collect();
            let expected: Vec<_> = periods(version).into_iter().map(|(id, _)| id).collect();
            assert_eq!(ids, expected);
        }
    } else {
        eprintln!("skipped: mpegdash is missing: run scripts/venv.sh parsers");
    }
}

/// Who asks for a place without media is given a segment of nothing; far away there is none.
fn nothing_is_a_segment(node: &Node, mpd: &str) {
    let template = mpd.lines().rfind(|line| line.contains("$RepresentationID$")).unwrap();
    let period = mpd.lines().rfind(|line| line.contains("<Period ")).unwrap();
    let seconds: f64 = attribute(period, "duration").unwrap().trim_matches(['P', 'T', 'S']).parse().unwrap();
    let number = attribute(template, "startNumber").unwrap().parse::<u64>().unwrap() + seconds.ceil() as u64;
    let path = |number| {
        let media = attribute(template, "media").unwrap().replace("$RepresentationID$", "audio");
        node.url(&format!("/live/show/{}", media.replace("$Number$", &u64::to_string(&number))))
    };
    let answer = get(&path(number));
    assert_eq!((answer.status, answer.body.len()), (200, 32), "{}", answer.text());
    assert_eq!(&answer.body[4..8], b"styp");
    assert_eq!(get(&path(number + 1000)).status, 404);
}

/// What frames take: at the origin, and as a viewer at the edge sees it.
fn hops_are_measured(node: &Node) {
    let (admin, edge) = (node.addr("admin").to_string(), node.addr("http").to_string());
    let arguments = ["latency", "show", "--admin", &admin, "--edge", &edge, "--segments", "2"];
    let table = rooftop().args(arguments).output().unwrap();
    println!("{}", String::from_utf8_lossy(&table.stdout));
    let output = rooftop().args(arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let hops = told["hops"].as_array().unwrap();
    let names: Vec<_> = hops.iter().map(|hop| hop["hop"].as_str().unwrap()).collect();
    assert_eq!(names, ["arrived", "decoded", "encoded", "published", "shield", "edge", "sent", "viewed"]);
    for hop in hops {
        assert!(hop["passages"].as_u64().unwrap() >= 2 && hop["p50_ms"].as_f64().unwrap() > 0.0, "{told}");
    }
    assert!(node.metric("origin_hop_seconds_count{hop=\"published\"}") > 0.0);
    assert!(node.metric("edge_part_seconds_count{tier=\"edge\"}") > 0.0);
    assert!(node.metric("edge_sent_seconds_count{tier=\"edge\"}") > 0.0);
    let unknown = rooftop().args(["latency", "nobody", "--admin", &admin]).output().unwrap();
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("nobody"));
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Gives a program JSON, and takes what it answers.
fn pipe(command: &mut Command, input: &[String]) -> Value {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    serde_json::to_writer(&mut stdin, input).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
