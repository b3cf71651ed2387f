//! The ladder: source and rules in, rungs worth encoding out.
#![deny(clippy::disallowed_methods)]

use std::cmp::Reverse;
use std::collections::BTreeMap;

use media::RenditionId;
use media::codec::VideoCodec;
use media::time::{FrameRate, Ticks, Timescale};

use crate::VideoSource;
use crate::config::{Config, Passthrough, RungConfig};
use crate::encoders::EncoderKind;
use crate::thinning::{every, thinned};

/// One configured target. Derived by [`derive()`]; sizes are even.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// Its rendition's name, such as `720p`.
    pub id: RenditionId,
    /// Width of the pictures in pixels; even.
    pub width: u32,
    /// Height of the pictures in pixels; even.
    pub height: u32,
    /// Average bit rate in bits per second.
    pub bitrate_bps: u32,
    /// The rate at which the encoder's buffer model fills, in bits per second; at least `bitrate_bps`.
    pub peak_bps: u32,
    /// The size of the encoder's buffer model in bits.
    pub buffer_bits: u32,
    /// What encodes it.
    pub encoder: &'static EncoderKind,
    /// One of its presets.
    pub preset: String,
    /// Options of the configuration for it.
    pub options: BTreeMap<String, String>,
    /// Nominal frame rate, where the source's is known.
    pub frame_rate: Option<FrameRate>,
    /// Most frames per second, to a tenth: of a source with more, every second one is encoded, or every third, and so on.
    pub max_fps: Option<u32>,
}

/// Frame rates above this count as high, in frames per second: between 30 and 48.
const HIGH_FRAME_RATE: f64 = 40.0;

/// The lowest bit rate that a rung below the table gets, in kilobits per second.
const MIN_BITRATE_KBPS: u64 = 50;

/// The rungs for `source`, largest first, never larger than the source and never none.
///
/// Sizes are judged by the shorter side, so that a portrait source gets the same rungs, turned. A source
/// that is not in the table gets a rung of its own size on top, named by its lines, unless it is larger
/// than the whole table. Rungs of each codec are chosen for themselves, as if they were a table of their own; but the source's
/// own size is there in the codecs only that reach both above and below it, or have the next larger rung.
pub fn derive(config: &Config, source: &VideoSource) -> Vec<Rung> {
    if config.rungs.is_empty() {
        return vec![own(config, source).rung(config, source)];
    }
    let mut codecs: Vec<VideoCodec> = Vec::new();
    for codec in config.rungs.iter().map(|rung| rung.encoder(config).codec) {
        if !codecs.contains(&codec) {
            codecs.push(codec);
        }
    }
    let mut wanted: Vec<_> = codecs.iter().flat_map(|codec| of_codec(config, source, *codec)).collect();
    // What the largest rungs cost is the first to be saved, and H.264 is the last to be missed.
    let is_avc = |wanted: &Wanted<'_>| wanted.codec(config) == VideoCodec::Avc;
    wanted.sort_by_key(|wanted| (Reverse(wanted.lines), is_avc(wanted)));
    wanted.iter().map(|wanted| wanted.rung(config, source)).collect()
}

fn of_codec<'a>(config: &'a Config, source: &VideoSource, codec: VideoCodec) -> Vec<Wanted<'a>> {
    let lines = lines(source);
    let rungs = || config.rungs.iter().filter(|rung| rung.encoder(config).codec == codec);
    let fits = |rung: &&RungConfig| rung.height <= lines;
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    if let Some(like) = above(config, rungs(), lines).filter(|above| above.height > lines)
        && (rungs().any(|rung| fits(&rung)) || above(config, config.rungs.iter(), lines) == Some(like))
    {
        wanted.push(Wanted { lines, kbps: own_kbps(rungs(), lines), like: Some(like) });
    }
    for rung in rungs().filter(fits) {
        let smaller = |above: &Wanted<'_>| {
            // Rungs of one height come together.
            let same =
                above.like.is_some_and(|like| like.height == above.lines) && rung.height == above.lines;
            same || u64::from(rung.height) * 100 <= u64::from(above.lines) * u64::from(config.step_percent)
        };
        if wanted.last().is_none_or(smaller) {
            wanted.push(Wanted { lines: rung.height, kbps: rung.bitrate_kbps.into(), like: Some(rung) });
        }
    }
    wanted
}

