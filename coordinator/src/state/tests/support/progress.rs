//! With enough workers that do what they are told, and nothing going wrong, the run goes on.

use crate::state::{Effect, RunPlan};

/// The longest time without trouble that may pass without progress.
#[derive(Debug)]
pub(crate) struct Progress {
    config_ms: u64,
    messages: u64,
    quiet_since: u64,
}

impl Progress {
    pub(crate) fn new(plan: &RunPlan, now: u64) -> Self {
        let cluster = &plan.cluster;
        let evaluated =
            plan.evaluation.as_ref().map_or(0, |evaluation| evaluation.problems * evaluation.samples);
        let prompts = plan.refill_to.unwrap_or(0).max(plan.prompts_per_step);
        let trained = prompts * plan.group_size + plan.imitation.solutions_per_step;
        let rollouts = u64::from(trained.max(evaluated));
        Self {
            // A rank that went before may have to be noticed, once by each of the deadlines.
            config_ms: cluster.heartbeat_timeout_ms
                + cluster.grace_ms
                + 2 * cluster.join_timeout_ms
                + cluster.lease_timeout_ms
                + 2 * cluster.update_timeout_ms
                + cluster.checkpoint_timeout_ms,
            // One slot generates one rollout after another, each is verified, each may be a mini-batch with
            // four messages; the same again for an epoch that is formed in between.
            messages: 2 * (6 * rollouts + 20),
            quiet_since: now,
        }
    }

    /// Something goes wrong, or too few workers are there.
    pub(crate) fn trouble(&mut self, now: u64) {
        self.quiet_since = now;
    }

    /// `slowest_ms` is the longest time a message takes.
    pub(crate) fn after_event(&mut self, effects: &[Effect], now: u64, slowest_ms: u64) {
        let progress = |effect: &Effect| {
            matches!(
                effect,
                Effect::StepCompleted(_)
                    | Effect::EvaluationCompleted { .. }
                    | Effect::CheckpointWritten { .. }
                    | Effect::Finished(_)
            )
        };
        if effects.iter().any(progress) {
            self.quiet_since = now;
        }
        let (quiet, bound) =
            (now.saturating_sub(self.quiet_since), self.config_ms + self.messages * slowest_ms);
        assert!(
            quiet <= bound,
            "no progress for {quiet} ms of peace with enough workers; {bound} ms are enough"
        );
    }
}
