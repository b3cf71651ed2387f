//! A day of media, as RTMP sends it, through the rules that time and cut it: audio and video keep the relation that they had
//! at the source, no frame is lost or doubled, and every segment begins where the grid says.

use bytes::Bytes;
use media::flv::{Tag, TagKind};
use media::time::{FrameRate, Ticks, Timescale};
use media::{Sample, SegmentNumber};
use origin::feed::{Event, Feed, Rules};
use origin::repair::{Repair, Repairs, Times};
use origin::segmenter::{self, Segmenter};
use std::time::Duration;

const HOURS: i64 = 24;

/// H.264, 360p, without timing in its SPS.
const AVC: &str = "0142c01effe100196742c01ed900a02ff97011000003000100000300320f162e4801000568cb83cb20";

fn tag(kind: TagKind, timestamp_ms: u32, head: &[u8], rest: &[u8]) -> Tag {
    Tag { kind, timestamp_ms, data: [head, rest].concat().into() }
}

/// Where the 32-bit clock begins, so that it wraps in the course of the day.
const ZERO_MS: u32 = u32::MAX - 3_600_000;

/// Milliseconds are cut off, as most muxers do.
fn sent_ms(ticks: i64, per_second: i64) -> u32 {
    ZERO_MS.wrapping_add((ticks * 1000 / per_second) as u32)
}

/// Counts and checks what comes out of a segmenter.
#[derive(Default)]
struct Cut {
    samples: i64,
    segments: i64,
    next: Option<Ticks>,
}

impl Cut {
    fn take(&mut self, cut: &mut Segmenter, most_off: Ticks, segment: Ticks, start: Ticks) {
        while let Some(event) = cut.poll() {
            match event {
                segmenter::Event::Open { number, start: at } => {
                    assert_eq!(number.0 as i64, self.segments, "segments are counted without a hole");
                    let off = at - (start + self.segments * segment);
                    assert!((-most_off..=most_off).contains(&off), "segment {number} begins {off} ticks off");
                    self.segments += 1;
                }
                segmenter::Event::Part(part) => {
                    for sample in part.samples {
                        assert!(self.next.is_none_or(|next| sample.dts == next), "a hole at {}", sample.dts);
                        self.next = Some(sample.dts + sample.duration);
                        self.samples += 1;
                    }
                }
                segmenter::Event::Close => {}
                segmenter::Event::Gap { number } => panic!("segment {number} is missing"),
            }
        }
    }
}

