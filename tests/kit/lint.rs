//! What every version of a playlist must keep to, alone and after those before it (draft-pantos-hls-rfc8216bis). Problems are
//! sentences with the section that says so; nothing here stops at the first.

use std::collections::BTreeMap;

use crate::playlists::{Part, Playlist, Segment};

/// Decimals of a duration, in seconds.
const ROUNDING: f64 = 0.000_02;

/// Looks at one rendition's versions, one after the other.
#[derive(Default)]
pub struct Lint {
    pub problems: Vec<String>,
    /// Versions that were looked at.
    pub versions: usize,
    /// Every whole segment that was ever listed: how often the timeline broke before it, its init segment, itself.
    pub listed: BTreeMap<u64, (u64, Option<String>, Segment)>,
    parts: BTreeMap<(u64, usize), Part>,
    before: Option<Playlist>,
    /// The oldest segment that had parts listed.
    oldest_part: u64,
}

impl Lint {
    /// The next version, whole.
    pub fn look(&mut self, text: &str) {
        self.versions += 1;
        match Playlist::parse(text) {
            Ok(playlist) => {
                self.alone(&playlist);
                self.after(&playlist);
                self.before = Some(playlist);
            }
            Err(problem) => self.problem(format!("cannot be read: {problem}")),
        }
    }

    /// A delta update that was asked for with the same directives as the version that follows; `before` is what the player
    /// had.
    pub fn delta(&mut self, before: &str, delta: &str, whole: &str) {
        let read = || -> Result<_, String> {
            let (before, delta, whole) =
                (Playlist::parse(before)?, Playlist::parse(delta)?, Playlist::parse(whole)?);
            let version = delta.version;
            if delta.skipped.is_some() && version < 9 {
                return Err("EXT-X-SKIP needs version 9 (8)".into());
            }
            Ok((delta.merged(&before)?, whole))
        };
        match read() {
            // One of them may be newer by a part.
            Ok((merged, whole)) => {
                let (merged, whole) = (lasting(&merged), lasting(&whole));
                for (number, segment) in &merged {
                    if whole.get(number).is_some_and(|other| other != segment) {
                        let other = &whole[number];
                        self.problem(format!(
                            "segment {number}: {segment:?} by delta update, {other:?} whole"
                        ));
                    }
                }
                if merged.is_empty() {
                    self.problem("a delta update that lists nothing".into());
                }
            }
            Err(problem) => self.problem(format!("delta update: {problem}")),
        }
    }

    fn problem(&mut self, problem: String) {
        let version = self.versions;
        self.problems.push(format!("version {version}: {problem}"));
    }

