//! Draws a run's thumbnails: a picture each interval by itself, and onto a sheet that is given out when its time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use media::Ticks;

use crate::job::{Event, Events, Stop};
use crate::libav::{Failure, Jpeg, Picture, Scaler};
use crate::thumbnails::Tiles;

/// Draws what it is shown. It costs as much as a hundredth of the smallest rung, and fails alone: without it the rungs go on.
pub(crate) struct Drawer {
    tiles: Tiles,
    /// The encoders fall behind: nothing is drawn.
    strained: Arc<AtomicBool>,
    /// The latest moment that has, or should have had, a thumbnail: in intervals.
    drawn: Option<i64>,
    /// The newest thumbnail.
    tile: Option<Picture>,
    sheet: Option<Sheet>,
    tools: Tools,
}

/// Scalers and encoders, of the picture that stands alone, and of tiles and sheets.
struct Tools {
    picture: (Scaler, Jpeg),
    tile: Scaler,
    sheet: Jpeg,
}

struct Sheet {
    number: i64,
    canvas: Picture,
    /// The first place with nothing on it.
    next: u32,
}

impl Drawer {
    pub(crate) fn new(tiles: Tiles, strained: Arc<AtomicBool>) -> Result<Self, Failure> {
        let (width, height) = tiles.picture;
        let picture = (Scaler::full_range(width, height)?, Jpeg::open(width, height, tiles.quantiser)?);
        let tile = Scaler::full_range(tiles.width, tiles.height)?;
        let sheet = Jpeg::open(tiles.width * tiles.columns, tiles.height * tiles.rows, tiles.quantiser)?;
        let tools = Tools { picture, tile, sheet };
        Ok(Self { tiles, strained, drawn: None, tile: None, sheet: None, tools })
    }

    /// A picture of the smallest rung is shown at `pts`.
    pub(crate) fn show(&mut self, picture: &Picture, pts: Ticks, events: &Events) -> Result<(), Stop> {
        let moment = pts.div_euclid(self.tiles.interval);
        if self.drawn.is_some_and(|drawn| moment <= drawn) {
            return Ok(());
        }
        self.drawn = Some(moment);
        let number = self.tiles.sheet(pts);
        if self.sheet.as_ref().is_some_and(|sheet| sheet.number != number) {
            self.finish(events)?;
        }
        if self.strained.load(Ordering::Relaxed) {
            events.metrics.thumbnails_left_out.inc();
            return Ok(());
        }
        let (scaler, jpeg) = &mut self.tools.picture;
        let alone = scaler.scale(picture)?;
        let tile = self.tools.tile.scale(&alone)?;
        let sheet = match &mut self.sheet {
            Some(sheet) => sheet,
            none => {
                let (width, height) =
                    (self.tiles.width * self.tiles.columns, self.tiles.height * self.tiles.rows);
                none.insert(Sheet { number, canvas: Picture::grey(width, height)?, next: 0 })
            }
        };
        // Moments without a picture of their own show what came before.
        let place = self.tiles.place(pts);
        sheet.fill(&self.tiles, place, self.tile.as_ref().unwrap_or(&tile));
        sheet.fill(&self.tiles, place + 1, &tile);
        self.tile = Some(tile);
        events.metrics.thumbnails.inc();
        let jpeg = Bytes::from(jpeg.encode(alone)?);
        events.send(Event::Picture { pts, jpeg })
    }

    /// Gives out the sheet as far as it has come.
    pub(crate) fn finish(&mut self, events: &Events) -> Result<(), Stop> {
        let (Some(mut sheet), Some(tile)) = (self.sheet.take(), &self.tile) else { return Ok(()) };
        sheet.fill(&self.tiles, self.tiles.count(), tile);
        let jpeg = Bytes::from(self.tools.sheet.encode(sheet.canvas)?);
        events.send(Event::Sheet { number: sheet.number, jpeg })
    }
}

impl Sheet {
    /// Puts `tile` on all places up to and without `until` that have nothing yet.
    fn fill(&mut self, tiles: &Tiles, until: u32, tile: &Picture) {
        for place in self.next..until {
            let (column, row) = (place % tiles.columns, place / tiles.columns);
            self.canvas.put(tile, column * tiles.width, row * tiles.height);
        }
        self.next = self.next.max(until);
    }
}