/// The rungs where the source's video may be passed through. If it `passes`, the first is the source itself, under the name
/// that a rung of its size would have.
pub fn with_passthrough(config: &Config, source: &VideoSource, passes: bool) -> Vec<Rung> {
    let lines = lines(source);
    let own = || own(config, source).rung(config, source);
    match (config.passthrough, passes) {
        (Passthrough::Only, _) => vec![own()],
        (Passthrough::Off, _) | (Passthrough::Top, false) => derive(config, source),
        (Passthrough::Top, true) => {
            let mut rungs = derive(config, source);
            rungs.retain(|rung| {
                let below = u64::from(rung.width.min(rung.height));
                below * 100 <= u64::from(lines) * u64::from(config.step_percent)
            });
            rungs.insert(0, own());
            rungs
        }
    }
}

/// A video rendition that players of a broadcast know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub id: RenditionId,
    /// What its latest samples are in.
    pub codec: VideoCodec,
    /// The shorter side of its latest pictures.
    pub lines: u32,
}

/// Gives the ladder of a source that follows another a name of before where it has none: HLS players load the multivariant
/// playlist once, and a new size may have no rung in common with the last one. In each codec, the rung that is closest in
/// size to a rendition of before goes on in its place. `passed` is the codec of the first rung if that is the source itself.
pub fn keep_names(rungs: &mut [Rung], passed: Option<VideoCodec>, known: &[Known]) {
    for codec in VideoCodec::ALL {
        let left = rungs.iter().map(|rung| &rung.id).collect::<Vec<_>>();
        let known: Vec<_> = known.iter().filter(|known| known.codec == codec).collect();
        let free = known.iter().filter(|known| !left.contains(&&known.id));
        let is_of =
            |index: usize, rung: &Rung| passed.filter(|_| index == 0).unwrap_or(rung.encoder.codec) == codec;
        let here = rungs.iter().enumerate().filter(|(index, rung)| is_of(*index, rung));
        if here.clone().any(|(_, rung)| known.iter().any(|known| known.id == rung.id)) {
            continue;
        }
        let pairs = here.flat_map(|(index, rung)| {
            let lines = rung.width.min(rung.height);
            free.clone().map(move |known| (lines.abs_diff(known.lines), index, &known.id))
        });
        if let Some((_, index, id)) = pairs.min_by_key(|(apart, ..)| *apart) {
            rungs[index].id = id.clone();
        }
    }
}

/// The frames that all rungs of the table have of a source, as a rate: a whole number of them makes a part of about `part`
/// (90 kHz). Where that is too short for one of them, those of the slowest rung.
pub fn common_frame_rate(config: &Config, source: FrameRate, part: Ticks) -> FrameRate {
    let every = |rung: &RungConfig| rung.max_fps.map_or(1, |max_fps| every(source, max_fps));
    // Each is at most 240.
    let multiple =
        |a: u32, b: u32| (1..=b).map(|times| a * times).find(|all| all.is_multiple_of(b)).unwrap_or(a);
    let fits = |frames: &u32| source.frame_start(i64::from(*frames), Timescale::VIDEO) <= part;
    let slowest = config.rungs.iter().map(every).max().unwrap_or(1);
    let all =
        config.rungs.iter().map(every).try_fold(1, |all, every| Some(multiple(all, every)).filter(fits));
    thinned(source, all.unwrap_or(slowest))
}

/// A rung of the table, or one of the source's own size.
struct Wanted<'a> {
    lines: u32,
    kbps: u64,
    /// The rung of the table that it is, or that it takes after. `None` without a table.
    like: Option<&'a RungConfig>,
}

