//! Runs to a DASH MPD (ISO/IEC 23009-1) with the low-latency profile of the DASH-IF guidelines. One `Period` per run:
//! segments are numbered on through all of them, so that both manifests name the same objects.
#![deny(clippy::disallowed_methods)]

use media::captions::{Channel, Service};
use media::time::{FrameRate, Ticks, Timescale};
use media::{Epoch, RenditionId, SegmentNumber};
use serde::{Deserialize, Serialize};

use crate::events;
use crate::hls::{Kind, Targets, Variant, fourcc};
use crate::thumbnails;
use crate::timeline::{Anchor, rfc3339};

/// One uninterrupted run of a broadcast.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Period {
    /// Part of its media URLs.
    pub epoch: Epoch,
    /// Where it begins, 90 kHz.
    pub start: Ticks,
    /// Where it ended; `None` while it may grow.
    pub end: Option<Ticks>,
    /// Number of its first segment.
    pub first: SegmentNumber,
    /// Its renditions.
    pub variants: Vec<Variant>,
    /// The run before, if its media and this run's are one timeline in one encoding: a player appends the one behind the
    /// other, as if there were no border.
    pub connected: Option<Epoch>,
    /// The run before, if this one has its encoding: its init segments do for both, whatever time lies between.
    #[serde(default)]
    pub resumes: Option<Epoch>,
    /// Where in its middle others of its `Period` elements begin, in order.
    #[serde(default)]
    pub cuts: Vec<Cut>,
    /// What is before the first cut has left the window.
    #[serde(default)]
    pub trimmed: bool,
    /// Closed captions that the MPD tells of: those known when it began. It must not change within a period.
    #[serde(default)]
    pub captions: Vec<Service>,
    /// All that are known now.
    #[serde(default)]
    pub captions_found: Vec<Service>,
    /// Its thumbnails, if there are any.
    #[serde(default)]
    pub thumbnails: Option<transcode::Tiles>,
}

/// A place in the middle of a run from which on it is told as a `Period` of its own: which representations there are must
/// not change within one (5.3.5.1), and dash.js takes the end of an only one for the end of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The first segment behind it.
    pub at: SegmentNumber,
    /// Renditions of the run for which nothing is encoded from there on.
    pub without: Vec<RenditionId>,
}

/// One `Period` element: what is listed of a run, or of what is between two of its cuts.
#[derive(Debug)]
struct Stretch<'a> {
    run: &'a Period,
    without: &'a [RenditionId],
    id: String,
    start: Ticks,
    end: Option<Ticks>,
    first: SegmentNumber,
    /// Elements that it goes on behind, without anything missing, and in the same encoding.
    continues: Option<String>,
    resumes: Option<String>,
}

/// A broadcast as an MPD sees it.
#[derive(Debug, Clone, Copy)]
pub struct Mpd<'a> {
    /// Ties the timeline to the wall clock: availabilityStartTime is where it is zero, so that a period begins at the very
    /// time that its media say, and players which take one for the other (FFmpeg's among them) are right.
    pub anchor: Anchor,
    /// Segment and chunk durations.
    pub targets: Targets,
    /// What is still listed, 90 kHz.
    pub window: Ticks,
    /// How far media has come, 90 kHz.
    pub edge: Ticks,
    /// Sheets of thumbnails that were over before are not listed, 90 kHz.
    pub sheets_from: Ticks,
    /// Latency that players should keep, in milliseconds.
    pub latency_ms: u64,
    /// When what it says was first said.
    pub published_unix_ms: i64,
    /// URL of the clock that players synchronise to.
    pub time_url: &'a str,
    /// Oldest first; all but the last have ended.
    pub periods: &'a [Period],
    /// The broadcaster is away: the last period has ended, and another may follow.
    pub away: bool,
    /// Where the broadcast is over, so that nothing will be added: the oldest segment that every rendition still lists.
    pub ended: Option<SegmentNumber>,
}

