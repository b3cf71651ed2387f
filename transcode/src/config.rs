//! What operators choose about the ladder and its encoders.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use media::RenditionId;
use media::codec::VideoCodec;
use serde::{Deserialize, Serialize};

use crate::encoders::{self, EncoderKind};
use crate::ladder::default_name;
use crate::thumbnails::Thumbnails;

/// Most rungs in the table, and so in a ladder: each is a thread per stream.
pub const MAX_RUNGS: usize = 12;

/// Whether the source's own video is offered to viewers as it comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Passthrough {
    /// Never: every rung is encoded.
    #[default]
    Off,
    /// As the largest rung, where it can be; the others are encoded.
    Top,
    /// As the only rung, where it can be; else one rung of the source's size is encoded.
    Only,
}

/// Whether interlaced pictures are made progressive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deinterlace {
    /// Those that say that they are interlaced.
    #[default]
    Auto,
    /// None: they are encoded as they are.
    Off,
}

/// What becomes of Opus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Opus {
    /// It becomes AAC.
    #[default]
    Aac,
    /// It is offered as it comes.
    Copy,
}

/// The codecs that can be passed through, as [`Config::passthrough_codecs`] names them.
const PASSTHROUGH_CODECS: [(&str, VideoCodec); 3] =
    [("h264", VideoCodec::Avc), ("hevc", VideoCodec::Hevc), ("av1", VideoCodec::Av1)];

/// The ladder's rules. A stream gets the rungs that its source is large enough for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The encoder of rungs that name none, one of [`encoders::ENCODERS`]. Default `libx264`.
    pub encoder: String,
    /// Its preset. Default `superfast`: of libx264, about two thirds of the CPU time of `veryfast` and a shorter way through
    /// the encoder.
    pub preset: String,
    /// Its private options, as libavcodec names them, in addition to those that live encoding depends on. Default none.
    pub options: BTreeMap<String, String>,
    /// The rungs, largest first, at most [`MAX_RUNGS`]. Default 2160, 1440, 1080, 720, 480, 360 and 240
    /// lines.
    pub rungs: Vec<RungConfig>,
    /// A rung of the table is left out when it has more than this percentage of the lines of the next
    /// larger rung, since it would cost nearly as much and gain a viewer nothing. Default 90, range 50 to
    /// 100.
    pub step_percent: u32,
    /// Bit rates of sources with more than 40 frames per second, as a percentage of the table's. Default
    /// 150, range 100 to 200: twice the frames need less than twice the bits.
    pub high_frame_rate_percent: u32,
    /// The fastest rate at which the encoder's buffer model fills, as a percentage of the rung's bit rate.
    /// Default 120, range 100 to 300: what a viewer's line must carry beyond the average.
    pub peak_percent: u32,
    /// The size of the encoder's buffer model, as a time at the peak rate. Default 1s, range 100ms to 10s:
    /// one segment, so that no segment takes much longer to fetch than to watch.
    #[serde(with = "humantime_serde")]
    pub rate_buffer: Duration,
    /// Whether the source's own video is passed through, where its codec and its keyframes allow that. Default `off`.
    pub passthrough: Passthrough,
    /// The codecs that are passed through: `h264`, `hevc`, `av1`. Default `h264`, which every player has.
    pub passthrough_codecs: Vec<String>,
    /// Whether interlaced pictures are made progressive. Default `auto`: those that say that they are interlaced. Video that
    /// is passed through stays as it is.
    pub deinterlace: Deinterlace,
    /// Whether sound of more than two channels stays so. Default false: it is mixed down to stereo.
    pub surround: bool,
    /// What becomes of Opus. Default `aac`, which every player has.
    pub opus: Opus,
    /// Whether the largest rung is shed when the encoders of a stream fall behind. Default true; without it such a stream
    /// falls behind until its POP's buffer is full.
    pub shed: bool,
    /// A source whose keyframes are farther apart is encoded, since segments of video that is passed through begin with the
    /// source's keyframes. Default 4s, range 1s to 10s.
    #[serde(with = "humantime_serde")]
    pub max_keyframe_interval: Duration,
    /// Small pictures for seeking and for operators. They come from the smallest rung that is encoded: a stream that is only
    /// passed through has none.
    pub thumbnails: Thumbnails,
}

/// Names that the paths of a stream have for other things than rungs.
const TAKEN_NAMES: [&str; 5] = ["audio", "index", "manifest", "thumbnails", "thumbs"];

