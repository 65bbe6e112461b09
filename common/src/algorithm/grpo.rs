//! GRPO (arXiv 2402.03300): advantages from the base rewards alone.
//!
//! A_i = (r_i - mean r) / (std r + 1e-6) over the group's base rewards
//! ([`crate::advantage::AdvantageKind::Std`]).
//!
//! Where features are there, the geometry is computed all the same, so that runs with and without
//! exploration can be compared.

use super::Algorithm;

/// Group relative policy optimisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grpo;

impl Algorithm for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }
}

#[cfg(test)]
mod tests {
    use crate::algorithm::{AlgorithmKind, AlgorithmOptions, GroupInput, Method, build};
    use crate::shaping::DegenerateGroups;

    fn grpo(degenerate_groups: DegenerateGroups) -> Method {
        build(&AlgorithmOptions {
            kind: AlgorithmKind::Grpo,
            degenerate_groups,
            ..AlgorithmOptions::default()
        })
    }

    #[test]
    fn features_are_watched_but_change_nothing() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let rewards = [1.0, -1.0, 1.0];
        let algorithm = grpo(DegenerateGroups::Shape);
        let without = GroupInput { rewards: &rewards, ..GroupInput::default() };
        let with = algorithm.group_advantages(&GroupInput { features: &features, ..without }).unwrap();
        let without = algorithm.group_advantages(&without).unwrap();
        assert_eq!(with.advantages, without.advantages);
        assert_eq!(with.shaped_rewards, rewards);
        assert!(with.geometry.is_some() && without.geometry.is_none());
        assert!((with.novelty_normalized[2] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn groups_of_equal_rewards_follow_the_option() {
        let group = GroupInput { rewards: &[-1.0; 4], ..GroupInput::default() };
        for (option, skipped) in [
            (DegenerateGroups::Shape, false),
            (DegenerateGroups::Centered, false),
            (DegenerateGroups::Skip, true),
            (DegenerateGroups::Refill, true),
        ] {
            let result = grpo(option).group_advantages(&group).unwrap();
            assert!(result.equal_rewards);
            assert_eq!((result.skipped, result.advantages), (skipped, vec![0.0; 4]));
        }
    }
}
