//! Over an archive on disk, as it is written and read.

use archive::config::Store;
use archive::index::{Anchor, Run};
use archive::{BroadcastId, NewSegment};
use bytes::Bytes;
use media::event::{Event, What};
use media::time::{FrameRate, Timescale};
use media::{Epoch, Object, RenditionId, SegmentNumber};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::dvr::{Earlier, Past, PastRuns, Start};

const SECOND: i64 = 90_000;

/// Two seconds a sheet.
const TILES: Option<index::Tiles> =
    Some(index::Tiles { interval: SECOND, columns: 2, rows: 1, width: 160, height: 90 });

fn run(epoch: u64, first: u64, start: i64, breaks: u64, names: &[&str]) -> Run {
    let rendition = |name: &&str| {
        let video =
            index::Kind::Video { width: 640, height: 360, frame_rate: Some(FrameRate { num: 25, den: 1 }) };
        let (kind, timescale) = match *name {
            "audio" => (index::Kind::Audio { channels: 2, sample_rate: 48_000 }, Timescale::OPUS),
            _ => (video, Timescale::VIDEO),
        };
        let (codec, init) = (format!("codec-{name}"), Bytes::from_static(b"init"));
        Rendition { id: name.parse().unwrap(), codec, bitrate_bps: 1000, timescale, kind, init }
    };
    Run {
        epoch: Epoch(epoch),
        first: SegmentNumber(first),
        start,
        anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: SECOND },
        segment_duration: SECOND,
        part_target: SECOND / 5,
        breaks,
        captions: Vec::new(),
        tiles: None,
        renditions: names.iter().map(rendition).collect(),
    }
}

/// Two runs, the second 20 s later and without audio; the first has no audio for segment 12. That the timeline breaks between
/// them is `said` by the second one's first segment, or by its run alone: its origin was started anew.
async fn recorded(folder: &std::path::Path, said: bool) -> std::sync::Arc<Index> {
    let config =
        archive::Config { store: Store::File, path: Some(folder.into()), ..archive::Config::default() };
    let (writer, reader) = archive::open(&config, folder, archive::Metrics::default()).unwrap().unwrap();
    let broadcast: BroadcastId = "demo-1700000000000".parse().unwrap();
    let sink = writer.sink();
    let segment = |epoch: u64, name: &str, number: u64, start: i64, break_before: bool| {
        let timescale = if name == "audio" { Timescale::OPUS } else { Timescale::VIDEO };
        let ticks = |ticks| Timescale::VIDEO.rescale(ticks, timescale);
        sink.segment(NewSegment {
            broadcast: broadcast.clone(),
            epoch: Epoch(epoch),
            rendition: name.parse().unwrap(),
            number: SegmentNumber(number),
            start: ticks(start),
            // The last one of a run is a short one.
            duration: ticks(if number == 13 { SECOND / 2 } else { SECOND }),
            discontinuity: break_before,
            // An older version did not know of 11.
            lead: if name == "audio" || number == 11 { 0 } else { 100 + number },
            object: Object::complete(Bytes::from(vec![0; 1000])),
        });
    };
    sink.run(&broadcast, Run { tiles: TILES, ..run(1, 10, SECOND, 0, &["360p", "audio"]) });
    for number in 10..14 {
        let start = SECOND + (number as i64 - 10) * SECOND;
        segment(1, "360p", number, start, false);
        if number != 12 {
            segment(1, "audio", number, start, false);
        }
    }
    let what = What::Data { name: "onTextData".into(), json: "{\"a\":1}".into() };
    let event = Event { at: 2 * SECOND, what };
    sink.event(&broadcast, Epoch(1), event.clone());
    sink.event(&broadcast, Epoch(1), event);
    let sheet = |epoch: u64, number: u64| {
        sink.segment(NewSegment {
            broadcast: broadcast.clone(),
            epoch: Epoch(epoch),
            rendition: crate::thumbnails::rendition(),
            number: SegmentNumber(number),
            start: number as i64 * 2 * SECOND,
            duration: 2 * SECOND,
            discontinuity: false,
            lead: 0,
            object: Object::complete(Bytes::from(vec![0; 500])),
        });
    };
    // From 0 to 4 s; of the second run from 26 to 28 s, the first and the last were lost.
    (0..3).for_each(|number| sheet(1, number));
    sink.run(&broadcast, Run { tiles: TILES, ..run(2, 14, 25 * SECOND, 1, &["360p"]) });
    for number in 14..17 {
        segment(2, "360p", number, 25 * SECOND + (number as i64 - 14) * SECOND, said && number == 14);
    }
    sheet(2, 13);
    sink.ended(&broadcast, Epoch(2));
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    writer.serve(shutdown).await;
    let index = reader.index(&broadcast).await.unwrap().unwrap();
    assert_eq!(index.objects().count(), 4 + 3 + 3 + 4, "all is written");
    assert!(index.ended().is_some());
    index
}

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("rooftop-vod-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn id(name: &str) -> RenditionId {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_recording_is_played_without_its_pauses() {
    for said in [true, false] {
        let folder = folder("played");
        let index = recorded(&folder, said).await;
        std::fs::remove_dir_all(&folder).unwrap();
        check_recording(&index);
    }
}

