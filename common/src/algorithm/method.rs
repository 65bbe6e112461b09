//! An algorithm with its options: what all algorithms do with a group.

use super::{Algorithm, AlgorithmError, AlgorithmOptions, GroupAdvantages, GroupInput, overlong_penalty};
use crate::advantage::AdvantageKind;
use crate::geometry::GroupGeometry;
use crate::novelty::NoveltyScores;
use crate::numeric::range;
use crate::shaping::DegenerateGroups;

/// An algorithm with its options.
#[derive(Clone)]
pub struct Method {
    options: AlgorithmOptions,
    algorithm: &'static dyn Algorithm,
    /// Whose rewards are compared: the algorithm's own, or those of its exploration.
    shaper: &'static dyn Algorithm,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Method").field(&self.options).finish()
    }
}

/// The method that the options describe.
#[must_use]
pub fn build(options: &AlgorithmOptions) -> Method {
    let algorithm = options.kind.algorithm();
    let shaper = options.explore.algorithm().unwrap_or(algorithm);
    Method { options: options.clone(), algorithm, shaper }
}

impl Method {
    /// The algorithm's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.algorithm.name()
    }

    /// See [`super::Needs::rollouts`].
    #[must_use]
    pub fn needs_rollouts(&self) -> bool {
        self.algorithm.needs().rollouts
    }

    /// See [`super::Needs::features`].
    #[must_use]
    pub fn needs_features(&self) -> bool {
        self.shaper.needs().features
    }

    /// See [`super::Needs::embeddings`].
    #[must_use]
    pub fn needs_embeddings(&self) -> bool {
        self.shaper.needs().embeddings
    }

    /// The advantages of one complete group. The same group gives the same result.
    ///
    /// # Errors
    /// [`AlgorithmError`], naming the rollout where one is to blame.
    pub fn group_advantages(&self, group: &GroupInput<'_>) -> Result<GroupAdvantages, AlgorithmError> {
        self.check(group)?;
        let rewards = group.rewards;
        // 1. Geometry and novelty, where there are features.
        let geometry = match group.features {
            [] => None,
            features => Some(GroupGeometry::from_features(features)?),
        };
        let scores =
            geometry.as_ref().map(|geometry| NoveltyScores::new(geometry, rewards, self.options.novelty));
        // 2. Shaped rewards.
        let mut shaped_rewards = self.shaper.shaped_rewards(&self.options, group, scores.as_ref())?;
        for (reward, &length) in shaped_rewards.iter_mut().zip(group.lengths) {
            *reward += overlong_penalty(&self.options.overlong, length);
        }
        // 3. Advantages.
        let equal_rewards = range(rewards) == 0.0;
        let (advantages, skipped) = self.advantages(&shaped_rewards, equal_rewards.then_some(rewards[0]));
        let (novelty, novelty_normalized, degenerate_geometry) = match scores {
            Some(scores) => (scores.novelty, scores.novelty_normalized, scores.degenerate),
            None => (Vec::new(), Vec::new(), false),
        };
        Ok(GroupAdvantages {
            geometry,
            novelty,
            novelty_normalized,
            degenerate_geometry,
            equal_rewards,
            shaped_rewards,
            advantages,
            skipped,
        })
    }

    /// Advantages, and whether the group is left out; `equal` is the base reward that all rollouts have, if they do.
    fn advantages(&self, shaped_rewards: &[f64], equal: Option<f64>) -> (Vec<f64>, bool) {
        let nothing = || vec![0.0; shaped_rewards.len()];
        if !self.needs_rollouts() {
            // Given solutions have nothing to be compared with: the imitation weight alone counts.
            return (nothing(), false);
        }
        match (equal, self.options.degenerate_groups) {
            (Some(_), DegenerateGroups::Skip | DegenerateGroups::Refill) => (nothing(), true),
            (Some(reward), DegenerateGroups::SkipWrong) if reward <= 0.0 => (nothing(), true),
            (Some(_), DegenerateGroups::Centered) => {
                (AdvantageKind::MeanOnly.advantages(shaped_rewards), false)
            }
            _ => (self.options.advantage.advantages(shaped_rewards), false),
        }
    }

    /// Refuses rewards and counts that no algorithm can use, and groups without what this one needs.
    fn check(&self, group: &GroupInput<'_>) -> Result<(), AlgorithmError> {
        let rewards = group.rewards.len();
        if rewards == 0 {
            return Err(AlgorithmError::EmptyGroup);
        }
        if let Some(rollout) = group.rewards.iter().position(|r| !r.is_finite()) {
            return Err(AlgorithmError::RewardNotFinite { rollout, value: group.rewards[rollout] });
        }
        let needs = self.shaper.needs();
        let penalised = self.options.overlong.cache_tokens > 0;
        for (what, found, needed) in [
            ("features", group.features.len(), needs.features),
            ("token classes", group.duplicate_of.len(), false),
            ("embeddings", group.embeddings.len(), needs.embeddings),
            ("verdicts", group.correct.len(), needs.embeddings),
            ("extracted answers", group.answered.len(), needs.embeddings),
            ("lengths", group.lengths.len(), penalised),
        ] {
            if found == 0 && needed {
                return Err(AlgorithmError::Missing { algorithm: self.shaper.name(), what });
            }
            if found != 0 && found != rewards {
                return Err(AlgorithmError::CountMismatch { rewards, what, found });
            }
        }
        Ok(())
    }
}
