//! Why an epoch or a run cannot go on. A lost rank, a failed collective and a passed deadline of ranks end
//! the epoch; everything else ends the run.
//!
//! Invariant: every failure names who or what was waited for (worker, rank, prompt) and the phase,
//! so that its text alone is enough to start looking.

use std::fmt;

use g2rl_common::ids::{MinibatchIndex, PolicyVersion, Rank, StepIndex, WorkerId};

use super::interface::ProblemRef;
use super::status::RunPhase;

/// A worker, with its rank where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The worker.
    pub worker: WorkerId,
    /// Its rank in the current epoch.
    pub rank: Option<Rank>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} (worker {})", self.worker),
            None => write!(f, "worker {}", self.worker),
        }
    }
}

/// Joins what is named in a failure.
pub(super) fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Why an epoch or a run cannot go on. Its text is the text of [`super::Outcome::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The ranks were not there in time.
    #[error("the {phase}: {joined} of {wanted} were there after {limit_ms} ms{departed}")]
    TooFewWorkers {
        /// Workers are gathered, at the start or in the middle of something.
        phase: RunPhase,
        /// Workers connected.
        joined: usize,
        /// `cluster.min_workers`.
        wanted: u32,
        /// `cluster.join_timeout_ms`.
        limit_ms: u64,
        /// The last worker that came and went, with the reason; empty if there was none.
        departed: String,
    },
    /// Nobody who is left has the policy.
    #[error(
        "the {phase}: policy version {version} is lost with the ranks that held it, the newest that is left is \
         {newest}; continue from the last checkpoint with --resume{departed}"
    )]
    PolicyLost {
        /// During what.
        phase: RunPhase,
        /// Optimizer steps of the run.
        version: PolicyVersion,
        /// Optimizer steps behind the newest policy that a connected worker holds.
        newest: PolicyVersion,
        /// The last worker that went, with the reason; empty if there was none.
        departed: String,
    },
    /// The holder of the policy came back after an epoch had begun with others.
    #[error("the {phase}: policy version {version} is held by {holder}, which came after the epoch began")]
    PolicyElsewhere {
        /// During what.
        phase: RunPhase,
        /// Optimizer steps of the run.
        version: PolicyVersion,
        /// Who has the policy.
        holder: Peer,
    },
    /// The optimizer state was divided among the ranks of the epoch.
    #[error(
        "{cause}; with optimizer.shard its part of the optimizer state is gone: go on from the last checkpoint \
         with --resume"
    )]
    ShardLost {
        /// Why the epoch ended.
        cause: String,
    },
    /// A rank's policy is newer than the coordinator's state.
    #[error(
        "{peer} holds policy version {held}, but the coordinator's state ends at {known}: it is older than the \
         workers; start it with the newest state"
    )]
    UnknownPolicy {
        /// Who.
        peer: Peer,
        /// What it holds.
        held: PolicyVersion,
        /// The newest it may hold.
        known: PolicyVersion,
    },
    /// Epochs end one after another.
    #[error("{epochs} epochs ended without a completed step (cluster.max_epoch_failures); the last: {cause}")]
    TooManyFailures {
        /// How many.
        epochs: u32,
        /// Why the last one ended.
        cause: String,
    },
    /// A rank is gone.
    #[error("{peer} was lost in the {phase}: {cause}; it owed {owed}")]
    RankLost {
        /// Who.
        peer: Peer,
        /// During what.
        phase: RunPhase,
        /// How it was noticed.
        cause: String,
        /// What was waited for.
        owed: String,
    },
    /// A deadline passed.
    #[error("the {phase} was not done in {limit_ms} ms; still waiting for {waiting_for}")]
    DeadlinePassed {
        /// Of what.
        phase: RunPhase,
        /// The configured limit.
        limit_ms: u64,
        /// Who or what was waited for.
        waiting_for: String,
    },
    /// Ranks that must agree do not; their policies are no longer the same.
    #[error("ranks disagree on the {what} in the {phase}: {values}")]
    Disagreement {
        /// On what.
        what: &'static str,
        /// When.
        phase: RunPhase,
        /// Each rank with its value.
        values: String,
    },
    /// A rank said something that cannot be.
    #[error("{peer} sent what cannot be in the {phase}: {detail}")]
    Protocol {
        /// Who.
        peer: Peer,
        /// When.
        phase: RunPhase,
        /// What.
        detail: String,
    },
    /// A rank reported that it failed.
    #[error("{peer} failed in the {phase}: {error}")]
    RankFailed {
        /// Who.
        peer: Peer,
        /// When.
        phase: RunPhase,
        /// What it said.
        error: String,
    },
    /// A prompt cannot be rendered or encoded.
    #[error("{peer} cannot make a prompt of {problem} in the {phase}: {detail}")]
    InvalidPrompt {
        /// Who noticed.
        peer: Peer,
        /// The problem.
        problem: ProblemRef,
        /// When.
        phase: RunPhase,
        /// What it said.
        detail: String,
    },
    /// Losses or gradients are not finite, again and again.
    #[error(
        "{minibatches} mini-batches in a row (update.max_nonfinite) had a loss or gradient that is not finite and \
         were skipped; the last: step {step}, mini-batch {minibatch}, rollouts {rollouts}"
    )]
    NotFinite {
        /// How many.
        minibatches: u32,
        /// Of the last one.
        step: StepIndex,
        /// The last one.
        minibatch: MinibatchIndex,
        /// Its rollouts that are not finite; all of its rollouts if only the sum is not.
        rollouts: String,
    },
    /// A checkpoint was not written.
    #[error("{peer} could not write the checkpoint after {steps} steps: {error}")]
    Checkpoint {
        /// Who.
        peer: Peer,
        /// Completed training steps.
        steps: StepIndex,
        /// What it said.
        error: String,
    },
    /// Answers cannot be judged.
    #[error("the {phase}: answers cannot be judged: {error}")]
    Judging {
        /// When.
        phase: RunPhase,
        /// What failed.
        error: String,
    },
    /// The coordinator itself failed.
    #[error("the coordinator failed in the {phase}: {error}")]
    Shell {
        /// When.
        phase: RunPhase,
        /// What was tried and what happened.
        error: String,
    },
}
