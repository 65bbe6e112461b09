//! `lease -> rollout -> features`: continuous batching over decode slots.
//!
//! In: leases with encoded prompts. Out: finished rollouts with behaviour log-probabilities and, for
//! training, the sensitivity feature. Owned by the engine's thread; must not know rewards, groups'
//! sizes, other ranks.
//!
//! Invariants
//! - The tokens of a rollout depend on policy, prompt, sampling and random stream only: not on the
//!   slot, the batch, the order of submission or the rank. With the CPU's own decoder neither does any bit of
//!   its log-probabilities and its feature.
//! - A group's prompt goes through the model once while any of its rollouts wait or run.
//! - A slot is free again in the step in which its rollout ends, and so are its places in the cache.
//! - Rollouts enter in the order of submission; one that has no place waits, and those behind it too.

mod backend;
mod cache;
mod cpu;
mod device;
mod feature;
mod options;
mod prompt;
mod sampler;
mod slot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use g2rl_common::ids::{GroupId, LeaseId, RolloutId};
use g2rl_common::rollout::{GroupLease, Rollout};
use g2rl_ffi::FfiError;
use g2rl_proto::LeaseProgress;
use tch::{Device, TchError, Tensor};

use self::backend::{Backend, DrawnToken, SlotTokens};
use self::cpu::CpuBackend;
use self::device::DeviceBackend;
use self::device::extents::Extent;
pub use self::feature::Residuals;
pub use self::options::{DeviceOptions, EngineOptions, pool_tokens, pool_tokens_per_slot};
use self::prompt::{NewPrompt, Prompts};
pub use self::sampler::{Draw, RowOptions, sample};
use self::slot::Slot;
use crate::failpoint;
use crate::model::Model;
use crate::profile::{self, Phase};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that go through the model in one piece. On a CPU each prompt goes alone: the rounding of a
/// product depends on how many rows it has, and which prompts enter together depends on time and rank.
pub const PREFILL_TOKENS: usize = 8192;

/// Slots whose first tokens are drawn at a time, bounding the memory of their logits.
pub const FIRST_ROWS: usize = 64;

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

/// A lease with its encoded prompt.
#[derive(Debug, Clone)]
pub struct RolloutRequest {
    /// What is asked.
    pub lease: GroupLease,
    /// Token ids of the rendered prompt.
    pub prompt_tokens: Arc<[u32]>,
}

impl RolloutRequest {
    /// Response tokens at most, of a model with so many positions.
    fn limit(&self, max_positions: i64) -> i64 {
        let left = max_positions - self.prompt_tokens.len() as i64;
        i64::from(self.lease.sampling.max_new_tokens).min(left).max(1)
    }
}

/// A rollout that is complete.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedRollout {
    /// The lease it answers.
    pub lease: LeaseId,
    /// The rollout.
    pub rollout: Rollout,
}

/// A rollout that waits for a slot.
#[derive(Debug, Clone)]
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
    backend: Box<dyn Backend>,
    residuals: Option<Residuals>,
    generated_tokens: u64,
    max_positions: i64,
    vocab_size: i64,
}