impl<'a> Mpd<'a> {
    /// The text.
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(4 << 10);
        let segment = seconds(self.targets.segment_duration);
        out.push_str(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" ",
        );
        match self.ended {
            None => put!(
                out,
                "type=\"dynamic\" availabilityStartTime=\"{}\" publishTime=\"{}\" minimumUpdatePeriod=\"{segment}\" \
                 timeShiftBufferDepth=\"{}\" suggestedPresentationDelay=\"PT{:.3}S\" ",
                rfc3339(self.anchor.zero_unix_ms()),
                rfc3339(self.published_unix_ms),
                seconds(self.window),
                self.latency_ms as f64 / 1000.0
            ),
            // At its end a broadcast becomes static with the timeline it had: those who watch it notice nothing.
            Some(_) => {
                let end =
                    self.periods.iter().filter_map(|period| period.end).max().unwrap_or(self.anchor.ticks);
                let duration = seconds(end);
                put!(out, "type=\"static\" mediaPresentationDuration=\"{duration}\" ");
            }
        }
        put!(
            out,
            "minBufferTime=\"{segment}\" maxSegmentDuration=\"{}\" \
             profiles=\"urn:mpeg:dash:profile:isoff-live:2011,http://www.dashif.org/guidelines/low-latency-live-v5\">\n",
            // A segment ends with the first frame behind its boundary.
            seconds(self.targets.segment_duration + 45_000)
        );
        // Latencies are those of the pictures, where there are any.
        let video = self.periods.iter().any(|period| period.variants.iter().any(is_video));
        put!(
            out,
            "  <ServiceDescription id=\"0\">\n    <Latency referenceId=\"{}\" target=\"{}\" min=\"{}\" max=\"{}\"/>\n    \
             <PlaybackRate min=\"0.96\" max=\"1.04\"/>\n  </ServiceDescription>\n",
            if video { VIDEO_SET } else { AUDIO_SET },
            self.latency_ms,
            self.latency_ms / 2,
            self.latency_ms * 4
        );
        let stretches = self.stretches();
        for (index, stretch) in stretches.iter().enumerate() {
            // The end of a run is told when another follows or none ever will, and while nobody knows. But not of an MPD's
            // only period: dash.js takes that for the end of the presentation.
            let last = index + 1 == stretches.len();
            let told = !last || self.ended.is_some() || self.away && stretches.len() > 1;
            self.period(&mut out, stretch, told);
        }
        for scheme in ["http-xsdate", "http-iso"] {
            out.push_str("  ");
            self.clock(&mut out, scheme);
        }
        out.push_str("</MPD>\n");
        out
    }

    /// What there is to be told, in order.
    fn stretches(&self) -> Vec<Stretch<'a>> {
        let segment = self.targets.segment_duration;
        let mut stretches: Vec<Stretch<'a>> = Vec::new();
        for (index, run) in self.periods.iter().enumerate() {
            let place = |number: SegmentNumber| run.start + (number.0 - run.first.0) as Ticks * segment;
            let cut = |cut: &'a Cut| (format!("{}-{}", run.epoch, cut.at), cut.at, &cut.without[..]);
            let mut cuts =
                run.cuts.iter().filter(|cut| run.end.is_none_or(|end| place(cut.at) < end)).peekable();
            let begins = !run.trimmed || cuts.peek().is_none();
            let whole = begins.then_some((run.epoch.to_string(), run.first, &[][..]));
            let sides: Vec<_> = whole.into_iter().chain(cuts.map(cut)).collect();
            let ends = sides.iter().skip(1).map(|(_, first, _)| Some(place(*first))).chain([run.end]);
            let side_count = sides.len();
            let sides: Vec<_> = sides.iter().zip(ends).collect();
            for (side, ((id, first, without), end)) in sides.into_iter().enumerate() {
                // Only to what this MPD has: the period before may be gone.
                let element = |of: Option<Epoch>| {
                    let before = stretches.iter().rev().find(|before| Some(before.run.epoch) == of);
                    before.map(|before| before.id.clone())
                };
                let of = |before| if side == 0 { before } else { Some(run.epoch) };
                let (continues, resumes) = (element(of(run.connected)), element(of(run.resumes)));
                // At the end: what is left of it.
                let first = self.ended.map_or(*first, |oldest| (*first).max(oldest));
                let start = place(first);
                let last = index + 1 == self.periods.len() && side + 1 == side_count;
                // A run that published nothing, or nothing that is left.
                if last || end.is_none_or(|end| end > start) {
                    let id = id.clone();
                    stretches.push(Stretch { run, without, id, start, end, first, continues, resumes });
                }
            }
        }
        stretches
    }

    fn period(&self, out: &mut String, stretch: &Stretch<'_>, told: bool) {
        put!(out, "  <Period id=\"{}\" start=\"{}\"", stretch.id, seconds(stretch.start));
        if let Some(end) = stretch.end.filter(|_| told) {
            put!(out, " duration=\"{}\"", seconds(end - stretch.start));
        }
        out.push_str(">\n");
        let variants = &stretch.run.variants;
        // Players switch within a set, and not between codecs.
        let mut sets: Vec<(&str, Vec<&Variant>)> = Vec::new();
        for variant in variants.iter().filter(|variant| is_video(variant)) {
            match sets.iter_mut().find(|(codec, _)| *codec == fourcc(&variant.codec)) {
                Some((_, set)) => set.push(variant),
                None => sets.push((fourcc(&variant.codec), vec![variant])),
            }
        }
        for (index, (_, set)) in sets.iter_mut().enumerate() {
            let id = if index == 0 { VIDEO_SET } else { OTHER_VIDEO_SETS + index as u32 };
            set.retain(|variant| !stretch.without.contains(&variant.id));
            self.adaptation_set(out, stretch, id, Timescale::VIDEO, set);
        }
        for variant in variants.iter().filter(|variant| !is_video(variant)) {
            if let Kind::Audio { sample_rate, .. } = variant.kind
                && let Some(timescale) = Timescale::new(sample_rate)
            {
                self.adaptation_set(out, stretch, AUDIO_SET, timescale, &[variant]);
            }
        }
        if let Some(tiles) = &stretch.run.thumbnails {
            let listed = self.sheets_from..stretch.end.unwrap_or(self.edge);
            thumbnails::adaptation_set(out, IMAGE_SET, stretch.run.epoch, tiles, stretch.start, listed);
        }
        out.push_str("  </Period>\n");
    }

    fn adaptation_set(
        &self,
        out: &mut String,
        stretch: &Stretch<'_>,
        id: u32,
        timescale: Timescale,
        variants: &[&Variant],
    ) {
        if variants.is_empty() {
            return;
        }
        let ticks = |video: Ticks| Timescale::VIDEO.rescale(video, timescale);
        let Targets { segment_duration, part_target } = self.targets;
        let (epoch, start) = (stretch.run.epoch, ticks(stretch.start));
        let video = id != AUDIO_SET;
        let content = if video { "video" } else { "audio" };
        put!(
            out,
            "    <AdaptationSet id=\"{id}\" contentType=\"{content}\" mimeType=\"{content}/mp4\" lang=\"und\"{} \
             segmentAlignment=\"true\" startWithSAP=\"1\">\n",
            most(variants)
        );
        for (kind, before) in [("connectivity", &stretch.resumes), ("continuity", &stretch.continues)] {
            if let Some(before) = before {
                put!(
                    out,
                    "      <SupplementalProperty schemeIdUri=\"urn:mpeg:dash:period-{kind}:2015\" value=\"{before}\"/>\n"
                );
            }
        }
        let has_video = stretch.run.variants.iter().any(is_video);
        if video || !has_video {
            event_streams(out);
        }
        if self.ended.is_none() {
            put!(
                out,
                "      <ProducerReferenceTime id=\"{id}\" inband=\"true\" type=\"encoder\" wallClockTime=\"{}\" \
                 presentationTime=\"{start}\">\n        ",
                self.anchor.wall(stretch.start, Timescale::VIDEO)
            );
            self.clock(out, "http-xsdate");
            out.push_str("      </ProducerReferenceTime>\n");
        }
        // Where players can go on in the middle of what they read: each audio frame stands alone, so each chunk can be
        // decoded from its beginning; of video a chunk's boxes can be read from there, its pictures from the segment on.
        let sap = u32::from(!video);
        put!(out, "      <Resync type=\"{sap}\" dT=\"{}\"/>\n", ticks(part_target));
        if video {
            accessibility(out, &stretch.run.captions);
        }
        out.push_str("      <Role schemeIdUri=\"urn:mpeg:dash:role:2011\" value=\"main\"/>\n");
        put!(
            out,
            "      <SegmentTemplate timescale=\"{}\" duration=\"{}\" startNumber=\"{}\" presentationTimeOffset=\"{start}\"",
            timescale.per_second(),
            ticks(segment_duration),
            stretch.first,
        );
        if self.ended.is_none() {
            put!(
                out,
                " availabilityTimeOffset=\"{:.3}\" availabilityTimeComplete=\"false\"",
                (segment_duration - part_target).max(0) as f64 / 90_000.0
            );
        }
        put!(
            out,
            " initialization=\"{epoch}/$RepresentationID$/init.mp4\" media=\"{epoch}/$RepresentationID$/$Number$.m4s\"/>\n"
        );
        for variant in variants {
            put!(
                out,
                "      <Representation id=\"{}\" codecs=\"{}\" bandwidth=\"{}\"",
                variant.id,
                variant.codec,
                variant.bandwidth()
            );
            match variant.kind {
                Kind::Video { width, height, frame_rate } => {
                    put!(out, " width=\"{width}\" height=\"{height}\"");
                    if let Some(rate) = frame_rate {
                        put!(out, " frameRate=\"{}/{}\"", rate.num, rate.den);
                    }
                    out.push_str("/>\n");
                }
                Kind::Audio { channels, sample_rate } => put!(
                    out,
                    " audioSamplingRate=\"{sample_rate}\">\n        <AudioChannelConfiguration \
                     schemeIdUri=\"urn:mpeg:mpegB:cicp:ChannelConfiguration\" value=\"{}\"/>\n      </Representation>\n",
                    channel_configuration(channels)
                ),
            }
        }
        out.push_str("    </AdaptationSet>\n");
    }

    /// The clock that all times are of; it is the same wherever it stands.
    fn clock(&self, out: &mut String, scheme: &str) {
        put!(
            out,
            "<UTCTiming schemeIdUri=\"urn:mpeg:dash:utc:{scheme}:2014\" value=\"{}\"/>\n",
            self.time_url
        );
    }
}

