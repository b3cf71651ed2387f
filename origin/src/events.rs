//! Events that a broadcaster sends in data messages: what they say, how they are written into segments and playlists, and
//! how many are taken.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use media::event::{Event, What, hex_of};
use media::flv::message_name;
use media::scte35;
use media::time::{Ticks, Timescale};
use rml_amf0::Amf0Value;
use transcode::cmaf::EventMessage;

use crate::timeline::Anchor;

/// Longest data message that becomes an event, in bytes as it came and as JSON: players are sent it several times.
pub const MAX_EVENT_BYTES: usize = 4 << 10;

/// Objects within objects, as values are read: encoders nest two or three.
const MAX_DEPTH: usize = 8;

/// Events of a stream within [`RATE_WINDOW_MS`] of its media: cues come once in a while, telemetry a few times a second.
const MAX_RATE: usize = 50;

/// Over which events are counted, in milliseconds of media.
const RATE_WINDOW_MS: i64 = 10_000;

/// Events of a broadcast that are remembered: of a window, where they come as often as they may.
pub(crate) const MAX_EVENTS: usize = 256;

/// How long a break is listed whose end nobody said, 90 kHz.
const MAX_OPEN: Ticks = 3600 * 90_000;

/// Scheme of SCTE 35 in `emsg` boxes and MPDs (ANSI/SCTE 214-3, 7.3.2), and the class of its date ranges.
pub const SCTE35: &str = "urn:scte:scte35:2013:bin";

/// Scheme of ID3 tags in `emsg` boxes (Carriage of ID3 Timed Metadata in CMAF, AOM).
pub const ID3: &str = "https://aomedia.org/emsg/ID3";

/// Why a data message is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// It has more bytes than [`MAX_EVENT_BYTES`].
    Size,
    /// More came than may.
    Rate,
    /// It cannot be read.
    Unreadable,
}

impl Refused {
    /// Fit for a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refused::Size => "size",
            Refused::Rate => "rate",
            Refused::Unreadable => "unreadable",
        }
    }
}

/// What a data message says. One that carries SCTE 35 anywhere, as base64, is that: encoders put it into different places.
pub fn read(script: &[u8]) -> Result<What, Refused> {
    if script.len() > MAX_EVENT_BYTES {
        return Err(Refused::Size);
    }
    let values = rml_amf0::deserialize(&mut &script[..]).map_err(|_| Refused::Unreadable)?;
    let Some(name) = message_name(script) else { return Err(Refused::Unreadable) };
    let values = values.get(1..).unwrap_or_default();
    if let Some(section) = values.iter().find_map(|value| splice_in(value, 0)) {
        return Ok(What::Scte35(section));
    }
    let json = match values {
        [one] => json(one, 0),
        all => serde_json::Value::Array(all.iter().map(|value| json(value, 0)).collect()),
    };
    let json = json.to_string();
    if json.len() > MAX_EVENT_BYTES {
        return Err(Refused::Size);
    }
    Ok(What::Data { name: name.into(), json: json.into() })
}

fn splice_in(value: &Amf0Value, depth: usize) -> Option<Bytes> {
    match value {
        Amf0Value::Utf8String(text) => {
            let section = base64(text)?;
            scte35::parse(&section).is_ok().then(|| section.into())
        }
        Amf0Value::Object(fields) if depth < MAX_DEPTH => {
            fields.values().find_map(|value| splice_in(value, depth + 1))
        }
        Amf0Value::StrictArray(values) if depth < MAX_DEPTH => {
            values.iter().find_map(|value| splice_in(value, depth + 1))
        }
        _ => None,
    }
}

fn json(value: &Amf0Value, depth: usize) -> serde_json::Value {
    use serde_json::Value;
    match value {
        _ if depth >= MAX_DEPTH => Value::Null,
        Amf0Value::Number(number) => Value::from(*number),
        Amf0Value::Boolean(truth) => Value::Bool(*truth),
        Amf0Value::Utf8String(text) => Value::String(text.clone()),
        Amf0Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            sorted.into_iter().map(|(name, value)| (name.clone(), json(value, depth + 1))).collect()
        }
        Amf0Value::StrictArray(values) => values.iter().map(|value| json(value, depth + 1)).collect(),
        Amf0Value::Null | Amf0Value::Undefined => Value::Null,
    }
}

