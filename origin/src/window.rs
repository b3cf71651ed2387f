//! What of one rendition is listed: closed segments, the open one with its parts, and where the live edge is.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use media::time::{Ticks, Timescale};
use media::{Epoch, Object, SegmentNumber};
use serde::{Deserialize, Serialize};

/// Gaps for an absent broadcaster that are listed beside what there is of media, in seconds: as long as the longest window.
const MAX_AWAY_SECONDS: Ticks = 600;

/// One part of a segment: a byte range of the segment's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// In ticks of the rendition.
    pub duration: Ticks,
    /// Whether decoding can start with it.
    pub independent: bool,
    /// Bytes up to the end of its first chunk, 0 if unknown: of a video segment's first part, its keyframe.
    pub lead: u64,
}

/// A listed segment.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Its number.
    pub number: SegmentNumber,
    /// The run it belongs to.
    pub epoch: Epoch,
    /// Presentation time of its first sample.
    pub start: Ticks,
    /// So far; final once closed.
    pub duration: Ticks,
    /// Its parts, in order.
    pub parts: Vec<Part>,
    /// Its bytes; `None` where the media is missing (a gap).
    pub object: Option<Object>,
    /// Bytes so far.
    pub bytes: u64,
    /// Whether the timeline breaks before it.
    pub discontinuity: bool,
}

impl Segment {
    /// Bytes up to the end of its first keyframe; 0 if it does not begin with one that stands alone.
    pub fn lead(&self) -> u64 {
        self.parts.first().filter(|part| part.independent).map_or(0, |part| part.lead)
    }
}

/// The window of one rendition. Numbers in it are consecutive.
#[derive(Debug)]
pub struct Window {
    timescale: Timescale,
    /// The length that is listed, in ticks of the rendition.
    listed: Ticks,
    segments: VecDeque<Segment>,
    open: bool,
    /// Length of the gaps at the end that stand for a broadcaster who is away.
    away: Ticks,
    /// Left the list, still fetchable: a player may ask for what an older playlist listed
    /// (RFC 8216bis, 6.2.2). At most as many as are listed.
    retired: VecDeque<Segment>,
    /// EXT-X-DISCONTINUITY-SEQUENCE: breaks that have left the list, or were before it.
    discontinuity_sequence: u64,
    bitrate: Bitrate,
    /// Parts of segments before this one are not listed any more, though they would be now.
    parts_from: SegmentNumber,
    /// The most bits per second that keyframes alone had, each for as long as its segment.
    keyframes_bps: u64,
}

/// Measured bits per second of whole segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bitrate {
    /// The largest of one segment.
    pub peak_bps: u64,
    /// Over all segments.
    pub average_bps: u64,
    /// How many segments were measured.
    pub segments: u64,
}

impl Window {
    /// An empty window. `breaks` is how many discontinuities the stream had before.
    pub fn new(timescale: Timescale, listed: Ticks, breaks: u64) -> Self {
        Self {
            timescale,
            listed: Timescale::VIDEO.rescale(listed, timescale),
            segments: VecDeque::new(),
            open: false,
            away: 0,
            retired: VecDeque::new(),
            discontinuity_sequence: breaks,
            bitrate: Bitrate::default(),
            parts_from: SegmentNumber(0),
            keyframes_bps: 0,
        }
    }

    /// Ticks per second of all times in it.
    pub fn timescale(&self) -> Timescale {
        self.timescale
    }

    /// Opens the next segment. Numbers that were skipped become gaps of its run: where the timeline breaks, it does so
    /// before the first of them, as in the renditions that have it (RFC 8216bis, 6.2.4).
    pub fn open(&mut self, mut segment: Segment, gap_duration: Ticks) {
        self.close();
        let breaks = segment.discontinuity;
        while let Some(last) = self.segments.back()
            && last.number.next() < segment.number
        {
            let before = (segment.number.0 - last.number.0 - 1) as Ticks * gap_duration;
            let gap = Segment {
                number: last.number.next(),
                epoch: segment.epoch,
                start: if breaks { segment.start - before } else { last.start + last.duration },
                duration: gap_duration,
                parts: Vec::new(),
                object: None,
                bytes: 0,
                discontinuity: std::mem::take(&mut segment.discontinuity),
            };
            self.segments.push_back(gap);
        }
        self.segments.push_back(segment);
        self.open = true;
        self.away = 0;
    }