/// `AdaptationSet@id`, and that of the set's reference time.
const VIDEO_SET: u32 = 0;
const AUDIO_SET: u32 = 1;
const IMAGE_SET: u32 = 2;
/// Of video in other codecs than the first, from the next on.
const OTHER_VIDEO_SETS: u32 = 8;

fn is_video(variant: &Variant) -> bool {
    matches!(variant.kind, Kind::Video { .. })
}

/// The largest picture and rate of a set, as attributes.
fn most(variants: &[&Variant]) -> String {
    let mut most = (0, 0, None::<FrameRate>);
    for variant in variants {
        if let Kind::Video { width, height, frame_rate } = variant.kind {
            let rate = [most.2, frame_rate].into_iter().flatten().max_by(|a, b| a.fps().total_cmp(&b.fps()));
            most = (most.0.max(width), most.1.max(height), rate);
        }
    }
    let (width, height, rate) = most;
    let mut out = String::new();
    if width > 0 {
        put!(out, " maxWidth=\"{width}\" maxHeight=\"{height}\"");
    }
    if let Some(FrameRate { num, den }) = rate {
        put!(out, " maxFrameRate=\"{num}/{den}\"");
    }
    out
}

/// What may stand in front of chunks: said of every run, since what will happen is not known when it begins.
pub(crate) fn event_streams(out: &mut String) {
    for scheme in [events::SCTE35, events::ID3] {
        put!(out, "      <InbandEventStream schemeIdUri=\"{scheme}\"/>\n");
    }
}

