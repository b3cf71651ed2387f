//! Media through real encoders as fast as they go, from the broadcaster's FLV to what is published: an hour of it with
//! `make test-sync`, some seconds in the usual tests. No frame is lost or doubled, all renditions are cut at the same instants, and
//! what is seen and heard keeps the relation that it had at the source.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Frame as BodyFrame;
use media::SegmentNumber;
use media::flv::{self, Audio, TagKind, Video};
use media::time::Ticks;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use transcode::Passthrough;
use transcode::config::RungConfig;

use super::super::tests::{request, shared_of};
use super::super::{LINE_QUEUE, Right, session};
use super::{fragments, rules};
use crate::live::Live;

/// 59.94 frames a second, beside which milliseconds drift.
const RATE: &str = "60000/1001";

/// Hertz; not a multiple of anything that video has.
const SAMPLE_RATE: u32 = 44_100;

/// Each five seconds a white picture and a tone, a fifth of a second long.
const SIGNALS: &str = "lt(mod(t,5),0.2)";

/// Media of the usual tests, and what says that it be more.
const SECONDS: u64 = 12;
const SECONDS_VARIABLE: &str = "ROOFTOP_SYNC_SECONDS";

/// A file of its own that goes with its name.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
        std::fs::create_dir_all(&folder).unwrap();
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        Scratch(folder.join(format!("sync-{}-{number}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Has ffmpeg make the broadcast; `None` with a message where it is missing and need not be there.
fn broadcast(file: &Scratch, seconds: u64, audio: &[&str]) -> Option<()> {
    let pictures = format!("testsrc2=s=160x90:r={RATE},drawbox=c=white:t=fill:enable='{SIGNALS}'");
    let tone = format!("'{SIGNALS}*0.6*sin(2*PI*1000*t)'");
    let sound = format!("aevalsrc={tone}|{tone}:s={SAMPLE_RATE}");
    let mut command = Command::new("ffmpeg");
    command
        .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", &pictures, "-f", "lavfi", "-i", &sound]);
    command.args([
        "-t",
        &seconds.to_string(),
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-bf",
        "2",
        "-g",
        "120",
    ]);
    command.args(["-pix_fmt", "yuv420p"]).args(audio).args(["-f", "flv"]).arg(&file.0);
    let status = command.stdin(Stdio::null()).status();
    if status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Some(());
    }
    let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
    assert!(!strict, "ffmpeg {audio:?}: {status:?}");
    eprintln!("skipped: ffmpeg {audio:?}: {status:?}");
    None
}

/// When the frames of the broadcast are shown and heard, milliseconds, in that order.
#[derive(Default)]
struct Source {
    video: Vec<i64>,
    audio: Vec<i64>,
}

impl Source {
    fn read(file: &Scratch) -> Source {
        let (mut reader, mut flv) = (std::fs::File::open(&file.0).unwrap(), flv::Decoder::new());
        let (mut source, mut piece) = (Source::default(), vec![0; 1 << 16]);
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                len => flv.push(&piece[..len]),
            }
            while let Some(tag) = flv.poll().unwrap() {
                let sent = i64::from(tag.timestamp_ms);
                match tag.kind {
                    TagKind::Video => {
                        if let Video::Frame { composition_ms, .. } = tag.video().unwrap() {
                            source.video.push(sent + i64::from(composition_ms));
                        }
                    }
                    TagKind::Audio => {
                        if let Audio::Frame { .. } = tag.audio().unwrap() {
                            source.audio.push(sent);
                        }
                    }
                    TagKind::Script => {}
                }
            }
        }
        source.video.sort_unstable();
        source
    }
}

/// The broadcast as a request's body, read as it is taken.
struct Pieces(std::fs::File);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        let mut piece = vec![0; 16 << 10];
        let len = self.0.read(&mut piece).unwrap();
        piece.truncate(len);
        Poll::Ready((len > 0).then(|| Ok(BodyFrame::data(piece.into()))))
    }
}

