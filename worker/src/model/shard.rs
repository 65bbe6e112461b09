//! Which optimizer state lies on which rank (ZeRO-1).
//!
//! Every bucket of the flat buffers is cut into one piece for each rank. A rank keeps f32 master weights and
//! moments of its pieces only, one after the other in a flat tensor; gradients are summed to the piece's rank,
//! which steps, and the new weights are sent to all. Gradients and the weights that are computed with stay
//! whole on every rank.
//!
//! Invariant: the pieces of all ranks tile the buffer. The last ones of a bucket may be shorter, or empty.

use std::ops::Range;

use g2rl_ffi::FfiError;
use g2rl_ffi::process_group::{ProcessGroup, Work};
use tch::{Device, Tensor};

use super::layout::Layout;

/// One rank's part of the optimizer state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    rank: u32,
    ranks: u32,
    buckets: Vec<Range<i64>>,
}

/// Elements that are neighbours in the flat buffer and in the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First element in the flat buffer of all parameters.
    pub flat: i64,
    /// First element in the shard.
    pub own: i64,
    /// Number of elements.
    pub length: i64,
}

impl Shard {
    /// The part of `rank` of `ranks`.
    #[must_use]
    pub fn new(layout: &Layout, rank: u32, ranks: u32) -> Self {
        Self { rank, ranks: ranks.max(1), buckets: layout.buckets().to_vec() }
    }

    /// No elements at all.
    #[must_use]
    pub fn nothing() -> Self {
        Self { rank: 0, ranks: 1, buckets: Vec::new() }
    }

    /// Everything on one rank.
    #[must_use]
    pub fn whole(layout: &Layout) -> Self {
        Self::new(layout, 0, 1)
    }

    /// Whether other ranks hold parts.
    #[must_use]
    pub fn is_divided(&self) -> bool {
        self.ranks > 1
    }

    /// Whether this is rank 0's part.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The piece of a bucket that a rank holds.
    #[must_use]
    pub fn piece(&self, bucket: usize, rank: u32) -> Range<i64> {
        let Range { start, end } = self.buckets[bucket];
        if !self.is_divided() {
            return start..end;
        }
        let length = (end - start + i64::from(self.ranks) - 1) / i64::from(self.ranks);
        let at = |rank: u32| (start + i64::from(rank) * length).min(end);
        at(rank)..at(rank + 1)
    }

    /// This rank's pieces that are not empty. Where nothing is divided the buckets are one piece.
    #[must_use]
    pub fn pieces(&self) -> Vec<Piece> {
        let mut own = 0;
        let mut pieces: Vec<Piece> = Vec::new();
        for bucket in 0..self.buckets.len() {
            let range = self.piece(bucket, self.rank);
            let length = range.end - range.start;
            match pieces.last_mut() {
                Some(last) if last.flat + last.length == range.start => last.length += length,
                _ if length > 0 => pieces.push(Piece { flat: range.start, own, length }),
                _ => {}
            }
            own += length;
        }
        pieces
    }

