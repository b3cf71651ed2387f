//! Closed captions through real decoders and encoders of every codec: what libavcodec reads of a rung is what it reads of the
//! source, byte for byte.

#[path = "../../tests/kit/fragments.rs"]
mod fragments;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::frame::side_data::Type;
use fragments::{Track, encode};
use media::captions::inserted;
use media::codec::{VideoCodec, VideoConfig};
use media::{Sample, Ticks, Timescale};
use transcode::config::RungConfig;
use transcode::{Config, Event, Job, Metrics, VideoSource, cmaf, ladder, try_encoders};

const FRAMES: usize = 60;

/// Where a tool is missing and need not be there, that is said.
fn skipped(why: &str) {
    let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
    assert!(!strict, "{why}");
    eprintln!("SKIPPED: {why}");
}

/// What each frame says, in order of presentation: nothing, or up to 31 constructs, padding and zeros among them.
fn script() -> Vec<Vec<u8>> {
    let mut seed = 11u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    let triplet = |next: &mut dyn FnMut() -> u8| match next() % 5 {
        0 => [0xFC, 0x80, 0x80],
        1 => [0xFA, 0, 0],
        2 => [0xFD, 0, 0],
        _ => [0xFC | next() & 3, next(), next()],
    };
    let count = |frame: usize, next: &mut dyn FnMut() -> u8| match frame % 7 {
        3 => 0,
        5 => 31,
        _ => usize::from(next()) % 20,
    };
    (0..FRAMES)
        .map(|frame| (0..count(frame, &mut next)).flat_map(|_| triplet(&mut next)).collect::<Vec<u8>>())
        .collect()
}

/// The same constructs without those that a rung need not carry from one frame to another.
fn spoken(all: &[Vec<u8>]) -> Vec<u8> {
    let flat = all.concat();
    let (triplets, _) = flat.as_chunks::<3>();
    let says = |[head, first, second]: &&[u8; 3]| {
        head & 4 != 0 && (head & 2 != 0 || (first & 0x7F, second & 0x7F) != (0, 0))
    };
    triplets.iter().filter(says).flatten().copied().collect()
}

/// What libavcodec finds with each picture of a file, in order of presentation.
fn decoded(file: &str, config: &VideoConfig, samples: &[Sample]) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{file}.mp4"));
    let init = cmaf::source_init(Timescale::VIDEO, config);
    std::fs::write(&path, [init, cmaf::chunk(1, samples, true, None, &[])].concat()).unwrap();
    ffmpeg::init().unwrap();
    let mut input = ffmpeg::format::input(&path).unwrap();
    let parameters = input.streams().best(ffmpeg::media::Type::Video).unwrap().parameters();
    let context = ffmpeg::codec::Context::from_parameters(parameters).unwrap();
    let mut decoder = match config.codec {
        // libavcodec's own decoder of AV1 needs hardware.
        VideoCodec::Av1 => {
            let dav1d = ffmpeg::decoder::find_by_name("libdav1d").expect("libavcodec has libdav1d");
            context.decoder().open_as(dav1d).unwrap().video().unwrap()
        }
        _ => context.decoder().video().unwrap(),
    };
    let packets: Vec<_> = input.packets().map(|(_, packet)| packet).collect();
    let mut found = Vec::new();
    let mut drain = |decoder: &mut ffmpeg::decoder::Video| {
        let mut frame = ffmpeg::frame::Video::empty();
        while decoder.receive_frame(&mut frame).is_ok() {
            let captions = frame.side_data(Type::A53CC).map(|side| side.data().to_vec());
            found.push((frame.pts(), captions.unwrap_or_default()));
        }
    };
    for packet in packets {
        decoder.send_packet(&packet).unwrap();
        drain(&mut decoder);
    }
    decoder.send_eof().unwrap();
    drain(&mut decoder);
    std::fs::remove_file(&path).unwrap();
    assert!(found.is_sorted_by_key(|(pts, _)| *pts), "{file}: decoders give pictures in order");
    found.into_iter().map(|(_, captions)| captions).collect()
}

fn of(encoder: &str, height: u32, max_fps: Option<u32>) -> RungConfig {
    let name = max_fps.map(|fps| format!("{encoder}-{fps}"));
    RungConfig { encoder: Some(encoder.into()), max_fps, name, ..RungConfig::new(height, 200) }
}

