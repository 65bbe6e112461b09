//! Memory before the run: what weights, optimizer, activations and caches will take, and how many
//! decode slots fit beside them.
//!
//! The prediction is a sum of the tensors the worker allocates on purpose, by the same formulas
//! that allocate them. What libtorch adds (workspaces, fragmentation) is covered by planning with a part of the free memory.

use std::fmt;

use g2rl_common::algorithm;
use g2rl_common::config::{Dtype, Recompute, RunConfig};
use tch::Device;

use crate::memory;
use crate::model::ModelConfig;

/// Share of the free memory that is planned with.
const HEADROOM: f64 = 0.85;

/// Slots beyond this number no longer make decoding faster on a CPU.
const MOST_CPU_SLOTS: u64 = 128;

/// Slots beyond this number no longer make decoding faster on a GPU.
const MOST_GPU_SLOTS: u64 = 512;

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It does not fit.
    #[error(
        "{needed} are needed for {what}, {free} are free on {device}; \
         lower update.tokens_per_microbatch, rollout.max_new_tokens or rollout.slots, or use a smaller model"
    )]
    DoesNotFit {
        /// The largest part.
        what: &'static str,
        /// Bytes needed, readable.
        needed: String,
        /// Bytes free, readable.
        free: String,
        /// Where.
        device: String,
    },
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The model's shape.
    pub model: &'a ModelConfig,
    /// The run.
    pub config: &'a RunConfig,
    /// Where it runs.
    pub device: Device,
}

/// The planned memory of one rank, bytes, and its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Policy, master and reference weights.
    pub weights: u64,
    /// Gradients and moments.
    pub optimizer: u64,
    /// What is kept of the layers, one layer's inside and its gradients, a chunk of logits.
    pub update: u64,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// One slot: its own cache, its residual and its row of logits.
    pub slot: u64,
    /// Decode slots.
    pub slots: u32,
}

impl MemoryPlan {
    /// Plans a run with the memory that is free now on the device.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] with the part that is too large.
    pub fn new(input: &PlanInput<'_>) -> Result<Self, PlanError> {
        Self::within(input, memory::free_bytes(input.device))
    }

    /// Plans a run within a given number of free bytes.
    ///
    /// # Errors
    /// [`PlanError::DoesNotFit`] with the part that is too large.
    pub fn within(input: &PlanInput<'_>, free: u64) -> Result<Self, PlanError> {
        let (model, config) = (input.model, input.config);
        let element = match config.model.dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        };
        let parameters = model.parameters() as u64;
        let algorithm = algorithm::build(&config.algorithm);
        let reference = config.objective.needs_reference() && algorithm.needs_rollouts();
        let copies = 1 + u64::from(reference);
        let master = if config.model.dtype == Dtype::Bf16 { 4 } else { 0 };
        // The CPU's own decoder has the weights once more, in the order in which it reads them.
        let packed = if input.device == Device::Cpu { element } else { 0 };
        let weights = parameters * (copies * element + master + packed);
        let optimizer = parameters * 12;

        let tokens = u64::from(config.update.tokens_per_microbatch)
            .max(u64::from(config.prompt.max_tokens) + u64::from(config.rollout.max_new_tokens));
        let (hidden, inner) = (model.hidden_size as u64, model.intermediate_size as u64);
        // One layer's forward (input, norms, queries to values twice, attention, gates and values) and its
        // backward, which is about as large.
        let attention = model.qkv_size() as u64 * 2 + hidden;
        let trace = tokens * (4 * hidden + attention + 2 * inner) * element;
        let logits = u64::from(config.update.head_chunk_tokens) * model.vocab_size as u64 * 4 * 3;
        let update_with = |recompute| {
            let kept = match recompute {
                Recompute::Nothing => trace,
                Recompute::AllButAttention => 2 * tokens * hidden * element,
                Recompute::Layer => tokens * hidden * element,
            };
            kept * model.layers as u64 + 2 * trace + logits
        };

        let context = u64::from(config.rollout.max_new_tokens);
        let cache = 2 * model.kv_heads as u64 * model.head_dim as u64 * model.layers as u64 * element;
        let slot = context * cache + 3 * model.vocab_size as u64 * 4;

        let budget = (free as f64 * HEADROOM) as u64;
        let refuse = |what, needed: u64| PlanError::DoesNotFit {
            what,
            needed: memory::readable(needed),
            free: memory::readable(free),
            device: format!("{:?}", input.device),
        };
        if weights + optimizer > budget {
            return Err(refuse("weights, gradients and optimizer", weights + optimizer));
        }
        let left = budget - weights - optimizer;
        // As little as possible is computed again, as long as decode slots keep half of what is left.
        let choices = [Recompute::Nothing, Recompute::AllButAttention, Recompute::Layer];
        let fits = |recompute: &Recompute| update_with(*recompute) <= left / 2;
        let recompute =
            config.update.recompute.or_else(|| choices.into_iter().find(fits)).unwrap_or(Recompute::Layer);
        let update = update_with(recompute);
        if update > left {
            return Err(refuse("the update's activations", weights + optimizer + update));
        }
        // Caches and activations are never needed at the same time, but libtorch keeps both.
        let left = left - update;
        let most = if input.device == Device::Cpu { MOST_CPU_SLOTS } else { MOST_GPU_SLOTS };
        let per_step = u64::from(config.rollout.prompts_per_step) * u64::from(config.rollout.group_size);
        let fitting = left / slot;
        let wanted = match config.rollout.slots {
            0 => most.min(per_step).min(fitting),
            slots => u64::from(slots),
        };
        if wanted == 0 || wanted > fitting {
            return Err(refuse("the decode slots", weights + optimizer + update + wanted.max(1) * slot));
        }
        Ok(Self { weights, optimizer, update, recompute, slot, slots: wanted as u32 })
    }

    /// Bytes of the whole plan.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.optimizer + self.update + u64::from(self.slots) * self.slot
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readable = memory::readable;
        write!(
            f,
            "memory plan: weights {}, optimizer {}, update {}, {} slots of {}: {} at most",
            readable(self.weights),
            readable(self.optimizer),
            readable(self.update),
            self.slots,
            readable(self.slot),
            readable(self.total()),
        )
    }
}
