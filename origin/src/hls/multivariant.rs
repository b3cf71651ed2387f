//! The multivariant playlist.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use media::RenditionId;
use media::captions::{Channel, Service};

use super::{Kind, Variant};
use crate::path;

/// The multivariant playlist. `iframes` are the renditions that have an I-frame playlist, with the bits per second of it at
/// most; `captions` those in the video, `None` where nobody knows; `query` is what the URIs of the media playlists end with.
pub fn multivariant(
    variants: &[Variant],
    iframes: &BTreeMap<RenditionId, u64>,
    captions: Option<&[Service]>,
    query: &str,
) -> String {
    // Services of CEA-708 are of a later version (8).
    let digital = |service: &Service| matches!(service.channel, Channel::Digital(_));
    let version = if captions.is_some_and(|captions| captions.iter().any(digital)) { 7 } else { 6 };
    let mut out = format!("#EXTM3U\n#EXT-X-VERSION:{version}\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    let audio = variants.iter().find(|variant| matches!(variant.kind, Kind::Audio { .. }));
    let video: Vec<_> =
        variants.iter().filter(|variant| matches!(variant.kind, Kind::Video { .. })).collect();
    if let Some(Variant { id, kind: Kind::Audio { channels, .. }, .. }) = audio
        && !video.is_empty()
    {
        put!(
            out,
            "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"audio\",NAME=\"{id}\",DEFAULT=YES,AUTOSELECT=YES,CHANNELS=\"{channels}\",URI=\"{id}.m3u8{query}\"\n"
        );
    }
    // Where there are none all variants say so, or players offer what they guess (4.4.6.2).
    let mut group = match captions {
        Some([]) => ",CLOSED-CAPTIONS=NONE",
        Some(_) => ",CLOSED-CAPTIONS=\"cc\"",
        None => "",
    };
    if video.is_empty() {
        group = "";
    } else {
        for Service { channel, language } in captions.unwrap_or_default() {
            put!(out, "#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID=\"cc\",NAME=\"{channel}\"");
            if let Some(language) = language {
                put!(out, ",LANGUAGE=\"{language}\"");
            }
            put!(out, ",AUTOSELECT=YES,INSTREAM-ID=\"{channel}\"\n");
        }
    }
    for variant in &video {
        let Kind::Video { width, height, frame_rate } = variant.kind else { continue };
        let bandwidth = variant.bandwidth() + audio.map_or(0, Variant::bandwidth);
        let average = variant.average_bandwidth() + audio.map_or(0, Variant::average_bandwidth);
        let codecs =
            audio.map_or(variant.codec.clone(), |audio| format!("{},{}", variant.codec, audio.codec));
        put!(
            out,
            "#EXT-X-STREAM-INF:BANDWIDTH={bandwidth},AVERAGE-BANDWIDTH={average},CODECS=\"{codecs}\",RESOLUTION={width}x{height}"
        );
        if let Some(rate) = frame_rate {
            put!(out, ",FRAME-RATE={:.3}", rate.fps());
        }
        if audio.is_some() {
            out.push_str(",AUDIO=\"audio\"");
        }
        put!(out, "{group}\n{}.m3u8{query}\n", variant.id);
    }
    for variant in &video {
        let Kind::Video { width, height, .. } = variant.kind else { continue };
        let Some(bandwidth) = iframes.get(&variant.id) else { continue };
        put!(
            out,
            "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={bandwidth},CODECS=\"{}\",RESOLUTION={width}x{height},URI=\"{}{query}\"\n",
            variant.codec,
            path::iframes(&variant.id)
        );
    }
    if let (Some(audio), true) = (audio, video.is_empty()) {
        put!(
            out,
            "#EXT-X-STREAM-INF:BANDWIDTH={},AVERAGE-BANDWIDTH={},CODECS=\"{}\"\n{}.m3u8{query}\n",
            audio.bandwidth(),
            audio.average_bandwidth(),
            audio.codec,
            audio.id
        );
    }
    out
}
