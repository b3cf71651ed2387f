//! Closed captions of a source, through a whole session: each is once in every rung, with the picture that it came with, and
//! players are told of them.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use media::captions::{each_triplet, inserted};
use media::codec::VideoCodec;
use transcode::Passthrough;
use transcode::config::RungConfig;

use super::{Played, Tags, Track, made, play, play_as, rules};
use crate::dash::Period;

/// Of a channel of line 21: a roll-up caption of two lines.
const SAID: [&str; 2] = ["CAPTIONS SURVIVE ", "IN EVERY RUNG "];

/// Odd parity, as CEA-608 has it.
fn line21(bytes: [u8; 2]) -> [u8; 3] {
    let [first, second] = bytes.map(|byte| if byte.count_ones() % 2 == 0 { byte | 0x80 } else { byte });
    [0xFC, first, second]
}

/// What each frame says, in order of presentation: a pair of characters or a code, or nothing.
fn script(frames: usize) -> Vec<[u8; 3]> {
    let mut script = Vec::new();
    for line in SAID {
        // Roll up by two rows, carriage return, row 15.
        for code in [[0x14, 0x25], [0x14, 0x2D], [0x14, 0x70]] {
            script.extend([line21(code), line21(code)]);
        }
        script.extend(line.as_bytes().chunks(2).map(|pair| line21([pair[0], *pair.get(1).unwrap_or(&0)])));
    }
    // Two seconds later the screen is cleared.
    script.resize(frames - 10, [0xFC, 0x80, 0x80]);
    script.extend([line21([0x14, 0x2C]); 2]);
    script.resize(frames, [0xFC, 0x80, 0x80]);
    script
}

/// Puts a message with these triplets and an empty second field in front of each access unit.
fn caption(track: &mut Track, script: &[[u8; 3]]) {
    let mut times: Vec<_> = track.frames.iter().map(|frame| frame.pts).collect();
    times.sort_unstable();
    for frame in &mut track.frames {
        let shown = times.binary_search(&frame.pts).unwrap();
        let mut nal = vec![6, 4, 8 + 2 + 6 + 1];
        nal.extend(b"\xB5\0\x31GA94\x03\xC2\xFF");
        nal.extend([script[shown], [0xFD, 0x80, 0x80]].concat());
        nal.extend([0xFF, 0x80]);
        frame.data.splice(0..0, [&(nal.len() as u32).to_be_bytes()[..], &nal].concat());
    }
}

/// The same in any codec, by what writes captions into rungs.
fn caption_as(codec: VideoCodec, track: &mut Track, script: &[[u8; 3]]) {
    let mut times: Vec<_> = track.frames.iter().map(|frame| frame.pts).collect();
    times.sort_unstable();
    for frame in &mut track.frames {
        let shown = times.binary_search(&frame.pts).unwrap();
        let triplets = [script[shown], [0xFD, 0x80, 0x80]].concat();
        frame.data = inserted(codec, &frame.data, &triplets).unwrap().to_vec();
    }
}

/// What the pictures of a rendition say, in order of presentation.
fn said(played: &Played, id: &str) -> Vec<[u8; 3]> {
    let of: Vec<_> = played.renditions.iter().filter(|rendition| rendition.id == id).collect();
    let codec = match &of[0].codec[..4] {
        "hvc1" => VideoCodec::Hevc,
        "av01" => VideoCodec::Av1,
        _ => VideoCodec::Avc,
    };
    let mut frames: Vec<_> = of.iter().flat_map(|rendition| &rendition.frames).collect();
    frames.sort_by_key(|frame| frame.pts);
    let mut said = Vec::new();
    for frame in frames {
        each_triplet(codec, &frame.data, |triplet| {
            if triplet[0] == 0xFC {
                said.push(triplet);
            }
        });
    }
    said
}

