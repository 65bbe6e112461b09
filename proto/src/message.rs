//! The protocol in domain types: what a worker tells ([`WorkerEvent`]) and what it is told
//! ([`Command`]).

use g2rl_common::ids::{
    GroupEpoch, LeaseId, MinibatchIndex, PolicyVersion, Rank, RolloutId, RunId, StepIndex, WorkerId,
};
use g2rl_common::rollout::{GroupLease, Rollout};
use g2rl_common::update::{TrainSequence, UpdateStats};

/// A worker introduces itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// See [`crate::PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// Chosen by the worker, kept over reconnects.
    pub worker: WorkerId,
    /// For people.
    pub hostname: String,
    /// Address under which the other ranks reach this worker's store and collectives.
    pub address: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// The run and policy the worker still holds from an earlier connection.
    pub held: Option<(RunId, PolicyVersion)>,
}

/// The coordinator's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    /// See [`crate::PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// The run's name.
    pub run: RunId,
    /// The run's whole configuration as TOML, defaults filled in.
    pub config_toml: String,
    /// How often the worker sends a [`WorkerStatus`], milliseconds.
    pub heartbeat_interval_ms: u64,
    /// Directory to load the policy from: the configuration's model, or a checkpoint.
    pub model_path: String,
    /// Number of optimizer steps behind the policy in `model_path`.
    pub policy_version: PolicyVersion,
}

/// One rank's part in a new epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochPlan {
    /// The new epoch.
    pub epoch: GroupEpoch,
    /// This worker's rank.
    pub rank: Rank,
    /// Number of ranks.
    pub world_size: u32,
    /// Address of the store on rank 0.
    pub store_address: String,
    /// Port of the store on rank 0.
    pub store_port: u16,
    /// A rank that holds the policy.
    pub source_rank: Rank,
    /// It broadcasts policy and optimizer state: not all ranks are known to hold the same.
    pub share_policy: bool,
    /// The policy every rank holds once the epoch is formed.
    pub policy_version: PolicyVersion,
    /// Deadline of each collective, milliseconds.
    pub collective_timeout_ms: u64,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    /// Nothing to do.
    #[default]
    Idle,
    /// Reading the model.
    Loading,
    /// Joining an epoch.
    Forming,
    /// Generating rollouts.
    Rollout,
    /// Forward, backward and all-reduce.
    Update,
    /// Gradients are ready; waiting for the word to apply them.
    WaitingForApply,
    /// In the optimizer step.
    Apply,
    /// Writing a checkpoint.
    Checkpoint,
}

impl Phase {
    /// The name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Loading => "loading",
            Self::Forming => "forming",
            Self::Rollout => "rollout",
            Self::Update => "update",
            Self::WaitingForApply => "waiting_for_apply",
            Self::Apply => "apply",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// How far a lease is on its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseProgress {
    /// The lease.
    pub lease: LeaseId,
    /// Rollouts under way or waiting for a slot.
    pub rollouts: u32,
    /// Response tokens so far of those under way.
    pub tokens: u64,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkerStatus {
    /// What the worker is doing.
    pub phase: Phase,
    /// For how long, milliseconds.
    pub phase_ms: u64,
    /// What the engine is in the middle of; empty between two pieces of work.
    pub work: String,
    /// Grows whenever the engine gets on with anything.
    pub progress: u64,
    /// How long it has not grown while there was something to do, milliseconds.
    pub still_ms: u64,
    /// The oldest leases under way, at most [`MAX_LEASES_REPORTED`].
    pub leases: Vec<LeaseProgress>,
    /// Decode slots that hold a running rollout.
    pub slots_in_use: u32,
    /// Tokens generated since the process started.
    pub generated_tokens: u64,
    /// Resident memory of the process, bytes.
    pub resident_bytes: u64,
    /// Memory in use on the device, bytes; 0 on CPU.
    pub device_bytes: u64,
}

/// Leases that a sign of life names.
pub const MAX_LEASES_REPORTED: usize = 16;

/// Why a worker will not generate a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The rendered prompt is longer than the configuration allows; the prompt is skipped.
    PromptTooLong,
    /// The prompt cannot be rendered or encoded; the run stops.
    InvalidPrompt,
}

