//! A static MPD (ISO/IEC 23009-1). Where a rendition has a hole, a new `Period` begins without it: numbers in a
//! `SegmentTimeline` cannot leave any out.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use archive::index::{Index, Kind, Rendition, Run, Segment, Span};
use media::time::{Ticks, Timescale};
use media::{RenditionId, SegmentNumber};

use super::{measured, variant};
use crate::dash::{accessibility, channel_configuration, event_streams, seconds};
use crate::hls;
use crate::thumbnails;
use crate::window::Bitrate;

/// The MPD; `None` if there is nothing to play.
pub fn mpd(index: &Index) -> Option<String> {
    let stretches: Vec<_> = index.spans().into_iter().flat_map(|span| stretches(index, span)).collect();
    if stretches.is_empty() {
        return None;
    }
    let longest = stretches
        .iter()
        .flat_map(Stretch::segments)
        .map(|(scale, segment)| scale.rescale(segment.duration, Timescale::VIDEO));
    let longest = longest.max().unwrap_or(0);
    let duration: Ticks = stretches.iter().map(Stretch::duration).sum();
    let mut out = String::with_capacity(16 << 10);
    put!(
        out,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" \
         mediaPresentationDuration=\"{}\" minBufferTime=\"{1}\" maxSegmentDuration=\"{1}\" \
         profiles=\"urn:mpeg:dash:profile:isoff-live:2011\">\n",
        seconds(duration),
        seconds(longest)
    );
    let renditions = index.renditions();
    let rates: Rates<'_> =
        renditions.into_iter().map(|rendition| (&rendition.id, measured(index, rendition))).collect();
    let mut start = 0;
    for stretch in &stretches {
        stretch.period(&mut out, &rates, start);
        start += stretch.duration();
    }
    out.push_str("</MPD>\n");
    Some(out)
}

/// Of sheets of thumbnails: behind any number of codecs.
const IMAGE_SET: u32 = 64;

/// What was measured of each rendition.
type Rates<'a> = BTreeMap<&'a RenditionId, Bitrate>;

/// Consecutive segments of a run of which the same renditions are there throughout.
struct Stretch<'a> {
    index: &'a Index,
    run: &'a Run,
    first: SegmentNumber,
    tracks: Vec<Track<'a>>,
}

struct Track<'a> {
    rendition: &'a Rendition,
    /// At least one.
    segments: Vec<&'a Segment>,
}

fn stretches<'a>(index: &'a Index, span: Span) -> Vec<Stretch<'a>> {
    let Some(run) = index.run(span.epoch) else { return Vec::new() };
    let mut stretches: Vec<Stretch<'a>> = Vec::new();
    let mut whole = false;
    for number in (span.first.0..=span.last.0).map(SegmentNumber) {
        let there: Vec<_> = run
            .renditions
            .iter()
            .filter_map(|rendition| Some((rendition, index.segment(span.epoch, &rendition.id, number)?)))
            .collect();
        match stretches.last_mut().filter(|stretch| whole && stretch.has_just(&there)) {
            Some(stretch) => {
                for (track, (_, segment)) in stretch.tracks.iter_mut().zip(there) {
                    track.segments.push(segment);
                }
            }
            None if there.is_empty() => whole = false,
            None => {
                whole = true;
                let track = |(rendition, segment)| Track { rendition, segments: vec![segment] };
                let tracks = there.into_iter().map(track).collect();
                stretches.push(Stretch { index, run, first: number, tracks });
            }
        }
    }
    stretches
}

impl<'a> Stretch<'a> {
    fn has_just(&self, there: &[(&Rendition, &Segment)]) -> bool {
        self.tracks.len() == there.len()
            && self.tracks.iter().zip(there).all(|(track, (rendition, _))| track.rendition.id == rendition.id)
    }

    fn segments(&self) -> impl Iterator<Item = (Timescale, &'a Segment)> {
        self.tracks
            .iter()
            .flat_map(|track| track.segments.iter().map(|segment| (track.rendition.timescale, *segment)))
    }

    /// Where it begins and ends on the run's timeline, 90 kHz: as its pictures do, where it has any. Audio reaches a
    /// little beyond on both sides.
    fn extent(&self) -> (Ticks, Ticks) {
        let video = |track: &&Track<'_>| matches!(track.rendition.kind, Kind::Video { .. });
        let has_video = self.tracks.iter().any(|track| video(&track));
        let counted = self.tracks.iter().filter(|track| !has_video || video(track));
        let ends = counted.filter_map(|track| {
            let (first, last) = (track.segments.first()?, track.segments.last()?);
            let ticks = |at| track.rendition.timescale.rescale(at, Timescale::VIDEO);
            Some((ticks(first.start), ticks(last.start.saturating_add(last.duration))))
        });
        ends.reduce(|(start, end), (s, e)| (start.min(s), end.max(e))).unwrap_or((0, 0))
    }

    fn duration(&self) -> Ticks {
        let (start, end) = self.extent();
        (end - start).max(0)
    }

