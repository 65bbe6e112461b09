//! Memory before the run: what weights, optimizer, activations and caches will take, how large a
//! micro-batch may be, what the backward computes again, and how many decode slots fit.
//!
//! The prediction is a sum of the tensors the worker allocates on purpose, by the same formulas
//! that allocate them, and what the process holds before. Caches and activations are added up, though never
//! needed at the same time: the allocators of libtorch keep both. A test holds it to the resident size of
//! real steps.

mod input;

use std::fmt;

use g2rl_common::config::{Dtype, Recompute};
use tch::Device;

pub use self::input::PlanInput;
use crate::memory;
use crate::rollout::PREFILL_TOKENS;

/// Share of the free memory that is planned with.
const HEADROOM: f64 = 0.9;

/// Slots beyond this number no longer make decoding faster on a CPU.
const MOST_CPU_SLOTS: u64 = 128;

/// Slots beyond this number no longer make decoding faster on a GPU.
const MOST_GPU_SLOTS: u64 = 512;

/// Tokens of a micro-batch beyond which an update on a CPU is hardly faster, and below which it is slower.
const CPU_MICROBATCH: [u64; 3] = [4096, 2048, 1024];

/// The same on a GPU.
const GPU_MICROBATCH: [u64; 4] = [32_768, 16_384, 8192, 4096];

/// What to change where there is no room for it.
const WAIT_FOR_CHECKPOINTS: &str =
    "set checkpoint.background = false, which lets training wait for checkpoints";

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{needed} are needed for {what}, {free} are free on {device}; {remedy}")]
pub struct PlanError {
    /// The part that is too large, with what is needed before it.
    what: &'static str,
    /// Bytes needed, readable.
    needed: String,
    /// Bytes free, readable.
    free: String,
    device: String,
    /// What to change.
    remedy: String,
}

/// The planned memory of one rank, bytes, and what was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the process holds already.
    pub base: u64,
    /// Policy, master and reference weights.
    pub weights: u64,
    /// Gradients and moments.
    pub optimizer: u64,
    /// On a CPU the copy from which checkpoints are written.
    pub copy: u64,
    /// The update's activations, and on a GPU what decoding needs besides slots.
    pub update: u64,
    /// One decode slot.
    pub slot: u64,
    /// Decode slots.
    pub slots: u32,
    /// Tokens of a micro-batch.
    pub microbatch: u32,
    /// What the backward computes again.
    pub recompute: Recompute,
}

impl MemoryPlan {
    /// Plans with the memory that is free now on the device.
    ///
    /// # Errors
    /// [`PlanError`] with the part that is too large.
    pub fn new(input: &PlanInput<'_>) -> Result<Self, PlanError> {
        let base = if input.is_cpu() { memory::resident_bytes() } else { memory::device_bytes(input.device) };
        let free = memory::free_bytes(Device::Cpu);
        if !input.is_cpu() && input.host() > (free as f64 * HEADROOM) as u64 {
            let (what, remedy) = match (input.offloads(), input.background) {
                (false, _) => ("the copy from which checkpoints are written", WAIT_FOR_CHECKPOINTS),
                (true, true) => (
                    "optimizer.offload and the copy from which checkpoints are written",
                    WAIT_FOR_CHECKPOINTS,
                ),
                (true, false) => {
                    ("optimizer.offload", "divide the state among more ranks with optimizer.shard = true")
                }
            };
            return Err(PlanError {
                what,
                needed: memory::readable(input.host()),
                free: memory::readable(free),
                device: format!("{:?}", Device::Cpu),
                remedy: remedy.to_owned(),
            });
        }
        Self::within(input, memory::free_bytes(input.device), base)
    }

