//! A media playlist, whole or as a delta update.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::event::Event;
use media::time::{Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};

use super::{Report, SKIP_BOUNDARY, Skip, Targets};
use crate::dvr::Earlier;
use crate::events::{self, DateRange};
use crate::path;
use crate::timeline::Anchor;
use crate::window::{Part, Window};

/// What is coming and may be asked for before it is listed (4.4.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Nothing is known to come.
    Nothing,
    /// The next part of the segment that is listed last, or of the one after it if that is whole.
    Part,
    /// The first part of this segment: the one that grows has all that it will have.
    Segment(SegmentNumber),
    /// The init segment and the first part of a run that has begun and has no media yet: its epoch, the first segment's
    /// number.
    Run(Epoch, SegmentNumber),
}

/// One media playlist.
#[derive(Debug)]
pub struct Playlist<'a> {
    /// Which rendition.
    pub id: &'a RenditionId,
    /// What happened, in order of time.
    pub events: &'a [Event],
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
    /// What is coming soon, where a broadcaster is connected.
    pub hint: Hint,
    /// The broadcast is over.
    pub ended: bool,
    /// What the URIs of other media playlists end with: the viewer's own query, delivery directives apart.
    pub query: &'a str,
}

/// A segment as it is listed, from before the window or in it.
struct Line<'a> {
    number: SegmentNumber,
    epoch: Epoch,
    start: Ticks,
    duration: Ticks,
    discontinuity: bool,
    gap: bool,
    lead: u64,
    /// Its init segment is named before it.
    mapped: bool,
    open: bool,
    parts: &'a [Part],
}