/// What one rendition published.
struct Published {
    file: Scratch,
    writer: std::fs::File,
    next: Option<SegmentNumber>,
    /// Presentation time and duration of its frames, in decoding order, and whether decoding can begin there.
    frames: Vec<(Ticks, Ticks, bool)>,
    /// Where segments begin.
    cuts: Vec<Ticks>,
}

/// Takes each segment as it becomes whole, for as long as `over` has not come.
async fn follow(live: Arc<Live>, over: CancellationToken) -> BTreeMap<String, Published> {
    let mut versions = live.versions();
    let mut published = BTreeMap::new();
    loop {
        let last = over.is_cancelled();
        take(&live, &mut published);
        if last {
            return published;
        }
        tokio::select! {
            changed = versions.changed() => changed.unwrap(),
            () = over.cancelled() => {}
        }
    }
}

fn take(live: &Live, published: &mut BTreeMap<String, Published>) {
    let mut whole: Vec<(String, Bytes, SegmentNumber, Ticks, Bytes)> = Vec::new();
    live.read(|_, broadcast| {
        for rendition in broadcast.iter().flat_map(|broadcast| &broadcast.renditions) {
            let id = rendition.variant.id.to_string();
            let next = published.get(&id).and_then(|before| before.next);
            for segment in rendition.window.segments().filter(|of| next.is_none_or(|next| of.number >= next))
            {
                let object = segment.object.as_ref().unwrap_or_else(|| panic!("a gap in {id}"));
                let Some(bytes) = object.to_bytes() else { break };
                let init = rendition.inits[0].1.clone();
                whole.push((id.clone(), init, segment.number, segment.start, bytes));
            }
        }
    });
    for (id, init, number, start, bytes) in whole {
        let rendition = published.entry(id.clone()).or_insert_with(|| {
            let file = Scratch::new(&format!("{id}.mp4"));
            let mut writer = std::fs::File::create(&file.0).unwrap();
            writer.write_all(&init).unwrap();
            Published { file, writer, next: None, frames: Vec::new(), cuts: Vec::new() }
        });
        assert!(
            rendition.next.is_none_or(|next| next == number),
            "{id}: {number} instead of {:?}",
            rendition.next
        );
        rendition.next = Some(SegmentNumber(number.0 + 1));
        rendition.writer.write_all(&bytes).unwrap();
        let frames = fragments::read(&bytes).frames;
        assert!(frames.first().is_some_and(|first| first.key && first.dts == start), "{id} {number}");
        rendition.cuts.push(start);
        rendition.frames.extend(frames.iter().map(|frame| (frame.pts, frame.duration, frame.key)));
    }
}

/// Output of ffmpeg's decoders for one track, as raw bytes.
fn decoded(file: &Path, arguments: &[&str], mut take: impl FnMut(&[u8])) {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(file).args(arguments).arg("-");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut piece) = (child.stdout.take().unwrap(), vec![0; 1 << 16]);
    loop {
        match output.read(&mut piece).unwrap() {
            0 => break,
            len => take(&piece[..len]),
        }
    }
    assert!(child.wait().unwrap().success(), "{}", file.display());
}

/// With which frames white pictures begin.
fn flashes(file: &Path) -> Vec<usize> {
    let (mut at, mut was_white, mut found) = (0, true, Vec::new());
    let one = [
        "-an",
        "-vf",
        "scale=1:1:flags=area,format=gray,settb=1/1000,setpts=N",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
    ];
    decoded(file, &one, |bytes| {
        for byte in bytes {
            let is_white = *byte > 200;
            if is_white && !was_white {
                found.push(at);
            }
            (was_white, at) = (is_white, at + 1);
        }
    });
    found
}