/// RFC 4648, 4; with padding or without.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    if !text.starts_with('/') || text.len() > scte35::MAX_SECTION_BYTES * 4 / 3 + 4 {
        return None;
    }
    let (mut out, mut bits, mut count) = (Vec::with_capacity(text.len() * 3 / 4), 0u32, 0);
    for byte in text.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

/// How often events may come.
#[derive(Debug, Default)]
pub struct Limit {
    /// Source milliseconds of those that were taken.
    taken: VecDeque<i64>,
}

impl Limit {
    /// Whether one more may be taken at `ms`. Time that jumps back begins anew.
    pub fn allows(&mut self, ms: i64) -> bool {
        let recent = |taken: &i64| (0..RATE_WINDOW_MS).contains(&(ms - taken));
        while self.taken.front().is_some_and(|taken| !recent(taken)) {
            self.taken.pop_front();
        }
        let allowed = self.taken.len() < MAX_RATE;
        if allowed {
            self.taken.push_back(ms);
        }
        allowed
    }
}

/// An event as it is written into a segment of a track of this timescale; `not_before` is the first presentation time of the
/// chunk that it stands in front of.
pub fn message(event: &Event, timescale: Timescale, not_before: Ticks) -> EventMessage {
    let ticks = |ticks| Timescale::VIDEO.rescale(ticks, timescale);
    let (scheme, duration, payload) = match &event.what {
        What::Scte35(section) => {
            let duration = scte35::parse(section).ok().and_then(|splice| splice.duration);
            (SCTE35, duration, section.clone())
        }
        What::Data { name, json } => (ID3, None, id3(name, json)),
    };
    EventMessage {
        scheme,
        timescale,
        at: ticks(event.at).max(not_before),
        duration: duration.map(ticks),
        id: event.id(),
        payload,
    }
}

/// An ID3v2.4 tag with one user-defined text: its description is the name of the message, its value the JSON.
fn id3(name: &str, json: &str) -> Bytes {
    let text_bytes = 1 + name.len() + 1 + json.len();
    let mut tag = Vec::with_capacity(20 + text_bytes);
    tag.extend(b"ID3\x04\0\0");
    tag.extend(syncsafe(10 + text_bytes));
    tag.extend(b"TXXX");
    tag.extend(syncsafe(text_bytes));
    // No flags; UTF-8.
    tag.extend([0, 0, 3]);
    tag.extend(name.as_bytes());
    tag.push(0);
    tag.extend(json.as_bytes());
    tag.into()
}

/// Seven bits a byte (ID3v2.4 structure, 6.2).
fn syncsafe(number: usize) -> [u8; 4] {
    [21, 14, 7, 0].map(|shift| (number >> shift) as u8 & 0x7F)
}

/// One EXT-X-DATERANGE (RFC 8216bis, 4.4.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DateRange {
    /// Unique in the broadcast.
    pub id: String,
    /// Where it begins, 90 kHz.
    start: Ticks,
    /// Until when it is of interest, 90 kHz.
    until: Ticks,
    attributes: String,
}

impl DateRange {
    /// The tag, on a line of its own.
    pub fn write(&self, out: &mut String, anchor: Anchor) {
        let DateRange { id, start, attributes, .. } = self;
        put!(
            out,
            "#EXT-X-DATERANGE:ID=\"{id}\",START-DATE=\"{}\"{attributes}\n",
            anchor.wall(*start, Timescale::VIDEO)
        );
    }
}

