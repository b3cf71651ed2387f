//! The URLs of the origin.
#![deny(clippy::disallowed_methods)]

use archive::BroadcastId;
use media::{Epoch, RenditionId, SegmentNumber, StreamName};

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/live/{stream}/index.m3u8`
    Multivariant,
    /// `/live/{stream}/{rendition}.m3u8`
    Playlist(RenditionId),
    /// `/live/{stream}/{rendition}/iframes.m3u8`
    IFrames(RenditionId),
    /// `/live/{stream}/manifest.mpd`
    Mpd,
    /// `/live/{stream}/{epoch}/{rendition}/init.mp4`
    Init(Epoch, RenditionId),
    /// `/live/{stream}/{epoch}/{rendition}/{number}.m4s`
    Segment(Epoch, RenditionId, SegmentNumber),
    /// `/live/{stream}/thumbnail.jpg`
    Picture,
    /// `/live/{stream}/{epoch}/thumbnails/{number}.jpg`
    Sheet(Epoch, SegmentNumber),
}

/// Reads a path below `/live/`; `None` if it names nothing that could exist.
pub fn parse(path: &str) -> Option<(StreamName, Target)> {
    let mut parts = path.strip_prefix("/live/")?.split('/');
    Some((parts.next()?.parse().ok()?, target(parts)?))
}

/// Reads a path below `/vod/`, where recordings have the names that live streams have below `/live/`; `None` if it names
/// nothing that could exist.
pub fn parse_recording(path: &str) -> Option<(BroadcastId, Target)> {
    let mut parts = path.strip_prefix("/vod/")?.split('/');
    Some((parts.next()?.parse().ok()?, target(parts)?))
}

fn target<'a>(mut parts: impl Iterator<Item = &'a str>) -> Option<Target> {
    Some(match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("index.m3u8", None, ..) => Target::Multivariant,
        ("manifest.mpd", None, ..) => Target::Mpd,
        ("thumbnail.jpg", None, ..) => Target::Picture,
        (file, None, ..) => Target::Playlist(file.strip_suffix(".m3u8")?.parse().ok()?),
        (rendition, Some("iframes.m3u8"), None, _) => Target::IFrames(rendition.parse().ok()?),
        (epoch, Some("thumbnails"), Some(file), None) => {
            Target::Sheet(Epoch(number(epoch)?), SegmentNumber(number(file.strip_suffix(".jpg")?)?))
        }
        (epoch, Some(rendition), Some(file), None) => {
            let (epoch, rendition) = (Epoch(number(epoch)?), rendition.parse().ok()?);
            match file {
                "init.mp4" => Target::Init(epoch, rendition),
                _ => Target::Segment(epoch, rendition, SegmentNumber(number(file.strip_suffix(".m4s")?)?)),
            }
        }
        _ => return None,
    })
}

/// Decimal digits only and no leading zero, so that every object has one name.
fn number(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

/// The init segment of a rendition, relative to the manifests.
pub fn init(epoch: Epoch, rendition: &RenditionId) -> String {
    format!("{epoch}/{rendition}/init.mp4")
}

/// An I-frame playlist, relative to the manifests.
pub fn iframes(rendition: &RenditionId) -> String {
    format!("{rendition}/iframes.m3u8")
}

/// What [`segment`] and [`init`] are relative to, seen from an I-frame playlist.
pub const FROM_IFRAMES: &str = "../";

/// A segment, relative to the manifests.
pub fn segment(epoch: Epoch, rendition: &RenditionId, number: SegmentNumber) -> String {
    format!("{epoch}/{rendition}/{number}.m4s")
}

/// A sheet of thumbnails, relative to the manifests.
pub fn sheet(epoch: Epoch, number: impl std::fmt::Display) -> String {
    format!("{epoch}/thumbnails/{number}.jpg")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_one_path() {
        let rendition: RenditionId = "720p".parse().unwrap();
        let target = |path: &str| parse(path).map(|(_, target)| target);
        assert_eq!(target("/live/demo/index.m3u8"), Some(Target::Multivariant));
        assert_eq!(target("/live/demo/manifest.mpd"), Some(Target::Mpd));
        assert_eq!(target("/live/demo/720p.m3u8"), Some(Target::Playlist(rendition.clone())));
        let path = |relative: String| format!("/live/demo/{relative}");
        assert_eq!(target(&path(iframes(&rendition))), Some(Target::IFrames(rendition.clone())));
        assert_eq!(
            target(&path(init(Epoch(5), &rendition))),
            Some(Target::Init(Epoch(5), rendition.clone()))
        );
        let number = SegmentNumber(1_700_000_000);
        let segment = Target::Segment(Epoch(5), rendition.clone(), number);
        assert_eq!(target(&path(super::segment(Epoch(5), &rendition, number))), Some(segment));
        assert_eq!(target("/live/demo/thumbnail.jpg"), Some(Target::Picture));
        assert_eq!(target(&path(super::sheet(Epoch(5), 7))), Some(Target::Sheet(Epoch(5), SegmentNumber(7))));
        for bad in [
            "/",
            "/live",
            "/live/",
            "/live/demo",
            "/live/demo/",
            "/live/../x/index.m3u8",
            "/live/demo/x.ts",
            "/live/demo/1/720p",
            "/live/demo/720p/iframes.m3u8/",
            "/live/demo/1/720p/iframes.m3u8",
            "/live/demo//iframes.m3u8",
            "/live/demo/1/720p/01.m4s",
            "/live/demo/+1/720p/1.m4s",
            "/live/demo/1/720p/-1.m4s",
            "/live/demo/1/720p/99999999999999999999.m4s",
            "/live/demo/1/720p/1.m4s/x",
            "/live/demo/.m3u8",
            "/live/demo/5/thumbnails/1.m4s",
            "/live/demo/5/thumbnails/01.jpg",
            "/live/demo/5/720p/1.jpg",
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }
}
