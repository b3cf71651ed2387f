//! CMAF: the boxes around coded samples, as bytes. One track per file, track id 1, no edit list (ISO/IEC
//! 23000-19, ISO/IEC 14496-12).
#![deny(clippy::disallowed_methods)]

use std::ops::{Deref, DerefMut};

use bytes::{BufMut, Bytes, BytesMut};
use media::codec::{OpusConfig, VideoCodec, VideoConfig};
use media::{Sample, Ticks, Timescale};

/// The header of a video rendition (`ftyp` and `moov`; ISO/IEC 14496-15; AV1 and VP codec ISO media file format bindings), for
/// samples of H.264 and HEVC with length prefixes of 4 bytes. `config` is of the coded pictures. Parameter sets of H.264 and HEVC
/// are in the header only (`avc1`, `hvc1`).
pub fn source_init(timescale: Timescale, config: &VideoConfig) -> Bytes {
    let VideoConfig { width, height, sar, .. } = *config;
    let kinds: Kinds = match config.codec {
        VideoCodec::Avc => (b"avc1", b"avcC"),
        VideoCodec::Hevc => (b"hvc1", b"hvcC"),
        VideoCodec::Av1 => (b"av01", b"av1C"),
        VideoCodec::Vp9 => (b"vp09", b"vpcC"),
    };
    coded_init(timescale, kinds, width, height, sar, &config.record)
}

/// A sample entry, and the box in it that holds the configuration record.
type Kinds = (&'static [u8; 4], &'static [u8; 4]);

fn coded_init(
    timescale: Timescale,
    (entry, configuration): Kinds,
    width: u32,
    height: u32,
    sar: (u32, u32),
    record: &[u8],
) -> Bytes {
    let shown_width = u64::from(width) * u64::from(sar.0) * 0x1_0000 / u64::from(sar.1.max(1));
    let track = Track {
        timescale,
        handler: *b"vide",
        name: b"Video\0",
        volume: 0,
        size: (clamp(shown_width), clamp(u64::from(height) << 16)),
    };
    let media_header = |w: &mut Writer| {
        // Flags 1 by definition (14496-12 section 12.1.2); graphics mode copy, no colour.
        w.full_box(b"vmhd", 0, 1, |w| w.put_bytes(0, 8));
    };
    let sample_entry = |w: &mut Writer| {
        w.boxed(entry, |w| {
            w.put_bytes(0, 6);
            w.put_u16(1);
            w.put_bytes(0, 16);
            w.put_u16(width.min(0xffff) as u16);
            w.put_u16(height.min(0xffff) as u16);
            // 72 dpi both ways, one frame per sample.
            w.put_u32(0x48_0000);
            w.put_u32(0x48_0000);
            w.put_u32(0);
            w.put_u16(1);
            // No compressor name; depth 24; no colour table.
            w.put_bytes(0, 32);
            w.put_u16(24);
            w.put_i16(-1);
            match configuration {
                b"vpcC" => w.full_box(b"vpcC", 1, 0, |w| w.put_slice(record)),
                _ => w.boxed(configuration, |w| w.put_slice(record)),
            }
            if sar.0 != sar.1 {
                w.boxed(b"pasp", |w| {
                    w.put_u32(sar.0);
                    w.put_u32(sar.1);
                });
            }
        });
    };
    let brands: &[&[u8; 4]] = match entry {
        b"avc1" => &[b"iso6", b"cmfc", b"dash", b"avc1"],
        _ => &[b"iso6", b"cmfc", b"dash"],
    };
    init(&track, brands, media_header, sample_entry)
}

/// The header of an AAC rendition (`ftyp` and `moov`).
///
/// `sample_rate` in hertz, `audio_specific_config` as in ISO/IEC 14496-3 section 1.6.2.1, `bitrate_bps` the
/// nominal one (0 if unknown).
pub fn audio_init(
    timescale: Timescale,
    sample_rate: u32,
    channels: u16,
    audio_specific_config: &[u8],
    bitrate_bps: u32,
) -> Bytes {
    let track = Track { timescale, handler: *b"soun", name: b"Audio\0", volume: 0x100, size: (0, 0) };
    let media_header = |w: &mut Writer| w.full_box(b"smhd", 0, 0, |w| w.put_bytes(0, 4));
    let sample_entry = |w: &mut Writer| {
        w.boxed(b"mp4a", |w| {
            w.put_bytes(0, 6);
            w.put_u16(1);
            w.put_bytes(0, 8);
            w.put_u16(channels);
            w.put_u16(16);
            w.put_u32(0);
            // 16.16: rates of 65536 and above do not fit and are left to the AudioSpecificConfig.
            w.put_u32(u16::try_from(sample_rate).map_or(0, |rate| u32::from(rate) << 16));
            w.full_box(b"esds", 0, 0, |w| elementary_stream(w, audio_specific_config, bitrate_bps));
        });
    };
    init(&track, &[b"iso6", b"cmfc", b"dash"], media_header, sample_entry)
}