impl Playlist<'_> {
    /// The text; with `skip` a delta update (6.2.5.1), which is the whole where nothing may be skipped.
    pub fn render(&self, skip: Option<Skip>) -> String {
        let mut out = String::with_capacity(8 << 10);
        put!(out, "#EXTM3U\n#EXT-X-VERSION:9\n");
        out.push_str(&self.targets.control());
        // Rounded up, so that no part is longer than announced.
        put!(out, "#EXT-X-PART-INF:PART-TARGET={:.3}\n", self.targets.part_target_seconds());
        self.sequences(&mut out);
        self.segments(&mut out, skip.filter(|_| !self.ended));
        if self.ended {
            out.push_str("#EXT-X-ENDLIST\n");
            return out;
        }
        self.preload_hint(&mut out);
        for report in self.reports {
            put!(
                out,
                "#EXT-X-RENDITION-REPORT:URI=\"{}.m3u8{}\",LAST-MSN={}",
                report.id,
                self.query,
                report.msn
            );
            if let Some(part) = report.part {
                put!(out, ",LAST-PART={part}");
            }
            out.push('\n');
        }
        out
    }

    /// The keyframes of whole segments, each for as long as its segment (4.4.3.6).
    pub fn iframes(&self, skip: Option<Skip>) -> String {
        let mut out = String::with_capacity(4 << 10);
        put!(out, "#EXTM3U\n#EXT-X-VERSION:9\n{}#EXT-X-I-FRAMES-ONLY\n", self.targets.control());
        self.sequences(&mut out);
        let lines = || self.lines().filter(|line| !line.open);
        self.list(
            &mut out,
            lines,
            skip.filter(|_| !self.ended),
            path::FROM_IFRAMES,
            |out, line, uri, seconds| {
                if line.gap || line.lead == 0 {
                    out.push_str("#EXT-X-GAP\n");
                } else {
                    put!(out, "#EXT-X-BYTERANGE:{}@0\n", line.lead);
                }
                put!(out, "#EXTINF:{seconds:.5},\n{uri}\n");
            },
        );
        if self.ended {
            out.push_str("#EXT-X-ENDLIST\n");
        }
        out
    }

    fn sequences(&self, out: &mut String) {
        let first = self.earlier.front().map(|segment| segment.number);
        let first = first.or(self.window.segments().next().map(|segment| segment.number));
        // Breaks that are listed before the window have not left the list.
        let listed = self.earlier.iter().filter(|segment| segment.discontinuity).count() as u64;
        let listed = listed + u64::from(self.breaks_at_the_window());
        let breaks = self.window.discontinuity_sequence().saturating_sub(listed);
        put!(out, "#EXT-X-MEDIA-SEQUENCE:{}\n", first.map_or(0, |number| number.0));
        put!(out, "#EXT-X-DISCONTINUITY-SEQUENCE:{breaks}\n");
        // All of them in every version and every rendition: none is ever skipped.
        for range in self.date_ranges().0 {
            range.write(out, self.anchor);
        }
    }

    /// The date ranges that are listed, and those that were when a player which asks for a delta update has loaded last.
    fn date_ranges(&self) -> (Vec<DateRange>, Vec<DateRange>) {
        let first = self.earlier.front().map(|segment| segment.start);
        let first = first.or(self.window.segments().next().map(|segment| segment.start)).unwrap_or(0);
        let from = self.window.timescale().rescale(first, Timescale::VIDEO);
        events::listed(events::date_ranges(self.events.iter()), from, self.targets.skip_boundary())
    }

    fn segments(&self, out: &mut String, skip: Option<Skip>) {
        let timescale = self.window.timescale();
        self.list(
            out,
            || self.lines(),
            skip,
            "",
            |out, line, uri, seconds| {
                for part in line.parts {
                    put!(
                        out,
                        "#EXT-X-PART:DURATION={:.5},URI=\"{uri}\",BYTERANGE=\"{}@{}\"{}\n",
                        timescale.seconds(part.duration),
                        part.len,
                        part.offset,
                        if part.independent { ",INDEPENDENT=YES" } else { "" }
                    );
                }
                if !line.open {
                    if line.gap {
                        out.push_str("#EXT-X-GAP\n");
                    }
                    put!(out, "#EXTINF:{seconds:.5},\n{uri}\n");
                }
            },
        );
    }

    /// What stands before each of these lines that is not skipped, and by `write` the rest: given its parts as far as they
    /// are listed, its URI and its seconds. `base` leads from the playlist to what URIs are relative to.
    ///
    /// The first one behind what is skipped says its init segment again, though that holds on (4.4.4.5): Shaka (5.2) forgets it
    /// with the tags that are skipped, and decodes what it switches to with the init segment of another rendition.
    fn list<'a, I: Iterator<Item = Line<'a>>>(
        &self,
        out: &mut String,
        lines: impl Fn() -> I,
        skip: Option<Skip>,
        base: &str,
        write: impl Fn(&mut String, &Line<'_>, &str, f64),
    ) {
        let timescale = self.window.timescale();
        // What a broadcast ends with is its media, though an absence may be listed behind: hls.js ends at the last part, and
        // would wait for ever at a gap that comes last.
        let behind = if self.ended { self.last_gaps() } else { 0 };
        let parts_from = self.window.parts_from(self.targets.parts_listed(timescale) + behind);
        let boundary = SKIP_BOUNDARY * self.targets.target_duration() * Ticks::from(timescale.per_second());
        // Counted by durations, not by the timeline: it may have jumped.
        let mut after: Ticks = lines().map(|line| line.duration).sum();
        let (mut skipped, mut mapped) = (0_u64, None);
        for mut line in lines() {
            after -= line.duration;
            if skip.is_some() && after > boundary {
                skipped += 1;
                continue;
            }
            if skipped > 0 {
                let gone: Vec<_> = self.date_ranges().1.into_iter().map(|range| range.id).collect();
                put!(
                    out,
                    "#EXT-X-SKIP:SKIPPED-SEGMENTS={skipped},RECENTLY-REMOVED-DATERANGES=\"{}\"\n",
                    gone.join("\t")
                );
                skipped = 0;
            }
            if line.number < parts_from {
                line.parts = &[];
            }
            if line.discontinuity {
                out.push_str("#EXT-X-DISCONTINUITY\n");
            }
            if line.mapped && mapped != Some(line.epoch) {
                mapped = Some(line.epoch);
                put!(out, "#EXT-X-MAP:URI=\"{base}{}\"\n", path::init(line.epoch, self.id));
            }
            put!(out, "#EXT-X-PROGRAM-DATE-TIME:{}\n", self.anchor.wall(line.start, timescale));
            let uri = format!("{base}{}", path::segment(line.epoch, self.id, line.number));
            write(out, &line, &uri, timescale.seconds(line.duration));
        }
    }

    /// How long the gaps are that are listed behind all media.
    fn last_gaps(&self) -> Ticks {
        let gaps = self.window.segments().rev().take_while(|segment| segment.object.is_none());
        gaps.map(|segment| segment.duration).sum()
    }

    /// All that is listed, oldest first.
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let earlier = self.earlier.iter().map(|segment| Line {
            number: segment.number,
            epoch: segment.epoch,
            start: segment.start,
            duration: segment.duration,
            discontinuity: segment.discontinuity,
            gap: segment.gap,
            lead: segment.lead,
            // The archive may have nothing of a run that it has gaps of.
            mapped: !segment.gap,
            open: false,
            parts: &[],
        });
        let open = self.window.open_segment().map(|segment| segment.number);
        let mut breaks = self.breaks_at_the_window();
        let listed = self
            .window
            .segments()
            .filter(move |segment| open != Some(segment.number) || !segment.parts.is_empty());
        earlier.chain(listed.map(move |segment| Line {
            number: segment.number,
            epoch: segment.epoch,
            start: segment.start,
            duration: segment.duration,
            discontinuity: std::mem::take(&mut breaks) || segment.discontinuity,
            gap: segment.object.is_none(),
            lead: segment.lead(),
            mapped: true,
            open: open == Some(segment.number),
            parts: &segment.parts,
        }))
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

    fn preload_hint(&self, out: &mut String) {
        let Some(last) = self.window.segments().next_back() else {
            return;
        };
        let (epoch, number, start) = match (self.hint, self.window.open_segment()) {
            (Hint::Nothing, _) => return,
            (Hint::Part, Some(open)) => (open.epoch, open.number, open.bytes),
            (Hint::Part, None) => (last.epoch, last.number.next(), 0),
            (Hint::Segment(number), _) => (last.epoch, number, 0),
            (Hint::Run(epoch, number), _) => {
                put!(out, "#EXT-X-PRELOAD-HINT:TYPE=MAP,URI=\"{}\"\n", path::init(epoch, self.id));
                (epoch, number, 0)
            }
        };
        let uri = path::segment(epoch, self.id, number);
        put!(out, "#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{uri}\",BYTERANGE-START={start}\n");
    }
}