    fn require(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.problem(problem());
        }
    }

    /// Rules for one version.
    fn alone(&mut self, playlist: &Playlist) {
        const CONTROL: &str = "#EXT-X-SERVER-CONTROL";
        let target = playlist.promised("#EXT-X-TARGETDURATION", "").unwrap_or(0.0);
        let part_target = playlist.promised("#EXT-X-PART-INF", "PART-TARGET");
        let at_least =
            |name: &str, least: f64| playlist.promised(CONTROL, name).is_some_and(|value| value >= least);
        self.require(target >= 1.0, || "no target duration (4.4.3.1)".into());
        self.require(playlist.version >= 6, || "EXT-X-MAP needs version 6 (8)".into());
        self.require(at_least("HOLD-BACK", 3.0 * target), || "HOLD-BACK (4.4.3.8)".into());
        self.require(at_least("CAN-SKIP-UNTIL", 6.0 * target), || "CAN-SKIP-UNTIL (4.4.3.8)".into());
        self.require(!playlist.promises.contains_key("#EXT-X-PLAYLIST-TYPE"), || "a type (6.2.2)".into());
        self.require(playlist.skipped.is_none(), || "EXT-X-SKIP that nobody asked for (6.2.5.1)".into());
        if playlist.iframes_only {
            self.iframes(playlist);
        } else {
            let least = 3.0 * part_target.unwrap_or(f64::MAX);
            self.require(at_least("PART-HOLD-BACK", least - ROUNDING), || "PART-HOLD-BACK (4.4.3.8)".into());
            self.parts(playlist, part_target.unwrap_or(0.0), target);
            self.hints(playlist);
        }
        let mut clock: Option<(i64, f64, bool)> = None;
        for (number, _, map, segment) in playlist.numbered() {
            self.require(segment.seconds.round() <= target, || {
                format!("segment {number} takes {} s (6.2.1)", segment.seconds)
            });
            self.require(segment.gap || map.is_some(), || {
                format!("segment {number} has no init segment (3)")
            });
            let Some(wall_ms) = segment.wall_ms else {
                self.problem(format!("segment {number} has no time of day"));
                continue;
            };
            if let Some((before, seconds, gap)) = clock.filter(|_| !segment.discontinuity) {
                let apart = (wall_ms - before) as f64 / 1000.0 - seconds;
                // A gap begins and ends at one time for all renditions, whose frames end at several.
                let most = if gap == segment.gap { 0.005 } else { 0.1 };
                self.require(apart.abs() < most, || {
                    format!("segment {number}: the time of day is {apart:.4} s off the durations (6.2.1)")
                });
            }
            self.require(clock.is_none_or(|(before, ..)| wall_ms > before), || {
                format!("segment {number}: the time of day goes back (6.2.1)")
            });
            clock = Some((wall_ms, segment.seconds, segment.gap));
        }
    }

    fn iframes(&mut self, playlist: &Playlist) {
        for (number, .., segment) in playlist.numbered() {
            self.require(segment.parts.is_empty(), || format!("segment {number} has parts (4.4.4.9)"));
            self.require(segment.gap || segment.range.is_some(), || {
                format!("segment {number} is no single frame (4.4.3.6)")
            });
        }
    }

    fn parts(&mut self, playlist: &Playlist, part_target: f64, target: f64) {
        let growing: f64 = playlist.open.iter().flat_map(|open| &open.parts).map(|part| part.seconds).sum();
        let mut after: f64 = playlist.segments.iter().map(|segment| segment.seconds).sum::<f64>() + growing;
        for (number, .., segment) in playlist.numbered() {
            let open = segment.uri.is_empty();
            after -= if open { growing } else { segment.seconds };
            let (listed, sum) =
                (!segment.parts.is_empty(), segment.parts.iter().map(|part| part.seconds).sum::<f64>());
            let wanted = after <= 3.0 * target + ROUNDING && !segment.gap;
            // At the end of a broadcast there is no live edge any more.
            self.require(open || segment.gap || playlist.ended || listed == wanted, || {
                format!(
                    "segment {number}, {after:.3} s before the end, has {} parts (4.4.4.9)",
                    segment.parts.len()
                )
            });
            let rounding = ROUNDING * segment.parts.len() as f64;
            self.require(open || !listed || (sum - segment.seconds).abs() <= rounding, || {
                format!("segment {number}: parts of {sum} s in {} s", segment.seconds)
            });
            let mut offset = 0;
            for (index, part) in segment.parts.iter().enumerate() {
                let named = || format!("part {number}.{index}");
                self.require(part.seconds <= part_target + ROUNDING, || {
                    format!("{} takes {} s (4.4.4.9)", named(), part.seconds)
                });
                let last = !open && index + 1 == segment.parts.len();
                let short = part.seconds < 0.85 * part_target - ROUNDING;
                // The newest one may turn out to be the last.
                let newest = open && index + 1 == segment.parts.len();
                self.require(!short || last || newest || part.independent, || {
                    format!("{} takes only {} s (4.4.4.9)", named(), part.seconds)
                });
                self.require(part.offset == offset && part.len > 0, || {
                    format!("{} begins at byte {}, not {offset}", named(), part.offset)
                });
                self.require(open || part.uri == segment.uri, || format!("{} is of {}", named(), part.uri));
                offset = part.offset + part.len;
            }
        }
    }

    fn hints(&mut self, playlist: &Playlist) {
        for hint in &playlist.hints {
            let kind = hint.get("TYPE").cloned().unwrap_or_default();
            let alike = playlist.hints.iter().filter(|other| other.get("TYPE") == hint.get("TYPE")).count();
            self.require(alike == 1, || format!("{alike} hints of type {kind} (6.2.6)"));
            self.require(!playlist.ended, || format!("a hint at the end: {hint:?} (4.4.5.3)"));
            let known = playlist.segments.iter().any(|segment| hint.get("URI") == Some(&segment.uri));
            self.require(!known, || format!("a hint at what is there: {hint:?}"));
            let open = playlist.open.as_ref().and_then(|open| open.parts.last());
            if let Some(last) = open.filter(|last| kind == "PART" && hint.get("URI") == Some(&last.uri)) {
                let start = (last.offset + last.len).to_string();
                self.require(hint.get("BYTERANGE-START") == Some(&start), || {
                    format!("{hint:?} behind {last:?}")
                });
            }
        }
        for report in &playlist.reports {
            let clean = report.get("URI").is_some_and(|uri| !uri.contains("_HLS_") && !uri.contains(':'));
            let complete = report.get("LAST-MSN").is_some_and(|msn| msn.parse::<u64>().is_ok());
            self.require(clean && complete, || format!("{report:?} (4.4.5.4)"));
        }
    }

    /// Rules for a version and those before it (6.2.1, 6.2.2).
    fn after(&mut self, playlist: &Playlist) {
        let target = playlist.promised("#EXT-X-TARGETDURATION", "").unwrap_or(0.0);
        if let Some(before) = self.before.take() {
            let same = before.promises == playlist.promises && before.version == playlist.version;
            self.require(same, || {
                format!("promises changed from {:?} to {:?}", before.promises, playlist.promises)
            });
            for (name, was, is) in [
                ("media sequence", before.media_sequence, playlist.media_sequence),
                ("discontinuity sequence", before.discontinuity_sequence, playlist.discontinuity_sequence),
            ] {
                self.require(was <= is, || format!("the {name} goes back from {was} to {is}"));
            }
            let removed = playlist.media_sequence > before.media_sequence;
            let length: f64 = playlist.segments.iter().map(|segment| segment.seconds).sum();
            self.require(!removed || playlist.ended || length >= 3.0 * target - ROUNDING, || {
                format!("only {length} s are left (6.2.2)")
            });
            self.require(!before.ended || before == *playlist, || "changes after its end (6.2.1)".into());
            let next = |playlist: &Playlist| playlist.media_sequence + playlist.segments.len() as u64;
            // The end of a broadcast takes back the gaps of its last absence (docs/decisions/0006-…).
            let last_media = before.segments.iter().rposition(|segment| !segment.gap).map_or(0, |at| at + 1);
            let least =
                if playlist.ended { before.media_sequence + last_media as u64 } else { next(&before) };
            self.require(next(playlist) >= least, || format!("ends with {}, not {least}", next(playlist)));
        }
        for (number, breaks, map, segment) in playlist.numbered() {
            let lasting = Segment { parts: Vec::new(), map: None, ..segment.clone() };
            for (index, part) in segment.parts.iter().enumerate() {
                let known = self.parts.entry((number, index)).or_insert_with(|| part.clone()).clone();
                self.require(known == *part, || format!("part {number}.{index} was {known:?}, is {part:?}"));
            }
            if segment.uri.is_empty() {
                continue;
            }
            let said = (breaks, map.map(str::to_owned), lasting);
            let known = self.listed.entry(number).or_insert_with(|| said.clone()).clone();
            self.require(known == said, || format!("segment {number} was {known:?}, is {said:?}"));
        }
        let oldest =
            playlist.numbered().iter().find(|(.., segment)| !segment.parts.is_empty()).map(|found| found.0);
        if let Some(oldest) = oldest {
            let was = self.oldest_part;
            // At the end the last media are listed with theirs, whatever absence came behind (docs/decisions/0006-…).
            self.require(oldest >= was || playlist.ended, || {
                format!("parts of {oldest} are back, {was} was the oldest (6.2.2)")
            });
            self.oldest_part = oldest;
        }
    }
}

