//! A broadcast that is kept, as a playlist and an MPD that do not change any more.
//!
//! Where the timeline jumps while the broadcaster is away, the live manifests jump with it; here run follows run without a
//! pause, so that a recording is as long as what was sent.
#![deny(clippy::disallowed_methods)]

mod dash;
mod hls;
#[cfg(test)]
mod tests;

use archive::index::{self, Index, Rendition};
use media::captions::Service;

use crate::broadcast::join;
use crate::hls::{Kind, Variant};
use crate::window::Bitrate;

pub use dash::mpd;
pub use hls::{iframes, playlist};

/// The multivariant playlist of all that the recording has; `None` if it has nothing.
pub fn multivariant(index: &Index) -> Option<String> {
    let renditions = index.renditions();
    let variants: Vec<_> =
        renditions.into_iter().map(|rendition| variant(rendition, measured(index, rendition))).collect();
    let iframes = variants.iter().filter(|variant| matches!(variant.kind, Kind::Video { .. }));
    let iframes = iframes.filter_map(|variant| Some((variant.id.clone(), index.keyframes_bps(&variant.id)?)));
    let iframes = iframes.collect();
    let mut captions: Vec<Service> = Vec::new();
    index.runs().for_each(|run| join(&mut captions, &run.captions));
    // Recordings of before do not say whether they have any.
    let captions = Some(&captions[..]).filter(|captions| !captions.is_empty());
    (!variants.is_empty()).then(|| crate::hls::multivariant(&variants, &iframes, captions, ""))
}

/// The bit rate over the whole recording.
pub(crate) fn measured(index: &Index, rendition: &Rendition) -> Bitrate {
    let measured = index.bitrate(&rendition.id);
    let bitrate = |(peak_bps, average_bps)| Bitrate { peak_bps, average_bps, segments: u64::MAX };
    measured.map(bitrate).unwrap_or_default()
}

/// What manifests say of a rendition.
pub(crate) fn variant(rendition: &Rendition, measured: Bitrate) -> Variant {
    Variant {
        id: rendition.id.clone(),
        codec: rendition.codec.clone(),
        bitrate_bps: rendition.bitrate_bps,
        measured,
        kind: match rendition.kind {
            index::Kind::Video { width, height, frame_rate } => Kind::Video { width, height, frame_rate },
            index::Kind::Audio { channels, sample_rate } => Kind::Audio { channels, sample_rate },
        },
    }
}
