//! Coded frames of any codec out of ffmpeg: it writes fragmented MP4 with a fragment a frame, which is read back here.
//! FLV would be simpler, but the ffmpeg of Debian 12 puts only H.264 and AAC into it.

use std::process::{Command, Stdio};

/// One track as ffmpeg coded it.
pub(crate) struct Track {
    /// The configuration record: the content of `hvcC`, `av1C`, `vpcC` without its version, `avcC`, or an `OpusHead`.
    pub(crate) record: Vec<u8>,
    /// Its frames in decoding order.
    pub(crate) frames: Vec<Frame>,
}

/// One coded frame. Times are in units of the track's timescale.
pub(crate) struct Frame {
    pub(crate) dts: i64,
    pub(crate) pts: i64,
    pub(crate) duration: i64,
    pub(crate) key: bool,
    pub(crate) data: Vec<u8>,
}

/// Runs ffmpeg with `arguments` (inputs and codecs of one track, with `timescale`) and reads what it writes.
pub(crate) fn encode(arguments: &[&str], timescale: u32) -> Result<Track, String> {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error"]).args(arguments);
    command.args(["-movflags", "delay_moov+default_base_moof+frag_every_frame+omit_tfhd_offset"]);
    command.args(["-video_track_timescale", &timescale.to_string(), "-f", "mp4", "-"]);
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("ffmpeg {arguments:?} failed"));
    }
    Ok(read(&output.stdout))
}

/// The frames of a fragmented MP4 of one track.
pub(crate) fn read(file: &[u8]) -> Track {
    let mut track = Track { record: Vec::new(), frames: Vec::new() };
    let mut fragment = None;
    for (name, body) in boxes(file) {
        match &name {
            b"moov" => track.record = record(body),
            b"moof" => fragment = Some(times(body)),
            b"mdat" => {
                let (dts, samples) = fragment.take().expect("a moof before each mdat");
                let (mut at, mut dts) = (0, dts);
                for Sample { duration, size, key, composition } in samples {
                    let data = body[at..at + size].to_vec();
                    at += size;
                    track.frames.push(Frame { dts, pts: dts + composition, duration, key, data });
                    dts += duration;
                }
            }
            _ => {}
        }
    }
    track
}

fn record(moov: &[u8]) -> Vec<u8> {
    for name in [b"hvcC", b"av1C", b"avcC", b"vpcC", b"dOps"] {
        let Some(at) = moov.windows(4).position(|window| window == name) else { continue };
        let len = u32::from_be_bytes(moov[at - 4..at].try_into().unwrap()) as usize - 8;
        let body = &moov[at + 4..at + 4 + len];
        return match name {
            // A full box: version and flags first.
            b"vpcC" => body[4..].to_vec(),
            // The same fields as in Ogg, in the other order of bytes.
            b"dOps" => {
                let mut head = b"OpusHead\x01".to_vec();
                head.push(body[1]);
                head.extend([body[3], body[2], body[7], body[6], body[5], body[4], body[9], body[8]]);
                head.extend(&body[10..]);
                head
            }
            _ => body.to_vec(),
        };
    }
    Vec::new()
}

struct Sample {
    duration: i64,
    size: usize,
    key: bool,
    composition: i64,
}

/// The first decoding time of a fragment, and its samples.
fn times(moof: &[u8]) -> (i64, Vec<Sample>) {
    const NO_SYNC: u32 = 1 << 16;
    let traf = find(moof, b"traf");
    let tfhd = find(traf, b"tfhd");
    let mut at = 8;
    let mut optional = |flag: u32, len: usize| {
        let there = u32_at(tfhd, 0) & flag != 0;
        if !there {
            return 0;
        }
        at += len;
        u32_at(tfhd, at - 4)
    };
    optional(0x1, 8);
    optional(0x2, 4);
    let (duration, size, flags) = (optional(0x8, 4), optional(0x10, 4), optional(0x20, 4));
    let tfdt = find(traf, b"tfdt");
    let dts = match tfdt[0] {
        0 => i64::from(u32_at(tfdt, 4)),
        _ => i64::from_be_bytes(tfdt[4..12].try_into().unwrap()),
    };
    let trun = find(traf, b"trun");
    let has = |flag: u32| u32_at(trun, 0) & flag != 0;
    let mut at = 8;
    let mut next = |there: bool, default: u32| {
        if !there {
            return default;
        }
        at += 4;
        u32_at(trun, at - 4)
    };
    next(has(0x1), 0);
    let first_flags = next(has(0x4), flags);
    let samples = (0..u32_at(trun, 4)).map(|index| {
        let duration = next(has(0x100), duration).into();
        let size = next(has(0x200), size) as usize;
        let flags = next(has(0x400), if index == 0 { first_flags } else { flags });
        let composition = i64::from(next(has(0x800), 0) as i32);
        Sample { duration, size, key: flags & NO_SYNC == 0, composition }
    });
    (dts, samples.collect())
}

fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<8>()?;
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let (this, rest) = bytes.split_at(len);
        bytes = rest;
        Some((header[4..].try_into().unwrap(), &this[8..]))
    })
}

fn find<'a>(bytes: &'a [u8], name: &[u8; 4]) -> &'a [u8] {
    boxes(bytes).find(|(found, _)| found == name).map(|(_, body)| body).expect("ffmpeg writes it")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}