/// The header of an Opus rendition (Encapsulation of Opus in ISO Base Media File Format, 4.3), timed at 48 kHz. What the
/// decoder gives before `pre_skip` is not cut off: samples are heard at their times.
pub fn opus_init(config: &OpusConfig) -> Bytes {
    let OpusConfig { record, channels, .. } = config;
    let track = Track {
        timescale: Timescale::OPUS,
        handler: *b"soun",
        name: b"Audio\0",
        volume: 0x100,
        size: (0, 0),
    };
    let media_header = |w: &mut Writer| w.full_box(b"smhd", 0, 0, |w| w.put_bytes(0, 4));
    // Little-endian in the identification header (RFC 7845, 5.1), which the configuration was read from; big-endian here.
    let byte = |at: usize| record.get(at).copied().unwrap_or_default();
    let sample_entry = |w: &mut Writer| {
        w.boxed(b"Opus", |w| {
            w.put_bytes(0, 6);
            w.put_u16(1);
            w.put_bytes(0, 8);
            w.put_u16(*channels as u16);
            w.put_u16(16);
            w.put_u32(0);
            w.put_u32(Timescale::OPUS.per_second() << 16);
            w.boxed(b"dOps", |w| {
                w.put_u8(0);
                w.put_u8(byte(9));
                w.put_slice(&[byte(11), byte(10)]);
                w.put_slice(&[byte(15), byte(14), byte(13), byte(12)]);
                w.put_slice(&[byte(17), byte(16)]);
                w.put_u8(byte(18));
                if byte(18) != 0 {
                    w.put_slice(record.get(19..21 + *channels as usize).unwrap_or_default());
                }
            });
        });
    };
    init(&track, &[b"iso6", b"cmfc", b"dash"], media_header, sample_entry)
}

/// When a sample went into the encoder: ProducerReferenceTimeBox (ISO/IEC 14496-12 section 8.16.5) with flags 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReferenceTime {
    /// Microseconds since 1970.
    pub unix_us: i64,
    /// That sample's presentation time, in ticks of its track; not negative.
    pub media_time: i64,
}

/// What stands in front of a chunk for players to act on: EventMessageBox version 1 (ISO/IEC 23009-1, 5.10.3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventMessage {
    /// Says what the payload is; a URI without zero bytes.
    pub scheme: &'static str,
    /// Ticks per second of the times: the track's.
    pub timescale: Timescale,
    /// Presentation time; not negative.
    pub at: Ticks,
    /// How long it lasts, if that is known.
    pub duration: Option<Ticks>,
    /// Tells one event of its scheme from another: messages with the same number are one.
    pub id: u32,
    /// What it says.
    pub payload: Bytes,
}

/// One CMAF chunk (`moof` and `mdat`) of the samples given, which follow one another without a gap in
/// decode order; empty without samples.
///
/// `sequence` grows by one from chunk to chunk of a rendition. The first chunk of a segment begins with a
/// `styp`. The base decode time is the first sample's `dts`, which must not be negative. Composition
/// offsets may be. With a `reference` the chunk says when its media were made (`prft`); `events` stand in front of it.
pub fn chunk(
    sequence: u32,
    samples: &[Sample],
    first_of_segment: bool,
    reference: Option<ReferenceTime>,
    events: &[EventMessage],
) -> Bytes {
    let payload: usize = samples.iter().map(|sample| sample.data.len()).sum();
    let mut w = Writer(BytesMut::with_capacity(payload + 16 * samples.len() + 192));
    write_chunk(&mut w, sequence, samples, first_of_segment, reference, events);
    w.0.freeze()
}

/// The first part of a video segment: as [`chunk`], but its keyframe is a chunk of its own, so that a range of the segment
/// is a picture that can be shown alone ([`lead_len`]). Takes two numbers of `sequence`.
pub fn lead_part(
    sequence: u32,
    samples: &[Sample],
    reference: Option<ReferenceTime>,
    events: &[EventMessage],
) -> Bytes {
    let payload: usize = samples.iter().map(|sample| sample.data.len()).sum();
    let mut w = Writer(BytesMut::with_capacity(payload + 16 * samples.len() + 288));
    let (keyframe, others) = samples.split_at(samples.len().min(1));
    write_chunk(&mut w, sequence, keyframe, true, reference, events);
    write_chunk(&mut w, sequence.wrapping_add(1), others, false, None, &[]);
    w.0.freeze()
}

