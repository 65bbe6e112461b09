//! Decoding over fixed device buffers: on GPUs, and on CPUs that have no decoder of their own.
//!
//! A window of several steps runs without the host; the host then looks at what was drawn, takes out what
//! ended, fills free rows and writes all rows anew. Nothing of this changes a result: a row masks itself in the
//! step in which its response ends, and each draw depends on its position only.
//!
//! Invariants
//! - *Static* as long as the engine lives: the buffers of [`state`], the residual sums, the weights (updated in
//!   place) and, until it grows, the [`pool`]. Captured graphs hold their addresses; what moves them drops the
//!   graphs first.
//! - *The host may write between windows only*: all rows at once, from what it knows ([`state::State::write`]),
//!   and prompts into extents that no row reads yet.
//! - Slots are the first rows of the buffers. When few are left, they move together, so that a step runs over
//!   a power of two of rows; keys and values stay where they are.
//! - With a stop string in some slot a window is one step, since only the host can read text.

pub(super) mod attention;
pub(super) mod extents;
mod launch;
mod pool;
mod state;
mod step;

use tch::Tensor;

use self::attention::Kernel;
use self::extents::Extent;
use self::launch::Launch;
use self::pool::Pool;
use self::state::{Outputs, RowState, State};
use self::step::{Step, StepKey};
use super::backend::{Backend, DrawnToken, SlotTokens};
use super::cache::CacheShape;
use super::feature::Residuals;
use super::sampler::tensors::RowNumbers;
use super::slot::Slot;
use super::{EngineOptions, RolloutError};
use crate::model::Model;

/// The device path.
#[derive(Debug)]
pub(super) struct DeviceBackend {
    vocab: i64,
    state: State,
    pool: Pool,
    kernel: Kernel,
    launch: Launch,
    /// Where the weights are that the graphs read.
    weights: usize,
}

impl DeviceBackend {
    pub(super) fn new(model: &Model, options: &EngineOptions) -> Result<Self, RolloutError> {
        let shape = CacheShape::of(model);
        let device = model.weights().device();
        let window = options.device.look_interval.max(1) as i64;
        Ok(Self {
            vocab: model.config().vocab_size,
            state: State::new(options.slots as i64, window, &options.end_tokens, device)?,
            pool: Pool::new(shape, options.device.pool_tokens as i64)?,
            kernel: Kernel::choose(&shape, model.config().heads),
            launch: Launch::new(device, options.device.graphs)?,
            weights: address(model),
        })
    }

    /// Steps until the host must look.
    fn window(&self, slots: &[Option<Slot>]) -> i64 {
        let running = || slots.iter().flatten();
        let left = running().map(Slot::tokens_left).max().unwrap_or(1);
        let reads_text = running().any(|slot| !slot.request.lease.sampling.stop.is_empty());
        if reads_text { 1 } else { self.state.window().min(left).max(1) }
    }

    fn key(&self, slots: &[Option<Slot>], rows: usize, steps: i64) -> StepKey {
        let shortest = self.kernel.shortest_span();
        let span = |longest: i64| (longest as u64).next_power_of_two().max(shortest as u64) as i64;
        let running = || slots.iter().flatten();
        let numbers = || running().map(|slot| RowNumbers::of(&slot.request.lease.sampling, self.vocab));
        StepKey {
            rows: rows as i64,
            prompt_span: span(running().map(|slot| slot.prompt.length).max().unwrap_or(1)),
            own_span: span(running().map(|slot| slot.decode_input().0 + steps).max().unwrap_or(1)),
            greedy: numbers().any(|numbers| numbers.greedy),
            truncating: numbers().any(|numbers| numbers.truncates),
        }
    }

    fn row(&self, slot: &Slot, residuals: bool) -> RowState {
        let (length, token) = slot.decode_input();
        RowState {
            token,
            length,
            prompt_start: slot.prompt.start,
            prompt_length: slot.prompt.length,
            own_start: slot.own.start,
            limit: slot.limit(),
            numbers: RowNumbers::of(&slot.request.lease.sampling, self.vocab),
            wants_residuals: residuals && slot.wants_feature(),
        }
    }