    /// Plans within a given number of free bytes beside the `base` that is taken.
    ///
    /// # Errors
    /// [`PlanError`] with the part that is too large.
    pub fn within(input: &PlanInput<'_>, free: u64, base: u64) -> Result<Self, PlanError> {
        let budget = (free as f64 * HEADROOM) as u64;
        let refuse = |what, needed: u64, remedy: String| PlanError {
            what,
            needed: memory::readable(needed),
            free: memory::readable(free),
            device: format!("{:?}", input.device),
            remedy,
        };
        // A GPU's copy lies elsewhere.
        let copy = if input.is_cpu() { input.copy() } else { 0 };
        let (weights, optimizer) = (input.weights(), input.optimizer());
        let fixed = weights + optimizer + copy;
        if fixed > budget {
            let mut remedy = "use a smaller model, more ranks with optimizer.shard = true".to_owned();
            if input.dtype == Dtype::F32 {
                remedy += " or model.dtype = \"bf16\"";
            }
            if !input.is_cpu() && !input.offload {
                remedy += ", or optimizer.offload = true, which keeps optimizer state in host memory";
            }
            if input.is_cpu() && input.background {
                remedy = format!("{WAIT_FOR_CHECKPOINTS}, or {remedy}");
            }
            if input.reference {
                remedy += ", or objective.kl_coef = 0, which needs no reference policy";
            }
            return Err(refuse("weights, gradients and optimizer", fixed, remedy));
        }
        let left = budget - fixed;

        // Decode slots keep half of what is left. The update takes the largest micro-batch that fits without
        // computing anything again, then smaller ones, and only then computes more.
        let (microbatch, recompute) = choose(input, left / 2);
        let update = input.update(microbatch, recompute);
        if update > left {
            let longest = input.prompt_tokens + input.new_tokens;
            let remedy = match input.microbatch {
                Some(tokens) if tokens > longest => {
                    format!("lower update.tokens_per_microbatch = {tokens}, or set it to 0")
                }
                _ => format!(
                    "lower rollout.max_new_tokens = {} or prompt.max_tokens = {}, or set update.recompute = \"layer\"",
                    input.new_tokens, input.prompt_tokens
                ),
            };
            return Err(refuse("weights, optimizer and the update's activations", fixed + update, remedy));
        }
        // A prefill may need more than an update.
        let prefill =
            (PREFILL_TOKENS as u64).min(input.prompt_tokens * input.rollouts.div_ceil(input.group_size));
        let update = update.max(input.trace(prefill)) + input.decoding();

        let slot = input.slot();
        let fitting = left.saturating_sub(update) / slot;
        let most = if input.is_cpu() { MOST_CPU_SLOTS } else { MOST_GPU_SLOTS };
        let slots = input.slots.unwrap_or(most.min(input.rollouts).min(fitting));
        if slots == 0 || slots > fitting {
            let remedy = match input.slots {
                Some(slots) => format!("lower rollout.slots = {slots} or set it to 0"),
                None => format!("lower rollout.max_new_tokens = {}", input.new_tokens),
            };
            let needed = fixed + update + slots.max(1) * slot;
            return Err(refuse("weights, optimizer, activations and decode slots", needed, remedy));
        }
        let (slots, microbatch) = (slots as u32, microbatch as u32);
        Ok(Self { base, weights, optimizer, copy, update, slot, slots, microbatch, recompute })
    }

    /// Bytes the process will have taken at its peak.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.base
            + self.weights
            + self.optimizer
            + self.copy
            + self.update
            + u64::from(self.slots) * self.slot
    }
}