/// The date ranges that these events make, in order of time: a break that begins and ends is one (4.4.5.1.1).
pub fn date_ranges<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<DateRange> {
    struct Range<'a> {
        event: &'a Event,
        splice: Option<scte35::Splice>,
        ended: Option<&'a Event>,
    }
    let mut ranges: Vec<Range<'_>> = Vec::new();
    for event in events {
        let splice = match &event.what {
            What::Scte35(section) => scte35::parse(section).ok(),
            What::Data { .. } => None,
        };
        let open = |range: &Range<'_>| {
            range.splice.zip(splice).is_some_and(|(out, now)| {
                out.what == scte35::What::Out && range.ended.is_none() && out.event == now.event
            })
        };
        match splice.map(|splice| splice.what) {
            Some(scte35::What::In) => match ranges.iter_mut().rev().find(|range| open(range)) {
                Some(range) => range.ended = Some(event),
                None => ranges.push(Range { event, splice, ended: None }),
            },
            // Said once more, for those who did not hear it.
            Some(scte35::What::Out) if ranges.iter().any(open) => {}
            _ => ranges.push(Range { event, splice, ended: None }),
        }
    }
    let seconds = |ticks: Ticks| format!("{:.3}", Timescale::VIDEO.seconds(ticks));
    let date_range = |range: &Range<'_>| {
        let Range { event, splice, ended } = range;
        let start = event.at;
        let id = event.id();
        match (&event.what, splice) {
            (What::Scte35(section), Some(splice)) => {
                let mut attributes = format!(",CLASS=\"{SCTE35}\"");
                let (name, planned) = match splice.what {
                    scte35::What::Out => ("OUT", splice.duration),
                    scte35::What::In => ("IN", None),
                    scte35::What::Other => ("CMD", None),
                };
                if let Some(planned) = planned {
                    put!(attributes, ",PLANNED-DURATION={}", seconds(planned));
                }
                if let Some(ended) = ended {
                    put!(attributes, ",DURATION={}", seconds((ended.at - start).max(0)));
                } else if splice.what != scte35::What::Out {
                    attributes.push_str(",DURATION=0.000");
                }
                put!(attributes, ",SCTE35-{name}=0x{}", hex_of(section));
                if let Some(Event { what: What::Scte35(section), .. }) = ended {
                    put!(attributes, ",SCTE35-IN=0x{}", hex_of(section));
                }
                let until = match (ended, splice.what) {
                    (Some(ended), _) => ended.at,
                    (None, scte35::What::Out) => start + planned.unwrap_or(MAX_OPEN),
                    (None, _) => start,
                };
                let number = splice.event.unwrap_or_default();
                DateRange { id: format!("splice-{number}-{id:08x}"), start, until, attributes }
            }
            (What::Data { name, json }, _) => {
                let attributes =
                    format!(",CLASS=\"{}\",DURATION=0.000,X-DATA=\"{}\"", escaped(name), escaped(json));
                DateRange { id: format!("data-{id:08x}"), start, until: start, attributes }
            }
            // Sections are read before they are taken.
            (What::Scte35(_), None) => {
                DateRange { id: format!("splice-{id:08x}"), start, until: start, attributes: String::new() }
            }
        }
    };
    ranges.iter().map(date_range).collect()
}

/// What a playlist that begins at `from` lists of date ranges, and those of which it lists no more what it did `before` ago.
pub fn listed(ranges: Vec<DateRange>, from: Ticks, before: Ticks) -> (Vec<DateRange>, Vec<DateRange>) {
    let (listed, gone): (Vec<_>, Vec<_>) = ranges.into_iter().partition(|range| range.until >= from);
    (listed, gone.into_iter().filter(|range| range.until >= from - before).collect())
}

/// Forgets the events, in order of time, of ranges that ended before `from`, and the oldest beyond [`MAX_EVENTS`].
pub(crate) fn forget(events: &mut VecDeque<Event>, from: Ticks) {
    events.drain(..events.len().saturating_sub(MAX_EVENTS));
    let kept = date_ranges(events.iter()).into_iter().filter(|range| range.until >= from);
    let kept = kept.map(|range| range.start).min();
    events.retain(|event| kept.is_some_and(|kept| event.at >= kept));
}

