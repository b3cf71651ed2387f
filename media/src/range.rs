//! Byte ranges of bodies whose end may not be known yet (RFC 9110 section 14, RFC 8673).
//!
//! While an object grows and its length is not announced:
//! - a closed range waits until all of it is there, so that a part of a segment comes whole or not at all;
//! - `bytes=0-` is answered as if it had not been asked: 200, the whole body as it grows (RFC 9110 section 14.2 allows to
//!   ignore any range);
//! - `bytes=N-L` with an absurdly large L is answered as RFC 8673 section 2.2 says: 206, `Content-Range: bytes N-L/*`,
//!   streamed as the object grows;
//! - `bytes=N-` with N > 0 is taken for the same, with L = 2^53 - 1. RFC 8673 would answer such a request with what
//!   is there at the moment and stop; but players of low-latency streams that send it mean "from here on", and one that
//!   wants a snapshot can send a closed range.
//! - a suffix waits for the end, since only then is it known which bytes it means.
#![deny(clippy::disallowed_methods)]

use std::ops::Range;

use crate::object::{End, Progress};

/// A last position from here on means "as far as it goes": far beyond any object, and below the 2^53 - 1 that players send.
pub const ABSURD: u64 = 1 << 40;

/// The largest integer that every client can read exactly; RFC 8673's "very large value" where the client gave none.
const VERY_LARGE: u64 = (1 << 53) - 1;

/// What a `Range` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// `first-last`, both included.
    Closed { first: u64, last: u64 },
    /// `first-`, or with a last position that is absurd.
    Open { first: u64, last: Option<u64> },
    /// The last so many bytes.
    Suffix(u64),
}

/// What to do about it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Answer with the whole body.
    Whole,
    /// 206 with these bytes; of a known total or `*`.
    Part { range: Range<u64>, total: Option<u64> },
    /// 206 from `first` on as the object grows; `last` is what `Content-Range` says.
    Stream { first: u64, last: u64 },
    /// Look again when the object has so many bytes or has ended.
    Wait(u64),
    /// 416: it has only so many bytes.
    Unsatisfiable(u64),
    /// The object broke before the range was there.
    Broken,
}

/// Reads a `Range` header. `None`: to be ignored (another unit, several ranges, nonsense).
pub fn parse(header: &str) -> Option<Asked> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (first, last) {
        ("", suffix) => Some(Asked::Suffix(position(suffix)?)),
        (first, "") => Some(Asked::Open { first: position(first)?, last: None }),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            if last < first {
                None
            } else if last >= ABSURD {
                Some(Asked::Open { first, last: Some(last) })
            } else {
                Some(Asked::Closed { first, last })
            }
        }
    }
}

/// Digits only; what does not fit is as far as one can count.
fn position(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(u64::MAX))
}

/// What a request means for an object that has come so far; `announced` is its length if the upstream said so.
pub fn resolve(asked: Asked, progress: Progress, announced: Option<u64>) -> Step {
    let Progress { len, end } = progress;
    let total = if end == End::Complete { Some(len) } else { announced };
    match (total, end) {
        (_, End::Failed) => match asked {
            Asked::Closed { first, last } if last < len => Step::Part { range: first..last + 1, total },
            _ => Step::Broken,
        },
        (Some(total), _) => known(asked, total),
        (None, _) => match asked {
            Asked::Closed { first, last } if last < len => Step::Part { range: first..last + 1, total },
            Asked::Closed { last, .. } => Step::Wait(last + 1),
            Asked::Open { first: 0, last: None } => Step::Whole,
            Asked::Open { first, last } if first < len => {
                Step::Stream { first, last: last.unwrap_or(VERY_LARGE).max(first) }
            }
            Asked::Open { first, .. } => Step::Wait(first.saturating_add(1)),
            Asked::Suffix(_) => Step::Wait(u64::MAX),
        },
    }
}

