//! Which rank generates which rollouts.
//!
//! In: rollouts to generate, the decode slots of the ranks, rollouts that came back. Out: leases.
//!
//! Invariants: a rollout is leased to at most one rank at a time. A rank never has more rollouts
//! outstanding than its slots and a quarter (so that a slot never idles while the next lease is on
//! the network), and while rollouts are queued, no rank has an idle slot. Work goes first to the
//! rank with the most free capacity, the lower rank on a tie, so that the same events give the same
//! leases. Which rank generates a rollout never changes its tokens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, Rank, RolloutId};

use super::interface::{LeaseOrder, Millis, ProblemRef};

/// Some or all rollouts of a group, not leased yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) group: GroupId,
    pub(super) problem: ProblemRef,
    pub(super) first_rollout: u32,
    pub(super) rollouts: u32,
    pub(super) stream_offset: u32,
}

#[derive(Debug, Clone)]
struct Queued {
    piece: Piece,
    /// No part of the group was cut off yet; only such a group is cut into equal parts.
    whole: bool,
}

/// Work that a rank has and has not given back.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) rank: Rank,
    pub(super) piece: Piece,
    /// Rollout indices that are not back.
    pub(super) missing: BTreeSet<u32>,
    pub(super) deadline: Millis,
}

#[derive(Debug, Clone)]
struct RankLoad {
    slots: u32,
    outstanding: u32,
}

impl RankLoad {
    fn limit(&self) -> u32 {
        self.slots + (self.slots / 4).max(1)
    }

    fn capacity(&self) -> u32 {
        self.limit() - self.outstanding
    }

    fn idle(&self) -> u32 {
        self.slots.saturating_sub(self.outstanding)
    }
}

/// What a rollout that came back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The first of its kind.
    Accepted,
    /// Its lease is no more, or it was here before.
    Stale,
    /// Its lease does not ask for it.
    NotAsked,
}

/// All leases of the standing epoch.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaseBook {
    next: LeaseId,
    ranks: Vec<RankLoad>,
    queue: VecDeque<Queued>,
    leases: BTreeMap<LeaseId, Lease>,
}

impl LeaseBook {
    /// The ranks of a new epoch, by rank, with their slots.
    pub(super) fn set_ranks(&mut self, slots: impl IntoIterator<Item = u32>) {
        assert!(self.leases.is_empty(), "a new epoch begins with leases of the old one");
        self.ranks = slots.into_iter().map(|slots| RankLoad { slots, outstanding: 0 }).collect();
    }

    /// Queues a whole group.
    pub(super) fn push(&mut self, piece: Piece) {
        assert!(piece.rollouts > 0, "group {} without rollouts", piece.group);
        self.queue.push_back(Queued { piece, whole: true });
    }

    /// Hands out as much of the queue as the ranks can take.
    pub(super) fn assign(&mut self, version: PolicyVersion, deadline: Millis) -> Vec<(Rank, LeaseOrder)> {
        let mut orders = Vec::new();
        self.cut_when_few_are_left();
        while let Some((rank, piece)) = self.next_piece() {
            let lease = self.next;
            self.next = self.next.next();
            self.ranks[rank].outstanding += piece.rollouts;
            let rank = Rank(rank as u32);
            let missing = (piece.first_rollout..piece.first_rollout + piece.rollouts).collect();
            self.leases.insert(lease, Lease { rank, piece, missing, deadline });
            let Piece { group, problem, first_rollout, rollouts, stream_offset } = piece;
            orders.push((
                rank,
                LeaseOrder {
                    lease,
                    group,
                    problem,
                    policy_version: version,
                    first_rollout,
                    rollouts,
                    stream_offset,
                },
            ));
        }
        orders
    }

