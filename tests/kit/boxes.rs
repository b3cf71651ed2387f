//! A strict look at the boxes of init segments and segments (ISO/IEC 14496-12, 23000-19): every byte belongs to a box that
//! may be there, at a place where it may be, and says what the playlists say.

/// What an init segment says of its track.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    pub timescale: u32,
    /// As CODECS has it; empty if the kind of sample is not known here.
    pub codec: String,
    /// Coded width and height of video.
    pub size: Option<(u16, u16)>,
}

/// One chunk of a segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Its first byte, what stands before its `moof` included, and the byte behind it.
    pub bytes: (usize, usize),
    pub sequence: u32,
    /// Of its first sample, in decoding order.
    pub decode_time: u64,
    pub duration: u64,
    pub samples: usize,
    /// The first sample can be decoded alone.
    pub sync: bool,
    /// The earliest presentation time.
    pub presentation: i64,
}

type Result<T> = std::result::Result<T, String>;

/// Checks an init segment.
pub fn init(bytes: &[u8]) -> Result<Track> {
    let top = boxes(bytes, "file")?;
    named(&top, "file", &["ftyp", "moov"])?;
    let ftyp = top[0].1;
    if ftyp.len() < 12 || ftyp.len() % 4 != 0 {
        return Err("ftyp: no brands".into());
    }
    let brands: Vec<_> = ftyp[8..].chunks(4).collect();
    if !brands.contains(&b"cmfc".as_slice()) {
        return Err(format!("ftyp: cmfc is not among {brands:?}"));
    }
    let moov = boxes(top[1].1, "moov")?;
    named(&moov, "moov", &["mvhd", "trak", "mvex"])?;
    let trak = boxes(moov[1].1, "trak")?;
    named(&trak, "trak", &["tkhd", "mdia"])?;
    let track_id = word(trak[0].1, 12, "tkhd")?;
    let mdia = boxes(trak[1].1, "mdia")?;
    named(&mdia, "mdia", &["mdhd", "hdlr", "minf"])?;
    let (timescale, handler) = (word(mdia[0].1, 12, "mdhd")?, tag(mdia[1].1, 8, "hdlr")?);
    let header = if handler == "vide" { "vmhd" } else { "smhd" };
    let minf = boxes(mdia[2].1, "minf")?;
    named(&minf, "minf", &[header, "dinf", "stbl"])?;
    let stbl = boxes(minf[2].1, "stbl")?;
    named(&stbl, "stbl", &["stsd", "stts", "stsc", "stsz", "stco"])?;
    for (name, body) in &stbl[1..] {
        if body[4..].iter().any(|byte| *byte != 0) {
            return Err(format!("{name}: a fragmented file has no samples in its header"));
        }
    }
    let mvex = boxes(moov[2].1, "mvex")?;
    named(&mvex, "mvex", &["trex"])?;
    if track_id != 1 || word(mvex[0].1, 4, "trex")? != 1 {
        return Err(format!("track {track_id}"));
    }
    if word(stbl[0].1, 4, "stsd")? != 1 {
        return Err("stsd: not one sample entry".into());
    }
    let entry = boxes(&stbl[0].1[8..], "stsd")?;
    let (kind, body) = (entry[0].0.as_str(), entry[0].1);
    let skip = if handler == "vide" { 78 } else { 28 };
    let inner = boxes(body.get(skip..).ok_or("stsd: too short")?, kind)?;
    let record = |name: &str| inner.iter().find(|(found, _)| found == name).map(|(_, body)| *body);
    let size = (handler == "vide").then(|| (short(body, 24), short(body, 26)));
    let codec = match kind {
        "avc1" => {
            let record = record("avcC").filter(|record| record.len() >= 7).ok_or("avc1: no avcC")?;
            if record[4] & 3 != 3 {
                return Err("avcC: lengths of NAL units do not have 4 bytes".into());
            }
            format!("avc1.{:02x}{:02x}{:02x}", record[1], record[2], record[3])
        }
        "mp4a" => format!("mp4a.40.{}", object_type(record("esds").ok_or("mp4a: no esds")?)?),
        _ => String::new(),
    };
    Ok(Track { timescale, codec, size })
}

/// Checks a segment: its chunks.
pub fn segment(bytes: &[u8], track: &Track) -> Result<Vec<Chunk>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let (mut at, mut began, mut header) = (0, 0, None);
    for (index, (name, body)) in boxes(bytes, "segment")?.into_iter().enumerate() {
        let end = at + 8 + body.len();
        match name.as_str() {
            "styp" if index == 0 => {}
            "prft" | "emsg" if header.is_none() => {}
            "moof" if index > 0 && header.is_none() => header = Some(fragment(body, end - at)?),
            "mdat" => {
                let (mut chunk, sizes): (Chunk, Vec<u32>) = header.take().ok_or("mdat without its moof")?;
                chunk.bytes = (began, end);
                let sum: usize = sizes.iter().map(|size| *size as usize).sum();
                if sum != body.len() {
                    return Err(format!("mdat: {} bytes, samples of {sum}", body.len()));
                }
                if track.codec.starts_with("avc1") {
                    nal_units(body, &sizes)?;
                }
                if let Some(before) = chunks.last() {
                    let due = before.decode_time + before.duration;
                    if chunk.decode_time != due {
                        return Err(format!("moof {}: at {}, not {due}", chunk.sequence, chunk.decode_time));
                    }
                    if chunk.sequence <= before.sequence {
                        return Err(format!("moof {} behind {}", chunk.sequence, before.sequence));
                    }
                }
                chunks.push(chunk);
                began = end;
            }
            _ => return Err(format!("{name} as box {index} of a segment")),
        }
        at = end;
    }
    match chunks.first() {
        None => Err("a segment without a chunk".into()),
        Some(first) if !first.sync => Err("a segment that does not begin with a sync sample".into()),
        _ if began != bytes.len() => Err("bytes behind the last mdat".into()),
        Some(_) => Ok(chunks),
    }
}