    /// Lists a gap because the broadcaster is away. What there is of media is not pushed out by it, for [`MAX_AWAY_SECONDS`].
    pub fn away(&mut self, gap: Segment) {
        self.close();
        self.away += gap.duration;
        self.segments.push_back(gap);
        self.trim();
    }

    /// Adds a part to the open segment.
    pub fn part(&mut self, len: u64, duration: Ticks, independent: bool) {
        if let Some(segment) = self.segments.back_mut().filter(|_| self.open) {
            segment.parts.push(Part { offset: segment.bytes, len, duration, independent, lead: 0 });
            segment.bytes += len;
            segment.duration += duration;
        }
    }

    /// Looks at the bytes with which the newest part begins, for where its first chunk ends.
    pub fn begins_with(&mut self, bytes: &[u8]) {
        if let Some(part) = self.segments.back_mut().and_then(|segment| segment.parts.last_mut())
            && let Some(lead) = transcode::cmaf::lead_len(bytes)
        {
            part.lead = lead.min(part.len);
        }
    }

    /// Completes the open segment and lets go of what is too old.
    pub fn close(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        if let Some(segment) = self.segments.back() {
            self.bitrate.add(segment, self.timescale);
            let bps = bps(segment.lead(), segment.duration, self.timescale);
            self.keyframes_bps = self.keyframes_bps.max(bps);
        }
        self.trim();
    }

    /// Closed and open segments, oldest first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// The segment that still grows.
    pub fn open_segment(&self) -> Option<&Segment> {
        self.segments.back().filter(|_| self.open)
    }

    /// The newest closed segment's number.
    pub fn last_closed(&self) -> Option<SegmentNumber> {
        self.segments.iter().rev().nth(usize::from(self.open)).map(|segment| segment.number)
    }

    /// The newest segment's number, open or closed.
    pub fn last(&self) -> Option<SegmentNumber> {
        self.segments.back().map(|segment| segment.number)
    }

    /// A segment that is listed or was until lately.
    pub fn find(&self, epoch: Epoch, number: SegmentNumber) -> Option<&Object> {
        let all = self.segments.iter().rev().chain(self.retired.iter().rev());
        all.filter(|segment| segment.number == number && segment.epoch == epoch)
            .find_map(|s| s.object.as_ref())
    }

    /// The first segment whose parts are listed: it ends at most `reach` before the end.
    pub fn parts_from(&self, reach: Ticks) -> SegmentNumber {
        let mut after = 0;
        let near = self.segments.iter().rev().take_while(|segment| {
            let near = after <= reach;
            after += segment.duration;
            near
        });
        let oldest = near.last().map_or(SegmentNumber(0), |segment| segment.number);
        oldest.max(self.parts_from)
    }

    /// From now on no parts are listed that are not listed now, also if the end comes nearer to them.
    pub fn keep_parts_off(&mut self, reach: Ticks) {
        self.parts_from = self.parts_from(reach);
    }

    /// EXT-X-DISCONTINUITY-SEQUENCE.
    pub fn discontinuity_sequence(&self) -> u64 {
        self.discontinuity_sequence
    }