impl RolloutEngine {
    /// An engine for the model's shape and device.
    ///
    /// # Errors
    /// [`RolloutError::Torch`] if the memory cannot be had.
    pub fn new(model: &Model, options: EngineOptions) -> Result<Self, RolloutError> {
        let cpu = if options.cpu_decoder { CpuBackend::new(model, options.slots) } else { None };
        let backend: Box<dyn Backend> = match cpu {
            Some(backend) => Box::new(backend),
            None => Box::new(DeviceBackend::new(model, &options)?),
        };
        let residuals = match options.features || options.evaluation_features {
            true => Some(Residuals::new(options.slots, model)?),
            false => None,
        };
        Ok(Self {
            waiting: VecDeque::new(),
            slots: (0..options.slots).map(|_| None).collect(),
            prompts: Prompts::default(),
            backend,
            residuals,
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
        self.backend.clear();
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

    /// How far the oldest leases are, at most so many.
    #[must_use]
    pub fn progress(&self, most: usize) -> Vec<LeaseProgress> {
        let mut leases: BTreeMap<LeaseId, LeaseProgress> = BTreeMap::new();
        let waiting = self.waiting.iter().map(|waiting| (waiting.request.lease.lease, 0));
        let running = self.slots.iter().flatten();
        let running = running.map(|slot| (slot.request.lease.lease, slot.response_length()));
        for (lease, tokens) in waiting.chain(running) {
            let progress = leases.entry(lease).or_insert(LeaseProgress { lease, rollouts: 0, tokens: 0 });
            progress.rollouts += 1;
            progress.tokens += tokens as u64;
        }
        leases.into_values().take(most).collect()
    }

    /// Times a prompt went through the model.
    #[must_use]
    pub fn prefills(&self) -> u64 {
        self.prompts.prefills()
    }

    /// Fills free slots from the queue, then generates at least one token in every slot. Returns what became
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
        let entered = self.admit(model)?;
        for entered in entered.chunks(FIRST_ROWS) {
            let drawn = self.first_tokens(entered)?;
            self.take(model, decoder, drawn, &mut finished)?;
        }
        if self.slots_in_use() > 0 {
            let drawn = self.backend.generate(model, &mut self.slots, self.residuals.as_ref())?;
            self.take(model, decoder, drawn, &mut finished)?;
        }
        Ok(finished)
    }

    /// Gives waiting rollouts free slots, in order, as far as there are places for their keys and values. New
    /// prompts go through the model together. Returns the slots.
    fn admit(&mut self, model: &Model) -> Result<Vec<usize>, RolloutError> {
        let (mut entered, mut fresh) = (Vec::new(), Vec::new());
        let mut free =
            (0..self.slots.len()).filter(|slot| self.slots[*slot].is_none()).collect::<VecDeque<_>>();
        self.backend.expect_prompts(self.new_groups(free.len()))?;
        while let (Some(&slot), Some(waiting)) = (free.front(), self.waiting.front()) {
            let Waiting { request, index } = waiting.clone();
            let Some(places) = self.places(&request, &mut fresh)? else {
                if self.slots_in_use() > 0 {
                    break;
                }
                // Nothing runs that would give a place back: the prompts that are there make room.
                let limit = request.limit(self.max_positions);
                self.prompts.evict();
                self.backend.make_room(request.prompt_tokens.len() as i64 + limit)?;
                continue;
            };
            let entry = Slot::new((&request, index), places, self.max_positions, &self.options);
            if let Some(residuals) = &mut self.residuals {
                residuals.clear(slot);
            }
            self.slots[slot] = Some(entry);
            entered.push(slot);
            self.waiting.pop_front();
            free.pop_front();
        }
        let limit = if model.weights().device() == Device::Cpu { 1 } else { PREFILL_TOKENS };
        for piece in pieces(&fresh, limit) {
            failpoint::reach("prefill");
            profile::time(Phase::Prefill, || self.prompts.prefill(model, piece, &*self.backend))?;
        }
        Ok(entered)
    }

    /// Groups among the next rollouts whose prompts are not in the cache.
    fn new_groups(&self, rollouts: usize) -> usize {
        let mut groups: Vec<GroupId> = self
            .waiting
            .iter()
            .take(rollouts)
            .map(|waiting| waiting.request.lease.group)
            .filter(|group| !self.prompts.is_ready(*group))
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups.len()
    }

    /// Places for a rollout's prompt and response; both or none. A prompt that has to go through the model is
    /// added to `fresh`.
    fn places(
        &mut self,
        request: &RolloutRequest,
        fresh: &mut Vec<NewPrompt>,
    ) -> Result<Option<(Extent, Extent)>, RolloutError> {
        // The last token's keys and values are never needed.
        let tokens = (request.limit(self.max_positions) - 1).max(1);
        let Some(own) = self.backend.take_own(tokens) else { return Ok(None) };
        let group = request.lease.group;
        let known = match self.prompts.is_ready(group) {
            true => Some(self.prompts.get(group).place),
            false => fresh.iter().find(|prompt| prompt.group == group).map(|prompt| prompt.place),
        };
        if let Some(place) = known {
            return Ok(Some((place, own)));
        }
        let Some(place) = self.backend.take_prompt(request.prompt_tokens.len() as i64)? else {
            self.backend.give_own(own);
            return Ok(None);
        };
        fresh.push(NewPrompt { group, tokens: request.prompt_tokens.clone(), place });
        Ok(Some((place, own)))
    }

    /// The first token of each given slot, drawn from its prompt's last logits.
    fn first_tokens(&mut self, slots: &[usize]) -> Result<Vec<SlotTokens>, RolloutError> {
        let running = |slot: &usize| self.slots[*slot].as_ref().expect("entered slots are taken");
        let logits: Vec<&Tensor> =
            slots.iter().map(|slot| &self.prompts.get(running(slot).request.lease.group).logits).collect();
        let rows: Vec<RowOptions<'_>> = slots
            .iter()
            .map(|slot| RowOptions {
                sampling: &running(slot).request.lease.sampling,
                draw: Draw::Uniform(running(slot).uniform_ahead(0)),
                residual_row: (self.residuals.is_some() && running(slot).wants_feature()).then_some(*slot),
            })
            .collect();
        let sampled = sample(&Tensor::cat(&logits, 0), &rows, self.residuals.as_ref().map(Residuals::sums))?;
        let drawn = |at: usize| DrawnToken {
            token: sampled.tokens[at] as u32,
            logprob: sampled.logprobs[at],
            entropy: sampled.entropies[at],
        };
        Ok(slots
            .iter()
            .enumerate()
            .map(|(at, slot)| SlotTokens { slot: *slot, drawn: vec![drawn(at)] })
            .collect())
    }

    /// Adds drawn tokens to their slots and takes out what ended with them.
    fn take(
        &mut self,
        model: &Model,
        decoder: &dyn TextDecoder,
        generated: Vec<SlotTokens>,
        finished: &mut Vec<FinishedRollout>,
    ) -> Result<(), RolloutError> {
        let mut ended = Vec::new();
        for SlotTokens { slot: at, drawn } in generated {
            self.generated_tokens += drawn.len() as u64;
            let slot = self.slots[at].as_mut().expect("drawn slots are taken");
            let count = drawn.len();
            for (position, drawn) in drawn.into_iter().enumerate() {
                slot.push(drawn);
                if let Some(reason) = slot.finish_reason(&self.options.end_tokens, decoder) {
                    assert_eq!(position + 1, count, "a backend draws nothing after a response's end");
                    ended.push((at, reason, slot.response_length()));
                }
            }
        }
        let features = match &self.residuals {
            Some(residuals) if !ended.is_empty() => {
                let lengths: Vec<(usize, usize)> =
                    ended.iter().map(|(at, _, length)| (*at, *length)).collect();
                let features = profile::time(Phase::Features, || residuals.features(model, &lengths))?;
                features.into_iter().map(Some).collect()
            }
            _ => vec![None; ended.len()],
        };
        for ((at, reason, _), feature) in ended.into_iter().zip(features) {
            let slot = self.slots[at].take().expect("ended slots are taken");
            self.backend.give_own(slot.own);
            let lease = &slot.request.lease;
            if let Some(prompt) = self.prompts.release(lease.group) {
                self.backend.give_prompt(prompt);
            }
            let id = RolloutId { group: lease.group, index: slot.index };
            let feature = feature.filter(|_| slot.wants_feature());
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
    for (at, NewPrompt { tokens: prompt, .. }) in prompts.iter().enumerate() {
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