    /// With fewer groups queued than ranks with idle slots, each group is cut into equal parts so
    /// that every such rank gets one.
    fn cut_when_few_are_left(&mut self) {
        let idle_ranks = self.ranks.iter().filter(|rank| rank.idle() > 0).count();
        let queued = self.queue.len();
        if queued == 0 || queued >= idle_ranks {
            return;
        }
        let parts = idle_ranks.div_ceil(queued) as u32;
        for Queued { piece, whole } in std::mem::take(&mut self.queue) {
            if !whole {
                self.queue.push_back(Queued { piece, whole });
                continue;
            }
            let part = piece.rollouts.div_ceil(parts);
            let end = piece.first_rollout + piece.rollouts;
            for first_rollout in (piece.first_rollout..end).step_by(part as usize) {
                let rollouts = part.min(end - first_rollout);
                let piece = Piece { first_rollout, rollouts, ..piece };
                self.queue.push_back(Queued { piece, whole: false });
            }
        }
    }

    /// The next lease, if a rank can take one. A piece stays whole where it fits (its prompt is
    /// then prefilled once); it is cut only for a rank that would otherwise have idle slots.
    fn next_piece(&mut self) -> Option<(usize, Piece)> {
        let head = self.queue.front_mut()?;
        let (rank, load) = self
            .ranks
            .iter()
            .enumerate()
            .max_by_key(|(rank, load)| (load.capacity(), std::cmp::Reverse(*rank)))?;
        if head.piece.rollouts <= load.capacity() {
            return self.queue.pop_front().map(|queued| (rank, queued.piece));
        }
        // Ranks may differ in size: the one with idle slots need not be the one with most capacity.
        let (rank, load) = self
            .ranks
            .iter()
            .enumerate()
            .filter(|(_, load)| load.idle() > 0)
            .max_by_key(|(rank, load)| (load.capacity(), std::cmp::Reverse(*rank)))?;
        let piece = Piece { rollouts: load.capacity(), ..head.piece };
        head.piece.first_rollout += piece.rollouts;
        head.piece.rollouts -= piece.rollouts;
        head.whole = false;
        Some((rank, piece))
    }

    /// Takes back a rollout.
    pub(super) fn arrived(&mut self, rank: Rank, lease: LeaseId, rollout: RolloutId) -> Arrival {
        let Some(entry) = self.leases.get_mut(&lease).filter(|entry| entry.rank == rank) else {
            return Arrival::Stale;
        };
        let Piece { group, first_rollout, rollouts, .. } = entry.piece;
        if rollout.group != group || !(first_rollout..first_rollout + rollouts).contains(&rollout.index) {
            return Arrival::NotAsked;
        }
        if !entry.missing.remove(&rollout.index) {
            return Arrival::Stale;
        }
        self.ranks[rank.0 as usize].outstanding -= 1;
        if entry.missing.is_empty() {
            self.leases.remove(&lease);
        }
        Arrival::Accepted
    }

    /// The lease, if this rank has it.
    pub(super) fn get(&self, rank: Rank, lease: LeaseId) -> Option<&Lease> {
        self.leases.get(&lease).filter(|entry| entry.rank == rank)
    }

    /// Forgets everything queued or leased of a group.
    pub(super) fn drop_group(&mut self, group: GroupId) {
        self.queue.retain(|queued| queued.piece.group != group);
        let ranks = &mut self.ranks;
        self.leases.retain(|_, lease| {
            if lease.piece.group == group {
                ranks[lease.rank.0 as usize].outstanding -= lease.missing.len() as u32;
            }
            lease.piece.group != group
        });
    }