/// Bytes of a segment, of which `bytes` are the first, up to the end of its first `mdat`; `None` if that does not begin in
/// them.
pub fn lead_len(bytes: &[u8]) -> Option<u64> {
    let mut at = 0_usize;
    loop {
        let header = bytes.get(at..at.checked_add(8)?)?;
        let size = u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        if size < 8 {
            return None;
        }
        at = at.checked_add(size)?;
        if &header[4..] == b"mdat" {
            return Some(at as u64);
        }
    }
}

/// Writes nothing without samples.
fn write_chunk(
    w: &mut Writer,
    sequence: u32,
    samples: &[Sample],
    first_of_segment: bool,
    reference: Option<ReferenceTime>,
    events: &[EventMessage],
) {
    let Some(first) = samples.first() else { return };
    if first_of_segment {
        segment_type(w);
    }
    if let Some(ReferenceTime { unix_us, media_time }) = reference {
        w.full_box(b"prft", 1, 0, |w| {
            w.put_u32(TRACK_ID);
            w.put_u64(ntp(unix_us));
            w.put_u64(media_time.max(0) as u64);
        });
    }
    for EventMessage { scheme, timescale, at, duration, id, payload } in events {
        w.full_box(b"emsg", 1, 0, |w| {
            w.put_u32(timescale.per_second());
            w.put_u64((*at).max(0) as u64);
            // All ones: nobody knows.
            w.put_u32(duration.map_or(u32::MAX, |duration| clamp(duration.max(0) as u64)));
            w.put_u32(*id);
            w.put_slice(scheme.as_bytes());
            // No value to the scheme.
            w.put_slice(&[0, 0]);
            w.put_slice(payload);
        });
    }
    let moof_at = w.len();
    let mut offset_at = 0;
    w.boxed(b"moof", |w| {
        w.full_box(b"mfhd", 0, 0, |w| w.put_u32(sequence));
        w.boxed(b"traf", |w| {
            w.full_box(b"tfhd", 0, DEFAULT_BASE_IS_MOOF, |w| w.put_u32(TRACK_ID));
            w.full_box(b"tfdt", 1, 0, |w| w.put_u64(first.dts.max(0) as u64));
            offset_at = track_run(w, samples);
        });
    });
    let data_offset = (w.len() - moof_at + 8) as u32;
    w[offset_at..offset_at + 4].copy_from_slice(&data_offset.to_be_bytes());
    w.boxed(b"mdat", |w| {
        for sample in samples {
            w.put_slice(&sample.data);
        }
    });
}

/// A segment without a chunk: what stands where no media is.
pub fn empty_segment() -> Bytes {
    let mut w = Writer(BytesMut::new());
    segment_type(&mut w);
    w.0.freeze()
}

fn segment_type(w: &mut Writer) {
    w.boxed(b"styp", |w| brands(w, &[b"msdh", b"cmfs", b"cmff", b"cmfl"]));
}

/// An NTP timestamp (RFC 5905 section 6): 32 bits of seconds since 1900, which begin anew in 2036, and 32 of fractions.
fn ntp(unix_us: i64) -> u64 {
    const SECONDS_1900_TO_1970: i64 = 2_208_988_800;
    let seconds = (unix_us.div_euclid(1_000_000) + SECONDS_1900_TO_1970) as u32;
    let fraction = ((unix_us.rem_euclid(1_000_000) as u64) << 32) / 1_000_000;
    u64::from(seconds) << 32 | fraction
}

const TRACK_ID: u32 = 1;

/// `tfhd` flag, 14496-12 section 8.8.7.1.
const DEFAULT_BASE_IS_MOOF: u32 = 0x02_0000;

/// `trun` flags, 14496-12 section 8.8.8.1.
const DATA_OFFSET: u32 = 0x001;
const DURATION: u32 = 0x100;
const SIZE: u32 = 0x200;
const FLAGS: u32 = 0x400;
const COMPOSITION_OFFSET: u32 = 0x800;

/// Sample flags, 14496-12 section 8.8.3.1: depends on no other sample; depends on others and is no sync
/// sample.
const SYNC: u32 = 0x0200_0000;
const NON_SYNC: u32 = 0x0101_0000;

/// Writes the `trun` and returns where its data offset is to be filled in.
fn track_run(w: &mut Writer, samples: &[Sample]) -> usize {
    let reordered = samples.iter().any(|sample| sample.pts != sample.dts);
    let flags = DATA_OFFSET | DURATION | SIZE | FLAGS | if reordered { COMPOSITION_OFFSET } else { 0 };
    let mut offset_at = 0;
    w.full_box(b"trun", 1, flags, |w| {
        w.put_u32(samples.len() as u32);
        offset_at = w.len();
        w.put_u32(0);
        for sample in samples {
            w.put_u32(clamp(sample.duration.max(0) as u64));
            w.put_u32(sample.data.len() as u32);
            w.put_u32(if sample.key { SYNC } else { NON_SYNC });
            if reordered {
                let offset = sample.pts.saturating_sub(sample.dts);
                w.put_i32(offset.clamp(i32::MIN.into(), i32::MAX.into()) as i32);
            }
        }
    });
    offset_at
}

