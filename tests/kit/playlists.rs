//! Media playlists as the lints read them: all that is said, in the order in which it is said.

use std::collections::BTreeMap;

/// A media playlist, whole or a delta update.
#[derive(Debug, Clone, PartialEq)]
pub struct Playlist {
    pub version: u64,
    /// What may never change: target duration, server control, part target.
    pub promises: BTreeMap<String, String>,
    pub media_sequence: u64,
    pub discontinuity_sequence: u64,
    /// Of a delta update: how many segments it leaves out.
    pub skipped: Option<u64>,
    /// Whole segments.
    pub segments: Vec<Segment>,
    /// Parts of the segment that still grows, with what stands before them.
    pub open: Option<Segment>,
    pub hints: Vec<Attributes>,
    pub reports: Vec<Attributes>,
    pub date_ranges: Vec<Attributes>,
    pub iframes_only: bool,
    pub ended: bool,
}

pub type Attributes = BTreeMap<String, String>;

/// A segment as it is listed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Segment {
    /// Empty while it grows.
    pub uri: String,
    pub seconds: f64,
    pub wall_ms: Option<i64>,
    pub discontinuity: bool,
    pub gap: bool,
    /// The init segment named right before it.
    pub map: Option<String>,
    /// Length and offset.
    pub range: Option<(u64, u64)>,
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub uri: String,
    pub seconds: f64,
    pub len: u64,
    pub offset: u64,
    pub independent: bool,
}

impl Playlist {
    /// Reads one. What it does not know, finds twice or at the wrong place is an error.
    pub fn parse(text: &str) -> Result<Playlist, String> {
        let mut lines = text.lines();
        if lines.next() != Some("#EXTM3U") {
            return Err("does not begin with #EXTM3U".into());
        }
        let mut once = BTreeMap::<&str, String>::new();
        let mut playlist = Playlist {
            version: 1,
            promises: BTreeMap::new(),
            media_sequence: 0,
            discontinuity_sequence: 0,
            skipped: None,
            segments: Vec::new(),
            open: None,
            hints: Vec::new(),
            reports: Vec::new(),
            date_ranges: Vec::new(),
            iframes_only: false,
            ended: false,
        };
        let mut next = Segment::default();
        let mut extinf = false;
        for line in lines {
            let at = |what: &str| format!("{line}: {what}");
            let (tag, value) = line.split_once(':').unwrap_or((line, ""));
            let begun = !playlist.segments.is_empty() || next != Segment::default();
            match tag {
                "#EXT-X-VERSION"
                | "#EXT-X-TARGETDURATION"
                | "#EXT-X-SERVER-CONTROL"
                | "#EXT-X-PART-INF"
                | "#EXT-X-MEDIA-SEQUENCE"
                | "#EXT-X-DISCONTINUITY-SEQUENCE"
                | "#EXT-X-I-FRAMES-ONLY"
                | "#EXT-X-PLAYLIST-TYPE"
                | "#EXT-X-SKIP" => {
                    if begun {
                        return Err(at("stands behind a segment's tag"));
                    }
                    if once.insert(tag, value.into()).is_some() {
                        return Err(at("is there twice"));
                    }
                }
                "#EXT-X-DISCONTINUITY" | "#EXT-X-MAP" | "#EXT-X-PROGRAM-DATE-TIME" => {
                    // 4.4.4.9
                    if !next.parts.is_empty() || extinf {
                        return Err(at("stands behind the first part of its segment"));
                    }
                    match tag {
                        "#EXT-X-DISCONTINUITY" => next.discontinuity = true,
                        "#EXT-X-MAP" => next.map = Some(required(&attributes(value)?, "URI")?),
                        _ => next.wall_ms = Some(wall_ms(value)?),
                    }
                }
                "#EXT-X-PART" => next.parts.push(part(&attributes(value)?)?),
                "#EXT-X-GAP" => next.gap = true,
                "#EXT-X-BYTERANGE" => next.range = Some(range(value)?),
                "#EXTINF" => {
                    extinf = true;
                    let seconds = value.strip_suffix(',').ok_or_else(|| at("has a title"))?;
                    next.seconds = seconds.parse().map_err(|_| at("is no duration"))?;
                }
                "#EXT-X-PRELOAD-HINT" => playlist.hints.push(attributes(value)?),
                "#EXT-X-RENDITION-REPORT" => playlist.reports.push(attributes(value)?),
                "#EXT-X-DATERANGE" => playlist.date_ranges.push(attributes(value)?),
                "#EXT-X-ENDLIST" => playlist.ended = true,
                _ if line.starts_with('#') || line.is_empty() => return Err(at("is not known")),
                _ => {
                    if !std::mem::take(&mut extinf) {
                        return Err(at("has no duration"));
                    }
                    next.uri = line.into();
                    playlist.segments.push(std::mem::take(&mut next));
                }
            }
        }
        if extinf {
            return Err("the last segment has no URI".into());
        }
        playlist.open = (next != Segment::default()).then_some(next);
        playlist.iframes_only = once.contains_key("#EXT-X-I-FRAMES-ONLY");
        let number =
            |tag: &str| once.get(tag).map(|value| value.parse().map_err(|_| format!("{tag}:{value}")));
        playlist.version = number("#EXT-X-VERSION").transpose()?.unwrap_or(1);
        playlist.media_sequence = number("#EXT-X-MEDIA-SEQUENCE").transpose()?.unwrap_or(0);
        playlist.discontinuity_sequence = number("#EXT-X-DISCONTINUITY-SEQUENCE").transpose()?.unwrap_or(0);
        if let Some(skip) = once.get("#EXT-X-SKIP") {
            let skipped = required(&attributes(skip)?, "SKIPPED-SEGMENTS")?;
            playlist.skipped = Some(skipped.parse().map_err(|_| format!("#EXT-X-SKIP:{skip}"))?);
        }
        for tag in
            ["#EXT-X-TARGETDURATION", "#EXT-X-SERVER-CONTROL", "#EXT-X-PART-INF", "#EXT-X-PLAYLIST-TYPE"]
        {
            playlist.promises.extend(once.get(tag).map(|value| (tag.to_owned(), value.clone())));
        }
        Ok(playlist)
    }

