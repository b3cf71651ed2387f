//! The encoders that rungs may name, by what libavcodec calls them.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::codec::VideoCodec;

/// One of libavcodec's video encoders.
#[derive(Debug, PartialEq, Eq)]
pub struct EncoderKind {
    /// libavcodec's name of it.
    pub name: &'static str,
    /// What it makes.
    pub codec: VideoCodec,
    /// What it can be told about speed and quality, fastest first.
    pub presets: &'static [&'static str],
    /// The preset of rungs that name none.
    pub usual_preset: &'static str,
    /// What each preset costs, as a percentage of libx264's `superfast`; of hardware, what is left for the CPU.
    pub cost_percent: &'static [u64],
    /// The option that holds a list of the encoder's own parameters; ours are behind those of the configuration.
    pub list: Option<&'static str>,
    /// The option that the preset is.
    pub preset_option: &'static str,
    /// Options that live encoding depends on, and so are not for the configuration.
    pub fixed: &'static [(&'static str, &'static str)],
    /// The same in `list`.
    pub fixed_list: &'static str,
    /// Average and peak are one.
    pub constant_rate: bool,
}

const X26: &[&str] = &["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"];
const NVENC: &[&str] = &["p1", "p2", "p3", "p4", "p5", "p6", "p7"];
/// Every picture comes out at once, keyframes are where they are asked for and nowhere else.
const NVENC_FIXED: &[(&str, &str)] = &[
    ("tune", "ull"),
    ("rc", "vbr"),
    ("zerolatency", "1"),
    ("delay", "0"),
    ("forced-idr", "1"),
    ("no-scenecut", "1"),
    ("rc-lookahead", "0"),
    ("a53cc", "1"),
];

/// All of them.
pub static ENCODERS: [EncoderKind; 5] = [
    EncoderKind {
        name: "libx264",
        codec: VideoCodec::Avc,
        presets: X26,
        usual_preset: "superfast",
        cost_percent: &[65, 100, 150, 220, 290, 360, 600],
        list: Some("x264-params"),
        preset_option: "preset",
        fixed: &[
            ("profile", "high"),
            ("forced-idr", "1"),
            ("sc_threshold", "0"),
            ("rc-lookahead", "0"),
            ("mbtree", "0"),
            // Captions of the source stay with their pictures.
            ("a53cc", "1"),
        ],
        // A constant rate assumed, a picture need not wait for the next one to know how long it lasts.
        fixed_list: "keyint=infinite:scenecut=0:bframes=0:rc-lookahead=0:sync-lookahead=0:force-cfr=1:sliced-threads=0:\
                     threads=1:lookahead-threads=1:open-gop=0:repeat-headers=0:aud=0",
        constant_rate: false,
    },
    EncoderKind {
        name: "libx265",
        codec: VideoCodec::Hevc,
        presets: X26,
        usual_preset: "ultrafast",
        cost_percent: &[250, 400, 550, 600, 800, 1200, 3000],
        list: Some("x265-params"),
        preset_option: "preset",
        fixed: &[("profile", "main"), ("forced-idr", "1")],
        fixed_list: "keyint=-1:scenecut=0:bframes=0:b-adapt=0:rc-lookahead=0:cutree=0:lookahead-slices=0:frame-threads=1:pools=none:\
                     wpp=0:pmode=0:pme=0:open-gop=0:repeat-headers=0:aud=0:hrd=0:info=0:log-level=warning",
        constant_rate: false,
    },
    EncoderKind {
        name: "libaom-av1",
        codec: VideoCodec::Av1,
        presets: &["8", "7", "6", "5"],
        usual_preset: "8",
        cost_percent: &[300, 400, 600, 900],
        list: Some("aom-params"),
        preset_option: "cpu-used",
        fixed: &[
            ("usage", "1"),
            ("lag-in-frames", "0"),
            ("auto-alt-ref", "0"),
            ("drop-threshold", "0"),
            ("row-mt", "0"),
        ],
        fixed_list: "",
        constant_rate: true,
    },
    EncoderKind {
        name: "h264_nvenc",
        codec: VideoCodec::Avc,
        presets: NVENC,
        usual_preset: "p4",
        cost_percent: &[10; 7],
        list: None,
        preset_option: "preset",
        fixed: NVENC_FIXED,
        fixed_list: "",
        constant_rate: false,
    },
    EncoderKind {
        name: "hevc_nvenc",
        codec: VideoCodec::Hevc,
        presets: NVENC,
        usual_preset: "p4",
        cost_percent: &[10; 7],
        list: None,
        preset_option: "preset",
        fixed: NVENC_FIXED,
        fixed_list: "",
        constant_rate: false,
    },
];

