//! Chance that repeats itself.
#![deny(clippy::disallowed_methods)]

/// xorshift64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 0 to `below`, without it. `below` is not 0.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    /// From 0 to 1, neither of them.
    pub fn share(&mut self) -> f64 {
        (self.below(1 << 32) as f64 + 0.5) / (1_u64 << 32) as f64
    }
}
