//! `shaping -> advantages`: a group's rewards relative to each other.
//!
//! In: the shaped rewards of one group. Out: one advantage for each rollout, summing to 0 up to
//! rounding. Must not know: where the rewards come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numeric::range;

/// Added to the standard deviation (GRPO as published in verl and TRL).
pub const STD_EPS: f64 = 1e-6;

/// How a group's rewards become advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdvantageKind {
    /// (r - mean) / (population standard deviation + [`STD_EPS`]) (GRPO).
    #[default]
    Std,
    /// r - mean (Dr. GRPO).
    MeanOnly,
}

impl AdvantageKind {
    /// The advantages of one group.
    #[must_use]
    pub fn advantages(self, rewards: &[f64]) -> Vec<f64> {
        // Equal rewards have no advantage; dividing the rounding error of their mean by STD_EPS
        // would make one.
        if range(rewards) == 0.0 {
            return vec![0.0; rewards.len()];
        }
        let count = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / count;
        let scale = match self {
            Self::Std => {
                let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / count;
                variance.sqrt() + STD_EPS
            }
            Self::MeanOnly => 1.0,
        };
        rewards.iter().map(|r| (r - mean) / scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_four_correct() {
        // Mean -0.5, deviations 1.5 and -0.5 (three times), population std sqrt(0.75).
        let rewards = [1.0, -1.0, -1.0, -1.0];
        assert_eq!(AdvantageKind::MeanOnly.advantages(&rewards), [1.5, -0.5, -0.5, -0.5]);
        let std = AdvantageKind::Std.advantages(&rewards);
        assert!((std[0] - 1.5 / (0.75f64.sqrt() + 1e-6)).abs() < 1e-15);
    }

    #[test]
    fn equal_rewards_have_exactly_no_advantage() {
        assert_eq!(AdvantageKind::Std.advantages(&[0.1; 7]), [0.0; 7]);
        assert_eq!(AdvantageKind::Std.advantages(&[]), [0.0; 0]);
    }
}