struct Track {
    timescale: Timescale,
    handler: [u8; 4],
    /// Terminated by a zero.
    name: &'static [u8],
    /// 8.8.
    volume: u16,
    /// 16.16.
    size: (u32, u32),
}

fn init(
    track: &Track,
    compatible: &[&[u8; 4]],
    media_header: impl FnOnce(&mut Writer),
    sample_entry: impl FnOnce(&mut Writer),
) -> Bytes {
    let mut w = Writer(BytesMut::with_capacity(1024));
    w.boxed(b"ftyp", |w| brands(w, compatible));
    w.boxed(b"moov", |w| {
        w.full_box(b"mvhd", 0, 0, |w| {
            // Created, modified: unknown. The movie's timescale counts nothing here; duration: in the
            // fragments.
            w.put_u64(0);
            w.put_u32(track.timescale.per_second());
            w.put_u32(0);
            // Rate and volume 1.
            w.put_u32(0x1_0000);
            w.put_u16(0x100);
            w.put_bytes(0, 10);
            w.matrix();
            w.put_bytes(0, 24);
            w.put_u32(TRACK_ID + 1);
        });
        w.boxed(b"trak", |w| {
            // Flags: enabled, in the movie, in its preview.
            w.full_box(b"tkhd", 0, 7, |w| {
                w.put_u64(0);
                w.put_u32(TRACK_ID);
                w.put_bytes(0, 16);
                w.put_bytes(0, 4);
                w.put_u16(track.volume);
                w.put_u16(0);
                w.matrix();
                w.put_u32(track.size.0);
                w.put_u32(track.size.1);
            });
            w.boxed(b"mdia", |w| {
                w.full_box(b"mdhd", 0, 0, |w| {
                    w.put_u64(0);
                    w.put_u32(track.timescale.per_second());
                    w.put_u32(0);
                    // Language "und", 5 bits a letter.
                    w.put_u16(0x55c4);
                    w.put_u16(0);
                });
                w.full_box(b"hdlr", 0, 0, |w| {
                    w.put_u32(0);
                    w.put_slice(&track.handler);
                    w.put_bytes(0, 12);
                    w.put_slice(track.name);
                });
                w.boxed(b"minf", |w| {
                    media_header(w);
                    w.boxed(b"dinf", |w| {
                        w.full_box(b"dref", 0, 0, |w| {
                            w.put_u32(1);
                            // Flag 1: the media is in this very file.
                            w.full_box(b"url ", 0, 1, |_| {});
                        });
                    });
                    w.boxed(b"stbl", |w| sample_table(w, sample_entry));
                });
            });
        });
        w.boxed(b"mvex", |w| {
            w.full_box(b"trex", 0, 0, |w| {
                w.put_u32(TRACK_ID);
                w.put_u32(1);
                w.put_bytes(0, 12);
            });
        });
    });
    w.0.freeze()
}

/// The description, and the tables that a fragmented file leaves empty.
fn sample_table(w: &mut Writer, sample_entry: impl FnOnce(&mut Writer)) {
    w.full_box(b"stsd", 0, 0, |w| {
        w.put_u32(1);
        sample_entry(w);
    });
    for kind in [b"stts", b"stsc"] {
        w.full_box(kind, 0, 0, |w| w.put_u32(0));
    }
    w.full_box(b"stsz", 0, 0, |w| w.put_u64(0));
    w.full_box(b"stco", 0, 0, |w| w.put_u32(0));
}

/// ES_Descriptor (ISO/IEC 14496-1 section 7.2.6.5) for AAC.
fn elementary_stream(w: &mut Writer, audio_specific_config: &[u8], bitrate_bps: u32) {
    w.descriptor(0x03, |w| {
        // ES_ID 0 as 14496-14 section 3.1.2 wants; no dependency, URL or clock.
        w.put_u16(0);
        w.put_u8(0);
        w.descriptor(0x04, |w| {
            // MPEG-4 audio; audio stream, reserved bit set.
            w.put_u8(0x40);
            w.put_u8(0x05 << 2 | 1);
            // Decoding buffer: unknown.
            w.put_bytes(0, 3);
            w.put_u32(bitrate_bps);
            w.put_u32(bitrate_bps);
            w.descriptor(0x05, |w| w.put_slice(audio_specific_config));
        });
        // SLConfigDescriptor: the one predefined for MP4.
        w.descriptor(0x06, |w| w.put_u8(2));
    });
}

