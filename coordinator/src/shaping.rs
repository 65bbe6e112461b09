//! `reward -> shaping -> advantages`: a complete group's geometry, shaped rewards and advantages.
//!
//! In: the judged rollouts of one group. Out: a [`GroupOutcome`]. Pure; the features are not needed
//! afterwards.

use g2rl_common::algorithm::{Algorithm, AlgorithmError, GroupInput};
use g2rl_common::geometry::{GroupGeometry, PairStatistics, token_classes};
use g2rl_common::ids::{GroupId, StepIndex};

use crate::shell::Kept;
use crate::state::ProblemRef;

/// Base rewards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RewardScale {
    /// Of score 1, a correct answer.
    pub correct: f64,
    /// Of score 0, a wrong answer.
    pub wrong: f64,
}

impl RewardScale {
    /// The base reward of a score in [0, 1]; exact at both ends.
    #[must_use]
    pub fn reward(&self, score: f64) -> f64 {
        self.wrong * (1.0 - score) + self.correct * score
    }
}

/// One rollout of a shaped group.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutOutcome {
    /// Base reward.
    pub reward: f64,
    /// Reward after shaping.
    pub shaped_reward: f64,
    /// What the update multiplies with.
    pub advantage: f64,
    /// Novelty in [0, 1]; `None` where features are off.
    pub novelty: Option<f64>,
    /// The answer is right.
    pub correct: bool,
    /// What the answer is worth, in [0, 1].
    pub score: f64,
    /// Response tokens.
    pub length: usize,
    /// Mean entropy, nats.
    pub entropy: f64,
}

/// A shaped group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupOutcome {
    /// The group.
    pub group: GroupId,
    /// The step it belongs to.
    pub step: StepIndex,
    /// Its problem.
    pub problem: ProblemRef,
    /// Its rollouts, by index.
    pub rollouts: Vec<RolloutOutcome>,
    /// Cosines of its pairs; `None` where features are off.
    pub pairs: Option<PairStatistics>,
    /// The cosines themselves.
    pub geometry: Option<GroupGeometry>,
    /// All base rewards are equal.
    pub equal_rewards: bool,
    /// It takes no part in the update.
    pub skipped: bool,
}

impl GroupOutcome {
    /// The advantages as they travel.
    #[must_use]
    pub fn advantages_f32(&self) -> Vec<f32> {
        self.rollouts.iter().map(|rollout| rollout.advantage as f32).collect()
    }
}

/// Shapes a group.
///
/// # Errors
/// [`AlgorithmError`], naming the rollout.
pub(crate) fn shape(
    algorithm: &dyn Algorithm,
    scale: RewardScale,
    (group, step, problem): (GroupId, StepIndex, ProblemRef),
    kept: &[Kept],
) -> Result<GroupOutcome, AlgorithmError> {
    let rewards: Vec<f64> = kept.iter().map(|k| scale.reward(k.score())).collect();
    let features: Vec<&[f32]> = kept.iter().filter_map(|k| k.rollout.feature.as_deref()).collect();
    let tokens: Vec<&[u32]> = kept.iter().map(|k| k.rollout.response_tokens.as_slice()).collect();
    let duplicate_of = token_classes(&tokens);
    let result = algorithm.group_advantages(&GroupInput {
        rewards: &rewards,
        features: &features,
        duplicate_of: &duplicate_of,
    })?;
    let rollouts = kept
        .iter()
        .enumerate()
        .map(|(at, k)| RolloutOutcome {
            reward: rewards[at],
            shaped_reward: result.shaped_rewards.get(at).copied().unwrap_or(rewards[at]),
            advantage: result.advantages[at],
            novelty: result.novelty.get(at).copied(),
            correct: k.correct(),
            score: k.score(),
            length: k.rollout.response_tokens.len(),
            entropy: k.rollout.mean_entropy.into(),
        })
        .collect();
    Ok(GroupOutcome {
        group,
        step,
        problem,
        rollouts,
        pairs: result.geometry.as_ref().map(|geometry| geometry.pair_statistics(&duplicate_of)),
        geometry: result.geometry,
        equal_rewards: result.equal_rewards,
        skipped: result.skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_rewards_are_on_the_line_between_wrong_and_correct() {
        let scale = RewardScale { correct: 0.1, wrong: -0.3 };
        assert_eq!((scale.reward(1.0), scale.reward(0.0)), (0.1, -0.3));
        // -0.3 + 0.25 * 0.4
        assert!((scale.reward(0.25) + 0.2).abs() < 1e-12);
    }
}
