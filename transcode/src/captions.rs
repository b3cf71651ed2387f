//! Closed captions of a rung that leaves pictures out: what these say is said with the next one that is there.

use crate::libav::{Failure, Picture};

/// Bytes of a construct of caption data (`cc_data_pkt`).
const TRIPLET: usize = 3;

/// Most of them that one picture can have: a count of five bits.
const MAX_OF_A_PICTURE: usize = 31;

/// Most that wait, for a rung of 5 frames a second of a source with 120; beyond it the oldest are lost.
const MAX_WAITING: usize = 24 * MAX_OF_A_PICTURE;

/// What was left out so far, in order.
#[derive(Debug, Default)]
pub(crate) struct Captions(Vec<u8>);

impl Captions {
    /// The picture is not encoded. Silence need not be carried along.
    pub(crate) fn left_out(&mut self, picture: &Picture) {
        self.add(picture.captions());
    }

    /// The picture is encoded, with what was left out before it.
    pub(crate) fn shown_with(&mut self, mut picture: Picture) -> Result<Picture, Failure> {
        if !self.0.is_empty() {
            self.add(picture.captions());
            let now = self.0.len().min(MAX_OF_A_PICTURE * TRIPLET);
            picture.set_captions(&self.0[..now])?;
            self.0.drain(..now);
        }
        Ok(picture)
    }

    fn add(&mut self, triplets: &[u8]) {
        // Valid, and not a pair of nulls of line 21 (CEA-608).
        let says = |triplet: &&[u8]| match **triplet {
            [head, first, second] => {
                head & 4 != 0 && (head & 2 != 0 || (first & 0x7F, second & 0x7F) != (0, 0))
            }
            _ => false,
        };
        triplets.chunks_exact(TRIPLET).filter(says).for_each(|triplet| self.0.extend_from_slice(triplet));
        self.0.drain(..self.0.len().saturating_sub(MAX_WAITING * TRIPLET));
    }
}