/// Closed captions in the video (ANSI/SCTE 214-1, 7.2.5): channels of CEA-608 in one descriptor, services of CEA-708 in another.
pub(crate) fn accessibility(out: &mut String, captions: &[Service]) {
    let language = |service: &Service| service.language.as_deref().unwrap_or("und").to_owned();
    let line21 = captions.iter().filter_map(|service| match service.channel {
        Channel::Line21(_) => Some(format!("{}={}", service.channel, language(service))),
        Channel::Digital(_) => None,
    });
    let digital = captions.iter().filter_map(|service| match service.channel {
        Channel::Line21(_) => None,
        Channel::Digital(number) => Some(format!("{number}=lang:{}", language(service))),
    });
    for (scheme, values) in [("608", line21.collect::<Vec<_>>()), ("708", digital.collect())] {
        if !values.is_empty() {
            put!(
                out,
                "      <Accessibility schemeIdUri=\"urn:scte:dash:cc:cea-{scheme}:2015\" value=\"{}\"/>\n",
                values.join(";")
            );
        }
    }
}

/// ChannelConfiguration (ISO/IEC 23091-3, 6.1) of AAC's layouts: the number of channels, but that of eight is 7.
pub(crate) fn channel_configuration(channels: u32) -> u32 {
    channels.min(7)
}

