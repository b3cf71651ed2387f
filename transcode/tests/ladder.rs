//! Real clips through the whole crate, judged by ffprobe and ffmpeg: every frame once in every rung,
//! keyframes where segments begin, files that play.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use media::codec::avc::AvcConfig;
use media::codec::{VideoCodec, VideoConfig};
use media::flv::{self, Video};
use media::time::FrameRate;
use media::{Sample, Ticks, Timescale};
use transcode::{
    Closed, Config, Error, Event, Input, Job, Metrics, Output, Rung, Thumbnails, VideoSource, cmaf, ladder,
};

const SECOND: Ticks = 90_000;

/// A broadcast as the origin would hand it over: 90 kHz, on the frame rate's grid.
struct Clip {
    source: VideoSource,
    samples: Vec<Sample>,
}

impl Clip {
    /// Encodes a moving test picture with B-frames. `None`, with a message, if ffmpeg is missing and need
    /// not be there.
    fn make(size: &str, rate: FrameRate, frames: u32, extra: &[&str]) -> Option<Self> {
        let pattern = format!("testsrc2=size={size}:rate={}/{}", rate.num, rate.den);
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-f", "lavfi", "-i", &pattern, "-frames:v", &frames.to_string()]);
        command
            .args(["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "50", "-pix_fmt", "yuv420p"]);
        command.args(extra).args(["-f", "flv", "-"]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let flv = match command.output() {
            Ok(output) => output,
            Err(error) => {
                let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
                assert!(!strict, "ffmpeg: {error}");
                eprintln!("skipped: ffmpeg: {error}");
                return None;
            }
        };
        assert!(flv.status.success(), "ffmpeg {extra:?}");
        let clip = Self::read(&flv.stdout, rate);
        assert_eq!(clip.samples.len(), frames as usize);
        Some(clip)
    }

    fn read(bytes: &[u8], rate: FrameRate) -> Self {
        let mut flv = flv::Decoder::new();
        flv.push(bytes);
        let (mut avcc, mut samples) = (Bytes::new(), Vec::new());
        while let Some(tag) = flv.poll().unwrap() {
            if tag.kind != flv::TagKind::Video {
                continue;
            }
            match tag.video().unwrap() {
                Video::Config { record, .. } => avcc = record,
                Video::Frame { key, composition_ms, data, .. } => {
                    let pts_ms = i64::from(tag.timestamp_ms) + i64::from(composition_ms);
                    // FLV's milliseconds back onto the exact grid.
                    let index = (pts_ms as f64 * rate.fps() / 1000.0).round() as i64;
                    let pts = rate.frame_start(index, Timescale::VIDEO);
                    let duration = rate.frame_start(index + 1, Timescale::VIDEO) - pts;
                    let dts = i64::from(tag.timestamp_ms) * 90;
                    samples.push(Sample { dts, pts, duration, key, data });
                }
                Video::Nothing => {}
            }
        }
        let config = AvcConfig::parse(avcc.clone()).unwrap();
        let AvcConfig { width, height, sar, .. } = config;
        let (codec, record) = (VideoCodec::Avc, avcc);
        Self { source: VideoSource { codec, record, width, height, sar, frame_rate: Some(rate) }, samples }
    }

    /// Presentation time and duration of every frame, in order of presentation.
    fn shown(&self) -> Vec<(Ticks, Ticks)> {
        let shown: BTreeMap<_, _> = self.samples.iter().map(|sample| (sample.pts, sample.duration)).collect();
        assert_eq!(shown.len(), self.samples.len());
        shown.into_iter().collect()
    }

    fn job(&self) -> Job {
        let rungs = ladder::derive(&Config::default(), &self.source);
        let start = self.shown()[0].0;
        Job {
            source: self.source.clone(),
            rungs,
            start,
            segment_duration: SECOND,
            longest_showing: SECOND,
            given_cuts: false,
            deinterlace: true,
            shed: None,
            thumbnails: None,
        }
    }
}

/// What came out.
struct Outcome {
    /// Per rung: its configuration and its samples.
    rungs: Vec<(Option<VideoConfig>, Vec<Sample>)>,
    damaged: u64,
    /// Rungs that are not encoded, and the segments for which they are not.
    shed: Vec<(usize, Ticks)>,
    /// When thumbnails are shown, and the sheets of them.
    pictures: Vec<Ticks>,
    sheets: Vec<i64>,
    ended: Result<(), Error>,
}

/// Feeds a job from one task and reads it in another.
async fn transcode(job: Job, samples: Vec<Sample>) -> Outcome {
    let (mut input, output) = transcode::start(job.clone(), Metrics::default()).unwrap();
    let feed = tokio::spawn(async move {
        for sample in samples {
            if input.send(sample).await == Err(Closed) {
                break;
            }
        }
    });
    let outcome = read(output, &job.rungs).await;
    feed.await.unwrap();
    outcome
}

async fn read(mut output: Output, rungs: &[Rung]) -> Outcome {
    let mut outcome = Outcome {
        rungs: vec![Default::default(); rungs.len()],
        damaged: 0,
        shed: Vec::new(),
        pictures: Vec::new(),
        sheets: Vec::new(),
        ended: Ok(()),
    };
    let mut ended = false;
    while let Some(event) = output.next().await {
        assert!(!ended, "{event:?} after the end");
        match event {
            Event::Config { rung, config } => {
                assert_eq!((config.width, config.height), (rungs[rung].width, rungs[rung].height));
                assert!(outcome.rungs[rung].0.is_none() && outcome.rungs[rung].1.is_empty());
                outcome.rungs[rung].0 = Some(config);
            }
            Event::Sample { rung, sample } => {
                assert!(outcome.rungs[rung].0.is_some(), "a sample before its configuration");
                outcome.rungs[rung].1.push(sample);
            }
            Event::Shed { rung, pts } => outcome.shed.push((rung, pts)),
            Event::Picture { pts, .. } => outcome.pictures.push(pts),
            Event::Sheet { number, .. } => outcome.sheets.push(number),
            Event::Damaged { frames } => outcome.damaged += frames,
            Event::Ended(result) => {
                outcome.ended = result;
                ended = true;
            }
        }
    }
    assert!(ended);
    outcome
}

/// Every frame once, at its own time; a keyframe where the segment changes and nowhere else.
fn check_samples(job: &Job, shown: &[(Ticks, Ticks)], outcome: &Outcome) {
    for (rung, (_, samples)) in job.rungs.iter().zip(&outcome.rungs) {
        let times: Vec<_> = samples.iter().map(|sample| (sample.pts, sample.duration)).collect();
        assert_eq!(times, shown, "{}", rung.id);
        let mut segment = None;
        for sample in samples {
            assert_eq!(sample.dts, sample.pts);
            let index = transcode::segment_index(job.start, job.segment_duration, sample.pts);
            assert_eq!(sample.key, segment.replace(index) != Some(index), "{} at {}", rung.id, sample.pts);
            check_nal_units(&sample.data, sample.key);
        }
    }
}

fn check_nal_units(mut data: &[u8], key: bool) {
    let mut kinds = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (nal, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        kinds.push(nal[0] & 0x1f);
        data = rest;
    }
    assert!(data.is_empty());
    assert!(kinds.iter().all(|kind| !matches!(kind, 7..=9)), "{kinds:?}");
    assert!(
        kinds.contains(&if key { 5 } else { 1 }) && !kinds.contains(&if key { 1 } else { 5 }),
        "{kinds:?}"
    );
}

/// Writes each rung as a file of chunks of 200 ms and has ffmpeg and ffprobe read it back.
fn check_files(name: &str, job: &Job, shown: &[(Ticks, Ticks)], outcome: &Outcome) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut files = Vec::new();
    for (rung, (config, samples)) in job.rungs.iter().zip(&outcome.rungs) {
        let mut bytes = cmaf::source_init(Timescale::VIDEO, config.as_ref().unwrap()).to_vec();
        let mut last = None;
        let part = |sample: &Sample| transcode::segment_index(job.start, SECOND / 5, sample.pts);
        for (sequence, samples) in samples.chunk_by(|a, b| part(a) == part(b)).enumerate() {
            let segment = transcode::segment_index(job.start, SECOND, samples[0].pts);
            let first_of_segment = last.replace(segment) != Some(segment);
            bytes.extend_from_slice(&cmaf::chunk(sequence as u32 + 1, samples, first_of_segment, None, &[]));
        }
        let file = folder.join(format!("{}.mp4", rung.id));
        std::fs::write(&file, bytes).unwrap();
        let packets = probe(&file, "packet=pts,dts,flags");
        let expected: Vec<_> = shown
            .iter()
            .zip(samples)
            .map(|(&(pts, _), sample)| format!("{pts},{pts},{}", if sample.key { "K_" } else { "__" }))
            .collect();
        assert_eq!(packets, expected, "{}", file.display());
        assert_eq!(probe(&file, "frame=pts").len(), shown.len(), "{}", file.display());
        let null = ["-v", "error", "-xerror", "-i", file.to_str().unwrap(), "-f", "null", "-"];
        let decoded = Command::new("ffmpeg").args(null).stdin(Stdio::null()).output().unwrap();
        assert!(
            decoded.status.success() && decoded.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&decoded.stderr)
        );
        files.push(file);
    }
    files
}

fn probe(file: &Path, entries: &str) -> Vec<String> {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v", "-show_entries", entries, "-of", "csv=p=0"])
        .arg(file)
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim_end_matches(',').to_owned()).filter(|line| !line.is_empty()).collect()
}

