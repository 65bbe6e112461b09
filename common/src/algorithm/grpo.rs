//! GRPO (arXiv 2402.03300): advantages from the base rewards alone.
//!
//! Where features are there, the geometry is computed all the same, so that runs with and without
//! exploration can be compared.

use super::{Algorithm, AlgorithmError, GroupAdvantages, GroupInput, shape_group};
use crate::advantage::AdvantageKind;
use crate::shaping::ShapingOptions;

/// Group relative policy optimisation.
#[derive(Debug, Clone, PartialEq)]
pub struct Grpo {
    /// Of these, `novelty` (for what is reported) and `degenerate_groups`.
    pub shaping: ShapingOptions,
    /// How rewards become advantages.
    pub advantage: AdvantageKind,
}

impl Algorithm for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn needs_features(&self) -> bool {
        false
    }

    fn needs_rollouts(&self) -> bool {
        true
    }

    fn group_advantages(&self, group: &GroupInput<'_>) -> Result<GroupAdvantages, AlgorithmError> {
        shape_group(group, &self.shaping, self.advantage, |reward, _| reward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shaping::DegenerateGroups;

    fn grpo(degenerate_groups: DegenerateGroups) -> Grpo {
        let shaping = ShapingOptions { degenerate_groups, ..ShapingOptions::default() };
        Grpo { shaping, advantage: AdvantageKind::Std }
    }

    #[test]
    fn features_are_watched_but_change_nothing() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let rewards = [1.0, -1.0, 1.0];
        let algorithm = grpo(DegenerateGroups::Shape);
        let with = GroupInput { rewards: &rewards, features: &features, duplicate_of: &[] };
        let with = algorithm.group_advantages(&with).unwrap();
        let without = GroupInput { rewards: &rewards, features: &[], duplicate_of: &[] };
        let without = algorithm.group_advantages(&without).unwrap();
        assert_eq!(with.advantages, without.advantages);
        assert_eq!(with.shaped_rewards, rewards);
        assert!(with.geometry.is_some() && without.geometry.is_none());
        assert!((with.novelty_normalized[2] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn groups_of_equal_rewards_follow_the_option() {
        let group = GroupInput { rewards: &[-1.0; 4], features: &[], duplicate_of: &[] };
        for (option, skipped) in [
            (DegenerateGroups::Shape, false),
            (DegenerateGroups::Centered, false),
            (DegenerateGroups::Skip, true),
        ] {
            let result = grpo(option).group_advantages(&group).unwrap();
            assert!(result.equal_rewards);
            assert_eq!((result.skipped, result.advantages), (skipped, vec![0.0; 4]));
        }
    }
}