impl Wanted<'_> {
    fn codec(&self, config: &Config) -> VideoCodec {
        self.like.map_or_else(|| config.encoder(), |like| like.encoder(config)).codec
    }

    fn rung(&self, config: &Config, source: &VideoSource) -> Rung {
        let Wanted { lines, kbps, like } = *self;
        let (width, height) = scaled(source, lines);
        let max_fps = like.and_then(|like| like.max_fps);
        let frame_rate = source.frame_rate.map(|rate| match max_fps {
            Some(max_fps) => thinned(rate, every(rate, max_fps)),
            None => rate,
        });
        let percent = match frame_rate.is_some_and(|rate| rate.fps() > HIGH_FRAME_RATE) {
            true => config.high_frame_rate_percent,
            false => 100,
        };
        let bitrate = kbps * 10 * u64::from(percent);
        let peak = bitrate * u64::from(config.peak_percent) / 100;
        let buffer = peak.saturating_mul(config.rate_buffer.as_millis() as u64) / 1000;
        let encoder = like.map_or_else(|| config.encoder(), |like| like.encoder(config));
        let id = like.filter(|like| like.height == lines).map(|like| like.name(config));
        Rung {
            id: id
                .unwrap_or_else(|| default_name(lines, encoder.codec))
                .parse()
                .expect("a table without problems has valid names"),
            width,
            height,
            bitrate_bps: clamp_u32(bitrate),
            peak_bps: clamp_u32(peak),
            buffer_bits: clamp_u32(buffer),
            encoder,
            preset: like.map_or_else(|| config.preset.clone(), |like| like.preset(config)),
            options: like.map_or_else(BTreeMap::new, |like| like.options(config)),
            frame_rate,
            max_fps,
        }
    }
}

/// What a rung is called that has no name of its own.
pub(crate) fn default_name(lines: u32, codec: VideoCodec) -> String {
    match codec {
        VideoCodec::Avc => format!("{lines}p"),
        VideoCodec::Hevc => format!("{lines}p-hevc"),
        VideoCodec::Av1 => format!("{lines}p-av1"),
        VideoCodec::Vp9 => format!("{lines}p-vp9"),
    }
}

fn lines(source: &VideoSource) -> u32 {
    even_floor(source.width.min(source.height))
}

/// A rung of the source's own size. It takes after the next larger rung of the table.
fn own<'a>(config: &'a Config, source: &VideoSource) -> Wanted<'a> {
    let lines = lines(source);
    let like = above(config, config.rungs.iter(), lines).or(config.rungs.first());
    let codec = like.map(|like| like.encoder(config).codec);
    let rungs = config.rungs.iter().filter(|rung| Some(rung.encoder(config).codec) == codec);
    Wanted { lines, kbps: own_kbps(rungs, lines), like }
}

/// The smallest rung of so many lines or more; of several that of H.264, which every player has, or the first.
fn above<'a>(
    config: &Config,
    rungs: impl Iterator<Item = &'a RungConfig>,
    lines: u32,
) -> Option<&'a RungConfig> {
    let order = |rung: &&RungConfig| (rung.height, rung.encoder(config).codec != VideoCodec::Avc);
    rungs.filter(|rung| rung.height >= lines).min_by_key(order)
}

/// The source's size with a shorter side of `lines`, the other side to the nearest even number.
fn scaled(source: &VideoSource, lines: u32) -> (u32, u32) {
    let (width, height) = (source.width, source.height);
    let shorter = width.min(height);
    if lines == even_floor(shorter) {
        return (even_floor(width), even_floor(height));
    }
    let longer = u64::from(width.max(height)) * u64::from(lines);
    let longer = (longer + u64::from(shorter)) / (2 * u64::from(shorter)) * 2;
    match width < height {
        true => (lines, clamp_u32(longer)),
        false => (clamp_u32(longer), lines),
    }
}

