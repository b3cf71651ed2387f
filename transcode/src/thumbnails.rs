//! Small pictures of a stream: which moments have one, how large they are and where they stand on a sheet.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

use media::Ticks;
use serde::{Deserialize, Serialize};

use crate::ladder::Rung;

/// Most thumbnails side by side, and most one below the other.
pub const MAX_TILES: u32 = 10;

/// Longest side of a thumbnail, in pixels.
const MAX_SIZE: u32 = 320;

/// Shortest side of one of an odd shape, in pixels.
const MIN_SIDE: u32 = 16;

/// What is drawn of streams whose pictures are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thumbnails {
    /// Whether there are any. Default true.
    pub enabled: bool,
    /// Media time from one thumbnail to the next. Default `2s`, 1s to 60s.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Thumbnails side by side on a sheet. Default 5, 1 to 10. A sheet is published when the time of its last thumbnail is over:
    /// small sheets are there sooner.
    pub columns: u32,
    /// Rows of thumbnails on a sheet. Default 1, 1 to 10.
    pub rows: u32,
    /// The longer side of a thumbnail, in pixels; even. Default 160, 64 to 320. None is larger than the smallest rung.
    pub size: u32,
    /// The JPEG encoder's quantiser. Default 6, 2 (best and largest) to 31.
    pub quantiser: u32,
}

impl Default for Thumbnails {
    fn default() -> Self {
        Self { enabled: true, interval: Duration::from_secs(2), columns: 5, rows: 1, size: 160, quantiser: 6 }
    }
}

impl Thumbnails {
    /// Those of a stream with this smallest encoded rung; `None` if there are to be none.
    pub fn of(&self, rung: &Rung, sar: (u32, u32)) -> Option<Tiles> {
        let (width, height) = fit(rung, sar, self.size);
        self.enabled.then(|| Tiles {
            interval: (self.interval.as_millis() as Ticks * 90).max(1),
            columns: self.columns,
            rows: self.rows,
            width,
            height,
            picture: fit(rung, sar, self.size * 2),
            quantiser: self.quantiser,
        })
    }

    /// Everything that is wrong, each entry beginning with the key's path below `path`.
    pub(crate) fn problems(&self, path: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if !(Duration::from_secs(1)..=Duration::from_secs(60)).contains(&self.interval) {
            let interval = humantime_serde::re::humantime::format_duration(self.interval);
            problems.push(format!("{path}.interval: {interval} is outside 1s to 60s"));
        }
        for (key, value, low, high) in [
            ("columns", self.columns, 1, MAX_TILES),
            ("rows", self.rows, 1, MAX_TILES),
            ("size", self.size, 64, MAX_SIZE),
            ("quantiser", self.quantiser, 2, 31),
        ] {
            if !(low..=high).contains(&value) {
                problems.push(format!("{path}.{key}: {value} is outside {low} to {high}"));
            }
        }
        if !self.size.is_multiple_of(2) {
            problems.push(format!("{path}.size: {} is not even", self.size));
        }
        problems
    }
}

/// The thumbnails of one run. Their times are multiples of `interval` on the stream's timeline, and those of sheets multiples
/// of a sheet's duration, wherever the run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiles {
    /// From one to the next, 90 kHz.
    pub interval: Ticks,
    /// Side by side.
    pub columns: u32,
    /// One below the other.
    pub rows: u32,
    /// Width of one, in (square) pixels.
    pub width: u32,
    /// Height of one, in pixels.
    pub height: u32,
    /// Width and height of the picture that stands alone.
    pub picture: (u32, u32),
    /// The encoder's.
    pub quantiser: u32,
}

impl Tiles {
    /// How many are on a sheet.
    pub fn count(&self) -> u32 {
        self.columns * self.rows
    }

    /// The time that a sheet covers, 90 kHz.
    pub fn sheet_duration(&self) -> Ticks {
        self.interval * Ticks::from(self.count())
    }

    /// The sheet with the thumbnail of a moment (90 kHz); sheet 0 begins where the timeline does.
    pub fn sheet(&self, at: Ticks) -> i64 {
        at.div_euclid(self.sheet_duration())
    }