/// A `moof` of `len` bytes: the chunk without its place, and the sizes of its samples.
fn fragment(body: &[u8], len: usize) -> Result<(Chunk, Vec<u32>)> {
    const FLAGS: u32 = 0x701;
    const COMPOSITION: u32 = 0x800;
    let moof = boxes(body, "moof")?;
    named(&moof, "moof", &["mfhd", "traf"])?;
    let traf = boxes(moof[1].1, "traf")?;
    named(&traf, "traf", &["tfhd", "tfdt", "trun"])?;
    let (tfhd, tfdt, trun) = (traf[0].1, traf[1].1, traf[2].1);
    if word(tfhd, 0, "tfhd")? & 0x02_0000 == 0 || word(tfhd, 4, "tfhd")? != 1 {
        return Err("tfhd: default-base-is-moof and track 1 are wanted".into());
    }
    if word(tfdt, 0, "tfdt")? != 0x0100_0000 || tfdt.len() != 12 {
        return Err("tfdt: version 1 is wanted".into());
    }
    let decode_time = u64::from_be_bytes(tfdt[4..12].try_into().expect("has 8 bytes"));
    let (head, count) = (word(trun, 0, "trun")?, word(trun, 4, "trun")? as usize);
    let flags = head & 0xff_ffff;
    if head >> 24 != 1 || flags & !COMPOSITION != FLAGS || count == 0 {
        return Err(format!("trun: version and flags {head:x}, {count} samples"));
    }
    if word(trun, 8, "trun")? as usize != len + 8 {
        return Err("trun: the data do not begin with the mdat's".into());
    }
    let stride = if flags & COMPOSITION == 0 { 12 } else { 16 };
    if trun.len() != 12 + count * stride {
        return Err(format!("trun: {} bytes for {count} samples", trun.len()));
    }
    let (mut sizes, mut duration, mut presentation, mut sync) = (Vec::new(), 0_u64, i64::MAX, false);
    for (index, sample) in trun[12..].chunks(stride).enumerate() {
        let lasts = word(sample, 0, "trun")?;
        if lasts == 0 {
            return Err(format!("trun: sample {index} lasts for nothing"));
        }
        let offset = if stride == 16 { word(sample, 12, "trun")? as i32 } else { 0 };
        presentation = presentation.min((decode_time + duration) as i64 + i64::from(offset));
        duration += u64::from(lasts);
        sizes.push(word(sample, 4, "trun")?);
        if index == 0 {
            sync = word(sample, 8, "trun")? & 0x0001_0000 == 0;
        }
    }
    let sequence = word(moof[0].1, 4, "mfhd")?;
    let chunk = Chunk { bytes: (0, 0), sequence, decode_time, duration, samples: count, sync, presentation };
    Ok((chunk, sizes))
}

/// NAL units with lengths of 4 bytes tile every sample.
fn nal_units(data: &[u8], sizes: &[u32]) -> Result<()> {
    let mut rest = data;
    for (index, size) in sizes.iter().enumerate() {
        let (mut sample, after) = rest.split_at(*size as usize);
        while !sample.is_empty() {
            let len = word(sample, 0, "NAL unit")? as usize;
            if len == 0 || sample.len() < 4 + len {
                return Err(format!("sample {index}: a NAL unit of {len} bytes in {}", sample.len()));
            }
            sample = &sample[4 + len..];
        }
        rest = after;
    }
    Ok(())
}

/// The audio object type of an ES_Descriptor (ISO/IEC 14496-1, 7.2.6.5).
fn object_type(esds: &[u8]) -> Result<u8> {
    // DecoderSpecificInfo: tag 5 and a length in bytes of 7 bits.
    let at = esds.windows(2).position(|pair| pair[0] == 5 && pair[1] & 0x80 != 0).ok_or("esds: no config")?;
    let config = esds[at + 1..].iter().position(|byte| byte & 0x80 == 0).map(|last| at + 2 + last);
    config.and_then(|at| esds.get(at)).map(|byte| byte >> 3).ok_or_else(|| "esds: cut short".into())
}

fn boxes<'a>(mut bytes: &'a [u8], of: &str) -> Result<Vec<(String, &'a [u8])>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let size = word(bytes, 0, of)? as usize;
        let name = tag(bytes, 4, of)?;
        if size < 8 || size > bytes.len() {
            return Err(format!("{of}: {name} of {size} bytes in {}", bytes.len()));
        }
        found.push((name, &bytes[8..size]));
        bytes = &bytes[size..];
    }
    Ok(found)
}

/// Exactly these, in this order.
fn named(boxes: &[(String, &[u8])], of: &str, names: &[&str]) -> Result<()> {
    let found: Vec<_> = boxes.iter().map(|(name, _)| name.as_str()).collect();
    if found == names { Ok(()) } else { Err(format!("{of}: {found:?}, not {names:?}")) }
}

fn word(bytes: &[u8], at: usize, of: &str) -> Result<u32> {
    let found = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    found.map(u32::from_be_bytes).ok_or_else(|| format!("{of}: cut short"))
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn tag(bytes: &[u8], at: usize, of: &str) -> Result<String> {
    let name = bytes.get(at..at + 4).ok_or_else(|| format!("{of}: cut short"))?;
    String::from_utf8(name.to_vec()).map_err(|_| format!("{of}: {name:?} is no name of a box"))
}