fn known(asked: Asked, total: u64) -> Step {
    let range = match asked {
        Asked::Closed { first, last } => first..total.min(last + 1),
        Asked::Open { first, .. } => first..total,
        Asked::Suffix(length) => total.saturating_sub(length)..total,
    };
    if range.is_empty() { Step::Unsatisfiable(total) } else { Step::Part { range, total: Some(total) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let open = |first, last| Some(Asked::Open { first, last });
        for (header, expected) in [
            ("bytes=0-0", Some(Asked::Closed { first: 0, last: 0 })),
            ("Bytes= 5-9 ", Some(Asked::Closed { first: 5, last: 9 })),
            ("bytes=5-", open(5, None)),
            ("bytes=5-9007199254740991", open(5, Some(9_007_199_254_740_991))),
            ("bytes=5-99999999999999999999999999", open(5, Some(u64::MAX))),
            ("bytes=99999999999999999999999999-", open(u64::MAX, None)),
            ("bytes=-7", Some(Asked::Suffix(7))),
            ("bytes=9-5", None),
            ("bytes=0-1,3-4", None),
            ("bytes=", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("bytes=1 -2", None),
            ("items=0-1", None),
            ("bytes", None),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    fn check(header: &str, len: u64, end: End, announced: Option<u64>, expected: Step) {
        let got = resolve(parse(header).unwrap(), Progress { len, end }, announced);
        assert_eq!(got, expected, "{header} of {len} {end:?} {announced:?}");
    }

    fn part(range: Range<u64>, total: Option<u64>) -> Step {
        Step::Part { range, total }
    }

    #[test]
    fn of_a_growing_object() {
        use End::Growing;
        check("bytes=0-9", 5, Growing, None, Step::Wait(10));
        check("bytes=0-9", 10, Growing, None, part(0..10, None));
        check("bytes=0-", 10, Growing, None, Step::Whole);
        check("bytes=3-", 10, Growing, None, Step::Stream { first: 3, last: VERY_LARGE });
        check("bytes=0-9007199254740991", 1, Growing, None, Step::Stream { first: 0, last: VERY_LARGE });
        check("bytes=10-", 10, Growing, None, Step::Wait(11));
        check("bytes=99999999999999999999999-", 10, Growing, None, Step::Wait(u64::MAX));
        check("bytes=-3", 10, Growing, None, Step::Wait(u64::MAX));
    }

    #[test]
    fn of_an_announced_length() {
        use End::Growing;
        check("bytes=0-9", 5, Growing, Some(20), part(0..10, Some(20)));
        check("bytes=5-", 5, Growing, Some(20), part(5..20, Some(20)));
        check("bytes=-3", 5, Growing, Some(20), part(17..20, Some(20)));
        check("bytes=20-", 5, Growing, Some(20), Step::Unsatisfiable(20));
    }

    #[test]
    fn of_a_complete_object() {
        use End::Complete;
        check("bytes=0-99", 10, Complete, None, part(0..10, Some(10)));
        check("bytes=3-9007199254740991", 10, Complete, None, part(3..10, Some(10)));
        check("bytes=10-10", 10, Complete, None, Step::Unsatisfiable(10));
        check("bytes=-30", 10, Complete, None, part(0..10, Some(10)));
        check("bytes=-0", 10, Complete, None, Step::Unsatisfiable(10));
        check("bytes=0-", 0, Complete, None, Step::Unsatisfiable(0));
        check("bytes=-5", 0, Complete, None, Step::Unsatisfiable(0));
    }

    #[test]
    fn of_a_broken_object() {
        use End::Failed;
        check("bytes=0-4", 5, Failed, Some(20), part(0..5, Some(20)));
        check("bytes=0-5", 5, Failed, None, Step::Broken);
        check("bytes=0-", 5, Failed, None, Step::Broken);
        check("bytes=-1", 5, Failed, None, Step::Broken);
    }
}