    /// Elements that this rank holds.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.pieces().iter().map(|piece| piece.length).sum()
    }

    /// Whether this rank holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes this rank's elements of a flat tensor of all parameters into `own`.
    pub fn take(&self, flat: &Tensor, own: &Tensor) {
        for piece in self.pieces() {
            own.narrow(0, piece.own, piece.length).copy_(&flat.narrow(0, piece.flat, piece.length));
        }
    }

    /// Writes this rank's elements into a flat tensor of all parameters, of any float kind.
    pub fn put(&self, own: &Tensor, flat: &Tensor) {
        for piece in self.pieces() {
            flat.narrow(0, piece.flat, piece.length).copy_(&own.narrow(0, piece.own, piece.length));
        }
    }

    /// Starts to sum a bucket of the flat gradients to the ranks that hold its pieces.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is gone.
    pub fn reduce(&self, group: &ProcessGroup, flat: &Tensor, bucket: usize) -> Result<Vec<Work>, FfiError> {
        self.each_piece(bucket)
            .map(|(rank, range)| group.reduce(&flat.narrow(0, range.start, range.end - range.start), rank))
            .collect()
    }

    /// Sends every rank's elements of a flat tensor to all others, and waits until they are there.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is gone or too slow.
    pub fn gather(&self, group: &ProcessGroup, flat: &Tensor) -> Result<(), FfiError> {
        let mut running = Vec::new();
        for bucket in 0..self.buckets.len() {
            for (rank, range) in self.each_piece(bucket) {
                running.push(group.broadcast(&flat.narrow(0, range.start, range.end - range.start), rank)?);
            }
        }
        running.into_iter().try_for_each(|work| work.wait(None))
    }

    /// Writes the elements of all ranks into `whole`, `[parameters] f32` in host memory, which rank 0 has; the
    /// others must call it too. The pieces pass through the `device` one at a time.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is gone or too slow.
    pub fn collect(
        &self,
        group: &ProcessGroup,
        own: &Tensor,
        whole: Option<&Tensor>,
        device: Device,
    ) -> Result<(), FfiError> {
        if let Some(whole) = whole {
            self.put(own, whole);
        }
        let mut at = 0;
        for bucket in 0..self.buckets.len() {
            let mine = self.piece(bucket, self.rank);
            for (rank, range) in self.each_piece(bucket).filter(|(rank, _)| *rank != 0) {
                let length = range.end - range.start;
                let piece = match rank == self.rank {
                    true => own.narrow(0, at, length).to_device(device),
                    false => Tensor::empty([length], (own.kind(), device)),
                };
                group.broadcast(&piece, rank)?.wait(None)?;
                if let Some(whole) = whole {
                    whole.narrow(0, range.start, length).copy_(&piece);
                }
            }
            at += mine.end - mine.start;
        }
        Ok(())
    }

    /// The pieces of a bucket that are not empty, with their ranks.
    fn each_piece(&self, bucket: usize) -> impl Iterator<Item = (u32, Range<i64>)> {
        (0..self.ranks)
            .map(move |rank| (rank, self.piece(bucket, rank)))
            .filter(|(_, range)| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn shard(rank: u32, ranks: u32) -> Shard {
        Shard { rank, ranks, buckets: vec![0..7, 7..8, 8..20] }
    }

    #[test]
    fn pieces_of_all_ranks_tile_the_buffer() {
        for ranks in 1..6 {
            let mut covered: Vec<i64> = Vec::new();
            for rank in 0..ranks {
                let shard = shard(rank, ranks);
                let mut own = 0;
                for piece in shard.pieces() {
                    assert_eq!(piece.own, own);
                    own += piece.length;
                    covered.extend(piece.flat..piece.flat + piece.length);
                }
                assert_eq!(own, shard.len());
            }
            covered.sort_unstable();
            assert_eq!(covered, (0..20).collect::<Vec<_>>(), "{ranks} ranks");
        }
    }

    #[test]
    fn three_ranks_by_hand() {
        // 7 = 3 + 3 + 1, 1 = 1 + 0 + 0, 12 = 4 + 4 + 4.
        let pieces = |rank| shard(rank, 3).pieces();
        let piece = |flat, own, length| Piece { flat, own, length };
        assert_eq!(pieces(0), [piece(0, 0, 3), piece(7, 3, 5)]);
        assert_eq!(pieces(1), [piece(3, 0, 3), piece(12, 3, 4)]);
        assert_eq!(pieces(2), [piece(6, 0, 1), piece(16, 1, 4)]);
        assert_eq!(shard(0, 1).pieces(), [piece(0, 0, 20)]);
    }

    #[test]
    fn what_is_taken_can_be_put_back() {
        let flat = Tensor::arange(20, (Kind::Float, Device::Cpu));
        let back = Tensor::zeros([20], (Kind::Float, Device::Cpu));
        for rank in 0..3 {
            let own = Tensor::zeros([shard(rank, 3).len()], (Kind::Float, Device::Cpu));
            shard(rank, 3).take(&flat, &own);
            shard(rank, 3).put(&own, &back);
        }
        assert_eq!(back, flat);
    }
}
