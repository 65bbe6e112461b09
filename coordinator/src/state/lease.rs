//! Which rank generates which rollouts.
//!
//! In: rollouts to generate with their expected lengths, the decode slots of the ranks, rollouts that came
//! back. Out: leases. What is not leased yet is the `queue`'s, what the ranks can take the `load`'s.
//!
//! Invariants: a rollout is leased to at most one rank at a time, under a lease id that is never used
//! again; a lease outlives its epoch, but not its rank. While rollouts are queued, no rank has an idle slot.
//! The longest are leased first, so that the tail is short (Graham 1969), each to the rank with the fewest
//! outstanding tokens a slot, the lower rank on a tie, so that the same events give the same leases. Which rank
//! generates a rollout never changes its tokens.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, Rank, RolloutId};

use super::interface::{LeaseOrder, Millis};
use super::load::{Loads, RankLoad};
use super::queue::{Piece, Queue};

/// Work that a rank has and has not given back.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) rank: Rank,
    pub(super) piece: Piece,
    /// Rollout indices that are not back.
    pub(super) missing: BTreeSet<u32>,
    pub(super) granted: Millis,
    pub(super) deadline: Millis,
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

/// Neighbouring indices: (first, count).
fn runs(indices: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == index => *count += 1,
            _ => runs.push((index, 1)),
        }
    }
    runs
}

/// All leases.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaseBook {
    next: LeaseId,
    queue: Queue,
    leases: BTreeMap<LeaseId, Lease>,
    loads: Loads,
}

impl LeaseBook {
    /// Takes back what a lost rank has not given back; returns how many rollouts that are. They are
    /// leased again before anything else.
    pub(super) fn revoke(&mut self, rank: Rank, now: Millis) -> u64 {
        let mut revoked = 0;
        let of_rank = |lease: &Lease| lease.rank == rank;
        let ids: Vec<LeaseId> = self.leases.iter().filter(|(_, l)| of_rank(l)).map(|(&id, _)| id).collect();
        for lease in ids.into_iter().rev().filter_map(|id| self.leases.remove(&id)) {
            revoked += lease.missing.len() as u64;
            for (first_rollout, rollouts) in runs(&lease.missing).into_iter().rev() {
                if !planted!(LeasesForgotten) {
                    self.queue.push_front(Piece { first_rollout, rollouts, ..lease.piece });
                }
            }
        }
        self.loads.release(rank, now);
        revoked
    }

    /// A new epoch begins: its ranks keep their leases under their new numbers. `moved` names every old
    /// rank that goes on; the leases of the others were revoked.
    pub(super) fn move_ranks(&mut self, ranks: usize, moved: &BTreeMap<Rank, Rank>, now: Millis) {
        for lease in self.leases.values_mut() {
            lease.rank = *moved.get(&lease.rank).expect("the leases of lost ranks were revoked");
        }
        self.loads.move_ranks(ranks, moved, now);
    }

    /// The ranks offer these slots, by rank.
    pub(super) fn set_slots(&mut self, slots: Vec<u32>, now: Millis) {
        self.loads.set_slots(slots, now);
    }

    /// All leases have until then.
    pub(super) fn extend(&mut self, deadline: Millis) {
        self.leases.values_mut().for_each(|lease| lease.deadline = deadline);
    }

    /// Queues the groups of a step or an evaluation.
    pub(super) fn push(&mut self, pieces: Vec<Piece>) {
        self.queue.push(pieces);
    }

    /// Takes a queued rollout out, which was generated before; false if it is not queued.
    pub(super) fn withdraw(&mut self, rollout: RolloutId) -> bool {
        self.queue.withdraw(rollout)
    }

    /// Begins to count the slots' time anew.
    pub(super) fn start_clock(&mut self, now: Millis) {
        self.loads.start_clock(now);
    }

