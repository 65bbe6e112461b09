//! What the state machine hears ([`Event`]) and what it wants done ([`Effect`]).
//!
//! Both are light: token ids, texts and features stay with the shell, which keeps them by
//! [`RolloutId`]. So the machine runs in a simulator without any of them, and a step of it takes
//! microseconds however long the responses are.

use g2rl_common::ids::{
    GroupEpoch, GroupId, LeaseId, MinibatchIndex, PolicyVersion, Rank, RolloutId, StepIndex, WorkerId,
};
use g2rl_common::rollout::Purpose;
use g2rl_common::update::UpdateStats;
use g2rl_proto::{EpochPlan, Hello, RejectReason, WorkerStatus};

use super::plan::ResponseSource;
use super::record::Record;
use super::status::RunPhase;

/// Milliseconds on the shell's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

/// A problem by its place in its data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProblemRef {
    /// Which data set: training problems or held-out problems.
    pub purpose: Purpose,
    /// Index of the row.
    pub index: u32,
}

impl std::fmt::Display for ProblemRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.purpose {
            Purpose::Train => write!(f, "training problem {}", self.index),
            Purpose::Evaluate => write!(f, "held-out problem {}", self.index),
        }
    }
}

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
    /// Time passed; deadlines are looked at. Send it at [`super::Coordinator::next_deadline`], after
    /// the events that already wait: a sign of life in the queue counts.
    Tick,
}

/// Rollouts to ask for; the shell adds the problem's text and the sampling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseOrder {
    /// The lease.
    pub lease: LeaseId,
    /// The group.
    pub group: GroupId,
    /// The problem.
    pub problem: ProblemRef,
    /// The policy that must generate.
    pub policy_version: PolicyVersion,
    /// First rollout index.
    pub first_rollout: u32,
    /// Number of rollouts.
    pub rollouts: u32,
    /// See [`g2rl_common::rollout::GroupLease::stream_offset`].
    pub stream_offset: u32,
    /// Whether they are generated at all.
    pub source: ResponseSource,
}

/// A sequence of a mini-batch; the shell adds the tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOrder {
    /// The rollout.
    pub rollout: RolloutId,
    /// Its advantage.
    pub advantage: f32,
    /// Per-token weight of the policy objective.
    pub policy_weight: f32,
    /// Per-token weight of the imitation loss.
    pub imitation_weight: f32,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Completed,
    /// The user stopped it.
    Stopped,
    /// It failed; the text names who or what was waited for.
    Failed(String),
}

/// How long each part of a training step took, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTimes {
    /// From the first lease to the last rollout.
    pub rollout_ms: u64,
    /// From the last rollout to the last judgement.
    pub reward_ms: u64,
    /// From there to the last advantage.
    pub shaping_ms: u64,
    /// From the first mini-batch to the last optimizer step.
    pub update_ms: u64,
}

/// What a run has recovered from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The phase that was interrupted.
    pub phase: RunPhase,
    /// Who was lost, and how that was noticed.
    pub cause: String,
    /// From the end of the old epoch until the new one stood, milliseconds.
    pub duration_ms: u64,
    /// Leased rollouts that were lost with their ranks and are generated again.
    pub rollouts_redone: u64,
}

/// A completed training step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Which one.
    pub step: StepIndex,
    /// The policy after it.
    pub policy_version: PolicyVersion,
    /// Its groups of generated responses.
    pub groups: Vec<GroupId>,
    /// Its groups of given responses.
    pub imitated: Vec<GroupId>,
    /// Sums over its mini-batches and ranks.
    pub stats: UpdateStats,
    /// Of the first mini-batch: there the policy is still the behaviour policy, so its drift
    /// measures the disagreement between sampler and update.
    pub first_minibatch_stats: UpdateStats,
    /// Mean gradient norm over its mini-batches.
    pub gradient_norm: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// Response tokens, given ones included.
    pub response_tokens: u64,
    /// Share of the decode slots' time without a rollout while rollouts were generated, of the slots that the
    /// step could use.
    pub rollout_idle_ratio: f64,
    /// Where the time went.
    pub times: StepTimes,
}

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

/// What a run needs to go on from a checkpoint, besides weights and optimizer state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResumeState {
    /// Completed training steps.
    pub steps_done: StepIndex,
    /// Optimizer steps applied.
    pub policy_version: PolicyVersion,
    /// Training prompts drawn from the data cursor.
    pub prompts_drawn: u64,
    /// Training prompts drawn when this policy came to be. A prompt that appears again under the
    /// same policy (in one step, or over steps that applied nothing) gets another stream offset.
    pub policy_since_prompt: u64,
    /// First group id not yet given out.
    pub next_group: GroupId,
}
