//! Rollouts in the shell's keeping: from their arrival until their step or evaluation is over.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use g2rl_common::ids::{GroupId, RolloutId};
use g2rl_common::rollout::Rollout;

use crate::reward::{Judgement, Verdict};
use crate::shaping::GroupOutcome;

/// A rollout and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) judgement: Option<Judgement>,
}

impl Kept {
    /// What was said about its answer.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.judgement.as_ref().map(|judgement| &judgement.verdict)
    }

    pub(crate) fn correct(&self) -> bool {
        self.verdict().is_some_and(|verdict| verdict.correct)
    }

    /// It has an answer: one that was extracted, or one that is right whatever its form.
    pub(crate) fn answered(&self) -> bool {
        self.verdict().is_some_and(|verdict| verdict.correct || verdict.extracted.is_some())
    }

    /// In [0, 1]; 0 while it is not judged.
    pub(crate) fn score(&self) -> f64 {
        self.judgement.as_ref().map_or(0.0, |judgement| judgement.score)
    }
}

/// Rollouts by id, and outcomes of shaped groups.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Arrived, not yet accepted by the machine.
    fresh: Option<Rollout>,
    kept: BTreeMap<RolloutId, Kept>,
    outcomes: BTreeMap<GroupId, GroupOutcome>,
}

/// All rollouts of a group.
fn of(group: GroupId) -> RangeInclusive<RolloutId> {
    RolloutId { group, index: 0 }..=RolloutId { group, index: u32::MAX }
}

impl Store {
    /// A rollout arrived; the machine decides whether it is kept.
    pub(crate) fn arrived(&mut self, rollout: Rollout) {
        self.fresh = Some(rollout);
    }

    /// The machine accepted the rollout that arrived last, or one that was kept before a restart.
    pub(crate) fn accept(&mut self, id: RolloutId) -> Option<Arc<Rollout>> {
        if let Some(rollout) = self.fresh.take().filter(|rollout| rollout.id == id) {
            self.keep(Arc::new(rollout));
        }
        self.kept.get(&id).map(|kept| kept.rollout.clone())
    }

    /// Keeps a rollout that is not judged yet.
    pub(crate) fn keep(&mut self, rollout: Arc<Rollout>) {
        self.kept.insert(rollout.id, Kept { rollout, judgement: None });
    }

    /// Adds a judgement; false if the rollout is no longer of interest.
    pub(crate) fn judge(&mut self, id: RolloutId, judgement: Judgement) -> bool {
        match self.kept.get_mut(&id) {
            Some(kept) => {
                kept.judgement = Some(judgement);
                true
            }
            None => false,
        }
    }

    /// The rollouts of a group, by index.
    pub(crate) fn group(&self, group: GroupId) -> Vec<Kept> {
        self.kept.range(of(group)).map(|(_, kept)| kept.clone()).collect()
    }

    pub(crate) fn get(&self, id: RolloutId) -> Option<&Kept> {
        self.kept.get(&id)
    }

    pub(crate) fn shaped(&mut self, outcome: GroupOutcome) {
        self.outcomes.insert(outcome.group, outcome);
    }

    /// Rollouts that are kept.
    pub(crate) fn rollouts(&self) -> usize {
        self.kept.len()
    }

    /// Of the groups that are shaped.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = &GroupOutcome> {
        self.outcomes.values()
    }

    /// Takes out the outcomes of groups, and forgets their rollouts.
    pub(crate) fn finish(&mut self, groups: &[GroupId]) -> Vec<GroupOutcome> {
        for group in groups {
            self.forget(*group);
        }
        groups.iter().filter_map(|group| self.outcomes.remove(group)).collect()
    }

    /// Forgets a group's rollouts.
    pub(crate) fn forget(&mut self, group: GroupId) {
        let ids: Vec<RolloutId> = self.kept.range(of(group)).map(|(id, _)| *id).collect();
        for id in ids {
            self.kept.remove(&id);
        }
    }
}