/// The bit rate for the source's own size: that of the table where it is there, else in proportion to the
/// lines between its neighbours, and below the table in proportion to the area.
fn own_kbps<'a>(rungs: impl Iterator<Item = &'a RungConfig>, lines: u32) -> u64 {
    let lines = u64::from(lines);
    let table: Vec<_> = rungs.map(|rung| (u64::from(rung.height), u64::from(rung.bitrate_kbps))).collect();
    let above =
        table.iter().copied().filter(|(height, _)| *height >= lines).min_by_key(|(height, _)| *height);
    let below = table.iter().copied().find(|(height, _)| *height < lines);
    match (above, below) {
        (Some((high, high_kbps)), Some((low, low_kbps))) => {
            low_kbps + (lines - low) * high_kbps.saturating_sub(low_kbps) / (high - low)
        }
        (Some((high, kbps)), None) => (kbps * lines * lines / (high * high)).max(MIN_BITRATE_KBPS),
        (None, Some((_, kbps))) => kbps,
        (None, None) => MIN_BITRATE_KBPS,
    }
}

/// Pictures are stored with one colour sample per 2x2 pixels, so both sides are even; never zero.
fn even_floor(side: u32) -> u32 {
    (side & !1).max(2)
}

fn clamp_u32(value: u64) -> u32 {
    value.min(i32::MAX as u64) as u32
}

/// What the rate control assumes when the source does not say: most live streams.
pub(crate) const USUAL_FRAME_RATE: FrameRate = FrameRate { num: 30, den: 1 };

#[cfg(test)]
mod tests {
    use super::*;

    fn source(width: u32, height: u32, fps: u32) -> VideoSource {
        let frame_rate = Some(FrameRate { num: fps, den: 1 });
        VideoSource {
            codec: media::codec::VideoCodec::Avc,
            record: bytes::Bytes::new(),
            width,
            height,
            sar: (1, 1),
            frame_rate,
        }
    }

    fn ladder(width: u32, height: u32) -> String {
        let rungs = derive(&Config::default(), &source(width, height, 30));
        let text: Vec<_> = rungs
            .iter()
            .map(|r| format!("{}:{}x{}@{}", r.id, r.width, r.height, r.bitrate_bps / 1000))
            .collect();
        text.join(" ")
    }

    #[test]
    fn ladders() {
        let check = |width, height, expected: &str| assert_eq!(ladder(width, height), expected);
        check(1280, 720, "720p:1280x720@2500 480p:854x480@1200 360p:640x360@700 240p:426x240@350");
        check(640, 360, "360p:640x360@700 240p:426x240@350");
        // A source between two rungs: its own on top, with a bit rate between theirs.
        check(1244, 700, "700p:1244x700@2391 480p:854x480@1200 360p:640x360@700 240p:426x240@350");
        // A rung that would nearly repeat the one above is left out.
        check(868, 488, "488p:868x488@1243 360p:640x360@700 240p:426x240@350");
        check(638, 358, "358p:638x358@694 240p:428x240@350");
        // Odd sizes lose a line, not a rung.
        check(639, 361, "360p:638x360@700 240p:424x240@350");
        // Portrait is judged by the shorter side.
        check(720, 1280, "720p:720x1280@2500 480p:480x854@1200 360p:360x640@700 240p:240x426@350");
        check(480, 480, "480p:480x480@1200 360p:360x360@700 240p:240x240@350");
        // Below the table: one rung, in proportion to its area.
        check(160, 120, "120p:160x120@87");
        check(32, 16, "16p:32x16@50");
        check(0, 0, "2p:2x2@50");
        // Above the table: its largest rung.
        check(
            7680,
            4320,
            "2160p:3840x2160@14000 1440p:2560x1440@8000 1080p:1920x1080@4500 720p:1280x720@2500 480p:854x480@1200 360p:640x360@700 240p:426x240@350",
        );
    }