    fn period(&self, out: &mut String, rates: &Rates<'_>, start: Ticks) {
        put!(
            out,
            "  <Period id=\"{}-{}\" start=\"{}\" duration=\"{}\">\n",
            self.run.epoch,
            self.first,
            seconds(start),
            seconds(self.duration())
        );
        // Players switch within a set, and not between codecs.
        let mut sets: Vec<(&str, &str, Vec<&Track<'_>>)> = Vec::new();
        for track in &self.tracks {
            let content = if matches!(track.rendition.kind, Kind::Video { .. }) { "video" } else { "audio" };
            let fourcc = hls::fourcc(&track.rendition.codec);
            match sets.iter_mut().find(|(of, codec, _)| (*of, *codec) == (content, fourcc)) {
                Some((.., tracks)) => tracks.push(track),
                None => sets.push((content, fourcc, vec![track])),
            }
        }
        for (id, (content, _, tracks)) in sets.into_iter().enumerate() {
            put!(
                out,
                "    <AdaptationSet id=\"{id}\" contentType=\"{content}\" mimeType=\"{content}/mp4\" lang=\"und\" \
                 segmentAlignment=\"true\" startWithSAP=\"1\">\n"
            );
            let has_video =
                self.tracks.iter().any(|track| matches!(track.rendition.kind, Kind::Video { .. }));
            if content == "video" || !has_video {
                event_streams(out);
            }
            if content == "video" {
                accessibility(out, &self.run.captions);
            }
            for track in tracks {
                self.representation(out, rates, track);
            }
            out.push_str("    </AdaptationSet>\n");
        }
        self.thumbnails(out);
        out.push_str("  </Period>\n");
    }

    /// The sheets of its time, from the first that is kept up to a hole: numbers cannot leave any out.
    fn thumbnails(&self, out: &mut String) {
        let Some(tiles) = thumbnails::recorded(self.run) else { return };
        let ((start, end), duration) = (self.extent(), tiles.sheet_duration());
        let number = |sheet: i64| SegmentNumber(u64::try_from(sheet).unwrap_or(0));
        let until = number(tiles.sheet((end - 1).max(start)));
        let from = number(tiles.sheet(start));
        let id = thumbnails::rendition();
        let mut kept = self.index.numbers(self.run.epoch, &id, from..=until);
        let Some(first) = kept.next() else { return };
        let mut last = first;
        while kept.next().is_some_and(|number| number == last.next()) {
            last = last.next();
        }
        let begins = |sheet: SegmentNumber| duration.saturating_mul(sheet.0 as Ticks);
        let listed = begins(first).max(start)..begins(last.next());
        thumbnails::adaptation_set(out, IMAGE_SET, self.run.epoch, &tiles, start, listed);
    }

    fn representation(&self, out: &mut String, rates: &Rates<'_>, track: &Track<'_>) {
        let rendition = track.rendition;
        let variant = variant(rendition, rates.get(&rendition.id).copied().unwrap_or_default());
        put!(
            out,
            "      <Representation id=\"{}\" codecs=\"{}\" bandwidth=\"{}\"",
            variant.id,
            variant.codec,
            variant.bandwidth()
        );
        match variant.kind {
            hls::Kind::Video { width, height, frame_rate } => {
                put!(out, " width=\"{width}\" height=\"{height}\"");
                if let Some(rate) = frame_rate {
                    put!(out, " frameRate=\"{}/{}\"", rate.num, rate.den);
                }
                out.push_str(">\n");
            }
            hls::Kind::Audio { channels, sample_rate } => put!(
                out,
                " audioSamplingRate=\"{sample_rate}\">\n        <AudioChannelConfiguration \
                 schemeIdUri=\"urn:mpeg:mpegB:cicp:ChannelConfiguration\" value=\"{}\"/>\n",
                channel_configuration(channels)
            ),
        }
        let (epoch, scale) = (self.run.epoch, rendition.timescale);
        put!(
            out,
            "        <SegmentTemplate timescale=\"{}\" startNumber=\"{}\" presentationTimeOffset=\"{}\" \
             initialization=\"{epoch}/$RepresentationID$/init.mp4\" media=\"{epoch}/$RepresentationID$/$Number$.m4s\">\n          \
             <SegmentTimeline>\n",
            scale.per_second(),
            self.first,
            Timescale::VIDEO.rescale(self.extent().0, scale)
        );
        let mut segments = track.segments.iter().peekable();
        let mut expected = None;
        while let Some(first) = segments.next() {
            let mut next = first.start + first.duration;
            let mut repeats = 0;
            while segments.next_if(|s| s.duration == first.duration && s.start == next).is_some() {
                (next, repeats) = (next + first.duration, repeats + 1);
            }
            out.push_str("            <S");
            if expected != Some(first.start) {
                put!(out, " t=\"{}\"", first.start);
            }
            put!(out, " d=\"{}\"", first.duration);
            if repeats > 0 {
                put!(out, " r=\"{repeats}\"");
            }
            out.push_str("/>\n");
            expected = Some(next);
        }
        out.push_str("          </SegmentTimeline>\n        </SegmentTemplate>\n      </Representation>\n");
    }
}
