//! Reads bit fields and Exp-Golomb codes; `None` past the end.
#![deny(clippy::disallowed_methods)]

pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Up to 32 bits.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        let mut value = 0u32;
        for _ in 0..count {
            let byte = self.bytes.get(self.position / 8)?;
            value = (value << 1) | u32::from(byte >> (7 - self.position % 8) & 1);
            self.position += 1;
        }
        Some(value)
    }

    /// Any number of bits.
    pub(super) fn skip(&mut self, count: usize) -> Option<()> {
        self.position += count;
        (self.position <= 8 * self.bytes.len()).then_some(())
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        self.take(1).map(|bit| bit == 1)
    }

    /// ue(v), H.264 9.1.
    pub(super) fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let value = (1u64 << zeros) - 1 + u64::from(self.take(zeros)?);
        u32::try_from(value).ok()
    }

    /// se(v), H.264 9.1.1.
    pub(super) fn signed(&mut self) -> Option<i32> {
        let code = i64::from(self.unsigned()?);
        let value = if code % 2 == 0 { -(code / 2) } else { (code + 1) / 2 };
        i32::try_from(value).ok()
    }
}