/// The content of `ftyp` and `styp`: the first brand is the major one.
fn brands(w: &mut Writer, brands: &[&[u8; 4]]) {
    w.put_slice(brands[0]);
    w.put_u32(0);
    for brand in brands {
        w.put_slice(*brand);
    }
}

fn clamp(value: u64) -> u32 {
    value.min(u32::MAX.into()) as u32
}

/// Bytes with boxes whose sizes are filled in when they end.
struct Writer(BytesMut);

impl Writer {
    fn boxed(&mut self, kind: &[u8; 4], content: impl FnOnce(&mut Self)) {
        let at = self.len();
        self.put_u32(0);
        self.put_slice(kind);
        content(self);
        let size = (self.len() - at) as u32;
        self[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }

    fn full_box(&mut self, kind: &[u8; 4], version: u8, flags: u32, content: impl FnOnce(&mut Self)) {
        self.boxed(kind, |w| {
            w.put_u32(u32::from(version) << 24 | flags);
            content(w);
        });
    }

    /// A descriptor with its length in four bytes of 7 bits (14496-1 section 8.3.3).
    fn descriptor(&mut self, tag: u8, content: impl FnOnce(&mut Self)) {
        self.put_u8(tag);
        let at = self.len();
        self.put_u32(0);
        content(self);
        let length = self.len() - at - 4;
        for (index, shift) in [21, 14, 7, 0].into_iter().enumerate() {
            let more = if shift > 0 { 0x80 } else { 0 };
            self[at + index] = (length >> shift) as u8 & 0x7f | more;
        }
    }

    /// The unity matrix.
    fn matrix(&mut self) {
        for value in [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000] {
            self.put_u32(value);
        }
    }
}

impl Deref for Writer {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.0
    }
}

impl DerefMut for Writer {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use media::codec::AvcConfig;

    use super::*;

    /// What x264 writes for 638x358 at 30000/1001, with a sample aspect ratio of 1:1.
    const AVCC: &[u8] = &[
        0x01, 0x4d, 0x40, 0x1e, 0xff, 0xe1, 0x00, 0x18, 0x67, 0x4d, 0x40, 0x1e, 0xec, 0xa0, 0x50, 0x17, 0xf5,
        0x36, 0x02, 0x20, 0x00, 0x07, 0xd2, 0x00, 0x01, 0xd4, 0xc0, 0x1e, 0x2c, 0x5b, 0x2c, 0x00, 0x10, 0x00,
        0x56, 0x8e, 0xbe, 0xcb, 0x20,
    ];

    /// Boxes that hold boxes, and how many bytes come before those.
    fn inner_at(kind: &str) -> Option<usize> {
        match kind {
            "moov" | "trak" | "mdia" | "minf" | "dinf" | "stbl" | "mvex" | "moof" | "traf" => Some(0),
            "dref" | "stsd" => Some(8),
            "avc1" => Some(78),
            "mp4a" | "Opus" => Some(28),
            _ => None,
        }
    }

    /// Every box with its path and content; panics unless the boxes tile the bytes exactly.
    fn walk(path: &str, mut bytes: &[u8], out: &mut Vec<(String, Vec<u8>)>) {
        while !bytes.is_empty() {
            let size = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            let kind = std::str::from_utf8(&bytes[4..8]).unwrap();
            assert!(size >= 8 && size <= bytes.len(), "{path}/{kind}: {size} of {}", bytes.len());
            let path = format!("{path}/{kind}");
            let content = &bytes[8..size];
            out.push((path.clone(), content.to_vec()));
            if let Some(at) = inner_at(kind) {
                walk(&path, &content[at..], out);
            }
            bytes = &bytes[size..];
        }
    }

    fn boxes(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        walk("", bytes, &mut out);
        out
    }

