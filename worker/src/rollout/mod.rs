//! `lease -> rollout -> features`: continuous batching over decode slots.
//!
//! In: leases with encoded prompts. Out: finished rollouts with behaviour log-probabilities and, for
//! training, the sensitivity feature. Owned by the engine's thread; must not know rewards, groups'
//! sizes, other ranks.
//!
//! Invariants
//! - The tokens of a rollout depend on policy, prompt, sampling and random stream only: not on the
//!   slot, the batch, the order of submission or the rank.
//! - A group's prompt goes through the model once while any of its rollouts wait or run.
//! - A slot is free again in the step in which its rollout ends.

mod cache;
mod feature;
mod prompt;
mod sampler;
mod slot;

use std::collections::VecDeque;
use std::sync::Arc;

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;
use g2rl_common::ids::{GroupId, LeaseId, RolloutId};
use g2rl_common::rollout::{GroupLease, Purpose, Rollout};
use g2rl_ffi::FfiError;
use g2rl_ffi::decoder::{CpuDecoder, DecodeStep};
use tch::{TchError, Tensor};

use self::cache::{Batch, CacheRow, CacheShape, OwnCache};
pub use self::feature::Residuals;
use self::prompt::Prompts;

pub use self::sampler::{Draw, RowOptions, sample};
use self::slot::Slot;
use crate::model::Model;
use crate::profile::{self, Phase};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that go through the model in one piece.
pub const PREFILL_TOKENS: usize = 8192;

/// Why rollouts cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The prompt leaves no room for a response, or is empty.
    #[error("prompt {prompt}: {tokens} tokens, the model has {positions} positions")]
    PromptTooLong {
        /// The prompt's id.
        prompt: String,
        /// Its length.
        tokens: usize,
        /// The model's limit.
        positions: i64,
    },
    /// A prompt token is not in the vocabulary.
    #[error("prompt {prompt}: token id {token} is not below the vocabulary size {vocab}")]
    TokenOutOfRange {
        /// The prompt's id.
        prompt: String,
        /// The id.
        token: u32,
        /// Number of ids.
        vocab: i64,
    },
    /// libtorch failed.
    #[error(transparent)]
    Ffi(#[from] FfiError),
    /// libtorch refused, most likely for lack of memory.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Token ids to text.
pub trait TextDecoder {
    /// The text of response tokens, special tokens left out.
    fn decode(&self, tokens: &[u32]) -> String;
}

impl TextDecoder for Tokenizer {
    fn decode(&self, tokens: &[u32]) -> String {
        Tokenizer::decode(self, tokens)
    }
}

/// Options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Rollouts that decode at the same time.
    pub slots: usize,
    /// Compute features of training rollouts.
    pub features: bool,
    /// Part of every random stream.
    pub run_seed: u64,
    /// Tokens that end a response.
    pub end_tokens: Vec<u32>,
    /// Use the CPU's own decoder where the machine and the number format have one; otherwise tensor
    /// operations, as on GPUs.
    pub cpu_decoder: bool,
}

impl EngineOptions {
    /// As a run's configuration says.
    #[must_use]
    pub fn from_config(config: &RunConfig, tokenizer: &Tokenizer, slots: u32) -> Self {
        Self {
            slots: slots as usize,
            features: algorithm::build(&config.algorithm).needs_features() || config.rollout.features,
            run_seed: config.run.seed,
            end_tokens: tokenizer.end_tokens().to_vec(),
            cpu_decoder: true,
        }
    }
}

/// A lease with its encoded prompt.
#[derive(Debug, Clone)]
pub struct RolloutRequest {
    /// What is asked.
    pub lease: GroupLease,
    /// Token ids of the rendered prompt.
    pub prompt_tokens: Arc<[u32]>,
}

/// A rollout that is complete.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedRollout {
    /// The lease it answers.
    pub lease: LeaseId,
    /// The rollout.
    pub rollout: Rollout,
}