/// From a worker to the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// First message of a stream.
    Hello(Hello),
    /// The epoch before is left.
    EpochPrepared {
        /// The epoch being formed.
        epoch: GroupEpoch,
        /// The policy the worker holds.
        policy_version: PolicyVersion,
        /// The port of its store, if it was to host one.
        port: Option<u16>,
    },
    /// The process group stands and the policy is in place.
    EpochFormed {
        /// The epoch.
        epoch: GroupEpoch,
        /// The policy the worker holds.
        policy_version: PolicyVersion,
        /// Digest of its weights; equal on all ranks.
        weights_digest: u64,
        /// Decode slots it offers.
        decode_slots: u32,
        /// Length of its features.
        hidden_size: u32,
    },
    /// The process group could not be formed, or a collective failed.
    EpochFailed {
        /// The epoch.
        epoch: GroupEpoch,
        /// What happened.
        error: String,
    },
    /// A sign of life.
    Heartbeat {
        /// The epoch the worker believes in.
        epoch: GroupEpoch,
        /// What it does.
        status: WorkerStatus,
    },
    /// A rollout is complete.
    RolloutDone {
        /// The epoch of the lease.
        epoch: GroupEpoch,
        /// The lease.
        lease: LeaseId,
        /// The rollout.
        rollout: Rollout,
    },
    /// A lease will not be generated.
    LeaseRejected {
        /// The epoch of the lease.
        epoch: GroupEpoch,
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: RejectReason,
        /// For people.
        detail: String,
    },
    /// The mini-batch's gradients are summed over all ranks and wait to be applied.
    GradientsReady {
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// This rank's sums.
        stats: UpdateStats,
        /// Norm of the summed gradient before clipping; equal on all ranks.
        gradient_norm: f64,
        /// Sequences of this rank's share whose own loss or log-probabilities are not finite.
        not_finite: Vec<RolloutId>,
    },
    /// The optimizer step is done.
    MinibatchApplied {
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// The new policy.
        policy_version: PolicyVersion,
        /// Digest of its weights; equal on all ranks.
        weights_digest: u64,
    },
    /// A checkpoint is complete, or failed.
    CheckpointDone {
        /// The epoch.
        epoch: GroupEpoch,
        /// The number of completed training steps in it.
        step: StepIndex,
        /// What went wrong, if anything.
        error: Option<String>,
    },
    /// The worker cannot go on and will exit.
    Failed {
        /// What happened.
        error: String,
    },
}

/// From the coordinator to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// First message of a stream.
    Welcome(Welcome),
    /// Leave the epoch, whatever it is doing with the others, and say what policy is held.
    PrepareEpoch {
        /// The epoch to be formed.
        epoch: GroupEpoch,
        /// Open a store for it.
        host: bool,
    },
    /// Join the epoch.
    FormEpoch(EpochPlan),
    /// Generate rollouts.
    Lease {
        /// The epoch.
        epoch: GroupEpoch,
        /// What to generate.
        lease: GroupLease,
    },
    /// Compute and all-reduce the gradients of a mini-batch; every rank of the epoch gets this
    /// message, a rank without sequences too.
    TrainMinibatch {
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
        /// The optimizer's learning rate for this mini-batch.
        learning_rate: f64,
        /// This rank's share.
        sequences: Vec<TrainSequence>,
    },
    /// Every rank's gradients are ready: do the optimizer step.
    Apply {
        /// The epoch.
        epoch: GroupEpoch,
        /// The training step.
        step: StepIndex,
        /// The mini-batch.
        minibatch: MinibatchIndex,
    },
    /// Write a checkpoint.
    SaveCheckpoint {
        /// The epoch.
        epoch: GroupEpoch,
        /// The number of completed training steps.
        step: StepIndex,
        /// Directory to create; it appears only when complete.
        path: String,
        /// The coordinator's own state, stored beside the weights as it is.
        trainer_state_json: String,
    },
    /// The run is over.
    Shutdown {
        /// For people.
        reason: String,
        /// False when the run ended as planned.
        failed: bool,
    },
}
