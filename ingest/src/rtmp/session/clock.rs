//! The broadcaster's clock: 31 bits made 32.
#![deny(clippy::disallowed_methods)]

/// How far around the half of 32 bits a step may be that is a wrap at 31 bits: frames of two tracks, and a pause.
const WRAP_SLACK_MS: u32 = 20_000;

/// How far a data message may be from the media before its time is not believed.
const MOMENT_SLACK_MS: u32 = 10_000;

/// FLV calls its timestamps signed, and some muxers (ffmpeg's is one) keep the sign bit zero: theirs wrap at 2^31 instead of
/// 2^32, after 24.8 days. What leaves here wraps at 2^32 only: POP and origin must speak of the same time.
#[derive(Default)]
pub(super) struct Clock {
    last: Option<u32>,
    /// Zero, or 2^31 after every second wrap.
    offset: u32,
    pub(super) wraps: u64,
}

impl Clock {
    pub(super) fn extend(&mut self, time_ms: u32) -> u32 {
        const HALF: u32 = 1 << 31;
        let step = self.last.map_or(0, |last| time_ms.wrapping_sub(last) as i32);
        if step.unsigned_abs() >= HALF - WRAP_SLACK_MS {
            self.offset ^= HALF;
            self.wraps += 1;
        }
        self.last = Some(time_ms);
        time_ms.wrapping_add(self.offset)
    }

    /// The same of a data message, which nothing follows. Some encoders stamp them zero, or with a time of their own: what is
    /// far from the media is of its newest frame.
    pub(super) fn moment(&self, time_ms: u32) -> u32 {
        let far = |last: &u32| time_ms.wrapping_sub(*last).cast_signed().unsigned_abs() > MOMENT_SLACK_MS;
        self.last.filter(far).unwrap_or(time_ms).wrapping_add(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_messages_are_of_their_moment_or_of_now() {
        let mut clock = Clock::default();
        assert_eq!(clock.moment(5), 5);
        clock.extend(100_000);
        for (sent, moment) in [(100_500, 100_500), (90_000, 90_000), (0, 100_000), (110_001, 100_000)] {
            assert_eq!(clock.moment(sent), moment, "{sent}");
        }
        // A clock of 31 bits that has wrapped.
        clock.extend((1 << 31) - 1);
        clock.extend(0);
        assert_eq!(clock.moment(40), (1 << 31) + 40);
    }

    #[test]
    fn a_clock_of_31_bits_goes_on_and_one_of_32_is_left_alone() {
        let extend = |times: &[u32]| {
            let mut clock = Clock::default();
            let extended: Vec<u32> = times.iter().map(|time| clock.extend(*time)).collect();
            (extended, clock.wraps)
        };
        const HALF: u32 = 1 << 31;
        // The second track is a little behind, and says so across the wrap.
        let times = [HALF - 40, HALF - 60, 0, HALF - 20, 40, HALF - 10, HALF - 5, 30];
        let (extended, wraps) = extend(&times);
        let expected = [-40i32, -60, 0, -20, 40, -10, -5, 30].map(|from| HALF.wrapping_add_signed(from));
        assert_eq!((extended, wraps % 2), (expected.to_vec(), 1));
        // Twice around is all the way around.
        let (extended, wraps) = extend(&[HALF - 1, 0, HALF / 2, HALF - 1, 5]);
        assert_eq!((extended.last(), wraps), (Some(&5), 2));
        for times in [&[HALF - 1, HALF, HALF + 1][..], &[u32::MAX, 0], &[90_000, 0], &[HALF, 1 << 30, HALF]] {
            assert_eq!(extend(times), (times.to_vec(), 0));
        }
    }
}
