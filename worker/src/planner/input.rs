//! What a plan is made from, and how much memory each part of a run takes: the formulas that allocate it.

use g2rl_common::algorithm;
use g2rl_common::config::{Dtype, Recompute, RunConfig};
use tch::Device;

use crate::model::{ModelConfig, host};
use crate::rollout::{FIRST_ROWS, pool_tokens_per_slot};
use crate::update::offload::{CHUNK, LANES};

/// The gradient of a parameter.
const GRADIENT_BYTES: u64 = 4;

/// The master weight of a parameter.
const MASTER_BYTES: u64 = 4;

/// The moments of a parameter.
const MOMENT_BYTES: u64 = 8;

/// The copy of a parameter's master weight and moments from which a checkpoint is written.
const COPY_BYTES: u64 = 12;

/// What a plan is made from. Lengths in tokens.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The model's shape.
    pub model: &'a ModelConfig,
    /// Where it runs.
    pub device: Device,
    /// Of weights and activations.
    pub dtype: Dtype,
    /// A reference policy takes part in the update.
    pub reference: bool,
    /// Longest prompt.
    pub prompt_tokens: u64,
    /// Longest response.
    pub new_tokens: u64,
    /// Rollouts of a step, over all ranks.
    pub rollouts: u64,
    /// Rollouts of a prompt.
    pub group_size: u64,
    /// Decode slots; `None` lets the plan choose.
    pub slots: Option<u64>,
    /// Tokens of a micro-batch; `None` lets the plan choose.
    pub microbatch: Option<u64>,
    /// Response tokens whose logits exist at a time.
    pub head_chunk: u64,
    /// What the backward computes again; `None` lets the plan choose.
    pub recompute: Option<Recompute>,
    /// Ranks that the optimizer state is divided among; 1 keeps it whole on each.
    pub optimizer_ranks: u64,
    /// Optimizer state lies in host memory.
    pub offload: bool,
    /// Checkpoints are written while training goes on.
    pub background: bool,
}

impl<'a> PlanInput<'a> {
    /// What a run's configuration says.
    #[must_use]
    pub fn from_config(model: &'a ModelConfig, config: &RunConfig, device: Device) -> Self {
        let given = |value: u32| (value > 0).then_some(u64::from(value));
        let (rollout, update) = (&config.rollout, &config.update);
        let generates = algorithm::build(&config.algorithm).needs_rollouts();
        let group_size = if generates { u64::from(rollout.group_size) } else { 1 };
        Self {
            model,
            device,
            dtype: config.model.dtype,
            reference: config.objective.needs_reference() && generates,
            prompt_tokens: config.prompt.max_tokens.into(),
            new_tokens: rollout.max_new_tokens.into(),
            rollouts: u64::from(rollout.prompts_per_step) * group_size,
            group_size,
            slots: given(rollout.slots),
            microbatch: given(update.tokens_per_microbatch),
            head_chunk: update.head_chunk_tokens.into(),
            recompute: update.recompute,
            // The ranks are not known yet; there will be no fewer.
            optimizer_ranks: if config.optimizer.shard { config.cluster.min_workers.into() } else { 1 },
            offload: config.optimizer.offload,
            // An evaluation writes none.
            background: config.checkpoint.background && config.run.steps > 0,
        }
    }

    /// Bytes of a weight or activation.
    fn element(&self) -> u64 {
        match self.dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// A GPU's optimizer state lies in host memory.
    pub(super) fn offloads(&self) -> bool {
        self.offload && !self.is_cpu()
    }

    /// This rank's master weights, where they are not what is computed with.
    fn master(&self) -> u64 {
        match self.dtype {
            Dtype::Bf16 => self.divided(MASTER_BYTES * self.model.parameters() as u64),
            Dtype::F32 => 0,
        }
    }

    /// This rank's moments.
    fn moments(&self) -> u64 {
        self.divided(MOMENT_BYTES * self.model.parameters() as u64)
    }

    /// Policy, master and reference weights.
    pub(super) fn weights(&self) -> u64 {
        let element = self.element();
        let copies = 1 + u64::from(self.reference);
        let parameters = self.model.parameters() as u64;
        let master = if self.offloads() { 0 } else { self.master() };
        // The CPU's own decoder has the weights once more, in the order in which it reads them.
        let packed = if self.is_cpu() { element } else { 0 };
        parameters * (copies * element + packed) + master
    }

    /// Gradients and this rank's moments, or what of its state is on the device during a step.
    pub(super) fn optimizer(&self) -> u64 {
        let chunks = LANES as u64 * CHUNK as u64 * (MASTER_BYTES + MOMENT_BYTES);
        let state = if self.offloads() { chunks } else { self.moments() };
        self.model.parameters() as u64 * GRADIENT_BYTES + state
    }

    /// Host memory of a GPU's rank: its optimizer state, and the copy from which checkpoints are written.
    pub(super) fn host(&self) -> u64 {
        if !self.offloads() {
            return self.copy();
        }
        let moments = 2 * host::pinned_bytes(self.moments() / 2);
        // Master weights are read whole before they are divided, and libtorch keeps what it has pinned.
        let whole = if self.optimizer_ranks > 1 { self.master() * self.optimizer_ranks } else { 0 };
        let masters = [whole, self.master()].into_iter().filter(|bytes| *bytes > 0);
        moments + masters.map(host::pinned_bytes).sum::<u64>() + self.copy()
    }

    /// Host memory of the copy from which checkpoints are written; any rank may be the one that writes.
    pub(super) fn copy(&self) -> u64 {
        if self.background { self.model.parameters() as u64 * COPY_BYTES } else { 0 }
    }

    /// A rank's part of optimizer state.
    fn divided(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.optimizer_ranks.max(1))
    }