/// A group and its prompt, not yet through the model.
type NewPrompt = (GroupId, Arc<[u32]>);

/// A rollout that waits for a slot.
#[derive(Debug)]
struct Waiting {
    request: Arc<RolloutRequest>,
    index: u32,
}

/// Generates rollouts on one device.
#[derive(Debug)]
pub struct RolloutEngine {
    options: EngineOptions,
    waiting: VecDeque<Waiting>,
    slots: Vec<Option<Slot>>,
    prompts: Prompts,
    cache: OwnCache,
    residuals: Option<Residuals>,
    /// The CPU's own decoder, and the generation of the weights in it.
    cpu_decoder: Option<(u64, CpuDecoder)>,
    generated_tokens: u64,
    max_positions: i64,
    vocab_size: i64,
}

impl RolloutEngine {
    /// An engine for the model's shape and device. Caches grow with what is generated.
    ///
    /// # Errors
    /// [`RolloutError::Torch`] if the memory cannot be had.
    pub fn new(model: &Model, options: EngineOptions) -> Result<Self, RolloutError> {
        let shape = CacheShape::of(model);
        let residuals = match options.features {
            true => Some(Residuals::new(options.slots, model)?),
            false => None,
        };
        Ok(Self {
            waiting: VecDeque::new(),
            slots: (0..options.slots).map(|_| None).collect(),
            prompts: Prompts::new(shape),
            cache: OwnCache::new(shape, options.slots as i64),
            residuals,
            cpu_decoder: None,
            generated_tokens: 0,
            max_positions: model.config().max_positions,
            vocab_size: model.config().vocab_size,
            options,
        })
    }

    /// Takes on the rollouts of a lease.
    ///
    /// # Errors
    /// [`RolloutError`] if the prompt cannot be used.
    pub fn submit(&mut self, request: RolloutRequest) -> Result<(), RolloutError> {
        let prompt = || request.lease.prompt_id.to_string();
        let tokens = request.prompt_tokens.len();
        if tokens == 0 || tokens as i64 >= self.max_positions {
            return Err(RolloutError::PromptTooLong {
                prompt: prompt(),
                tokens,
                positions: self.max_positions,
            });
        }
        if let Some(&token) = request.prompt_tokens.iter().find(|t| i64::from(**t) >= self.vocab_size) {
            return Err(RolloutError::TokenOutOfRange { prompt: prompt(), token, vocab: self.vocab_size });
        }
        let request = Arc::new(request);
        for offset in 0..request.lease.rollouts {
            let index = request.lease.first_rollout + offset;
            self.prompts.expect(request.lease.group);
            self.waiting.push_back(Waiting { request: request.clone(), index });
        }
        Ok(())
    }

    /// Forgets everything that waits or runs.
    pub fn cancel_all(&mut self) {
        self.waiting.clear();
        self.slots.iter_mut().for_each(|slot| *slot = None);
        self.prompts.clear();
    }

