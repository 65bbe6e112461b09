//! What the state machine hears.

use g2rl_common::ids::{
    GroupEpoch, GroupId, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId,
};
use g2rl_common::update::UpdateStats;
use g2rl_proto::{Hello, RejectReason, WorkerStatus};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker opened a stream and said hello.
    Connected {
        /// Its introduction.
        hello: Hello,
    },
    /// A worker's stream ended. Not reported of a stream that another of the same worker has replaced.
    Disconnected {
        /// Whose.
        worker: WorkerId,
        /// Why, as far as known.
        reason: String,
    },
    /// A rank has left the epoch before.
    EpochPrepared {
        /// Who.
        worker: WorkerId,
        /// The epoch being formed.
        epoch: GroupEpoch,
        /// The policy it holds.
        policy_version: PolicyVersion,
        /// The port of its store; rank 0 has one.
        port: Option<u16>,
    },
    /// A rank joined the epoch's process group.
    EpochFormed {
        /// Who.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// The policy it holds.
        policy_version: PolicyVersion,
        /// Digest of its weights.
        weights_digest: u64,
        /// Decode slots it offers.
        decode_slots: u32,
    },
    /// A rank could not join, or a collective failed on it.
    EpochFailed {
        /// Who.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// What happened.
        error: String,
    },
    /// A sign of life.
    Heartbeat {
        /// Who.
        worker: WorkerId,
        /// The epoch it believes in.
        epoch: GroupEpoch,
        /// What it does.
        status: WorkerStatus,
    },
    /// A rollout arrived and is in the shell's keeping.
    RolloutArrived {
        /// From whom.
        worker: WorkerId,
        /// The epoch it names.
        epoch: GroupEpoch,
        /// The lease it answers.
        lease: LeaseId,
        /// The rollout.
        rollout: RolloutId,
        /// The policy that generated it.
        policy_version: PolicyVersion,
        /// Prompt tokens.
        prompt_tokens: u32,
        /// Response tokens.
        response_tokens: u32,
    },
    /// A worker will not generate a lease.
    LeaseRejected {
        /// Who.
        worker: WorkerId,
        /// The epoch it names.
        epoch: GroupEpoch,
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: RejectReason,
        /// For people.
        detail: String,
    },
    /// The answer of a rollout was verified.
    RolloutVerified {
        /// The rollout.
        rollout: RolloutId,
    },
    /// A reward service is down: answers wait unjudged, and that has no deadline of the machine's.
    JudgingPaused {
        /// What is down and why, for people.
        cause: String,
    },
    /// All reward services are there again.
    JudgingResumed,
    /// Answers cannot be judged; the run ends as after [`Event::StopRequested`], but failed.
    JudgingFailed {
        /// What failed, for people.
        error: String,
    },
    /// A complete group has its advantages.
    GroupShaped {
        /// The group.
        group: GroupId,
        /// One for each rollout, by index.
        advantages: Vec<f32>,
        /// The group takes no part in the update.
        skipped: bool,
    },
    /// Something the shell did for the machine failed; the run cannot go on.
    ShellFailed {
        /// What was tried and what happened.
        error: String,
    },
    /// A rank's gradients are summed over all ranks.
    GradientsReady {
        /// Who.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// The rank's sums.
        stats: UpdateStats,
        /// Norm of the summed gradient.
        gradient_norm: f64,
        /// Rollouts of its share whose own loss or log-probabilities are not finite.
        not_finite: Vec<RolloutId>,
    },
    /// A rank did the optimizer step.
    MinibatchApplied {
        /// Who.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// The policy it holds now.
        policy_version: PolicyVersion,
        /// Digest of its weights.
        weights_digest: u64,
    },
    /// Rank 0's checkpoint is durable, or could not be written.
    CheckpointDone {
        /// Who.
        worker: WorkerId,
        /// The epoch.
        epoch: GroupEpoch,
        /// Completed training steps in it.
        step: StepIndex,
        /// What went wrong, if anything.
        error: Option<String>,
    },
    /// A worker cannot go on.
    WorkerFailed {
        /// Who.
        worker: WorkerId,
        /// What happened.
        error: String,
    },
    /// The user wants the run to end: at the next safe point, with a checkpoint.
    StopRequested,
    /// Time passed; deadlines are looked at. Send it at [`crate::state::Coordinator::next_deadline`], after
    /// the events that already wait: a sign of life in the queue counts.
    Tick,
}
