//! What a restart must know of what happened.
//!
//! In: nothing. Out: [`super::Effect::Record`]s of the machine, which the shell keeps in order; from them
//! [`Coordinator::restore`](super::Coordinator::restore) makes a machine that goes on where they end.
//!
//! Invariants: records from the last [`Record::Position`] on are enough, those before it are of no more use.
//! A record that is a promise is on the disk before the effects that follow it are performed, so the workers
//! are never ahead of the records by more than the one optimizer step that the last of them names.

use g2rl_common::ids::{GroupEpoch, GroupId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex};
use g2rl_common::update::UpdateStats;
use serde::{Deserialize, Serialize};

use super::interface::ResumeState;

/// Where a run is while nothing is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps, policy and data cursor.
    pub state: ResumeState,
    /// Digest of the policy's weights, if an optimizer step has told it.
    pub weights_digest: Option<u64>,
    /// Completed steps at the last evaluation.
    pub last_evaluation: Option<StepIndex>,
    /// Mini-batches skipped since the last one that was applied.
    pub skipped_in_a_row: u32,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// Everything before is completed.
    Position {
        /// The newest epoch.
        epoch: GroupEpoch,
        /// Where the run is.
        position: Position,
    },
    /// An epoch is formed; its number is not used again.
    EpochBegan {
        /// Which one.
        epoch: GroupEpoch,
    },
    /// A training step began: its prompts are drawn.
    StepBegan {
        /// Which one.
        step: StepIndex,
    },
    /// An evaluation began.
    EvaluationBegan {
        /// Completed training steps before it.
        step: StepIndex,
    },
    /// A rollout was accepted; the shell keeps it beside the record.
    RolloutAccepted {
        /// Which one.
        rollout: RolloutId,
        /// Prompt tokens.
        prompt_tokens: u32,
        /// Response tokens.
        response_tokens: u32,
    },
    /// Its answer was judged; the shell keeps the judgement beside the record.
    RolloutVerified {
        /// Which one.
        rollout: RolloutId,
    },
    /// A group has its advantages.
    GroupShaped {
        /// Which one.
        group: GroupId,
        /// One for each rollout, by index.
        advantages: Vec<f32>,
        /// The group takes no part in the update.
        skipped: bool,
    },
    /// A group is left out.
    PromptSkipped {
        /// Which one.
        group: GroupId,
    },
    /// All ranks are told to do an optimizer step.
    ApplyTold {
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// Sums over all ranks.
        stats: UpdateStats,
        /// Norm of the summed gradient.
        gradient_norm: f64,
    },
    /// The optimizer step is done.
    MinibatchDone {
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// The policy after it.
        policy_version: PolicyVersion,
        /// Digest of its weights; unknown where a lost rank's word was not heard.
        weights_digest: Option<u64>,
    },
    /// A mini-batch is not finite: nobody applies it, and it is not computed again.
    MinibatchSkipped {
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// See [`super::Effect::MinibatchSkipped`].
        rollouts: Vec<RolloutId>,
    },
}

impl Record {
    /// It must be on the disk before workers are told what follows.
    #[must_use]
    pub fn is_promise(&self) -> bool {
        let promise =
            matches!(self, Self::EpochBegan { .. } | Self::ApplyTold { .. } | Self::MinibatchSkipped { .. });
        promise && !planted!(PromiseNotKept)
    }
}
