//! CPU time and memory of the 720p30 ladder with AAC copied: `transcode` in a process of its own against the ffmpeg
//! command, both from the same FLV file to one fragmented MP4 per rendition.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use media::codec::aac::AacConfig;
use media::codec::avc::AvcConfig;
use media::flv::{self, Audio, TagKind, Video};
use media::time::FrameRate;
use media::{Sample, Ticks, Timescale};
use transcode::{Closed, Config, Event, Job, Metrics, Rung, VideoSource, cmaf};

use crate::clip::{self, Recipe};
use crate::process::{Cost, Running};
use crate::report::{Better, Report, median};
use crate::{Folders, quality};

/// First argument of this binary that makes it transcode the clip in the second to the folder in the third.
pub(crate) const MODE: &str = "--ladder";

/// Rooftop and ffmpeg take turns this often.
const ROUNDS: usize = 2;

/// Frames per part: 200 ms.
const PART_FRAMES: usize = 6;

/// AAC frames per part of about 200 ms at 48 kHz.
const PART_AUDIO_FRAMES: usize = 9;

/// No command here takes longer.
const LIMIT: Duration = Duration::from_secs(120);

const SEGMENT: Ticks = 90_000;

const SAME: &str = "ffmpeg, same settings";
const USUAL: &str = "ffmpeg, its own threads and scaler";

pub(crate) fn run(folders: &Folders, _: &tokio::runtime::Handle, report: &mut Report) -> anyhow::Result<()> {
    for (what, recipe) in [("pattern", clip::PATTERN), ("texture", clip::TEXTURE)] {
        let clip = recipe.make(&folders.kept)?;
        let rungs = rungs_of(&clip)?;
        let mut costs: [Vec<Cost>; 3] = Default::default();
        for round in 0..ROUNDS {
            let folder = |name: &str| {
                let folder = folders.run.join(format!("ladder-{what}-{name}-{round}"));
                std::fs::create_dir_all(&folder).map(|()| folder)
            };
            let ours = folder("rooftop")?;
            let command: Vec<OsString> =
                vec![std::env::current_exe()?.into(), MODE.into(), (&clip).into(), (&ours).into()];
            costs[0].push(measure("rooftop ladder", &command, &ours.join("log"))?);
            let theirs = folder("ffmpeg")?;
            let command = ffmpeg(&clip, &theirs, &rungs, Layout::Same);
            costs[1].push(measure("ffmpeg ladder", &command, &theirs.join("log"))?);
            if round == 0 {
                let usual = folder("ffmpeg-usual")?;
                let command = ffmpeg(&clip, &usual, &rungs, Layout::Usual);
                costs[2].push(measure("ffmpeg ladder", &command, &usual.join("log"))?);
                compare_outputs(&recipe, &rungs, &ours, &theirs)?;
                quality::compare(what, &clip, &rungs, recipe.seconds, [&ours, &theirs], SAME, report)?;
            }
        }
        let figure = |of: fn(&Cost) -> f64| {
            costs.each_ref().map(|costs| median(&costs.iter().map(of).collect::<Vec<_>>()))
        };
        let media_s = f64::from(recipe.seconds);
        let cpu = figure(|cost| cost.cpu_s).map(|cpu_s| cpu_s / media_s);
        let wall = figure(|cost| cost.wall_s).map(|wall_s| wall_s / media_s);
        let memory = figure(|cost| cost.peak_mib);
        for (index, peer, suffix) in [(1, SAME, ""), (2, USUAL, "/ffmpeg-defaults")] {
            let mut row = |name, unit, figures: [f64; 3]| {
                let peer = Some((peer, figures[index]));
                report.add(format!("ladder/{what}/{name}{suffix}"), unit, Better::Lower, figures[0], peer);
            };
            row("cpu", "CPU-s per media-s", cpu);
            row("elapsed", "s per media-s", wall);
            row("memory", "MiB peak", memory);
        }
    }
    Ok(())
}

/// Runs a command, with its standard error in `log`.
fn measure(name: &str, command: &[OsString], log: &Path) -> anyhow::Result<Cost> {
    let (program, args) = command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(log)?);
    Running::start(name, &mut command)?.cost(LIMIT).with_context(|| format!("see {}", log.display()))
}

