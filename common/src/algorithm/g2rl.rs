//! G2RL (arXiv 2512.15687): rewards scaled by how novel a rollout's gradient is in its group.
//!
//! With the cosines S of the features and the weights w_ij = exp(r_j) / sum over k != i of exp(r_k):
//!
//! 1. q_i = sum over j != i of w_ij S_ij^2, the energy of rollout i that its group explains
//! 2. nu_i = sqrt(max(1 - q_i, 0)) (`novelty = "sqrt"`) or max(1 - q_i, 0) (`"linear"`), see
//!    [`crate::novelty`]
//! 3. nu-bar_i: nu stretched to [0, 1] inside the group; all 0 if the scores are equal
//! 4. r~_i = r_i (1 + lambda nu-bar_i) (`scaler = "amplify"`) or r_i (1 + lambda r_i nu-bar_i)
//!    (`"equation"`, equations 12 and 13 as printed), clipped to [-c, c], see [`crate::shaping`]
//!
//! In a group of equal rewards novelty is all that is left, and standardised it has full size. Where all answers are
//! wrong, `amplify` then reinforces the most usual wrong answer and `equation` the most unusual one; both lose what the
//! model could do (docs/experiments/countdown-four.md). The preset leaves such groups out
//! (`degenerate_groups = "skip_wrong"`); the paper's formulas as they stand are `"shape"`.

use super::{Algorithm, AlgorithmError, AlgorithmOptions, GroupInput, Needs};
use crate::novelty::NoveltyScores;

/// Settings of what shapes by novelty.
pub(super) const PRESET: &str = "[algorithm]\ndegenerate_groups = \"skip_wrong\"\n";

/// Gradient-guided exploration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct G2rl;

impl Algorithm for G2rl {
    fn name(&self) -> &'static str {
        "g2rl"
    }

    fn needs(&self) -> Needs {
        Needs { features: true, ..Needs::default() }
    }

    fn preset(&self, _max_new_tokens: u32) -> String {
        PRESET.to_owned()
    }

    fn shaped_rewards(
        &self,
        options: &AlgorithmOptions,
        group: &GroupInput<'_>,
        scores: Option<&NoveltyScores>,
    ) -> Result<Vec<f64>, AlgorithmError> {
        Ok(scaled(options, group.rewards, &stretched(scores)))
    }
}

/// Normalised novelty, of an algorithm that needs features.
pub(super) fn stretched(scores: Option<&NoveltyScores>) -> Vec<f64> {
    scores.expect("a group without features was refused").novelty_normalized.clone()
}

/// Base rewards scaled by normalised novelty.
pub(super) fn scaled(options: &AlgorithmOptions, rewards: &[f64], novelty_normalized: &[f64]) -> Vec<f64> {
    let shaping = options.shaping();
    rewards.iter().zip(novelty_normalized).map(|(&reward, &nu)| shaping.shape(reward, nu)).collect()
}

#[cfg(test)]
mod tests {
    use crate::algorithm::{AlgorithmOptions, GroupInput, build};
    use crate::shaping::DegenerateGroups;

    #[test]
    fn the_outlier_among_equal_answers_gains() {
        // Rollouts 0 and 1 point the same way, 2 is orthogonal: nu-bar = 0, 0, 1 up to eps.
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let group = GroupInput { rewards: &[1.0; 3], features: &features, ..GroupInput::default() };
        let result = build(&AlgorithmOptions::default()).group_advantages(&group).unwrap();
        assert!(result.equal_rewards && !result.degenerate_geometry && !result.skipped);
        assert!((result.shaped_rewards[0] - 1.0).abs() < 1e-6);
        assert_eq!(result.shaped_rewards[2], 2.0);
        // (1, 1, 2): mean 4/3, population std sqrt(2)/3, so 2/3 over it is sqrt(2).
        assert!((result.advantages[2] - 2.0f64.sqrt()).abs() < 1e-5);
    }

    #[test]
    fn centered_groups_keep_the_size_that_lambda_gives() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let group = GroupInput { rewards: &[-1.0; 3], features: &features, ..GroupInput::default() };
        let degenerate_groups = DegenerateGroups::Centered;
        let mut options = AlgorithmOptions { lambda: 0.3, degenerate_groups, ..AlgorithmOptions::default() };
        // Shaped -1, -1, -1.3, mean -1.1.
        let advantages = build(&options).group_advantages(&group).unwrap().advantages;
        assert!((advantages[0] - 0.1).abs() < 1e-6 && (advantages[2] + 0.2).abs() < 1e-6, "{advantages:?}");
        options.degenerate_groups = DegenerateGroups::Skip;
        let skipped = build(&options).group_advantages(&group).unwrap();
        assert!(skipped.skipped);
        assert_eq!(skipped.advantages, [0.0; 3]);
    }

    /// Rollouts 0 and 1 are alike, 2 is novel. All right, it is reinforced; all wrong, the two usual ones would be.
    #[test]
    fn usual_wrong_answers_are_not_reinforced_with_skip_wrong() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let of = |reward: f64, degenerate_groups| {
            let group = GroupInput { rewards: &[reward; 3], features: &features, ..GroupInput::default() };
            let options = AlgorithmOptions { degenerate_groups, ..AlgorithmOptions::default() };
            build(&options).group_advantages(&group).unwrap()
        };
        let shaped = of(-1.0, DegenerateGroups::Shape).advantages;
        assert!(shaped[0] > 0.7 && shaped[1] > 0.7 && shaped[2] < -1.4, "{shaped:?}");
        let wrong = of(-1.0, DegenerateGroups::SkipWrong);
        assert!(wrong.skipped && wrong.advantages == [0.0; 3]);
        assert!(of(0.0, DegenerateGroups::SkipWrong).skipped);
        let right = of(1.0, DegenerateGroups::SkipWrong);
        assert!(!right.skipped && right.advantages == of(1.0, DegenerateGroups::Shape).advantages);
    }

    #[test]
    fn bad_groups_are_refused() {
        let message = |rewards: &[f64], features: &[&[f32]]| {
            let group = GroupInput { rewards, features, ..GroupInput::default() };
            build(&AlgorithmOptions::default()).group_advantages(&group).unwrap_err().to_string()
        };
        assert_eq!(message(&[], &[]), "the group has no rollouts");
        assert!(message(&[1.0], &[]).contains("g2rl needs the features"));
        assert_eq!(message(&[1.0, f64::NAN], &[&[1.0], &[1.0]]), "rollout 1: reward is NaN");
        assert!(message(&[1.0, 1.0], &[&[1.0]]).starts_with("2 rewards but 1 features"));
        assert!(message(&[1.0, 1.0], &[&[1.0], &[f32::NAN]]).starts_with("rollout 1: feature"));
    }
}