    /// Forgets everything queued or leased.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.leases.clear();
        for rank in &mut self.ranks {
            rank.outstanding = 0;
        }
    }

    /// Leases with rollouts that are not back, in order.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    pub(super) fn outstanding_of(&self, rank: Rank) -> u32 {
        self.ranks.get(rank.0 as usize).map_or(0, |load| load.outstanding)
    }

    pub(super) fn slots_of(&self, rank: Rank) -> u32 {
        self.ranks.get(rank.0 as usize).map_or(0, |load| load.slots)
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.ranks.iter().map(RankLoad::idle).sum()
    }

    pub(super) fn queued_rollouts(&self) -> u32 {
        self.queue.iter().map(|queued| queued.piece.rollouts).sum()
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.leases.values().map(|lease| lease.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use g2rl_common::rollout::Purpose;

    use super::*;

    fn book(slots: &[u32], groups: u64, rollouts: u32) -> LeaseBook {
        let mut book = LeaseBook::default();
        book.set_ranks(slots.iter().copied());
        for group in (0..groups).map(GroupId) {
            let problem = ProblemRef { purpose: Purpose::Train, index: 0 };
            book.push(Piece { group, problem, first_rollout: 0, rollouts, stream_offset: 0 });
        }
        book
    }

    /// Rank, group, first rollout, rollouts.
    fn assign(book: &mut LeaseBook) -> Vec<(u32, u64, u32, u32)> {
        let orders = book.assign(PolicyVersion(0), Millis(9));
        orders
            .iter()
            .map(|(rank, order)| (rank.0, order.group.0, order.first_rollout, order.rollouts))
            .collect()
    }

    #[test]
    fn whole_groups_go_to_the_rank_with_most_free_capacity() {
        // Limits 8 + 2 and 4 + 1: rank 0 is at 10, 6 against rank 1's 5, then at 2 against 5, 1.
        let mut book = book(&[8, 4], 9, 4);
        assert_eq!(assign(&mut book), [(0, 0, 0, 4), (0, 1, 0, 4), (1, 2, 0, 4)]);
        // A freed slot of rank 1 makes room for 2 of the next group: one runs, one waits there. The
        // other 2 fit into what rank 0 may hold beyond its slots.
        let rollout = RolloutId { group: GroupId(2), index: 3 };
        assert_eq!(book.arrived(Rank(1), LeaseId(2), rollout), Arrival::Accepted);
        assert_eq!(assign(&mut book), [(1, 3, 0, 2), (0, 3, 2, 2)]);
        assert_eq!(book.arrived(Rank(1), LeaseId(2), rollout), Arrival::Stale);
        assert_eq!(book.arrived(Rank(0), LeaseId(2), RolloutId { index: 2, ..rollout }), Arrival::Stale);
        assert_eq!(assign(&mut book), []);
    }

    #[test]
    fn the_last_groups_are_cut_for_idle_ranks() {
        let mut book = book(&[16, 16, 16], 2, 8);
        // 2 groups for 3 idle ranks: each in 2 parts; the fourth part goes to the first of equals.
        assert_eq!(assign(&mut book), [(0, 0, 0, 4), (1, 0, 4, 4), (2, 1, 0, 4), (0, 1, 4, 4)]);
    }

    #[test]
    fn a_group_larger_than_a_rank_comes_in_parts() {
        let mut book = book(&[2], 1, 7);
        assert_eq!(assign(&mut book), [(0, 0, 0, 3)]);
        for (lease, index) in [(0, 1), (0, 0), (0, 2)] {
            book.arrived(Rank(0), LeaseId(lease), RolloutId { group: GroupId(0), index });
        }
        assert_eq!(assign(&mut book), [(0, 0, 3, 3)]);
        assert_eq!((book.queued_rollouts(), book.outstanding_of(Rank(0)), book.free_slots()), (1, 3, 0));
        assert_eq!(book.next_deadline(), Some(Millis(9)));
    }

    #[test]
    fn a_dropped_group_frees_its_slots() {
        let mut book = book(&[4, 4], 2, 4);
        assert_eq!(assign(&mut book).len(), 2);
        book.drop_group(GroupId(0));
        assert_eq!((book.free_slots(), book.outstanding().count()), (4, 1));
        let late = RolloutId { group: GroupId(0), index: 0 };
        assert_eq!(book.arrived(Rank(0), LeaseId(0), late), Arrival::Stale);
    }
}