/// A clip of 3 s and a bit, end to end; returns the files for a closer look.
async fn check_clip(
    name: &str,
    size: &str,
    rate: (u32, u32),
    rungs: &[&str],
    extra: &[&str],
) -> Vec<PathBuf> {
    let rate = FrameRate { num: rate.0, den: rate.1 };
    let frames = (3.3 * rate.fps()) as u32;
    let Some(clip) = Clip::make(size, rate, frames, extra) else { return Vec::new() };
    let job = clip.job();
    assert_eq!(job.rungs.iter().map(|rung| rung.id.as_str()).collect::<Vec<_>>(), rungs);
    let outcome = transcode(job.clone(), clip.samples.clone()).await;
    assert_eq!((outcome.damaged, &outcome.ended), (0, &Ok(())));
    let shown = clip.shown();
    check_samples(&job, &shown, &outcome);
    check_files(name, &job, &shown, &outcome)
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_frames_per_second() {
    check_clip("720p30", "1280x720", (30, 1), &["720p", "480p", "360p", "240p"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ntsc_rate() {
    check_clip("360p2997", "640x360", (30_000, 1001), &["360p", "240p"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_five_frames_per_second_of_an_odd_size() {
    check_clip("358p25", "638x358", (25, 1), &["358p", "240p"], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn high_frame_rate_portrait() {
    check_clip("portrait", "240x426", (60_000, 1001), &["240p"], &["-bf", "3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_and_pixel_shape_survive() {
    let colours = ["-colorspace", "smpte170m", "-color_primaries", "bt470bg", "-color_trc", "gamma28"];
    let extra = [&["-vf", "setsar=16/11"][..], &["-color_range", "pc"], &colours].concat();
    for file in check_clip("colours", "360x288", (25, 1), &["288p", "240p"], &extra).await {
        let shown = probe(
            &file,
            "stream=sample_aspect_ratio,color_range,color_space,color_transfer,color_primaries,pix_fmt",
        );
        assert_eq!(shown, ["16:11,yuvj420p,pc,smpte170m,bt470bg,bt470bg"], "{}", file.display());
        // (ffprobe calls the transfer gamma28 by its other name.) The container says the same shape as the
        // bitstream.
        let bytes = std::fs::read(&file).unwrap();
        assert!(bytes.windows(12).any(|window| window == b"pasp\0\0\0\x10\0\0\0\x0b"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_pixel_formats_become_the_usual_one() {
    let extra = ["-pix_fmt", "yuv422p10le"];
    for file in check_clip("422p10", "320x240", (25, 1), &["240p"], &extra).await {
        assert_eq!(probe(&file, "stream=pix_fmt,profile"), ["High,yuv420p"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_before_the_start_are_not_encoded() {
    let Some(clip) = Clip::make("320x240", FrameRate { num: 30, den: 1 }, 90, &[]) else { return };
    let mut job = clip.job();
    let shown = clip.shown();
    // Half a frame after frame 20, so that frame 21 is the first.
    job.start = shown[20].0 + 1500;
    let outcome = transcode(job.clone(), clip.samples.clone()).await;
    assert_eq!((outcome.damaged, &outcome.ended), (0, &Ok(())));
    check_samples(&job, &shown[21..], &outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn scene_cuts_add_no_keyframes() {
    // A different still every 7 frames.
    let cuts = ["-vf", "hue=h=90*mod(floor(n/7)\\,4),negate=enable=gte(mod(n\\,14)\\,7)"];
    check_clip("cuts", "320x240", (30, 1), &["240p"], &cuts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_access_units_cost_no_frame() {
    let Some(clip) = Clip::make("640x360", FrameRate { num: 30, den: 1 }, 120, &[]) else { return };
    let job = clip.job();
    let mut samples = clip.samples.clone();
    let mut seed = 5u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    for (index, sample) in samples.iter_mut().enumerate() {
        let mut data = sample.data.to_vec();
        match index {
            // Noise in the slices, a keyframe (50) among them.
            40..=44 | 50 => data.iter_mut().skip(40).step_by(3).for_each(|byte| *byte = random() as u8),
            // Nothing but noise, too short, empty, lengths that lie.
            60 => data.iter_mut().for_each(|byte| *byte = random() as u8),
            61 => data.truncate(3),
            62 => data.clear(),
            63 => data[..4].copy_from_slice(&[0xff; 4]),
            64 => data.truncate(data.len() / 2),
            // The very last.
            119 => data = vec![0; 100],
            _ => {}
        }
        sample.data = data.into();
    }
    let outcome = transcode(job.clone(), samples).await;
    assert_eq!(outcome.ended, Ok(()));
    assert!((4..60).contains(&outcome.damaged), "{}", outcome.damaged);
    let shown = clip.shown();
    check_samples(&job, &shown, &outcome);
    check_files("broken", &job, &shown, &outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_noise_ends_in_good_order() {
    let Some(clip) = Clip::make("320x240", FrameRate { num: 30, den: 1 }, 30, &[]) else { return };
    let noise = Bytes::from_static(&[0xa5; 500]);
    let samples = clip.samples.iter().map(|sample| Sample { data: noise.clone(), ..sample.clone() });
    let outcome = transcode(clip.job(), samples.collect()).await;
    assert_eq!((outcome.damaged, &outcome.ended), (30, &Ok(())));
    assert!(outcome.rungs.iter().all(|(_, samples)| samples.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_size_keeps_its_rungs() {
    let rate = FrameRate { num: 25, den: 1 };
    let Some(clip) = Clip::make("640x360", rate, 60, &[]) else { return };
    let Some(small) = Clip::make("320x200", rate, 60, &[]) else { return };
    let job = clip.job();
    let offset = rate.frame_start(60, Timescale::VIDEO);
    let later =
        small.samples.iter().map(|s| Sample { dts: s.dts + offset, pts: s.pts + offset, ..s.clone() });
    let later: Vec<_> = later.collect();
    let mut shown = clip.shown();
    shown.extend(small.shown().into_iter().map(|(pts, duration)| (pts + offset, duration)));

    let (mut input, output) = transcode::start(job.clone(), Metrics::default()).unwrap();
    let avcc = small.source.record.clone();
    let feed = tokio::spawn(async move {
        send_all(&mut input, clip.samples).await;
        input.reconfigure(avcc).unwrap();
        send_all(&mut input, later).await;
    });
    let outcome = read(output, &job.rungs).await;
    feed.await.unwrap();
    assert_eq!((outcome.damaged, &outcome.ended), (0, &Ok(())));
    check_samples(&job, &shown, &outcome);
    check_files("resized", &job, &shown, &outcome);
}

async fn send_all(input: &mut Input, samples: Vec<Sample>) {
    for sample in samples {
        input.send(sample).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_that_cannot_start_ends_the_job() {
    let Some(clip) = Clip::make("320x240", FrameRate { num: 30, den: 1 }, 200, &[]) else { return };
    let mut job = clip.job();
    job.rungs[0].preset = "warp".to_owned();
    let outcome = transcode(job, clip.samples.clone()).await;
    let error = outcome.ended.unwrap_err().to_string();
    assert!(error.starts_with("encoder libx264 cannot be opened: avcodec_open2: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_either_end_ends_the_threads() {
    let Some(clip) = Clip::make("640x360", FrameRate { num: 30, den: 1 }, 200, &[]) else { return };
    let metrics = Metrics::default();
    // The consumer leaves in the middle: the sender learns of it.
    let (mut input, mut output) = transcode::start(clip.job(), metrics.clone()).unwrap();
    assert_eq!(metrics.jobs.get(), 1);
    // More than the decoder holds for reordering.
    for sample in &clip.samples[..20] {
        input.send(sample.clone()).await.unwrap();
    }
    let config = output.next().await;
    assert!(matches!(config, Some(Event::Config { .. })), "{config:?}");
    drop(output);
    let mut sent = Ok(());
    for sample in &clip.samples[20..] {
        sent = input.send(sample.clone()).await;
        if sent.is_err() {
            break;
        }
    }
    assert_eq!(sent, Err(Closed));
    drop(input);
    assert_eq!(metrics.jobs.get(), 0, "joined");

    // Both leave at once, full queues and all.
    let (mut input, output) = transcode::start(clip.job(), metrics.clone()).unwrap();
    for sample in &clip.samples[..32] {
        input.send(sample.clone()).await.unwrap();
    }
    drop(input);
    drop(output);
    assert_eq!(metrics.jobs.get(), 0, "joined");

    // Nothing was ever sent.
    let (input, mut output) = transcode::start(clip.job(), metrics.clone()).unwrap();
    drop(input);
    assert_eq!(output.next().await, Some(Event::Ended(Ok(()))));
    assert_eq!(output.next().await, None);
}

#[test]
fn senseless_jobs_are_refused() {
    let (codec, record) = (VideoCodec::Avc, Bytes::from_static(&[1, 66, 0, 30, 0xff, 0xe0, 0]));
    let source = VideoSource { codec, record, width: 640, height: 360, sar: (1, 1), frame_rate: None };
    let rungs = ladder::derive(&Config::default(), &source);
    let job = Job {
        source,
        rungs,
        start: 0,
        segment_duration: SECOND,
        longest_showing: SECOND,
        given_cuts: false,
        deinterlace: true,
        shed: None,
        thumbnails: None,
    };
    let check = |change: fn(&mut Job), expected: &str| {
        let mut job = job.clone();
        change(&mut job);
        let error = transcode::start(job, Metrics::default()).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    check(|job| job.source.record = Bytes::new(), "AVCDecoderConfigurationRecord");
    check(|job| job.source.record = vec![1; 70_000].into(), "70000 bytes exceeds");
    check(|job| job.source.width = 15, "15x360");
    check(|job| job.source.width = 40_000, "40000x360");
    check(|job| job.source.sar = (0, 1), "0:1");
    check(|job| job.source.frame_rate = Some(FrameRate { num: 0, den: 1 }), "frame rate");
    check(|job| job.rungs.clear(), "0 rungs");
    check(|job| job.rungs[0].width = 641, "641x360");
    check(|job| job.rungs[1].height = 0, "x0");
    check(|job| job.rungs[0].peak_bps = 1, "peak 1");
    check(|job| job.segment_duration = 0, "segment duration of 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rung_that_is_shed_leaves_whole_segments_out_and_the_others_go_on() {
    let rate = FrameRate { num: 25, den: 1 };
    let Some(clip) = Clip::make("640x360", rate, 100, &[]) else { return };
    let interval = std::time::Duration::from_secs(1);
    let thumbnails = Thumbnails { interval, columns: 2, ..Thumbnails::default() };
    let thumbnails = thumbnails.of(clip.job().rungs.last().unwrap(), (1, 1));
    let job = Job { shed: Some(1), thumbnails, ..clip.job() };
    let shown = clip.shown();
    let outcome = transcode(Job { shed: Some(0), ..job.clone() }, clip.samples.clone()).await;
    assert_eq!((outcome.pictures.len(), outcome.sheets.len()), (5, 3), "the first is at {}", job.start);
    let Outcome { rungs, shed, ended, pictures, sheets, .. } =
        transcode(job.clone(), clip.samples.clone()).await;
    ended.unwrap();
    assert_eq!((pictures, sheets), (vec![], vec![]), "thumbnails are the first to go");
    assert_eq!(rungs.len(), 2);
    // The first segment opens all encoders; what is shed begins with the second.
    let times = |samples: &[Sample]| samples.iter().map(|s| (s.pts, s.duration)).collect::<Vec<_>>();
    assert_eq!(times(&rungs[0].1), shown[..25]);
    assert_eq!(times(&rungs[1].1), shown);
    let begins = [25, 50, 75].map(|frame| (0, shown[frame].0));
    assert_eq!(shed, begins);
}
