//! A run in readable lines: `G2RL_SIMULATOR_TRACE=1` switches it on.

use g2rl_common::ids::WorkerId;

use crate::state::{Effect, Event};

#[derive(Debug)]
pub(crate) struct Trace {
    on: bool,
}

impl Trace {
    pub(crate) fn from_environment() -> Self {
        Self { on: std::env::var_os("G2RL_SIMULATOR_TRACE").is_some() }
    }

    /// Something that happens to the world.
    pub(crate) fn note(&self, now: u64, text: impl FnOnce() -> String) {
        if self.on {
            println!("{now:>8} ms  !! {}", text());
        }
    }

    /// What the machine hears and what it wants.
    pub(crate) fn step(&self, now: u64, event: &Event, effects: &[Effect]) {
        let dull = matches!(event, Event::Heartbeat { .. } | Event::Tick) && effects.is_empty();
        if !self.on || dull {
            return;
        }
        println!("{now:>8} ms  {}", describe_event(event));
        for effect in effects {
            println!("{:>14}-> {}", "", describe_effect(effect));
        }
    }

    /// A worker gets a command that was on its way.
    pub(crate) fn command(&self, now: u64, worker: &WorkerId, command: &Effect) {
        if self.on {
            println!("{now:>8} ms  {worker} gets: {}", describe_effect(command));
        }
    }
}

fn describe_event(event: &Event) -> String {
    match event {
        Event::Connected { hello } => match &hello.held {
            Some((_, version)) => format!("{} connects with policy {version}", hello.worker),
            None => format!("{} connects", hello.worker),
        },
        Event::Disconnected { worker, reason } => format!("{worker} disconnects: {reason}"),
        Event::EpochPrepared { worker, epoch, policy_version, .. } => {
            format!("{worker} is prepared for epoch {epoch}, holds policy {policy_version}")
        }
        Event::EpochFormed { worker, epoch, policy_version, weights_digest, decode_slots } => format!(
            "{worker} joined epoch {epoch}: policy {policy_version}, digest {weights_digest:x}, {decode_slots} slots"
        ),
        Event::EpochFailed { worker, epoch, error } => format!("{worker}: epoch {epoch} failed: {error}"),
        Event::Heartbeat { worker, .. } => format!("{worker} lives"),
        Event::RolloutArrived { worker, epoch, lease, rollout, policy_version, .. } => {
            format!(
                "{worker} (epoch {epoch}) gives rollout {rollout} of lease {lease}, policy {policy_version}"
            )
        }
        Event::LeaseRejected { worker, lease, reason, .. } => {
            format!("{worker} rejects lease {lease}: {reason:?}")
        }
        Event::RolloutVerified { rollout } => format!("rollout {rollout} is verified"),
        Event::GroupShaped { group, skipped, .. } => format!("group {group} is shaped, skipped: {skipped}"),
        Event::GradientsReady { worker, epoch, step, minibatch, stats, gradient_norm, not_finite } => {
            format!(
                "{worker} (epoch {epoch}) is ready with {step}.{minibatch}: {} sequences, norm {gradient_norm}, \
             not finite: {}",
                stats.sequences,
                not_finite.len()
            )
        }
        Event::MinibatchApplied { worker, epoch, step, minibatch, policy_version, weights_digest } => {
            format!(
                "{worker} (epoch {epoch}) applied {step}.{minibatch}: policy {policy_version}, digest {weights_digest:x}"
            )
        }
        Event::CheckpointDone { worker, step, error, .. } => {
            format!(
                "{worker} wrote the checkpoint of step {step}: {}",
                error.as_deref().unwrap_or("complete")
            )
        }
        Event::WorkerFailed { worker, error } => format!("{worker} failed: {error}"),
        other => format!("{other:?}"),
    }
}

fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::PrepareEpoch { worker, epoch, host } => {
            format!("{worker}: prepare epoch {epoch}{}", if *host { " and open a store" } else { "" })
        }
        Effect::FormEpoch { worker, plan } => format!(
            "{worker}: join epoch {} as rank {} of {} with policy {}{}",
            plan.epoch,
            plan.rank,
            plan.world_size,
            plan.policy_version,
            if plan.share_policy { format!(" from rank {}", plan.source_rank) } else { String::new() }
        ),
        Effect::Lease { worker, order, .. } => format!(
            "{worker}: lease {} for {} rollouts of group {} from {}",
            order.lease, order.rollouts, order.group, order.first_rollout
        ),
        Effect::VerifyRollout { rollout, .. } => format!("verify {rollout}"),
        Effect::ShapeGroup { group, .. } => format!("shape group {group}"),
        Effect::TrainMinibatch { worker, epoch, step, minibatch, sequences, .. } => {
            format!("{worker}: train {step}.{minibatch} in epoch {epoch} on {} sequences", sequences.len())
        }
        Effect::Apply { worker, epoch, step, minibatch } => {
            format!("{worker}: apply {step}.{minibatch} in epoch {epoch}")
        }
        Effect::SaveCheckpoint { worker, step, .. } => format!("{worker}: save after step {step}"),
        Effect::StepCompleted(record) => {
            format!("step {} is complete: policy {}", record.step, record.policy_version)
        }
        other => format!("{other:?}"),
    }
}