/// All rungs whose encoders are there.
fn rules() -> Config {
    let mut config = Config { preset: "ultrafast".into(), ..Config::default() };
    for (encoder, height) in [("libx264", 120), ("libx265", 180), ("libaom-av1", 180)] {
        for rung in [of(encoder, height, None), of(encoder, height / 2, Some(10))] {
            let alone = Config { rungs: vec![rung.clone()], ..config.clone() };
            match try_encoders(&alone, encoder).as_slice() {
                [] => config.rungs.push(rung),
                problems => skipped(&problems.join("; ")),
            }
        }
    }
    config.rungs.retain(|rung| rung.encoder.is_some());
    config
}

async fn captions_go_through(codec: VideoCodec, arguments: &[&str]) {
    let pattern = ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=30", "-frames:v", "60", "-g", "20"];
    let track: Track = match encode(&[&pattern, arguments].concat(), 90_000) {
        Ok(track) => track,
        Err(error) => return skipped(&error),
    };
    let script = script();
    let mut times: Vec<Ticks> = track.frames.iter().map(|frame| frame.pts).collect();
    times.sort_unstable();
    assert_eq!(times.len(), FRAMES);
    let source: Vec<Sample> = (track.frames.iter())
        .map(|frame| {
            let says = &script[times.binary_search(&frame.pts).unwrap()];
            let data = match says.is_empty() {
                true => Bytes::copy_from_slice(&frame.data),
                false => inserted(codec, &frame.data, says).unwrap(),
            };
            Sample { dts: frame.dts, pts: frame.pts, duration: frame.duration, key: frame.key, data }
        })
        .collect();
    let record = Bytes::from(track.record);
    let config = match VideoConfig::parse(codec, record.clone()).unwrap() {
        Some(config) => config,
        None => VideoConfig::from_keyframe(codec, record, &track.frames[0].data).unwrap(),
    };
    assert_eq!(decoded(&format!("{codec}-source"), &config, &source), script, "{codec}: the source");

    let VideoConfig { record, width, height, sar, .. } = config;
    let video = VideoSource { codec, record, width, height, sar, frame_rate: None };
    let rungs = ladder::derive(&rules(), &video);
    let job = Job {
        source: video,
        rungs: rungs.clone(),
        start: times[0],
        segment_duration: 90_000,
        longest_showing: 90_000,
        given_cuts: false,
        deinterlace: true,
        shed: None,
        thumbnails: None,
    };
    let metrics = Metrics::default();
    let (mut input, mut output) = transcode::start(job, metrics.clone()).unwrap();
    let feed = tokio::spawn(async move {
        for sample in source {
            input.send(sample).await.unwrap();
        }
    });
    let (mut configs, mut samples) = (BTreeMap::new(), vec![Vec::new(); rungs.len()]);
    while let Some(event) = output.next().await {
        match event {
            Event::Config { rung, config } => drop(configs.insert(rung, config)),
            Event::Sample { rung, sample } => samples[rung].push(sample),
            Event::Damaged { frames } => panic!("{codec}: {frames} damaged"),
            Event::Ended(result) => result.unwrap(),
            _ => {}
        }
    }
    feed.await.unwrap();
    for (index, rung) in rungs.iter().enumerate() {
        let name = format!("{codec}-{}-{}", rung.id, rung.encoder.name);
        let found = decoded(&name, &configs[&index], &samples[index]);
        match rung.max_fps {
            None => assert_eq!(found, script, "{name}"),
            Some(_) => {
                assert_eq!(found.len(), FRAMES / 3, "{name}");
                // What waits when the last picture is there is not said: cut it off both.
                let (found, all) = (spoken(&found), spoken(&script));
                assert!(all.starts_with(&found) && found.len() * 10 > all.len() * 8, "{name}");
            }
        }
    }
    assert_eq!(metrics.captions_lost.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_h264_with_reordering() {
    let x264 = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-pix_fmt", "yuv420p"];
    captions_go_through(VideoCodec::Avc, &x264).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_hevc_with_reordering() {
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "bframes=2:log-level=error"];
    captions_go_through(VideoCodec::Hevc, &x265).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_av1() {
    let aom = ["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-row-mt", "1", "-b:v", "300k"];
    captions_go_through(VideoCodec::Av1, &aom).await;
}
