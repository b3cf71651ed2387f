//! Sheets of thumbnails: those that are kept of a broadcast, and how an MPD tells of them.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use bytes::Bytes;
use media::time::Ticks;
use media::{Epoch, RenditionId, SegmentNumber};
use transcode::Tiles;

use crate::dash::Period;
use crate::path;

/// Sheets kept of a stream: more than twice the longest window has of the shortest.
pub(crate) const MAX_SHEETS: usize = 2400;

/// Bits for each pixel of a JPEG file: more than most have.
const BITS_PER_PIXEL: u64 = 2;

/// DASH-IF IOP 4.3, 6.2.6.
const TILE_SCHEME: &str = "http://dashif.org/guidelines/thumbnail_tile";

/// Its name in an MPD and in the archive; no rung can have it.
const REPRESENTATION: &str = archive::index::THUMBNAILS;

/// The same where sheets are kept.
pub(crate) fn rendition() -> RenditionId {
    REPRESENTATION.parse().expect("a name like others")
}

/// What a recording says of the sheets of a run; `None` if it has none, or they cannot be counted with.
pub(crate) fn recorded(run: &archive::index::Run) -> Option<Tiles> {
    let archive::index::Tiles { interval, columns, rows, width, height } = run.tiles?;
    // Nothing more is drawn.
    let (picture, quantiser) = ((width, height), 1);
    Some(Tiles { interval, columns, rows, width, height, picture, quantiser }).filter(Tiles::is_sane)
}

/// One sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sheet {
    /// The run that it belongs to.
    pub(crate) epoch: Epoch,
    /// As [`Tiles::sheet`] counts.
    pub(crate) number: SegmentNumber,
    /// A JPEG file.
    pub(crate) jpeg: Bytes,
}

/// The sheets of a broadcast, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Sheets(VecDeque<Sheet>);

impl Sheets {
    /// Keeps one more, and of the others what is shown behind `from` (90 kHz) and belongs to one of `runs`.
    pub(crate) fn push(&mut self, sheet: Sheet, from: Ticks, runs: &[Period]) {
        self.0.retain(|kept| {
            let tiles = runs.iter().find(|run| run.epoch == kept.epoch).and_then(|run| run.thumbnails);
            let again = (kept.epoch, kept.number) == (sheet.epoch, sheet.number);
            let end = |tiles: Tiles| tiles.sheet_duration().saturating_mul(kept.number.0 as Ticks + 1);
            tiles.is_some_and(|tiles| end(tiles) > from) && !again
        });
        if self.0.len() >= MAX_SHEETS {
            self.0.pop_front();
        }
        self.0.push_back(sheet);
    }

    /// One of them.
    pub(crate) fn find(&self, epoch: Epoch, number: SegmentNumber) -> Option<&Bytes> {
        let found = self.0.iter().find(|sheet| (sheet.epoch, sheet.number) == (epoch, number));
        found.map(|sheet| &sheet.jpeg)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sheet> {
        self.0.iter()
    }

    /// What they hold.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|sheet| sheet.jpeg.len() as u64).sum()
    }
}

