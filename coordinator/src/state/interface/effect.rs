//! What the state machine wants done.

use g2rl_common::ids::{
    GroupEpoch, GroupId, MinibatchIndex, PolicyVersion, Rank, RolloutId, StepIndex, WorkerId,
};
use g2rl_proto::EpochPlan;

#[cfg(doc)]
use super::Event;
use super::{LeaseOrder, Outcome, ProblemRef, Recovery, ResumeState, SequenceOrder, StepRecord};
use crate::state::plan::ResponseSource;
use crate::state::record::Record;

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keep this for a restart; a promise ([`Record::is_promise`]) before anything that follows is performed.
    Record(Record),
    /// Answer a hello; the machine has accepted the worker.
    Welcome {
        /// Whom.
        worker: WorkerId,
    },
    /// End a worker's stream; the machine has forgotten it.
    Refuse {
        /// Whom.
        worker: WorkerId,
        /// Why, sent as the reason of a failed shutdown.
        reason: String,
        /// It may connect again: its network or its process stood still, and may go on.
        may_return: bool,
    },
    /// Ask a rank to leave its epoch at once and to say what it holds.
    PrepareEpoch {
        /// Whom.
        worker: WorkerId,
        /// The epoch to be formed.
        epoch: GroupEpoch,
        /// It is rank 0 and opens a store.
        host: bool,
    },
    /// Tell a rank its part.
    FormEpoch {
        /// Whom.
        worker: WorkerId,
        /// The part.
        plan: EpochPlan,
    },
    /// Ask for rollouts.
    Lease {
        /// Whom.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// For what.
        order: LeaseOrder,
    },
    /// Verify the answer of a rollout on the pool, then report [`Event::RolloutVerified`]; one that was given is
    /// right.
    VerifyRollout {
        /// The rollout.
        rollout: RolloutId,
        /// Its problem.
        problem: ProblemRef,
        /// Whether it was generated.
        source: ResponseSource,
    },
    /// Compute geometry and advantages of a complete training group, then report
    /// [`Event::GroupShaped`].
    ShapeGroup {
        /// The group.
        group: GroupId,
        /// The step it belongs to.
        step: StepIndex,
        /// Its problem.
        problem: ProblemRef,
    },
    /// Send a rank its share of a mini-batch (it may be empty).
    TrainMinibatch {
        /// Whom.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// For the optimizer.
        learning_rate: f64,
        /// The share.
        sequences: Vec<SequenceOrder>,
    },
    /// Tell a rank to do the optimizer step.
    Apply {
        /// Whom.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
    },
    /// Ask rank 0 for a checkpoint, and with a divided optimizer the other ranks for their part of it; the shell
    /// names the directory and adds the trainer state.
    SaveCheckpoint {
        /// Whom.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// Completed training steps.
        step: StepIndex,
        /// The policy in it.
        policy_version: PolicyVersion,
        /// State to resume from.
        state: ResumeState,
    },
    /// A checkpoint is durable: older ones may go.
    CheckpointWritten {
        /// Completed training steps in it.
        step: StepIndex,
    },
    /// A checkpoint could not be written or was lost with its rank: the ones before it stay.
    CheckpointFailed {
        /// Completed training steps in it.
        step: StepIndex,
        /// Who wrote it, and what happened.
        error: String,
    },
    /// An epoch stands.
    EpochStarted {
        /// Which one.
        epoch: GroupEpoch,
        /// Its ranks, in order.
        ranks: Vec<(Rank, WorkerId)>,
        /// What the run has recovered from, if the epoch before did not end at a safe point.
        recovery: Option<Recovery>,
    },
    /// An epoch is over before its work was done; another follows.
    EpochEnded {
        /// Which one.
        epoch: GroupEpoch,
        /// Who was lost in which phase, and how that was noticed.
        cause: String,
    },
    /// A training step begins.
    StepStarted {
        /// Which one.
        step: StepIndex,
        /// Number of rollouts it needs.
        rollouts: u32,
    },
    /// A mini-batch's loss or gradient is not finite: no rank applies it, and it is not computed again.
    MinibatchSkipped {
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// Its rollouts whose own values are not finite; all of its rollouts if only the sum is not.
        rollouts: Vec<RolloutId>,
    },
    /// A training step is committed: persist it, then drop its tokens.
    StepCompleted(StepRecord),
    /// An evaluation begins.
    EvaluationStarted {
        /// Completed training steps before it.
        step: StepIndex,
        /// Number of rollouts it needs.
        rollouts: u32,
    },
    /// An evaluation is complete: all its rollouts are verified.
    EvaluationCompleted {
        /// Completed training steps before it.
        step: StepIndex,
        /// Its groups and their problems.
        groups: Vec<(GroupId, ProblemRef)>,
        /// Milliseconds it took.
        duration_ms: u64,
    },
    /// A prompt is left out of its step or evaluation.
    PromptSkipped {
        /// The group that is gone.
        group: GroupId,
        /// Its problem.
        problem: ProblemRef,
        /// Why.
        detail: String,
    },
    /// A message of another epoch, or of a lease that is no more, was dropped.
    StaleMessage {
        /// From whom.
        worker: WorkerId,
        /// Which message.
        kind: &'static str,
    },
    /// The policy that a restored run had is gone with all who held it: another machine begins from the last
    /// checkpoint. Nothing follows.
    StartOver {
        /// Optimizer steps behind the policy that is gone.
        policy_version: PolicyVersion,
    },
    /// Tell a worker that the run is over.
    Shutdown {
        /// Whom.
        worker: WorkerId,
        /// For people.
        reason: String,
        /// Whether it failed.
        failed: bool,
    },
    /// The run is over; nothing follows.
    Finished(Outcome),
}
