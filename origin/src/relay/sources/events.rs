//! Data messages of a broadcaster, through a whole session: each is once in every rendition that carries events, in front of
//! the chunk of its time, and in every playlist.

use media::codec::VideoCodec;
use media::event::hex_of;
use media::flv::{Tag, TagKind};
use media::time::Ticks;
use rml_amf0::Amf0Value;
use transcode::Passthrough;

use super::{Played, Rendition, Tags, made, play};
use crate::events::{ID3, SCTE35};
use crate::hls::Directives;
use crate::live::Found;
use crate::metrics::{Kind, Reason};

/// A break of ANSI/SCTE 35 (14.1.2).
const CUE: &str = "/DAvAAAAAAAA///wFAVIAACPf+/+c2nALv4AUsz1AAAAAAAKAAhDVUVJAAABNWLbowo=";

fn message(ms: u32, name: &str, text: &str) -> Tag {
    let values = [name, text].map(|text| Amf0Value::Utf8String(text.into()));
    Tag {
        kind: TagKind::Script,
        timestamp_ms: ms,
        data: rml_amf0::serialize(&values.to_vec()).unwrap().into(),
    }
}

/// `emsg` of a rendition: scheme, time and duration in its timescale, id, payload; and whether it stands in front of the chunk
/// that has its time, or the one after.
fn messages(rendition: &Rendition) -> Vec<(String, u64, u32, u32, Vec<u8>)> {
    let (mut at, mut messages) = (0, Vec::new());
    let bytes = &rendition.bytes;
    while let Some(header) = bytes.get(at..at + 8) {
        let size = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        if &header[4..] == b"emsg" {
            let body = &bytes[at + 8..at + size];
            let number = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
            assert_eq!(number(0), 0x0100_0000, "version 1");
            let time = u64::from(number(8)) << 32 | u64::from(number(12));
            let end = 24 + body[24..].iter().position(|byte| *byte == 0).unwrap();
            let scheme = String::from_utf8(body[24..end].to_vec()).unwrap();
            assert_eq!(body[end + 1], 0, "no value");
            messages.push((scheme, time, number(16), number(20), body[end + 2..].to_vec()));
        }
        at += size;
    }
    messages
}

fn playlist(played: &Played, name: &str, directives: Directives) -> String {
    let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
    match live.playlist(&name.parse().unwrap(), directives, None) {
        Ok(Found::Ready(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn ranges(playlist: &str) -> Vec<&str> {
    playlist.lines().filter(|line| line.starts_with("#EXT-X-DATERANGE:")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_in_all_renditions_at_their_time_and_in_all_playlists() {
    for passthrough in [Passthrough::Off, Passthrough::Top] {
        let arguments = &["-bf", "2", "-g", "25", "-keyint_min", "25", "-sc_threshold", "0"];
        let Some(track) = made("testsrc2=s=320x180:r=25:d=4", arguments) else { return };
        let mut tags = Tags::default();
        tags.video(VideoCodec::Avc, &track, 900_000);
        let first = track.frames[0].pts;
        tags.audio(&[0x11, 0x90], 48_000, 900_000 + first, 187);
        let began = ((900_000 + first) / 90) as u32;
        let timed = [
            // In the middle of a segment, before the last frame of its part is sent, so that it comes in time; sent again, as by
            // a relay that is taken up.
            message(began + 1450, "onAdCue", CUE),
            message(began + 1450, "onAdCue", CUE),
            message(began + 2000, "onTextData", "hello \"you\""),
            message(began + 2500, "onTextData", &"x".repeat(5000)),
            // It comes first: its moment is the beginning.
            message(0, "onCuePoint", "now"),
        ];
        tags.0.extend(timed);
        let played = play(passthrough, tags).await;

        let start = played.video().next().unwrap().frames[0].pts;
        let near =
            |time: u64, seconds: f64| ((time as Ticks - start) as f64 / 90_000.0 - seconds).abs() < 0.06;
        for rendition in played.video() {
            let name = &rendition.id;
            let messages = messages(rendition);
            let schemes: Vec<_> = messages.iter().map(|(scheme, ..)| scheme.as_str()).collect();
            // The splice once more where the next segment begins.
            assert_eq!(schemes, [ID3, SCTE35, SCTE35, ID3], "{passthrough:?} {name}");
            assert_eq!(messages[1], messages[2]);
            let (_, time, duration, _, section) = &messages[1];
            assert!(near(*time, 1.45) && *duration == 0x52_CCF5, "{name} {time}");
            assert_eq!(media::scte35::parse(section).unwrap().event, Some(0x4800_008F));
            let (_, time, _, _, tag) = &messages[3];
            assert!(near(*time, 2.0), "{name} {time}");
            assert!(
                tag.ends_with(b"\x03onTextData\0\"hello \\\"you\\\"\""),
                "{}",
                String::from_utf8_lossy(tag)
            );
            let (_, time, _, _, tag) = &messages[0];
            assert!(near(*time, 0.0) && tag.ends_with(b"\"now\""), "{name} {time}");
        }
        let audio = played.renditions.iter().find(|rendition| !rendition.video).unwrap();
        assert!(messages(audio).is_empty(), "once is enough");

        let whole = playlist(&played, "180p", Directives::default());
        let [stray, splice, text] = ranges(&whole)[..] else { panic!("{whole}") };
        let section = hex_of(&messages(played.video().next().unwrap())[1].4);
        assert!(splice.starts_with("#EXT-X-DATERANGE:ID=\"splice-1207959695-"), "{splice}");
        assert!(splice.ends_with(&format!(",PLANNED-DURATION=60.294,SCTE35-OUT=0x{section}")), "{splice}");
        assert!(
            text.ends_with(",CLASS=\"onTextData\",DURATION=0.000,X-DATA=\"%22hello \\%22you\\%22%22\""),
            "{text}"
        );
        assert!(stray.contains(",CLASS=\"onCuePoint\""), "{stray}");
        assert_eq!(ranges(&playlist(&played, "audio", Directives::default())), [stray, splice, text]);
        let live = played.shared.stream(&"demo".parse().unwrap()).unwrap();
        let mpd = live.mpd(1500, 0, "/time", None).unwrap();
        assert_eq!(mpd.matches("<InbandEventStream ").count(), 2, "{mpd}");
        let metrics = &played.shared.metrics;
        let count = |kind| metrics.events.get_or_create(&Kind { kind }).get();
        assert_eq!((count("scte35"), count("data")), (1, 2));
        assert_eq!(metrics.events_refused.get_or_create(&Reason { reason: "size" }).get(), 1);
    }
}