    /// As a player has it that had `before` (6.2.5.1, 6.3.7).
    pub fn merged(mut self, before: &Playlist) -> Result<Playlist, String> {
        let Some(skipped) = self.skipped.take() else { return Ok(self) };
        let gone = self.media_sequence.checked_sub(before.media_sequence).ok_or("goes back")? as usize;
        let known = before.segments.get(gone..gone + skipped as usize).ok_or("skips what was not there")?;
        let mut segments = known.to_vec();
        segments.append(&mut self.segments);
        self.segments = segments;
        Ok(self)
    }

    /// Its whole segments with their numbers, how often the timeline broke up to each, and the init segment of each.
    pub fn numbered(&self) -> Vec<(u64, u64, Option<&str>, &Segment)> {
        let (mut breaks, mut map) = (self.discontinuity_sequence, None);
        let mut numbered = Vec::new();
        for (index, segment) in self.segments.iter().chain(&self.open).enumerate() {
            breaks += u64::from(segment.discontinuity);
            map = segment.map.as_deref().or(map);
            numbered.push((self.media_sequence + index as u64, breaks, map, segment));
        }
        numbered
    }

    /// A number of a promise, such as `PART-TARGET`.
    pub fn promised(&self, tag: &str, name: &str) -> Option<f64> {
        let value = self.promises.get(tag)?;
        if name.is_empty() { value.parse().ok() } else { attributes(value).ok()?.get(name)?.parse().ok() }
    }
}

/// An attribute list (4.2), quotes taken off.
pub fn attributes(list: &str) -> Result<Attributes, String> {
    let mut attributes = Attributes::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| format!("{list}: no value"))?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(|| format!("{list}: no closing quote"))?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        let legal = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-');
        if !legal || attributes.insert(name.into(), value.into()).is_some() {
            return Err(format!("{list}: {name}"));
        }
        rest = match after.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if after.is_empty() => "",
            _ => return Err(format!("{list}: {after:?} behind {name}")),
        };
    }
    Ok(attributes)
}

pub fn required(attributes: &Attributes, name: &str) -> Result<String, String> {
    attributes.get(name).cloned().ok_or_else(|| format!("no {name} in {attributes:?}"))
}

fn part(attributes: &Attributes) -> Result<Part, String> {
    let (len, offset) = range(&required(attributes, "BYTERANGE")?)?;
    Ok(Part {
        uri: required(attributes, "URI")?,
        seconds: required(attributes, "DURATION")?.parse().map_err(|_| "no duration")?,
        len,
        offset,
        independent: attributes.get("INDEPENDENT").is_some_and(|value| value == "YES"),
    })
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let parsed =
        text.split_once('@').and_then(|(len, offset)| Some((len.parse().ok()?, offset.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text}: not LENGTH@OFFSET"))
}

pub fn wall_ms(text: &str) -> Result<i64, String> {
    let time = humantime::parse_rfc3339(text).map_err(|error| format!("{text}: {error}"))?;
    let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|error| format!("{text}: {error}"))?;
    Ok(since.as_millis() as i64)
}