/// Both must have made every frame of every rendition.
fn compare_outputs(recipe: &Recipe, rungs: &[Rung], ours: &Path, theirs: &Path) -> anyhow::Result<()> {
    let expected = recipe.seconds * Recipe::FPS;
    for rung in rungs {
        for folder in [ours, theirs] {
            let file = folder.join(format!("{}.mp4", rung.id));
            let frames = count_frames(&file)?;
            ensure!(frames == expected, "{}: {frames} frames instead of {expected}", file.display());
        }
    }
    Ok(())
}

fn count_frames(file: &Path) -> anyhow::Result<u32> {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v", "-count_packets"])
        .args(["-show_entries", "stream=nb_read_packets", "-of", "csv=p=0"])
        .arg(file)
        .output()
        .context("ffprobe")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().trim_end_matches(',').parse().with_context(|| format!("ffprobe {}: {text}", file.display()))
}

/// How ffmpeg goes about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As we do: one thread for each decoder, filter and encoder; each rung scaled from the next larger one, bilinear.
    Same,
    /// As people type it: each rung scaled from the source, and threads and scaler as ffmpeg chooses.
    Usual,
}

fn ffmpeg(clip: &Path, folder: &Path, rungs: &[Rung], layout: Layout) -> Vec<OsString> {
    let same = layout == Layout::Same;
    let mut args: Vec<OsString> = ["ffmpeg", "-nostdin", "-v", "warning", "-y"].map(OsString::from).into();
    let mut add = |text: &str| args.extend(text.split(' ').map(OsString::from));
    if same {
        add("-threads 1 -filter_threads 1 -filter_complex_threads 1");
    }
    add("-i");
    add("CLIP");
    add("-filter_complex");
    add(&match layout {
        Layout::Same => cascade(rungs),
        Layout::Usual => from_source(rungs),
    });
    for (index, rung) in rungs.iter().enumerate() {
        let Rung { bitrate_bps, peak_bps, buffer_bits, preset, .. } = rung;
        // As many frames out as in: for MP4 ffmpeg would repeat one where the first is not shown at zero.
        add(&format!(
            "-map [v{index}] -fps_mode passthrough -c:v libx264 -preset {preset} -profile:v high -bf 0 -g 100000"
        ));
        add(&format!("-b:v {bitrate_bps} -maxrate {peak_bps} -bufsize {buffer_bits}"));
        // An expression of quotes would be for a shell; this is none.
        add("-forced-idr 1 -force_key_frames expr:gte(t,n_forced) -sc_threshold 0 -rc-lookahead 0 -mbtree 0");
        if same {
            add("-threads 1 -x264-params sync-lookahead=0:force-cfr=1:sliced-threads=0:open-gop=0");
        }
        fragmented(&mut add);
        add(&format!("OUT/{}.mp4", rung.id));
    }
    add("-map 0:a -c:a copy");
    fragmented(&mut add);
    add("OUT/audio.mp4");
    // Paths may hold spaces.
    for arg in &mut args {
        if arg == "CLIP" {
            *arg = clip.into();
        } else if let Some(name) = arg.to_str().and_then(|arg| arg.strip_prefix("OUT/")) {
            *arg = folder.join(name).into();
        }
    }
    args
}

fn fragmented(add: &mut impl FnMut(&str)) {
    add("-f mp4 -movflags empty_moov+default_base_moof -frag_duration 200000");
}

/// `[0:v]split=2[v0][c0];[c0]scale=854:480:flags=bilinear,split=2[v1][c1];…`
fn cascade(rungs: &[Rung]) -> String {
    let mut graph = Vec::new();
    for (index, rung) in rungs.iter().enumerate() {
        let input = if index == 0 { "[0:v]".to_owned() } else { format!("[c{}]", index - 1) };
        let scale = match index {
            0 => String::new(),
            _ => format!("scale={}:{}:flags=bilinear,", rung.width, rung.height),
        };
        graph.push(match index + 1 == rungs.len() {
            true => {
                format!("{input}{}[v{index}]", if index == 0 { "null" } else { scale.trim_end_matches(',') })
            }
            false => format!("{input}{scale}split=2[v{index}][c{index}]"),
        });
    }
    graph.join(";")
}