/// The text without its one date range, which is as it should be.
fn without_range(text: &str) -> String {
    let is_range = |line: &&str| line.starts_with("#EXT-X-DATERANGE:");
    let ranges: Vec<_> = text.lines().filter(is_range).collect();
    let [range] = ranges[..] else { panic!("{text}") };
    let attributes =
        "START-DATE=\"2023-11-14T22:13:21.000Z\",CLASS=\"onTextData\",DURATION=0.000,X-DATA=\"{%22a%22:1}\"";
    assert!(range.ends_with(attributes), "{range}");
    text.lines().filter(|line| !is_range(line)).flat_map(|line| [line, "\n"]).collect()
}

fn check_recording(index: &Index) {
    let video = without_range(&playlist(index, &id("360p")).unwrap());
    assert_eq!(
        video,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:1\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-MEDIA-SEQUENCE:10\n\
         #EXT-X-MAP:URI=\"1/360p/init.mp4\"\n#EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:20.000Z\n\
         #EXTINF:1.00000,\n1/360p/10.m4s\n#EXTINF:1.00000,\n1/360p/11.m4s\n#EXTINF:1.00000,\n1/360p/12.m4s\n\
         #EXTINF:0.50000,\n1/360p/13.m4s\n#EXT-X-DISCONTINUITY\n#EXT-X-MAP:URI=\"2/360p/init.mp4\"\n\
         #EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:44.000Z\n#EXTINF:1.00000,\n2/360p/14.m4s\n\
         #EXTINF:1.00000,\n2/360p/15.m4s\n#EXTINF:1.00000,\n2/360p/16.m4s\n#EXT-X-ENDLIST\n"
    );
    let audio = playlist(index, &id("audio")).unwrap();
    let tags = |text: &str, tag: &str| text.lines().filter(|line| line.starts_with(tag)).count();
    assert_eq!(tags(&audio, "#EXTINF"), tags(&video, "#EXTINF"), "all playlists have the same segments");
    assert_eq!((tags(&audio, "#EXT-X-DISCONTINUITY"), tags(&audio, "#EXT-X-GAP")), (1, 4), "{audio}");
    assert!(
        audio.contains("#EXT-X-GAP\n#EXTINF:1.00000,\n1/audio/12.m4s\n#EXT-X-PROGRAM-DATE-TIME:"),
        "{audio}"
    );
    assert_eq!((playlist(index, &id("720p")), iframes(index, &id("audio"))), (None, None));
    let pictures = without_range(&iframes(index, &id("360p")).unwrap());
    let expected = "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:1\n#EXT-X-PLAYLIST-TYPE:VOD\n\
        #EXT-X-MEDIA-SEQUENCE:10\n#EXT-X-I-FRAMES-ONLY\n#EXT-X-MAP:URI=\"../1/360p/init.mp4\"\n\
        #EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:20.000Z\n#EXT-X-BYTERANGE:110@0\n\
        #EXTINF:1.00000,\n../1/360p/10.m4s\n#EXT-X-GAP\n#EXTINF:1.00000,\n../1/360p/11.m4s\n\
        #EXT-X-PROGRAM-DATE-TIME:2023-11-14T22:13:22.000Z\n#EXT-X-BYTERANGE:112@0\n\
        #EXTINF:1.00000,\n../1/360p/12.m4s\n";
    assert!(pictures.starts_with(expected), "{pictures}");
    assert_eq!((tags(&pictures, "#EXTINF"), tags(&pictures, "#EXT-X-DISCONTINUITY")), (7, 1), "{pictures}");
    let all = multivariant(index).unwrap();
    assert!(all.contains("BANDWIDTH=") && all.contains("360p.m3u8\n") && all.contains("audio.m3u8"), "{all}");
    // 113 bytes in half a second.
    let pictures = "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1808,CODECS=\"codec-360p\",RESOLUTION=640x360,\
        URI=\"360p/iframes.m3u8\"\n";
    assert!(all.contains(pictures), "{all}");

    let mpd = mpd(index).unwrap();
    assert!(mpd.contains("mediaPresentationDuration=\"PT6.5S\""), "3.5 s and 3 s: {mpd}");
    let periods: Vec<_> = mpd.lines().filter(|line| line.contains("<Period")).map(str::trim).collect();
    assert_eq!(
        periods,
        [
            "<Period id=\"1-10\" start=\"PT0S\" duration=\"PT2S\">",
            "<Period id=\"1-12\" start=\"PT2S\" duration=\"PT1S\">",
            "<Period id=\"1-13\" start=\"PT3S\" duration=\"PT0.5S\">",
            "<Period id=\"2-14\" start=\"PT3.5S\" duration=\"PT3S\">",
        ]
    );
    assert_eq!(mpd.matches("contentType=\"audio\"").count(), 2, "not where it is missing");
    assert!(mpd.contains("startNumber=\"14\" presentationTimeOffset=\"2250000\""), "{mpd}");
    assert!(mpd.contains("<S t=\"2250000\" d=\"90000\" r=\"2\"/>"), "{mpd}");
    let listed = mpd.split("thumbnails/$Number$.jpg").skip(1);
    let listed: Vec<_> = listed.map(|of| of.lines().nth(2).unwrap().trim()).collect();
    let sheets = [
        // 1 to 3 s, 3 to 4 s, 4 to 4.5 s, 25 to 28 s of the timeline.
        "<S t=\"0\" d=\"180000\" r=\"1\"/>",
        "<S t=\"180000\" d=\"180000\"/>",
        "<S t=\"360000\" d=\"180000\"/>",
        "<S t=\"2340000\" d=\"180000\"/>",
    ];
    assert_eq!(listed, sheets, "{mpd}");
    assert!(
        mpd.contains("startNumber=\"13\" presentationTimeOffset=\"2250000\" media=\"2/thumbnails/"),
        "{mpd}"
    );
    assert!(mpd.contains("value=\"2x1\"/>"), "{mpd}");
}

