//! Who owns which tokens of the pool: a first-fit list of free extents.
//!
//! Invariants: free extents are sorted, do not touch and do not overlap; free and taken tokens together
//! are all of the pool but its first token, which belongs to nobody (rows that are not alive write there).

/// Consecutive tokens of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first token.
    pub(crate) start: i64,
    /// How many, at least 1.
    pub(crate) length: i64,
}

impl Extent {
    fn end(self) -> i64 {
        self.start + self.length
    }
}

/// The free extents of a pool.
#[derive(Debug)]
pub(super) struct Extents {
    tokens: i64,
    free: Vec<Extent>,
}

impl Extents {
    /// A pool of so many tokens, the first one, which is never given away, included.
    pub(super) fn new(tokens: i64) -> Self {
        let mut extents = Self { tokens, free: Vec::new() };
        extents.clear();
        extents
    }

    /// All tokens of the pool, the first one included.
    pub(super) fn tokens(&self) -> i64 {
        self.tokens
    }

    /// Takes the first free extent that is large enough; `None` if there is none.
    pub(super) fn take(&mut self, length: i64) -> Option<Extent> {
        assert!(length > 0, "an extent holds at least one token");
        let at = self.free.iter().position(|free| free.length >= length)?;
        let found = self.free[at];
        if found.length == length {
            self.free.remove(at);
        } else {
            self.free[at] = Extent { start: found.start + length, length: found.length - length };
        }
        Some(Extent { start: found.start, length })
    }

    /// Gives an extent back.
    pub(super) fn give(&mut self, extent: Extent) {
        let at = self.free.partition_point(|free| free.start < extent.start);
        let before = at.checked_sub(1).map(|before| self.free[before]);
        let after = self.free.get(at).copied();
        assert!(
            extent.start >= 1
                && extent.end() <= self.tokens
                && before.is_none_or(|before| before.end() <= extent.start)
                && after.is_none_or(|after| extent.end() <= after.start),
            "{extent:?} is not taken"
        );
        let joins_before = before.is_some_and(|before| before.end() == extent.start);
        let joins_after = after.is_some_and(|after| extent.end() == after.start);
        match (joins_before, joins_after) {
            (true, true) => {
                self.free[at - 1].length += extent.length + self.free[at].length;
                self.free.remove(at);
            }
            (true, false) => self.free[at - 1].length += extent.length,
            (false, true) => {
                self.free[at] = Extent { start: extent.start, length: extent.length + self.free[at].length };
            }
            (false, false) => self.free.insert(at, extent),
        }
    }

    /// Everything is free again.
    pub(super) fn clear(&mut self) {
        self.free.clear();
        if self.tokens > 1 {
            self.free.push(Extent { start: 1, length: self.tokens - 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_that_fits_is_taken_and_neighbours_join() {
        let mut extents = Extents::new(11);
        let [a, b, c] = [3, 4, 2].map(|length| extents.take(length).unwrap());
        assert_eq!((a.start, b.start, c.start), (1, 4, 8));
        assert_eq!(extents.take(2), None, "one token is left");
        extents.give(a);
        extents.give(c);
        // Free are 1-3 and 8-10.
        assert_eq!(extents.take(2), Some(Extent { start: 1, length: 2 }));
        extents.give(b);
        // Free are 3-10.
        assert_eq!(extents.take(8), Some(Extent { start: 3, length: 8 }));
        extents.clear();
        assert_eq!(extents.take(10), Some(Extent { start: 1, length: 10 }));
        assert_eq!(extents.take(1), None);
    }

    #[test]
    #[should_panic(expected = "is not taken")]
    fn what_is_free_cannot_be_given_back() {
        let mut extents = Extents::new(11);
        let taken = extents.take(4).unwrap();
        extents.give(taken);
        extents.give(taken);
    }

    proptest! {
        /// Against a map of single tokens: nobody shares a token, nothing is lost, and an extent is refused
        /// only where no run of free tokens is long enough.
        #[test]
        fn extents_never_overlap_and_nothing_is_lost(
            steps in prop::collection::vec((any::<bool>(), 1i64..20, any::<prop::sample::Index>()), 1..200)
        ) {
            const TOKENS: usize = 64;
            let mut extents = Extents::new(TOKENS as i64);
            let mut owned = [false; TOKENS];
            owned[0] = true;
            let mut taken: Vec<Extent> = Vec::new();
            let range = |extent: Extent| extent.start as usize..extent.end() as usize;
            for (take, length, which) in steps {
                if take || taken.is_empty() {
                    let longest = owned.split(|owned| *owned).map(<[bool]>::len).max().unwrap_or(0);
                    let found = extents.take(length);
                    prop_assert_eq!(found.is_some(), longest >= length as usize);
                    if let Some(extent) = found {
                        prop_assert_eq!(extent.length, length);
                        prop_assert!(owned[range(extent)].iter().all(|owned| !owned));
                        owned[range(extent)].fill(true);
                        taken.push(extent);
                    }
                } else {
                    let extent = taken.swap_remove(which.index(taken.len()));
                    owned[range(extent)].fill(false);
                    extents.give(extent);
                }
            }
            taken.drain(..).for_each(|extent| extents.give(extent));
            prop_assert_eq!(extents.take(TOKENS as i64 - 1), Some(Extent { start: 1, length: TOKENS as i64 - 1 }));
        }
    }
}
