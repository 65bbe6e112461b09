//! Decoding by the CPU's own decoder: a whole step in one call, over caches that grow with what is
//! generated.
//!
//! Invariants: slot i owns row i of the own cache. New weights are packed at the first step with them.

use g2rl_ffi::decoder::{CpuDecoder, DecodeStep};
use tch::Tensor;

use super::RolloutError;
use super::backend::{Backend, DrawnToken, SlotTokens};
use super::cache::{CacheShape, RowCache};
use super::device::extents::Extent;
use super::feature::Residuals;
use super::sampler::{Draw, RowOptions, sample};
use super::slot::Slot;
use crate::model::Model;
use crate::profile::{self, Phase};

/// The CPU's own decoder with its caches.
#[derive(Debug)]
pub(super) struct CpuBackend {
    prompts: RowCache,
    free_prompts: Vec<i64>,
    own: RowCache,
    /// The generation of the weights in the decoder.
    decoder: Option<(u64, CpuDecoder)>,
}

impl CpuBackend {
    /// `None` where the machine or the number format has no such decoder.
    pub(super) fn new(model: &Model, slots: usize) -> Option<Self> {
        if !model.has_cpu_decoder() {
            return None;
        }
        let shape = CacheShape::of(model);
        Some(Self {
            prompts: RowCache::new(shape, 0),
            free_prompts: Vec::new(),
            own: RowCache::new(shape, slots as i64),
            decoder: None,
        })
    }

    /// One token of every given slot through the model: logits `[slots, vocab] f32`.
    fn decode(&mut self, model: &Model, slots: &[(usize, &Slot)]) -> Result<Tensor, RolloutError> {
        let column = |f: &dyn Fn(&(usize, &Slot)) -> i64| -> Vec<i64> { slots.iter().map(f).collect() };
        let length = column(&|(_, slot)| slot.decode_input().0 + 1);
        self.own.reserve(length.iter().copied().max().unwrap_or(1))?;
        let decoder = match self.decoder.take() {
            Some((generation, decoder)) if generation == model.generation() => decoder,
            // The old one's memory is free before the new one is packed.
            outdated => {
                drop(outdated);
                profile::time(Phase::Packing, || model.cpu_decoder())?
            }
        };
        let (_, decoder) = self.decoder.insert((model.generation(), decoder));
        let ((prompt_keys, prompt_values), (keys, values)) = (self.prompts.layers(), self.own.layers());
        let logits = decoder.step(&DecodeStep {
            tokens: &column(&|(_, slot)| slot.decode_input().1),
            positions: &column(&|(_, slot)| slot.prompt.length + slot.decode_input().0),
            prompt_row: &column(&|(_, slot)| slot.prompt.start),
            prompt_length: &column(&|(_, slot)| slot.prompt.length),
            slot: &column(&|(index, _)| *index as i64),
            length: &length,
            prompt_keys,
            prompt_values,
            keys,
            values,
        })?;
        let times = decoder.times();
        profile::add(Phase::Products, times.products);
        profile::add(Phase::Attention, times.attention);
        profile::add(Phase::Rows, times.rows);
        Ok(logits)
    }
}

impl Backend for CpuBackend {
    fn expect_prompts(&mut self, prompts: usize) -> Result<(), RolloutError> {
        let missing = prompts.saturating_sub(self.free_prompts.len()) as i64;
        if missing > 0 {
            let have = self.prompts.rows();
            let rows = (have + missing).max(2 * have);
            self.prompts.reserve_rows(rows)?;
            self.free_prompts.extend((have..rows).rev());
        }
        Ok(())
    }

    /// A row, as its number and the prompt's length.
    fn take_prompt(&mut self, tokens: i64) -> Result<Option<Extent>, RolloutError> {
        self.expect_prompts(1)?;
        self.prompts.reserve(tokens)?;
        Ok(self.free_prompts.pop().map(|row| Extent { start: row, length: tokens }))
    }

    fn give_prompt(&mut self, prompt: Extent) {
        self.free_prompts.push(prompt.start);
    }

    fn write_prompt(
        &self,
        layer: usize,
        prompt: Extent,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(), RolloutError> {
        self.prompts.write(layer, prompt.start, keys, values)
    }

    /// Rows belong to slots and grow with the longest response.
    fn take_own(&mut self, tokens: i64) -> Option<Extent> {
        Some(Extent { start: 0, length: tokens })
    }

    fn give_own(&mut self, _own: Extent) {}

    fn clear(&mut self) {
        self.free_prompts = (0..self.prompts.rows()).rev().collect();
    }

    fn make_room(&mut self, _tokens: i64) -> Result<(), RolloutError> {
        self.clear();
        Ok(())
    }

    fn generate(
        &mut self,
        model: &Model,
        slots: &mut [Option<Slot>],
        residuals: Option<&Residuals>,
    ) -> Result<Vec<SlotTokens>, RolloutError> {
        let taken: Vec<(usize, &Slot)> =
            slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?))).collect();
        let logits = self.decode(model, &taken)?;
        let rows: Vec<RowOptions<'_>> = taken
            .iter()
            .map(|(index, slot)| RowOptions {
                sampling: &slot.request.lease.sampling,
                draw: Draw::Uniform(slot.uniform_ahead(0)),
                residual_row: (residuals.is_some() && slot.wants_feature()).then_some(*index),
            })
            .collect();
        let sampled =
            profile::time(Phase::Sampling, || sample(&logits, &rows, residuals.map(Residuals::sums)))?;
        let drawn = |at: usize| DrawnToken {
            token: sampled.tokens[at] as u32,
            logprob: sampled.logprobs[at],
            entropy: sampled.entropies[at],
        };
        Ok(taken
            .iter()
            .enumerate()
            .map(|(at, (slot, _))| SlotTokens { slot: *slot, drawn: vec![drawn(at)] })
            .collect())
    }
}