    /// A layer's forward of so many tokens: input, norms, queries to values twice, attention, gates and
    /// values.
    pub(super) fn trace(&self, tokens: u64) -> u64 {
        let (hidden, inner) = (self.model.hidden_size as u64, self.model.intermediate_size as u64);
        let attention = self.model.qkv_size() as u64 * 2 + hidden;
        tokens * (4 * hidden + attention + 2 * inner) * self.element()
    }

    /// The update's activations: what is kept of the layers, one layer's forward and its backward, which is
    /// about as large, and a chunk of logits.
    pub(super) fn update(&self, microbatch: u64, recompute: Recompute) -> u64 {
        let layers = self.model.layers as u64;
        // On a CPU answers share their prompt.
        let group = match self.is_cpu() {
            true => self.prompt_tokens + self.group_size * self.new_tokens,
            false => self.group_size * (self.prompt_tokens + self.new_tokens),
        };
        let step = group * self.rollouts.div_ceil(self.group_size);
        let tokens = microbatch.max(self.prompt_tokens + self.new_tokens).min(step);
        let residual = tokens * self.model.hidden_size as u64 * self.element();
        let kept = match recompute {
            Recompute::Nothing => self.trace(tokens),
            Recompute::AllButAttention => 2 * residual,
            Recompute::Layer => residual,
        };
        // oneDNN copies bf16 operands into its own order and sums in f32: as measured, three layers more, and
        // the head's matrix twice.
        let (working, copies) = if self.is_cpu() && self.dtype == Dtype::Bf16 { (5, 2) } else { (2, 0) };
        let copied = copies * self.model.vocab_size as u64 * self.model.hidden_size as u64 * 2;
        let rows = self.head_chunk.min(self.rollouts * self.new_tokens).min(tokens);
        // The CPU turns logits into their gradient in place; elsewhere these are four f32 tensors.
        let logits = rows * self.model.vocab_size as u64 * if self.is_cpu() { self.element() } else { 16 };
        kept * layers + working * self.trace(tokens) + logits + copied
    }

    /// Keys and values of a token.
    fn token(&self) -> u64 {
        let model = self.model;
        2 * model.kv_heads as u64 * model.head_dim as u64 * model.layers as u64 * self.element()
    }

    /// One slot: its own cache, its share of a prompt's, its rows of logits and residuals.
    pub(super) fn slot(&self) -> u64 {
        let (vocab, hidden) = (self.model.vocab_size as u64, self.model.hidden_size as u64);
        let group = self.group_size.min(self.rollouts).max(1);
        if !self.is_cpu() {
            // A pool; logits, two f32 tensors of their softmax, residuals; a prompt's last logits.
            let tokens = pool_tokens_per_slot(self.prompt_tokens, self.new_tokens, group);
            let rows = vocab * (self.element() + 3 * 4) + vocab * 4 / group + 4 * hidden * 4;
            return self.token() * tokens + rows;
        }
        // Extents begin with 64 tokens and double.
        let extent = |tokens: u64| 64 * tokens.div_ceil(64).next_power_of_two();
        let prompt = extent(self.prompt_tokens) / group;
        let rows = 2 * vocab * 4 + 4 * hidden * 4;
        self.token() * (extent(self.new_tokens) + prompt) + rows
    }

    /// What decoding needs besides slots: on a GPU the pool's spare prompt, and the draw of first tokens (their
    /// logits together, the softmax's tensors, and the residuals' change).
    pub(super) fn decoding(&self) -> u64 {
        if self.is_cpu() {
            return 0;
        }
        let rows = (FIRST_ROWS as u64).min(self.rollouts);
        self.token() * self.prompt_tokens + rows * self.model.vocab_size as u64 * 5 * 4
    }
}