    fn run(
        &mut self,
        model: &Model,
        slots: &[Option<Slot>],
        residuals: Option<&Tensor>,
    ) -> Result<(Outputs, i64), RolloutError> {
        let steps = self.window(slots);
        let key = self.key(slots, slots.len(), steps);
        if address(model) != self.weights {
            self.launch.forget();
            self.weights = address(model);
        }
        let rows: Vec<Option<RowState>> =
            slots.iter().map(|slot| slot.as_ref().map(|slot| self.row(slot, residuals.is_some()))).collect();
        let step = Step { model, state: &self.state, pool: &self.pool, residuals, kernel: self.kernel, key };
        let write = || {
            self.state.write(&rows, |row, ahead| {
                slots[row].as_ref().map_or(0.0, |slot| slot.uniform_ahead(ahead as u64))
            })
        };
        let _stream = self.launch.enter()?;
        write()?;
        if self.launch.prepare(&step)? {
            write()?;
        }
        for _ in 0..steps {
            self.launch.step(&step)?;
        }
        // The copy waits for the stream.
        Ok((self.state.read()?, steps))
    }
}

/// Where a model's head is, which stands for all of its weights.
fn address(model: &Model) -> usize {
    model.head().data_ptr() as usize
}

/// Moves slots together into the smallest power of two of rows that holds them, and returns it.
fn gather(slots: &mut [Option<Slot>], residuals: Option<&Tensor>) -> Result<usize, RolloutError> {
    let running = slots.iter().flatten().count();
    let rows = running.next_power_of_two().min(slots.len());
    let mut free = 0;
    for from in rows..slots.len() {
        if slots[from].is_none() {
            continue;
        }
        while slots[free].is_some() {
            free += 1;
        }
        if let Some(sums) = residuals {
            sums.f_get(free as i64)?.f_copy_(&sums.f_get(from as i64)?)?;
        }
        slots.swap(free, from);
    }
    Ok(rows)
}

impl Backend for DeviceBackend {
    fn take_prompt(&mut self, tokens: i64) -> Result<Option<Extent>, RolloutError> {
        Ok(self.pool.extents().take(tokens))
    }

    fn give_prompt(&mut self, prompt: Extent) {
        self.pool.extents().give(prompt);
    }

    fn write_prompt(
        &self,
        layer: usize,
        prompt: Extent,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(), RolloutError> {
        self.pool.write(layer, prompt, keys, values)
    }

    fn take_own(&mut self, tokens: i64) -> Option<Extent> {
        self.pool.extents().take(tokens)
    }

    fn give_own(&mut self, own: Extent) {
        self.pool.extents().give(own);
    }

    fn clear(&mut self) {
        self.pool.extents().clear();
    }

    fn make_room(&mut self, tokens: i64) -> Result<(), RolloutError> {
        self.clear();
        if tokens <= self.pool.tokens() {
            return Ok(());
        }
        tracing::warn!(tokens, had = self.pool.tokens(), "a request is larger than the pool, which grows");
        self.launch.forget();
        self.pool.grow(tokens)
    }

    fn generate(
        &mut self,
        model: &Model,
        slots: &mut [Option<Slot>],
        residuals: Option<&Residuals>,
    ) -> Result<Vec<SlotTokens>, RolloutError> {
        let sums = residuals.map(Residuals::sums);
        let rows = gather(slots, sums)?;
        let (outputs, steps) = self.run(model, &slots[..rows], sums)?;
        let mut generated = Vec::new();
        for slot in (0..rows).filter(|slot| slots[*slot].is_some()) {
            let drawn: Vec<DrawnToken> = (0..steps as usize)
                .map_while(|step| outputs.get(slot, step))
                .map(|(token, logprob, entropy)| DrawnToken { token: token as u32, logprob, entropy })
                .collect();
            if let Some(bad) = drawn.iter().find(|drawn| !(drawn.logprob + drawn.entropy).is_finite()) {
                tracing::error!(?bad, slot, "logits are not finite");
                return Err(g2rl_ffi::FfiError::NotFinite { operation: "decoding", row: slot }.into());
            }
            generated.push(SlotTokens { slot, drawn });
        }
        Ok(generated)
    }
}
