//! Thumbnails: sheets as players decode them, and the picture that stands alone.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use media::codec::VideoCodec;
use media::{Epoch, SegmentNumber};
use transcode::{Passthrough, Thumbnails};

use super::{Played, Tags, made, play_as, rules};
use crate::timeline::FIRST_TICK;

const WIDTH: usize = 64;
const HEIGHT: usize = 36;

/// Second by second brighter: black at first, then by so much more, of 255.
const BRIGHTER: f64 = 17.0 * 255.0 / 219.0;

/// A JPEG file's brightness, row by row.
fn decoded(jpeg: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-v", "error", "-f", "mjpeg", "-i", "-", "-f", "rawvideo", "-pix_fmt", "gray", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    ffmpeg.stdin.take().unwrap().write_all(jpeg).unwrap();
    let output = ffmpeg.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), width * height, "not {width}x{height}");
    output.stdout
}

/// Which second's picture each tile of a sheet is.
fn seconds(jpeg: &[u8], columns: usize, rows: usize) -> Vec<f64> {
    let grey = decoded(jpeg, WIDTH * columns, HEIGHT * rows);
    let middle = |place: usize| {
        let (x, y) = (place % columns * WIDTH + WIDTH / 2, place / columns * HEIGHT + HEIGHT / 2);
        (f64::from(grey[y * WIDTH * columns + x]) / BRIGHTER * 10.0).round() / 10.0
    };
    (0..columns * rows).map(middle).collect()
}

async fn played(passthrough: Passthrough) -> Option<Played> {
    let pattern = "nullsrc=s=320x180:r=25:d=7,geq=lum='16+17*floor(T)':cb=128:cr=128,format=yuv420p";
    let track = made(pattern, &["-x264-params", "keyint=25:min-keyint=25:scenecut=0"])?;
    let mut tags = Tags::default();
    tags.video(VideoCodec::Avc, &track, 900_000);
    let interval = Duration::from_secs(1);
    let thumbnails = Thumbnails { interval, columns: 2, rows: 2, size: 64, ..Thumbnails::default() };
    Some(play_as(transcode::Config { thumbnails, ..rules(passthrough) }, tags).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thumbnail_shows_its_time() {
    for passthrough in [Passthrough::Off, Passthrough::Top] {
        let Some(played) = played(passthrough).await else { return };
        let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
        let (_, epoch) = live.standing();
        let sheet = |number| live.find_sheet(epoch, SegmentNumber(number));
        // The stream begins a second behind the zero of the grid.
        assert_eq!(FIRST_TICK, 90_000);
        assert_eq!(seconds(&sheet(0).unwrap(), 2, 2), [0.0, 0.0, 1.0, 2.0], "{passthrough:?}");
        assert_eq!(seconds(&sheet(1).unwrap(), 2, 2), [3.0, 4.0, 5.0, 6.0], "{passthrough:?}");
        assert_eq!((sheet(2), live.find_sheet(Epoch(1), SegmentNumber(1))), (None, None));
        let picture = live.newest_picture().unwrap();
        assert_eq!(picture.pts, FIRST_TICK + 6 * 90_000);
        let grey = decoded(&picture.jpeg, 128, 72);
        assert!((f64::from(grey[36 * 128 + 64]) - 6.0 * BRIGHTER).abs() < 2.0);
        let (_, mpd) = played.manifests();
        for part in [
            "contentType=\"image\" mimeType=\"image/jpeg\"",
            "startNumber=\"0\" presentationTimeOffset=\"90000\"",
            "<S t=\"0\" d=\"360000\" r=\"1\"/>",
            "<Representation id=\"thumbnails\" bandwidth=\"4608\" width=\"128\" height=\"72\">",
            "<EssentialProperty schemeIdUri=\"http://dashif.org/guidelines/thumbnail_tile\" value=\"2x2\"/>",
        ] {
            assert!(mpd.contains(part), "{part} in {mpd}");
        }
        assert_eq!(played.shared.transcode_metrics.thumbnails.get(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_passed_through_has_none() {
    let Some(played) = played(Passthrough::Only).await else { return };
    assert_eq!(played.video().count(), 1);
    let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
    assert_eq!(live.newest_picture(), None);
    assert!(!played.manifests().1.contains("image"));
}
