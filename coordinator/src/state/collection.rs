//! The groups of one training step or one evaluation, from the first lease to the last advantage.
//!
//! Invariants: a rollout goes through arrived and verified once, in this order; a group is complete
//! once; a dropped group takes no further part. The collection is done when every group is complete
//! or dropped.

use std::collections::BTreeMap;

use g2rl_common::ids::{GroupId, RolloutId};

use super::failure::list;
use super::interface::{Millis, ProblemRef};
use super::minibatch::PackedSequence;
use super::plan::ResponseSource;
use super::stalls::GroupsWait;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RolloutState {
    Missing,
    Arrived { prompt_tokens: u32, response_tokens: u32 },
    Verified { prompt_tokens: u32, response_tokens: u32 },
}

impl RolloutState {
    fn response_tokens(&self) -> u64 {
        match self {
            Self::Missing => 0,
            Self::Arrived { response_tokens, .. } | Self::Verified { response_tokens, .. } => {
                u64::from(*response_tokens)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum GroupState {
    /// Rollouts are missing or not verified.
    Open,
    /// All are verified; the shell computes advantages.
    Shaping,
    /// Nothing is left to do.
    Complete { advantages: Vec<f32>, skipped: bool },
    /// Left out.
    Dropped,
}

#[derive(Debug, Clone)]
struct Group {
    problem: ProblemRef,
    source: ResponseSource,
    rollouts: Vec<RolloutState>,
    state: GroupState,
}

/// The groups of one training step or one evaluation.
#[derive(Debug, Clone)]
pub(super) struct Collection {
    groups: BTreeMap<GroupId, Group>,
    /// Groups that are neither complete nor dropped.
    open_groups: usize,
    /// Rollouts that have not arrived, of groups that are not dropped.
    missing_rollouts: usize,
    started: Millis,
    last_arrival: Millis,
    /// When the last rollout was judged.
    last_judged: Millis,
    /// When the shell last finished something or was given something to do.
    last_progress: Millis,
}

impl Collection {
    pub(super) fn new(started: Millis) -> Self {
        Self {
            groups: BTreeMap::new(),
            open_groups: 0,
            missing_rollouts: 0,
            started,
            last_arrival: started,
            last_judged: started,
            last_progress: started,
        }
    }

    pub(super) fn add(
        &mut self,
        group: GroupId,
        problem: ProblemRef,
        (rollouts, source): (u32, ResponseSource),
    ) {
        let rollouts = vec![RolloutState::Missing; rollouts as usize];
        self.open_groups += 1;
        self.missing_rollouts += rollouts.len();
        let before = self.groups.insert(group, Group { problem, source, rollouts, state: GroupState::Open });
        assert!(before.is_none(), "group {group} was given out twice");
    }

    fn group_mut(&mut self, group: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(&group).filter(|group| group.state != GroupState::Dropped)
    }

    fn group(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group).filter(|group| group.state != GroupState::Dropped)
    }

    pub(super) fn problem_of(&self, group: GroupId) -> Option<ProblemRef> {
        self.group(group).map(|group| group.problem)
    }

    /// A rollout waits for its verification.
    pub(super) fn has_arrived(&self, rollout: RolloutId) -> bool {
        let state = self.group(rollout.group).and_then(|group| group.rollouts.get(rollout.index as usize));
        matches!(state, Some(RolloutState::Arrived { .. }))
    }

    /// A group has rollouts that are missing or not verified.
    pub(super) fn is_open(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(|group| group.state == GroupState::Open)
    }

    /// A group waits for its advantages.
    pub(super) fn is_shaping(&self, group: GroupId) -> bool {
        self.group(group).is_some_and(|group| group.state == GroupState::Shaping)
    }

    /// Rollouts that wait for their verification.
    pub(super) fn unverified(&self) -> impl Iterator<Item = (RolloutId, ProblemRef, ResponseSource)> {
        self.kept().flat_map(|(id, group)| {
            let states = (0..).zip(&group.rollouts);
            let arrived = states.filter(|(_, state)| matches!(state, RolloutState::Arrived { .. }));
            arrived.map(move |(index, _)| (RolloutId { group: id, index }, group.problem, group.source))
        })
    }

    /// Groups that wait for their advantages.
    pub(super) fn unshaped(&self) -> impl Iterator<Item = (GroupId, ProblemRef)> {
        let shaping = self.kept().filter(|(_, group)| group.state == GroupState::Shaping);
        shaping.map(|(id, group)| (id, group.problem))
    }

    /// Notes a rollout that its lease accepted, and returns its problem and its source.
    pub(super) fn arrived(
        &mut self,
        rollout: RolloutId,
        tokens: (u32, u32),
        now: Millis,
    ) -> (ProblemRef, ResponseSource) {
        let group = self.group_mut(rollout.group).expect("a lease outlived its group");
        let (prompt_tokens, response_tokens) = tokens;
        let state = &mut group.rollouts[rollout.index as usize];
        assert_eq!(*state, RolloutState::Missing, "rollout {rollout} arrived twice");
        *state = RolloutState::Arrived { prompt_tokens, response_tokens };
        let of = (group.problem, group.source);
        self.missing_rollouts -= 1;
        self.last_arrival = now;
        self.last_progress = now;
        of
    }

    /// Notes a verified rollout; returns the problem of its group if that was the last of it and the group is
    /// to be shaped. `None` too where the group is no longer wanted.
    pub(super) fn verified(&mut self, rollout: RolloutId, now: Millis) -> Option<ProblemRef> {
        self.last_progress = now;
        if self.group(rollout.group).is_some() {
            self.last_judged = now;
        }
        let group = self.group_mut(rollout.group)?;
        let state = &mut group.rollouts[rollout.index as usize];
        let RolloutState::Arrived { prompt_tokens, response_tokens } = *state else {
            panic!("rollout {rollout} was verified while {state:?}");
        };
        *state = RolloutState::Verified { prompt_tokens, response_tokens };
        let open = |state: &RolloutState| !matches!(state, RolloutState::Verified { .. });
        let allowed = usize::from(planted!(GroupCompleteEarly));
        if group.rollouts.iter().filter(|rollout| open(rollout)).count() > allowed {
            return None;
        }
        assert_eq!(group.state, GroupState::Open, "group {} was completed twice", rollout.group);
        if group.source == ResponseSource::Given {
            let advantages = vec![0.0; group.rollouts.len()];
            group.state = GroupState::Complete { advantages, skipped: false };
            self.open_groups -= 1;
            return None;
        }
        group.state = GroupState::Shaping;
        Some(group.problem)
    }

    /// Completes a group whose rollouts are all verified.
    ///
    /// # Errors
    /// What is wrong with the advantages.
    pub(super) fn complete(
        &mut self,
        id: GroupId,
        advantages: Vec<f32>,
        skipped: bool,
        now: Millis,
    ) -> Result<(), String> {
        self.last_progress = now;
        let Some(group) = self.group_mut(id) else { return Ok(()) };
        assert_eq!(group.state, GroupState::Shaping, "group {id} was completed while it was not shaped");
        let rollouts = group.rollouts.len();
        if advantages.len() != rollouts {
            return Err(format!("group {id} has {rollouts} rollouts but {} advantages", advantages.len()));
        }
        if let Some(index) = advantages.iter().position(|advantage| !advantage.is_finite()) {
            return Err(format!("the advantage of rollout {id}.{index} is {}", advantages[index]));
        }
        group.state = GroupState::Complete { advantages, skipped };
        self.open_groups -= 1;
        Ok(())
    }

    /// Completes a group of an evaluation: nothing is shaped.
    pub(super) fn measured(&mut self, id: GroupId) {
        let group = self.group_mut(id).expect("a verified group is there");
        assert_eq!(group.state, GroupState::Shaping, "group {id} was measured before it was verified");
        group.state = GroupState::Complete { advantages: Vec::new(), skipped: true };
        self.open_groups -= 1;
    }

    /// Leaves a group out, and returns its problem; `None` if it is gone already.
    pub(super) fn drop_group(&mut self, group: GroupId) -> Option<ProblemRef> {
        let group = self.group_mut(group)?;
        assert_eq!(group.state, GroupState::Open, "a complete group has no lease left");
        group.state = GroupState::Dropped;
        let missing = group.rollouts.iter().filter(|rollout| **rollout == RolloutState::Missing).count();
        let problem = group.problem;
        self.missing_rollouts -= missing;
        self.open_groups -= 1;
        Some(problem)
    }

    pub(super) fn is_done(&self) -> bool {
        self.open_groups == 0
    }

    /// How far its groups are.
    pub(super) fn groups_wait(&self) -> GroupsWait {
        let mut wait = GroupsWait { rollouts_missing: self.missing_rollouts, ..GroupsWait::default() };
        for group in self.groups.values() {
            match group.state {
                GroupState::Open => wait.open += 1,
                GroupState::Shaping => wait.shaping += 1,
                GroupState::Complete { .. } => wait.complete += 1,
                GroupState::Dropped => wait.dropped += 1,
            }
            if group.state != GroupState::Dropped {
                let arrived = |rollout: &&RolloutState| matches!(rollout, RolloutState::Arrived { .. });
                wait.rollouts_unjudged += group.rollouts.iter().filter(arrived).count();
            }
        }
        wait
    }

    pub(super) fn started(&self) -> Millis {
        self.started
    }

    pub(super) fn last_arrival(&self) -> Millis {
        self.last_arrival
    }

    /// When the last rollout was there and judged.
    pub(super) fn last_judged(&self) -> Millis {
        self.last_judged.max(self.last_arrival)
    }

    /// The shell could not work until now.
    pub(super) fn shell_goes_on(&mut self, now: Millis) {
        self.last_progress = now;
    }

    /// Since when only the shell is waited for; `None` while rollouts are missing.
    pub(super) fn waits_for_shell_since(&self) -> Option<Millis> {
        (self.missing_rollouts == 0 && self.open_groups > 0).then_some(self.last_progress)
    }

    fn kept(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups
            .iter()
            .filter(|(_, group)| group.state != GroupState::Dropped)
            .map(|(&id, group)| (id, group))
    }

    /// The groups from this source that were not left out.
    pub(super) fn groups(&self, source: ResponseSource) -> Vec<(GroupId, ProblemRef)> {
        let of_source = self.kept().filter(|(_, group)| group.source == source);
        of_source.map(|(id, group)| (id, group.problem)).collect()
    }

    /// Prompts whose answers are or were generated for it.
    pub(super) fn prompts(&self) -> usize {
        self.groups.values().filter(|group| group.source == ResponseSource::Generated).count()
    }

    /// Response tokens of the groups that were not left out.
    pub(super) fn response_tokens(&self) -> u64 {
        self.kept().flat_map(|(_, group)| &group.rollouts).map(RolloutState::response_tokens).sum()
    }

    /// Rollouts of the groups that were not left out.
    pub(super) fn rollouts(&self) -> u64 {
        self.kept().map(|(_, group)| group.rollouts.len() as u64).sum()
    }

    /// The mean response length of every generated group that was not left out, tokens.
    pub(super) fn mean_lengths(&self) -> Vec<(ProblemRef, f64)> {
        let mean = |group: &Group| {
            let tokens: u64 = group.rollouts.iter().map(RolloutState::response_tokens).sum();
            tokens as f64 / group.rollouts.len() as f64
        };
        let generated = self.kept().filter(|(_, group)| group.source == ResponseSource::Generated);
        generated.map(|(_, group)| (group.problem, mean(group))).collect()
    }

    /// What the update trains on: every response with tokens of every group that is not skipped.
    pub(super) fn sequences(&self) -> Vec<PackedSequence> {
        let mut sequences = Vec::new();
        for (id, group) in self.kept() {
            let GroupState::Complete { advantages, skipped: false } = &group.state else { continue };
            for (index, (rollout, &advantage)) in group.rollouts.iter().zip(advantages).enumerate() {
                let &RolloutState::Verified { prompt_tokens, response_tokens } = rollout else {
                    panic!("rollout {id}.{index} of a complete group is {rollout:?}");
                };
                if response_tokens > 0 {
                    sequences.push(PackedSequence {
                        rollout: RolloutId { group: id, index: index as u32 },
                        tokens: prompt_tokens + response_tokens,
                        response_tokens,
                        advantage,
                        source: group.source,
                    });
                }
            }
        }
        sequences
    }

    /// What the shell still has to do, for people.
    pub(super) fn shell_work(&self) -> String {
        let open = self
            .kept()
            .filter(|(_, group)| group.state == GroupState::Open || group.state == GroupState::Shaping);
        list(open.take(3).map(|(id, group)| match group.state {
            GroupState::Shaping => format!("the advantages of group {id} ({})", group.problem),
            _ => format!("the verification of group {id} ({})", group.problem),
        }))
    }
}
