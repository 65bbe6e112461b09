//! G2RL (arXiv 2512.15687): rewards scaled by how novel a rollout's gradient is in its group.

use super::{Algorithm, AlgorithmError, GroupAdvantages, GroupInput, shape_group};
use crate::advantage::AdvantageKind;
use crate::shaping::ShapingOptions;

/// Gradient-guided exploration.
#[derive(Debug, Clone, PartialEq)]
pub struct G2rl {
    /// How rewards are shaped.
    pub shaping: ShapingOptions,
    /// How shaped rewards become advantages.
    pub advantage: AdvantageKind,
}

impl Algorithm for G2rl {
    fn name(&self) -> &'static str {
        "g2rl"
    }

    fn needs_features(&self) -> bool {
        true
    }

    fn needs_rollouts(&self) -> bool {
        true
    }

    fn group_advantages(&self, group: &GroupInput<'_>) -> Result<GroupAdvantages, AlgorithmError> {
        if group.features.is_empty() && !group.rewards.is_empty() {
            return Err(AlgorithmError::MissingFeatures { algorithm: self.name() });
        }
        shape_group(group, &self.shaping, self.advantage, |reward, novelty| {
            self.shaping.shape(reward, novelty)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shaping::DegenerateGroups;

    fn g2rl() -> G2rl {
        G2rl { shaping: ShapingOptions::default(), advantage: AdvantageKind::Std }
    }

    #[test]
    fn the_outlier_among_equal_answers_gains() {
        // Rollouts 0 and 1 point the same way, 2 is orthogonal: nu-bar = 0, 0, 1 up to eps.
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let group = GroupInput { rewards: &[1.0; 3], features: &features, duplicate_of: &[] };
        let result = g2rl().group_advantages(&group).unwrap();
        assert!(result.equal_rewards && !result.degenerate_geometry && !result.skipped);
        assert!((result.shaped_rewards[0] - 1.0).abs() < 1e-6);
        assert_eq!(result.shaped_rewards[2], 2.0);
        // (1, 1, 2): mean 4/3, population std sqrt(2)/3, so 2/3 over it is sqrt(2).
        assert!((result.advantages[2] - 2.0f64.sqrt()).abs() < 1e-5);
    }

    #[test]
    fn centered_groups_keep_the_size_that_lambda_gives() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let group = GroupInput { rewards: &[-1.0; 3], features: &features, duplicate_of: &[] };
        let mut algorithm = g2rl();
        algorithm.shaping.lambda = 0.3;
        algorithm.shaping.degenerate_groups = DegenerateGroups::Centered;
        // Shaped -1, -1, -1.3, mean -1.1.
        let advantages = algorithm.group_advantages(&group).unwrap().advantages;
        assert!((advantages[0] - 0.1).abs() < 1e-6 && (advantages[2] + 0.2).abs() < 1e-6, "{advantages:?}");
        algorithm.shaping.degenerate_groups = DegenerateGroups::Skip;
        let skipped = algorithm.group_advantages(&group).unwrap();
        assert!(skipped.skipped);
        assert_eq!(skipped.advantages, [0.0; 3]);
    }

    #[test]
    fn bad_groups_are_refused() {
        let message = |rewards: &[f64], features: &[&[f32]]| {
            let group = GroupInput { rewards, features, duplicate_of: &[] };
            g2rl().group_advantages(&group).unwrap_err().to_string()
        };
        assert_eq!(message(&[], &[]), "the group has no rollouts");
        assert!(message(&[1.0], &[]).contains("g2rl needs the features"));
        assert_eq!(message(&[1.0, f64::NAN], &[&[1.0], &[1.0]]), "rollout 1: reward is NaN");
        assert!(message(&[1.0, 1.0], &[&[1.0]]).starts_with("2 rewards but 1 features"));
        assert!(message(&[1.0, 1.0], &[&[1.0], &[f32::NAN]]).starts_with("rollout 1: feature"));
    }
}
