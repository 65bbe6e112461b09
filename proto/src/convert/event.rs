//! Events of a worker.

use g2rl_common::ids::{
    GroupEpoch, GroupId, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, RunId, StepIndex, WorkerId,
};

use super::ConvertError;
use super::parts::{required, rollout_to_wire};
use crate::message::{
    Hello, LeaseProgress, MAX_LEASES_REPORTED, Phase, RejectReason, WorkerEvent, WorkerStatus,
};
use crate::wire;
use crate::wire::worker_message::Message;

/// Characters of the name of a piece of work that are kept.
const MAX_WORK_CHARS: usize = 64;

impl From<WorkerEvent> for wire::WorkerMessage {
    fn from(event: WorkerEvent) -> Self {
        let message = match event {
            WorkerEvent::Hello(hello) => Message::Hello(hello.into()),
            WorkerEvent::EpochPrepared { epoch, policy_version, port } => {
                Message::EpochPrepared(wire::EpochPrepared {
                    epoch: epoch.0,
                    policy_version: policy_version.0,
                    port: port.map(u32::from),
                })
            }
            WorkerEvent::EpochFormed { epoch, policy_version, weights_digest, decode_slots, hidden_size } => {
                Message::EpochFormed(wire::EpochFormed {
                    epoch: epoch.0,
                    policy_version: policy_version.0,
                    weights_digest,
                    decode_slots,
                    hidden_size,
                })
            }
            WorkerEvent::EpochFailed { epoch, error } => {
                Message::EpochFailed(wire::EpochFailed { epoch: epoch.0, error })
            }
            WorkerEvent::Heartbeat { epoch, status } => Message::Heartbeat(wire::Heartbeat {
                epoch: epoch.0,
                phase: phase_to_wire(status.phase).into(),
                slots_in_use: status.slots_in_use,
                generated_tokens: status.generated_tokens,
                resident_bytes: status.resident_bytes,
                device_bytes: status.device_bytes,
                work: status.work,
                progress: status.progress,
                still_ms: status.still_ms,
                phase_ms: status.phase_ms,
                leases: status.leases.into_iter().take(MAX_LEASES_REPORTED).map(lease_to_wire).collect(),
            }),
            WorkerEvent::RolloutDone { epoch, lease, rollout } => {
                Message::RolloutDone(rollout_to_wire(epoch.0, lease.0, rollout))
            }
            WorkerEvent::LeaseRejected { epoch, lease, reason, detail } => {
                let reason = match reason {
                    RejectReason::PromptTooLong => wire::RejectReason::PromptTooLong,
                    RejectReason::InvalidPrompt => wire::RejectReason::InvalidPrompt,
                };
                Message::LeaseRejected(wire::LeaseRejected {
                    epoch: epoch.0,
                    lease: lease.0,
                    reason: reason.into(),
                    detail,
                })
            }
            WorkerEvent::GradientsReady { epoch, step, minibatch, stats, gradient_norm, not_finite } => {
                Message::GradientsReady(wire::GradientsReady {
                    epoch: epoch.0,
                    step: step.0,
                    minibatch: minibatch.0,
                    stats: Some(stats.into()),
                    gradient_norm,
                    not_finite: not_finite.into_iter().map(rollout_name).collect(),
                })
            }
            WorkerEvent::MinibatchApplied { epoch, step, minibatch, policy_version, weights_digest } => {
                Message::MinibatchApplied(wire::MinibatchApplied {
                    epoch: epoch.0,
                    step: step.0,
                    minibatch: minibatch.0,
                    policy_version: policy_version.0,
                    weights_digest,
                })
            }
            WorkerEvent::CheckpointDone { epoch, step, error } => {
                Message::CheckpointDone(wire::CheckpointDone { epoch: epoch.0, step: step.0, error })
            }
            WorkerEvent::Failed { error } => Message::WorkerFailed(wire::WorkerFailed { error }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::WorkerMessage> for WorkerEvent {
    type Error = ConvertError;

    fn try_from(message: wire::WorkerMessage) -> Result<Self, ConvertError> {
        Ok(match message.message.ok_or(ConvertError::Empty)? {
            Message::Hello(m) => Self::Hello(hello(m)?),
            Message::EpochPrepared(m) => Self::EpochPrepared {
                epoch: GroupEpoch(m.epoch),
                policy_version: PolicyVersion(m.policy_version),
                port: m
                    .port
                    .map(u16::try_from)
                    .transpose()
                    .map_err(|_| ConvertError::field("EpochPrepared", "port", "is not below 65536"))?,
            },
            Message::EpochFormed(m) => {
                if m.decode_slots == 0 {
                    return Err(ConvertError::field("EpochFormed", "decode_slots", "must be at least 1"));
                }
                Self::EpochFormed {
                    epoch: GroupEpoch(m.epoch),
                    policy_version: PolicyVersion(m.policy_version),
                    weights_digest: m.weights_digest,
                    decode_slots: m.decode_slots,
                    hidden_size: m.hidden_size,
                }
            }
            Message::EpochFailed(m) => Self::EpochFailed { epoch: GroupEpoch(m.epoch), error: m.error },
            Message::Heartbeat(m) => Self::Heartbeat {
                epoch: GroupEpoch(m.epoch),
                status: WorkerStatus {
                    phase: phase_from_wire(m.phase())?,
                    slots_in_use: m.slots_in_use,
                    generated_tokens: m.generated_tokens,
                    resident_bytes: m.resident_bytes,
                    device_bytes: m.device_bytes,
                    work: m.work.chars().take(MAX_WORK_CHARS).collect(),
                    progress: m.progress,
                    still_ms: m.still_ms,
                    phase_ms: m.phase_ms,
                    leases: m.leases.iter().take(MAX_LEASES_REPORTED).map(lease_from_wire).collect(),
                },
            },
            Message::RolloutDone(m) => Self::RolloutDone {
                epoch: GroupEpoch(m.epoch),
                lease: LeaseId(m.lease),
                rollout: m.try_into()?,
            },
            Message::LeaseRejected(m) => Self::LeaseRejected {
                epoch: GroupEpoch(m.epoch),
                lease: LeaseId(m.lease),
                reason: match m.reason() {
                    wire::RejectReason::PromptTooLong => RejectReason::PromptTooLong,
                    wire::RejectReason::InvalidPrompt => RejectReason::InvalidPrompt,
                    wire::RejectReason::Unspecified => {
                        return Err(ConvertError::field("LeaseRejected", "reason", "is not specified"));
                    }
                },
                detail: m.detail,
            },
            Message::GradientsReady(m) => Self::GradientsReady {
                epoch: GroupEpoch(m.epoch),
                step: StepIndex(m.step),
                minibatch: MinibatchIndex(m.minibatch),
                stats: required("GradientsReady", "stats", m.stats)?.into(),
                gradient_norm: m.gradient_norm,
                not_finite: m.not_finite.into_iter().map(rollout_id).collect(),
            },
            Message::MinibatchApplied(m) => Self::MinibatchApplied {
                epoch: GroupEpoch(m.epoch),
                step: StepIndex(m.step),
                minibatch: MinibatchIndex(m.minibatch),
                policy_version: PolicyVersion(m.policy_version),
                weights_digest: m.weights_digest,
            },
            Message::CheckpointDone(m) => {
                Self::CheckpointDone { epoch: GroupEpoch(m.epoch), step: StepIndex(m.step), error: m.error }
            }
            Message::WorkerFailed(m) => Self::Failed { error: m.error },
        })
    }
}

impl From<Hello> for wire::Hello {
    fn from(hello: Hello) -> Self {
        let (held_run_id, held_policy_version) = hello.held.map(|(run, version)| (run.0, version.0)).unzip();
        Self {
            protocol_version: hello.protocol_version,
            worker_id: hello.worker.0,
            hostname: hello.hostname,
            address: hello.address,
            device: hello.device,
            held_run_id,
            held_policy_version,
        }
    }
}

fn hello(m: wire::Hello) -> Result<Hello, ConvertError> {
    if m.worker_id.is_empty() {
        return Err(ConvertError::field("Hello", "worker_id", "is empty"));
    }
    Ok(Hello {
        protocol_version: m.protocol_version,
        worker: WorkerId(m.worker_id),
        hostname: m.hostname,
        address: m.address,
        device: m.device,
        held: m.held_run_id.map(RunId).zip(m.held_policy_version.map(PolicyVersion)),
    })
}

fn rollout_name(id: RolloutId) -> wire::RolloutName {
    wire::RolloutName { group: id.group.0, index: id.index }
}

fn rollout_id(name: wire::RolloutName) -> RolloutId {
    RolloutId { group: GroupId(name.group), index: name.index }
}

fn lease_to_wire(progress: LeaseProgress) -> wire::LeaseProgress {
    let LeaseProgress { lease, rollouts, tokens } = progress;
    wire::LeaseProgress { lease: lease.0, rollouts, tokens }
}

fn lease_from_wire(m: &wire::LeaseProgress) -> LeaseProgress {
    LeaseProgress { lease: LeaseId(m.lease), rollouts: m.rollouts, tokens: m.tokens }
}

fn phase_to_wire(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Idle => wire::Phase::Idle,
        Phase::Loading => wire::Phase::Loading,
        Phase::Forming => wire::Phase::Forming,
        Phase::Rollout => wire::Phase::Rollout,
        Phase::Update => wire::Phase::Update,
        Phase::WaitingForApply => wire::Phase::WaitingForApply,
        Phase::Apply => wire::Phase::Apply,
        Phase::Checkpoint => wire::Phase::Checkpoint,
    }
}

fn phase_from_wire(phase: wire::Phase) -> Result<Phase, ConvertError> {
    Ok(match phase {
        wire::Phase::Unspecified => {
            return Err(ConvertError::field("Heartbeat", "phase", "is not specified"));
        }
        wire::Phase::Idle => Phase::Idle,
        wire::Phase::Loading => Phase::Loading,
        wire::Phase::Forming => Phase::Forming,
        wire::Phase::Rollout => Phase::Rollout,
        wire::Phase::Update => Phase::Update,
        wire::Phase::WaitingForApply => Phase::WaitingForApply,
        wire::Phase::Apply => Phase::Apply,
        wire::Phase::Checkpoint => Phase::Checkpoint,
    })
}