#[tokio::test]
async fn what_is_behind_the_window_is_listed_without_a_hole() {
    for said in [true, false] {
        let folder = folder("behind");
        let index = recorded(&folder, said).await;
        std::fs::remove_dir_all(&folder).unwrap();
        check_past(&index);
    }
}

fn check_past(index: &Index) {
    let numbers = |past: &std::collections::VecDeque<Earlier>| {
        past.iter().map(|segment| (segment.number.0, segment.gap)).collect::<Vec<_>>()
    };
    // The window begins at 16: what it has itself is not listed twice.
    let past = Past::new(index, &id("360p"), 3 * SECOND + 1);
    let before = past.clone().before(SegmentNumber(16));
    assert_eq!(numbers(&before), [(12, false), (13, false), (14, false), (15, false)]);
    assert_eq!(before.iter().filter(|segment| segment.discontinuity).count(), 1);
    // The archive is behind: nobody knows what 17 and 18 were.
    let behind = past.before(SegmentNumber(19));
    assert_eq!(numbers(&behind)[4..], [(16, false), (17, true), (18, true)]);
    let audio = Past::new(index, &id("audio"), 0).before(SegmentNumber(14));
    assert_eq!(numbers(&audio), [(10, false), (11, false), (12, true), (13, false)]);
    assert!(Past::new(index, &id("720p"), 0).before(SegmentNumber(14)).is_empty());

    let runs = PastRuns::new(index, 4 * SECOND);
    let epochs: Vec<_> = runs.periods.iter().map(|period| (period.epoch.0, period.first.0)).collect();
    assert_eq!((epochs, runs.first), (vec![(1, 10), (2, 14)], Some(SegmentNumber(13))));
    let later = PastRuns::new(index, 10 * SECOND);
    assert_eq!((later.periods.len(), later.first), (1, Some(SegmentNumber(14))));
}

#[test]
fn a_start_is_a_time_or_an_error() {
    for (query, expected) in [
        ("", Ok(None)),
        ("_HLS_msn=4", Ok(None)),
        ("start=-600", Ok(Some(Start::Back(600)))),
        ("_HLS_msn=4&start=1700000000", Ok(Some(Start::At(1_700_000_000)))),
        ("start=", Err(())),
        ("start=-", Err(())),
        ("start=+5", Err(())),
        ("start=-99999999999", Err(())),
        ("start=5%22", Err(())),
    ] {
        assert_eq!(Start::parse(query).map_err(|_| ()), expected, "{query}");
    }
    let anchor = crate::timeline::Anchor { unix_ms: 1_700_000_000_000, ticks: SECOND };
    let place = |start: Start| start.place(anchor, 1000 * SECOND, 300 * SECOND);
    assert_eq!(place(Start::Back(100)), 900 * SECOND);
    assert_eq!(place(Start::Back(u32::MAX)), 700 * SECOND, "as far back as operators allow");
    assert_eq!(place(Start::At(1_700_000_899)), 900 * SECOND);
    assert_eq!(place(Start::At(0)), 700 * SECOND);
    assert_eq!(place(Start::At(u32::MAX)), 1000 * SECOND, "the future is the live edge");
}