    fn content<'a>(boxes: &'a [(String, Vec<u8>)], path: &str) -> &'a [u8] {
        let mut found = boxes.iter().filter(|(at, _)| at == path);
        let (_, content) = found.next().unwrap_or_else(|| panic!("no {path}"));
        assert!(found.next().is_none(), "two of {path}");
        content
    }

    /// Of H.264 pictures of this size; the shape of their pixels is that of the record.
    fn video_init(timescale: Timescale, width: u32, height: u32, avcc: &[u8]) -> Bytes {
        let record = Bytes::copy_from_slice(avcc);
        let sar = AvcConfig::parse(record.clone()).map_or((1, 1), |config| config.sar);
        let codec = VideoCodec::Avc;
        source_init(timescale, &VideoConfig { codec, record, width, height, sar, frame_rate: None })
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn sample(dts: i64, pts: i64, duration: i64, key: bool, data: &'static [u8]) -> Sample {
        Sample { dts, pts, duration, key, data: Bytes::from_static(data) }
    }

    #[test]
    fn events_stand_in_front_of_their_chunk() {
        let sample = Sample { dts: 0, pts: 0, duration: 3000, key: true, data: Bytes::from_static(b"x") };
        let event = |duration| EventMessage {
            scheme: "urn:x",
            timescale: Timescale::VIDEO,
            at: 0x1_0000_0002,
            duration,
            id: 7,
            payload: Bytes::from_static(b"payload"),
        };
        let events = [event(Some(90_000)), event(None)];
        let all = boxes(&chunk(1, std::slice::from_ref(&sample), true, None, &events));
        let names: Vec<_> = all.iter().map(|(path, _)| path.as_str()).take(4).collect();
        assert_eq!(names, ["/styp", "/emsg", "/emsg", "/moof"]);
        let expected =
            b"\x01\0\0\0\0\x01\x5F\x90\0\0\0\x01\0\0\0\x02\0\x01\x5F\x90\0\0\0\x07urn:x\0\0payload";
        assert_eq!(all[1].1, expected);
        assert_eq!(all[2].1[16..20], [0xFF; 4], "nobody knows how long");
    }

    #[test]
    fn a_segment_begins_with_its_keyframe_alone() {
        let samples = [
            sample(0, 0, 3000, true, b"key"),
            sample(3000, 3000, 3000, false, b"de"),
            sample(6000, 6000, 3000, false, b"f"),
        ];
        let reference = ReferenceTime { unix_us: 1_700_000_000_000_000, media_time: 0 };
        let bytes = lead_part(7, &samples, Some(reference), &[]);
        let lead = lead_len(&bytes).unwrap() as usize;
        assert_eq!(lead_len(&bytes[..lead - 3]), Some(lead as u64), "its header says so");
        for (bytes, sequence, time, paths) in [
            (&bytes[..lead], 7, 0, ["/styp", "/prft", "/moof"].as_slice()),
            (&bytes[lead..], 8, 3000, ["/moof"].as_slice()),
        ] {
            let boxes = boxes(bytes);
            let found: Vec<_> = boxes.iter().map(|(path, _)| path.as_str()).take(paths.len()).collect();
            assert_eq!(found, paths);
            assert_eq!(u32_at(content(&boxes, "/moof/mfhd"), 4), sequence);
            assert_eq!(content(&boxes, "/moof/traf/tfdt")[8..], [0, 0, (time >> 8) as u8, time as u8]);
        }
        assert!(bytes[..lead].ends_with(b"mdatkey") && bytes.ends_with(b"mdatdef"));
        // A picture alone, no boxes, and what would be read for ever.
        assert_eq!(lead_len(&lead_part(7, &samples[..1], None, &[])), Some(lead as u64 - 32));
        for bad in [b"part".as_slice(), b"", &[0, 0, 0, 7, b'm', b'o', b'o', b'f', 0], &bytes[..60]] {
            assert_eq!(lead_len(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn video_headers_have_every_mandatory_box() {
        let boxes = boxes(&video_init(Timescale::VIDEO, 638, 358, AVCC));
        let paths: Vec<_> = boxes.iter().map(|(path, _)| path.as_str()).collect();
        let stbl = "/moov/trak/mdia/minf/stbl";
        let mut expected: Vec<String> = [
            "/ftyp",
            "/moov",
            "/moov/mvhd",
            "/moov/trak",
            "/moov/trak/tkhd",
            "/moov/trak/mdia",
            "/moov/trak/mdia/mdhd",
            "/moov/trak/mdia/hdlr",
            "/moov/trak/mdia/minf",
            "/moov/trak/mdia/minf/vmhd",
            "/moov/trak/mdia/minf/dinf",
            "/moov/trak/mdia/minf/dinf/dref",
            "/moov/trak/mdia/minf/dinf/dref/url ",
        ]
        .map(str::to_owned)
        .to_vec();
        for kind in ["", "/stsd", "/stsd/avc1", "/stsd/avc1/avcC", "/stts", "/stsc", "/stsz", "/stco"] {
            expected.push(format!("{stbl}{kind}"));
        }
        expected.extend(["/moov/mvex", "/moov/mvex/trex"].map(str::to_owned));
        assert_eq!(paths, expected);
        let at = |path: &str| content(&boxes, path);
        assert_eq!(at("/moov/mvhd").len(), 100);
        assert_eq!(at("/moov/trak/tkhd").len(), 84);
        assert_eq!(u32_at(at("/moov/trak/tkhd"), 12), 1);
        assert_eq!(u32_at(at("/moov/trak/tkhd"), 76), 638 << 16);
        assert_eq!(u32_at(at("/moov/trak/tkhd"), 80), 358 << 16);
        assert_eq!(u32_at(at("/moov/trak/mdia/mdhd"), 12), 90_000);
        assert_eq!(&at("/moov/trak/mdia/hdlr")[8..12], b"vide");
        assert_eq!(at(&format!("{stbl}/stsd/avc1/avcC")), AVCC);
        assert_eq!(
            &at(&format!("{stbl}/stsd/avc1"))[24..28],
            [638u16.to_be_bytes(), 358u16.to_be_bytes()].concat()
        );
        assert_eq!(at("/moov/mvex/trex").len(), 24);
        assert!(at("/ftyp").starts_with(b"iso6\0\0\0\0iso6cmfc"));
    }

    #[test]
    fn other_pixel_shapes_are_stated() {
        // What x264 writes for 720x576 with a sample aspect ratio of 16:11.
        let avcc = [
            0x01, 0x4d, 0x40, 0x1e, 0xff, 0xe1, 0x00, 0x18, 0x67, 0x4d, 0x40, 0x1e, 0xec, 0xa0, 0x5a, 0x09,
            0x36, 0x08, 0x20, 0x00, 0x00, 0x03, 0x00, 0x20, 0x00, 0x00, 0x06, 0x41, 0xe2, 0xc5, 0xb2, 0xc0,
            0x01, 0x00, 0x05, 0x68, 0xeb, 0xe3, 0xcb, 0x20,
        ];
        let entry = "/moov/trak/mdia/minf/stbl/stsd/avc1";
        let wide = boxes(&video_init(Timescale::VIDEO, 720, 576, &avcc));
        assert_eq!(content(&wide, &format!("{entry}/pasp")), [0, 0, 0, 16, 0, 0, 0, 11]);
        // 720 * 16 / 11 = 1047.27, in 16.16; the coded size stays.
        assert_eq!(u32_at(content(&wide, "/moov/trak/tkhd"), 76), 68_634_065);
        assert_eq!(u32_at(content(&wide, "/moov/trak/tkhd"), 80), 576 << 16);
        assert_eq!(content(&wide, entry)[24..26], 720u16.to_be_bytes());
        // A record that nobody can read is passed on; its pixels count as square.
        let plain = boxes(&video_init(Timescale::VIDEO, 720, 576, b"not a record"));
        assert_eq!(u32_at(content(&plain, "/moov/trak/tkhd"), 76), 720 << 16);
        assert!(!plain.iter().any(|(path, _)| path.ends_with("pasp")));
    }

    #[test]
    fn audio_headers_carry_the_configuration() {
        let low = boxes(&audio_init(Timescale::new(48_000).unwrap(), 48_000, 2, &[0x11, 0x90], 128_000));
        let entry = content(&low, "/moov/trak/mdia/minf/stbl/stsd/mp4a");
        assert_eq!(&entry[16..18], [0, 2]);
        assert_eq!(u32_at(entry, 24), 48_000 << 16);
        let esds = content(&low, "/moov/trak/mdia/minf/stbl/stsd/mp4a/esds");
        let expected = [
            &[
                0, 0, 0, 0, 0x03, 0x80, 0x80, 0x80, 34, 0, 0, 0, 0x04, 0x80, 0x80, 0x80, 20, 0x40, 0x15, 0,
                0, 0,
            ][..],
            &128_000u32.to_be_bytes(),
            &128_000u32.to_be_bytes(),
            &[0x05, 0x80, 0x80, 0x80, 2, 0x11, 0x90, 0x06, 0x80, 0x80, 0x80, 1, 2],
        ]
        .concat();
        assert_eq!(esds, expected);
        assert_eq!(content(&low, "/moov/trak/mdia/minf/smhd").len(), 8);
        // A rate that does not fit 16.16.
        let high = boxes(&audio_init(Timescale::new(96_000).unwrap(), 96_000, 2, &[0x10, 0x10], 0));
        assert_eq!(u32_at(content(&high, "/moov/trak/mdia/minf/stbl/stsd/mp4a"), 24), 0);
    }

    #[test]
    fn opus_headers_have_the_numbers_turned_round() {
        let mut head = b"OpusHead\x01\x06".to_vec();
        head.extend([0x38, 0x01, 0x80, 0xBB, 0, 0, 0xFE, 0xFF, 1, 4, 2, 0, 4, 1, 2, 3, 5]);
        let boxes = boxes(&opus_init(&OpusConfig::parse(head.into()).unwrap()));
        let entry = content(&boxes, "/moov/trak/mdia/minf/stbl/stsd/Opus");
        assert_eq!((&entry[16..18], u32_at(entry, 24)), (&[0, 6][..], 48_000 << 16));
        let expected = [0, 6, 1, 0x38, 0, 0, 0xBB, 0x80, 0xFF, 0xFE, 1, 4, 2, 0, 4, 1, 2, 3, 5];
        assert_eq!(content(&boxes, "/moov/trak/mdia/minf/stbl/stsd/Opus/dOps"), expected);
        assert_eq!(u32_at(content(&boxes, "/moov/trak/mdia/mdhd"), 12), 48_000);
    }

    #[test]
    fn chunks_say_where_and_when_each_sample_is() {
        let samples = [
            sample(1 << 33, 1 << 33, 3003, true, b"abc"),
            sample((1 << 33) + 3003, (1 << 33) + 3003, 3004, false, b"de"),
        ];
        let bytes = chunk(7, &samples, false, None, &[]);
        let boxes = boxes(&bytes);
        assert_eq!(u32_at(content(&boxes, "/moof/mfhd"), 4), 7);
        assert_eq!(content(&boxes, "/moof/traf/tfhd"), [0, 2, 0, 0, 0, 0, 0, 1]);
        assert_eq!(content(&boxes, "/moof/traf/tfdt"), [1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        let trun = content(&boxes, "/moof/traf/trun");
        assert_eq!(u32_at(trun, 0), 0x0100_0701);
        assert_eq!(u32_at(trun, 4), 2);
        let words: Vec<u32> = (12..trun.len()).step_by(4).map(|at| u32_at(trun, at)).collect();
        assert_eq!(words, [3003, 3, 0x0200_0000, 3004, 2, 0x0101_0000]);
        assert_eq!(content(&boxes, "/mdat"), b"abcde");
        // The data offset counts from the moof's first byte.
        assert_eq!(&bytes[u32_at(trun, 8) as usize..], b"abcde");
    }

    #[test]
    fn composition_offsets_are_signed() {
        let samples = [sample(10, 40, 10, true, b"a"), sample(20, 10, 10, false, b"b")];
        let first = chunk(1, &samples, true, None, &[]);
        let boxes = boxes(&first);
        assert!(content(&boxes, "/styp").starts_with(b"msdh"));
        let trun = content(&boxes, "/moof/traf/trun");
        assert_eq!(u32_at(trun, 0), 0x0100_0f01);
        assert_eq!((u32_at(trun, 24) as i32, u32_at(trun, 40) as i32), (30, -10));
        // The styp before it does not move the data offset.
        let moof_at = first.windows(4).position(|window| window == b"moof").unwrap() - 4;
        assert_eq!(&first[moof_at + u32_at(trun, 8) as usize..], b"ab");
    }

    #[test]
    fn reference_times_stand_before_their_fragment() {
        let samples = [sample(90_000, 90_000, 3000, true, b"a")];
        // 2026-11-21T12:00:00.25Z; RFC 5905 counts from 1900, and anew from 2036-02-07T06:28:16Z on.
        for (unix_us, seconds, fraction) in [
            (1_795_262_400_250_000, 4_004_251_200, 0x4000_0000),
            (2_085_978_496_500_000, 0, 0x8000_0000),
            (0, 2_208_988_800, 0),
        ] {
            let reference = Some(ReferenceTime { unix_us, media_time: 90_000 });
            let bytes = chunk(1, &samples, true, reference, &[]);
            let boxes = boxes(&bytes);
            let order: Vec<_> = boxes.iter().map(|(path, _)| path.as_str()).take(3).collect();
            assert_eq!(order, ["/styp", "/prft", "/moof"]);
            let prft = content(&boxes, "/prft");
            // Version 1, flags 0: when that picture went into the encoder; track 1.
            assert_eq!((u32_at(prft, 0), u32_at(prft, 4)), (0x0100_0000, 1));
            assert_eq!((u32_at(prft, 8), u32_at(prft, 12)), (seconds, fraction), "{unix_us}");
            assert_eq!((u32_at(prft, 16), u32_at(prft, 20), prft.len()), (0, 90_000, 24));
            let moof_at = bytes.windows(4).position(|window| window == b"moof").unwrap() - 4;
            let trun = content(&boxes, "/moof/traf/trun");
            assert_eq!(&bytes[moof_at + u32_at(trun, 8) as usize..], b"a");
        }
    }

    #[test]
    fn absurd_samples_do_not_panic() {
        assert_eq!(chunk(1, &[], true, None, &[]), Bytes::new());
        let samples = [
            sample(i64::MIN, i64::MAX, i64::MAX, true, b""),
            sample(i64::MAX, i64::MIN, i64::MIN, false, b""),
        ];
        let trun = content(&boxes(&chunk(u32::MAX, &samples, false, None, &[])), "/moof/traf/trun").to_vec();
        assert_eq!(u32_at(&trun, 12), u32::MAX);
        let huge = video_init(Timescale::VIDEO, u32::MAX, u32::MAX, &[]);
        assert_eq!(u32_at(content(&boxes(&huge), "/moov/trak/tkhd"), 76), u32::MAX);
    }
}