/// What ffmpeg reads on the screen.
fn read_by_ffmpeg(played: &Played, id: &str) -> String {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let file = FILES.fetch_add(1, Ordering::Relaxed);
    let rendition = played.renditions.iter().find(|rendition| rendition.id == id).unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("captions-{}-{file}.mp4", std::process::id()));
    std::fs::write(&file, &rendition.bytes).unwrap();
    let movie = format!("movie={}[out+subcc]", file.display());
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", &movie, "-map", "0:s", "-f", "srt", "-"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn captioned(
    passthrough: Passthrough,
    mut track: Track,
    missing: std::ops::Range<usize>,
) -> Option<Played> {
    let script = script(track.frames.len());
    caption(&mut track, &script);
    track.frames.drain(missing.clone());
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let blocks = track.frames.len() as u32 * 1600 / 1024;
    tags.audio(&[0x11, 0x90], 48_000, 900_000 + track.frames[0].pts, blocks);
    let played = play(passthrough, tags).await;
    let mut expected = script;
    expected.drain(missing);
    for id in ["180p", "90p"] {
        assert_eq!(said(&played, id), expected, "{passthrough:?} {id}");
    }
    Some(played)
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_are_in_every_rung_and_in_the_manifests() {
    let reordered = &["-bf", "2", "-g", "30", "-keyint_min", "30", "-sc_threshold", "0"];
    for passthrough in [Passthrough::Off, Passthrough::Top] {
        let Some(track) = made("testsrc2=s=320x180:r=30:d=4", reordered) else { return };
        let Some(played) = captioned(passthrough, track, 0..0).await else { return };
        for id in ["180p", "90p"] {
            let read = read_by_ffmpeg(&played, id);
            assert!(SAID.iter().all(|line| read.contains(line.trim())), "{passthrough:?} {id}: {read}");
        }
        let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
        let multivariant = live.multivariant("").unwrap();
        assert!(multivariant.contains("NAME=\"CC1\",AUTOSELECT=YES,INSTREAM-ID=\"CC1\"\n"), "{multivariant}");
        assert_eq!(multivariant.matches(",CLOSED-CAPTIONS=\"cc\"\n").count(), 2, "{multivariant}");
        let mpd = live.mpd(1500, 0, "/time", None).unwrap();
        assert!(mpd.contains("urn:scte:dash:cc:cea-608:2015\" value=\"CC1=und\""), "{mpd}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hevc_and_av1_carry_captions_passed_through_and_encoded() {
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params"];
    let hevc = [&x265[..], &["bframes=2:keyint=30:min-keyint=30:scenecut=0:open-gop=0:log-level=error"]];
    let av1 = [&["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"][..], &["-g", "30"]];
    for (codec, arguments) in [(VideoCodec::Hevc, hevc), (VideoCodec::Av1, av1)] {
        let Some(mut track) = made("testsrc2=s=320x180:r=30:d=4", &arguments.concat()) else { return };
        let script = script(track.frames.len());
        caption_as(codec, &mut track, &script);
        let mut tags = Tags::default();
        tags.video(codec, &track, 900_000);
        let of = |encoder: &str| RungConfig { encoder: Some(encoder.into()), ..RungConfig::new(90, 100) };
        let rungs = ["libx264", "libx265", "libaom-av1"].map(of).to_vec();
        let played = play_as(transcode::Config { rungs, ..rules(Passthrough::Top) }, tags).await;
        let ids: Vec<_> = played.video().map(|rendition| rendition.id.clone()).collect();
        assert_eq!(ids.len(), 4, "{codec}: the source and three rungs: {ids:?}");
        for id in ids {
            assert_eq!(said(&played, &id), script, "{codec} {id}");
            let read = read_by_ffmpeg(&played, &id);
            assert!(SAID.iter().all(|line| read.contains(line.trim())), "{codec} {id}: {read}");
        }
        let (hls, dash) = played.manifests();
        assert_eq!(hls.matches(",CLOSED-CAPTIONS=\"cc\"\n").count(), 4, "{hls}");
        // The source and the rung of its codec are in one set.
        let newest = dash.rsplit("<Period ").next().unwrap();
        for of_each_set in ["contentType=\"video\"", "cea-608:2015\" value=\"CC1=und\"", "scte35:2013:bin"] {
            assert_eq!(newest.matches(of_each_set).count(), 3, "{of_each_set}: {dash}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_carry_captions_announces_none() {
    // VP9 has no place for them.
    let vp9 = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "300k", "-g", "30"];
    let Some(track) = made("testsrc2=s=320x180:r=30:d=3", &vp9) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Vp9, &track, 900_000);
    let played = play(Passthrough::Off, tags).await;
    let (hls, dash) = played.manifests();
    assert_eq!(hls.matches(",CLOSED-CAPTIONS=NONE\n").count(), 2, "{hls}");
    assert!(!hls.contains("TYPE=CLOSED-CAPTIONS") && !dash.contains("cea-608"), "{hls} {dash}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_with_fewer_frames_says_all_the_same() {
    let Some(mut track) = made("testsrc2=s=320x180:r=30:d=4", &["-bf", "2", "-g", "30"]) else { return };
    let script = script(track.frames.len());
    caption(&mut track, &script);
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let mut rules = rules(Passthrough::Off);
    let slow = rules.rungs.last_mut().unwrap();
    slow.max_fps = Some(10);
    let played = play_as(rules, tags).await;
    assert_eq!(said(&played, "180p"), script);
    let spoken = |said: Vec<[u8; 3]>| said.into_iter().filter(|t| t[1..] != [0x80, 0x80]).collect::<Vec<_>>();
    let slow = said(&played, "90p");
    assert!(slow.len() < script.len());
    assert_eq!(spoken(slow), spoken(script));
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_stand_in_for_others_say_nothing_again() {
    let Some(track) = made("testsrc2=s=320x180:r=30:d=4", &["-bf", "0", "-g", "30"]) else { return };
    // Half a second is missing: the picture before it, which says something, is shown in its place.
    let Some(played) = captioned(Passthrough::Off, track, 15..30).await else { return };
    assert!(played.shared.transcode_metrics.frames_filled.get() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn captions_that_begin_later_are_told_from_then_on_and_to_dash_with_the_next_run() {
    let Some(mut track) = made("testsrc2=s=320x180:r=30:d=10", &["-bf", "0", "-g", "30"]) else { return };
    // More than fits between the source and what is published: by then the run has begun.
    let mut late = track.frames.split_off(250);
    let mut captions = Track { record: Vec::new(), frames: std::mem::take(&mut late) };
    caption(&mut captions, &script(50));
    track.frames.append(&mut captions.frames);
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    tags.audio(&[0x11, 0x90], 48_000, 900_000 + track.frames[0].pts, 468);
    let played = play(Passthrough::Off, tags).await;
    let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
    assert!(live.multivariant("").unwrap().contains("CLOSED-CAPTIONS=\"cc\""));
    assert!(!live.mpd(1500, 0, "/time", None).unwrap().contains("cea-608"));
    let runs = live.read(|_, broadcast| broadcast.unwrap().periods.clone());
    let [Period { captions, captions_found, .. }] = &runs[..] else { panic!("{runs:?}") };
    assert_eq!((captions.len(), captions_found.len()), (0, 1));
}
