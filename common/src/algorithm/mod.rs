//! What turns a judged group into advantages: one file for each algorithm, one switch.
//!
//! In: the rewards and features of one complete group ([`GroupInput`]). Out: its advantages, and
//! what was seen on the way ([`GroupAdvantages`]). Must not know: the policy's weights, the loss,
//! which worker generated what.

mod g2rl;
mod grpo;
mod sft;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::g2rl::G2rl;
pub use self::grpo::Grpo;
pub use self::sft::Sft;
use crate::advantage::AdvantageKind;
use crate::geometry::{GeometryError, GroupGeometry};
use crate::novelty::{NoveltyKind, NoveltyScores};
use crate::numeric::range;
use crate::option::OptionError;
use crate::shaping::{DegenerateGroups, Scaler, ShapingOptions};

/// A complete group.
#[derive(Debug, Clone, Copy)]
pub struct GroupInput<'a> {
    /// Base reward of each rollout.
    pub rewards: &'a [f64],
    /// Feature of each rollout `[group_size][hidden]`; empty where features are off.
    pub features: &'a [&'a [f32]],
    /// For each rollout the first rollout with the same tokens
    /// ([`crate::geometry::token_classes`]); empty if nobody looked. For algorithms that treat
    /// repeated responses as one.
    pub duplicate_of: &'a [usize],
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
    /// The algorithm compares features, and there are none.
    #[error("algorithm {algorithm} needs the features of the rollouts, and there are none")]
    MissingFeatures {
        /// Which algorithm.
        algorithm: &'static str,
    },
    /// Some rollouts have features, others not.
    #[error("{rewards} rewards but {found} {what}: one for each rollout is needed")]
    CountMismatch {
        /// Number of rewards.
        rewards: usize,
        /// Of what there is another number.
        what: &'static str,
        /// That number.
        found: usize,
    },
    /// Features that cannot be compared.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

/// Turns judged groups into advantages. Pure: the same group gives the same result.
pub trait Algorithm: Send + Sync {
    /// Its name in the configuration, logs and tables.
    fn name(&self) -> &'static str;

    /// Whether workers must compute features. Where they need not, they may, so that the geometry
    /// can be watched.
    fn needs_features(&self) -> bool;

    /// Whether the policy generates the responses; if not, given solutions are imitated.
    fn needs_rollouts(&self) -> bool;

    /// The advantages of one complete group.
    ///
    /// # Errors
    /// [`AlgorithmError`], naming the rollout where one is to blame.
    fn group_advantages(&self, group: &GroupInput<'_>) -> Result<GroupAdvantages, AlgorithmError>;
}

/// Which algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlgorithmKind {
    /// Gradient-guided exploration (arXiv 2512.15687).
    #[default]
    G2rl,
    /// Group relative policy optimisation (arXiv 2402.03300).
    Grpo,
    /// Imitation of given solutions.
    Sft,
}

/// `[algorithm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AlgorithmOptions {
    /// Which algorithm; default `g2rl`.
    pub kind: AlgorithmKind,
    /// How a group's rewards become advantages; default `std` (GRPO).
    pub advantage: AdvantageKind,
    /// Score of a rollout's novelty; default `sqrt`. `grpo` only reports it.
    pub novelty: NoveltyKind,
    /// How novelty scales a reward (`g2rl`); default `amplify`.
    pub scaler: Scaler,
    /// Strength of the scaling (`g2rl`), 0 to 100; default 1 (the paper).
    #[schemars(range(min = 0, max = 100))]
    pub lambda: f64,
    /// Shaped rewards are clipped to [-clip, clip] (`g2rl`), above 0; default 3 (the paper).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip: f64,
    /// Groups whose base rewards are all equal; default `shape` (the paper).
    pub degenerate_groups: DegenerateGroups,
}

