//! What a media playlist says, as far as the bed looks at it.

use std::time::UNIX_EPOCH;

/// A complete segment that is listed.
pub struct Entry {
    pub number: u64,
    pub uri: String,
    /// The init segment's URI.
    pub map: String,
    /// Discontinuities before it, since the broadcast began.
    pub discontinuities: u64,
    pub gap: bool,
    pub wall_ms: i64,
    pub seconds: f64,
}

/// A media playlist.
pub struct Playlist {
    /// In order of their numbers, without a hole.
    pub entries: Vec<Entry>,
    pub ended: bool,
    first: u64,
}

impl Playlist {
    pub fn parse(text: &str) -> Result<Playlist, String> {
        let (mut entries, mut ended) = (Vec::new(), false);
        let (mut first, mut discontinuities) = (None, 0);
        let (mut map, mut gap, mut wall_ms, mut seconds) = (String::new(), false, None, None);
        for line in text.lines() {
            let (tag, value) = line.split_once(':').unwrap_or((line, ""));
            match tag {
                "#EXT-X-MEDIA-SEQUENCE" => first = value.parse().ok(),
                "#EXT-X-DISCONTINUITY-SEQUENCE" => discontinuities = value.parse().unwrap_or_default(),
                "#EXT-X-DISCONTINUITY" => discontinuities += 1,
                "#EXT-X-GAP" => gap = true,
                "#EXT-X-ENDLIST" => ended = true,
                "#EXT-X-MAP" => map = value.trim_start_matches("URI=").trim_matches('"').to_owned(),
                "#EXT-X-PROGRAM-DATE-TIME" => {
                    let time = humantime::parse_rfc3339(value).map_err(|error| format!("{line}: {error}"))?;
                    wall_ms = time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_millis() as i64);
                }
                "#EXTINF" => seconds = value.trim_end_matches(',').parse().ok(),
                _ if line.is_empty() || line.starts_with('#') => {}
                _ => {
                    let number = first.ok_or("no media sequence")? + entries.len() as u64;
                    entries.push(Entry {
                        number,
                        uri: line.to_owned(),
                        map: map.clone(),
                        discontinuities,
                        gap: std::mem::take(&mut gap),
                        wall_ms: wall_ms.take().ok_or_else(|| format!("{line}: no time of day"))?,
                        seconds: seconds.take().ok_or_else(|| format!("{line}: no duration"))?,
                    });
                }
            }
        }
        Ok(Playlist { entries, ended, first: first.ok_or("no media sequence")? })
    }

    /// The number of the segment that comes next.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}