fn from_source(rungs: &[Rung]) -> String {
    let outs: String = (0..rungs.len()).map(|index| format!("[s{index}]")).collect();
    let mut graph = vec![format!("[0:v]split={}{outs}", rungs.len())];
    for (index, rung) in rungs.iter().enumerate() {
        graph.push(format!("[s{index}]scale={}:{}[v{index}]", rung.width, rung.height));
    }
    graph.join(";")
}

fn rungs_of(clip: &Path) -> anyhow::Result<Vec<Rung>> {
    let mut source = Source::open(clip)?;
    loop {
        if let Item::Video(avcc) = source.next()?.context("the clip has no video")? {
            return Ok(transcode::ladder::derive(&Config::default(), &video_source(avcc)?));
        }
    }
}

fn video_source(avcc: Bytes) -> anyhow::Result<VideoSource> {
    let AvcConfig { width, height, sar, .. } = AvcConfig::parse(avcc.clone())?;
    let frame_rate = Some(FrameRate { num: Recipe::FPS, den: 1 });
    let (codec, record) = (media::codec::VideoCodec::Avc, avcc);
    Ok(VideoSource { codec, record, width, height, sar, frame_rate })
}

/// What an FLV file holds, on the timeline that `origin` would put it on.
enum Item {
    Video(Bytes),
    Audio(AacConfig),
    Picture(Sample),
    Sound(Bytes),
}

/// Reads a file a piece at a time, as a relay brings it.
struct Source {
    file: File,
    flv: flv::Decoder,
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Source> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Source { file, flv: flv::Decoder::new() })
    }

    fn next(&mut self) -> anyhow::Result<Option<Item>> {
        loop {
            while let Some(tag) = self.flv.poll()? {
                let item = match tag.kind {
                    TagKind::Video => match tag.video()? {
                        Video::Config { record, .. } => Item::Video(record),
                        Video::Frame { key, composition_ms, data, .. } => {
                            Item::Picture(picture(tag.timestamp_ms, key, composition_ms, data))
                        }
                        Video::Nothing => continue,
                    },
                    TagKind::Audio => match tag.audio()? {
                        Audio::Config { record, .. } => Item::Audio(AacConfig::parse(record)?),
                        Audio::Frame { data, .. } => Item::Sound(data),
                        Audio::Nothing => continue,
                    },
                    _ => continue,
                };
                return Ok(Some(item));
            }
            let mut piece = [0; 16 << 10];
            match self.file.read(&mut piece)? {
                0 => return Ok(None),
                len => self.flv.push(&piece[..len]),
            }
        }
    }
}

fn picture(timestamp_ms: u32, key: bool, composition_ms: i32, data: Bytes) -> Sample {
    let frame = SEGMENT / Ticks::from(Recipe::FPS);
    let pts_ms = Ticks::from(timestamp_ms) + Ticks::from(composition_ms);
    // FLV's milliseconds back onto the exact grid.
    let pts = (pts_ms * 90 + frame / 2) / frame * frame;
    Sample { dts: Ticks::from(timestamp_ms) * 90, pts, duration: frame, key, data }
}

