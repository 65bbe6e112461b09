//! `reward -> shaping -> advantages`: a complete group's geometry, shaped rewards and advantages.
//!
//! In: the judged rollouts of one group, and embeddings of their texts where the algorithm compares those.
//! Out: a [`GroupOutcome`], the same whenever it is asked for; the features are not needed afterwards.

use std::sync::Arc;

use anyhow::Context;
use g2rl_common::algorithm::{self, AlgorithmError, GroupInput, Method};
use g2rl_common::config::RunConfig;
use g2rl_common::geometry::{GroupGeometry, PairStatistics, token_classes};
use g2rl_common::ids::{GroupId, StepIndex};
use g2rl_common::seed::CounterRng;

use crate::embeddings::{Embedder, EmbeddingError};
use crate::reward::after_thinking;
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

/// Shapes groups as a configuration says.
#[derive(Debug)]
pub(crate) struct Shaper {
    method: Method,
    scale: RewardScale,
    /// Of the run.
    seed: u64,
    /// Where the method compares texts.
    embedder: Option<Embedder>,
}

/// A group, its step and its problem.
pub(crate) type GroupOf = (GroupId, StepIndex, ProblemRef);

impl Shaper {
    /// # Errors
    /// If the embedding service cannot be used as configured.
    pub(crate) fn new(config: &RunConfig) -> Result<Self, EmbeddingError> {
        let method = algorithm::build(&config.algorithm);
        let embedder = method.needs_embeddings().then(|| Embedder::new(&config.embeddings)).transpose()?;
        let scale = RewardScale { correct: config.reward.correct, wrong: config.reward.wrong };
        Ok(Self { method, scale, seed: config.run.seed, embedder })
    }

    /// Shapes a complete group.
    ///
    /// # Errors
    /// If its texts cannot be embedded or its rollouts cannot be shaped; names the group.
    pub(crate) async fn shape(
        self: &Arc<Self>,
        of: GroupOf,
        kept: Vec<Kept>,
    ) -> anyhow::Result<GroupOutcome> {
        let named = || format!("group {} of problem {}", of.0, of.2);
        let embeddings = match &self.embedder {
            Some(embedder) => {
                let texts: Vec<&str> = kept.iter().map(|k| after_thinking(&k.rollout.text).trim()).collect();
                embedder.embed(&texts).await.with_context(named)?
            }
            None => Vec::new(),
        };
        let shaper = self.clone();
        let shaped = tokio::task::spawn_blocking(move || shaper.outcome(of, &kept, &embeddings));
        shaped.await.with_context(named)?.with_context(named)
    }

    fn outcome(
        &self,
        (group, step, problem): GroupOf,
        kept: &[Kept],
        embeddings: &[Vec<f32>],
    ) -> Result<GroupOutcome, AlgorithmError> {
        let rewards: Vec<f64> = kept.iter().map(|k| self.scale.reward(k.score())).collect();
        let features: Vec<&[f32]> = kept.iter().filter_map(|k| k.rollout.feature.as_deref()).collect();
        let tokens: Vec<&[u32]> = kept.iter().map(|k| k.rollout.response_tokens.as_slice()).collect();
        let duplicate_of = token_classes(&tokens);
        let correct: Vec<bool> = kept.iter().map(Kept::correct).collect();
        let lengths: Vec<u32> = tokens.iter().map(|tokens| tokens.len() as u32).collect();
        let result = self.method.group_advantages(&GroupInput {
            rewards: &rewards,
            features: &features,
            duplicate_of: &duplicate_of,
            correct: &correct,
            answered: &kept.iter().map(Kept::answered).collect::<Vec<_>>(),
            lengths: &lengths,
            embeddings,
            seed: CounterRng::new(self.seed, &format!("group {group}")).next_u64(),
        })?;
        let rollouts = kept
            .iter()
            .enumerate()
            .map(|(at, k)| RolloutOutcome {
                reward: rewards[at],
                shaped_reward: result.shaped_rewards[at],
                advantage: result.advantages[at],
                novelty: result.novelty.get(at).copied(),
                correct: correct[at],
                score: k.score(),
                length: tokens[at].len(),
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
