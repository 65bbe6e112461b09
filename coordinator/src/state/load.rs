//! How much each rank has to generate, and how much of the slots' time is used.
//!
//! Invariant: a rank may have a quarter more rollouts than slots, so that a slot never idles while the next
//! lease is on the network.

use std::collections::BTreeMap;

use g2rl_common::ids::Rank;

use super::interface::Millis;
use super::queue::Piece;

#[derive(Debug, Clone, Default)]
pub(super) struct RankLoad {
    slots: u32,
    outstanding: u32,
    /// Expected tokens of the outstanding rollouts.
    tokens: u64,
}

impl RankLoad {
    fn limit(&self) -> u32 {
        self.slots + (self.slots / 4).max(1)
    }

    /// Rollouts it can take.
    pub(super) fn capacity(&self) -> u32 {
        self.limit().saturating_sub(self.outstanding)
    }

    /// Slots without a rollout.
    pub(super) fn idle(&self) -> u32 {
        self.slots.saturating_sub(self.outstanding)
    }

    fn busy(&self) -> u32 {
        self.slots - self.idle()
    }

    /// Fewer outstanding tokens a slot than another rank.
    fn is_lighter_than(&self, other: &Self) -> bool {
        self.tokens * u64::from(other.slots.max(1)) < other.tokens * u64::from(self.slots.max(1))
    }
}

/// The loads of all ranks.
#[derive(Debug, Clone, Default)]
pub(super) struct Loads {
    ranks: Vec<RankLoad>,
    busy_slots: u64,
    /// `busy_ms` counts until then.
    counted_until: Millis,
    /// Sum over the slots.
    busy_ms: u64,
}

impl Loads {
    /// Begins to count the slots' time anew.
    pub(super) fn start_clock(&mut self, now: Millis) {
        (self.counted_until, self.busy_ms) = (now, 0);
    }

    /// Counts the slots' time until now, with the load there was.
    fn count_until(&mut self, now: Millis) {
        self.busy_ms += self.busy_slots * now.0.saturating_sub(self.counted_until.0);
        self.counted_until = now;
    }

    fn change_all(&mut self, now: Millis, change: impl FnOnce(&mut Vec<RankLoad>)) {
        self.count_until(now);
        change(&mut self.ranks);
        self.busy_slots = self.ranks.iter().map(|rank| u64::from(rank.busy())).sum();
    }

    fn change(&mut self, rank: Rank, now: Millis, change: impl FnOnce(&mut RankLoad)) {
        self.count_until(now);
        let load = &mut self.ranks[rank.0 as usize];
        let busy = u64::from(load.busy());
        change(load);
        self.busy_slots = self.busy_slots - busy + u64::from(load.busy());
    }

    pub(super) fn take(&mut self, rank: Rank, piece: &Piece, now: Millis) {
        self.change(rank, now, |load| {
            load.outstanding += piece.rollouts;
            load.tokens += u64::from(piece.rollouts) * u64::from(piece.expected_tokens);
        });
    }

    /// Some rollouts of a piece are back.
    pub(super) fn give_back(&mut self, rank: Rank, piece: &Piece, rollouts: u32, now: Millis) {
        self.change(rank, now, |load| {
            load.outstanding -= rollouts;
            load.tokens -= u64::from(rollouts) * u64::from(piece.expected_tokens);
        });
    }

    /// A lost rank has nothing.
    pub(super) fn release(&mut self, rank: Rank, now: Millis) {
        if (rank.0 as usize) < self.ranks.len() {
            self.change(rank, now, |load| *load = RankLoad::default());
        }
    }

    /// A new epoch: `moved` names every old rank that goes on.
    pub(super) fn move_ranks(&mut self, count: usize, moved: &BTreeMap<Rank, Rank>, now: Millis) {
        self.change_all(now, |ranks| {
            let mut loads = vec![RankLoad::default(); count];
            for (old, new) in moved {
                if let Some(load) = ranks.get_mut(old.0 as usize) {
                    loads[new.0 as usize] = std::mem::take(load);
                }
            }
            *ranks = loads;
        });
    }

    /// The ranks offer these slots, by rank.
    pub(super) fn set_slots(&mut self, slots: Vec<u32>, now: Millis) {
        assert_eq!(slots.len(), self.ranks.len(), "every rank offers slots");
        self.change_all(now, |ranks| {
            ranks.iter_mut().zip(slots).for_each(|(load, slots)| load.slots = slots);
        });
    }

    /// Nothing is outstanding any more, and the time does not count.
    pub(super) fn clear(&mut self) {
        for rank in &mut self.ranks {
            (rank.outstanding, rank.tokens) = (0, 0);
        }
        (self.busy_slots, self.busy_ms) = (0, 0);
    }

    /// Of the ranks that `fits` accepts the one with the fewest outstanding tokens a slot.
    pub(super) fn lightest(&self, fits: impl Fn(&RankLoad) -> bool) -> Option<Rank> {
        let mut best: Option<(usize, &RankLoad)> = None;
        for (rank, load) in self.ranks.iter().enumerate().filter(|(_, load)| fits(load)) {
            if best.is_none_or(|(_, lightest)| load.is_lighter_than(lightest)) {
                best = Some((rank, load));
            }
        }
        best.map(|(rank, _)| Rank(rank as u32))
    }

    /// Share of the slots' time since [`Self::start_clock`] that no rollout used, of the slots that so many
    /// rollouts can use.
    pub(super) fn idle_ratio(&self, rollouts: u64, duration_ms: u64) -> f64 {
        let slots: u64 = self.ranks.iter().map(|rank| u64::from(rank.slots)).sum();
        let whole = slots.min(rollouts) * duration_ms;
        if whole == 0 { 0.0 } else { (1.0 - self.busy_ms as f64 / whole as f64).max(0.0) }
    }

    /// Rollouts that a rank can take.
    pub(super) fn capacity(&self, rank: Rank) -> u32 {
        self.ranks[rank.0 as usize].capacity()
    }

    pub(super) fn outstanding_of(&self, rank: Rank) -> u32 {
        self.ranks.get(rank.0 as usize).map_or(0, |load| load.outstanding)
    }

    pub(super) fn slots_of(&self, rank: Rank) -> u32 {
        self.ranks.get(rank.0 as usize).map_or(0, |load| load.slots)
    }

    pub(super) fn idle_ranks(&self) -> usize {
        self.ranks.iter().filter(|rank| rank.idle() > 0).count()
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.ranks.iter().map(RankLoad::idle).sum()
    }
}
