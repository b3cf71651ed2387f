//! Answers from the archive: recordings, and what of a live broadcast has left memory.

use std::sync::Arc;

use archive::{BroadcastId, Index};
use http::header::HeaderMap;
use http::{Response, StatusCode};
use media::time::{Ticks, Timescale};
use media::{Object, RenditionId};
use tracing::warn;

use crate::Shared;
use crate::dvr::{Past, PastRuns, Start};
use crate::http::{self as answers, Body};
use crate::live::Live;
use crate::path::Target;
use crate::{thumbnails, vod};

/// A recording's manifests: nothing is added to it any more, but it may be removed.
const MANIFEST_CONTROL: &str = "max-age=60";

/// An object below `/vod/`. `asked` are the headers of a GET.
pub(crate) async fn object(
    shared: &Shared,
    broadcast: &BroadcastId,
    target: Target,
    asked: Option<&HeaderMap>,
) -> Response<Body> {
    let Some(kept) = &shared.kept else {
        return missing(shared, "nothing is kept here");
    };
    let index = match kept.reader.index(broadcast).await {
        Ok(Some(index)) => index,
        Ok(None) => return missing(shared, "no such broadcast is kept"),
        Err(error) => return unreadable(broadcast, &error),
    };
    let manifest = match &target {
        Target::Init(..) | Target::Segment(..) | Target::Sheet(..) => {
            let found = media(shared, broadcast, target, asked).await;
            let gone = found.status() == StatusCode::NOT_FOUND;
            return if gone { missing(shared, "the recording does not have it") } else { found };
        }
        _ if index.ended().is_none() => {
            return missing(shared, "the broadcast is not over: it is under /live/");
        }
        Target::Multivariant => vod::multivariant(&index).map(|text| (answers::HLS_TYPE, text)),
        Target::Playlist(id) => vod::playlist(&index, id).map(|text| (answers::HLS_TYPE, text)),
        Target::IFrames(id) => vod::iframes(&index, id).map(|text| (answers::HLS_TYPE, text)),
        Target::Mpd => vod::mpd(&index).map(|text| (answers::DASH_TYPE, text)),
        // It is not kept.
        Target::Picture => None,
    };
    match manifest {
        Some((media_type, text)) => answers::manifest(media_type, MANIFEST_CONTROL, text),
        None => missing(shared, "the recording does not have it"),
    }
}

/// It is not here. Where each origin keeps what it wrote, another may have it (RFC 9110, 15.5.20).
fn missing(shared: &Shared, why: &'static str) -> Response<Body> {
    if shared.kept.as_ref().is_some_and(|kept| kept.shared) {
        return answers::not_found(why);
    }
    answers::text(StatusCode::MISDIRECTED_REQUEST, why)
}

/// An init segment or segment that is kept.
pub(crate) async fn media(
    shared: &Shared,
    broadcast: &BroadcastId,
    target: Target,
    asked: Option<&HeaderMap>,
) -> Response<Body> {
    let Some(kept) = &shared.kept else { return answers::not_found("no such segment") };
    let reader = &kept.reader;
    let (found, etag, id) = match target {
        Target::Init(epoch, id) => {
            (reader.init(broadcast, epoch, &id).await, answers::init_etag(epoch, &id), id)
        }
        Target::Segment(epoch, id, number) => {
            let found = reader.segment(broadcast, epoch, &id, number, None).await;
            let etag = answers::segment_etag(epoch, &id, number);
            (found.map(|media| media.map(|media| media.bytes)), etag, id)
        }
        Target::Sheet(epoch, number) => {
            let id = thumbnails::rendition();
            let found = reader.segment(broadcast, epoch, &id, number, None).await;
            let etag = answers::sheet_etag(epoch, number);
            (found.map(|media| media.map(|media| media.bytes)), etag, id)
        }
        Target::Multivariant | Target::Playlist(_) | Target::IFrames(_) | Target::Mpd | Target::Picture => {
            return answers::not_found("no media");
        }
    };
    match found {
        Ok(Some(bytes)) => {
            let media_type = match reader.index(broadcast).await {
                _ if id == thumbnails::rendition() => answers::JPEG_TYPE,
                Ok(Some(index)) => media_type(&index, &id),
                _ => "video/mp4",
            };
            answers::media(&shared.shutdown, Object::complete(bytes), media_type, &etag, asked).await
        }
        Ok(None) => answers::not_found("no such segment"),
        Err(error) => unreadable(broadcast, &error),
    }
}

/// What is kept cannot be read now. A list that began with it must not go on without: its sequence numbers would go forth,
/// and back when it can be read again.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl Unreadable {
    pub(crate) fn answer(&self) -> Response<Body> {
        answers::retry_later("the archive cannot be read: without start there is what is in memory")
    }
}

/// What is kept of the broadcast that `live` is at; `None` if nothing is.
async fn current(shared: &Shared, live: &Live) -> Result<Option<Arc<Index>>, Unreadable> {
    let (Some(broadcast), Some(kept)) = (live.broadcast_id(), &shared.kept) else { return Ok(None) };
    kept.reader.index(&broadcast).await.map_err(|error| {
        warn!(%broadcast, %error, "the archive cannot be read: nobody gets a list from before the window");
        Unreadable
    })
}

/// Where `start` lies on the timeline, 90 kHz.
fn place(shared: &Shared, live: &Live, start: Start) -> Option<Ticks> {
    let (anchor, _, end) = live.line()?;
    let most = Timescale::MILLIS.rescale(shared.config.dvr.as_millis() as Ticks, Timescale::VIDEO);
    Some(start.place(anchor, end, most))
}

/// What a media playlist lists before its window.
pub(crate) async fn past(
    shared: &Shared,
    live: &Live,
    id: &RenditionId,
    start: Start,
) -> Result<Option<Past>, Unreadable> {
    let Some(from) = place(shared, live, start) else { return Ok(None) };
    Ok(current(shared, live).await?.map(|index| Past::new(&index, id, from)))
}

/// What an MPD says before its window.
pub(crate) async fn past_runs(
    shared: &Shared,
    live: &Live,
    start: Start,
) -> Result<Option<PastRuns>, Unreadable> {
    let Some(from) = place(shared, live, start) else { return Ok(None) };
    Ok(current(shared, live).await?.map(|index| PastRuns::new(&index, from)))
}

fn media_type(index: &Index, id: &RenditionId) -> &'static str {
    let audio = index
        .renditions()
        .iter()
        .any(|rendition| rendition.id == *id && matches!(rendition.kind, archive::index::Kind::Audio { .. }));
    if audio { "audio/mp4" } else { "video/mp4" }
}

fn unreadable(broadcast: &BroadcastId, error: &archive::Error) -> Response<Body> {
    warn!(%broadcast, %error, "the archive cannot be read");
    answers::retry_later("the archive cannot be read")
}