/// The child whose cost is measured: a clip in, `{rendition}.mp4` out.
pub(crate) fn child(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let (clip, folder) = (args.next().context("no clip")?, args.next().context("no folder")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(transcode_to(Path::new(&clip), Path::new(&folder)))
}

async fn transcode_to(clip: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut source = Source::open(clip)?;
    let mut audio = None;
    let mut before = Vec::new();
    let avcc = loop {
        match source.next()?.context("the clip has no video")? {
            Item::Video(avcc) => break avcc,
            Item::Audio(config) => audio = Some(AudioFile::create(folder, &config)?),
            other => before.push(other),
        }
    };
    let video = video_source(avcc)?;
    let rungs = transcode::ladder::derive(&Config::default(), &video);
    // With B-frames the first picture shown is the first one sent, but later than its decoding time says.
    let mut pictures = Vec::new();
    while pictures.is_empty() {
        match source.next()?.context("the clip has no pictures")? {
            Item::Picture(sample) => pictures.push(sample),
            Item::Audio(config) => audio = Some(AudioFile::create(folder, &config)?),
            other => before.push(other),
        }
    }
    let start = pictures[0].pts;
    let thumbnails = rungs.last().and_then(|rung| Config::default().thumbnails.of(rung, video.sar));
    let job = Job {
        source: video,
        rungs: rungs.clone(),
        start,
        segment_duration: SEGMENT,
        longest_showing: SEGMENT,
        given_cuts: false,
        deinterlace: true,
        shed: None,
        thumbnails,
    };
    let (mut input, mut output) = transcode::start(job, Metrics::default())?;
    let feed = async move {
        let rest = std::iter::from_fn(|| source.next().transpose());
        for item in before.into_iter().chain(pictures.into_iter().map(Item::Picture)).map(Ok).chain(rest) {
            match item? {
                Item::Picture(sample) => {
                    if input.send(sample).await == Err(Closed) {
                        bail!("the job ended early");
                    }
                }
                Item::Sound(data) => audio.as_mut().context("sound before its configuration")?.push(data)?,
                Item::Audio(config) => audio = Some(AudioFile::create(folder, &config)?),
                Item::Video(_) => {}
            }
        }
        drop(input);
        audio.map_or(Ok(()), AudioFile::finish)
    };
    let write = async {
        let mut files: Vec<Option<VideoFile>> = rungs.iter().map(|_| None).collect();
        while let Some(event) = output.next().await {
            match event {
                Event::Config { rung, config } => {
                    let path = folder.join(format!("{}.mp4", rungs[rung].id));
                    let init = cmaf::source_init(Timescale::VIDEO, &config);
                    files[rung] = Some(VideoFile::create(path, &init)?);
                }
                Event::Sample { rung, sample } => {
                    files[rung].as_mut().context("a sample before its configuration")?.push(sample, start)?;
                }
                // What they cost is part of it.
                Event::Picture { .. } | Event::Sheet { .. } => {}
                Event::Shed { rung, .. } => bail!("rung {rung} was shed"),
                Event::Damaged { frames } => bail!("{frames} frames were damaged"),
                Event::Ended(ended) => ended?,
            }
        }
        files.into_iter().flatten().try_for_each(VideoFile::finish)
    };
    tokio::try_join!(feed, write)?;
    Ok(())
}

/// One video rendition, cut as the packager cuts it.
struct VideoFile {
    file: File,
    sequence: u32,
    part: Vec<Sample>,
    part_is_first: bool,
}

impl VideoFile {
    fn create(path: PathBuf, init: &[u8]) -> anyhow::Result<VideoFile> {
        let mut file = File::create(path)?;
        file.write_all(init)?;
        Ok(VideoFile { file, sequence: 0, part: Vec::new(), part_is_first: true })
    }

    fn push(&mut self, sample: Sample, start: Ticks) -> anyhow::Result<()> {
        let of = |pts| transcode::segment_index(start, SEGMENT, pts);
        let cut = self.part.last().is_some_and(|last| of(last.pts) != of(sample.pts));
        if cut || self.part.len() == PART_FRAMES {
            self.flush()?;
            self.part_is_first = cut;
        }
        self.part.push(sample);
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.sequence += 1;
        self.file.write_all(&cmaf::chunk(self.sequence, &self.part, self.part_is_first, None, &[]))?;
        self.part.clear();
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.flush()
    }
}

/// The audio rendition: frames as they came.
struct AudioFile {
    file: File,
    frame_samples: Ticks,
    sequence: u32,
    next: Ticks,
    part: Vec<Sample>,
}

impl AudioFile {
    fn create(folder: &Path, config: &AacConfig) -> anyhow::Result<AudioFile> {
        let mut file = File::create(folder.join("audio.mp4"))?;
        let timescale = Timescale::new(config.sample_rate).context("sample rate")?;
        let channels = config.channels.try_into()?;
        file.write_all(&cmaf::audio_init(timescale, config.sample_rate, channels, &config.record, 128_000))?;
        let frame_samples = config.frame_samples.into();
        Ok(AudioFile { file, frame_samples, sequence: 0, next: 0, part: Vec::new() })
    }

    fn push(&mut self, data: Bytes) -> anyhow::Result<()> {
        let (at, duration) = (self.next, self.frame_samples);
        self.part.push(Sample { dts: at, pts: at, duration, key: true, data });
        self.next += duration;
        if self.part.len() == PART_AUDIO_FRAMES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.sequence += 1;
        self.file.write_all(&cmaf::chunk(self.sequence, &self.part, self.sequence == 1, None, &[]))?;
        self.part.clear();
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.flush()
    }
}
