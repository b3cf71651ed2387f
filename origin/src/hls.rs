//! Windows to HLS playlists: RFC 8216bis with the low-latency extensions (draft-pantos-hls-rfc8216bis).
//! Sections cited are the draft's.
#![deny(clippy::disallowed_methods)]

mod media;
mod multivariant;

use ::media::time::{FrameRate, Ticks, Timescale};
use ::media::{RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use crate::window::{Bitrate, Window};

pub use self::media::{Hint, Playlist};
pub use self::multivariant::multivariant;

/// Parts are listed for this many target durations from the end (4.4.4.9).
const PARTS_LISTED: Ticks = 3;

/// The skip boundary in target durations: the least that is allowed (4.4.3.8).
const SKIP_BOUNDARY: Ticks = 6;

/// What a player needs to know of a rendition before it loads its playlist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// The rendition.
    pub id: RenditionId,
    /// RFC 6381.
    pub codec: String,
    /// Configured bits per second: what is announced until enough was measured.
    pub bitrate_bps: u64,
    /// What was measured.
    pub measured: Bitrate,
    /// What kind of track it is.
    pub kind: Kind,
}

/// Video or audio, with what manifests say of each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    /// Size in samples, and frames per second where known.
    Video {
        /// Samples a row.
        width: u32,
        /// Rows.
        height: u32,
        /// As a fraction.
        frame_rate: Option<FrameRate>,
    },
    /// Channels and samples per second.
    Audio {
        /// 1 to 8.
        channels: u32,
        /// Of the core codec.
        sample_rate: u32,
    },
}

/// Segments to measure before the measured rate is announced instead of the configured one.
const ENOUGH_SEGMENTS: u64 = 5;

/// A codec without profile and level, such as `avc1`.
pub fn fourcc(codec: &str) -> &str {
    codec.split('.').next().unwrap_or_default()
}

impl Variant {
    /// Peak bits per second of a segment: no segment that was measured has more (4.4.6.2).
    pub fn bandwidth(&self) -> u64 {
        let configured = if self.measured.segments < ENOUGH_SEGMENTS { self.bitrate_bps } else { 0 };
        self.measured.peak_bps.max(configured)
    }

    /// Mean bits per second.
    pub fn average_bandwidth(&self) -> u64 {
        if self.measured.segments < ENOUGH_SEGMENTS { self.bitrate_bps } else { self.measured.average_bps }
    }
}

/// Constants of a broadcast that no playlist may ever change (4.4.3.7, 4.4.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// 90 kHz.
    pub segment_duration: Ticks,
    /// 90 kHz, at least as long as the longest part.
    pub part_target: Ticks,
}

impl Targets {
    /// EXT-X-TARGETDURATION: segments are at most half a second longer than they should be.
    pub fn target_duration(self) -> i64 {
        (self.segment_duration + 45_000).div_euclid(90_000).max(1)
    }

    /// What is farther than that from the end of a playlist may be left out of delta updates, 90 kHz (4.4.3.8).
    pub(crate) fn skip_boundary(self) -> Ticks {
        SKIP_BOUNDARY * self.target_duration() * 90_000
    }

    /// How far from the end of a playlist parts are listed (6.2.2).
    pub(crate) fn parts_listed(self, timescale: Timescale) -> Ticks {
        PARTS_LISTED * self.target_duration() * Ticks::from(timescale.per_second())
    }

    /// PART-TARGET in seconds, rounded up to milliseconds, so that no part is longer than announced.
    fn part_target_seconds(self) -> f64 {
        (self.part_target + 89).div_euclid(90) as f64 / 1000.0
    }

    /// What all media playlists of a broadcast say alike and never otherwise (6.2.4): EXT-X-TARGETDURATION,
    /// EXT-X-SERVER-CONTROL.
    fn control(self) -> String {
        let target = self.target_duration();
        format!(
            "#EXT-X-TARGETDURATION:{target}\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,CAN-SKIP-UNTIL={:.1},\
             CAN-SKIP-DATERANGES=YES,PART-HOLD-BACK={:.3},HOLD-BACK={:.1}\n",
            (target * SKIP_BOUNDARY) as f64,
            self.part_target_seconds() * 3.0,
            target as f64 * 3.0
        )
    }
}

