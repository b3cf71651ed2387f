//! Ladders as operators write them: rungs with fewer frames, and in several codecs; interlaced sources.

use std::process::{Command, Stdio};

use media::codec::VideoCodec;
use media::time::Ticks;
use transcode::config::RungConfig;
use transcode::{Deinterlace, Passthrough};

use super::{Rendition, Tags, check_frames, check_with_ffmpeg, made, play_as, rules, times};
use crate::hls::Kind;

#[tokio::test(flavor = "multi_thread")]
async fn rungs_with_fewer_frames_are_cut_with_the_others() {
    for (name, rate, arguments, passthrough, there) in [
        ("60", "60", &["-bf", "2"][..], Passthrough::Off, 120),
        ("59.94", "60000/1001", &["-bf", "2"], Passthrough::Off, 120),
        ("50", "50", &["-bf", "2"], Passthrough::Off, 100),
        ("30", "30", &[], Passthrough::Off, 120),
        (
            "beside the source",
            "60",
            &["-x264-params", "keyint=60:min-keyint=60:scenecut=0"],
            Passthrough::Top,
            120,
        ),
    ] {
        let Some(track) = made(&format!("testsrc2=s=320x180:r={rate}:d=4"), arguments) else { return };
        let mut tags = Tags::default();
        tags.video(VideoCodec::Avc, &track, 900_000);
        let mut rules = rules(passthrough);
        rules.rungs[2].max_fps = Some(30);
        let thin = RungConfig { name: Some("thin".into()), max_fps: Some(10), ..RungConfig::new(60, 90) };
        rules.rungs.extend([thin, RungConfig::new(40, 80)]);
        let played = play_as(rules, tags).await;
        played.check_cuts(name, false);
        let source = times(&track);
        for id in ["180p", "40p"] {
            check_frames(name, id, &source, &played.shown(id), false);
        }
        let (full, half, thin) = (played.shown("180p"), played.shown("90p"), played.shown("thin"));
        assert_eq!(half.len(), there, "{name}");
        // Those of the source, in order, none twice; a frame that is left out is shown as the one before.
        for shown in [&half, &thin] {
            assert!(shown.iter().all(|(pts, _)| full.iter().any(|(at, _)| at == pts)), "{name}");
            let end = |shown: &[(Ticks, Ticks)]| shown.last().map(|(pts, duration)| pts + duration);
            assert_eq!(end(shown), end(&full), "{name}");
        }
        let fps = |id: &str| {
            let found = played.kinds.iter().find(|(of, _)| of == id);
            match found.map(|(_, kind)| *kind) {
                Some(Kind::Video { frame_rate: Some(rate), .. }) => rate.fps(),
                other => panic!("{name} {id}: {other:?}"),
            }
        };
        let most = fps("180p");
        assert_eq!(fps("90p"), if most > 33.0 { most / 2.0 } else { most }, "{name}");
        assert!((9.0..11.0).contains(&fps("thin")) && fps("40p") == most, "{name}: {}", fps("thin"));
        assert_eq!(played.shared.metrics.runs.get(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ladder_of_several_codecs() {
    let Some(track) = made("testsrc2=s=320x180:r=50:d=4", &["-bf", "2"]) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    tags.audio(&[0x11, 0x90], 48_000, 900_000 + times(&track)[0], 187);
    let of = |encoder: &str, height, kbps| RungConfig {
        encoder: Some(encoder.into()),
        ..RungConfig::new(height, kbps)
    };
    let rungs = vec![
        of("libx265", 180, 200),
        RungConfig::new(180, 300),
        RungConfig { max_fps: Some(25), ..of("libaom-av1", 90, 80) },
        RungConfig::new(90, 100),
    ];
    let played = play_as(transcode::Config { rungs, ..rules(Passthrough::Off) }, tags).await;
    played.check_cuts("codecs", false);
    let codecs: Vec<_> =
        played.video().map(|rendition| (rendition.id.as_str(), rendition.codec.as_str())).collect();
    let expected = [
        ("180p-hevc", "hvc1.1.6.L60.90"),
        ("180p", "avc1.42c015"),
        ("90p-av1", "av01.0.00M.08"),
        ("90p", "avc1.42c00b"),
    ];
    assert_eq!(codecs, expected);
    for rendition in played.video() {
        let frames = if rendition.id == "90p-av1" { 100 } else { 200 };
        assert_eq!(rendition.frames.len(), frames, "{}", rendition.id);
        assert!(rendition.init.windows(4).any(|entry| entry == &rendition.codec.as_bytes()[..4]));
        check_with_ffmpeg(rendition);
    }
    let (hls, dash) = played.manifests();
    // The end of a broadcast is a period of its own.
    let dash = dash.rsplit("<Period ").next().unwrap();
    for (id, codec) in expected {
        let listed = hls.split("#EXT-X-STREAM-INF:").find(|entry| entry.contains(&format!("\n{id}.m3u8")));
        assert!(
            listed.is_some_and(|entry| entry.contains(&format!("CODECS=\"{codec},mp4a.40.2\""))),
            "{id}: {hls}"
        );
        // One set per codec: players switch within a set.
        let fourcc = &codec[..4];
        let sets: Vec<_> =
            dash.split("<AdaptationSet ").filter(|set| set.contains(&format!("codecs=\"{fourcc}"))).collect();
        assert!(
            sets.len() == 1 && sets[0].contains(&format!("<Representation id=\"{id}\" codecs=\"{codec}\"")),
            "{dash}"
        );
    }
    assert_eq!(dash.matches("contentType=\"video\"").count(), 3, "{dash}");
    let ids: std::collections::BTreeSet<_> =
        dash.split("<AdaptationSet id=\"").skip(1).map(|set| set.split('"').next()).collect();
    assert_eq!(ids.len(), 5, "three of video, audio and thumbnails: {dash}");
}

/// How near a rendition is to these pictures, in dB (PSNR of all frames together).
fn likeness(rendition: &Rendition, pictures: &str) -> f64 {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("fields-{}.mp4", std::process::id()));
    std::fs::write(&file, &rendition.bytes).unwrap();
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "info", "-i"]).arg(&file).args(["-f", "lavfi", "-i", pictures]);
    let graph = "[0:v]settb=1/25,setpts=N[a];[1:v]format=yuv420p,settb=1/25,setpts=N[b];[a][b]psnr";
    let output = command.args(["-lavfi", graph, "-f", "null", "-"]).stdin(Stdio::null()).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let average = said.rsplit("average:").next().and_then(|rest| rest.split(' ').next());
    average.and_then(|average| average.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_become_pictures() {
    // Pictures move by four samples from field to field.
    let moving = "testsrc2=s=640x180:r=50:d=3,gblur=sigma=1,crop=320:180:mod(4*n\\,300):0";
    for (order, top_first) in [("interleave_top", "1"), ("interleave_bottom", "0")] {
        let pattern = format!("{moving},tinterlace=mode={order}");
        let fields = ["-flags", "+ildct+ilme", "-top", top_first, "-b:v", "8M", "-g", "25"];
        let Some(track) = made(&pattern, &fields) else { return };
        let mut likenesses = Vec::new();
        for deinterlace in [Deinterlace::Auto, Deinterlace::Off] {
            let mut tags = Tags::default();
            tags.video(VideoCodec::Avc, &track, 900_000);
            let rungs = vec![RungConfig::new(180, 8000), RungConfig::new(90, 3000)];
            let rules = transcode::Config { deinterlace, rungs, ..rules(Passthrough::Off) };
            let played = play_as(rules, tags).await;
            played.check_cuts(order, false);
            check_frames(order, "180p", &times(&track), &played.shown("180p"), false);
            let made = played.shared.transcode_metrics.frames_deinterlaced.get();
            assert_eq!(made, if deinterlace == Deinterlace::Auto { track.frames.len() as u64 } else { 0 });
            let largest = played.video().next().unwrap();
            likenesses.push(likeness(largest, &format!("{moving},framestep=2")));
        }
        let [with, without] = likenesses[..] else { unreachable!("two were pushed") };
        println!("{order}: {with:.1} dB, {without:.1} dB as it is");
        assert!(with > without + 6.0, "{order}: {with} dB, {without} dB as it is");
    }
    // What is progressive is left alone.
    let Some(track) = made("testsrc2=s=320x180:r=25:d=1", &[]) else { return };
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let played = play_as(rules(Passthrough::Off), tags).await;
    assert_eq!(played.shared.transcode_metrics.frames_deinterlaced.get(), 0);
}
