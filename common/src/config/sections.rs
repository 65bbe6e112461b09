//! The sections of a configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::Sampling;

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run, in logs and metrics.
    pub name: String,
    /// Directory of the journal, checkpoints and results; created if absent.
    pub dir: String,
    /// Seed of data order, sampling and bootstrap intervals.
    #[serde(default)]
    pub seed: u64,
    /// Number of training steps.
    pub steps: u64,
}

/// What the backward computes again, layer by layer, instead of keeping it from the forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: fastest, most memory.
    #[default]
    #[serde(rename = "none")]
    Nothing,
    /// All but the attention, whose output is kept.
    AllButAttention,
    /// The whole layer from its input: least memory, a third more arithmetic.
    Layer,
}

/// Number format of the computation. Master weights and optimizer state are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floats throughout.
    #[default]
    F32,
    /// bfloat16 weights and activations; logits, softmax, losses and accumulators in f32.
    Bf16,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face directory (config.json, safetensors, tokenizer.json) or the name of a model of the
    /// hub (`owner/name`, with `@revision` if not `main`), which each worker takes from its cache or
    /// downloads.
    pub path: String,
    /// Number format of the computation.
    #[serde(default)]
    pub dtype: Dtype,
}

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Prompts of a training step.
    #[schemars(range(min = 1))]
    pub prompts_per_step: u32,
    /// Rollouts of a prompt.
    #[schemars(range(min = 1))]
    pub group_size: u32,
    /// A response ends after this many tokens (the end token included).
    #[schemars(range(min = 1))]
    pub max_new_tokens: u32,
    /// Softmax temperature; above 0.
    #[schemars(range(min = 0.01, max = 100))]
    pub temperature: f64,
    /// Keep the k most likely tokens; unset keeps all.
    #[schemars(range(min = 1))]
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens with at least this probability.
    #[schemars(range(min = 0.001, max = 1))]
    pub top_p: f64,
    /// Drop tokens less likely than this share of the most likely one.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: f64,
    /// Strings that end a response.
    pub stop: Vec<String>,
    /// Decode slots of a rank; 0 lets the planner choose from the free memory.
    pub slots: u32,
    /// Compute sensitivity features also where the algorithm needs none, to watch the geometry.
    pub features: bool,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            prompts_per_step: 16,
            group_size: 16,
            max_new_tokens: 1024,
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            stop: Vec::new(),
            slots: 0,
            features: true,
        }
    }
}

impl RolloutConfig {
    /// The sampling of training rollouts.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.clone(),
        }
    }
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LearningRateSchedule {
    /// It stays.
    #[default]
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// A line down to 0 at the last step.
    Linear,
}

impl LearningRateSchedule {
    /// What the peak is multiplied by when this share of the way is done.
    #[must_use]
    pub fn factor(self, done: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            Self::Linear => (1.0 - done).max(0.0),
        }
    }
}

/// `[optimizer]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    #[schemars(range(min = 0, max = 10))]
    pub learning_rate: f64,
    /// Training steps of linear warm-up.
    pub warmup_steps: u64,
    /// How the learning rate moves after the warm-up.
    pub schedule: LearningRateSchedule,
    /// Decay of the first moment.
    #[schemars(range(min = 0, max = 0.999_999))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0, max = 0.999_999))]
    pub beta2: f64,
    /// Added to the denominator.
    #[schemars(range(min = 1e-16, max = 1))]
    pub eps: f64,
    /// Decoupled weight decay of matrices; norms and biases have none.
    #[schemars(range(min = 0, max = 10))]
    pub weight_decay: f64,
    /// Gradients with a larger global norm are scaled down to it; 0 turns clipping off.
    #[schemars(range(min = 0, max = 1e9))]
    pub max_grad_norm: f64,
    /// Divide moments and f32 master weights among the ranks (ZeRO-1). A rank that is lost takes its part along:
    /// the run then ends, and goes on from the last checkpoint.
    pub shard: bool,
    /// Keep moments and, in bf16, f32 master weights in the host's memory; each optimizer step sends them through
    /// the GPU. Saves 12 bytes of GPU memory a parameter (8 in f32). Without effect on CPUs.
    pub offload: bool,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-6,
            warmup_steps: 0,
            schedule: LearningRateSchedule::Constant,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            shard: false,
            offload: false,
        }
    }
}

impl OptimizerConfig {
    /// The learning rate of training step `step` (from 0) of a run of `steps`.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = (step - self.warmup_steps) as f64 / span;
        self.learning_rate * self.schedule.factor(done)
    }
}

