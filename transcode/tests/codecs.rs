//! Other codecs than H.264 in, the usual ladder out: every frame once, at its time, and looking as it was.

#[path = "../../tests/kit/fragments.rs"]
mod fragments;

use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use fragments::{Track, encode};
use media::codec::{AudioConfig, OpusConfig, VideoCodec, VideoConfig};
use media::flv::{self, Audio};
use media::{Sample, Ticks};
use transcode::{Config, Event, Job, Metrics, VideoSource, audio, cmaf, ladder};

const FRAMES: usize = 50;

/// Half a minute of nothing is no test: `None` with a message where ffmpeg or its encoder is missing and need not be there.
fn made(arguments: &[&str], timescale: u32) -> Option<Track> {
    match encode(arguments, timescale) {
        Ok(track) => Some(track),
        Err(error) => {
            let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
            assert!(!strict, "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

async fn every_frame_comes_out(codec: VideoCodec, arguments: &[&str], from_keyframe: bool) {
    let pattern = ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=25", "-frames:v", "50", "-g", "20"];
    let Some(track) = made(&[&pattern, arguments].concat(), 90_000) else { return };
    assert_eq!(track.frames.len(), FRAMES);
    let record = Bytes::from(track.record);
    let config = match VideoConfig::parse(codec, record.clone()).unwrap() {
        Some(config) => config,
        None => VideoConfig::from_keyframe(codec, record, &track.frames[0].data).unwrap(),
    };
    assert_eq!((config.width, config.height, config.sar), (320, 180, (1, 1)), "{codec}");
    assert!(config.frame_rate.is_none_or(|rate| (rate.fps() - 25.0).abs() < 1e-9), "{:?}", config.frame_rate);
    if from_keyframe {
        let from_keyframe =
            VideoConfig::from_keyframe(codec, config.record.clone(), &track.frames[0].data).unwrap();
        assert_eq!((from_keyframe.width, from_keyframe.height), (320, 180), "{codec}");
    }
    let VideoConfig { record, width, height, sar, .. } = config;
    let source = VideoSource { codec, record, width, height, sar, frame_rate: None };
    let rungs = ladder::derive(&Config::default(), &source);
    let start = track.frames.iter().map(|frame| frame.pts).min().unwrap();
    let job = Job {
        source,
        rungs,
        start,
        segment_duration: 90_000,
        longest_showing: 90_000,
        given_cuts: false,
        deinterlace: true,
        shed: None,
        thumbnails: None,
    };
    let (mut input, mut output) = transcode::start(job, Metrics::default()).unwrap();
    let mut expected: Vec<Ticks> = track.frames.iter().map(|frame| frame.pts).collect();
    expected.sort_unstable();
    let feed = tokio::spawn(async move {
        for frame in track.frames {
            let (dts, pts, duration, key) = (frame.dts, frame.pts, frame.duration, frame.key);
            input.send(Sample { dts, pts, duration, key, data: frame.data.into() }).await.unwrap();
        }
    });
    let mut shown = Vec::new();
    while let Some(event) = output.next().await {
        match event {
            Event::Sample { rung: 0, sample } => {
                assert_eq!(sample.key, (sample.pts - start) % 90_000 == 0, "{codec} {}", sample.pts);
                shown.push(sample.pts);
            }
            Event::Picture { .. } | Event::Sheet { .. } => panic!("{codec}: nobody asked for thumbnails"),
            Event::Damaged { frames } => panic!("{codec}: {frames} damaged"),
            Event::Ended(result) => result.unwrap(),
            _ => {}
        }
    }
    feed.await.unwrap();
    assert_eq!(shown, expected, "{codec}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hevc_with_reordering() {
    let x265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "bframes=2:log-level=error"];
    every_frame_comes_out(VideoCodec::Hevc, &x265, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hevc_of_ten_bits() {
    let x265 = ["-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast"];
    every_frame_comes_out(
        VideoCodec::Hevc,
        &[&x265[..], &["-x265-params", "log-level=error"]].concat(),
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn av1() {
    let aom = ["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-row-mt", "1", "-b:v", "300k"];
    every_frame_comes_out(VideoCodec::Av1, &aom, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vp9() {
    let vpx = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "300k"];
    every_frame_comes_out(VideoCodec::Vp9, &vpx, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opus_becomes_aac_at_the_same_times() {
    for channels in [1, 2, 6] {
        let sine = ["-f", "lavfi", "-i", "sine=r=48000:d=3", "-ac", &channels.to_string(), "-c:a", "libopus"];
        let Some(track) =
            made(&[&sine[..], &["-mapping_family", if channels > 2 { "1" } else { "-1" }]].concat(), 48_000)
        else {
            return;
        };
        let config = OpusConfig::parse(track.record.into()).unwrap();
        assert_eq!(config.channels, channels);
        let metrics = Metrics::default();
        let (aac, mut input, mut output) =
            audio::start(&AudioConfig::Opus(config.clone()), true, metrics.clone()).unwrap();
        assert_eq!((aac.sample_rate, aac.channels, aac.object_type), (48_000, channels, 2));
        const ZERO: Ticks = 100_000;
        let mut end = 0;
        let feed = tokio::spawn(async move {
            for (index, frame) in track.frames.into_iter().enumerate() {
                let (pts, duration) = (ZERO + frame.dts, frame.duration);
                end = pts + 960;
                // One packet is lost, one is damaged: both leave silence.
                let data = if index == 60 { vec![0xFF] } else { frame.data };
                if index != 50 {
                    input
                        .send(Sample { dts: pts, pts, duration, key: true, data: data.into() })
                        .await
                        .unwrap();
                }
            }
            end
        });
        let mut frames = Vec::new();
        while let Some(frame) = output.next().await {
            frames.push(frame.unwrap());
        }
        let end = feed.await.unwrap();
        assert!(frames.iter().all(|frame| frame.duration == 1024 && !frame.data.is_empty()));
        assert!(frames.windows(2).all(|pair| pair[0].pts + 1024 == pair[1].pts), "no hole is left");
        let (first, last) = (frames[0].pts, frames.last().unwrap().pts + 1024);
        // The encoder's frame of priming lies before; the decoder's pre-skip is left out.
        assert_eq!(first, ZERO + Ticks::from(config.pre_skip) - 1024, "{channels} channels");
        assert!((end..end + 2048).contains(&last), "{last} {end}");
        assert_eq!(metrics.audio_damaged.get(), 1);
    }
}

/// A tone from one second on, through an encoder, as a broadcaster sends it; `None` as in [`made`].
fn tone(layout: &str, sample_rate: u32, arguments: &[&str]) -> Option<Vec<u8>> {
    let channels = if layout == "5.1" { 6 } else { 2 };
    let one = "if(gte(t,1),0.5*sin(2*PI*1000*t),0)";
    let source = format!("aevalsrc='{}':s={sample_rate}:d=2:c={layout}", vec![one; channels].join("|"));
    let rate = sample_rate.to_string();
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", &source, "-ar", &rate]);
    let output = command.args(arguments).args(["-f", "flv", "-"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Some(output.stdout),
        failed => {
            let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
            assert!(!strict, "{failed:?}");
            eprintln!("skipped: {failed:?}");
            None
        }
    }
}

/// How many samples ffmpeg's decoder gives before the tone.
fn onset(name: &str, bytes: &[u8]) -> Ticks {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, bytes).unwrap();
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(&file).args(["-ac", "1", "-f", "f32le", "-"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(
        (output.status.success(), String::from_utf8_lossy(&output.stderr).trim()),
        (true, ""),
        "{name}"
    );
    std::fs::remove_file(&file).unwrap();
    let samples = output.stdout.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let loud: Vec<f32> = samples.map(f32::abs).collect();
    let most = loud.iter().copied().fold(0.0, f32::max);
    assert!(most > 0.1, "{name}: {most}");
    loud.iter().position(|sample| *sample > most * 0.5).unwrap() as Ticks
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_that_is_coded_anew_is_heard_when_it_was() {
    for (name, layout, sample_rate, arguments, channels) in [
        ("aac-51", "5.1", 48_000, &["-c:a", "aac", "-b:a", "384k"][..], 2),
        ("aac-51-441", "5.1", 44_100, &["-c:a", "aac", "-b:a", "384k"], 2),
        ("mp3", "stereo", 44_100, &["-c:a", "libmp3lame", "-b:a", "128k"], 2),
        ("mp3-mono", "stereo", 22_050, &["-c:a", "libmp3lame", "-b:a", "64k", "-ac", "1"], 1),
        ("mp3-low", "stereo", 11_025, &["-c:a", "libmp3lame", "-b:a", "32k"], 2),
    ] {
        let Some(broadcast) = tone(layout, sample_rate, arguments) else { return };
        let mut flv = flv::Decoder::new();
        flv.push(&broadcast);
        let (mut config, mut packets, mut first_ms) = (None, Vec::new(), None);
        while let Some(tag) = flv.poll().unwrap() {
            if tag.kind != flv::TagKind::Audio {
                continue;
            }
            match tag.audio().unwrap() {
                Audio::Config { codec, record } => config = Some(AudioConfig::parse(codec, record).unwrap()),
                Audio::Frame { codec, data } => {
                    first_ms.get_or_insert(Ticks::from(tag.timestamp_ms));
                    config.get_or_insert_with(|| AudioConfig::parse(codec, data.clone()).unwrap());
                    packets.push(data);
                }
                Audio::Nothing => {}
            }
        }
        let (config, first) = (config.unwrap(), first_ms.unwrap() * Ticks::from(sample_rate) / 1000);
        assert_eq!(config.timescale().per_second(), sample_rate, "{name}");
        if let AudioConfig::Aac(aac) = &config {
            assert!(audio::mixes(aac, false) && !audio::mixes(aac, true));
        }
        let metrics = Metrics::default();
        let (aac, mut input, mut output) = audio::start(&config, false, metrics.clone()).unwrap();
        assert_eq!((aac.sample_rate, aac.channels, aac.object_type), (sample_rate, channels, 2), "{name}");
        const ZERO: Ticks = 90_000;
        let source = config.clone();
        let feed = tokio::spawn(async move {
            let mut pts = ZERO + first;
            for data in packets {
                let duration = Ticks::from(source.frame_samples(&data));
                input.send(Sample { dts: pts, pts, duration, key: true, data }).await.unwrap();
                pts += duration;
            }
            pts
        });
        let mut frames = Vec::new();
        while let Some(frame) = output.next().await {
            frames.push(frame.unwrap());
        }
        let end = feed.await.unwrap();
        assert_eq!(metrics.audio_damaged.get(), 0, "{name}");
        assert!(frames.windows(2).all(|pair| pair[0].pts + 1024 == pair[1].pts), "{name}: no hole");
        let last = frames.last().unwrap().pts + 1024;
        assert!((end..end + 2048).contains(&last), "{name}: {last} {end}");
        let mut file =
            cmaf::audio_init(aac.timescale(), sample_rate, channels as u16, &aac.record, 0).to_vec();
        file.extend_from_slice(&cmaf::chunk(1, &frames, true, None, &[]));
        let (sent, heard) = (onset(&format!("{name}.flv"), &broadcast), onset(&format!("{name}.mp4"), &file));
        let off_ms = (frames[0].pts + heard - (ZERO + first + sent)) * 1000 / Ticks::from(sample_rate);
        assert!(off_ms.abs() <= 2, "{name}: {off_ms} ms off");
    }
}
