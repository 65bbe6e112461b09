//! Supervised fine-tuning: given solutions are imitated, so there is nothing to compare.

use super::{Algorithm, AlgorithmError, GroupAdvantages, GroupInput, check};
use crate::numeric::range;

/// Imitation of given solutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sft;

impl Algorithm for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn needs_features(&self) -> bool {
        false
    }

    fn needs_rollouts(&self) -> bool {
        false
    }

    /// All advantages are 0: the imitation weight alone decides the loss.
    fn group_advantages(&self, group: &GroupInput<'_>) -> Result<GroupAdvantages, AlgorithmError> {
        check(group)?;
        Ok(GroupAdvantages {
            geometry: None,
            novelty: Vec::new(),
            novelty_normalized: Vec::new(),
            degenerate_geometry: false,
            equal_rewards: range(group.rewards) == 0.0,
            shaped_rewards: group.rewards.to_vec(),
            advantages: vec![0.0; group.rewards.len()],
            skipped: false,
        })
    }
}
