//! What a run is doing, for logs, `/readyz` and failure texts.
//!
//! Invariant: a status is a copy; reading it changes nothing.

use std::fmt;

use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, Rank, StepIndex, WorkerId};
use g2rl_proto::WorkerStatus;

use super::interface::Millis;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPhase {
    /// Waiting for workers.
    Gathering,
    /// The ranks join an epoch.
    Forming(GroupEpoch),
    /// Held-out problems are answered, after this many training steps.
    Evaluation(StepIndex),
    /// Rollouts of a training step are generated, verified and shaped.
    Rollout(StepIndex),
    /// Gradients of a mini-batch are computed.
    Gradients(StepIndex, MinibatchIndex),
    /// The optimizer step of a mini-batch is done.
    Apply(StepIndex, MinibatchIndex),
    /// A checkpoint is written, after this many training steps.
    Checkpoint(StepIndex),
    /// The run is over.
    Finished,
}

impl RunPhase {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gathering => "gathering",
            Self::Forming(_) => "forming",
            Self::Evaluation(_) => "evaluation",
            Self::Rollout(_) => "rollout",
            Self::Gradients(..) => "gradients",
            Self::Apply(..) => "apply",
            Self::Checkpoint(_) => "checkpoint",
            Self::Finished => "finished",
        }
    }
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gathering => write!(f, "gathering of workers"),
            Self::Forming(epoch) => write!(f, "forming of epoch {epoch}"),
            Self::Evaluation(steps) => write!(f, "evaluation after {steps} steps"),
            Self::Rollout(step) => write!(f, "rollout of step {step}"),
            Self::Gradients(step, minibatch) => write!(f, "gradients of step {step}, mini-batch {minibatch}"),
            Self::Apply(step, minibatch) => {
                write!(f, "optimizer step of step {step}, mini-batch {minibatch}")
            }
            Self::Checkpoint(steps) => write!(f, "checkpoint after {steps} steps"),
            Self::Finished => write!(f, "finished run"),
        }
    }
}

/// One rank of the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankStatus {
    /// Its rank.
    pub rank: Rank,
    /// Who it is.
    pub worker: WorkerId,
    /// Its machine, for people.
    pub host: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Decode slots it offers; 0 until the epoch stands.
    pub decode_slots: u32,
    /// Rollouts leased to it and not back.
    pub outstanding_rollouts: u32,
    /// When it was last heard.
    pub last_seen: Millis,
    /// What it last said it does.
    pub reported: WorkerStatus,
}

/// What a run is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStatus {
    /// What it is doing.
    pub phase: RunPhase,
    /// Since when.
    pub since: Millis,
    /// Completed training steps.
    pub steps_done: StepIndex,
    /// Training steps of the whole run.
    pub steps: u64,
    /// Optimizer steps applied.
    pub policy_version: PolicyVersion,
    /// The epoch that stands or is being formed; 0 before the first.
    pub epoch: GroupEpoch,
    /// All ranks have joined the epoch.
    pub epoch_stands: bool,
    /// The ranks of the epoch.
    pub ranks: Vec<RankStatus>,
    /// Connected workers without a rank.
    pub waiting_workers: Vec<WorkerId>,
    /// Decode slots without a rollout.
    pub free_slots: u32,
    /// Leases that are not complete.
    pub outstanding_leases: usize,
    /// Rollouts leased and not back.
    pub outstanding_rollouts: u32,
    /// Rollouts not leased yet.
    pub queued_rollouts: u32,
    /// Epochs that ended before their work was done.
    pub epochs_failed: u64,
    /// How often ranks that must agree did not.
    pub disagreements: u64,
    /// Leased rollouts that were lost with their ranks and leased again.
    pub rollouts_redone: u64,
    /// Time without enough workers, milliseconds.
    pub waiting_ms: u64,
    /// Who or what the phase waits for.
    pub waiting_for: String,
}
