//! What the state machine hears ([`Event`]) and what it wants done ([`Effect`]).
//!
//! Both are light: token ids, texts and features stay with the shell, which keeps them by
//! [`RolloutId`]. So the machine runs in a simulator without any of them, and a step of it takes
//! microseconds however long the responses are.

mod effect;
mod event;

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, RolloutId, StepIndex};
use g2rl_common::rollout::Purpose;
use g2rl_common::update::UpdateStats;

pub use self::effect::Effect;
pub use self::event::Event;
use super::plan::ResponseSource;
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
