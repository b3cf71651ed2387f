//! What encoders send beside H.264 and AAC from time zero: other codecs by FourCC and by number, several tracks, odd frame
//! rates, timestamps that wrap, and encoders other than ffmpeg.

use std::process::{Child, Command, Stdio};

use crate::fragments::{self, Track};
use crate::kit::*;
use crate::publisher::{Dress, Publisher, Tag, broadcast, opus, video};

const SECONDS: usize = 5;
const FPS: usize = 25;

fn node(folder: &Folder) -> Node {
    let mut config = all_in_one(&folder.path().join("state"));
    config.get_mut("origin").unwrap().push_str("window = \"60s\"\nreconnect_grace = \"1s\"\n");
    // One rung is enough to see every frame.
    config.insert("log", "filter = \"info\"\n".into());
    Node::start(folder, "node", &toml(&config))
}

fn track(codec: &[&str]) -> Track {
    let pattern = format!("testsrc2=s=320x180:r={FPS}:d={SECONDS}");
    let source = ["-f", "lavfi", "-i", &pattern, "-g", "25"];
    fragments::encode(&[&source[..], codec].concat(), 1000).expect("ffmpeg has all the encoders")
}

fn sound() -> Vec<Tag> {
    let source = format!("sine=r=48000:d={SECONDS}");
    let arguments = ["-f", "lavfi", "-i", &source, "-ac", "2", "-c:a", "libopus"];
    opus(&fragments::encode(&arguments, 48_000).expect("ffmpeg has libopus"), 0)
}

/// Publishes `tags` and returns the frames of the first rendition and of the audio.
fn watched(node: &Node, stream: &str, tags: &[Tag]) -> (Vec<Packet>, Vec<Packet>) {
    let mut publisher = Publisher::publish(node, stream);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(node, stream));
        publisher.send_in_time(tags).unwrap();
        publisher.end();
        watching.join().unwrap()
    })
}

/// Watches a stream from its beginning to its end.
fn watch(node: &Node, stream: &str) -> (Vec<Packet>, Vec<Packet>) {
    live(node, stream);
    let names = renditions(&get(&node.url(&format!("/live/{stream}/index.m3u8"))).text());
    let probe = |name: &String| Probe::begin(&node.url(&format!("/live/{stream}/{name}.m3u8")));
    let readers: Vec<_> = names.iter().filter(|name| *name != "audio").take(1).map(probe).collect();
    let audio: Vec<_> = names.iter().filter(|name| *name == "audio").map(probe).collect();
    let frames = |readers: Vec<Probe>| {
        readers.into_iter().next().map_or(Vec::new(), |reader| reader.end().remove(0).1)
    };
    (frames(readers), frames(audio))
}

/// Frames that follow one another at a rate, but for what 90 kHz rounds.
fn check_rate(what: &str, frames: &[Packet], fps: f64) {
    for (index, frame) in frames.iter().enumerate() {
        let off = frame.pts - frames[0].pts - index as f64 / fps;
        assert!(off.abs() < 2e-5, "{what}: frame {index} is {off} s off");
    }
}

#[test]
fn codecs_with_a_fourcc_and_without_reach_viewers() {
    let _turn = real_time(Share::Half);
    let folder = Folder::new("fourcc");
    let node = node(&folder);
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "bframes=2:log-level=error"];
    let aom = ["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-b:v", "300k"];
    let vpx = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "300k"];
    let x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2"];
    let hevc = track(&x265);
    let sound = sound();
    // The last two begin where 24 and 32 bits of milliseconds end.
    for (stream, track, dress, first_ms) in [
        ("hevc", &hevc, Dress::FourCc(b"hvc1"), 0),
        ("number", &hevc, Dress::Number(12), 0),
        ("tracks", &hevc, Dress::FirstOfTwo(b"hvc1"), 0),
        ("av1", &track(&aom), Dress::FourCc(b"av01"), 0),
        ("vp9", &track(&vpx), Dress::Nanos(b"vp09"), 0xFF_FFFF - 2000),
        ("avc", &track(&x264), Dress::FourCc(b"avc1"), u32::MAX - 2000),
    ] {
        let audio =
            sound.iter().map(|tag| Tag { ms: tag.ms.wrapping_add(first_ms), ..tag.clone() }).collect();
        let tags = broadcast(FPS as f64, video(track, dress, first_ms), audio);
        let (pictures, audio) = watched(&node, stream, &tags);
        assert_eq!(pictures.len(), FPS * SECONDS, "{stream}: every frame, once");
        check_rate(stream, &pictures, FPS as f64);
        // 48000 samples a second in frames of 1024; one of priming, and the last is filled up.
        let expected = (SECONDS * 48_000).div_ceil(1024);
        assert!(
            (expected - 2..=expected + 2).contains(&audio.len()),
            "{stream}: {} of {expected}",
            audio.len()
        );
        assert!((audio[0].pts - pictures[0].pts).abs() < 0.05, "{stream}: audio and video begin together");
    }
    node.logged("the broadcaster sends several tracks: only the first video and audio are taken");
    assert_eq!(node.metric("origin_timeline_breaks_total"), 0.0);
    assert_eq!(node.metric("origin_runs_total"), 6.0, "one run each");
}