    /// Hands out as much of the queue as the ranks can take.
    pub(super) fn assign(
        &mut self,
        version: PolicyVersion,
        deadline: Millis,
        now: Millis,
    ) -> Vec<(Rank, LeaseOrder)> {
        if self.queue.is_empty() {
            return Vec::new();
        }
        let mut orders = Vec::new();
        self.queue.cut_for(self.loads.idle_ranks());
        while let Some((rank, piece)) = self.next_piece() {
            let lease = self.next;
            self.next = self.next.next();
            self.loads.take(rank, &piece, now);
            let missing = (piece.first_rollout..piece.first_rollout + piece.rollouts).collect();
            self.leases.insert(lease, Lease { rank, piece, missing, granted: now, deadline });
            let Piece { group, problem, first_rollout, rollouts, stream_offset, source, expected_tokens: _ } =
                piece;
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
                    source,
                },
            ));
        }
        orders
    }

    /// The next lease, if a rank can take one. A piece stays whole where it fits (its prompt is
    /// then prefilled once); it is cut only for a rank that would otherwise have idle slots.
    fn next_piece(&mut self) -> Option<(Rank, Piece)> {
        let rollouts = self.queue.first()?;
        if let Some(rank) = self.loads.lightest(|load| load.capacity() >= rollouts) {
            return Some((rank, self.queue.pop()?));
        }
        let rank = self.loads.lightest(|load: &RankLoad| load.idle() > 0)?;
        Some((rank, self.queue.cut(self.loads.capacity(rank))?))
    }

    /// Takes back a rollout.
    pub(super) fn arrived(&mut self, rank: Rank, lease: LeaseId, rollout: RolloutId, now: Millis) -> Arrival {
        let Some(entry) = self.leases.get_mut(&lease).filter(|entry| entry.rank == rank) else {
            return Arrival::Stale;
        };
        let Piece { group, first_rollout, rollouts, .. } = entry.piece;
        if rollout.group != group || !(first_rollout..first_rollout + rollouts).contains(&rollout.index) {
            return Arrival::NotAsked;
        }
        if !entry.missing.remove(&rollout.index) && !planted!(DuplicateAccepted) {
            return Arrival::Stale;
        }
        self.loads.give_back(rank, &entry.piece, 1, now);
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
    pub(super) fn drop_group(&mut self, group: GroupId, now: Millis) {
        self.queue.drop_group(group);
        let loads = &mut self.loads;
        self.leases.retain(|_, lease| {
            let keeps = lease.piece.group != group;
            if !keeps {
                loads.give_back(lease.rank, &lease.piece, lease.missing.len() as u32, now);
            }
            keeps
        });
    }

    /// Forgets everything queued or leased.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.leases.clear();
        self.loads.clear();
    }

    /// Leases with rollouts that are not back, in order.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// See [`Loads::idle_ratio`].
    pub(super) fn idle_ratio(&self, rollouts: u64, duration_ms: u64) -> f64 {
        self.loads.idle_ratio(rollouts, duration_ms)
    }

    /// The same with their ids. Ids grow, so the oldest come first.
    pub(super) fn outstanding_by_id(&self) -> impl ExactSizeIterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(&id, lease)| (id, lease))
    }

    pub(super) fn outstanding_of(&self, rank: Rank) -> u32 {
        self.loads.outstanding_of(rank)
    }

    pub(super) fn slots_of(&self, rank: Rank) -> u32 {
        self.loads.slots_of(rank)
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.loads.free_slots()
    }

    pub(super) fn queued_rollouts(&self) -> u32 {
        self.queue.rollouts()
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        // Later leases have later deadlines.
        self.leases.values().next().map(|lease| lease.deadline)
    }
}

#[cfg(test)]
mod tests {
    use g2rl_common::rollout::Purpose;

    use super::*;
    use crate::state::interface::ProblemRef;
    use crate::state::plan::ResponseSource;

    fn ranks(book: &mut LeaseBook, slots: &[u32]) {
        book.move_ranks(slots.len(), &BTreeMap::new(), Millis(0));
        book.set_slots(slots.to_vec(), Millis(0));
    }

    fn book(slots: &[u32], groups: u64, rollouts: u32) -> LeaseBook {
        let mut book = LeaseBook::default();
        ranks(&mut book, slots);
        let problem = ProblemRef { purpose: Purpose::Train, index: 0 };
        let piece = |group| Piece {
            group: GroupId(group),
            problem,
            first_rollout: 0,
            rollouts,
            stream_offset: 0,
            source: ResponseSource::Generated,
            expected_tokens: 10,
        };
        book.push((0..groups).map(piece).collect());
        book
    }

    /// Rank, group, first rollout, rollouts.
    fn assign(book: &mut LeaseBook) -> Vec<(u32, u64, u32, u32)> {
        let orders = book.assign(PolicyVersion(0), Millis(9), Millis(0));
        orders
            .iter()
            .map(|(rank, order)| (rank.0, order.group.0, order.first_rollout, order.rollouts))
            .collect()
    }

    #[test]
    fn withdrawn_rollouts_are_not_leased() {
        let mut book = book(&[64], 3, 5);
        let mut withdraw = |group, index| book.withdraw(RolloutId { group: GroupId(group), index });
        // The middle, the ends, and all of a group; once only, and only what is there.
        assert!(withdraw(0, 2) && withdraw(1, 0) && withdraw(1, 4));
        assert!((0..5).all(|index| withdraw(2, index)));
        assert!(!withdraw(0, 2) && !withdraw(0, 5) && !withdraw(3, 0));
        assert_eq!(assign(&mut book), [(0, 0, 0, 2), (0, 0, 3, 2), (0, 1, 1, 3)]);
    }