fn a_day(rate: FrameRate, sample_rate: u32) {
    let record: Vec<u8> =
        (0..AVC.len()).step_by(2).map(|i| u8::from_str_radix(&AVC[i..i + 2], 16).unwrap()).collect();
    let rules = Rules {
        probe: Duration::from_secs(1),
        keyframe_timeout: Duration::from_secs(10),
        max_gap: Duration::from_millis(900),
        max_still: Duration::from_millis(2500),
        keyframes: None,
    };
    let timescale = Timescale::new(sample_rate).unwrap();
    let mut feed = Feed::new(rules);
    feed.push(&tag(TagKind::Video, ZERO_MS, &[0x17, 0, 0, 0, 0], &record)).unwrap();
    let audio_config: &[u8] = if sample_rate == 48_000 { &[0x11, 0x90] } else { &[0x12, 0x10] };
    feed.push(&tag(TagKind::Audio, ZERO_MS, &[0xAF, 0], audio_config)).unwrap();

    const START: Ticks = 90_000;
    const SEGMENT: Ticks = 90_000;
    let mut repair = None;
    let mut video_cut = Segmenter::new(Timescale::VIDEO, START, SEGMENT, 18_018, 0, SegmentNumber(0));
    let mut audio_cut = Segmenter::new(timescale, START, SEGMENT, 18_018, 512, SegmentNumber(0));
    let (mut video, mut audio) = (Cut::default(), Cut::default());
    let (mut seen_video, mut seen_audio, mut newest_segment) = (0, 0, -1);
    let mut farthest_us = 0;
    let (frames, blocks) = (
        HOURS * 3600 * i64::from(rate.num) / i64::from(rate.den),
        HOURS * 3600 * i64::from(sample_rate) / 1024,
    );
    let (mut next_frame, mut next_block) = (0i64, 0i64);
    let frame_ticks = rate.frame_start(1, Timescale::VIDEO) + 1;
    // Offset of a place on the timeline from where the source had it, in microseconds.
    let off_us = |pts: Ticks, scale: Timescale, exact_us: i128| {
        let base = Timescale::VIDEO.rescale(START, scale);
        (i128::from(pts - base) * 1_000_000 / i128::from(scale.per_second()) - exact_us) as i64
    };
    while next_frame < frames || next_block < blocks {
        let frame_us = i128::from(next_frame) * i128::from(rate.den) * 1_000_000 / i128::from(rate.num);
        let block_us = i128::from(next_block) * 1024 * 1_000_000 / i128::from(sample_rate);
        let tag = if next_block >= blocks || (next_frame < frames && frame_us <= block_us) {
            let ms = ZERO_MS.wrapping_add((frame_us / 1000) as u32);
            let head = if next_frame % 120 == 0 { 0x17 } else { 0x27 };
            next_frame += 1;
            tag(TagKind::Video, ms, &[head, 1, 0, 0, 0], b"v")
        } else {
            let ms = sent_ms(next_block * 1024, i64::from(sample_rate));
            next_block += 1;
            tag(TagKind::Audio, ms, &[0xAF, 1], b"a")
        };
        feed.push(&tag).unwrap();
        while let Some(event) = feed.poll() {
            match event {
                Event::Start(source) => {
                    assert!(repair.is_none(), "one run");
                    repair = Some(Repair::new(START, source.first_ms, Some(rate), Some(timescale)));
                }
                Event::Restart(why) => panic!("{why:?}"),
                Event::Data(frame) => panic!("{frame:?} was not sent"),
                Event::Again(frame) => panic!("{frame:?} comes twice"),
                Event::Video(frame) => {
                    let Some(repair) = &mut repair else { panic!("a frame before the start") };
                    let Times { dts, pts, duration } = repair.video(frame.dts_ms, frame.pts_ms, 0);
                    let exact_us =
                        i128::from(seen_video) * i128::from(rate.den) * 1_000_000 / i128::from(rate.num);
                    let video_off = off_us(pts, Timescale::VIDEO, exact_us);
                    assert!(
                        dts <= pts + 90 && video_off.abs() <= 2_000,
                        "frame {seen_video}: {video_off} us"
                    );
                    farthest_us = farthest_us.max(video_off.abs());
                    seen_video += 1;
                    let index = transcode::segment_index(START, SEGMENT, pts);
                    let key = std::mem::replace(&mut newest_segment, index) != index;
                    let sample = Sample { dts: pts, pts, duration, key, data: Bytes::new() };
                    video_cut.push(sample, true);
                    video.take(&mut video_cut, frame_ticks, SEGMENT, START);
                }
                Event::Audio(frame) => {
                    let Some(repair) = &mut repair else { panic!("a frame before the start") };
                    let Some(Times { pts, duration, .. }) = repair.audio(frame.dts_ms, frame.samples) else {
                        panic!("audio frame {seen_audio} was left out")
                    };
                    let exact_us = i128::from(seen_audio) * 1024 * 1_000_000 / i128::from(sample_rate);
                    let audio_off = off_us(pts, timescale, exact_us);
                    assert!(audio_off.abs() <= 2_000, "audio {seen_audio}: {audio_off} us");
                    farthest_us = farthest_us.max(audio_off.abs());
                    seen_audio += 1;
                    let sample = Sample { dts: pts, pts, duration, key: true, data: Bytes::new() };
                    audio_cut.push(sample, true);
                    audio.take(
                        &mut audio_cut,
                        512,
                        timescale.per_second().into(),
                        timescale.per_second().into(),
                    );
                }
            }
        }
    }
    // Each within 2 ms of the source, so both within 4 of one another.
    assert_eq!((seen_video, seen_audio), (frames, blocks), "{rate:?}: a frame is lost or doubled");
    assert_eq!(repair.unwrap().repairs(), Repairs::default(), "{rate:?} {sample_rate}");
    video_cut.finish();
    audio_cut.finish();
    video.take(&mut video_cut, frame_ticks, SEGMENT, START);
    audio.take(&mut audio_cut, 512, timescale.per_second().into(), timescale.per_second().into());
    assert_eq!((video.samples, audio.samples), (frames, blocks), "all are in segments");
    assert!((video.segments - HOURS * 3600).abs() <= 1 && (audio.segments - HOURS * 3600).abs() <= 1);
    eprintln!("{}/{} fps, {sample_rate} Hz: at most {farthest_us} us off", rate.num, rate.den);
}

#[test]
fn audio_and_video_stay_together_for_a_day_at_59_94() {
    a_day(FrameRate { num: 60_000, den: 1001 }, 48_000);
}

#[test]
fn audio_and_video_stay_together_for_a_day_at_29_97_and_44_100() {
    a_day(FrameRate { num: 30_000, den: 1001 }, 44_100);
}

#[test]
fn audio_and_video_stay_together_for_a_day_at_25() {
    a_day(FrameRate { num: 25, den: 1 }, 48_000);
}
