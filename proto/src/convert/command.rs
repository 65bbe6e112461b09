//! Commands of the coordinator.

use g2rl_common::ids::{GroupEpoch, MinibatchIndex, PolicyVersion, Rank, RunId, StepIndex};

use super::ConvertError;
use super::parts::lease_to_wire;
use crate::message::{Command, EpochPlan, Welcome};
use crate::wire;
use crate::wire::coordinator_message::Message;

impl From<Command> for wire::CoordinatorMessage {
    fn from(command: Command) -> Self {
        let message = match command {
            Command::Welcome(w) => Message::Welcome(wire::Welcome {
                protocol_version: w.protocol_version,
                run_id: w.run.0,
                config_toml: w.config_toml,
                heartbeat_interval_ms: w.heartbeat_interval_ms,
                model_path: w.model_path,
                policy_version: w.policy_version.0,
            }),
            Command::PrepareEpoch { epoch, host } => {
                Message::PrepareEpoch(wire::PrepareEpoch { epoch: epoch.0, host })
            }
            Command::FormEpoch(plan) => Message::FormEpoch(wire::FormEpoch {
                epoch: plan.epoch.0,
                rank: plan.rank.0,
                world_size: plan.world_size,
                store_address: plan.store_address,
                store_port: plan.store_port.into(),
                source_rank: plan.source_rank.0,
                share_policy: plan.share_policy,
                policy_version: plan.policy_version.0,
                collective_timeout_ms: plan.collective_timeout_ms,
            }),
            Command::Lease { epoch, lease } => Message::Lease(lease_to_wire(epoch.0, lease)),
            Command::TrainMinibatch { epoch, step, minibatch, learning_rate, sequences } => {
                Message::TrainMinibatch(wire::TrainMinibatch {
                    epoch: epoch.0,
                    step: step.0,
                    minibatch: minibatch.0,
                    learning_rate,
                    sequences: sequences.into_iter().map(Into::into).collect(),
                })
            }
            Command::Apply { epoch, step, minibatch } => {
                Message::Apply(wire::Apply { epoch: epoch.0, step: step.0, minibatch: minibatch.0 })
            }
            Command::SaveCheckpoint { epoch, step, path, trainer_state_json } => {
                Message::SaveCheckpoint(wire::SaveCheckpoint {
                    epoch: epoch.0,
                    step: step.0,
                    path,
                    trainer_state_json,
                })
            }
            Command::Shutdown { reason, failed } => Message::Shutdown(wire::Shutdown { reason, failed }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<wire::CoordinatorMessage> for Command {
    type Error = ConvertError;

    fn try_from(message: wire::CoordinatorMessage) -> Result<Self, ConvertError> {
        Ok(match message.message.ok_or(ConvertError::Empty)? {
            Message::Welcome(w) => Self::Welcome(Welcome {
                protocol_version: w.protocol_version,
                run: RunId(w.run_id),
                config_toml: w.config_toml,
                heartbeat_interval_ms: w.heartbeat_interval_ms,
                model_path: w.model_path,
                policy_version: PolicyVersion(w.policy_version),
            }),
            Message::PrepareEpoch(m) => Self::PrepareEpoch { epoch: GroupEpoch(m.epoch), host: m.host },
            Message::FormEpoch(m) => Self::FormEpoch(plan(m)?),
            Message::Lease(m) => Self::Lease { epoch: GroupEpoch(m.epoch), lease: m.try_into()? },
            Message::TrainMinibatch(m) => {
                if !(m.learning_rate.is_finite() && m.learning_rate >= 0.0) {
                    let problem = m.learning_rate.to_string();
                    return Err(ConvertError::field("TrainMinibatch", "learning_rate", problem));
                }
                Self::TrainMinibatch {
                    epoch: GroupEpoch(m.epoch),
                    step: StepIndex(m.step),
                    minibatch: MinibatchIndex(m.minibatch),
                    learning_rate: m.learning_rate,
                    sequences: m.sequences.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
                }
            }
            Message::Apply(m) => Self::Apply {
                epoch: GroupEpoch(m.epoch),
                step: StepIndex(m.step),
                minibatch: MinibatchIndex(m.minibatch),
            },
            Message::SaveCheckpoint(m) => Self::SaveCheckpoint {
                epoch: GroupEpoch(m.epoch),
                step: StepIndex(m.step),
                path: m.path,
                trainer_state_json: m.trainer_state_json,
            },
            Message::Shutdown(m) => Self::Shutdown { reason: m.reason, failed: m.failed },
        })
    }
}

fn plan(m: wire::FormEpoch) -> Result<EpochPlan, ConvertError> {
    const NAME: &str = "FormEpoch";
    let store_port = m
        .store_port
        .try_into()
        .map_err(|_| ConvertError::field(NAME, "store_port", m.store_port.to_string()))?;
    if m.rank >= m.world_size || m.source_rank >= m.world_size {
        let problem = format!("ranks {} and {} in a world of {}", m.rank, m.source_rank, m.world_size);
        return Err(ConvertError::field(NAME, "rank", problem));
    }
    Ok(EpochPlan {
        epoch: GroupEpoch(m.epoch),
        rank: Rank(m.rank),
        world_size: m.world_size,
        store_address: m.store_address,
        store_port,
        source_rank: Rank(m.source_rank),
        share_policy: m.share_policy,
        policy_version: PolicyVersion(m.policy_version),
        collective_timeout_ms: m.collective_timeout_ms,
    })
}
