//! Surround sound to stereo.
#![deny(clippy::disallowed_methods)]

/// Where a channel is heard, as libav's masks have it, and how much of it goes left and right. Centre and surrounds come with
/// 3 dB less (ITU-R BS.775, annex 4); the effects channel is left out, as there.
const SPEAKERS: [(u64, f32, f32); 13] = [
    // Front left, right and centre; effects.
    (1, 1.0, 0.0),
    (1 << 1, 0.0, 1.0),
    (1 << 2, ATTENUATED, ATTENUATED),
    (1 << 3, 0.0, 0.0),
    // Back left and right, front left and right of centre.
    (1 << 4, ATTENUATED, 0.0),
    (1 << 5, 0.0, ATTENUATED),
    (1 << 6, 1.0, 0.0),
    (1 << 7, 0.0, 1.0),
    // Back centre, side left and right.
    (1 << 8, 0.5, 0.5),
    (1 << 9, ATTENUATED, 0.0),
    (1 << 10, 0.0, ATTENUATED),
    // Wide left and right.
    (1 << 31, 1.0, 0.0),
    (1 << 32, 0.0, 1.0),
];

const ATTENUATED: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// What layouts of so many channels are where nobody says: AAC's, of 3 to 8.
const USUAL: [u64; 6] = [0x7, 0x107, 0x37, 0x3F, 0x13F, 0xFF];

/// How much of each channel goes left and right, in the order of `mask`'s bits. Together at most the whole, so that nothing
/// is ever clipped.
fn gains(mask: u64, channels: usize) -> Vec<(f32, f32)> {
    let usual = channels.checked_sub(3).and_then(|index| USUAL.get(index)).copied().unwrap_or(0x3);
    let mask = if mask.count_ones() as usize == channels { mask } else { usual };
    let speaker = |bit: u64| {
        let known = SPEAKERS.iter().find(|(speaker, ..)| *speaker == bit);
        known.map_or((0.0, 0.0), |(_, left, right)| (*left, *right))
    };
    let mut gains: Vec<_> = (0..64).map(|bit| 1 << bit).filter(|bit| mask & bit != 0).map(speaker).collect();
    let (left, right) = gains.iter().fold((0.0, 0.0), |(l, r), (left, right)| (l + left, r + right));
    let most = f32::max(left, right).max(1.0);
    for (left, right) in &mut gains {
        *left /= most;
        *right /= most;
    }
    gains
}

/// The planes of more than two channels as two. `mask` says which they are (libav's native order); 0 if that is not known.
pub(crate) fn to_stereo(planes: &[&[f32]], mask: u64) -> [Vec<f32>; 2] {
    let len = planes.first().map_or(0, |plane| plane.len());
    let mut mixed = [vec![0.0; len], vec![0.0; len]];
    for (plane, (left, right)) in planes.iter().zip(gains(mask, planes.len())) {
        for (side, gain) in mixed.iter_mut().zip([left, right]) {
            if gain > 0.0 {
                side.iter_mut().zip(*plane).for_each(|(out, sample)| *out += sample * gain);
            }
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_heard_where_they_are() {
        // 5.1 at full level everywhere: neither side is louder than full.
        let loud = [1.0f32];
        let mixed = to_stereo(&[&loud[..]; 6], 0x3F);
        assert!(mixed.iter().all(|side| (side[0] - 1.0).abs() < 1e-6), "{mixed:?}");
        let only = |index: usize, mask| {
            let silent = [0.0f32];
            let mut planes = [&silent[..]; 6];
            planes[index] = &loud;
            to_stereo(&planes, mask).map(|side| (side[0] * 2.414 * 100.0).round())
        };
        for (index, expected) in
            [[100.0, 0.0], [0.0, 100.0], [71.0, 71.0], [0.0, 0.0], [71.0, 0.0], [0.0, 71.0]]
                .into_iter()
                .enumerate()
        {
            // Surrounds at the back, at the sides, or not said.
            for mask in [0x3F, 0x60F, 0] {
                assert_eq!(only(index, mask), expected, "{index} of {mask:#x}");
            }
        }
        // Quad, and what nobody has a place for.
        let mixed = to_stereo(&[&[0.5], &[0.25], &[0.0], &[0.0]], 0x33);
        assert!((mixed[0][0] / mixed[1][0] - 2.0).abs() < 1e-6);
        assert_eq!(to_stereo(&[&[1.0], &[1.0], &[1.0]], 0x7 << 40), [[0.0], [0.0]].map(|side| side.to_vec()));
        assert_eq!(to_stereo(&[], 0), [vec![], vec![]]);
    }
}