#[test]
fn codecs_that_cannot_be_decoded_are_refused_by_name() {
    let folder = Folder::new("refused");
    let node = node(&folder);
    for (kind, body, why) in [
        (9, &b"\x90vvc1record"[..], "unsupported video codec VVC (vvc1): H.264, HEVC, AV1 and VP9 are taken"),
        (9, b"\x90vp08record", "unsupported video codec VP8 (vp08)"),
        (9, &[0x12, 0, 0], "unsupported video codec Sorenson H.263 (2)"),
        (8, b"\x91ac-3frame", "unsupported audio codec AC-3 (ac-3): AAC, MP3 and Opus are taken"),
        (8, b"\x90fLaCrecord", "unsupported audio codec FLAC (fLaC)"),
        (9, b"\x90hvc1record", "HEVC configuration record: 6 bytes are too few"),
    ] {
        let mut publisher = Publisher::publish(&node, "refused");
        publisher.send_in_time(&[Tag { kind, ms: 0, body: body.to_vec() }]).unwrap();
        let said = publisher.rest();
        assert!(said.contains("NetStream.Publish.Rejected") && said.contains(why), "{said}");
    }
}

/// ffmpeg with what it sends by default.
fn ffmpeg_publishes(url: &str, arguments: &[&str]) -> Child {
    let mut command = ffmpeg();
    command.args(["-re", "-f", "lavfi"]).args(arguments).args(["-pix_fmt", "yuv420p", "-c:a", "aac"]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-f", "flv", url]);
    command.spawn().expect("ffmpeg is installed")
}

#[test]
fn frame_rates_are_kept_to_the_tick() {
    let _turn = real_time(Share::Half);
    let folder = Folder::new("rates");
    let node = node(&folder);
    for (stream, rate, fps, frames) in [
        ("film", "24000/1001", 24_000.0 / 1001.0, 96),
        ("ntsc", "30000/1001", 30_000.0 / 1001.0, 120),
        ("fast", "60000/1001", 60_000.0 / 1001.0, 240),
    ] {
        let source = format!("testsrc2=s=320x180:r={rate}");
        let count = frames.to_string();
        let arguments = ["-i", &source, "-frames:v", &count, "-bf", "2", "-g", "48"];
        let mut sender = ffmpeg_publishes(&node.publish_url("rtmp", stream), &arguments);
        let (pictures, _) = watch(&node, stream);
        assert!(sender.wait().unwrap().success());
        assert_eq!(pictures.len(), frames, "{stream}");
        check_rate(stream, &pictures, fps);
    }
    assert_eq!(node.metric("origin_timeline_breaks_total"), 0.0);
}

#[test]
fn frames_at_any_time_stay_where_they_are() {
    let _turn = real_time(Share::Half);
    let folder = Folder::new("vfr");
    let node = node(&folder);
    // Three of ten frames are missing, and times begin just below 2^31 ms, where ffmpeg's clock wraps.
    let source = "testsrc2=s=320x180:r=30:d=5,select='gt(mod(n\\,10)\\,2)'";
    let arguments =
        ["-i", source, "-fps_mode", "passthrough", "-bf", "2", "-g", "30", "-output_ts_offset", "4294965.5"];
    let mut sender = ffmpeg_publishes(&node.publish_url("rtmp", "vfr"), &arguments);
    let (pictures, _) = watch(&node, "vfr");
    assert!(sender.wait().unwrap().success());
    let expected: Vec<f64> = (0..150).filter(|n| n % 10 > 2).map(|n| f64::from(n) / 30.0).collect();
    assert_eq!(pictures.len(), expected.len());
    for (frame, at) in pictures.iter().zip(&expected) {
        let off = (frame.pts - pictures[0].pts) - (at - expected[0]);
        assert!(off.abs() < 0.0021, "{at} is {off} s off");
    }
    assert_eq!(node.metric("origin_runs_total"), 1.0, "the wrap breaks nothing");
    assert!(node.metric("ingest_clock_wraps_total") >= 1.0);
}

#[test]
fn gstreamer_and_librtmp_publish() {
    let _turn = real_time(Share::Half);
    let element = |name: &str| {
        let found = Command::new("gst-inspect-1.0").args(["--exists", name]).status();
        found.is_ok_and(|status| status.success())
    };
    let missing: Vec<_> =
        ["rtmp2sink", "rtmpsink", "x264enc", "voaacenc"].into_iter().filter(|name| !element(name)).collect();
    if !missing.is_empty() {
        let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
        assert!(!strict, "gstreamer lacks {missing:?}");
        eprintln!("skipped: gstreamer lacks {missing:?}");
        return;
    }
    let folder = Folder::new("gstreamer");
    let node = node(&folder);
    for (stream, sink) in [("rtmp2", "rtmp2sink"), ("librtmp", "rtmpsink")] {
        // A second (in ns) in which the muxer waits for a slow encoder: it leaves out what comes later.
        let pipeline = format!(
            "videotestsrc num-buffers=125 is-live=true ! video/x-raw,width=320,height=180,framerate=25/1 \
             ! x264enc tune=zerolatency key-int-max=50 bitrate=300 ! flvmux name=mux streamable=true latency=1000000000 \
             ! {sink} location={} \
             audiotestsrc num-buffers=215 is-live=true ! voaacenc bitrate=64000 ! mux.",
            node.publish_url("rtmp", stream)
        );
        let mut sender = Command::new("gst-launch-1.0")
            .arg("-q")
            .args(pipeline.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (pictures, audio) = watch(&node, stream);
        assert!(sender.wait().unwrap().success(), "{sink}");
        assert_eq!(pictures.len(), 125, "{sink}: every frame, once");
        assert!((200..=216).contains(&audio.len()), "{sink}: {} audio frames", audio.len());
    }
}
