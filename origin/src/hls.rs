//! Windows to HLS playlists: RFC 8216bis with the low-latency extensions (draft-pantos-hls-rfc8216bis).
//! Sections cited are the draft's.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::time::{Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use crate::dvr::Earlier;
use crate::path;
use crate::timeline::Anchor;
use crate::window::{Bitrate, Window};

/// Parts are listed for this many target durations from the end (4.4.4.9).
const PARTS_LISTED: Ticks = 3;

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
        frame_rate: Option<media::time::FrameRate>,
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

impl Variant {
    /// Peak bits per second of a segment.
    pub fn bandwidth(&self) -> u64 {
        if self.measured.segments < ENOUGH_SEGMENTS { self.bitrate_bps } else { self.measured.peak_bps }
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

/// The multivariant playlist; `query` is what the URIs of the media playlists end with.
pub fn multivariant(variants: &[Variant], query: &str) -> String {
    let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    let audio = variants.iter().find(|variant| matches!(variant.kind, Kind::Audio { .. }));
    let video: Vec<_> =
        variants.iter().filter(|variant| matches!(variant.kind, Kind::Video { .. })).collect();
    if let Some(Variant { id, kind: Kind::Audio { channels, .. }, .. }) = audio
        && !video.is_empty()
    {
        put!(
            out,
            "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"{id}\",DEFAULT=YES,AUTOSELECT=YES,CHANNELS=\"{channels}\",URI=\"{id}.m3u8{query}\"\n"
        );
    }
    for variant in &video {
        let Kind::Video { width, height, frame_rate } = variant.kind else { continue };
        let bandwidth = variant.bandwidth() + audio.map_or(0, Variant::bandwidth);
        let average = variant.average_bandwidth() + audio.map_or(0, Variant::average_bandwidth);
        let codecs =
            audio.map_or(variant.codec.clone(), |audio| format!("{},{}", variant.codec, audio.codec));
        put!(
            out,
            "#EXT-X-STREAM-INF:BANDWIDTH={bandwidth},AVERAGE-BANDWIDTH={average},CODECS=\"{codecs}\",RESOLUTION={width}x{height}"
        );
        if let Some(rate) = frame_rate {
            put!(out, ",FRAME-RATE={:.3}", rate.fps());
        }
        if audio.is_some() {
            out.push_str(",AUDIO=\"audio\"");
        }
        put!(out, "\n{}.m3u8{query}\n", variant.id);
    }
    if let (Some(audio), true) = (audio, video.is_empty()) {
        put!(
            out,
            "#EXT-X-STREAM-INF:BANDWIDTH={},AVERAGE-BANDWIDTH={},CODECS=\"{}\"\n{}.m3u8{query}\n",
            audio.bandwidth(),
            audio.average_bandwidth(),
            audio.codec,
            audio.id
        );
    }
    out
}

/// One media playlist.
#[derive(Debug)]
pub struct Playlist<'a> {
    /// Which rendition.
    pub id: &'a RenditionId,
    /// What is listed before the window, in order.
    pub earlier: &'a VecDeque<Earlier>,
    /// What is listed.
    pub window: &'a Window,
    /// What never changes.
    pub targets: Targets,
    /// Ties the timeline to the wall clock.
    pub anchor: Anchor,
    /// How far the other renditions are.
    pub reports: &'a [Report],
    /// Whether more is to come soon: a broadcaster is connected.
    pub hint: bool,
    /// The broadcast is over.
    pub ended: bool,
}

impl Playlist<'_> {
    /// The text.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        let timescale = self.window.timescale();
        let target = self.targets.target_duration();
        // Rounded up, so that no part is longer than announced.
        let part_target = (self.targets.part_target + 89).div_euclid(90) as f64 / 1000.0;
        let first = self.earlier.front().map(|segment| segment.number);
        let first = first.or(self.window.segments().next().map(|segment| segment.number));
        // Breaks that are listed before the window have not left the list.
        let listed = self.earlier.iter().filter(|segment| segment.discontinuity).count() as u64;
        let listed = listed + u64::from(self.breaks_at_the_window());
        put!(out, "#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:{target}\n");
        put!(
            out,
            "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK={:.3},HOLD-BACK={:.1}\n",
            part_target * 3.0,
            target as f64 * 3.0
        );
        put!(out, "#EXT-X-PART-INF:PART-TARGET={part_target:.3}\n");
        put!(out, "#EXT-X-MEDIA-SEQUENCE:{}\n", first.map_or(0, |number| number.0));
        put!(
            out,
            "#EXT-X-DISCONTINUITY-SEQUENCE:{}\n",
            self.window.discontinuity_sequence().saturating_sub(listed)
        );
        self.segments(&mut out, timescale);
        if self.ended {
            out.push_str("#EXT-X-ENDLIST\n");
        } else if self.hint {
            self.preload_hint(&mut out);
        }
        if !self.ended {
            for report in self.reports {
                put!(out, "#EXT-X-RENDITION-REPORT:URI=\"{}.m3u8\",LAST-MSN={}", report.id, report.msn);
                if let Some(part) = report.part {
                    put!(out, ",LAST-PART={part}");
                }
                out.push('\n');
            }
        }
        out
    }

    fn segments(&self, out: &mut String, timescale: Timescale) {
        // Counted by durations, not by the timeline: it may have jumped.
        let mut remaining: Ticks = self.window.segments().map(|segment| segment.duration).sum();
        let parts_listed =
            PARTS_LISTED * self.targets.target_duration() * Ticks::from(timescale.per_second());
        let open = self.window.open_segment().map(|segment| segment.number);
        let mut mapped = None;
        self.earlier(out, timescale, &mut mapped);
        let mut breaks = self.breaks_at_the_window();
        for segment in self.window.segments() {
            let is_open = open == Some(segment.number);
            if is_open && segment.parts.is_empty() {
                continue;
            }
            if std::mem::take(&mut breaks) || segment.discontinuity {
                out.push_str("#EXT-X-DISCONTINUITY\n");
            }
            if mapped != Some(segment.epoch) {
                mapped = Some(segment.epoch);
                put!(out, "#EXT-X-MAP:URI=\"{}\"\n", path::init(segment.epoch, self.id));
            }
            put!(out, "#EXT-X-PROGRAM-DATE-TIME:{}\n", self.anchor.wall(segment.start, timescale));
            let uri = path::segment(segment.epoch, self.id, segment.number);
            let with_parts = remaining <= parts_listed + segment.duration;
            remaining -= segment.duration;
            if with_parts {
                for part in &segment.parts {
                    put!(
                        out,
                        "#EXT-X-PART:DURATION={:.5},URI=\"{uri}\",BYTERANGE=\"{}@{}\"{}\n",
                        timescale.seconds(part.duration),
                        part.len,
                        part.offset,
                        if part.independent { ",INDEPENDENT=YES" } else { "" }
                    );
                }
            }
            if !is_open {
                if segment.object.is_none() {
                    out.push_str("#EXT-X-GAP\n");
                }
                put!(out, "#EXTINF:{:.5},\n{uri}\n", timescale.seconds(segment.duration));
            }
        }
    }

    /// Whether the timeline breaks between what is listed before the window and the window, where that begins with a run
    /// that had nothing before it when it began: this origin was started anew, or had no copy.
    fn breaks_at_the_window(&self) -> bool {
        let Some((last, first)) = self.earlier.back().zip(self.window.segments().next()) else {
            return false;
        };
        !first.discontinuity
            && last.epoch != first.epoch
            && last.breaks < self.window.discontinuity_sequence()
    }

    fn earlier(&self, out: &mut String, timescale: Timescale, mapped: &mut Option<Epoch>) {
        for segment in self.earlier {
            if segment.discontinuity {
                out.push_str("#EXT-X-DISCONTINUITY\n");
            }
            if *mapped != Some(segment.epoch) && !segment.gap {
                *mapped = Some(segment.epoch);
                put!(out, "#EXT-X-MAP:URI=\"{}\"\n", path::init(segment.epoch, self.id));
            }
            put!(out, "#EXT-X-PROGRAM-DATE-TIME:{}\n", self.anchor.wall(segment.start, timescale));
            if segment.gap {
                out.push_str("#EXT-X-GAP\n");
            }
            let uri = path::segment(segment.epoch, self.id, segment.number);
            put!(out, "#EXTINF:{:.5},\n{uri}\n", timescale.seconds(segment.duration));
        }
    }

    fn preload_hint(&self, out: &mut String) {
        let Some(last) = self.window.segments().next_back() else {
            return;
        };
        let (number, start) = match self.window.open_segment() {
            Some(open) => (open.number, open.bytes),
            None => (last.number.next(), 0),
        };
        let uri = path::segment(last.epoch, self.id, number);
        put!(out, "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{uri}\",BYTERANGE-START={start}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::tests::{fill, segment};
    use media::time::FrameRate;

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
        window.open(
            crate::window::Segment {
                discontinuity: true,
                epoch: media::Epoch(4),
                ..segment(14, 20 * 90_000)
            },
            90_000,
        );
        window.part(1234, 18_000, true);
        window.part(567, 18_000, false);
        let reports = [Report { id: id("audio"), msn: SegmentNumber(14), part: Some(2) }];
        let rendition = id("720p");
        let playlist = Playlist {
            id: &rendition,
            earlier: &VecDeque::new(),
            window: &window,
            targets: TARGETS,
            anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
            reports: &reports,
            hint: true,
            ended: false,
        };
        check(include_str!("../testdata/break_and_open.m3u8"), &playlist.render());
        check(include_str!("../testdata/ended.m3u8"), &Playlist { ended: true, ..playlist }.render());
    }

    #[test]
    fn an_origin_that_was_started_anew_breaks_where_its_window_begins() {
        // One break is behind it, another is where its own run begins: its first segment has none to be marked from.
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 2);
        fill(&mut window, 20);
        window.close();
        let earlier = |epoch| Earlier {
            number: SegmentNumber(19),
            epoch: media::Epoch(epoch),
            start: 0,
            duration: 90_000,
            discontinuity: false,
            gap: false,
            breaks: 1,
        };
        let rendition = id("720p");
        for (epoch, breaks) in [(2, 1), (3, 0)] {
            let playlist = Playlist {
                id: &rendition,
                earlier: &VecDeque::from([earlier(epoch)]),
                window: &window,
                targets: TARGETS,
                anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: 10 * 90_000 },
                reports: &[],
                hint: false,
                ended: false,
            };
            let text = playlist.render();
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
        check(include_str!("../testdata/multivariant.m3u8"), &multivariant(&variants, ""));
        check(include_str!("../testdata/audio_only.m3u8"), &multivariant(&[audio], ""));
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
        ] {
            let result =
                Directives::parse(query).and_then(|directives| directives.satisfied(&window, TARGETS));
            assert_eq!(result, expected, "{query}");
        }
        // A run ended with a long segment: its parts are no farther ahead for being whole.
        window.open(segment(13, 13 * 90_000), 90_000);
        for _ in 0..20 {
            window.part(1000, 18_000, false);
        }
        window.close();
        for (part, ready) in [(19, true), (20, false), (35, false)] {
            let directives = Directives { msn: Some(13), part: Some(part) };
            assert_eq!(directives.satisfied(&window, TARGETS), Ok(ready), "{part}");
        }
    }
}
