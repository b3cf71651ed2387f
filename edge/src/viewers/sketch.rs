//! How many different numbers were noted, in 2 KiB, whatever their number: HyperLogLog (Flajolet, Fusy, Gandouet, Meunier:
//! "HyperLogLog", 2007) with the estimator of Ertl ("New cardinality estimation algorithms for HyperLogLog sketches", 2017,
//! algorithm 6), which needs no tables and is as good for one as for millions.
#![deny(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU8, Ordering};

/// Bits of a number that choose its register.
const INDEX_BITS: u32 = 11;

/// Registers, a byte each. The standard error is 1.04 / sqrt(2048): 2.3 %.
pub const REGISTERS: usize = 1 << INDEX_BITS;

/// Bits that are left for the rank.
const RANK_BITS: u32 = 64 - INDEX_BITS;

/// A set of numbers that only its size is remembered of. The numbers must be hashes: each bit of them as good as random.
#[derive(Debug)]
pub struct Sketch(Box<[AtomicU8; REGISTERS]>);

impl Default for Sketch {
    fn default() -> Sketch {
        Sketch(Box::new([const { AtomicU8::new(0) }; REGISTERS]))
    }
}

impl Sketch {
    /// Adds a number. Most find their register high enough and write nothing, so that the cores share it in peace.
    pub fn note(&self, hash: u64) {
        let register = &self.0[(hash >> RANK_BITS) as usize];
        let rest = hash << INDEX_BITS;
        let rank = (rest.leading_zeros().min(RANK_BITS) + 1) as u8;
        if register.load(Ordering::Relaxed) < rank {
            register.fetch_max(rank, Ordering::Relaxed);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        for register in &*self.0 {
            register.store(0, Ordering::Relaxed);
        }
    }

    /// About how many different numbers were noted in one or the other.
    pub fn count_of_both(&self, other: &Sketch) -> u64 {
        let mut counts = [0_u32; RANK_BITS as usize + 2];
        for (a, b) in self.0.iter().zip(&*other.0) {
            counts[usize::from(a.load(Ordering::Relaxed).max(b.load(Ordering::Relaxed)))] += 1;
        }
        estimate(&counts).round() as u64
    }
}

/// From how many registers hold each rank.
fn estimate(counts: &[u32; RANK_BITS as usize + 2]) -> f64 {
    let m = REGISTERS as f64;
    let (first, last) = (counts[0], counts[RANK_BITS as usize + 1]);
    let mut z = m * tau(1.0 - f64::from(last) / m);
    for count in counts[1..=RANK_BITS as usize].iter().rev() {
        z = 0.5 * (z + f64::from(*count));
    }
    z += m * sigma(f64::from(first) / m);
    m * m / (2.0 * std::f64::consts::LN_2 * z)
}

/// What the registers in which nothing was noted say; infinite if that is all of them.
fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z <= before {
            return z;
        }
    }
}

/// What the registers that can say no more say.
fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: numbers as good as random, the same each time.
    fn hash(n: u64) -> u64 {
        let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn few_are_counted_exactly_and_many_nearly() {
        let (sketch, empty) = (Sketch::default(), Sketch::default());
        assert_eq!(sketch.count_of_both(&empty), 0);
        let mut noted = 0;
        for (count, most_off) in
            [(1_u64, 0), (2, 0), (10, 0), (30, 1), (1000, 40), (20_000, 1400), (1_000_000, 70_000)]
        {
            // Each of them several times, as players ask.
            for n in 0..count {
                sketch.note(hash(n));
                sketch.note(hash(n / 2));
            }
            noted = noted.max(count);
            let found = sketch.count_of_both(&empty);
            assert!(found.abs_diff(noted) <= most_off, "{found} of {noted}");
        }
        sketch.clear();
        assert_eq!(sketch.count_of_both(&empty), 0);
    }

    #[test]
    fn who_is_in_both_counts_once() {
        let (a, b) = (Sketch::default(), Sketch::default());
        (0..20).for_each(|n| a.note(hash(n)));
        (10..30).for_each(|n| b.note(hash(n)));
        assert_eq!((a.count_of_both(&b), b.count_of_both(&a)), (30, 30));
    }

    #[test]
    fn the_worst_numbers_do_no_harm() {
        let (sketch, empty) = (Sketch::default(), Sketch::default());
        // The highest rank in all registers: nobody can choose hashes, but nothing may break.
        (0..REGISTERS as u64).for_each(|n| sketch.note(n << RANK_BITS));
        assert!(sketch.count_of_both(&empty) > 1 << 50);
        sketch.note(u64::MAX);
        sketch.note(0);
    }
}