    /// Where on its sheet the thumbnail of a moment is: from left to right, then from top to bottom.
    pub fn place(&self, at: Ticks) -> u32 {
        (at.rem_euclid(self.sheet_duration()) / self.interval) as u32
    }

    /// Whether it can be counted with: what another node says must be looked at.
    pub fn is_sane(&self) -> bool {
        let side = |side: u32| (1..=MAX_SIZE).contains(&side);
        (1..=90_000 * 3600).contains(&self.interval)
            && (1..=MAX_TILES).contains(&self.columns)
            && (1..=MAX_TILES).contains(&self.rows)
            && side(self.width)
            && side(self.height)
    }
}

/// The size at which a rung's picture, shown with square pixels, has this longer side; no larger than it is.
fn fit(rung: &Rung, sar: (u32, u32), longer: u32) -> (u32, u32) {
    let (num, den) = (u64::from(sar.0.max(1)), u64::from(sar.1.max(1)));
    let (width, height) = ((u64::from(rung.width) * num / den).max(1), u64::from(rung.height).max(1));
    let most = width.max(height);
    let longer = u64::from(longer).min(most).min(u64::from(2 * MAX_SIZE));
    let side = |side: u64| {
        let scaled = (side * longer + most / 2) / most;
        (scaled.next_multiple_of(2) as u32).clamp(MIN_SIDE, 2 * MAX_SIZE)
    };
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::ladder::derive;
    use media::codec::VideoCodec;

    /// Of a source of this size: of the tiles, and of the picture alone.
    fn sizes(width: u32, height: u32, sar: (u32, u32)) -> ((u32, u32), (u32, u32)) {
        let record = bytes::Bytes::new();
        let source =
            crate::VideoSource { codec: VideoCodec::Avc, record, width, height, sar, frame_rate: None };
        let rungs = derive(&Config::default(), &source);
        let tiles = Thumbnails::default().of(rungs.last().unwrap(), sar).unwrap();
        ((tiles.width, tiles.height), tiles.picture)
    }

    #[test]
    fn thumbnails_have_the_shape_of_what_is_shown() {
        assert_eq!(sizes(1280, 720, (1, 1)), ((160, 90), (320, 180)));
        assert_eq!(sizes(720, 1280, (1, 1)), ((90, 160), (180, 320)));
        // PAL, 16:9.
        assert_eq!(sizes(720, 576, (16, 11)), ((160, 88), (320, 176)));
        assert_eq!(sizes(192, 144, (1, 1)), ((160, 120), (192, 144)), "never scaled up");
        assert_eq!(sizes(1920, 32, (1, 1)).0, (160, 16));
    }

    #[test]
    fn moments_have_places() {
        let rung = &derive(
            &Config::default(),
            &crate::VideoSource {
                codec: VideoCodec::Avc,
                record: bytes::Bytes::new(),
                width: 640,
                height: 360,
                sar: (1, 1),
                frame_rate: None,
            },
        )[0];
        let config = Thumbnails { columns: 3, rows: 2, ..Thumbnails::default() };
        let tiles = config.of(rung, (1, 1)).unwrap();
        assert_eq!(tiles.sheet_duration(), 12 * 90_000);
        let place = |seconds: Ticks| (tiles.sheet(seconds * 90_000), tiles.place(seconds * 90_000));
        assert_eq!([0, 1, 2, 11, 12, 35].map(place), [(0, 0), (0, 0), (0, 1), (0, 5), (1, 0), (2, 5)]);
        assert!(tiles.is_sane() && !Tiles { interval: 0, ..tiles }.is_sane());
        assert_eq!(Thumbnails { enabled: false, ..config }.of(rung, (1, 1)), None);
    }

    #[test]
    fn every_problem_is_named_with_its_key() {
        assert_eq!(Thumbnails::default().problems("t"), Vec::<String>::new());
        let interval = Duration::from_millis(999);
        let config = Thumbnails { enabled: true, interval, columns: 0, rows: 11, size: 323, quantiser: 1 };
        let problems = config.problems("t").join("\n");
        for key in [
            "t.interval: 999ms",
            "t.columns: 0",
            "t.rows: 11",
            "t.size: 323 is outside",
            "t.size: 323 is not",
            "t.quantiser: 1",
        ] {
            assert!(problems.contains(key), "{key} in {problems}");
        }
    }
}
