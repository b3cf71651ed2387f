//! What one origin tells the next about a stream, by way of the POP: where the next segment begins, on which timeline, so
//! that it is cut from the same frames under the same number wherever it is made.
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::str::FromStr;

use media::SegmentNumber;
use media::time::{Ticks, Timescale};

use crate::timeline::Anchor;

/// Longest text of a continuation that is looked at: thirteen numbers of 64 bits have fewer than 300 digits.
pub const MAX_TEXT_BYTES: usize = 320;

/// Timelines are believed up to this length (90 kHz): a hundred years.
const MAX_TICKS: Ticks = 90_000 * 86_400 * 36_525;

/// Where a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation {
    /// The origin process that said so; it knows more than this.
    pub instance: u64,
    /// The segment that comes next.
    pub first: SegmentNumber,
    /// Where it begins, as segments are counted (90 kHz).
    pub start: Ticks,
    /// Ties the broadcast's timeline to the wall clock.
    pub anchor: Anchor,
    /// Discontinuities of the broadcast so far.
    pub breaks: u64,
    /// The first frame shown in the segment (audio-only: audio frame): milliseconds as sent, and its place (90 kHz).
    /// `None` where the broadcaster's clock jumped: the wall clock then says where it goes on, not before `start`.
    pub lead: Option<(u32, Ticks)>,
    /// The segment's first audio frame.
    pub audio: Option<AudioStart>,
}

/// Where the audio of a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioStart {
    /// Milliseconds as sent.
    pub source_ms: u32,
    /// Its place, in `timescale`.
    pub pts: Ticks,
    /// Ticks per second.
    pub timescale: Timescale,
}

/// The text is not a continuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rooftop-continue: is not what an origin said")]
pub struct Malformed;

impl fmt::Display for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, first, start, anchor, breaks, lead, audio } = self;
        let Anchor { unix_ms, ticks } = anchor;
        write!(f, "1 {instance} {first} {start} {unix_ms} {ticks} {breaks}")?;
        if let Some((source_ms, pts)) = lead {
            write!(f, " {source_ms} {pts}")?;
            if let Some(AudioStart { source_ms, pts, timescale }) = audio {
                write!(f, " {source_ms} {pts} {}", timescale.per_second())?;
            }
        }
        Ok(())
    }
}

impl FromStr for Continuation {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        fn next<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Result<T, Malformed> {
            words.next().and_then(|word| word.parse().ok()).ok_or(Malformed)
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(Malformed);
        }
        let words = &mut text.split(' ');
        if next::<u32>(words)? != 1 {
            return Err(Malformed);
        }
        let instance = next(words)?;
        let (first, start) = (SegmentNumber(next(words)?), next(words)?);
        let anchor = Anchor { unix_ms: next(words)?, ticks: next(words)? };
        let breaks = next(words)?;
        let words = &mut words.peekable();
        let lead = match words.peek() {
            Some(_) => Some((next(words)?, next(words)?)),
            None => None,
        };
        let audio = match words.peek() {
            Some(_) => Some(AudioStart {
                source_ms: next(words)?,
                pts: next(words)?,
                timescale: Timescale::new(next(words)?).ok_or(Malformed)?,
            }),
            None => None,
        };
        let continuation = Self { instance, first, start, anchor, breaks, lead, audio };
        let sane = words.next().is_none() && continuation.is_sane();
        sane.then_some(continuation).ok_or(Malformed)
    }
}

impl Continuation {
    /// Whether its numbers can be counted with.
    fn is_sane(&self) -> bool {
        let ticks = |at: Ticks| (0..MAX_TICKS).contains(&at);
        let audio = self.audio.is_none_or(|AudioStart { pts, timescale, .. }| {
            // Within these the conversion cannot overflow.
            (0..4 * MAX_TICKS).contains(&pts)
                && timescale.per_second() >= 1000
                && ticks(timescale.rescale(pts, Timescale::VIDEO))
        });
        ticks(self.start)
            && ticks(self.anchor.ticks)
            && self.lead.is_none_or(|(_, pts)| ticks(pts))
            && (0..1 << 48).contains(&self.anchor.unix_ms)
            && self.first.0 < 1 << 48
            && self.breaks < 1 << 48
            && audio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continuation() -> Continuation {
        Continuation {
            instance: u64::MAX,
            first: SegmentNumber(1_700_000_000),
            start: 8_100_000,
            anchor: Anchor { unix_ms: 1_700_000_000_250, ticks: 90_000 },
            breaks: 2,
            lead: Some((u32::MAX, 8_101_500)),
            audio: Some(AudioStart {
                source_ms: 7,
                pts: 4_320_100,
                timescale: Timescale::new(48_000).unwrap(),
            }),
        }
    }

    #[test]
    fn what_is_said_is_understood() {
        let whole = continuation();
        for said in
            [whole, Continuation { audio: None, ..whole }, Continuation { lead: None, audio: None, ..whole }]
        {
            let text = said.to_string();
            assert!(text.len() <= MAX_TEXT_BYTES && text.parse() == Ok(said), "{text}");
        }
    }

    #[test]
    fn what_no_origin_says_is_refused() {
        let good = continuation().to_string();
        let words: Vec<&str> = good.split(' ').collect();
        for index in 0..words.len() {
            for bad in ["", "x", "-1", "99999999999999999999", "9223372036854775807"] {
                let mut words = words.clone();
                // Any number names an instance.
                if index != 1 || bad.parse::<u64>().is_err() {
                    words[index] = bad;
                    assert_eq!(words.join(" ").parse::<Continuation>(), Err(Malformed), "{index} {bad}");
                }
            }
            assert!(
                [7, 9].contains(&index) || words[..index].join(" ").parse::<Continuation>().is_err(),
                "{index} words"
            );
        }
        assert!(format!("{good} 1").parse::<Continuation>().is_err());
        assert!("1 ".repeat(1000).parse::<Continuation>().is_err());
    }
}