impl Default for AlgorithmOptions {
    fn default() -> Self {
        let ShapingOptions { novelty, scaler, lambda, clip, degenerate_groups } = ShapingOptions::default();
        Self {
            kind: AlgorithmKind::G2rl,
            advantage: AdvantageKind::Std,
            novelty,
            scaler,
            lambda,
            clip,
            degenerate_groups,
        }
    }
}

impl AlgorithmOptions {
    /// How rewards are shaped.
    #[must_use]
    pub fn shaping(&self) -> ShapingOptions {
        ShapingOptions {
            novelty: self.novelty,
            scaler: self.scaler,
            lambda: self.lambda,
            clip: self.clip,
            degenerate_groups: self.degenerate_groups,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`OptionError`] with the first option that is out of its range.
    pub fn validate(&self) -> Result<(), OptionError> {
        self.shaping().validate()
    }
}

/// The algorithm that the options name.
#[must_use]
pub fn build(options: &AlgorithmOptions) -> Box<dyn Algorithm> {
    let (shaping, advantage) = (options.shaping(), options.advantage);
    match options.kind {
        AlgorithmKind::G2rl => Box::new(G2rl { shaping, advantage }),
        AlgorithmKind::Grpo => Box::new(Grpo { shaping, advantage }),
        AlgorithmKind::Sft => Box::new(Sft),
    }
}

/// Refuses rewards and counts that no algorithm can use.
fn check(group: &GroupInput<'_>) -> Result<(), AlgorithmError> {
    let rewards = group.rewards.len();
    if rewards == 0 {
        return Err(AlgorithmError::EmptyGroup);
    }
    if let Some(rollout) = group.rewards.iter().position(|r| !r.is_finite()) {
        return Err(AlgorithmError::RewardNotFinite { rollout, value: group.rewards[rollout] });
    }
    for (what, found) in [("features", group.features.len()), ("token classes", group.duplicate_of.len())] {
        if found != 0 && found != rewards {
            return Err(AlgorithmError::CountMismatch { rewards, what, found });
        }
    }
    Ok(())
}

/// What `shape` makes of a checked group: the part that `grpo` and `g2rl` share. `shape` gets base
/// reward and normalised novelty (0 where there are no features).
fn shape_group(
    group: &GroupInput<'_>,
    shaping: &ShapingOptions,
    advantage: AdvantageKind,
    shape: impl Fn(f64, f64) -> f64,
) -> Result<GroupAdvantages, AlgorithmError> {
    check(group)?;
    let rewards = group.rewards;
    // 1. Geometry and novelty, where there are features.
    let geometry = match group.features {
        [] => None,
        features => Some(GroupGeometry::from_features(features)?),
    };
    let scores = geometry.as_ref().map(|geometry| NoveltyScores::new(geometry, rewards, shaping.novelty));
    let (novelty, novelty_normalized, degenerate_geometry) = match scores {
        Some(scores) => (scores.novelty, scores.novelty_normalized, scores.degenerate),
        None => (Vec::new(), Vec::new(), false),
    };
    // 2. Shaped rewards.
    let nu_bar = |i: usize| novelty_normalized.get(i).copied().unwrap_or(0.0);
    let shaped_rewards: Vec<f64> = rewards.iter().enumerate().map(|(i, &r)| shape(r, nu_bar(i))).collect();
    // 3. Advantages.
    let equal_rewards = range(rewards) == 0.0;
    let (advantages, skipped) = match (equal_rewards, shaping.degenerate_groups) {
        (true, DegenerateGroups::Skip) => (vec![0.0; rewards.len()], true),
        (true, DegenerateGroups::Centered) => (AdvantageKind::MeanOnly.advantages(&shaped_rewards), false),
        _ => (advantage.advantages(&shaped_rewards), false),
    };
    Ok(GroupAdvantages {
        geometry,
        novelty,
        novelty_normalized,
        degenerate_geometry,
        equal_rewards,
        shaped_rewards,
        advantages,
        skipped,
    })
}