/// Most options of a rung.
const MAX_OPTIONS: usize = 16;

/// Longest name and value of an option, in bytes.
const MAX_OPTION_BYTES: usize = 256;

/// The encoder of this name, if it is one of [`ENCODERS`].
pub fn find(name: &str) -> Option<&'static EncoderKind> {
    ENCODERS.iter().find(|encoder| encoder.name == name)
}

/// Their names, for messages.
pub(crate) fn names() -> String {
    ENCODERS.each_ref().map(|encoder| encoder.name).join(", ")
}

impl EncoderKind {
    /// What a rung costs, as a percentage of libx264's `superfast`.
    pub(crate) fn percent(&self, preset: &str) -> u64 {
        let index = self.presets.iter().position(|known| *known == preset);
        index.and_then(|index| self.cost_percent.get(index)).copied().unwrap_or(100)
    }

    /// Everything that is wrong with options before the encoder has seen them.
    pub(crate) fn option_problems(&self, options: &BTreeMap<String, String>) -> Vec<String> {
        let mut problems = Vec::new();
        if options.len() > MAX_OPTIONS {
            problems.push(format!("{} options; at most {MAX_OPTIONS} are allowed", options.len()));
        }
        for (name, value) in options {
            let fixed = self.fixed.iter().any(|(fixed, _)| fixed == name) || *name == self.preset_option;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if name.is_empty() || name.len() > MAX_OPTION_BYTES || !name.bytes().all(plain) {
                problems.push(format!("{name:?} is not the name of an option"));
            } else if fixed
                || ["b", "g", "bf", "threads", "maxrate", "bufsize", "flags"].contains(&name.as_str())
            {
                problems.push(format!("{name:?} is set by Rooftop"));
            } else if value.len() > MAX_OPTION_BYTES || value.bytes().any(|byte| byte.is_ascii_control()) {
                problems.push(format!(
                    "the value of {name:?} is longer than {MAX_OPTION_BYTES} bytes, or no text"
                ));
            }
        }
        problems
    }

    /// All options that the encoder is opened with.
    pub(crate) fn options(
        &self,
        preset: &str,
        configured: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut options = configured.clone();
        options.insert(self.preset_option.to_owned(), preset.to_owned());
        options.extend(self.fixed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        if let Some(list) = self.list.filter(|_| !self.fixed_list.is_empty()) {
            // What comes later counts.
            let own = configured.get(list).map(|own| format!("{own}:")).unwrap_or_default();
            options.insert(list.to_owned(), format!("{own}{}", self.fixed_list));
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        for encoder in &ENCODERS {
            assert_eq!(encoder.presets.len(), encoder.cost_percent.len(), "{}", encoder.name);
            assert!(encoder.presets.contains(&encoder.usual_preset), "{}", encoder.name);
            assert_eq!(find(encoder.name), Some(encoder));
        }
        assert_eq!(find("libx262"), None);
    }

    #[test]
    fn our_options_are_the_last() {
        let x264 = find("libx264").unwrap();
        let own =
            BTreeMap::from([("x264-params".to_owned(), "ref=2".to_owned()), ("tune".into(), "film".into())]);
        assert_eq!(x264.option_problems(&own), Vec::<String>::new());
        let options = x264.options("fast", &own);
        assert!(options["x264-params"].starts_with("ref=2:keyint=infinite:"), "{options:?}");
        assert_eq!((options["tune"].as_str(), options["preset"].as_str()), ("film", "fast"));
        for (name, value, problem) in [
            ("preset", "fast", "\"preset\" is set by Rooftop"),
            ("g", "10", "\"g\" is set by Rooftop"),
            ("forced-idr", "0", "\"forced-idr\" is set"),
            ("a b", "0", "\"a b\" is not the name"),
            ("tune", "a\nb", "the value of \"tune\""),
        ] {
            let problems = x264.option_problems(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
        }
    }
}