/// One row of the rung table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RungConfig {
    /// Its rendition's name in playlists and paths: 1 to 64 of `A-Z a-z 0-9 - _ .`, not starting with `.` or `-`. Default
    /// its lines and a `p`, such as `720p`, of HEVC and AV1 `720p-hevc` and `720p-av1`. Two rungs of one height have different names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lines (of a portrait picture: columns); even, 16 to 2304.
    pub height: u32,
    /// Average bit rate at up to 40 frames per second, in kilobits per second, 50 to 100000.
    pub bitrate_kbps: u32,
    /// Its own encoder instead of [`Config::encoder`]. One of another codec makes it a rung of that codec's ladder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// Its own preset instead of [`Config::preset`], or of that encoder's usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Most frames per second, 5 to 120, to a tenth: of a source with more every second frame is encoded, or every third,
    /// and so on. Default: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_fps: Option<u32>,
    /// Options of its encoder; those of [`Config::options`] hold as well if that is the encoder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl RungConfig {
    /// A rung with defaults for all else.
    pub fn new(height: u32, bitrate_kbps: u32) -> Self {
        let options = BTreeMap::new();
        Self { name: None, height, bitrate_kbps, encoder: None, preset: None, max_fps: None, options }
    }

    /// Its own name, or that of its height and codec.
    pub(crate) fn name(&self, config: &Config) -> String {
        let default = || default_name(self.height, self.encoder(config).codec);
        self.name.clone().unwrap_or_else(default)
    }

    /// Its own encoder, or that of all rungs.
    pub(crate) fn encoder(&self, config: &Config) -> &'static EncoderKind {
        self.encoder.as_deref().and_then(encoders::find).unwrap_or(config.encoder())
    }

    /// Its own preset, or that of its encoder.
    pub(crate) fn preset(&self, config: &Config) -> String {
        let encoder = self.encoder(config);
        let usual = if encoder == config.encoder() { config.preset.as_str() } else { encoder.usual_preset };
        self.preset.clone().unwrap_or_else(|| usual.to_owned())
    }

    /// Its own options, and those of all rungs if it has their encoder.
    pub(crate) fn options(&self, config: &Config) -> BTreeMap<String, String> {
        let mut options = BTreeMap::new();
        if self.encoder(config) == config.encoder() {
            options.clone_from(&config.options);
        }
        options.extend(self.options.clone());
        options
    }

    /// What is wrong with its name.
    fn name_problem(&self, config: &Config, before: &[RungConfig]) -> Option<String> {
        let name = self.name(config);
        // A source between two rungs gets one that is named by its own height.
        let of_codec = name.strip_suffix("-hevc").or(name.strip_suffix("-av1")).unwrap_or(&name);
        let lines =
            of_codec.strip_suffix('p').filter(|lines| lines.bytes().all(|byte| byte.is_ascii_digit()));
        if let Err(error) = name.parse::<RenditionId>() {
            Some(error.to_string())
        } else if TAKEN_NAMES.contains(&name.as_str()) {
            Some(format!("{name:?} is taken; neither of {} can be a rung", TAKEN_NAMES.join(", ")))
        } else if lines.is_some() && name != default_name(self.height, self.encoder(config).codec) {
            Some(format!("{name:?} is what a rung of another height or codec is called"))
        } else {
            let twice = before.iter().position(|other| other.name(config) == name)?;
            Some(format!("{name:?} is the name of rungs[{twice}] too; give one of them another"))
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let table = [
            (2160, 14_000),
            (1440, 8_000),
            (1080, 4_500),
            (720, 2_500),
            (480, 1_200),
            (360, 700),
            (240, 350),
        ];
        Self {
            encoder: "libx264".to_owned(),
            preset: "superfast".to_owned(),
            options: BTreeMap::new(),
            rungs: table.map(|(height, bitrate_kbps)| RungConfig::new(height, bitrate_kbps)).to_vec(),
            step_percent: 90,
            high_frame_rate_percent: 150,
            peak_percent: 120,
            rate_buffer: Duration::from_secs(1),
            passthrough: Passthrough::Off,
            passthrough_codecs: vec!["h264".to_owned()],
            deinterlace: Deinterlace::Auto,
            surround: false,
            opus: Opus::Aac,
            shed: true,
            max_keyframe_interval: Duration::from_secs(4),
            thumbnails: Thumbnails::default(),
        }
    }
}

