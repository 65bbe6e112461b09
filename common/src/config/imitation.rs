//! `[imitation]`: given solutions that are imitated next to the policy's own answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LearningRateSchedule;

/// `[imitation]`
///
/// A step of an algorithm that generates answers also imitates given solutions to some of its prompts: their
/// loss, `objective.imitation_coef` times the schedule times the mean negative log-likelihood of their tokens
/// (averaged as `objective.aggregation` says, over the solutions of a mini-batch), is added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
pub struct ImitationConfig {
    /// Solutions imitated in a step, at most `rollout.prompts_per_step`; 0 imitates none. The data set then
    /// needs solutions.
    pub solutions_per_step: u32,
    /// How the coefficient moves over the run; default `constant`.
    pub schedule: LearningRateSchedule,
}

impl ImitationConfig {
    /// What the coefficient is multiplied by in training step `step` (from 0) of a run of `steps`.
    #[must_use]
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        self.schedule.factor(step as f64 / steps.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficient_follows_its_schedule() {
        let factors = |schedule| {
            let config = ImitationConfig { solutions_per_step: 1, schedule };
            [0, 5, 10].map(|step| config.factor(step, 10))
        };
        assert_eq!(factors(LearningRateSchedule::Constant), [1.0; 3]);
        assert_eq!(factors(LearningRateSchedule::Linear), [1.0, 0.5, 0.0]);
        let cosine = factors(LearningRateSchedule::Cosine);
        assert!((cosine[1] - 0.5).abs() < 1e-15 && cosine[2].abs() < 1e-15, "{cosine:?}");
    }
}
