//! Messages inside messages.

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, RolloutId};
use g2rl_common::rollout::{FinishReason, GroupLease, Purpose, Rollout, Sampling};
use g2rl_common::update::{TrainSequence, UpdateStats};

use super::ConvertError;
use crate::wire;

/// Checks that all values are finite.
pub(super) fn finite(message: &'static str, field: &'static str, values: &[f32]) -> Result<(), ConvertError> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(ConvertError::field(message, field, format!("value {at} is {}", values[at]))),
        None => Ok(()),
    }
}

/// Unwraps a message that must be there.
pub(super) fn required<T>(
    message: &'static str,
    field: &'static str,
    value: Option<T>,
) -> Result<T, ConvertError> {
    value.ok_or_else(|| ConvertError::field(message, field, "is missing"))
}

impl From<Sampling> for wire::Sampling {
    fn from(s: Sampling) -> Self {
        Self {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            max_new_tokens: s.max_new_tokens,
            stop: s.stop,
        }
    }
}

impl From<wire::Sampling> for Sampling {
    fn from(s: wire::Sampling) -> Self {
        Self {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            max_new_tokens: s.max_new_tokens,
            stop: s.stop,
        }
    }
}

/// A lease on the wire, without its epoch.
pub(super) fn lease_to_wire(epoch: u64, lease: GroupLease) -> wire::Lease {
    let purpose = match lease.purpose {
        Purpose::Train => wire::Purpose::Train,
        Purpose::Evaluate => wire::Purpose::Evaluate,
    };
    wire::Lease {
        epoch,
        lease: lease.lease.0,
        group: lease.group.0,
        purpose: purpose.into(),
        policy_version: lease.policy_version.0,
        prompt_id: lease.prompt_id.0,
        problem: lease.problem,
        first_rollout: lease.first_rollout,
        rollouts: lease.rollouts,
        stream_offset: lease.stream_offset,
        given_response: lease.given_response,
        sampling: Some(lease.sampling.into()),
    }
}

impl TryFrom<wire::Lease> for GroupLease {
    type Error = ConvertError;

    fn try_from(lease: wire::Lease) -> Result<Self, ConvertError> {
        let purpose = match lease.purpose() {
            wire::Purpose::Train => Purpose::Train,
            wire::Purpose::Evaluate => Purpose::Evaluate,
            wire::Purpose::Unspecified => {
                return Err(ConvertError::field("Lease", "purpose", "is not specified"));
            }
        };
        if lease.rollouts == 0 {
            return Err(ConvertError::field("Lease", "rollouts", "must be at least 1"));
        }
        if lease.given_response.is_some() && lease.rollouts != 1 {
            return Err(ConvertError::field("Lease", "given_response", "goes with exactly one rollout"));
        }
        Ok(Self {
            lease: LeaseId(lease.lease),
            group: GroupId(lease.group),
            purpose,
            policy_version: PolicyVersion(lease.policy_version),
            prompt_id: lease.prompt_id.as_str().into(),
            problem: lease.problem,
            first_rollout: lease.first_rollout,
            rollouts: lease.rollouts,
            stream_offset: lease.stream_offset,
            given_response: lease.given_response,
            sampling: required("Lease", "sampling", lease.sampling)?.into(),
        })
    }
}

/// A rollout on the wire, with the epoch and lease it answers.
pub(super) fn rollout_to_wire(epoch: u64, lease: u64, rollout: Rollout) -> wire::RolloutDone {
    let finish_reason = match rollout.finish_reason {
        FinishReason::EndToken => wire::FinishReason::EndToken,
        FinishReason::StopString => wire::FinishReason::StopString,
        FinishReason::Length => wire::FinishReason::Length,
    };
    wire::RolloutDone {
        epoch,
        lease,
        group: rollout.id.group.0,
        index: rollout.id.index,
        policy_version: rollout.policy_version.0,
        prompt_tokens: rollout.prompt_tokens,
        response_tokens: rollout.response_tokens,
        behavior_logprobs: rollout.behavior_logprobs,
        mean_entropy: rollout.mean_entropy,
        text: rollout.text,
        finish_reason: finish_reason.into(),
        feature: rollout.feature.unwrap_or_default(),
    }
}

impl TryFrom<wire::RolloutDone> for Rollout {
    type Error = ConvertError;

