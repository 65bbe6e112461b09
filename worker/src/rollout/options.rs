//! How an engine generates, and how large its pool is.

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;

use crate::tokenizer::Tokenizer;

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Rollouts that decode at the same time.
    pub slots: usize,
    /// Compute features of training rollouts.
    pub features: bool,
    /// Compute features of evaluation rollouts.
    pub evaluation_features: bool,
    /// Part of every random stream.
    pub run_seed: u64,
    /// Tokens that end a response.
    pub end_tokens: Vec<u32>,
    /// Use the CPU's own decoder where the machine and the number format have one; otherwise tensor
    /// operations, as on GPUs.
    pub cpu_decoder: bool,
    /// How tensor operations decode.
    pub device: DeviceOptions,
}

/// How tensor operations decode, on GPUs and on CPUs without a decoder of their own.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Tokens whose keys and values fit the pool of prompts and responses. What does not fit waits; a single
    /// request that does not fit makes the pool grow.
    pub pool_tokens: u64,
    /// Tokens after which the host looks at what was drawn. Changes no result.
    pub look_interval: u32,
    /// Capture decode steps as graphs where the device has them.
    pub graphs: bool,
}

impl DeviceOptions {
    /// Tokens between two looks: enough to hide the host's work, few enough to refill slots soon.
    pub const LOOK_INTERVAL: u32 = 8;

    /// The usual way, with a pool for so many slots.
    #[must_use]
    pub fn new(slots: u64, prompt_tokens: u64, new_tokens: u64, group_size: u64) -> Self {
        Self {
            pool_tokens: pool_tokens(slots, prompt_tokens, new_tokens, group_size),
            look_interval: Self::LOOK_INTERVAL,
            graphs: true,
        }
    }
}

/// Tokens of a pool in which so many slots can run: for each a response and its share of a prompt, and one
/// prompt more, because groups that end and begin overlap.
#[must_use]
pub fn pool_tokens(slots: u64, prompt_tokens: u64, new_tokens: u64, group_size: u64) -> u64 {
    slots * pool_tokens_per_slot(prompt_tokens, new_tokens, group_size) + prompt_tokens
}

/// What a slot adds to [`pool_tokens`].
#[must_use]
pub fn pool_tokens_per_slot(prompt_tokens: u64, new_tokens: u64, group_size: u64) -> u64 {
    new_tokens + prompt_tokens.div_ceil(group_size.max(1))
}

impl EngineOptions {
    /// As a run's configuration says.
    #[must_use]
    pub fn from_config(config: &RunConfig, tokenizer: &Tokenizer, slots: u32) -> Self {
        let (new_tokens, group_size) = (config.rollout.max_new_tokens, config.rollout.group_size);
        let (slots, prompt_tokens) = (u64::from(slots), u64::from(config.prompt.max_tokens));
        Self {
            slots: slots as usize,
            features: algorithm::build(&config.algorithm).needs_features() || config.rollout.features,
            evaluation_features: config.evaluation.as_ref().is_some_and(|evaluation| evaluation.features),
            run_seed: config.run.seed,
            end_tokens: tokenizer.end_tokens().to_vec(),
            cpu_decoder: true,
            device: DeviceOptions::new(slots, prompt_tokens, new_tokens.into(), group_size.into()),
        }
    }
}
