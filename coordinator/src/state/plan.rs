//! Everything about a run that does not change while it runs.
//!
//! Invariant: the plan alone, with the events, decides every effect; the machine looks at nothing
//! else.

use std::collections::BTreeMap;

use g2rl_common::algorithm;
use g2rl_common::config::{ClusterConfig, ImitationConfig, OptimizerConfig, RunConfig};
use g2rl_common::ids::StepIndex;
use g2rl_common::objective::Aggregation;
use g2rl_common::shaping::DegenerateGroups;

use super::interface::ResumeState;

/// Where responses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseSource {
    /// The policy generates them; in training `group_size` for each prompt, for the policy objective.
    Generated,
    /// The data set has one for each prompt; it is imitated. It is neither judged nor shaped.
    Given,
}

/// What is measured on held-out problems, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationPlan {
    /// Number of held-out problems, at least 1.
    pub problems: u32,
    /// Answers for each.
    pub samples: u32,
    /// Training steps between evaluations; 0 for none between start and end.
    pub every: u64,
    /// Before the first step.
    pub at_start: bool,
    /// After the last step.
    pub at_end: bool,
}

/// Everything about a run that does not change while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// Seed of data order and of the cut into mini-batches.
    pub seed: u64,
    /// Problems are drawn in a new order in each pass.
    pub shuffle: bool,
    /// Training steps of the whole run, those before a resume included; 0 only evaluates.
    pub steps: u64,
    /// Number of training problems, at least 1 if there are steps.
    pub train_problems: u32,
    /// Prompts of a step.
    pub prompts_per_step: u32,
    /// Rollouts of a prompt; 1 for given responses.
    pub group_size: u32,
    /// Where responses come from.
    pub responses: ResponseSource,
    /// Sequences of a mini-batch over all ranks; 0 takes the whole step.
    pub sequences_per_minibatch: u32,
    /// See [`g2rl_common::config::UpdateConfig::max_nonfinite`].
    pub max_nonfinite: u32,
    /// How the tokens of a mini-batch are averaged.
    pub aggregation: Aggregation,
    /// Factor of the imitation loss of given responses.
    pub imitation_coef: f64,
    /// Given responses beside those that are generated.
    pub imitation: ImitationConfig,
    /// Skipped groups are replaced until so many prompts are drawn for a step; `None` leaves them out.
    pub refill_to: Option<u32>,
    /// For the learning rate.
    pub optimizer: OptimizerConfig,
    /// Held-out problems.
    pub evaluation: Option<EvaluationPlan>,
    /// Training steps between checkpoints; 0 writes only the last.
    pub checkpoint_every: u64,
    /// Every evaluation after a step has a checkpoint.
    pub checkpoint_evaluated: bool,
    /// Ranks and deadlines.
    pub cluster: ClusterConfig,
    /// Where to go on.
    pub resume: Option<ResumeState>,
    /// Mean response lengths of training problems in earlier steps, tokens.
    pub response_lengths: BTreeMap<u32, f64>,
}

impl RunPlan {
    /// The plan of a configured run with this many usable problems.
    #[must_use]
    pub fn from_config(
        config: &RunConfig,
        train_problems: u32,
        evaluation_problems: u32,
        resume: Option<ResumeState>,
    ) -> Self {
        let responses = if algorithm::build(&config.algorithm).needs_rollouts() {
            ResponseSource::Generated
        } else {
            ResponseSource::Given
        };
        Self {
            seed: config.run.seed,
            shuffle: config.data.shuffle,
            steps: config.run.steps,
            train_problems,
            prompts_per_step: config.rollout.prompts_per_step,
            group_size: match responses {
                ResponseSource::Generated => config.rollout.group_size,
                ResponseSource::Given => 1,
            },
            responses,
            sequences_per_minibatch: config.update.sequences_per_minibatch,
            max_nonfinite: config.update.max_nonfinite,
            aggregation: config.objective.aggregation,
            imitation_coef: config.objective.imitation_coef,
            imitation: config.imitation.clone(),
            refill_to: (config.algorithm.degenerate_groups == DegenerateGroups::Refill)
                .then(|| config.rollout.prompts_per_step.saturating_mul(config.algorithm.refill_limit)),
            optimizer: config.optimizer.clone(),
            evaluation: config.evaluation.as_ref().map(|evaluation| EvaluationPlan {
                problems: evaluation_problems,
                samples: evaluation.samples,
                every: evaluation.every,
                at_start: evaluation.at_start,
                at_end: evaluation.at_end,
            }),
            checkpoint_every: config.checkpoint.every,
            checkpoint_evaluated: config.checkpoint.best_by.is_some(),
            cluster: config.cluster.clone(),
            resume,
            response_lengths: BTreeMap::new(),
        }
    }