/// `[update]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateConfig {
    /// Sequences of a mini-batch over all ranks; one optimizer step each. 0 takes the whole step.
    pub sequences_per_minibatch: u32,
    /// Tokens of a packed micro-batch on one rank; a longer sequence gets its own. 0 lets the planner choose
    /// from the free memory.
    #[schemars(extend("x-unit" = "tokens"))]
    pub tokens_per_microbatch: u32,
    /// Response tokens whose logits exist at a time.
    #[schemars(range(min = 1))]
    pub head_chunk_tokens: u32,
    /// What the backward computes again instead of keeping it: `none`, `all_but_attention` or `layer`. Unset:
    /// as little as the memory allows.
    pub recompute: Option<Recompute>,
    /// Warn if policy and behaviour log-probabilities differ by more than this before the first update
    /// of a step, mean over tokens, nats. Unset: 1e-4 in f32, 2e-2 in bf16.
    #[schemars(range(min = 0, max = 100), extend("x-unit" = "nats"))]
    pub drift_warning: Option<f64>,
    /// Mini-batches in a row whose loss or gradient is not finite, and which therefore no rank applies, after
    /// which the run stops.
    #[schemars(range(min = 1))]
    pub max_nonfinite: u32,
}

impl UpdateConfig {
    /// The mean difference of log-probabilities that is worth a warning, nats.
    #[must_use]
    pub fn drift_warning(&self, dtype: Dtype) -> f64 {
        self.drift_warning.unwrap_or(match dtype {
            Dtype::F32 => 1e-4,
            Dtype::Bf16 => 2e-2,
        })
    }
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            sequences_per_minibatch: 0,
            tokens_per_microbatch: 0,
            head_chunk_tokens: 1_024,
            recompute: None,
            drift_warning: None,
            max_nonfinite: 3,
        }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Training steps between checkpoints; 0 writes only the last one.
    pub every: u64,
    /// Number of checkpoints kept, at least 1, beside the one that the run was resumed from, which workers that join
    /// read. Older ones go only when a newer one is durable.
    #[schemars(range(min = 1))]
    pub keep: u32,
    /// Copy the state and write it while training goes on. The copy takes 12 bytes a parameter of rank 0's host
    /// memory; without it training waits until the checkpoint is written.
    pub background: bool,
    /// A score of the evaluations, such as `pass@1`: every evaluation then has a checkpoint, and the one with the
    /// highest score on `evaluation.data` is kept beside the newest, as `checkpoints/best`.
    pub best_by: Option<String>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 50, keep: 2, background: true, best_by: None }
    }
}

/// `[export]`: curves in files of the run directory and traces, besides the journal and `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    /// `metrics.jsonl`: a line for each training step and each evaluation.
    pub jsonl: bool,
    /// `tensorboard/`: event files with the same values.
    pub tensorboard: bool,
    /// gRPC address of an OpenTelemetry collector that traces of all steps are sent to, such as
    /// `http://127.0.0.1:4317`; empty sends none.
    pub otlp: String,
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Address of the gRPC service for workers.
    pub listen: String,
    /// Address of `/metrics`, `/healthz`, `/readyz` and `/debug/stalls`.
    pub http: String,
    /// The metrics of a run that has failed stay readable for so long, so that Prometheus sees it, milliseconds.
    pub http_linger_ms: u64,
    /// Ranks needed to start, and to go on after some were lost; with fewer the run waits.
    #[schemars(range(min = 1))]
    pub min_workers: u32,
    /// Ranks used at most.
    #[schemars(range(min = 1))]
    pub max_workers: u32,
    /// Time given to further ranks once `min_workers` are there, milliseconds.
    pub grace_ms: u64,
    /// A run that has waited so long for enough ranks fails, milliseconds.
    #[schemars(range(min = 1))]
    pub join_timeout_ms: u64,
    /// A rank whose last sign of life is older is lost, milliseconds.
    #[schemars(range(min = 1))]
    pub heartbeat_timeout_ms: u64,
    /// A group whose rollouts are not back by then is lost with its rank, milliseconds.
    #[schemars(range(min = 1))]
    pub lease_timeout_ms: u64,
    /// Deadline of a mini-batch's forward, backward and all-reduce, milliseconds.
    #[schemars(range(min = 1))]
    pub update_timeout_ms: u64,
    /// Deadline of one collective, milliseconds.
    #[schemars(range(min = 1))]
    pub collective_timeout_ms: u64,
    /// Deadline of a checkpoint, milliseconds.
    #[schemars(range(min = 1))]
    pub checkpoint_timeout_ms: u64,
    /// A wait in which nothing moves for so long is reported, milliseconds; more than a sixth of
    /// `heartbeat_timeout_ms`, which is how often a rank says that it moves.
    #[schemars(range(min = 1))]
    pub stall_after_ms: u64,
    /// A run fails when so many epochs in a row have ended without a completed step.
    #[schemars(range(min = 1))]
    pub max_epoch_failures: u32,
    /// Workers are not told when the run is stopped before its end: they keep their policy and look for its next
    /// coordinator, as after one that was killed. `train --supervised` turns it on.
    pub keep_workers: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".into(),
            http: "127.0.0.1:0".into(),
            http_linger_ms: 0,
            min_workers: 1,
            max_workers: 1024,
            grace_ms: 2_000,
            join_timeout_ms: 600_000,
            heartbeat_timeout_ms: 30_000,
            lease_timeout_ms: 3_600_000,
            update_timeout_ms: 1_800_000,
            collective_timeout_ms: 300_000,
            checkpoint_timeout_ms: 600_000,
            stall_after_ms: 15_000,
            max_epoch_failures: 10,
            keep_workers: false,
        }
    }
}