impl Config {
    /// The encoder of rungs that name none.
    pub(crate) fn encoder(&self) -> &'static EncoderKind {
        encoders::find(&self.encoder).unwrap_or(&encoders::ENCODERS[0])
    }

    /// The names of all encoders of the ladder.
    pub fn encoders(&self) -> BTreeSet<&'static str> {
        match self.rungs.as_slice() {
            [] => BTreeSet::from([self.encoder().name]),
            rungs => rungs.iter().map(|rung| rung.encoder(self).name).collect(),
        }
    }

    /// Whether video of this kind is to be passed through, if its keyframes allow it. H.264 beyond 8 bits of 4:2:0 is not:
    /// no browser plays it.
    pub fn passes_through(&self, codec: VideoCodec, record: &[u8]) -> bool {
        let named = |&(name, of): &(&str, VideoCodec)| {
            of == codec && self.passthrough_codecs.iter().any(|wanted| wanted == name)
        };
        let played = match codec {
            VideoCodec::Avc => matches!(record.get(1), Some(66 | 77 | 88 | 100)),
            // Lengths of 4 bytes, as the samples in the file will have.
            VideoCodec::Hevc => record.get(21).is_some_and(|flags| flags & 3 == 3),
            _ => true,
        };
        self.passthrough != Passthrough::Off && played && PASSTHROUGH_CODECS.iter().any(named)
    }

    /// Everything that is wrong, each entry beginning with the key's path below `path`.
    pub fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, key: &str, text: String| {
            if !ok {
                problems.push(format!("{path}.{key}: {text}"));
            }
        };
        let encoders = std::iter::once(("encoder".to_owned(), Some(&self.encoder)));
        let own = |(index, rung): (usize, &'_ RungConfig)| {
            (format!("rungs[{index}].encoder"), rung.encoder.clone())
        };
        for (key, encoder) in
            encoders.map(|(key, of)| (key, of.cloned())).chain(self.rungs.iter().enumerate().map(own))
        {
            if let Some(encoder) = encoder {
                let known = encoders::find(&encoder).is_some();
                check(known, &key, format!("{encoder:?} is not one of {}", encoders::names()));
            }
        }
        let mut check_preset = |key: &str, encoder: &EncoderKind, preset: &str| {
            let name = encoder.name;
            let problem = format!("{preset:?} of {name} is not one of {}", encoder.presets.join(", "));
            check(encoder.presets.contains(&preset), key, problem);
        };
        check_preset("preset", self.encoder(), &self.preset);
        for (index, rung) in self.rungs.iter().enumerate() {
            if let Some(preset) = &rung.preset {
                check_preset(&format!("rungs[{index}].preset"), rung.encoder(self), preset);
            }
        }
        for problem in self.encoder().option_problems(&self.options) {
            check(false, "options", problem);
        }
        for (index, rung) in self.rungs.iter().enumerate() {
            for problem in rung.encoder(self).option_problems(&rung.options) {
                check(false, &format!("rungs[{index}].options"), problem);
            }
        }
        let count = self.rungs.len();
        check(
            (1..=MAX_RUNGS).contains(&count),
            "rungs",
            format!("{count} rungs; 1 to {MAX_RUNGS} are allowed"),
        );
        for (index, rung) in self.rungs.iter().enumerate() {
            let RungConfig { height, bitrate_kbps, max_fps, .. } = *rung;
            let at = |key| format!("rungs[{index}].{key}");
            check(
                (16..=2304).contains(&height) && height % 2 == 0,
                &at("height"),
                format!("{height} is not an even number from 16 to 2304"),
            );
            check(
                (50..=100_000).contains(&bitrate_kbps),
                &at("bitrate_kbps"),
                format!("{bitrate_kbps} is outside 50 to 100000"),
            );
            if let Some(fps) = max_fps {
                check((5..=120).contains(&fps), &at("max_fps"), format!("{fps} is outside 5 to 120"));
            }
            if let Some(problem) = rung.name_problem(self, &self.rungs[..index]) {
                check(false, &at("name"), problem);
            }
            if let Some(above) = index.checked_sub(1).map(|above| &self.rungs[above]) {
                check(
                    height <= above.height,
                    &at("height"),
                    format!("{height} must not be above the {} of the rung before it", above.height),
                );
            }
            let codec = rung.encoder(self).codec;
            if let Some(above) = self.rungs[..index].iter().rfind(|above| above.encoder(self).codec == codec)
            {
                check(
                    bitrate_kbps < above.bitrate_kbps,
                    &at("bitrate_kbps"),
                    format!(
                        "{bitrate_kbps} must be below the {} of the {codec} rung before it",
                        above.bitrate_kbps
                    ),
                );
            }
        }
        for (key, value, low, high) in [
            ("step_percent", self.step_percent, 50, 100),
            ("high_frame_rate_percent", self.high_frame_rate_percent, 100, 200),
            ("peak_percent", self.peak_percent, 100, 300),
        ] {
            check((low..=high).contains(&value), key, format!("{value} is outside {low} to {high}"));
        }
        for (index, name) in self.passthrough_codecs.iter().enumerate() {
            check(
                PASSTHROUGH_CODECS.iter().any(|(known, _)| known == name),
                &format!("passthrough_codecs[{index}]"),
                format!("{name:?} is not one of h264, hevc, av1"),
            );
        }
        let interval = self.max_keyframe_interval;
        check(
            (Duration::from_secs(1)..=Duration::from_secs(10)).contains(&interval),
            "max_keyframe_interval",
            format!("{} is outside 1s to 10s", humantime_serde::re::humantime::format_duration(interval)),
        );
        let buffer = self.rate_buffer;
        check(
            (Duration::from_millis(100)..=Duration::from_secs(10)).contains(&buffer),
            "rate_buffer",
            format!("{} is outside 100ms to 10s", humantime_serde::re::humantime::format_duration(buffer)),
        );
        problems.extend(self.thumbnails.problems(&format!("{path}.thumbnails")));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_problems() {
        assert_eq!(Config::default().problems("transcode"), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_named_with_its_key() {
        let named = |name: &str, height, kbps| RungConfig {
            name: Some(name.into()),
            ..RungConfig::new(height, kbps)
        };
        let config = Config {
            preset: "placebo".into(),
            rungs: vec![
                RungConfig { preset: Some("warp".into()), ..RungConfig::new(361, 10) },
                RungConfig { max_fps: Some(4), ..RungConfig::new(480, 20) },
                RungConfig { encoder: Some("libx262".into()), ..RungConfig::new(480, 19) },
                named("../x", 480, 18),
                named("index", 480, 17),
                named("720p", 480, 16),
                RungConfig { options: [("g".into(), "9".into())].into(), ..named("low", 480, 15) },
                RungConfig {
                    encoder: Some("libaom-av1".into()),
                    preset: Some("superfast".into()),
                    ..named("low", 240, 14)
                },
            ],
            step_percent: 101,
            high_frame_rate_percent: 99,
            peak_percent: 0,
            rate_buffer: Duration::from_millis(1),
            passthrough_codecs: vec!["h264".into(), "vp9".into()],
            max_keyframe_interval: Duration::from_secs(11),
            thumbnails: Thumbnails { rows: 0, ..Thumbnails::default() },
            ..Config::default()
        };
        let problems = config.problems("t");
        for key in [
            "t.preset: \"placebo\" of libx264 is not one of ultrafast",
            "t.rungs[0].height: 361",
            "t.rungs[0].bitrate_kbps: 10",
            "t.rungs[0].preset: \"warp\"",
            "t.rungs[1].height: 480 must not be above the 361",
            "t.rungs[1].max_fps: 4",
            "t.rungs[2].name: \"480p\" is the name of rungs[1] too",
            "t.rungs[3].name: name \"../x\"",
            "t.rungs[4].name: \"index\" is taken",
            "t.rungs[5].name: \"720p\" is what a rung of another height or codec is called",
            "t.rungs[7].name: \"low\" is the name of rungs[6] too",
            "t.rungs[1].bitrate_kbps: 20 must be below the 10 of the H.264 rung",
            "t.rungs[2].encoder: \"libx262\" is not one of libx264, libx265, libaom-av1, h264_nvenc, hevc_nvenc",
            "t.rungs[6].options: \"g\" is set by Rooftop",
            "t.rungs[7].preset: \"superfast\" of libaom-av1 is not one of 8, 7, 6, 5",
            "t.step_percent: 101",
            "t.high_frame_rate_percent: 99",
            "t.peak_percent: 0",
            "t.rate_buffer: 1ms",
            "t.passthrough_codecs[1]: \"vp9\"",
            "t.max_keyframe_interval: 11s",
            "t.thumbnails.rows: 0",
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key} in {problems:#?}");
        }
        let rungs = vec![named("720p", 720, 3000), named("720p30", 720, 2000), named("4g", 360, 700)];
        assert_eq!(Config { rungs, ..Config::default() }.problems("t"), Vec::<String>::new());
        let none = Config { rungs: Vec::new(), ..Config::default() };
        assert!(none.problems("t")[0].starts_with("t.rungs: 0 rungs"));
    }
}