    fn try_from(done: wire::RolloutDone) -> Result<Self, ConvertError> {
        const NAME: &str = "RolloutDone";
        let finish_reason = match done.finish_reason() {
            wire::FinishReason::EndToken => FinishReason::EndToken,
            wire::FinishReason::StopString => FinishReason::StopString,
            wire::FinishReason::Length => FinishReason::Length,
            wire::FinishReason::Unspecified => {
                return Err(ConvertError::field(NAME, "finish_reason", "is not specified"));
            }
        };
        if done.prompt_tokens.is_empty() || done.response_tokens.is_empty() {
            return Err(ConvertError::field(
                NAME,
                "response_tokens",
                "prompt and response need at least one token",
            ));
        }
        let (tokens, logprobs) = (done.response_tokens.len(), done.behavior_logprobs.len());
        if logprobs != 0 && logprobs != tokens {
            return Err(ConvertError::field(
                NAME,
                "behavior_logprobs",
                format!("{logprobs} values for {tokens} tokens"),
            ));
        }
        finite(NAME, "behavior_logprobs", &done.behavior_logprobs)?;
        finite(NAME, "feature", &done.feature)?;
        finite(NAME, "mean_entropy", &[done.mean_entropy])?;
        Ok(Self {
            id: RolloutId { group: GroupId(done.group), index: done.index },
            policy_version: PolicyVersion(done.policy_version),
            prompt_tokens: done.prompt_tokens,
            response_tokens: done.response_tokens,
            behavior_logprobs: done.behavior_logprobs,
            mean_entropy: done.mean_entropy,
            text: done.text,
            finish_reason,
            feature: (!done.feature.is_empty()).then_some(done.feature),
        })
    }
}

impl From<TrainSequence> for wire::TrainSequence {
    fn from(s: TrainSequence) -> Self {
        Self {
            group: s.id.group.0,
            index: s.id.index,
            tokens: s.tokens,
            prompt_length: s.prompt_length,
            behavior_logprobs: s.behavior_logprobs,
            advantage: s.advantage,
            policy_weight: s.policy_weight,
            imitation_weight: s.imitation_weight,
        }
    }
}

impl TryFrom<wire::TrainSequence> for TrainSequence {
    type Error = ConvertError;

    fn try_from(s: wire::TrainSequence) -> Result<Self, ConvertError> {
        const NAME: &str = "TrainSequence";
        if s.prompt_length == 0 || s.prompt_length as usize >= s.tokens.len() {
            let problem = format!(
                "{} of {} tokens; prompt and response need at least one",
                s.prompt_length,
                s.tokens.len()
            );
            return Err(ConvertError::field(NAME, "prompt_length", problem));
        }
        let response = s.tokens.len() - s.prompt_length as usize;
        let logprobs = s.behavior_logprobs.len();
        if logprobs != response && (logprobs != 0 || s.policy_weight != 0.0) {
            return Err(ConvertError::field(
                NAME,
                "behavior_logprobs",
                format!("{logprobs} values for {response} tokens"),
            ));
        }
        finite(NAME, "behavior_logprobs", &s.behavior_logprobs)?;
        finite(NAME, "advantage", &[s.advantage, s.policy_weight, s.imitation_weight])?;
        Ok(Self {
            id: RolloutId { group: GroupId(s.group), index: s.index },
            tokens: s.tokens,
            prompt_length: s.prompt_length,
            behavior_logprobs: s.behavior_logprobs,
            advantage: s.advantage,
            policy_weight: s.policy_weight,
            imitation_weight: s.imitation_weight,
        })
    }
}

impl From<UpdateStats> for wire::UpdateStats {
    fn from(s: UpdateStats) -> Self {
        Self {
            tokens: s.tokens,
            sequences: s.sequences,
            loss: s.loss,
            kl: s.kl,
            clipped: s.clipped,
            entropy: s.entropy,
            ratio: s.ratio,
            drift: s.drift,
            drift_max: s.drift_max,
            negative_log_likelihood: s.negative_log_likelihood,
        }
    }
}

impl From<wire::UpdateStats> for UpdateStats {
    fn from(s: wire::UpdateStats) -> Self {
        Self {
            tokens: s.tokens,
            sequences: s.sequences,
            loss: s.loss,
            kl: s.kl,
            clipped: s.clipped,
            entropy: s.entropy,
            ratio: s.ratio,
            drift: s.drift,
            drift_max: s.drift_max,
            negative_log_likelihood: s.negative_log_likelihood,
        }
    }
}