    /// Bytes of media that it holds, what left the list included.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().chain(&self.retired).map(|segment| segment.bytes).sum()
    }

    /// What was measured so far.
    pub fn bitrate(&self) -> Bitrate {
        self.bitrate
    }

    /// The most bits per second that keyframes alone had so far, each for as long as its segment.
    pub fn keyframes_bps(&self) -> u64 {
        self.keyframes_bps
    }

    /// Segment `msn`, and if given its part, can be listed now (RFC 8216bis, 6.2.5.2). A part index past the last part of
    /// a closed segment means part 0 of the next. A gap has no parts: it is news to all who wait for one of it, or players
    /// would hear nothing for as long as a broadcaster is away.
    pub fn has(&self, msn: SegmentNumber, part: Option<u64>) -> bool {
        let Some(last) = self.last() else {
            return false;
        };
        let closed = self.last_closed();
        match part {
            None => closed.is_some_and(|closed| msn <= closed),
            Some(_) if msn < last => {
                let parts =
                    self.segments.iter().find(|s| s.number == msn).map_or(u64::MAX, |s| s.parts.len() as u64);
                part < Some(parts) || parts == 0 || self.has(msn.next(), Some(0))
            }
            Some(part) if msn == last => {
                let segment = &self.segments[self.segments.len() - 1];
                part < segment.parts.len() as u64 || (segment.parts.is_empty() && !self.open)
            }
            Some(_) => false,
        }
    }

    /// Takes the segments from `number` on out of the list: others will bear these numbers. They stay fetchable for a while,
    /// for those whom an older list told of them. Returns whether the timeline broke before one of them.
    pub fn truncate(&mut self, number: SegmentNumber) -> bool {
        let mut broke = false;
        while let Some(last) = self.segments.pop_back() {
            if last.number < number {
                self.segments.push_back(last);
                break;
            }
            self.open = false;
            self.away = 0;
            broke |= last.discontinuity;
            // There is nothing to be had of a gap.
            self.retired.extend(Some(last).filter(|last| last.object.is_some()));
        }
        broke
    }

    fn trim(&mut self) {
        let most_away = MAX_AWAY_SECONDS * Ticks::from(self.timescale.per_second());
        let mut length: Ticks = self.segments.iter().map(|segment| segment.duration).sum();
        while let Some(oldest) = self.segments.front()
            && length - oldest.duration >= self.listed + self.away.min(most_away)
        {
            length -= oldest.duration;
            // A break is counted when the segment behind its tag has left.
            self.discontinuity_sequence += u64::from(oldest.discontinuity);
            self.retired.extend(self.segments.pop_front());
        }
        let excess = self.retired.len().saturating_sub(self.segments.len());
        self.retired.drain(..excess);
    }
}

/// Bits per second of what takes `duration`.
fn bps(bytes: u64, duration: Ticks, timescale: Timescale) -> u64 {
    (i128::from(bytes) * 8 * i128::from(timescale.per_second()) / i128::from(duration.max(1))) as u64
}