/// Tokens of a micro-batch and what is computed again, within `budget` bytes if possible.
fn choose(input: &PlanInput<'_>, budget: u64) -> (u64, Recompute) {
    let sizes: &[u64] = if input.is_cpu() { &CPU_MICROBATCH } else { &GPU_MICROBATCH };
    let given = input.microbatch.map(|tokens| [tokens]);
    let sizes = given.as_ref().map_or(sizes, |given| &given[..]);
    let all = [Recompute::Nothing, Recompute::AllButAttention, Recompute::Layer];
    let given = input.recompute.map(|recompute| [recompute]);
    let recomputes = given.as_ref().map_or(&all[..], |given| &given[..]);
    let smallest = (sizes[sizes.len() - 1], recomputes[recomputes.len() - 1]);
    recomputes
        .iter()
        .flat_map(|recompute| sizes.iter().map(|tokens| (*tokens, *recompute)))
        .find(|(tokens, recompute)| input.update(*tokens, *recompute) <= budget)
        .unwrap_or(smallest)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readable = memory::readable;
        let recompute = match self.recompute {
            Recompute::Nothing => "nothing",
            Recompute::AllButAttention => "all but the attention",
            Recompute::Layer => "layers",
        };
        write!(
            f,
            "memory plan: {} at most = {} now + weights {} + optimizer {} + update {} ({} tokens at a time, \
             recomputing {recompute}) + {} slots of {} + copy for checkpoints {}",
            readable(self.peak()),
            readable(self.base),
            readable(self.weights),
            readable(self.optimizer),
            readable(self.update),
            self.microbatch,
            self.slots,
            readable(self.slot),
            readable(self.copy),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    const GIB: u64 = 1 << 30;

    fn qwen3(sizes: &str) -> ModelConfig {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            r#"{{"model_type":"qwen3","hidden_act":"silu","num_key_value_heads":8,"head_dim":128,
            "vocab_size":151936,"rms_norm_eps":1e-6,"rope_theta":1e6,"max_position_embeddings":40960,{sizes}}}"#
        );
        std::fs::write(file.path(), text).unwrap();
        ModelConfig::load_file(file.path()).unwrap()
    }

    /// Qwen3-1.7B.
    fn model() -> ModelConfig {
        qwen3(
            r#""hidden_size":2048,"num_hidden_layers":28,"num_attention_heads":16,"intermediate_size":6144,
            "tie_word_embeddings":true"#,
        )
    }

    fn input(model: &ModelConfig) -> PlanInput<'_> {
        PlanInput {
            model,
            device: Device::Cuda(0),
            dtype: Dtype::Bf16,
            reference: true,
            prompt_tokens: 512,
            new_tokens: 1024,
            rollouts: 1024,
            group_size: 16,
            slots: None,
            microbatch: None,
            head_chunk: 1024,
            recompute: None,
            optimizer_ranks: 1,
            offload: false,
            background: true,
        }
    }

    #[test]
    fn less_memory_means_smaller_pieces_then_more_arithmetic_then_fewer_slots() {
        let model = model();
        let plan = |free: u64| {
            let plan = MemoryPlan::within(&input(&model), free * GIB, 0).unwrap();
            assert!(plan.peak() <= free * GIB);
            (plan.microbatch, plan.recompute, plan.slots)
        };
        assert_eq!(plan(300), (32_768, Recompute::Nothing, 512));
        let (microbatch, recompute, slots) = plan(120);
        assert!(microbatch < 32_768 && recompute == Recompute::Nothing && slots > 128, "{slots}");
        let (_, recompute, slots) = plan(48);
        assert!(recompute != Recompute::Nothing && slots < 128, "{slots}");
    }

    #[test]
    fn ranks_share_moments_and_master_weights() {
        let model = model();
        let plan = |ranks| {
            let plan =
                MemoryPlan::within(&PlanInput { optimizer_ranks: ranks, ..input(&model) }, 300 * GIB, 0)
                    .unwrap();
            plan.weights + plan.optimizer
        };
        // Of 8 + 4 bytes of a parameter three quarters go to three other ranks.
        assert_eq!(plan(1) - plan(4), model.parameters() as u64 * 9);
    }

    /// Qwen3-8B on two GPUs of 80 GB.
    #[test]
    fn offloaded_state_lets_eight_billion_parameters_fit() {
        let model = qwen3(
            r#""hidden_size":4096,"num_hidden_layers":36,"num_attention_heads":32,
            "intermediate_size":12288,"tie_word_embeddings":false"#,
        );
        assert_eq!(model.parameters(), 8_190_735_360);
        let plan = |offload| {
            let input = PlanInput { optimizer_ranks: 2, offload, reference: false, ..input(&model) };
            MemoryPlan::within(&input, 79 * GIB, 0)
        };
        let refused = plan(false).unwrap_err().to_string();
        assert!(refused.contains("optimizer.offload = true"), "{refused}");
        let plan = plan(true).unwrap();
        // Weights at 2 and gradients at 4 bytes a parameter stay.
        let fixed = model.parameters() as u64 * 6 + 2 * 12 * (1 << 25);
        assert_eq!(plan.weights + plan.optimizer, fixed);
        assert!(plan.slots >= 64 && plan.microbatch >= 4096, "{plan}");
    }

    #[test]
    fn offloaded_state_takes_host_memory_in_powers_of_two() {
        let model = model();
        let bytes = 4 * model.parameters() as u64;
        let host = |ranks, offload, dtype| {
            PlanInput { optimizer_ranks: ranks, offload, dtype, background: false, ..input(&model) }.host()
        };
        // 6.9 GB are 8 GiB, and a half of it 4.
        assert!(bytes > 4 * GIB && bytes < 8 * GIB, "{bytes}");
        assert_eq!(host(1, false, Dtype::Bf16), 0);
        assert_eq!(host(1, true, Dtype::Bf16), 3 * 8 * GIB);
        assert_eq!(host(1, true, Dtype::F32), 2 * 8 * GIB);
        // The whole master weights, before the half of them and of the moments.
        assert_eq!(host(2, true, Dtype::Bf16), (8 + 3 * 4) * GIB);
    }

    #[test]
    fn the_copy_for_checkpoints_takes_host_memory() {
        let model = model();
        let plan = |device, background| {
            let input = PlanInput { device, background, slots: Some(8), ..input(&model) };
            MemoryPlan::within(&input, 300 * GIB, 0).unwrap()
        };
        let (with, without) = (plan(Device::Cpu, true), plan(Device::Cpu, false));
        assert_eq!(with.copy, model.parameters() as u64 * 12);
        assert_eq!((with.weights, with.optimizer, without.copy), (without.weights, without.optimizer, 0));
        // A GPU's memory holds none of it.
        assert_eq!(plan(Device::Cuda(0), true), plan(Device::Cuda(0), false));
        let small = PlanInput { device: Device::Cpu, ..input(&model) };
        let text = MemoryPlan::within(&small, 30 * GIB, 0).unwrap_err().to_string();
        assert!(text.contains("set checkpoint.background = false"), "{text}");
    }

    #[test]
    fn what_is_given_is_kept_or_refused_with_its_name() {
        let model = model();
        let given =
            PlanInput { microbatch: Some(65_536), recompute: Some(Recompute::Nothing), ..input(&model) };
        let refused = |input: &PlanInput<'_>, free: u64| {
            MemoryPlan::within(input, free * GIB, 0).unwrap_err().to_string()
        };
        let text = refused(&given, 80);
        assert!(text.contains("lower update.tokens_per_microbatch = 65536"), "{text}");
        let text = refused(&PlanInput { slots: Some(4000), ..input(&model) }, 80);
        assert!(text.contains("lower rollout.slots = 4000"), "{text}");
        let text = refused(&PlanInput { new_tokens: 2_000_000, ..input(&model) }, 80);
        assert!(text.contains("lower rollout.max_new_tokens = 2000000"), "{text}");
        let text = refused(&PlanInput { dtype: Dtype::F32, ..input(&model) }, 30);
        assert!(text.contains("32.0 GiB are needed for weights") && text.contains("bf16"), "{text}");
    }
}