    /// Whether nothing waits or runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Slots with a running rollout.
    #[must_use]
    pub fn slots_in_use(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Response tokens generated so far.
    #[must_use]
    pub fn generated_tokens(&self) -> u64 {
        self.generated_tokens
    }

    /// Times a prompt went through the model.
    #[must_use]
    pub fn prefills(&self) -> u64 {
        self.prompts.prefills()
    }

    /// Fills free slots from the queue, then generates one token in every slot. Returns what became
    /// complete.
    ///
    /// # Errors
    /// [`RolloutError`]; the engine must not be used further.
    pub fn step(
        &mut self,
        model: &Model,
        decoder: &dyn TextDecoder,
    ) -> Result<Vec<FinishedRollout>, RolloutError> {
        let _guard = tch::no_grad_guard();
        let mut finished = Vec::new();
        self.admit(model, decoder, &mut finished)?;
        let active: Vec<usize> = (0..self.slots.len()).filter(|s| self.slots[*s].is_some()).collect();
        if !active.is_empty() {
            let logits = self.decode(model, &active)?;
            self.draw(model, decoder, (&active, &logits), &mut finished)?;
        }
        Ok(finished)
    }

    /// Gives waiting rollouts free slots. New prompts go through the model together; each rollout's
    /// first token is drawn from its prompt's last logits.
    fn admit(
        &mut self,
        model: &Model,
        decoder: &dyn TextDecoder,
        finished: &mut Vec<FinishedRollout>,
    ) -> Result<(), RolloutError> {
        let free: Vec<usize> = (0..self.slots.len()).filter(|s| self.slots[*s].is_none()).collect();
        let count = free.len().min(self.waiting.len());
        if count == 0 {
            return Ok(());
        }
        let entering: Vec<Waiting> = self.waiting.drain(..count).collect();
        let mut fresh: Vec<NewPrompt> = Vec::new();
        for waiting in &entering {
            let group = waiting.request.lease.group;
            if !self.prompts.is_ready(group) && fresh.iter().all(|(g, _)| *g != group) {
                fresh.push((group, waiting.request.prompt_tokens.clone()));
            }
        }
        for piece in pieces(&fresh, PREFILL_TOKENS) {
            profile::time(Phase::Prefill, || self.prompts.prefill(model, piece))?;
        }

        let mut logits = Vec::with_capacity(count);
        for (slot, waiting) in free.iter().zip(entering) {
            let prompt = self.prompts.get(waiting.request.lease.group);
            logits.push(prompt.logits.shallow_clone());
            let entry = Slot::new(&waiting.request, waiting.index, prompt, self.options.run_seed);
            if let Some(residuals) = &mut self.residuals {
                residuals.clear(*slot);
            }
            self.slots[*slot] = Some(entry);
        }
        let entered = &free[..count];
        self.draw(model, decoder, (entered, &Tensor::cat(&logits, 0)), finished)
    }

    /// One token of every given slot through the model: logits `[slots, vocab] f32`.
    fn decode(&mut self, model: &Model, active: &[usize]) -> Result<Tensor, RolloutError> {
        let (mut tokens, mut positions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for &index in active {
            let slot = self.slots[index].as_ref().expect("active slots are taken");
            let (length, last) = slot.decode_input();
            tokens.push(last);
            positions.push(slot.prompt_length + length);
            rows.push(CacheRow {
                prompt_row: slot.prompt_row,
                prompt_length: slot.prompt_length,
                slot: index as i64,
                length,
            });
        }
        let longest = rows.iter().map(|row| row.length).max().unwrap_or(0) + 1;
        self.cache.reserve(longest)?;
        if let Some(logits) = self.decode_on_cpu(model, (&tokens, &positions, &rows))? {
            return Ok(logits);
        }
        let device = model.weights().device();
        let place = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let rotary = model.rotary_rows(&positions);
        let batch = Batch::new(&rows, &self.cache);
        let mut x = model.embed(&place(&tokens));
        for layer in 0..model.config().layers as usize {
            let (prompts, own) = (self.prompts.layer(layer), self.cache.layer(layer));
            x = model.layer(layer, &x, &rotary, |input| batch.attend(input, &prompts, &own))?;
        }
        Ok(model.logits(&model.final_norm(&x)?))
    }

    /// The same by the CPU's own decoder, where there is one.
    fn decode_on_cpu(
        &mut self,
        model: &Model,
        (tokens, positions, rows): (&[i64], &[i64], &[CacheRow]),
    ) -> Result<Option<Tensor>, RolloutError> {
        if !self.options.cpu_decoder {
            return Ok(None);
        }
        // New weights are packed at the first step with them.
        if self.cpu_decoder.as_ref().is_none_or(|(generation, _)| *generation != model.generation()) {
            self.cpu_decoder = None;
            let Some(decoder) = profile::time(Phase::Packing, || model.cpu_decoder())? else {
                self.options.cpu_decoder = false;
                return Ok(None);
            };
            self.cpu_decoder = Some((model.generation(), decoder));
        }
        let Some((_, decoder)) = &mut self.cpu_decoder else { return Ok(None) };
        let column = |f: fn(&CacheRow) -> i64| -> Vec<i64> { rows.iter().map(f).collect() };
        let ((prompt_keys, prompt_values), (keys, values)) = (self.prompts.layers(), self.cache.layers());
        let logits = decoder.step(&DecodeStep {
            tokens,
            positions,
            prompt_row: &column(|row| row.prompt_row),
            prompt_length: &column(|row| row.prompt_length),
            slot: &column(|row| row.slot),
            length: &column(|row| row.length + 1),
            prompt_keys,
            prompt_values,
            keys,
            values,
        })?;
        let times = decoder.times();
        profile::add(Phase::Products, times.products);
        profile::add(Phase::Attention, times.attention);
        profile::add(Phase::Rows, times.rows);
        Ok(Some(logits))
    }

    /// Draws one token for each given slot and takes out what ended with it.
    fn draw(
        &mut self,
        model: &Model,
        decoder: &dyn TextDecoder,
        (indices, logits): (&[usize], &Tensor),
        finished: &mut Vec<FinishedRollout>,
    ) -> Result<(), RolloutError> {
        let rows: Vec<RowOptions> = indices
            .iter()
            .map(|&index| {
                let slot = self.slots[index].as_ref().expect("drawn slots are taken");
                let wants_feature = self.residuals.is_some() && slot.request.lease.purpose == Purpose::Train;
                RowOptions {
                    sampling: &slot.request.lease.sampling,
                    draw: Draw::Uniform(slot.next_uniform()),
                    residual_row: wants_feature.then_some(index),
                }
            })
            .collect();
        let residuals = self.residuals.as_ref().map(Residuals::sums);
        let sampled = profile::time(Phase::Sampling, || sample(logits, &rows, residuals))?;
        drop(rows);
        self.generated_tokens += indices.len() as u64;

        let mut ended = Vec::new();
        for (at, &index) in indices.iter().enumerate() {
            let slot = self.slots[index].as_mut().expect("drawn slots are taken");
            slot.push(sampled.tokens[at] as u32, sampled.logprobs[at], sampled.entropies[at]);
            if let Some(reason) = slot.finish_reason(&self.options.end_tokens, self.max_positions, decoder) {
                ended.push((index, reason));
            }
        }
        let features = match &self.residuals {
            Some(residuals) if !ended.is_empty() => {
                let means: Vec<(usize, usize)> = ended
                    .iter()
                    .map(|(index, _)| (*index, self.slots[*index].as_ref().map_or(1, Slot::response_length)))
                    .collect();
                let features = profile::time(Phase::Features, || residuals.features(model, &means))?;
                features.into_iter().map(Some).collect()
            }
            _ => vec![None; ended.len()],
        };
        for ((index, reason), feature) in ended.into_iter().zip(features) {
            let slot = self.slots[index].take().expect("ended slots are taken");
            let lease = &slot.request.lease;
            self.prompts.release(lease.group);
            let id = RolloutId { group: lease.group, index: slot.index };
            let feature = feature.filter(|_| lease.purpose == Purpose::Train);
            let lease = lease.lease;
            let rollout = slot.into_rollout(id, reason, feature, (decoder, &self.options.end_tokens));
            finished.push(FinishedRollout { lease, rollout });
        }
        Ok(())
    }
}

/// Cuts a list of prompts into pieces of at most `limit` tokens; a longer prompt is its own piece.
fn pieces(prompts: &[NewPrompt], limit: usize) -> Vec<&[NewPrompt]> {
    let (mut cut, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (at, (_, prompt)) in prompts.iter().enumerate() {
        if at > start && tokens + prompt.len() > limit {
            cut.push(&prompts[start..at]);
            (start, tokens) = (at, 0);
        }
        tokens += prompt.len();
    }
    if start < prompts.len() {
        cut.push(&prompts[start..]);
    }
    cut
}