    /// # Panics
    /// If a value has no meaning; the configuration and the data sets were checked before.
    pub(super) fn assert_valid(&self) {
        assert!(self.steps == 0 || self.train_problems > 0, "training steps need training problems");
        assert!(self.prompts_per_step > 0 && self.group_size > 0, "a step needs rollouts");
        assert!(self.responses == ResponseSource::Generated || self.group_size == 1, "one given response");
        assert!(self.cluster.min_workers > 0, "a run needs a worker");
        assert!(self.cluster.max_workers >= self.cluster.min_workers, "max_workers below min_workers");
        if let Some(evaluation) = &self.evaluation {
            assert!(evaluation.problems > 0 && evaluation.samples > 0, "an evaluation needs rollouts");
        }
    }

    pub(super) fn learning_rate(&self, step: StepIndex) -> f64 {
        self.optimizer.learning_rate_at(step.0, self.steps)
    }

    pub(super) fn evaluation_due(&self, steps_done: StepIndex) -> bool {
        let done = steps_done.0;
        self.evaluation.as_ref().is_some_and(|evaluation| {
            (done == 0 && evaluation.at_start)
                || (done >= self.steps && evaluation.at_end)
                || (done > 0 && evaluation.every > 0 && done.is_multiple_of(evaluation.every))
        })
    }

    pub(super) fn checkpoint_due(&self, steps_done: StepIndex) -> bool {
        let done = steps_done.0;
        done >= self.steps
            || (self.checkpoint_every > 0 && done.is_multiple_of(self.checkpoint_every))
            || (self.checkpoint_evaluated && done > 0 && self.evaluation_due(steps_done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: &str) -> RunConfig {
        let value = serde_json::json!({
            "run": { "name": "test", "dir": "runs/test", "seed": 4, "steps": 7 },
            "model": { "path": "model" },
            "data": { "train": "train.jsonl" },
            "algorithm": { "kind": kind },
            "rollout": { "prompts_per_step": 3, "group_size": 5 },
            "evaluation": { "data": "test.jsonl", "every": 2, "samples": 8 },
            "checkpoint": { "every": 3 },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_plan_takes_what_the_configuration_says() {
        let plan = RunPlan::from_config(&config("g2rl"), 100, 20, None);
        assert_eq!((plan.seed, plan.steps, plan.prompts_per_step, plan.group_size), (4, 7, 3, 5));
        assert_eq!((plan.responses, plan.train_problems), (ResponseSource::Generated, 100));
        let due =
            |due: &dyn Fn(StepIndex) -> bool| (0..=7).filter(|&n| due(StepIndex(n))).collect::<Vec<_>>();
        assert_eq!(due(&|n| plan.evaluation_due(n)), [0, 2, 4, 6, 7]);
        assert_eq!(due(&|n| n.0 > 0 && plan.checkpoint_due(n)), [3, 6, 7]);
        plan.assert_valid();
    }

    #[test]
    fn imitation_takes_one_response_of_a_prompt() {
        let plan = RunPlan::from_config(&config("sft"), 100, 20, None);
        assert_eq!((plan.responses, plan.group_size), (ResponseSource::Given, 1));
        plan.assert_valid();
    }
}