/// As it may stand in a quoted string: what would end that, and what is not printable, as `%` and two digits, as in URLs.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '%' => put!(out, "%{:02X}", character as u32),
            control if control.is_control() => {
                let mut bytes = [0; 4];
                control.encode_utf8(&mut bytes).bytes().for_each(|byte| put!(out, "%{byte:02X}"));
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "/DAvAAAAAAAA///wFAVIAACPf+/+c2nALv4AUsz1AAAAAAAKAAhDVUVJAAABNWLbowo=";
    const ANCHOR: Anchor = Anchor { unix_ms: 1_700_000_000_000, ticks: 90_000 };

    fn string(text: &str) -> Amf0Value {
        Amf0Value::Utf8String(text.into())
    }

    fn object(fields: &[(&str, Amf0Value)]) -> Amf0Value {
        Amf0Value::Object(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    fn script(values: Vec<Amf0Value>) -> Vec<u8> {
        rml_amf0::serialize(&values).unwrap()
    }

    /// A splice_insert of event 7: out for ten seconds, or in.
    fn splice(out: bool) -> What {
        let mut section = vec![0xFC, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xF0, 0, 5, 0, 0, 0, 7, 0x7F];
        if out {
            section.extend([0xFF, 0xFE]);
            section.extend(900_000u32.to_be_bytes());
        } else {
            section.push(0x5F);
        }
        section.extend([0, 1, 0, 0, 0, 0]);
        section[2] = section.len() as u8 + 4 - 3;
        let crc = scte35::crc32(&section);
        section.extend(crc.to_be_bytes());
        What::Scte35(section.into())
    }

    fn text(at: Ticks, json: &str) -> Event {
        Event { at, what: What::Data { name: "onTextData".into(), json: json.into() } }
    }

    fn tags(ranges: &[DateRange]) -> Vec<String> {
        let tag = |range: &DateRange| {
            let mut out = String::new();
            range.write(&mut out, ANCHOR);
            out.trim_end().to_owned()
        };
        ranges.iter().map(tag).collect()
    }

    #[test]
    fn splices_are_found_wherever_encoders_put_them() {
        let section = scte35::parse(&base64(OUT).unwrap()).unwrap();
        assert_eq!((section.what, section.event), (scte35::What::Out, Some(0x4800_008F)));
        for values in [
            vec![
                string("onAdCue"),
                object(&[("type", string("scte35")), ("cue", string(OUT)), ("id", string("1"))]),
            ],
            vec![
                string("onCuePoint"),
                object(&[
                    ("name", string("scte35")),
                    ("type", string("event")),
                    ("parameters", object(&[("message", string(OUT.trim_end_matches('=')))])),
                ]),
            ],
            vec![string("onSCTE35"), Amf0Value::StrictArray(vec![Amf0Value::Null, string(OUT)])],
        ] {
            assert_eq!(read(&script(values)), Ok(What::Scte35(base64(OUT).unwrap().into())));
        }
    }

    #[test]
    fn other_messages_are_json() {
        let check = |values: Vec<Amf0Value>, expected: &str| match read(&script(values)) {
            Ok(What::Data { name, json }) => assert_eq!((&*name, &*json), ("onTextData", expected)),
            other => panic!("{other:?}"),
        };
        let name = string("onTextData");
        let fields = [("text", string("a \"b\"")), ("language", string("en")), ("n", Amf0Value::Number(1.5))];
        check(vec![name.clone(), object(&fields)], r#"{"language":"en","n":1.5,"text":"a \"b\""}"#);
        check(vec![name.clone(), string("x"), Amf0Value::Boolean(true)], r#"["x",true]"#);
        check(vec![name.clone()], "[]");
        // Almost a splice.
        let damaged = OUT.replace("FAVI", "FAVJ");
        check(vec![name.clone(), object(&[("cue", string("/DAv"))])], r#"{"cue":"/DAv"}"#);
        check(vec![name.clone(), string(&damaged)], &format!("{damaged:?}"));
        assert_eq!(read(&script(vec![name, string(&"x".repeat(MAX_EVENT_BYTES))])), Err(Refused::Size));
        assert_eq!(read(&[2, 0, 9, b'x']), Err(Refused::Unreadable));
        assert_eq!(read(&[5]), Err(Refused::Unreadable));
    }

    #[test]
    fn a_break_is_one_date_range_from_out_to_in() {
        let out = Event { at: 90_000, what: splice(true) };
        let again = Event { at: 180_000, ..out.clone() };
        let within =
            Event { at: 200_000, what: What::Data { name: "a\"b".into(), json: "{\"c\":\"%\\n\"}".into() } };
        let back = Event { at: 540_000, what: splice(false) };
        let number = |event: &Event| format!("{:08x}", event.id());
        let hex = |event: &Event| match &event.what {
            What::Scte35(section) => hex_of(section),
            What::Data { .. } => String::new(),
        };
        let head = format!(
            "#EXT-X-DATERANGE:ID=\"splice-7-{}\",START-DATE=\"2023-11-14T22:13:20.000Z\",CLASS=\"{SCTE35}\",PLANNED-DURATION=10.000",
            number(&out)
        );
        let events = [out.clone(), again, within.clone()];
        let open = date_ranges(events.iter());
        let said = format!(
            "#EXT-X-DATERANGE:ID=\"data-{}\",START-DATE=\"2023-11-14T22:13:21.222Z\",CLASS=\"a%22b\",DURATION=0.000,\
             X-DATA=\"{{%22c%22:%22%25\\n%22}}\"",
            number(&within)
        );
        assert_eq!(tags(&open), [format!("{head},SCTE35-OUT=0x{}", hex(&out)), said.clone()]);
        let events = [out.clone(), within, back.clone()];
        let closed = date_ranges(events.iter());
        let whole = format!("{head},DURATION=5.000,SCTE35-OUT=0x{},SCTE35-IN=0x{}", hex(&out), hex(&back));
        assert_eq!(tags(&closed), [whole, said]);
        let alone = date_ranges([back].iter());
        assert!(tags(&alone)[0].contains(",DURATION=0.000,SCTE35-IN=0x"), "{alone:?}");
    }

    #[test]
    fn ranges_are_listed_while_they_last_and_named_when_they_have_left() {
        let events = [Event { at: 90_000, what: splice(true) }, text(180_000, "1"), text(1_800_000, "2")];
        for (from, expected) in
            [(0, (3, 0)), (180_000, (3, 0)), (180_001, (2, 1)), (990_001, (1, 1)), (1_800_001, (0, 1))]
        {
            let (listed, gone) = listed(date_ranges(events.iter()), from, 540_000);
            assert_eq!((listed.len(), gone.len()), expected, "{from}");
        }
        let mut kept = VecDeque::from(events);
        forget(&mut kept, 600_000);
        assert_eq!(kept.len(), 3, "the break goes on");
        forget(&mut kept, 1_000_000);
        assert_eq!(kept.len(), 1);
        kept.extend((0..2 * MAX_EVENTS as Ticks).map(|index| text(2_000_000 + index, "x")));
        forget(&mut kept, 0);
        assert_eq!((kept.len(), kept.back().map(|event| event.at)), (MAX_EVENTS, Some(2_000_511)));
    }

    #[test]
    fn so_many_may_come_and_no_more() {
        let mut limit = Limit::default();
        let taken = (0..200).filter(|index| limit.allows(index * 10)).count();
        assert_eq!(taken, MAX_RATE);
        assert!(!limit.allows(9_999) && limit.allows(10_000));
        assert!(limit.allows(5), "time began anew");
    }

    #[test]
    fn text_becomes_a_tag_that_players_read() {
        let event = text(180_000, "{}");
        let message = message(&event, Timescale::VIDEO, 200_000);
        assert_eq!((message.scheme, message.at, message.duration), (ID3, 200_000, None));
        let expected = b"ID3\x04\0\0\0\0\0\x18TXXX\0\0\0\x0e\0\0\x03onTextData\0{}";
        assert_eq!(&message.payload[..], expected);
        let splice = Event { at: 90_000, what: splice(true) };
        let said = super::message(&splice, Timescale::VIDEO, 0);
        assert_eq!((said.scheme, said.at, said.duration), (SCTE35, 90_000, Some(900_000)));
    }
}