impl Bitrate {
    fn add(&mut self, segment: &Segment, timescale: Timescale) {
        // Short segments at the end of a run say nothing about the rate.
        if segment.object.is_none() || segment.duration * 2 < Ticks::from(timescale.per_second()) {
            return;
        }
        let bps = bps(segment.bytes, segment.duration, timescale);
        self.peak_bps = self.peak_bps.max(bps);
        self.average_bps = (self.average_bps * self.segments + bps) / (self.segments + 1);
        self.segments += 1;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bytes::Bytes;

    pub(crate) fn segment(number: u64, start: Ticks) -> Segment {
        Segment {
            number: SegmentNumber(number),
            epoch: Epoch(3),
            start,
            duration: 0,
            parts: Vec::new(),
            object: Some(Object::complete(Bytes::new())),
            bytes: 0,
            discontinuity: false,
        }
    }

    /// Five parts of 1000 bytes and 18000 ticks each.
    pub(crate) fn fill(window: &mut Window, number: u64) {
        window.open(segment(number, number as Ticks * 90_000), 90_000);
        for part in 0..5 {
            window.part(1000, 18_000, part == 0);
        }
    }

    #[test]
    fn the_list_rolls_and_the_old_stay_fetchable_for_as_long_again() {
        let mut window = Window::new(Timescale::VIDEO, 3 * 90_000, 0);
        for number in 10..20 {
            fill(&mut window, number);
            window.close();
        }
        let listed: Vec<_> = window.segments().map(|segment| segment.number.0).collect();
        assert_eq!(listed, [17, 18, 19]);
        for (number, there) in [(13, false), (14, true), (16, true), (19, true), (20, false)] {
            assert_eq!(window.find(Epoch(3), SegmentNumber(number)).is_some(), there, "{number}");
            assert!(window.find(Epoch(2), SegmentNumber(number)).is_none());
        }
        assert_eq!(window.bitrate(), Bitrate { peak_bps: 40_000, average_bps: 40_000, segments: 10 });
    }

    #[test]
    fn blocking_conditions() {
        let mut window = Window::new(Timescale::VIDEO, 3 * 90_000, 0);
        assert!(!window.has(SegmentNumber(0), None));
        fill(&mut window, 10);
        fill(&mut window, 11);
        for (msn, part, has) in [
            (9, None, true),
            (10, None, true),
            (11, None, false),
            (12, None, false),
            (11, Some(4), true),
            (11, Some(5), false),
            (12, Some(0), false),
            (10, Some(4), true),
            (10, Some(5), true),
            (10, Some(99), true),
        ] {
            assert_eq!(window.has(SegmentNumber(msn), part), has, "{msn} {part:?}");
        }
        window.close();
        assert!(window.has(SegmentNumber(11), None) && !window.has(SegmentNumber(11), Some(5)));
    }

    #[test]
    fn parts_that_were_taken_off_the_list_do_not_come_back() {
        let mut window = Window::new(Timescale::VIDEO, 10 * 90_000, 0);
        for number in 10..14 {
            fill(&mut window, number);
        }
        window.close();
        assert_eq!(window.parts_from(2 * 90_000), SegmentNumber(11));
        for number in 14..16 {
            let gap = Segment { object: None, duration: 90_000, ..segment(number, number as Ticks * 90_000) };
            window.away(gap);
        }
        assert_eq!(window.parts_from(2 * 90_000), SegmentNumber(13));
        window.keep_parts_off(2 * 90_000);
        window.truncate(SegmentNumber(14));
        assert_eq!(window.parts_from(2 * 90_000), SegmentNumber(13));
    }

    #[test]
    fn a_gap_is_news_to_those_who_wait_for_its_parts() {
        let mut window = Window::new(Timescale::VIDEO, 3 * 90_000, 0);
        fill(&mut window, 10);
        window.close();
        assert!(!window.has(SegmentNumber(11), Some(0)) && !window.has(SegmentNumber(10), Some(5)));
        window.away(Segment { object: None, duration: 90_000, ..segment(11, 11 * 90_000) });
        for (msn, part, has) in [(10, 5, true), (11, 0, true), (11, 3, true), (12, 0, false)] {
            assert_eq!(window.has(SegmentNumber(msn), Some(part)), has, "{msn} {part}");
        }
        window.open(segment(12, 12 * 90_000), 90_000);
        assert!(!window.has(SegmentNumber(12), Some(0)), "nothing of it has come");
    }

    #[test]
    fn gaps_and_breaks_are_counted_once() {
        let mut window = Window::new(Timescale::VIDEO, 4 * 90_000, 2);
        fill(&mut window, 1);
        window.open(Segment { discontinuity: true, ..segment(4, 9 * 90_000) }, 90_000);
        window.part(1, 90_000, true);
        let listed: Vec<_> = window
            .segments()
            .map(|s| (s.number.0, s.object.is_none(), s.discontinuity, s.start / 90_000))
            .collect();
        // The gaps are of the run that should have had them.
        let expected = [(1, false, false, 1), (2, true, true, 7), (3, true, false, 8), (4, false, false, 9)];
        assert_eq!(listed, expected);
        assert_eq!(window.discontinuity_sequence(), 2);
        for number in 5..9 {
            fill(&mut window, number);
        }
        window.close();
        assert_eq!(window.discontinuity_sequence(), 3);
        assert_eq!(window.segments().next().unwrap().number, SegmentNumber(5));
    }
}
