//! Sources as they come, made by ffmpeg, through a whole session: every frame is shown once at its time, in every rendition,
//! and all renditions cut at the same instants.

mod captions;
mod events;
#[path = "../../../tests/kit/fragments.rs"]
mod fragments;
mod ladders;
mod sync;
mod thumbnails;

use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use media::codec::VideoCodec;
use media::flv::{self, Tag, TagKind};
use media::time::Ticks;
use tokio::sync::mpsc;
use transcode::Passthrough;
use transcode::config::RungConfig;

use super::tests::{request, shared_of};
use super::{LINE_QUEUE, Right, session};
use crate::Shared;
use crate::hls::Kind;
use crate::live::Live;
use fragments::{Frame, Track};

/// One track of video as ffmpeg coded it, or `None` with a message where ffmpeg is missing and need not be there.
fn made(pattern: &str, arguments: &[&str]) -> Option<Track> {
    let input = ["-f", "lavfi", "-i", pattern];
    let x264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"];
    let codec: &[&str] = if arguments.contains(&"-c:v") { &[] } else { &x264 };
    match fragments::encode(&[&input, codec, arguments].concat(), 90_000) {
        Ok(track) => Some(track),
        Err(error) => {
            let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
            assert!(!strict, "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A broadcast in the order of its times.
#[derive(Default)]
struct Tags(Vec<Tag>);

impl Tags {
    /// Enhanced RTMP, whose FourCCs name all codecs. Times are `from` later, 90 kHz.
    fn video(&mut self, codec: VideoCodec, track: &Track, from: Ticks) {
        let ms = |ticks: Ticks| ((ticks + from + 45) / 90) as u32;
        let mut put = |timestamp_ms, kind: u8, key: bool, composition: Option<Ticks>, data: &[u8]| {
            let mut body = BytesMut::new();
            body.put_u8(0x80 | if key { 0x10 } else { 0x20 } | kind);
            body.put_slice(codec.fourcc().as_bytes());
            if let Some(composition) = composition {
                body.put_slice(&(((composition as f64 / 90.0).round() as i32) as u32).to_be_bytes()[1..]);
            }
            body.put_slice(data);
            self.0.push(Tag { kind: TagKind::Video, timestamp_ms, data: body.freeze() });
        };
        let begins = track.frames.first().map_or(0, |frame| frame.dts);
        put(ms(begins), 0, true, None, &track.record);
        for Frame { dts, pts, key, data, .. } in &track.frames {
            // So that presentation, not decoding, is rounded to the nearest millisecond.
            let sent = ms(*dts);
            let shown = ms(*pts);
            let reorders = matches!(codec, VideoCodec::Avc | VideoCodec::Hevc);
            let composition = (i64::from(shown) - i64::from(sent)) * 90;
            put(sent, 1, *key, reorders.then_some(composition), data);
        }
    }

    /// AAC that nobody decodes: so many frames from `from` on, 90 kHz.
    fn audio(&mut self, config: &[u8], sample_rate: u32, from: Ticks, frames: u32) {
        let head = |kind| [0xAF, kind];
        let first = ((from + 45) / 90) as u32;
        let data = [&head(0), config].concat().into();
        self.0.push(Tag { kind: TagKind::Audio, timestamp_ms: first, data });
        for index in 0..frames {
            let timestamp_ms = first + (u64::from(index) * 1_024_000 / u64::from(sample_rate)) as u32;
            let data = [&head(1)[..], &[1, 2, (index >> 8) as u8, index as u8]].concat().into();
            self.0.push(Tag { kind: TagKind::Audio, timestamp_ms, data });
        }
    }

    fn flv(mut self) -> Bytes {
        self.0.sort_by_key(|tag| tag.timestamp_ms);
        let mut out = BytesMut::from(&flv::HEADER[..]);
        self.0.iter().for_each(|tag| tag.encode(&mut out));
        out.freeze()
    }
}

/// One rendition of one run.
struct Rendition {
    id: String,
    epoch: u64,
    video: bool,
    codec: String,
    init: Bytes,
    /// In decoding order.
    frames: Vec<Frame>,
    /// Where segments begin and how long they are, in its timescale.
    segments: Vec<(Ticks, Ticks)>,
    bytes: Bytes,
}

struct Played {
    renditions: Vec<Rendition>,
    /// What is announced.
    kinds: Vec<(String, Kind)>,
    shared: Arc<Shared>,
}

/// Broadcasts to the end and says what was published.
async fn play(passthrough: Passthrough, tags: Tags) -> Played {
    play_as(rules(passthrough), tags).await
}

fn rules(passthrough: Passthrough) -> transcode::Config {
    transcode::Config {
        preset: "ultrafast".into(),
        rungs: vec![RungConfig::new(2160, 5000), RungConfig::new(180, 300), RungConfig::new(90, 100)],
        passthrough,
        // They are sent faster than a machine that has other work to do may encode them.
        shed: false,
        // What is sent as audio here is none.
        surround: true,
        passthrough_codecs: ["h264", "hevc", "av1"].map(str::to_owned).to_vec(),
        ..transcode::Config::default()
    }
}

async fn play_as(rules: transcode::Config, tags: Tags) -> Played {
    let shared = shared_of(cluster::Member::default(), crate::Config::default(), rules);
    let live: Arc<Live> = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
    let right = Right::Claimed(shared.store.claim("demo", "s1", Vec::new()).await.unwrap());
    let (lines, mut answer) = mpsc::channel::<Bytes>(LINE_QUEUE);
    let body = Full::new(tags.flv());
    let told = tokio::spawn(async move {
        let mut told = String::new();
        while let Some(line) = answer.recv().await {
            told.push_str(std::str::from_utf8(&line).unwrap());
        }
        told
    });
    session(shared.clone(), live.clone(), right, request("s1"), body, lines, shared.shutdown.clone()).await;
    let told = told.await.unwrap();
    assert!(told.ends_with("{\"end\":true}\n"), "{told}");
    let kinds = live.read(|_, broadcast| {
        let variants = broadcast.expect("something was published").renditions.iter().map(|of| &of.variant);
        variants.map(|variant| (variant.id.to_string(), variant.kind)).collect()
    });
    let renditions = live.read(|_, broadcast| {
        let broadcast = broadcast.expect("something was published");
        let epochs: Vec<_> = broadcast.periods.iter().map(|period| period.epoch).collect();
        let mut renditions = Vec::new();
        for rendition in &broadcast.renditions {
            for epoch in &epochs {
                let Some((_, init)) = rendition.inits.iter().find(|(of, _)| of == epoch) else { continue };
                let mut bytes = BytesMut::from(&init[..]);
                let mut segments = Vec::new();
                for segment in rendition.window.segments().filter(|segment| segment.epoch == *epoch) {
                    let object = segment
                        .object
                        .as_ref()
                        .unwrap_or_else(|| panic!("a gap in {}", rendition.variant.id));
                    bytes.put_slice(&object.to_bytes().expect("it is complete"));
                    segments.push((segment.start, segment.duration));
                }
                let bytes = bytes.freeze();
                renditions.push(Rendition {
                    id: rendition.variant.id.to_string(),
                    epoch: epoch.0,
                    video: matches!(rendition.variant.kind, Kind::Video { .. }),
                    codec: rendition.variant.codec.clone(),
                    init: init.clone(),
                    frames: fragments::read(&bytes).frames,
                    segments,
                    bytes,
                });
            }
        }
        renditions
    });
    Played { renditions, kinds, shared }
}

impl Played {
    /// The multivariant playlist and the MPD.
    fn manifests(&self) -> (String, String) {
        let live = self.shared.stream(&"demo".parse().unwrap()).unwrap();
        (live.multivariant("").unwrap(), live.mpd(1500, 0, "/time", None).unwrap())
    }

    fn video(&self) -> impl Iterator<Item = &Rendition> {
        self.renditions.iter().filter(|rendition| rendition.video)
    }

    /// The frames of a rendition over all runs, in order of presentation.
    fn shown(&self, id: &str) -> Vec<(Ticks, Ticks)> {
        let frames = self.renditions.iter().filter(|rendition| rendition.id == id).flat_map(|r| &r.frames);
        let mut shown: Vec<_> = frames.map(|frame| (frame.pts, frame.duration)).collect();
        shown.sort_unstable();
        shown
    }

    /// All video renditions cut at the same instants, and what they hold tiles the time.
    fn check_cuts(&self, name: &str, filled: bool) {
        let mut epochs: Vec<_> = self.video().map(|rendition| rendition.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        for epoch in epochs {
            let of_run: Vec<_> = self.video().filter(|rendition| rendition.epoch == epoch).collect();
            for rendition in &of_run {
                let starts =
                    |rendition: &Rendition| rendition.segments.iter().map(|(at, _)| *at).collect::<Vec<_>>();
                assert_eq!(starts(rendition), starts(of_run[0]), "{name}: {}", rendition.id);
                for pair in rendition.frames.windows(2) {
                    let off = pair[1].dts - (pair[0].dts + pair[0].duration);
                    // Where frames are missing for less than a part, nothing is put in their place.
                    let most = if filled { 18_000 } else { 1 };
                    assert!((-1..=most).contains(&off), "{name} {}: {off} at {}", rendition.id, pair[1].dts);
                }
                for (at, _) in &rendition.segments {
                    let first = rendition.frames.iter().find(|frame| frame.dts == *at);
                    assert!(
                        first.is_some_and(|frame| frame.key && frame.pts == *at),
                        "{name} {} at {at}",
                        rendition.id
                    );
                }
            }
        }
    }
}

/// Each frame of the source is shown once at its time (to a millisecond and a half), and nothing else but, if `filled`,
/// repetitions.
fn check_frames(name: &str, id: &str, source: &[Ticks], shown: &[(Ticks, Ticks)], filled: bool) {
    let (zero, first) = (source.iter().min().unwrap(), shown[0].0);
    let mut times: Vec<_> = source.iter().map(|pts| pts - zero + first).collect();
    times.sort_unstable();
    let mut left = shown.iter().map(|(pts, _)| *pts).peekable();
    for at in times {
        if filled {
            while left.next_if(|pts| *pts < at - 135).is_some() {}
        }
        let found = left.next();
        assert!(found.is_some_and(|pts| (pts - at).abs() <= 135), "{name} {id}: {found:?} instead of {at}");
    }
    assert_eq!(left.next(), None, "{name} {id}: frames that the source does not have");
}

fn times(track: &Track) -> Vec<Ticks> {
    track.frames.iter().map(|frame| frame.pts).collect()
}

struct Case {
    name: &'static str,
    pattern: &'static str,
    arguments: &'static [&'static str],
    filled: bool,
}

const fn case(name: &'static str, pattern: &'static str, arguments: &'static [&'static str]) -> Case {
    Case { name, pattern, arguments, filled: false }
}

async fn check_case(case: &Case) {
    let Case { name, pattern, arguments, filled } = *case;
    let Some(track) = made(pattern, arguments) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let (first, last) = (times(&track)[0], times(&track).into_iter().max().unwrap());
    let blocks = ((last - first) * 48_000 / 90_000 / 1024) as u32;
    tags.audio(&[0x11, 0x90], 48_000, 900_000 + first, blocks);
    let played = play(Passthrough::Off, tags).await;
    played.check_cuts(name, filled);
    let ids: Vec<_> = played.video().map(|rendition| rendition.id.clone()).collect();
    assert!(ids.len() >= 2, "{name}: {ids:?}");
    for id in ids {
        check_frames(name, &id, &times(&track), &played.shown(&id), filled);
    }
    let audio = played.renditions.iter().find(|rendition| !rendition.video).expect("audio is published");
    assert_eq!(audio.frames.len(), blocks as usize, "{name}");
    let video = played.video().next().unwrap();
    // Both began at the same instant of the source.
    let apart = audio.frames[0].pts * 1000 / 48_000 - video.frames[0].pts / 90;
    assert!(apart.abs() <= 5, "{name}: audio and video are {apart} ms apart");
    assert_eq!(played.shared.metrics.runs.get(), 1, "{name}: nothing breaks");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_rate() {
    for case in [
        case("23.976", "testsrc2=s=320x180:r=24000/1001:d=4", &["-bf", "2"]),
        case("25", "testsrc2=s=320x180:r=25:d=4", &[]),
        case("29.97", "testsrc2=s=320x180:r=30000/1001:d=4", &["-bf", "2"]),
        case("50", "testsrc2=s=320x180:r=50:d=4", &[]),
        case("59.94", "testsrc2=s=320x180:r=60000/1001:d=4", &["-bf", "2"]),
        case("60", "testsrc2=s=320x180:r=60:d=4", &[]),
        Case {
            filled: true,
            ..case(
                "variable",
                "testsrc2=s=320x180:r=30:d=6,select='lt(mod(n\\,40)\\,22)+not(mod(n\\,5))'",
                &["-fps_mode", "vfr", "-x264-params", "force-cfr=0"],
            )
        },
        Case { filled: true, ..case("1", "testsrc2=s=320x180:r=1:d=8", &["-g", "4"]) },
        Case { filled: true, ..case("0.5", "testsrc2=s=320x180:r=1/2:d=12", &["-g", "2"]) },
    ] {
        check_case(&case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_structure() {
    for case in [
        case(
            "interlaced",
            "testsrc2=s=320x180:r=25:d=3",
            &["-flags", "+ildct+ilme", "-x264-params", "tff=1"],
        ),
        case(
            "pyramids",
            "testsrc2=s=320x180:r=25:d=4",
            &["-x264-params", "bframes=8:b-pyramid=normal:b-adapt=0:ref=8"],
        ),
        case("open", "testsrc2=s=320x180:r=25:d=4", &["-x264-params", "open-gop=1:bframes=3:keyint=30"]),
        case("10 s", "testsrc2=s=320x180:r=25:d=11", &["-g", "250", "-bf", "2"]),
        case("irregular", "testsrc2=s=320x180:r=25:d=6", &["-force_key_frames", "0,0.7,3.1,3.28,5"]),
    ] {
        check_case(&case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_size() {
    for case in [
        case("144p", "testsrc2=s=256x144:r=25:d=3", &[]),
        case("2160p", "testsrc2=s=3840x2160:r=10:d=1", &[]),
        case("portrait", "testsrc2=s=180x320:r=25:d=3", &[]),
        case("odd", "testsrc2=s=322x182:r=25:d=3", &[]),
    ] {
        check_case(&case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_audio() {
    let Some(track) = made("testsrc2=s=320x180:r=25:d=7", &["-g", "25"]) else { return };
    let mono: &[u8] = &[0x11, 0x88];
    for (name, config, sample_rate, late) in [
        ("mono", mono, 48_000, 0),
        ("5.1", &[0x11, 0xB0], 48_000, 0),
        ("44.1 kHz", &[0x12, 0x10], 44_100, 0),
        ("22.05 kHz", &[0x13, 0x90], 22_050, 0),
        ("5 s late", &[0x11, 0x90], 48_000, 5 * 90_000),
    ] {
        let mut tags = Tags::default();
        tags.video(VideoCodec::Avc, &track, 900_000);
        let frames = (7 * sample_rate - late as u32 / 90_000 * sample_rate) / 1024;
        tags.audio(config, sample_rate, 900_000 + times(&track)[0] + late, frames);
        let played = play(Passthrough::Off, tags).await;
        played.check_cuts(name, false);
        check_frames(name, "180p", &times(&track), &played.shown("180p"), false);
        let audio = played.renditions.iter().filter(|rendition| !rendition.video);
        let audio: Vec<_> = audio.flat_map(|rendition| &rendition.frames).collect();
        // Of audio that begins in mid-stream, what lies before the video's next frame is left out.
        let least = frames as usize - if late > 0 { 2 } else { 0 };
        assert!((least..=frames as usize).contains(&audio.len()), "{name}: {}", audio.len());
        let began = played.shown("180p")[0].0;
        let apart = audio[0].pts * 1000 / i64::from(sample_rate) - (began + late) / 90;
        assert!(apart.abs() <= if late > 0 { 45 } else { 5 }, "{name}: {apart} ms apart");
    }
    let mut alone = Tags::default();
    alone.audio(mono, 48_000, 900_000, 200);
    let played = play(Passthrough::Off, alone).await;
    assert_eq!((played.renditions.len(), played.renditions[0].frames.len()), (1, 200), "no video");
    let mut alone = Tags::default();
    alone.video(VideoCodec::Avc, &track, 900_000);
    let played = play(Passthrough::Off, alone).await;
    check_frames("no audio", "180p", &times(&track), &played.shown("180p"), false);
}

#[tokio::test(flavor = "multi_thread")]
async fn surround_sound_and_mp3_become_aac_in_stereo() {
    let Some(track) = made("testsrc2=s=320x180:r=25:d=4", &["-g", "25"]) else { return };
    for (name, sample_rate, arguments) in [
        ("5.1", 48_000, &["-c:a", "aac", "-ac", "6"][..]),
        ("mp3", 44_100, &["-c:a", "libmp3lame", "-ac", "2"]),
    ] {
        let sine = format!("sine=r={sample_rate}:d=4");
        let mut command = Command::new("ffmpeg");
        command.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", &sine]).args(arguments);
        let output = command.args(["-f", "flv", "-"]).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let mut tags = Tags::default();
        tags.video(VideoCodec::Avc, &track, 900_000);
        let begins = 10_000 + (times(&track)[0] / 90) as u32;
        let mut sent = 0;
        let mut flv = flv::Decoder::new();
        flv.push(&output.stdout);
        while let Some(tag) = flv.poll().unwrap() {
            if tag.kind == TagKind::Audio {
                sent += u32::from(tag.is_frame());
                tags.0.push(Tag { timestamp_ms: tag.timestamp_ms + begins, ..tag });
            }
        }
        let played = play_as(transcode::Config { surround: false, ..rules(Passthrough::Off) }, tags).await;
        played.check_cuts(name, false);
        check_frames(name, "180p", &times(&track), &played.shown("180p"), false);
        let (_, kind) = played.kinds.iter().find(|(id, _)| id == "audio").expect("audio is published");
        assert_eq!(*kind, Kind::Audio { channels: 2, sample_rate }, "{name}");
        let audio = played.renditions.iter().find(|rendition| !rendition.video).unwrap();
        assert_eq!(audio.codec, "mp4a.40.2");
        check_with_ffmpeg(audio);
        // A frame before is the encoder's priming; it may lie before the run.
        let samples = sent * if name == "mp3" { 1152 } else { 1024 };
        let least = samples as usize / 1024;
        assert!((least..least + 4).contains(&audio.frames.len()), "{name}: {}", audio.frames.len());
        let apart = audio.frames[0].pts * 1000 / i64::from(sample_rate) - played.shown("180p")[0].0 / 90;
        assert!((-30..=5).contains(&apart), "{name}: {apart} ms apart");
        assert_eq!(played.shared.transcode_metrics.audio_damaged.get(), 0, "{name}");
        assert_eq!(played.shared.metrics.runs.get(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opus_is_copied_where_that_is_wanted() {
    let Some(track) = made("testsrc2=s=320x180:r=25:d=4", &["-g", "25"]) else { return };
    let sine = ["-f", "lavfi", "-i", "sine=r=48000:d=4", "-ac", "2", "-c:a", "libopus"];
    let sound = fragments::encode(&sine, 48_000).unwrap();
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let begins = 10_000 + times(&track)[0] / 90;
    let mut put = |kind: u8, ms: i64, data: &[u8]| {
        let data = [&[0x90 | kind][..], b"Opus", data].concat().into();
        tags.0.push(Tag { kind: TagKind::Audio, timestamp_ms: ms as u32, data });
    };
    put(0, begins, &sound.record);
    let first = sound.frames[0].dts;
    for frame in &sound.frames {
        put(1, begins + (frame.dts - first) / 48, &frame.data);
    }
    let rules = transcode::Config { opus: transcode::Opus::Copy, ..rules(Passthrough::Off) };
    let played = play_as(rules, tags).await;
    played.check_cuts("opus", false);
    let audio = played.renditions.iter().find(|rendition| !rendition.video).expect("audio is published");
    assert_eq!(audio.codec, "opus");
    assert!(audio.init.windows(4).any(|entry| entry == b"dOps"));
    let passed = audio.frames.iter().map(|frame| &frame.data);
    assert!(passed.eq(sound.frames.iter().map(|frame| &frame.data)), "as it came");
    let apart = audio.frames[0].pts / 48 - played.shown("180p")[0].0 / 90;
    assert!(apart.abs() <= 5, "{apart} ms apart");
    check_with_ffmpeg(audio);
    let (hls, dash) = played.manifests();
    assert!(hls.contains(",opus\"") && dash.contains("codecs=\"opus\""), "{hls}{dash}");
    assert_eq!(played.shared.transcode_metrics.audio_encoded.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_in_mid_stream_begin_runs_and_lose_nothing() {
    let first = made("testsrc2=s=320x180:r=25:d=3", &["-bf", "2"]);
    let second = made("testsrc2=s=512x288:r=30:d=3", &["-bf", "2"]);
    let (Some(first), Some(second)) = (first, second) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &first, 900_000);
    tags.audio(&[0x11, 0x90], 48_000, 900_000 + first.frames[0].pts, 140);
    // The audio's rate changes with the picture.
    tags.audio(&[0x12, 0x10], 44_100, 900_000 + first.frames[0].dts + 3 * 90_000, 129);
    tags.video(VideoCodec::Avc, &second, 900_000 + 3 * 90_000);
    let played = play(Passthrough::Off, tags).await;
    played.check_cuts("changes", false);
    for (id, frames) in [("288p", 90), ("90p", 165)] {
        assert_eq!(played.shown(id).len(), frames, "{id}");
    }
    assert!(played.shared.metrics.runs.get() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_without_a_rung_of_before_goes_on_as_the_closest() {
    let first = made("testsrc2=s=96x64:r=25:d=3", &[]);
    let second = made("testsrc2=s=320x180:r=25:d=3", &[]);
    let (Some(first), Some(second)) = (first, second) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &first, 900_000);
    tags.video(VideoCodec::Avc, &second, 900_000 + 3 * 90_000);
    let played = play(Passthrough::Off, tags).await;
    played.check_cuts("larger", false);
    assert_eq!((played.shown("180p").len(), played.shown("64p").len()), (75, 150));
    assert!(played.shown("90p").is_empty(), "it goes on as 64p");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_in_mid_stream_are_patched_over() {
    let Some(mut track) = made("testsrc2=s=320x180:r=25:d=4", &["-bf", "2", "-g", "50"]) else { return };
    for index in [30, 31, 55] {
        let data = &mut track.frames[index].data;
        let from = data.len() / 3;
        data[from..].iter_mut().enumerate().for_each(|(at, byte)| *byte ^= (at * 37) as u8 | 1);
    }
    track.frames[40].data.truncate(9);
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let played = play(Passthrough::Off, tags).await;
    played.check_cuts("broken", false);
    check_frames("broken", "180p", &times(&track), &played.shown("180p"), false);
}

/// ffmpeg decodes all of it, without a complaint.
fn check_with_ffmpeg(rendition: &Rendition) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("passed-{}-{}.mp4", std::process::id(), rendition.codec));
    std::fs::write(&file, &rendition.bytes).unwrap();
    let mut command = Command::new("ffprobe");
    command.args([
        "-v",
        "error",
        "-count_frames",
        "-show_entries",
        "stream=nb_read_frames",
        "-of",
        "csv=p=0",
    ]);
    let output = command.arg(&file).stdin(Stdio::null()).output().unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        (said.trim(), complaints.trim()),
        (rendition.frames.len().to_string().as_str(), ""),
        "{}",
        rendition.codec
    );
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn video_is_passed_through_beside_encoded_rungs() {
    let x265: &[&str] = &[
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-x265-params",
        "bframes=2:keyint=50:min-keyint=50:open-gop=0:log-level=error",
    ];
    let aom: &[&str] =
        &["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-g", "50", "-b:v", "300k"];
    let x264: &[&str] = &["-x264-params", "bframes=3:keyint=50:min-keyint=50:scenecut=0:b-pyramid=normal"];
    for (codec, arguments, named) in [
        (VideoCodec::Avc, x264, "avc1.4d400c"),
        (VideoCodec::Hevc, x265, "hvc1.1.6.L60.90"),
        (VideoCodec::Av1, aom, "av01.0.00M.08"),
    ] {
        let Some(track) = made("testsrc2=s=320x180:r=25:d=8", arguments) else { return };
        for passthrough in [Passthrough::Top, Passthrough::Only] {
            let mut tags = Tags::default();
            tags.video(codec, &track, 900_000);
            tags.audio(&[0x11, 0x90], 48_000, 900_000 + times(&track).into_iter().min().unwrap(), 375);
            let played = play(passthrough, tags).await;
            played.check_cuts(named, false);
            let ids: Vec<_> = played.video().map(|rendition| rendition.id.as_str()).collect();
            let expected: &[&str] =
                if passthrough == Passthrough::Top { &["180p", "90p"] } else { &["180p"] };
            assert_eq!(ids, expected, "{codec}");
            for id in ids {
                check_frames(named, id, &times(&track), &played.shown(id), false);
            }
            let copy = played.video().next().unwrap();
            assert!(copy.codec.starts_with(named), "{} is not {named}", copy.codec);
            let entry = codec.fourcc().as_bytes();
            assert!(copy.init.windows(4).any(|name| name == entry));
            for (sent, passed) in track.frames.iter().zip(&copy.frames) {
                let sent = transcode::copy::stripped(codec, &Bytes::from(sent.data.clone()));
                assert!(passed.data == sent, "{codec}: its bytes are the source's");
            }
            let lengths: Vec<_> = copy.segments.iter().map(|(_, duration)| *duration).collect();
            assert_eq!(lengths, [180_000; 4], "{codec}: segments are as long as keyframes are apart");
            let audio = played.renditions.iter().find(|rendition| !rendition.video).unwrap();
            assert_eq!((audio.segments.len(), audio.frames.len()), (4, 375));
            assert_eq!(played.shared.metrics.runs.get(), 1);
            check_with_ffmpeg(copy);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_keyframes_do_not_come_the_source_is_encoded_and_no_frame_is_lost() {
    for (name, arguments, runs) in [
        // Regular at first.
        ("later", &["-force_key_frames", "0,2,4,7.4", "-g", "1000", "-bf", "2"][..], 2),
        ("from the first", &["-g", "1000", "-bf", "2"], 1),
        ("open", &["-x264-params", "open-gop=1:bframes=3:keyint=50:min-keyint=50:scenecut=0"], 2),
    ] {
        let Some(track) = made("testsrc2=s=320x180:r=25:d=10", arguments) else { return };
        let mut tags = Tags::default();
        tags.video(VideoCodec::Avc, &track, 900_000);
        let audio = 460;
        tags.audio(&[0x11, 0x90], 48_000, 900_000 + times(&track).into_iter().min().unwrap(), audio);
        let played = play(Passthrough::Top, tags).await;
        played.check_cuts(name, false);
        for id in ["180p", "90p"] {
            check_frames(name, id, &times(&track), &played.shown(id), false);
        }
        assert_eq!(played.shared.metrics.runs.get(), runs, "{name}");
        assert_eq!(played.shared.metrics.passthrough_ends.get(), runs - 1, "{name}");
        let heard: usize = played.renditions.iter().filter(|r| !r.video).map(|r| r.frames.len()).sum();
        assert_eq!(heard, audio as usize, "{name}: no audio is lost");
    }
}