    #[test]
    fn whole_groups_go_to_the_rank_with_the_fewest_tokens_a_slot() {
        // Limits 8 + 2 and 4 + 1; 40 tokens are 5 a slot of rank 0 and 10 a slot of rank 1.
        let mut book = book(&[8, 4], 9, 4);
        assert_eq!(assign(&mut book), [(0, 0, 0, 4), (1, 1, 0, 4), (0, 2, 0, 4)]);
        // A freed slot of rank 1 makes room for 2 of the next group: one runs, one waits there. The
        // other 2 fit into what rank 0 may hold beyond its slots.
        let mut arrived = |rank, index| {
            let rollout = RolloutId { group: GroupId(1), index };
            book.arrived(Rank(rank), LeaseId(1), rollout, Millis(0))
        };
        assert_eq!(arrived(1, 3), Arrival::Accepted);
        assert_eq!(arrived(1, 3), Arrival::Stale);
        assert_eq!(arrived(0, 2), Arrival::Stale);
        assert_eq!(assign(&mut book), [(1, 3, 0, 2), (0, 3, 2, 2)]);
        assert_eq!(assign(&mut book), []);
    }

    #[test]
    fn the_longest_are_leased_first_and_tokens_are_balanced() {
        let problem = ProblemRef { purpose: Purpose::Train, index: 0 };
        let piece = |group, expected_tokens| Piece {
            group: GroupId(group),
            problem,
            first_rollout: 0,
            rollouts: 1,
            stream_offset: 0,
            source: ResponseSource::Generated,
            expected_tokens,
        };
        let mut book = LeaseBook::default();
        ranks(&mut book, &[4, 4]);
        book.push(vec![piece(0, 10), piece(1, 90), piece(2, 30), piece(3, 50)]);
        // 90 against 50, 50 + 30, 50 + 30 + 10.
        assert_eq!(assign(&mut book), [(0, 1, 0, 1), (1, 3, 0, 1), (1, 2, 0, 1), (1, 0, 0, 1)]);
    }

    #[test]
    fn the_time_of_idle_slots_is_counted() {
        let mut book = book(&[2, 2], 2, 2);
        book.start_clock(Millis(100));
        let orders = book.assign(PolicyVersion(0), Millis(9_000), Millis(100));
        assert_eq!(orders.len(), 2);
        let mut back = |group, index, now| {
            let rollout = RolloutId { group: GroupId(group), index };
            book.arrived(Rank(group as u32), LeaseId(group), rollout, Millis(now))
        };
        for (group, index, now) in [(0, 0, 110), (0, 1, 120), (1, 0, 130), (1, 1, 200)] {
            assert_eq!(back(group, index, now), Arrival::Accepted);
        }
        // 10 + 20 + 30 + 100 of 4 x 100.
        assert!((book.idle_ratio(4, 100) - 0.6).abs() < 1e-12);
        assert!((book.idle_ratio(2, 100) - 0.2).abs() < 1e-12);
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
            book.arrived(Rank(0), LeaseId(lease), RolloutId { group: GroupId(0), index }, Millis(0));
        }
        assert_eq!(assign(&mut book), [(0, 0, 3, 3)]);
        assert_eq!((book.queued_rollouts(), book.outstanding_of(Rank(0)), book.free_slots()), (1, 3, 0));
        assert_eq!(book.next_deadline(), Some(Millis(9)));
    }

    #[test]
    fn a_lost_ranks_rollouts_are_leased_again_and_the_others_keep_theirs() {
        let mut book = book(&[4, 4], 2, 4);
        assert_eq!(assign(&mut book), [(0, 0, 0, 4), (1, 1, 0, 4)]);
        let rollout = |group, index| RolloutId { group: GroupId(group), index };
        assert_eq!(book.arrived(Rank(0), LeaseId(0), rollout(0, 1), Millis(0)), Arrival::Accepted);
        // Of 0..4 without 1 three are missing, in two runs; rank 1 becomes rank 0.
        assert_eq!(book.revoke(Rank(0), Millis(0)), 3);
        assert_eq!(book.arrived(Rank(0), LeaseId(0), rollout(0, 0), Millis(0)), Arrival::Stale);
        assert_eq!(book.arrived(Rank(1), LeaseId(1), rollout(1, 0), Millis(0)), Arrival::Accepted);
        book.move_ranks(2, &BTreeMap::from([(Rank(1), Rank(0))]), Millis(0));
        book.set_slots(vec![4, 4], Millis(0));
        assert_eq!(book.arrived(Rank(0), LeaseId(1), rollout(1, 1), Millis(0)), Arrival::Accepted);
        assert_eq!(assign(&mut book), [(1, 0, 0, 1), (1, 0, 2, 2)]);
        assert_eq!((book.outstanding_of(Rank(0)), book.outstanding_of(Rank(1))), (2, 3));
    }

    #[test]
    fn a_dropped_group_frees_its_slots() {
        let mut book = book(&[4, 4], 2, 4);
        assert_eq!(assign(&mut book).len(), 2);
        book.drop_group(GroupId(0), Millis(0));
        assert_eq!((book.free_slots(), book.outstanding().count()), (4, 1));
        let late = RolloutId { group: GroupId(0), index: 0 };
        assert_eq!(book.arrived(Rank(0), LeaseId(0), late, Millis(0)), Arrival::Stale);
    }
}
