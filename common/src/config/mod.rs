//! The configuration of a run: one TOML file, `--set key=value` overrides, every default written
//! here beside its meaning.
//!
//! [`RunConfig::load`] reads and validates; what it returns can be trusted by everyone else.
//! Unknown keys, wrong types and values out of range are errors that name file and key.

mod data;
mod embeddings;
mod evaluation;
mod imitation;
mod load;
mod origin;
pub mod reference;
mod reward;
mod row_form;
mod sections;
mod security;
mod validate;
mod watchdog;

pub use data::{BadRow, ColumnNames, DataConfig, PromptConfig, PromptFormat};
pub use embeddings::EmbeddingsConfig;
pub use evaluation::{EvaluationConfig, EvaluationSet};
pub use imitation::ImitationConfig;
pub use load::{ConfigError, LoadOptions};
pub use reward::{
    ExactOptions, FormatOptions, HttpRewardConfig, RegexOptions, RewardConfig, RewardKindName, RewardPart,
};
pub use row_form::{BOXED, OPTIONS, PROBLEM, RowForm};
pub use sections::{
    CheckpointConfig, ClusterConfig, Dtype, ExportConfig, LearningRateSchedule, ModelConfig, OptimizerConfig,
    Recompute, RolloutConfig, RunSection, UpdateConfig,
};
pub use security::SecurityConfig;
pub use watchdog::WatchdogConfig;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algorithm::AlgorithmOptions;
use crate::objective::ObjectiveOptions;

/// A default of switches.
fn yes() -> bool {
    true
}

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name, directory, seed, length.
    pub run: RunSection,
    /// The policy to start from.
    pub model: ModelConfig,
    /// The problems to train on.
    pub data: DataConfig,
    /// How a problem becomes a prompt.
    #[serde(default)]
    pub prompt: PromptConfig,
    /// How answers are generated.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// How answers are judged.
    #[serde(default)]
    pub reward: RewardConfig,
    /// How judged groups become advantages.
    #[serde(default)]
    pub algorithm: AlgorithmOptions,
    /// Given solutions that are imitated next to the policy's own answers.
    #[serde(default)]
    pub imitation: ImitationConfig,
    /// What embeds the texts of answers.
    #[serde(default)]
    pub embeddings: EmbeddingsConfig,
    /// The loss.
    #[serde(default)]
    pub objective: ObjectiveOptions,
    /// The optimizer and its schedule.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How a step's sequences are cut into mini-batches and micro-batches.
    #[serde(default)]
    pub update: UpdateConfig,
    /// What is measured on held-out problems, and when.
    #[serde(default)]
    pub evaluation: Option<EvaluationConfig>,
    /// When checkpoints are written and how many are kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Curves in files.
    #[serde(default)]
    pub export: ExportConfig,
    /// Ranks, addresses and deadlines.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// Who may join.
    #[serde(default)]
    pub security: SecurityConfig,
    /// When a process that hangs ends itself.
    #[serde(default)]
    pub watchdog: WatchdogConfig,
}