/// A rendition report (4.4.5.4): how far another playlist is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The other rendition.
    pub id: RenditionId,
    /// Its newest segment.
    pub msn: SegmentNumber,
    /// The newest part of that segment; `None` if it has none listed.
    pub part: Option<u64>,
}

/// What may be asked for a media playlist with delivery directives (6.2.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Directives {
    /// `_HLS_msn`
    pub msn: Option<u64>,
    /// `_HLS_part`
    pub part: Option<u64>,
    /// `_HLS_skip`
    pub skip: Option<Skip>,
}

/// What a delta update leaves out (6.2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// `YES`: segments.
    Segments,
    /// `v2`: segments, and date ranges that were there before.
    DateRanges,
}

/// A request that must be answered with 400 (6.2.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDirective {
    /// A value that is not a decimal number.
    #[error("{0} is not a decimal number")]
    NotANumber(&'static str),
    /// A part without its segment.
    #[error("_HLS_part without _HLS_msn")]
    PartWithoutMsn,
    /// Too far ahead to wait for.
    #[error("_HLS_msn or _HLS_part is too far ahead of the live edge")]
    TooFarAhead,
}

impl Directives {
    /// Reads a query; other parameters are ignored.
    pub fn parse(query: &str) -> Result<Self, BadDirective> {
        let mut directives = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (slot, name) = match name {
                "_HLS_msn" => (&mut directives.msn, "_HLS_msn"),
                "_HLS_part" => (&mut directives.part, "_HLS_part"),
                "_HLS_skip" => {
                    // Values of later versions: the whole playlist is right for all.
                    directives.skip = match value {
                        "YES" => Some(Skip::Segments),
                        "v2" => Some(Skip::DateRanges),
                        _ => None,
                    };
                    continue;
                }
                _ => continue,
            };
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let value = if digits { value.parse().ok() } else { None };
            *slot = Some(value.ok_or(BadDirective::NotANumber(name))?);
        }
        if directives.part.is_some() && directives.msn.is_none() {
            return Err(BadDirective::PartWithoutMsn);
        }
        Ok(directives)
    }

    /// Whether the request can be answered now; else it waits.
    pub fn satisfied(self, window: &Window, targets: Targets) -> Result<bool, BadDirective> {
        let (Some(msn), Some(last)) = (self.msn, window.last()) else {
            return Ok(self.msn.is_none());
        };
        // The advance limit: three parts, or as many as fill three seconds of very short ones.
        let limit =
            if targets.part_target < 90_000 { 270_000 / targets.part_target.max(1) } else { 3 } as u64;
        // Of the newest segment, whether it still grows or not: a run that ended left it closed.
        let newest_parts = window.segments().next_back().map_or(0, |segment| segment.parts.len() as u64);
        let beyond = newest_parts.saturating_add(limit);
        if msn > last.0.saturating_add(2) || (msn >= last.0 && self.part.is_some_and(|part| part > beyond)) {
            return Err(BadDirective::TooFarAhead);
        }
        Ok(window.has(SegmentNumber(msn), self.part))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use ::media::Epoch;
    use ::media::captions::Service;

    use super::*;
    use crate::dvr::Earlier;
    use crate::timeline::Anchor;
    use crate::window::Segment;
    use crate::window::tests::{fill, segment};

    const TARGETS: Targets = Targets { segment_duration: 90_000, part_target: 18_000 };

    fn id(name: &str) -> RenditionId {
        name.parse().unwrap()
    }

    fn check(golden: &str, rendered: &str) {
        assert_eq!(rendered, golden, "\n--- rendered ---\n{rendered}");
    }

    #[test]
    fn a_window_with_a_break_and_an_open_segment() {
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 0);
        for number in 10..14 {
            fill(&mut window, number);
        }
        window.open(Segment { discontinuity: true, epoch: Epoch(4), ..segment(14, 20 * 90_000) }, 90_000);
        window.part(1234, 18_000, true);
        window.part(567, 18_000, false);
        let reports = [Report { id: id("audio"), msn: SegmentNumber(14), part: Some(2) }];
        let rendition = id("720p");
        let playlist = Playlist {
            id: &rendition,
            events: &[],
            earlier: &VecDeque::new(),
            window: &window,
            targets: TARGETS,
            anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
            reports: &reports,
            hint: Hint::Part,
            ended: false,
            query: "",
        };
        check(include_str!("../testdata/break_and_open.m3u8"), &playlist.render(None));
        check(
            include_str!("../testdata/ended.m3u8"),
            &Playlist { ended: true, ..playlist }.render(Some(Skip::Segments)),
        );
    }

    #[test]
    fn an_origin_that_was_started_anew_breaks_where_its_window_begins() {
        // One break is behind it, another is where its own run begins: its first segment has none to be marked from.
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 2);
        fill(&mut window, 20);
        window.close();
        let earlier = |epoch| Earlier {
            number: SegmentNumber(19),
            epoch: Epoch(epoch),
            start: 0,
            duration: 90_000,
            discontinuity: false,
            gap: false,
            breaks: 1,
            lead: 0,
        };
        let rendition = id("720p");
        for (epoch, breaks) in [(2, 1), (3, 0)] {
            let playlist = Playlist {
                id: &rendition,
                events: &[],
                earlier: &VecDeque::from([earlier(epoch)]),
                window: &window,
                targets: TARGETS,
                anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
                reports: &[],
                hint: Hint::Nothing,
                ended: false,
                query: "",
            };
            let text = playlist.render(None);
            assert_eq!(text.matches("#EXT-X-DISCONTINUITY\n").count(), breaks, "{text}");
            assert!(text.contains(&format!("#EXT-X-DISCONTINUITY-SEQUENCE:{}\n", 2 - breaks)), "{text}");
        }
    }

    #[test]
    fn the_multivariant_playlist() {
        let video = |name: &str, width, height, bitrate_bps, measured| Variant {
            id: id(name),
            codec: "avc1.64001f".into(),
            bitrate_bps,
            measured,
            kind: Kind::Video { width, height, frame_rate: Some(FrameRate { num: 30000, den: 1001 }) },
        };
        let audio = Variant {
            id: id("audio"),
            codec: "mp4a.40.2".into(),
            bitrate_bps: 160_000,
            measured: Bitrate::default(),
            kind: Kind::Audio { channels: 2, sample_rate: 48_000 },
        };
        let measured = Bitrate { peak_bps: 3_100_000, average_bps: 2_500_000, segments: 60 };
        let variants = [
            video("720p", 1280, 720, 3_000_000, measured),
            video("360p", 640, 360, 800_000, Bitrate::default()),
            audio.clone(),
        ];
        let iframes = BTreeMap::from([(id("720p"), 900_000), (id("360p"), 300_000)]);
        let golden = include_str!("../testdata/multivariant.m3u8");
        check(golden, &multivariant(&variants, &iframes, None, ""));
        let none = multivariant(&variants, &iframes, Some(&[]), "");
        let said = |group: &str| {
            golden.replace("AUDIO=\"audio\"", &format!("AUDIO=\"audio\",CLOSED-CAPTIONS={group}"))
        };
        check(&said("NONE"), &none);
        let services: Vec<Service> = ["CC1:en", "SERVICE2"].map(|text| text.parse().unwrap()).to_vec();
        let media = "#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID=\"cc\",NAME=\"CC1\",LANGUAGE=\"en\",AUTOSELECT=YES,\
                     INSTREAM-ID=\"CC1\"\n#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID=\"cc\",NAME=\"SERVICE2\",\
                     AUTOSELECT=YES,INSTREAM-ID=\"SERVICE2\"\n#EXT-X-STREAM-INF";
        let expected =
            said("\"cc\"").replacen("#EXT-X-STREAM-INF", media, 1).replace("VERSION:6", "VERSION:7");
        check(&expected, &multivariant(&variants, &iframes, Some(&services), ""));
        let alone = multivariant(&[audio], &BTreeMap::new(), Some(&[]), "");
        check(include_str!("../testdata/audio_only.m3u8"), &alone);
    }

    /// As a player has it (6.2.5.1): the lines of the segments that were skipped, from the playlist before.
    fn merged(before: &str, delta: &str) -> String {
        let sequence = |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("#EXT-X-MEDIA-SEQUENCE:")).unwrap();
            line.parse::<usize>().unwrap()
        };
        let skip = delta.lines().find(|line| line.starts_with("#EXT-X-SKIP:")).unwrap();
        let skipped = skip.split_once("SKIPPED-SEGMENTS=").unwrap().1;
        let skipped: usize = skipped.split(',').next().unwrap().parse().unwrap();
        let head = before.find("-SEQUENCE:0\n").unwrap() + "-SEQUENCE:0\n".len();
        let gone = sequence(delta) - sequence(before);
        let ends = before[head..].match_indices(".m4s\n").map(|(at, end)| head + at + end.len());
        let ends: Vec<_> = std::iter::once(head).chain(ends).collect();
        delta.replace(&format!("{skip}\n"), &before[ends[gone]..ends[gone + skipped]])
    }

    #[test]
    fn a_delta_update_leaves_out_what_lies_behind_the_boundary_and_nothing_else() {
        let mut window = Window::new(Timescale::VIDEO, 20 * 90_000, 0);
        let rendition = id("720p");
        let render = |window: &Window, skip| {
            let playlist = Playlist {
                id: &rendition,
                events: &[],
                earlier: &VecDeque::new(),
                window,
                targets: TARGETS,
                anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
                reports: &[],
                hint: Hint::Part,
                ended: false,
                query: "",
            };
            playlist.render(skip)
        };
        for number in 10..17 {
            fill(&mut window, number);
        }
        window.close();
        let (whole, delta) = (render(&window, None), render(&window, Some(Skip::Segments)));
        assert_eq!(whole, delta, "six target durations follow the first segment, not more");
        let mut before = whole;
        for number in 17..45 {
            let segment = Segment {
                epoch: Epoch(3 + number / 20),
                discontinuity: number % 20 == 0,
                ..segment(number, number as Ticks * 90_000)
            };
            window.open(segment, 90_000);
            for part in 0..5 {
                window.part(1000, 18_000, part == 0);
            }
            let (whole, delta) = (render(&window, None), render(&window, Some(Skip::DateRanges)));
            let listed = whole.matches("#EXTINF").count();
            let skip =
                format!("#EXT-X-SKIP:SKIPPED-SEGMENTS={},RECENTLY-REMOVED-DATERANGES=\"\"\n", listed - 6);
            assert!(delta.contains(&skip), "{skip} in\n{delta}");
            let first = delta.split_once(&skip).unwrap().1.split_once("#EXTINF").unwrap().0;
            assert_eq!(first.matches("#EXT-X-MAP:").count(), 1, "{delta}");
            assert!(delta.len() < whole.len() && delta.contains("CAN-SKIP-UNTIL=6.0"));
            if !whole.contains("DISCONTINUITY-SEQUENCE:1") {
                // Parts leave a list before their segments do; a map is said at what is listed first, at a new one, and again
                // behind what is skipped.
                let lasting = |text: &str| {
                    let mut before = "";
                    let lines = text.lines().filter(|line| !line.starts_with("#EXT-X-PART:"));
                    let lines = lines.filter(|line| {
                        let new = std::mem::replace(&mut before, line) == "#EXT-X-DISCONTINUITY";
                        new || !line.starts_with("#EXT-X-MAP:")
                    });
                    lines.collect::<Vec<_>>().join("\n")
                };
                assert_eq!(lasting(&merged(&before, &delta)), lasting(&whole));
            }
            before = whole;
        }
        assert!(before.contains("DISCONTINUITY-SEQUENCE:1"), "{before}");
    }

    #[test]
    fn a_run_without_media_is_hinted_at_by_its_init_segment() {
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 0);
        fill(&mut window, 10);
        window.close();
        let playlist = Playlist {
            id: &id("720p"),
            events: &[],
            earlier: &VecDeque::new(),
            window: &window,
            targets: TARGETS,
            anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 0 },
            reports: &[Report { id: id("audio"), msn: SegmentNumber(9), part: None }],
            hint: Hint::Run(Epoch(5), SegmentNumber(11)),
            ended: false,
            query: "?start=-60",
        };
        let end = "#EXT-X-PRELOAD-HINT:TYPE=MAP,URI=\"5/720p/init.mp4\"\n\
                   #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"5/720p/11.m4s\",BYTERANGE-START=0\n\
                   #EXT-X-RENDITION-REPORT:URI=\"audio.m3u8?start=-60\",LAST-MSN=9\n";
        let text = playlist.render(None);
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn keyframes_are_listed_for_as_long_as_their_segments() {
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 0);
        // As short as boxes get: nothing before an empty `mdat`, and 992 bytes that follow.
        let bytes = [0, 0, 0, 8, b'm', b'd', b'a', b't'];
        for number in 10..13 {
            window.open(segment(number, number as Ticks * 90_000), 90_000);
            window.part(1000, 18_000, true);
            window.begins_with(if number == 11 { b"else" } else { &bytes });
            window.part(1000, 72_000, false);
        }
        let playlist = Playlist {
            id: &id("720p"),
            events: &[],
            earlier: &VecDeque::new(),
            window: &window,
            targets: TARGETS,
            anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
            reports: &[],
            hint: Hint::Part,
            ended: false,
            query: "",
        };
        check(include_str!("../testdata/iframes.m3u8"), &playlist.iframes(None));
        assert_eq!(window.keyframes_bps(), 64);
    }

    #[test]
    fn no_segment_has_more_than_the_announced_bandwidth() {
        let variant = |peak_bps, segments| Variant {
            id: id("720p"),
            codec: "avc1".into(),
            bitrate_bps: 3_000_000,
            measured: Bitrate { peak_bps, average_bps: peak_bps, segments },
            kind: Kind::Video { width: 1280, height: 720, frame_rate: None },
        };
        assert_eq!(variant(0, 0).bandwidth(), 3_000_000);
        assert_eq!(variant(3_500_000, 1).bandwidth(), 3_500_000);
        assert_eq!(variant(2_500_000, ENOUGH_SEGMENTS).bandwidth(), 2_500_000);
    }

    #[test]
    fn directives_block_or_are_refused() {
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 0);
        for number in 10..13 {
            fill(&mut window, number);
        }
        for (query, expected) in [
            ("", Ok(true)),
            ("x=1&_HLS_msn=12&_HLS_part=4", Ok(true)),
            ("_HLS_msn=12&_HLS_part=5", Ok(false)),
            ("_HLS_msn=11", Ok(true)),
            ("_HLS_msn=3&_HLS_part=1", Ok(true)),
            ("_HLS_msn=12", Ok(false)),
            ("_HLS_msn=14", Ok(false)),
            ("_HLS_msn=15", Err(BadDirective::TooFarAhead)),
            ("_HLS_msn=12&_HLS_part=99", Err(BadDirective::TooFarAhead)),
            ("_HLS_part=1", Err(BadDirective::PartWithoutMsn)),
            ("_HLS_msn=", Err(BadDirective::NotANumber("_HLS_msn"))),
            ("_HLS_msn=+5", Err(BadDirective::NotANumber("_HLS_msn"))),
            ("_HLS_skip=YES", Ok(true)),
            ("_HLS_msn=14&_HLS_skip=v2", Ok(false)),
        ] {
            let result =
                Directives::parse(query).and_then(|directives| directives.satisfied(&window, TARGETS));
            assert_eq!(result, expected, "{query}");
        }
        for (value, skip) in
            [("YES", Some(Skip::Segments)), ("v2", Some(Skip::DateRanges)), ("v3", None), ("", None)]
        {
            assert_eq!(Directives::parse(&format!("_HLS_skip={value}")).unwrap().skip, skip, "{value}");
        }
        // A run ended with a long segment: its parts are no farther ahead for being whole.
        window.open(segment(13, 13 * 90_000), 90_000);
        for _ in 0..20 {
            window.part(1000, 18_000, false);
        }
        window.close();
        for (part, ready) in [(19, true), (20, false), (35, false)] {
            let directives = Directives { msn: Some(13), part: Some(part), skip: None };
            assert_eq!(directives.satisfied(&window, TARGETS), Ok(ready), "{part}");
        }
    }
}
