//! Why a run cannot go on.
//!
//! Invariant: every failure names who or what was waited for (worker, rank, prompt) and the phase,
//! so that its text alone is enough to start looking.

use std::fmt;

use g2rl_common::ids::{Rank, StepIndex, WorkerId};

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

/// Why a run cannot go on. Its text is the text of [`super::Outcome::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The ranks were not there in time.
    #[error("gathering workers: {joined} of {wanted} were there after {limit_ms} ms{departed}")]
    TooFewWorkers {
        /// Workers connected.
        joined: usize,
        /// `cluster.min_workers`.
        wanted: u32,
        /// `cluster.join_timeout_ms`.
        limit_ms: u64,
        /// The last worker that came and went, with the reason; empty if there was none.
        departed: String,
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
