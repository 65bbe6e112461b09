//! Rollouts that no rank has yet, in the order in which they are leased.
//!
//! Invariants: the longest groups come first; what a lost rank gave back comes before everything else.

use std::collections::VecDeque;

use g2rl_common::ids::{GroupId, RolloutId};

use super::interface::ProblemRef;
use super::plan::ResponseSource;

/// Some or all rollouts of a group, not leased yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) group: GroupId,
    pub(super) problem: ProblemRef,
    pub(super) first_rollout: u32,
    pub(super) rollouts: u32,
    pub(super) stream_offset: u32,
    pub(super) source: ResponseSource,
    /// Expected length of each of the rollouts, tokens.
    pub(super) expected_tokens: u32,
}

#[derive(Debug, Clone)]
struct Queued {
    piece: Piece,
    /// No part of the group was cut off yet; only such a group is cut into equal parts.
    whole: bool,
}

/// Rollouts that no rank has yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue(VecDeque<Queued>);

impl Queue {
    /// Appends whole groups, the longest first.
    pub(super) fn push(&mut self, mut pieces: Vec<Piece>) {
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.expected_tokens));
        for piece in pieces {
            assert!(piece.rollouts > 0, "group {} without rollouts", piece.group);
            self.0.push_back(Queued { piece, whole: true });
        }
    }

    /// Puts a part of a group before everything else.
    pub(super) fn push_front(&mut self, piece: Piece) {
        self.0.push_front(Queued { piece, whole: false });
    }

    /// With fewer groups queued than ranks with idle slots, each group is cut into equal parts so
    /// that every such rank gets one.
    pub(super) fn cut_for(&mut self, idle_ranks: usize) {
        let queued = self.0.len();
        if queued == 0 || queued >= idle_ranks {
            return;
        }
        let parts = idle_ranks.div_ceil(queued) as u32;
        for Queued { piece, whole } in std::mem::take(&mut self.0) {
            if !whole {
                self.0.push_back(Queued { piece, whole });
                continue;
            }
            let part = piece.rollouts.div_ceil(parts);
            let end = piece.first_rollout + piece.rollouts;
            for first_rollout in (piece.first_rollout..end).step_by(part as usize) {
                let rollouts = part.min(end - first_rollout);
                let piece = Piece { first_rollout, rollouts, ..piece };
                self.0.push_back(Queued { piece, whole: false });
            }
        }
    }

    /// Rollouts of the first piece.
    pub(super) fn first(&self) -> Option<u32> {
        self.0.front().map(|queued| queued.piece.rollouts)
    }

    pub(super) fn pop(&mut self) -> Option<Piece> {
        self.0.pop_front().map(|queued| queued.piece)
    }

    /// Cuts so many rollouts off the first piece, which has more.
    pub(super) fn cut(&mut self, rollouts: u32) -> Option<Piece> {
        let first = self.0.front_mut()?;
        let piece = Piece { rollouts, ..first.piece };
        first.piece.first_rollout += rollouts;
        first.piece.rollouts -= rollouts;
        first.whole = false;
        Some(piece)
    }

    /// Takes one rollout out; false if it is not queued.
    pub(super) fn withdraw(&mut self, rollout: RolloutId) -> bool {
        let asks = |piece: &Piece| {
            let indices = piece.first_rollout..piece.first_rollout + piece.rollouts;
            piece.group == rollout.group && indices.contains(&rollout.index)
        };
        let Some(at) = self.0.iter().position(|queued| asks(&queued.piece)) else { return false };
        let Some(Queued { piece, .. }) = self.0.remove(at) else { return false };
        let end = piece.first_rollout + piece.rollouts;
        let left = [(piece.first_rollout, rollout.index), (rollout.index + 1, end)];
        for (first_rollout, end) in left.into_iter().rev().filter(|(first, end)| first < end) {
            let piece = Piece { first_rollout, rollouts: end - first_rollout, ..piece };
            self.0.insert(at, Queued { piece, whole: false });
        }
        true
    }

    pub(super) fn drop_group(&mut self, group: GroupId) {
        self.0.retain(|queued| queued.piece.group != group);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rollouts(&self) -> u32 {
        self.0.iter().map(|queued| queued.piece.rollouts).sum()
    }
}
