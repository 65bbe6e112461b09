//! What turns a judged group into advantages: one file for each algorithm, one switch.
//!
//! In: the rewards and features of one complete group ([`GroupInput`]). Out: its advantages, and
//! what was seen on the way ([`GroupAdvantages`]). Must not know: the policy's weights, the loss,
//! which worker generated what.
//!
//! An [`Algorithm`] says two things: the rewards that a group's advantages compare, and the settings
//! it brings for what lies outside of it, such as the clip of the objective. [`Method`] is an
//! algorithm with its options, and does what all have in common.

mod dapo;
mod dr_grpo;
mod entropy;
mod evol;
mod g2rl;
mod grpo;
mod gspo;
mod method;
mod options;
mod random;
mod sft;

pub use self::dapo::overlong_penalty;
pub use self::method::{Method, build};
pub use self::options::{AlgorithmKind, AlgorithmOptions, Exploration, OverlongOptions};
use crate::geometry::{GeometryError, GroupGeometry};
use crate::novelty::NoveltyScores;

/// A complete group. What only some algorithms look at may be empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupInput<'a> {
    /// Base reward of each rollout.
    pub rewards: &'a [f64],
    /// Feature of each rollout `[group_size][hidden]`; empty where features are off.
    pub features: &'a [&'a [f32]],
    /// For each rollout the first rollout with the same tokens
    /// ([`crate::geometry::token_classes`]); empty if nobody looked.
    pub duplicate_of: &'a [usize],
    /// Whether each rollout's answer is right.
    pub correct: &'a [bool],
    /// Whether each rollout has an answer at all.
    pub answered: &'a [bool],
    /// Response tokens of each rollout.
    pub lengths: &'a [u32],
    /// Embedding of each response's text `[group_size][width]`.
    pub embeddings: &'a [Vec<f32>],
    /// Decides what is drawn at random; another for each group.
    pub seed: u64,
}

/// What an algorithm says about a group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupAdvantages {
    /// Cosines of the features; `None` where features are off.
    pub geometry: Option<GroupGeometry>,
    /// Novelty of each rollout, in [0, 1]; empty where features are off.
    pub novelty: Vec<f64>,
    /// Novelty stretched to [0, 1] inside the group; all 0 if `degenerate_geometry`; empty where
    /// features are off.
    pub novelty_normalized: Vec<f64>,
    /// The rollouts are equally novel, up to rounding.
    pub degenerate_geometry: bool,
    /// The base rewards are all equal.
    pub equal_rewards: bool,
    /// The rewards that the advantages compare.
    pub shaped_rewards: Vec<f64>,
    /// One for each rollout; all 0 if `skipped`.
    pub advantages: Vec<f64>,
    /// The group takes no part in the update.
    pub skipped: bool,
}

/// A group that cannot be shaped.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AlgorithmError {
    /// No rollouts.
    #[error("the group has no rollouts")]
    EmptyGroup,
    /// NaN or infinite.
    #[error("rollout {rollout}: reward is {value}")]
    RewardNotFinite {
        /// Place in the group.
        rollout: usize,
        /// The reward.
        value: f64,
    },
    /// The algorithm compares something that is not there.
    #[error("algorithm {algorithm} needs the {what} of the rollouts, and there are none")]
    Missing {
        /// Which algorithm.
        algorithm: &'static str,
        /// What it compares.
        what: &'static str,
    },
    /// Some rollouts have it, others not.
    #[error("{rewards} rewards but {found} {what}: one for each rollout is needed")]
    CountMismatch {
        /// Number of rewards.
        rewards: usize,
        /// Of what there is another number.
        what: &'static str,
        /// That number.
        found: usize,
    },
    /// Features or embeddings that cannot be compared.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

/// What an algorithm needs of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The policy generates the responses; if not, given solutions are imitated.
    pub rollouts: bool,
    /// Workers must compute features. Where they need not, they may, so that the geometry can be
    /// watched.
    pub features: bool,
    /// The responses' texts must be embedded.
    pub embeddings: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Self { rollouts: true, features: false, embeddings: false }
    }
}

/// One way to learn from a group. Pure: the same group gives the same result.
pub trait Algorithm: Send + Sync {
    /// Its name in the configuration, logs and tables.
    fn name(&self) -> &'static str;

    /// What it needs of a run.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Its settings, as TOML: what a configuration that names the algorithm has where it does not
    /// say otherwise. `max_new_tokens` is the longest response that the configuration allows.
    fn preset(&self, _max_new_tokens: u32) -> String {
        String::new()
    }

    /// The rewards that the advantages compare, one for each rollout; the base rewards unless an
    /// algorithm says otherwise. The group was checked: it has what [`Self::needs`] names. `scores` is
    /// its novelty, where there are features.
    ///
    /// # Errors
    /// [`AlgorithmError`] if embeddings cannot be compared.
    fn shaped_rewards(
        &self,
        _options: &AlgorithmOptions,
        group: &GroupInput<'_>,
        _scores: Option<&NoveltyScores>,
    ) -> Result<Vec<f64>, AlgorithmError> {
        Ok(group.rewards.to_vec())
    }
}