/// With which samples tones begin behind silence.
fn tones(file: &Path) -> Vec<usize> {
    let (mut at, mut silent, mut found, mut half) = (0, 0, Vec::new(), None);
    decoded(file, &["-vn", "-ac", "1", "-f", "s16le"], |bytes| {
        for byte in bytes {
            let Some(low) = half.take() else {
                half = Some(*byte);
                continue;
            };
            if i16::from_le_bytes([low, *byte]).unsigned_abs() > 6000 {
                if silent > SAMPLE_RATE {
                    found.push(at);
                }
                silent = 0;
            } else {
                silent += 1;
            }
            at += 1;
        }
    });
    found
}

/// The least and the largest.
fn spread(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
}

async fn stays_in_sync(name: &str, audio: &[&str], is_copied: bool) {
    let variable = std::env::var(SECONDS_VARIABLE).ok();
    let seconds = variable.map_or(SECONDS, |text| text.parse().expect("a number of seconds"));
    let file = Scratch::new(&format!("{name}.flv"));
    let Some(()) = broadcast(&file, seconds, audio) else { return };
    let source = Source::read(&file);

    let full = [RungConfig::new(90, 200), RungConfig::new(60, 100)];
    let thin = RungConfig { max_fps: Some(30), ..RungConfig::new(40, 60) };
    let rules = transcode::Config { rungs: [&full[..], &[thin]].concat(), ..rules(Passthrough::Off) };
    // Far more than comes before it is taken.
    let config = crate::Config { window: Duration::from_secs(600), ..crate::Config::default() };
    let shared = shared_of(cluster::Member::default(), config, rules);
    let live: Arc<Live> = shared.stream_for_publishing(&"demo".parse().unwrap()).unwrap();
    let right = Right::Claimed(shared.store.claim("demo", "s1", Vec::new()).await.unwrap());
    let (lines, mut answer) = mpsc::channel::<Bytes>(LINE_QUEUE);
    let told = tokio::spawn(async move {
        let mut last = Bytes::new();
        while let Some(line) = answer.recv().await {
            last = line;
        }
        last
    });
    let over = CancellationToken::new();
    let following = tokio::spawn(follow(live.clone(), over.clone()));
    let (began, body) = (Instant::now(), Pieces(std::fs::File::open(&file.0).unwrap()));
    session(shared.clone(), live, right, request("s1"), body, lines, shared.shutdown.clone()).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!(told.await.unwrap(), "{\"end\":true}\n");
    over.cancel();
    let published = following.await.unwrap();
    let metrics = (&shared.metrics, &shared.transcode_metrics);
    assert_eq!(metrics.0.runs.get(), 1, "{name}: nothing breaks");
    assert_eq!((metrics.1.frames_filled.get(), metrics.1.frames_repeated.get()), (0, 0), "{name}");

    // Every frame is there once, at its time, in all rungs that have all of them; the others cut with them.
    let mut apart = Vec::new();
    let video = |id: &str| &published[id];
    for id in ["90p", "60p", "40p"] {
        let Published { frames, cuts, .. } = video(id);
        assert_eq!(*cuts, video("90p").cuts, "{name} {id}: cut at other instants");
        let tiles = |pair: &[(Ticks, Ticks, bool)]| (pair[1].0 - pair[0].0 - pair[0].1).abs() <= 1;
        assert!(frames.windows(2).all(tiles), "{name} {id}: a hole, or frames over one another");
        if id == "40p" {
            let all = &video("90p").frames;
            let known = |pts: &Ticks| all.binary_search_by_key(pts, |(pts, ..)| *pts).is_ok();
            assert!(frames.iter().all(|(pts, ..)| known(pts)), "{name} {id}: times of its own");
            assert!(frames.len() * 2 >= all.len() && frames.len() < all.len() * 6 / 10, "{name}");
            continue;
        }
        assert_eq!(frames.len(), source.video.len(), "{name} {id}: frames");
        let later = frames.iter().zip(&source.video).map(|((pts, ..), ms)| *pts as f64 / 90.0 - *ms as f64);
        let (least, most) = spread(later);
        assert!(most - least <= 2.0, "{name} {id}: {least} to {most} ms later than at the source");
        apart.push((least, most));
    }
    let heard = &published["audio"].frames;
    let per_ms = f64::from(SAMPLE_RATE) / 1000.0;
    assert!(heard.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{name}: a hole in the sound");
    let samples = heard.iter().map(|(_, duration, _)| duration).sum::<Ticks>();
    // What is heard before the first picture is left out, but for a frame of which more than half is heard with it.
    let first_seen = source.video[0] as f64;
    if is_copied {
        let half = 512.0 / per_ms;
        let with_it: Vec<i64> =
            source.audio.iter().copied().filter(|ms| *ms as f64 + half >= first_seen).collect();
        assert!(source.audio.len() - with_it.len() <= 2, "{name}: sound begins long before the pictures");
        assert_eq!(heard.len(), with_it.len(), "{name}: frames of sound");
        let later = heard.iter().zip(&with_it).map(|((pts, ..), ms)| *pts as f64 / per_ms - *ms as f64);
        apart.push(spread(later));
    } else {
        // Blocks of another length, and one of priming.
        let before = ((first_seen - source.audio[0] as f64).max(0.0) * per_ms) as Ticks;
        let sent = 1152 * source.audio.len() as Ticks - before;
        assert!((sent - 1024..sent + 2 * 1024).contains(&samples), "{name}: {samples} samples of {sent}");
    }
    let least = apart.iter().map(|(least, _)| *least).fold(f64::INFINITY, f64::min);
    let most = apart.iter().map(|(_, most)| *most).fold(f64::NEG_INFINITY, f64::max);
    let by_times = most - least;
    assert!(by_times <= 5.0, "{name}: sound and pictures are {by_times} ms off by their times: {apart:?}");

    // The same of what is seen and heard: tones less white pictures, at the source and as published.
    let (seen, heard_tones) = (flashes(&file.0), tones(&file.0));
    let signals = ((seconds - 1) / 5) as usize;
    assert_eq!((seen.len(), heard_tones.len()), (signals, signals), "{name}: the source");
    let first_audio = source.audio[0] as f64;
    let zero = heard_tones.iter().zip(&seen);
    let at_source: Vec<f64> =
        zero.map(|(tone, flash)| first_audio + *tone as f64 / per_ms - source.video[*flash] as f64).collect();
    let published_tones = tones(&published["audio"].file.0);
    assert_eq!(published_tones.len(), signals, "{name}: tones");
    let first_audio = heard[0].0 as f64;
    let mut by_signals = (f64::INFINITY, f64::NEG_INFINITY);
    for id in ["90p", "60p"] {
        let Published { frames, file, .. } = video(id);
        assert_eq!(flashes(&file.0), seen, "{name} {id}: other frames are white");
        let moved = published_tones.iter().zip(&seen).zip(&at_source).map(|((tone, flash), before)| {
            (first_audio + *tone as f64) / per_ms - frames[*flash].0 as f64 / 90.0 - before
        });
        let (least, most) = spread(moved);
        by_signals = (by_signals.0.min(least), by_signals.1.max(most));
    }
    println!(
        "{name}: {seconds} s of media in {took:.1} s: {} frames of video in each of two rungs, {} in the third, {} segments, {} frames of \
         sound; sound less pictures against the source {:.2} to {:.2} ms over {signals} signals, {by_times:.2} ms by the times of \
         all frames",
        source.video.len(),
        video("40p").frames.len(),
        video("90p").cuts.len(),
        heard.len(),
        by_signals.0,
        by_signals.1,
    );
    assert!(by_signals.0 >= -5.0 && by_signals.1 <= 5.0, "{name}: {by_signals:?} ms off");
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_that_is_copied_stays_with_the_pictures() {
    stays_in_sync("aac", &["-c:a", "aac", "-b:a", "64k"], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sound_that_is_coded_anew_stays_with_the_pictures() {
    stays_in_sync("mp3", &["-c:a", "libmp3lame", "-b:a", "96k"], false).await;
}
