//! Closed captions of a rung: what pictures say that it leaves out is said with the next one that is there, and what an encoder
//! does not write itself is written into the samples that it makes.

use media::captions::{MAX_TRIPLETS, TRIPLET_BYTES};
use media::codec::VideoCodec;
use prometheus_client::metrics::counter::Counter;

use crate::libav::{Failure, Picture};

/// Most constructs that wait, for a rung of 5 frames a second of a source with 120; beyond it the oldest are lost.
const MAX_WAITING: usize = 24 * MAX_TRIPLETS;

/// libavcodec's encoders of H.264 write them (`a53cc`), and count them in their bit rate. Of HEVC and AV1 some do in some
/// versions, so all of these are given pictures without captions.
pub(crate) fn are_written_by_encoders(codec: VideoCodec) -> bool {
    codec == VideoCodec::Avc
}

/// What was left out so far, in order.
#[derive(Debug)]
pub(crate) struct Captions {
    waiting: Vec<u8>,
    lost: Counter,
}

impl Captions {
    /// `lost` counts constructs for which there was no room.
    pub(crate) fn new(lost: Counter) -> Self {
        Self { waiting: Vec::new(), lost }
    }

    /// The picture is not encoded. Silence need not be carried along.
    pub(crate) fn left_out(&mut self, picture: &Picture) {
        self.add(picture.captions());
    }

    /// The picture is encoded, with what was left out before it: as much as one picture can have.
    pub(crate) fn shown_with(&mut self, mut picture: Picture) -> Result<Picture, Failure> {
        if !self.waiting.is_empty() || picture.captions().len() > MAX_TRIPLETS * TRIPLET_BYTES {
            self.add(picture.captions());
            let now = self.waiting.len().min(MAX_TRIPLETS * TRIPLET_BYTES);
            picture.set_captions(&self.waiting[..now])?;
            self.waiting.drain(..now);
        }
        Ok(picture)
    }

    /// Nothing of this rung is shown for now.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    fn add(&mut self, triplets: &[u8]) {
        // Valid, and not a pair of nulls of line 21 (CEA-608).
        let says = |triplet: &&[u8; TRIPLET_BYTES]| {
            let [head, first, second] = **triplet;
            head & 4 != 0 && (head & 2 != 0 || (first & 0x7F, second & 0x7F) != (0, 0))
        };
        let (triplets, _) = triplets.as_chunks::<TRIPLET_BYTES>();
        triplets.iter().filter(says).for_each(|triplet| self.waiting.extend_from_slice(triplet));
        let beyond = self.waiting.len().saturating_sub(MAX_WAITING * TRIPLET_BYTES);
        self.waiting.drain(..beyond);
        self.lost.inc_by((beyond / TRIPLET_BYTES) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(triplets: &[[u8; 3]]) -> Picture {
        let mut picture = Picture::grey(16, 16).unwrap();
        picture.set_captions(&triplets.concat()).unwrap();
        picture
    }

    #[test]
    fn what_is_left_out_is_said_later_in_order() {
        let mut captions = Captions::new(Counter::default());
        captions.left_out(&picture(&[[0xFC, 1, 1], [0xFD, 0x80, 0x80], [0xFA, 9, 9]]));
        let shown = captions.shown_with(picture(&[[0xFC, 2, 2]])).unwrap();
        assert_eq!(shown.captions(), [0xFC, 1, 1, 0xFC, 2, 2]);
        // With nothing waiting a picture keeps its own, padding included.
        let shown = captions.shown_with(picture(&[[0xFC, 0x80, 0x80]])).unwrap();
        assert_eq!(shown.captions(), [0xFC, 0x80, 0x80]);
    }

    #[test]
    fn more_than_a_picture_can_have_goes_on_with_the_next() {
        let mut captions = Captions::new(Counter::default());
        let said: Vec<[u8; 3]> = (0..70).map(|n| [0xFC, 1, 1 + n]).collect();
        let mut shown = captions.shown_with(picture(&said)).unwrap().captions().to_vec();
        assert_eq!(shown.len(), 31 * 3);
        for _ in 0..2 {
            shown.extend(captions.shown_with(picture(&[])).unwrap().captions());
        }
        assert_eq!(shown, said.concat());
        assert!(captions.shown_with(picture(&[])).unwrap().captions().is_empty());
    }

    #[test]
    fn what_waits_is_bounded_and_what_is_lost_is_counted() {
        let mut captions = Captions::new(Counter::default());
        for _ in 0..100 {
            captions.left_out(&picture(&[[0xFC, 1, 1]; 10]));
        }
        assert_eq!(captions.lost.get(), 1000 - 744);
        captions.forget();
        assert!(captions.shown_with(picture(&[])).unwrap().captions().is_empty());
    }
}