/// What two texts of one playlist must agree on: whole segments, without what stands once for several.
fn lasting(playlist: &Playlist) -> BTreeMap<u64, (u64, Option<String>, Segment)> {
    let whole = playlist.numbered().into_iter().filter(|(.., segment)| !segment.uri.is_empty());
    whole
        .map(|(number, breaks, map, segment)| {
            let lasting = Segment { parts: Vec::new(), map: None, ..segment.clone() };
            (number, (breaks, map.map(str::to_owned), lasting))
        })
        .collect()
}

/// What renditions must agree on (6.2.4): where the timeline breaks, and which time of day each segment has.
pub fn across(renditions: &BTreeMap<String, Lint>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut all = renditions.iter();
    let Some((first, model)) = all.next() else { return problems };
    for (name, lint) in all {
        let mut together = 0;
        for (number, (breaks, _, segment)) in &lint.listed {
            let Some((other_breaks, _, other)) = model.listed.get(number) else { continue };
            together += 1;
            if breaks != other_breaks {
                problems
                    .push(format!("segment {number}: {breaks} breaks in {name}, {other_breaks} in {first}"));
            }
            // Audio frames do not meet the boundaries of pictures.
            let apart = segment.wall_ms.zip(other.wall_ms).map(|(a, b)| (a - b).abs());
            if apart.is_none_or(|ms| ms > 100) {
                problems.push(format!("segment {number}: {apart:?} ms between {name} and {first}"));
            }
        }
        if together == 0 {
            problems.push(format!("{name} and {first} have no segment in common"));
        }
    }
    problems
}