/// The `AdaptationSet` of a `Period` that shows `epoch` from `start` on, with the sheets that have something of the time from
/// `from` to `until` (90 kHz).
///
/// Sheets lie on the timeline's own grid, so the first may begin before the period does. Only a `SegmentTimeline` can say so. The
/// last that is listed may not be whole yet: like a segment, it is there when its time is over.
pub(crate) fn adaptation_set(
    out: &mut String,
    id: u32,
    epoch: Epoch,
    tiles: &Tiles,
    start: Ticks,
    listed: std::ops::Range<Ticks>,
) {
    let duration = tiles.sheet_duration();
    let first = tiles.sheet(listed.start.max(start));
    let last = tiles.sheet((listed.end - 1).max(listed.start).max(start));
    let (width, height) = (tiles.width * tiles.columns, tiles.height * tiles.rows);
    let bits = u64::from(width) * u64::from(height) * BITS_PER_PIXEL;
    let bandwidth = (bits * 90_000).div_ceil(duration.unsigned_abs().max(1));
    put!(
        out,
        "    <AdaptationSet id=\"{id}\" contentType=\"image\" mimeType=\"image/jpeg\">\n      \
         <SegmentTemplate timescale=\"90000\" startNumber=\"{first}\" presentationTimeOffset=\"{start}\" media=\"{}\">\n        \
         <SegmentTimeline>\n          <S t=\"{}\" d=\"{duration}\"",
        path::sheet(epoch, "$Number$"),
        first * duration
    );
    if last > first {
        put!(out, " r=\"{}\"", last - first);
    }
    put!(
        out,
        "/>\n        </SegmentTimeline>\n      </SegmentTemplate>\n      \
         <Representation id=\"{REPRESENTATION}\" bandwidth=\"{bandwidth}\" width=\"{width}\" height=\"{height}\">\n        \
         <EssentialProperty schemeIdUri=\"{TILE_SCHEME}\" value=\"{}x{}\"/>\n      </Representation>\n    </AdaptationSet>\n",
        tiles.columns,
        tiles.rows
    );
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TILES: Tiles = Tiles {
        interval: 2 * 90_000,
        columns: 5,
        rows: 1,
        width: 160,
        height: 90,
        picture: (320, 180),
        quantiser: 6,
    };

    fn period(epoch: u64, thumbnails: Option<Tiles>) -> Period {
        Period {
            epoch: Epoch(epoch),
            start: 90_000,
            end: None,
            first: SegmentNumber(7),
            variants: Vec::new(),
            connected: None,
            resumes: None,
            cuts: Vec::new(),
            trimmed: false,
            captions: Vec::new(),
            captions_found: Vec::new(),
            thumbnails,
        }
    }

    #[test]
    fn what_left_the_window_or_has_no_run_any_more_goes() {
        let mut sheets = Sheets::default();
        let sheet = |epoch, number| Sheet {
            epoch: Epoch(epoch),
            number: SegmentNumber(number),
            jpeg: Bytes::from(format!("{epoch}/{number}")),
        };
        let runs = [period(1, Some(TILES)), period(2, Some(TILES))];
        for number in 0..5 {
            sheets.push(sheet(1, number), 0, &runs);
        }
        sheets.push(sheet(2, 4), 0, &runs);
        sheets.push(sheet(2, 4), 0, &runs);
        assert_eq!(sheets.iter().count(), 6, "the same once more takes the place of the first");
        assert_eq!(sheets.find(Epoch(2), SegmentNumber(4)).unwrap(), "2/4");
        sheets.push(sheet(2, 5), 20 * 90_000 - 1, &runs);
        assert_eq!(sheets.iter().map(|sheet| sheet.number.0).collect::<Vec<_>>(), [1, 2, 3, 4, 4, 5]);
        sheets.push(sheet(2, 6), 0, &runs[1..]);
        assert_eq!(sheets.iter().map(|sheet| sheet.number.0).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(sheets.bytes(), 9);
        for number in 7..MAX_SHEETS as u64 + 100 {
            sheets.push(sheet(2, number), 0, &runs);
        }
        assert_eq!(sheets.iter().count(), MAX_SHEETS);
    }

    #[test]
    fn sheets_lie_on_the_timelines_grid_wherever_a_period_begins() {
        let listed = |start: Ticks, from: Ticks, until: Ticks| {
            let mut out = String::new();
            let listed = from * 90_000..until * 90_000;
            adaptation_set(&mut out, 2, Epoch(7), &TILES, start * 90_000, listed);
            let line = |what: &str| out.lines().find(|line| line.contains(what)).unwrap().trim().to_owned();
            (line("<SegmentTemplate"), line("<S "))
        };
        let (template, timeline) = listed(23, 0, 24);
        assert!(template.contains(
            "startNumber=\"2\" presentationTimeOffset=\"2070000\" media=\"7/thumbnails/$Number$.jpg\""
        ));
        assert_eq!(timeline, "<S t=\"1800000\" d=\"900000\"/>");
        assert_eq!(listed(23, 0, 30).1, "<S t=\"1800000\" d=\"900000\"/>");
        assert_eq!(listed(23, 0, 31).1, "<S t=\"1800000\" d=\"900000\" r=\"1\"/>");
        let (template, timeline) = listed(23, 75, 105);
        assert!(template.contains("startNumber=\"7\""));
        assert_eq!(timeline, "<S t=\"6300000\" d=\"900000\" r=\"3\"/>");
        assert_eq!(listed(23, 30, 23).1, "<S t=\"2700000\" d=\"900000\"/>", "there is always one");
    }
}