    #[test]
    fn the_source_itself_takes_the_place_of_its_rung() {
        let names = |passthrough, height: u32, passes| {
            let config = Config { passthrough, ..Config::default() };
            let rungs = with_passthrough(&config, &source(height * 16 / 9, height, 30), passes);
            rungs.iter().map(|rung| rung.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        let check = |passthrough, height, passes, expected: &str| {
            assert_eq!(names(passthrough, height, passes), expected);
        };
        for passes in [false, true] {
            check(Passthrough::Off, 720, passes, "720p 480p 360p 240p");
            check(Passthrough::Top, 720, passes, "720p 480p 360p 240p");
            check(Passthrough::Top, 500, passes, "500p 360p 240p");
            check(Passthrough::Only, 720, passes, "720p");
        }
        // Larger than the table: it can be passed through, and is never encoded at its size.
        check(Passthrough::Top, 2304, true, "2304p 1440p 1080p 720p 480p 360p 240p");
        check(Passthrough::Top, 2304, false, "2160p 1440p 1080p 720p 480p 360p 240p");
    }

    #[test]
    fn another_size_goes_on_under_a_name_that_players_know() {
        let known = |name: &str, codec, lines| Known { id: name.parse().unwrap(), codec, lines };
        let avc = |name, lines| known(name, VideoCodec::Avc, lines);
        let names = |height: u32, passed, known: &[Known]| {
            let mut rungs = derive(&Config::default(), &source(height * 16 / 9, height, 30));
            keep_names(&mut rungs, passed, known);
            rungs.iter().map(|rung| rung.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        let ladder = [avc("720p", 720), avc("480p", 480), avc("360p", 360), avc("240p", 240)];
        assert_eq!(names(360, None, &ladder), "360p 240p");
        assert_eq!(names(120, None, &ladder), "240p");
        assert_eq!(names(720, None, &[avc("120p", 120)]), "720p 480p 360p 120p");
        assert_eq!(names(288, None, &[avc("700p", 700), avc("200p", 200)]), "288p 200p");
        // It is no longer of the size that its name says.
        assert_eq!(names(720, None, &[avc("240p", 120)]), "720p 480p 360p 240p");
        assert_eq!(names(120, None, &[]), "120p");
        // Who plays one codec cannot go on in another.
        let hevc = |name, lines| known(name, VideoCodec::Hevc, lines);
        assert_eq!(names(120, None, &[hevc("240p-hevc", 240)]), "120p");
        assert_eq!(names(360, Some(VideoCodec::Hevc), &[hevc("700p", 700), avc("240p", 240)]), "700p 240p");
        // A name that is there already is not given twice.
        assert_eq!(names(360, Some(VideoCodec::Hevc), &[hevc("240p", 240)]), "360p 240p");
    }

    #[test]
    fn rungs_have_what_the_table_says() {
        let named = |name: &str, height, kbps, max_fps| RungConfig {
            name: Some(name.into()),
            preset: (height < 480).then(|| "fast".into()),
            max_fps,
            ..RungConfig::new(height, kbps)
        };
        let rungs = vec![
            named("720p60", 720, 4000, None),
            named("720p30", 720, 3000, Some(30)),
            RungConfig::new(480, 1200),
            named("small", 240, 400, Some(15)),
        ];
        let config = Config { rungs, ..Config::default() };
        let check = |height: u32, fps: u32, expected: &str| {
            let rungs = derive(&config, &source(height * 16 / 9, height, fps));
            let text = rungs.iter().map(|rung| {
                let fps = rung.frame_rate.unwrap().fps();
                format!("{}:{}@{}/{fps}/{}", rung.id, rung.height, rung.bitrate_bps / 1000, rung.preset)
            });
            assert_eq!(text.collect::<Vec<_>>().join(" "), expected);
        };
        // Bit rates are for the frames that a rung has.
        check(
            720,
            60,
            "720p60:720@6000/60/superfast 720p30:720@3000/30/superfast 480p:480@1800/60/superfast small:240@400/15/fast",
        );
        check(
            1080,
            25,
            "720p60:720@4000/25/superfast 720p30:720@3000/25/superfast 480p:480@1200/25/superfast small:240@400/12.5/fast",
        );
        // What is between takes after the rung above, but for its name.
        check(576, 50, "576p:576@3480/50/superfast 480p:480@1800/50/superfast small:240@400/12.5/fast");
        check(360, 50, "360p:360@1200/50/superfast small:240@400/12.5/fast");
        check(120, 60, "120p:120@100/15/fast");
        let fps = |fps, rungs: &[RungConfig]| {
            let config = Config { rungs: rungs.to_vec(), ..Config::default() };
            common_frame_rate(&config, FrameRate { num: fps, den: 1 }, 18_000).fps()
        };
        assert_eq!(fps(60, &config.rungs), 15.0);
        assert_eq!(fps(60, &[]), 60.0);
        let capped = |max_fps| named("x", 720, 3000, Some(max_fps));
        assert_eq!(fps(60, &[capped(30), capped(20)]), 10.0);
        assert_eq!(fps(30, &[capped(5), capped(7), capped(12)]), 5.0, "those of the slowest");
    }

    #[test]
    fn each_codec_has_a_ladder_of_its_own() {
        let rung = |encoder: &str, height, kbps| RungConfig {
            encoder: Some(encoder.into()),
            ..RungConfig::new(height, kbps)
        };
        let rungs = vec![
            rung("libx265", 2160, 9000),
            rung("libx265", 1440, 5000),
            rung("libx264", 1080, 4500),
            rung("libx265", 1080, 3000),
            rung("libx264", 720, 2500),
            rung("libaom-av1", 480, 700),
            rung("libx264", 480, 1200),
        ];
        let config = Config { rungs, ..Config::default() };
        assert_eq!(config.problems("t"), Vec::<String>::new());
        let names = |height: u32| {
            let rungs = derive(&config, &source(height * 16 / 9, height, 30));
            let text: Vec<_> = rungs
                .iter()
                .map(|rung| format!("{}/{}/{}", rung.id, rung.encoder.name, rung.preset))
                .collect();
            text.join(" ")
        };
        assert_eq!(
            names(1080),
            "1080p-hevc/libx265/ultrafast 1080p/libx264/superfast 720p/libx264/superfast 480p-av1/libaom-av1/8 \
             480p/libx264/superfast"
        );
        assert!(names(2160).starts_with("2160p-hevc/libx265/ultrafast 1440p-hevc"));
        // Below the smallest of HEVC it would not be in that codec at its own size.
        assert_eq!(names(720), "720p/libx264/superfast 480p-av1/libaom-av1/8 480p/libx264/superfast");
        assert!(
            names(1200)
                .starts_with("1200p-hevc/libx265/ultrafast 1080p-hevc/libx265/ultrafast 1080p/libx264")
        );
        assert!(names(600).starts_with("600p/libx264/superfast 480p-av1"));
        // The next larger one is the only one that can.
        assert_eq!(names(240), "240p/libx264/superfast");
    }

    #[test]
    fn rates_follow_frame_rate_and_buffer_rules() {
        let rung = &derive(&Config::default(), &source(640, 360, 60))[0];
        assert_eq!((rung.bitrate_bps, rung.peak_bps, rung.buffer_bits), (1_050_000, 1_260_000, 1_260_000));
        let rung = &derive(&Config::default(), &source(640, 360, 25))[0];
        assert_eq!((rung.bitrate_bps, rung.peak_bps, rung.buffer_bits), (700_000, 840_000, 840_000));
    }

    #[test]
    fn every_size_gets_a_ladder_that_never_upscales() {
        let config = Config::default();
        let mut seed = 1u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (width, height) = (16 + (seed >> 40) as u32 % 4081, 16 + (seed >> 20) as u32 % 4081);
            let rungs = derive(&config, &source(width, height, 30));
            assert!(!rungs.is_empty());
            for rung in &rungs {
                assert!(rung.width <= width + 1 && rung.height <= height + 1, "{width}x{height} {rung:?}");
                assert!(
                    rung.width % 2 == 0 && rung.height % 2 == 0 && rung.width > 0,
                    "{width}x{height} {rung:?}"
                );
                assert!(rung.bitrate_bps >= 50_000 && rung.peak_bps >= rung.bitrate_bps);
            }
            for pair in rungs.windows(2) {
                assert!(pair[0].height > pair[1].height && pair[0].bitrate_bps > pair[1].bitrate_bps);
            }
        }
    }
}