/// 90 kHz ticks as an xs:duration, to the microsecond.
pub(crate) fn seconds(ticks: Ticks) -> String {
    let micros = Timescale::VIDEO.rescale(ticks.max(0), MICROS);
    let text = format!("PT{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    format!("{}S", text.trim_end_matches('0').trim_end_matches('.'))
}

const MICROS: Timescale = match Timescale::new(1_000_000) {
    Some(micros) => micros,
    None => unreachable!(),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Bitrate;

    #[test]
    fn two_runs_make_two_periods() {
        let video = Variant {
            id: "720p".parse().unwrap(),
            codec: "avc1.64001f".into(),
            bitrate_bps: 3_000_000,
            measured: Bitrate::default(),
            kind: Kind::Video { width: 1280, height: 720, frame_rate: Some(FrameRate { num: 30, den: 1 }) },
        };
        let audio = Variant {
            id: "audio".parse().unwrap(),
            codec: "mp4a.40.2".into(),
            bitrate_bps: 128_000,
            measured: Bitrate::default(),
            kind: Kind::Audio { channels: 2, sample_rate: 48_000 },
        };
        let start = crate::timeline::FIRST_TICK;
        let period = |epoch, start, end, first, variants: &[&Variant]| Period {
            epoch: Epoch(epoch),
            start,
            end,
            first: SegmentNumber(first),
            variants: variants.iter().copied().cloned().collect(),
            connected: None,
            resumes: None,
            cuts: Vec::new(),
            trimmed: false,
            captions: Vec::new(),
            captions_found: Vec::new(),
            thumbnails: None,
        };
        let periods = [
            period(5, start, Some(start + 12 * 90_000 + 45_000), 1000, &[&video, &audio]),
            Period {
                resumes: Some(Epoch(5)),
                thumbnails: Some(thumbnails::tests::TILES),
                ..period(6, start + 20 * 90_000, None, 1013, &[&video])
            },
        ];
        let mpd = Mpd {
            anchor: Anchor { unix_ms: 1_700_000_000_000, ticks: start },
            targets: Targets { segment_duration: 90_000, part_target: 18_000 },
            window: 30 * 90_000,
            edge: start + 25 * 90_000,
            sheets_from: start,
            latency_ms: 1500,
            published_unix_ms: 1_700_000_021_000,
            time_url: "/time",
            periods: &periods,
            away: false,
            ended: None,
        };
        let rendered = mpd.render();
        assert_eq!(rendered, include_str!("../testdata/two_periods.mpd"), "\n--- rendered ---\n{rendered}");
        let over = [Period { end: Some(start + 25 * 90_000), ..periods[1].clone() }];
        let ended = Mpd { ended: Some(SegmentNumber(1015)), periods: &over, ..mpd }.render();
        for part in [
            "type=\"static\" mediaPresentationDuration=\"PT26S\"",
            "<Period id=\"6\" start=\"PT23S\" duration=\"PT3S\">",
            "startNumber=\"1015\" presentationTimeOffset=\"2070000\"",
        ] {
            assert!(ended.contains(part), "{part}\n{ended}");
        }
        assert!(!ended.contains("minimumUpdatePeriod"));
        let away = Mpd { periods: &over, away: true, ..mpd }.render();
        assert!(
            away.contains("<Period id=\"6\" start=\"PT21S\">"),
            "the end of the only one is not told\n{away}"
        );
        let cuts = vec![Cut { at: SegmentNumber(1016), without: Vec::new() }];
        let cut = [Period { cuts, ..over[0].clone() }];
        let away = Mpd { periods: &cut, away: true, ..mpd }.render();
        for part in [
            "<Period id=\"6\" start=\"PT21S\" duration=\"PT3S\">",
            "<Period id=\"6-1016\" start=\"PT24S\" duration=\"PT2S\">",
            "period-continuity:2015\" value=\"6\"",
            "startNumber=\"1016\" presentationTimeOffset=\"2160000\"",
            "presentationTime=\"2160000\"",
        ] {
            assert!(away.contains(part), "{part}\n{away}");
        }
        let followed = [
            cut[0].clone(),
            Period { resumes: Some(Epoch(6)), start: start + 30 * 90_000, ..periods[1].clone() },
        ];
        let followed = Mpd { periods: &followed, ..mpd }.render();
        assert!(followed.contains("period-connectivity:2015\" value=\"6-1016\""), "{followed}");
        let gone = [periods[0].clone(), over[0].clone()];
        let away = Mpd { periods: &gone, away: true, ..mpd }.render();
        assert!(away.contains("<Period id=\"6\" start=\"PT21S\" duration=\"PT5S\">"), "{away}");
        let ended = Mpd { ended: Some(SegmentNumber(1015)), periods: &gone, ..mpd }.render();
        assert!(!ended.contains("<Period id=\"5\""), "nothing of it is left\n{ended}");
    }

    #[test]
    fn captions_have_a_descriptor_for_each_kind() {
        let check = |services: &[&str], expected: &[(&str, &str)]| {
            let services: Vec<Service> = services.iter().map(|text| text.parse().unwrap()).collect();
            let mut out = String::new();
            accessibility(&mut out, &services);
            let expected = expected.iter().map(|(scheme, value)| {
                format!(
                    "      <Accessibility schemeIdUri=\"urn:scte:dash:cc:cea-{scheme}:2015\" value=\"{value}\"/>\n"
                )
            });
            assert_eq!(out, expected.collect::<String>());
        };
        check(&[], &[]);
        check(&["CC1"], &[("608", "CC1=und")]);
        check(
            &["CC1:en", "CC3:es", "SERVICE1:en", "SERVICE2"],
            &[("608", "CC1=en;CC3=es"), ("708", "1=lang:en;2=lang:und")],
        );
    }

    #[test]
    fn durations_print_exactly() {
        for (ticks, text) in
            [(0, "PT0S"), (90_000, "PT1S"), (18_000, "PT0.2S"), (1, "PT0.000011S"), (900_000, "PT10S")]
        {
            assert_eq!(seconds(ticks), text);
        }
    }
}
