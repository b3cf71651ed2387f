//! Tries the encoders of a configuration before anything depends on them: whether they are there, whether they take their
//! options, and whether they still work as live encoding needs it.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::encoders::EncoderKind;
use crate::error::Error;
use crate::ladder::USUAL_FRAME_RATE;
use crate::libav::{self, Encoder, Picture, Settings};
use crate::rung::{MAX_INSIDE, described};

/// What hardware encoders take at least, and little work.
const WIDTH: u32 = 320;
const HEIGHT: u32 = 192;

/// Pictures that are encoded, and of how many one is to be a keyframe.
const PICTURES: i64 = 12;
const KEYFRAMES: i64 = 5;

/// Opens each encoder of the table's rungs, as it is configured, and encodes some pictures. Everything that is wrong, each
/// entry beginning with the key's path below `path`. For configurations without [`Config::problems`]; takes some 10 ms for
/// each.
pub fn try_encoders(config: &Config, path: &str) -> Vec<String> {
    libav::route_to_tracing();
    let mut tried = BTreeSet::new();
    let mut problems = Vec::new();
    for (index, rung) in config.rungs.iter().enumerate() {
        let encoder = rung.encoder(config);
        let (preset, options) = (rung.preset(config), rung.options(config));
        if tried.insert((encoder.name, preset.clone(), options.clone())) {
            let settings = Settings {
                width: WIDTH,
                height: HEIGHT,
                frame_rate: USUAL_FRAME_RATE,
                bitrate_bps: 300_000,
                peak_bps: 360_000,
                buffer_bits: 360_000,
                encoder,
                preset,
                options,
                sar: (1, 1),
            };
            if let Err(error) = try_out(encoder, &settings) {
                problems.push(format!("{path}.rungs[{index}]: {error}"));
            }
        }
    }
    problems
}

fn try_out(encoder: &'static EncoderKind, settings: &Settings) -> Result<(), Error> {
    let wrong = |problem, pts| Error::Encoder { rung: encoder.name.to_owned(), problem, pts };
    let grey = Picture::grey(WIDTH, HEIGHT)?;
    let mut open = Encoder::open(settings, &grey)?;
    let mut configured = described(settings, open.headers()).is_some();
    let mut came = 0;
    for picture in 0..=PICTURES {
        if picture < PICTURES {
            open.send(grey.share()?, picture * 3000, picture % KEYFRAMES == 0)?;
        } else {
            open.finish()?;
        }
        while let Some(packet) = open.receive()? {
            if packet.pts != came * 3000 {
                return Err(wrong("gave a picture out of turn", packet.pts));
            }
            if packet.key != (came % KEYFRAMES == 0) {
                return Err(wrong(
                    "makes keyframes where none are asked for, or none where they are",
                    packet.pts,
                ));
            }
            configured = configured || described(settings, packet.data).is_some();
            if !configured {
                return Err(wrong("has no parameter sets", packet.pts));
            }
            came += 1;
        }
        if picture - came >= MAX_INSIDE as i64 {
            return Err(wrong("holds pictures back", came * 3000));
        }
    }
    if came == PICTURES { Ok(()) } else { Err(wrong("kept a picture", came * 3000)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RungConfig;

    fn tried(change: impl FnOnce(&mut RungConfig)) -> Vec<String> {
        let mut rung = RungConfig::new(360, 700);
        change(&mut rung);
        let config = Config { rungs: vec![RungConfig::new(480, 1000), rung], ..Config::default() };
        assert_eq!(config.problems("t"), Vec::<String>::new());
        try_encoders(&config, "t")
    }

    #[test]
    fn encoders_that_work_have_no_problems() {
        for (encoder, preset) in [("libx264", "medium"), ("libx265", "superfast"), ("libaom-av1", "7")] {
            let found = Encoder::is_available(crate::encoders::find(encoder).unwrap());
            let problems = tried(|rung| {
                rung.encoder = Some(encoder.into());
                rung.preset = Some(preset.into());
            });
            assert_eq!(problems.is_empty(), found, "{problems:?}");
        }
    }

    #[test]
    fn what_an_encoder_refuses_is_said_with_its_rung() {
        let option = |name: &str, value: &str| {
            tried(|rung| drop(rung.options.insert(name.to_owned(), value.to_owned())))
        };
        assert_eq!(option("aq-mode", "2"), Vec::<String>::new());
        // Ours count, where an encoder's own list says otherwise.
        assert_eq!(option("x264-params", "keyint=3:bframes=3:rc-lookahead=20"), Vec::<String>::new());
        for (name, value, problem) in [
            ("warp", "9", "t.rungs[1]: the linked libavcodec's libx264 does not know the option \"warp\""),
            ("aq-mode", "often", "t.rungs[1]: encoder libx264 cannot be opened: avcodec_open2: "),
            ("crf", "fine", "t.rungs[1]: encoder libx264 cannot be opened: avcodec_open2: "),
        ] {
            let problems = option(name, value);
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{problems:?}");
        }
    }

    #[test]
    fn hardware_that_is_not_there_is_named() {
        let nvenc = crate::encoders::find("h264_nvenc").unwrap();
        if std::path::Path::new("/dev/nvidiactl").exists() {
            return;
        }
        let problems = tried(|rung| rung.encoder = Some(nvenc.name.into()));
        let expected = match Encoder::is_available(nvenc) {
            true => "t.rungs[1]: encoder h264_nvenc cannot be opened: avcodec_open2: ",
            false => "t.rungs[1]: the linked libavcodec has no encoder h264_nvenc",
        };
        assert!(problems.len() == 1 && problems[0].starts_with(expected), "{problems:?}");
    }
}
