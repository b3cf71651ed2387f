//! Sections cited are of draft-pantos-hls-rfc8216bis.
#![deny(clippy::disallowed_methods)]

use archive::index::{Entry, Index, Span};
use media::time::{Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};

use crate::events;
use crate::path;
use crate::timeline::Anchor;

/// A rendition's media playlist, from the first segment to the last; `None` if the recording never had it.
pub fn playlist(index: &Index, id: &RenditionId) -> Option<String> {
    list(index, id, false)
}

/// A rendition's I-frame playlist (4.4.3.6): the keyframe of each segment. `None` if none is known.
pub fn iframes(index: &Index, id: &RenditionId) -> Option<String> {
    index.keyframes_bps(id)?;
    list(index, id, true)
}

fn list(index: &Index, id: &RenditionId, iframes: bool) -> Option<String> {
    let timescale = index.renditions().iter().find(|rendition| rendition.id == *id)?.timescale;
    let spans = index.spans();
    let target = target_duration(index, id, &spans, timescale);
    let first = spans.first().map_or(0, |span| span.first.0);
    let mut out = String::with_capacity(64 << 10);
    put!(
        out,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:{target}\n#EXT-X-PLAYLIST-TYPE:VOD\n\
         #EXT-X-MEDIA-SEQUENCE:{first}\n"
    );
    if iframes {
        out.push_str("#EXT-X-I-FRAMES-ONLY\n");
    }
    if let Some(anchor) = spans.first().and_then(|span| anchor(index, span.epoch)) {
        let events: Vec<_> = index.events().collect();
        events::date_ranges(events.iter()).iter().for_each(|range| range.write(&mut out, anchor));
    }
    let base = if iframes { path::FROM_IFRAMES } else { "" };
    let mut mapped = None;
    let mut played = None;
    // The date of each run, and again behind a gap: in between durations add up to it (4.4.4.6).
    let mut dated = false;
    for entry in index.entries(id, SegmentNumber(0)) {
        let (epoch, number, start, duration, lead) = match entry {
            Entry::Segment(s) => (s.epoch, s.number, s.start, s.duration, Some(s.lead)),
            Entry::Missing { epoch, number, start, duration, .. } => (epoch, number, start, duration, None),
        };
        let there = lead.is_some_and(|lead| !iframes || lead > 0);
        if played != Some(epoch) {
            let span = spans.iter().find(|span| span.epoch == epoch);
            if span.zip(played).is_some_and(|(span, before)| breaks(index, before, *span)) {
                out.push_str("#EXT-X-DISCONTINUITY\n");
            }
            (played, dated) = (Some(epoch), false);
        }
        if there && mapped != Some(epoch) {
            mapped = Some(epoch);
            put!(out, "#EXT-X-MAP:URI=\"{base}{}\"\n", path::init(epoch, id));
        }
        if !dated {
            if let Some(anchor) = anchor(index, epoch) {
                put!(out, "#EXT-X-PROGRAM-DATE-TIME:{}\n", anchor.wall(start, timescale));
            }
            dated = there;
        }
        if !there {
            out.push_str("#EXT-X-GAP\n");
            dated = false;
        }
        if let Some(lead) = lead.filter(|_| iframes && there) {
            put!(out, "#EXT-X-BYTERANGE:{lead}@0\n");
        }
        let uri = path::segment(epoch, id, number);
        put!(out, "#EXTINF:{:.5},\n{base}{uri}\n", timescale.seconds(duration));
    }
    out.push_str("#EXT-X-ENDLIST\n");
    Some(out)
}

/// Whether players have to begin anew at this run behind the run `before`. All playlists say so at the same segment
/// (6.2.4), whether or not their own first segment of it is there.
fn breaks(index: &Index, before: Epoch, span: Span) -> bool {
    let Some(run) = index.run(span.epoch) else { return true };
    // The first segment of an origin that has no past does not say so: nothing was listed before it.
    index.run(before).is_none_or(|before| before.breaks < run.breaks)
        || run.renditions.iter().any(|rendition| {
            index.segment(span.epoch, &rendition.id, span.first).is_none_or(|segment| segment.discontinuity)
        })
}

/// No segment is longer, rounded to the nearest second (4.4.3.1).
fn target_duration(index: &Index, id: &RenditionId, spans: &[Span], timescale: Timescale) -> i64 {
    let longest = index.entries(id, SegmentNumber(0)).map(|entry| match entry {
        Entry::Segment(segment) => segment.duration,
        Entry::Missing { duration, .. } => duration,
    });
    let longest = timescale.rescale(longest.max().unwrap_or(0), Timescale::VIDEO);
    let nominal = spans.iter().filter_map(|span| Some(index.run(span.epoch)?.segment_duration)).max();
    (longest.max(nominal.unwrap_or(0)) + SECOND / 2).div_euclid(SECOND).max(1)
}

const SECOND: Ticks = 90_000;

fn anchor(index: &Index, epoch: Epoch) -> Option<Anchor> {
    let archive::index::Anchor { unix_ms, ticks } = index.run(epoch)?.anchor;
    Some(Anchor { unix_ms, ticks })
}
