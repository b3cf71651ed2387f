//! Interlaced pictures to progressive ones, as many as there were: the field that is shown first stays as it is, and the
//! lines between are made for its time. Where nothing moves they are the other field's; where something does they are
//! interpolated along edges, within what the other field's lines before and after allow.
//!
//! It looks back and not ahead, so it adds no delay.
#![deny(clippy::disallowed_methods)]

use std::array;

/// One plane of a picture, 8 bits a sample. Lines are `stride` bytes apart and `width` long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plane<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl<'a> Plane<'a> {
    /// Line `y`; outside the picture the nearest line of the same field.
    fn line(&self, y: isize) -> &'a [u8] {
        let height = self.height as isize;
        let inside = if y < 0 {
            y.rem_euclid(2)
        } else if y >= height {
            y - ((y - height) / 2 + 1) * 2
        } else {
            y
        };
        let at = inside.clamp(0, height - 1) as usize * self.stride;
        &self.bytes[at..at + self.width]
    }
}

/// Writes the plane `now` with the lines of one field made anew, those with odd numbers if `odd`. `before` is the same plane
/// of the picture before, if there is one of that size. `out` has lines that are `stride` bytes apart, too.
pub(crate) fn fill_in(out: &mut [u8], stride: usize, now: Plane<'_>, before: Option<Plane<'_>>, odd: bool) {
    let Plane { width, height, .. } = now;
    if width == 0 || stride < width {
        return;
    }
    for (number, out) in out.chunks_mut(stride).take(height).enumerate() {
        let (out, y) = (&mut out[..width], number as isize);
        if (number % 2 == 1) != odd || height < 2 {
            out.copy_from_slice(now.line(y));
            continue;
        }
        let kept = [now.line(y - 1), now.line(y + 1)];
        interpolate(out, kept);
        if let Some(before) = before {
            limit(out, [before.line(y), now.line(y)], kept, [before.line(y - 1), before.line(y + 1)]);
        }
    }
}

/// Fills a line between those above and below: straight down, or along an edge that leans by a sample to either side.
fn interpolate(out: &mut [u8], [above, below]: [&[u8]; 2]) {
    for (out, (above, below)) in out.iter_mut().zip(above.iter().zip(below)) {
        *out = mean(*above, *below);
    }
    // Two samples to each side are looked at.
    let Some(inner) = out.len().checked_sub(4) else { return };
    let above: [&[u8]; 5] = array::from_fn(|from| &above[from..from + inner]);
    let below: [&[u8]; 5] = array::from_fn(|from| &below[from..from + inner]);
    let out = &mut out[2..2 + inner];
    for at in 0..inner {
        // How different three pairs of samples are that lie across the line.
        let across = |a: usize, b: usize| {
            let pair = |i: usize| u16::from(above[a + i][at].abs_diff(below[b + i][at]));
            pair(0) + pair(1) + pair(2)
        };
        let (straight, left, right) = (across(1, 1), across(0, 2), across(2, 0));
        let mut value = out[at];
        if left + EDGE < straight && left <= right {
            value = mean(above[1][at], below[3][at]);
        }
        if right + EDGE < straight && right < left {
            value = mean(above[3][at], below[1][at]);
        }
        out[at] = value;
    }
}

/// An edge must fit so much better than straight down, or noise makes edges everywhere.
const EDGE: u16 = 6;

/// Keeps a line near to what the other field has there, just before and just after: as near as they are to one another, and
/// the lines around to what they were.
fn limit(out: &mut [u8], other: [&[u8]; 2], kept: [&[u8]; 2], kept_before: [&[u8]; 2]) {
    let len = out.len();
    let [earlier, later] = other.map(|line| &line[..len]);
    let [above, below] = kept.map(|line| &line[..len]);
    let [above_before, below_before] = kept_before.map(|line| &line[..len]);
    for at in 0..len {
        let moved = mean(above[at].abs_diff(above_before[at]), below[at].abs_diff(below_before[at]));
        let apart = mean(earlier[at].abs_diff(later[at]), 0);
        let (middle, spread) = (mean(earlier[at], later[at]), moved.max(apart));
        out[at] = out[at].clamp(middle.saturating_sub(spread), middle.saturating_add(spread));
    }
}

/// Rounded up.
fn mean(a: u8, b: u8) -> u8 {
    (u16::from(a) + u16::from(b)).div_ceil(2) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 64;
    const HEIGHT: usize = 48;

    /// A picture, lines a little farther apart than they are long.
    fn drawn(at: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        let stride = WIDTH + 3;
        (0..stride * HEIGHT)
            .map(|index| if index % stride < WIDTH { at(index % stride, index / stride) } else { 99 })
            .collect()
    }

    fn plane(bytes: &[u8]) -> Plane<'_> {
        Plane { bytes, stride: WIDTH + 3, width: WIDTH, height: HEIGHT }
    }

    fn filled(now: &[u8], before: Option<&[u8]>, odd: bool) -> Vec<u8> {
        let mut out = vec![0; (WIDTH + 5) * HEIGHT];
        fill_in(&mut out, WIDTH + 5, plane(now), before.map(plane), odd);
        out.chunks(WIDTH + 5).flat_map(|line| &line[..WIDTH]).copied().collect()
    }

    fn error(picture: &[u8], at: impl Fn(usize, usize) -> u8) -> f64 {
        let off = picture
            .iter()
            .enumerate()
            .map(|(index, value)| f64::from(value.abs_diff(at(index % WIDTH, index / WIDTH))).powi(2));
        off.sum::<f64>() / picture.len() as f64
    }

    #[test]
    fn what_stands_still_stays_as_it_is() {
        // Single lines, which interpolation alone would lose.
        let still = |x: usize, y: usize| if y.is_multiple_of(5) { 200 } else { (x * 3) as u8 };
        let picture = drawn(still);
        for odd in [false, true] {
            assert_eq!(error(&filled(&picture, Some(&picture), odd), still), 0.0);
            assert!(error(&filled(&picture, None, odd), still) > 100.0);
        }
    }

    #[test]
    fn what_moves_is_shown_at_the_time_of_the_first_field() {
        // A bar that moves to the right, and a slanted edge; fields are half a picture's time apart.
        let scene = |time: usize| {
            move |x: usize, y: usize| {
                let bar = (8 + time * 3..16 + time * 3).contains(&x);
                if bar {
                    230
                } else if x + HEIGHT - y > 70 {
                    160
                } else {
                    30
                }
            }
        };
        for top_first in [true, false] {
            let woven =
                |time: usize| drawn(move |x, y| scene(time + usize::from((y % 2 == 1) == top_first))(x, y));
            let (before, now) = (woven(4), woven(6));
            let out = filled(&now, Some(&before), top_first);
            let combed = filled(&now, None, top_first);
            let raw: Vec<u8> = now.chunks(WIDTH + 3).flat_map(|line| &line[..WIDTH]).copied().collect();
            let (with, without) = (error(&out, scene(6)), error(&raw, scene(6)));
            assert!(with * 20.0 < without, "{with} of {without}");
            assert!(error(&combed, scene(6)) * 10.0 < without, "without a picture before");
        }
    }

    #[test]
    fn tiny_planes_are_copied_or_filled() {
        for (width, height) in [(0, 0), (1, 1), (3, 1), (1, 2), (4, 3), (5, 5)] {
            let bytes = vec![7; width * height];
            let now = Plane { bytes: &bytes, stride: width, width, height };
            for odd in [false, true] {
                let mut out = vec![0; width * height];
                fill_in(&mut out, width, now, Some(now), odd);
                assert_eq!(out, bytes);
            }
        }
    }
}
