//! A stream's newest picture, and its sheets of thumbnails.

use bytes::Bytes;
use media::time::Ticks;
use media::{Epoch, SegmentNumber};
use transcode::Tiles;

use super::Live;
use crate::thumbnails::Sheet;

/// The newest picture of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The run that it belongs to.
    pub epoch: Epoch,
    /// When it is shown, 90 kHz.
    pub pts: Ticks,
    /// A JPEG file.
    pub jpeg: Bytes,
}

/// What a stream has to show beside its renditions.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    /// Of the next run.
    pub(super) tiles: Option<Tiles>,
    pub(super) newest: Option<Picture>,
}

impl Live {
    /// Says which thumbnails the next run has, if any.
    pub fn draws(&self, tiles: Option<Tiles>) {
        let mut inner = self.lock();
        inner.pictures.tiles = tiles;
        if tiles.is_none() {
            // Of the run before: nothing newer will come.
            inner.pictures.newest = None;
        }
    }

    /// Shows a picture. It is no news to those who wait for media.
    pub fn picture(&self, picture: Picture) {
        self.lock().pictures.newest = Some(picture);
    }

    /// Takes over the newest picture of another origin, unless it is too late for that.
    pub(crate) fn copy_picture(&self, picture: Picture) {
        let mut inner = self.lock();
        if inner.copies {
            inner.pictures.newest = Some(picture);
        }
    }

    /// The newest picture; `None` if there was none yet.
    pub fn newest_picture(&self) -> Option<Picture> {
        self.lock().pictures.newest.clone()
    }

    /// Publishes a sheet of a run. Ignored unless `epoch` is the run that is being written.
    pub fn sheet(&self, epoch: Epoch, number: SegmentNumber, jpeg: Bytes) {
        self.change(|inner| {
            let run = inner.broadcast.as_mut().filter(|broadcast| broadcast.epoch() == epoch);
            if let Some(broadcast) = run {
                broadcast.sheet(Sheet { epoch, number, jpeg });
            }
        });
    }

    /// A sheet of thumbnails.
    pub fn find_sheet(&self, epoch: Epoch, number: SegmentNumber) -> Option<Bytes> {
        self.lock().broadcast.as_ref()?.sheets.find(epoch, number).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::tests::{T0, begin, run};
    use crate::thumbnails::tests::TILES;

    #[test]
    fn sound_that_reaches_beyond_the_last_segment_promises_no_sheet() {
        let live = Live::new("demo".parse().unwrap());
        live.draws(Some(TILES));
        run(&live, 1, T0, &["360p", "audio"], 8);
        let (id, number) = ("audio".parse().unwrap(), SegmentNumber(T0 as u64 / 1000 + 8));
        live.open(Epoch(1), &id, number, 9 * 48_000);
        live.part(Epoch(1), &id, Bytes::from_static(b"part"), 48_500, true);
        live.close(Epoch(1), &id);
        let listed = || {
            let mpd = live.mpd(1500, T0, "/time", None).unwrap();
            mpd.lines().find(|line| line.contains("<S ")).unwrap().trim().to_owned()
        };
        let before = listed();
        live.interrupt(false);
        assert_eq!(
            (before.as_str(), listed().as_str()),
            ("<S t=\"0\" d=\"900000\"/>", "<S t=\"0\" d=\"900000\"/>")
        );
    }

    #[test]
    fn a_run_has_the_thumbnails_that_were_announced() {
        let live = Live::new("demo".parse().unwrap());
        live.draws(Some(TILES));
        run(&live, 1, T0, &["360p", "audio"], 25);
        let mpd = |unix_ms| live.mpd(1500, unix_ms, "/time", None).unwrap();
        // A second and 25 later; six seconds are listed.
        let told = mpd(T0 + 25_000);
        let listed = "startNumber=\"2\" presentationTimeOffset=\"90000\" media=\"1/thumbnails/$Number$.jpg\"";
        assert!(told.contains(listed) && told.contains("<S t=\"1800000\" d=\"900000\"/>"), "{told}");
        let number = SegmentNumber(2);
        assert_eq!(live.find_sheet(Epoch(1), number), None);
        live.sheet(Epoch(2), number, Bytes::from_static(b"of another run"));
        assert_eq!(live.find_sheet(Epoch(2), number), None);
        live.sheet(Epoch(1), number, Bytes::from_static(b"sheet"));
        assert_eq!(live.find_sheet(Epoch(1), number).unwrap(), "sheet");
        assert_eq!(mpd(T0 + 25_000), told, "it was told of before it was whole");
        let picture = Picture { epoch: Epoch(1), pts: 90_000, jpeg: Bytes::from_static(b"picture") };
        live.picture(picture.clone());
        assert_eq!(live.newest_picture(), Some(picture));
        // The next run is passed through.
        live.interrupt(false);
        live.draws(None);
        begin(&live, 2, T0 + 30_000, &["360p", "audio"]);
        assert_eq!(mpd(T0 + 31_000).matches("contentType=\"image\"").count(), 1);
        assert_eq!(live.newest_picture(), None);
        assert_eq!(live.find_sheet(Epoch(1), number).unwrap(), "sheet", "players may be behind");
    }
}
